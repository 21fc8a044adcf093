//! Whole configurations of containers.

use std::path::PathBuf;

use super::*;
use crate::manifest::{HostFacts, objects, plan};

fn planned(container: &str) -> PodPlan {
    let text = format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: p}}\nspec:\n  volumes: [{{name: d, emptyDir: {{}}}}, {{name: m, emptyDir: {{medium: Memory}}}}]\n  containers:\n  - {{name: c, image: i, {container}}}\n"
    );
    let objects = objects(&text, "f").unwrap();
    let host = HostFacts {
        cpus: 4,
        node_name: "n".into(),
        uid: "u".into(),
    };
    plan(&objects.pods[0].0, &objects.pods[0].1, &objects, &host, "f").unwrap()
}

fn image() -> ImageConfiguration {
    serde_json::from_value(json!({
        "architecture": "amd64", "os": "linux",
        "config": {"Entrypoint": ["/entry"], "Cmd": ["a"], "Env": ["PATH=/image", "X=image"], "WorkingDir": "/work", "StopSignal": "SIGQUIT"},
        "rootfs": {"type": "layers", "diff_ids": []},
    }))
    .unwrap()
}

fn composed(plan: &PodPlan) -> Result<Value, ComposeError> {
    let user = ContainerUser {
        additional_gids: vec![33],
        ..ContainerUser::default()
    };
    let addresses = PodAddresses {
        pod_ip: "10.0.0.2".into(),
        host_ip: "10.0.0.1".into(),
    };
    compose(Composition {
        plan,
        container: &plan.containers[0],
        image: &image(),
        user: &user,
        addresses: &addresses,
        seccomp_directory: &PathBuf::from("/nonexistent"),
    })
    .map(|spec| serde_json::to_value(spec).unwrap())
}

#[test]
fn compose_of_commands_follows_kubernetes_rules() {
    for (given, want) in [
        ("", vec!["/entry", "a"]),
        ("args: [b]", vec!["/entry", "b"]),
        ("command: [/c]", vec!["/c"]),
        (
            "command: [/c], args: [$(V), $(W)], env: [{name: V, value: v}]",
            vec!["/c", "v", "$(W)"],
        ),
    ] {
        let spec = composed(&planned(given)).unwrap();
        assert_eq!(spec["process"]["args"], json!(want), "{given}");
        assert_eq!(spec["process"]["cwd"], "/work");
    }
}

#[test]
fn compose_of_environment_lets_the_manifest_win() {
    let spec = composed(&planned(
        "env: [{name: X, value: mine}, {name: Y, value: $(X)!}, {name: IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}]",
    ))
    .unwrap();
    assert_eq!(
        spec["process"]["env"],
        json!([
            "PATH=/image",
            "HOSTNAME=p",
            "X=mine",
            "Y=mine!",
            "IP=10.0.0.2"
        ])
    );
}

#[test]
fn compose_of_capabilities_adds_and_drops() {
    let spec = composed(&planned(
        "securityContext: {capabilities: {drop: [ALL], add: [NET_ADMIN, CHOWN]}}",
    ))
    .unwrap();
    let mut caps: Vec<_> = spec["process"]["capabilities"]["bounding"]
        .as_array()
        .unwrap()
        .iter()
        .map(|c| c.as_str().unwrap())
        .collect();
    caps.sort_unstable();
    assert_eq!(caps, ["CAP_CHOWN", "CAP_NET_ADMIN"]);
    let spec = composed(&planned("securityContext: {privileged: true}")).unwrap();
    assert_eq!(
        spec["process"]["capabilities"]["bounding"]
            .as_array()
            .unwrap()
            .len(),
        41
    );
}

#[test]
fn compose_of_root_with_run_as_non_root_is_refused() {
    let said = composed(&planned("securityContext: {runAsNonRoot: true}"))
        .unwrap_err()
        .to_string();
    assert!(said.contains("runAsNonRoot"), "{said}");
}

#[test]
fn compose_of_volumes_mounts_parents_first_with_sub_paths() {
    let spec = composed(&planned(
        "env: [{name: V, value: x}], volumeMounts: [{name: m, mountPath: /data/mem, readOnly: true}, {name: d, mountPath: /data, subPathExpr: a/$(V)}]",
    ))
    .unwrap();
    let mounts = spec["mounts"].as_array().unwrap();
    let last: Vec<_> = mounts[mounts.len() - 2..].to_vec();
    assert_eq!(last[0]["destination"], "/data");
    assert_eq!(last[0]["source"], "/run/vmpod/shared/volumes/d");
    assert_eq!(
        last[0]["options"],
        json!(["rbind", "rprivate", "rw", "x-vmpod.subpath=a/x"])
    );
    assert_eq!(last[1]["source"], "/run/vmpod/memory/m");
    assert_eq!(last[1]["options"], json!(["rbind", "rprivate", "ro"]));
}

#[test]
fn compose_of_a_sub_path_that_expands_outwards_is_refused() {
    let said = composed(&planned(
        "env: [{name: V, value: ../..}], volumeMounts: [{name: d, mountPath: /data, subPathExpr: a/$(V)}]",
    ))
    .unwrap_err();
    assert!(matches!(said, ComposeError::SubPath { .. }));
}

#[test]
fn compose_of_limits_sets_quota_shares_and_memory() {
    let spec = composed(&planned(
        "resources: {limits: {cpu: 500m, memory: 64Mi}, requests: {cpu: 250m}}",
    ))
    .unwrap();
    let resources = &spec["linux"]["resources"];
    assert_eq!(resources["cpu"]["quota"], 50_000);
    assert_eq!(resources["cpu"]["shares"], 256);
    assert_eq!(resources["memory"]["limit"], 64 << 20);
    assert!(spec["process"]["oomScoreAdj"].as_i64().unwrap() > 3);
}

#[test]
fn compose_with_runtime_default_denies_mount_unless_admin() {
    let denied = |container: &str| {
        composed(&planned(container)).unwrap()["linux"]["seccomp"]["syscalls"][0]["names"]
            .as_array()
            .unwrap()
            .iter()
            .any(|n| n == "mount")
    };
    assert!(denied(
        "securityContext: {seccompProfile: {type: RuntimeDefault}}"
    ));
    assert!(!denied(
        "securityContext: {seccompProfile: {type: RuntimeDefault}, capabilities: {add: [SYS_ADMIN]}}"
    ));
}

#[test]
fn compose_with_a_missing_profile_names_the_file() {
    let error = composed(&planned(
        "securityContext: {seccompProfile: {type: Localhost, localhostProfile: p.json}}",
    ))
    .unwrap_err();
    let source = std::error::Error::source(&error).unwrap().to_string();
    assert!(source.contains("/nonexistent/p.json"), "{source}");
}

#[test]
fn user_to_resolve_prefers_the_manifest() {
    let plan = planned("securityContext: {runAsUser: 7}");
    assert_eq!(user_to_resolve(&plan.containers[0], &image()), "7");
    let plan = planned("securityContext: {runAsGroup: 8}");
    assert_eq!(user_to_resolve(&plan.containers[0], &image()), "0:8");
    assert_eq!(stop_signal(&image()), Some(3));
}
