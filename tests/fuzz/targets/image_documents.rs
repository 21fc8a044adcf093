//! Manifests, indexes and configurations of images, their names and digests, as registries and archives give them.

#![no_main]

use libfuzzer_sys::fuzz_target;
use vmpod_fuzz::Feed;
use vmpod_shim::images::fuzzed::{Document, check_platform, choose, parse, parse_config};
use vmpod_shim::images::{Digest, Platform, Reference};

fuzz_target!(|data: &[u8]| {
    let mut feed = Feed::new(data);
    let kind = feed.u8();
    let bytes = feed.rest();
    let platform = Platform {
        os: "linux".into(),
        architecture: "amd64".into(),
    };
    match kind % 4 {
        0 | 1 => match parse(bytes) {
            Ok(Document::Index(index)) => {
                let _ = choose(&index, &platform);
            }
            Ok(Document::Manifest(manifest)) => assert!(manifest.layers.len() < 1000),
            Err(error) => assert!(error.to_string().len() < 10_000),
        },
        2 => {
            if let Ok((config, ids)) = parse_config(bytes, usize::from(kind >> 2)) {
                assert_eq!(ids.len(), usize::from(kind >> 2));
                let _ = check_platform(&config, &platform);
            }
        }
        _ => {
            let text = String::from_utf8_lossy(bytes);
            if let Ok(reference) = Reference::parse(&text) {
                let again = Reference::parse(&reference.name()).expect("its own name is one");
                assert_eq!(again.name(), reference.name());
                let familiar =
                    Reference::parse(&reference.familiar()).expect("so is the short one");
                assert_eq!(familiar.name(), reference.name());
            }
            if let Ok(digest) = Digest::parse(&text) {
                assert_eq!(digest.to_string(), text);
            }
        }
    }
});
