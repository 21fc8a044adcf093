//! The QEMU process of a node: its command line and its start. What the options are and why is in
//! the comments below; each was found by trying on machines without hardware virtualisation.

use std::ffi::OsString;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::state::Place;

/// What one start needs to know.
#[derive(Debug)]
pub struct Machine<'a> {
    pub place: &'a Place,
    pub kernel: &'a Path,
    pub initramfs: &'a Path,
    /// MiB of memory; taken from the machine only as it is touched.
    pub memory: u64,
    pub port: u16,
    pub count: bool,
}

impl Machine<'_> {
    /// The arguments after the program's name.
    fn arguments(&self) -> Vec<OsString> {
        let mut arguments: Vec<OsString> = Vec::new();
        let mut add = |option: &str, value: &str| {
            arguments.push(option.into());
            if !value.is_empty() {
                arguments.push(value.into());
            }
        };
        add("-name", &self.place.process_name());
        add("-nodefaults", "");
        add("-no-user-config", "");
        add("-machine", "q35,hpet=off");
        if self.count {
            // One instruction is one nanosecond of node time, and an idle node skips ahead.
            add("-accel", "tcg,thread=single,tb-size=1024");
            add("-icount", "shift=0,sleep=off");
            add("-rtc", "base=utc,clock=vm");
        } else {
            add("-accel", "tcg,thread=multi,tb-size=1024");
            add("-rtc", "base=utc");
        }
        add("-cpu", "EPYC,+svm,+npt");
        // One CPU only: with two, several guests at once corrupt the node's kernel stack.
        add("-smp", "1");
        add("-m", &format!("{}M", self.memory));
        add("-display", "none");
        add("-vga", "none");
        add("-no-reboot", "");
        add("-daemonize", "");
        add("-pidfile", &self.place.pid_file().to_string_lossy());
        add(
            "-serial",
            &format!("file:{}", comma_safe(&self.place.console())),
        );
        add("-kernel", &self.kernel.to_string_lossy());
        add("-initrd", &self.initramfs.to_string_lossy());
        add("-append", &self.kernel_command_line());
        // The machine's own root twice, see init.sh: one mount keeps what it has read, the other
        // looks again at each open.
        for tag in ["machine", "live"] {
            add(
                "-virtfs",
                &format!(
                    "local,path=/,mount_tag={tag},id={tag},security_model=none,readonly=on,\
                     multidevs=remap"
                ),
            );
        }
        let scratch = comma_safe(&self.place.scratch());
        add(
            "-drive",
            &format!("file={scratch},if=none,id=scratch,format=raw,cache=unsafe,discard=unmap"),
        );
        add("-device", "virtio-blk-pci,drive=scratch");
        add(
            "-netdev",
            &format!("user,id=net,hostfwd=tcp:127.0.0.1:{}-:22", self.port),
        );
        add("-device", "virtio-net-pci,netdev=net,romfile=");
        add("-device", "virtio-rng-pci");
        arguments
    }

    fn kernel_command_line(&self) -> String {
        // The kernel talks while it boots, so that a boot that hangs says where; init.sh quiets it.
        // mitigations=off: nothing in the node is worth the emulated fences. The clock words keep
        // the kernel from measuring, and distrusting, an emulated time stamp counter.
        format!(
            "console=ttyS0 loglevel=7 panic=-1 oops=panic mitigations=off audit=0 \
             apparmor=0 tsc=reliable no_timer_check random.trust_cpu=on \
             rcupdate.rcu_expedited=1 net.ifnames=0 vmpod.dir={}",
            self.place.dir.display()
        )
    }

    /// Starts QEMU in the background. It has its pid file, devices and port when this returns.
    ///
    /// # Errors
    /// When QEMU cannot be started or refuses the configuration, with its own words.
    pub fn start(&self) -> Result<()> {
        let output = Command::new("qemu-system-x86_64")
            .args(self.arguments())
            .current_dir("/")
            .stdin(std::process::Stdio::null())
            .output()
            .context("starting qemu-system-x86_64")?;
        if output.status.success() {
            return Ok(());
        }
        let words = String::from_utf8_lossy(&output.stderr);
        bail!(
            "QEMU refused to start node {}: {}",
            self.place.name,
            words.trim()
        );
    }
}

/// In QEMU's option syntax a comma within a value is written twice.
fn comma_safe(path: &Path) -> String {
    path.to_string_lossy().replace(',', ",,")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arguments(count: bool) -> String {
        let place = Place {
            name: "t".into(),
            dir: "/c,d/t".into(),
        };
        let machine = Machine {
            place: &place,
            kernel: Path::new("/k"),
            initramfs: Path::new("/i"),
            memory: 512,
            port: 4022,
            count,
        };
        let words: Vec<_> = machine
            .arguments()
            .iter()
            .map(|word| word.to_string_lossy().into_owned())
            .collect();
        words.join(" ")
    }

    #[test]
    fn arguments_in_either_mode_have_one_cpu() {
        for count in [false, true] {
            let line = arguments(count);
            assert!(line.contains("-smp 1 "), "{line}");
            assert!(line.contains("127.0.0.1:4022-:22"), "{line}");
        }
    }

    #[test]
    fn arguments_when_counting_are_single_threaded() {
        assert!(arguments(true).contains("thread=single,tb-size=1024 -icount shift=0,sleep=off"));
        assert!(!arguments(false).contains("icount"));
    }

    #[test]
    fn arguments_with_comma_in_path_double_it() {
        assert!(arguments(false).contains("file=/c,,d/t/scratch.img"));
    }
}
