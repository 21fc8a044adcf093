//! Drives the device through its rings.

use std::time::Duration;

use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress};

use super::spec::*;
use super::*;
use crate::virtio::guest_driver::{DESC_WRITE, GuestDriver};

const WAIT: Duration = Duration::from_secs(10);
const INFLATE: usize = INFLATE_QUEUE as usize;
const DEFLATE: usize = DEFLATE_QUEUE as usize;
/// As Linux numbers it.
const REPORT: usize = 2;
/// Memory that the test driver uses for nothing else.
const AREA: u64 = 0x200_0000;

struct Guest {
    device: Balloon,
    driver: GuestDriver,
}

impl Guest {
    fn new(features: u64) -> Self {
        let mut device = Balloon::new("balloon0".into());
        let driver = GuestDriver::new(3, 64);
        driver.activate(&mut device, features);
        Self { device, driver }
    }

    fn fill_page(&self, at: u64) {
        self.driver
            .memory
            .write_slice(&[0xa5; 4096], GuestAddress(at))
            .unwrap();
    }

    fn is_filled(&self, at: u64) -> bool {
        let mut page = [0; 4096];
        self.driver
            .memory
            .read_slice(&mut page, GuestAddress(at))
            .unwrap();
        if page == [0xa5; 4096] {
            return true;
        }
        assert_eq!(page, [0; 4096], "half discarded");
        false
    }

    fn report(&mut self, ranges: &[(u64, u32, u16)]) {
        let head = self.driver.put_raw(REPORT, ranges);
        self.driver.kick(REPORT);
        let used = self.driver.wait_used(REPORT, WAIT);
        assert_eq!((used.head, used.written), (head, 0));
    }

    fn list(&mut self, queue: usize, pages: &[u32]) {
        let bytes: Vec<u8> = pages.iter().flat_map(|page| page.to_le_bytes()).collect();
        assert!(self.driver.request(queue, &[&bytes], &[]).is_empty());
    }
}

fn page(at: u64) -> u32 {
    u32::try_from(at / PAGE_BYTES).unwrap()
}

#[test]
fn reported_pages_are_given_back_and_counted() {
    for features in [F_REPORTING, F_REPORTING | F_EVENT_IDX] {
        let mut guest = Guest::new(features);
        for i in 0..4 {
            guest.fill_page(AREA + i * 4096);
        }
        guest.report(&[
            (AREA, 8192, DESC_WRITE),
            (AREA + 3 * 4096, 4096, DESC_WRITE),
        ]);
        let filled = [0, 1, 2, 3].map(|i| guest.is_filled(AREA + i * 4096));
        assert_eq!(filled, [false, false, true, false]);
        assert_eq!(guest.device.control().reported_bytes(), 3 * 4096);
        assert_eq!(guest.device.control().refused_ranges(), 0);
    }
}

#[test]
fn reporting_queue_is_found_where_the_specification_numbers_it() {
    let mut device = Balloon::new("balloon0".into());
    let mut driver = GuestDriver::new(QUEUES, 64);
    let mut activation = driver.activation(F_REPORTING);
    activation.queues.retain(|q| q.index < 2 || q.index == 4);
    device.activate(activation).unwrap();
    driver.put_raw(4, &[(AREA, 4096, DESC_WRITE)]);
    driver.kick(4);
    driver.wait_used(4, WAIT);
    assert_eq!(device.control().reported_bytes(), 4096);
}

#[test]
fn hostile_reports_are_refused_and_counted() {
    let mut guest = Guest::new(F_REPORTING);
    guest.fill_page(AREA);
    guest.fill_page(AREA + 4096);
    // Not whole pages, and memory that the device is only to read.
    guest.report(&[(AREA + 1, 4096, DESC_WRITE)]);
    guest.report(&[(AREA, 4095, DESC_WRITE)]);
    guest.report(&[(AREA, 4096, 0)]);
    assert_eq!(guest.device.control().refused_ranges(), 2);
    // Outside guest memory, partly and wholly: the chain as a whole is malformed.
    let end = 64 << 20;
    guest.report(&[(end - 4096, 8192, DESC_WRITE)]);
    guest.report(&[(AREA, 4096, DESC_WRITE), (1 << 45, 4096, DESC_WRITE)]);
    guest.report(&[(u64::MAX - 4095, 8192, DESC_WRITE)]);
    assert!(guest.is_filled(AREA) && guest.is_filled(AREA + 4096));
    assert_eq!(guest.device.control().reported_bytes(), 0);
    let errors = guest.device.counters().errors.load(Ordering::Relaxed);
    assert_eq!(errors, 3);
}

