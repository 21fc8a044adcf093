//! The command line: names, options and help of every verb. No behaviour.

mod running;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use vmpod_shim::host::install::Version;

pub use running::{DebugArguments, Profile, UpdateArguments};

/// Pods in microVMs: a Kubernetes Pod manifest runs in a virtual machine of its own, without a daemon.
#[derive(Debug, Parser)]
#[command(name = "vmpod", version, disable_help_subcommand = true)]
pub struct Cli {
    /// Directory of what lives until the next boot
    #[arg(
        long,
        global = true,
        env = "VMPOD_RUN",
        value_name = "DIR",
        default_value = "/run/vmpod"
    )]
    pub root: PathBuf,
    /// Directory of images, writable layers and logs
    #[arg(
        long,
        global = true,
        env = "VMPOD_STATE",
        value_name = "DIR",
        default_value = "/var/lib/vmpod"
    )]
    pub state: PathBuf,
    /// Say more about what happens (twice: even more)
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
    #[command(subcommand)]
    pub command: Command,
}

/// How a result is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people.
    #[default]
    Text,
    /// For scripts.
    Json,
}

/// Forms of `inspect`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum InspectOutput {
    /// A Pod object with a section of vmpod's own.
    #[default]
    Json,
    /// The Pod object as kubectl prints it.
    Yaml,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the pod of a manifest
    Run(RunArguments),
    /// Run every manifest in a folder, as a kubelet runs static pods
    Serve(ServeArguments),
    /// List pods
    Ps(PsArguments),
    /// Show the logs of a pod's containers
    Logs(LogsArguments),
    /// Run a command in a container
    Exec(ExecArguments),
    /// Add a container to a pod that runs, with an image of its own
    Debug(DebugArguments),
    /// Follow a container's output from now on, and feed its standard input
    Attach(AttachArguments),
    /// Ask pods to end, in order and in their grace period
    Stop(StopArguments),
    /// Kill pods, or signal their containers
    Kill(KillArguments),
    /// Bring volumes of ConfigMaps, Secrets and metadata up to date; set labels and annotations
    Update(UpdateArguments),
    /// Remove pods that have ended
    Rm(RmArguments),
    /// Show everything about pods
    Inspect(InspectArguments),
    /// Wait for pods to end; print and return their exit codes
    Wait(WaitArguments),
    /// Copy files between a container and the host
    Cp(CpArguments),
    /// Make ports of a pod reachable on the host's loopback
    PortForward(ForwardArguments),
    /// Show what pods and their containers use
    Stats(StatsArguments),
    /// Show what happened to pods
    Events(EventsArguments),
    /// List images
    Images(ListArguments),
    /// Fetch images from their registries
    Pull(PullArguments),
    /// Import and remove images
    Image(ImageArguments),
    /// Say whether this host can run pods, and what is missing
    Check(CheckArguments),
    /// Take away what killed processes left behind
    Gc(GcArguments),
    /// Put vmpod where this host's containerd finds it, or take it away
    Install(InstallArguments),
    /// Print a completion script for a shell
    Completions(CompletionsArguments),
    /// Print versions
    Version(ListArguments),
}

#[derive(Debug, Args)]
pub struct RunArguments {
    /// Manifest; `-` reads standard input
    #[arg(value_name = "MANIFEST", required_unless_present = "file")]
    pub manifest: Option<PathBuf>,
    /// Manifest, as kubectl takes it
    #[arg(short, long, value_name = "MANIFEST", conflicts_with = "manifest")]
    pub file: Option<PathBuf>,
    /// Start the pod and return; print its id
    #[arg(short, long)]
    pub detach: bool,
    /// Remove the pod when it has ended
    #[arg(long)]
    pub rm: bool,
    /// Another name for the pod
    #[arg(long)]
    pub name: Option<String>,
    /// Further documents: ConfigMaps and Secrets that the pod refers to
    #[arg(long = "resource", visible_alias = "configmap", value_name = "FILE")]
    pub resources: Vec<PathBuf>,
    /// An annotation of the pod, over what the manifest says
    #[arg(long = "annotation", value_name = "KEY=VALUE")]
    pub annotations: Vec<String>,
    /// When images are fetched, over what the manifest says
    #[arg(long, value_enum)]
    pub pull: Option<Pull>,
    /// Subnet of the pods' network, for the first pod that runs
    #[arg(long, env = "VMPOD_SUBNET", value_name = "CIDR")]
    pub subnet: Option<String>,
    /// Boot the pod's machine, even where one of its shape was saved that it could go on from; save none
    #[arg(long, env = "VMPOD_NO_TEMPLATE", value_parser = clap::builder::FalseyValueParser::new())]
    pub no_template: bool,
    /// Leave the VMM unconfined, to debug it
    #[arg(long, hide = true, env = "VMPOD_NO_JAIL")]
    pub no_jail: bool,
    /// Append to the guest kernel's command line
    #[arg(long, hide = true, env = "VMPOD_KERNEL_ARGUMENTS", default_value = "")]
    pub kernel_arguments: String,
    /// Where to say which image could not be had, for `serve`
    #[arg(long, hide = true)]
    pub failure: Option<PathBuf>,
    /// Check the manifest and print the plan; start nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Do not show progress
    #[arg(short, long)]
    pub quiet: bool,
}

