//! Guest memory in a file: only what is not zero, piece after piece, and mapped copy-on-write into another machine.
//!
//! Which pages there are is asked of the kernel, page by page, so that nothing is touched that the guest has not touched.
//! A machine that uses an image shares the pages that it does not write to with all others that use it.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;

use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

use crate::memory::{self, PAGE};

/// Zero pages between two pieces that are stored rather than left out: a mapping costs more than they do.
const GAP_PAGES: u64 = 8;
/// Bytes written at once.
const CHUNK: usize = 256 << 10;
/// Entries of the page map read at once.
const MAP_ENTRIES: usize = 4096;

/// Bits of an entry of `/proc/self/pagemap` (Documentation/admin-guide/mm/pagemap.rst).
const PRESENT: u64 = 1 << 63;
const SWAPPED: u64 = 1 << 62;

/// A piece of guest memory that is not all zero; whole pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// Guest-physical address.
    pub start: u64,
    /// Length in bytes.
    pub bytes: u64,
}

/// Finds the pieces of `guest` that are not zero. `page_map` is `/proc/self/pagemap` of this process, and all of `guest` is
/// memory of its own: nothing of a file is mapped there.
///
/// # Errors
/// The page map or the memory cannot be read.
pub fn find_runs(
    guest: &GuestMemoryMmap<()>,
    page_map: &File,
    most: usize,
) -> io::Result<Vec<Run>> {
    let mut pages = Vec::new();
    let mut entries = vec![0u8; MAP_ENTRIES * 8];
    for region in guest.iter() {
        let host = memory::host_address(region).map_err(io::Error::other)?;
        let total = region.len() / PAGE;
        let mut first = 0;
        while first < total {
            let n = (total - first).min(MAP_ENTRIES as u64);
            // At most MAP_ENTRIES entries of 8 bytes.
            let bytes = entries.get_mut(..n as usize * 8).unwrap_or_default();
            page_map.read_exact_at(bytes, (host / PAGE + first) * 8)?;
            for (i, entry) in (0u64..).zip(bytes.chunks_exact(8)) {
                let entry = u64::from_le_bytes(entry.try_into().unwrap_or_default());
                let at = region.start_addr().0 + (first + i) * PAGE;
                if entry & (PRESENT | SWAPPED) != 0 && !is_zero(guest, at)? {
                    pages.push(at);
                }
            }
            first += n;
        }
    }
    let mut gap = GAP_PAGES;
    loop {
        let runs = join(&pages, gap, guest);
        if runs.len() <= most {
            return Ok(runs);
        }
        gap *= 2;
    }
}

fn is_zero(guest: &GuestMemoryMmap<()>, at: u64) -> io::Result<bool> {
    let mut page = [0u64; PAGE as usize / 8];
    let bytes = zerocopy::IntoBytes::as_mut_bytes(&mut page[..]);
    guest
        .read_slice(bytes, GuestAddress(at))
        .map_err(io::Error::other)?;
    Ok(page.iter().all(|&word| word == 0))
}

/// Joins pages (ascending) that lie at most `gap` pages apart, within one region.
fn join(pages: &[u64], gap: u64, guest: &GuestMemoryMmap<()>) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    for &page in pages {
        if let Some(last) = runs.last_mut() {
            let distance = page - (last.start + last.bytes);
            if distance <= gap * PAGE
                && guest.check_range(GuestAddress(last.start), span(last, page))
            {
                last.bytes = page + PAGE - last.start;
                continue;
            }
        }
        runs.push(Run {
            start: page,
            bytes: PAGE,
        });
    }
    runs
}

/// Bytes from the start of a run to the end of a page.
fn span(run: &Run, page: u64) -> usize {
    usize::try_from(page + PAGE - run.start).unwrap_or(usize::MAX)
}

/// Writes the pieces one after the other.
///
/// # Errors
/// The memory cannot be read, or the file not be written: no space, most likely.
pub fn write(guest: &GuestMemoryMmap<()>, runs: &[Run], mut file: &File) -> io::Result<()> {
    let mut buffer = vec![0u8; CHUNK];
    for run in runs {
        let mut done = 0;
        while done < run.bytes {
            let n = usize::try_from(run.bytes - done).map_or(CHUNK, |left| left.min(CHUNK));
            let chunk = buffer.get_mut(..n).unwrap_or_default();
            guest
                .read_slice(chunk, GuestAddress(run.start + done))
                .map_err(io::Error::other)?;
            file.write_all(chunk)?;
            done += n as u64;
        }
    }
    Ok(())
}

