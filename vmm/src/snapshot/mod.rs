//! A machine that stands still, in a directory: `state` and `memory`; and a machine that goes on from there.
//!
//! ```text
//! DIR/state     everything but memory: version, checksum, fields (`state_file`, `state`)
//! DIR/memory    the pages that are not zero (`memory_image`), mapped copy-on-write by those that go on
//! DIR/initramfs what it reads beside its memory, mapped and shared by those that go on
//! DIR/touched   which of them such a machine wrote to, once somebody has asked one and put it there
//! ```
//!
//! Both files are opened before the process is confined, by the control thread, which also reads and writes them. Who
//! takes a snapshot when, and for whom, is not known here; neither is what of it must not be shared by two machines.

pub mod memory_image;
pub mod state;
pub mod state_file;

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use vmpod_vmm_api::{TOUCHED_BYTES, TOUCHED_FILE, TouchedPages};

use self::memory_image::Original;
use self::state::{MAX_RUNS, MachineState};
use self::state_file::{MAX_BYTES, StateFault};
use crate::boot::kernel_image::Initramfs;
use crate::virtio::GuestMemory;

/// Name of the state file.
const STATE: &str = "state";
/// Name of the memory file.
const MEMORY: &str = "memory";
/// Name of the initramfs file.
const INITRAMFS: &str = "initramfs";

/// A snapshot could not be written.
#[derive(Debug, thiserror::Error)]
#[error("{what} of a snapshot")]
pub struct WriteError {
    /// What was tried.
    pub what: &'static str,
    /// Why it failed.
    #[source]
    pub source: io::Error,
}

/// A machine cannot go on from a directory.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// A file cannot be used.
    #[error("{what} {}", path.display())]
    File {
        /// What was tried.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// The state file is none.
    #[error("{} holds no machine to go on from", path.display())]
    State {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: StateFault,
    },
    /// The machine is another one.
    #[error("{} was saved from a machine with {saved}, and this one has {wanted}", path.display())]
    Shape {
        /// The file.
        path: PathBuf,
        /// Of the saved machine.
        saved: Shape,
        /// Of the configuration.
        wanted: Shape,
    },
}

/// What two machines must have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// vCPUs.
    pub vcpus: usize,
    /// Memory in MiB.
    pub memory_mib: u64,
    /// Devices.
    pub devices: usize,
}

impl std::fmt::Display for Shape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} vCPUs, {} MiB and {} devices",
            self.vcpus, self.memory_mib, self.devices
        )
    }
}

/// Where a snapshot of this machine goes, opened ahead.
#[derive(Debug)]
pub struct Target {
    state: File,
    memory: File,
    initramfs: File,
    page_map: File,
}

impl Target {
    /// Creates the files in `directory`.
    ///
    /// # Errors
    /// They exist or cannot be created, or the page map cannot be opened.
    pub fn create(directory: &Path) -> Result<Self, WriteError> {
        let create = |name, what| {
            OpenOptions::new()
                // Read as well: the memory is mapped once it is written.
                .read(true)
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(directory.join(name))
                .map_err(|source| WriteError { what, source })
        };
        Ok(Self {
            state: create(STATE, "create the state file")?,
            memory: create(MEMORY, "create the memory file")?,
            initramfs: create(INITRAMFS, "create the initramfs file")?,
            page_map: memory_image::page_map().map_err(|source| WriteError {
                what: "open /proc/self/pagemap, which tells the pages in use, for the memory",
                source,
            })?,
        })
    }

    /// Writes a machine that stands still. `state` gets its memory runs here; the state file comes last, so that a
    /// directory without one is no snapshot. Gives the memory as it was written, to be compared with what becomes of it.
    ///
    /// # Errors
    /// A file cannot be written; what is there is of no use then.
    pub fn write(
        mut self,
        mut state: MachineState,
        memory: &GuestMemory,
        initramfs: Option<&Initramfs>,
    ) -> Result<Original, WriteError> {
        let fail = |what| move |source| WriteError { what, source };
        let pages = memory_image::find_pages(memory, &self.page_map)
            .map_err(fail("find the pages in use for the memory"))?;
        state.runs = memory_image::blocks(memory, &pages, MAX_RUNS);
        memory_image::write(memory, &pages, &state.runs, &self.memory)
            .map_err(fail("write the memory"))?;
        if let Some(image) = initramfs {
            state.initramfs = image.size;
            image
                .copy_to(&self.initramfs)
                .map_err(fail("write the initramfs"))?;
        }
        self.state
            .write_all(&state.encode())
            .map_err(fail("write the state"))?;
        Original::map(state.memory_mib, &state.runs, &self.memory).map_err(fail("map the memory"))
    }
}

