//! The file that holds a machine's state: a header with version, length and checksum, then fields one after the other.
//!
//! [`Fields`] reads as if the file came from an enemy: every length is checked against what is there before anything is
//! allocated. Knows bytes, not what they mean.

use zerocopy::{FromBytes, Immutable, IntoBytes};

const MAGIC: [u8; 8] = *b"vmpodmem";
/// Raised with every change of what follows the header.
const VERSION: u32 = 3;
/// Magic, version, checksum, length of what follows.
const HEADER_BYTES: usize = 24;
/// Most bytes of a whole file. A vCPU needs about 16 KiB.
pub const MAX_BYTES: usize = 4 << 20;

/// Bytes that are no state of a machine, with the reason.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StateFault {
    /// Something else.
    #[error("it is not the state of a machine: it does not begin as one")]
    Foreign,
    /// Of another release.
    #[error("it has version {found} and this VMM reads version {VERSION}")]
    Version {
        /// What the file says.
        found: u32,
    },
    /// Cut off, grown or changed.
    #[error("it is damaged: {0}")]
    Damaged(&'static str),
    /// The checksum is right and the content is not: written by another program.
    #[error("its field {0} is out of range")]
    Field(&'static str),
}

/// Writes fields.
#[derive(Debug)]
pub struct FieldWriter(Vec<u8>);

impl Default for FieldWriter {
    fn default() -> Self {
        Self(vec![0; HEADER_BYTES])
    }
}

impl FieldWriter {
    /// Plain data, in this machine's byte order.
    pub fn put<T: IntoBytes + Immutable>(&mut self, value: &T) {
        self.0.extend_from_slice(value.as_bytes());
    }

    /// A length that [`Fields::length`] reads.
    pub fn length(&mut self, length: usize) {
        // What is counted here has bounds far below.
        self.put(&u32::try_from(length).unwrap_or(u32::MAX));
    }

    /// Bytes with their length.
    pub fn bytes(&mut self, bytes: &[u8]) {
        self.length(bytes.len());
        self.0.extend_from_slice(bytes);
    }

    /// The whole file.
    #[must_use]
    pub fn finish(mut self) -> Vec<u8> {
        let body = self.0.get(HEADER_BYTES..).unwrap_or_default();
        let header: Vec<u8> = MAGIC
            .into_iter()
            .chain(VERSION.to_le_bytes())
            .chain(crc32fast::hash(body).to_le_bytes())
            .chain((body.len() as u64).to_le_bytes())
            .collect();
        for (to, from) in self.0.iter_mut().zip(header) {
            *to = from;
        }
        self.0
    }
}

/// Reads fields.
#[derive(Debug)]
pub struct Fields<'f>(&'f [u8]);

impl<'f> Fields<'f> {
    /// Checks the header of a whole file.
    ///
    /// # Errors
    /// It is none, of another version, or damaged.
    pub fn open(file: &'f [u8]) -> Result<Self, StateFault> {
        let mut header = Self(file);
        let magic: [u8; 8] = header.get("magic").map_err(|_| StateFault::Foreign)?;
        if magic != MAGIC {
            return Err(StateFault::Foreign);
        }
        let short = |_| StateFault::Damaged("it ends within its header");
        let version: u32 = header.get("version").map_err(short)?;
        if version != VERSION {
            return Err(StateFault::Version { found: version });
        }
        let checksum: u32 = header.get("checksum").map_err(short)?;
        let length: u64 = header.get("length").map_err(short)?;
        let body = header.0;
        if length != body.len() as u64 {
            return Err(StateFault::Damaged("it is shorter or longer than it says"));
        }
        if crc32fast::hash(body) != checksum {
            return Err(StateFault::Damaged("its checksum is wrong"));
        }
        Ok(Self(body))
    }

    fn take(&mut self, n: usize, name: &'static str) -> Result<&'f [u8], StateFault> {
        let (taken, rest) = self.0.split_at_checked(n).ok_or(StateFault::Field(name))?;
        self.0 = rest;
        Ok(taken)
    }

    /// Plain data.
    ///
    /// # Errors
    /// The file ends before.
    pub fn get<T: FromBytes>(&mut self, name: &'static str) -> Result<T, StateFault> {
        T::read_from_bytes(self.take(size_of::<T>(), name)?).map_err(|_| StateFault::Field(name))
    }

    /// A number of things, at most `bound`.
    ///
    /// # Errors
    /// The file ends before, or there are more.
    pub fn length(&mut self, bound: usize, name: &'static str) -> Result<usize, StateFault> {
        usize::try_from(self.get::<u32>(name)?)
            .ok()
            .filter(|&n| n <= bound)
            .ok_or(StateFault::Field(name))
    }

    /// At most `bound` bytes with their length.
    ///
    /// # Errors
    /// The file ends before, or there are more.
    pub fn bytes(&mut self, bound: usize, name: &'static str) -> Result<&'f [u8], StateFault> {
        let length = self.length(bound, name)?;
        self.take(length, name)
    }

    /// At most `bound` things of plain data.
    ///
    /// # Errors
    /// The file ends before, or there are more.
    pub fn list<T: FromBytes>(
        &mut self,
        bound: usize,
        name: &'static str,
    ) -> Result<Vec<T>, StateFault> {
        let count = self.length(bound, name)?;
        // Not reserved ahead: a file that promises more than it holds ends the loop.
        (0..count).map(|_| self.get(name)).collect()
    }

    /// Nothing may be left.
    ///
    /// # Errors
    /// Something is.
    pub fn end(self) -> Result<(), StateFault> {
        if self.0.is_empty() {
            Ok(())
        } else {
            Err(StateFault::Field("end"))
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sample() -> Vec<u8> {
        let mut writer = FieldWriter::default();
        writer.put(&7u64);
        writer.bytes(b"abc");
        writer.length(2);
        writer.put(&1u16);
        writer.put(&2u16);
        writer.finish()
    }

    #[test]
    fn fields_written_are_read_in_order() {
        let file = sample();
        let mut fields = Fields::open(&file).unwrap();
        assert_eq!(fields.get::<u64>("a"), Ok(7));
        assert_eq!(fields.bytes(3, "b"), Ok(&b"abc"[..]));
        assert_eq!(fields.list::<u16>(2, "c"), Ok(vec![1, 2]));
        assert_eq!(fields.end(), Ok(()));
    }

    #[test]
    fn lengths_beyond_the_bound_or_the_file_are_refused() {
        let mut writer = FieldWriter::default();
        writer.length(5);
        writer.put(&[0u8; 3]);
        let file = writer.finish();
        let open = || Fields::open(&file).unwrap();
        assert_eq!(open().bytes(4, "x"), Err(StateFault::Field("x")));
        assert_eq!(open().bytes(5, "x"), Err(StateFault::Field("x")));
        assert_eq!(open().list::<u8>(9, "x"), Err(StateFault::Field("x")));
        assert_eq!(open().end(), Err(StateFault::Field("end")));
    }

    #[test]
    fn file_changed_in_any_byte_or_cut_off_is_refused() {
        let good = sample();
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 0x40;
            assert!(Fields::open(&bad).is_err(), "byte {at}");
            assert!(Fields::open(&good[..at]).is_err(), "cut at {at}");
        }
        let mut longer = good.clone();
        longer.push(0);
        assert!(matches!(Fields::open(&longer), Err(StateFault::Damaged(_))));
        assert_eq!(Fields::open(b"#!/bin/sh").err(), Some(StateFault::Foreign));
    }

    proptest! {
        #[test]
        fn bytes_at_random_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Fields::open(&bytes);
        }
    }
}
