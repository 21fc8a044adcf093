//! `vmpod.toml`: what an administrator decides about the machines of containerd's pods. Read anew for each pod.
//!
//! ```toml
//! [machine]
//! memory = "512Mi"            # of pods without a memory limit (a Kubernetes quantity)
//! cpus = 2                    # of pods without a CPU limit, 1 to 64
//! template = true             # machines go on from a saved one of their shape
//! kernel_parameters = ""      # appended to the guest kernel's command line
//!
//! [annotations]
//! allowed = []                # of "vmpod.io/memory", "vmpod.io/cpus", "vmpod.io/template"
//! ```
//!
//! Every field may be left out. A pod's annotations change something only when they are listed; none of them names a file
//! or a program.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::manifest::quantity;
use crate::manifest::sizing::{DEFAULT_CPUS, DEFAULT_MEMORY_BYTES};

/// Where the file is looked for.
pub const PATH: &str = "/etc/vmpod/vmpod.toml";

/// Environment variable that names another one.
pub const PATH_VARIABLE: &str = "VMPOD_CONFIG";

/// Annotation: memory for the pod's containers, a Kubernetes quantity.
pub const MEMORY: &str = "vmpod.io/memory";
/// Annotation: virtual CPUs.
pub const CPUS: &str = "vmpod.io/cpus";
/// Annotation: whether the machine may go on from a template: `true` or `false`.
pub const TEMPLATE: &str = "vmpod.io/template";

/// The file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// It cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// It is not what it should be.
    #[error("{}", path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// Why, with the line.
        #[source]
        source: toml_edit::de::Error,
    },
    /// A value is out of range.
    #[error("{}: {field} is {value}; {expected}", path.display())]
    Value {
        /// The file.
        path: PathBuf,
        /// The field.
        field: &'static str,
        /// What was given.
        value: String,
        /// What would be right.
        expected: &'static str,
    },
    /// An annotation of a pod is out of range.
    #[error("annotation {name} of the pod is {value:?}; {expected}")]
    Annotation {
        /// Its name.
        name: &'static str,
        /// What was given.
        value: String,
        /// What would be right.
        expected: &'static str,
    },
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct File {
    machine: MachineTable,
    annotations: AnnotationsTable,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct MachineTable {
    memory: String,
    cpus: u64,
    template: bool,
    kernel_parameters: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct AnnotationsTable {
    allowed: Vec<String>,
}

impl Default for MachineTable {
    fn default() -> Self {
        Self {
            memory: DEFAULT_MEMORY_BYTES.to_string(),
            cpus: DEFAULT_CPUS,
            template: true,
            kernel_parameters: String::new(),
        }
    }
}

/// What holds for one pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Bytes for the containers of a pod without a memory limit.
    pub memory_bytes: u64,
    /// CPUs of a pod without a CPU limit.
    pub cpus: u64,
    /// Memory that the pod's annotation asks for, whatever its limits are.
    pub own_memory_bytes: Option<u64>,
    /// CPUs that the pod's annotation asks for.
    pub own_cpus: Option<u64>,
    /// Whether the machine may go on from a template.
    pub template: bool,
    /// Appended to the guest kernel's command line.
    pub kernel_parameters: String,
    allowed: Vec<String>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            memory_bytes: DEFAULT_MEMORY_BYTES,
            cpus: DEFAULT_CPUS,
            own_memory_bytes: None,
            own_cpus: None,
            template: true,
            kernel_parameters: String::new(),
            allowed: Vec::new(),
        }
    }
}

impl Settings {
    /// The path that holds for this process, unless containerd names another.
    #[must_use]
    pub fn default_path() -> PathBuf {
        std::env::var_os(PATH_VARIABLE).map_or_else(|| PATH.into(), PathBuf::from)
    }

    /// Reads the file at `path`. Only at the usual place there may be none.
    ///
    /// # Errors
    /// When it cannot be read or is not valid.
    pub fn read(path: &Path) -> Result<Self, SettingsError> {
        match fs::read_to_string(path) {
            Ok(text) => Self::parse(path, &text),
            Err(error) if error.kind() == io::ErrorKind::NotFound && path == Path::new(PATH) => {
                Ok(Self::default())
            }
            Err(source) => Err(SettingsError::Read {
                path: path.to_owned(),
                source,
            }),
        }
    }

