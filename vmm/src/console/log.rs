//! The console log: a file of bounded size, and one part before it.
//!
//! Written by vCPU threads behind the UART's lock. Lines are written as a whole, so that a byte of output costs no
//! system call. Never fails the guest: output that the host cannot store is counted and dropped.

use std::ffi::{CString, OsString};
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::panic_line::PanicWatch;

/// Bytes collected before they are written, at the latest.
const BUFFER_BYTES: usize = 1024;
/// Owner writes, group reads: it may hold what a workload prints.
const MODE: libc::mode_t = 0o640;

/// The log could not be created.
#[derive(Debug, thiserror::Error)]
#[error("create console log {}", path.display())]
pub struct LogError {
    /// The file.
    pub path: PathBuf,
    /// Why not.
    #[source]
    pub source: io::Error,
}

/// An open console log.
#[derive(Debug)]
pub struct ConsoleLog {
    /// Its directory: the log is renamed in it from within the jail, where its path means nothing.
    directory: OwnedFd,
    name: CString,
    old_name: CString,
    file: File,
    limit: u64,
    written: u64,
    buffer: Vec<u8>,
    lost: u64,
    panic: PanicWatch,
}

impl ConsoleLog {
    /// Creates the file at `path`, empty; it is set aside as `<path>.1` whenever it reaches `limit` bytes.
    ///
    /// # Errors
    /// The directory or the file cannot be opened.
    pub fn create(path: &Path, limit: u64) -> Result<Self, LogError> {
        let fail = |source| LogError {
            path: path.to_owned(),
            source,
        };
        let name = path
            .file_name()
            .ok_or_else(|| fail(io::Error::from(io::ErrorKind::InvalidInput)))?;
        let mut old_name = OsString::from(name);
        old_name.push(".1");
        let parent = match path.parent() {
            Some(p) if !p.as_os_str().is_empty() => p,
            _ => Path::new("."),
        };
        let directory = OwnedFd::from(File::open(parent).map_err(fail)?);
        let c_string = |s: &std::ffi::OsStr| {
            CString::new(s.as_bytes())
                .map_err(|e| fail(io::Error::new(io::ErrorKind::InvalidInput, e)))
        };
        let name = c_string(name)?;
        let file = open(&directory, &name).map_err(fail)?;
        Ok(Self {
            directory,
            old_name: c_string(&old_name)?,
            name,
            file,
            limit: limit.max(BUFFER_BYTES as u64),
            written: 0,
            buffer: Vec::with_capacity(BUFFER_BYTES),
            lost: 0,
            panic: PanicWatch::default(),
        })
    }

    /// The kernel's panic message, if its console has just printed one.
    #[must_use]
    pub fn panic_message(&self) -> Option<String> {
        self.panic.message()
    }

    /// Bytes that could not be stored.
    #[must_use]
    pub fn lost_bytes(&self) -> u64 {
        self.lost
    }

    /// Writes what was collected, also of an unfinished line.
    pub fn write_out(&mut self) {
        if self.buffer.is_empty() {
            return;
        }
        if self.file.write_all(&self.buffer).is_err() {
            self.lost = self.lost.saturating_add(self.buffer.len() as u64);
        }
        self.written = self.written.saturating_add(self.buffer.len() as u64);
        self.buffer.clear();
        if self.written >= self.limit {
            self.rotate();
        }
    }

    /// Sets the file aside and begins a new one; if that fails the file is emptied, because its bound comes first.
    fn rotate(&mut self) {
        let directory = self.directory.as_raw_fd();
        // SAFETY: both names are NUL-terminated and live across the call.
        let renamed = unsafe {
            libc::renameat(
                directory,
                self.name.as_ptr(),
                directory,
                self.old_name.as_ptr(),
            )
        } == 0;
        if renamed && let Ok(file) = open(&self.directory, &self.name) {
            self.file = file;
        } else {
            let _ = self.file.set_len(0);
        }
        self.written = 0;
    }
}

/// Creates or empties `name` in `directory`.
fn open(directory: &OwnedFd, name: &CString) -> io::Result<File> {
    // SAFETY: the name is NUL-terminated and lives across the call.
    let fd = unsafe {
        libc::openat(
            directory.as_raw_fd(),
            name.as_ptr(),
            // Appending, so that the file can be emptied under way.
            libc::O_WRONLY
                | libc::O_CREAT
                | libc::O_TRUNC
                | libc::O_APPEND
                | libc::O_CLOEXEC
                | libc::O_NOFOLLOW,
            MODE,
        )
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a descriptor that was just opened and belongs to nobody else.
    Ok(unsafe { File::from_raw_fd(fd) })
}

impl Write for ConsoleLog {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.panic.feed(bytes);
        for &byte in bytes {
            self.buffer.push(byte);
            if byte == b'\n' || self.buffer.len() >= BUFFER_BYTES {
                self.write_out();
            }
        }
        Ok(bytes.len())
    }

    /// Does nothing: the UART flushes after each byte.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for ConsoleLog {
    fn drop(&mut self) {
        self.write_out();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_with_lines_holds_them_and_an_unfinished_one_at_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("console.log");
        let mut log = ConsoleLog::create(&path, 4096).unwrap();
        log.write_all(b"one\ntwo").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"one\n");
        drop(log);
        assert_eq!(std::fs::read(&path).unwrap(), b"one\ntwo");
    }

    #[test]
    fn log_beyond_its_bound_keeps_one_part_before() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("console.log");
        let old = dir.path().join("console.log.1");
        let mut log = ConsoleLog::create(&path, 4096).unwrap();
        for i in 0..5000 {
            writeln!(log, "line {i}").unwrap();
        }
        let size = |p: &Path| std::fs::metadata(p).unwrap().len();
        assert!(size(&path) + size(&old) <= 2 * (4096 + 16));
        assert!(size(&old) >= 4096);
        drop(log);
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.ends_with("line 4999\n"), "{text}");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2);
    }

    #[test]
    fn log_in_a_missing_directory_is_an_error_that_names_it() {
        let error = ConsoleLog::create(Path::new("/nowhere/here/c.log"), 4096).unwrap_err();
        assert_eq!(error.to_string(), "create console log /nowhere/here/c.log");
    }

    #[test]
    fn log_path_that_is_a_symlink_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("console.log");
        std::os::unix::fs::symlink(dir.path().join("other"), &path).unwrap();
        assert!(ConsoleLog::create(&path, 4096).is_err());
    }
}
