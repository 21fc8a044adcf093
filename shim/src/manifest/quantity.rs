//! Kubernetes quantities (API type `Quantity`): `500m`, `128Mi`, `1.5G`, `1e3`.

/// A text is no quantity, or one that is negative or too large.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "quantities must be a non-negative number with an optional suffix (n u m k M G T P E Ki Mi Gi Ti Pi Ei) or exponent"
)]
pub struct QuantityError;

/// Whole units, rounded up: bytes of `128Mi`.
///
/// # Errors
/// No quantity, negative, or beyond 2^63.
pub fn units(text: &str) -> Result<u64, QuantityError> {
    scaled(text, 1)
}

/// Thousandths, rounded up: 500 for `500m` or `0.5`.
///
/// # Errors
/// As [`units`].
pub fn thousandths(text: &str) -> Result<u64, QuantityError> {
    scaled(text, 1000)
}

const NANO: u128 = 1_000_000_000;

fn scaled(text: &str, factor: u128) -> Result<u64, QuantityError> {
    let nano = nanos(text)?;
    let value = nano
        .checked_mul(factor)
        .ok_or(QuantityError)?
        .div_ceil(NANO);
    u64::try_from(value)
        .ok()
        .filter(|v| i64::try_from(*v).is_ok())
        .ok_or(QuantityError)
}

/// The value in thousand-millionths.
fn nanos(text: &str) -> Result<u128, QuantityError> {
    let text = text.strip_prefix('+').unwrap_or(text);
    let end = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') || number.len() > 40 {
        return Err(QuantityError);
    }
    let (multiplier, divisor) = suffix_scale(suffix)?;
    let parse = |digits: &str| -> Result<u128, QuantityError> {
        if digits.is_empty() {
            Ok(0)
        } else {
            digits.parse().map_err(|_| QuantityError)
        }
    };
    let fraction_scale = 10_u128
        .checked_pow(u32::try_from(fraction.len()).map_err(|_| QuantityError)?)
        .ok_or(QuantityError)?;
    let unit = NANO.checked_mul(multiplier).ok_or(QuantityError)?;
    let whole = parse(whole)?.checked_mul(unit).ok_or(QuantityError)?;
    let fraction = parse(fraction)?
        .checked_mul(unit)
        .ok_or(QuantityError)?
        .div_ceil(fraction_scale);
    Ok(whole
        .checked_add(fraction)
        .ok_or(QuantityError)?
        .div_ceil(divisor))
}

fn suffix_scale(suffix: &str) -> Result<(u128, u128), QuantityError> {
    Ok(match suffix {
        "" => (1, 1),
        "n" => (1, NANO),
        "u" => (1, 1_000_000),
        "m" => (1, 1000),
        "k" => (1000, 1),
        "M" => (10_u128.pow(6), 1),
        "G" => (10_u128.pow(9), 1),
        "T" => (10_u128.pow(12), 1),
        "P" => (10_u128.pow(15), 1),
        "E" => (10_u128.pow(18), 1),
        "Ki" => (1 << 10, 1),
        "Mi" => (1 << 20, 1),
        "Gi" => (1 << 30, 1),
        "Ti" => (1 << 40, 1),
        "Pi" => (1 << 50, 1),
        "Ei" => (1 << 60, 1),
        _ => {
            let exponent: i32 = suffix
                .strip_prefix(['e', 'E'])
                .and_then(|e| e.parse().ok())
                .filter(|e| (-18..=18).contains(e))
                .ok_or(QuantityError)?;
            let scale = 10_u128.pow(exponent.unsigned_abs());
            if exponent < 0 { (1, scale) } else { (scale, 1) }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn units_of_each_suffix_are_right() {
        for (text, want) in [
            ("0", 0),
            ("128Mi", 128 << 20),
            ("1.5Gi", 3 << 29),
            ("1G", 1_000_000_000),
            ("100k", 100_000),
            ("1e3", 1000),
            ("12E2", 1200),
            ("1500m", 2),
            (".5Ki", 512),
            ("1n", 1),
        ] {
            assert_eq!(units(text), Ok(want), "{text}");
        }
    }

    #[test]
    fn thousandths_of_cpu_round_up() {
        assert_eq!(thousandths("250m"), Ok(250));
        assert_eq!(thousandths("0.1"), Ok(100));
        assert_eq!(thousandths("2"), Ok(2000));
        assert_eq!(thousandths("1u"), Ok(1));
    }

    #[test]
    fn units_of_what_is_no_quantity_are_refused() {
        for text in [
            "",
            "-1",
            "1 Mi",
            "Mi",
            "1.2.3",
            "1KiB",
            "0x10",
            "1e99",
            "9999999999999999999Ei",
            "1e",
            ".",
        ] {
            assert_eq!(units(text), Err(QuantityError), "{text}");
        }
    }

    proptest! {
        #[test]
        fn units_of_any_text_do_not_panic(text in "[-+0-9.eEKMGinum]{0,60}") {
            let _ = units(&text);
            let _ = thousandths(&text);
        }
    }
}
