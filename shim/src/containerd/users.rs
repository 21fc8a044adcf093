//! User namespaces of containerd's pods: which ids a pod has, and what becomes of them in its containers' configurations.
//! Pure.
//!
//! The namespace is the pod's and the agent makes it with the pod; containers are in it without saying so. What they say of
//! ids must be what their pod has.

use serde_json::{Map, Value};

use super::fault::Fault;
use super::pod_sandbox_config::{IdMapping, NODE, UserNamespace};
use crate::pod::id_ranges::IdRanges;

/// What the pod of the CRI has.
///
/// # Errors
/// Ids that are not one range from 0 up each, or a namespace of another kind.
pub fn of_pod(options: Option<&UserNamespace>) -> Result<Option<IdRanges>, Fault> {
    let Some(options) = options else {
        return Ok(None);
    };
    // NamespaceMode of the CRI.
    match options.mode {
        // POD: a namespace of its own.
        0 => {}
        NODE => return Ok(None),
        other => {
            return Err(Fault::invalid(format!(
                "a pod's user namespace is its own or the node's (NamespaceMode POD or NODE, not {other}); containers have none of \
                 theirs"
            )));
        }
    }
    let range = |mappings: &[IdMapping]| match mappings {
        [one] => Some((one.container_id, one.host_id, one.length)),
        _ => None,
    };
    let (uids, gids) = (range(&options.uids), range(&options.gids));
    ranges(uids, gids).map(Some)
}

/// What a container's `config.json` says; `None`: it has no user namespace.
///
/// # Errors
/// Ids that are not one range from 0 up each.
pub fn of_config(config: &Map<String, Value>) -> Result<Option<IdRanges>, Fault> {
    let Some(linux) = config.get("linux").and_then(Value::as_object) else {
        return Ok(None);
    };
    let listed = linux.get("namespaces").and_then(Value::as_array);
    let has_users = listed
        .into_iter()
        .flatten()
        .any(|namespace| namespace.get("type").and_then(Value::as_str) == Some("user"));
    if !has_users {
        return Ok(None);
    }
    ranges_of(linux).map(Some)
}

/// `uidMappings` and `gidMappings` of `object`.
fn ranges_of(object: &Map<String, Value>) -> Result<IdRanges, Fault> {
    let range = |name: &str| {
        let [one] = object.get(name)?.as_array()?.as_slice() else {
            return None;
        };
        let number = |field: &str| u32::try_from(one.get(field)?.as_u64()?).ok();
        // A field that is 0 may be left out.
        let or_zero = |field: &str| {
            if one.get(field).is_none() {
                Some(0)
            } else {
                number(field)
            }
        };
        Some((or_zero("containerID")?, or_zero("hostID")?, number("size")?))
    };
    ranges(range("uidMappings"), range("gidMappings"))
}

/// Id in the pod, id outside, count.
type Range = (u32, u32, u32);

fn ranges(uids: Option<Range>, gids: Option<Range>) -> Result<IdRanges, Fault> {
    let good = |range: Option<Range>| {
        range.filter(|&(inside, outside, count)| {
            inside == 0 && count > 0 && outside.checked_add(count).is_some()
        })
    };
    match (good(uids), good(gids)) {
        (Some((_, first_uid, uids)), Some((_, first_gid, gids))) => Ok(IdRanges {
            first_uid,
            uids,
            first_gid,
            gids,
        }),
        _ => Err(Fault::invalid(
            "the ids of a pod's user namespace must be one range from 0 up for users and one for groups",
        )),
    }
}

