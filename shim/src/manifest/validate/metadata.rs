//! Checks of a Pod's labels and annotations.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::manifest::names;
use crate::manifest::problem::Collector;

/// Bytes of all keys and values of a Pod's annotations.
const ANNOTATION_BYTES: usize = 256 * 1024;

pub(in crate::manifest) fn metadata(metadata: &ObjectMeta, collector: &mut Collector<'_>) {
    labels(&metadata.labels, "metadata.labels", collector);
    let mut bytes = 0_usize;
    for (key, value) in metadata.annotations.iter().flatten() {
        // The API server folds case here, so that prefixes in upper case pass.
        if let Err(why) = names::qualified(&key.to_ascii_lowercase()) {
            collector.invalid("metadata.annotations", key, why);
        }
        bytes = bytes.saturating_add(key.len()).saturating_add(value.len());
    }
    if bytes > ANNOTATION_BYTES {
        collector.add(
            "metadata.annotations",
            format!("Too long: may not be more than {ANNOTATION_BYTES} bytes"),
        );
    }
}

/// Checks what are labels, or ask for labels.
pub(super) fn labels(
    labels: &Option<BTreeMap<String, String>>,
    path: &str,
    collector: &mut Collector<'_>,
) {
    for (key, value) in labels.iter().flatten() {
        if let Err(why) = names::qualified(key) {
            collector.invalid(path, key, why);
        }
        if let Err(why) = names::label_value(value) {
            collector.invalid(path, value, why);
        }
    }
}
