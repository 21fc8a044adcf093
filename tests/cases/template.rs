//! Pods that go on from a machine that was saved, instead of booting one.

use std::fs;
use std::path::PathBuf;

use vmpod_tests::{Pod, eventually, vmpod};

/// A kernel argument that no other test has: pods with it have templates of their own.
fn arguments(test: &str) -> String {
    format!("vmpod-test={test}-{}", std::process::id())
}

fn sleeper() -> Pod {
    Pod::new(
        "
  terminationGracePeriodSeconds: 1
  volumes: [{name: v, emptyDir: {}}, {name: h, hostPath: {path: DIR}}]
  containers:
  - {name: c, image: busybox, command: [sh, -c, 'echo ready; exec httpd -f -p 8080 -h /v'], volumeMounts: [{name: v, mountPath: /v}, {name: h, mountPath: /h}]}
  - {name: d, image: busybox, securityContext: {privileged: true}, command: [sleep, '1000'], volumeMounts: [{name: v, mountPath: /v}]}",
    )
}

fn start(pod: &Pod, arguments: &str) {
    vmpod(["run", "-d"])
        .arg(pod.manifest())
        .env("VMPOD_KERNEL_ARGUMENTS", arguments)
        .ok();
    pod.await_phase("Running");
}

/// How the pod's machine began.
fn beginning(pod: &Pod) -> String {
    fn search(value: &serde_json::Value) -> Option<String> {
        match value {
            serde_json::Value::Object(fields) => fields
                .get("start")
                .and_then(|start| start.as_str().map(str::to_owned))
                .or_else(|| fields.values().find_map(search)),
            serde_json::Value::Array(items) => items.iter().find_map(search),
            _ => None,
        }
    }
    let pod = pod.inspect();
    search(&pod).unwrap_or_else(|| panic!("inspect does not say how the machine began: {pod:#}"))
}

fn events(pod: &Pod) -> String {
    vmpod(["events", &pod.name]).ok()
}

/// Starts a first pod with these arguments and returns the directory of the template that it left.
fn template(arguments: &str) -> PathBuf {
    let pod = sleeper();
    start(&pod, arguments);
    assert_eq!(beginning(&pod), "booted");
    let events = events(&pod);
    let shape = events
        .lines()
        .find_map(|line| line.split_once("TemplateSaved"))
        .unwrap_or_else(|| panic!("no template was saved: {events}"))
        .1
        .trim()
        .to_owned();
    let run = std::env::var_os("VMPOD_RUN").map_or_else(|| "/run/vmpod".into(), PathBuf::from);
    let directory = run.join("templates").join(shape);
    assert!(directory.join("state").is_file(), "{directory:?}");
    directory
}

#[test]
#[ignore = "starts virtual machines: run by cargo xtask test"]
fn pods_of_one_template_are_pods_of_their_own() {
    let arguments = arguments("own");
    let directory = template(&arguments);
    // What the first pod's machine wrote to is told those that follow.
    let touched = fs::metadata(directory.join("touched")).expect("the template's pages are known");
    assert!(touched.len() > 100, "{touched:?}");
    let pods = [sleeper(), sleeper()];
    for pod in &pods {
        start(pod, &arguments);
        assert!(
            beginning(pod).starts_with("restored from template "),
            "{}",
            events(pod)
        );
    }
    let of_both = |line: &str| pods.each_ref().map(|pod| pod.sh("c", line));
    let random = of_both("head -c 16 /dev/urandom | od -An -tx1");
    assert_ne!(random[0], random[1]);
    // The entropy device sleeps in a restored machine until its driver wants something (VIRTIO 1.3 section 5.4).
    let hardware = "[ -e /dev/hwrng ] || mknod /dev/hwrng c 10 183; head -c 16 /dev/hwrng | od -An -tx1 | grep -c '[1-9a-f]'";
    for pod in &pods {
        assert_eq!(pod.sh("d", hardware), "1\n");
    }
    let identity = of_both("cat /proc/sys/kernel/random/boot_id");
    assert_ne!(identity[0], identity[1]);
    for pod in &pods {
        let now = || {
            std::time::SystemTime::now()
                .duration_since(std::time::UNIX_EPOCH)
                .unwrap()
                .as_secs()
        };
        let before = now();
        let inside: u64 = pod.sh("c", "date +%s").trim().parse().unwrap();
        assert!((before..=now()).contains(&inside), "{before} {inside}");
        assert_eq!(pod.sh("c", "hostname").trim(), pod.name);
        assert!(pod.logs("c").contains("ready"));
        let written = pod.sh("c", "echo from-c > /v/index.html; echo out > /h/out");
        assert_eq!(written, "");
        assert_eq!(pod.sh("d", "cat /v/index.html"), "from-c\n");
        let out = fs::read_to_string(pod.directory.path().join("out")).unwrap();
        assert_eq!(out, "out\n");
        let address = eventually("an address", || {
            pod.inspect()["status"]["podIP"].as_str().map(str::to_owned)
        });
        assert_eq!(
            pod.sh("d", "wget -q -O - http://localhost:8080/"),
            "from-c\n"
        );
        assert!(pod.sh("c", "ip addr show eth0").contains(&address));
    }
    // From one to the other, over both cards.
    let address = pods[0].inspect()["status"]["podIP"]
        .as_str()
        .unwrap()
        .to_owned();
    assert_eq!(
        pods[1].sh("d", &format!("wget -q -O - http://{address}:8080/")),
        "from-c\n"
    );
    // They do not need its files any more.
    fs::remove_dir_all(directory).unwrap();
    assert_eq!(of_both("cat /v/index.html"), ["from-c\n", "from-c\n"]);
}

