//! Documents to Kubernetes objects: kinds, types, and fields that the Kubernetes API does not have.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::problem::{Collector, Problem, Problems};
use super::source::{Document, SourceError, documents, join};

/// Fields of a wrong type that are said of one document.
const WRONG_TYPES: usize = 100;

/// The objects of one or more files.
#[derive(Debug, Default)]
pub struct Objects {
    /// Pods in file order, each with its document for line numbers.
    pub pods: Vec<(Pod, Document)>,
    /// ConfigMaps by name.
    pub config_maps: BTreeMap<String, ConfigMap>,
    /// Secrets by name.
    pub secrets: BTreeMap<String, Secret>,
}

/// Reads the objects of a YAML text. `file` is the name for messages.
///
/// # Errors
/// Everything that is wrong, at once: no YAML, unknown kinds, unknown fields, wrong types, no name, two with one name.
pub fn objects(text: &str, file: &str) -> Result<Objects, Problems> {
    let (objects, problems) = partly(text);
    if problems.is_empty() {
        return Ok(objects);
    }
    Err(Problems {
        file: file.to_owned(),
        problems,
    })
}

/// Reads what can be read of a YAML text, and says what cannot: the rest may be checked further, so that everything that is
/// wrong is said at once.
#[must_use]
pub fn partly(text: &str) -> (Objects, Vec<Problem>) {
    let mut objects = Objects::default();
    let documents = match documents(text) {
        Ok(documents) => documents,
        Err(error) => return (objects, vec![source_problem(&error)]),
    };
    let mut problems = Vec::new();
    for document in documents {
        let mut collector = Collector::new(&document);
        let object = object(&document, &mut collector);
        match object {
            Some(Object::Pod(pod)) => objects.pods.push((*pod, document.clone())),
            Some(Object::ConfigMap(map)) => {
                insert_named(
                    &mut objects.config_maps,
                    map.metadata.name.clone(),
                    map,
                    &mut collector,
                );
            }
            Some(Object::Secret(secret)) => {
                insert_named(
                    &mut objects.secrets,
                    secret.metadata.name.clone(),
                    secret,
                    &mut collector,
                );
            }
            None => {}
        }
        problems.append(&mut collector.problems);
    }
    problems.sort_by_key(|p| p.line);
    (objects, problems)
}

impl Objects {
    /// Adds the ConfigMaps and Secrets of another file; its objects win over ones of the same name.
    pub fn absorb(&mut self, other: Self) {
        self.pods.extend(other.pods);
        self.config_maps.extend(other.config_maps);
        self.secrets.extend(other.secrets);
    }
}

fn source_problem(error: &SourceError) -> Problem {
    let line = match error {
        SourceError::Yaml(error) => error.location().map_or(1, |l| l.line()),
        SourceError::TooLarge { .. } => 1,
    };
    Problem {
        line,
        path: String::new(),
        message: error.to_string(),
    }
}

fn insert_named<T>(
    into: &mut BTreeMap<String, T>,
    name: Option<String>,
    object: T,
    collector: &mut Collector<'_>,
) {
    match name.filter(|n| !n.is_empty()) {
        None => collector.required("metadata.name"),
        Some(name) if into.contains_key(&name) => collector.duplicate("metadata.name", &name),
        Some(name) => {
            into.insert(name, object);
        }
    }
}

enum Object {
    Pod(Box<Pod>),
    ConfigMap(ConfigMap),
    Secret(Secret),
}

fn object(document: &Document, collector: &mut Collector<'_>) -> Option<Object> {
    let Some(fields) = document.value.as_object() else {
        collector.add(
            "",
            "a manifest is a mapping with apiVersion, kind, metadata and spec",
        );
        return None;
    };
    let text = |field: &str| {
        fields
            .get(field)
            .and_then(Value::as_str)
            .unwrap_or_default()
    };
    match text("apiVersion") {
        "v1" => {}
        "" => collector.required("apiVersion"),
        other => collector.one_of("apiVersion", other, &["v1"]),
    }
    match text("kind") {
        "Pod" => typed(document, collector).map(|pod| Object::Pod(Box::new(pod))),
        "ConfigMap" => typed(document, collector).map(Object::ConfigMap),
        "Secret" => typed(document, collector).map(Object::Secret),
        "" => {
            collector.required("kind");
            None
        }
        other => {
            collector.one_of("kind", other, &["ConfigMap", "Pod", "Secret"]);
            None
        }
    }
}

