//! Which fields of a Pod work here, which have no effect, and which are refused. The one table behind validation.
//!
//! A field that the table does not name is refused, so that nothing is ever ignored silently.

use serde_json::Value;

use super::problem::Collector;
use super::source::join;

/// What vmpod makes of a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Support {
    /// Has its Kubernetes meaning.
    Works,
    /// Accepted; the reason says who would read it.
    NoEffect(&'static str),
    /// Refused, whatever its value.
    Refused(&'static str),
    /// Refused when true.
    RefusedIfTrue(&'static str),
}

use Support::{NoEffect, Refused, RefusedIfTrue, Works};

const SCHEDULER: &str = "only a scheduler reads it";
const API: &str = "only an API server reads it";
const HOST: &str = "the virtual machine is the pod: there is no host namespace to share";
const LATER: &str = "not supported by this version of vmpod";
const DRIVER: &str = "it needs a storage driver of a cluster";

/// Fields in generic form: list items as `[]`. Init containers have the rows of `spec.containers[]`.
pub const FIELDS: &[(&str, Support)] = &[
    ("apiVersion", Works),
    ("kind", Works),
    ("status", NoEffect(API)),
    ("metadata.name", Works),
    ("metadata.namespace", Works),
    ("metadata.uid", Works),
    ("metadata.labels", Works),
    ("metadata.annotations", Works),
    ("metadata.generateName", NoEffect(API)),
    ("metadata.creationTimestamp", NoEffect(API)),
    ("metadata.deletionTimestamp", NoEffect(API)),
    ("metadata.deletionGracePeriodSeconds", NoEffect(API)),
    ("metadata.finalizers", NoEffect(API)),
    ("metadata.generation", NoEffect(API)),
    ("metadata.managedFields", NoEffect(API)),
    ("metadata.ownerReferences", NoEffect(API)),
    ("metadata.resourceVersion", NoEffect(API)),
    ("metadata.selfLink", NoEffect(API)),
    ("spec.activeDeadlineSeconds", Works),
    ("spec.affinity", NoEffect(SCHEDULER)),
    (
        "spec.automountServiceAccountToken",
        NoEffect("there is no API server whose token could be mounted"),
    ),
    ("spec.dnsConfig", Works),
    ("spec.dnsPolicy", Works),
    ("spec.enableServiceLinks", NoEffect("there are no services")),
    (
        "spec.ephemeralContainers",
        Refused("ephemeral containers are added to a running pod, not to a manifest"),
    ),
    ("spec.hostAliases", Works),
    ("spec.hostIPC", RefusedIfTrue(HOST)),
    ("spec.hostNetwork", RefusedIfTrue(HOST)),
    ("spec.hostPID", RefusedIfTrue(HOST)),
    ("spec.hostUsers", Works),
    ("spec.hostname", Works),
    ("spec.hostnameOverride", Works),
    ("spec.imagePullSecrets", Works),
    ("spec.nodeName", NoEffect(SCHEDULER)),
    ("spec.nodeSelector", NoEffect(SCHEDULER)),
    ("spec.os.name", Works),
    ("spec.overhead", NoEffect("vmpod counts its own overhead")),
    ("spec.preemptionPolicy", NoEffect(SCHEDULER)),
    ("spec.priority", NoEffect(SCHEDULER)),
    ("spec.priorityClassName", NoEffect(SCHEDULER)),
    ("spec.readinessGates", Works),
    (
        "spec.resourceClaims",
        Refused("there are no dynamic resource drivers here"),
    ),
    ("spec.resources", Refused(LATER)),
    ("spec.restartPolicy", Works),
    ("spec.runtimeClassName", NoEffect("this is vmpod already")),
    ("spec.schedulerName", NoEffect(SCHEDULER)),
    ("spec.schedulingGates", NoEffect(SCHEDULER)),
    (
        "spec.securityContext.appArmorProfile",
        NoEffect("the guest kernel has no AppArmor"),
    ),
    ("spec.securityContext.fsGroup", Works),
    ("spec.securityContext.fsGroupChangePolicy", Works),
    ("spec.securityContext.runAsGroup", Works),
    ("spec.securityContext.runAsNonRoot", Works),
    ("spec.securityContext.runAsUser", Works),
    (
        "spec.securityContext.seLinuxChangePolicy",
        NoEffect("the guest kernel has no SELinux"),
    ),
    (
        "spec.securityContext.seLinuxOptions",
        NoEffect("the guest kernel has no SELinux"),
    ),
    ("spec.securityContext.seccompProfile", Works),
    ("spec.securityContext.supplementalGroups", Works),
    ("spec.securityContext.supplementalGroupsPolicy", Works),
    ("spec.securityContext.sysctls", Works),
    (
        "spec.securityContext.windowsOptions",
        Refused("the guest is Linux"),
    ),
    (
        "spec.serviceAccount",
        NoEffect("there is no API server to know accounts"),
    ),
    (
        "spec.serviceAccountName",
        NoEffect("there is no API server to know accounts"),
    ),
    ("spec.setHostnameAsFQDN", Works),
    ("spec.shareProcessNamespace", Works),
    ("spec.subdomain", Works),
    ("spec.terminationGracePeriodSeconds", Works),
    ("spec.tolerations", NoEffect(SCHEDULER)),
    ("spec.topologySpreadConstraints", NoEffect(SCHEDULER)),
    ("spec.workloadRef", NoEffect(SCHEDULER)),
    ("spec.volumes[].name", Works),
    ("spec.volumes[].configMap", Works),
    ("spec.volumes[].secret", Works),
    ("spec.volumes[].emptyDir", Works),
    ("spec.volumes[].hostPath", Works),
    ("spec.volumes[].downwardAPI", Works),
    ("spec.volumes[].image", Works),
    ("spec.volumes[].projected.defaultMode", Works),
    (
        "spec.volumes[].projected.sources[].clusterTrustBundle",
        Refused("there is no API server that holds trust bundles: use a configMap"),
    ),
    ("spec.volumes[].projected.sources[].configMap", Works),
    ("spec.volumes[].projected.sources[].downwardAPI", Works),
    (
        "spec.volumes[].projected.sources[].podCertificate",
        Refused("there is no API server that signs certificates: use a secret"),
    ),
    ("spec.volumes[].projected.sources[].secret", Works),
    (
        "spec.volumes[].projected.sources[].serviceAccountToken",
        Refused("there is no API server that issues or would accept tokens"),
    ),
    ("spec.volumes[].awsElasticBlockStore", Refused(DRIVER)),
    ("spec.volumes[].azureDisk", Refused(DRIVER)),
    ("spec.volumes[].azureFile", Refused(DRIVER)),
    ("spec.volumes[].cephfs", Refused(DRIVER)),
    ("spec.volumes[].cinder", Refused(DRIVER)),
    ("spec.volumes[].csi", Refused(DRIVER)),
    ("spec.volumes[].ephemeral", Refused(DRIVER)),
    ("spec.volumes[].fc", Refused(DRIVER)),
    ("spec.volumes[].flexVolume", Refused(DRIVER)),
    ("spec.volumes[].flocker", Refused(DRIVER)),
    ("spec.volumes[].gcePersistentDisk", Refused(DRIVER)),
    (
        "spec.volumes[].gitRepo",
        Refused("Kubernetes has given it up: clone in an init container into an emptyDir"),
    ),
    ("spec.volumes[].glusterfs", Refused(DRIVER)),
    ("spec.volumes[].iscsi", Refused(DRIVER)),
    (
        "spec.volumes[].nfs",
        Refused("the guest has no NFS client: mount it on the host and use hostPath"),
    ),
    ("spec.volumes[].persistentVolumeClaim", Refused(DRIVER)),
    ("spec.volumes[].photonPersistentDisk", Refused(DRIVER)),
    ("spec.volumes[].portworxVolume", Refused(DRIVER)),
    ("spec.volumes[].quobyte", Refused(DRIVER)),
    ("spec.volumes[].rbd", Refused(DRIVER)),
    ("spec.volumes[].scaleIO", Refused(DRIVER)),
    ("spec.volumes[].storageos", Refused(DRIVER)),
    ("spec.volumes[].vsphereVolume", Refused(DRIVER)),
    ("spec.containers[].args", Works),
    ("spec.containers[].command", Works),
    ("spec.containers[].env", Works),
    ("spec.containers[].envFrom", Works),
    ("spec.containers[].image", Works),
    ("spec.containers[].imagePullPolicy", Works),
    ("spec.containers[].lifecycle", Works),
    ("spec.containers[].livenessProbe", Works),
    ("spec.containers[].readinessProbe", Works),
    ("spec.containers[].startupProbe", Works),
    ("spec.containers[].name", Works),
    ("spec.containers[].ports", Works),
    (
        "spec.containers[].resizePolicy",
        NoEffect("the pod is not resized in place"),
    ),
    ("spec.containers[].resources.limits", Works),
    ("spec.containers[].resources.requests", Works),
    (
        "spec.containers[].resources.claims",
        Refused("there are no dynamic resource drivers here"),
    ),
    ("spec.containers[].restartPolicy", Works),
    ("spec.containers[].restartPolicyRules", Refused(LATER)),
    (
        "spec.containers[].securityContext.allowPrivilegeEscalation",
        Works,
    ),
    (
        "spec.containers[].securityContext.appArmorProfile",
        NoEffect("the guest kernel has no AppArmor"),
    ),
    ("spec.containers[].securityContext.capabilities", Works),
    ("spec.containers[].securityContext.privileged", Works),
    ("spec.containers[].securityContext.procMount", Works),
    (
        "spec.containers[].securityContext.readOnlyRootFilesystem",
        Works,
    ),
    ("spec.containers[].securityContext.runAsGroup", Works),
    ("spec.containers[].securityContext.runAsNonRoot", Works),
    ("spec.containers[].securityContext.runAsUser", Works),
    (
        "spec.containers[].securityContext.seLinuxOptions",
        NoEffect("the guest kernel has no SELinux"),
    ),
    ("spec.containers[].securityContext.seccompProfile", Works),
    (
        "spec.containers[].securityContext.windowsOptions",
        Refused("the guest is Linux"),
    ),
    ("spec.containers[].stdin", Works),
    ("spec.containers[].stdinOnce", Works),
    ("spec.containers[].terminationMessagePath", Works),
    ("spec.containers[].terminationMessagePolicy", Works),
    ("spec.containers[].tty", Works),
    ("spec.containers[].volumeDevices", Works),
    ("spec.containers[].volumeMounts[].name", Works),
    ("spec.containers[].volumeMounts[].mountPath", Works),
    ("spec.containers[].volumeMounts[].mountPropagation", Works),
    ("spec.containers[].volumeMounts[].readOnly", Works),
    ("spec.containers[].volumeMounts[].recursiveReadOnly", Works),
    ("spec.containers[].volumeMounts[].subPath", Works),
    ("spec.containers[].volumeMounts[].subPathExpr", Works),
    ("spec.containers[].workingDir", Works),
];

/// Checks every field of a document against the table. Returns a note for each field without effect.
pub(super) fn check(value: &Value, collector: &mut Collector<'_>) -> Vec<String> {
    let mut notes = Vec::new();
    walk(value, "", "", collector, &mut notes);
    notes
}

fn walk(
    value: &Value,
    path: &str,
    generic: &str,
    collector: &mut Collector<'_>,
    notes: &mut Vec<String>,
) {
    if value.is_null() {
        return;
    }
    if let Some((_, support)) = FIELDS.iter().find(|(field, _)| *field == generic) {
        match support {
            Works => {}
            NoEffect(reason) => notes.push(format!("{path} has no effect here: {reason}")),
            RefusedIfTrue(_) if value == &Value::Bool(false) => {}
            Refused(reason) | RefusedIfTrue(reason) => {
                collector.add(path, format!("Forbidden: {reason}"))
            }
        }
        return;
    }
    match value {
        Value::Object(fields) => {
            for (key, field) in fields {
                let section = match (generic, key.as_str()) {
                    ("spec", "initContainers") => "containers",
                    (_, key) => key,
                };
                walk(
                    field,
                    &join(path, key),
                    &join(generic, section),
                    collector,
                    notes,
                );
            }
        }
        Value::Array(items) => {
            for (i, item) in items.iter().enumerate() {
                walk(
                    item,
                    &format!("{path}[{i}]"),
                    &format!("{generic}[]"),
                    collector,
                    notes,
                );
            }
        }
        _ => collector.add(path, format!("Forbidden: {LATER}")),
    }
}

#[cfg(test)]
mod tests;
