//! The option strings of an OCI mount, parsed into flags of mount(2), attributes of mount_setattr(2), propagation and
//! file system data. Pure; the options are those of the OCI runtime specification (config.md, "Mounts") and mount(8).

use std::path::PathBuf;

use nix::mount::MsFlags;
use vmpod_agent_protocol::mount_option;

/// Attributes of mount_setattr(2) (include/uapi/linux/mount.h).
pub mod attribute {
    /// Read-only.
    pub const READ_ONLY: u64 = 0x1;
    /// Set-user-id bits have no effect.
    pub const NO_SUID: u64 = 0x2;
    /// Device nodes cannot be opened.
    pub const NO_DEV: u64 = 0x4;
    /// Programs cannot be executed.
    pub const NO_EXEC: u64 = 0x8;
    /// Mask of the access-time setting.
    pub const ATIME: u64 = 0x70;
    /// Access times are not kept.
    pub const NO_ATIME: u64 = 0x10;
    /// Access times are always kept.
    pub const STRICT_ATIME: u64 = 0x20;
    /// Access times of directories are not kept.
    pub const NO_DIR_ATIME: u64 = 0x80;
    /// Symbolic links are not followed.
    pub const NO_SYM_FOLLOW: u64 = 0x20_0000;
}

/// mount(2) flag that nix does not name.
const MS_NOSYMFOLLOW: libc::c_ulong = 256;

/// Attributes to set and to clear.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AttributeChange {
    /// Bits to set.
    pub set: u64,
    /// Bits to clear first.
    pub clear: u64,
}

impl AttributeChange {
    /// Whether nothing changes.
    pub fn is_empty(self) -> bool {
        self == AttributeChange::default()
    }

    fn set(&mut self, bits: u64) {
        self.set |= bits;
        self.clear &= !bits;
        if bits & attribute::ATIME != 0 {
            self.clear |= attribute::ATIME;
        }
    }

    fn clear(&mut self, bits: u64) {
        self.clear |= bits;
        self.set &= !bits;
    }
}

/// What the options of one mount mean.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountOptions {
    /// Flags for a new file system, mount(2).
    pub flags: MsFlags,
    /// The same per-mount settings for a bind mount, mount_setattr(2).
    pub attributes: AttributeChange,
    /// Settings for a bind mount with all mounts below it (`rro`, `rnosuid` and so on).
    pub recursive: AttributeChange,
    /// `Some(true)`: rbind; `Some(false)`: bind; `None`: a new file system.
    pub bind: Option<bool>,
    /// Propagation changes in the order given.
    pub propagation: Vec<MsFlags>,
    /// `x-vmpod.subpath=`: for a bind mount, the path below the source that is meant, resolved with the source as root.
    pub sub_path: Option<PathBuf>,
    /// `x-vmpod.file`: the source of a bind mount is known to be a file.
    pub file: bool,
    /// Everything else, comma-separated, for the file system itself.
    pub data: String,
}

/// An option that cannot be honoured.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("mount option {0:?} is not supported")]
pub struct UnsupportedOption(pub String);

enum Effect {
    /// Per-mount setting: flag of mount(2) and attribute of mount_setattr(2).
    Set(MsFlags, u64),
    Clear(MsFlags, u64),
    /// Setting of the whole file system; meaningless for a bind mount.
    SetFileSystem(MsFlags),
    ClearFileSystem(MsFlags),
    SetRecursive(u64),
    ClearRecursive(u64),
    Bind(bool),
    Propagation(MsFlags),
    Nothing,
    Refused,
    Data,
}

