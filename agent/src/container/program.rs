//! From a prepared process to a running program: streams, working directory, the search in PATH, execve.
//!
//! Runs in the process itself, in the container's namespaces; used by first processes and execs alike.

use std::ffi::{CString, OsStr};
use std::fs;
use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::unistd::{AccessFlags, Gid, Uid, chdir, execve, fchown, setfsgid, setfsuid, setsid};

use super::identity;
use super::link::ChildEnd;
use super::process_plan::ProcessPlan;
use super::seccomp::Filter;
use super::step::{At as _, StepError, reason};
use crate::process::keep_descriptors;

/// Where commands are looked for when the environment has no PATH.
const DEFAULT_PATH: &[u8] = b"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Largest /etc/passwd that is searched for a home directory.
const PASSWD_BYTES: u64 = 1 << 20;

/// The descriptors that become standard input, output and error; the agent's /dev/null where one is `None`.
#[derive(Debug, Default)]
pub struct StandardStreams {
    /// Standard input: the read end of a pipe.
    pub stdin: Option<OwnedFd>,
    /// Standard output: the write end of a pipe.
    pub stdout: Option<OwnedFd>,
    /// Standard error: the write end of a pipe.
    pub stderr: Option<OwnedFd>,
}

impl StandardStreams {
    /// For [`keep_descriptors`].
    pub fn raw(&self) -> Vec<RawFd> {
        [&self.stdin, &self.stdout, &self.stderr]
            .into_iter()
            .flatten()
            .map(|fd| fd.as_raw_fd())
            .collect()
    }
}

/// Opens the /dev/null that streams without a pipe get. Called while the agent's /dev is still in sight.
pub fn open_null() -> Result<OwnedFd, StepError> {
    nix::fcntl::open(
        "/dev/null",
        nix::fcntl::OFlag::O_RDWR | nix::fcntl::OFlag::O_CLOEXEC,
        nix::sys::stat::Mode::empty(),
    )
    .at(|| "open /dev/null")
}

fn put(fd: &OwnedFd, number: RawFd) -> io::Result<()> {
    // SAFETY: takes integers only; numbers 0 to 2 are the standard streams, which no OwnedFd of this process owns.
    if unsafe { libc::dup2(fd.as_raw_fd(), number) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Puts pipes or `null` onto 0, 1 and 2. The user gets the pipes, so that /dev/stdout and the like can be opened; `None`: has
/// got them.
pub fn connect_pipes(
    streams: &StandardStreams,
    null: &OwnedFd,
    owner: Option<u32>,
) -> Result<(), StepError> {
    let step = || "connect the standard streams";
    for (number, pipe) in [&streams.stdin, &streams.stdout, &streams.stderr]
        .into_iter()
        .enumerate()
    {
        let number = RawFd::try_from(number).unwrap_or(0);
        match pipe {
            Some(pipe) => {
                if let Some(uid) = owner {
                    fchown(pipe, Some(Uid::from_raw(uid)), None).at(step)?;
                }
                put(pipe, number).at(step)?;
            }
            None => put(null, number).at(step)?,
        }
    }
    Ok(())
}

/// The two ends of a pseudoterminal.
#[derive(Debug)]
pub struct Terminal {
    /// For the agent, which fetches it by number.
    pub master: OwnedFd,
    /// For the process.
    pub slave: OwnedFd,
}

impl Terminal {
    /// Unlocks `master`, an open /dev/ptmx, and opens its other side; `size` is rows and columns.
    pub fn open(master: OwnedFd, size: Option<(u16, u16)>) -> Result<Self, StepError> {
        let step = || "open the terminal";
        let unlock: libc::c_int = 0;
        // SAFETY: TIOCSPTLCK reads one integer, which outlives the call.
        if unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCSPTLCK, &raw const unlock) } < 0 {
            return Err(io::Error::last_os_error()).at(step);
        }
        let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
        // SAFETY: TIOCGPTPEER takes its flags by value and returns a descriptor.
        let slave = unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCGPTPEER, flags) };
        if slave < 0 {
            return Err(io::Error::last_os_error()).at(step);
        }
        // SAFETY: the descriptor is new and belongs to nobody else.
        let slave = unsafe { OwnedFd::from_raw_fd(slave) };
        if let Some((rows, columns)) = size {
            crate::stdio::resize(master.as_raw_fd(), rows, columns).at(step)?;
        }
        Ok(Terminal { master, slave })
    }

    /// Makes the terminal the process's controlling one and its three standard streams.
    pub fn connect(&self, uid: u32) -> Result<(), StepError> {
        let step = || "connect the terminal";
        if uid != 0 {
            fchown(&self.slave, Some(Uid::from_raw(uid)), None).at(step)?;
        }
        for number in 0..3 {
            put(&self.slave, number).at(step)?;
        }
        // SAFETY: TIOCSCTTY takes an integer.
        if unsafe { libc::ioctl(0, libc::TIOCSCTTY, 0) } < 0 {
            return Err(io::Error::last_os_error()).at(step);
        }
        Ok(())
    }
}

/// Starts a session, as a program of its own standing has.
pub fn new_session() -> Result<(), StepError> {
    setsid().at(|| "start a session").map(|_| ())
}

