//! The MP table that tells a guest without ACPI its processors, IO-APIC and interrupt lines
//! (Intel MultiProcessor Specification 1.4, chapter 4).

use vm_memory::{Bytes, GuestAddress, GuestMemoryError, GuestMemoryMmap};

use crate::layout;

const ENTRY_PROCESSOR: u8 = 0;
const ENTRY_BUS: u8 = 1;
const ENTRY_IO_APIC: u8 = 2;
const ENTRY_IO_INTERRUPT: u8 = 3;
const ENTRY_LOCAL_INTERRUPT: u8 = 4;

const PROCESSOR_ENABLED: u8 = 1;
const PROCESSOR_BOOT: u8 = 2;
/// Interrupt types (table 4-11).
const INTERRUPT_VECTORED: u8 = 0;
const INTERRUPT_NMI: u8 = 1;
const INTERRUPT_EXTINT: u8 = 3;

/// Version that KVM's local APIC reports; 0x10 and above is an integrated APIC.
const APIC_VERSION: u8 = 0x14;
const SPEC_REVISION: u8 = 4;
const ISA_BUS: u8 = 0;
const EVERY_APIC: u8 = 0xff;

/// The configuration table for `vcpus` processors with APIC ids from 0.
fn configuration(vcpus: u8) -> Vec<u8> {
    // An APIC id that no processor has.
    let io_apic = vcpus + 1;
    let mut entries: Vec<u8> = Vec::new();
    let mut count = 0u16;
    let mut push = |bytes: &[u8]| {
        entries.extend_from_slice(bytes);
        count += 1;
    };
    for id in 0..vcpus {
        let flags = PROCESSOR_ENABLED | if id == 0 { PROCESSOR_BOOT } else { 0 };
        let mut entry = [0u8; 20];
        entry[..4].copy_from_slice(&[ENTRY_PROCESSOR, id, APIC_VERSION, flags]);
        // Signature family 6 and the feature flags FPU and APIC; Linux asks CPUID for the truth.
        entry[4..8].copy_from_slice(&0x600u32.to_le_bytes());
        entry[8..12].copy_from_slice(&0x201u32.to_le_bytes());
        push(&entry);
    }
    push(&[ENTRY_BUS, ISA_BUS, b'I', b'S', b'A', b' ', b' ', b' ']);
    let mut entry = [ENTRY_IO_APIC, io_apic, 0x11, 1, 0, 0, 0, 0];
    entry[4..].copy_from_slice(&layout::IO_APIC.to_le_bytes());
    push(&entry);
    // Flags 0: polarity and trigger as the ISA bus has them, active high and edge.
    for line in 0..=layout::LAST_IRQ as u8 {
        push(&[
            ENTRY_IO_INTERRUPT,
            INTERRUPT_VECTORED,
            0,
            0,
            ISA_BUS,
            line,
            io_apic,
            line,
        ]);
    }
    push(&[
        ENTRY_LOCAL_INTERRUPT,
        INTERRUPT_EXTINT,
        0,
        0,
        ISA_BUS,
        0,
        0,
        0,
    ]);
    push(&[
        ENTRY_LOCAL_INTERRUPT,
        INTERRUPT_NMI,
        0,
        0,
        ISA_BUS,
        0,
        EVERY_APIC,
        1,
    ]);

    let mut table = vec![0u8; 44];
    let length = (table.len() + entries.len()) as u16;
    table[..4].copy_from_slice(b"PCMP");
    table[4..6].copy_from_slice(&length.to_le_bytes());
    table[6] = SPEC_REVISION;
    table[8..16].copy_from_slice(b"VMPOD   ");
    table[16..28].copy_from_slice(b"MICROVM     ");
    table[34..36].copy_from_slice(&count.to_le_bytes());
    table[36..40].copy_from_slice(&layout::LOCAL_APIC.to_le_bytes());
    table.extend(entries);
    table[7] = checksum(&table);
    table
}

/// The floating pointer structure (section 4.1).
fn pointer() -> [u8; 16] {
    let mut pointer = [0u8; 16];
    pointer[..4].copy_from_slice(b"_MP_");
    pointer[4..8].copy_from_slice(&(layout::MP_TABLE as u32).to_le_bytes());
    // Length in paragraphs.
    pointer[8] = 1;
    pointer[9] = SPEC_REVISION;
    pointer[10] = checksum(&pointer);
    pointer
}

/// The byte that makes the sum of all bytes zero.
fn checksum(bytes: &[u8]) -> u8 {
    bytes
        .iter()
        .fold(0u8, |sum, &b| sum.wrapping_add(b))
        .wrapping_neg()
}

/// Writes table and pointer for `vcpus` processors, 1 to 64.
///
/// # Errors
/// Guest memory ends below 640 KiB.
pub fn write(memory: &GuestMemoryMmap<()>, vcpus: u8) -> Result<(), GuestMemoryError> {
    memory.write_slice(&configuration(vcpus), GuestAddress(layout::MP_TABLE))?;
    memory.write_slice(&pointer(), GuestAddress(layout::MP_POINTER))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_of_each_size_sums_to_zero_and_stays_below_its_pointer() {
        for vcpus in [1, 4, 64] {
            let table = configuration(vcpus);
            assert_eq!(checksum(&table), 0);
            assert_eq!(u16::from_le_bytes([table[4], table[5]]), table.len() as u16);
            assert!(table.len() as u64 <= layout::MP_POINTER - layout::MP_TABLE);
            let count = u16::from_le_bytes([table[34], table[35]]);
            assert_eq!(usize::from(count), usize::from(vcpus) + 1 + 1 + 24 + 2);
        }
        assert_eq!(checksum(&pointer()), 0);
    }

    #[test]
    fn table_names_one_boot_processor() {
        let table = configuration(3);
        let flags: Vec<u8> = (0..3).map(|i| table[44 + i * 20 + 3]).collect();
        assert_eq!(flags, [3, 1, 1]);
    }
}
