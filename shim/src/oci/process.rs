//! The `process` object: arguments, environment, user, capabilities, limits.

use oci_spec::image::Config;
use serde_json::{Value, json};
use vmpod_agent_protocol::capability;

use super::{ComposeError, Composition};
use crate::manifest::environment::expand;
use crate::manifest::plan::{EnvValue, SecurityPlan};

const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What containerd and Docker leave a container that asks for nothing.
const DEFAULT_CAPABILITIES: [&str; 14] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "FSETID",
    "FOWNER",
    "MKNOD",
    "NET_RAW",
    "SETGID",
    "SETUID",
    "SETFCAP",
    "SETPCAP",
    "NET_BIND_SERVICE",
    "SYS_CHROOT",
    "KILL",
    "AUDIT_WRITE",
];

/// Environment variables in order, each name once.
pub(super) struct Environment {
    /// The whole environment.
    all: Vec<(String, String)>,
    /// The manifest's part, which `$(VAR)` may refer to.
    manifest: Vec<(String, String)>,
}

impl Environment {
    /// Expands `$(VAR)` as `command`, `args` and `subPathExpr` have it.
    pub(super) fn expand(&self, text: &str) -> String {
        expand(text, |name| get(&self.manifest, name).map(str::to_owned))
    }
}

fn get<'a>(list: &'a [(String, String)], name: &str) -> Option<&'a str> {
    list.iter()
        .find(|(n, _)| n == name)
        .map(|(_, v)| v.as_str())
}

fn set(list: &mut Vec<(String, String)>, name: &str, value: &str) {
    match list.iter_mut().find(|(n, _)| n == name) {
        Some((_, old)) => value.clone_into(old),
        None => list.push((name.to_owned(), value.to_owned())),
    }
}

/// The image's variables, then the manifest's, then what every container has.
pub(super) fn environment(c: &Composition<'_>) -> Environment {
    let mut manifest: Vec<(String, String)> = Vec::new();
    for variable in &c.container.env {
        let value = match &variable.value {
            EnvValue::Literal(text) => text.clone(),
            EnvValue::Template(text) => {
                expand(text, |name| get(&manifest, name).map(str::to_owned))
            }
            EnvValue::PodIp => c.addresses.pod_ip.clone(),
            EnvValue::HostIp => c.addresses.host_ip.clone(),
            EnvValue::Machine(share) => share.amount(c.plan.vcpus, c.plan.memory_mib).to_string(),
        };
        set(&mut manifest, &variable.name, &value);
    }
    let mut all = vec![
        ("PATH".to_owned(), DEFAULT_PATH.to_owned()),
        ("HOSTNAME".to_owned(), c.plan.hostname.clone()),
    ];
    if c.container.tty {
        set(&mut all, "TERM", "xterm");
    }
    if let Some(home) = &c.user.home {
        set(&mut all, "HOME", home);
    }
    for variable in image_config(c)
        .and_then(|i| i.env().as_ref())
        .into_iter()
        .flatten()
    {
        if let Some((name, value)) = variable.split_once('=') {
            set(&mut all, name, value);
        }
    }
    for (name, value) in &manifest {
        set(&mut all, name, value);
    }
    Environment { all, manifest }
}

fn image_config<'a>(c: &Composition<'a>) -> Option<&'a Config> {
    c.image.config().as_ref()
}

fn arguments(c: &Composition<'_>, environment: &Environment) -> Result<Vec<String>, ComposeError> {
    let image = |list: fn(&Config) -> &Option<Vec<String>>| {
        image_config(c)
            .and_then(|i| list(i).clone())
            .unwrap_or_default()
    };
    let expanded = |list: &[String]| {
        list.iter()
            .map(|a| environment.expand(a))
            .collect::<Vec<_>>()
    };
    // Kubernetes: a command replaces the image's entrypoint and its arguments; args alone replace only the latter.
    let args = match (&c.container.command, &c.container.args) {
        (Some(command), args) => [
            expanded(command),
            expanded(args.as_deref().unwrap_or_default()),
        ]
        .concat(),
        (None, Some(args)) => [image(Config::entrypoint), expanded(args)].concat(),
        (None, None) => [image(Config::entrypoint), image(Config::cmd)].concat(),
    };
    if args.is_empty() {
        return Err(ComposeError::NoCommand {
            container: c.container.name.clone(),
            image: c.container.image.clone(),
        });
    }
    Ok(args)
}

/// The `process` object.
pub(super) fn process(
    c: &Composition<'_>,
    environment: &Environment,
) -> Result<Value, ComposeError> {
    let security = &c.container.security;
    let mut groups = security.supplemental_groups.clone();
    if security.merge_image_groups {
        groups.extend(&c.user.additional_gids);
    }
    groups.sort_unstable();
    groups.dedup();
    let cwd = c
        .container
        .working_dir
        .clone()
        .or_else(|| image_config(c).and_then(|i| i.working_dir().clone()))
        .filter(|d| !d.is_empty())
        .unwrap_or_else(|| "/".into());
    let capabilities = capabilities(security);
    let env: Vec<String> = environment
        .all
        .iter()
        .map(|(n, v)| format!("{n}={v}"))
        .collect();
    Ok(json!({
        "terminal": c.container.tty,
        "user": { "uid": c.user.uid, "gid": c.user.gid, "additionalGids": groups },
        "args": arguments(c, environment)?,
        "env": env,
        "cwd": if cwd.starts_with('/') { cwd } else { format!("/{cwd}") },
        "capabilities": {
            "bounding": capabilities,
            "effective": capabilities,
            "permitted": capabilities,
            "inheritable": [],
            "ambient": [],
        },
        "noNewPrivileges": security.no_new_privileges,
        "oomScoreAdj": super::resources::oom_score_adj(c.plan, c.container),
    }))
}

fn capabilities(security: &SecurityPlan) -> Vec<String> {
    let has = |list: &[String], name: &str| list.iter().any(|c| c == name);
    let all = security.privileged || has(&security.add_capabilities, "ALL");
    let drop_all = !security.privileged && has(&security.drop_capabilities, "ALL");
    capability::CAPABILITIES
        .iter()
        .filter(|name| {
            let added = all || has(&security.add_capabilities, name);
            let default = !drop_all && DEFAULT_CAPABILITIES.contains(name);
            let dropped = !security.privileged && has(&security.drop_capabilities, name);
            (added || default) && !dropped
        })
        .map(|name| format!("CAP_{name}"))
        .collect()
}
