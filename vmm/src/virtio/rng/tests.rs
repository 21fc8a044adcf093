//! The entropy device through its ring.

use std::sync::atomic::Ordering;
use std::time::Duration;

use super::Rng;
use crate::virtio::guest_driver::{DESC_WRITE, GuestDriver};
use crate::virtio::{ActivateError, VirtioDevice};

const LIMIT: Duration = Duration::from_secs(10);

fn started(size: u16) -> (Rng, GuestDriver) {
    let mut device = Rng::new("rng0");
    let driver = GuestDriver::new(1, size);
    let features = device.features();
    driver.activate(&mut device, features);
    (device, driver)
}

#[test]
fn request_of_one_buffer_is_filled_with_random_bytes() {
    let (device, mut driver) = started(16);
    let first = driver.request(0, &[], &[64]);
    let second = driver.request(0, &[], &[64]);
    assert_eq!(first.len(), 64);
    assert_ne!(first, second);
    assert_ne!(first, vec![0; 64]);
    let counters = device.counters();
    assert_eq!(counters.requests.load(Ordering::Relaxed), 2);
    assert_eq!(counters.read_bytes.load(Ordering::Relaxed), 128);
}

#[test]
fn request_of_several_buffers_fills_each_to_its_end() {
    let (_device, mut driver) = started(16);
    let bytes = driver.request(0, &[], &[300, 1, 700]);
    assert_eq!(bytes.len(), 1001);
    // 32 zero bytes in a row come once in 2^256.
    assert!(!bytes.windows(32).any(|w| w == [0; 32]));
}

#[test]
fn request_beyond_the_bound_is_cut() {
    let (_device, mut driver) = started(16);
    assert_eq!(driver.request(0, &[], &[60_000, 60_000]).len(), 65_536);
}

#[test]
fn request_with_a_readable_buffer_is_used_empty_and_counted() {
    let (device, mut driver) = started(16);
    driver.put(0, &[b"read me"], &[16]);
    driver.kick(0);
    assert_eq!(driver.wait_used(0, LIMIT).written, 0);
    assert_eq!(device.counters().errors.load(Ordering::Relaxed), 1);
}

#[test]
fn request_outside_memory_is_used_empty_and_the_next_one_served() {
    let (_device, mut driver) = started(16);
    for address in [1 << 40, u64::MAX - 3, (64 << 20) - 2] {
        driver.put_raw(0, &[(address, 64, DESC_WRITE)]);
        driver.kick(0);
        assert_eq!(driver.wait_used(0, LIMIT).written, 0);
    }
    assert_eq!(driver.request(0, &[], &[8]).len(), 8);
}

#[test]
fn requests_put_before_activation_are_answered_without_a_notification() {
    let mut device = Rng::new("rng0");
    let mut driver = GuestDriver::new(1, 16);
    driver.put(0, &[], &[32]);
    driver.activate(&mut device, 0);
    assert_eq!(driver.wait_used(0, LIMIT).written, 32);
}

#[test]
fn stop_gives_the_queue_back_and_a_second_stop_nothing() {
    use virtio_queue::QueueT;
    let (mut device, mut driver) = started(16);
    driver.request(0, &[], &[32]);
    let stopped = device.stop();
    assert_eq!(stopped.len(), 1);
    assert_eq!(stopped[0].queue.next_avail(), 1);
    assert!(device.stop().is_empty());
    driver.put(0, &[], &[32]);
    driver.kick(0);
    assert!(driver.stays_unused(0, Duration::from_millis(50)));
}

#[test]
fn activation_without_its_queue_is_refused() {
    let mut device = Rng::new("rng0");
    let mut activation = GuestDriver::new(1, 16).activation(0);
    activation.queues.clear();
    assert!(matches!(
        device.activate(activation),
        Err(ActivateError::QueueMissing { index: 0 })
    ));
}
