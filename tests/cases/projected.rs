//! Volumes made of objects and images: downwardAPI, projected, image, and their updates.

use vmpod_tests::{Pod, vmpod};

#[test]
#[ignore = "starts virtual machines: run by cargo xtask test"]
fn downward_and_projected_volumes_hold_what_they_name_with_their_modes() {
    let name = format!("projected-{}", std::process::id());
    let text = format!(
        "apiVersion: v1
kind: Pod
metadata:
  name: {name}
  labels: {{app: shop, tier: front}}
  annotations: {{note: 'say \"hi\"'}}
spec:
  restartPolicy: Never
  volumes:
  - name: about
    downwardAPI:
      defaultMode: 0440
      items:
      - {{path: labels, fieldRef: {{fieldPath: metadata.labels}}}}
      - {{path: deep/notes, fieldRef: {{fieldPath: metadata.annotations}}, mode: 0400}}
      - {{path: memory, resourceFieldRef: {{containerName: c, resource: limits.memory, divisor: 1Mi}}}}
  - name: all
    projected:
      sources:
      - {{configMap: {{name: settings, items: [{{key: colour, path: my/colour}}]}}}}
      - {{secret: {{name: keys, optional: true}}}}
      - {{secret: {{name: absent, optional: true}}}}
      - {{downwardAPI: {{items: [{{path: who, fieldRef: {{fieldPath: metadata.name}}}}]}}}}
  - {{name: tools, image: {{reference: busybox}}}}
  containers:
  - name: c
    image: busybox
    resources: {{limits: {{memory: 48Mi}}}}
    command:
    - sh
    - -c
    - |
      cat /about/labels; echo; cat /about/deep/notes; echo; cat /about/memory; echo
      stat -L -c '%a %n' /about/labels /about/deep/notes
      cat /all/my/colour /all/password /all/who; echo
      readlink /all/who
      ls /tools/bin/busybox; /tools/bin/busybox echo runs from the image
      touch /tools/x 2>&1 | sed 's/.*: //'; ls /about/../tools/only 2>/dev/null || echo done
      touch /about/x 2>/dev/null && echo written || echo kept
    volumeMounts:
    - {{name: about, mountPath: /about, readOnly: true}}
    - {{name: all, mountPath: /all}}
    - {{name: tools, mountPath: /tools}}
---
apiVersion: v1
kind: ConfigMap
metadata: {{name: settings}}
data: {{colour: green-, other: x}}
---
apiVersion: v1
kind: Secret
metadata: {{name: keys}}
stringData: {{password: hush-}}
"
    );
    let pod = Pod::of_text(&name, &text);
    let outcome = pod.run();
    assert_eq!(outcome.code, 0, "{outcome}");
    for line in [
        "app=\"shop\"",
        "tier=\"front\"",
        "note=\"say \\\"hi\\\"\"",
        "48",
        "440 /about/labels",
        "400 /about/deep/notes",
        &format!("green-hush-{name}"),
        "..data/who",
        "/tools/bin/busybox",
        "runs from the image",
        "Read-only file system",
        "kept",
    ] {
        assert!(
            outcome
                .out
                .lines()
                .any(|l| l.split_once("| ").is_some_and(|(_, text)| text == line)),
            "no {line:?} in {outcome}"
        );
    }
}

#[test]
#[ignore = "starts virtual machines: run by cargo xtask test"]
fn image_volume_that_is_not_there_is_named() {
    let pod = Pod::new(
        "
  volumes: [{name: tools, image: {reference: 'localhost:1/nothing:1', pullPolicy: Never}}]
  containers: [{name: c, image: busybox, volumeMounts: [{name: tools, mountPath: /t}]}]",
    );
    vmpod(["run"])
        .arg(pod.manifest())
        .fails(125, &["volume tools: image \"localhost:1/nothing:1\""]);
}
