//! Puts a Linux kernel into guest memory so that a processor in 64-bit mode can start it: image, initramfs, command
//! line, zero page, MP table, page tables and GDT (Documentation/arch/x86/boot.rst, "64-bit boot protocol").
//!
//! Runs once, on the control thread, before any vCPU exists. Does not know KVM: registers are `kvm::vcpu_state`'s.

pub mod cmdline;
pub mod kernel_image;
mod mp_table;

use linux_loader::loader::bootparam::{boot_e820_entry, boot_params};
use vm_memory::{
    Address, Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryError, GuestMemoryMmap,
    GuestMemoryRegion,
};
use vmpod_vmm_api::KernelConfig;

pub use self::cmdline::CmdlineTooLong;
pub use self::kernel_image::ImageError;
use self::kernel_image::Initramfs;
use crate::layout;
use crate::memory::{self, MemoryError};

const E820_RAM: u32 = 1;
const E820_RESERVED: u32 = 2;

/// GDT entries of the boot protocol: `__BOOT_CS` (0x10) is flat 64-bit code, `__BOOT_DS` (0x18) flat data; then a TSS.
pub const GDT: [u64; 5] = [
    0,
    0,
    0x00af_9b00_0000_ffff,
    0x00cf_9300_0000_ffff,
    0x008f_8b00_0000_ffff,
];

/// The guest could not be prepared.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// Kernel or initramfs.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// Command line.
    #[error(transparent)]
    Cmdline(#[from] CmdlineTooLong),
    /// Guest memory.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// A structure does not fit into guest memory.
    #[error("write {what} into guest memory")]
    Write {
        /// What was written.
        what: &'static str,
        /// Why not.
        #[source]
        source: GuestMemoryError,
    },
}

/// A guest that can be started.
#[derive(Debug)]
pub struct Prepared {
    /// The kernel's entry point, guest-physical.
    pub entry: u64,
    /// What the guest finds at [`layout::INITRAMFS`].
    pub initramfs: Option<Initramfs>,
}

/// Prepares the guest.
///
/// # Errors
/// The files cannot be loaded or do not fit.
pub fn prepare(
    memory: &GuestMemoryMmap<()>,
    kernel: &KernelConfig,
    vcpus: u8,
    devices: usize,
) -> Result<Prepared, BootError> {
    let write = |what| move |source| BootError::Write { what, source };
    let loaded = kernel_image::load_kernel(memory, &kernel.vmlinux)?;
    let initramfs = kernel
        .initramfs
        .as_deref()
        .map(kernel_image::map_initramfs)
        .transpose()?
        .flatten();
    let last = memory.last_addr();
    let top = last.checked_add(1).unwrap_or(last);
    memory::expect_early_allocations(memory, top)?;
    let (start, end) = layout::FIRST_ALLOCATIONS;
    memory::expect_use(memory, GuestAddress(start), GuestAddress(end))?;
    let mib = memory::bytes(memory) >> 20;
    let mut line = cmdline::compose(
        mib,
        initramfs.as_ref().map(|image| image.size),
        devices,
        &kernel.extra_cmdline,
    )?
    .into_bytes();
    line.push(0);
    memory
        .write_slice(&line, GuestAddress(layout::CMDLINE))
        .map_err(write("the command line"))?;
    memory
        .write_obj(
            zero_page(memory, line.len()),
            GuestAddress(layout::ZERO_PAGE),
        )
        .map_err(write("the zero page"))?;
    mp_table::write(memory, vcpus).map_err(write("the MP table"))?;
    for (i, descriptor) in GDT.iter().enumerate() {
        memory
            .write_obj(*descriptor, GuestAddress(layout::GDT + i as u64 * 8))
            .map_err(write("the GDT"))?;
    }
    page_tables(memory).map_err(write("the page tables"))?;
    Ok(Prepared {
        entry: loaded.entry,
        initramfs,
    })
}

