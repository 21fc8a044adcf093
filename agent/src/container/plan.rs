//! An OCI runtime specification, checked and turned into what the container's first process does step by step.
//!
//! Pure: parses and refuses, touches nothing. Whatever a specification can get wrong by itself is found here, before
//! anything exists, as a sentence that names the field.

use std::path::{Path, PathBuf};

use nix::mount::MsFlags;
use oci_spec::runtime::{
    Hook, LinuxIdMapping, LinuxNamespaceType, LinuxPersonalityDomain, LinuxResources,
};
use serde_json::Value;

use super::device::{Device, devices};
use super::mount_options::{MountOptions, root_propagation};
use super::oci_config::Config;
use super::process_plan::ProcessPlan;
use super::seccomp::{self, Filter};
use super::sysctl::sysctls;

/// Longest container or exec id; it names a control group directory.
const ID_BYTES: usize = 200;

/// A specification that cannot be honoured; the text is a sentence for the host.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct PlanError(pub String);

impl PlanError {
    pub(super) fn new(text: impl Into<String>) -> Self {
        PlanError(text.into())
    }
}

/// A mount of the specification.
#[derive(Clone, Debug)]
pub struct Mount {
    /// Absolute path in the container.
    pub destination: PathBuf,
    /// File system type; irrelevant for bind mounts.
    pub kind: String,
    /// Guest path of a bind mount; otherwise the file system's own notion.
    pub source: String,
    /// Parsed options.
    pub options: MountOptions,
}

/// The container's file system.
#[derive(Clone, Debug)]
pub struct RootPlan {
    /// Guest path of the root directory.
    pub path: PathBuf,
    /// Whether `/` is write-protected at the end.
    pub readonly: bool,
    /// `linux.rootfsPropagation`.
    pub propagation: Option<MsFlags>,
    /// In order.
    pub mounts: Vec<Mount>,
    /// Default devices and those of the specification.
    pub devices: Vec<Device>,
    /// Devices are bind-mounted from the agent's (user namespace).
    pub bind_devices: bool,
    /// Hidden paths.
    pub masked_paths: Vec<PathBuf>,
    /// Write-protected paths.
    pub readonly_paths: Vec<PathBuf>,
    /// Whether a cgroup mount shows the container's group as the root of the hierarchy.
    pub own_cgroup_namespace: bool,
    /// The container's control group, as a guest path.
    pub cgroup: PathBuf,
}

/// Where the process's PID namespace comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PidNamespace {
    /// The pod's shared one where there is one, else a new one: a container is never in the agent's own.
    OfPod,
    /// Joined by path.
    Path(PathBuf),
}

/// Namespaces.
#[derive(Clone, Debug)]
pub struct NamespacePlan {
    /// `CLONE_NEW*` flags, mount included, PID excluded.
    pub new: libc::c_int,
    /// Namespaces to join: type and path.
    pub join: Vec<(libc::c_int, PathBuf)>,
    /// PID namespace.
    pub pid: PidNamespace,
    /// The container is in the pod's own user namespace.
    pub users_of_pod: bool,
    /// User id mappings of a new user namespace.
    pub uid_mappings: Vec<LinuxIdMapping>,
    /// Group id mappings of a new user namespace.
    pub gid_mappings: Vec<LinuxIdMapping>,
}

impl NamespacePlan {
    /// Whether the container has a user namespace of its own.
    pub fn new_user(&self) -> bool {
        self.new & libc::CLONE_NEWUSER != 0
    }

    /// Whether the container has another user namespace than the agent.
    pub fn other_users(&self) -> bool {
        self.users_of_pod || self.new_user()
    }

    /// The user to whom a process has to give its pipes itself; `None`: the agent has done it.
    pub fn pipe_owner(&self, uid: u32) -> Option<u32> {
        (uid != 0 && !self.users_of_pod).then_some(uid)
    }
}

/// Hooks by the moment at which they run.
#[derive(Clone, Debug, Default)]
pub struct HookPlan {
    /// In the agent's namespaces, before the pivot (`prestart` and `createRuntime`).
    pub create_runtime: Vec<Hook>,
    /// In the container's namespaces, before the pivot.
    pub create_container: Vec<Hook>,
    /// In the container, before its program.
    pub start_container: Vec<Hook>,
    /// In the agent's namespaces, after the start.
    pub poststart: Vec<Hook>,
    /// In the agent's namespaces, after the deletion.
    pub poststop: Vec<Hook>,
}

/// Everything needed to make a container.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Container id.
    pub id: String,
    /// File system.
    pub root: RootPlan,
    /// Namespaces.
    pub namespaces: NamespacePlan,
    /// Host name for a UTS namespace of its own.
    pub hostname: Option<String>,
    /// Domain name for a UTS namespace of its own.
    pub domainname: Option<String>,
    /// Paths below /proc/sys and their values.
    pub sysctls: Vec<(PathBuf, String)>,
    /// The first process.
    pub process: ProcessPlan,
    /// The same as JSON: the defaults of execs.
    pub process_json: Value,
    /// Limits and device rules.
    pub resources: LinuxResources,
    /// System call filter of all processes.
    pub seccomp: Option<Filter>,
    /// personality(2) domain.
    pub personality: Option<libc::c_ulong>,
    /// Hooks.
    pub hooks: HookPlan,
    /// The state object handed to hooks, without pid and status.
    pub state: serde_json::Map<String, Value>,
}

