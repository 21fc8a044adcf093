//! Plans of whole manifests: the examples, defaults, and what is refused.

use super::super::documents::objects;
use super::super::plan::{EnvValue, VolumeKind};
use super::*;

/// A container with every default.
pub(crate) fn container(name: &str) -> ContainerPlan {
    let text = format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: p}}\nspec: {{containers: [{{name: {name}, image: i}}]}}\n"
    );
    planned(&text).unwrap().containers.remove(0)
}

fn planned(text: &str) -> Result<PodPlan, Problems> {
    let objects = objects(text, "pod.yaml")?;
    let (pod, document) = &objects.pods[0];
    let host = HostFacts {
        cpus: 4,
        node_name: "node".into(),
        uid: "u-1".into(),
    };
    plan(pod, document, &objects, &host, "pod.yaml")
}

fn refused(spec: &str) -> String {
    planned(&format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: p}}\nspec:\n{spec}"
    ))
    .unwrap_err()
    .to_string()
}

const MAIN: &str = "  containers: [{name: c, image: i}]\n";

#[test]
fn plan_of_each_example_is_made() {
    let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples");
    let mut names = Vec::new();
    for file in std::fs::read_dir(dir).unwrap() {
        let path = file.unwrap().path();
        if path.extension().is_none_or(|ending| ending != "yaml") {
            continue;
        }
        let plan = planned(&std::fs::read_to_string(&path).unwrap());
        names.push(
            plan.unwrap_or_else(|e| panic!("{}: {e}", path.display()))
                .name,
        );
    }
    for name in ["javaweb-2", "lumpy-koala", "two-containers"] {
        assert!(
            names.iter().any(|n| n == name),
            "{name} is missing in {names:?}"
        );
    }
}

#[test]
fn plan_of_a_small_pod_has_kubernetes_defaults() {
    let plan = planned(&format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: p}}\nspec:\n{MAIN}"
    ))
    .unwrap();
    assert_eq!(plan.restart_policy, RestartPolicy::Always);
    assert_eq!(
        (
            plan.termination_grace_seconds,
            plan.namespace.as_str(),
            plan.hostname.as_str()
        ),
        (30, "default", "p")
    );
    assert_eq!(
        plan.containers[0].termination_message_path,
        "/dev/termination-log"
    );
    assert_eq!(plan.containers[0].security.seccomp, SeccompPlan::Unconfined);
    assert!(plan.notes.is_empty() && plan.dns.from_host);
}

#[test]
fn plan_without_the_hosts_users_has_ids_of_its_own_and_no_others() {
    let text = |ids: &str| {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: p}}\nspec:\n  hostUsers: false\n  securityContext: {{{ids}}}\n{MAIN}"
        )
    };
    let plan = planned(&text("runAsUser: 65535, supplementalGroups: [65535]")).unwrap();
    assert!(plan.user_namespace);
    let said = planned(&text(
        "runAsUser: 65536, supplementalGroups: [1, 65536], fsGroup: 100000",
    ));
    let said = said.unwrap_err().to_string();
    for field in ["runAsUser", "supplementalGroups[1]", "fsGroup"] {
        assert!(
            said.contains(&format!("spec.securityContext.{field}: Invalid value")),
            "{said}"
        );
    }
    assert_eq!(said.lines().count(), 3, "{said}");
}

#[test]
fn plan_without_name_image_or_containers_says_required() {
    assert_eq!(
        planned("apiVersion: v1\nkind: Pod\nmetadata: {}\nspec:\n  containers:\n  - image: i\n  - name: b\n").unwrap_err().to_string(),
        "pod.yaml:3: metadata.name: Required value\npod.yaml:6: spec.containers[0].name: Required value\npod.yaml:7: spec.containers[1].image: Required value"
    );
    assert_eq!(
        refused("  containers: []\n"),
        "pod.yaml:5: spec.containers: Required value"
    );
}

