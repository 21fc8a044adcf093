//! Undoes the compression of a layer or of a whole archive: gzip, zstd or none, told apart by the first bytes.
//!
//! The media type is not asked: registries and archives are known to disagree with it, while the digest of the
//! result is checked by the caller anyway.

use std::io::{self, BufRead, BufReader, Read};

/// A reader of the uncompressed bytes.
///
/// # Errors
/// I/O errors of `inner` and of starting a decompressor.
pub fn decompress<'a, R: Read + 'a>(inner: R) -> io::Result<Box<dyn Read + 'a>> {
    let mut buffered = BufReader::with_capacity(128 << 10, inner);
    Ok(match Compression::sniff(buffered.fill_buf()?) {
        Compression::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(buffered)),
        Compression::Zstd => {
            let mut decoder = zstd::Decoder::with_buffer(buffered)?;
            // The window is memory that the archive asks for: 128 MiB is what zstd's own tool grants.
            decoder.window_log_max(27)?;
            Box::new(decoder)
        }
        Compression::None => Box::new(buffered),
    })
}

/// How a stream is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// RFC 1952.
    Gzip,
    /// RFC 8878.
    Zstd,
    /// Not compressed, or in a form that is not known.
    None,
}

impl Compression {
    /// Recognises a stream by its first four bytes.
    #[must_use]
    pub fn sniff(start: &[u8]) -> Self {
        match start {
            [0x1f, 0x8b, ..] => Self::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Self::Zstd,
            // A skippable frame may come first (RFC 8878, section 3.1.2).
            [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Self::Zstd,
            _ => Self::None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn read_back(bytes: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        decompress(bytes).unwrap().read_to_end(&mut out).unwrap();
        out
    }

    #[test]
    fn decompress_of_each_kind_gives_the_bytes() {
        let data = b"the same bytes".repeat(1000);
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(&data).unwrap();
        let gzip = gzip.finish().unwrap();
        assert_eq!(read_back(&data), data);
        assert_eq!(read_back(&gzip), data);
        assert_eq!(read_back(&[gzip.clone(), gzip].concat()), data.repeat(2));
        assert_eq!(read_back(&zstd::encode_all(&data[..], 1).unwrap()), data);
        assert_eq!(read_back(b""), b"");
    }

    #[test]
    fn decompress_of_cut_gzip_is_an_error() {
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(&[7; 5000]).unwrap();
        let gzip = gzip.finish().unwrap();
        let cut = &gzip[..gzip.len() / 2];
        assert!(
            decompress(cut)
                .unwrap()
                .read_to_end(&mut Vec::new())
                .is_err()
        );
    }
}