#[test]
#[ignore = "starts virtual machines: run by cargo xtask test"]
fn pod_whose_template_is_damaged_boots_and_its_events_say_why() {
    let arguments = arguments("damaged");
    let directory = template(&arguments);
    let state = directory.join("state");
    let damages: [(&dyn Fn(), &str); 3] = [
        (
            &|| {
                let mut bytes = fs::read(&state).unwrap();
                bytes[5000] ^= 1;
                fs::write(&state, bytes).unwrap();
            },
            "checksum",
        ),
        (
            &|| {
                let memory = directory.join("memory");
                let file = fs::File::options().write(true).open(memory).unwrap();
                file.set_len(4096).unwrap();
            },
            "length",
        ),
        (
            // All is as it should be, but the guest finds nothing where it stood.
            &|| {
                let memory = directory.join("memory");
                let length = fs::metadata(&memory).unwrap().len();
                let file = fs::File::create(memory).unwrap();
                file.set_len(length).unwrap();
            },
            "machine",
        ),
    ];
    for (damage, reason) in damages {
        damage();
        let pod = sleeper();
        start(&pod, &arguments);
        assert_eq!(beginning(&pod), "booted");
        let events = events(&pod);
        let line = events
            .lines()
            .find(|line| line.contains("TemplateFailed"))
            .unwrap_or_else(|| panic!("{events}"));
        assert!(line.contains("the machine boots"), "{line}");
        assert!(line.contains(reason), "{line}");
        // It left a good one in its place.
        assert!(events.contains("TemplateSaved"), "{events}");
    }
    let pod = sleeper();
    start(&pod, &arguments);
    assert!(beginning(&pod).starts_with("restored"), "{}", events(&pod));
}

#[test]
#[ignore = "starts virtual machines: run by cargo xtask test"]
fn pods_that_want_no_template_boot_and_leave_none() {
    let arguments = arguments("none");
    for words in [&["run", "-d", "--no-template"][..], &["run", "-d"]] {
        let pod = sleeper();
        let command = vmpod(words)
            .arg(pod.manifest())
            .env("VMPOD_KERNEL_ARGUMENTS", &arguments);
        if words.len() == 2 {
            command.env("VMPOD_NO_TEMPLATE", "1").ok();
        } else {
            command.ok();
        }
        pod.await_phase("Running");
        assert_eq!(beginning(&pod), "booted");
        assert!(!events(&pod).contains("Template"), "{}", events(&pod));
    }
    // The next one finds none.
    template(&arguments);
}

#[test]
#[ignore = "starts virtual machines: run by cargo xtask test"]
fn first_pods_at_once_leave_one_template_and_both_run() {
    let arguments = arguments("both");
    let pods = [sleeper(), sleeper()];
    let children = pods.each_ref().map(|pod| {
        vmpod(["run", "-d"])
            .arg(pod.manifest())
            .env("VMPOD_KERNEL_ARGUMENTS", &arguments)
            .spawn()
    });
    for child in children {
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{output:?}");
    }
    for pod in &pods {
        pod.await_phase("Running");
        assert_eq!(pod.sh("c", "echo fine"), "fine\n");
        assert!(!events(pod).contains("TemplateFailed"), "{}", events(pod));
    }
    let third = sleeper();
    start(&third, &arguments);
    assert!(
        beginning(&third).starts_with("restored"),
        "{}",
        events(&third)
    );
}
