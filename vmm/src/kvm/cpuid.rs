//! What CPUID tells the guest: what KVM supports, with the topology of this machine and the bits that KVM leaves to the
//! VMM. Pure: no ioctl here.
//!
//! Topology: one package, one thread a core, APIC id = vCPU index.

use kvm_bindings::{KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};

/// What the entries are made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Processor {
    /// Index of the vCPU, which is its APIC id.
    pub id: u8,
    /// vCPUs of the machine, 1 to 64.
    pub count: u8,
    /// KVM emulates the APIC timer's TSC-deadline mode.
    pub tsc_deadline: bool,
}

impl Processor {
    /// Bits of an APIC id that tell cores apart.
    fn core_bits(self) -> u32 {
        u32::from(self.count).next_power_of_two().trailing_zeros()
    }
}

/// Replaces the bits of `mask << shift` by `value`.
fn set(register: &mut u32, shift: u32, mask: u32, value: u32) {
    *register = (*register & !(mask << shift)) | ((value & mask) << shift);
}

/// CPUID entries of one processor from those of KVM_GET_SUPPORTED_CPUID.
#[must_use]
pub fn entries(supported: &[kvm_cpuid_entry2], processor: Processor) -> Vec<kvm_cpuid_entry2> {
    let id = u32::from(processor.id);
    let others = u32::from(processor.count) - 1;
    let highest_basic = supported
        .iter()
        .find(|e| e.function == 0)
        .map_or(0, |e| e.eax);
    let mut result: Vec<_> = supported
        .iter()
        // Extended topologies of the host's processor; leaf 0xb below says it all.
        .filter(|e| !matches!(e.function, 0xb | 0x1f | 0x8000_0026))
        .copied()
        .collect();
    for entry in &mut result {
        match entry.function {
            0x1 => {
                set(&mut entry.ebx, 24, 0xff, id);
                set(
                    &mut entry.ebx,
                    16,
                    0xff,
                    u32::from(processor.count).next_power_of_two(),
                );
                // Hyper-threading means: the count of logical processors above is valid.
                set(&mut entry.edx, 28, 1, u32::from(processor.count > 1));
                set(&mut entry.ecx, 24, 1, u32::from(processor.tsc_deadline));
                // The hypervisor bit: without it the guest does not look for kvm-clock.
                set(&mut entry.ecx, 31, 1, 1);
            }
            // Caches (Intel): level 1 and 2 belong to a core, level 3 to the package.
            0x4 => {
                let level = (entry.eax >> 5) & 7;
                set(
                    &mut entry.eax,
                    14,
                    0xfff,
                    if level >= 3 { others } else { 0 },
                );
                set(&mut entry.eax, 26, 0x3f, others);
            }
            // ARAT: the APIC timer never stops, so the guest needs no other timer.
            0x6 => {
                *entry = kvm_cpuid_entry2 {
                    eax: 1 << 2,
                    ebx: 0,
                    ecx: 0,
                    edx: 0,
                    ..*entry
                }
            }
            // Performance counters (Intel, AMD) are not virtualised.
            0xa | 0x8000_0022 => {
                (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0);
            }
            0x8000_0001 => {
                // PerfCtrExtCore, PerfCtrExtNB, PerfCtrExtLLC.
                entry.ecx &= !(1 << 23 | 1 << 24 | 1 << 28);
            }
            // Size identifiers (AMD).
            0x8000_0008 => {
                set(&mut entry.ecx, 0, 0xff, others);
                set(&mut entry.ecx, 12, 0xf, processor.core_bits());
            }
            // Caches (AMD).
            0x8000_001d => {
                let level = (entry.eax >> 5) & 7;
                set(
                    &mut entry.eax,
                    14,
                    0xfff,
                    if level >= 3 { others } else { 0 },
                );
            }
            // Extended APIC id, core and node (AMD).
            0x8000_001e => {
                entry.eax = id;
                entry.ebx = id & 0xff;
                entry.ecx = 0;
                entry.edx = 0;
            }
            _ => {}
        }
    }
    if highest_basic >= 0xb {
        result.extend(extended_topology(processor));
    }
    if highest_basic >= 6 && !result.iter().any(|e| e.function == 6) {
        result.push(kvm_cpuid_entry2 {
            function: 6,
            eax: 1 << 2,
            ..Default::default()
        });
    }
    result
}

