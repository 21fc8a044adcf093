//! Environment variables of a container: `env`, `envFrom`, `valueFrom`, and the expansion of `$(VAR)`.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{ConfigMap, Container, EnvVar, Pod, Secret};

use super::documents::Objects;
use super::names;
use super::plan::{EnvPlan, EnvValue, Limits, MachineShare, Resources};
use super::problem::Collector;
use super::quantity;

/// What `valueFrom` may refer to.
#[derive(Debug)]
pub(super) struct Sources<'a> {
    pub(super) pod: &'a Pod,
    pub(super) objects: &'a Objects,
    /// `spec.nodeName`: the host's name.
    pub(super) node_name: &'a str,
    pub(super) uid: &'a str,
    pub(super) namespace: &'a str,
}

/// What a name that is none is told.
pub(super) const VARIABLE_NAME: &str = "must be printable ASCII characters other than '='";

/// The environment of one container, in the order in which it takes effect.
pub(super) fn environment(
    container: &Container,
    path: &str,
    amounts: (Resources, Limits),
    sources: &Sources<'_>,
    collector: &mut Collector<'_>,
) -> Vec<EnvPlan> {
    let mut env = Vec::new();
    for (i, from) in container.env_from.iter().flatten().enumerate() {
        let path = format!("{path}.envFrom[{i}]");
        let prefix = from.prefix.as_deref().unwrap_or_default();
        if !prefix.is_empty() && !names::environment_variable(prefix) {
            collector.invalid(format!("{path}.prefix"), prefix, VARIABLE_NAME);
        }
        if from.config_map_ref.is_some() && from.secret_ref.is_some() {
            collector.invalid(
                &*path,
                "",
                "may not have more than one field specified at a time",
            );
        }
        let pairs = if let Some(r) = &from.config_map_ref {
            match sources.objects.config_maps.get(&r.name) {
                Some(map) => text_of_config_map(map),
                None => {
                    missing(
                        r.optional,
                        &format!("{path}.configMapRef.name"),
                        &r.name,
                        collector,
                    );
                    continue;
                }
            }
        } else if let Some(r) = &from.secret_ref {
            match sources.objects.secrets.get(&r.name) {
                Some(secret) => text_of_secret(secret),
                None => {
                    missing(
                        r.optional,
                        &format!("{path}.secretRef.name"),
                        &r.name,
                        collector,
                    );
                    continue;
                }
            }
        } else {
            collector.add(
                path,
                "Required value: must specify one of: `configMapRef` or `secretRef`",
            );
            continue;
        };
        for (key, value) in pairs {
            let name = format!("{prefix}{key}");
            if names::environment_variable(&name) {
                env.push(EnvPlan {
                    name,
                    value: EnvValue::Literal(value),
                });
            }
        }
    }
    for (i, variable) in container.env.iter().flatten().enumerate() {
        let path = format!("{path}.env[{i}]");
        if let Some(value) = variable_value(variable, &path, amounts, sources, collector) {
            env.push(EnvPlan {
                name: variable.name.clone(),
                value,
            });
        }
    }
    env
}

