//! How large a machine a pod needs: Kubernetes' effective requests and limits, plus the machine's own overhead.

use super::plan::{ContainerPlan, Resources};

/// Guest memory for the kernel and the agent, in bytes. Part of every machine.
pub const GUEST_OVERHEAD_BYTES: u64 = 64 << 20;

/// Host memory of the VMM and the supervisor beside guest memory, in bytes. Counted at admission.
pub const HOST_OVERHEAD_BYTES: u64 = 10 << 20;

/// Memory of a pod with an unlimited container, in bytes: what such pods may use before they must set a limit. The
/// host gives memory only as it is touched, and takes free memory back.
pub const DEFAULT_MEMORY_BYTES: u64 = 512 << 20;

/// CPUs of a pod with an unlimited container, when the host has as many.
pub const DEFAULT_CPUS: u64 = 2;

/// Size of a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MachineSize {
    /// Virtual CPUs.
    pub vcpus: u8,
    /// Guest memory in MiB.
    pub memory_mib: u64,
    /// What admission counts.
    pub requests: Resources,
}

/// Sizes the machine. `host_cpus` bounds the vCPUs: more than the host has help nobody.
#[must_use]
pub fn machine_size(init: &[ContainerPlan], main: &[ContainerPlan], host_cpus: u64) -> MachineSize {
    let requests = |c: &ContainerPlan| Some(c.requests);
    let cpu_request = effective(init, main, |c| requests(c).map(|r| r.cpu_millis)).unwrap_or(0);
    let memory_request =
        effective(init, main, |c| requests(c).map(|r| r.memory_bytes)).unwrap_or(0);
    let cpu = effective(init, main, |c| c.limits.cpu_millis).map_or_else(
        || cpu_request.div_ceil(1000).max(DEFAULT_CPUS),
        |limit| limit.div_ceil(1000),
    );
    let memory = effective(init, main, |c| c.limits.memory_bytes)
        .unwrap_or_else(|| memory_request.max(DEFAULT_MEMORY_BYTES));
    let vcpus = cpu.clamp(1, host_cpus.clamp(1, 64));
    MachineSize {
        vcpus: u8::try_from(vcpus).unwrap_or(64),
        memory_mib: memory
            .saturating_add(GUEST_OVERHEAD_BYTES)
            .div_ceil(1 << 20),
        requests: Resources {
            cpu_millis: cpu_request,
            memory_bytes: memory_request
                .saturating_add(GUEST_OVERHEAD_BYTES)
                .saturating_add(HOST_OVERHEAD_BYTES),
        },
    }
}

/// Kubernetes' effective amount: the larger of the containers' sum with all sidecars, and of each init container with
/// the sidecars started before it. `None` when any container has no amount.
fn effective(
    init: &[ContainerPlan],
    main: &[ContainerPlan],
    amount: impl Fn(&ContainerPlan) -> Option<u64>,
) -> Option<u64> {
    let mut sidecars = 0_u64;
    let mut largest = 0;
    for container in init {
        let this = amount(container)?;
        if container.sidecar {
            sidecars = sidecars.saturating_add(this);
            largest = largest.max(sidecars);
        } else {
            largest = largest.max(sidecars.saturating_add(this));
        }
    }
    let mut sum = sidecars;
    for container in main {
        sum = sum.saturating_add(amount(container)?);
    }
    Some(largest.max(sum))
}

#[cfg(test)]
mod tests {
    use super::super::plan::Limits;
    use super::super::planner::tests::container;
    use super::*;

    fn sized(name: &str, sidecar: bool, cpu: u64, mib: u64) -> ContainerPlan {
        ContainerPlan {
            sidecar,
            requests: Resources {
                cpu_millis: cpu,
                memory_bytes: mib << 20,
            },
            limits: Limits {
                cpu_millis: Some(cpu),
                memory_bytes: Some(mib << 20),
            },
            ..container(name)
        }
    }

    #[test]
    fn machine_size_of_a_large_init_container_is_its_own() {
        let size = machine_size(
            &[sized("i", false, 3000, 900)],
            &[sized("a", false, 500, 100), sized("b", false, 700, 200)],
            8,
        );
        assert_eq!((size.vcpus, size.memory_mib), (3, 900 + 64));
    }

    #[test]
    fn machine_size_counts_sidecars_with_containers_and_later_init_containers() {
        let init = [sized("s", true, 1000, 100), sized("i", false, 1000, 300)];
        let size = machine_size(&init, &[sized("a", false, 1500, 200)], 8);
        assert_eq!((size.vcpus, size.memory_mib), (3, 400 + 64));
        assert_eq!(size.requests.cpu_millis, 2500);
        assert_eq!(size.requests.memory_bytes, (400 + 64 + 10) << 20);
    }

    #[test]
    fn machine_size_without_limits_is_the_default_within_the_host() {
        let size = machine_size(&[], &[container("a")], 1);
        assert_eq!((size.vcpus, size.memory_mib), (1, 512 + 64));
        assert_eq!(machine_size(&[], &[container("a")], 16).vcpus, 2);
    }
}