/// Checks that `id` can name a container, an exec and a directory.
pub fn check_id(what: &str, id: &str) -> Result<(), PlanError> {
    let good = !id.is_empty()
        && id.len() <= ID_BYTES
        && id != "."
        && id != ".."
        && id
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"_.+-".contains(&byte));
    if good {
        return Ok(());
    }
    Err(PlanError(format!(
        "{what} {id:?} is not usable: wanted are 1 to {ID_BYTES} letters, digits, '_', '.', '+' or '-'"
    )))
}

impl Plan {
    /// Parses the specification of container `id`, whose control group will be a child of `groups`; `rootfs` takes the
    /// place of `root.path`.
    pub fn parse(
        id: &str,
        json: &[u8],
        rootfs: Option<&str>,
        groups: &Path,
    ) -> Result<Plan, PlanError> {
        check_id("container id", id)?;
        let value: Value = serde_json::from_slice(json)
            .map_err(|error| PlanError(format!("OCI specification is not JSON: {error}")))?;
        let process_json = value.get("process").cloned().unwrap_or(Value::Null);
        let spec: Config = serde_json::from_value(value)
            .map_err(|error| PlanError(format!("OCI specification is not valid: {error}")))?;
        let process = ProcessPlan::from_spec(
            spec.process
                .as_ref()
                .ok_or_else(|| PlanError::new("OCI specification has no process"))?,
        )?;
        let linux = spec.linux.clone().unwrap_or_default();
        let namespaces = namespaces(&linux)?;
        let root = root(&spec, &linux, rootfs, &namespaces, groups.join(id))?;
        let own_uts = namespaces.new & libc::CLONE_NEWUTS != 0;
        let personality =
            linux
                .personality()
                .as_ref()
                .map(|personality| match personality.domain() {
                    LinuxPersonalityDomain::PerLinux => 0,
                    LinuxPersonalityDomain::PerLinux32 => 8,
                });
        let mut state = serde_json::Map::new();
        state.insert("ociVersion".into(), spec.oci_version.clone().into());
        state.insert("id".into(), id.into());
        state.insert("bundle".into(), root.path.to_string_lossy().into());
        if let Some(annotations) = &spec.annotations {
            state.insert(
                "annotations".into(),
                annotations
                    .iter()
                    .map(|(key, value)| (key.clone(), Value::from(value.clone())))
                    .collect::<serde_json::Map<_, _>>()
                    .into(),
            );
        }
        Ok(Plan {
            id: id.to_owned(),
            root,
            hostname: spec.hostname.clone().filter(|_| own_uts),
            domainname: spec.domainname.clone().filter(|_| own_uts),
            sysctls: sysctls(linux.sysctl().iter().flatten())?,
            process,
            process_json,
            resources: linux.resources().clone().unwrap_or_default(),
            seccomp: linux
                .seccomp()
                .as_ref()
                .map(seccomp::compile)
                .transpose()
                .map_err(|error| PlanError(format!("linux.seccomp: {error}")))?,
            personality,
            hooks: hooks(&spec)?,
            state,
            namespaces,
        })
    }

    /// Puts the container into the pod's own user namespace.
    pub fn join_users_of_pod(&mut self) -> Result<(), PlanError> {
        if self.namespaces.new_user() {
            return Err(PlanError::new(
                "linux.namespaces has a user namespace, and the pod has one that its containers share",
            ));
        }
        self.namespaces.users_of_pod = true;
        self.root.bind_devices = true;
        Ok(())
    }
}

fn namespaces(linux: &oci_spec::runtime::Linux) -> Result<NamespacePlan, PlanError> {
    let mut plan = NamespacePlan {
        new: libc::CLONE_NEWNS,
        join: Vec::new(),
        pid: PidNamespace::OfPod,
        users_of_pod: false,
        uid_mappings: linux.uid_mappings().clone().unwrap_or_default(),
        gid_mappings: linux.gid_mappings().clone().unwrap_or_default(),
    };
    for namespace in linux.namespaces().iter().flatten() {
        let kind = namespace.typ();
        let flag = match kind {
            LinuxNamespaceType::Mount => libc::CLONE_NEWNS,
            LinuxNamespaceType::Cgroup => libc::CLONE_NEWCGROUP,
            LinuxNamespaceType::Uts => libc::CLONE_NEWUTS,
            LinuxNamespaceType::Ipc => libc::CLONE_NEWIPC,
            LinuxNamespaceType::User => libc::CLONE_NEWUSER,
            LinuxNamespaceType::Pid => libc::CLONE_NEWPID,
            LinuxNamespaceType::Network => libc::CLONE_NEWNET,
            LinuxNamespaceType::Time => {
                return Err(PlanError::new(
                    "linux.namespaces: a time namespace is not supported",
                ));
            }
        };
        let path = namespace
            .path()
            .clone()
            .filter(|path| !path.as_os_str().is_empty());
        match (kind, path) {
            (LinuxNamespaceType::Mount | LinuxNamespaceType::User, Some(path)) => {
                return Err(PlanError(format!(
                    "linux.namespaces: joining the {kind:?} namespace {} is not supported",
                    path.display()
                )));
            }
            (LinuxNamespaceType::Pid, Some(path)) => plan.pid = PidNamespace::Path(path),
            (LinuxNamespaceType::Pid, None) => {}
            (_, Some(path)) => plan.join.push((flag, path)),
            (_, None) => plan.new |= flag,
        }
    }
    if plan.new_user() && (plan.uid_mappings.is_empty() || plan.gid_mappings.is_empty()) {
        return Err(PlanError::new(
            "linux.namespaces has a user namespace, but linux.uidMappings or linux.gidMappings is empty",
        ));
    }
    Ok(plan)
}

