//! YAML text to documents: plain JSON values, and the line of every field.
//!
//! Knows nothing of Kubernetes. Anchors and duplicate keys are the YAML library's business, which bounds both.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};
use serde_saphyr::Spanned;

/// Bytes of a manifest that are read.
pub const MANIFEST_BYTES: usize = 4 << 20;

/// Levels of nesting that a document may have. A Pod has about a dozen.
const DEPTH: usize = 64;

/// One YAML document.
#[derive(Clone, Debug, PartialEq)]
pub struct Document {
    /// The content.
    pub value: Value,
    /// Line of the document's first field, from 1.
    pub line: u64,
    lines: BTreeMap<String, u64>,
}

impl Document {
    /// Line of a field, from 1, or of the nearest field around it. Paths look like `spec.containers[0].image`.
    #[must_use]
    pub fn line_of(&self, path: &str) -> u64 {
        let mut path = path;
        loop {
            if let Some(line) = self.lines.get(path) {
                return *line;
            }
            match path.rfind(['.', '[']) {
                Some(at) => path = &path[..at],
                None => return self.line,
            }
        }
    }
}

/// The text is no YAML, or more than is read.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// Not YAML.
    #[error("{0}")]
    Yaml(Box<serde_saphyr::Error>),
    /// Too large.
    #[error("the manifest has {bytes} bytes; at most {MANIFEST_BYTES} are read")]
    TooLarge {
        /// Size.
        bytes: usize,
    },
}

/// Splits a YAML text into its documents. Empty documents are left out.
///
/// # Errors
/// No YAML, a duplicate key, or too large.
pub fn documents(text: &str) -> Result<Vec<Document>, SourceError> {
    if text.len() > MANIFEST_BYTES {
        return Err(SourceError::TooLarge { bytes: text.len() });
    }
    // `y`, `on` and the like are text, as in YAML 1.2: a variable may be called `Y`.
    // A number with a leading zero is octal, as in YAML 1.1 and in Kubernetes: `defaultMode: 0440`.
    let options = serde_saphyr::options! { strict_booleans: true, legacy_octal_numbers: true };
    let nodes: Vec<Option<Spanned<Node>>> = serde_saphyr::from_multiple_with_options(text, options)
        .map_err(|e| SourceError::Yaml(Box::new(e)))?;
    Ok(nodes
        .into_iter()
        .flatten()
        .filter(|node| !matches!(node.value, Node::Scalar(Value::Null)))
        .map(|node| {
            let mut lines = BTreeMap::new();
            let line = node.referenced.line();
            let value = flatten(node.value, "", &mut lines);
            Document { value, line, lines }
        })
        .collect())
}

fn flatten(node: Node, path: &str, lines: &mut BTreeMap<String, u64>) -> Value {
    match node {
        Node::Scalar(value) => value,
        Node::Sequence(items) => Value::Array(
            items
                .into_iter()
                .enumerate()
                .map(|(i, item)| {
                    let path = format!("{path}[{i}]");
                    lines.insert(path.clone(), item.referenced.line());
                    flatten(item.value, &path, lines)
                })
                .collect(),
        ),
        Node::Mapping(entries) => Value::Object(
            entries
                .into_iter()
                .map(|(key, item)| {
                    let path = join(path, &key.value);
                    lines.insert(path.clone(), key.referenced.line());
                    let value = flatten(item.value, &path, lines);
                    (key.value, value)
                })
                .collect::<Map<_, _>>(),
        ),
    }
}

/// A field's path below another's.
#[must_use]
pub fn join(path: &str, field: &str) -> String {
    if path.is_empty() {
        field.to_owned()
    } else {
        format!("{path}.{field}")
    }
}

enum Node {
    Scalar(Value),
    Sequence(Vec<Spanned<Node>>),
    Mapping(Vec<(Spanned<String>, Spanned<Node>)>),
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct NodeVisitor;

        impl<'de> Visitor<'de> for NodeVisitor {
            type Value = Node;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a YAML value")
            }

