//! Where the parts of vmpod lie: supervisor and VMM beside the program, kernel and initramfs in `../lib/vmpod`.

use std::path::{Path, PathBuf};

/// Environment variable that names the directory of kernel and initramfs.
pub const LIB_VARIABLE: &str = "VMPOD_LIB";

/// Environment variable that names the VMM program.
pub const VMM_VARIABLE: &str = "VMPOD_VMM";

/// Environment variable that names the supervising program.
pub const SUPERVISOR_VARIABLE: &str = "VMPOD_SUPERVISOR";

/// The parts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bundle {
    /// The program that looks after a pod.
    pub supervisor: PathBuf,
    /// The VMM program.
    pub vmm: PathBuf,
    /// Guest kernel, an uncompressed ELF file.
    pub vmlinux: PathBuf,
    /// Guest initramfs.
    pub initramfs: PathBuf,
}

/// A part is not there.
#[derive(Debug, thiserror::Error)]
#[error("{what} is not at {}; `cargo xtask bundle` puts all parts where they belong, {variable} names another place", path.display())]
pub struct PartMissing {
    /// Which part.
    pub what: &'static str,
    /// Where it was looked for.
    pub path: PathBuf,
    /// Variable that names another place.
    pub variable: &'static str,
}

impl Bundle {
    /// The parts of this program's installation; they need not be there.
    #[must_use]
    pub fn locate() -> Self {
        let program = std::env::current_exe().unwrap_or_default();
        let beside = program.parent().unwrap_or(Path::new("/"));
        let lib = std::env::var_os(LIB_VARIABLE).map_or_else(
            || beside.parent().unwrap_or(Path::new("/")).join("lib/vmpod"),
            PathBuf::from,
        );
        Self {
            supervisor: std::env::var_os(SUPERVISOR_VARIABLE)
                .map_or_else(|| beside.join("vmpod-supervise"), PathBuf::from),
            vmm: std::env::var_os(VMM_VARIABLE)
                .map_or_else(|| beside.join("vmpod-vmm"), PathBuf::from),
            vmlinux: lib.join("vmlinux"),
            initramfs: lib.join("initramfs.cpio"),
        }
    }

    /// What each part is, where it is, and the variable that moves it.
    #[must_use]
    pub fn parts(&self) -> [(&'static str, &Path, &'static str); 4] {
        [
            ("the supervisor", &self.supervisor, SUPERVISOR_VARIABLE),
            ("the VMM", &self.vmm, VMM_VARIABLE),
            ("the guest kernel", &self.vmlinux, LIB_VARIABLE),
            ("the guest initramfs", &self.initramfs, LIB_VARIABLE),
        ]
    }

    /// Checks that all parts are there.
    ///
    /// # Errors
    /// The first that is not.
    pub fn check(&self) -> Result<(), PartMissing> {
        for (what, path, variable) in self.parts() {
            if !path.is_file() {
                return Err(PartMissing {
                    what,
                    path: path.to_owned(),
                    variable,
                });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn part_that_is_missing_is_named_with_its_place() {
        let bundle = Bundle {
            supervisor: std::env::current_exe().unwrap(),
            vmm: std::env::current_exe().unwrap(),
            vmlinux: "/nonexistent/vmlinux".into(),
            initramfs: "/nonexistent/initramfs.cpio".into(),
        };
        let text = bundle.check().unwrap_err().to_string();
        assert!(
            text.starts_with("the guest kernel is not at /nonexistent/vmlinux"),
            "{text}"
        );
    }
}
