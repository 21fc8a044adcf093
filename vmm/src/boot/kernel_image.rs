//! Reads an uncompressed kernel (ELF64 `vmlinux`) into guest memory, and maps an initramfs beside it.
//!
//! The kernel is read and not mapped: a guest that boots writes to nearly every page of it (it patches its code), so that
//! pages of a private mapping would be faulted in twice and copied one by one and none of them stay shared. Read into huge
//! pages it costs a fault for 2 MiB. Nothing is written to the initramfs. The files are trusted as far as their owner is;
//! the kernel's headers are checked all the same.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::file_mapping::{FileMapping, HUGE_PAGE};
use crate::layout;
use crate::memory::{self, PAGE};

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
    #[error("kernel {} needs guest memory up to {end:#x} and there is RAM up to {ram_end:#x}; give the machine more memory", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Where it would end.
        end: u64,
        /// End of low RAM.
        ram_end: u64,
    },
    /// The guest could not be given it.
    #[error("give the guest {what} {}", path.display())]
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

/// An initramfs that a guest reads at [`layout::INITRAMFS`].
#[derive(Debug)]
pub struct Initramfs {
    /// Whole pages of it.
    pub mapping: FileMapping,
    /// Bytes of the file.
    pub size: u64,
}

impl Initramfs {
    /// Maps the `size` bytes that a file begins with; `None` if these are none.
    ///
    /// # Errors
    /// The file has fewer, mmap(2) failed, or there are more than fit into [`layout::INITRAMFS`] to
    /// [`layout::INITRAMFS_END`].
    pub fn map(file: &File, size: u64) -> io::Result<Option<Self>> {
        const MOST: u64 = layout::INITRAMFS_END - layout::INITRAMFS;
        let length = file.metadata()?.len();
        // What lies beyond the end would end the machine at its first touch.
        if length < size {
            let text = format!("it has {length} bytes, and {size} were expected");
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
        if size > MOST {
            let text = format!("it has {size} bytes, and a guest can have {MOST}");
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, text));
        }
        if size == 0 {
            return Ok(None);
        }
        // The last huge page is one for the guest only if all of it is there.
        let whole = size.next_multiple_of(HUGE_PAGE);
        let mapping = FileMapping::map(file, 0, whole.min(length.next_multiple_of(PAGE)))?;
        Ok(Some(Self { mapping, size }))
    }

    /// Writes it to an empty file, in huge pages where the host can.
    ///
    /// # Errors
    /// It cannot be written: no space, most likely.
    pub fn copy_to(&self, file: &File) -> io::Result<()> {
        let length = usize::try_from(self.size).map_err(io::Error::other)?;
        // SAFETY: so many bytes are mapped as long as `self` is, and nobody writes to the file while it is in use.
        let bytes =
            unsafe { std::slice::from_raw_parts(self.mapping.address().cast::<u8>(), length) };
        file.write_all_at(bytes, 0)?;
        // The last huge page wants to be whole.
        let whole = self.size.next_multiple_of(HUGE_PAGE);
        file.set_len(whole)?;
        FileMapping::map(file, 0, whole)?.collapse();
        Ok(())
    }
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

/// Maps the initramfs, for the guest to read beside its RAM, which needs none for it: the kernel (`initramfs_rom=`) uses the
/// files of it where they lie, and machines share the host's pages of them. `None` for a file without bytes.
///
/// # Errors
/// The file cannot be read or is larger than what is addressed for it.
pub fn map_initramfs(path: &Path) -> Result<Option<Initramfs>, ImageError> {
    let read = |source| ImageError::Read {
        what: "initramfs",
        path: path.to_owned(),
        source,
    };
    let file = File::open(path).map_err(read)?;
    let size = file.metadata().map_err(read)?.len();
    Initramfs::map(&file, size).map_err(|source| ImageError::Map {
        what: "initramfs",
        path: path.to_owned(),
        source,
    })
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
    fn kernel_too_large_for_memory_is_refused() {
        let guest = memory::allocate(32).unwrap();
        let bytes = elf(&[(0, 0x100_0000, 16, 32 << 20)], 0x100_0000);
        assert!(matches!(
            load_kernel(&guest, file(&bytes).path()),
            Err(ImageError::TooLarge { .. })
        ));
    }

    fn bytes(image: &Initramfs) -> &[u8] {
        // SAFETY: all of it is mapped, and the file is at least as long.
        unsafe {
            std::slice::from_raw_parts(image.mapping.address().cast::<u8>(), image.size as usize)
        }
    }

    #[test]
    fn initramfs_is_mapped_whole_and_its_copy_in_huge_pages_where_there_are_any() {
        let image = map_initramfs(file(&[1; 5000]).path()).unwrap().unwrap();
        assert_eq!((image.size, image.mapping.bytes()), (5000, 8192));
        assert_eq!(bytes(&image), [1; 5000]);
        let copy = tempfile::tempfile().unwrap();
        image.copy_to(&copy).unwrap();
        let copied = Initramfs::map(&copy, 5000).unwrap().unwrap();
        assert_eq!((copied.size, copied.mapping.bytes()), (5000, HUGE_PAGE));
        assert_eq!(bytes(&copied), [1; 5000]);
    }

    #[test]
    fn initramfs_that_is_empty_is_none_and_one_too_short_or_too_large_is_refused() {
        assert!(map_initramfs(file(&[]).path()).unwrap().is_none());
        let short = Initramfs::map(file(&[1; 5000]).as_file(), 5001).unwrap_err();
        assert!(
            short.to_string().contains("5000 bytes, and 5001"),
            "{short}"
        );
        let sparse = tempfile::NamedTempFile::new().unwrap();
        sparse.as_file().set_len(1 << 30).unwrap();
        let error = map_initramfs(sparse.path()).unwrap_err();
        assert!(
            error.to_string().contains("give the guest initramfs"),
            "{error}"
        );
    }
}