/// Enters the working directory and makes sure that it is one inside the container (CVE-2024-21626).
pub fn enter_directory(path: &Path) -> Result<(), StepError> {
    let step = || format!("enter the working directory {}", path.display());
    chdir(path).at(step)?;
    let entered = nix::unistd::getcwd().at(step)?;
    if !entered.is_absolute() {
        return Err(StepError::because(
            step(),
            "it leads out of the container's root",
        ));
    }
    Ok(())
}

/// A program found, ready to be executed.
#[derive(Debug)]
pub struct Program {
    path: CString,
    env: Vec<CString>,
}

impl Program {
    /// Finds the command as the process's user, relative to the working directory or in PATH. The error texts are
    /// those that users of other runtimes know.
    pub fn find(process: &ProcessPlan) -> Result<Program, StepError> {
        let as_user = process.uid != 0;
        if as_user {
            setfsgid(Gid::from_raw(process.gid));
            setfsuid(Uid::from_raw(process.uid));
        }
        let found = find(process);
        if as_user {
            setfsuid(Uid::from_raw(0));
            setfsgid(Gid::from_raw(0));
        }
        let path = CString::new(found?.into_os_string().into_vec())
            .map_err(|_| StepError("exec: the path holds a NUL byte".into()))?;
        let mut env = process.env.clone();
        if process.variable("HOME").is_none() {
            let mut home = b"HOME=".to_vec();
            home.extend(home_of(process.uid).as_os_str().as_bytes());
            env.extend(CString::new(home));
        }
        Ok(Program { path, env })
    }

    /// Applies limits, becomes the user, and executes. Returns only the reason why not.
    pub fn execute(
        &self,
        process: &ProcessPlan,
        seccomp: Option<&Filter>,
        link: &ChildEnd,
    ) -> StepError {
        // Nothing of the agent's may be in reach of the program; the line itself closes by execve.
        keep_descriptors(&mut [link.raw()]);
        if let Err(error) =
            identity::apply_limits(process).and_then(|()| identity::assume(process, seccomp))
        {
            return error;
        }
        let error = match execve(&self.path, &process.args, &self.env) {
            Ok(never) => match never {},
            Err(error) => error,
        };
        let text = match error {
            Errno::ENOEXEC => "exec format error".to_owned(),
            error => reason(&error.into()),
        };
        StepError::because(format!("exec {}", self.path.to_string_lossy()), text)
    }
}

fn find(process: &ProcessPlan) -> Result<PathBuf, StepError> {
    let name = process.program();
    let quoted = format!("exec: {:?}", name.display().to_string());
    if name.as_os_str().as_bytes().contains(&b'/') {
        let path = process.cwd.join(name);
        return match executable(&path) {
            Ok(()) => Ok(path),
            Err(error) if matches!(error, Errno::ENOENT | Errno::ENOTDIR) => {
                Err(StepError::because(
                    quoted,
                    format!("stat {}: {}", name.display(), reason(&error.into())),
                ))
            }
            Err(error) => Err(StepError::because(quoted, reason(&error.into()))),
        };
    }
    let search = process.variable("PATH").unwrap_or(DEFAULT_PATH);
    for directory in search.split(|byte| *byte == b':') {
        let directory = if directory.is_empty() {
            Path::new(".")
        } else {
            Path::new(OsStr::from_bytes(directory))
        };
        let candidate = process.cwd.join(directory).join(name);
        if executable(&candidate).is_ok() {
            return Ok(candidate);
        }
    }
    Err(StepError::because(
        quoted,
        "executable file not found in $PATH",
    ))
}

fn executable(path: &Path) -> Result<(), Errno> {
    let status = fs::metadata(path)
        .map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(libc::EINVAL)))?;
    if status.is_dir() {
        return Err(Errno::EISDIR);
    }
    nix::unistd::faccessat(
        nix::fcntl::AT_FDCWD,
        path,
        AccessFlags::X_OK,
        nix::fcntl::AtFlags::AT_EACCESS,
    )
    .map_err(|_| Errno::EACCES)?;
    // Root passes the check for files that nobody may execute on some file systems; execve would refuse them.
    if status.mode() & 0o111 == 0 {
        return Err(Errno::EACCES);
    }
    Ok(())
}

/// The home directory of `uid` by the container's /etc/passwd, `/` when it says nothing.
fn home_of(uid: u32) -> PathBuf {
    let root = PathBuf::from("/");
    let Ok(file) = fs::File::open("/etc/passwd") else {
        return root;
    };
    if !file
        .metadata()
        .is_ok_and(|status| status.is_file() && status.len() <= PASSWD_BYTES)
    {
        return root;
    }
    let text = io::read_to_string(io::Read::take(file, PASSWD_BYTES)).unwrap_or_default();
    text.lines()
        .find_map(|line| {
            let fields: Vec<&str> = line.split(':').collect();
            match fields.as_slice() {
                [_, _, number, _, _, home, ..] if number.parse() == Ok(uid) => {
                    Some(PathBuf::from(home))
                }
                _ => None,
            }
        })
        .filter(|home| home.is_absolute())
        .unwrap_or(root)
}
