//! Everything of a machine but its memory, to and from the bytes of a state file.
//!
//! Decoding checks shapes and bounds; whether values make sense to KVM or to a device is decided by them.

use kvm_bindings::{KVM_MAX_CPUID_ENTRIES, KVM_MAX_MSR_ENTRIES};
use virtio_queue::QueueState;
use vm_superio::SerialState;

use super::memory_image::Run;
use super::state_file::{FieldWriter, Fields, StateFault};
use crate::kvm::saved::{VcpuState, VmState};
use crate::virtio::SAVED_BYTES;
use crate::virtio::mmio::TransportState;

/// Most vCPUs of a machine.
const MAX_VCPUS: usize = 64;
/// Most devices of a machine, far above what a configuration has.
const MAX_DEVICES: usize = 64;
/// Most queues of a device.
const MAX_QUEUES: usize = 16;
/// Bytes in the UART's receive buffer (16550A).
const MAX_SERIAL_BYTES: usize = 64;
/// Most pieces of memory in the memory file. Each costs a mapping.
pub const MAX_RUNS: usize = 4096;

/// A machine that stands still, without its memory.
#[derive(Clone, Debug)]
pub struct MachineState {
    /// Memory in MiB.
    pub memory_mib: u64,
    /// Devices in the order of their windows.
    pub devices: Vec<TransportState>,
    /// The serial console.
    pub serial: SerialState,
    /// Interrupt controllers and clock.
    pub vm: VmState,
    /// vCPUs by index.
    pub vcpus: Vec<VcpuState>,
    /// Which memory the memory file holds.
    pub runs: Vec<Run>,
    /// Bytes of the initramfs file; there is none without.
    pub initramfs: u64,
}

impl MachineState {
    /// The bytes of a state file.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = FieldWriter::default();
        out.put(&self.memory_mib);
        out.length(self.devices.len());
        for device in &self.devices {
            put_device(&mut out, device);
        }
        put_serial(&mut out, &self.serial);
        for chip in &self.vm.chips {
            out.put(chip);
        }
        out.put(&self.vm.clock);
        out.length(self.vcpus.len());
        for vcpu in &self.vcpus {
            put_vcpu(&mut out, vcpu);
        }
        out.length(self.runs.len());
        for run in &self.runs {
            out.put(&run.start);
            out.put(&run.bytes);
        }
        out.put(&self.initramfs);
        out.finish()
    }

    /// The machine in the bytes of a state file.
    ///
    /// # Errors
    /// They are none, or out of range.
    pub fn decode(file: &[u8]) -> Result<Self, StateFault> {
        let mut fields = Fields::open(file)?;
        let memory_mib = fields.get("memory")?;
        let count = fields.length(MAX_DEVICES, "number of devices")?;
        let devices = (0..count)
            .map(|_| device(&mut fields))
            .collect::<Result<_, _>>()?;
        let serial = serial(&mut fields)?;
        let vm = VmState {
            chips: [
                fields.get("interrupt controllers")?,
                fields.get("interrupt controllers")?,
                fields.get("interrupt controllers")?,
            ],
            clock: fields.get("clock")?,
        };
        let count = fields.length(MAX_VCPUS, "number of vCPUs")?;
        let vcpus = (0..count)
            .map(|_| vcpu(&mut fields))
            .collect::<Result<_, _>>()?;
        let count = fields.length(MAX_RUNS, "number of memory runs")?;
        let runs = (0..count)
            .map(|_| {
                Ok(Run {
                    start: fields.get("memory run")?,
                    bytes: fields.get("memory run")?,
                })
            })
            .collect::<Result<_, _>>()?;
        let initramfs = fields.get("initramfs")?;
        fields.end()?;
        Ok(Self {
            memory_mib,
            devices,
            serial,
            vm,
            vcpus,
            runs,
            initramfs,
        })
    }
}

