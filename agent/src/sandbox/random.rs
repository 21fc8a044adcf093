//! Entropy from the host for the kernel's random pool, so that two guests of one snapshot do not draw the same numbers.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::AsRawFd as _;

/// RNDADDENTROPY (include/uapi/linux/random.h): _IOW('R', 3, int[2]).
const ADD_ENTROPY: libc::c_ulong = 0x4008_5203;
/// RNDRESEEDCRNG: _IO('R', 7).
const RESEED: libc::c_ulong = 0x5207;

/// Credits `bytes` to the pool in full and has the generator reseeded at once. Source: random(4).
pub fn add_entropy(bytes: &[u8]) -> io::Result<()> {
    let device = OpenOptions::new().write(true).open("/dev/random")?;
    let size = i32::try_from(bytes.len()).map_err(io::Error::other)?;
    // struct rand_pool_info: bits, bytes, data.
    let mut info = Vec::with_capacity(bytes.len() + 8);
    info.extend_from_slice(&size.saturating_mul(8).to_ne_bytes());
    info.extend_from_slice(&size.to_ne_bytes());
    info.extend_from_slice(bytes);
    // SAFETY: the structure holds the length of its own data and outlives the call.
    if unsafe { libc::ioctl(device.as_raw_fd(), ADD_ENTROPY, info.as_ptr()) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: takes no argument. A pool that is not ready yet reseeds by itself.
    unsafe { libc::ioctl(device.as_raw_fd(), RESEED, 0) };
    Ok(())
}
