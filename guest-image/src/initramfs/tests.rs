//! The archive through a reader of its own and through the `cpio` program, and each refusal.

use std::os::unix::fs::symlink;
use std::process::{Command, Stdio};

use super::*;
use crate::elf::tests::{file_with_segment, static_program};

struct Read {
    name: String,
    inode: u32,
    mode: u32,
    owner: (u32, u32),
    mtime: u32,
    device: (u32, u32),
    content_at: usize,
    content: Vec<u8>,
}

/// Reads a newc archive up to its trailer.
fn read_archive(archive: &[u8]) -> Vec<Read> {
    let mut bytes = archive;
    let mut entries = Vec::new();
    loop {
        assert_eq!(&bytes[..6], b"070701", "each entry starts with the magic");
        let field = |index: usize| {
            let at = 6 + 8 * index;
            let digits = std::str::from_utf8(&bytes[at..at + 8]).expect("digits");
            u32::from_str_radix(digits, 16).expect("hexadecimal")
        };
        let (size, name_len) = (field(6) as usize, field(11) as usize);
        let name = &bytes[110..110 + name_len];
        let (name, zeros) = name.split_at(name.iter().position(|&b| b == 0).expect("end"));
        assert!(zeros.iter().all(|&b| b == 0), "names end in zeros");
        let name = String::from_utf8(name.to_vec()).expect("name");
        let content_at = (110 + name_len).next_multiple_of(4);
        if name == "TRAILER!!!" {
            assert_eq!(bytes.len(), content_at, "nothing after the trailer");
            return entries;
        }
        entries.push(Read {
            name,
            inode: field(0),
            mode: field(1),
            owner: (field(2), field(3)),
            mtime: field(5),
            device: (field(9), field(10)),
            content_at: archive.len() - bytes.len() + content_at,
            content: bytes[content_at..content_at + size].to_vec(),
        });
        bytes = &bytes[(content_at + size).next_multiple_of(4)..];
    }
}

fn written(init: &[u8]) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().expect("folder");
    let program = folder.path().join("agent");
    fs::write(&program, init).expect("agent");
    let out = folder.path().join("initramfs");
    write(&program, &out).expect("initramfs");
    (folder, out)
}

#[test]
fn write_static_agent_holds_init_and_console_only() {
    let init = static_program();
    let (_folder, out) = written(&init);
    let entries = read_archive(&fs::read(out).expect("archive"));
    let names: Vec<&str> = entries.iter().map(|entry| entry.name.as_str()).collect();
    assert_eq!(names, ["dev", "dev/console", "init"]);
    for (entry, inode) in entries.iter().zip(1..) {
        assert_eq!(
            (entry.inode, entry.owner, entry.mtime),
            (inode, (0, 0), 0),
            "{}",
            entry.name
        );
    }
    assert_eq!(entries[0].mode, 0o040_755);
    assert_eq!((entries[1].mode, entries[1].device), (0o020_600, (5, 1)));
    assert_eq!((entries[2].mode, &entries[2].content), (0o100_755, &init));
}

#[test]
fn write_same_agent_twice_gives_the_same_bytes() {
    let (_one, first) = written(&static_program());
    let (_two, second) = written(&static_program());
    assert_eq!(
        fs::read(first).expect("first"),
        fs::read(second).expect("second")
    );
}

#[test]
fn write_content_of_any_length_stays_aligned() {
    for extra in 0..4 {
        let init = file_with_segment(1, &vec![7u8; 16 + extra]);
        let (_folder, out) = written(&init);
        let entries = read_archive(&fs::read(out).expect("archive"));
        assert_eq!(entries[2].content, init);
        assert_eq!(entries[2].content_at, 4096, "it begins a page");
    }
}

#[test]
fn write_archive_is_listed_by_cpio() {
    let (_folder, out) = written(&static_program());
    let Ok(output) = Command::new("cpio")
        .args(["--list", "--quiet"])
        .stdin(File::open(out).expect("archive"))
        .stderr(Stdio::inherit())
        .output()
    else {
        eprintln!(
            "skipped: this machine has no cpio; the reader of this module has judged the bytes"
        );
        return;
    };
    assert!(output.status.success());
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        "dev\ndev/console\ninit\n"
    );
}

#[test]
fn write_symlink_is_refused_and_leaves_nothing() {
    let folder = tempfile::tempdir().expect("folder");
    fs::write(folder.path().join("agent"), static_program()).expect("agent");
    let link = folder.path().join("link");
    symlink("agent", &link).expect("link");
    let out = folder.path().join("initramfs");
    let error = write(&link, &out).expect_err("a symlink");
    assert!(error.to_string().contains("a symbolic link"), "{error}");
    assert!(!out.exists());
}

#[test]
fn write_file_over_4_gib_is_refused_before_it_is_read() {
    let folder = tempfile::tempdir().expect("folder");
    let program = folder.path().join("agent");
    File::create(&program)
        .expect("agent")
        .set_len(MAX_FILE_LEN + 1)
        .expect("a hole");
    let error = write(&program, &folder.path().join("initramfs")).expect_err("too large");
    assert!(
        matches!(
            error,
            InitramfsError::TooLarge {
                len: 0x1_0000_0000,
                ..
            }
        ),
        "{error}"
    );
}

#[test]
fn write_dynamic_program_is_refused_with_the_remedy() {
    let folder = tempfile::tempdir().expect("folder");
    let program = folder.path().join("agent");
    fs::write(
        &program,
        file_with_segment(3, b"/lib64/ld-linux-x86-64.so.2\0"),
    )
    .expect("agent");
    let error = write(&program, &folder.path().join("initramfs")).expect_err("dynamic");
    assert!(error.to_string().contains("crt-static"), "{error}");
}

#[test]
fn write_script_is_refused_as_no_program() {
    let folder = tempfile::tempdir().expect("folder");
    let program = folder.path().join("agent");
    fs::write(&program, "#!/bin/sh\n").expect("agent");
    let error = write(&program, &folder.path().join("initramfs")).expect_err("a script");
    assert!(matches!(
        error,
        InitramfsError::NotAProgram {
            source: ElfError::NotElf,
            ..
        }
    ));
}

#[test]
fn write_failure_keeps_the_earlier_archive() {
    let (folder, out) = written(&static_program());
    let before = fs::read(&out).expect("archive");
    write(&folder.path().join("absent"), &out).expect_err("no agent");
    assert_eq!(fs::read(&out).expect("archive"), before);
}
