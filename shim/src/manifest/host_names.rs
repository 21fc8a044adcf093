//! The names of a pod in its own eyes: its host name, and what `/etc/hosts` calls it.

use k8s_openapi::api::core::v1::PodSpec;

use super::problem::Collector;

/// Longest host name of Linux (sethostname(2)).
const HOSTNAME_BYTES: usize = 64;

/// Kubernetes' default, as there is no cluster to ask.
const CLUSTER_DOMAIN: &str = "svc.cluster.local";

pub(super) struct HostNames {
    /// What `hostname` prints.
    pub(super) hostname: String,
    /// Names of the pod's address, the full one first.
    pub(super) in_hosts: Vec<String>,
}

impl HostNames {
    pub(super) fn of(
        spec: &PodSpec,
        name: &str,
        namespace: &str,
        collector: &mut Collector<'_>,
    ) -> Self {
        if let Some(name) = &spec.hostname_override {
            return Self {
                hostname: name.clone(),
                in_hosts: vec![name.clone()],
            };
        }
        let cut = name.get(..63).unwrap_or(name).trim_end_matches(['-', '.']);
        let short = spec.hostname.as_deref().unwrap_or(cut).to_owned();
        let Some(subdomain) = spec.subdomain.as_deref().filter(|s| !s.is_empty()) else {
            return Self {
                hostname: short.clone(),
                in_hosts: vec![short],
            };
        };
        let full = format!("{short}.{subdomain}.{namespace}.{CLUSTER_DOMAIN}");
        let as_full = spec.set_hostname_as_fqdn == Some(true);
        if as_full && full.len() > HOSTNAME_BYTES {
            collector.invalid(
                "spec.setHostnameAsFQDN",
                true,
                &format!(
                    "the name {full} has {} characters, and a host name at most {HOSTNAME_BYTES}",
                    full.len()
                ),
            );
        }
        Self {
            hostname: if as_full { full.clone() } else { short.clone() },
            in_hosts: vec![full, short],
        }
    }
}
