//! The example manifests, run as they stand.

use std::time::Duration;

use vmpod_tests::{Pod, eventually, eventually_within, get, vmpod};

fn example(file: &str) -> String {
    let path = format!("{}/../examples/{file}", env!("CARGO_MANIFEST_DIR"));
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{path}: {e}"))
}

#[test]
#[ignore = "starts virtual machines: run by cargo xtask test"]
fn hello_pod_prints_each_containers_output_and_succeeds() {
    let pod = Pod::of_text("hello-pod", &example("hello-pod.yaml"));
    let outcome = pod.run();
    assert_eq!(outcome.code, 0, "{outcome}");
    let line = |name: &str, text: &str| {
        outcome
            .out
            .lines()
            .any(|l| l.contains(name) && l.contains(text))
    };
    assert!(
        line(
            "client",
            "localhost says: Hello from a pod in its own virtual machine"
        ),
        "{outcome}"
    );
    assert!(line("server", "the client is done"), "{outcome}");
}

#[test]
#[ignore = "starts virtual machines: run by cargo xtask test"]
fn two_containers_serve_the_page_that_the_host_holds() {
    let pod = Pod::of_text("two-containers", &example("two-containers.yaml"));
    std::fs::create_dir_all("/data").expect("make /data");
    let _ = std::fs::remove_file("/data/index.html");
    pod.start();
    let ip = eventually("an address", || {
        pod.inspect()["status"]["podIP"].as_str().map(str::to_owned)
    });
    let page = eventually("the page", || {
        get(&format!("http://{ip}/")).filter(|p| p.contains("Hello"))
    });
    assert_eq!(page, "Hello from the debian container\n");
    assert_eq!(
        std::fs::read_to_string("/data/index.html").expect("read the page on the host"),
        "Hello from the debian container\n"
    );
    let debian = eventually("the end of the writer", || {
        let status = pod.container("debian-container");
        status["state"]["terminated"].is_object().then_some(status)
    });
    assert_eq!(debian["state"]["terminated"]["exitCode"], 0);
}

#[test]
#[ignore = "starts virtual machines: run by cargo xtask test"]
fn javaweb_answers_the_applications_page_on_the_host_port() {
    let pod = Pod::of_text("javaweb-2", &example("javaweb-2.yaml"));
    pod.start();
    // A Java virtual machine that compiles its code, in a machine that is emulated: half a minute on a quiet one.
    let limit = Duration::from_secs(300);
    let page = eventually_within(limit, "the page of the application", || {
        get("http://127.0.0.1:8001/sample/")
    });
    assert!(page.contains("sample"), "{page}");
    let init = pod.container("war");
    assert_eq!(init["state"]["terminated"]["reason"], "Completed");
}

#[test]
#[ignore = "starts virtual machines: run by cargo xtask test"]
fn lumpy_koala_finds_the_file_of_its_init_container() {
    let pod = Pod::of_text("lumpy-koala", &example("lumpy-koala.yaml"));
    pod.start();
    pod.await_phase("Running");
    // Without the file the container would have ended at once.
    std::thread::sleep(std::time::Duration::from_secs(2));
    let status = pod.container("lumpy-koala");
    assert!(status["state"]["running"].is_object(), "{status:#}");
    assert_eq!(status["restartCount"], 0);
    assert_eq!(pod.sh("lumpy-koala", "ls /workdir"), "calm.txt\n");
    let text = vmpod(["ps"]).ok();
    assert!(
        text.contains("lumpy-koala") && text.contains("Running"),
        "{text}"
    );
}
