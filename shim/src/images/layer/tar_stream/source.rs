//! Where tar bytes come from: streams that are read through, and files in which one can seek.

use std::io::{self, BufReader, Read, Seek};

/// A source of tar bytes that can leave out bytes nobody wants.
pub trait TarSource: Read {
    /// Moves `count` bytes ahead. Returns how many there were; less only at the end of the stream.
    fn skip(&mut self, count: u64) -> io::Result<u64>;
}

/// A source that is read through, e.g. because it is being hashed.
#[derive(Debug)]
pub struct Streamed<R>(pub R);

impl<R: Read> Read for Streamed<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer)
    }
}

impl<R: Read> TarSource for Streamed<R> {
    fn skip(&mut self, count: u64) -> io::Result<u64> {
        io::copy(&mut (&mut self.0).take(count), &mut io::sink())
    }
}

impl<R: Read + Seek> TarSource for BufReader<R> {
    fn skip(&mut self, count: u64) -> io::Result<u64> {
        let step = i64::try_from(count).map_err(|_| io::ErrorKind::InvalidInput)?;
        // A file lets one seek past its end: the last byte is read so that a cut archive is noticed.
        if step == 0 {
            return Ok(0);
        }
        self.seek_relative(step - 1)?;
        let mut last = [0];
        Ok(if self.read(&mut last)? == 1 { count } else { 0 })
    }
}
