//! State files of saved machines, as a stranger would write them: decoding, the devices' part of restoring, memory.

#![no_main]

use std::sync::{Arc, OnceLock};

use libfuzzer_sys::fuzz_target;
use vm_memory::{GuestAddress, GuestMemoryMmap};
use vmpod_fuzz::{Feed, Scratch};
use vmpod_vmm::snapshot::state::MachineState;
use vmpod_vmm::snapshot::state_file::FieldWriter;
use vmpod_vmm::snapshot::{Shape, Source};
use vmpod_vmm::virtio::balloon::Balloon;
use vmpod_vmm::virtio::mmio::MmioTransport;
use vmpod_vmm::virtio::rng::Rng;
use vmpod_vmm::virtio::{GuestMemory, VirtioDevice};

/// The file with its header made right: a checksum would keep the fuzzer out.
fn whole(body: &[u8]) -> Vec<u8> {
    let mut writer = FieldWriter::default();
    for byte in body {
        writer.put(byte);
    }
    writer.finish()
}

fuzz_target!(|data: &[u8]| {
    static SCRATCH: OnceLock<Scratch> = OnceLock::new();
    let mut feed = Feed::new(data);
    let raw = feed.u8() & 7 == 7;
    let body = feed.rest();
    let file = if raw { body.to_vec() } else { whole(body) };
    let Ok(state) = MachineState::decode(&file) else {
        return;
    };
    let again = state.encode();
    let decoded = MachineState::decode(&again).expect("what was written is read");
    assert_eq!(decoded.encode(), again, "written twice it is the same");

    let memory: GuestMemory = Arc::new(
        GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 4 << 20)]).expect("make guest memory"),
    );
    for (index, saved) in state.devices.iter().enumerate().take(4) {
        let device: Box<dyn VirtioDevice> = if index % 2 == 0 {
            Box::new(Rng::new("rng0"))
        } else {
            Box::new(Balloon::new("balloon0".into()))
        };
        let mut transport = MmioTransport::new(device, Arc::clone(&memory)).expect("a transport");
        if transport.restore(saved).is_ok() {
            transport.go_on();
            transport.pause();
            let _ = transport.state();
        }
        transport.stop();
    }
    let scratch = SCRATCH.get_or_init(Scratch::enter);
    let directory = scratch.fresh("snapshot");
    std::fs::write(directory.join("state"), &file).expect("write the state");
    std::fs::write(directory.join("memory"), vec![7; 64 << 10]).expect("write the memory");
    let shape = Shape {
        vcpus: state.vcpus.len(),
        memory_mib: state.memory_mib,
        devices: state.devices.len(),
    };
    let source = Source::open(&directory, shape).expect("it was decoded before");
    let _ = source.map_memory(&memory);
});
