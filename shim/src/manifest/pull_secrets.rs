//! `spec.imagePullSecrets`: what registries are told, from Secrets beside the Pod.

use k8s_openapi::api::core::v1::{PodSpec, Secret};

use super::documents::Objects;
use super::problem::Collector;

/// The form of Docker's `config.json`.
const CONFIG_TYPE: &str = "kubernetes.io/dockerconfigjson";
const CONFIG_KEY: &str = ".dockerconfigjson";

/// The form of the older `.dockercfg`: what `auths` holds.
const OLD_TYPE: &str = "kubernetes.io/dockercfg";
const OLD_KEY: &str = ".dockercfg";

/// Names of the secrets and their texts, in the form of `config.json`. A secret that is not there is said to be and does not
/// matter, as under Kubernetes: the image may be public.
pub(super) fn pull_secrets(
    spec: &PodSpec,
    objects: &Objects,
    notes: &mut Vec<String>,
    collector: &mut Collector<'_>,
) -> Vec<(String, Vec<u8>)> {
    let mut found = Vec::new();
    for (i, wanted) in spec.image_pull_secrets.iter().flatten().enumerate() {
        let path = format!("spec.imagePullSecrets[{i}].name");
        if wanted.name.is_empty() {
            collector.required(path);
            continue;
        }
        let Some(secret) = objects.secrets.get(&wanted.name) else {
            notes.push(format!(
                "{path}: there is no Secret {:?}: images are pulled without it",
                wanted.name
            ));
            continue;
        };
        match text(secret) {
            Ok(text) => found.push((wanted.name.clone(), text)),
            Err(why) => collector.invalid(path, &wanted.name, why),
        }
    }
    found
}

/// The text of a secret, if it is JSON of its kind. Of what is wrong with it nothing is told that could be secret.
fn text(secret: &Secret) -> Result<Vec<u8>, &'static str> {
    let value = |key: &str| {
        let text = secret.string_data.as_ref().and_then(|data| data.get(key));
        let bytes = secret.data.as_ref().and_then(|data| data.get(key));
        text.map(|text| text.clone().into_bytes())
            .or_else(|| bytes.map(|bytes| bytes.0.clone()))
    };
    let object = |bytes: &[u8]| {
        serde_json::from_slice::<serde_json::Value>(bytes)
            .ok()
            .filter(serde_json::Value::is_object)
    };
    match secret.type_.as_deref() {
        Some(CONFIG_TYPE) => {
            let text = value(CONFIG_KEY).ok_or("its Secret has no key .dockerconfigjson")?;
            object(&text).ok_or("what its Secret has under .dockerconfigjson is no JSON object")?;
            Ok(text)
        }
        Some(OLD_TYPE) => {
            let text = value(OLD_KEY).ok_or("its Secret has no key .dockercfg")?;
            let auths =
                object(&text).ok_or("what its Secret has under .dockercfg is no JSON object")?;
            Ok(serde_json::json!({ "auths": auths })
                .to_string()
                .into_bytes())
        }
        _ => Err("its Secret must be of type kubernetes.io/dockerconfigjson"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::documents::objects;

    fn found(secret: &str) -> Result<Vec<(String, Vec<u8>)>, String> {
        let pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec: {imagePullSecrets: [{name: s}], containers: []}\n";
        let read = objects(&format!("{pod}---\n{secret}"), "f").unwrap();
        let (pod, document) = &read.pods[0];
        let mut collector = Collector::new(document);
        let mut notes = Vec::new();
        let spec = pod.spec.as_ref().unwrap();
        let found = pull_secrets(spec, &read, &mut notes, &mut collector);
        match collector.problems.first() {
            Some(problem) => Err(problem.message.clone()),
            None => Ok(found),
        }
    }

    const HEAD: &str = "apiVersion: v1\nkind: Secret\nmetadata: {name: s}\n";

    #[test]
    fn pull_secrets_of_both_forms_are_found() {
        let text = r#"{"auths": {"r": {"username": "u"}}}"#;
        let new = format!(
            "{HEAD}type: kubernetes.io/dockerconfigjson\nstringData: {{.dockerconfigjson: '{text}'}}\n"
        );
        assert_eq!(
            found(&new).unwrap(),
            [("s".to_owned(), text.as_bytes().to_vec())]
        );
        let old = format!(
            "{HEAD}type: kubernetes.io/dockercfg\nstringData: {{.dockercfg: '{{\"r\": {{}}}}'}}\n"
        );
        assert_eq!(found(&old).unwrap()[0].1, br#"{"auths":{"r":{}}}"#);
    }

    #[test]
    fn pull_secrets_of_other_forms_are_refused_without_their_content() {
        assert!(
            found(&format!("{HEAD}type: Opaque\n"))
                .unwrap_err()
                .contains("must be of type")
        );
        let broken = format!(
            "{HEAD}type: kubernetes.io/dockerconfigjson\nstringData: {{.dockerconfigjson: hush}}\n"
        );
        let said = found(&broken).unwrap_err();
        assert!(
            said.contains("no JSON object") && !said.contains("hush"),
            "{said}"
        );
    }
}
