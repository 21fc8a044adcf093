//! The machine as KVM has it: the VM with its interrupt controllers, memory slots, and vCPUs with their threads.
//!
//! Owned by the control thread; each vCPU descriptor moves into its thread. Does not know devices: they are reached
//! through the buses of `machine`.

pub mod cpuid;
pub mod exits;
pub mod run_gate;
pub mod saved;
pub mod vcpu_state;
pub mod vcpu_thread;

use std::os::fd::AsRawFd;

use kvm_bindings::{
    CpuId, KVM_MAX_CPUID_ENTRIES, KVM_MEM_READONLY, kvm_cpuid_entry2, kvm_userspace_memory_region,
};
use kvm_ioctls::{Cap, IoEventAddress, Kvm, VcpuFd, VmFd};
use vm_memory::{Address, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};
use vmm_sys_util::errno;
use vmm_sys_util::eventfd::EventFd;

use self::saved::{VcpuState, VmState};
use crate::boot::kernel_image::Initramfs;
use crate::virtio::GuestMemory;
use crate::{layout, memory};

/// The only version of the interface there has been since Linux 2.6.22.
const API_VERSION: i32 = 12;

/// KVM cannot do what the machine needs.
#[derive(Debug, thiserror::Error)]
pub enum KvmError {
    /// `/dev/kvm` cannot be opened.
    #[error(
        "open /dev/kvm; the host needs hardware virtualisation with the kvm_intel or kvm_amd module loaded, and this process read and write access"
    )]
    Open(#[source] errno::Error),
    /// Another interface.
    #[error("KVM has API version {0} instead of 12; the host's KVM is not Linux's")]
    ApiVersion(i32),
    /// A capability is missing.
    #[error("the host's KVM lacks {0}; a newer host kernel has it")]
    Missing(&'static str),
    /// More vCPUs than the host allows.
    #[error("the machine has {asked} vCPUs and the host's KVM allows {limit}")]
    TooManyVcpus {
        /// vCPUs asked for.
        asked: u8,
        /// KVM_CAP_MAX_VCPUS.
        limit: usize,
    },
    /// An ioctl failed.
    #[error("ioctl {what}")]
    Ioctl {
        /// Name of the ioctl.
        what: &'static str,
        /// Why.
        #[source]
        source: errno::Error,
    },
    /// A model-specific register was refused.
    #[error("KVM does not take a value for MSR {index:#x}")]
    Msr {
        /// Register.
        index: u32,
    },
    /// A saved machine ran at another clock rate.
    #[error(
        "the saved machine's TSC ran at {saved} kHz and this host's runs at {now} kHz; it was saved on another host"
    )]
    ClockRate {
        /// kHz in the saved state.
        saved: u32,
        /// kHz that KVM gives here.
        now: u32,
    },
    /// A saved machine had another processor.
    #[error(
        "the saved machine has seen another processor than this host's KVM gives; it was saved on another host"
    )]
    OtherProcessor,
    /// A list is longer than its type allows.
    #[error("too many {what} for one ioctl")]
    TooManyEntries {
        /// What is listed.
        what: &'static str,
    },
    /// Guest memory has no host address.
    #[error("find the host address of guest memory")]
    Memory(#[source] vm_memory::GuestMemoryError),
}

impl KvmError {
    /// For `map_err` behind an ioctl.
    pub(crate) fn ioctl(what: &'static str) -> impl FnOnce(errno::Error) -> Self {
        move |source| Self::Ioctl { what, source }
    }
}

/// A KVM virtual machine.
#[derive(Debug)]
pub struct Vm {
    // The slots of `fd` point into `memory` and `initramfs`, so they are kept at least as long: fields drop in order.
    fd: VmFd,
    memory: GuestMemory,
    initramfs: Option<Initramfs>,
    supported: CpuId,
    tsc_deadline: bool,
    /// Registers that make up a vCPU's state; asked for only when a snapshot is to be taken.
    msr_indices: Vec<u32>,
}

