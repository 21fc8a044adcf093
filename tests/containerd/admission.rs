//! The policy by which a cluster refuses pods that ask for a namespace of the host: its expressions, evaluated.

use std::fs;

use cel::{Context, Program, Value};
use serde_json::json;

use crate::install::deploy;

/// What `expression` says of a pod with `spec`.
fn says(expression: &serde_json::Value, spec: &serde_json::Value) -> bool {
    let program = Program::compile(expression.as_str().unwrap()).unwrap();
    let mut context = Context::default();
    context
        .add_variable("object", json!({ "spec": spec }))
        .unwrap();
    match program.execute(&context).unwrap() {
        Value::Bool(said) => said,
        other => panic!("{expression} says {other:?}"),
    }
}

#[test]
fn policy_refuses_namespaces_of_the_host_to_pods_of_the_class_alone() {
    let text = fs::read_to_string(deploy().join("admission.yaml")).unwrap();
    let objects: Vec<serde_json::Value> = serde_saphyr::from_multiple(&text).unwrap();
    let (policy, binding) = (&objects[0], &objects[1]);
    assert_eq!(binding["spec"]["policyName"], policy["metadata"]["name"]);
    let condition = &policy["spec"]["matchConditions"][0]["expression"];
    assert!(says(condition, &json!({"runtimeClassName": "vmpod"})));
    assert!(!says(condition, &json!({"runtimeClassName": "runc"})));
    assert!(!says(condition, &json!({})));
    let validations = policy["spec"]["validations"].as_array().unwrap();
    let refused = |spec: &serde_json::Value| -> Vec<&str> {
        let failed = validations
            .iter()
            .filter(|validation| !says(&validation["expression"], spec));
        failed
            .map(|validation| validation["message"].as_str().unwrap())
            .collect()
    };
    assert!(refused(&json!({})).is_empty());
    for field in ["hostNetwork", "hostPID", "hostIPC"] {
        assert!(refused(&json!({ field: false })).is_empty());
        let messages = refused(&json!({ field: true }));
        assert_eq!(messages.len(), 1, "{messages:?}");
        assert!(messages[0].starts_with(&format!("spec.{field}: ")));
    }
}
