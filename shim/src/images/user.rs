//! The user a container runs as: `User` of an image or a pod, looked up in the image's own `/etc/passwd` and `/etc/group`.
//!
//! Follows what Docker and containerd do: numbers are IDs even if a user has that name, an unknown number is
//! accepted with group 0 and home `/`, an unknown name is an error, supplementary groups are those of `/etc/group` that
//! list the user unless a group is given. The files are found in the merged layers, links resolved inside them.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use thiserror::Error;

use super::layer::merged::MergedView;

/// Largest passwd or group file that is read.
const FILE_LIMIT: u64 = 8 << 20;
/// Most supplementary groups: NGROUPS_MAX of setgroups(2).
const GROUP_LIMIT: usize = 65_536;

/// Numeric identity of a container's process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// User ID.
    pub uid: u32,
    /// Primary group ID.
    pub gid: u32,
    /// Supplementary groups, without duplicates, in the file's order.
    pub additional_gids: Vec<u32>,
    /// Home directory, for `HOME`; `/` for users without an entry.
    pub home: String,
    /// Login name, where the user has an entry.
    pub name: Option<String>,
}

/// Why a user could not be found.
#[derive(Debug, Error)]
pub enum UserError {
    /// A file of the image.
    #[error("reading {path} of the image failed")]
    Read {
        /// The file.
        path: &'static str,
        #[source]
        source: io::Error,
    },
    /// The file is absurdly large.
    #[error("{path} of the image is larger than {FILE_LIMIT} bytes")]
    TooLarge {
        /// The file.
        path: &'static str,
    },
    /// A name without an entry.
    #[error(
        "the image has no user {name:?} in its /etc/passwd; give a numeric user ID or a user that the image has"
    )]
    NoUser {
        /// The name.
        name: String,
    },
    /// A group name without an entry.
    #[error(
        "the image has no group {name:?} in its /etc/group; give a numeric group ID or a group that the image has"
    )]
    NoGroup {
        /// The name.
        name: String,
    },
    /// A number that is no ID.
    #[error("{text} is not a user or group ID (0 to 2147483647)")]
    OutOfRange {
        /// The number.
        text: String,
    },
}

struct PasswdEntry {
    name: String,
    uid: u32,
    gid: u32,
    home: String,
}

struct GroupEntry {
    name: String,
    gid: u32,
    members: Vec<String>,
}

/// Looks up `user`, one of `name`, `uid`, `name:group`, `uid:gid` and their mixtures; empty means root.
/// `layers`: directories of unpacked layers, top-most first; a container's upper directory may come before them.
///
/// # Errors
/// [`UserError`].
pub fn resolve_user<P: AsRef<Path>>(layers: &[P], user: &str) -> Result<User, UserError> {
    let view = MergedView::open(layers).map_err(|source| UserError::Read {
        path: "/etc/passwd",
        source,
    })?;
    let (user, group) = user
        .split_once(':')
        .map_or((user, None), |(user, group)| (user, Some(group)));
    let user = if user.is_empty() { "0" } else { user };
    let passwd = read(&view, "/etc/passwd")?;
    let number = id(user)?;
    let entry = passwd_entries(&passwd)
        .find(|entry| number.map_or(entry.name == user, |uid| entry.uid == uid));
    let mut found = match (entry, number) {
        (Some(entry), _) => User {
            uid: entry.uid,
            gid: entry.gid,
            additional_gids: Vec::new(),
            home: entry.home,
            name: Some(entry.name),
        },
        (None, Some(uid)) => User {
            uid,
            gid: 0,
            additional_gids: Vec::new(),
            home: "/".into(),
            name: None,
        },
        (None, None) => {
            return Err(UserError::NoUser {
                name: shortened(user),
            });
        }
    };
    let groups = read(&view, "/etc/group")?;
    match group.filter(|group| !group.is_empty()) {
        Some(group) => {
            let number = id(group)?;
            let entry = number
                .is_none()
                .then(|| group_entries(&groups).find(|entry| entry.name == group))
                .flatten();
            found.gid =
                number
                    .or(entry.map(|entry| entry.gid))
                    .ok_or_else(|| UserError::NoGroup {
                        name: shortened(group),
                    })?;
        }
        None => {
            let Some(name) = &found.name else {
                return Ok(found);
            };
            for entry in group_entries(&groups).filter(|entry| entry.members.contains(name)) {
                if !found.additional_gids.contains(&entry.gid)
                    && found.additional_gids.len() < GROUP_LIMIT
                {
                    found.additional_gids.push(entry.gid);
                }
            }
        }
    }
    Ok(found)
}

