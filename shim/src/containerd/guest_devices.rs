//! The devices of a container: which it has in the guest, and which block devices of the host are attached to the machine
//! for it. Pure: numbers of the guest are put in when they are known.

use serde_json::{Map, Value};

use super::guest_spec::{GuestSpec, SpecError, array};
use super::host_block::HostBlock;

/// Device numbers (Linux Documentation/admin-guide/devices.txt) that mean the same in the guest and show nothing of the
/// host: memory devices, /dev/tty, /dev/console, /dev/ptmx, /dev/net/tun, /dev/fuse.
const GUEST_DEVICES: [(u64, u64); 11] = [
    (1, 3),
    (1, 5),
    (1, 7),
    (1, 8),
    (1, 9),
    (1, 11),
    (5, 0),
    (5, 1),
    (5, 2),
    (10, 200),
    (10, 229),
];

/// Whether the container may use every device: what CRI implementations give to privileged containers alone.
fn is_privileged(linux: &Map<String, Value>) -> bool {
    let rules = linux
        .get("resources")
        .and_then(|resources| resources.get("devices"))
        .and_then(Value::as_array);
    rules.into_iter().flatten().any(|rule| {
        let number = |name| rule.get(name).and_then(Value::as_i64);
        rule.get("allow") == Some(&Value::Bool(true))
            && rule.get("access").and_then(Value::as_str) == Some("rwm")
            && matches!(
                rule.get("type").and_then(Value::as_str),
                None | Some("a" | "")
            )
            && !matches!(number("major"), Some(0..))
    })
}

/// A block device of the host that a container wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockWish {
    /// Which device of the host it is.
    pub host: HostBlock,
    /// Its place in `linux.devices`.
    index: usize,
}

fn number(device: &Value, name: &str) -> Option<u64> {
    device.get(name).and_then(Value::as_u64)
}

fn is_block(device: &Value) -> bool {
    device.get("type").and_then(Value::as_str) == Some("b")
}

/// Leaves the guest's own devices, and block devices that a container was given by name: they are attached to the machine.
/// A privileged container, which is given all the host has, gets none of them.
pub(super) fn devices(linux: &mut Map<String, Value>) -> Result<Vec<BlockWish>, SpecError> {
    let privileged = is_privileged(linux);
    let rules = linux
        .get("resources")
        .and_then(|resources| resources.get("devices"))
        .cloned();
    let Some(devices) = array(linux, "devices", "linux.devices")? else {
        return Ok(Vec::new());
    };
    let mut kept = Vec::new();
    let mut blocks = Vec::new();
    for device in std::mem::take(devices) {
        let character = matches!(device.get("type").and_then(Value::as_str), Some("c" | "u"));
        let numbers = number(&device, "major").zip(number(&device, "minor"));
        match numbers {
            Some(numbers) if character && GUEST_DEVICES.contains(&numbers) => kept.push(device),
            _ if privileged => {}
            Some((major, minor)) if is_block(&device) => {
                blocks.push(BlockWish {
                    host: HostBlock {
                        major,
                        minor,
                        writable: may_write(rules.as_ref(), major, minor),
                    },
                    index: kept.len(),
                });
                kept.push(device);
            }
            _ => {
                return Err(SpecError::HostDevice {
                    path: device
                        .get("path")
                        .and_then(Value::as_str)
                        .unwrap_or_default()
                        .to_owned(),
                });
            }
        }
    }
    *devices = kept;
    Ok(blocks)
}

/// Whether a rule for this very device lets the container write.
fn may_write(rules: Option<&Value>, major: u64, minor: u64) -> bool {
    let rules = rules.and_then(Value::as_array);
    rules.into_iter().flatten().any(|rule| {
        rule.get("allow") == Some(&Value::Bool(true))
            && number(rule, "major") == Some(major)
            && number(rule, "minor") == Some(minor)
            && is_block(rule)
            && rule
                .get("access")
                .and_then(Value::as_str)
                .is_some_and(|access| access.contains('w'))
    })
}

impl GuestSpec {
    /// Puts the guest's numbers of `blocks`, in their order, in the place of the host's: in the devices and in the rules
    /// for them.
    pub fn renumber(&mut self, guest: &[(u32, u32)]) {
        let Some(linux) = self.config.get_mut("linux").and_then(Value::as_object_mut) else {
            return;
        };
        let put = |into: &mut Value, (major, minor): (u32, u32)| {
            if let Some(into) = into.as_object_mut() {
                into.insert("major".into(), major.into());
                into.insert("minor".into(), minor.into());
            }
        };
        let mapped: Vec<_> = self.blocks.iter().zip(guest.iter().copied()).collect();
        for (block, numbers) in &mapped {
            let devices = linux.get_mut("devices");
            if let Some(device) = devices.and_then(|devices| devices.get_mut(block.index)) {
                put(device, *numbers);
            }
        }
        let rules = linux
            .get_mut("resources")
            .and_then(|resources| resources.get_mut("devices"))
            .and_then(Value::as_array_mut);
        for rule in rules.into_iter().flatten().filter(|rule| is_block(rule)) {
            let of_host = number(rule, "major").zip(number(rule, "minor"));
            let known = mapped
                .iter()
                .find(|(block, _)| of_host == Some((block.host.major, block.host.minor)));
            if let Some((_, numbers)) = known {
                put(rule, *numbers);
            }
        }
    }
}