fn variable_value(
    variable: &EnvVar,
    path: &str,
    amounts: (Resources, Limits),
    sources: &Sources<'_>,
    collector: &mut Collector<'_>,
) -> Option<EnvValue> {
    let Some(from) = &variable.value_from else {
        return Some(EnvValue::Template(
            variable.value.clone().unwrap_or_default(),
        ));
    };
    let given = [
        from.field_ref.is_some(),
        from.resource_field_ref.is_some(),
        from.config_map_key_ref.is_some(),
        from.secret_key_ref.is_some(),
        from.file_key_ref.is_some(),
    ];
    if given.iter().filter(|there| **there).count() > 1 {
        collector.invalid(
            format!("{path}.valueFrom"),
            "",
            "may not have more than one field specified at a time",
        );
    }
    if let Some(r) = &from.field_ref {
        let value = field(&r.field_path, sources);
        if value.is_none() {
            collector.invalid(
                format!("{path}.valueFrom.fieldRef.fieldPath"),
                &r.field_path,
                "is no field that environment variables can take: metadata.name, metadata.namespace, metadata.uid, metadata.labels['KEY'], metadata.annotations['KEY'], spec.nodeName, spec.serviceAccountName, status.hostIP, status.hostIPs, status.podIP, status.podIPs",
            );
        }
        return value;
    }
    if let Some(r) = &from.resource_field_ref {
        let path = format!("{path}.valueFrom.resourceFieldRef");
        let divisor = r.divisor.as_ref().map_or("0", |d| d.0.as_str());
        return match resource(&r.resource, divisor, amounts) {
            Ok(ResourceAmount::Known(value)) => Some(EnvValue::Literal(value.to_string())),
            Ok(ResourceAmount::OfMachine(share)) => Some(EnvValue::Machine(share)),
            Err(why) => {
                collector.invalid(format!("{path}.resource"), &r.resource, why);
                None
            }
        };
    }
    let (pairs, name, key, optional, kind) = if let Some(r) = &from.config_map_key_ref {
        let pairs = sources
            .objects
            .config_maps
            .get(&r.name)
            .map(text_of_config_map);
        (pairs, &r.name, &r.key, r.optional, "configMapKeyRef")
    } else if let Some(r) = &from.secret_key_ref {
        let pairs = sources.objects.secrets.get(&r.name).map(text_of_secret);
        (pairs, &r.name, &r.key, r.optional, "secretKeyRef")
    } else {
        collector.add(
            format!("{path}.valueFrom"),
            "Required value: must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef` or `secretKeyRef`",
        );
        return None;
    };
    let path = format!("{path}.valueFrom.{kind}");
    if key.is_empty() {
        collector.required(format!("{path}.key"));
        return None;
    }
    if let Err(why) = names::config_key(key) {
        collector.invalid(format!("{path}.key"), key, why);
        return None;
    }
    match pairs {
        None => missing(optional, &format!("{path}.name"), name, collector),
        Some(mut pairs) => match pairs.remove(key) {
            Some(value) => return Some(EnvValue::Literal(value)),
            None => missing(optional, &format!("{path}.key"), key, collector),
        },
    }
    None
}

fn missing(optional: Option<bool>, path: &str, name: &str, collector: &mut Collector<'_>) {
    if name.is_empty() {
        collector.required(path);
    } else if optional != Some(true) {
        collector.not_found(path, name);
    }
}

fn text_of_config_map(map: &ConfigMap) -> BTreeMap<String, String> {
    map.data.clone().unwrap_or_default()
}

fn text_of_secret(secret: &Secret) -> BTreeMap<String, String> {
    let mut text: BTreeMap<_, _> = secret
        .data
        .iter()
        .flatten()
        .map(|(k, v)| (k.clone(), String::from_utf8_lossy(&v.0).into_owned()))
        .collect();
    text.extend(secret.string_data.clone().unwrap_or_default());
    text
}

fn field(path: &str, sources: &Sources<'_>) -> Option<EnvValue> {
    let text = match path {
        "metadata.labels" | "metadata.annotations" => return None,
        "spec.nodeName" => sources.node_name.to_owned(),
        "spec.serviceAccountName" => sources
            .pod
            .spec
            .as_ref()
            .and_then(|s| s.service_account_name.clone())
            .unwrap_or_else(|| "default".into()),
        "status.podIP" | "status.podIPs" => return Some(EnvValue::PodIp),
        "status.hostIP" | "status.hostIPs" => return Some(EnvValue::HostIp),
        _ => metadata_text(path, sources)?,
    };
    Some(EnvValue::Literal(text))
}

/// A field of the pod's metadata as text; `None`: there is no such field. All labels or annotations are one line each,
/// `key="value"`, by key.
pub(super) fn metadata_text(path: &str, sources: &Sources<'_>) -> Option<String> {
    let metadata = &sources.pod.metadata;
    let keyed = |name: &str| {
        path.strip_prefix(name)?
            .strip_prefix("['")?
            .strip_suffix("']")
            .map(str::to_owned)
    };
    let lookup = |map: &Option<BTreeMap<String, String>>, key: &str| {
        map.iter()
            .find_map(|m| m.get(key))
            .cloned()
            .unwrap_or_default()
    };
    let all = |map: &Option<BTreeMap<String, String>>| {
        let lines: Vec<String> = map
            .iter()
            .flatten()
            .map(|(key, value)| format!("{key}={}", quoted(value)))
            .collect();
        lines.join("\n")
    };
    Some(match path {
        "metadata.name" => metadata.name.clone().unwrap_or_default(),
        "metadata.namespace" => sources.namespace.to_owned(),
        "metadata.uid" => sources.uid.to_owned(),
        "metadata.labels" => all(&metadata.labels),
        "metadata.annotations" => all(&metadata.annotations),
        _ => {
            if let Some(key) = keyed("metadata.labels") {
                lookup(&metadata.labels, &key)
            } else {
                lookup(&metadata.annotations, &keyed("metadata.annotations")?)
            }
        }
    })
}

