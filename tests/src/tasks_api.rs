//! containerd's own gRPC API, as far as a container that runs once needs it: what `ctr run --rm` does, without the start of a
//! client for each. Messages are those of `containerd/api`, with the fields that are used here.

use std::collections::HashMap;

use prost::Message;
use serde_json::json;

use crate::{Container, cri};

const SNAPSHOTTER: &str = "overlayfs";

/// Type of an OCI configuration in an `Any`.
const SPEC: &str = "types.containerd.io/opencontainers/runtime-spec/1/Spec";

/// Keeps a snapshot that nobody refers to yet from being collected.
const ROOT_LABEL: &str = "containerd.io/gc.root";

#[derive(Clone, PartialEq, Message)]
struct Any {
    #[prost(string, tag = "1")]
    type_url: String,
    #[prost(bytes = "vec", tag = "2")]
    value: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
struct Nothing {}

#[derive(Clone, PartialEq, Message)]
struct Mount {
    #[prost(string, tag = "1")]
    kind: String,
    #[prost(string, tag = "2")]
    source: String,
    #[prost(string, tag = "3")]
    target: String,
    #[prost(string, repeated, tag = "4")]
    options: Vec<String>,
}

/// `PrepareSnapshotRequest`; the first two fields are also those of the requests that look at one or remove it.
#[derive(Clone, PartialEq, Message)]
struct Snapshot {
    #[prost(string, tag = "1")]
    snapshotter: String,
    #[prost(string, tag = "2")]
    key: String,
    #[prost(string, tag = "3")]
    parent: String,
    #[prost(map = "string, string", tag = "4")]
    labels: HashMap<String, String>,
}

#[derive(Clone, PartialEq, Message)]
struct Mounts {
    #[prost(message, repeated, tag = "1")]
    mounts: Vec<Mount>,
}

#[derive(Clone, PartialEq, Message)]
struct SnapshotInfo {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    parent: String,
}

#[derive(Clone, PartialEq, Message)]
struct SnapshotAnswer {
    #[prost(message, optional, tag = "1")]
    info: Option<SnapshotInfo>,
}

#[derive(Clone, PartialEq, Message)]
struct Runtime {
    #[prost(string, tag = "1")]
    name: String,
}

#[derive(Clone, PartialEq, Message)]
struct ContainerRecord {
    #[prost(string, tag = "1")]
    id: String,
    #[prost(message, optional, tag = "4")]
    runtime: Option<Runtime>,
    #[prost(message, optional, tag = "5")]
    spec: Option<Any>,
    #[prost(string, tag = "6")]
    snapshotter: String,
    #[prost(string, tag = "7")]
    snapshot_key: String,
}

#[derive(Clone, PartialEq, Message)]
struct CreateContainer {
    #[prost(message, optional, tag = "1")]
    container: Option<ContainerRecord>,
}

#[derive(Clone, PartialEq, Message)]
struct CreateTask {
    #[prost(string, tag = "1")]
    container_id: String,
    #[prost(message, repeated, tag = "3")]
    rootfs: Vec<Mount>,
}

/// A request that names a container and nothing else.
#[derive(Clone, PartialEq, Message)]
struct Named {
    #[prost(string, tag = "1")]
    id: String,
}

#[derive(Clone, PartialEq, Message)]
struct Exit {
    #[prost(uint32, tag = "1")]
    status: u32,
}

/// Containers of vmpod from the image of another container, each a machine of its own.
#[derive(Debug)]
pub struct OneOff {
    parent: String,
}

impl OneOff {
    /// With the image of `container`.
    ///
    /// # Panics
    /// When containerd does not know its snapshot.
    #[must_use]
    pub fn like(container: &Container<'_>) -> Self {
        let answer: SnapshotAnswer = call(
            "/containerd.services.snapshots.v1.Snapshots/Stat",
            snapshot(&container.id),
        );
        Self {
            parent: answer.info.expect("a snapshot").parent,
        }
    }

    /// Makes container `id`, runs `words` in it to their end and takes everything away. Returns the exit status.
    ///
    /// # Panics
    /// When containerd refuses any of it.
    #[must_use]
    pub fn run(&self, id: &str, words: &[&str]) -> u32 {
        let named = || Named { id: id.to_owned() };
        let mut wanted = snapshot(id);
        wanted.parent.clone_from(&self.parent);
        wanted.labels.insert(ROOT_LABEL.into(), "now".into());
        let made: Mounts = call(
            "/containerd.services.snapshots.v1.Snapshots/Prepare",
            wanted,
        );
        let container = ContainerRecord {
            id: id.to_owned(),
            runtime: Some(Runtime {
                name: "io.containerd.vmpod.v2".into(),
            }),
            spec: Some(Any {
                type_url: SPEC.into(),
                value: spec(words),
            }),
            snapshotter: SNAPSHOTTER.into(),
            snapshot_key: id.to_owned(),
        };
        let _: Nothing = call(
            "/containerd.services.containers.v1.Containers/Create",
            CreateContainer {
                container: Some(container),
            },
        );
        let _: Nothing = call(
            "/containerd.services.tasks.v1.Tasks/Create",
            CreateTask {
                container_id: id.to_owned(),
                rootfs: made.mounts,
            },
        );
        let _: Nothing = call("/containerd.services.tasks.v1.Tasks/Start", named());
        let exit: Exit = call("/containerd.services.tasks.v1.Tasks/Wait", named());
        let _: Nothing = call("/containerd.services.tasks.v1.Tasks/Delete", named());
        let _: Nothing = call(
            "/containerd.services.containers.v1.Containers/Delete",
            named(),
        );
        let _: Nothing = call(
            "/containerd.services.snapshots.v1.Snapshots/Remove",
            snapshot(id),
        );
        exit.status
    }
}

fn snapshot(key: &str) -> Snapshot {
    Snapshot {
        snapshotter: SNAPSHOTTER.into(),
        key: key.to_owned(),
        ..Default::default()
    }
}

/// An OCI configuration for `words`, without anything that such a container could do without.
fn spec(words: &[&str]) -> Vec<u8> {
    let namespaces = ["pid", "ipc", "uts", "mount", "network"].map(|kind| json!({"type": kind}));
    let config = json!({
        "ociVersion": "1.0.2",
        "process": {
            "args": words, "cwd": "/", "env": ["PATH=/bin:/usr/bin:/sbin"], "user": {"uid": 0, "gid": 0},
        },
        "root": {"path": "rootfs"},
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
        ],
        "linux": {"namespaces": namespaces, "resources": {"devices": [{"allow": false, "access": "rwm"}]}},
    });
    serde_json::to_vec(&config).expect("JSON")
}

fn call<Q, A>(path: &'static str, message: Q) -> A
where
    Q: Message + Default + 'static,
    A: Message + Default + 'static,
{
    cri()
        .call_path(path, message)
        .unwrap_or_else(|status| panic!("{path}: {}", status.message()))
}