/// Maps the pieces into fresh guest memory, copy-on-write.
///
/// # Errors
/// They do not lie in guest memory, overlap, or are not what the file holds.
pub fn map(guest: &GuestMemoryMmap<()>, runs: &[Run], file: &File) -> io::Result<()> {
    let invalid = |what| io::Error::new(io::ErrorKind::InvalidData, what);
    let mut offset = 0u64;
    let mut end = 0u64;
    for run in runs {
        let whole = run.start.is_multiple_of(PAGE) && run.bytes.is_multiple_of(PAGE);
        if !whole || run.bytes == 0 || run.start < end {
            return Err(invalid("a piece of memory is not made of pages in order"));
        }
        end = run
            .start
            .checked_add(run.bytes)
            .ok_or_else(|| invalid("a piece of memory has no end"))?;
        offset = offset
            .checked_add(run.bytes)
            .ok_or_else(|| invalid("there is more memory than there can be"))?;
    }
    // A file that is shorter would end the process at the first touch beyond its end.
    if file.metadata()?.len() != offset {
        return Err(invalid("its length is not that of the saved memory"));
    }
    let mut offset = 0;
    for run in runs {
        memory::map_file(guest, file, offset, run.start, run.bytes)?;
        offset += run.bytes;
    }
    // The mappings are new, so what was said about the memory before does not hold for them.
    memory::leave_out_of_dumps(guest).map_err(io::Error::other)
}

/// The page map of this process.
///
/// # Errors
/// The host's kernel has none (CONFIG_PROC_PAGE_MONITOR), or `/proc` is not there.
pub fn page_map() -> io::Result<File> {
    File::open("/proc/self/pagemap")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guest() -> crate::virtio::GuestMemory {
        memory::allocate(64).unwrap()
    }

    fn write_at(guest: &GuestMemoryMmap<()>, at: u64, value: u8) {
        guest.write_obj(value, GuestAddress(at)).unwrap();
    }

    #[test]
    fn memory_written_and_mapped_is_the_same_and_changes_stay_private() {
        let from = guest();
        for (at, value) in [(0x1000, 1), (0x1fff, 2), (0x5000, 3), (0x200_0000, 4)] {
            write_at(&from, at, value);
        }
        // Touched, but zero.
        write_at(&from, 0x300_0000, 0);
        let runs = find_runs(&from, &page_map().unwrap(), 100).unwrap();
        let run = |start, bytes| Run { start, bytes };
        assert_eq!(runs, [run(0x1000, 0x5000), run(0x200_0000, 0x1000)]);

        let file = tempfile::tempfile().unwrap();
        write(&from, &runs, &file).unwrap();
        assert_eq!(file.metadata().unwrap().len(), 0x6000);
        let first = guest();
        let second = guest();
        for to in [&first, &second] {
            map(to, &runs, &file).unwrap();
            for (at, value) in [(0x1000, 1), (0x1fff, 2), (0x5000, 3), (0x200_0000, 4)] {
                assert_eq!(to.read_obj::<u8>(GuestAddress(at)).unwrap(), value);
            }
            assert_eq!(to.read_obj::<u8>(GuestAddress(0x300_0000)).unwrap(), 0);
        }
        write_at(&first, 0x5000, 77);
        assert_eq!(second.read_obj::<u8>(GuestAddress(0x5000)).unwrap(), 3);
        let third = guest();
        map(&third, &runs, &file).unwrap();
        assert_eq!(third.read_obj::<u8>(GuestAddress(0x5000)).unwrap(), 3);
    }

    #[test]
    fn runs_beyond_the_bound_are_joined_further() {
        let from = guest();
        for i in 0..8 {
            write_at(&from, i * 0x10_0000, 1);
        }
        let page_map = page_map().unwrap();
        assert_eq!(find_runs(&from, &page_map, 100).unwrap().len(), 8);
        let runs = find_runs(&from, &page_map, 1).unwrap();
        assert_eq!(
            runs,
            [Run {
                start: 0,
                bytes: 0x70_1000
            }]
        );
    }

    #[test]
    fn runs_that_do_not_fit_memory_or_file_are_refused() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(0x2000).unwrap();
        let run = |start, bytes| Run { start, bytes };
        for runs in [
            vec![run(0x1000, 0x1000)],
            vec![run(0x1000, 0x3000)],
            vec![run(0x1001, 0x2000)],
            vec![run(0x2000, 0x1000), run(0x1000, 0x1000)],
            vec![run(0x1000, 0), run(0x1000, 0x2000)],
            vec![run(1 << 40, 0x2000)],
            vec![run(u64::MAX - 0xfff, 0x2000)],
            vec![run((64 << 20) - 0x1000, 0x2000)],
        ] {
            assert!(map(&guest(), &runs, &file).is_err(), "{runs:?}");
        }
    }
}
