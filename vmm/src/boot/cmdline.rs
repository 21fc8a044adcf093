//! The kernel command line: what the VMM needs of the guest, then the virtio windows, then what the caller adds.

use crate::layout;

/// Options that any guest of this VMM gets.
///
/// The console stays silent below KERN_EMERG, because each character costs an exit; a panic raises the level to
/// everything, so that its dump is complete. `reboot=k` makes the guest end with a keyboard controller reset, which is
/// answered at once, and `panic=-1` makes a panic end in it without delay. The rest saves waiting and probing for what this
/// machine does not have.
const FIXED: &str = "console=ttyS0 quiet loglevel=1 reboot=k panic=-1 tsc=reliable no_timer_check \
                     8250.nr_uarts=1 dummy.numdummies=0";

/// Buckets for each MiB of memory in the kernel's tables of names and of inodes: an eighth and a quarter of its own
/// choice, which is made for machines that serve files for months. A pod has few, and each touches another page of them.
const BUCKETS_PER_MIB: u64 = 16;

/// The line is longer than the kernel reads.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the kernel command line has {length} bytes and the kernel reads {}; shorten extra_cmdline or use fewer devices",
    layout::CMDLINE_BYTES - 1
)]
pub struct CmdlineTooLong {
    /// Bytes without NUL.
    pub length: usize,
}

/// The command line of a machine of `memory_mib` with `devices` virtio-mmio windows and an initramfs of so many bytes.
///
/// # Errors
/// It is longer than the kernel reads.
pub fn compose(
    memory_mib: u64,
    initramfs: Option<u64>,
    devices: usize,
    extra: &str,
) -> Result<String, CmdlineTooLong> {
    use std::fmt::Write;
    let mut line = FIXED.to_owned();
    let buckets = memory_mib.saturating_mul(BUCKETS_PER_MIB);
    // Writing to a String cannot fail.
    let _ = write!(line, " dhash_entries={buckets} ihash_entries={buckets}");
    if let Some(bytes) = initramfs {
        let _ = write!(line, " initramfs_rom={bytes}@{:#x}", layout::INITRAMFS);
    }
    for index in 0..devices {
        let _ = write!(
            line,
            " virtio_mmio.device=4K@{:#x}:{}",
            layout::window(index),
            layout::irq(index)
        );
    }
    if !extra.is_empty() {
        line.push(' ');
        line.push_str(extra);
    }
    if line.len() >= layout::CMDLINE_BYTES {
        return Err(CmdlineTooLong { length: line.len() });
    }
    Ok(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cmdline_names_each_window_and_ends_with_the_extra_options() {
        let line = compose(256, Some(4711), 2, "vmpod.debug").unwrap();
        assert!(line.contains(
            " virtio_mmio.device=4K@0xd0000000:5 virtio_mmio.device=4K@0xd0001000:6 vmpod.debug"
        ));
        assert!(line.contains(" initramfs_rom=4711@0xe0000000 "));
        assert!(line.ends_with(" vmpod.debug"));
        assert!(line.contains(" dhash_entries=4096 ihash_entries=4096 "));
    }

    #[test]
    fn cmdline_beyond_the_kernels_bound_is_refused() {
        assert!(compose(256, None, 1, &"x".repeat(2048)).is_err());
    }
}
