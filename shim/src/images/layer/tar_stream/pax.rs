//! PAX extended headers (POSIX pax, "pax Header Block") and what they and GNU long names say of the next entry.

use super::super::printable;
use super::entry::TarError;

/// Values of PAX records and GNU long names that apply to the next entry.
#[derive(Debug, Default)]
pub(super) struct Overrides {
    pub(super) path: Option<Vec<u8>>,
    pub(super) link: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    pub(super) uid: Option<u64>,
    pub(super) gid: Option<u64>,
    pub(super) mtime: Option<(i64, u32)>,
    pub(super) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Overrides {
    /// PAX records: `LENGTH KEY=VALUE\n` each, LENGTH counting the whole record (POSIX pax, "Extended header").
    pub(super) fn apply_pax(&mut self, mut data: &[u8], offset: u64) -> Result<(), TarError> {
        let invalid = |reason: &str| TarError::Header {
            offset,
            reason: reason.to_owned(),
        };
        // Padding with NUL after the last record is seen in the wild.
        while data.first().is_some_and(|byte| *byte != 0) {
            let malformed = || invalid("a PAX record is malformed");
            let space = data
                .iter()
                .take(21)
                .position(|byte| *byte == b' ')
                .ok_or_else(malformed)?;
            let length: usize = ascii(data.get(..space)).ok_or_else(malformed)?;
            let record = data
                .get(space + 1..length.saturating_sub(1))
                .ok_or_else(malformed)?;
            if data.get(length - 1) != Some(&b'\n') {
                return Err(malformed());
            }
            data = data.get(length..).unwrap_or_default();
            let equals = record
                .iter()
                .position(|byte| *byte == b'=')
                .ok_or_else(malformed)?;
            let (key, value) = record.split_at(equals);
            let value = value.get(1..).unwrap_or_default();
            let number = || {
                ascii(Some(value))
                    .ok_or_else(|| invalid(&format!("PAX {} is not a number", printable(key))))
            };
            match key {
                b"path" => self.path = Some(value.to_vec()),
                b"linkpath" => self.link = Some(value.to_vec()),
                b"size" => self.size = Some(number()?),
                b"uid" => self.uid = Some(number()?),
                b"gid" => self.gid = Some(number()?),
                b"mtime" => {
                    self.mtime =
                        Some(pax_time(value).ok_or_else(|| invalid("PAX mtime is not a time"))?)
                }
                _ if key.starts_with(b"GNU.sparse.") => {
                    return Err(invalid(
                        "sparse files in the PAX format are not supported; write the layer without --sparse",
                    ));
                }
                _ => {
                    if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                        self.xattrs.push((name.to_vec(), value.to_vec()));
                    }
                }
            }
        }
        Ok(())
    }
}

fn ascii<T: std::str::FromStr>(bytes: Option<&[u8]>) -> Option<T> {
    std::str::from_utf8(bytes?).ok()?.parse().ok()
}

/// `-12.25` as seconds and nanoseconds, nanoseconds counting forward.
fn pax_time(value: &[u8]) -> Option<(i64, u32)> {
    let text = std::str::from_utf8(value).ok()?;
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let seconds: i64 = whole.parse().ok()?;
    let digits: String = fraction
        .chars()
        .chain("000000000".chars())
        .take(9)
        .collect();
    let nanos: u32 = digits
        .bytes()
        .all(|b| b.is_ascii_digit())
        .then(|| digits.parse().ok())??;
    if whole.starts_with('-') && nanos > 0 {
        return Some((seconds.checked_sub(1)?, 1_000_000_000 - nanos));
    }
    Some((seconds, nanos))
}