#[test]
fn plan_with_bad_fields_names_each_with_its_line() {
    let said = refused(
        "  restartPolicy: Sometimes\n  hostNetwork: true\n  initContainers: [{name: c, image: i}]\n  containers:\n  - name: c\n    image: i\n    volumeMounts:\n    - {name: nope, mountPath: /x}\n    ports: [{containerPort: 0}]\n    resources: {requests: {memory: 2Gi}, limits: {memory: 1Gi}}\n    volumeDevices: [{name: x, devicePath: /dev/x}]\n",
    );
    let lines: Vec<_> = said.lines().collect();
    assert_eq!(
        lines,
        [
            "pod.yaml:5: spec.restartPolicy: Unsupported value: \"Sometimes\": supported values: \"Always\", \"OnFailure\", \"Never\"",
            "pod.yaml:6: spec.hostNetwork: Forbidden: the virtual machine is the pod: there is no host namespace to share",
            "pod.yaml:9: spec.containers[0].name: Duplicate value: \"c\"",
            "pod.yaml:12: spec.containers[0].volumeMounts[0].name: Not found: \"nope\"",
            "pod.yaml:13: spec.containers[0].ports[0].containerPort: Invalid value: 0: must be between 1 and 65535, inclusive",
            "pod.yaml:14: spec.containers[0].resources.requests.memory: Invalid value: \"2Gi\": must be less than or equal to memory limit of 1Gi",
            "pod.yaml:15: spec.containers[0].volumeDevices[0].name: Not found: \"x\"",
        ]
    );
}

#[test]
fn plan_of_volume_devices_is_of_host_paths_that_are_not_mounted() {
    let volumes = "  volumes:\n  - {name: disk, hostPath: {path: /srv/disk}}\n  - {name: dir, emptyDir: {}}\n";
    let with = |devices: &str| {
        format!(
            "  containers:\n  - name: c\n    image: i\n    volumeMounts: [{{name: m, mountPath: /m}}]\n    volumeDevices: {devices}\n{volumes}  - {{name: m, hostPath: {{path: /m}}}}\n"
        )
    };
    for (devices, words) in [
        (
            "[{name: dir, devicePath: /dev/x}]",
            "must be a hostPath volume",
        ),
        (
            "[{name: m, devicePath: /dev/x}]",
            "must not already exist in volumeMounts",
        ),
        ("[{name: disk, devicePath: x}]", "must be an absolute path"),
        (
            "[{name: disk, devicePath: /dev/../x}]",
            "must be an absolute path",
        ),
        (
            "[{name: disk}]",
            "volumeDevices[0].devicePath: Required value",
        ),
        (
            "[{name: disk, devicePath: /x}, {name: disk, devicePath: /y}]",
            "volumeDevices[1].name: Duplicate value",
        ),
    ] {
        let said = refused(&with(devices));
        assert!(said.contains(words), "{devices}: {said}");
    }
}

