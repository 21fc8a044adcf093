//! The transport's registers, driven in and out of order by a driver that may be hostile.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use proptest::prelude::*;
use virtio_queue::QueueT;
use vm_memory::{GuestAddress, GuestMemoryMmap};

use super::registers::{offset, status};
use super::{MmioBus, MmioTransport};
use crate::layout;
use crate::virtio::{
    ActivateError, Activation, ActiveQueue, DeviceCounters, Interrupt, InterruptKind, StoppedQueue,
    VirtioDevice,
};

/// Agreed features, and index and size of each queue.
type Activated = (u64, Vec<(u16, u16)>);

/// What a fake device was told. Shared between the device in its transport and the test.
#[derive(Default)]
struct Seen {
    activations: Mutex<Vec<Activated>>,
    config: Mutex<[u8; 16]>,
    stops: AtomicU64,
}

struct FakeDevice {
    seen: Arc<Seen>,
    held: Vec<ActiveQueue>,
    interrupt: Option<Arc<dyn Interrupt>>,
    waits: bool,
}

impl VirtioDevice for FakeDevice {
    fn device_type(&self) -> u32 {
        42
    }

    fn name(&self) -> &str {
        "fake0"
    }

    fn queue_sizes(&self) -> &[u16] {
        &[8, 256]
    }

    fn features(&self) -> u64 {
        1 << 29 | 0b101
    }

    fn changes_config(&self) -> bool {
        true
    }

    fn waits_for_driver(&self) -> bool {
        self.waits
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let config = self.seen.config.lock().unwrap();
        for (i, byte) in (0u64..).zip(data) {
            *byte = offset
                .checked_add(i)
                .and_then(|at| usize::try_from(at).ok())
                .and_then(|at| config.get(at).copied())
                .unwrap_or(0);
        }
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        let mut config = self.seen.config.lock().unwrap();
        for (i, byte) in (0u64..).zip(data) {
            if let Some(slot) = usize::try_from(offset + i)
                .ok()
                .and_then(|at| config.get_mut(at))
            {
                *slot = *byte;
            }
        }
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        if !activation.queues.iter().any(|q| q.index == 0) {
            return Err(ActivateError::QueueMissing { index: 0 });
        }
        let queues = activation
            .queues
            .iter()
            .map(|q| (q.index, q.queue.size()))
            .collect();
        self.seen
            .activations
            .lock()
            .unwrap()
            .push((activation.features, queues));
        self.held = activation.queues;
        self.interrupt = Some(activation.interrupt);
        Ok(())
    }

    fn stop(&mut self) -> Vec<StoppedQueue> {
        self.seen.stops.fetch_add(1, Ordering::SeqCst);
        self.interrupt = None;
        self.held
            .drain(..)
            .map(|q| StoppedQueue {
                index: q.index,
                queue: q.queue,
                kick: q.kick,
            })
            .collect()
    }

    fn counters(&self) -> Arc<DeviceCounters> {
        Arc::default()
    }
}

fn transport() -> (MmioTransport, Arc<Seen>) {
    transport_that(false)
}

/// With a device that waits for its driver's notification, or does not.
fn transport_that(waits: bool) -> (MmioTransport, Arc<Seen>) {
    let memory = Arc::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap());
    let seen = Arc::new(Seen::default());
    let device = FakeDevice {
        seen: Arc::clone(&seen),
        held: Vec::new(),
        interrupt: None,
        waits,
    };
    (MmioTransport::new(Box::new(device), memory).unwrap(), seen)
}

fn read(transport: &MmioTransport, at: u64) -> u32 {
    let mut data = [0xaa; 4];
    transport.read(at, &mut data);
    u32::from_le_bytes(data)
}

fn write(transport: &mut MmioTransport, at: u64, value: u32) {
    transport.write(at, &value.to_le_bytes());
}

