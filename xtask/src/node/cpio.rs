//! Writes an initramfs archive in the kernel's "newc" cpio format
//! (Documentation/driver-api/early-userspace/buffer-format.rst). Same calls, same bytes: times and
//! owners are all zero. It reads nothing from disk.

/// An archive under construction. Parents must be added before what lies in them.
#[derive(Debug, Default)]
pub struct Archive {
    bytes: Vec<u8>,
    inode: u32,
}

const DIRECTORY: u32 = 0o040_000;
const REGULAR: u32 = 0o100_000;
const SYMLINK: u32 = 0o120_000;
const CHARACTER: u32 = 0o020_000;

impl Archive {
    /// Adds a directory of mode 0755. `path` has no leading slash.
    pub fn directory(&mut self, path: &str) {
        self.entry(path, DIRECTORY | 0o755, (0, 0), &[]);
    }

    /// Adds a file with permission bits `mode`.
    pub fn file(&mut self, path: &str, mode: u32, content: &[u8]) {
        self.entry(path, REGULAR | mode, (0, 0), content);
    }

    /// Adds a symbolic link.
    pub fn symlink(&mut self, path: &str, target: &str) {
        self.entry(path, SYMLINK | 0o777, (0, 0), target.as_bytes());
    }

    /// Adds a character device of mode 0600.
    pub fn character_device(&mut self, path: &str, major: u32, minor: u32) {
        self.entry(path, CHARACTER | 0o600, (major, minor), &[]);
    }

    /// Closes the archive and returns its bytes.
    pub fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, (0, 0), &[]);
        self.bytes
    }

    fn entry(&mut self, path: &str, mode: u32, device: (u32, u32), content: &[u8]) {
        self.inode += 1;
        let links = 1;
        let size = content.len();
        let name_size = path.len() + 1;
        let (inode, (major, minor)) = (self.inode, device);
        // Magic, inode, mode, uid, gid, links, mtime, size, device of the file (2), device that
        // the file is (2), length of the name with its zero, checksum (unused in this format).
        let header = format!(
            "070701{inode:08x}{mode:08x}{0:08x}{0:08x}{links:08x}{0:08x}{size:08x}{0:08x}{0:08x}\
             {major:08x}{minor:08x}{name_size:08x}{0:08x}",
            0
        );
        self.bytes.extend_from_slice(header.as_bytes());
        self.bytes.extend_from_slice(path.as_bytes());
        self.bytes.push(0);
        self.align();
        self.bytes.extend_from_slice(content);
        self.align();
    }

    fn align(&mut self) {
        let padded = self.bytes.len().next_multiple_of(4);
        self.bytes.resize(padded, 0);
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn archive_with_each_kind_of_entry_is_read_by_cpio() {
        let mut archive = Archive::default();
        archive.directory("bin");
        archive.file("bin/tool", 0o755, b"odd");
        archive.symlink("bin/sh", "tool");
        archive.character_device("console", 5, 1);
        let bytes = archive.finish();
        // busybox reads this format as well; whichever is on the machine will do.
        let mut child = Command::new("cpio")
            .args(["-tv", "--quiet", "-n"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the package cpio is installed");
        child
            .stdin
            .take()
            .expect("piped")
            .write_all(&bytes)
            .expect("cpio reads");
        let output = child.wait_with_output().expect("cpio ends");
        let listing = String::from_utf8(output.stdout).expect("text");
        assert!(output.status.success());
        assert!(
            listing.contains("-rwxr-xr-x   1 0        0               3"),
            "{listing}"
        );
        assert!(listing.contains("bin/sh -> tool"), "{listing}");
        assert!(listing.contains("5,   1"), "{listing}");
    }

    #[test]
    fn archive_with_odd_content_stays_aligned() {
        let mut archive = Archive::default();
        archive.file("a", 0o644, b"12345");
        let bytes = archive.finish();
        assert_eq!(bytes.len() % 4, 0);
        let second = bytes
            .windows(6)
            .skip(1)
            .position(|window| window == b"070701");
        assert_eq!(second.map(|at| (at + 1) % 4), Some(0));
    }
}
