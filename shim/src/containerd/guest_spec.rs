//! From the OCI configuration that containerd composed for a container on the host to the one that the agent makes it from
//! in the guest. Pure: what has to be mounted on the host is returned, not done.
//!
//! What changes: the sources of bind mounts become places in the shared tree; the pod's network, IPC and host name are the
//! guest's own, so that their namespaces go; labels and profiles of the host's security modules go, because the guest's
//! kernel has none; the host's devices stay on the host.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};
use vmpod_agent_protocol::mount_option;

use super::guest_devices::{BlockWish, devices};
use super::users::is_mapped;
use crate::pod::guest_paths;
use crate::pod::tree::HostBind;

/// Namespaces that a pod has for itself, as OCI calls them, with the field of a Pod that asks for the host's instead.
pub const POD_NAMESPACES: [(&str, &str); 3] = [
    ("network", "hostNetwork"),
    ("pid", "hostPID"),
    ("ipc", "hostIPC"),
];

/// Directories that are the kernel's: a mount of one shows the guest's, because the host's would be a way out.
const KERNEL_DIRECTORIES: [&str; 3] = ["/proc", "/sys", "/dev"];

/// A configuration that cannot be honoured.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    /// A namespace of the host.
    #[error(
        "the container asks for the host's {namespace} namespace ({field}), which a machine does not share; the pod's is all it can have"
    )]
    HostNamespace {
        /// Which.
        namespace: &'static str,
        /// The field of the Pod that does it.
        field: &'static str,
    },
    /// A device of the host.
    #[error("the container asks for the host's device {path}, which is not in the pod's machine")]
    HostDevice {
        /// Path in the container.
        path: String,
    },
    /// A field is of another type than the OCI runtime specification has.
    #[error("config.json: {field} is not {expected} (OCI runtime specification)")]
    Type {
        /// The field.
        field: String,
        /// What it should be.
        expected: &'static str,
    },
    /// Hooks would have to run on the host.
    #[error("config.json: hooks.{name} would run a program of the host; vmpod runs none")]
    Hook {
        /// The kind.
        name: String,
    },
}

/// Which process namespace a container gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PidNamespace {
    /// One of its own.
    Own,
    /// That of the process which containerd knows by this path (`/proc/<pid>/ns/pid`).
    Joined(PathBuf),
}

/// A configuration for the guest.
#[derive(Clone, Debug)]
pub struct GuestSpec {
    /// The configuration.
    pub config: Map<String, Value>,
    /// What is to be mounted at `mounts/<index>` of the container's part of the shared tree.
    pub binds: Vec<HostBind>,
    /// Block devices that are to be attached to the machine.
    pub blocks: Vec<BlockWish>,
    /// Process namespace.
    pub pids: PidNamespace,
}

pub(super) fn wrong(field: impl Into<String>, expected: &'static str) -> SpecError {
    SpecError::Type {
        field: field.into(),
        expected,
    }
}

pub(super) fn array<'a>(
    parent: &'a mut Map<String, Value>,
    name: &str,
    path: &str,
) -> Result<Option<&'a mut Vec<Value>>, SpecError> {
    match parent.get_mut(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Array(values)) => Ok(Some(values)),
        Some(_) => Err(wrong(path, "an array")),
    }
}

fn object<'a>(
    parent: &'a mut Map<String, Value>,
    name: &str,
    path: &str,
) -> Result<Option<&'a mut Map<String, Value>>, SpecError> {
    match parent.get_mut(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Object(values)) => Ok(Some(values)),
        Some(_) => Err(wrong(path, "an object")),
    }
}

impl GuestSpec {
    /// Makes the configuration for container `id` of `config`.
    ///
    /// # Errors
    /// What cannot be honoured, by name.
    pub fn of(id: &str, mut config: Map<String, Value>) -> Result<Self, SpecError> {
        refuse_hooks(&config)?;
        // Nobody in the guest reads them, and they may be large.
        config.remove("annotations");
        let root = config.entry("root").or_insert_with(|| json!({}));
        root.as_object_mut()
            .ok_or_else(|| wrong("root", "an object"))?
            .insert("path".into(), guest_paths::member_rootfs(id).into());
        let binds = mounts(id, &mut config)?;
        let mut pids = PidNamespace::Own;
        let linux = config.entry("linux").or_insert_with(|| json!({}));
        let linux = linux
            .as_object_mut()
            .ok_or_else(|| wrong("linux", "an object"))?;
        namespaces(linux, &mut pids)?;
        let blocks = devices(linux)?;
        for name in ["cgroupsPath", "mountLabel", "intelRdt"] {
            linux.remove(name);
        }
        if let Some(process) = object(&mut config, "process", "process")? {
            for name in ["apparmorProfile", "selinuxLabel"] {
                process.remove(name);
            }
        }
        Ok(Self {
            config,
            binds,
            blocks,
            pids,
        })
    }

