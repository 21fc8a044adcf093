//! The guest's serial console: a UART whose output goes to a bounded log file.

pub mod log;
pub mod panic_line;

use std::io;

use vm_superio::serial::NoEvents;
use vm_superio::{Serial, Trigger};
use vmm_sys_util::eventfd::EventFd;

use self::log::ConsoleLog;

/// The UART's interrupt line.
#[derive(Debug)]
pub struct SerialIrq(pub EventFd);

impl Trigger for SerialIrq {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.write(1)
    }
}

/// A 16550A that writes to the console log. Nothing is ever typed into it.
pub type Uart = Serial<SerialIrq, NoEvents, ConsoleLog>;
