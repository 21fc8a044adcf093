//! The part of the CRI's `PodSandboxConfig` (k8s.io/cri-api, runtime/v1) that says something about a machine, as containerd
//! hands it over with `CreateSandbox`. Fields that are not here are skipped when it is decoded.

use std::collections::HashMap;

use prost::Message;

/// Name of the message in a `google.protobuf.Any`.
pub const TYPE: &str = "runtime.v1.PodSandboxConfig";

/// A pod as the CRI describes it.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct PodSandboxConfig {
    /// Host name; empty: none is wanted.
    #[prost(string, tag = "2")]
    pub hostname: String,
    /// What stands in `/etc/resolv.conf`; `None`: what stands in the host's.
    #[prost(message, optional, tag = "4")]
    pub dns_config: Option<DnsConfig>,
    /// The pod's annotations.
    #[prost(map = "string, string", tag = "7")]
    pub annotations: HashMap<String, String>,
    /// What Linux pods have.
    #[prost(message, optional, tag = "8")]
    pub linux: Option<LinuxPodSandboxConfig>,
}

/// `DNSConfig`.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct DnsConfig {
    /// Name servers.
    #[prost(string, repeated, tag = "1")]
    pub servers: Vec<String>,
    /// Search domains.
    #[prost(string, repeated, tag = "2")]
    pub searches: Vec<String>,
    /// Options.
    #[prost(string, repeated, tag = "3")]
    pub options: Vec<String>,
}

/// `LinuxPodSandboxConfig`.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct LinuxPodSandboxConfig {
    /// Parent of the pod's cgroups.
    #[prost(string, tag = "1")]
    pub cgroup_parent: String,
    /// Namespaces.
    #[prost(message, optional, tag = "2")]
    pub security_context: Option<SecurityContext>,
    /// sysctls, dotted names.
    #[prost(map = "string, string", tag = "3")]
    pub sysctls: HashMap<String, String>,
    /// What the containers may use altogether.
    #[prost(message, optional, tag = "5")]
    pub resources: Option<Resources>,
}

/// `LinuxSandboxSecurityContext`.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct SecurityContext {
    /// Namespaces.
    #[prost(message, optional, tag = "1")]
    pub namespace_options: Option<NamespaceOption>,
}

/// `NamespaceOption`: `NamespaceMode` each.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct NamespaceOption {
    /// Network.
    #[prost(int32, tag = "1")]
    pub network: i32,
    /// Processes.
    #[prost(int32, tag = "2")]
    pub pid: i32,
    /// IPC.
    #[prost(int32, tag = "3")]
    pub ipc: i32,
    /// Users; `None`: the host's.
    #[prost(message, optional, tag = "5")]
    pub userns_options: Option<UserNamespace>,
}

/// `UserNamespace`.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct UserNamespace {
    /// `NamespaceMode`: POD (0) or NODE.
    #[prost(int32, tag = "1")]
    pub mode: i32,
    /// User ids.
    #[prost(message, repeated, tag = "2")]
    pub uids: Vec<IdMapping>,
    /// Group ids.
    #[prost(message, repeated, tag = "3")]
    pub gids: Vec<IdMapping>,
}

/// `IDMapping`.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct IdMapping {
    /// First id outside.
    #[prost(uint32, tag = "1")]
    pub host_id: u32,
    /// First id in the pod.
    #[prost(uint32, tag = "2")]
    pub container_id: u32,
    /// How many.
    #[prost(uint32, tag = "3")]
    pub length: u32,
}

/// `NamespaceMode.NODE`: the host's.
pub const NODE: i32 = 2;

/// `LinuxContainerResources`.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Resources {
    /// Microseconds.
    #[prost(int64, tag = "1")]
    pub cpu_period: i64,
    /// Microseconds a period; not positive: no limit.
    #[prost(int64, tag = "2")]
    pub cpu_quota: i64,
    /// Bytes; not positive: no limit.
    #[prost(int64, tag = "4")]
    pub memory_limit_in_bytes: i64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn config_of_the_cri_is_read_and_what_is_unknown_is_skipped() {
        // hostname (2), log_directory (3, unknown here), linux (8) with cgroup_parent (1) and resources (5) with
        // memory_limit_in_bytes (4) of 128.
        let bytes = b"\x12\x01h\x1a\x02/l\x42\x08\x0a\x01p\x2a\x03\x20\x80\x01";
        let config = PodSandboxConfig::decode(&bytes[..]).unwrap();
        assert_eq!(config.hostname, "h");
        let linux = config.linux.unwrap();
        assert_eq!(linux.cgroup_parent, "p");
        assert_eq!(linux.resources.unwrap().memory_limit_in_bytes, 128);
        assert!(PodSandboxConfig::decode(&b"\x12\x7fh"[..]).is_err());
    }
}