    /// Leaves the write protection of bind `number` to the host: in the guest it would hold for what is mounted below it as
    /// well, which may be written to.
    pub fn leave_protection(&mut self, id: &str, number: usize) {
        self.change_options(id, number, |options| {
            options.retain(|option| option != "ro")
        });
    }

    /// Tells the agent that bind `number` is of a file.
    pub fn mark_file(&mut self, id: &str, number: usize) {
        self.change_options(id, number, |options| {
            options.push(mount_option::FILE.into())
        });
    }

    fn change_options(&mut self, id: &str, number: usize, change: impl Fn(&mut Vec<Value>)) {
        let place = guest_paths::member_mount(id, number);
        let mounts = self.config.get_mut("mounts").and_then(Value::as_array_mut);
        for mount in mounts.into_iter().flatten() {
            let is_it = mount.get("source").and_then(Value::as_str) == Some(&place);
            let options = mount.get_mut("options").and_then(Value::as_array_mut);
            if let Some(options) = options.filter(|_| is_it) {
                change(options);
            }
        }
    }

    /// Adds what all containers of a pod have in common, where `config` does not have it: the files that elsewhere lie
    /// beside the pause container, and the pod's shared memory in the place of one that is no one's.
    pub fn add_pod_mounts(&mut self) {
        let read_only = self
            .config
            .get("root")
            .and_then(|root| root.get("readonly"));
        let read_only = read_only == Some(&Value::Bool(true));
        let mounts = self.config.entry("mounts").or_insert_with(|| json!([]));
        let Some(mounts) = mounts.as_array_mut() else {
            return;
        };
        let shared_memory = ("/dev/shm", "/dev/shm".to_owned());
        for (destination, source) in guest_paths::etc().into_iter().chain([shared_memory]) {
            let at = mounts.iter().position(|mount| {
                mount.get("destination").and_then(Value::as_str) == Some(destination)
            });
            let options = match (destination, read_only) {
                ("/dev/shm", _) => vec!["rbind", "rw"],
                (_, true) => vec!["rbind", "ro", mount_option::FILE],
                (_, false) => vec!["rbind", "rw", mount_option::FILE],
            };
            let wanted = json!({
                "destination": destination, "type": "bind", "source": source, "options": options,
            });
            match at.and_then(|at| mounts.get_mut(at)) {
                Some(mount) if mount.as_object().is_some_and(is_bind) => {}
                Some(mount) => *mount = wanted,
                None => mounts.push(wanted),
            }
        }
    }
}

fn options(mount: &Map<String, Value>) -> impl Iterator<Item = &str> {
    let options = mount.get("options").and_then(Value::as_array);
    options.into_iter().flatten().filter_map(Value::as_str)
}

fn is_bind(mount: &Map<String, Value>) -> bool {
    mount.get("type").and_then(Value::as_str) == Some("bind")
        || options(mount).any(|option| option == "bind" || option == "rbind")
}

fn refuse_hooks(config: &Map<String, Value>) -> Result<(), SpecError> {
    let hooks = match config.get("hooks") {
        None | Some(Value::Null) => return Ok(()),
        Some(hooks) => hooks
            .as_object()
            .ok_or_else(|| wrong("hooks", "an object"))?,
    };
    match hooks
        .iter()
        .find(|(_, list)| list.as_array().is_none_or(|list| !list.is_empty()) && !list.is_null())
    {
        Some((name, _)) => Err(SpecError::Hook { name: name.clone() }),
        None => Ok(()),
    }
}

