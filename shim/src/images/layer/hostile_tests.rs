//! Layers that no honest tool writes, and what overlayfs makes of the honest ones.

use std::io::Read;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use tar::EntryType;

use super::super::archive_fixture::{LayerTar, header};
use super::tar_stream::{Streamed, TarError, TarStream};
use super::unpack::{UnpackError, UnpackLimits, Unpacked, unpack};

struct Sandbox {
    dir: tempfile::TempDir,
    count: usize,
}

impl Sandbox {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("secret"), b"secret").unwrap();
        std::fs::create_dir(dir.path().join("outside")).unwrap();
        Self { dir, count: 0 }
    }

    fn unpack_on(&mut self, tar: &[u8], lowers: &[PathBuf]) -> Result<PathBuf, UnpackError> {
        self.unpack_limited(tar, lowers, &UnpackLimits::default())
            .map(|(path, _)| path)
    }

    fn unpack_limited(
        &mut self,
        tar: &[u8],
        lowers: &[PathBuf],
        limits: &UnpackLimits,
    ) -> Result<(PathBuf, Unpacked), UnpackError> {
        self.count += 1;
        let path = self.dir.path().join(format!("layer{}", self.count));
        std::fs::create_dir(&path).unwrap();
        let done = unpack(tar, &path, lowers, limits)?;
        Ok((path, done))
    }

    fn unpack(&mut self, tar: &[u8]) -> Result<PathBuf, UnpackError> {
        self.unpack_on(tar, &[])
    }

    /// Nothing outside the layers changed.
    fn assert_contained(&self) {
        assert_eq!(
            std::fs::read(self.dir.path().join("secret")).unwrap(),
            b"secret"
        );
        assert_eq!(
            std::fs::metadata(self.dir.path().join("secret"))
                .unwrap()
                .nlink(),
            1
        );
        assert_eq!(
            std::fs::read_dir(self.dir.path().join("outside"))
                .unwrap()
                .count(),
            0
        );
        let beside = std::fs::read_dir(self.dir.path()).unwrap().filter(|entry| {
            !entry
                .as_ref()
                .unwrap()
                .file_name()
                .to_string_lossy()
                .starts_with("layer")
        });
        assert_eq!(beside.count(), 2);
    }
}

fn is_whiteout(path: &Path) -> bool {
    path.symlink_metadata()
        .is_ok_and(|found| found.file_type().is_char_device() && found.rdev() == 0)
}

fn is_opaque(path: &Path) -> bool {
    let mut value = [0; 1];
    rustix::fs::getxattr(path, "trusted.overlay.opaque", &mut value) == Ok(1) && value == *b"y"
}

fn refused(result: Result<PathBuf, UnpackError>, part: &str) {
    let error = result.unwrap_err();
    let text = error.to_string();
    assert!(
        matches!(error, UnpackError::Refused { .. }) && text.contains(part),
        "{text}"
    );
}

#[test]
fn path_that_goes_up_is_refused() {
    for path in ["../evil", "a/../../evil", "..", "/../evil", "a/.."] {
        let mut b = Sandbox::new();
        refused(
            b.unpack(&LayerTar::default().file(path, b"x").finish()),
            "goes up",
        );
        refused(
            b.unpack(&LayerTar::default().dir(path, 0o755).finish()),
            "goes up",
        );
        b.assert_contained();
    }
}

#[test]
fn path_that_is_absolute_lands_in_the_layer() {
    let mut b = Sandbox::new();
    let layer = b
        .unpack(&LayerTar::default().file("/etc/evil", b"x").finish())
        .unwrap();
    assert_eq!(std::fs::read(layer.join("etc/evil")).unwrap(), b"x");
    b.assert_contained();
}

