//! Options of the verbs that change a pod which runs.

use clap::{Args, ValueEnum};

#[derive(Debug, Args)]
pub struct UpdateArguments {
    /// Pod: name, id or beginning of an id
    pub pod: String,
    /// Set a label, or take it away
    #[arg(short, long = "label", value_name = "KEY=VALUE|KEY-")]
    pub labels: Vec<String>,
    /// Set an annotation, or take it away
    #[arg(short, long = "annotation", value_name = "KEY=VALUE|KEY-")]
    pub annotations: Vec<String>,
    /// Set a condition of the pod, as one that a readiness gate waits for (True without a value)
    #[arg(long = "condition", value_name = "TYPE[=True|False]")]
    pub conditions: Vec<String>,
}

/// What a debugging container may do, as `kubectl debug --profile` has it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Profile {
    /// Trace processes.
    #[default]
    General,
    /// Change the pod's network.
    Netadmin,
    /// Everything inside the machine.
    Sysadmin,
}

#[derive(Debug, Args)]
pub struct DebugArguments {
    /// Pod: name, id or beginning of an id
    pub pod: String,
    /// Image of the new container
    #[arg(long)]
    pub image: String,
    /// Name of the new container; made up by default
    #[arg(short, long, value_name = "NAME")]
    pub container: Option<String>,
    /// Container whose processes it sees
    #[arg(long, value_name = "CONTAINER")]
    pub target: Option<String>,
    /// Pass standard input on
    #[arg(short = 'i', long)]
    pub stdin: bool,
    /// Give it a terminal
    #[arg(short, long)]
    pub tty: bool,
    /// Set an environment variable
    #[arg(short, long, value_name = "NAME=VALUE")]
    pub env: Vec<String>,
    /// What it may do
    #[arg(long, value_enum, default_value_t)]
    pub profile: Profile,
    /// Return when it runs, instead of showing its output
    #[arg(short, long, conflicts_with_all = ["stdin", "tty"])]
    pub detach: bool,
    /// Do not show progress
    #[arg(short, long)]
    pub quiet: bool,
    /// Command and its arguments; the image's own by default
    #[arg(last = true)]
    pub command: Vec<String>,
}
