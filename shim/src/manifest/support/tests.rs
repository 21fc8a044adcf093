//! The table against the Kubernetes API it speaks of, and README's table against it.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use serde::Deserialize;
use serde::de::{self, Deserializer, Visitor};

use super::super::source::documents;
use super::*;

fn checked(text: &str) -> (Vec<String>, Vec<String>) {
    let documents = documents(text).unwrap();
    let mut collector = Collector::new(&documents[0]);
    let notes = check(&documents[0].value, &mut collector);
    let problems = collector
        .problems
        .iter()
        .map(|p| format!("{}:{}", p.line, p.path))
        .collect();
    (notes, problems)
}

#[test]
fn check_of_a_scheduler_field_notes_no_effect() {
    let (notes, problems) = checked("spec:\n  nodeSelector: {a: b}\n  hostNetwork: false\n");
    assert_eq!(
        notes,
        ["spec.nodeSelector has no effect here: only a scheduler reads it"]
    );
    assert!(problems.is_empty());
}

#[test]
fn check_of_refused_fields_names_each() {
    let (_, problems) = checked(
        "spec:\n  hostPID: true\n  initContainers:\n  - restartPolicyRules: []\n  volumes:\n  - name: x\n    rbd: {image: y}\n",
    );
    assert_eq!(
        problems,
        [
            "2:spec.hostPID",
            "4:spec.initContainers[0].restartPolicyRules",
            "7:spec.volumes[0].rbd"
        ]
    );
}

#[test]
fn fields_have_one_row_each() {
    for (i, (field, _)) in FIELDS.iter().enumerate() {
        assert!(!FIELDS[..i].iter().any(|(f, _)| f == field), "{field}");
    }
}

/// Asks a type of the Kubernetes API for the names of its fields.
struct FieldNames<'n>(&'n mut &'static [&'static str]);

impl<'de> Deserializer<'de> for FieldNames<'_> {
    type Error = de::value::Error;

    fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Self::Error> {
        Err(de::Error::custom("names only"))
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        _: V,
    ) -> Result<V::Value, Self::Error> {
        *self.0 = fields;
        Err(de::Error::custom("names only"))
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 u8 u16 u32 u64 f32 f64 char str string bytes byte_buf option unit
        unit_struct newtype_struct seq tuple tuple_struct map enum identifier ignored_any
    }
}

fn field_names<T: for<'de> Deserialize<'de>>() -> &'static [&'static str] {
    let mut names: &'static [&'static str] = &[];
    let _ = T::deserialize(FieldNames(&mut names));
    assert!(!names.is_empty());
    names
}

#[test]
fn fields_of_the_kubernetes_api_are_all_in_the_table() {
    use k8s_openapi::api::core::v1 as api;

    let objects: [(&str, &[&str]); 7] = [
        ("spec", field_names::<api::PodSpec>()),
        (
            "spec.securityContext",
            field_names::<api::PodSecurityContext>(),
        ),
        ("spec.containers[]", field_names::<api::Container>()),
        (
            "spec.containers[].securityContext",
            field_names::<api::SecurityContext>(),
        ),
        (
            "spec.containers[].volumeMounts[]",
            field_names::<api::VolumeMount>(),
        ),
        ("spec.volumes[]", field_names::<api::Volume>()),
        (
            "spec.volumes[].projected.sources[]",
            field_names::<api::VolumeProjection>(),
        ),
    ];
    let mut known = BTreeSet::new();
    for (object, names) in objects {
        for name in names {
            let path = format!("{object}.{name}");
            // The row itself, a row of an object that holds it, or rows for its parts.
            let has = FIELDS.iter().any(|(field, _)| {
                *field == path
                    || path.starts_with(&format!("{field}."))
                    || path.starts_with(&format!("{field}[]."))
                    || field.starts_with(&format!("{path}."))
                    || field.starts_with(&format!("{path}[]."))
            });
            assert!(
                has || name == &"initContainers",
                "{path}: the table says nothing about it"
            );
            known.insert(path);
        }
    }
    for (field, _) in FIELDS {
        let (object, _) = field.rsplit_once('.').unwrap_or_default();
        let checked = [
            "spec",
            "spec.securityContext",
            "spec.containers[]",
            "spec.volumes[]",
        ];
        if checked.contains(&object) {
            assert!(known.contains(*field), "{field}: the API has no such field");
        }
    }
}

/// README's table, as this table has it.
fn readme_table() -> String {
    let mut text = "| field | here | |\n| --- | --- | --- |\n".to_owned();
    for (field, support) in FIELDS
        .iter()
        .filter(|(field, _)| field.starts_with("spec."))
    {
        let (word, why) = match support {
            Works => ("works", ""),
            NoEffect(why) => ("no effect", *why),
            Refused(why) => ("refused", *why),
            RefusedIfTrue(why) => ("refused when true", *why),
        };
        let _ = writeln!(text, "| `{}` | {word} | {why} |", &field["spec.".len()..]);
    }
    text
}

#[test]
fn readme_has_a_row_for_every_field_of_the_table() {
    const BEGIN: &str = "<!-- fields of a Pod: written by `VMPOD_WRITE_README=1 cargo test -p vmpod-shim readme` -->\n";
    const END: &str = "<!-- end of the fields -->";
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../README.md");
    let readme = std::fs::read_to_string(path).unwrap();
    let begin = readme.find(BEGIN).expect("the table's beginning") + BEGIN.len();
    let end = readme.find(END).expect("the table's end");
    let table = readme_table();
    if std::env::var_os("VMPOD_WRITE_README").is_some() {
        let text = format!("{}{table}{}", &readme[..begin], &readme[end..]);
        std::fs::write(path, text).unwrap();
        return;
    }
    assert_eq!(
        &readme[begin..end],
        table,
        "README's table of fields is not that of support.rs: run the test with VMPOD_WRITE_README=1"
    );
}
