//! The whole build over a source of a few lines: same steps, same tools, seconds instead of
//! minutes. The real kernel is built by `xtask`.

use std::os::unix::fs::MetadataExt;

use super::*;

/// Makes a `.config` from the fragment without the options that "Kconfig" does not know, and a
/// program with a PVH note.
const MAKEFILE: &str = r#"
allnoconfig:
	@echo "  GEN     .config"
	@grep -v '^CONFIG_UNKNOWN' $(KCONFIG_ALLCONFIG) > .config

vmlinux: entry.S
	@echo "  CC      entry.o"
	@gcc -nostdlib -static -Wl,--build-id=none -o vmlinux entry.S
	@echo "  SYSMAP  System.map"
	@echo "$$KBUILD_BUILD_TIMESTAMP $$KBUILD_BUILD_USER@$$KBUILD_BUILD_HOST $$LC_ALL" > System.map
"#;

const ENTRY: &str = r#"
.globl _start
_start: hlt
.section .note.Xen, "a", @note
.long 4, 8, 18
.asciz "Xen"
.quad _start
"#;

struct Bench {
    root: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        let bench = Self {
            root: tempfile::tempdir().expect("folder"),
        };
        bench.write("linux-6.12/Makefile", MAKEFILE);
        bench.write("linux-6.12/entry.S", ENTRY);
        bench.write("guest-image/kernel.config", "CONFIG_A=y\n");
        bench
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().expect("parent")).expect("folder");
        fs::write(path, text).expect("file");
    }

    /// Packs the source as it stands and describes its build.
    fn build(&self) -> KernelBuild {
        let status = Command::new("tar")
            .current_dir(self.root.path())
            .args(["--create", "--xz", "--file=linux.tar.xz", "linux-6.12"])
            .status()
            .expect("tar");
        assert!(status.success());
        KernelBuild::new(&self.path("guest-image"), &self.path("cache"))
            .source(self.path("linux.tar.xz"))
            .jobs(1)
    }
}

fn quiet() -> impl FnMut(&Progress) {
    |_: &Progress| {}
}

#[test]
fn build_first_call_builds_and_reports_every_phase() {
    let bench = Bench::new();
    let build = bench.build();
    let mut phases = Vec::new();
    let vmlinux = build
        .build(&mut |report| {
            assert!(report.done <= report.total, "{report}");
            if phases.last() != Some(&report.phase) {
                phases.push(report.phase);
            }
        })
        .expect("a kernel");
    assert_eq!(
        phases,
        [
            Phase::Unpacking,
            Phase::Configuring,
            Phase::Compiling,
            Phase::Publishing
        ]
    );
    let folder = build.output_folder().expect("hash");
    assert_eq!(vmlinux, folder.join("vmlinux"));
    let map = fs::read_to_string(folder.join("System.map")).expect("map");
    assert_eq!(
        map, "Thu Jan  1 00:00:00 UTC 1970 vmpod@vmpod C\n",
        "a fixed environment"
    );
    assert_eq!(
        fs::read_to_string(folder.join("config")).expect("config"),
        "CONFIG_A=y\n"
    );
    assert!(!folder.join("build").exists(), "the workshop is cleared");
}

#[test]
fn build_second_call_answers_from_the_cache() {
    let bench = Bench::new();
    let build = bench.build();
    let vmlinux = build.build(&mut quiet()).expect("a kernel");
    let before = fs::metadata(&vmlinux).expect("vmlinux").ino();
    let again = build
        .build(&mut |report| panic!("built again: {report}"))
        .expect("a kernel");
    assert_eq!(fs::metadata(again).expect("vmlinux").ino(), before);
}

#[test]
fn build_same_inputs_in_another_cache_give_the_same_bytes() {
    let (one, two) = (Bench::new(), Bench::new());
    let first = one.build().build(&mut quiet()).expect("a kernel");
    let second = two.build().build(&mut quiet()).expect("a kernel");
    assert_eq!(
        fs::read(first).expect("first"),
        fs::read(second).expect("second")
    );
}

#[test]
fn build_option_that_kconfig_drops_is_an_error_with_its_name() {
    let bench = Bench::new();
    bench.write(
        "guest-image/kernel.config",
        "CONFIG_A=y\nCONFIG_UNKNOWN_THING=y\n",
    );
    let build = bench.build();
    let error = build.build(&mut quiet()).expect_err("a dropped option");
    assert!(
        error
            .to_string()
            .contains("CONFIG_UNKNOWN_THING is not set, asked for y"),
        "{error}"
    );
    assert!(
        !build
            .output_folder()
            .expect("hash")
            .join("vmlinux")
            .exists()
    );
}

#[test]
fn build_patches_are_applied_in_order_and_change_the_hash() {
    let bench = Bench::new();
    let plain = bench.build().input_hash().expect("hash");
    let patch = |from: &str, to: &str| {
        format!(
            "--- a/entry.S\n+++ b/entry.S\n@@ -2,3 +2,3 @@\n .globl _start\n-{from}\n+{to}\n .section .note.Xen, \"a\", @note\n"
        )
    };
    bench.write(
        "guest-image/patches/02.patch",
        &patch("_start: nop", "_start: ud2"),
    );
    bench.write(
        "guest-image/patches/01.patch",
        &patch("_start: hlt", "_start: nop"),
    );
    let build = bench.build();
    assert_ne!(build.input_hash().expect("hash"), plain);
    let mut seen = Vec::new();
    build
        .build(&mut |report| {
            if report.phase == Phase::Patching {
                seen.push(report.detail.clone());
            }
        })
        .expect("a kernel");
    assert_eq!(seen, ["01.patch", "02.patch"]);
}

#[test]
fn build_patch_that_does_not_apply_is_named_with_the_log() {
    let bench = Bench::new();
    bench.write(
        "guest-image/patches/01.patch",
        "--- a/entry.S\n+++ b/entry.S\n@@ -1,2 +1,2 @@\n nothing\n-like\n+this\n",
    );
    let error = bench
        .build()
        .build(&mut quiet())
        .expect_err("a bad patch")
        .to_string();
    assert!(
        error.contains("01.patch") && error.contains("FAILED"),
        "{error}"
    );
}

#[test]
fn build_compiler_error_carries_the_end_of_the_log_and_the_next_call_starts_afresh() {
    let bench = Bench::new();
    bench.write("linux-6.12/entry.S", "this is no instruction\n");
    let error = bench
        .build()
        .build(&mut quiet())
        .expect_err("no program")
        .to_string();
    assert!(
        error.contains("compiling the kernel") && error.contains("no such instruction"),
        "{error}"
    );
    bench.write("linux-6.12/entry.S", ENTRY);
    bench.build().build(&mut quiet()).expect("a kernel");
}

#[test]
fn build_kernel_without_pvh_note_is_refused() {
    let bench = Bench::new();
    bench.write("linux-6.12/entry.S", ".globl _start\n_start: hlt\n");
    let error = bench.build().build(&mut quiet()).expect_err("no note");
    assert!(matches!(error, BuildError::NoPvhEntry { .. }), "{error}");
}

#[test]
fn build_tarball_that_is_none_is_an_error_of_unpacking() {
    let bench = Bench::new();
    bench.write("linux.tar.xz", "not an archive");
    let build = KernelBuild::new(&bench.path("guest-image"), &bench.path("cache"))
        .source(bench.path("linux.tar.xz"));
    let error = build
        .build(&mut quiet())
        .expect_err("no archive")
        .to_string();
    assert!(error.contains("unpacking the kernel source"), "{error}");
}