/// Up to FEATURES_OK with these features; returns the status read back.
fn negotiate(t: &mut MmioTransport, features: u64) -> u32 {
    write(t, offset::STATUS, status::ACKNOWLEDGE);
    write(t, offset::STATUS, status::ACKNOWLEDGE | status::DRIVER);
    for half in 0..2 {
        write(t, offset::DRIVER_FEATURES_SEL, half);
        write(t, offset::DRIVER_FEATURES, (features >> (32 * half)) as u32);
    }
    let all = status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK;
    write(t, offset::STATUS, all);
    read(t, offset::STATUS)
}

fn set_up_queue(t: &mut MmioTransport, index: u32, size: u32, base: u32) {
    write(t, offset::QUEUE_SEL, index);
    write(t, offset::QUEUE_SIZE, size);
    write(t, offset::QUEUE_DESC_LOW, base);
    write(t, offset::QUEUE_DRIVER_LOW, base + 0x1000);
    write(t, offset::QUEUE_DEVICE_LOW, base + 0x2000);
    write(t, offset::QUEUE_READY, 1);
}

const VERSION_1: u64 = 1 << 32;

#[test]
fn window_after_reset_identifies_the_device() {
    let (t, _) = transport();
    let identity = [
        offset::MAGIC_VALUE,
        offset::VERSION,
        offset::DEVICE_ID,
        offset::STATUS,
    ]
    .map(|at| read(&t, at));
    assert_eq!(identity, [0x7472_6976, 2, 42, 0]);
}

#[test]
fn features_offered_include_version_1_in_the_upper_half() {
    let (mut t, _) = transport();
    assert_eq!(read(&t, offset::DEVICE_FEATURES), 1 << 29 | 0b101);
    write(&mut t, offset::DEVICE_FEATURES_SEL, 1);
    assert_eq!(read(&t, offset::DEVICE_FEATURES), 1);
    write(&mut t, offset::DEVICE_FEATURES_SEL, 2);
    assert_eq!(read(&t, offset::DEVICE_FEATURES), 0);
}

#[test]
fn features_not_offered_or_without_version_1_are_not_ok() {
    for (features, good) in [
        (VERSION_1 | 0b100, true),
        (VERSION_1 | 0b10, false),
        (0b101, false),
    ] {
        let (mut t, _) = transport();
        let status = negotiate(&mut t, features);
        assert_eq!(status & status::FEATURES_OK != 0, good, "{features:#x}");
    }
}

#[test]
fn driver_ok_activates_with_the_ready_queues_and_reset_stops() {
    let (mut t, seen) = transport();
    negotiate(&mut t, VERSION_1 | 1 << 29);
    set_up_queue(&mut t, 0, 4, 0x1_0000);
    set_up_queue(&mut t, 1, 128, 0x2_0000);
    assert_eq!(read(&t, offset::QUEUE_READY), 1);
    write(&mut t, offset::STATUS, 0xf);
    assert_eq!(read(&t, offset::STATUS), 0xf);
    assert_eq!(
        *seen.activations.lock().unwrap(),
        [(VERSION_1 | 1 << 29, vec![(0, 4), (1, 128)])]
    );
    t.interrupt().raise(InterruptKind::Queue(0)).unwrap();
    assert_eq!(read(&t, offset::INTERRUPT_STATUS), 1);
    write(&mut t, offset::INTERRUPT_ACK, 1);
    assert_eq!(read(&t, offset::INTERRUPT_STATUS), 0);
    write(&mut t, offset::STATUS, 0);
    assert_eq!(seen.stops.load(Ordering::SeqCst), 1);
    assert_eq!(read(&t, offset::STATUS), 0);
    write(&mut t, offset::QUEUE_SEL, 1);
    assert_eq!(read(&t, offset::QUEUE_READY), 0);
}

#[test]
fn driver_ok_before_features_ok_is_ignored() {
    let (mut t, seen) = transport();
    write(&mut t, offset::STATUS, status::DRIVER_OK);
    write(
        &mut t,
        offset::STATUS,
        status::ACKNOWLEDGE | status::DRIVER_OK,
    );
    assert_eq!(read(&t, offset::STATUS), status::ACKNOWLEDGE);
    assert!(seen.activations.lock().unwrap().is_empty());
}