#[test]
fn inflated_pages_are_given_back_in_any_order() {
    let mut guest = Guest::new(0);
    for i in 0..5 {
        guest.fill_page(AREA + i * 4096);
    }
    let first = page(AREA);
    guest.list(INFLATE, &[first + 2, first + 1, first + 4, first + 1]);
    let filled = [0, 1, 2, 3, 4].map(|i| guest.is_filled(AREA + i * 4096));
    assert_eq!(filled, [true, false, false, true, false]);
    assert_eq!(guest.device.control().inflated_bytes(), 3 * 4096);
    // Taking them back needs nothing but an answer.
    guest.list(DEFLATE, &[first + 1, first + 2]);
    guest.fill_page(AREA + 4096);
    assert!(guest.is_filled(AREA + 4096));
}

#[test]
fn page_lists_outside_memory_or_too_long_are_refused_in_part() {
    let mut guest = Guest::new(0);
    guest.fill_page(AREA);
    guest.list(INFLATE, &[u32::MAX, page(AREA), page(64 << 20)]);
    assert!(!guest.is_filled(AREA));
    assert_eq!(guest.device.control().refused_ranges(), 2);
    guest.list(INFLATE, &vec![page(AREA); request::MAX_LISTED + 1]);
    assert_eq!(guest.device.control().refused_ranges(), 3);
    guest.driver.request(INFLATE, &[&[1, 2, 3]], &[]);
    assert_eq!(guest.device.control().refused_ranges(), 4);
}

#[test]
fn target_is_told_by_a_config_interrupt_and_actual_is_the_drivers() {
    let mut guest = Guest::new(0);
    guest.device.set_target_mib(3);
    assert_eq!(guest.driver.interrupt.config.load(Ordering::SeqCst), 1);
    let mut config = [0xff; 20];
    guest.device.read_config(0, &mut config);
    assert_eq!(config[..8], [0, 3, 0, 0, 0, 0, 0, 0]);
    assert_eq!(config[8..], [0; 12]);
    guest.device.write_config(CONFIG_ACTUAL, &[0, 2, 0, 0]);
    // Neither the target nor what is behind is the driver's.
    guest.device.write_config(0, &[9, 9, 9, 9]);
    guest.device.write_config(u64::MAX - 1, &[9; 8]);
    let control = guest.device.control();
    assert_eq!((control.target_mib(), control.actual_mib()), (3, 2));
    guest.device.stop();
    control.set_target_mib(u32::MAX);
    assert_eq!(guest.driver.interrupt.config.load(Ordering::SeqCst), 1);
}

#[test]
fn missing_deflate_queue_is_refused_and_stop_gives_all_queues_back() {
    let mut device = Balloon::new("balloon0".into());
    let driver = GuestDriver::new(3, 64);
    let mut activation = driver.activation(0);
    activation.queues.remove(DEFLATE);
    assert!(matches!(
        device.activate(activation),
        Err(ActivateError::QueueMissing {
            index: DEFLATE_QUEUE
        })
    ));
    driver.activate(&mut device, F_REPORTING);
    assert_eq!(device.stop().len(), 3);
    assert!(device.stop().is_empty());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn any_chains_leave_a_working_device(
        chains in proptest::collection::vec(
            (0..3usize, proptest::collection::vec((any::<u64>(), any::<u32>(), any::<bool>()), 1..5)),
            1..30,
        ),
    ) {
        let mut guest = Guest::new(F_REPORTING);
        for (queue, parts) in chains {
            let parts: Vec<_> = parts
                .into_iter()
                .map(|(at, len, writable)| {
                    // Mostly inside the area that holds no ring.
                    let at = if at & 7 == 0 { at } else { AREA + at % 0x100_0000 };
                    let len = if len & 3 == 0 { len % 65536 } else { len % 100 * 4 };
                    (at, len, if writable { DESC_WRITE } else { 0 })
                })
                .collect();
            guest.driver.put_raw(queue, &parts);
            guest.driver.kick(queue);
            guest.driver.wait_used(queue, WAIT);
        }
        guest.fill_page(AREA);
        guest.report(&[(AREA, 4096, DESC_WRITE)]);
        prop_assert!(!guest.is_filled(AREA));
    }
}

#[test]
fn balloon_restored_is_as_large_as_the_saved_one() {
    let mut saved = Balloon::new("balloon0".into());
    saved.write_config(CONFIG_ACTUAL, &0x1234u32.to_le_bytes());
    let mut restored = Balloon::new("balloon0".into());
    assert!(restored.restore(&[1]).is_err());
    restored.restore(&saved.saved()).unwrap();
    let mut data = [0; 4];
    restored.read_config(CONFIG_ACTUAL, &mut data);
    assert_eq!(u32::from_le_bytes(data), 0x1234);
}
