//! The `-info` flag: what this runtime can do, which containerd asks from 2.0 on and tells kubelets (`RuntimeInfo` of
//! containerd's api/types/introspection.proto, with the features structure of the OCI runtime specification).

use std::io;

use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::{Message, MessageField};
use containerd_shim_protos::types::introspection::{RuntimeInfo, RuntimeVersion};
use serde_json::{Value, json};

/// Type of the features (containerd's typeurl of runtime-spec types).
const FEATURES: &str = "types.containerd.io/opencontainers/runtime-spec/1/features/Features";

/// Mount options that the agent knows (OCI runtime specification, config.md, "Linux mount options").
const MOUNT_OPTIONS: [&str; 27] = [
    "async",
    "atime",
    "bind",
    "defaults",
    "dev",
    "diratime",
    "dirsync",
    "exec",
    "mand",
    "noatime",
    "nodev",
    "nodiratime",
    "noexec",
    "nosuid",
    "private",
    "rbind",
    "relatime",
    "ro",
    "rprivate",
    "rro",
    "rshared",
    "rslave",
    "rw",
    "shared",
    "slave",
    "strictatime",
    "suid",
];

/// The answer, as bytes, of the runtime called `name`.
///
/// # Errors
/// It cannot be encoded.
pub fn info(name: &str) -> io::Result<Vec<u8>> {
    let mut version = RuntimeVersion::new();
    version.version = env!("CARGO_PKG_VERSION").to_owned();
    let mut info = RuntimeInfo::new();
    info.name = name.to_owned();
    info.version = MessageField::some(version);
    info.features = MessageField::some(Any {
        type_url: FEATURES.to_owned(),
        value: features().to_string().into_bytes(),
        ..Default::default()
    });
    info.write_to_bytes().map_err(io::Error::other)
}

/// OCI runtime specification, features.md. A pod has a user namespace where both that and id-mapped mounts are told.
fn features() -> Value {
    json!({
        "ociVersionMin": "1.0.0",
        "ociVersionMax": "1.2.0",
        "hooks": [],
        "mountOptions": MOUNT_OPTIONS,
        "linux": {
            "namespaces": ["cgroup", "ipc", "mount", "network", "pid", "user", "uts"],
            "cgroup": {"v1": false, "v2": true, "systemd": false, "systemdUser": false, "rdma": false},
            "seccomp": {"enabled": true},
            "apparmor": {"enabled": false},
            "selinux": {"enabled": false},
            "intelRdt": {"enabled": false},
            "mountExtensions": {"idmap": {"enabled": true}},
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn info_says_that_recursive_read_only_and_id_mapped_mounts_work() {
        let bytes = info("io.containerd.x.v2").unwrap();
        let told = RuntimeInfo::parse_from_bytes(&bytes).unwrap();
        assert_eq!(told.name, "io.containerd.x.v2");
        assert_eq!(told.features.type_url, FEATURES);
        let features: Value = serde_json::from_slice(&told.features.value).unwrap();
        let options = features["mountOptions"].as_array().unwrap();
        assert!(options.contains(&json!("rro")));
        let idmap = &features["linux"]["mountExtensions"]["idmap"]["enabled"];
        assert_eq!(idmap, &json!(true));
        let namespaces = features["linux"]["namespaces"].as_array().unwrap();
        assert!(namespaces.contains(&json!("user")));
    }
}
