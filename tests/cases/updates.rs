//! Volumes made of objects follow them while the pod runs, all files at once, and who watches them is told.

use std::path::Path;

use vmpod_tests::{Pod, eventually, vmpod};

use crate::volumes::WATCHER;

fn settings(colour: &str, further: &str) -> String {
    format!(
        "apiVersion: v1
kind: ConfigMap
metadata: {{name: settings}}
data: {{colour: {colour}, {further}: x}}
---
apiVersion: v1
kind: Secret
metadata: {{name: keys}}
stringData: {{password: {colour}-hush}}
"
    )
}

/// As careful programs write.
fn replace(path: &Path, text: &str) {
    let beside = path.with_extension("new");
    std::fs::write(&beside, text).expect("write the resource");
    std::fs::rename(&beside, path).expect("rename the resource");
}

#[test]
#[ignore = "starts virtual machines: run by cargo xtask test"]
fn volumes_follow_their_resource_file_and_watchers_are_told() {
    let pod = Pod::new(&format!(
        "
  terminationGracePeriodSeconds: 1
  volumes:
  - name: all
    projected:
      sources:
      - {{configMap: {{name: settings}}}}
      - {{secret: {{name: keys}}}}
      - {{downwardAPI: {{items: [{{path: labels, fieldRef: {{fieldPath: metadata.labels}}}}]}}}}
  - {{name: map, configMap: {{name: settings}}}}
  containers:
  - name: c
    image: debian
    env:
    - {{name: COLOUR, valueFrom: {{configMapKeyRef: {{name: settings, key: colour}}}}}}
    volumeMounts:
    - {{name: all, mountPath: /all}}
    - {{name: map, mountPath: /one, subPath: colour}}{WATCHER}    - /all
    - /all/colour"
    ));
    let resource = pod.directory.path().join("settings.yaml");
    replace(&resource, &settings("green", "old"));
    vmpod(["run", "-d", "--resource"])
        .arg(&resource)
        .arg(pod.manifest())
        .ok();
    let told = |event: &str| {
        eventually(&format!("the event {event:?}"), || {
            let log = pod.logs("c");
            log.lines().any(|l| l.trim_end() == event).then_some(())
        });
    };
    told("ready");
    assert_eq!(
        pod.sh("c", "cat /all/colour /all/password"),
        "greengreen-hush"
    );

    replace(&resource, &settings("blue", "new"));
    eventually("the new content", || {
        (pod.sh("c", "cat /all/colour") == "blue").then_some(())
    });
    assert_eq!(
        pod.sh("c", "cat /all/password; ls /all"),
        "blue-hushcolour\nlabels\nnew\npassword\n"
    );
    // The new directory takes the place of the old one by one rename; the watched file is of the old one.
    told("1 80 ..data");
    told("2 400");
    // As under Kubernetes: neither variables nor mounts of a single file follow.
    assert_eq!(pod.sh("c", "echo $COLOUR; cat /one"), "green\ngreen");
    pod.await_event("VolumesUpdated : all, map");

    // A file that is broken, even for a moment, changes nothing.
    std::fs::write(&resource, "kind: ConfigMap\n  broken").expect("write the resource");
    pod.await_event("FailedUpdate");
    assert_eq!(pod.sh("c", "cat /all/colour"), "blue");
    std::fs::write(&resource, settings("red", "new")).expect("write the resource");
    eventually("the content after that", || {
        (pod.sh("c", "cat /all/colour") == "red").then_some(())
    });
    assert_eq!(pod.container("c")["restartCount"], 0);
}

#[test]
#[ignore = "starts virtual machines: run by cargo xtask test"]
fn labels_that_are_set_later_reach_downward_volumes() {
    let pod = Pod::new(
        "
  terminationGracePeriodSeconds: 1
  volumes:
  - name: about
    downwardAPI: {items: [{path: labels, fieldRef: {fieldPath: metadata.labels}}]}
  containers:
  - {name: c, image: busybox, command: [sleep, '1000'], volumeMounts: [{name: about, mountPath: /about}]}",
    );
    pod.start();
    pod.await_phase("Running");
    let changed = vmpod(["update", "--label", "tier=front", "--label", "app=shop"])
        .arg(&pod.name)
        .ok();
    assert_eq!(changed, "about\n");
    let labels = || pod.sh("c", "cat /about/labels");
    assert_eq!(labels(), "app=\"shop\"\ntier=\"front\"");
    vmpod(["update", "--label", "tier-", &pod.name]).ok();
    assert_eq!(labels(), "app=\"shop\"");
    assert_eq!(pod.inspect()["metadata"]["labels"]["app"], "shop");
    assert_eq!(vmpod(["update", &pod.name]).ok(), "", "nothing has changed");
    // The host's side is read-only to the pod, whatever the manifest says.
    let denied = pod.exec("c", &["sh", "-c", "echo x > /about/x"]);
    assert!(denied.err.contains("Read-only file system"), "{denied}");
    vmpod(["update", "--label", "no label=x", &pod.name]).fails(2, &["metadata.labels"]);
}
