//! `vmpod debug`: containers that are added to a pod which runs.

use serde_json::Value;
use vmpod_tests::{Pod, vmpod};

fn added(pod: &Pod) -> Vec<Value> {
    pod.inspect()["status"]["ephemeralContainerStatuses"]
        .as_array()
        .cloned()
        .unwrap_or_default()
}

#[test]
#[ignore = "starts virtual machines: run by cargo xtask test"]
fn debug_adds_a_container_with_an_image_of_its_own_that_decides_nothing() {
    let pod = Pod::new(
        "
  terminationGracePeriodSeconds: 1
  restartPolicy: Always
  containers:
  - {name: web, image: busybox, command: [sh, -c, 'mkdir /www; echo page > /www/index.html; exec httpd -f -p 80 -h /www']}",
    );
    pod.start();
    pod.await_phase("Running");
    let outcome = vmpod(["debug", &pod.name, "--image", "debian", "--target", "web", "-c", "look", "--"])
        .args(["bash", "-c", "tr '\\0' ' ' < /proc/1/cmdline; echo; cat /proc/1/root/www/index.html; cat /etc/debian_version >/dev/null && hostname; exit 3"])
        .run();
    assert_eq!(outcome.code, 3, "{outcome}");
    let words: Vec<&str> = outcome.out.lines().collect();
    assert!(words[0].starts_with("httpd -f -p 80"), "{outcome}");
    assert_eq!(words[1..], ["page", pod.name.as_str()], "{outcome}");

    // Neither the pod nor its container has noticed; the new one is in the status, and its log stays.
    let all = pod.inspect();
    assert_eq!(all["status"]["phase"], "Running");
    assert_eq!(pod.container("web")["restartCount"], 0);
    let status = added(&pod);
    assert_eq!(status.len(), 1, "{all:#}");
    assert_eq!(status[0]["name"], "look");
    assert_eq!(status[0]["state"]["terminated"]["exitCode"], 3);
    assert_eq!(status[0]["state"]["terminated"]["reason"], "Error");
    assert_eq!(
        all["spec"]["ephemeralContainers"][0]["targetContainerName"],
        "web"
    );
    assert!(pod.logs("look").contains("page"));
    pod.assert_order(&[
        "ContainerStarted web",
        "ContainerCreated look",
        "ContainerStarted look",
        "ContainerExited look",
    ]);
    let yaml = vmpod(["inspect", "-o", "yaml", &pod.name]).ok();
    assert!(yaml.contains("ephemeralContainerStatuses:"), "{yaml}");

    // Without a target it has processes of its own, and what is typed reaches it.
    let outcome = vmpod(["debug", "-i", &pod.name, "--image", "busybox", "--"])
        .args([
            "sh",
            "-c",
            "read line; echo got $line; wget -q -O - http://localhost/; ls -d /proc/[0-9]* | wc -l",
        ])
        .input("something\n")
        .run();
    assert_eq!(outcome.code, 0, "{outcome}");
    assert!(
        outcome.out.starts_with("got something\npage\n"),
        "{outcome}"
    );
    let processes: u32 = outcome
        .out
        .lines()
        .last()
        .and_then(|l| l.trim().parse().ok())
        .expect("a number");
    assert!(processes <= 3, "{outcome}");
    let names = added(&pod);
    assert!(
        names[1]["name"]
            .as_str()
            .is_some_and(|n| n.starts_with("debugger-")),
        "{names:?}"
    );
}

#[test]
#[ignore = "starts virtual machines: run by cargo xtask test"]
fn debug_container_that_stays_is_exec_into_and_goes_with_the_pod() {
    let pod = Pod::new(
        "
  terminationGracePeriodSeconds: 1
  restartPolicy: Never
  containers: [{name: c, image: busybox, command: [sh, -c, 'until test -e /tmp/done; do sleep 0.2; done']}]",
    );
    pod.start();
    pod.await_phase("Running");
    let name = vmpod([
        "debug",
        "-d",
        "--profile",
        "netadmin",
        &pod.name,
        "--image",
        "busybox",
        "--",
        "sleep",
        "1000",
    ])
    .ok();
    let name = name.trim();
    assert_eq!(
        pod.sh(name, "ip link set lo down && ip link set lo up && echo may"),
        "may\n"
    );
    assert!(added(&pod)[0]["state"]["running"].is_object());
    let _ = pod.sh("c", "touch /tmp/done");
    let ended = pod.await_phase("Succeeded");
    let status = &ended["status"]["ephemeralContainerStatuses"][0];
    assert_eq!(status["state"]["terminated"]["exitCode"], 137, "{status:#}");
}

#[test]
#[ignore = "starts virtual machines: run by cargo xtask test"]
fn debug_that_cannot_be_meant_is_refused_and_the_pod_goes_on() {
    let pod = Pod::idle();
    let debug = |words: &[&str]| vmpod(["debug", &pod.name]).args(words);
    debug(&["--image", "busybox", "--target", "nope", "--", "true"])
        .fails(125, &["no container \"nope\""]);
    debug(&["--image", "busybox", "-c", "c", "--", "true"])
        .fails(125, &["a container \"c\" already"]);
    debug(&["--image", "busybox", "-c", "No_Name", "--", "true"]).fails(2, &["name", "No_Name"]);
    debug(&["--image", "localhost:1/none:1", "--", "true"]).fails(125, &["localhost:1/none:1"]);
    debug(&[
        "--image",
        "busybox",
        "-c",
        "broken",
        "--",
        "/no/such/program",
    ])
    .fails(125, &["broken", "/no/such/program"]);
    let status = added(&pod);
    assert_eq!(status.len(), 1, "{status:?}");
    assert_eq!(status[0]["state"]["terminated"]["reason"], "StartError");
    assert_eq!(pod.inspect()["status"]["phase"], "Running");
}