#[test]
fn plan_resolves_environment_and_volumes_from_objects() {
    let text = "apiVersion: v1
kind: ConfigMap
metadata: {name: m}
data: {greeting: hello, 'bad=name': x}
---
apiVersion: v1
kind: Secret
metadata: {name: s}
data: {token: c2VjcmV0}
---
apiVersion: v1
kind: Pod
metadata: {name: p, labels: {app: web}}
spec:
  containers:
  - name: c
    image: i
    envFrom: [{configMapRef: {name: m}, prefix: M_}]
    env:
    - {name: TOKEN, valueFrom: {secretKeyRef: {name: s, key: token}}}
    - {name: GONE, valueFrom: {secretKeyRef: {name: s, key: gone, optional: true}}}
    - {name: APP, valueFrom: {fieldRef: {fieldPath: \"metadata.labels['app']\"}}}
    - {name: IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}
    - {name: T, value: a$(TOKEN)}
    - {name: CPU, valueFrom: {resourceFieldRef: {resource: limits.cpu}}}
    resources: {limits: {cpu: 1500m}}
    volumeMounts: [{name: v, mountPath: /v, readOnly: true}]
  volumes:
  - name: v
    secret: {secretName: s, defaultMode: 0o400, items: [{key: token, path: a/b}]}
";
    let plan = planned(text).unwrap();
    let env: Vec<_> = plan.containers[0]
        .env
        .iter()
        .map(|e| (e.name.as_str(), e.value.clone()))
        .collect();
    let literal = |v: &str| EnvValue::Literal(v.into());
    assert_eq!(
        env,
        [
            ("M_greeting", literal("hello")),
            ("TOKEN", literal("secret")),
            ("APP", literal("web")),
            ("IP", EnvValue::PodIp),
            ("T", EnvValue::Template("a$(TOKEN)".into())),
            ("CPU", literal("2")),
        ]
    );
    let volume = &plan.volumes[0];
    assert!(volume.read_only);
    let VolumeKind::Files { files } = &volume.kind else {
        panic!("{volume:?}")
    };
    assert_eq!(files["a/b"].bytes, b"secret");
    assert_eq!(files["a/b"].mode, 0o400);
}

#[test]
fn plan_with_a_missing_object_names_the_reference() {
    let said = refused(
        "  containers:\n  - name: c\n    image: i\n    env:\n    - {name: A, valueFrom: {configMapKeyRef: {name: m, key: k}}}\n  volumes:\n  - {name: v, configMap: {name: m}}\n",
    );
    assert_eq!(
        said,
        "pod.yaml:9: spec.containers[0].env[0].valueFrom.configMapKeyRef.name: Not found: \"m\"\npod.yaml:11: spec.volumes[0].configMap.name: Not found: \"m\""
    );
}

#[test]
fn plan_merges_security_contexts_and_host_ports() {
    let text = "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec:\n  securityContext: {runAsUser: 1000, fsGroup: 5, supplementalGroups: [7]}\n  containers:\n  - name: c\n    image: i\n    securityContext: {runAsUser: 1001, allowPrivilegeEscalation: false, capabilities: {add: [CAP_NET_ADMIN], drop: [all]}}\n    ports: [{containerPort: 80, hostPort: 8080, protocol: UDP}]\n";
    let plan = planned(text).unwrap();
    let security = &plan.containers[0].security;
    assert_eq!(security.run_as_user, Some(1001));
    assert_eq!(security.supplemental_groups, [7, 5]);
    assert!(security.no_new_privileges);
    assert_eq!(
        (
            security.add_capabilities[0].as_str(),
            security.drop_capabilities[0].as_str()
        ),
        ("NET_ADMIN", "ALL")
    );
    assert_eq!(
        plan.host_ports,
        [HostPort {
            host_ip: None,
            host_port: 8080,
            container_port: 80,
            protocol: Protocol::Udp
        }]
    );
}

#[test]
fn plan_of_probes_and_hooks_has_ports_by_number_and_defaults() {
    use super::super::care::HandlerPlan;

    let plan = planned(
        "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec:\n  os: {name: linux}\n  containers:\n  - name: c\n    image: i\n    ports: [{name: web, containerPort: 8080}]\n    readinessProbe: {httpGet: {port: web, path: 'a b?c=ü', scheme: HTTPS}}\n    livenessProbe: {grpc: {port: 9}, periodSeconds: 0, failureThreshold: 7, terminationGracePeriodSeconds: 4}\n    lifecycle: {preStop: {sleep: {seconds: 3}}, stopSignal: SIGUSR2}\n",
    )
    .unwrap();
    let container = &plan.containers[0];
    let readiness = container.care.readiness.as_ref().unwrap();
    assert_eq!(
        readiness.handler,
        HandlerPlan::Http {
            host: String::new(),
            port: 8080,
            path: "/a%20b?c=%C3%BC".into(),
            https: true,
            headers: vec![],
        }
    );
    assert_eq!(
        (readiness.period_seconds, readiness.timeout_seconds),
        (10, 1)
    );
    let liveness = container.care.liveness.as_ref().unwrap();
    assert_eq!(
        (
            liveness.period_seconds,
            liveness.failure_threshold,
            liveness.grace_seconds
        ),
        (10, 7, Some(4))
    );
    assert_eq!(
        container.care.pre_stop,
        Some(HandlerPlan::Sleep { seconds: 3 })
    );
    assert_eq!(container.stop_signal, 12);
}
