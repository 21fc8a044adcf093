//! The last bytes of a container's output, for its termination message.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

/// Bytes kept (Kubernetes' own limit for FallbackToLogsOnError).
pub const TAIL_BYTES: usize = 2048;

/// A handle; clones share one tail.
#[derive(Clone, Debug, Default)]
pub struct Tail {
    // Shared by a container's two output streams; never held across an await.
    bytes: Arc<Mutex<VecDeque<u8>>>,
}

impl Tail {
    /// Appends output.
    pub fn push(&self, bytes: &[u8]) {
        let kept = bytes
            .get(bytes.len().saturating_sub(TAIL_BYTES)..)
            .unwrap_or_default();
        let mut tail = self.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        let surplus = (tail.len() + kept.len()).saturating_sub(TAIL_BYTES);
        tail.drain(..surplus);
        tail.extend(kept);
    }

    /// What is kept, oldest first.
    pub fn bytes(&self) -> Vec<u8> {
        self.bytes
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .iter()
            .copied()
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tail_over_its_size_keeps_the_newest_bytes() {
        let tail = Tail::default();
        tail.push(&[1; TAIL_BYTES]);
        tail.push(&[2; 10]);
        let bytes = tail.bytes();
        assert_eq!(bytes.len(), TAIL_BYTES);
        assert_eq!(
            bytes.get(TAIL_BYTES - 11..),
            Some([1, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2].as_slice())
        );
        tail.push(&[3; TAIL_BYTES * 3]);
        assert_eq!(tail.bytes(), vec![3; TAIL_BYTES]);
    }
}
