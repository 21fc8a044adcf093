//! Image names as Docker and containerd read them: `busybox` means `docker.io/library/busybox:latest`.
//!
//! Parsing only; nothing here looks a name up.

use std::fmt;
use std::str::FromStr;

use oci_client::Reference as Parsed;
use thiserror::Error;

use super::digest::{Digest, DigestError};

/// Why a text is not an image name.
#[derive(Debug, Error)]
#[error("{text:?} is not an image name: {reason}")]
pub struct ReferenceError {
    /// What was given, cut to a readable length.
    pub text: String,
    /// What is wrong with it.
    pub reason: String,
}

/// A normalised image name: registry, repository, and a tag or a digest (or both).
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Reference {
    parsed: Parsed,
    digest: Option<Digest>,
}

impl Reference {
    /// Parses and normalises `text`.
    ///
    /// # Errors
    /// [`ReferenceError`] naming the text and the rule it breaks.
    pub fn parse(text: &str) -> Result<Self, ReferenceError> {
        let refuse = |reason: String| ReferenceError {
            text: text.chars().take(300).collect(),
            reason,
        };
        if Digest::from_hex(text).is_some() {
            return Err(refuse(
                "64 hexadecimal digits are an image ID, not a name".into(),
            ));
        }
        let parsed = Parsed::try_from(text).map_err(|error| {
            let lowered = text.to_lowercase();
            if lowered != text && Parsed::try_from(lowered.as_str()).is_ok() {
                refuse("repository names are lower-case".into())
            } else {
                refuse(error.to_string())
            }
        })?;
        let digest = parsed
            .digest()
            .map(Digest::parse)
            .transpose()
            .map_err(|error: DigestError| refuse(error.to_string()))?;
        Ok(Self { parsed, digest })
    }

    /// The registry, e.g. `docker.io` or `127.0.0.1:5000`.
    #[must_use]
    pub fn registry(&self) -> &str {
        self.parsed.registry()
    }

    /// The repository, e.g. `library/busybox`.
    #[must_use]
    pub fn repository(&self) -> &str {
        self.parsed.repository()
    }

    /// The tag. `None` only when the name has a digest instead.
    #[must_use]
    pub fn tag(&self) -> Option<&str> {
        self.parsed.tag()
    }

    /// The digest that the content must have, where the name carries one.
    #[must_use]
    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// Registry and repository, without tag or digest.
    #[must_use]
    pub fn name(&self) -> String {
        format!("{}/{}", self.registry(), self.repository())
    }

    /// The short form people write: without `docker.io/` and `library/` where those are the defaults.
    #[must_use]
    pub fn familiar(&self) -> String {
        let full = self.to_string();
        let short = full.strip_prefix("docker.io/").unwrap_or(&full);
        short.strip_prefix("library/").unwrap_or(short).to_owned()
    }

    /// The same name as the registry client wants it.
    pub(super) fn as_client(&self) -> &Parsed {
        &self.parsed
    }
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        Self::parse(text)
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.parsed, f)
    }
}

impl fmt::Debug for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Reference({})", self.parsed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEX: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn reference_without_registry_is_normalised_as_docker_does() {
        for (text, whole, familiar) in [
            (
                "busybox",
                "docker.io/library/busybox:latest",
                "busybox:latest",
            ),
            ("nginx:1.25", "docker.io/library/nginx:1.25", "nginx:1.25"),
            (
                "geektime/sample:v2",
                "docker.io/geektime/sample:v2",
                "geektime/sample:v2",
            ),
            (
                "index.docker.io/library/a",
                "docker.io/library/a:latest",
                "a:latest",
            ),
            (
                "localhost:5000/a/b",
                "localhost:5000/a/b:latest",
                "localhost:5000/a/b:latest",
            ),
            ("localhost/a", "localhost/a:latest", "localhost/a:latest"),
            (
                "registry.k8s.io/pause:3.9",
                "registry.k8s.io/pause:3.9",
                "registry.k8s.io/pause:3.9",
            ),
        ] {
            let reference = Reference::parse(text).unwrap();
            assert_eq!(reference.to_string(), whole);
            assert_eq!(reference.familiar(), familiar);
        }
    }

    #[test]
    fn reference_with_digest_keeps_it_and_gets_no_tag() {
        let reference = Reference::parse(&format!("busybox@sha256:{HEX}")).unwrap();
        assert_eq!(reference.tag(), None);
        assert_eq!(reference.digest().unwrap().hex(), HEX);
        let both = Reference::parse(&format!("h:1/a:t@sha256:{HEX}")).unwrap();
        assert_eq!((both.tag(), both.registry()), (Some("t"), "h:1"));
    }

    #[test]
    fn reference_that_is_malformed_is_refused_with_the_text() {
        for text in [
            "",
            "a b",
            "UPPER",
            "a:",
            "a@sha256:12",
            "../x",
            HEX,
            "a@sha512:00",
        ] {
            let error = Reference::parse(text).unwrap_err().to_string();
            assert!(error.contains("is not an image name"), "{text}: {error}");
        }
        assert!(
            Reference::parse("Nginx")
                .unwrap_err()
                .to_string()
                .contains("lower-case")
        );
    }
}