fn typed<T: DeserializeOwned + Serialize>(
    document: &Document,
    collector: &mut Collector<'_>,
) -> Option<T> {
    let mut value = document.value.clone();
    write_quantities_as_text(&mut value, false);
    // The type itself takes exactly one apiVersion; ours has been checked and reported already.
    if let Some(fields) = value.as_object_mut() {
        fields.insert("apiVersion".into(), "v1".into());
    }
    let object: T = without_wrong_types(&mut value, collector)?;
    match serde_json::to_value(&object) {
        Ok(known) => unknown_fields(&value, &known, "", collector),
        Err(error) => collector.add("", error.to_string()),
    }
    Some(object)
}

/// Each field of a wrong type is said and left out, until the rest is of the type.
fn without_wrong_types<T: DeserializeOwned>(
    value: &mut Value,
    collector: &mut Collector<'_>,
) -> Option<T> {
    for _ in 0..WRONG_TYPES {
        let error = match serde_path_to_error::deserialize(&*value) {
            Ok(object) => return Some(object),
            Err(error) => error,
        };
        let place: serde_path_to_error::Path = error.path().clone();
        let path = place.to_string();
        collector.add(
            if path == "." { String::new() } else { path },
            sentence(&error.into_inner().to_string()),
        );
        if !leave_out(value, &place) {
            return None;
        }
    }
    None
}

/// Takes the innermost field at `place` out of `value`. Returns whether there was one.
fn leave_out(value: &mut Value, place: &serde_path_to_error::Path) -> bool {
    use serde_path_to_error::Segment;

    // An item of a list goes with its list: the places of the others stay as they are.
    let segments: Vec<&Segment> = place.iter().collect();
    let Some(last) = segments
        .iter()
        .rposition(|segment| matches!(segment, Segment::Map { .. }))
    else {
        return false;
    };
    let mut here = value;
    for (number, segment) in segments.into_iter().enumerate() {
        here = match segment {
            Segment::Map { key } if number == last => {
                return here
                    .as_object_mut()
                    .is_some_and(|fields| fields.remove(key).is_some());
            }
            Segment::Map { key } => match here.get_mut(key) {
                Some(field) => field,
                None => return false,
            },
            Segment::Seq { index } => match here.get_mut(*index) {
                Some(item) => item,
                None => return false,
            },
            _ => return false,
        };
    }
    false
}

/// The type library says which Rust type it wanted; a user knows lists, mappings and text.
fn sentence(error: &str) -> String {
    error
        .replace("invalid type: ", "wrong type: ")
        .replace("a sequence", "a list")
        .replace("a map", "a mapping")
        .replace("sequence, expected", "list, expected")
        .replace("map, expected", "mapping, expected")
        .replace("expected struct ", "expected a mapping: ")
        .replace("expected Quantity", "expected a quantity")
}

/// `cpu: 1` is a number in YAML and a quantity in the API, which is text.
fn write_quantities_as_text(value: &mut Value, quantities: bool) {
    match value {
        Value::Object(fields) => {
            for (key, field) in fields {
                let inside = matches!(key.as_str(), "limits" | "requests" | "overhead");
                let this = quantities || matches!(key.as_str(), "sizeLimit" | "divisor");
                if this && let Value::Number(number) = field {
                    *field = Value::String(number.to_string());
                } else {
                    write_quantities_as_text(field, inside);
                }
            }
        }
        Value::Array(items) => items
            .iter_mut()
            .for_each(|item| write_quantities_as_text(item, false)),
        _ => {}
    }
}

