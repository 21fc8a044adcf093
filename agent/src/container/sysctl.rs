//! Names of kernel parameters made into paths; for containers and for the sandbox. Pure.

use std::path::{Path, PathBuf};

use super::plan::PlanError;

/// Paths below /proc/sys for dotted (or slashed) names; a name cannot climb out.
pub fn sysctls<'a>(
    values: impl Iterator<Item = (&'a String, &'a String)>,
) -> Result<Vec<(PathBuf, String)>, PlanError> {
    values
        .map(|(name, value)| {
            let relative = if name.contains('/') {
                name.clone()
            } else {
                name.replace('.', "/")
            };
            let bad = relative.is_empty()
                || relative
                    .split('/')
                    .any(|part| part.is_empty() || part == "." || part == "..");
            if bad {
                return Err(PlanError(format!("sysctl {name:?} is not a sysctl name")));
            }
            Ok((Path::new("/proc/sys").join(relative), value.clone()))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(name: &str) -> Result<PathBuf, PlanError> {
        let pair = (name.to_owned(), "1".to_owned());
        Ok(sysctls([(&pair.0, &pair.1)].into_iter())?.remove(0).0)
    }

    #[test]
    fn dotted_and_slashed_names_are_paths_below_proc() {
        assert_eq!(
            path("net.ipv4.ip_forward").unwrap(),
            Path::new("/proc/sys/net/ipv4/ip_forward")
        );
        assert_eq!(
            path("net/ipv4/conf/eth0.100/forwarding").unwrap(),
            Path::new("/proc/sys/net/ipv4/conf/eth0.100/forwarding")
        );
    }

    #[test]
    fn name_that_climbs_out_is_refused() {
        for name in [
            "",
            "../etc/passwd",
            "kernel/../../x",
            "a..b",
            "/kernel/x",
            "kernel/",
        ] {
            assert!(path(name).is_err(), "{name:?}");
        }
    }
}
