//! How much the host can hold, and whether one more pod fits. Requests are counted, not use: a pod that was admitted can
//! have what it asked for at any time.

use std::fs;

use crate::manifest::plan::Resources;

/// Memory left to the host itself, in bytes.
const HOST_SHARE: u64 = 64 << 20;

/// What the host can give to pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacity {
    /// Thousandths of a CPU.
    pub cpu_millis: u64,
    /// Bytes.
    pub memory_bytes: u64,
}

/// A pod does not fit.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum CapacityError {
    /// Memory.
    #[error("the pod asks for {} of memory, its machine included; running pods have {} of the {} that this host can give", mebibytes(*asked), mebibytes(*taken), mebibytes(*total))]
    Memory {
        /// By this pod, bytes.
        asked: u64,
        /// By running pods, bytes.
        taken: u64,
        /// In all, bytes.
        total: u64,
    },
    /// CPU.
    #[error(
        "the pod requests {asked}m of cpu; running pods have {taken}m of the {total}m of this host"
    )]
    Cpu {
        /// By this pod, thousandths of a CPU.
        asked: u64,
        /// By running pods.
        taken: u64,
        /// In all.
        total: u64,
    },
}

fn mebibytes(bytes: u64) -> String {
    format!("{} MiB", bytes.div_ceil(1 << 20))
}

/// Processors that this process may use.
#[must_use]
pub fn host_cpus() -> u64 {
    std::thread::available_parallelism().map_or(1, usize::from) as u64
}

impl Capacity {
    /// The host's: its processors and its memory, less a share for itself.
    #[must_use]
    pub fn of_host() -> Self {
        Self {
            cpu_millis: host_cpus() * 1000,
            memory_bytes: memory_total().saturating_sub(HOST_SHARE),
        }
    }

    /// Whether `asked` fits beside what running pods `taken` have.
    ///
    /// # Errors
    /// With figures, when it does not.
    pub fn admit(
        &self,
        asked: Resources,
        taken: impl Iterator<Item = Resources>,
    ) -> Result<(), CapacityError> {
        let taken = taken.fold(Resources::default(), |sum, one| Resources {
            cpu_millis: sum.cpu_millis.saturating_add(one.cpu_millis),
            memory_bytes: sum.memory_bytes.saturating_add(one.memory_bytes),
        });
        if taken.memory_bytes.saturating_add(asked.memory_bytes) > self.memory_bytes {
            return Err(CapacityError::Memory {
                asked: asked.memory_bytes,
                taken: taken.memory_bytes,
                total: self.memory_bytes,
            });
        }
        if taken.cpu_millis.saturating_add(asked.cpu_millis) > self.cpu_millis {
            return Err(CapacityError::Cpu {
                asked: asked.cpu_millis,
                taken: taken.cpu_millis,
                total: self.cpu_millis,
            });
        }
        Ok(())
    }
}

/// A line of /proc/meminfo in bytes.
#[must_use]
pub fn meminfo(name: &str) -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let rest = text.lines().find_map(|line| line.strip_prefix(name))?;
    let kibibytes: u64 = rest
        .trim_start_matches(':')
        .split_whitespace()
        .next()?
        .parse()
        .ok()?;
    kibibytes.checked_mul(1024)
}

fn memory_total() -> u64 {
    meminfo("MemTotal").unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CAPACITY: Capacity = Capacity {
        cpu_millis: 1000,
        memory_bytes: 100 << 20,
    };

    fn asking(cpu_millis: u64, mebibytes: u64) -> Resources {
        Resources {
            cpu_millis,
            memory_bytes: mebibytes << 20,
        }
    }

    #[test]
    fn pod_that_fits_exactly_is_admitted() {
        CAPACITY
            .admit(asking(400, 40), [asking(600, 60)].into_iter())
            .unwrap();
    }

    #[test]
    fn pod_that_does_not_fit_is_refused_with_figures() {
        let error = CAPACITY
            .admit(asking(0, 41), [asking(0, 60)].into_iter())
            .unwrap_err();
        assert_eq!(
            error.to_string(),
            "the pod asks for 41 MiB of memory, its machine included; running pods have 60 MiB of the 100 MiB that this host can give"
        );
        assert!(matches!(
            CAPACITY.admit(asking(u64::MAX, 0), [asking(1, 0)].into_iter()),
            Err(CapacityError::Cpu { .. })
        ));
    }

    #[test]
    fn host_has_memory_and_a_processor() {
        let capacity = Capacity::of_host();
        assert!(capacity.cpu_millis >= 1000 && capacity.memory_bytes > 0);
    }
}
