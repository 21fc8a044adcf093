//! Reads an uncompressed kernel (ELF64 `vmlinux`) and an initramfs into guest memory.
//!
//! They are read and not mapped: a guest that boots writes to nearly every page of both (it patches its code, and wipes
//! the initramfs when it frees it), so that pages of a private mapping would be faulted in twice and copied one by one
//! and none of them stay shared. Read into huge pages they cost a fault for 2 MiB. The kernel file is trusted as far as
//! its owner is; its headers are checked all the same.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::layout;
use crate::memory::{self, PAGE};

const HUGE_PAGE: u64 = 2 << 20;
/// Bytes of an ELF64 header and of a program header.
const HEADER: usize = 64;
const PROGRAM_HEADER: usize = 56;
/// Most program headers looked at; a kernel has about five.
const MAX_PROGRAM_HEADERS: u16 = 64;
const PT_LOAD: u32 = 1;
const MACHINE_X86_64: u16 = 62;

/// A kernel or initramfs that cannot be booted.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The file could not be opened or read.
    #[error("read {what} {}", path.display())]
    Read {
        /// `kernel` or `initramfs`.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Not what can be booted.
    #[error("kernel {} is not an uncompressed x86-64 vmlinux: {reason}; a bzImage has to be unpacked first", path.display())]
    NotBootable {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: &'static str,
    },
    /// The memory is too small.
    #[error("{what} {} needs guest memory up to {end:#x} and there is RAM up to {ram_end:#x}; give the machine more memory", path.display())]
    TooLarge {
        /// `kernel` or `initramfs`.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Where it would end.
        end: u64,
        /// End of low RAM.
        ram_end: u64,
    },
    /// It could not be brought into guest memory.
    #[error("read {what} {} into guest memory", path.display())]
    Map {
        /// `kernel` or `initramfs`.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// A kernel in guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoadedKernel {
    /// 64-bit entry point, guest-physical.
    pub entry: u64,
    /// First address behind the image and its zero-initialised part.
    pub end: u64,
}

/// An initramfs in guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoadedInitramfs {
    /// Guest-physical address, page aligned.
    pub address: u64,
    /// Bytes.
    pub size: u64,
}

#[derive(Clone, Copy, Debug)]
struct Segment {
    offset: u64,
    address: u64,
    file_size: u64,
    memory_size: u64,
}

/// Maps the loadable segments of the kernel at their physical addresses.
///
/// # Errors
/// The file cannot be read, is not a kernel, or does not fit below the end of low RAM.
pub fn load_kernel(guest: &GuestMemoryMmap<()>, path: &Path) -> Result<LoadedKernel, ImageError> {
    let read = |source| ImageError::Read {
        what: "kernel",
        path: path.to_owned(),
        source,
    };
    let mut file = File::open(path).map_err(read)?;
    let size = file.metadata().map_err(read)?.len();
    let mut header = [0u8; HEADER];
    file.read_exact_at(&mut header, 0).map_err(read)?;
    let not_bootable = |reason| ImageError::NotBootable {
        path: path.to_owned(),
        reason,
    };
    let table = ProgramTable::parse(&header).map_err(not_bootable)?;
    let ram_end = memory::low_end(guest);
    let (mut start, mut end) = (u64::MAX, 0);
    let mut segments = Vec::new();
    for i in 0..u64::from(table.count) {
        let mut bytes = [0u8; PROGRAM_HEADER];
        let at = table
            .offset
            .checked_add(i * PROGRAM_HEADER as u64)
            .ok_or_else(|| not_bootable("its program headers lie beyond the file"))?;
        file.read_exact_at(&mut bytes, at).map_err(read)?;
        let Some(segment) = parse_segment(&bytes) else {
            continue;
        };
        let segment_end = segment
            .address
            .checked_add(segment.memory_size.max(segment.file_size))
            .ok_or_else(|| not_bootable("a segment wraps around the address space"))?;
        if segment.address < layout::HIGH_MEMORY {
            return Err(not_bootable("a segment lies below 1 MiB"));
        }
        if segment
            .offset
            .checked_add(segment.file_size)
            .is_none_or(|e| e > size)
        {
            return Err(not_bootable("a segment lies beyond the end of the file"));
        }
        if segment_end > ram_end {
            return Err(ImageError::TooLarge {
                what: "kernel",
                path: path.to_owned(),
                end: segment_end,
                ram_end,
            });
        }
        start = start.min(segment.address);
        end = end.max(segment_end);
        segments.push(segment);
    }
    if end == 0 {
        return Err(not_bootable("it has no loadable segment"));
    }
    if !(layout::HIGH_MEMORY..end).contains(&table.entry) {
        return Err(not_bootable("its entry point lies outside its segments"));
    }
    let map = |source| ImageError::Map {
        what: "kernel",
        path: path.to_owned(),
        source,
    };
    expect(guest, start, end).map_err(map)?;
    for segment in segments {
        place(guest, &mut file, segment).map_err(map)?;
    }
    Ok(LoadedKernel {
        entry: table.entry,
        end,
    })
}