#[test]
fn symlink_parent_that_leads_out_is_resolved_inside_the_layer() {
    for target in [
        "/outside",
        "../outside",
        "../../../../../outside",
        "/proc/self/root/outside",
    ] {
        let mut b = Sandbox::new();
        let host = b.dir.path().join("outside");
        let absolute = host.to_str().unwrap();
        let tar = LayerTar::default()
            .symlink("out", target)
            .file("out/evil", b"x")
            .symlink("abs", absolute)
            .file("abs/evil2", b"y")
            .finish();
        let layer = b.unpack(&tar).unwrap();
        assert_eq!(
            std::fs::read(layer.join(absolute.trim_start_matches('/')).join("evil2")).unwrap(),
            b"y"
        );
        b.assert_contained();
    }
}

#[test]
fn symlink_in_the_place_of_a_file_is_replaced_and_not_written_through() {
    let mut b = Sandbox::new();
    let secret = b.dir.path().join("secret");
    let tar = LayerTar::default()
        .symlink("f", secret.to_str().unwrap())
        .file("f", b"new")
        .finish();
    let layer = b.unpack(&tar).unwrap();
    assert!(layer.join("f").symlink_metadata().unwrap().is_file());
    b.assert_contained();
}

#[test]
fn symlink_loop_as_parent_is_an_error() {
    let mut b = Sandbox::new();
    let tar = LayerTar::default()
        .symlink("a", "b")
        .symlink("b", "a")
        .file("a/f", b"x")
        .finish();
    assert!(b.unpack(&tar).is_err());
    b.assert_contained();
}

#[test]
fn hard_link_to_the_outside_is_refused() {
    for target in ["../secret", "/../secret", "a/../../secret"] {
        let mut b = Sandbox::new();
        refused(
            b.unpack(&LayerTar::default().hard_link("l", target).finish()),
            "outside the layer",
        );
        b.assert_contained();
    }
    let mut b = Sandbox::new();
    let secret = b.dir.path().join("secret").to_str().unwrap().to_owned();
    refused(
        b.unpack(&LayerTar::default().hard_link("l", &secret).finish()),
        "does not exist",
    );
    b.assert_contained();
}

#[test]
fn hard_link_to_a_symlink_links_the_link_itself() {
    let mut b = Sandbox::new();
    let secret = b.dir.path().join("secret").to_str().unwrap().to_owned();
    let layer = b
        .unpack(
            &LayerTar::default()
                .symlink("s", &secret)
                .hard_link("l", "s")
                .file("l", b"over")
                .finish(),
        )
        .unwrap();
    assert!(layer.join("s").symlink_metadata().unwrap().is_symlink());
    assert_eq!(std::fs::read(layer.join("l")).unwrap(), b"over");
    // Through a parent that is a link out: resolved inside, where there is nothing.
    let outside = b.dir.path().to_str().unwrap().to_owned();
    refused(
        b.unpack(
            &LayerTar::default()
                .symlink("d", &outside)
                .hard_link("l", "d/secret")
                .finish(),
        ),
        "does not exist",
    );
    b.assert_contained();
}

#[test]
fn hard_link_to_a_directory_is_refused_and_to_itself_is_nothing() {
    let mut b = Sandbox::new();
    refused(
        b.unpack(
            &LayerTar::default()
                .dir("d", 0o755)
                .hard_link("l", "d")
                .finish(),
        ),
        "directory",
    );
    let layer = b
        .unpack(
            &LayerTar::default()
                .file("f", b"x")
                .hard_link("f", "f")
                .finish(),
        )
        .unwrap();
    assert_eq!(std::fs::read(layer.join("f")).unwrap(), b"x");
}

#[test]
fn hard_link_to_a_lower_layer_copies_and_leaves_that_layer_alone() {
    let mut b = Sandbox::new();
    let base = b
        .unpack(
            &LayerTar::default()
                .file_mode("bin/tool", b"tool", 0o4755)
                .finish(),
        )
        .unwrap();
    let top = b
        .unpack_on(
            &LayerTar::default()
                .hard_link("t", "bin/tool")
                .file_mode("t", b"changed", 0o600)
                .finish(),
            std::slice::from_ref(&base),
        )
        .unwrap();
    assert_eq!(std::fs::read(base.join("bin/tool")).unwrap(), b"tool");
    assert_eq!(std::fs::read(top.join("t")).unwrap(), b"changed");
}

