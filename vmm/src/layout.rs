//! Where things lie in the guest's physical address space. Constants only.
//!
//! ```text
//! 0x0000_0500  boot GDT                     0x0000_7000  zero page (boot_params)
//! 0x0000_9000  boot page tables             0x0002_0000  kernel command line
//! 0x0009_f000  MP table, pointer at 0x9fc00 0x0010_0000  RAM: kernel image where its ELF header wants it
//! LOW_RAM_END  end of RAM below 4 GiB       MMIO_BASE    virtio-mmio windows, 4 KiB each
//! INITRAMFS    initramfs, read-only
//! 0xfec0_0000  IO-APIC                      0xfee0_0000  local APICs
//! 0xfffb_c000  KVM's identity map and TSS   4 GiB        the rest of RAM
//! ```

/// Boot GDT.
pub const GDT: u64 = 0x500;
/// Empty boot IDT.
pub const IDT: u64 = 0x520;
/// The zero page: `struct boot_params` (Linux x86 boot protocol).
pub const ZERO_PAGE: u64 = 0x7000;
/// Initial stack pointer; the kernel sets up its own at once.
pub const BOOT_STACK: u64 = 0x8ff0;
/// PML4, followed by a PDPT and a page directory, one page each.
pub const PAGE_TABLES: u64 = 0x9000;
/// Kernel command line.
pub const CMDLINE: u64 = 0x2_0000;
/// Most bytes of a command line with its NUL: Linux x86's COMMAND_LINE_SIZE.
pub const CMDLINE_BYTES: usize = 2048;
/// End of conventional memory, where the MP configuration table begins. Linux reserves from here to 1 MiB when the BIOS
/// data area names nothing else.
pub const MP_TABLE: u64 = 0x9_f000;
/// MP floating pointer: the last KiB below 640 KiB, which is scanned before the larger BIOS area.
pub const MP_POINTER: u64 = 0x9_fc00;
/// RAM that the kernel may use begins again here.
pub const HIGH_MEMORY: u64 = 0x10_0000;
/// Where the guest's kernel takes its pages from first, start and end: what boots and starts a container there has used
/// nearly all of it (seen with `perf trace -e kvm:kvm_page_fault`). With RAM above 4 GiB it takes that first.
pub const FIRST_ALLOCATIONS: (u64, u64) = (8 << 20, 12 << 20);
/// RAM below 4 GiB ends here at the latest; the rest of it follows at [`RAM_ABOVE`].
pub const LOW_RAM_END: u64 = 0xd000_0000;
/// RAM above the hole.
pub const RAM_ABOVE: u64 = 0x1_0000_0000;
/// First virtio-mmio window.
pub const MMIO_BASE: u64 = 0xd000_0000;
/// Bytes of a virtio-mmio window.
pub const MMIO_WINDOW: u64 = 0x1000;
/// The initramfs, beside RAM: the guest reads it where it lies. The beginning of a huge page.
pub const INITRAMFS: u64 = 0xe000_0000;
/// It ends here at the latest.
pub const INITRAMFS_END: u64 = IO_APIC as u64;
/// IO-APIC registers, where KVM's in-kernel IO-APIC answers.
pub const IO_APIC: u32 = 0xfec0_0000;
/// Local APIC registers.
pub const LOCAL_APIC: u32 = 0xfee0_0000;
/// One page for KVM's identity map (Intel without unrestricted guest).
pub const IDENTITY_MAP: u64 = 0xfffb_c000;
/// Three pages for KVM's TSS (the same).
pub const TSS: usize = 0xfffb_d000;

/// First I/O port of the serial console (COM1).
pub const SERIAL_PORT: u16 = 0x3f8;
/// Interrupt line of the serial console.
pub const SERIAL_IRQ: u32 = 4;
/// Command and status port of the keyboard controller, which a Linux guest resets the machine with.
pub const KEYBOARD_PORT: u16 = 0x64;
/// I/O ports that take notifications of virtio devices, four bytes for each.
pub const NOTIFY_PORTS: u16 = 0xc000;
/// First interrupt line for virtio devices.
pub const FIRST_IRQ: u32 = 5;
/// Last interrupt line: KVM's IO-APIC has 24 pins.
pub const LAST_IRQ: u32 = 23;

/// Interrupt line of the virtio device at `index`. Beyond 19 devices lines are shared, which Linux's driver allows.
#[must_use]
pub fn irq(index: usize) -> u32 {
    let lines = (LAST_IRQ - FIRST_IRQ + 1) as usize;
    // The remainder is below 19.
    FIRST_IRQ + (index % lines) as u32
}

/// Address of the virtio-mmio window of the device at `index`.
#[must_use]
pub fn window(index: usize) -> u64 {
    MMIO_BASE + index as u64 * MMIO_WINDOW
}

/// I/O port that takes the notifications of the virtio device at `index`; `None` beyond the ports that there are.
#[must_use]
pub fn notify_port(index: usize) -> Option<u16> {
    u16::try_from(index)
        .ok()?
        .checked_mul(4)?
        .checked_add(NOTIFY_PORTS)
}