/// Leaf 0xb: subleaf 0 threads of a core, 1 cores of the package, 2 the end.
fn extended_topology(processor: Processor) -> [kvm_cpuid_entry2; 3] {
    let level = |index, shift, count, kind: u32| kvm_cpuid_entry2 {
        function: 0xb,
        index,
        flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
        eax: shift,
        ebx: count,
        ecx: kind << 8 | index,
        edx: u32::from(processor.id),
        ..Default::default()
    };
    [
        level(0, 0, 1, 1),
        level(1, processor.core_bits(), u32::from(processor.count), 2),
        level(2, 0, 0, 0),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn supported() -> Vec<kvm_cpuid_entry2> {
        let leaf = |function, eax| kvm_cpuid_entry2 {
            function,
            eax,
            ebx: 0xffff_ffff,
            ecx: 0x7fff_ffff,
            edx: 0xffff_ffff,
            ..Default::default()
        };
        vec![
            leaf(0, 0xd),
            leaf(1, 0x800f12),
            leaf(4, 3 << 5),
            leaf(6, 0),
            leaf(0xa, 0x0730_0402),
            leaf(0xb, 0),
            leaf(0x1f, 0),
            leaf(0x8000_0008, 0),
            leaf(0x8000_001e, 99),
        ]
    }

    fn of(id: u8, count: u8) -> Vec<kvm_cpuid_entry2> {
        entries(
            &supported(),
            Processor {
                id,
                count,
                tsc_deadline: true,
            },
        )
    }

    fn leaf(entries: &[kvm_cpuid_entry2], function: u32, index: u32) -> kvm_cpuid_entry2 {
        *entries
            .iter()
            .find(|e| e.function == function && e.index == index)
            .unwrap()
    }

    #[test]
    fn leaf_1_carries_apic_id_hypervisor_bit_and_deadline_timer() {
        let all = of(3, 4);
        let one = leaf(&all, 1, 0);
        assert_eq!(one.ebx >> 24, 3);
        assert_eq!(one.ebx >> 16 & 0xff, 4);
        assert_eq!(one.ecx >> 31, 1);
        assert_eq!(one.ecx >> 24 & 1, 1);
        assert_eq!(one.edx >> 28 & 1, 1);
        assert_eq!(leaf(&of(0, 1), 1, 0).edx >> 28 & 1, 0);
    }

    #[test]
    fn topology_says_one_thread_a_core_in_one_package() {
        let all = of(5, 6);
        assert_eq!(leaf(&all, 0xb, 0).ebx, 1);
        let cores = leaf(&all, 0xb, 1);
        assert_eq!(
            (cores.eax, cores.ebx, cores.ecx, cores.edx),
            (3, 6, 0x201, 5)
        );
        assert_eq!(leaf(&all, 0xb, 2).ebx, 0);
        assert!(!all.iter().any(|e| e.function == 0x1f));
        assert_eq!(all.iter().filter(|e| e.function == 0xb).count(), 3);
        assert_eq!(leaf(&all, 0x8000_0008, 0).ecx & 0xf0ff, 0x3005);
        assert_eq!(leaf(&all, 0x8000_001e, 0).eax, 5);
        assert_eq!(leaf(&all, 4, 0).eax >> 14 & 0xfff, 5);
    }

    #[test]
    fn performance_counters_are_hidden_and_the_apic_timer_always_runs() {
        let all = of(0, 1);
        assert_eq!(leaf(&all, 0xa, 0).eax, 0);
        assert_eq!(leaf(&all, 6, 0).eax, 4);
    }
}