fn put_device(out: &mut FieldWriter, device: &TransportState) {
    out.put(&device.device_type);
    out.put(&device.status);
    out.put(&device.offered);
    out.put(&device.accepted);
    out.put(&device.selected);
    out.put(&device.interrupt);
    out.put(&device.generation);
    out.length(device.queues.len());
    for queue in &device.queues {
        out.put(&queue.max_size);
        out.put(&queue.next_avail);
        out.put(&queue.next_used);
        out.put(&queue.size);
        out.put(&u8::from(queue.event_idx_enabled));
        out.put(&u8::from(queue.ready));
        out.put(&queue.desc_table);
        out.put(&queue.avail_ring);
        out.put(&queue.used_ring);
    }
    out.bytes(&device.device);
}

fn device(fields: &mut Fields<'_>) -> Result<TransportState, StateFault> {
    Ok(TransportState {
        device_type: fields.get("device type")?,
        status: fields.get("device status")?,
        offered: fields.get("offered features")?,
        accepted: fields.get("accepted features")?,
        selected: fields.get("selectors")?,
        interrupt: fields.get("interrupt status")?,
        generation: fields.get("configuration generation")?,
        queues: {
            let count = fields.length(MAX_QUEUES, "number of queues")?;
            (0..count)
                .map(|_| queue(fields))
                .collect::<Result<_, _>>()?
        },
        device: fields.bytes(SAVED_BYTES, "device state")?.to_vec(),
    })
}

fn queue(fields: &mut Fields<'_>) -> Result<QueueState, StateFault> {
    Ok(QueueState {
        max_size: fields.get("queue")?,
        next_avail: fields.get("queue")?,
        next_used: fields.get("queue")?,
        size: fields.get("queue")?,
        event_idx_enabled: flag(fields, "queue")?,
        ready: flag(fields, "queue")?,
        desc_table: fields.get("queue")?,
        avail_ring: fields.get("queue")?,
        used_ring: fields.get("queue")?,
    })
}

fn flag(fields: &mut Fields<'_>, name: &'static str) -> Result<bool, StateFault> {
    match fields.get::<u8>(name)? {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(StateFault::Field(name)),
    }
}

fn put_serial(out: &mut FieldWriter, serial: &SerialState) {
    out.put(&[
        serial.baud_divisor_low,
        serial.baud_divisor_high,
        serial.interrupt_enable,
        serial.interrupt_identification,
        serial.line_control,
        serial.line_status,
        serial.modem_control,
        serial.modem_status,
        serial.scratch,
    ]);
    out.bytes(&serial.in_buffer);
}

fn serial(fields: &mut Fields<'_>) -> Result<SerialState, StateFault> {
    let [
        baud_divisor_low,
        baud_divisor_high,
        interrupt_enable,
        interrupt_identification,
        line_control,
        line_status,
        modem_control,
        modem_status,
        scratch,
    ] = fields.get::<[u8; 9]>("serial console")?;
    Ok(SerialState {
        baud_divisor_low,
        baud_divisor_high,
        interrupt_enable,
        interrupt_identification,
        line_control,
        line_status,
        modem_control,
        modem_status,
        scratch,
        in_buffer: fields.bytes(MAX_SERIAL_BYTES, "serial console")?.to_vec(),
    })
}

fn put_vcpu(out: &mut FieldWriter, vcpu: &VcpuState) {
    out.put(&vcpu.tsc_khz);
    out.put(&vcpu.run_state);
    out.put(&vcpu.regs);
    out.put(&vcpu.sregs);
    out.put(&vcpu.xsave);
    out.put(&vcpu.xcrs);
    out.put(&vcpu.debug);
    out.put(&vcpu.lapic);
    out.put(&vcpu.events);
    out.length(vcpu.cpuid.len());
    for entry in &vcpu.cpuid {
        out.put(entry);
    }
    out.length(vcpu.msrs.len());
    for msr in &vcpu.msrs {
        out.put(msr);
    }
}

