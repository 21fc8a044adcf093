//! How long the guest may keep what it learnt, decided by where in the shared tree a file is. Pure.
//!
//! The tree is laid out by the pod host: `containers/<name>/rootfs` is a container's root file system and belongs to this
//! guest alone, everything else (volumes, configuration) may be changed by the host at any time.

/// Seconds that names and attributes of private files stay valid. The guest sees its own changes at once in any case.
pub(in crate::virtio::fs) const PRIVATE_SECONDS: u64 = 3600;

/// Seconds that directories which the pod host lays out stay valid, by name and attributes. It makes each before it tells
/// the guest of it, and never puts another one in its place; a start passes them dozens of times.
const LAID_OUT_SECONDS: u64 = 1;

/// What the guest's kernel may keep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::virtio::fs) enum CachePolicy {
    /// The host may change the file: every access asks, file contents are kept only while unchanged.
    Shared,
    /// Only this guest changes the file: names, attributes, contents and listings are kept.
    Private,
}

/// Position in the layout of the shared tree; an inode gets it from its parent when it is first looked up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(in crate::virtio::fs) enum Place {
    /// The root of the share.
    Root,
    /// `containers`.
    Containers,
    /// `containers/<name>`.
    Container,
    /// Another directory of the root: laid out as well, but its contents may change.
    Part,
    /// `containers/<name>/rootfs` and what is below on the same mount.
    Private,
    /// Everything else.
    Shared,
}

impl Place {
    /// The place of an entry of a directory at `self`. A mount below a private root file system is somebody's volume.
    pub(in crate::virtio::fs) fn child(self, name: &[u8], is_dir: bool, is_mount: bool) -> Self {
        match self {
            Self::Root if is_dir && name == b"containers" => Self::Containers,
            Self::Root if is_dir && !is_mount => Self::Part,
            Self::Containers if is_dir => Self::Container,
            Self::Container if is_dir && name == b"rootfs" => Self::Private,
            Self::Private if !is_mount => Self::Private,
            _ => Self::Shared,
        }
    }

    /// The policy that holds there.
    pub(in crate::virtio::fs) fn policy(self) -> CachePolicy {
        match self {
            Self::Private => CachePolicy::Private,
            _ => CachePolicy::Shared,
        }
    }

    /// Seconds that the attributes of a file here stay valid.
    pub(in crate::virtio::fs) fn attribute_seconds(self) -> u64 {
        match self {
            Self::Private => PRIVATE_SECONDS,
            Self::Root | Self::Containers | Self::Container | Self::Part => LAID_OUT_SECONDS,
            Self::Shared => 0,
        }
    }

    /// Seconds that a name found in a directory here stays valid, if nothing is mounted on it.
    pub(in crate::virtio::fs) fn name_seconds(self, is_dir: bool) -> u64 {
        match self {
            Self::Private => PRIVATE_SECONDS,
            Self::Root | Self::Containers if is_dir => LAID_OUT_SECONDS,
            _ => 0,
        }
    }

    /// Undoes `as u8`; what is unknown is shared.
    pub(in crate::virtio::fs) fn from_u8(value: u8) -> Self {
        [
            Self::Root,
            Self::Containers,
            Self::Container,
            Self::Part,
            Self::Private,
        ]
        .into_iter()
        .find(|place| *place as u8 == value)
        .unwrap_or(Self::Shared)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(path: &[&str]) -> Place {
        path.iter().fold(Place::Root, |place, name| {
            place.child(name.as_bytes(), true, false)
        })
    }

    #[test]
    fn place_below_a_container_root_is_private() {
        assert_eq!(place(&["containers", "a", "rootfs"]), Place::Private);
        assert_eq!(
            place(&["containers", "a", "rootfs", "usr", "rootfs"]).policy(),
            CachePolicy::Private
        );
    }

    #[test]
    fn place_elsewhere_is_shared() {
        for path in [
            &["containers"][..],
            &["containers", "a"],
            &["containers", "a", "volumes"],
            &["containers", "rootfs"],
            &["rootfs"],
            &["x", "containers", "a", "rootfs"],
            &["containers", "a", "b", "rootfs"],
        ] {
            assert_eq!(place(path).policy(), CachePolicy::Shared, "{path:?}");
        }
        assert_eq!(
            Place::Container.child(b"rootfs", false, false),
            Place::Shared
        );
    }

    #[test]
    fn place_of_a_mount_below_a_private_root_is_shared() {
        assert_eq!(
            Place::Container.child(b"rootfs", true, true),
            Place::Private
        );
        assert_eq!(Place::Private.child(b"data", true, true), Place::Shared);
    }

    #[test]
    fn laid_out_directories_are_kept_for_a_moment_and_their_files_are_not() {
        let etc = place(&["etc"]);
        assert_eq!(
            (Place::Root.name_seconds(true), etc.attribute_seconds()),
            (1, 1)
        );
        assert_eq!((etc.name_seconds(false), etc.name_seconds(true)), (0, 0));
        let hosts = etc.child(b"hosts", false, false);
        assert_eq!((hosts, hosts.attribute_seconds()), (Place::Shared, 0));
        let container = place(&["containers", "a"]);
        assert_eq!(Place::Containers.name_seconds(true), 1);
        assert_eq!(container.name_seconds(false), 0);
        assert_eq!(Place::Root.child(b"volumes", true, true), Place::Shared);
    }

    #[test]
    fn place_as_number_comes_back() {
        for place in [
            Place::Root,
            Place::Containers,
            Place::Container,
            Place::Part,
            Place::Private,
            Place::Shared,
        ] {
            assert_eq!(Place::from_u8(place as u8), place);
        }
    }
}