/// Maps the initramfs at the end of low RAM, where the kernel need not move it.
///
/// # Errors
/// The file cannot be read or does not fit between the kernel and the end of low RAM.
pub fn load_initramfs(
    guest: &GuestMemoryMmap<()>,
    path: &Path,
    kernel_end: u64,
) -> Result<LoadedInitramfs, ImageError> {
    let read = |source| ImageError::Read {
        what: "initramfs",
        path: path.to_owned(),
        source,
    };
    let mut file = File::open(path).map_err(read)?;
    let size = file.metadata().map_err(read)?.len();
    let ram_end = memory::low_end(guest);
    let too_large = || ImageError::TooLarge {
        what: "initramfs",
        path: path.to_owned(),
        end: kernel_end.saturating_add(size),
        ram_end,
    };
    let address = ram_end.checked_sub(size).ok_or_else(too_large)? & !(PAGE - 1);
    if address < kernel_end {
        return Err(too_large());
    }
    if size > 0 {
        let place = |file: &mut File| {
            expect(guest, address, address.saturating_add(size))?;
            place(
                guest,
                file,
                Segment {
                    offset: 0,
                    address,
                    file_size: size,
                    memory_size: size,
                },
            )
        };
        place(&mut file).map_err(|source| ImageError::Map {
            what: "initramfs",
            path: path.to_owned(),
            source,
        })?;
    }
    Ok(LoadedInitramfs { address, size })
}

/// What the ELF header says about the program headers.
struct ProgramTable {
    entry: u64,
    offset: u64,
    count: u16,
}

impl ProgramTable {
    fn parse(header: &[u8; HEADER]) -> Result<Self, &'static str> {
        if header.get(..4) != Some(b"\x7fELF") {
            return Err("it has no ELF header");
        }
        // EI_CLASS and EI_DATA: 64-bit, little-endian.
        if header.get(4..6) != Some(&[2, 1]) || u16_at(header, 18) != MACHINE_X86_64 {
            return Err("it is an ELF file of another architecture");
        }
        if usize::from(u16_at(header, 54)) != PROGRAM_HEADER {
            return Err("its program headers have another size than ELF64's");
        }
        let count = u16_at(header, 56);
        if count > MAX_PROGRAM_HEADERS {
            return Err("it has more program headers than a kernel has");
        }
        Ok(Self {
            entry: u64_at(header, 24),
            offset: u64_at(header, 32),
            count,
        })
    }
}

fn parse_segment(header: &[u8; PROGRAM_HEADER]) -> Option<Segment> {
    let segment = Segment {
        offset: u64_at(header, 8),
        address: u64_at(header, 24),
        file_size: u64_at(header, 32),
        memory_size: u64_at(header, 40),
    };
    (u32_at(header, 0) == PT_LOAD && segment.memory_size > 0).then_some(segment)
}

fn field<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut out = [0; N];
    if let Some(slice) = bytes.get(at..at + N) {
        out.copy_from_slice(slice);
    }
    out
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(field(bytes, at))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(field(bytes, at))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(field(bytes, at))
}

/// Has the host use huge pages for the whole 2 MiB ranges that `start` to `end` touches.
fn expect(guest: &GuestMemoryMmap<()>, start: u64, end: u64) -> io::Result<()> {
    memory::expect_use(
        guest,
        GuestAddress(start & !(HUGE_PAGE - 1)),
        GuestAddress(end.saturating_add(HUGE_PAGE - 1) & !(HUGE_PAGE - 1)),
    )
    .map_err(io::Error::other)
}

