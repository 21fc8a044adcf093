//! The state that a vCPU starts in: 64-bit mode at the kernel's entry for the first, waiting for INIT for the others
//! (which is KVM's default).

use kvm_bindings::{
    CpuId, Msrs, kvm_dtable, kvm_fpu, kvm_lapic_state, kvm_msr_entry, kvm_regs, kvm_segment,
};
use kvm_ioctls::VcpuFd;

use super::KvmError;
use crate::{boot, layout};

const MSR_MISC_ENABLE: u32 = 0x1a0;
const MISC_ENABLE_FAST_STRING: u64 = 1;
const MSR_MTRR_DEFAULT_TYPE: u32 = 0x2ff;
/// MTRRs on, default write-back.
const MTRR_WRITE_BACK: u64 = 1 << 11 | 6;

const CR0_PE: u64 = 1;
const CR0_ET: u64 = 1 << 4;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;

/// Offsets of the local vector table's LINT0 and LINT1, and delivery modes (Intel SDM volume 3, 12.5.1).
const APIC_LVT0: usize = 0x350;
const APIC_LVT1: usize = 0x360;
const MODE_NMI: u32 = 4;
const MODE_EXTINT: u32 = 7;

/// Sets what all vCPUs share: CPUID, MSRs, floating point and the local interrupt pins.
///
/// # Errors
/// KVM refuses one of them.
pub fn initialise(vcpu: &VcpuFd, cpuid: &CpuId) -> Result<(), KvmError> {
    vcpu.set_cpuid2(cpuid)
        .map_err(KvmError::ioctl("KVM_SET_CPUID2"))?;
    let entry = |index, data| kvm_msr_entry {
        index,
        data,
        ..Default::default()
    };
    let list = [
        entry(MSR_MISC_ENABLE, MISC_ENABLE_FAST_STRING),
        entry(MSR_MTRR_DEFAULT_TYPE, MTRR_WRITE_BACK),
    ];
    let msrs = Msrs::from_entries(&list).map_err(|_| KvmError::TooManyEntries { what: "MSRs" })?;
    let set = vcpu
        .set_msrs(&msrs)
        .map_err(KvmError::ioctl("KVM_SET_MSRS"))?;
    if let Some(refused) = list.get(set) {
        return Err(KvmError::Msr {
            index: refused.index,
        });
    }
    vcpu.set_fpu(&kvm_fpu {
        fcw: 0x37f,
        mxcsr: 0x1f80,
        ..Default::default()
    })
    .map_err(KvmError::ioctl("KVM_SET_FPU"))?;
    let mut lapic = vcpu.get_lapic().map_err(KvmError::ioctl("KVM_GET_LAPIC"))?;
    set_delivery_mode(&mut lapic, APIC_LVT0, MODE_EXTINT);
    set_delivery_mode(&mut lapic, APIC_LVT1, MODE_NMI);
    vcpu.set_lapic(&lapic)
        .map_err(KvmError::ioctl("KVM_SET_LAPIC"))
}

fn set_delivery_mode(lapic: &mut kvm_lapic_state, register: usize, mode: u32) {
    let mut bytes = [0u8; 4];
    for (byte, from) in bytes.iter_mut().zip(lapic.regs.iter().skip(register)) {
        *byte = *from as u8;
    }
    let value = (u32::from_le_bytes(bytes) & !0x700) | mode << 8;
    for (to, byte) in lapic
        .regs
        .iter_mut()
        .skip(register)
        .zip(value.to_le_bytes())
    {
        *to = byte as _;
    }
}

/// Puts the boot processor into 64-bit mode at `entry`, with the zero page in RSI (64-bit boot protocol).
///
/// # Errors
/// KVM refuses the registers.
pub fn enter_kernel(vcpu: &VcpuFd, entry: u64) -> Result<(), KvmError> {
    vcpu.set_regs(&kvm_regs {
        rflags: 2,
        rip: entry,
        rsp: layout::BOOT_STACK,
        rbp: layout::BOOT_STACK,
        rsi: layout::ZERO_PAGE,
        ..Default::default()
    })
    .map_err(KvmError::ioctl("KVM_SET_REGS"))?;
    let mut sregs = vcpu.get_sregs().map_err(KvmError::ioctl("KVM_GET_SREGS"))?;
    let code = segment(2);
    let data = segment(3);
    sregs.cs = code;
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.tr = segment(4);
    sregs.gdt = kvm_dtable {
        base: layout::GDT,
        // 39
        limit: (boot::GDT.len() * 8 - 1) as u16,
        ..Default::default()
    };
    sregs.idt = kvm_dtable {
        base: layout::IDT,
        limit: 7,
        ..Default::default()
    };
    sregs.cr3 = layout::PAGE_TABLES;
    sregs.cr4 |= CR4_PAE;
    sregs.cr0 |= CR0_PE | CR0_ET | CR0_PG;
    sregs.efer |= EFER_LME | EFER_LMA;
    vcpu.set_sregs(&sregs)
        .map_err(KvmError::ioctl("KVM_SET_SREGS"))
}

/// The cached form of a flat descriptor of [`boot::GDT`].
fn segment(index: u16) -> kvm_segment {
    let descriptor = boot::GDT.get(usize::from(index)).copied().unwrap_or(0);
    let bit = |n: u32| (descriptor >> n & 1) as u8;
    kvm_segment {
        base: 0,
        // All have granularity 4 KiB and limit 0xfffff.
        limit: 0xffff_ffff,
        selector: index * 8,
        type_: (descriptor >> 40 & 0xf) as u8,
        s: bit(44),
        dpl: (descriptor >> 45 & 3) as u8,
        present: bit(47),
        avl: bit(52),
        l: bit(53),
        db: bit(54),
        g: bit(55),
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_are_flat_and_of_their_kind() {
        let code = segment(2);
        assert_eq!(
            (code.selector, code.type_, code.s, code.l, code.db),
            (0x10, 11, 1, 1, 0)
        );
        let data = segment(3);
        assert_eq!(
            (data.selector, data.type_, data.s, data.l, data.db),
            (0x18, 3, 1, 0, 1)
        );
        let tss = segment(4);
        assert_eq!(
            (tss.selector, tss.type_, tss.s, tss.present),
            (0x20, 11, 0, 1)
        );
    }

    #[test]
    fn delivery_mode_replaces_only_its_bits() {
        let mut lapic = kvm_lapic_state::default();
        lapic.regs[APIC_LVT0 + 2] = 1;
        set_delivery_mode(&mut lapic, APIC_LVT0, MODE_EXTINT);
        assert_eq!(lapic.regs[APIC_LVT0 + 1], 7);
        assert_eq!(lapic.regs[APIC_LVT0 + 2], 1);
    }
}