fn effect(option: &str) -> Effect {
    use Effect::{
        Bind, Clear, ClearFileSystem, ClearRecursive, Data, Nothing, Propagation, Refused, Set,
        SetFileSystem, SetRecursive,
    };
    use attribute as a;
    let recursive = MsFlags::MS_REC;
    match option {
        "ro" => Set(MsFlags::MS_RDONLY, a::READ_ONLY),
        "rw" => Clear(MsFlags::MS_RDONLY, a::READ_ONLY),
        "nosuid" => Set(MsFlags::MS_NOSUID, a::NO_SUID),
        "suid" => Clear(MsFlags::MS_NOSUID, a::NO_SUID),
        "nodev" => Set(MsFlags::MS_NODEV, a::NO_DEV),
        "dev" => Clear(MsFlags::MS_NODEV, a::NO_DEV),
        "noexec" => Set(MsFlags::MS_NOEXEC, a::NO_EXEC),
        "exec" => Clear(MsFlags::MS_NOEXEC, a::NO_EXEC),
        "noatime" => Set(MsFlags::MS_NOATIME, a::NO_ATIME),
        "atime" => Clear(MsFlags::MS_NOATIME, a::ATIME),
        "nodiratime" => Set(MsFlags::MS_NODIRATIME, a::NO_DIR_ATIME),
        "diratime" => Clear(MsFlags::MS_NODIRATIME, a::NO_DIR_ATIME),
        "relatime" => Set(MsFlags::MS_RELATIME, 0),
        "norelatime" => Clear(MsFlags::MS_RELATIME, 0),
        "strictatime" => Set(MsFlags::MS_STRICTATIME, a::STRICT_ATIME),
        "nostrictatime" => Clear(MsFlags::MS_STRICTATIME, a::ATIME),
        "nosymfollow" => Set(MsFlags::from_bits_retain(MS_NOSYMFOLLOW), a::NO_SYM_FOLLOW),
        "symfollow" => Clear(MsFlags::from_bits_retain(MS_NOSYMFOLLOW), a::NO_SYM_FOLLOW),
        "sync" => SetFileSystem(MsFlags::MS_SYNCHRONOUS),
        "async" => ClearFileSystem(MsFlags::MS_SYNCHRONOUS),
        "dirsync" => SetFileSystem(MsFlags::MS_DIRSYNC),
        "lazytime" => SetFileSystem(MsFlags::MS_LAZYTIME),
        "nolazytime" => ClearFileSystem(MsFlags::MS_LAZYTIME),
        "mand" => SetFileSystem(MsFlags::MS_MANDLOCK),
        "nomand" => ClearFileSystem(MsFlags::MS_MANDLOCK),
        "silent" => SetFileSystem(MsFlags::MS_SILENT),
        "loud" => ClearFileSystem(MsFlags::MS_SILENT),
        "iversion" => SetFileSystem(MsFlags::MS_I_VERSION),
        "noiversion" => ClearFileSystem(MsFlags::MS_I_VERSION),
        "rro" => SetRecursive(a::READ_ONLY),
        "rrw" => ClearRecursive(a::READ_ONLY),
        "rnosuid" => SetRecursive(a::NO_SUID),
        "rsuid" => ClearRecursive(a::NO_SUID),
        "rnodev" => SetRecursive(a::NO_DEV),
        "rdev" => ClearRecursive(a::NO_DEV),
        "rnoexec" => SetRecursive(a::NO_EXEC),
        "rexec" => ClearRecursive(a::NO_EXEC),
        "rnodiratime" => SetRecursive(a::NO_DIR_ATIME),
        "rdiratime" => ClearRecursive(a::NO_DIR_ATIME),
        "rnoatime" => SetRecursive(a::NO_ATIME),
        "rstrictatime" => SetRecursive(a::STRICT_ATIME),
        "ratime" | "rrelatime" | "rnorelatime" | "rnostrictatime" => ClearRecursive(a::ATIME),
        "rnosymfollow" => SetRecursive(a::NO_SYM_FOLLOW),
        "rsymfollow" => ClearRecursive(a::NO_SYM_FOLLOW),
        "bind" => Bind(false),
        "rbind" => Bind(true),
        "private" => Propagation(MsFlags::MS_PRIVATE),
        "rprivate" => Propagation(MsFlags::MS_PRIVATE | recursive),
        "shared" => Propagation(MsFlags::MS_SHARED),
        "rshared" => Propagation(MsFlags::MS_SHARED | recursive),
        "slave" => Propagation(MsFlags::MS_SLAVE),
        "rslave" => Propagation(MsFlags::MS_SLAVE | recursive),
        "unbindable" => Propagation(MsFlags::MS_UNBINDABLE),
        "runbindable" => Propagation(MsFlags::MS_UNBINDABLE | recursive),
        // `copy` and `nocopy` are Docker's instructions to itself; `_netdev` and the like are fstab's.
        "defaults" | "" | "_netdev" | "auto" | "noauto" | "nofail" | "copy" | "nocopy" => Nothing,
        "remount" | "idmap" | "ridmap" | "tmpcopyup" => Refused,
        _ => Data,
    }
}