/// Reads a segment's bytes from the file; what it has beyond them is zero as all memory is at first.
fn place(guest: &GuestMemoryMmap<()>, file: &mut File, segment: Segment) -> io::Result<()> {
    let length = usize::try_from(segment.file_size).map_err(io::Error::other)?;
    file.seek(SeekFrom::Start(segment.offset))?;
    guest
        .read_exact_volatile_from(GuestAddress(segment.address), file, length)
        .map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn elf(segments: &[(u64, u64, u64, u64)], entry: u64) -> Vec<u8> {
        let mut bytes = vec![0u8; HEADER];
        bytes[..6].copy_from_slice(b"\x7fELF\x02\x01");
        bytes[18..20].copy_from_slice(&62u16.to_le_bytes());
        bytes[24..32].copy_from_slice(&entry.to_le_bytes());
        bytes[32..40].copy_from_slice(&64u64.to_le_bytes());
        bytes[54..56].copy_from_slice(&56u16.to_le_bytes());
        bytes[56..58].copy_from_slice(&(segments.len() as u16).to_le_bytes());
        for &(offset, address, file_size, memory_size) in segments {
            let mut header = [0u8; PROGRAM_HEADER];
            header[0] = 1;
            header[8..16].copy_from_slice(&offset.to_le_bytes());
            header[24..32].copy_from_slice(&address.to_le_bytes());
            header[32..40].copy_from_slice(&file_size.to_le_bytes());
            header[40..48].copy_from_slice(&memory_size.to_le_bytes());
            bytes.extend(header);
        }
        bytes
    }

    fn file(bytes: &[u8]) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(bytes).unwrap();
        file
    }

    fn read(guest: &GuestMemoryMmap<()>, at: u64, n: usize) -> Vec<u8> {
        let mut bytes = vec![0; n];
        guest.read_slice(&mut bytes, GuestAddress(at)).unwrap();
        bytes
    }

    #[test]
    fn kernel_segments_land_at_their_physical_addresses() {
        let guest = memory::allocate(32).unwrap();
        // One segment that can be mapped with an unaligned tail, one that has to be copied.
        let mut bytes = elf(
            &[
                (0x1000, 0x100_0000, 0x2005, 0x3000),
                (0x123, 0x110_0004, 3, 3),
            ],
            0x100_0000,
        );
        bytes.resize(0x1000, 0);
        bytes[0x123..0x126].copy_from_slice(b"abc");
        bytes.extend((0..0x2005u32).map(|i| i as u8));
        let kernel = load_kernel(&guest, file(&bytes).path()).unwrap();
        assert_eq!(
            kernel,
            LoadedKernel {
                entry: 0x100_0000,
                end: 0x110_0007
            }
        );
        assert_eq!(read(&guest, 0x100_0000, 0x2005), bytes[0x1000..]);
        assert_eq!(read(&guest, 0x100_2005, 16), [0; 16]);
        assert_eq!(read(&guest, 0x110_0003, 5), b"\0abc\0");
    }

    #[test]
    fn kernel_write_by_the_guest_leaves_the_file_alone() {
        let guest = memory::allocate(32).unwrap();
        let mut bytes = elf(&[(0x1000, 0x100_0000, 0x1000, 0x1000)], 0x100_0000);
        bytes.resize(0x2000, 7);
        let file = file(&bytes);
        load_kernel(&guest, file.path()).unwrap();
        guest.write_obj(9u8, GuestAddress(0x100_0000)).unwrap();
        assert_eq!(std::fs::read(file.path()).unwrap(), bytes);
    }

    #[test]
    fn kernel_that_is_no_elf_or_lies_is_refused() {
        let guest = memory::allocate(32).unwrap();
        let mut wrong_machine = elf(&[], 0);
        wrong_machine[18] = 3;
        let cases = [
            (vec![0; 100], "no ELF header"),
            (wrong_machine, "another architecture"),
            (elf(&[], 0), "no loadable segment"),
            (elf(&[(0, 0x1000, 1, 1)], 0x1000), "below 1 MiB"),
            (
                elf(&[(u64::MAX, 0x100_0000, 2, 2)], 0x100_0000),
                "beyond the end of the file",
            ),
            (elf(&[(0, u64::MAX - 3, 1, 9)], 0x100_0000), "wraps around"),
            (
                elf(&[(0, 0x100_0000, 1, 0x1000)], 0x200_0000),
                "entry point lies outside",
            ),
        ];
        for (bytes, expected) in cases {
            let text = load_kernel(&guest, file(&bytes).path())
                .unwrap_err()
                .to_string();
            assert!(text.contains(expected), "{text}");
        }
    }

    #[test]
    fn kernel_and_initramfs_too_large_for_memory_are_refused() {
        let guest = memory::allocate(32).unwrap();
        let bytes = elf(&[(0, 0x100_0000, 16, 32 << 20)], 0x100_0000);
        assert!(matches!(
            load_kernel(&guest, file(&bytes).path()),
            Err(ImageError::TooLarge { what: "kernel", .. })
        ));
        let archive = file(&[1; 5000]);
        assert!(matches!(
            load_initramfs(&guest, archive.path(), (32 << 20) - 4096),
            Err(ImageError::TooLarge { .. })
        ));
        let loaded = load_initramfs(&guest, archive.path(), 0x200_0000 - (8 << 10)).unwrap();
        assert_eq!(loaded.address, (32 << 20) - (8 << 10));
        assert_eq!(read(&guest, loaded.address, 5000), [1; 5000]);
    }
}
