//! What runs inside a node to prove that its KVM is real: opens `/dev/kvm`, asks for the API
//! version and creates a virtual machine. It boots no guest.

use std::fs::OpenOptions;
use std::os::fd::AsRawFd;

use anyhow::{Context, Result, bail};

/// `KVM_GET_API_VERSION` and `KVM_CREATE_VM` of linux/kvm.h: `_IO(0xAE, n)`.
const GET_API_VERSION: libc::c_ulong = 0xAE00;
const CREATE_VM: libc::c_ulong = 0xAE01;

/// The version that every kernel since 2.6.22 reports.
const API_VERSION: libc::c_int = 12;

/// Prints one line when KVM works here.
///
/// # Errors
/// When it does not, with the step that failed.
pub fn run() -> Result<()> {
    let kvm = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/kvm")
        .context("opening /dev/kvm")?;
    // SAFETY: neither request takes a pointer; the descriptor is open for the whole block.
    let (version, machine) = unsafe {
        (
            libc::ioctl(kvm.as_raw_fd(), GET_API_VERSION, 0),
            libc::ioctl(kvm.as_raw_fd(), CREATE_VM, 0),
        )
    };
    if version != API_VERSION {
        bail!("/dev/kvm answers with API version {version}, not {API_VERSION}");
    }
    if machine < 0 {
        return Err(std::io::Error::last_os_error()).context("creating a virtual machine");
    }
    println!("usable");
    Ok(())
}