/// The groups that list the login name of `uid` as a member; what Kubernetes merges with `supplementalGroups`.
///
/// # Errors
/// [`UserError`].
pub fn groups_of_uid(layers: &[PathBuf], uid: u32) -> Result<Vec<u32>, UserError> {
    resolve_user(layers, &uid.to_string()).map(|user| user.additional_gids)
}

/// A number as an ID; `None` for a name.
fn id(text: &str) -> Result<Option<u32>, UserError> {
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Ok(None);
    }
    // The upper half is not used by Docker, containerd and Kubernetes either.
    match text.parse::<u32>().ok().filter(|id| *id <= i32::MAX as u32) {
        Some(id) => Ok(Some(id)),
        None => Err(UserError::OutOfRange {
            text: shortened(text),
        }),
    }
}

fn shortened(text: &str) -> String {
    text.chars().take(100).collect()
}

fn read(view: &MergedView, path: &'static str) -> Result<String, UserError> {
    let failed = |source| UserError::Read { path, source };
    let Some(file) = view.open_file(Path::new(path)).map_err(failed)? else {
        return Ok(String::new());
    };
    let mut bytes = Vec::new();
    File::take(file, FILE_LIMIT + 1)
        .read_to_end(&mut bytes)
        .map_err(failed)?;
    if bytes.len() as u64 > FILE_LIMIT {
        return Err(UserError::TooLarge { path });
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Entries of passwd(5); lines that are not entries are passed over.
fn passwd_entries(text: &str) -> impl Iterator<Item = PasswdEntry> {
    text.lines().filter_map(|line| {
        let mut fields = line.trim().split(':');
        let name = fields
            .next()
            .filter(|name| !name.is_empty() && !name.starts_with('#'))?;
        let (uid, gid) = (fields.nth(1)?.parse().ok()?, fields.next()?.parse().ok()?);
        let home = fields.nth(1).filter(|home| !home.is_empty()).unwrap_or("/");
        Some(PasswdEntry {
            name: name.to_owned(),
            uid,
            gid,
            home: home.to_owned(),
        })
    })
}

/// Entries of group(5).
fn group_entries(text: &str) -> impl Iterator<Item = GroupEntry> {
    text.lines().filter_map(|line| {
        let mut fields = line.trim().split(':');
        let name = fields
            .next()
            .filter(|name| !name.is_empty() && !name.starts_with('#'))?;
        let gid = fields.nth(1)?.parse().ok()?;
        let members = fields
            .next()
            .unwrap_or("")
            .split(',')
            .map(str::to_owned)
            .collect();
        Some(GroupEntry {
            name: name.to_owned(),
            gid,
            members,
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\n# comment\nweb:x:33:33:www:/srv/www:/bin/sh\n7:x:1007:1007::/seven:\nbroken:x\n";
    const GROUP: &str = "root:x:0:\nweb:x:33:\nlog:x:4:web,other\nlog2:x:4:web\naudio:x:29:web\n";

    fn layers(files: &[(&str, &str)]) -> (tempfile::TempDir, Vec<PathBuf>) {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("etc")).unwrap();
        for (path, text) in files {
            std::fs::write(dir.path().join(path), text).unwrap();
        }
        let paths = vec![dir.path().to_path_buf()];
        (dir, paths)
    }

    fn user(uid: u32, gid: u32, additional_gids: &[u32], home: &str, name: Option<&str>) -> User {
        User {
            uid,
            gid,
            additional_gids: additional_gids.to_vec(),
            home: home.into(),
            name: name.map(Into::into),
        }
    }

    #[test]
    fn user_in_each_form_resolves_as_docker_does() {
        let (_dir, layers) = layers(&[("etc/passwd", PASSWD), ("etc/group", GROUP)]);
        let resolve = |text| resolve_user(&layers, text).unwrap();
        assert_eq!(resolve(""), user(0, 0, &[], "/root", Some("root")));
        assert_eq!(
            resolve("web"),
            user(33, 33, &[4, 29], "/srv/www", Some("web"))
        );
        assert_eq!(
            resolve("33"),
            user(33, 33, &[4, 29], "/srv/www", Some("web"))
        );
        assert_eq!(
            resolve("web:audio"),
            user(33, 29, &[], "/srv/www", Some("web"))
        );
        assert_eq!(
            resolve("web:5000"),
            user(33, 5000, &[], "/srv/www", Some("web"))
        );
        assert_eq!(resolve("1234"), user(1234, 0, &[], "/", None));
        assert_eq!(resolve("7"), user(7, 0, &[], "/", None));
    }

    #[test]
    fn user_that_the_image_does_not_have_is_an_error() {
        let (_dir, layers) = layers(&[("etc/passwd", PASSWD), ("etc/group", GROUP)]);
        assert!(matches!(
            resolve_user(&layers, "nobody"),
            Err(UserError::NoUser { .. })
        ));
        assert!(matches!(
            resolve_user(&layers, "web:nogroup"),
            Err(UserError::NoGroup { .. })
        ));
        assert!(matches!(
            resolve_user(&layers, "4294967295"),
            Err(UserError::OutOfRange { .. })
        ));
        let (_dir, empty) = self::layers(&[]);
        assert_eq!(
            resolve_user(&empty, "").unwrap(),
            user(0, 0, &[], "/", None)
        );
        assert!(resolve_user(&empty, "root").is_err());
    }

    #[test]
    fn passwd_behind_links_is_read_inside_the_merged_layers_only() {
        let dir = tempfile::tempdir().unwrap();
        let (top, base) = (dir.path().join("top"), dir.path().join("base"));
        std::fs::create_dir_all(top.join("etc")).unwrap();
        std::fs::create_dir_all(base.join("usr/share")).unwrap();
        std::fs::write(dir.path().join("passwd"), "web:x:1:1::/host:\n").unwrap();
        std::fs::write(base.join("usr/share/passwd"), PASSWD).unwrap();
        std::os::unix::fs::symlink("../../../../usr/share/passwd", top.join("etc/passwd")).unwrap();
        let layers = [top.clone(), base];
        assert_eq!(resolve_user(&layers, "web").unwrap().uid, 33);
        // A link to a file of the host leads nowhere, as it is resolved inside the image.
        std::fs::remove_file(top.join("etc/passwd")).unwrap();
        std::os::unix::fs::symlink(dir.path().join("passwd"), top.join("etc/passwd")).unwrap();
        assert!(matches!(
            resolve_user(&layers, "web"),
            Err(UserError::NoUser { .. })
        ));
        std::fs::remove_file(top.join("etc/passwd")).unwrap();
        std::os::unix::fs::symlink("passwd", top.join("etc/passwd")).unwrap();
        assert!(matches!(
            resolve_user(&layers, "web"),
            Err(UserError::Read { .. })
        ));
    }

    #[test]
    fn passwd_that_is_a_fifo_or_a_device_is_refused_without_blocking() {
        let (dir, layers) = layers(&[]);
        rustix::fs::mknodat(
            rustix::fs::CWD,
            dir.path().join("etc/passwd"),
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::RUSR,
            0,
        )
        .unwrap();
        assert!(matches!(
            resolve_user(&layers, "web"),
            Err(UserError::Read { .. })
        ));
    }
}
