//! The systemd unit of static pods, as systemd itself reads it.

use std::path::Path;
use std::process::Command;

const UNIT: &str = "vmpod-serve.service";

#[test]
fn unit_of_static_pods_is_one_that_systemd_takes() {
    let unit = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../examples/systemd")
        .join(UNIT);
    let text = std::fs::read_to_string(unit).unwrap();
    let installed = "/usr/local/bin/vmpod ";
    assert!(text.contains(installed), "{text}");
    // systemd looks whether the program is there.
    let text = text.replace(installed, &format!("{} ", env!("CARGO_BIN_EXE_vmpod")));
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path().join(UNIT);
    std::fs::write(&place, &text).unwrap();
    let verified = Command::new("systemd-analyze")
        .arg("verify")
        .arg(&place)
        .output()
        .expect("systemd-analyze of Debian's package systemd");
    let said = String::from_utf8_lossy(&verified.stderr);
    assert!(verified.status.success(), "{said}");
    assert!(!said.contains(UNIT), "{said}");
    // And its command line is one that vmpod takes: the folder is what is missing.
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("ExecStart="))
        .unwrap();
    let empty = folder.path().join("none");
    let mut words = line.split(' ').map(|word| {
        let is_folder = word.starts_with("/etc/");
        if is_folder {
            empty.as_os_str()
        } else {
            word.as_ref()
        }
    });
    let told = Command::new(words.next().unwrap())
        .args(words)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&told.stderr);
    assert_eq!(told.status.code(), Some(125), "{said}");
    assert!(said.contains("cannot open the folder"), "{said}");
}
