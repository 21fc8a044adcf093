//! Wall-clock times as the rest of the world writes them: nanoseconds since 1970 and RFC 3339 in UTC.

use std::time::{SystemTime, UNIX_EPOCH};

const SECOND: i64 = 1_000_000_000;

/// Nanoseconds since 1970-01-01 UTC.
#[must_use]
pub fn now_ns() -> i64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map(|d| i64::try_from(d.as_nanos()).unwrap_or(i64::MAX))
        .unwrap_or(0)
}

/// RFC 3339 with nine digits of fraction, as CRI logs have it: `2026-11-21T13:02:00.000000000Z`.
#[must_use]
pub fn rfc3339_ns(at_ns: i64) -> String {
    let (date, seconds, fraction) = split(at_ns);
    let (year, month, day) = date;
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{fraction:09}Z",
        seconds / 3600,
        seconds / 60 % 60,
        seconds % 60
    )
}

/// RFC 3339 to the second, as Kubernetes has it: `2026-11-21T13:02:00Z`.
#[must_use]
pub fn rfc3339(at_ns: i64) -> String {
    let (date, seconds, _) = split(at_ns);
    let (year, month, day) = date;
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z",
        seconds / 3600,
        seconds / 60 % 60,
        seconds % 60
    )
}

/// Date, second of the day, nanosecond of the second.
fn split(at_ns: i64) -> ((i64, i64, i64), i64, i64) {
    let seconds = at_ns.div_euclid(SECOND);
    (
        civil(seconds.div_euclid(86_400)),
        seconds.rem_euclid(86_400),
        at_ns.rem_euclid(SECOND),
    )
}

/// Year, month and day of a day number since 1970-01-01, in the proleptic Gregorian calendar. Years are counted from
/// March, so that the leap day is the last of its year.
fn civil(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let era = days.div_euclid(146_097);
    let day_of_era = days.rem_euclid(146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 {
        shifted_month + 3
    } else {
        shifted_month - 9
    };
    (year_of_era + era * 400 + i64::from(month <= 2), month, day)
}

/// How long ago `then` was at `now`, in the one unit that fits: `12s`, `5m`, `3h`, `2d`.
#[must_use]
pub fn age(then_ns: i64, now: i64) -> String {
    let seconds = (now - then_ns).max(0) / SECOND;
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7200 => format!("{}m", seconds / 60),
        7200..172_800 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_known_has_its_text() {
        assert_eq!(rfc3339_ns(0), "1970-01-01T00:00:00.000000000Z");
        // `date -u -d @951868799 +%FT%TZ`: the last second of a leap day in a year divisible by 400.
        assert_eq!(rfc3339(951_868_799 * SECOND), "2000-02-29T23:59:59Z");
        assert_eq!(
            rfc3339_ns(1_795_266_120 * SECOND + 5),
            "2026-11-21T13:02:00.000000005Z"
        );
    }

    #[test]
    fn age_of_each_magnitude_has_its_unit() {
        assert_eq!(age(0, 5 * SECOND), "5s");
        assert_eq!(age(0, 300 * SECOND), "5m");
        assert_eq!(age(0, 10_800 * SECOND), "3h");
        assert_eq!(age(0, 864_000 * SECOND), "10d");
    }
}
