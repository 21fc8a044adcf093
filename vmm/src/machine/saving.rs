//! Taking a snapshot of a running machine: vCPUs stand, devices give their queues back, everything is written, and both
//! go on.
//!
//! What it needs is opened and duplicated before the process is confined. Control thread only.

use std::io;

use kvm_ioctls::VcpuFd;
use vmpod_vmm_api::TouchedPages;

use super::Machine;
use crate::jail::{JailError, ThreadKind, confine_thread};
use crate::kvm::run_gate::Wanted;
use crate::kvm::{KvmError, Vm};
use crate::snapshot::memory_image::Original;
use crate::snapshot::state::MachineState;
use crate::snapshot::{Target, WriteError};

/// A snapshot was not taken. The machine goes on as if it had not been asked for.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// It was not prepared, or taken already.
    #[error(
        "take a snapshot: this machine was created without snapshot_to, or its one snapshot was taken"
    )]
    NotPrepared,
    /// The machine ended.
    #[error("take a snapshot: the machine has ended")]
    Ended,
    /// KVM does not give its state.
    #[error("take a snapshot")]
    Kvm(#[from] KvmError),
    /// The files cannot be written.
    #[error("take a snapshot")]
    Write(#[from] WriteError),
    /// The process could not give up the rights that it needed.
    #[error("take a snapshot")]
    Jail(#[from] JailError),
}

/// It cannot be told what the machine has written to.
#[derive(Debug, thiserror::Error)]
pub enum TouchedError {
    /// There is nothing to compare with.
    #[error(
        "tell touched pages: the machine has no snapshot, was asked before, or the pages are known"
    )]
    NotKept,
    /// Memory cannot be read.
    #[error("tell touched pages: read memory")]
    Memory(#[source] io::Error),
}

/// What a snapshot needs that cannot be had once the process is confined.
#[derive(Debug)]
pub(super) struct Saving {
    target: Target,
    vcpus: Vec<VcpuFd>,
}

impl Saving {
    pub(super) fn prepare(target: Target, vm: &Vm, vcpus: &[VcpuFd]) -> Result<Self, KvmError> {
        let vcpus = vcpus
            .iter()
            .map(|vcpu| vm.second_handle(vcpu))
            .collect::<Result<_, _>>()?;
        Ok(Self { target, vcpus })
    }
}

impl Machine {
    /// Writes the machine to the directory that its configuration names; it goes on then if it ran. Once.
    ///
    /// # Errors
    /// Nothing usable was written then; the machine is as before.
    pub fn snapshot(&mut self) -> Result<(), SnapshotError> {
        let saving = self.saving.take().ok_or(SnapshotError::NotPrepared)?;
        let wanted = self.gate.wanted();
        if wanted == Wanted::Stop {
            return Err(SnapshotError::Ended);
        }
        self.pause();
        for mut device in self.windows.devices() {
            device.pause();
        }
        let written = self
            .write(saving)
            .map(|original| self.original = Some(original));
        for mut device in self.windows.devices() {
            device.go_on();
        }
        if wanted == Wanted::Run {
            self.resume();
        }
        // What was allowed for this alone goes.
        confine_thread(ThreadKind::Control)?;
        written
    }

    /// The pages of its snapshot that the machine has written to. Once.
    ///
    /// # Errors
    /// Nobody wants to know, or memory cannot be read.
    pub fn touched(&mut self) -> Result<TouchedPages, TouchedError> {
        let original = self.original.take().ok_or(TouchedError::NotKept)?;
        original.changed(&self.memory).map_err(TouchedError::Memory)
    }

    fn write(&self, saving: Saving) -> Result<Original, SnapshotError> {
        let (vm, vcpus) = self.vm.save(&saving.vcpus)?;
        let state = MachineState {
            memory_mib: self.config.memory_mib,
            devices: self.windows.devices().map(|d| d.state()).collect(),
            serial: self.buses.serial_state(),
            vm,
            vcpus,
            runs: Vec::new(),
            initramfs: 0,
        };
        Ok(saving
            .target
            .write(state, &self.memory, self.vm.initramfs())?)
    }
}
