//! `vmpod debug`: an ephemeral container in a pod that runs. It is planned and composed here, as those of the manifest are, and
//! handed to the pod's supervisor as a file; then its output is followed as `vmpod attach` does.

use std::io::{self, Write};
use std::time::Duration;

use anyhow::{Context, bail};
use k8s_openapi::api::core::v1::Container;
use serde_json::{Value, json};
use vmpod_shim::images::Store;
use vmpod_shim::manifest::plan::PodPlan;
use vmpod_shim::oci::PodAddresses;
use vmpod_shim::pod::durable;
use vmpod_shim::pod::prepare::compose;
use vmpod_shim::pod::record::EphemeralRecord;
use vmpod_shim::pod::replan::{ReplanError, replan};
use vmpod_shim::pod::roots::Roots;
use vmpod_shim::pod::status::{ContainerState, PodStatus};

use crate::attach::{self, Attachment};
use crate::cli::{DebugArguments, Profile};
use crate::guest::{self, RunningPod};
use crate::images::Fetcher;
use crate::lifecycle;
use crate::run::host_facts;

/// How long the supervisor and the agent may take to start it.
const START_LIMIT: Duration = Duration::from_secs(60);

/// `vmpod debug`
pub fn debug(roots: &Roots, arguments: &DebugArguments) -> anyhow::Result<u8> {
    let pod = guest::running(roots, &arguments.pod)?;
    let supervisor = pod.supervisor()?;
    let name = arguments.container.clone().unwrap_or_else(fresh_name);
    if pod.record.every_container().any(|c| c.name == name) {
        bail!("pod {:?} has a container {name:?} already", pod.status.name);
    }
    if let Some(target) = &arguments.target
        && !pod.status.all_containers().any(|c| c.name == *target)
    {
        bail!(
            "pod {:?} has no container {target:?} to target",
            pod.status.name
        );
    }
    let object = object(&name, arguments)?;
    let plan = plan(&pod, &object)?;
    let container = plan
        .containers
        .last()
        .context("the plan has lost the new container")?;

    let store = Store::open(&roots.state)?;
    // Held until the container is on record as a user of its image.
    let lease = store.lease()?;
    let image = Fetcher::new(&store, arguments.quiet)?
        .with_secrets(plan.pull_secrets.clone())
        .image(&container.image, container.image_pull_policy)
        .with_context(|| format!("image {:?}", container.image))?;
    let place = pod.record.network.as_ref();
    let addresses = PodAddresses {
        pod_ip: place.map(|p| p.address.to_string()).unwrap_or_default(),
        host_ip: place
            .map(|p| p.subnet.gateway().to_string())
            .unwrap_or_default(),
    };
    let record = EphemeralRecord {
        container: compose(&plan, container, &image, &addresses)?,
        target: arguments.target.clone(),
        object,
    };
    let folder = pod.pod.paths.ephemeral();
    std::fs::create_dir_all(&folder)
        .with_context(|| format!("cannot make {}", folder.display()))?;
    durable::write_json(&folder.join(format!("{name}.json")), &record)?;
    lifecycle::signal(&supervisor, rustix::process::Signal::USR1);
    let started = |status: &PodStatus| {
        let found = status.ephemeral.iter().find(|c| c.name == name);
        found
            .filter(|c| c.state != ContainerState::Waiting)
            .cloned()
    };
    let what = format!("container {name:?} was not started");
    let status = pod.await_status(&what, START_LIMIT, started)?;
    drop(lease);

    if status.state == ContainerState::Terminated
        && let Some(exit) = status
            .exit
            .as_ref()
            .filter(|exit| exit.reason == "StartError")
    {
        bail!("container {name:?} was not started: {}", exit.message);
    }
    if arguments.detach {
        writeln!(io::stdout(), "{name}")?;
        return Ok(0);
    }
    attach::follow(
        &pod.pod.paths,
        0,
        Attachment {
            container_id: format!("{name}.0"),
            stdin: arguments.stdin && status.state == ContainerState::Running,
            tty: arguments.tty,
            from_start: true,
            name,
        },
    )
}