#[test]
fn whiteout_of_dots_is_refused() {
    for path in [".wh...", "a/.wh...", ".wh..", ".wh."] {
        let mut b = Sandbox::new();
        refused(
            b.unpack(&LayerTar::default().file(path, b"").finish()),
            "whiteout of no name",
        );
        b.assert_contained();
    }
}

#[test]
fn whiteout_hides_only_what_lower_layers_have() {
    let mut b = Sandbox::new();
    let base = b
        .unpack(
            &LayerTar::default()
                .file("a/old", b"1")
                .dir("d", 0o755)
                .file("d/x", b"2")
                .finish(),
        )
        .unwrap();
    let tar = LayerTar::default()
        .file("a/.wh.old", b"")
        .file("a/.wh.never", b"")
        .file("no/where/.wh.x", b"")
        .file("d/new", b"3")
        .file(".wh.d", b"")
        .finish();
    let top = b.unpack_on(&tar, std::slice::from_ref(&base)).unwrap();
    assert!(is_whiteout(&top.join("a/old")));
    assert!(!top.join("a/never").exists() && !top.join("no").exists());
    // `d` was brought by this very layer, so only the old content goes.
    assert!(is_opaque(&top.join("d")) && top.join("d/new").exists());
}

#[test]
fn whiteout_then_directory_makes_an_opaque_directory() {
    let mut b = Sandbox::new();
    let base = b
        .unpack(
            &LayerTar::default()
                .file("d/x", b"2")
                .file("e/x", b"2")
                .finish(),
        )
        .unwrap();
    let tar = LayerTar::default()
        .file(".wh.d", b"")
        .dir("d", 0o700)
        .file("d/new", b"3")
        .file(".wh.e", b"")
        .file("e/new", b"4")
        .finish();
    let top = b.unpack_on(&tar, &[base]).unwrap();
    assert!(is_opaque(&top.join("d")) && is_opaque(&top.join("e")));
    assert_eq!(
        top.join("d").metadata().unwrap().permissions().mode() & 0o777,
        0o700
    );
}

#[test]
fn opaque_marker_sets_the_attribute_and_aufs_leftovers_are_dropped() {
    let mut b = Sandbox::new();
    let tar = LayerTar::default()
        .dir("d", 0o755)
        .file("d/.wh..wh..opq", b"")
        .file(".wh..wh.plnk/1.2", b"")
        .file(".wh..wh.aufs", b"")
        .finish();
    let layer = b.unpack(&tar).unwrap();
    assert!(is_opaque(&layer.join("d")));
    assert_eq!(std::fs::read_dir(layer.join("d")).unwrap().count(), 0);
}

#[test]
fn missing_parent_takes_its_attributes_from_the_layer_below() {
    let mut b = Sandbox::new();
    let base = b
        .unpack(
            &LayerTar::default()
                .dir("home/", 0o711)
                .symlink("lib", "usr/lib")
                .dir("usr/lib", 0o750)
                .finish(),
        )
        .unwrap();
    let top = b
        .unpack_on(
            &LayerTar::default()
                .file("home/f", b"")
                .file("lib/g", b"")
                .finish(),
            &[base],
        )
        .unwrap();
    assert_eq!(
        top.join("home").metadata().unwrap().permissions().mode() & 0o7777,
        0o711
    );
    assert_eq!(top.join("home").metadata().unwrap().mtime(), 1_000_000_000);
    // As on a mounted overlay, the link of the layer below is followed, not replaced by a directory.
    assert!(top.join("usr/lib/g").is_file() && !top.join("lib").exists());
    assert_eq!(
        top.join("usr/lib").metadata().unwrap().permissions().mode() & 0o7777,
        0o750
    );
}