#[test]
fn activation_that_fails_needs_a_reset_and_says_so() {
    let (mut t, _) = transport();
    negotiate(&mut t, VERSION_1);
    write(&mut t, offset::STATUS, 0xf);
    assert_eq!(read(&t, offset::STATUS), 0xf | status::NEEDS_RESET);
    assert_eq!(read(&t, offset::INTERRUPT_STATUS), 2);
    // A second try after a reset works.
    write(&mut t, offset::STATUS, 0);
    negotiate(&mut t, VERSION_1);
    set_up_queue(&mut t, 0, 8, 0x1_0000);
    write(&mut t, offset::STATUS, 0xf);
    assert_eq!(read(&t, offset::STATUS), 0xf);
}

#[test]
fn queue_outside_memory_or_of_impossible_place_is_not_ready() {
    let (mut t, _) = transport();
    negotiate(&mut t, VERSION_1);
    set_up_queue(&mut t, 0, 8, 0xff_0000);
    assert_eq!(read(&t, offset::QUEUE_READY), 0);
    write(&mut t, offset::QUEUE_DESC_HIGH, 0xffff_ffff);
    write(&mut t, offset::QUEUE_READY, 1);
    assert_eq!(read(&t, offset::QUEUE_READY), 0);
    write(&mut t, offset::QUEUE_SEL, 77);
    assert_eq!(read(&t, offset::QUEUE_SIZE_MAX), 0);
    write(&mut t, offset::QUEUE_READY, 1);
    assert_eq!(read(&t, offset::QUEUE_READY), 0);
}

#[test]
fn queue_that_is_ready_keeps_its_set_up() {
    let (mut t, seen) = transport();
    negotiate(&mut t, VERSION_1);
    set_up_queue(&mut t, 0, 4, 0x1_0000);
    write(&mut t, offset::QUEUE_SIZE, 8);
    write(&mut t, offset::STATUS, 0xf);
    write(&mut t, offset::QUEUE_SIZE, 2);
    assert_eq!(seen.activations.lock().unwrap()[0].1, [(0, 4)]);
}

#[test]
fn config_is_read_and_written_in_any_width() {
    let (mut t, seen) = transport();
    t.write(offset::CONFIG, &[9]);
    assert_eq!(seen.config.lock().unwrap()[0], 0, "written before DRIVER");
    write(&mut t, offset::STATUS, 1);
    write(&mut t, offset::STATUS, 3);
    t.write(offset::CONFIG, &[1, 2, 3, 4, 5, 6, 7, 8]);
    t.write(offset::CONFIG + 9, &[0xbb]);
    t.write(offset::CONFIG + 14, &[1, 2, 3, 4]);
    let mut wide = [0; 8];
    t.read(offset::CONFIG + 2, &mut wide);
    assert_eq!(wide, [3, 4, 5, 6, 7, 8, 0, 0xbb]);
    let mut byte = [0];
    t.read(offset::CONFIG + 4, &mut byte);
    assert_eq!(byte, [5]);
    let mut beyond = [1; 4];
    t.read(0xffc, &mut beyond);
    assert_eq!(beyond, [0; 4]);
}

#[test]
fn config_generation_changes_with_each_change() {
    let (t, _) = transport();
    let before = read(&t, offset::CONFIG_GENERATION);
    t.interrupt().raise(InterruptKind::Config).unwrap();
    assert_ne!(read(&t, offset::CONFIG_GENERATION), before);
}

#[test]
fn notification_by_register_reaches_the_queue_and_one_beyond_none() {
    let (mut t, _) = transport();
    write(&mut t, offset::QUEUE_NOTIFY, 1);
    write(&mut t, offset::QUEUE_NOTIFY, 2);
    assert_eq!(t.kicks()[1].read().unwrap(), 1);
    assert!(t.kicks()[0].read().is_err());
}

