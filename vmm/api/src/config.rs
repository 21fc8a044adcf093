//! What a machine is made of. Plain data and the checks that need no host: paths are opened by the VMM.

use std::net::Ipv4Addr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// One virtual machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MachineConfig {
    /// Name for messages and process titles: the pod's id.
    pub id: String,
    /// Number of virtual CPUs, 1 to 64.
    pub vcpus: u8,
    /// Guest memory in MiB, 32 to 1048576.
    pub memory_mib: u64,
    /// What is booted.
    pub kernel: KernelConfig,
    /// File that the guest's serial console is written to; created, kept below twice `console_log_bytes`.
    pub console_log: PathBuf,
    /// Bytes after which the console log starts anew (the part before is kept once, as `<file>.1`).
    pub console_log_bytes: u64,
    /// Directories shared over virtio-fs.
    #[serde(default)]
    pub shares: Vec<ShareConfig>,
    /// Network cards.
    #[serde(default)]
    pub nets: Vec<NetConfig>,
    /// Block devices.
    #[serde(default)]
    pub blocks: Vec<BlockConfig>,
    /// Socket device to the guest agent.
    #[serde(default)]
    pub vsock: Option<VsockConfig>,
    /// Balloon with free page reporting.
    #[serde(default)]
    pub balloon: bool,
    /// Existing empty directory that a later [`crate::Request::Snapshot`] writes to. Not with block devices, and not with
    /// `restore`.
    #[serde(default)]
    pub snapshot_to: Option<PathBuf>,
    /// Directory of a snapshot to go on from instead of booting. The machine must have the saved one's size and devices;
    /// what they are connected to on the host is its own. Not with block devices.
    #[serde(default)]
    pub restore: Option<PathBuf>,
    /// Confinement of the VMM process; absent only for debugging.
    #[serde(default)]
    pub jail: Option<JailConfig>,
}

/// Kernel, initramfs and command line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KernelConfig {
    /// Uncompressed ELF `vmlinux`.
    pub vmlinux: PathBuf,
    /// Uncompressed cpio archive. The guest reads it beside its RAM (`initramfs_rom=`), from the file: nobody may shorten or
    /// change that while the machine runs; put another in its place instead.
    #[serde(default)]
    pub initramfs: Option<PathBuf>,
    /// Appended to the VMM's own command line (console, reboot method, device windows).
    #[serde(default)]
    pub extra_cmdline: String,
}

/// A directory tree shared over virtio-fs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShareConfig {
    /// Mount tag, 1 to 36 bytes (VIRTIO 1.3 section 5.11.4).
    pub tag: String,
    /// Host directory. Mounts made below it later, on the host, appear in the guest.
    pub path: PathBuf,
    /// Request queues, 1 to 8.
    #[serde(default = "one")]
    pub queues: u16,
    /// Refuse every change.
    #[serde(default)]
    pub read_only: bool,
}

fn one() -> u16 {
    1
}

/// A network card on a tap device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetConfig {
    /// Inherited descriptor of a tap opened with IFF_TAP | IFF_NO_PI | IFF_VNET_HDR.
    pub tap_fd: i32,
    /// MAC address of the guest's side, `aa:bb:cc:dd:ee:ff`.
    pub mac: String,
    /// MTU announced to the guest, 68 to 65535.
    pub mtu: u16,
    /// As whom the guest may send. Absent: as anybody, for a network whose other members know how to defend themselves.
    #[serde(default)]
    pub sender: Option<SenderConfig>,
    /// The guest's own network. What it sends beyond that waits until [`crate::Request::OpenUplink`], and
    /// [`crate::Event::UplinkWanted`] tells that something does: a host need not translate addresses for a guest that never
    /// talks to others. Absent: nothing waits.
    #[serde(default)]
    pub own_network: Option<NetworkConfig>,
}

/// An IPv4 network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetworkConfig {
    /// Any address in it.
    pub address: Ipv4Addr,
    /// Bits that its addresses have in common, 0 to 32.
    pub prefix: u8,
}