#[test]
fn overlay_mount_of_unpacked_layers_shows_the_image() {
    let mut b = Sandbox::new();
    let base = b
        .unpack(
            &LayerTar::default()
                .file("keep", b"1")
                .file("gone", b"2")
                .file("d/old", b"3")
                .finish(),
        )
        .unwrap();
    let top = b
        .unpack_on(
            &LayerTar::default()
                .file(".wh.gone", b"")
                .file("d/.wh..wh..opq", b"")
                .file("d/new", b"4")
                .finish(),
            std::slice::from_ref(&base),
        )
        .unwrap();
    let target = b.dir.path().join("layer-merged");
    std::fs::create_dir(&target).unwrap();
    let options = format!("lowerdir={}:{}", top.display(), base.display());
    let options = std::ffi::CString::new(options).unwrap();
    rustix::mount::mount(
        "overlay",
        &target,
        "overlay",
        rustix::mount::MountFlags::RDONLY,
        Some(options.as_c_str()),
    )
    .expect("this test needs root and overlayfs");
    let names = |path: &Path| {
        let mut names: Vec<_> = std::fs::read_dir(path)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    };
    let shown = (names(&target), names(&target.join("d")));
    rustix::mount::unmount(&target, rustix::mount::UnmountFlags::DETACH).unwrap();
    assert_eq!(
        shown,
        (
            vec!["d".to_owned(), "keep".to_owned()],
            vec!["new".to_owned()]
        )
    );
}

#[test]
fn metadata_of_entries_is_kept() {
    let mut b = Sandbox::new();
    let mut owned = header(EntryType::Regular, b"owned", b"", 1, 0o6755);
    owned.set_uid(1234);
    owned.set_gid(5678);
    owned.set_cksum();
    let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let tar = LayerTar::default()
        .pax(&[
            ("mtime", b"1500000000.25"),
            ("SCHILY.xattr.user.note", b"a=b\nc"),
            ("SCHILY.xattr.security.capability", &capability),
            ("SCHILY.xattr.trusted.overlay.redirect", b"/etc"),
        ])
        .raw(&owned, b"x")
        .raw(&header(EntryType::Fifo, b"fifo", b"", 0, 0o640), b"")
        .dir("sticky", 0o1777)
        .file("sticky/f", b"")
        .finish();
    let layer = b.unpack(&tar).unwrap();
    let found = layer.join("owned").metadata().unwrap();
    assert_eq!(
        (found.uid(), found.gid(), found.mode() & 0o7777),
        (1234, 5678, 0o6755)
    );
    assert_eq!(
        (found.mtime(), found.mtime_nsec()),
        (1_500_000_000, 250_000_000)
    );
    let mut value = [0; 64];
    let size =
        rustix::fs::getxattr(layer.join("owned"), "security.capability", &mut value).unwrap();
    assert_eq!(&value[..size], capability);
    let size = rustix::fs::getxattr(layer.join("owned"), "user.note", &mut value).unwrap();
    assert_eq!(&value[..size], b"a=b\nc");
    assert!(
        rustix::fs::getxattr(layer.join("owned"), "trusted.overlay.redirect", &mut value).is_err()
    );
    assert!(
        layer
            .join("fifo")
            .symlink_metadata()
            .unwrap()
            .file_type()
            .is_fifo()
    );
    let sticky = layer.join("sticky").metadata().unwrap();
    assert_eq!(
        (sticky.mode() & 0o7777, sticky.mtime()),
        (0o1777, 1_000_000_000)
    );
}

#[test]
fn character_device_is_made_as_the_image_says() {
    let mut b = Sandbox::new();
    let mut null = header(EntryType::Char, b"null", b"", 0, 0o666);
    null.set_device_major(1).unwrap();
    null.set_device_minor(3).unwrap();
    null.set_cksum();
    let layer = b
        .unpack(&LayerTar::default().raw(&null, b"").finish())
        .unwrap();
    let found = layer.join("null").symlink_metadata().unwrap();
    assert_eq!(
        (found.rdev(), found.mode() & 0o777),
        (rustix::fs::makedev(1, 3), 0o666)
    );
}

#[test]
fn duplicates_replace_each_other_whatever_their_kinds() {
    let mut b = Sandbox::new();
    let tar = LayerTar::default()
        .file("a", b"1")
        .dir("a", 0o755)
        .file("a/b/c", b"2")
        .symlink("a", "/etc")
        .file("a", b"3")
        .dir("d", 0o755)
        .dir("d", 0o700)
        .finish();
    let layer = b.unpack(&tar).unwrap();
    assert_eq!(std::fs::read(layer.join("a")).unwrap(), b"3");
    assert_eq!(
        layer.join("d").metadata().unwrap().permissions().mode() & 0o777,
        0o700
    );
}

