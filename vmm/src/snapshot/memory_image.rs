//! Guest memory in a file: what is not zero, each page at the offset of its guest-physical address, and mapped copy-on-write
//! into another machine.
//!
//! Which pages there are is asked of the kernel, page by page, so that nothing is touched that the guest has not touched.
//! A machine that uses an image shares the pages that it does not write to with all others that use it. They are kept and
//! mapped in blocks of 2 MiB, so that the host can have each block in one huge page: the kernel's code, which no machine
//! writes to, costs a fault a block then, and the pages between those that are written to are mapped many at once.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

use vmpod_vmm_api::TouchedPages;

use crate::file_mapping::{FileMapping, HUGE_PAGE};
use crate::memory::{self, PAGE};
use crate::virtio::GuestMemory;

/// What is mapped or left out as a whole: a huge page.
const BLOCK: u64 = HUGE_PAGE;
/// Pages of a block that are written to by a start from which on the block is copied at once, into a huge page. Filling one and
/// the guest's fault for it cost about a hundredth of that, and so does a fault for each page that is read; the price is the
/// memory of the others.
const BUSY_PAGES: u32 = 112;
/// Bytes written at once.
const CHUNK: usize = 256 << 10;
/// Entries of the page map read at once.
const MAP_ENTRIES: usize = 4096;

/// Bits of an entry of `/proc/self/pagemap` (Documentation/admin-guide/mm/pagemap.rst).
const PRESENT: u64 = 1 << 63;
const SWAPPED: u64 = 1 << 62;

/// A piece of guest memory; whole pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// Guest-physical address, and offset in the file.
    pub start: u64,
    /// Length in bytes.
    pub bytes: u64,
}

impl Run {
    fn end(&self) -> u64 {
        self.start.saturating_add(self.bytes)
    }
}

/// Finds the pages of `guest` that are not zero, ascending, those that follow each other as one piece. `page_map` is
/// `/proc/self/pagemap` of this process, and all of `guest` is memory of its own: nothing of a file is mapped there.
///
/// # Errors
/// The page map or the memory cannot be read.
pub fn find_pages(guest: &GuestMemoryMmap<()>, page_map: &File) -> io::Result<Vec<Run>> {
    let mut pages: Vec<Run> = Vec::new();
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
                if entry & (PRESENT | SWAPPED) == 0 || is_zero(guest, at)? {
                    continue;
                }
                match pages.last_mut() {
                    Some(last) if last.end() == at => last.bytes += PAGE,
                    _ => pages.push(Run {
                        start: at,
                        bytes: PAGE,
                    }),
                }
            }
            first += n;
        }
    }
    Ok(pages)
}

/// The blocks that hold `pages` (ascending), as far as they are memory of `guest`, at most `most` pieces: further apart
/// blocks are joined where there are more.
#[must_use]
pub fn blocks(guest: &GuestMemoryMmap<()>, pages: &[Run], most: usize) -> Vec<Run> {
    let mut gap = 0;
    loop {
        let runs = join(guest, pages, gap);
        if runs.len() <= most {
            return runs;
        }
        gap = (gap * 2).max(BLOCK);
    }
}

fn join(guest: &GuestMemoryMmap<()>, pages: &[Run], gap: u64) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    for piece in pages {
        let Some(region) = guest.find_region(GuestAddress(piece.start)) else {
            continue;
        };
        let first = region.start_addr().0;
        let start = (piece.start / BLOCK * BLOCK).max(first);
        let end = piece
            .end()
            .next_multiple_of(BLOCK)
            .min(first + region.len());
        match runs.last_mut() {
            Some(last) if last.start >= first && start <= last.end().saturating_add(gap) => {
                last.bytes = end.max(last.end()) - last.start;
            }
            _ => runs.push(Run {
                start,
                bytes: end - start,
            }),
        }
    }
    runs
}

fn is_zero(guest: &GuestMemoryMmap<()>, at: u64) -> io::Result<bool> {
    let mut page = [0u64; PAGE as usize / 8];
    let bytes = zerocopy::IntoBytes::as_mut_bytes(&mut page[..]);
    guest
        .read_slice(bytes, GuestAddress(at))
        .map_err(io::Error::other)?;
    Ok(page.iter().all(|&word| word == 0))
}

