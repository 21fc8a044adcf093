//! Checks a `StartPod` request and turns it into what the driver works with.

use std::collections::HashSet;
use std::time::Duration;

use vmpod_agent_protocol::limits::{CONTAINERS, NAME_BYTES, OCI_SPEC_BYTES};
use vmpod_agent_protocol::messages::{self, PodContainer, StartPodRequest};

use super::backoff::BackoffPolicy;
use super::machine::{PodSettings, RestartPolicy, Role};

/// Longest container name (Kubernetes: a DNS label).
const CONTAINER_NAME_BYTES: usize = 63;

/// A request that cannot be meant.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("start pod: {what}")]
pub struct RequestError {
    what: String,
}

/// Checks a request. The containers come back in the order of the settings' roles.
///
/// # Errors
/// No main container, too many, a bad or repeated name, a field that exceeds its limit.
pub fn check(request: StartPodRequest) -> Result<(PodSettings, Vec<PodContainer>), RequestError> {
    let fail = |what: String| Err(RequestError { what });
    let total = request
        .init_containers
        .len()
        .saturating_add(request.containers.len());
    if request.containers.is_empty() {
        return fail("a pod has at least one container besides init containers".into());
    }
    if total > CONTAINERS {
        return fail(format!(
            "{total} containers exceed the limit of {CONTAINERS}"
        ));
    }
    let mut names = HashSet::new();
    for container in request.init_containers.iter().chain(&request.containers) {
        let name = &container.name;
        let letters = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        if name.is_empty() || name.len() > CONTAINER_NAME_BYTES || !name.bytes().all(letters) {
            return fail(format!("container name {name:?} is no DNS label"));
        }
        if !names.insert(name.clone()) {
            return fail(format!("container name {name:?} is there twice"));
        }
        if container.oci_spec.len() > OCI_SPEC_BYTES {
            return fail(format!(
                "container {name}: a configuration of {} bytes exceeds the limit of {OCI_SPEC_BYTES}",
                container.oci_spec.len()
            ));
        }
        if container
            .rootfs
            .len()
            .max(container.termination_message_path.len())
            > NAME_BYTES
        {
            return fail(format!(
                "container {name}: a path exceeds the limit of {NAME_BYTES} bytes"
            ));
        }
        if container.stop_signal > 64 {
            return fail(format!(
                "container {name}: there is no signal {}",
                container.stop_signal
            ));
        }
    }
    let role = |container: &PodContainer| {
        if container.sidecar {
            Role::Sidecar
        } else {
            Role::Init
        }
    };
    let roles = request
        .init_containers
        .iter()
        .map(role)
        .chain(request.containers.iter().map(|_| Role::Main))
        .collect();
    let restart_policy = match request.restart_policy.enum_value() {
        Ok(messages::RestartPolicy::ALWAYS) => RestartPolicy::Always,
        Ok(messages::RestartPolicy::ON_FAILURE) => RestartPolicy::OnFailure,
        Ok(messages::RestartPolicy::NEVER) => RestartPolicy::Never,
        Err(number) => return fail(format!("there is no restart policy {number}")),
    };
    let default = BackoffPolicy::default();
    let millis = |ms: u32, default: Duration| {
        if ms == 0 {
            default
        } else {
            Duration::from_millis(u64::from(ms))
        }
    };
    let settings = PodSettings {
        roles,
        restart_policy,
        backoff: BackoffPolicy {
            initial: millis(request.backoff_initial_ms, default.initial),
            limit: millis(request.backoff_limit_ms, default.limit),
            reset: millis(request.backoff_reset_ms, default.reset),
        },
        grace: Duration::from_secs(u64::from(request.termination_grace_seconds)),
        deadline: (request.active_deadline_seconds > 0)
            .then(|| Duration::from_secs(u64::from(request.active_deadline_seconds))),
    };
    let mut containers = request.init_containers;
    containers.extend(request.containers);
    Ok((settings, containers))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(names: &[&str]) -> StartPodRequest {
        StartPodRequest {
            containers: names
                .iter()
                .map(|name| PodContainer {
                    name: (*name).into(),
                    ..Default::default()
                })
                .collect(),
            ..Default::default()
        }
    }

    #[test]
    fn check_of_good_names_keeps_order_and_defaults() {
        let mut good = request(&["a", "b-1"]);
        good.init_containers = vec![PodContainer {
            name: "s".into(),
            sidecar: true,
            ..Default::default()
        }];
        let (settings, containers) = check(good).unwrap();
        assert_eq!(settings.roles, [Role::Sidecar, Role::Main, Role::Main]);
        assert_eq!(containers[2].name, "b-1");
        assert_eq!(settings.backoff, BackoffPolicy::default());
    }

    #[test]
    fn check_of_bad_requests_names_what_is_wrong() {
        for (bad, word) in [
            (request(&[]), "at least one"),
            (request(&["a", "a"]), "twice"),
            (request(&["a/../b"]), "DNS label"),
            (request(&[""]), "DNS label"),
        ] {
            let said = check(bad).unwrap_err().to_string();
            assert!(said.contains(word), "{said}");
        }
        let mut large = request(&["a"]);
        large.containers[0].oci_spec = vec![0; OCI_SPEC_BYTES + 1];
        assert!(check(large).unwrap_err().to_string().contains("exceeds"));
    }
}
