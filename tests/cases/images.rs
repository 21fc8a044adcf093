//! Images come from registries and archives, are listed, run, and go.

use vmpod_tests::{Footprint, Pod, Registry, SmallImage, vmpod};

fn listed(name: &str) -> Option<serde_json::Value> {
    let text = vmpod(["images", "--output", "json"]).ok();
    let images: Vec<serde_json::Value> =
        serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}"));
    images.into_iter().find(|image| image["name"] == name)
}

#[test]
#[ignore = "starts virtual machines: run by cargo xtask test"]
fn image_of_a_registry_is_pulled_listed_run_and_removed() {
    let registry = Registry::start(15_005);
    let digest = registry.push(&SmallImage::make(), "team/small", "1");
    let name = format!("{}/team/small:1", registry.address);
    let pulled = vmpod(["pull", &name]).ok();
    assert_eq!(pulled.trim(), format!("{name} {digest}"));
    let image = listed(&name).unwrap_or_else(|| panic!("{name} is not listed"));
    assert_eq!(
        (image["digest"].as_str(), image["layers"].as_u64()),
        (Some(digest.as_str()), Some(1))
    );
    assert!(vmpod(["images"]).ok().contains("team/small:1"));
    // What is in the store needs no registry any more.
    drop(registry);
    let by_itself = Pod::new(&format!(
        "  restartPolicy: Never\n  containers: [{{name: c, image: '{name}'}}]"
    ));
    let outcome = by_itself.run();
    assert_eq!(outcome.code, 0, "{outcome}");
    assert!(outcome.out.contains("image small"), "{outcome}");
    let user = Pod::new(&format!(
        "  terminationGracePeriodSeconds: 1\n  containers: [{{name: c, image: '{name}', command: [/bin/busybox, sleep, '1000']}}]"
    ));
    user.start();
    vmpod(["image", "rm", &name]).fails(125, &["team/small:1", "used by a pod"]);
    drop(user);
    vmpod(["image", "rm", &name]).ok();
    assert!(listed(&name).is_none());
    vmpod(["pull", &name]).fails(125, &[&name]);
}

#[test]
#[ignore = "starts virtual machines: run by cargo xtask test"]
fn manifest_with_an_image_of_a_registry_pulls_it_by_its_policy() {
    let registry = Registry::start(15_006);
    let image = SmallImage::make();
    let _ = registry.push(&image, "small", "now");
    let name = format!("{}/small:now", registry.address);
    let pod = |policy: &str| {
        Pod::new(&format!(
            "  restartPolicy: Never\n  containers: [{{name: c, image: '{name}', imagePullPolicy: {policy}}}]"
        ))
    };
    let before = Footprint::now();
    vmpod(["run"])
        .arg(pod("Never").manifest())
        .fails(125, &[&name]);
    before.assert_restored();
    let outcome = pod("IfNotPresent").run();
    assert!(outcome.out.contains("image small"), "{outcome}");
    drop(registry);
    // Always asks the registry, which is gone.
    vmpod(["run"])
        .arg(pod("Always").manifest())
        .fails(125, &[&name]);
    before.assert_restored();
    vmpod(["image", "rm", &name]).ok();
}

#[test]
#[ignore = "starts virtual machines: run by cargo xtask test"]
fn image_pull_secrets_open_a_private_registry() {
    let registry = Registry::start_private(15_007);
    let _ = registry.push(&SmallImage::make(), "private", "1");
    let name = format!("{}/private:1", registry.address);
    let spec = |secrets: &str| {
        format!("  restartPolicy: Never\n{secrets}  containers: [{{name: c, image: '{name}'}}]")
    };
    let secret = |password: &str| {
        format!(
            "---
apiVersion: v1
kind: Secret
metadata: {{name: team}}
type: kubernetes.io/dockerconfigjson
stringData:
  .dockerconfigjson: '{{\"auths\": {{\"{}\": {{\"username\": \"team\", \"password\": \"{password}\"}}}}}}'
",
            registry.address
        )
    };
    let with = "  imagePullSecrets: [{name: team}]\n";
    // Without, with a wrong one, and with one that is not there: the registry says no.
    vmpod(["run"])
        .arg(Pod::new(&spec("")).manifest())
        .fails(125, &["private:1", "no credentials were given"]);
    let wrong = Pod::new(&format!("{}\n{}", spec(with), secret("guess")));
    vmpod(["run"])
        .arg(wrong.manifest())
        .fails(125, &["private:1", "not accepted"]);
    vmpod(["run"])
        .arg(Pod::new(&spec(with)).manifest())
        .fails(125, &["private:1", "there is no Secret \"team\""]);
    let pod = Pod::new(&format!("{}\n{}", spec(with), secret("hush")));
    let outcome = pod.run();
    assert_eq!(outcome.code, 0, "{outcome}");
    assert!(outcome.out.contains("image small"), "{outcome}");
    vmpod(["image", "rm", &name]).ok();
    let opaque = secret("hush").replace("kubernetes.io/dockerconfigjson", "Opaque");
    vmpod(["run"])
        .arg(Pod::new(&format!("{}\n{opaque}", spec(with))).manifest())
        .fails(2, &["spec.imagePullSecrets[0].name", "must be of type"]);
}