/// What the typed object does not give back when it is written again, the API does not know.
fn unknown_fields(given: &Value, known: &Value, path: &str, collector: &mut Collector<'_>) {
    match (given, known) {
        (Value::Object(given), Value::Object(known)) => {
            for (key, value) in given {
                let path = join(path, key);
                match known.get(key) {
                    Some(known) => unknown_fields(value, known, &path, collector),
                    None if value.is_null() => {}
                    None => collector.add(path, format!("unknown field {key:?}")),
                }
            }
        }
        (Value::Array(given), Value::Array(known)) => {
            for (i, (given, known)) in given.iter().zip(known).enumerate() {
                unknown_fields(given, known, &format!("{path}[{i}]"), collector);
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems(text: &str) -> String {
        objects(text, "pod.yaml").unwrap_err().to_string()
    }

    #[test]
    fn objects_of_each_kind_are_read() {
        let text = "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec:\n  containers:\n  - name: c\n    image: i\n    resources: {limits: {cpu: 1, memory: 64Mi}}\n---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: m}\ndata: {k: v}\n---\napiVersion: v1\nkind: Secret\nmetadata: {name: s}\nstringData: {k: v}\n";
        let objects = objects(text, "f").unwrap();
        let limits = objects.pods[0].0.spec.as_ref().unwrap().containers[0]
            .resources
            .as_ref()
            .unwrap()
            .limits
            .as_ref()
            .unwrap();
        assert_eq!(limits["cpu"].0, "1");
        assert!(objects.config_maps.contains_key("m") && objects.secrets.contains_key("s"));
    }

    #[test]
    fn objects_with_unknown_fields_name_all_of_them_with_lines() {
        let text = "apiVersion: v1\nkind: Pod\nmetadata:\n  name: p\nspec:\n  containers:\n  - name: c\n    image: i\n    comand: [x]\n  restartpolicy: Never\n";
        assert_eq!(
            problems(text),
            "pod.yaml:9: spec.containers[0].comand: unknown field \"comand\"\npod.yaml:10: spec.restartpolicy: unknown field \"restartpolicy\""
        );
    }

    #[test]
    fn objects_with_a_wrong_type_name_field_and_line() {
        let text = "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec:\n  containers:\n  - name: c\n    image: i\n    command: sleep 1\n";
        let said = problems(text);
        assert!(
            said.starts_with("pod.yaml:8: spec.containers[0].command: wrong type: string \"sleep 1\", expected a list"),
            "{said}"
        );
    }

    #[test]
    fn objects_with_several_wrong_types_name_each() {
        let text = "apiVersion: v1\nkind: Pod\nmetadata: {name: p, labels: {a: 1}}\nspec:\n  restartPolicy: [Never]\n  containers:\n  - name: c\n    image: i\n    args: [a, 2]\n    tty: maybe\n    oops: 1\n";
        let said = problems(text);
        let lines: Vec<&str> = said.lines().collect();
        let begins = [
            "pod.yaml:3: metadata.labels.a: wrong type",
            "pod.yaml:5: spec.restartPolicy: wrong type",
            "pod.yaml:9: spec.containers[0].args[1]: wrong type",
            "pod.yaml:10: spec.containers[0].tty: wrong type",
            "pod.yaml:11: spec.containers[0].oops: unknown field",
        ];
        assert_eq!(lines.len(), begins.len(), "{said}");
        for (line, begin) in lines.iter().zip(begins) {
            assert!(line.starts_with(begin), "{said}");
        }
    }

    #[test]
    fn objects_of_another_kind_are_refused() {
        let said = problems("apiVersion: apps/v1\nkind: Deployment\n");
        assert!(
            said.contains("kind: Unsupported value: \"Deployment\""),
            "{said}"
        );
        assert!(
            said.contains("apiVersion: Unsupported value: \"apps/v1\""),
            "{said}"
        );
    }

    #[test]
    fn objects_of_broken_yaml_name_the_line() {
        let said = problems("apiVersion: v1\nkind: Pod\n  metadata: {\n");
        assert!(
            said.starts_with("pod.yaml:3") || said.starts_with("pod.yaml:4"),
            "{said}"
        );
    }

    #[test]
    fn objects_without_a_name_or_with_one_twice_are_refused() {
        let map = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: m}\n---\n";
        assert!(problems(&format!("{map}{map}")).contains("metadata.name: Duplicate value: \"m\""));
        assert!(
            problems("apiVersion: v1\nkind: Secret\n").contains("metadata.name: Required value")
        );
    }
}
