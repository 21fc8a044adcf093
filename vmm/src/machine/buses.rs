//! What a vCPU reaches outside memory: the serial console, the keyboard controller's reset, the virtio windows.
//!
//! Called from all vCPU threads.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vm_superio::SerialState;
use vmpod_vmm_api::ExitReason;

use crate::console::Uart;
use crate::kvm::vcpu_thread::{GuestAccess, PortWrite};
use crate::layout;
use crate::virtio::mmio::MmioBus;

/// Ports of a UART.
const SERIAL_PORTS: u16 = 8;
/// Keyboard controller command "pulse the reset line".
const COMMAND_RESET: u8 = 0xfe;

/// Ports and windows.
#[derive(Debug)]
pub struct Buses {
    /// Shared by all vCPU threads, and by the control thread at the end.
    uart: Mutex<Uart>,
    windows: Arc<MmioBus>,
}

impl Buses {
    /// Connects a console and the virtio devices.
    #[must_use]
    pub fn new(uart: Uart, windows: Arc<MmioBus>) -> Self {
        Self {
            uart: Mutex::new(uart),
            windows,
        }
    }

    fn uart(&self) -> MutexGuard<'_, Uart> {
        self.uart.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes what the console has collected to its log.
    pub fn write_out_console(&self) {
        self.uart().writer_mut().write_out();
    }

    /// The console's registers, for a snapshot.
    pub fn serial_state(&self) -> SerialState {
        self.uart().state()
    }

    /// The register of the UART behind a port.
    fn serial_register(port: u16) -> Option<u8> {
        let register = port.checked_sub(layout::SERIAL_PORT)?;
        u8::try_from(register)
            .ok()
            .filter(|_| register < SERIAL_PORTS)
    }

    /// A reset that follows a panic message is the panic's.
    fn reset_reason(&self) -> ExitReason {
        match self.uart().writer().panic_message() {
            Some(message) => ExitReason::Panic { message },
            None => ExitReason::Reset,
        }
    }
}

impl GuestAccess for Buses {
    fn read_port(&self, port: u16, data: &mut [u8]) -> bool {
        if let Some(register) = Self::serial_register(port) {
            // A string instruction reads one register several times.
            for byte in data {
                *byte = self.uart().read(register);
            }
            return true;
        }
        if port == layout::KEYBOARD_PORT {
            // Status: ready for a command, nothing to read. A guest that wants to reset does not wait then.
            data.fill(0);
            return true;
        }
        false
    }

    fn write_port(&self, port: u16, data: &[u8]) -> PortWrite {
        if let Some(register) = Self::serial_register(port) {
            for &byte in data {
                // It fails when the interrupt cannot be raised; the driver polls on then.
                let _ = self.uart().write(register, byte);
            }
            return PortWrite::Done;
        }
        if port == layout::KEYBOARD_PORT {
            if data.first() == Some(&COMMAND_RESET) {
                return PortWrite::End(self.reset_reason());
            }
            return PortWrite::Done;
        }
        PortWrite::Unknown
    }

    fn read_address(&self, address: u64, data: &mut [u8]) -> bool {
        self.windows.read(address, data)
    }

    fn write_address(&self, address: u64, data: &[u8]) -> bool {
        self.windows.write(address, data)
    }
}

#[cfg(test)]
mod tests {
    use vm_superio::Serial;
    use vmm_sys_util::eventfd::EventFd;

    use super::*;
    use crate::console::SerialIrq;
    use crate::console::log::ConsoleLog;

    fn buses(dir: &tempfile::TempDir) -> Buses {
        let log = ConsoleLog::create(&dir.path().join("c.log"), 1 << 16).unwrap();
        let irq = SerialIrq(EventFd::new(0).unwrap());
        Buses::new(Serial::new(irq, log), Arc::new(MmioBus::default()))
    }

    #[test]
    fn reset_command_ends_the_machine_and_tells_a_panic_from_an_orderly_end() {
        let dir = tempfile::tempdir().unwrap();
        let buses = buses(&dir);
        assert_eq!(
            buses.write_port(0x64, &[0xfe]),
            PortWrite::End(ExitReason::Reset)
        );
        for byte in b"Kernel panic - not syncing: out of ideas\n" {
            assert_eq!(buses.write_port(0x3f8, &[*byte]), PortWrite::Done);
        }
        assert_eq!(
            buses.write_port(0x64, &[0xfe]),
            PortWrite::End(ExitReason::Panic {
                message: "out of ideas".into()
            })
        );
    }

    #[test]
    fn ports_and_addresses_with_nothing_behind_them_say_so() {
        let dir = tempfile::tempdir().unwrap();
        let buses = buses(&dir);
        let mut data = [7u8; 4];
        assert!(!buses.read_port(0x60, &mut data));
        assert!(!buses.read_port(0x400, &mut data));
        assert_eq!(buses.write_port(0x80, &[1]), PortWrite::Unknown);
        assert!(!buses.read_address(layout::MMIO_BASE, &mut data));
        assert!(!buses.write_address(u64::MAX, &data));
        assert!(buses.read_port(0x64, &mut data));
        assert_eq!(data, [0; 4]);
    }
}
