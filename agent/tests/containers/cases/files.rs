//! Root file systems and volumes.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use nix::mount::{MsFlags, mount};
use serde_json::{Value, json};
use vmpod_agent::container::Containers as _;

use crate::fixture::{Fixture, until};

fn add_mount(spec: &mut Value, mount: Value) {
    spec["mounts"].as_array_mut().unwrap().push(mount);
}

fn bind(spec: &mut Value, source: &Path, destination: &str, options: &[&str]) {
    let mut all = vec!["rbind"];
    all.extend(options);
    add_mount(
        spec,
        json!({"destination": destination, "type": "bind", "source": source, "options": all}),
    );
}

pub async fn volumes_are_mounted_where_the_specification_says(fixture: Fixture) {
    let data = fixture.scratch.join("data");
    fs::create_dir(&data).unwrap();
    fs::write(data.join("file"), "content\n").unwrap();
    let mut spec = fixture.spec(
        "volumes",
        "cat /deep/er/file; echo new > /deep/er/new; cat /one.txt; touch /frozen/x || echo frozen; \
         stat -c %a /scratch; touch /scratch/x && grep -c ' /scratch tmpfs rw,nosuid,.*size=64k' /proc/mounts; \
         echo '#!/bin/sh' > /deep/er/program; chmod 755 /deep/er/program; /deep/er/program || echo noexec; \
         test -c /dev/shm/nothing || ls -d /dev/shm",
    );
    let root = fixture.scratch.join("volumes");
    fs::create_dir(root.join("scratch")).unwrap();
    fs::set_permissions(
        root.join("scratch"),
        std::os::unix::fs::PermissionsExt::from_mode(0o1712),
    )
    .unwrap();
    bind(&mut spec, &data, "/deep/er", &["rprivate", "noexec"]);
    bind(&mut spec, &data.join("file"), "/one.txt", &["ro"]);
    bind(&mut spec, &data, "/frozen", &["ro", "nosuid"]);
    add_mount(
        &mut spec,
        json!({"destination": "/scratch", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "size=64k"]}),
    );
    add_mount(
        &mut spec,
        json!({"destination": "/dev/shm", "type": "tmpfs", "source": "shm",
               "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]}),
    );
    let (status, output) = fixture.complete("volumes", &spec).await;
    assert_eq!(status.code, 0, "{output}");
    for line in [
        "content\ncontent\n",
        "frozen\n1712\n1\n",
        "noexec\n/dev/shm\n",
    ] {
        assert!(output.contains(line), "{line:?} in {output}");
    }
    assert!(output.contains("Read-only file system"), "{output}");
    assert_eq!(fs::read_to_string(data.join("new")).unwrap(), "new\n");
}

pub async fn volume_whose_source_is_missing_is_named(fixture: Fixture) {
    let mut spec = fixture.spec("missing", "true");
    bind(&mut spec, Path::new("/no/such/place"), "/data", &[]);
    let error = fixture.create("missing", &spec).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "create container \"missing\": mount volume /data (bind from /no/such/place): no such file or directory"
    );
    assert!(!fixture.groups.join("missing").exists());
    let mut spec = fixture.spec("missing", "true");
    add_mount(
        &mut spec,
        json!({"destination": "/data", "type": "tmpfs", "source": "tmpfs", "options": ["size=nonsense"]}),
    );
    let error = fixture
        .create("missing", &spec)
        .await
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("mount tmpfs on /data: invalid argument"),
        "{error}"
    );
    let mut spec = fixture.spec("missing", "true");
    spec["root"]["path"] = json!("/no/such/root");
    let error = fixture
        .create("missing", &spec)
        .await
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("open the root file system /no/such/root"),
        "{error}"
    );
}

pub async fn mount_point_with_a_link_out_of_the_root_stays_inside(fixture: Fixture) {
    let outside = fixture.scratch.join("outside");
    fs::create_dir(&outside).unwrap();
    let data = fixture.scratch.join("data");
    fs::create_dir(&data).unwrap();
    fs::write(data.join("mark"), "mark\n").unwrap();
    let mut spec = fixture.spec("links", "cat /elsewhere/sub/mark");
    let root = fixture.scratch.join("links");
    symlink(&outside, root.join("elsewhere")).unwrap();
    // The link's target exists only outside; inside it is made.
    fs::create_dir_all(root.join(outside.strip_prefix("/").unwrap())).unwrap();
    bind(&mut spec, &data, "/elsewhere/sub", &[]);
    let (status, output) = fixture.complete("links", &spec).await;
    assert_eq!((status.code, output.as_str()), (0, "mark\n"));
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
}