#[test]
fn entry_that_would_replace_the_root_is_refused() {
    let mut b = Sandbox::new();
    refused(
        b.unpack(&LayerTar::default().symlink("./", "/etc").finish()),
        "root",
    );
    refused(
        b.unpack(&LayerTar::default().file(".", b"").finish()),
        "root",
    );
    let layer = b
        .unpack(&LayerTar::default().dir("./", 0o711).finish())
        .unwrap();
    assert_eq!(
        layer.metadata().unwrap().permissions().mode() & 0o7777,
        0o711
    );
}

#[test]
fn file_as_parent_is_refused() {
    let mut b = Sandbox::new();
    refused(
        b.unpack(&LayerTar::default().file("f", b"").file("f/x", b"").finish()),
        "not a directory",
    );
}

#[test]
fn size_that_lies_ends_as_a_cut_archive_or_the_limit() {
    let mut b = Sandbox::new();
    let tar = LayerTar::default()
        .raw(
            &header(EntryType::Regular, b"big", b"", 1 << 30, 0o644),
            b"only this",
        )
        .finish();
    let error = b.unpack(&tar).unwrap_err();
    assert!(matches!(error, UnpackError::Tar(_)), "{error:?}");
    let tar = LayerTar::default()
        .raw(
            &header(EntryType::Regular, b"huge", b"", 1 << 60, 0o644),
            b"",
        )
        .finish();
    assert!(matches!(
        b.unpack(&tar).unwrap_err(),
        UnpackError::TooLarge { .. }
    ));
    let tar = LayerTar::default()
        .pax(&[("size", b"18446744073709551615")])
        .raw(&header(EntryType::Regular, b"huge", b"", 0, 0o644), b"")
        .finish();
    assert!(b.unpack(&tar).is_err());
}

#[test]
fn archive_without_end_mark_is_accepted_and_a_cut_one_is_not() {
    let mut b = Sandbox::new();
    let whole = LayerTar::default().file("f", &[7; 700]).unfinished();
    assert!(b.unpack(&whole).is_ok());
    for cut in [300, 512 + 100] {
        let error = b.unpack(&whole[..cut]).unwrap_err();
        assert!(matches!(error, UnpackError::Tar(_)), "{error:?}");
    }
}

#[test]
fn header_with_blank_numbers_counts_them_as_zero() {
    let mut b = Sandbox::new();
    let mut blank = header(EntryType::Regular, b"f", b"", 0, 0);
    for range in [100..108, 108..116, 116..124, 124..136, 136..148] {
        blank.as_mut_bytes()[range].fill(0);
    }
    blank.set_cksum();
    let layer = b
        .unpack(&LayerTar::default().raw(&blank, b"").finish())
        .unwrap();
    let found = layer.join("f").metadata().unwrap();
    assert_eq!(
        (found.uid(), found.gid(), found.len(), found.mtime()),
        (0, 0, 0, 0)
    );
}

#[test]
fn entries_beyond_the_limit_are_refused() {
    let mut b = Sandbox::new();
    let tar = (0..20)
        .fold(LayerTar::default(), |tar, at| {
            tar.file(&format!("f{at}"), b"")
        })
        .finish();
    let limits = UnpackLimits {
        entries: 10,
        ..UnpackLimits::default()
    };
    assert!(matches!(
        b.unpack_limited(&tar, &[], &limits),
        Err(UnpackError::Tar(TarError::TooManyEntries { limit: 10 }))
    ));
    // Extension headers count too, so that a stream of nothing else ends.
    let tar = (0..20)
        .fold(LayerTar::default(), |tar, _| tar.pax(&[("path", b"x")]))
        .finish();
    assert!(matches!(
        b.unpack_limited(&tar, &[], &limits),
        Err(UnpackError::Tar(TarError::TooManyEntries { .. }))
    ));
}