#[test]
fn bus_finds_windows_by_address_and_nothing_between_or_behind() {
    let bus = MmioBus::new(vec![transport().0, transport().0]);
    let mut data = [0; 4];
    assert!(bus.read(layout::window(1), &mut data));
    assert_eq!(u32::from_le_bytes(data), 0x7472_6976);
    assert!(!bus.read(layout::window(2), &mut data));
    assert!(!bus.write(layout::MMIO_BASE - 1, &data));
    assert!(!bus.write(u64::MAX, &data));
}

#[derive(Clone, Debug)]
enum Access {
    Read(u64, usize),
    Write(u64, Vec<u8>),
}

fn access() -> impl Strategy<Value = Access> {
    let known = prop::sample::select(vec![
        offset::DEVICE_FEATURES_SEL,
        offset::DRIVER_FEATURES,
        offset::DRIVER_FEATURES_SEL,
        offset::QUEUE_SEL,
        offset::QUEUE_SIZE,
        offset::QUEUE_READY,
        offset::QUEUE_NOTIFY,
        offset::INTERRUPT_ACK,
        offset::STATUS,
        offset::QUEUE_DESC_LOW,
        offset::QUEUE_DESC_HIGH,
        offset::QUEUE_DRIVER_LOW,
        offset::QUEUE_DEVICE_LOW,
        offset::CONFIG,
    ]);
    let at = prop_oneof![4 => known, 1 => 0u64..0x1000];
    let value = prop_oneof![
        2 => prop::sample::select(vec![0u32, 1, 3, 0xb, 0xf, 0x8f, 8, 0x1_0000]),
        1 => any::<u32>(),
    ];
    prop_oneof![
        1 => (at.clone(), prop::sample::select(vec![1usize, 2, 4, 8])).prop_map(|(at, n)| Access::Read(at, n)),
        4 => (at.clone(), value).prop_map(|(at, v)| Access::Write(at, v.to_le_bytes().to_vec())),
        1 => (at, prop::collection::vec(any::<u8>(), 0..9)).prop_map(|(at, v)| Access::Write(at, v)),
    ]
}

proptest! {
    /// No sequence of accesses panics, activates a device without agreed features, or leaves it unusable after a reset.
    #[test]
    fn window_survives_any_sequence_of_accesses(accesses in prop::collection::vec(access(), 0..200)) {
        let (mut t, seen) = transport();
        for access in accesses {
            match access {
                Access::Read(at, n) => t.read(at, &mut vec![0; n]),
                Access::Write(at, data) => t.write(at, &data),
            }
        }
        for (features, queues) in seen.activations.lock().unwrap().iter() {
            prop_assert_ne!(features & VERSION_1, 0);
            prop_assert_eq!(features & !(VERSION_1 | 1 << 29 | 0b101), 0);
            for &(index, size) in queues {
                prop_assert!(size <= [8, 256][usize::from(index)]);
            }
        }
        write(&mut t, offset::STATUS, 0);
        negotiate(&mut t, VERSION_1);
        set_up_queue(&mut t, 0, 8, 0x1_0000);
        write(&mut t, offset::STATUS, 0xf);
        prop_assert_eq!(read(&t, offset::STATUS), 0xf);
    }
}

/// A transport with an active device, of which the first queue is ready.
fn active() -> (MmioTransport, Arc<Seen>) {
    let (mut t, seen) = transport();
    negotiate(&mut t, VERSION_1 | 0b100);
    set_up_queue(&mut t, 0, 8, 0x1_0000);
    let all = status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK | status::DRIVER_OK;
    write(&mut t, offset::STATUS, all);
    (t, seen)
}

#[test]
fn transport_paused_and_going_on_has_its_device_activated_as_before() {
    let (mut t, seen) = active();
    t.pause();
    t.pause();
    assert_eq!(seen.stops.load(Ordering::SeqCst), 1);
    let state = t.state();
    assert_eq!(state.queues.len(), 2);
    t.go_on();
    t.go_on();
    let activations = seen.activations.lock().unwrap();
    assert_eq!(activations.len(), 2);
    assert_eq!(activations[0], activations[1]);
}

