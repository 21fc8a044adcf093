//! Wall clock and monotonic clock of the guest, and setting the former.

use std::time::{SystemTime, UNIX_EPOCH};

use nix::sys::time::TimeSpec;
use nix::time::{ClockId, clock_gettime, clock_settime};

/// Nanoseconds since 1970 by the guest's wall clock.
pub fn realtime_ns() -> i64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| {
            i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
        })
}

/// Microseconds of `CLOCK_MONOTONIC`, which starts with the guest's kernel.
pub fn monotonic_us() -> u64 {
    clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(0, |now| {
        u64::try_from(now.tv_sec())
            .unwrap_or(0)
            .saturating_mul(1_000_000)
            .saturating_add(u64::try_from(now.tv_nsec() / 1_000).unwrap_or(0))
    })
}

/// Sets the wall clock to `ns` nanoseconds since 1970. Values before 1970 or after 2262 are the caller's to refuse.
pub fn set_realtime_ns(ns: i64) -> nix::Result<()> {
    clock_settime(
        ClockId::CLOCK_REALTIME,
        TimeSpec::new(ns.div_euclid(1_000_000_000), ns.rem_euclid(1_000_000_000)),
    )
}
