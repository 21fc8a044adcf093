//! SHA-256 content digests, as strings (`sha256:<64 hex>`) and as a reader that hashes what passes through it.
//!
//! Only SHA-256 is spoken: it is what every registry and archive uses. Other algorithms of the OCI image
//! specification (sha512) are refused by name.

use std::fmt;
use std::io::{self, Read};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use thiserror::Error;

/// Why a text is not a digest this store can use.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
pub enum DigestError {
    /// The algorithm before the colon is not sha256.
    #[error("digest {0:?} uses an algorithm other than sha256, which is not supported")]
    Algorithm(String),
    /// Not `sha256:` followed by 64 lower-case hexadecimal digits.
    #[error("{0:?} is not a digest: expected sha256: and 64 lower-case hexadecimal digits")]
    Format(String),
}

/// A SHA-256 digest. Always valid: 64 lower-case hexadecimal digits, so it is safe as a file name.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest {
    hex: String,
}

impl Digest {
    /// Parses `sha256:<64 hex>`.
    ///
    /// # Errors
    /// [`DigestError`] when the text has another form or another algorithm.
    pub fn parse(text: &str) -> Result<Self, DigestError> {
        let shown = || text.chars().take(160).collect::<String>();
        let Some((algorithm, hex)) = text.split_once(':') else {
            return Err(DigestError::Format(shown()));
        };
        if algorithm != "sha256" {
            return Err(DigestError::Algorithm(shown()));
        }
        Self::from_hex(hex).ok_or_else(|| DigestError::Format(shown()))
    }

    /// A digest from its 64 lower-case hexadecimal digits; `None` when they are not that.
    #[must_use]
    pub fn from_hex(hex: &str) -> Option<Self> {
        let digits = hex.len() == 64 && hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        digits.then(|| Self {
            hex: hex.to_owned(),
        })
    }

    /// The digest of `bytes`.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self::finish(Sha256::new_with_prefix(bytes))
    }

    /// The digest that `hasher` arrives at.
    #[must_use]
    pub fn finish(hasher: Sha256) -> Self {
        Self {
            hex: hasher
                .finalize()
                .iter()
                .map(|byte| format!("{byte:02x}"))
                .collect(),
        }
    }

    /// The 64 hexadecimal digits without the algorithm.
    #[must_use]
    pub fn hex(&self) -> &str {
        &self.hex
    }

    /// The first 12 digits, as people see image IDs.
    #[must_use]
    pub fn short(&self) -> &str {
        self.hex.get(..12).unwrap_or(&self.hex)
    }

    /// The chain ID of a layer with this diff ID on top of `parent` (OCI image spec, "Layer ChainID").
    #[must_use]
    pub fn chained_on(&self, parent: Option<&Self>) -> Self {
        match parent {
            None => self.clone(),
            Some(parent) => Self::of(format!("{parent} {self}").as_bytes()),
        }
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.hex)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl TryFrom<String> for Digest {
    type Error = DigestError;

    fn try_from(text: String) -> Result<Self, DigestError> {
        Self::parse(&text)
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        digest.to_string()
    }
}

/// Hashes and counts the bytes that are read through it.
pub struct HashingReader<R> {
    inner: R,
    hasher: Sha256,
    bytes: u64,
}

impl<R> fmt::Debug for HashingReader<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HashingReader")
            .field("bytes", &self.bytes)
            .finish_non_exhaustive()
    }
}

impl<R: Read> HashingReader<R> {
    /// Reads from `inner`.
    pub fn new(inner: R) -> Self {
        Self {
            inner,
            hasher: Sha256::new(),
            bytes: 0,
        }
    }

    /// Bytes read so far.
    pub fn count(&self) -> u64 {
        self.bytes
    }

    /// The digest of what was read so far.
    pub fn digest(&self) -> Digest {
        Digest::finish(self.hasher.clone())
    }
}

impl<R: Read> Read for HashingReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        if let Some(read) = buffer.get(..count) {
            self.hasher.update(read);
        }
        self.bytes = self.bytes.saturating_add(count as u64);
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EMPTY: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn digest_of_nothing_is_the_known_value() {
        assert_eq!(Digest::of(b"").to_string(), EMPTY);
        assert_eq!(Digest::parse(EMPTY).unwrap(), Digest::of(b""));
    }

    #[test]
    fn digest_with_path_or_upper_case_is_refused() {
        for text in [
            "sha256:../../etc/passwd",
            "sha256:ABC",
            "e3b0",
            "",
            "sha256:",
        ] {
            assert!(
                matches!(Digest::parse(text), Err(DigestError::Format(_))),
                "{text}"
            );
        }
        assert!(matches!(
            Digest::parse("sha512:00"),
            Err(DigestError::Algorithm(_))
        ));
    }

    #[test]
    fn chain_of_two_layers_follows_the_specification() {
        let (lower, upper) = (Digest::of(b"a"), Digest::of(b"b"));
        assert_eq!(lower.chained_on(None), lower);
        let expected = Digest::of(format!("{lower} {upper}").as_bytes());
        assert_eq!(upper.chained_on(Some(&lower)), expected);
    }

    #[test]
    fn hashing_reader_counts_and_hashes_what_passes() {
        let mut reader = HashingReader::new(&b"hello"[..]);
        io::copy(&mut reader, &mut io::sink()).unwrap();
        assert_eq!(reader.count(), 5);
        assert_eq!(reader.digest(), Digest::of(b"hello"));
    }
}