fn root(
    spec: &Config,
    linux: &oci_spec::runtime::Linux,
    rootfs: Option<&str>,
    namespaces: &NamespacePlan,
    cgroup: PathBuf,
) -> Result<RootPlan, PlanError> {
    let root = spec.root.as_ref();
    let path = match (rootfs, root) {
        (Some(path), _) => PathBuf::from(path),
        (None, Some(root)) => root.path().clone(),
        (None, None) => return Err(PlanError::new("OCI specification has no root")),
    };
    if !path.is_absolute() {
        return Err(PlanError(format!(
            "root.path {:?} is not an absolute guest path",
            path.display()
        )));
    }
    let propagation = linux
        .rootfs_propagation()
        .as_deref()
        .filter(|word| !word.is_empty())
        .map(|word| {
            root_propagation(word)
                .ok_or_else(|| PlanError(format!("linux.rootfsPropagation {word:?} is not known")))
        })
        .transpose()?;
    let paths =
        |list: &Option<Vec<String>>| list.iter().flatten().map(PathBuf::from).collect::<Vec<_>>();
    Ok(RootPlan {
        path,
        readonly: root.and_then(oci_spec::runtime::Root::readonly) == Some(true),
        propagation,
        mounts: spec
            .mounts
            .iter()
            .flatten()
            .map(mount)
            .collect::<Result<_, _>>()?,
        devices: devices(linux)?,
        bind_devices: namespaces.new_user(),
        masked_paths: paths(linux.masked_paths()),
        readonly_paths: paths(linux.readonly_paths()),
        own_cgroup_namespace: namespaces.new & libc::CLONE_NEWCGROUP != 0,
        cgroup,
    })
}

fn mount(mount: &oci_spec::runtime::Mount) -> Result<Mount, PlanError> {
    let destination = mount.destination().clone();
    let refuse = |text: String| PlanError(format!("mount {}: {text}", destination.display()));
    let mut options = MountOptions::parse(mount.options().as_deref().unwrap_or_default())
        .map_err(|error| refuse(error.to_string()))?;
    if mount.uid_mappings().is_some() || mount.gid_mappings().is_some() {
        return Err(refuse("id-mapped mounts are not supported".into()));
    }
    let kind = mount.typ().clone().unwrap_or_default();
    if kind == "bind" && options.bind.is_none() {
        options.bind = Some(false);
    }
    let source = mount
        .source()
        .as_ref()
        .map(|path| path.to_string_lossy().into_owned())
        .unwrap_or_default();
    if options.bind.is_some() {
        if !Path::new(&source).is_absolute() {
            return Err(refuse(format!(
                "source {source:?} of a bind mount is not an absolute guest path"
            )));
        }
    } else if kind.is_empty() || kind == "none" {
        return Err(refuse("neither a type nor a bind option is given".into()));
    }
    Ok(Mount {
        destination,
        kind,
        source,
        options,
    })
}

fn hooks(spec: &Config) -> Result<HookPlan, PlanError> {
    let Some(hooks) = &spec.hooks else {
        return Ok(HookPlan::default());
    };
    let list = |list: &Option<Vec<Hook>>| list.clone().unwrap_or_default();
    let prestart = list(hooks.prestart());
    let plan = HookPlan {
        create_runtime: prestart
            .into_iter()
            .chain(list(hooks.create_runtime()))
            .collect(),
        create_container: list(hooks.create_container()),
        start_container: list(hooks.start_container()),
        poststart: list(hooks.poststart()),
        poststop: list(hooks.poststop()),
    };
    for hook in plan
        .create_runtime
        .iter()
        .chain(&plan.create_container)
        .chain(&plan.start_container)
        .chain(&plan.poststart)
        .chain(&plan.poststop)
    {
        if !hook.path().is_absolute() {
            return Err(PlanError(format!(
                "hooks: path {:?} is not absolute",
                hook.path().display()
            )));
        }
    }
    Ok(plan)
}