/// Moves the sources of bind mounts into the shared tree.
fn mounts(id: &str, config: &mut Map<String, Value>) -> Result<Vec<HostBind>, SpecError> {
    let mut binds = Vec::new();
    for (number, mount) in array(config, "mounts", "mounts")?
        .into_iter()
        .flatten()
        .enumerate()
    {
        let field = || format!("mounts[{number}]");
        let mount = mount
            .as_object_mut()
            .ok_or_else(|| wrong(field(), "an object"))?;
        if !is_bind(mount) {
            continue;
        }
        let options: Vec<String> = options(mount).map(str::to_owned).collect();
        let has = |name: &str| options.iter().any(|option| option == name);
        let recursive = has("rbind");
        let source = mount
            .get("source")
            .and_then(Value::as_str)
            .filter(|source| source.starts_with('/'))
            .ok_or_else(|| wrong(format!("{}.source", field()), "an absolute path"))?
            .to_owned();
        let destination = mount
            .get("destination")
            .and_then(Value::as_str)
            .ok_or_else(|| wrong(format!("{}.destination", field()), "a path"))?;
        let place = if destination == "/dev/shm" {
            // The pod's own, which all its containers share: memory of the guest, not files of the host.
            "/dev/shm".to_owned()
        } else if KERNEL_DIRECTORIES
            .iter()
            .any(|directory| Path::new(&source).starts_with(directory))
        {
            source.clone()
        } else {
            binds.push(HostBind {
                source: source.clone().into(),
                recursive,
                follows_host: ["slave", "rslave", "shared", "rshared"]
                    .iter()
                    .any(|option| has(option)),
                shared: has("shared") || has("rshared"),
                read_only: has("ro") || has("rro"),
                all_read_only: has("rro"),
                mapped: is_mapped(mount),
            });
            guest_paths::member_mount(id, binds.len() - 1)
        };
        mount.insert("source".into(), place.into());
    }
    Ok(binds)
}

