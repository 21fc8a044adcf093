//! What KVM knows of a machine that stands still, taken out for a snapshot and put into another machine.
//!
//! Used by the control thread. The order of the ioctls is KVM's own requirement: reading the run state settles pending
//! INITs, the local APIC's mode comes with the system registers, and the TSC deadline counts only for an APIC that is in
//! that mode and a TSC that is right (Documentation/virt/kvm/api.rst).

use kvm_bindings::{
    CpuId, KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, Msrs, kvm_clock_data,
    kvm_cpuid_entry2, kvm_debugregs, kvm_irqchip, kvm_lapic_state, kvm_mp_state, kvm_msr_entry,
    kvm_regs, kvm_sregs, kvm_vcpu_events, kvm_xcrs, kvm_xsave,
};
use kvm_ioctls::{VcpuFd, VmFd};

use super::KvmError;

const MSR_TSC: u32 = 0x10;
const MSR_TSC_DEADLINE: u32 = 0x6e0;
/// Memory type range registers, which KVM's own list leaves out.
const MTRRS: [u32; 28] = [
    0x200, 0x201, 0x202, 0x203, 0x204, 0x205, 0x206, 0x207, 0x208, 0x209, 0x20a, 0x20b, 0x20c,
    0x20d, 0x20e, 0x20f, 0x250, 0x258, 0x259, 0x268, 0x269, 0x26a, 0x26b, 0x26c, 0x26d, 0x26e,
    0x26f, 0x2ff,
];

/// Offset of the local vector table's timer entry, and its mode "TSC deadline" (Intel SDM volume 3, 12.5.4).
const APIC_LVT_TIMER: usize = 0x320;
const TIMER_MODE: u32 = 3 << 17;
const TIMER_TSC_DEADLINE: u32 = 2 << 17;

/// The interrupt controllers that belong to the whole machine.
const CHIPS: [u32; 3] = [
    KVM_IRQCHIP_PIC_MASTER,
    KVM_IRQCHIP_PIC_SLAVE,
    KVM_IRQCHIP_IOAPIC,
];

/// What belongs to the whole machine.
#[derive(Clone)]
pub struct VmState {
    /// Interrupt controllers, as `CHIPS` orders them.
    pub chips: [kvm_irqchip; 3],
    /// kvm-clock.
    pub clock: kvm_clock_data,
}

/// One vCPU.
#[derive(Clone)]
pub struct VcpuState {
    /// What CPUID was set to.
    pub cpuid: Vec<kvm_cpuid_entry2>,
    /// Clock rate of the TSC.
    pub tsc_khz: u32,
    /// Running, halted, or waiting for a start.
    pub run_state: kvm_mp_state,
    /// General registers.
    pub regs: kvm_regs,
    /// Segments and control registers.
    pub sregs: kvm_sregs,
    /// Floating point and vector registers: the area of `struct kvm_xsave`.
    pub xsave: [u32; 1024],
    /// Extended control registers.
    pub xcrs: kvm_xcrs,
    /// Debug registers.
    pub debug: kvm_debugregs,
    /// Local APIC.
    pub lapic: kvm_lapic_state,
    /// Exceptions and interrupts under way.
    pub events: kvm_vcpu_events,
    /// Model-specific registers, in the order in which they are to be set.
    pub msrs: Vec<kvm_msr_entry>,
}

impl std::fmt::Debug for VmState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("VmState").finish_non_exhaustive()
    }
}

impl std::fmt::Debug for VcpuState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("VcpuState")
            .field("regs", &self.regs)
            .finish_non_exhaustive()
    }
}

impl VmState {
    /// Takes the state out of a machine whose vCPUs and devices stand still.
    ///
    /// # Errors
    /// KVM refuses.
    pub fn save(vm: &VmFd) -> Result<Self, KvmError> {
        let mut chips = [kvm_irqchip::default(); 3];
        for (chip, id) in chips.iter_mut().zip(CHIPS) {
            chip.chip_id = id;
            vm.get_irqchip(chip)
                .map_err(KvmError::ioctl("KVM_GET_IRQCHIP"))?;
        }
        let clock = vm.get_clock().map_err(KvmError::ioctl("KVM_GET_CLOCK"))?;
        Ok(Self { chips, clock })
    }

