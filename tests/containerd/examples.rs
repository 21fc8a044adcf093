//! The containers of the example manifests, made by the CRI as a kubelet makes them.

use std::path::Path;

use k8s_cri::v1;
use vmpod_tests::{Container, Sandbox, containerd, eventually};

/// A container of `image` with `directory` of the host at `place`.
fn container<'a>(
    pod: &'a Sandbox,
    image: &str,
    command: &[&str],
    directory: &Path,
    place: &str,
) -> Container<'a> {
    pod.start(|config| {
        config.image.as_mut().unwrap().image = image.to_owned();
        config.command = command.iter().map(|&word| word.to_owned()).collect();
        config.mounts = vec![v1::Mount {
            host_path: directory.to_string_lossy().into_owned(),
            container_path: place.to_owned(),
            ..Default::default()
        }];
    })
}

#[test]
#[ignore = "starts virtual machines: run by cargo xtask test"]
fn two_containers_serve_the_page_that_one_of_them_wrote() {
    let (nginx, debian) = (containerd().image("nginx"), containerd().image("debian"));
    let data = tempfile::tempdir().unwrap();
    let pod = Sandbox::run("vmpod");
    let _server = container(&pod, &nginx, &[], data.path(), "/usr/share/nginx/html");
    let line = "echo Hello from the debian container > /pod-data/index.html";
    let writer = container(
        &pod,
        &debian,
        &["/bin/sh", "-c", line],
        data.path(),
        "/pod-data",
    );
    assert_eq!(writer.await_end().exit_code, 0);
    let url = format!("http://{}/", pod.address());
    eventually("the page", || {
        (vmpod_tests::get(&url)? == "Hello from the debian container\n").then_some(())
    });
    let file = std::fs::read_to_string(data.path().join("index.html")).unwrap();
    assert_eq!(file, "Hello from the debian container\n");
}

#[test]
#[ignore = "starts virtual machines: run by cargo xtask test"]
fn tomcat_answers_the_page_of_the_delivered_application_at_the_hosts_port() {
    let sample = containerd().image("geektime-sample-v2");
    let tomcat = containerd().image("geektime-tomcat-7.0");
    let volume = tempfile::tempdir().unwrap();
    let pod = Sandbox::run_with("vmpod", |config| {
        config.port_mappings = vec![v1::PortMapping {
            protocol: v1::Protocol::Tcp.into(),
            container_port: 8080,
            host_port: 8001,
            host_ip: String::new(),
        }];
    });
    let war = container(
        &pod,
        &sample,
        &["cp", "/sample.war", "/app"],
        volume.path(),
        "/app",
    );
    assert_eq!(war.await_end().exit_code, 0);
    let start = ["sh", "-c", "/root/apache-tomcat-7.0.42-v2/bin/start.sh"];
    let place = "/root/apache-tomcat-7.0.42-v2/webapps";
    let _server = container(&pod, &tomcat, &start, volume.path(), place);
    vmpod_tests::eventually_within(4 * vmpod_tests::LIMIT, "the application's page", || {
        vmpod_tests::get("http://127.0.0.1:8001/sample/").map(drop)
    });
}

#[test]
#[ignore = "starts virtual machines: run by cargo xtask test"]
fn lumpy_koala_starts_after_its_file_is_there() {
    let nginx = containerd().image("nginx");
    let volume = tempfile::tempdir().unwrap();
    let pod = Sandbox::run("vmpod");
    let busybox = "docker.io/library/busybox:latest";
    let install = ["touch", "/workdir/calm.txt"];
    let install = container(&pod, busybox, &install, volume.path(), "/workdir");
    assert_eq!(install.await_end().exit_code, 0);
    let line = "[ -f /workdir/calm.txt ] && sleep 36000 || exit";
    let main = container(&pod, &nginx, &["sh", "-c", line], volume.path(), "/workdir");
    assert_eq!(main.sh("ls /workdir"), "calm.txt\n");
    assert_eq!(main.status().state(), v1::ContainerState::ContainerRunning);
}