/// A snapshot that a machine goes on from.
#[derive(Debug)]
pub struct Source {
    path: PathBuf,
    state: MachineState,
    memory: File,
    initramfs: Option<File>,
    touched: Option<TouchedPages>,
}

impl Source {
    /// Opens the files in `directory` and checks the state.
    ///
    /// # Errors
    /// They are not there, are none, or belong to a machine of another size.
    pub fn open(directory: &Path, wanted: Shape) -> Result<Self, RestoreError> {
        let path = directory.join(STATE);
        let fail = |what, path: &Path| {
            let path = path.to_owned();
            move |source| RestoreError::File { what, path, source }
        };
        let file = File::open(&path).map_err(fail("open the saved state", &path))?;
        let mut bytes = Vec::with_capacity(64 << 10);
        // One more byte than allowed shows that there is more.
        file.take(MAX_BYTES as u64 + 1)
            .read_to_end(&mut bytes)
            .map_err(fail("read the saved state", &path))?;
        let state = if bytes.len() > MAX_BYTES {
            Err(StateFault::Damaged("it is longer than any state is"))
        } else {
            MachineState::decode(&bytes)
        };
        let state = state.map_err(|source| RestoreError::State {
            path: path.clone(),
            source,
        })?;
        let saved = Shape {
            vcpus: state.vcpus.len(),
            memory_mib: state.memory_mib,
            devices: state.devices.len(),
        };
        if saved != wanted {
            return Err(RestoreError::Shape {
                path,
                saved,
                wanted,
            });
        }
        let path = directory.join(INITRAMFS);
        let initramfs = (state.initramfs > 0)
            .then(|| File::open(&path).map_err(fail("open the saved initramfs", &path)))
            .transpose()?;
        let path = directory.join(MEMORY);
        let memory = File::open(&path).map_err(fail("open the saved memory", &path))?;
        Ok(Self {
            path,
            state,
            memory,
            initramfs,
            touched: touched(directory),
        })
    }

    /// Everything but memory.
    #[must_use]
    pub fn state(&self) -> &MachineState {
        &self.state
    }

    /// Maps the saved memory into fresh guest memory. Gives it a second time, to be compared with, as long as nobody knows
    /// which pages machines write to.
    ///
    /// # Errors
    /// The memory file is not what the state says.
    pub fn map_memory(&self, memory: &GuestMemory) -> Result<Option<Original>, RestoreError> {
        let runs = &self.state.runs;
        let mapped = memory_image::map(memory, runs, &self.memory).and_then(|()| {
            if let Some(touched) = &self.touched {
                memory_image::expect_writes(memory, touched, runs, &self.memory)?;
                return Ok(None);
            }
            Original::map(self.state.memory_mib, runs, &self.memory).map(Some)
        });
        mapped.map_err(|source| RestoreError::File {
            what: "map the saved memory",
            path: self.path.clone(),
            source,
        })
    }

    /// Maps the initramfs, for a machine that was booted with one.
    ///
    /// # Errors
    /// It is not what the state says.
    pub fn map_initramfs(&self) -> Result<Option<Initramfs>, RestoreError> {
        let Some(file) = &self.initramfs else {
            return Ok(None);
        };
        Initramfs::map(file, self.state.initramfs).map_err(|source| RestoreError::File {
            what: "map the saved initramfs",
            path: self.path.with_file_name(INITRAMFS),
            source,
        })
    }
}

/// What is known of the pages that machines write to; `None` when that is nothing, or cannot be read.
fn touched(directory: &Path) -> Option<TouchedPages> {
    let file = File::open(directory.join(TOUCHED_FILE)).ok()?;
    let mut bytes = Vec::with_capacity(8 << 10);
    file.take(TOUCHED_BYTES as u64 + 1)
        .read_to_end(&mut bytes)
        .ok()?;
    TouchedPages::from_bytes(&bytes)
}
