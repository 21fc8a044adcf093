//! Verbs about the host and the program: check, completions, version.

use std::io::{self, Write};

use clap::CommandFactory;
use vmpod_shim::host::bundle::Bundle;
use vmpod_shim::host::check::{self, Verdict};
use vmpod_shim::pod::roots::Roots;

use crate::cli::{CheckArguments, Cli, CompletionsArguments, ListArguments, Output};
use crate::table;

/// `vmpod check`
pub fn check(roots: &Roots, arguments: &CheckArguments) -> anyhow::Result<u8> {
    if arguments.probe_kvm {
        return Ok(check::kvm_probe::run_in_this_process());
    }
    let report = check::run(roots, &Bundle::locate());
    match arguments.output {
        Output::Json => table::json(&report)?,
        Output::Text => {
            let mut out = io::stdout().lock();
            for item in &report.items {
                let mark = match item.verdict {
                    Verdict::Good => "ok      ",
                    Verdict::Weak => "warning ",
                    Verdict::Missing => "MISSING ",
                };
                writeln!(out, "{mark}{}: {}", item.name, item.found)?;
                if !item.remedy.is_empty() {
                    writeln!(out, "        -> {}", item.remedy)?;
                }
            }
            let words = if report.can_run_pods {
                "this host can run pods"
            } else {
                "this host cannot run pods: see what is MISSING above"
            };
            writeln!(out, "{words}")?;
        }
    }
    Ok(u8::from(!report.can_run_pods))
}

/// `vmpod completions`
pub fn completions(arguments: &CompletionsArguments) -> anyhow::Result<u8> {
    let mut command = Cli::command();
    let mut script = Vec::new();
    clap_complete::generate(arguments.shell, &mut command, "vmpod", &mut script);
    io::stdout().lock().write_all(&script)?;
    Ok(0)
}

/// `vmpod version`
pub fn version(arguments: &ListArguments) -> anyhow::Result<u8> {
    let protocol = vmpod_agent_protocol::PROTOCOL_VERSION;
    let bundle = Bundle::locate();
    match arguments.output {
        Output::Json => table::json(&serde_json::json!({
            "version": env!("CARGO_PKG_VERSION"),
            "agentProtocol": protocol,
            "vmm": bundle.vmm,
            "kernel": bundle.vmlinux,
            "initramfs": bundle.initramfs,
        }))?,
        Output::Text => {
            writeln!(
                io::stdout(),
                "vmpod {} (agent protocol {protocol})",
                env!("CARGO_PKG_VERSION")
            )?;
        }
    }
    Ok(0)
}
