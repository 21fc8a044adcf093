//! The machine: built from a configuration, run, paused, measured, ended.
//!
//! Owned by the control thread. Does not speak the control protocol and does not confine the process.

mod attaching;
mod buses;
pub mod devices;
mod saving;

use std::collections::BTreeMap;
use std::io;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use vm_superio::Serial;
use vm_superio::serial::NoEvents;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};
use vmpod_vmm_api::{
    ConfigError, DeviceMetrics, MachineConfig, MachineInfo, MachineState, Metrics,
};

use self::buses::Buses;
use self::devices::DeviceError;
use self::saving::Saving;
use crate::boot::{self, BootError};
use crate::console::SerialIrq;
use crate::console::log::{ConsoleLog, LogError};
use crate::ending::Ending;
use crate::jail::{Jail, JailError, Places, ThreadKind, confine_thread, confine_thread_or_exit};
use crate::kvm::run_gate::{RunGate, Wanted};
use crate::kvm::vcpu_thread::{Shared, VcpuThread, install_kick_handler};
use crate::kvm::{KvmError, Vm};
use crate::layout;
use crate::memory::{self, MemoryError};
use crate::snapshot::memory_image::Original;
use crate::snapshot::{RestoreError, Shape, Source, Target, WriteError};
use crate::virtio::balloon::BalloonControl;
use crate::virtio::mmio::{MmioBus, MmioTransport, StateMismatch, TransportError};
use crate::virtio::net::UplinkControl;
use crate::virtio::{GuestMemory, worker_thread};