fn namespaces(linux: &mut Map<String, Value>, pids: &mut PidNamespace) -> Result<(), SpecError> {
    let listed = array(linux, "namespaces", "linux.namespaces")?;
    let mut kept = Vec::new();
    let mut seen = Vec::new();
    for namespace in listed.into_iter().flatten() {
        let kind = namespace
            .get("type")
            .and_then(Value::as_str)
            .ok_or_else(|| wrong("linux.namespaces[].type", "a string"))?
            .to_owned();
        let path = namespace
            .get("path")
            .and_then(Value::as_str)
            .filter(|path| !path.is_empty());
        match kind.as_str() {
            "pid" => {
                if let Some(path) = path {
                    *pids = PidNamespace::Joined(path.into());
                }
            }
            // The guest's own are the pod's.
            "network" | "ipc" | "uts" => {}
            // A path names a namespace of the host; what it maps is in uidMappings and gidMappings (see `users`).
            "user" => kept.push(json!({ "type": "user" })),
            _ => kept.push(json!({ "type": kind })),
        }
        seen.push(kind);
    }
    for (namespace, field) in POD_NAMESPACES {
        if !seen.iter().any(|kind| kind == namespace) {
            return Err(SpecError::HostNamespace { namespace, field });
        }
    }
    linux.insert("namespaces".into(), kept.into());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pod_mounts_are_added_where_there_are_none() {
        let config = json!({
            "root": {"path": "rootfs", "readonly": true},
            "linux": {"namespaces": namespaces_of_a_pod()},
            "mounts": [
                {"destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": ["nosuid"]},
                {"destination": "/etc/hosts", "type": "bind", "source": "/k/hosts", "options": ["rbind", "rw"]},
            ],
        });
        let mut spec = GuestSpec::of("c", config.as_object().unwrap().clone()).unwrap();
        spec.add_pod_mounts();
        let mounts = spec.config["mounts"].as_array().unwrap();
        let at = |destination: &str| {
            let mut found = mounts.iter().filter(|m| m["destination"] == destination);
            let mount = found.next().unwrap();
            assert!(found.next().is_none());
            (
                mount["source"].as_str().unwrap(),
                mount["options"][1].as_str().unwrap(),
            )
        };
        assert_eq!(at("/dev/shm"), ("/dev/shm", "rw"));
        assert_eq!(at("/etc/hosts").0, guest_paths::member_mount("c", 0));
        assert_eq!(at("/etc/resolv.conf"), (&*guest_paths::resolv_conf(), "ro"));
        assert_eq!(at("/etc/hostname"), (&*guest_paths::hostname(), "ro"));
    }

    #[test]
    fn bind_is_marked_and_its_neighbours_are_not() {
        let config = json!({
            "root": {"path": "rootfs"},
            "mounts": [
                {"destination": "/a", "type": "bind", "source": "/k/a", "options": ["rbind", "ro"]},
                {"destination": "/b", "type": "bind", "source": "/k/b", "options": ["rbind", "ro"]},
            ],
        });
        let mut spec = spec(config).unwrap();
        spec.mark_file("c", 0);
        spec.leave_protection("c", 1);
        let mounts = &spec.config["mounts"];
        assert_eq!(
            mounts[0]["options"],
            json!(["rbind", "ro", mount_option::FILE])
        );
        assert_eq!(mounts[1]["options"], json!(["rbind"]));
    }

    #[test]
    fn block_devices_are_wished_for_and_renumbered_with_their_rules() {
        let config = json!({
            "root": {"path": "rootfs"},
            "linux": {
                "namespaces": namespaces_of_a_pod(),
                "devices": [
                    {"path": "/dev/tty", "type": "c", "major": 5, "minor": 0},
                    {"path": "/dev/data", "type": "b", "major": 254, "minor": 16},
                    {"path": "/dev/more", "type": "b", "major": 254, "minor": 0},
                ],
                "resources": {"devices": [
                    {"allow": false, "access": "rwm"},
                    {"allow": true, "type": "b", "major": 254, "minor": 16, "access": "rwm"},
                    {"allow": true, "type": "b", "major": 254, "minor": 0, "access": "r"},
                    {"allow": true, "type": "c", "major": 254, "minor": 0, "access": "r"},
                ]},
            },
        });
        let mut spec = GuestSpec::of("c", config.as_object().unwrap().clone()).unwrap();
        let wishes: Vec<_> = spec
            .blocks
            .iter()
            .map(|block| (block.host.major, block.host.minor, block.host.writable))
            .collect();
        assert_eq!(wishes, [(254, 16, true), (254, 0, false)]);
        spec.renumber(&[(253, 0), (254, 16)]);
        let linux = &spec.config["linux"];
        let of = |of: &Value| (of["major"].as_u64().unwrap(), of["minor"].as_u64().unwrap());
        assert_eq!(of(&linux["devices"][0]), (5, 0));
        assert_eq!(of(&linux["devices"][1]), (253, 0));
        assert_eq!(of(&linux["devices"][2]), (254, 16));
        let rules = &linux["resources"]["devices"];
        assert_eq!(of(&rules[1]), (253, 0));
        assert_eq!(of(&rules[2]), (254, 16));
        assert_eq!(of(&rules[3]), (254, 0));
    }

    fn namespaces_of_a_pod() -> Value {
        json!([
            {"type": "pid"},
            {"type": "ipc", "path": "/proc/1/ns/ipc"},
            {"type": "uts", "path": "/proc/1/ns/uts"},
            {"type": "mount"},
            {"type": "network", "path": "/var/run/netns/x"},
            {"type": "cgroup"},
        ])
    }

    fn spec(mut config: Value) -> Result<GuestSpec, SpecError> {
        let linux = config
            .as_object_mut()
            .unwrap()
            .entry("linux")
            .or_insert_with(|| json!({}));
        linux
            .as_object_mut()
            .unwrap()
            .entry("namespaces")
            .or_insert_with(namespaces_of_a_pod);
        GuestSpec::of("c", config.as_object().unwrap().clone())
    }

    #[test]
    fn namespaces_of_the_pod_are_the_guests() {
        let made = spec(json!({})).unwrap();
        assert_eq!(
            made.config["linux"]["namespaces"],
            json!([{"type": "mount"}, {"type": "cgroup"}])
        );
        assert_eq!(made.pids, PidNamespace::Own);
        let mut list = namespaces_of_a_pod();
        list[0]["path"] = "/proc/7/ns/pid".into();
        let made = spec(json!({"linux": {"namespaces": list}})).unwrap();
        assert_eq!(made.pids, PidNamespace::Joined("/proc/7/ns/pid".into()));
    }

    #[test]
    fn namespaces_of_the_host_are_refused_by_the_pods_field() {
        for (place, field) in [(0, "hostPID"), (1, "hostIPC"), (4, "hostNetwork")] {
            let mut list = namespaces_of_a_pod();
            list.as_array_mut().unwrap().remove(place);
            let error = spec(json!({"linux": {"namespaces": list}})).unwrap_err();
            assert!(error.to_string().contains(field), "{error}");
        }
    }

    #[test]
    fn mounts_from_the_host_move_into_the_tree() {
        let made = spec(json!({"mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/data", "type": "bind", "source": "/srv/data", "options": ["rbind", "ro", "rslave"]},
            {"destination": "/dev/shm", "type": "bind", "source": "/run/x/shm", "options": ["rbind"]},
            {"destination": "/host/sys", "source": "/sys", "options": ["bind"]},
            {"destination": "/etc/hosts", "source": "/run/x/hosts", "options": ["bind"]},
        ]}))
        .unwrap();
        assert_eq!(
            made.binds,
            [
                HostBind {
                    source: "/srv/data".into(),
                    recursive: true,
                    follows_host: true,
                    shared: false,
                    read_only: true,
                    all_read_only: false,
                    mapped: false,
                },
                HostBind {
                    source: "/run/x/hosts".into(),
                    recursive: false,
                    follows_host: false,
                    shared: false,
                    read_only: false,
                    all_read_only: false,
                    mapped: false,
                },
            ]
        );
        let source = |number: usize| made.config["mounts"][number]["source"].clone();
        assert_eq!(source(0), "proc");
        assert_eq!(source(1), guest_paths::member_mount("c", 0));
        assert_eq!(source(2), "/dev/shm");
        assert_eq!(source(3), "/sys");
        assert_eq!(source(4), guest_paths::member_mount("c", 1));
        assert_eq!(made.config["root"]["path"], guest_paths::member_rootfs("c"));
    }

    #[test]
    fn devices_of_the_host_are_refused_and_left_out_for_the_privileged() {
        let disk = json!({"path": "/dev/kvm", "type": "c", "major": 10, "minor": 232});
        let fuse = json!({"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229});
        let error =
            spec(json!({"linux": {"namespaces": namespaces_of_a_pod(), "devices": [fuse, disk]}}))
                .unwrap_err();
        assert_eq!(
            error,
            SpecError::HostDevice {
                path: "/dev/kvm".into()
            }
        );
        let made = spec(json!({"linux": {
            "namespaces": namespaces_of_a_pod(),
            "devices": [fuse, disk],
            "resources": {"devices": [{"allow": true, "access": "rwm"}]},
        }}))
        .unwrap();
        assert_eq!(made.config["linux"]["devices"], json!([fuse]));
    }

    #[test]
    fn hooks_and_wrong_types_are_refused_by_name() {
        let error = spec(json!({"hooks": {"prestart": [{"path": "/bin/x"}]}})).unwrap_err();
        assert!(error.to_string().contains("hooks.prestart"), "{error}");
        assert!(spec(json!({"hooks": {"prestart": []}})).is_ok());
        for config in [
            json!({"mounts": {}}),
            json!({"mounts": ["x"]}),
            json!({"mounts": [{"destination": "/x", "source": "y", "options": ["bind"]}]}),
            json!({"root": 1}),
            json!({"process": []}),
            json!({"linux": {"namespaces": [1]}}),
        ] {
            assert!(
                matches!(spec(config.clone()), Err(SpecError::Type { .. })),
                "{config}"
            );
        }
    }

    #[test]
    fn labels_of_the_hosts_security_modules_go() {
        let made = spec(json!({
            "annotations": {"a": "b"},
            "process": {"apparmorProfile": "x", "selinuxLabel": "y", "args": ["true"]},
            "linux": {"namespaces": namespaces_of_a_pod(), "cgroupsPath": "/x", "mountLabel": "z"},
        }))
        .unwrap();
        assert_eq!(made.config["process"], json!({"args": ["true"]}));
        assert!(made.config.get("annotations").is_none());
        let linux = made.config["linux"].as_object().unwrap();
        assert!(linux.get("cgroupsPath").is_none() && linux.get("mountLabel").is_none());
    }
}
