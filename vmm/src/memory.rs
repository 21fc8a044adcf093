//! Guest RAM: private anonymous memory, reserved lazily, with a hole below 4 GiB for devices.
//!
//! Created once by the machine and then shared, never resized. Does not know KVM's memory slots.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use vm_memory::{
    Address, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap,
    MemoryRegionAddress,
};

use crate::file_mapping::FileMapping;
use crate::layout;
use crate::page_filling::PageFilling;
use crate::virtio::GuestMemory;

/// Pages looked at with one mincore(2).
const RESIDENCY_PAGES: usize = 4096;
/// Bytes of a page, of guest and host.
pub const PAGE: u64 = 4096;
/// Bytes of RAM for each byte of Linux's page descriptors (`struct page`).
const PAGE_DESCRIPTOR_RATIO: u64 = 64;
/// What the kernel allocates early beside them: per-CPU areas and hash tables.
const EARLY_BYTES: u64 = 4 << 20;

/// Guest RAM could not be had.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// The size cannot be addressed.
    #[error("guest memory of {mib} MiB does not fit into the address space")]
    TooLarge {
        /// Size asked for.
        mib: u64,
    },
    /// mmap(2) failed.
    #[error("reserve {mib} MiB of guest memory")]
    Map {
        /// Size asked for.
        mib: u64,
        /// Why.
        #[source]
        source: vm_memory::mmap::FromRangesError,
    },
    /// madvise(2) or mincore(2) failed.
    #[error("{what} on guest memory")]
    Advice {
        /// The system call and its purpose.
        what: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Guest-physical ranges of `mib` MiB of RAM: `(start, bytes)`, ascending, one or two.
///
/// # Errors
/// The size does not fit into the address space.
pub fn ranges(mib: u64) -> Result<Vec<(GuestAddress, usize)>, MemoryError> {
    let too_large = || MemoryError::TooLarge { mib };
    let bytes = mib.checked_mul(1 << 20).ok_or_else(too_large)?;
    let low = bytes.min(layout::LOW_RAM_END);
    let high = bytes - low;
    layout::RAM_ABOVE.checked_add(high).ok_or_else(too_large)?;
    let size = |n: u64| usize::try_from(n).map_err(|_| MemoryError::TooLarge { mib });
    let mut ranges = vec![(GuestAddress(0), size(low)?)];
    if high > 0 {
        ranges.push((GuestAddress(layout::RAM_ABOVE), size(high)?));
    }
    Ok(ranges)
}

/// Reserves `mib` MiB. Nothing is resident until it is touched.
///
/// # Errors
/// The host refuses the mapping.
pub fn allocate(mib: u64) -> Result<GuestMemory, MemoryError> {
    let memory = GuestMemoryMmap::from_ranges(&ranges(mib)?)
        .map_err(|source| MemoryError::Map { mib, source })?;
    for region in memory.iter() {
        // A pod touches its memory sparsely at first and gives pages back one by one: a huge page would keep 2 MiB
        // resident for 4 KiB in use. A core dump of the VMM must not hold the guest's memory.
        advise(region, libc::MADV_NOHUGEPAGE, "madvise(MADV_NOHUGEPAGE)")?;
        advise(region, libc::MADV_DONTDUMP, "madvise(MADV_DONTDUMP)")?;
    }
    Ok(Arc::new(memory))
}

fn advise(
    region: &GuestRegionMmap<()>,
    advice: libc::c_int,
    what: &'static str,
) -> Result<(), MemoryError> {
    // SAFETY: the range is exactly a mapping that the region owns, and neither advice changes its contents.
    let result = unsafe { libc::madvise(region.as_ptr().cast(), region.size(), advice) };
    if result == 0 {
        return Ok(());
    }
    let source = io::Error::last_os_error();
    // A kernel built without transparent huge pages knows no such advice, and needs none.
    if advice == libc::MADV_NOHUGEPAGE && source.raw_os_error() == Some(libc::EINVAL) {
        return Ok(());
    }
    Err(MemoryError::Advice { what, source })
}

/// Bytes of RAM.
#[must_use]
pub fn bytes(memory: &GuestMemoryMmap<()>) -> u64 {
    memory.iter().map(GuestMemoryRegion::len).sum()
}

/// Lets the host use huge pages where the kernel puts what it allocates first: below `top`, the end of the RAM that is not
/// taken by the initramfs, it lays out its page descriptors (64 bytes for each page of RAM) and its first tables, and
/// touches all of it. One fault for 2 MiB then replaces 512, and no memory is resident that would not be anyway.
///
/// # Errors
/// madvise(2) failed.
pub fn expect_early_allocations(
    memory: &GuestMemoryMmap<()>,
    top: GuestAddress,
) -> Result<(), MemoryError> {
    let Some(region) = memory.find_region(top).or_else(|| memory.iter().last()) else {
        return Ok(());
    };
    let start = region.start_addr().raw_value();
    let end = top
        .raw_value()
        .saturating_sub(start)
        .min(region.len())
        .next_multiple_of(PAGE);
    let length = (bytes(memory) / PAGE_DESCRIPTOR_RATIO + EARLY_BYTES).min(end);
    expect_use(
        memory,
        GuestAddress(start + ((end - length) & !(PAGE - 1))),
        GuestAddress(start + end),
    )
}

/// Lets the host use huge pages from `start` to `end`, both rounded to pages, as far as that is RAM of one region: the
/// guest is about to touch all of it, and one fault for 2 MiB replaces 512.
///
/// # Errors
/// madvise(2) failed.
pub fn expect_use(
    memory: &GuestMemoryMmap<()>,
    start: GuestAddress,
    end: GuestAddress,
) -> Result<(), MemoryError> {
    let Some(region) = memory.find_region(start) else {
        return Ok(());
    };
    let first = region.start_addr().raw_value();
    let offset = start.raw_value().saturating_sub(first) & !(PAGE - 1);
    let end = end
        .raw_value()
        .saturating_sub(first)
        .next_multiple_of(PAGE)
        .min(region.len());
    let (Ok(offset), Ok(length)) = (
        usize::try_from(offset),
        usize::try_from(end.saturating_sub(offset)),
    ) else {
        return Ok(());
    };
    // SAFETY: `offset` lies in the region and `offset + length` is at most its length by the lines above, and the advice
    // changes no contents.
    let result = unsafe {
        libc::madvise(
            region.as_ptr().add(offset).cast(),
            length,
            libc::MADV_HUGEPAGE,
        )
    };
    let source = io::Error::last_os_error();
    // A kernel built without transparent huge pages knows no such advice, and does without.
    if result == 0 || source.raw_os_error() == Some(libc::EINVAL) {
        return Ok(());
    }
    Err(MemoryError::Advice {
        what: "madvise(MADV_HUGEPAGE)",
        source,
    })
}

/// Maps part of a file over guest memory: private and writable, so that the file is never changed. Offset, address and
/// length are whole pages.
///
/// # Errors
/// The range does not lie in one region of guest memory, or mmap(2) failed.
pub fn map_file(
    guest: &GuestMemoryMmap<()>,
    file: &File,
    offset: u64,
    address: u64,
    length: u64,
) -> io::Result<()> {
    let length = usize::try_from(length).map_err(io::Error::other)?;
    let offset = libc::off_t::try_from(offset).map_err(io::Error::other)?;
    map_over(
        guest,
        GuestAddress(address),
        length,
        0,
        file.as_raw_fd(),
        offset,
    )
    .map(|_| ())
}

/// Puts another private, writable mapping in the place of part of guest memory: of `descriptor` at `offset`, or what
/// `flags` ask for instead. Returns where it is.
fn map_over(
    guest: &GuestMemoryMmap<()>,
    address: GuestAddress,
    length: usize,
    flags: libc::c_int,
    descriptor: libc::c_int,
    offset: libc::off_t,
) -> io::Result<*mut libc::c_void> {
    let slice = guest.get_slice(address, length).map_err(io::Error::other)?;
    let target = slice.ptr_guard_mut();
    // SAFETY: `get_slice` says that the whole range lies in one region of guest memory, which is a private mapping of
    // ours; replacing pages of it keeps its length and protection. Nothing holds Rust references into guest memory.
    let mapped = unsafe {
        libc::mmap(
            target.as_ptr().cast(),
            length,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_FIXED | libc::MAP_NORESERVE | flags,
            descriptor,
            offset,
        )
    };
    if mapped == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    Ok(mapped)
}

/// Gives this process memory of its own for pages of a private mapping, ahead of the writes that are going to come: one fault
/// of the guest for each is left then, of two or three. Linux 5.14 or later.
///
/// # Errors
/// The range is not guest memory, or madvise(2) failed.
pub fn expect_writes(
    guest: &GuestMemoryMmap<()>,
    address: GuestAddress,
    length: u64,
) -> io::Result<()> {
    let length = usize::try_from(length).map_err(io::Error::other)?;
    let slice = guest.get_slice(address, length).map_err(io::Error::other)?;
    let pages = slice.ptr_guard_mut();
    // SAFETY: `get_slice` says that the whole range lies in one region of guest memory, whose mapping outlives the call;
    // the advice changes no contents.
    let result = unsafe { libc::madvise(pages.as_ptr().cast(), length, libc::MADV_POPULATE_WRITE) };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Gives this process memory of its own for `pieces` of a private mapping, each a guest-physical address and bytes, whole
/// pages, with what `saved` holds at the same offsets. As [`expect_writes`], for a half of its instructions.
///
/// # Errors
/// The host cannot, a piece is not in guest memory, or is longer than what is saved.
pub fn fill_pages(
    guest: &GuestMemoryMmap<()>,
    pieces: &[(u64, u64)],
    saved: &FileMapping,
) -> io::Result<()> {
    for region in guest.iter() {
        let range = region.start_addr().raw_value()..region.start_addr().raw_value() + region.len();
        let inside = || pieces.iter().filter(|(start, _)| range.contains(start));
        if inside().next().is_none() {
            continue;
        }
        let filling = PageFilling::of(region.as_ptr().cast(), region.size())?;
        for &(start, bytes) in inside() {
            let length = usize::try_from(bytes).map_err(io::Error::other)?;
            let source = saved_at(saved, start, bytes)?;
            let slice = guest
                .get_slice(GuestAddress(start), length)
                .map_err(io::Error::other)?;
            let target = slice.ptr_guard_mut();
            // SAFETY: `source` is in the mapping of `saved` for `length` bytes by the check above; `get_slice` says that the
            // target lies in this region, and nothing holds Rust references into guest memory.
            unsafe { filling.fill(target.as_ptr().cast(), source, length)? };
        }
    }
    Ok(())
}

/// Gives the machine memory of its own for the block of `bytes` at `address`, in a huge page where the host has one, with what
/// `saved` holds at that offset. It lies where a huge page can.
///
/// # Errors
/// The range does not lie in one region of guest memory, is longer than what is saved, or mmap(2) failed.
pub fn own_block(
    guest: &GuestMemoryMmap<()>,
    address: GuestAddress,
    bytes: u64,
    saved: &FileMapping,
) -> io::Result<()> {
    let length = usize::try_from(bytes).map_err(io::Error::other)?;
    let source = saved_at(saved, address.raw_value(), bytes)?;
    let mapped = map_over(guest, address, length, libc::MAP_ANONYMOUS, -1, 0)?;
    // SAFETY: both are mappings of `length` bytes apart from each other, and the advice changes no contents.
    unsafe {
        // A host without huge pages has small ones.
        libc::madvise(mapped, length, libc::MADV_HUGEPAGE);
        libc::madvise(mapped, length, libc::MADV_DONTDUMP);
        std::ptr::copy_nonoverlapping(source.cast::<u8>(), mapped.cast(), length);
    }
    Ok(())
}

/// Where `saved` has the `bytes` from `start` on.
fn saved_at(saved: &FileMapping, start: u64, bytes: u64) -> io::Result<*mut libc::c_void> {
    match start.checked_add(bytes) {
        // Below `saved.bytes()`, which was a usize.
        Some(end) if end <= saved.bytes() => Ok(saved.address().wrapping_byte_add(start as usize)),
        _ => Err(io::Error::from(io::ErrorKind::UnexpectedEof)),
    }
}

/// Has core dumps leave out all of guest memory, what was mapped over it included.
///
/// # Errors
/// madvise(2) failed.
pub fn leave_out_of_dumps(guest: &GuestMemoryMmap<()>) -> Result<(), MemoryError> {
    guest
        .iter()
        .try_for_each(|region| advise(region, libc::MADV_DONTDUMP, "madvise(MADV_DONTDUMP)"))
}

/// Host address of the first byte of a region.
///
/// # Errors
/// Never for a region of [`allocate`].
pub fn host_address(region: &GuestRegionMmap<()>) -> vm_memory::GuestMemoryResult<u64> {
    Ok(region.get_host_address(MemoryRegionAddress(0))? as u64)
}

/// End of the RAM below 4 GiB.
#[must_use]
pub fn low_end(memory: &GuestMemoryMmap<()>) -> u64 {
    memory
        .iter()
        .next()
        .map_or(0, |region| region.start_addr().raw_value() + region.len())
}

/// Bytes of guest memory that are resident on the host, pages of the kernel image that the host shares between machines
/// included.
///
/// # Errors
/// mincore(2) failed.
pub fn resident_bytes(memory: &GuestMemoryMmap<()>) -> Result<u64, MemoryError> {
    let mut pages = 0u64;
    let mut seen = vec![0u8; RESIDENCY_PAGES];
    for region in memory.iter() {
        let total = region.size().div_ceil(PAGE as usize);
        for first in (0..total).step_by(RESIDENCY_PAGES) {
            let n = (total - first).min(RESIDENCY_PAGES);
            // SAFETY: pages `first..first + n` lie inside the region's mapping, and `seen` holds a byte for each.
            let result = unsafe {
                libc::mincore(
                    region.as_ptr().add(first * PAGE as usize).cast(),
                    n * PAGE as usize,
                    seen.as_mut_ptr(),
                )
            };
            if result != 0 {
                return Err(MemoryError::Advice {
                    what: "mincore",
                    source: io::Error::last_os_error(),
                });
            }
            pages += seen.iter().take(n).map(|b| u64::from(b & 1)).sum::<u64>();
        }
    }
    Ok(pages * PAGE)
}

#[cfg(test)]
mod tests {
    use vm_memory::Bytes;

    use super::*;

    #[test]
    fn memory_beyond_the_hole_continues_at_4_gib() {
        assert_eq!(ranges(64).unwrap(), [(GuestAddress(0), 64 << 20)]);
        assert_eq!(
            ranges(6144).unwrap(),
            [
                (GuestAddress(0), 0xd000_0000),
                (GuestAddress(1 << 32), (6144 << 20) - 0xd000_0000)
            ]
        );
        assert!(ranges(u64::MAX / 2).is_err());
    }

    #[test]
    fn memory_for_early_allocations_is_advised_within_its_region() {
        for (mib, top) in [(32, 31 << 20), (256, 256 << 20), (6144, 7 << 30), (64, 0)] {
            let memory = allocate(mib).unwrap();
            expect_early_allocations(&memory, GuestAddress(top)).unwrap();
            assert_eq!(resident_bytes(&memory).unwrap(), 0);
        }
    }

    #[test]
    fn memory_untouched_is_not_resident_and_touched_pages_are() {
        let memory = allocate(6144).unwrap();
        assert_eq!(resident_bytes(&memory).unwrap(), 0);
        for at in [0u64, 0x5000, (1 << 32) + 0x3000] {
            memory.write_obj(1u8, GuestAddress(at)).unwrap();
        }
        assert_eq!(resident_bytes(&memory).unwrap(), 3 * 4096);
        assert_eq!(low_end(&memory), 0xd000_0000);
    }
}