#[test]
fn extension_header_of_any_size_takes_bounded_memory() {
    for kind in [
        EntryType::XHeader,
        EntryType::GNULongName,
        EntryType::GNULongLink,
    ] {
        let mut b = Sandbox::new();
        let tar = LayerTar::default()
            .raw(&header(kind, b"x", b"", 8 << 30, 0o644), b"")
            .finish();
        assert!(matches!(
            b.unpack(&tar),
            Err(UnpackError::Tar(TarError::ExtensionTooLarge { .. }))
        ));
    }
    let mut b = Sandbox::new();
    let long = "x/".repeat(3000);
    let tar = LayerTar::default()
        .pax(&[("path", long.as_bytes())])
        .file("f", b"")
        .finish();
    assert!(matches!(
        b.unpack(&tar),
        Err(UnpackError::Tar(TarError::Header { .. }))
    ));
    let deep = "x/".repeat(1000);
    refused(
        b.unpack(
            &LayerTar::default()
                .pax(&[("path", deep.as_bytes())])
                .dir("d", 0o755)
                .finish(),
        ),
        "directories deep",
    );
    let name = "n".repeat(300);
    assert!(
        b.unpack(
            &LayerTar::default()
                .pax(&[("path", name.as_bytes())])
                .file("f", b"")
                .finish()
        )
        .is_err()
    );
}

#[test]
fn malformed_pax_records_are_refused() {
    for data in [
        &b"99 path=x\n"[..],
        b"path=x\n",
        b"0 a=b\n",
        b"3 a\n",
        b"18446744073709551615 a=b\n",
        b"-5 a=b\n",
        b"12 mtime=soon",
    ] {
        let mut b = Sandbox::new();
        let tar = LayerTar::default()
            .raw(
                &header(EntryType::XHeader, b"x", b"", data.len() as u64, 0o644),
                data,
            )
            .file("f", b"")
            .finish();
        assert!(
            matches!(
                b.unpack(&tar),
                Err(UnpackError::Tar(TarError::Header { .. }))
            ),
            "{data:?}"
        );
    }
}

fn sparse(real: u64, segments: &[(u64, u64)], data: &[u8]) -> Vec<u8> {
    let mut header = header(
        EntryType::GNUSparse,
        b"sparse",
        b"",
        data.len() as u64,
        0o644,
    );
    {
        let gnu = header.as_gnu_mut().unwrap();
        let octal =
            |value: u64| -> [u8; 12] { format!("{value:011o}\0").into_bytes().try_into().unwrap() };
        gnu.realsize = octal(real);
        for (slot, (offset, length)) in gnu.sparse.iter_mut().zip(segments) {
            slot.offset = octal(*offset);
            slot.numbytes = octal(*length);
        }
    }
    header.set_cksum();
    LayerTar::default().raw(&header, data).finish()
}

#[test]
fn sparse_file_is_written_with_its_holes() {
    let mut b = Sandbox::new();
    let layer = b
        .unpack(&sparse(1 << 20, &[(0, 3), (1000, 3)], b"abcdef"))
        .unwrap();
    let content = std::fs::read(layer.join("sparse")).unwrap();
    assert_eq!(
        (content.len(), &content[..3], &content[1000..1003]),
        (1 << 20, &b"abc"[..], &b"def"[..])
    );
    assert!(layer.join("sparse").metadata().unwrap().blocks() * 512 < 1 << 20);
}

#[test]
fn sparse_bomb_or_bad_map_is_refused() {
    let mut b = Sandbox::new();
    let limits = UnpackLimits {
        bytes: 1 << 20,
        ..UnpackLimits::default()
    };
    assert!(matches!(
        b.unpack_limited(&sparse(4 << 30, &[(0, 1)], b"x"), &[], &limits),
        Err(UnpackError::TooLarge { .. })
    ));
    for segments in [
        &[(10, 1), (0, 1)][..],
        &[(0, 100), (50, 100)],
        &[(4000, 200)],
    ] {
        let data = vec![0; segments.iter().map(|(_, length)| *length as usize).sum()];
        assert!(
            matches!(
                b.unpack(&sparse(4096, segments, &data)),
                Err(UnpackError::Tar(TarError::Header { .. }))
            ),
            "{segments:?}"
        );
    }
    assert!(b.unpack(&sparse(4096, &[(0, 5)], b"x")).is_err());
}