#[test]
fn transport_restored_reads_as_the_saved_one_and_activates_once() {
    let (mut saved, _) = active();
    saved.interrupt().raise(InterruptKind::Queue(0)).unwrap();
    saved.interrupt().raise(InterruptKind::Config).unwrap();
    saved.pause();
    let mut state = saved.state();
    state.queues[0].next_avail = 5;
    let (mut t, seen) = transport();
    t.restore(&state).unwrap();
    assert!(seen.activations.lock().unwrap().is_empty());
    for at in [
        offset::STATUS,
        offset::INTERRUPT_STATUS,
        offset::CONFIG_GENERATION,
        offset::QUEUE_READY,
    ] {
        assert_eq!(read(&t, at), read(&saved, at), "{at:#x}");
    }
    t.go_on();
    // Not acknowledged by the driver: the edge comes again.
    assert_eq!(t.interrupt().line().read().unwrap(), 1);
    assert_eq!(
        *seen.activations.lock().unwrap(),
        [(VERSION_1 | 0b100, vec![(0, 8)])]
    );
    assert_eq!(t.state(), {
        t.pause();
        t.state()
    });
    assert_eq!(t.state().queues[0].next_avail, 5);
}

#[test]
fn device_that_waits_for_its_driver_sleeps_until_it_is_notified_or_reset() {
    let (mut saved, _) = active();
    saved.pause();
    let state = saved.state();
    for (waits, woken) in [(false, 1), (true, 0)] {
        let (mut t, seen) = transport_that(waits);
        t.restore(&state).unwrap();
        t.go_on_when_needed();
        let count = || seen.activations.lock().unwrap().len();
        assert_eq!(count(), woken);
        assert_eq!(t.sleeping_kicks().count(), if waits { 2 } else { 0 });
        t.wake();
        t.wake();
        assert_eq!(count(), 1);
        assert_eq!(t.sleeping_kicks().count(), 0);
    }
    let (mut t, seen) = transport_that(true);
    t.restore(&state).unwrap();
    t.go_on_when_needed();
    write(&mut t, offset::STATUS, 0);
    assert_eq!(t.sleeping_kicks().count(), 0);
    t.wake();
    assert!(seen.activations.lock().unwrap().is_empty());
}

#[test]
fn port_for_notifications_is_told_where_there_is_one() {
    let (mut t, _) = transport();
    assert_eq!(read(&t, offset::NOTIFY_PORT), 0);
    t.set_notify_port(layout::notify_port(3).unwrap());
    assert_eq!(read(&t, offset::NOTIFY_PORT), 0xc00c);
    assert_eq!(layout::notify_port(usize::MAX), None);
}

#[test]
fn transport_of_an_idle_device_restored_stays_idle() {
    let (mut saved, _) = transport();
    negotiate(&mut saved, VERSION_1);
    let state = saved.state();
    let (mut t, seen) = transport();
    t.restore(&state).unwrap();
    t.go_on();
    assert!(seen.activations.lock().unwrap().is_empty());
    assert_eq!(read(&t, offset::STATUS), read(&saved, offset::STATUS));
}

#[test]
fn state_that_no_driver_could_bring_about_is_refused() {
    let (mut saved, _) = active();
    saved.pause();
    let good = saved.state();
    type Change = fn(&mut super::TransportState);
    let changes: [Change; 10] = [
        |s| s.device_type = 1,
        |s| s.offered ^= 1,
        |s| s.accepted |= 1 << 40,
        |s| s.status |= 0x100,
        |s| s.queues.truncate(1),
        |s| s.queues[0].max_size = 16,
        |s| s.queues[0].size = 3,
        |s| s.queues[0].desc_table = u64::MAX - 15,
        |s| s.queues[0].used_ring = 1 << 30,
        |s| s.device = vec![1],
    ];
    for (number, change) in changes.into_iter().enumerate() {
        let mut state = good.clone();
        change(&mut state);
        let (mut t, seen) = transport();
        assert!(t.restore(&state).is_err(), "change {number}");
        assert!(seen.activations.lock().unwrap().is_empty());
    }
}