            fn visit_bool<E>(self, v: bool) -> Result<Node, E> {
                Ok(Node::Scalar(v.into()))
            }
            fn visit_i64<E>(self, v: i64) -> Result<Node, E> {
                Ok(Node::Scalar(v.into()))
            }
            fn visit_u64<E>(self, v: u64) -> Result<Node, E> {
                Ok(Node::Scalar(v.into()))
            }
            fn visit_f64<E>(self, v: f64) -> Result<Node, E> {
                Ok(Node::Scalar(
                    Number::from_f64(v).map_or(Value::Null, Value::Number),
                ))
            }
            fn visit_str<E>(self, v: &str) -> Result<Node, E> {
                Ok(Node::Scalar(v.into()))
            }
            fn visit_unit<E>(self) -> Result<Node, E> {
                Ok(Node::Scalar(Value::Null))
            }
            fn visit_none<E>(self) -> Result<Node, E> {
                Ok(Node::Scalar(Value::Null))
            }
            fn visit_some<D: Deserializer<'de>>(self, d: D) -> Result<Node, D::Error> {
                Node::deserialize(d)
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Node, A::Error> {
                let _depth = Depth::enter()?;
                let mut items = Vec::new();
                while let Some(item) = seq.next_element()? {
                    items.push(item);
                }
                Ok(Node::Sequence(items))
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Node, A::Error> {
                let _depth = Depth::enter()?;
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(Node::Mapping(entries))
            }
        }

        deserializer.deserialize_any(NodeVisitor)
    }
}

/// Bounds recursion. Per thread, because a `Deserialize` implementation has no place to carry it.
struct Depth;

thread_local! {
    static LEVEL: std::cell::Cell<usize> = const { std::cell::Cell::new(0) };
}

impl Depth {
    fn enter<E: serde::de::Error>() -> Result<Self, E> {
        let level = LEVEL.get();
        if level >= DEPTH {
            return Err(E::custom(format!("nested deeper than {DEPTH} levels")));
        }
        LEVEL.set(level + 1);
        Ok(Self)
    }
}

impl Drop for Depth {
    fn drop(&mut self) {
        LEVEL.set(LEVEL.get().saturating_sub(1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    const TWO: &str = "# first\napiVersion: v1\nkind: Pod\nspec:\n  containers:\n  - name: a\n    image: b\n    tty: true\n---\n\n---\nkind: Secret\ndata: {x: '1', y: 2}\n";

    #[test]
    fn documents_with_leading_zeros_have_octal_numbers() {
        let document = &documents("a: 0440\nb: 0o17\nc: 0\nd: 0.5\ne: '0440'\n").unwrap()[0];
        let value = serde_json::json!({"a": 0o440, "b": 0o17, "c": 0, "d": 0.5, "e": "0440"});
        assert_eq!(document.value, value);
    }

    #[test]
    fn documents_of_two_have_values_and_lines() {
        let docs = documents(TWO).unwrap();
        assert_eq!(docs.len(), 2);
        assert_eq!(
            docs[0].value,
            json!({"apiVersion": "v1", "kind": "Pod", "spec": {"containers": [{"name": "a", "image": "b", "tty": true}]}})
        );
        assert_eq!(docs[0].line_of("spec.containers[0].image"), 7);
        assert_eq!(docs[0].line_of("spec.containers[0].command[3]"), 6);
        assert_eq!(
            docs[1].value,
            json!({"kind": "Secret", "data": {"x": "1", "y": 2}})
        );
        assert_eq!(docs[1].line_of("data.y"), 13);
    }

    #[test]
    fn documents_with_a_duplicate_key_are_refused_with_the_line() {
        let error = documents("a: 1\nb: 2\na: 3\n").unwrap_err().to_string();
        assert!(error.contains('a') && error.contains('3'), "{error}");
    }

    #[test]
    fn documents_nested_too_deep_are_refused() {
        let text = "[".repeat(500) + &"]".repeat(500);
        assert!(documents(&text).is_err());
        assert_eq!(LEVEL.get(), 0);
    }

    #[test]
    fn documents_with_a_bomb_of_aliases_are_refused() {
        let mut text = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
        for i in 1..12 {
            let alias = format!("*a{}", i - 1);
            text += &format!("a{i}: &a{i} [{}]\n", vec![alias; 10].join(", "));
        }
        assert!(documents(&text).is_err());
    }

    proptest! {
        #[test]
        fn documents_of_any_text_do_not_panic(text in "[-a-z:{}\\[\\]&* \n\"'|>#!0-9]{0,200}") {
            let _ = documents(&text);
        }
    }
}