pub async fn read_only_root_cannot_be_written(fixture: Fixture) {
    let mut spec = fixture.spec(
        "sealed",
        "touch /x || echo sealed; touch /dev/x && echo open; touch /proc/sys/kernel/x || true",
    );
    spec["root"]["readonly"] = json!(true);
    for directory in ["proc", "dev", "sys"] {
        fs::create_dir(fixture.scratch.join("sealed").join(directory)).unwrap();
    }
    let (_, output) = fixture.complete("sealed", &spec).await;
    assert!(output.contains("sealed\nopen\n"), "{output}");
    assert!(!fixture.scratch.join("sealed/x").exists());
}

pub async fn mounts_made_later_are_seen_as_propagation_says(fixture: Fixture) {
    mounts_made_later(fixture, None).await;
}

pub async fn mounts_made_later_are_seen_with_a_shared_root_as_well(fixture: Fixture) {
    mounts_made_later(fixture, Some("rshared")).await;
}

async fn mounts_made_later(fixture: Fixture, root_propagation: Option<&str>) {
    let volume = fixture.scratch.join("volume");
    for directory in ["", "later", "inner"] {
        fs::create_dir_all(volume.join(directory)).unwrap();
    }
    let nothing: Option<&str> = None;
    mount(
        Some("volume"),
        &volume,
        Some("tmpfs"),
        MsFlags::empty(),
        nothing,
    )
    .unwrap();
    mount(nothing, &volume, nothing, MsFlags::MS_SHARED, nothing).unwrap();
    for directory in ["later", "inner"] {
        fs::create_dir(volume.join(directory)).unwrap();
    }
    let script = "while [ ! -e /volume/later/mark ]; do sleep 0.02; done; \
                  mount -t tmpfs inner /volume/inner && touch /volume/inner/from-container; echo seen; sleep 1000";
    let mut both = fixture.spec("both", script);
    bind(&mut both, &volume, "/volume", &["rshared"]);
    if let Some(word) = root_propagation {
        both["linux"]["rootfsPropagation"] = json!(word);
    }
    for set in ["bounding", "effective", "permitted"] {
        both["process"]["capabilities"][set] = json!(["CAP_SYS_ADMIN", "CAP_DAC_OVERRIDE"]);
    }
    let mut apart = fixture.spec(
        "apart",
        "while [ ! -e /volume/go ]; do sleep 0.02; done; ls /volume/later | wc -l",
    );
    bind(&mut apart, &volume, "/volume", &["rprivate"]);
    let both_name = fixture.launch("both", &both).await;
    let apart_name = fixture.launch("apart", &apart).await;
    mount(
        Some("later"),
        &volume.join("later"),
        Some("tmpfs"),
        MsFlags::empty(),
        nothing,
    )
    .unwrap();
    fs::write(volume.join("later/mark"), "").unwrap();
    fs::write(volume.join("go"), "").unwrap();
    let (_, output) = fixture.finish(&apart_name).await;
    assert_eq!(output, "0\n", "a private volume sees nothing of it");
    until("the container's mount is seen outside", || {
        volume.join("inner/from-container").exists()
    })
    .await;
    fixture.engine.signal(&both_name, 9, false).unwrap();
    fixture.engine.wait(&both_name).await.unwrap();
}

pub async fn working_directory_that_is_missing_is_made(fixture: Fixture) {
    let mut spec = fixture.spec("place", "pwd");
    spec["process"]["cwd"] = json!("/made/for/it");
    let (_, output) = fixture.complete("place", &spec).await;
    assert_eq!(output, "/made/for/it\n");
    let mut spec = fixture.spec("place", "pwd");
    spec["process"]["cwd"] = json!("/etc/passwd");
    let error = fixture
        .create("place", &spec)
        .await
        .unwrap_err()
        .to_string();
    assert!(
        error.ends_with("enter the working directory /etc/passwd: not a directory"),
        "{error}"
    );
}