    fn parse(path: &Path, text: &str) -> Result<Self, SettingsError> {
        let file: File =
            toml_edit::de::from_str(text).map_err(|source| SettingsError::Invalid {
                path: path.to_owned(),
                source,
            })?;
        let value = |field, value: &str, expected| SettingsError::Value {
            path: path.to_owned(),
            field,
            value: format!("{value:?}"),
            expected,
        };
        let machine = file.machine;
        let memory_bytes = memory(&machine.memory)
            .ok_or_else(|| value("machine.memory", &machine.memory, MEMORY_EXPECTED))?;
        if !(1..=64).contains(&machine.cpus) {
            return Err(value(
                "machine.cpus",
                &machine.cpus.to_string(),
                CPUS_EXPECTED,
            ));
        }
        let known = [MEMORY, CPUS, TEMPLATE];
        if let Some(unknown) = file
            .annotations
            .allowed
            .iter()
            .find(|name| !known.contains(&name.as_str()))
        {
            return Err(value(
                "annotations.allowed",
                unknown,
                "expected vmpod.io/memory, vmpod.io/cpus or vmpod.io/template",
            ));
        }
        Ok(Self {
            memory_bytes,
            cpus: machine.cpus,
            template: machine.template,
            kernel_parameters: machine.kernel_parameters,
            allowed: file.annotations.allowed,
            ..Self::default()
        })
    }

    /// Takes a pod's annotations in, those that are allowed.
    ///
    /// # Errors
    /// An allowed one has no value that it could have.
    pub fn heed<'a>(
        mut self,
        annotation: impl Fn(&str) -> Option<&'a str>,
    ) -> Result<Self, SettingsError> {
        let told = |name: &str| {
            let allowed = self.allowed.iter().any(|allowed| allowed == name);
            annotation(name).filter(|_| allowed)
        };
        let refuse = |name, value: &str, expected| SettingsError::Annotation {
            name,
            value: value.to_owned(),
            expected,
        };
        let (memory_told, cpus_told, template_told) = (told(MEMORY), told(CPUS), told(TEMPLATE));
        if let Some(text) = memory_told {
            let bytes = memory(text).ok_or_else(|| refuse(MEMORY, text, MEMORY_EXPECTED))?;
            self.own_memory_bytes = Some(bytes);
        }
        if let Some(text) = cpus_told {
            let cpus = text.parse().ok().filter(|cpus| (1..=64).contains(cpus));
            self.own_cpus = Some(cpus.ok_or_else(|| refuse(CPUS, text, CPUS_EXPECTED))?);
        }
        if let Some(text) = template_told {
            self.template = text
                .parse()
                .map_err(|_| refuse(TEMPLATE, text, "expected true or false"))?;
        }
        Ok(self)
    }
}

const MEMORY_EXPECTED: &str = "expected a Kubernetes quantity of 16Mi to 1Ti, such as \"512Mi\"";
const CPUS_EXPECTED: &str = "expected a number from 1 to 64";

fn memory(text: &str) -> Option<u64> {
    quantity::units(text)
        .ok()
        .filter(|bytes| (16 << 20..=1 << 40).contains(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Result<Settings, String> {
        Settings::parse(Path::new("/f"), text).map_err(|error| crate::pod::journal::chain(&error))
    }

    #[test]
    fn settings_that_are_left_out_are_the_defaults() {
        assert_eq!(parsed("").unwrap(), Settings::default());
        let made = parsed("[machine]\nmemory = '1Gi'\ncpus = 4\ntemplate = false").unwrap();
        assert_eq!(
            (made.memory_bytes, made.cpus, made.template),
            (1 << 30, 4, false)
        );
    }

    #[test]
    fn settings_that_are_wrong_are_named_with_their_place() {
        for (text, words) in [
            ("[machine]\nmemmory = '1Gi'", "memmory"),
            ("[machine]\nmemory = 'much'", "machine.memory"),
            ("[machine]\ncpus = 0", "machine.cpus"),
            ("[machine]\ncpus = 'two'", "line 2"),
            ("[annotations]\nallowed = ['vmpod.io/vmm']", "vmpod.io/vmm"),
            ("x", "line 1"),
        ] {
            let error = parsed(text).unwrap_err();
            assert!(error.contains(words), "{text}: {error}");
        }
    }

    #[test]
    fn annotations_change_what_is_allowed_and_nothing_else() {
        let all = parsed("[annotations]\nallowed = ['vmpod.io/memory', 'vmpod.io/cpus']").unwrap();
        let pod = |name: &str| match name {
            MEMORY => Some("1Gi"),
            CPUS => Some("3"),
            TEMPLATE => Some("false"),
            _ => None,
        };
        let heeded = all.clone().heed(pod).unwrap();
        assert_eq!(heeded.own_memory_bytes, Some(1 << 30));
        assert_eq!((heeded.own_cpus, heeded.template), (Some(3), true));
        assert_eq!(Settings::default().heed(pod).unwrap(), Settings::default());
        let error = all.heed(|_| Some("0")).unwrap_err().to_string();
        assert!(error.contains("vmpod.io/memory"), "{error}");
    }

    #[test]
    fn settings_file_that_is_missing_is_fine_at_its_usual_place_alone() {
        assert!(Settings::read(Path::new("/no/such/vmpod.toml")).is_err());
    }
}
