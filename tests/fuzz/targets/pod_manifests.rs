//! Pod manifests: text to documents with lines, to objects, to a plan or to problems in words.

#![no_main]

use libfuzzer_sys::fuzz_target;
use vmpod_shim::manifest::{HostFacts, objects, plan};

fuzz_target!(|data: &[u8]| {
    let text = String::from_utf8_lossy(data);
    let objects = match objects(&text, "pod.yaml") {
        Ok(objects) => objects,
        Err(problems) => {
            assert!(!problems.to_string().is_empty());
            return;
        }
    };
    let host = HostFacts {
        cpus: 4,
        node_name: "node".into(),
        uid: "00000000-0000-4000-8000-000000000000".into(),
    };
    for (pod, document) in &objects.pods {
        match plan(pod, document, &objects, &host, "pod.yaml") {
            Ok(plan) => {
                assert!((1..=64).contains(&plan.vcpus), "{}", plan.vcpus);
                assert!(plan.memory_mib >= 32, "{}", plan.memory_mib);
                assert!(!plan.name.is_empty() && !plan.containers.is_empty());
            }
            Err(problems) => assert!(!problems.to_string().is_empty()),
        }
    }
});
