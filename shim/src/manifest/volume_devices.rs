//! `volumeDevices`: disks of a container. A hostPath volume that is a block device or a file is one: there are no claims
//! here that others would be made from.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{Container, PodSpec};

use super::plan::DevicePlan;
use super::problem::Collector;

/// Checks the disks of `c`, at `path` of the manifest, of a pod that has `volumes`.
pub(super) fn check(
    c: &Container,
    path: &str,
    volumes: &BTreeSet<String>,
    collector: &mut Collector<'_>,
) {
    let mut names = BTreeSet::new();
    let mut places = BTreeSet::new();
    for (i, device) in c.volume_devices.iter().flatten().enumerate() {
        let field = |name: &str| format!("{path}.volumeDevices[{i}].{name}");
        let mut mounts = c.volume_mounts.iter().flatten();
        if device.name.is_empty() {
            collector.required(field("name"));
        } else if !volumes.contains(&device.name) {
            collector.not_found(field("name"), &device.name);
        } else if !names.insert(&device.name) {
            collector.duplicate(field("name"), &device.name);
        } else if mounts.any(|mount| mount.name == device.name) {
            let why = "must not already exist in volumeMounts";
            collector.invalid(field("name"), &device.name, why);
        }
        let mut parts = device.device_path.split('/');
        if device.device_path.is_empty() {
            collector.required(field("devicePath"));
        } else if !device.device_path.starts_with('/')
            || parts.any(|part| part == "." || part == "..")
        {
            let why = "must be an absolute path without '.' and '..'";
            collector.invalid(field("devicePath"), &device.device_path, why);
        } else if !places.insert(&device.device_path) {
            collector.duplicate(field("devicePath"), &device.device_path);
        }
    }
}

/// The disks of `c`, which was checked, at `path` of the manifest.
pub(super) fn devices(
    c: &Container,
    spec: &PodSpec,
    path: &str,
    collector: &mut Collector<'_>,
) -> Vec<DevicePlan> {
    let mut found = Vec::new();
    for (i, device) in c.volume_devices.iter().flatten().enumerate() {
        let mut volumes = spec.volumes.iter().flatten();
        // One that is not there was told by the check.
        let Some(volume) = volumes.find(|volume| volume.name == device.name) else {
            continue;
        };
        match &volume.host_path {
            Some(host) => found.push(DevicePlan {
                source: host.path.clone().into(),
                path: device.device_path.clone(),
            }),
            None => collector.invalid(
                format!("{path}.volumeDevices[{i}].name"),
                &device.name,
                "must be a hostPath volume of a block device or a file",
            ),
        }
    }
    found
}