    /// Puts the state into a machine whose vCPUs exist. The guest's clock goes on from where it stood.
    ///
    /// # Errors
    /// KVM refuses.
    pub fn restore(&self, vm: &VmFd) -> Result<(), KvmError> {
        for (chip, id) in self.chips.iter().zip(CHIPS) {
            let chip = kvm_irqchip {
                chip_id: id,
                ..*chip
            };
            vm.set_irqchip(&chip)
                .map_err(KvmError::ioctl("KVM_SET_IRQCHIP"))?;
        }
        vm.set_clock(&kvm_clock_data {
            clock: self.clock.clock,
            ..Default::default()
        })
        .map_err(KvmError::ioctl("KVM_SET_CLOCK"))
    }
}

impl VcpuState {
    /// Takes the state out of a vCPU that stands still, with the registers of `indices` that it has. `cpuid` is what it
    /// was made with: KVM itself tells it with what changes at run time.
    ///
    /// # Errors
    /// KVM refuses.
    pub fn save(
        vcpu: &VcpuFd,
        cpuid: Vec<kvm_cpuid_entry2>,
        indices: &[u32],
    ) -> Result<Self, KvmError> {
        let run_state = vcpu
            .get_mp_state()
            .map_err(KvmError::ioctl("KVM_GET_MP_STATE"))?;
        let lapic = vcpu.get_lapic().map_err(KvmError::ioctl("KVM_GET_LAPIC"))?;
        let mut msrs = read_msrs(vcpu, indices)?;
        order(&mut msrs, &lapic);
        Ok(Self {
            cpuid,
            tsc_khz: vcpu
                .get_tsc_khz()
                .map_err(KvmError::ioctl("KVM_GET_TSC_KHZ"))?,
            run_state,
            regs: vcpu.get_regs().map_err(KvmError::ioctl("KVM_GET_REGS"))?,
            sregs: vcpu.get_sregs().map_err(KvmError::ioctl("KVM_GET_SREGS"))?,
            xsave: vcpu
                .get_xsave()
                .map_err(KvmError::ioctl("KVM_GET_XSAVE"))?
                .region,
            xcrs: vcpu.get_xcrs().map_err(KvmError::ioctl("KVM_GET_XCRS"))?,
            debug: vcpu
                .get_debug_regs()
                .map_err(KvmError::ioctl("KVM_GET_DEBUGREGS"))?,
            lapic,
            events: vcpu
                .get_vcpu_events()
                .map_err(KvmError::ioctl("KVM_GET_VCPU_EVENTS"))?,
            msrs,
        })
    }

    /// Puts the state into a fresh vCPU.
    ///
    /// # Errors
    /// KVM refuses, or the host's clock rate is another one.
    pub fn restore(&self, vcpu: &VcpuFd) -> Result<(), KvmError> {
        let cpuid = CpuId::from_entries(&self.cpuid).map_err(|_| KvmError::TooManyEntries {
            what: "CPUID entries",
        })?;
        vcpu.set_cpuid2(&cpuid)
            .map_err(KvmError::ioctl("KVM_SET_CPUID2"))?;
        let rate = vcpu
            .get_tsc_khz()
            .map_err(KvmError::ioctl("KVM_GET_TSC_KHZ"))?;
        if rate != self.tsc_khz {
            return Err(KvmError::ClockRate {
                saved: self.tsc_khz,
                now: rate,
            });
        }
        vcpu.set_sregs(&self.sregs)
            .map_err(KvmError::ioctl("KVM_SET_SREGS"))?;
        vcpu.set_regs(&self.regs)
            .map_err(KvmError::ioctl("KVM_SET_REGS"))?;
        let xsave = kvm_xsave {
            region: self.xsave,
            ..Default::default()
        };
        // SAFETY: the structure has the 4096 bytes that the ioctl reads; states that are larger belong to processor
        // features that a process has to ask for, which this one does not.
        unsafe { vcpu.set_xsave(&xsave) }.map_err(KvmError::ioctl("KVM_SET_XSAVE"))?;
        vcpu.set_xcrs(&self.xcrs)
            .map_err(KvmError::ioctl("KVM_SET_XCRS"))?;
        vcpu.set_debug_regs(&self.debug)
            .map_err(KvmError::ioctl("KVM_SET_DEBUGREGS"))?;
        vcpu.set_lapic(&self.lapic)
            .map_err(KvmError::ioctl("KVM_SET_LAPIC"))?;
        write_msrs(vcpu, &self.msrs)?;
        vcpu.set_mp_state(self.run_state)
            .map_err(KvmError::ioctl("KVM_SET_MP_STATE"))?;
        vcpu.set_vcpu_events(&self.events)
            .map_err(KvmError::ioctl("KVM_SET_VCPU_EVENTS"))
    }
}