impl MountOptions {
    /// Parses options in order; later ones win.
    pub fn parse<S: AsRef<str>>(options: &[S]) -> Result<Self, UnsupportedOption> {
        let mut parsed = MountOptions {
            flags: MsFlags::empty(),
            attributes: AttributeChange::default(),
            recursive: AttributeChange::default(),
            bind: None,
            propagation: Vec::new(),
            sub_path: None,
            file: false,
            data: String::new(),
        };
        for option in options {
            let option = option.as_ref();
            if let Some(path) = option.strip_prefix(mount_option::SUB_PATH) {
                parsed.sub_path = Some(path.into());
                continue;
            }
            if option == mount_option::FILE {
                parsed.file = true;
                continue;
            }
            match effect(option) {
                Effect::Set(flag, bits) => {
                    parsed.flags |= flag;
                    parsed.attributes.set(bits);
                }
                Effect::Clear(flag, bits) => {
                    parsed.flags &= !flag;
                    parsed.attributes.clear(bits);
                }
                Effect::SetFileSystem(flag) => parsed.flags |= flag,
                Effect::ClearFileSystem(flag) => parsed.flags &= !flag,
                Effect::SetRecursive(bits) => parsed.recursive.set(bits),
                Effect::ClearRecursive(bits) => parsed.recursive.clear(bits),
                // A later plain `bind` does not take a `rbind` back.
                Effect::Bind(recursive) => {
                    parsed.bind = Some(recursive || parsed.bind == Some(true));
                }
                Effect::Propagation(flags) => parsed.propagation.push(flags),
                Effect::Nothing => {}
                Effect::Refused => return Err(UnsupportedOption(option.to_owned())),
                Effect::Data => {
                    if !parsed.data.is_empty() {
                        parsed.data.push(',');
                    }
                    parsed.data.push_str(option);
                }
            }
        }
        Ok(parsed)
    }
}

/// The flags of `linux.rootfsPropagation`; `None` for a word that does not name a propagation.
pub fn root_propagation(word: &str) -> Option<MsFlags> {
    match effect(word) {
        Effect::Propagation(flags) => Some(flags),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_of_kubernetes_volume_are_a_recursive_bind_with_propagation() {
        let parsed = MountOptions::parse(&["rbind", "rprivate", "ro"]).unwrap();
        assert_eq!(parsed.bind, Some(true));
        assert_eq!(parsed.propagation, [MsFlags::MS_PRIVATE | MsFlags::MS_REC]);
        assert_eq!(parsed.attributes.set, attribute::READ_ONLY);
        assert_eq!(parsed.data, "");
    }

    #[test]
    fn options_unknown_to_the_parser_are_file_system_data() {
        let parsed =
            MountOptions::parse(&["nosuid", "size=64k", "strictatime", "mode=755"]).unwrap();
        assert_eq!(parsed.flags, MsFlags::MS_NOSUID | MsFlags::MS_STRICTATIME);
        assert_eq!(parsed.data, "size=64k,mode=755");
    }

    #[test]
    fn options_that_contradict_follow_the_last() {
        let parsed =
            MountOptions::parse(&["ro", "noexec", "rw", "noatime", "strictatime"]).unwrap();
        assert!(!parsed.flags.contains(MsFlags::MS_RDONLY));
        assert_eq!(
            parsed.attributes.clear & attribute::READ_ONLY,
            attribute::READ_ONLY
        );
        assert_eq!(parsed.attributes.set & attribute::READ_ONLY, 0);
        assert_eq!(parsed.attributes.clear & attribute::ATIME, attribute::ATIME);
    }

    #[test]
    fn option_of_a_sub_path_is_a_path_and_no_data() {
        let parsed = MountOptions::parse(&["rbind", "x-vmpod.subpath=a/b"]).unwrap();
        assert_eq!(parsed.sub_path, Some("a/b".into()));
        assert_eq!(parsed.data, "");
    }

    #[test]
    fn option_of_a_file_is_no_data() {
        let parsed = MountOptions::parse(&["rbind", "x-vmpod.file"]).unwrap();
        assert!(parsed.file);
        assert_eq!(parsed.data, "");
    }

    #[test]
    fn option_that_cannot_be_honoured_is_named() {
        assert_eq!(
            MountOptions::parse(&["bind", "idmap"]),
            Err(UnsupportedOption("idmap".into()))
        );
    }
}