impl Vm {
    /// A machine with interrupt controllers and `memory`, without vCPUs; it reads `initramfs` at [`layout::INITRAMFS`].
    ///
    /// No PIT: the guest has kvm-clock and the APIC timer, and a PIT that ticks costs exits.
    ///
    /// `savable` says that the vCPUs' state will be taken out.
    ///
    /// # Errors
    /// KVM is missing, too old, or refuses.
    pub fn new(
        memory: GuestMemory,
        initramfs: Option<Initramfs>,
        vcpus: u8,
        savable: bool,
    ) -> Result<Self, KvmError> {
        let kvm = Kvm::new().map_err(KvmError::Open)?;
        let version = kvm.get_api_version();
        if version != API_VERSION {
            return Err(KvmError::ApiVersion(version));
        }
        for (cap, name) in [
            (Cap::Irqchip, "KVM_CAP_IRQCHIP"),
            (Cap::Ioeventfd, "KVM_CAP_IOEVENTFD"),
            (Cap::Irqfd, "KVM_CAP_IRQFD"),
            (Cap::UserMemory, "KVM_CAP_USER_MEMORY"),
            (Cap::SetTssAddr, "KVM_CAP_SET_TSS_ADDR"),
            (Cap::ExtCpuid, "KVM_CAP_EXT_CPUID"),
            (Cap::MpState, "KVM_CAP_MP_STATE"),
            (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT"),
            (Cap::ReadonlyMem, "KVM_CAP_READONLY_MEM"),
        ] {
            if !kvm.check_extension(cap) {
                return Err(KvmError::Missing(name));
            }
        }
        let limit = kvm.get_max_vcpus();
        if usize::from(vcpus) > limit {
            return Err(KvmError::TooManyVcpus {
                asked: vcpus,
                limit,
            });
        }
        let supported = kvm
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map_err(KvmError::ioctl("KVM_GET_SUPPORTED_CPUID"))?;
        let tsc_deadline = kvm.check_extension(Cap::TscDeadlineTimer);
        let msr_indices = if savable {
            kvm.get_msr_index_list()
                .map_err(KvmError::ioctl("KVM_GET_MSR_INDEX_LIST"))?
                .as_slice()
                .to_vec()
        } else {
            Vec::new()
        };
        let fd = create_vm(&kvm)?;
        fd.set_identity_map_address(layout::IDENTITY_MAP)
            .map_err(KvmError::ioctl("KVM_SET_IDENTITY_MAP_ADDR"))?;
        fd.set_tss_address(layout::TSS)
            .map_err(KvmError::ioctl("KVM_SET_TSS_ADDR"))?;
        fd.create_irq_chip()
            .map_err(KvmError::ioctl("KVM_CREATE_IRQCHIP"))?;
        let vm = Self {
            fd,
            memory,
            initramfs,
            supported,
            tsc_deadline,
            msr_indices,
        };
        vm.register_memory()?;
        Ok(vm)
    }

    fn register_memory(&self) -> Result<(), KvmError> {
        let memory: &GuestMemoryMmap<()> = &self.memory;
        let mut regions = Vec::new();
        for region in memory.iter() {
            regions.push(kvm_userspace_memory_region {
                guest_phys_addr: region.start_addr().raw_value(),
                memory_size: region.len(),
                userspace_addr: memory::host_address(region).map_err(KvmError::Memory)?,
                ..Default::default()
            });
        }
        if let Some(Initramfs { mapping, .. }) = &self.initramfs {
            regions.push(kvm_userspace_memory_region {
                flags: KVM_MEM_READONLY,
                guest_phys_addr: layout::INITRAMFS,
                memory_size: mapping.bytes(),
                userspace_addr: mapping.address().addr() as u64,
                ..Default::default()
            });
        }
        for (slot, region) in (0u32..).zip(regions) {
            // SAFETY: the range is a mapping of `self.memory` or `self.initramfs`, which live as long as the VM does, and the
            // slots do not overlap: RAM has a hole where the initramfs is.
            unsafe {
                self.fd
                    .set_user_memory_region(kvm_userspace_memory_region { slot, ..region })
            }
            .map_err(KvmError::ioctl("KVM_SET_USER_MEMORY_REGION"))?;
        }
        Ok(())
    }

    /// What the guest reads at [`layout::INITRAMFS`].
    #[must_use]
    pub fn initramfs(&self) -> Option<&Initramfs> {
        self.initramfs.as_ref()
    }

    /// What CPUID tells vCPU `id` of `count`.
    fn cpuid(&self, id: u8, count: u8) -> Vec<kvm_cpuid_entry2> {
        cpuid::entries(
            self.supported.as_slice(),
            cpuid::Processor {
                id,
                count,
                tsc_deadline: self.tsc_deadline,
            },
        )
    }

    fn bare_vcpu(&self, id: u8) -> Result<VcpuFd, KvmError> {
        self.fd
            .create_vcpu(u64::from(id))
            .map_err(KvmError::ioctl("KVM_CREATE_VCPU"))
    }

    /// Creates vCPU `id` of `count`; the first one starts at `entry`, the others wait for it.
    ///
    /// # Errors
    /// KVM refuses.
    pub fn create_vcpu(&self, id: u8, count: u8, entry: u64) -> Result<VcpuFd, KvmError> {
        let vcpu = self.bare_vcpu(id)?;
        let cpuid =
            CpuId::from_entries(&self.cpuid(id, count)).map_err(|_| KvmError::TooManyEntries {
                what: "CPUID entries",
            })?;
        vcpu_state::initialise(&vcpu, &cpuid)?;
        if id == 0 {
            vcpu_state::enter_kernel(&vcpu, entry)?;
        }
        Ok(vcpu)
    }

    /// Creates the vCPUs of a saved machine, and gives the machine its interrupt controllers' state and clock.
    ///
    /// # Errors
    /// KVM refuses, or the machine was saved on another host.
    pub fn restore(&self, vm: &VmState, vcpus: &[VcpuState]) -> Result<Vec<VcpuFd>, KvmError> {
        let count = u8::try_from(vcpus.len()).unwrap_or(u8::MAX);
        let mut fds = Vec::with_capacity(vcpus.len());
        for (id, state) in (0..count).zip(vcpus) {
            // A guest that has met one processor must not find itself on another.
            if state.cpuid != self.cpuid(id, count) {
                return Err(KvmError::OtherProcessor);
            }
            let vcpu = self.bare_vcpu(id)?;
            state.restore(&vcpu)?;
            fds.push(vcpu);
        }
        vm.restore(&self.fd)?;
        Ok(fds)
    }

    /// A second handle on a vCPU, to take its state out while its thread keeps it still.
    ///
    /// # Errors
    /// The host lacks a descriptor or address space.
    pub fn second_handle(&self, vcpu: &VcpuFd) -> Result<VcpuFd, KvmError> {
        // SAFETY: the descriptor is open; the call has no memory arguments.
        let fd = unsafe { libc::fcntl(vcpu.as_raw_fd(), libc::F_DUPFD_CLOEXEC, 0) };
        if fd < 0 {
            return Err(KvmError::ioctl("fcntl(F_DUPFD_CLOEXEC) on a vCPU")(
                errno::Error::last(),
            ));
        }
        // SAFETY: the descriptor is a vCPU's, of this machine, and was duplicated for this value alone.
        unsafe { self.fd.create_vcpu_from_rawfd(fd) }
            .map_err(KvmError::ioctl("map the run area of a vCPU for"))
    }

    /// Takes the state out of a machine whose vCPUs and devices stand still. `vcpus` are all of them by index.
    ///
    /// # Errors
    /// KVM refuses.
    pub fn save(&self, vcpus: &[VcpuFd]) -> Result<(VmState, Vec<VcpuState>), KvmError> {
        let count = u8::try_from(vcpus.len()).unwrap_or(u8::MAX);
        let mut states = Vec::with_capacity(vcpus.len());
        for (id, vcpu) in (0..count).zip(vcpus) {
            let cpuid = self.cpuid(id, count);
            states.push(VcpuState::save(vcpu, cpuid, &self.msr_indices)?);
        }
        Ok((VmState::save(&self.fd)?, states))
    }

    /// Raises interrupt line `gsi` whenever `irq` is written to.
    ///
    /// # Errors
    /// KVM refuses.
    pub fn attach_irq(&self, irq: &EventFd, gsi: u32) -> Result<(), KvmError> {
        self.fd
            .register_irqfd(irq, gsi)
            .map_err(KvmError::ioctl("KVM_IRQFD"))
    }

    /// Writes to `kick` when the guest writes the 32-bit `value` to I/O port `port`, without an exit to user space.
    ///
    /// # Errors
    /// KVM refuses.
    pub fn attach_notification(
        &self,
        kick: &EventFd,
        port: u16,
        value: u32,
    ) -> Result<(), KvmError> {
        self.fd
            .register_ioevent(kick, &IoEventAddress::Pio(port.into()), value)
            .map_err(KvmError::ioctl("KVM_IOEVENTFD"))
    }
}

fn create_vm(kvm: &Kvm) -> Result<VmFd, KvmError> {
    loop {
        match kvm.create_vm() {
            Ok(fd) => return Ok(fd),
            // A signal came in while KVM set up; nothing is left of the attempt.
            Err(e) if e.errno() == libc::EINTR => {}
            Err(e) => return Err(KvmError::ioctl("KVM_CREATE_VM")(e)),
        }
    }
}