#[test]
#[ignore = "starts virtual machines: run by cargo xtask test"]
fn archive_is_imported_from_a_file_and_from_standard_input() {
    let image = SmallImage::make();
    let archive = image.archive("from-file:1");
    let imported = vmpod(["image", "import"]).arg(&archive).ok();
    assert!(imported.contains("from-file:1"), "{imported}");
    let bytes = std::fs::read(&archive).unwrap();
    let imported = vmpod(["image", "import", "--name", "from-input:2", "-"])
        .input(bytes)
        .ok();
    assert!(imported.contains("from-input:2"), "{imported}");
    let outcome = Pod::new("  restartPolicy: Never\n  containers:\n  - {name: one, image: 'from-file:1'}\n  - {name: two, image: 'from-input:2'}").run();
    assert_eq!(outcome.code, 0, "{outcome}");
    assert_eq!(outcome.out.matches("image small").count(), 2, "{outcome}");
    vmpod(["image", "rm", "from-file:1", "from-input:2"]).ok();
    let directory = tempfile::tempdir().unwrap();
    let no_archive = directory.path().join("notes.txt");
    std::fs::write(&no_archive, "this is no archive").unwrap();
    vmpod(["image", "import"])
        .arg(&no_archive)
        .fails(125, &["notes.txt"]);
}

/// A file system of a few megabytes, unmounted in the end.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn mount(megabytes: u32) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let status = std::process::Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={megabytes}m"), "tmpfs"])
            .arg(directory.path())
            .status();
        assert!(status.unwrap().success());
        Self(directory)
    }

    fn path(&self) -> &str {
        self.0.path().to_str().unwrap()
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount")
            .arg("-l")
            .arg(self.0.path())
            .status();
    }
}

#[test]
#[ignore = "starts virtual machines: run by cargo xtask test"]
fn full_disk_is_named_and_leaves_nothing() {
    let image = SmallImage::make();
    let archive = image.archive("small:1");
    // busybox alone has 2 MB.
    let tiny = SmallDisk::mount(1);
    vmpod(["--state", tiny.path(), "image", "import"])
        .arg(&archive)
        .fails(125, &["full"]);
    let in_work = std::path::Path::new(tiny.path()).join("images/tmp");
    let left: Vec<_> = std::fs::read_dir(in_work)
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .filter(|name| name != "lock")
        .collect();
    assert!(left.is_empty(), "{left:?}");

    let disk = SmallDisk::mount(8);
    vmpod(["--state", disk.path(), "image", "import"])
        .arg(&archive)
        .ok();
    let rest = std::path::Path::new(disk.path()).join("rest");
    let mut file = std::fs::File::create(&rest).unwrap();
    while std::io::Write::write(&mut file, &[0; 4096]).is_ok_and(|written| written > 0) {}
    let before = Footprint::now();
    let pod = Pod::new("  restartPolicy: Never\n  containers: [{name: c, image: 'small:1'}]");
    vmpod(["--state", disk.path(), "run"])
        .arg(pod.manifest())
        .fails(125, &["No space left on device", disk.path()]);
    before.assert_restored();
    let pods: Vec<_> = std::fs::read_dir(std::path::Path::new(disk.path()).join("pods"))
        .into_iter()
        .flatten()
        .flatten()
        .collect();
    assert!(pods.is_empty(), "{pods:?}");
    // With room again the same pod runs.
    drop(file);
    std::fs::remove_file(rest).unwrap();
    let outcome = vmpod(["--state", disk.path(), "run", "--rm"])
        .arg(pod.manifest())
        .run();
    assert!(outcome.out.contains("image small"), "{outcome}");
}
