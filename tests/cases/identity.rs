//! Who a pod and its containers are: names, users, groups, what they may see and write.

use vmpod_tests::{Pod, SmallImage, vmpod};

/// Output of a container without its name in front.
fn lines(out: &str) -> Vec<String> {
    out.lines()
        .map(|line| {
            let text = line.split_once("| ").map_or(line, |(_, text)| text);
            text.trim_end().to_owned()
        })
        .collect()
}

#[test]
#[ignore = "starts virtual machines: run by cargo xtask test"]
fn subdomain_gives_the_pod_a_full_name() {
    let pod = |further: &str| {
        Pod::new(&format!(
            "
  restartPolicy: Never
  hostname: web
  subdomain: shop
{further}
  containers: [{{name: c, image: busybox, command: [sh, -c, 'hostname; grep web /etc/hosts; hostname -f']}}]"
        ))
    };
    let full = "web.shop.default.svc.cluster.local";
    let short = pod("").run();
    let said = lines(&short.out);
    assert_eq!(said[0], "web", "{short}");
    assert!(said[1].ends_with(&format!("\t{full}\tweb")), "{short}");
    assert_eq!(said[2], full, "{short}");
    let long = pod("  setHostnameAsFQDN: true").run();
    assert_eq!(lines(&long.out)[0], full, "{long}");
    let too_long = pod(&format!(
        "  setHostnameAsFQDN: true\n  nodeSelector: {{}}\n  dnsPolicy: Default\n  schedulerName: {}",
        "x"
    ));
    let text = std::fs::read_to_string(too_long.manifest()).expect("read the manifest");
    let text = text.replace("subdomain: shop", &format!("subdomain: {}", "s".repeat(40)));
    std::fs::write(too_long.manifest(), text).expect("write the manifest");
    vmpod(["run"])
        .arg(too_long.manifest())
        .fails(2, &["spec.setHostnameAsFQDN: Invalid value", "at most 64"]);
}

#[test]
#[ignore = "starts virtual machines: run by cargo xtask test"]
fn fs_group_owns_the_volumes_that_take_one() {
    let pod = Pod::new(
        "
  restartPolicy: Never
  securityContext: {fsGroup: 2000, runAsUser: 1000, fsGroupChangePolicy: OnRootMismatch}
  volumes:
  - {name: disk, emptyDir: {}}
  - {name: memory, emptyDir: {medium: Memory}}
  - {name: keys, secret: {secretName: keys, defaultMode: 0400}}
  - {name: host, hostPath: {path: DIR/host, type: DirectoryOrCreate}}
  containers:
  - name: c
    image: busybox
    command:
    - sh
    - -c
    - |
      stat -c '%g %a' /disk /memory
      stat -L -c '%g %a' /keys/password; cat /keys/password; echo
      stat -c '%g' /host
      touch /disk/x /memory/x && stat -c '%u %g' /disk/x /memory/x
      touch /host/x 2>&1 | grep -o denied
    volumeMounts:
    - {name: disk, mountPath: /disk}
    - {name: memory, mountPath: /memory}
    - {name: keys, mountPath: /keys}
    - {name: host, mountPath: /host}
---
apiVersion: v1
kind: Secret
metadata: {name: keys}
stringData: {password: hush}",
    );
    let outcome = pod.run();
    assert_eq!(outcome.code, 0, "{outcome}");
    assert_eq!(
        lines(&outcome.out),
        [
            "2000 2777",
            "2000 2777",
            "2000 440",
            "hush",
            "0",
            "1000 2000",
            "1000 2000",
            "denied"
        ],
        "{outcome}"
    );
}