#[derive(Clone, Debug, Args)]
pub struct ServeArguments {
    /// Folder of manifests: a pod each, in files that end in .yaml, .yml or .json
    #[arg(long, value_name = "DIR")]
    pub manifests: PathBuf,
    /// Further documents: ConfigMaps and Secrets that the pods refer to
    #[arg(long = "resource", value_name = "FILE")]
    pub resources: Vec<PathBuf>,
    /// Where /healthz, /pods and /metrics are answered, read-only; `none`: nowhere
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:10255")]
    pub listen: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Pull {
    /// On every start.
    Always,
    /// When the store does not hold the image.
    Missing,
    /// Never.
    Never,
}

#[derive(Debug, Args)]
pub struct ListArguments {
    /// Form of the output
    #[arg(short, long, value_enum, default_value_t)]
    pub output: Output,
}

#[derive(Debug, Args)]
pub struct PsArguments {
    /// Also pods that have ended
    #[arg(short, long)]
    pub all: bool,
    /// Ids alone
    #[arg(short, long)]
    pub quiet: bool,
    /// Form of the output
    #[arg(short, long, value_enum, default_value_t)]
    pub output: Output,
}

#[derive(Debug, Args)]
pub struct InspectArguments {
    /// Pods: names, ids or beginnings of ids
    #[arg(required = true, value_name = "POD")]
    pub pods: Vec<String>,
    /// Form of the output
    #[arg(short, long, value_enum, default_value_t)]
    pub output: InspectOutput,
}

#[derive(Debug, Args)]
pub struct LogsArguments {
    /// Pod: name, id or beginning of an id
    pub pod: String,
    /// Container, as kubectl takes it
    #[arg(value_name = "CONTAINER", conflicts_with = "container")]
    pub positional: Option<String>,
    /// One container; without it, all with their names in front
    #[arg(short, long)]
    pub container: Option<String>,
    /// Go on until the pod ends
    #[arg(short, long)]
    pub follow: bool,
    /// Times in front of the lines
    #[arg(short, long)]
    pub timestamps: bool,
    /// The last lines of each container alone
    #[arg(long, value_name = "LINES")]
    pub tail: Option<usize>,
    /// Logs of the attempt before
    #[arg(short, long)]
    pub previous: bool,
}

#[derive(Debug, Args)]
pub struct ExecArguments {
    /// Pod: name, id or beginning of an id
    pub pod: String,
    /// Container; the first by default
    #[arg(short, long)]
    pub container: Option<String>,
    /// Pass standard input on
    #[arg(short, long)]
    pub interactive: bool,
    /// Give the command a terminal
    #[arg(short, long)]
    pub tty: bool,
    /// Set an environment variable
    #[arg(short, long, value_name = "NAME=VALUE")]
    pub env: Vec<String>,
    /// Working directory
    #[arg(short, long, value_name = "DIR")]
    pub workdir: Option<String>,
    /// User, `USER` or `USER:GROUP`, by name or number
    #[arg(short, long)]
    pub user: Option<String>,
    /// Command and its arguments
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    pub command: Vec<String>,
}

#[derive(Debug, Args)]
pub struct AttachArguments {
    /// Pod: name, id or beginning of an id
    pub pod: String,
    /// Container; the first by default
    #[arg(short, long)]
    pub container: Option<String>,
    /// Do not pass standard input on
    #[arg(long)]
    pub no_stdin: bool,
}

#[derive(Debug, Args)]
pub struct StopArguments {
    /// Pods: names, ids or beginnings of ids
    #[arg(required = true, value_name = "POD")]
    pub pods: Vec<String>,
    /// Seconds until containers are killed; by default the pod's own grace period
    #[arg(short, long, value_name = "SECONDS")]
    pub time: Option<u32>,
}

#[derive(Debug, Args)]
pub struct KillArguments {
    /// Pods: names, ids or beginnings of ids
    #[arg(required = true, value_name = "POD")]
    pub pods: Vec<String>,
    /// Signal for the containers, by name or number; without it the whole machine is killed
    #[arg(short, long)]
    pub signal: Option<String>,
    /// One container alone
    #[arg(short, long, requires = "signal")]
    pub container: Option<String>,
}

#[derive(Debug, Args)]
pub struct RmArguments {
    /// Pods: names, ids or beginnings of ids
    #[arg(required_unless_present = "all", value_name = "POD")]
    pub pods: Vec<String>,
    /// Also pods that run: their machines are killed
    #[arg(short, long)]
    pub force: bool,
    /// All pods
    #[arg(short, long, conflicts_with = "pods")]
    pub all: bool,
}

#[derive(Debug, Args)]
pub struct WaitArguments {
    /// Pods: names, ids or beginnings of ids
    #[arg(required = true, value_name = "POD")]
    pub pods: Vec<String>,
    /// Give up after so many seconds, with status 124
    #[arg(long, value_name = "SECONDS")]
    pub timeout: Option<u64>,
}

#[derive(Debug, Args)]
pub struct CpArguments {
    /// `PATH` or `POD:PATH`; `-` reads a tar archive from standard input
    pub source: String,
    /// `PATH` or `POD:PATH`; `-` writes a tar archive to standard output
    pub destination: String,
    /// Container; the first by default
    #[arg(short, long)]
    pub container: Option<String>,
}

#[derive(Debug, Args)]
pub struct ForwardArguments {
    /// Pod: name, id or beginning of an id
    pub pod: String,
    /// `PORT` or `LOCAL:PORT`; LOCAL 0 or empty takes a free one
    #[arg(required = true)]
    pub ports: Vec<String>,
    /// Address of the host to listen on
    #[arg(long, default_value = "127.0.0.1")]
    pub address: std::net::IpAddr,
}

#[derive(Debug, Args)]
pub struct StatsArguments {
    /// Pods: names, ids or beginnings of ids; all that run by default
    #[arg(value_name = "POD")]
    pub pods: Vec<String>,
    /// Form of the output
    #[arg(short, long, value_enum, default_value_t)]
    pub output: Output,
}

#[derive(Debug, Args)]
pub struct EventsArguments {
    /// Pods: names, ids or beginnings of ids; all by default
    #[arg(value_name = "POD")]
    pub pods: Vec<String>,
    /// Go on
    #[arg(short, long)]
    pub follow: bool,
    /// Form of the output
    #[arg(short, long, value_enum, default_value_t)]
    pub output: Output,
}

#[derive(Debug, Args)]
pub struct PullArguments {
    /// Images, e.g. `nginx:1.27` or `registry.example:5000/app@sha256:...`
    #[arg(required = true, value_name = "IMAGE")]
    pub images: Vec<String>,
    /// Do not show progress
    #[arg(short, long)]
    pub quiet: bool,
}

#[derive(Debug, Args)]
pub struct ImageArguments {
    #[command(subcommand)]
    pub command: ImageCommand,
}

#[derive(Debug, Subcommand)]
pub enum ImageCommand {
    /// Take in an OCI layout (directory or tar) or a `docker save` archive
    Import {
        /// Directory or file; `-` reads standard input
        path: PathBuf,
        /// Name for it, where the archive holds none or another is wanted
        #[arg(short, long)]
        name: Option<String>,
        /// Do not show progress
        #[arg(short, long)]
        quiet: bool,
    },
    /// Remove images by name
    Rm {
        /// Images
        #[arg(required = true, value_name = "IMAGE")]
        images: Vec<String>,
        /// Also names that pods on record run from
        #[arg(short, long)]
        force: bool,
    },
    /// List images
    Ls(ListArguments),
}

#[derive(Debug, Args)]
pub struct CheckArguments {
    /// Form of the output
    #[arg(short, long, value_enum, default_value_t)]
    pub output: Output,
    /// Measures the host's KVM in this process; started by `check` itself
    #[arg(long, hide = true)]
    pub probe_kvm: bool,
}

#[derive(Debug, Args)]
pub struct InstallArguments {
    /// Take everything away again
    #[arg(long)]
    pub uninstall: bool,
    /// Root directory of the host, where it is mounted elsewhere
    #[arg(long, value_name = "DIR", default_value = "/")]
    pub host: PathBuf,
    /// Directory for programs and guest
    #[arg(long, value_name = "DIR", default_value = "/opt/vmpod")]
    pub prefix: PathBuf,
    /// containerd's configuration
    #[arg(
        long,
        value_name = "FILE",
        default_value = "/etc/containerd/config.toml"
    )]
    pub containerd_config: PathBuf,
    /// containerd's version, where it cannot be asked
    #[arg(long, value_name = "VERSION")]
    pub containerd_version: Option<Version>,
    /// Restart containerd by systemd when its configuration was changed
    #[arg(long)]
    pub restart: bool,
    /// Stay until SIGTERM or SIGINT: for installers that are pods
    #[arg(long)]
    pub wait: bool,
}

#[derive(Debug, Args)]
pub struct GcArguments {
    /// Also the records and logs of pods that have ended in order
    #[arg(long)]
    pub ended: bool,
    /// Also images that no name and no pod refers to
    #[arg(long)]
    pub images: bool,
    /// Form of the output
    #[arg(short, long, value_enum, default_value_t)]
    pub output: Output,
}

#[derive(Debug, Args)]
pub struct CompletionsArguments {
    /// Shell
    pub shell: clap_complete::Shell,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_line_is_consistent() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }

    #[test]
    fn exec_keeps_options_of_the_command() {
        let cli = Cli::parse_from(["vmpod", "exec", "-it", "p", "ls", "-l", "--", "x"]);
        let Command::Exec(arguments) = cli.command else {
            panic!("another verb");
        };
        assert!(arguments.interactive && arguments.tty);
        assert_eq!(arguments.command, ["ls", "-l", "--", "x"]);
    }
}
