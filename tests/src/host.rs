//! What a host holds that pods could leave behind: processes, mounts, links, firewall rules, cgroups, files.

use std::collections::BTreeSet;
use std::process::Command;

/// Everything on the host that belongs to pods, as comparable lines.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Footprint {
    lines: BTreeSet<String>,
}

impl Footprint {
    /// Takes it now.
    ///
    /// # Panics
    /// When `/proc` cannot be read.
    #[must_use]
    pub fn now() -> Self {
        let mut lines = BTreeSet::new();
        for (pid, command) in processes_with("vmpod") {
            // The tests themselves carry the name as well.
            let program = command.split(' ').next().unwrap_or_default();
            let file = program.rsplit('/').next().unwrap_or_default();
            if [
                "vmpod",
                "vmpod-vmm",
                "vmpod-supervise",
                "containerd-shim-vmpod-v2",
            ]
            .contains(&file)
            {
                lines.insert(format!("process {pid}: {command}"));
            }
        }
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").expect("read mountinfo");
        for mount in mounts.lines().filter_map(|line| line.split(' ').nth(4)) {
            if mount.contains("/vmpod/pods/") {
                lines.insert(format!("mount {mount}"));
            }
        }
        for link in names("/sys/class/net") {
            // The bridge stays: it belongs to the host's configuration, not to a pod.
            if link != "vmpod0"
                && (link.starts_with("vmpod")
                    || link.starts_with("vmtap")
                    || link.starts_with("tap"))
            {
                lines.insert(format!("link {link}"));
            }
        }
        for element in firewall_of_pods() {
            lines.insert(format!("firewall {element}"));
        }
        for name in names("/sys/fs/cgroup") {
            if name.starts_with("vmpod") {
                lines.insert(format!("cgroup {name}"));
            }
        }
        for directory in ["/run/vmpod/pods", "/var/lib/vmpod/pods", "/run/netns"] {
            for name in names(directory) {
                lines.insert(format!("entry {directory}/{name}"));
            }
        }
        Self { lines }
    }

    /// What is there now and was not in `before`.
    #[must_use]
    pub fn since(&self, before: &Self) -> Vec<String> {
        self.lines.difference(&before.lines).cloned().collect()
    }

    /// Waits until nothing is there that was not in this footprint.
    ///
    /// # Panics
    /// When something stays for 20 seconds; the message lists it.
    pub fn assert_restored(&self) {
        let end = std::time::Instant::now() + std::time::Duration::from_secs(20);
        loop {
            let left = Self::now().since(self);
            if left.is_empty() {
                return;
            }
            assert!(
                std::time::Instant::now() < end,
                "left behind:\n{}",
                left.join("\n")
            );
            std::thread::sleep(std::time::Duration::from_millis(200));
        }
    }
}

fn names(directory: &str) -> Vec<String> {
    std::fs::read_dir(directory)
        .map(|entries| {
            entries
                .filter_map(|e| Some(e.ok()?.file_name().to_string_lossy().into_owned()))
                .collect()
        })
        .unwrap_or_default()
}

/// Addresses of pods in vmpod's table: every map or set element, and every rule that names one.
fn firewall_of_pods() -> Vec<String> {
    let Ok(output) = Command::new("nft")
        .args(["-a", "list", "table", "ip", "vmpod"])
        .output()
    else {
        return Vec::new();
    };
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .map(str::trim)
        .filter(|line| line.contains("dnat to") || line.starts_with("elements"))
        .map(str::to_owned)
        .collect()
}

/// Processes whose command line contains a text: pid and command line.
///
/// # Panics
/// When `/proc` cannot be read.
#[must_use]
pub fn processes_with(text: &str) -> Vec<(u32, String)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").expect("read /proc").flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<u32>() else {
            continue;
        };
        let Ok(line) = std::fs::read(entry.path().join("cmdline")) else {
            continue;
        };
        let line = String::from_utf8_lossy(&line)
            .replace('\0', " ")
            .trim()
            .to_owned();
        if line.contains(text) {
            found.push((pid, line));
        }
    }
    found
}