fn vcpu(fields: &mut Fields<'_>) -> Result<VcpuState, StateFault> {
    Ok(VcpuState {
        tsc_khz: fields.get("clock rate")?,
        run_state: fields.get("run state")?,
        regs: fields.get("registers")?,
        sregs: fields.get("system registers")?,
        xsave: fields.get("vector registers")?,
        xcrs: fields.get("extended control registers")?,
        debug: fields.get("debug registers")?,
        lapic: fields.get("local APIC")?,
        events: fields.get("events")?,
        cpuid: fields.list(KVM_MAX_CPUID_ENTRIES, "CPUID")?,
        msrs: fields.list(KVM_MAX_MSR_ENTRIES, "MSRs")?,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sample() -> MachineState {
        let queue = |ready| QueueState {
            max_size: 256,
            next_avail: 7,
            next_used: 6,
            size: 128,
            event_idx_enabled: true,
            ready,
            desc_table: 0x1000,
            avail_ring: 0x2000,
            used_ring: 0x3000,
        };
        let vcpu = VcpuState {
            cpuid: vec![kvm_bindings::kvm_cpuid_entry2 {
                function: 1,
                eax: 2,
                ..Default::default()
            }],
            tsc_khz: 1_000_000,
            run_state: kvm_bindings::kvm_mp_state { mp_state: 3 },
            regs: kvm_bindings::kvm_regs {
                rip: 0x1234,
                ..Default::default()
            },
            sregs: Default::default(),
            xsave: [3; 1024],
            xcrs: Default::default(),
            debug: Default::default(),
            lapic: Default::default(),
            events: Default::default(),
            msrs: vec![kvm_bindings::kvm_msr_entry {
                index: 0x10,
                data: 5,
                ..Default::default()
            }],
        };
        MachineState {
            memory_mib: 64,
            devices: vec![TransportState {
                device_type: 19,
                status: 15,
                offered: 1 << 32,
                accepted: 1 << 32,
                selected: [1, 2, 3],
                interrupt: 1,
                generation: 4,
                queues: vec![queue(true), queue(false)],
                device: vec![1, 2, 3],
            }],
            serial: SerialState {
                in_buffer: vec![9],
                scratch: 8,
                ..Default::default()
            },
            vm: VmState {
                chips: Default::default(),
                clock: kvm_bindings::kvm_clock_data {
                    clock: 99,
                    ..Default::default()
                },
            },
            vcpus: vec![vcpu.clone(), vcpu],
            initramfs: 4711,
            runs: vec![Run {
                start: 0x1000,
                bytes: 0x2000,
            }],
        }
    }

    #[test]
    fn state_encoded_and_decoded_is_the_same() {
        let state = sample();
        let file = state.encode();
        let back = MachineState::decode(&file).unwrap();
        assert_eq!(back.devices, state.devices);
        assert_eq!(back.serial, state.serial);
        assert_eq!(back.runs, state.runs);
        assert_eq!(back.initramfs, 4711);
        assert_eq!(back.vcpus.len(), 2);
        assert_eq!(back.vcpus[1].regs.rip, 0x1234);
        assert_eq!(back.vcpus[1].msrs[0].data, 5);
        assert_eq!(back.vm.clock.clock, 99);
        assert_eq!(back.encode(), file);
    }

    proptest! {
        /// With a checksum that is right, so that the content itself is looked at.
        #[test]
        fn content_at_random_never_panics(
            cut in 0usize..9000,
            changes in proptest::collection::vec((0usize..9000, any::<u8>()), 0..20),
        ) {
            let mut body = sample().encode().split_off(24);
            body.truncate(cut);
            for (at, value) in changes {
                if let Some(byte) = body.get_mut(at) {
                    *byte = value;
                }
            }
            let mut out = FieldWriter::default();
            for byte in body {
                out.put(&byte);
            }
            let _ = MachineState::decode(&out.finish());
        }
    }
}
