//! Static pods: `vmpod serve` follows a folder of manifests.

use std::path::{Path, PathBuf};
use std::process::Child;

use serde_json::Value;
use vmpod_tests::{Pod, SmallImage, eventually, get, vmpod};

/// The serving process; its pods outlive it.
struct Server {
    child: Child,
    address: String,
}

impl Server {
    fn start(folder: &Path, port: u16) -> Self {
        Self::start_with(folder, port, &[])
    }

    fn start_with(folder: &Path, port: u16, options: &[&str]) -> Self {
        let address = format!("127.0.0.1:{port}");
        let child = vmpod(["serve", "--listen", &address, "--manifests"])
            .arg(folder)
            .args(options)
            .spawn();
        let server = Self { child, address };
        eventually("an answer of serve", || server.get("/healthz"));
        server
    }

    fn get(&self, path: &str) -> Option<String> {
        get(&format!("http://{}{path}", self.address))
    }

    fn pods(&self) -> Vec<Value> {
        let text = self.get("/pods").expect("a list of pods");
        let list: Value = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}"));
        assert_eq!(list["kind"], "PodList");
        list["items"].as_array().cloned().unwrap_or_default()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn manifest(name: &str, word: &str) -> String {
    format!(
        "apiVersion: v1
kind: Pod
metadata: {{name: {name}}}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - {{name: c, image: busybox, command: [sh, -c, 'echo {word}; exec sleep 1000']}}
"
    )
}

/// An empty folder of manifests, in the directory of a pod whose name begins with `kind`: the pod is there only for that, and
/// for its removal at the end.
fn watched(kind: &str) -> (Pod, PathBuf) {
    let pod = Pod::of_text(format!("{kind}-{}", std::process::id()), "");
    let folder = pod.directory.path().join("manifests");
    std::fs::create_dir(&folder).expect("make the folder");
    (pod, folder)
}

#[test]
#[ignore = "starts virtual machines: run by cargo xtask test"]
fn serve_starts_replaces_and_stops_what_the_folder_says_and_survives_its_own_end() {
    let (pod, folder) = watched("static");
    let name = pod.name.clone();
    let file = folder.join("web.yaml");
    let server = Server::start(&folder, 10_301);
    assert_eq!(server.get("/healthz").as_deref(), Some("ok"));

    std::fs::write(&file, manifest(&name, "first")).expect("write the manifest");
    let phase = || {
        server
            .pods()
            .into_iter()
            .find(|p| p["metadata"]["name"] == name.as_str())
            .and_then(|p| p["status"]["phase"].as_str().map(str::to_owned))
    };
    eventually("the pod", || phase().filter(|p| p == "Running"));
    eventually("its first word", || {
        pod.logs("c").contains("first").then_some(())
    });
    let first = pod.inspect();
    assert_eq!(
        first["metadata"]["annotations"]["kubernetes.io/config.source"],
        "file"
    );
    let metrics = eventually("figures of the container", || {
        let text = server.get("/metrics")?;
        let line = format!(
            "container_memory_working_set_bytes{{container=\"c\",namespace=\"default\",pod=\"{name}\"}} "
        );
        text.contains(&line).then_some(text)
    });
    for line in [
        "kubelet_running_pods ",
        "kubelet_desired_pods{static=\"true\"} 1",
        "kubelet_started_pods_total 1",
    ] {
        assert!(metrics.contains(line), "no {line:?} in {metrics}");
    }

    // A broken edit does not take the pod down, and its own end neither.
    std::fs::write(&file, "kind: Pod\n  broken").expect("write the manifest");
    drop(server);
    std::fs::write(&file, manifest(&name, "first")).expect("write the manifest");
    let server = Server::start(&folder, 10_302);
    std::thread::sleep(std::time::Duration::from_secs(3));
    assert_eq!(
        pod.inspect()["vmpod"]["id"],
        first["vmpod"]["id"],
        "the same pod"
    );

    std::fs::write(&file, manifest(&name, "second")).expect("write the manifest");
    eventually("another pod", || {
        let outcome = vmpod(["logs", "-c", "c", &name]).run();
        outcome.out.contains("second").then_some(())
    });
    assert_ne!(pod.inspect()["vmpod"]["id"], first["vmpod"]["id"]);

    // What dies is started again.
    vmpod(["kill", &name]).ok();
    let second = eventually("the pod after its machine was killed", || {
        let outcome = vmpod(["inspect", &name]).run();
        let pod: Value = serde_json::from_str(&outcome.out).ok()?;
        (pod["status"]["phase"] == "Running").then_some(pod)
    });
    assert_ne!(second["vmpod"]["id"], first["vmpod"]["id"]);

    std::fs::remove_file(&file).expect("remove the manifest");
    eventually("the pod's end", || {
        server
            .pods()
            .iter()
            .all(|p| p["metadata"]["name"] != name.as_str())
            .then_some(())
    });
}

#[test]
#[ignore = "starts virtual machines: run by cargo xtask test"]
fn serve_shows_pods_whose_images_cannot_be_had_and_starts_them_when_they_can() {
    let (pod, folder) = watched("late");
    let name = pod.name.clone();
    let late = manifest(&name, "here")
        .replace("image: busybox", "image: 'late:1', imagePullPolicy: Never")
        .replace("sh, -c", "/bin/sh, -c")
        .replace("exec sleep", "exec /bin/busybox sleep");
    std::fs::write(folder.join("late.yaml"), late).expect("write the manifest");
    let absent = manifest("absent", "x").replace("image: busybox", "image: 'localhost:1/absent:1'");
    std::fs::write(folder.join("absent.yaml"), absent).expect("write the manifest");
    let server = Server::start(&folder, 10_303);
    let waiting = |name: &str| {
        let pods = server.pods();
        let pod = pods.iter().find(|p| p["metadata"]["name"] == name)?;
        assert_eq!(pod["status"]["phase"], "Pending", "{pod:#}");
        let waiting = &pod["status"]["containerStatuses"][0]["state"]["waiting"];
        Some((
            waiting["reason"].as_str()?.to_owned(),
            waiting["message"].as_str()?.to_owned(),
        ))
    };
    let (reason, message) = eventually("the pod without its image", || waiting(&name));
    assert_eq!(reason, "ErrImageNeverPull", "{message}");
    assert_eq!(
        message,
        "Container image \"late:1\" is not present with pull policy of Never"
    );
    let (_, message) = eventually("back-off of the other", || {
        waiting("absent").filter(|(reason, _)| reason == "ImagePullBackOff")
    });
    assert!(
        message.starts_with("Back-off pulling image \"localhost:1/absent:1\": ErrImagePull: "),
        "{message}"
    );
    // Tried again after a while, with nobody's help.
    let image = SmallImage::make();
    vmpod(["image", "import"]).arg(image.archive("late:1")).ok();
    eventually("the pod with its image", || {
        let outcome = vmpod(["logs", "-c", "c", &name]).run();
        outcome.out.contains("here").then_some(())
    });
    let pods = server.pods();
    let same = pods
        .iter()
        .filter(|p| p["metadata"]["name"] == name.as_str());
    assert_eq!(same.count(), 1, "{pods:#?}");
    std::fs::remove_file(folder.join("absent.yaml")).expect("remove the manifest");
    eventually("the other's end", || {
        server
            .pods()
            .iter()
            .all(|p| p["metadata"]["name"] != "absent")
            .then_some(())
    });
    drop(server);
    vmpod(["rm", "-f", &name]).ok();
    vmpod(["image", "rm", "late:1"]).ok();
}

#[test]
#[ignore = "starts virtual machines: run by cargo xtask test"]
fn serve_gives_pods_the_objects_of_its_resource_files_and_their_changes() {
    let (pod, folder) = watched("fed");
    let name = pod.name.clone();
    let settings = pod.directory.path().join("settings.yaml");
    let say = |word: &str| {
        let text = format!(
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: m}}\ndata: {{word: {word}}}\n"
        );
        std::fs::write(&settings, text).expect("write the resources");
    };
    say("before");
    let text = format!(
        "apiVersion: v1
kind: Pod
metadata: {{name: {name}}}
spec:
  terminationGracePeriodSeconds: 1
  volumes: [{{name: v, configMap: {{name: m}}}}]
  containers:
  - name: c
    image: busybox
    env: [{{name: WORD, valueFrom: {{configMapKeyRef: {{name: m, key: word}}}}}}]
    command: [sh, -c, 'echo env $WORD; while sleep 0.2; do cat /v/word; echo; done']
    volumeMounts: [{{name: v, mountPath: /v}}]
"
    );
    std::fs::write(folder.join("fed.yaml"), text).expect("write the manifest");
    let server = Server::start_with(
        &folder,
        10_304,
        &["--resource", &settings.to_string_lossy()],
    );
    let says = |word: &str| {
        eventually(&format!("the word {word:?}"), || {
            let outcome = vmpod(["logs", "-c", "c", &name]).run();
            outcome.out.contains(word).then_some(())
        });
    };
    says("env before");
    let id = pod.inspect()["vmpod"]["id"].clone();
    say("after");
    says("after");
    assert_eq!(pod.inspect()["vmpod"]["id"], id, "the pod goes on");
    drop(server);
    vmpod(["rm", "-f", &name]).ok();
}
