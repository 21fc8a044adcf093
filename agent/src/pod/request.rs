//! Checks a `StartPod` request and turns it into what the driver works with.

use std::collections::HashSet;
use std::time::Duration;

use protobuf::MessageField;
use vmpod_agent_protocol::limits::{CONTAINERS, NAME_BYTES, OCI_SPEC_BYTES};
use vmpod_agent_protocol::messages::{self, PodContainer, StartPodRequest};

use super::backoff::BackoffPolicy;
use super::machine::{PodSettings, RestartPolicy, Role, Traits};
use crate::probe::{self, Handler, HandlerError, Probe};

/// Longest container name (Kubernetes: a DNS label).
const CONTAINER_NAME_BYTES: usize = 63;

/// A request that cannot be meant.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("start pod: {what}")]
pub struct RequestError {
    what: String,
}

/// Probes and hooks of a container.
#[derive(Clone, Debug, Default)]
pub struct Care {
    /// Startup probe.
    pub startup: Option<Probe>,
    /// Readiness probe.
    pub readiness: Option<Probe>,
    /// Liveness probe.
    pub liveness: Option<Probe>,
    /// postStart hook.
    pub post_start: Option<Handler>,
    /// preStop hook.
    pub pre_stop: Option<Handler>,
}

impl Care {
    fn of(container: &PodContainer) -> Result<Self, RequestError> {
        let bad = |field: &str, error: &HandlerError| RequestError {
            what: format!("container {}: {field}: {error}", container.name),
        };
        let probe = |field: &str, told: &MessageField<messages::Probe>| {
            let told = told.as_ref().map(probe::probe);
            told.transpose().map_err(|error| bad(field, &error))
        };
        let hook = |field: &str, told: &MessageField<messages::Handler>| {
            let told = told.as_ref().map(probe::handler);
            told.transpose().map_err(|error| bad(field, &error))
        };
        Ok(Self {
            startup: probe("startup probe", &container.startup_probe)?,
            readiness: probe("readiness probe", &container.readiness_probe)?,
            liveness: probe("liveness probe", &container.liveness_probe)?,
            post_start: hook("postStart hook", &container.post_start)?,
            pre_stop: hook("preStop hook", &container.pre_stop)?,
        })
    }
}

/// A request that was checked. The lists are in the order of the settings' containers.
#[derive(Debug)]
pub struct Checked {
    /// What the machine is made from.
    pub settings: PodSettings,
    /// The containers.
    pub containers: Vec<PodContainer>,
    /// Their probes and hooks.
    pub care: Vec<Care>,
}

/// Checks a request.
///
/// # Errors
/// No main container, too many, a bad or repeated name, a probe or hook that cannot be meant, a field that exceeds its
/// limit.
pub fn check(request: StartPodRequest) -> Result<Checked, RequestError> {
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
    let roles: Vec<Role> = request
        .init_containers
        .iter()
        .map(role)
        .chain(request.containers.iter().map(|_| Role::Main))
        .collect();
    let care: Vec<Care> = request
        .init_containers
        .iter()
        .chain(&request.containers)
        .map(Care::of)
        .collect::<Result<_, _>>()?;
    let traits = |(role, care): (Role, &Care)| Traits {
        role,
        post_start: care.post_start.is_some(),
        pre_stop: care.pre_stop.is_some(),
        startup_probe: care.startup.is_some(),
        readiness_probe: care.readiness.is_some(),
    };
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
        containers: roles.into_iter().zip(&care).map(traits).collect(),
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
    Ok(Checked {
        settings,
        containers,
        care,
    })
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
        let Checked {
            settings,
            containers,
            ..
        } = check(good).unwrap();
        let roles: Vec<_> = settings.containers.iter().map(|t| t.role).collect();
        assert_eq!(roles, [Role::Sidecar, Role::Main, Role::Main]);
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
        let mut hooked = request(&["a"]);
        hooked.containers[0].pre_stop = Some(messages::Handler::default()).into();
        let said = check(hooked).unwrap_err().to_string();
        assert!(said.contains("container a: preStop hook"), "{said}");
        let mut large = request(&["a"]);
        large.containers[0].oci_spec = vec![0; OCI_SPEC_BYTES + 1];
        assert!(check(large).unwrap_err().to_string().contains("exceeds"));
    }
}