/// The machine could not be built or started.
#[derive(Debug, thiserror::Error)]
pub enum CreateError {
    /// The configuration is out of range.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Guest memory.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// A snapshot to go on from.
    #[error(transparent)]
    Restore(#[from] RestoreError),
    /// Its state and a device.
    #[error(transparent)]
    State(#[from] StateMismatch),
    /// The files of a snapshot that may be taken.
    #[error("prepare for a snapshot")]
    Snapshot(#[from] WriteError),
    /// KVM.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// Kernel, initramfs or command line.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// Console log.
    #[error(transparent)]
    Log(#[from] LogError),
    /// Device.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// Transport of a device.
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// Confinement of the process.
    #[error(transparent)]
    Jail(#[from] JailError),
    /// A descriptor or thread.
    #[error("{what}")]
    Host {
        /// What was tried.
        what: &'static str,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
}

/// A machine with everything opened, whose vCPUs have not run yet.
#[derive(Debug)]
pub struct BuiltMachine {
    config: MachineConfig,
    memory: GuestMemory,
    vm: Vm,
    buses: Arc<Buses>,
    windows: Arc<MmioBus>,
    balloon: Option<BalloonControl>,
    uplinks: Vec<UplinkControl>,
    beginning: Beginning,
    /// What the machine goes on from, if its changes are of interest.
    original: Option<Original>,
    /// Where a snapshot may be written to.
    target: Option<Target>,
    /// Entered, and still to be closed.
    jail: Option<Jail>,
}

/// How a machine begins.
#[derive(Debug)]
enum Beginning {
    /// At the kernel's entry.
    Boot(u64),
    /// Where a saved one stood.
    Restored(Box<Source>),
}

/// A running machine.
#[derive(Debug)]
pub struct Machine {
    config: MachineConfig,
    gate: Arc<RunGate>,
    vcpus: Vec<VcpuThread>,
    buses: Arc<Buses>,
    windows: Arc<MmioBus>,
    balloon: Option<BalloonControl>,
    uplinks: Vec<UplinkControl>,
    memory: GuestMemory,
    /// Present until the one snapshot was taken.
    saving: Option<Saving>,
    /// The memory of the snapshot, until somebody has asked what has changed.
    original: Option<Original>,
    // Last, so that it outlives the threads that run it.
    vm: Vm,
}

impl BuiltMachine {
    /// Opens and loads everything the machine needs, and changes the process's root if the configuration has a jail.
    /// Nothing of the configuration's paths and descriptors is needed afterwards.
    ///
    /// # Errors
    /// The configuration is out of range, or the host cannot provide something.
    pub fn build(config: MachineConfig) -> Result<Self, CreateError> {
        config.validate()?;
        let host = |what| move |source| CreateError::Host { what, source };
        let saved = config
            .restore
            .as_deref()
            .map(|directory| {
                let shape = Shape {
                    vcpus: config.vcpus.into(),
                    memory_mib: config.memory_mib,
                    devices: devices::count(&config),
                };
                Source::open(directory, shape)
            })
            .transpose()?;
        let target = config
            .snapshot_to
            .as_deref()
            .map(Target::create)
            .transpose()?;
        let memory = memory::allocate(config.memory_mib)?;
        let mut original = None;
        let (beginning, initramfs) = match saved {
            Some(saved) => {
                original = saved.map_memory(&memory)?;
                let initramfs = saved.map_initramfs()?;
                (Beginning::Restored(Box::new(saved)), initramfs)
            }
            None => {
                let count = devices::count(&config);
                let prepared = boot::prepare(&memory, &config.kernel, config.vcpus, count)?;
                (Beginning::Boot(prepared.entry), prepared.initramfs)
            }
        };
        let savable = target.is_some();
        let vm = Vm::new(Arc::clone(&memory), initramfs, config.vcpus, savable)?;
        let irq = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)
            .map_err(host("create the console's interrupt"))?;
        vm.attach_irq(&irq, layout::SERIAL_IRQ)?;
        let sources = devices::Sources::open(&config)?;
        let (jail, places) = match &config.jail {
            Some(jail) => {
                let (jail, places) = Jail::enter(jail, &config)?;
                (Some(jail), places)
            }
            None => (None, Places::unconfined(&config)),
        };
        let log = ConsoleLog::create(&places.console, config.console_log_bytes)?;
        let devices = devices::build(&config, sources, &places)?;
        let mut transports = Vec::with_capacity(devices.all.len());
        for (index, device) in devices.all.into_iter().enumerate() {
            let mut transport = MmioTransport::new(device, Arc::clone(&memory))?;
            // There are as many as were saved: that is part of the shape.
            if let Beginning::Restored(saved) = &beginning
                && let Some(state) = saved.state().devices.get(index)
            {
                transport.restore(state)?;
            }
            attach(&vm, &mut transport, index)?;
            transports.push(transport);
        }
        let windows = Arc::new(MmioBus::new(transports));
        let uart = match &beginning {
            Beginning::Restored(saved) => {
                Serial::from_state(&saved.state().serial, SerialIrq(irq), NoEvents, log)
                    .map_err(|e| host("restore the serial console")(io::Error::other(e)))?
            }
            Beginning::Boot(_) => Serial::new(SerialIrq(irq), log),
        };
        let buses = Arc::new(Buses::new(uart, Arc::clone(&windows)));
        Ok(Self {
            config,
            memory,
            vm,
            buses,
            windows,
            balloon: devices.balloon,
            uplinks: devices.uplinks,
            beginning,
            original,
            target,
            jail,
        })
    }

    /// Creates the vCPUs and lets them run.
    ///
    /// # Errors
    /// KVM or the host refuses a vCPU or its thread.
    pub fn start(self, ending: Arc<Ending>) -> Result<Machine, CreateError> {
        let host = |what| move |source| CreateError::Host { what, source };
        install_kick_handler().map_err(host("install the signal handler of the vCPUs"))?;
        let gate = Arc::new(RunGate::default());
        let shared = Shared {
            access: self.buses.clone(),
            gate: Arc::clone(&gate),
            ending,
            prepare: || confine_thread_or_exit(ThreadKind::Vcpu),
        };
        let fds = match &self.beginning {
            Beginning::Boot(entry) => {
                let count = self.config.vcpus;
                (0..count)
                    .map(|id| self.vm.create_vcpu(id, count, *entry))
                    .collect::<Result<Vec<_>, _>>()?
            }
            Beginning::Restored(saved) => {
                let state = saved.state();
                self.vm.restore(&state.vm, &state.vcpus)?
            }
        };
        let saving = self
            .target
            .map(|target| Saving::prepare(target, &self.vm, &fds))
            .transpose()?;
        if let Some(jail) = self.jail {
            jail.close()?;
            worker_thread::start_spawner(
                || confine_thread_or_exit(ThreadKind::Spawner),
                confine_worker,
            )
            .map_err(host("start the thread that starts device workers"))?;
        }
        let mut machine = Machine {
            config: self.config,
            gate,
            vcpus: Vec::with_capacity(fds.len()),
            buses: self.buses,
            windows: self.windows,
            balloon: self.balloon,
            uplinks: self.uplinks,
            memory: self.memory,
            saving,
            original: self.original,
            vm: self.vm,
        };
        // Devices of a machine that was booted start when their drivers ask for it.
        for mut device in machine.windows.devices() {
            device.go_on_when_needed();
        }
        for (id, fd) in (0u8..).zip(fds) {
            // When one of them fails the machine's drop ends those before.
            machine.vcpus.push(
                VcpuThread::start(id, fd, shared.clone()).map_err(host("start a vCPU thread"))?,
            );
        }
        confine_thread(match machine.saving {
            Some(_) => ThreadKind::Snapshot,
            None => ThreadKind::Control,
        })?;
        Ok(machine)
    }
}

/// Narrows a device worker down; its name begins with its device's.
fn confine_worker(name: &str) {
    confine_thread_or_exit(if name.starts_with(devices::FS_PREFIX) {
        ThreadKind::Files
    } else {
        ThreadKind::Device
    });
}

/// Wires a device's interrupt and notifications to KVM. A driver that does not know of the port writes to the register, which
/// ends in this process.
fn attach(vm: &Vm, transport: &mut MmioTransport, index: usize) -> Result<(), KvmError> {
    vm.attach_irq(transport.interrupt().line(), layout::irq(index))?;
    let Some(port) = layout::notify_port(index) else {
        return Ok(());
    };
    transport.set_notify_port(port);
    for (queue, kick) in (0u32..).zip(transport.kicks()) {
        vm.attach_notification(kick, port, queue)?;
    }
    Ok(())
}

impl Machine {
    /// Gets all vCPUs out of the guest and keeps them there. Devices go on.
    pub fn pause(&self) {
        self.gate.ask(Wanted::Pause);
        self.kick();
        self.gate.wait_standing(self.vcpus.len());
    }

    /// Lets the vCPUs run again.
    pub fn resume(&self) {
        self.gate.ask(Wanted::Run);
    }

    /// The ways out that are closed until somebody opens them.
    #[must_use]
    pub fn uplinks(&self) -> &[UplinkControl] {
        &self.uplinks
    }

    /// Notifications that devices wait for whose workers have not started, to be followed by [`Self::wake_devices`].
    #[must_use]
    pub fn sleeping_kicks(&self) -> Vec<RawFd> {
        let devices = self.windows.devices();
        devices
            .flat_map(|device| device.sleeping_kicks().collect::<Vec<_>>())
            .collect()
    }

    /// Starts the workers of devices that their drivers have notified.
    pub fn wake_devices(&self, notified: impl Fn(RawFd) -> bool) {
        for mut device in self.windows.devices() {
            if device.sleeping_kicks().any(&notified) {
                device.wake();
            }
        }
    }

    fn kick(&self) {
        for vcpu in &self.vcpus {
            vcpu.kick();
        }
    }

    /// Ends vCPUs and devices. Idempotent.
    pub fn stop(&mut self) {
        self.gate.ask(Wanted::Stop);
        self.kick();
        for vcpu in self.vcpus.drain(..) {
            vcpu.join();
        }
        self.windows.stop();
        self.buses.write_out_console();
    }

    /// What this machine is and how it is.
    #[must_use]
    pub fn info(&self) -> MachineInfo {
        MachineInfo {
            id: self.config.id.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            state: match self.gate.wanted() {
                Wanted::Run => MachineState::Running,
                Wanted::Pause => MachineState::Paused,
                Wanted::Stop => MachineState::Exited,
            },
            vcpus: self.config.vcpus,
            memory_mib: self.config.memory_mib,
            pid: std::process::id(),
        }
    }

    /// Counters.
    ///
    /// # Errors
    /// Guest memory cannot be looked at.
    pub fn metrics(&self) -> Result<Metrics, MemoryError> {
        let mut vcpu_exits = BTreeMap::new();
        for vcpu in &self.vcpus {
            for (name, count) in vcpu.counts().named() {
                *vcpu_exits.entry(name.to_owned()).or_default() += count;
            }
        }
        let mut devices = BTreeMap::new();
        for transport in self.windows.devices() {
            let device = transport.device();
            let counters = device.counters();
            let read = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
            devices.insert(
                device.name().to_owned(),
                DeviceMetrics {
                    requests: read(&counters.requests),
                    read_bytes: read(&counters.read_bytes),
                    written_bytes: read(&counters.written_bytes),
                    errors: read(&counters.errors),
                    dropped: read(&counters.dropped),
                    interrupts: read(&counters.interrupts),
                    notifications: read(&counters.notifications),
                },
            );
        }
        Ok(Metrics {
            vcpu_exits,
            memory_resident_bytes: memory::resident_bytes(&self.memory)?,
            memory_reported_bytes: self
                .balloon
                .as_ref()
                .map_or(0, BalloonControl::reported_bytes),
            devices,
        })
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.stop();
    }
}