/// Reads the registers of `indices`, and the MTRRs; those that this vCPU does not have are left out.
fn read_msrs(vcpu: &VcpuFd, indices: &[u32]) -> Result<Vec<kvm_msr_entry>, KvmError> {
    let mut wanted: Vec<kvm_msr_entry> = indices
        .iter()
        .chain(MTRRS.iter().filter(|mtrr| !indices.contains(mtrr)))
        .map(|&index| kvm_msr_entry {
            index,
            ..Default::default()
        })
        .collect();
    let mut found = Vec::with_capacity(wanted.len());
    while !wanted.is_empty() {
        let mut msrs =
            Msrs::from_entries(&wanted).map_err(|_| KvmError::TooManyEntries { what: "MSRs" })?;
        let read = vcpu
            .get_msrs(&mut msrs)
            .map_err(KvmError::ioctl("KVM_GET_MSRS"))?;
        found.extend(msrs.as_slice().iter().take(read));
        // KVM stops at the first one that it does not give.
        wanted.drain(..(read + 1).min(wanted.len()));
    }
    Ok(found)
}

/// Puts the TSC first and its deadline last. A deadline that has passed reads as zero although its interrupt is yet to
/// come: it becomes one that passes at once.
fn order(msrs: &mut [kvm_msr_entry], lapic: &kvm_lapic_state) {
    let tsc = msrs.iter().find(|m| m.index == MSR_TSC).map(|m| m.data);
    for msr in msrs.iter_mut() {
        if msr.index == MSR_TSC_DEADLINE && msr.data == 0 && counts_to_deadline(lapic) {
            msr.data = tsc.unwrap_or(0);
        }
    }
    msrs.sort_by_key(|msr| match msr.index {
        MSR_TSC => 0,
        MSR_TSC_DEADLINE => 2,
        _ => 1,
    });
}

fn counts_to_deadline(lapic: &kvm_lapic_state) -> bool {
    let mut bytes = [0u8; 4];
    for (byte, from) in bytes.iter_mut().zip(lapic.regs.iter().skip(APIC_LVT_TIMER)) {
        *byte = *from as u8;
    }
    u32::from_le_bytes(bytes) & TIMER_MODE == TIMER_TSC_DEADLINE
}

fn write_msrs(vcpu: &VcpuFd, msrs: &[kvm_msr_entry]) -> Result<(), KvmError> {
    let mut rest = msrs;
    while !rest.is_empty() {
        let chunk =
            Msrs::from_entries(rest).map_err(|_| KvmError::TooManyEntries { what: "MSRs" })?;
        let set = vcpu
            .set_msrs(&chunk)
            .map_err(KvmError::ioctl("KVM_SET_MSRS"))?;
        if let Some(refused) = rest.get(set) {
            // Some registers can be read and not be written; one that holds nothing need not be.
            if refused.data != 0 {
                return Err(KvmError::Msr {
                    index: refused.index,
                });
            }
        }
        rest = rest.get(set + 1..).unwrap_or_default();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn msr(index: u32, data: u64) -> kvm_msr_entry {
        kvm_msr_entry {
            index,
            data,
            ..Default::default()
        }
    }

    #[test]
    fn registers_are_ordered_around_the_tsc() {
        let mut lapic = kvm_lapic_state::default();
        let mut msrs = [msr(MSR_TSC_DEADLINE, 0), msr(0x174, 1), msr(MSR_TSC, 99)];
        order(&mut msrs, &lapic);
        let seen: Vec<_> = msrs.iter().map(|m| (m.index, m.data)).collect();
        assert_eq!(seen, [(MSR_TSC, 99), (0x174, 1), (MSR_TSC_DEADLINE, 0)]);
        // 2 << 17: a timer that waits for a deadline which has passed.
        lapic.regs[APIC_LVT_TIMER + 2] = 4;
        order(&mut msrs, &lapic);
        assert_eq!(msrs[2].data, 99);
    }
}