/// The addresses that a guest may send as. Frames from others are dropped, and so is what is neither IPv4 nor ARP: IPv6,
/// VLAN tags, protocols of bridges.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SenderConfig {
    /// MAC address, `aa:bb:cc:dd:ee:ff`. May differ from the one that the card announces: a guest can set another.
    pub mac: String,
    /// IPv4 addresses.
    pub ipv4: Vec<Ipv4Addr>,
}

/// A block device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BlockConfig {
    /// Serial number the guest sees, at most 20 bytes; finds the device in the guest.
    pub serial: String,
    /// What it is backed by.
    pub source: BlockSource,
    /// Refuse writes.
    #[serde(default)]
    pub read_only: bool,
}

/// Backing of a block device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BlockSource {
    /// A file or block device by path.
    Path(PathBuf),
    /// An inherited descriptor.
    Fd(i32),
}

/// The vsock device, surfaced as Unix sockets: a host client connects to `uds_path`, writes `CONNECT <port>\n` and
/// reads `OK <port>\n`; a guest that connects to host port N reaches the listener at `<uds_path>_N`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VsockConfig {
    /// Context id of the guest, 3 or more.
    pub guest_cid: u32,
    /// Path of the listening Unix socket.
    pub uds_path: PathBuf,
}

/// How the VMM confines itself before the first guest instruction.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JailConfig {
    /// Empty directory that becomes the root of the VMM's own mount namespace.
    pub root: PathBuf,
    /// Upper bound of open files.
    pub open_files: u64,
    /// User and group that the process becomes; absent: it stays who it is. The directories of the console log and of the
    /// socket device's sockets have to be its own.
    #[serde(default)]
    pub user: Option<u32>,
}

/// A configuration that no host could run.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("machine configuration: {field} is {value}; {expected}")]
pub struct ConfigError {
    /// Path of the field.
    pub field: String,
    /// What was given.
    pub value: String,
    /// What would be right.
    pub expected: &'static str,
}

impl MachineConfig {
    /// Checks ranges and formats.
    ///
    /// # Errors
    /// The first field that is out of range.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let fail = |field: String, value: String, expected| {
            Err(ConfigError {
                field,
                value,
                expected,
            })
        };
        if !(1..=64).contains(&self.vcpus) {
            return fail("vcpus".into(), self.vcpus.to_string(), "expected 1 to 64");
        }
        if !(32..=1_048_576).contains(&self.memory_mib) {
            return fail(
                "memory_mib".into(),
                self.memory_mib.to_string(),
                "expected 32 to 1048576",
            );
        }
        for (i, share) in self.shares.iter().enumerate() {
            if share.tag.is_empty() || share.tag.len() > 36 {
                return fail(
                    format!("shares[{i}].tag"),
                    format!("{:?}", share.tag),
                    "expected 1 to 36 bytes",
                );
            }
            if !(1..=8).contains(&share.queues) {
                return fail(
                    format!("shares[{i}].queues"),
                    share.queues.to_string(),
                    "expected 1 to 8",
                );
            }
        }
        for (i, net) in self.nets.iter().enumerate() {
            if parse_mac(&net.mac).is_none() {
                return fail(
                    format!("nets[{i}].mac"),
                    format!("{:?}", net.mac),
                    "expected six hexadecimal bytes such as 02:00:00:00:00:01",
                );
            }
            if let Some(sender) = &net.sender
                && parse_mac(&sender.mac).is_none()
            {
                return fail(
                    format!("nets[{i}].sender.mac"),
                    format!("{:?}", sender.mac),
                    "expected six hexadecimal bytes such as 02:00:00:00:00:01",
                );
            }
            if let Some(network) = &net.own_network
                && network.prefix > 32
            {
                return fail(
                    format!("nets[{i}].own_network.prefix"),
                    network.prefix.to_string(),
                    "expected 0 to 32",
                );
            }
            if net.mtu < 68 {
                return fail(
                    format!("nets[{i}].mtu"),
                    net.mtu.to_string(),
                    "expected 68 or more",
                );
            }
        }
        for (i, block) in self.blocks.iter().enumerate() {
            if block.serial.is_empty() || block.serial.len() > 20 {
                return fail(
                    format!("blocks[{i}].serial"),
                    format!("{:?}", block.serial),
                    "expected 1 to 20 bytes",
                );
            }
        }
        if self.snapshot_to.is_some() && self.restore.is_some() {
            return fail(
                "snapshot_to".into(),
                "given with restore".into(),
                "expected one of them, or none",
            );
        }
        if (self.snapshot_to.is_some() || self.restore.is_some()) && !self.blocks.is_empty() {
            return fail(
                "blocks".into(),
                format!("{} devices", self.blocks.len()),
                "expected none in a machine that is saved or goes on from a snapshot",
            );
        }
        if let Some(vsock) = &self.vsock
            && vsock.guest_cid < 3
        {
            return fail(
                "vsock.guest_cid".into(),
                vsock.guest_cid.to_string(),
                "expected 3 or more",
            );
        }
        Ok(())
    }
}

