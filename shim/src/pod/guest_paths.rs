//! Where the parts of a pod lie in the guest. The supervisor makes them there; an OCI configuration names them.

use vmpod_agent_protocol::{GUEST_ROOT, GUEST_SHARED};

/// A volume of the shared tree: a directory, or a file for a hostPath that is one.
#[must_use]
pub fn volume(name: &str) -> String {
    format!("{GUEST_SHARED}/volumes/{name}")
}

/// A volume in guest memory.
#[must_use]
pub fn memory_volume(name: &str) -> String {
    format!("{GUEST_ROOT}/memory/{name}")
}

/// Root file system of one attempt of a container.
#[must_use]
pub fn rootfs(container: &str, attempt: u32) -> String {
    format!("{GUEST_SHARED}/containers/{container}.{attempt}/rootfs")
}

/// File to be mounted at a container's `terminationMessagePath`.
#[must_use]
pub fn termination_log(container: &str) -> String {
    format!("{GUEST_SHARED}/containers/{container}/termination-log")
}

/// `/etc/hosts` of the pod.
#[must_use]
pub fn hosts() -> String {
    format!("{GUEST_SHARED}/etc/hosts")
}

/// `/etc/hostname` of the pod.
#[must_use]
pub fn hostname() -> String {
    format!("{GUEST_SHARED}/etc/hostname")
}

/// `/etc/resolv.conf` of the pod.
#[must_use]
pub fn resolv_conf() -> String {
    format!("{GUEST_SHARED}/etc/resolv.conf")
}

/// Where each container finds the pod's files of `/etc`, and where they lie.
#[must_use]
pub fn etc() -> [(&'static str, String); 3] {
    [
        ("/etc/hosts", hosts()),
        ("/etc/hostname", hostname()),
        ("/etc/resolv.conf", resolv_conf()),
    ]
}

/// Root file system of a container that came by itself, not with a whole pod.
#[must_use]
pub fn member_rootfs(container: &str) -> String {
    format!("{GUEST_SHARED}/containers/{container}/rootfs")
}

/// A file or directory of the host that such a container mounts, by number.
#[must_use]
pub fn member_mount(container: &str, number: usize) -> String {
    format!("{GUEST_SHARED}/containers/{container}/mounts/{number}")
}
