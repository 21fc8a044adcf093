//! Requests from the guest, checked against the device's limits. No I/O.

use super::spec::{
    HEADER_BYTES, MAX_DATA, MAX_DISCARD_SECTORS, MAX_RANGES, MAX_ZERO_SECTORS, RANGE_BYTES,
    RANGE_UNMAP, S_IOERR, S_UNSUPP, SECTOR_BYTES, T_DISCARD, T_FLUSH, T_GET_ID, T_IN, T_OUT,
    T_WRITE_ZEROES,
};
use crate::virtio::chain::{ChainParts, copy_out, total_len};

/// What requests are checked against.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Sectors of the device.
    pub sectors: u64,
    /// Refuse every change.
    pub read_only: bool,
}

/// Part of the backing file, inside its bounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// First byte.
    pub offset: i64,
    /// Bytes.
    pub len: usize,
    /// The space may be given back.
    pub unmap: bool,
}

/// A request that can be carried out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// Fill the writable part from the file.
    Read(Range),
    /// Write the readable part, behind the header, to the file.
    Write(Range),
    /// Make all writes durable.
    Flush,
    /// Put the serial number into so many bytes of the writable part.
    GetId(usize),
    /// Forget these ranges.
    Discard(Vec<Range>),
    /// Zero these ranges.
    WriteZeroes(Vec<Range>),
}

/// A request that is not carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// There is no byte for a status, so that the driver cannot even be told.
    #[error("a request has no room for its status")]
    NoStatus,
    /// The driver is told by this status.
    #[error("a request is answered with status {0}")]
    Status(u8),
}

const IOERR: Refusal = Refusal::Status(S_IOERR);
const UNSUPP: Refusal = Refusal::Status(S_UNSUPP);

/// Reads a request; how it is cut into descriptors does not matter (VIRTIO 1.3 section 2.7.4.1). The status is the last
/// writable byte.
///
/// # Errors
/// The guest's mistake, or something that the device does not do.
pub fn parse(parts: &ChainParts<'_>, limits: Limits) -> Result<Request, Refusal> {
    let room = total_len(&parts.writable)
        .checked_sub(1)
        .ok_or(Refusal::NoStatus)?;
    let mut header = [0; HEADER_BYTES];
    if copy_out(&parts.readable, 0, &mut header) < HEADER_BYTES {
        return Err(IOERR);
    }
    // Read once into memory of our own: the guest cannot change it between check and use.
    let (kind, sector) = (le32(&header, 0), le64(&header, 8));
    let payload = total_len(&parts.readable) - HEADER_BYTES;
    match kind {
        T_IN => data_range(sector, room, limits).map(Request::Read),
        T_FLUSH => Ok(Request::Flush),
        T_GET_ID => Ok(Request::GetId(room)),
        T_OUT | T_DISCARD | T_WRITE_ZEROES if limits.read_only => Err(IOERR),
        T_OUT => data_range(sector, payload, limits).map(Request::Write),
        T_DISCARD => ranges(parts, payload, 0, MAX_DISCARD_SECTORS, limits).map(Request::Discard),
        T_WRITE_ZEROES => {
            ranges(parts, payload, RANGE_UNMAP, MAX_ZERO_SECTORS, limits).map(Request::WriteZeroes)
        }
        _ => Err(UNSUPP),
    }
}

fn data_range(sector: u64, len: usize, limits: Limits) -> Result<Range, Refusal> {
    if len == 0 || len > MAX_DATA || !(len as u64).is_multiple_of(SECTOR_BYTES) {
        return Err(IOERR);
    }
    range(sector, len as u64 / SECTOR_BYTES, limits)
}

fn range(sector: u64, sectors: u64, limits: Limits) -> Result<Range, Refusal> {
    let end = sector.checked_add(sectors).ok_or(IOERR)?;
    if end > limits.sectors {
        return Err(IOERR);
    }
    let bytes = |sectors: u64| sectors.checked_mul(SECTOR_BYTES).ok_or(IOERR);
    Ok(Range {
        offset: i64::try_from(bytes(sector)?).map_err(|_| IOERR)?,
        len: usize::try_from(bytes(sectors)?).map_err(|_| IOERR)?,
        unmap: false,
    })
}

fn ranges(
    parts: &ChainParts<'_>,
    payload: usize,
    known_flags: u32,
    most_sectors: u32,
    limits: Limits,
) -> Result<Vec<Range>, Refusal> {
    let count = payload / RANGE_BYTES;
    if count == 0 || count > MAX_RANGES as usize || !payload.is_multiple_of(RANGE_BYTES) {
        return Err(IOERR);
    }
    (0..count)
        .map(|i| {
            let mut bytes = [0; RANGE_BYTES];
            copy_out(&parts.readable, HEADER_BYTES + i * RANGE_BYTES, &mut bytes);
            let (sector, sectors, flags) = (le64(&bytes, 0), le32(&bytes, 8), le32(&bytes, 12));
            if flags & !known_flags != 0 {
                return Err(UNSUPP);
            }
            if sectors > most_sectors {
                return Err(IOERR);
            }
            let unmap = flags & RANGE_UNMAP != 0;
            Ok(Range {
                unmap,
                ..range(sector, sectors.into(), limits)?
            })
        })
        .collect()
}

fn le32(bytes: &[u8], at: usize) -> u32 {
    le(bytes, at, 4) as u32
}

fn le64(bytes: &[u8], at: usize) -> u64 {
    le(bytes, at, 8)
}

/// A little-endian number of `n` bytes, zero-extended.
fn le(bytes: &[u8], at: usize, n: usize) -> u64 {
    let bytes = bytes.iter().skip(at).take(n);
    bytes
        .rev()
        .fold(0, |value, &byte| value << 8 | u64::from(byte))
}