impl NetConfig {
    /// The six bytes of the MAC address; `None` when the text is not one.
    #[must_use]
    pub fn mac_bytes(&self) -> Option<[u8; 6]> {
        parse_mac(&self.mac)
    }
}

impl SenderConfig {
    /// The six bytes of the MAC address; `None` when the text is not one.
    #[must_use]
    pub fn mac_bytes(&self) -> Option<[u8; 6]> {
        parse_mac(&self.mac)
    }
}

fn parse_mac(text: &str) -> Option<[u8; 6]> {
    let mut bytes = [0; 6];
    let mut parts = text.split(':');
    for byte in &mut bytes {
        let part = parts.next().filter(|p| p.len() == 2)?;
        *byte = u8::from_str_radix(part, 16).ok()?;
    }
    parts.next().is_none().then_some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine() -> MachineConfig {
        MachineConfig {
            id: "p".into(),
            vcpus: 1,
            memory_mib: 128,
            kernel: KernelConfig {
                vmlinux: "/k".into(),
                initramfs: None,
                extra_cmdline: String::new(),
            },
            console_log: "/c".into(),
            console_log_bytes: 1 << 20,
            shares: vec![],
            nets: vec![],
            blocks: vec![],
            vsock: None,
            balloon: false,
            snapshot_to: None,
            restore: None,
            jail: None,
        }
    }

    #[test]
    fn machine_in_range_is_valid() {
        assert_eq!(machine().validate(), Ok(()));
    }

    #[test]
    fn machine_out_of_range_names_the_field() {
        let mut m = machine();
        m.vcpus = 0;
        assert_eq!(m.validate().unwrap_err().field, "vcpus");
        let mut m = machine();
        m.nets.push(NetConfig {
            tap_fd: 3,
            mac: "02:00:00:00:00".into(),
            mtu: 1500,
            sender: None,
            own_network: None,
        });
        assert_eq!(m.validate().unwrap_err().field, "nets[0].mac");
        m.nets[0].mac = "02:00:00:00:00:01".into();
        m.nets[0].sender = Some(SenderConfig {
            mac: "02".into(),
            ipv4: vec![],
        });
        assert_eq!(m.validate().unwrap_err().field, "nets[0].sender.mac");
        m.nets[0].sender = None;
        m.nets[0].own_network = Some(NetworkConfig {
            address: Ipv4Addr::LOCALHOST,
            prefix: 33,
        });
        assert_eq!(
            m.validate().unwrap_err().field,
            "nets[0].own_network.prefix"
        );
    }

    #[test]
    fn machine_saved_and_restored_at_once_or_with_disks_is_refused() {
        let mut m = machine();
        m.snapshot_to = Some("/a".into());
        assert_eq!(m.validate(), Ok(()));
        m.restore = Some("/b".into());
        assert_eq!(m.validate().unwrap_err().field, "snapshot_to");
        m.snapshot_to = None;
        m.blocks.push(BlockConfig {
            serial: "d".into(),
            source: BlockSource::Fd(5),
            read_only: false,
        });
        assert_eq!(m.validate().unwrap_err().field, "blocks");
    }

    #[test]
    fn mac_with_seven_bytes_is_none() {
        assert_eq!(parse_mac("02:00:00:00:00:01:02"), None);
        assert_eq!(parse_mac("02:00:00:00:00:0a"), Some([2, 0, 0, 0, 0, 10]));
    }
}