/// A text in the quotes of Go's `%q`, which the kubelet writes.
fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c.is_ascii_control() => out.push_str(&format!("\\x{:02x}", u32::from(c))),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// What a `resourceFieldRef` comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ResourceAmount {
    /// The container says it.
    Known(u64),
    /// The container has no limit: what the machine has, as Kubernetes takes what the node has.
    OfMachine(MachineShare),
}

/// The value of `resource` of a container with these amounts.
///
/// # Errors
/// In words that follow the resource's name.
pub(super) fn resource(
    name: &str,
    divisor: &str,
    (requests, limits): (Resources, Limits),
) -> Result<ResourceAmount, &'static str> {
    let bad_divisor = "has a divisor that is no quantity";
    let cpu = |millis: Option<u64>| -> Result<ResourceAmount, &'static str> {
        let divisor = quantity::thousandths(divisor).map_err(|_| bad_divisor)?;
        let divisor = if divisor == 0 { 1000 } else { divisor };
        Ok(match millis {
            Some(millis) => ResourceAmount::Known(millis.div_ceil(divisor)),
            None => ResourceAmount::OfMachine(MachineShare::CpuMillis { divisor }),
        })
    };
    let memory = |bytes: Option<u64>| -> Result<ResourceAmount, &'static str> {
        let divisor = quantity::units(divisor).map_err(|_| bad_divisor)?.max(1);
        Ok(match bytes {
            Some(bytes) => ResourceAmount::Known(bytes.div_ceil(divisor)),
            None => ResourceAmount::OfMachine(MachineShare::MemoryBytes { divisor }),
        })
    };
    match name {
        "requests.cpu" => cpu(Some(requests.cpu_millis)),
        "requests.memory" => memory(Some(requests.memory_bytes)),
        "limits.cpu" => cpu(limits.cpu_millis),
        "limits.memory" => memory(limits.memory_bytes),
        _ => Err("is none of limits.cpu, limits.memory, requests.cpu, requests.memory"),
    }
}

/// Expands `$(VAR)` with `lookup`; `$$` is a literal `$`, and what is not found stays as it stands (Kubernetes API,
/// Container.command).
pub fn expand(text: &str, lookup: impl Fn(&str) -> Option<String>) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            out.push('$');
            rest = after;
        } else if let Some((name, after)) = rest.strip_prefix('(').and_then(|r| r.split_once(')')) {
            match lookup(name) {
                Some(value) => out.push_str(&value),
                None => {
                    out.push_str("$(");
                    out.push_str(name);
                    out.push(')');
                }
            }
            rest = after;
        } else {
            out.push('$');
        }
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expand_follows_kubernetes_rules() {
        let lookup = |name: &str| (name == "A").then(|| "1".to_owned());
        for (text, want) in [
            ("x$(A)y", "x1y"),
            ("$$(A)", "$(A)"),
            ("$(B)", "$(B)"),
            ("$(A", "$(A"),
            ("$A $", "$A $"),
            ("$$$(A)", "$1"),
        ] {
            assert_eq!(expand(text, lookup), want, "{text}");
        }
    }

    #[test]
    fn resource_of_limits_divides_and_rounds_up() {
        let amounts = (
            Resources {
                cpu_millis: 250,
                memory_bytes: 0,
            },
            Limits {
                cpu_millis: Some(1500),
                memory_bytes: Some(100 << 20),
            },
        );
        let known = |value| Ok(ResourceAmount::Known(value));
        assert_eq!(resource("limits.cpu", "0", amounts), known(2));
        assert_eq!(resource("limits.cpu", "1m", amounts), known(1500));
        assert_eq!(resource("limits.memory", "1Mi", amounts), known(100));
        assert_eq!(resource("requests.cpu", "1m", amounts), known(250));
        assert!(resource("limits.gpu", "0", amounts).is_err());
        let unlimited = (Resources::default(), Limits::default());
        let Ok(ResourceAmount::OfMachine(share)) = resource("limits.memory", "1Mi", unlimited)
        else {
            panic!("no limit is the machine's");
        };
        assert_eq!(share.amount(2, 576), 576);
    }

    #[test]
    fn quoted_text_is_as_go_writes_it() {
        assert_eq!(quoted("a\"b\\c\nd\u{1}é"), r#""a\"b\\c\nd\x01é""#);
    }
}