/// `debugger-` and five letters, as kubectl makes names up.
fn fresh_name() -> String {
    const LETTERS: &[u8] = b"bcdfghjklmnpqrstvwxz";
    let mut bytes = [0_u8; 5];
    let _ = rustix::rand::getrandom(&mut bytes[..], rustix::rand::GetRandomFlags::empty());
    let letters = bytes.iter().map(|byte| {
        let place = usize::from(*byte) % LETTERS.len();
        LETTERS.get(place).map_or('x', |letter| char::from(*letter))
    });
    format!("debugger-{}", letters.collect::<String>())
}

/// The container as `spec.ephemeralContainers` has it.
fn object(name: &str, arguments: &DebugArguments) -> anyhow::Result<Value> {
    let mut env = Vec::new();
    for setting in &arguments.env {
        let Some((name, value)) = setting.split_once('=') else {
            bail!("--env {setting:?}: expected NAME=VALUE");
        };
        env.push(json!({"name": name, "value": value}));
    }
    let mut object = json!({
        "name": name,
        "image": arguments.image,
        "stdin": arguments.stdin,
        "stdinOnce": arguments.stdin,
        "tty": arguments.tty,
        "securityContext": match arguments.profile {
            Profile::General => json!({"capabilities": {"add": ["SYS_PTRACE"]}}),
            Profile::Netadmin => json!({"capabilities": {"add": ["NET_ADMIN", "NET_RAW"]}}),
            Profile::Sysadmin => json!({"privileged": true}),
        },
    });
    if !env.is_empty() {
        object["env"] = Value::Array(env);
    }
    if !arguments.command.is_empty() {
        object["command"] = json!(arguments.command);
    }
    if let Some(target) = &arguments.target {
        object["targetContainerName"] = json!(target);
    }
    Ok(object)
}

/// The pod's plan with the container as its last one, so that it is checked and filled in as those of a manifest.
fn plan(pod: &RunningPod, object: &Value) -> anyhow::Result<PodPlan> {
    let mut container = object.clone();
    if let Some(fields) = container.as_object_mut() {
        fields.remove("targetContainerName");
    }
    let container: Container =
        serde_json::from_value(container).context("the new container is not one")?;
    let plan = replan(
        &pod.pod.paths,
        &pod.record,
        host_facts(),
        "the new container",
        |pod| {
            let spec = pod.spec.get_or_insert_default();
            spec.containers.push(container);
        },
    );
    match plan {
        // What is wrong with a command line has an exit status of its own.
        Err(ReplanError::Invalid(problems)) => Err(problems.into()),
        other => Ok(other?),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::{Cli, Command};

    #[test]
    fn object_of_a_command_line_is_an_ephemeral_container() {
        let words = "vmpod debug p --image busybox --target app -it -e A=1 -- sh -c x";
        let Command::Debug(arguments) = Cli::parse_from(words.split(' ')).command else {
            panic!("another verb");
        };
        let object = object("d", &arguments).unwrap();
        assert_eq!(object["command"], json!(["sh", "-c", "x"]));
        assert_eq!(object["targetContainerName"], "app");
        assert_eq!(object["env"], json!([{"name": "A", "value": "1"}]));
        assert_eq!(
            (&object["stdin"], &object["tty"]),
            (&json!(true), &json!(true))
        );
        let typed: k8s_openapi::api::core::v1::EphemeralContainer =
            serde_json::from_value(object).unwrap();
        assert_eq!(typed.name, "d");
    }

    #[test]
    fn fresh_names_are_names_of_containers() {
        let name = fresh_name();
        assert!(name.len() == 14 && name.starts_with("debugger-"), "{name}");
        assert!(name.bytes().all(|b| b.is_ascii_lowercase() || b == b'-'));
    }
}