/// Takes what a container's configuration says of ids out of it: the pod, which has `ids`, was made so.
///
/// # Errors
/// It says other ids than the pod has.
pub fn leave_to_pod(config: &mut Map<String, Value>, ids: IdRanges) -> Result<(), Fault> {
    let differs = || {
        Fault::invalid(
            "the container's ids (linux.uidMappings, linux.gidMappings, or those of a mount) are not those of its pod's user namespace",
        )
    };
    if of_config(config)?.is_some_and(|own| own != ids) {
        return Err(differs());
    }
    if let Some(linux) = config.get_mut("linux").and_then(Value::as_object_mut) {
        for name in ["uidMappings", "gidMappings"] {
            linux.remove(name);
        }
        if let Some(list) = linux.get_mut("namespaces").and_then(Value::as_array_mut) {
            list.retain(|namespace| namespace.get("type").and_then(Value::as_str) != Some("user"));
        }
    }
    let mounts = config.get_mut("mounts").and_then(Value::as_array_mut);
    for mount in mounts.into_iter().flatten() {
        let Some(mount) = mount.as_object_mut().filter(|mount| is_mapped(mount)) else {
            continue;
        };
        if ranges_of(mount)? != ids {
            return Err(differs());
        }
        for name in ["uidMappings", "gidMappings"] {
            mount.remove(name);
        }
        if let Some(options) = mount.get_mut("options").and_then(Value::as_array_mut) {
            options.retain(|option| !matches!(option.as_str(), Some("idmap" | "ridmap")));
        }
    }
    Ok(())
}

/// Whether a mount of a configuration shall show the ids of the container's user namespace.
pub fn is_mapped(mount: &Map<String, Value>) -> bool {
    ["uidMappings", "gidMappings"].iter().any(|name| {
        let list = mount.get(*name).and_then(Value::as_array);
        list.is_some_and(|list| !list.is_empty())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const IDS: IdRanges = IdRanges {
        first_uid: 131_072,
        uids: 65_536,
        first_gid: 196_608,
        gids: 65_536,
    };

    fn config() -> Map<String, Value> {
        let uids = json!([{"containerID": 0, "hostID": 131_072, "size": 65_536}]);
        let gids = json!([{"containerID": 0, "hostID": 196_608, "size": 65_536}]);
        let config = json!({
            "linux": {
                "namespaces": [{"type": "mount"}, {"type": "user", "path": "/proc/1/ns/user"}],
                "uidMappings": uids, "gidMappings": gids,
            },
            "mounts": [
                {"destination": "/a", "source": "/a", "options": ["rbind", "ridmap"], "uidMappings": uids, "gidMappings": gids},
                {"destination": "/b", "source": "/b", "options": ["rbind"]},
            ],
        });
        config.as_object().unwrap().clone()
    }

    #[test]
    fn ids_of_a_container_are_left_to_its_pod() {
        let mut config = config();
        assert_eq!(of_config(&config).unwrap(), Some(IDS));
        leave_to_pod(&mut config, IDS).unwrap();
        assert_eq!(
            Value::from(config),
            json!({
                "linux": {"namespaces": [{"type": "mount"}]},
                "mounts": [
                    {"destination": "/a", "source": "/a", "options": ["rbind"]},
                    {"destination": "/b", "source": "/b", "options": ["rbind"]},
                ],
            })
        );
    }

    #[test]
    fn ids_that_are_not_the_pods_are_refused() {
        let other = IdRanges {
            first_uid: 1,
            ..IDS
        };
        assert!(leave_to_pod(&mut config(), other).is_err());
        let mut of_mount = config();
        of_mount["mounts"][0]["uidMappings"][0]["size"] = 7.into();
        assert!(leave_to_pod(&mut of_mount, IDS).is_err());
        for (field, value) in [
            ("containerID", json!(1)),
            ("size", json!(0)),
            ("hostID", json!(u32::MAX)),
            ("hostID", json!(-1)),
        ] {
            let mut bad = config();
            bad["linux"]["gidMappings"][0][field] = value;
            assert!(of_config(&bad).is_err(), "{field}");
        }
    }

    #[test]
    fn pod_of_the_cri_has_ids_when_its_mode_says_so() {
        let mapping = |host_id, length| {
            vec![IdMapping {
                host_id,
                container_id: 0,
                length,
            }]
        };
        let mut options = UserNamespace {
            mode: 0,
            uids: mapping(131_072, 65_536),
            gids: mapping(196_608, 65_536),
        };
        assert_eq!(of_pod(Some(&options)).unwrap(), Some(IDS));
        options.gids.clear();
        assert!(of_pod(Some(&options)).is_err());
        for mode in [1, 3, 4, -1] {
            options.mode = mode;
            assert!(of_pod(Some(&options)).is_err(), "{mode}");
        }
        options.mode = super::super::pod_sandbox_config::NODE;
        assert_eq!(of_pod(Some(&options)).unwrap(), None);
        assert_eq!(of_pod(None).unwrap(), None);
    }
}
