//! Pods that are not there yet because an image cannot be had, as a kubelet shows them: Pending, with the container waiting in
//! ErrImagePull or ImagePullBackOff.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::{Container, Pod};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use vmpod_shim::manifest;
use vmpod_shim::pod::clock;

/// An image that could not be had.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageFailure {
    /// Name of the container.
    pub container: String,
    /// Image as the manifest names it.
    pub image: String,
    /// Why, with the causes.
    pub message: String,
}

/// The pods, by their files.
#[derive(Debug, Default)]
pub(super) struct Pending {
    pods: BTreeMap<PathBuf, Waiting>,
}

#[derive(Debug)]
struct Waiting {
    pod: Pod,
    failure: ImageFailure,
    /// It is being tried again just now.
    trying: bool,
    since_ns: i64,
}

impl Pending {
    /// An image of the pod in `file` could not be had.
    pub(super) fn failed(&mut self, file: &Path, failure: ImageFailure) {
        let read = std::fs::read_to_string(file).unwrap_or_default();
        let Some((pod, _)) = manifest::partly(&read).0.pods.into_iter().next() else {
            self.pods.remove(file);
            return;
        };
        let since_ns = self
            .pods
            .get(file)
            .map_or_else(clock::now_ns, |waiting| waiting.since_ns);
        self.pods.insert(
            file.to_owned(),
            Waiting {
                pod,
                failure,
                trying: false,
                since_ns,
            },
        );
    }

    /// The pod in `file` is tried once more.
    pub(super) fn trying(&mut self, file: &Path) {
        if let Some(waiting) = self.pods.get_mut(file) {
            waiting.trying = true;
        }
    }

    /// The pod in `file` is there, or cannot be for another reason.
    pub(super) fn forget(&mut self, file: &Path) {
        self.pods.remove(file);
    }

    /// Only these files are there still.
    pub(super) fn retain(&mut self, files: &BTreeMap<PathBuf, String>) {
        self.pods.retain(|file, _| files.contains_key(file));
    }

    /// The pods as `kubectl get pod -o json` has them.
    pub(super) fn objects(&self) -> Vec<Value> {
        self.pods.values().map(Waiting::object).collect()
    }
}

impl Waiting {
    fn object(&self) -> Value {
        let mut pod = self.pod.clone();
        pod.metadata
            .namespace
            .get_or_insert_with(|| "default".to_owned());
        // A typed object is always written again.
        let mut object = serde_json::to_value(&pod).unwrap_or_default();
        let since = clock::rfc3339(self.since_ns);
        let condition = |kind: &str, holds: bool| {
            json!({
                "type": kind,
                "status": if holds { "True" } else { "False" },
                "lastProbeTime": null,
                "lastTransitionTime": since,
            })
        };
        let spec = pod.spec.unwrap_or_default();
        let init = spec.init_containers.unwrap_or_default();
        object["status"] = json!({
            "phase": "Pending",
            "startTime": since,
            "conditions": [
                condition("Initialized", init.is_empty()),
                condition("Ready", false),
                condition("ContainersReady", false),
                condition("PodScheduled", true),
            ],
            "initContainerStatuses": self.statuses(&init, "PodInitializing"),
            "containerStatuses": self.statuses(
                &spec.containers,
                if init.is_empty() { "ContainerCreating" } else { "PodInitializing" },
            ),
        });
        object
    }

    fn statuses(&self, containers: &[Container], otherwise: &str) -> Vec<Value> {
        let status = |container: &Container| {
            let waiting = if container.name == self.failure.container {
                self.state(container)
            } else {
                json!({"reason": otherwise})
            };
            json!({
                "name": container.name,
                "image": container.image,
                "imageID": "",
                "ready": false,
                "started": false,
                "restartCount": 0,
                "lastState": {},
                "state": {"waiting": waiting},
            })
        };
        containers.iter().map(status).collect()
    }

    fn state(&self, container: &Container) -> Value {
        let ImageFailure { image, message, .. } = &self.failure;
        if container.image_pull_policy.as_deref() == Some("Never") {
            let message =
                format!("Container image {image:?} is not present with pull policy of Never");
            return json!({"reason": "ErrImageNeverPull", "message": message});
        }
        if self.trying {
            json!({"reason": "ErrImagePull", "message": message})
        } else {
            let message = format!("Back-off pulling image {image:?}: ErrImagePull: {message}");
            json!({"reason": "ImagePullBackOff", "message": message})
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waiting(pending: &Pending) -> Value {
        pending.objects()[0]["status"]["containerStatuses"][0]["state"]["waiting"].clone()
    }

    #[test]
    fn pending_pod_tells_its_image_and_backs_off_between_tries() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("p.yaml");
        let text = "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec: {containers: [{name: c, image: i}, {name: d, image: j}]}\n";
        std::fs::write(&file, text).unwrap();
        let failure = ImageFailure {
            container: "c".into(),
            image: "i".into(),
            message: "no registry".into(),
        };
        let mut pending = Pending::default();
        pending.failed(&file, failure.clone());
        let pod = &pending.objects()[0];
        assert_eq!(pod["status"]["phase"], "Pending");
        assert_eq!(pod["metadata"]["namespace"], "default");
        assert_eq!(
            pod["status"]["containerStatuses"][1]["state"]["waiting"]["reason"],
            "ContainerCreating"
        );
        let _: Pod = serde_json::from_value(pod.clone()).unwrap();
        assert_eq!(
            waiting(&pending),
            json!({"reason": "ImagePullBackOff", "message": "Back-off pulling image \"i\": ErrImagePull: no registry"})
        );
        pending.trying(&file);
        assert_eq!(waiting(&pending)["reason"], "ErrImagePull");
        pending.failed(&file, failure);
        assert_eq!(waiting(&pending)["reason"], "ImagePullBackOff");
        pending.retain(&BTreeMap::new());
        assert!(pending.objects().is_empty());
    }
}