fn zero_page(memory: &GuestMemoryMmap<()>, cmdline_bytes: usize) -> boot_params {
    let mut params = boot_params::default();
    params.hdr.boot_flag = 0xaa55;
    // "HdrS"
    params.hdr.header = 0x5372_6448;
    // A boot loader without a number of its own.
    params.hdr.type_of_loader = 0xff;
    params.hdr.kernel_alignment = 0x20_0000;
    // These lie below 4 GiB by layout; the command line is at most 2048 bytes.
    params.hdr.cmd_line_ptr = layout::CMDLINE as u32;
    params.hdr.cmdline_size = cmdline_bytes as u32;
    let map = e820(memory);
    // At most four entries.
    params.e820_entries = map.len() as u8;
    let mut table = params.e820_table;
    for (slot, entry) in table.iter_mut().zip(map) {
        *slot = entry;
    }
    params.e820_table = table;
    params
}

fn e820(memory: &GuestMemoryMmap<()>) -> Vec<boot_e820_entry> {
    let entry = |addr, end: u64, kind| boot_e820_entry {
        addr,
        size: end - addr,
        r#type: kind,
    };
    let mut map = vec![
        entry(0, layout::MP_TABLE, E820_RAM),
        entry(layout::MP_TABLE, layout::HIGH_MEMORY, E820_RESERVED),
    ];
    for region in memory.iter() {
        let start = region.start_addr().raw_value();
        map.push(entry(
            start.max(layout::HIGH_MEMORY),
            start + region.len(),
            E820_RAM,
        ));
    }
    map
}

/// Identity-maps the first GiB with 2 MiB pages, which covers everything the kernel's entry code looks at.
fn page_tables(memory: &GuestMemoryMmap<()>) -> Result<(), GuestMemoryError> {
    const PRESENT_WRITABLE: u64 = 3;
    const LARGE: u64 = 1 << 7;
    let pdpt = layout::PAGE_TABLES + 0x1000;
    let directory = layout::PAGE_TABLES + 0x2000;
    memory.write_obj(pdpt | PRESENT_WRITABLE, GuestAddress(layout::PAGE_TABLES))?;
    memory.write_obj(directory | PRESENT_WRITABLE, GuestAddress(pdpt))?;
    let mut entries = Vec::with_capacity(4096);
    for i in 0..512u64 {
        entries.extend(((i << 21) | PRESENT_WRITABLE | LARGE).to_le_bytes());
    }
    memory.write_slice(&entries, GuestAddress(directory))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::allocate;

    fn map(mib: u64) -> Vec<(u64, u64, u32)> {
        e820(&allocate(mib).unwrap())
            .into_iter()
            .map(|e| (e.addr, e.size, e.r#type))
            .collect()
    }

    #[test]
    fn memory_map_covers_ram_on_both_sides_of_the_hole() {
        assert_eq!(
            map(64),
            [
                (0, 0x9_f000, 1),
                (0x9_f000, 0x6_1000, 2),
                (0x10_0000, (64 << 20) - 0x10_0000, 1)
            ]
        );
        let large = map(6144);
        assert_eq!(large[2], (0x10_0000, 0xd000_0000 - 0x10_0000, 1));
        assert_eq!(large[3], (1 << 32, (6144 << 20) - 0xd000_0000, 1));
    }

    #[test]
    fn page_tables_map_an_address_to_itself() {
        let memory = allocate(64).unwrap();
        page_tables(&memory).unwrap();
        let read = |at: u64| memory.read_obj::<u64>(GuestAddress(at)).unwrap();
        let address = 0x123_4567u64;
        let mut table = layout::PAGE_TABLES;
        for shift in [39, 30] {
            table = read(table + ((address >> shift) & 511) * 8) & !0xfff;
        }
        let entry = read(table + ((address >> 21) & 511) * 8);
        assert_eq!(entry & 0xff, 0x83);
        assert_eq!((entry & !0x1f_ffff) | (address & 0x1f_ffff), address);
    }

    #[test]
    fn zero_page_points_to_the_command_line() {
        let hdr = zero_page(&allocate(64).unwrap(), 17).hdr;
        let (line, size) = (hdr.cmd_line_ptr, hdr.cmdline_size);
        assert_eq!((line, size), (0x2_0000, 17));
    }
}
