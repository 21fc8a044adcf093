//! The pages of a template that machines of it write to: what a VMM tells of one machine, and what the next are told ahead.
//! A hint alone: whatever it says, nothing but the cost of a start depends on it.

use serde::{Deserialize, Serialize};

/// Name of the file beside a template's own that holds [`TouchedPages::to_bytes`].
pub const TOUCHED_FILE: &str = "touched";

/// Most pages that are told of: 6 MiB, twice what the start of a small container writes to. A guest decides which they are,
/// and the next machine has memory of its own for each.
const MAX_PAGES: u32 = 1536;

/// Bytes of a run in the file.
const RUN_BYTES: usize = 8;

/// Upper bound of the file in bytes.
pub const TOUCHED_BYTES: usize = MAX_PAGES as usize * RUN_BYTES;

/// Runs of pages of 4 KiB, ascending: number of the first (its guest-physical address by 4096), and how many.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TouchedPages(Vec<(u32, u32)>);

impl TouchedPages {
    /// Appends a page that comes after all others. One too many is left out.
    pub fn push(&mut self, page: u32) {
        if self.count() >= MAX_PAGES {
            return;
        }
        match self.0.last_mut() {
            Some((first, count)) if first.checked_add(*count) == Some(page) => *count += 1,
            _ => self.0.push((page, 1)),
        }
    }

    /// How many pages.
    #[must_use]
    pub fn count(&self) -> u32 {
        self.0
            .iter()
            .fold(0, |sum, &(_, count)| sum.saturating_add(count))
    }

    /// The runs.
    pub fn runs(&self) -> impl Iterator<Item = (u32, u32)> + '_ {
        self.0.iter().copied()
    }

    /// As they are kept in a file: 32-bit numbers, little-endian.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        self.runs()
            .flat_map(|(first, count)| [first.to_le_bytes(), count.to_le_bytes()].concat())
            .collect()
    }

    /// What a file holds; `None` when that is nothing that [`Self::to_bytes`] gave.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        if bytes.len() > TOUCHED_BYTES {
            return None;
        }
        let runs = bytes.chunks(RUN_BYTES).map(|run| {
            let (first, count) = run.split_first_chunk::<4>()?;
            Some((
                u32::from_le_bytes(*first),
                u32::from_le_bytes(count.try_into().ok()?),
            ))
        });
        Self(runs.collect::<Option<_>>()?).checked()
    }

    /// The same, if it is what [`Self::push`] makes: ascending runs that are not empty and not too many pages.
    #[must_use]
    pub fn checked(self) -> Option<Self> {
        let mut end = 0;
        for &(first, count) in &self.0 {
            if count == 0 || first < end {
                return None;
            }
            end = first.checked_add(count)?;
        }
        (self.count() <= MAX_PAGES).then_some(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pages(numbers: impl IntoIterator<Item = u32>) -> TouchedPages {
        let mut pages = TouchedPages::default();
        for number in numbers {
            pages.push(number);
        }
        pages
    }

    #[test]
    fn pages_that_follow_each_other_are_one_run_and_come_back_from_bytes() {
        let pages = pages([3, 4, 5, 9, 1 << 31]);
        assert_eq!(
            pages.runs().collect::<Vec<_>>(),
            [(3, 3), (9, 1), (1 << 31, 1)]
        );
        assert_eq!(
            &pages.to_bytes()[..16],
            [3, 0, 0, 0, 3, 0, 0, 0, 9, 0, 0, 0, 1, 0, 0, 0]
        );
        assert_eq!(TouchedPages::from_bytes(&pages.to_bytes()), Some(pages));
        assert_eq!(TouchedPages::from_bytes(&[]), Some(TouchedPages::default()));
    }

    #[test]
    fn pages_beyond_the_bound_are_left_out() {
        let pages = pages((0..2 * MAX_PAGES).map(|number| number * 2));
        assert_eq!(pages.count(), MAX_PAGES);
        assert!(pages.to_bytes().len() <= TOUCHED_BYTES);
        assert!(pages.clone().checked().is_some());
        assert!(serde_json::to_vec(&pages).unwrap().len() < crate::LINE_BYTES);
    }

    #[test]
    fn bytes_that_are_no_runs_are_refused() {
        let run = |first: u32, count: u32| [first.to_le_bytes(), count.to_le_bytes()].concat();
        for bytes in [
            vec![1],
            vec![0; 7],
            vec![0; 12],
            run(1, 0),
            run(0, MAX_PAGES + 1),
            run(u32::MAX, 2),
            [run(5, 1), run(4, 1)].concat(),
            [run(5, 2), run(6, 1)].concat(),
            vec![0; TOUCHED_BYTES + 8],
        ] {
            assert_eq!(TouchedPages::from_bytes(&bytes), None, "{bytes:?}");
        }
    }
}