#[test]
fn full_disk_is_named_as_such() {
    let b = Sandbox::new();
    let small = b.dir.path().join("layer-small");
    std::fs::create_dir(&small).unwrap();
    rustix::mount::mount(
        "tmpfs",
        &small,
        "tmpfs",
        rustix::mount::MountFlags::empty(),
        Some(c"size=64k"),
    )
    .expect("this test needs root");
    let tar = LayerTar::default().file("big", &vec![1; 1 << 20]).finish();
    let result = unpack(&tar[..], &small, &[], &UnpackLimits::default());
    rustix::mount::unmount(&small, rustix::mount::UnmountFlags::DETACH).unwrap();
    let error = result.unwrap_err();
    assert!(
        matches!(error, UnpackError::DiskFull { .. }) && error.to_string().contains("vmpod gc"),
        "{error}"
    );
}

#[test]
fn names_on_error_are_safe_on_a_terminal() {
    let mut b = Sandbox::new();
    let text = b
        .unpack(&LayerTar::default().file("../\u{1b}[2Jx\n", b"").finish())
        .unwrap_err()
        .to_string();
    assert!(!text.contains('\u{1b}') && !text.contains('\n'), "{text:?}");
}

/// Fields that lead somewhere interesting more often than random bytes do.
fn path() -> impl Strategy<Value = Vec<u8>> {
    let parts: Vec<&[u8]> = vec![
        b"..",
        b".",
        b"",
        b"a",
        b"b",
        b"c",
        b".wh.a",
        b".wh...",
        b".wh..wh..opq",
        b"proc",
        b"\xff",
    ];
    let part = proptest::sample::select(parts);
    proptest::collection::vec(part, 1..6).prop_map(|parts| parts.join(&b'/'))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    #[test]
    fn random_entries_never_panic_or_escape(
        entries in proptest::collection::vec((path(), path(), 0_usize..9, proptest::collection::vec(any::<u8>(), 0..40)), 1..12)
    ) {
        let mut b = Sandbox::new();
        let kinds = [EntryType::Regular, EntryType::Directory, EntryType::Symlink, EntryType::Symlink, EntryType::Link, EntryType::Fifo, EntryType::Char, EntryType::GNUSparse, EntryType::XHeader];
        let tar = entries.iter().fold(LayerTar::default(), |tar, (path, link, kind, data)| tar.raw(&header(kinds[*kind], path, link, data.len() as u64, 0o755), data)).finish();
        let base = b.unpack(&LayerTar::default().symlink("a", "/../../outside").file("b/c", b"").symlink("c", "../secret").finish()).unwrap();
        let before = std::fs::read_dir(&base).unwrap().count();
        let _ = b.unpack_on(&tar, std::slice::from_ref(&base));
        prop_assert_eq!(std::fs::read_dir(&base).unwrap().count(), before);
        b.assert_contained();
    }

    #[test]
    fn random_header_bytes_never_panic(
        changes in proptest::collection::vec((0_usize..512, any::<u8>()), 0..20), fix in any::<bool>(), tail in proptest::collection::vec(any::<u8>(), 0..2000)
    ) {
        let mut head = header(EntryType::GNUSparse, b"name", b"link", 700, 0o644);
        for (at, value) in changes {
            head.as_mut_bytes()[at] = value;
        }
        if fix {
            head.set_cksum();
        }
        let tar = LayerTar::default().raw(&head, &tail).file("after", b"x").finish();
        let mut stream = TarStream::new(Streamed(&tar[..]), 1000);
        while let Ok(Some(_)) = stream.next_entry() {
            let _ = stream.read_to_end(&mut Vec::new());
        }
        let mut b = Sandbox::new();
        let limits = UnpackLimits { bytes: 1 << 20, entries: 100 };
        let _ = b.unpack_limited(&tar, &[], &limits);
        b.assert_contained();
    }
}