/// Writes `pages` to the file, which ends with `runs`, and has the host keep the runs in huge pages where it can.
///
/// # Errors
/// The memory cannot be read, or the file not be written: no space, most likely.
pub fn write(
    guest: &GuestMemoryMmap<()>,
    pages: &[Run],
    runs: &[Run],
    file: &File,
) -> io::Result<()> {
    file.set_len(runs.last().map_or(0, Run::end))?;
    let mut buffer = vec![0u8; CHUNK];
    for run in pages {
        let mut done = 0;
        while done < run.bytes {
            let n = usize::try_from(run.bytes - done).map_or(CHUNK, |left| left.min(CHUNK));
            let chunk = buffer.get_mut(..n).unwrap_or_default();
            guest
                .read_slice(chunk, GuestAddress(run.start + done))
                .map_err(io::Error::other)?;
            file.write_all_at(chunk, run.start + done)?;
            done += n as u64;
        }
    }
    for run in runs {
        let first = run.start.next_multiple_of(BLOCK);
        let end = run.end() / BLOCK * BLOCK;
        if first < end {
            FileMapping::map(file, first, end - first)?.collapse();
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
    }
    // A file that is shorter would end the process at the first touch beyond its end.
    if file.metadata()?.len() != end {
        return Err(invalid("its length is not that of the saved memory"));
    }
    map_checked(guest, runs, file)
}

fn map_checked(guest: &GuestMemoryMmap<()>, runs: &[Run], file: &File) -> io::Result<()> {
    for run in runs {
        memory::map_file(guest, file, run.start, run.start, run.bytes)?;
    }
    // The mappings are new, so what was said about the memory before does not hold for them.
    memory::leave_out_of_dumps(guest).map_err(io::Error::other)
}

/// A second mapping of a machine's saved memory, to compare the machine's with.
#[derive(Debug)]
pub struct Original {
    memory: GuestMemory,
    runs: Vec<Run>,
}

impl Original {
    /// Maps `runs` of `file`, which this process has written or checked, for a machine with `mib` MiB of memory.
    ///
    /// # Errors
    /// The host refuses the mapping.
    pub fn map(mib: u64, runs: &[Run], file: &File) -> io::Result<Self> {
        let memory = memory::allocate(mib).map_err(io::Error::other)?;
        map_checked(&memory, runs, file)?;
        Ok(Self {
            memory,
            runs: runs.to_vec(),
        })
    }

    /// The pages of `guest` that are not as they were saved. The guest may run: what it writes meanwhile is found or not.
    ///
    /// # Errors
    /// The memory cannot be read.
    pub fn changed(&self, guest: &GuestMemoryMmap<()>) -> io::Result<TouchedPages> {
        let mut changed = TouchedPages::default();
        let mut saved = [0u8; PAGE as usize];
        let mut now = [0u8; PAGE as usize];
        for run in &self.runs {
            for at in (run.start..run.end()).step_by(PAGE as usize) {
                for (memory, bytes) in [(&*self.memory, &mut saved), (guest, &mut now)] {
                    memory
                        .read_slice(bytes, GuestAddress(at))
                        .map_err(io::Error::other)?;
                }
                if saved != now
                    && let Ok(page) = u32::try_from(at / PAGE)
                {
                    changed.push(page);
                }
            }
        }
        Ok(changed)
    }
}

/// Makes the pages the machine's own that others of its kind have written to, of the memory that [`map`] has mapped. What is
/// not memory of the machine is passed over: it is a hint, and a host that does not take it is slower, no more.
///
/// # Errors
/// The file cannot be mapped once more, or a block was to be copied and could not be: the memory is of no use then.
pub fn expect_writes(
    guest: &GuestMemoryMmap<()>,
    pages: &TouchedPages,
    runs: &[Run],
    file: &File,
) -> io::Result<()> {
    let busy = busy_blocks(pages, runs);
    let saved = FileMapping::map(file, 0, runs.last().map_or(0, Run::end))?;
    for &at in &busy {
        memory::own_block(guest, GuestAddress(at), BLOCK, &saved)?;
    }
    let rest = pieces(pages, runs, &busy);
    if memory::fill_pages(guest, &rest, &saved).is_ok() {
        return Ok(());
    }
    // A host without userfaultfd(2), or a file that is not in memory. Pages that are there by now stay.
    for (start, bytes) in rest {
        if memory::expect_writes(guest, GuestAddress(start), bytes).is_err() {
            break;
        }
    }
    Ok(())
}

/// Addresses and bytes of those of `pages` that lie in `runs` and in none of the `busy` blocks.
fn pieces(pages: &TouchedPages, runs: &[Run], busy: &[u64]) -> Vec<(u64, u64)> {
    let mut pieces: Vec<(u64, u64)> = Vec::new();
    let all = pages
        .runs()
        .flat_map(|(first, count)| first..first.saturating_add(count));
    for at in all.map(|page| u64::from(page) * PAGE) {
        let saved = runs.iter().any(|run| run.start <= at && at < run.end());
        if !saved || busy.contains(&(at / BLOCK * BLOCK)) {
            continue;
        }
        match pieces.last_mut() {
            Some((start, bytes)) if *start + *bytes == at && !at.is_multiple_of(BLOCK) => {
                *bytes += PAGE;
            }
            _ => pieces.push((at, PAGE)),
        }
    }
    pieces
}

/// The blocks of the saved memory in which so many pages are written to that one huge page costs less than all of theirs.
fn busy_blocks(pages: &TouchedPages, runs: &[Run]) -> Vec<u64> {
    let mut counts: BTreeMap<u64, u32> = BTreeMap::new();
    for (first, count) in pages.runs() {
        for page in first..first.saturating_add(count) {
            *counts
                .entry(u64::from(page) * PAGE / BLOCK * BLOCK)
                .or_default() += 1;
        }
    }
    let saved = |&at: &u64| {
        runs.iter()
            .any(|run| run.start <= at && at + BLOCK <= run.end())
    };
    let busy = counts.into_iter().filter(|&(_, count)| count >= BUSY_PAGES);
    busy.map(|(at, _)| at).filter(saved).collect()
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

    fn guest() -> GuestMemory {
        memory::allocate(64).unwrap()
    }

    fn write_at(guest: &GuestMemoryMmap<()>, at: u64, value: u8) {
        guest.write_obj(value, GuestAddress(at)).unwrap();
    }

    fn run(start: u64, bytes: u64) -> Run {
        Run { start, bytes }
    }

    #[test]
    fn memory_written_and_mapped_is_the_same_and_changes_stay_private() {
        let from = guest();
        for (at, value) in [(0x1000, 1), (0x1fff, 2), (0x5000, 3), (0x240_0000, 4)] {
            write_at(&from, at, value);
        }
        // Touched, but zero.
        write_at(&from, 0x300_0000, 0);
        let pages = find_pages(&from, &page_map().unwrap()).unwrap();
        assert_eq!(
            pages,
            [
                run(0x1000, 0x1000),
                run(0x5000, 0x1000),
                run(0x240_0000, 0x1000)
            ]
        );
        let runs = blocks(&from, &pages, 100);
        assert_eq!(runs, [run(0, BLOCK), run(0x240_0000, BLOCK)]);

        let file = tempfile::tempfile().unwrap();
        write(&from, &pages, &runs, &file).unwrap();
        assert_eq!(file.metadata().unwrap().len(), 0x240_0000 + BLOCK);
        let first = guest();
        let second = guest();
        for to in [&first, &second] {
            map(to, &runs, &file).unwrap();
            for (at, value) in [(0x1000, 1), (0x1fff, 2), (0x5000, 3), (0x240_0000, 4)] {
                assert_eq!(to.read_obj::<u8>(GuestAddress(at)).unwrap(), value);
            }
            for at in [0, 0x300_0000] {
                assert_eq!(to.read_obj::<u8>(GuestAddress(at)).unwrap(), 0);
            }
        }
        write_at(&first, 0x5000, 77);
        assert_eq!(second.read_obj::<u8>(GuestAddress(0x5000)).unwrap(), 3);
        let third = guest();
        map(&third, &runs, &file).unwrap();
        assert_eq!(third.read_obj::<u8>(GuestAddress(0x5000)).unwrap(), 3);
    }

    #[test]
    fn pages_written_since_are_told_and_can_be_made_own_ahead() {
        // On a disk, where faults do it, and in memory, where they are filled.
        for file in [tempfile::tempfile(), tempfile::tempfile_in("/dev/shm")] {
            learn_and_expect(&file.unwrap());
        }
    }

    fn learn_and_expect(file: &File) {
        let from = guest();
        for at in [0x1000, 0x5000, 0x6000, 0x240_0000] {
            write_at(&from, at, 1);
        }
        let pages = find_pages(&from, &page_map().unwrap()).unwrap();
        let runs = blocks(&from, &pages, 100);
        write(&from, &pages, &runs, file).unwrap();
        let to = guest();
        map(&to, &runs, file).unwrap();
        let original = Original::map(64, &runs, file).unwrap();
        assert_eq!(original.changed(&to).unwrap(), TouchedPages::default());
        // Written to but as before, written to in two ways, and not of the file.
        for (at, value) in [
            (0x1000, 1),
            (0x5fff, 2),
            (0x6000, 2),
            (0x240_3000, 1),
            (0x300_0000, 1),
        ] {
            write_at(&to, at, value);
        }
        let changed = original.changed(&to).unwrap();
        assert_eq!(changed.runs().collect::<Vec<_>>(), [(5, 2), (0x2403, 1)]);

        let own = |guest: &GuestMemoryMmap<()>, page: u64| {
            let host = memory::host_address(guest.iter().next().unwrap()).unwrap();
            let mut entry = [0; 8];
            let map = page_map().unwrap();
            map.read_exact_at(&mut entry, (host / PAGE + page) * 8)
                .unwrap();
            // Present, and not a page of the file (bit 61).
            u64::from_le_bytes(entry) & (PRESENT | 1 << 61) == PRESENT
        };
        let next = guest();
        map(&next, &runs, file).unwrap();
        let mut told = changed;
        told.push(1 << 30);
        expect_writes(&next, &told, &runs, file).unwrap();
        assert_eq!(
            [1, 5, 6, 7, 0x2403].map(|page| own(&next, page)),
            [false, true, true, false, true]
        );
        assert_eq!(next.read_obj::<u8>(GuestAddress(0x5000)).unwrap(), 1);
    }

    #[test]
    fn block_with_many_pages_written_to_is_copied_whole_and_others_are_not() {
        let from = guest();
        // The second block is busy; so would be the last, which was not saved.
        for at in [0x1000, BLOCK + 0x1000, BLOCK + 0x1f_f000, 2 * BLOCK] {
            write_at(&from, at, 9);
        }
        let pages = find_pages(&from, &page_map().unwrap()).unwrap();
        let runs = blocks(&from, &pages, 100);
        let file = tempfile::tempfile().unwrap();
        write(&from, &pages, &runs, &file).unwrap();
        let mut told = TouchedPages::default();
        told.push(1);
        for block in [1u32, 20] {
            for page in 0..BUSY_PAGES {
                told.push(block * 512 + page);
            }
        }
        assert_eq!(busy_blocks(&told, &runs), [BLOCK]);
        let to = guest();
        map(&to, &runs, &file).unwrap();
        expect_writes(&to, &told, &runs, &file).unwrap();
        for at in [0x1000, BLOCK + 0x1000, BLOCK + 0x1f_f000, 2 * BLOCK] {
            assert_eq!(to.read_obj::<u8>(GuestAddress(at)).unwrap(), 9, "{at:#x}");
            write_at(&to, at, 10);
        }
        let third = guest();
        map(&third, &runs, &file).unwrap();
        for at in [0x1000, BLOCK + 0x1000, 2 * BLOCK] {
            assert_eq!(
                third.read_obj::<u8>(GuestAddress(at)).unwrap(),
                9,
                "{at:#x}"
            );
        }
    }

    #[test]
    fn blocks_beyond_the_bound_are_joined_further() {
        let guest = guest();
        let pages: Vec<Run> = (0..8).map(|i| run(i * 4 * BLOCK, PAGE)).collect();
        assert_eq!(blocks(&guest, &pages, 100).len(), 8);
        assert_eq!(blocks(&guest, &pages, 1), [run(0, 29 * BLOCK)]);
    }

    #[test]
    fn blocks_of_memory_that_is_no_multiple_of_them_end_with_it() {
        let guest = memory::allocate(63).unwrap();
        let end = 63 << 20;
        let pages = [run(end - PAGE, PAGE)];
        assert_eq!(blocks(&guest, &pages, 1), [run(end - BLOCK / 2, BLOCK / 2)]);
    }

    #[test]
    fn runs_that_do_not_fit_memory_or_file_are_refused() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(0x4000).unwrap();
        map(&guest(), &[run(0x1000, 0x1000), run(0x3000, 0x1000)], &file).unwrap();
        for runs in [
            vec![run(0x1000, 0x1000)],
            vec![run(0x1000, 0x4000)],
            vec![run(0x2001, 0x2000)],
            vec![run(0x3000, 0x1000), run(0x1000, 0x1000)],
            vec![run(0x2000, 0x2000), run(0x3000, 0x1000)],
            vec![run(0x1000, 0), run(0x1000, 0x3000)],
            vec![run(u64::MAX - 0xfff, 0x2000)],
        ] {
            assert!(map(&guest(), &runs, &file).is_err(), "{runs:?}");
        }
        let end = 64 << 20;
        for runs in [vec![run(end - 0x1000, 0x2000)], vec![run(1 << 40, 0x2000)]] {
            file.set_len(runs[0].start + runs[0].bytes).unwrap();
            assert!(map(&guest(), &runs, &file).is_err(), "{runs:?}");
        }
    }
}
