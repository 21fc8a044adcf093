//! What a pull or an import tells while it works. Drawing it is the caller's.

use std::time::Duration;

use super::digest::Digest;

/// One thing that happened. Byte counts are of the compressed layer while it is downloaded or read.
#[derive(Debug)]
pub enum Event<'a> {
    /// Another process is pulling the same image; this one waits for it.
    Waiting {
        /// The image.
        name: &'a str,
    },
    /// A registry or an archive is asked for the image's manifest.
    Resolving {
        /// The image.
        name: &'a str,
        /// Host or file asked.
        from: &'a str,
    },
    /// The manifest is known.
    Resolved {
        /// The image.
        name: &'a str,
        /// Digest of its manifest.
        digest: &'a Digest,
        /// Number of layers.
        layers: usize,
        /// Compressed bytes of all layers.
        bytes: u64,
    },
    /// A layer is already in the store.
    LayerPresent {
        /// Its blob.
        layer: &'a Digest,
    },
    /// A layer's bytes arrive.
    LayerBytes {
        /// Its blob.
        layer: &'a Digest,
        /// Bytes so far; falls back to 0 when a download is tried again.
        done: u64,
        /// Bytes in all.
        total: u64,
    },
    /// A layer is being unpacked.
    LayerUnpacking {
        /// Its blob.
        layer: &'a Digest,
        /// Compressed bytes read so far.
        done: u64,
        /// Compressed bytes in all.
        total: u64,
    },
    /// A layer is in the store.
    LayerDone {
        /// Its blob.
        layer: &'a Digest,
    },
    /// Something failed in a way that may pass; it is tried again after `wait`.
    Retrying {
        /// What.
        what: &'a str,
        /// Why it failed.
        reason: &'a str,
        /// The pause before the next try.
        wait: Duration,
    },
    /// The image is in the store.
    Done {
        /// The image.
        name: &'a str,
        /// Digest of its manifest.
        digest: &'a Digest,
    },
}

/// Receives events, from several threads at once.
pub trait Progress: Send + Sync {
    /// Called for each event; should return soon.
    fn event(&self, event: Event<'_>);
}

/// Tells nobody.
#[derive(Debug, Clone, Copy)]
pub struct Silent;

impl Progress for Silent {
    fn event(&self, _: Event<'_>) {}
}

impl<F: Fn(Event<'_>) + Send + Sync> Progress for F {
    fn event(&self, event: Event<'_>) {
        self(event);
    }
}