#[test]
#[ignore = "starts virtual machines: run by cargo xtask test"]
fn groups_of_the_image_are_merged_unless_the_policy_is_strict() {
    let image = SmallImage::make();
    vmpod(["image", "import"])
        .arg(image.archive("with-groups:1"))
        .ok();
    let groups = |policy: &str| {
        let outcome = Pod::new(&format!(
            "
  restartPolicy: Never
  securityContext: {{runAsUser: 1000, supplementalGroups: [3000], {policy}}}
  containers: [{{name: c, image: 'with-groups:1', command: [/bin/busybox, id, -G]}}]"
        ))
        .run();
        assert_eq!(outcome.code, 0, "{outcome}");
        let mut groups: Vec<u32> = lines(&outcome.out)[0]
            .split(' ')
            .map(|group| group.parse().expect("a number"))
            .collect();
        groups.sort_unstable();
        groups
    };
    assert_eq!(groups(""), [1000, 3000, 4000]);
    assert_eq!(
        groups("supplementalGroupsPolicy: Merge"),
        [1000, 3000, 4000]
    );
    assert_eq!(groups("supplementalGroupsPolicy: Strict"), [1000, 3000]);
    vmpod(["image", "rm", "with-groups:1"]).ok();
}

#[test]
#[ignore = "starts virtual machines: run by cargo xtask test"]
fn run_as_non_root_refuses_an_image_that_runs_as_root() {
    let pod = |user: &str| {
        Pod::new(&format!(
            "
  restartPolicy: Never
  securityContext: {{runAsNonRoot: true}}
  containers: [{{name: c, image: busybox, command: [id, -u], securityContext: {{{user}}}}}]"
        ))
    };
    vmpod(["run"])
        .arg(pod("").manifest())
        .fails(125, &["container c", "runAsNonRoot"]);
    vmpod(["run"])
        .arg(pod("runAsUser: 0").manifest())
        .fails(125, &["container c", "runAsNonRoot"]);
    let outcome = pod("runAsUser: 7").run();
    assert_eq!(lines(&outcome.out), ["7"], "{outcome}");
    // The container's own word counts.
    assert_eq!(pod("runAsNonRoot: false").run().code, 0);
}

#[test]
#[ignore = "starts virtual machines: run by cargo xtask test"]
fn proc_is_unmasked_when_asked_for() {
    let read_only = |fields: &str| {
        let outcome = Pod::new(&format!(
            "
  restartPolicy: Never
  containers:
  - name: c
    image: busybox
    command: [sh, -c, 'grep -c \" /proc/\" /proc/self/mountinfo; true']
{fields}"
        ))
        .run();
        let count: u32 = lines(&outcome.out)[0].parse().expect("a number");
        count
    };
    assert!(read_only("") > 5);
    assert_eq!(read_only("    securityContext: {procMount: Unmasked}"), 0);
}

/// A tmpfs of the host below a volume, unmounted in the end.
struct Below(std::path::PathBuf);

impl Below {
    fn mount(path: &std::path::Path) -> Self {
        std::fs::create_dir_all(path).expect("make the mount point");
        let status = std::process::Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=1m", "tmpfs"])
            .arg(path)
            .status();
        assert!(status.expect("run mount").success());
        Self(path.to_owned())
    }
}

impl Drop for Below {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount")
            .arg("-l")
            .arg(&self.0)
            .status();
    }
}

#[test]
#[ignore = "starts virtual machines: run by cargo xtask test"]
fn read_only_mounts_reach_below_when_asked_for() {
    let pod = Pod::new(
        "
  restartPolicy: Never
  volumes: [{name: v, hostPath: {path: DIR/v}}]
  containers:
  - name: c
    image: busybox
    command:
    - sh
    - -c
    - |
      for at in open deep; do for below in '' below/; do
        touch /$at/${below}x 2>/dev/null && echo $at/$below written || echo $at/$below kept
      done; done
    volumeMounts:
    - {name: v, mountPath: /open}
    - {name: v, mountPath: /deep, readOnly: true, recursiveReadOnly: Enabled}",
    );
    let _below = Below::mount(&pod.directory.path().join("v/below"));
    let outcome = pod.run();
    assert_eq!(
        lines(&outcome.out),
        [
            "open/ written",
            "open/below/ written",
            "deep/ kept",
            "deep/below/ kept"
        ],
        "{outcome}"
    );
}
