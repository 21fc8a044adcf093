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
        let parsed = plain(text).map_or_else(|| Parsed::try_from(text), Ok);
        let parsed = parsed.map_err(|error| {
            let lowered = text.to_lowercase();
            if lowered != text && Parsed::try_from(lowered.as_str()).is_ok() {
                refuse("repository names are lower-case".into())
            } else {
                refuse(error.to_string())
            }
        })?;
        // The client's parser takes a first part in capitals for a registry and then not for one.
        if parsed.repository().bytes().any(|b| b.is_ascii_uppercase()) {
            return Err(refuse("repository names are lower-case".into()));
        }
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
        let outer = full.strip_prefix("docker.io/").unwrap_or(&full);
        let inner = outer.strip_prefix("library/").unwrap_or(outer);
        // Without its defaults a longer name may be another one.
        [inner, outer]
            .into_iter()
            .find(|short| Self::parse(short).is_ok_and(|read| read == *self))
            .unwrap_or(&full)
            .to_owned()
    }

    /// The same name as the registry client wants it.
    pub(super) fn as_client(&self) -> &Parsed {
        &self.parsed
    }
}

/// Longest tag, and longest repository.
const TAG_BYTES: usize = 128;
const REPOSITORY_BYTES: usize = 255;

/// Reads the plain names that nearly all names are. `None` says nothing: the registry client's own parser decides then. It
/// compiles a regular expression with all of Unicode first, which costs more than everything else in the start of a pod.
fn plain(text: &str) -> Option<Parsed> {
    let (rest, digest) = match text.split_once('@') {
        Some((rest, digest)) => (rest, Some(plain_digest(digest)?)),
        None => (text, None),
    };
    let (name, tag) = match rest.rsplit_once(':') {
        // A colon before a slash belongs to a port.
        Some((name, tag)) if !tag.contains('/') => (name, Some(plain_tag(tag)?)),
        _ => (rest, None),
    };
    let (registry, repository) = match name.split_once('/') {
        Some((first, path)) if first.contains(['.', ':']) || first == "localhost" => {
            (plain_registry(first)?, path.to_owned())
        }
        Some(_) => ("docker.io", name.to_owned()),
        None => ("docker.io", format!("library/{name}")),
    };
    // The one registry whose repositories have a default of their own.
    if registry == "docker.io" && !repository.contains('/') {
        return None;
    }
    let words = |part: &str| {
        part.split(['.', '_', '-'])
            .all(|word| !word.is_empty() && word.bytes().all(is_lower))
    };
    if !repository.split('/').all(words) || repository.len() > REPOSITORY_BYTES {
        return None;
    }
    let registry = registry.to_owned();
    Some(match (tag, digest) {
        (Some(tag), Some(digest)) => Parsed::with_tag_and_digest(registry, repository, tag, digest),
        (None, Some(digest)) => Parsed::with_digest(registry, repository, digest),
        (tag, None) => {
            Parsed::with_tag(registry, repository, tag.unwrap_or_else(|| "latest".into()))
        }
    })
}

fn is_lower(byte: u8) -> bool {
    byte.is_ascii_lowercase() || byte.is_ascii_digit()
}

fn plain_digest(text: &str) -> Option<String> {
    let hex = text.strip_prefix("sha256:")?;
    (hex.len() == 64 && hex.bytes().all(|b| b.is_ascii_hexdigit())).then(|| text.to_owned())
}

fn plain_tag(text: &str) -> Option<String> {
    let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    let first = text.bytes().next()?;
    let good = word(first) && text.bytes().all(|b| word(b) || matches!(b, b'.' | b'-'));
    (good && text.len() <= TAG_BYTES).then(|| text.to_owned())
}

/// A host name, with a port or without. Docker's other name for its own registry is left to the other parser.
fn plain_registry(text: &str) -> Option<&str> {
    let (host, port) = text.split_once(':').unwrap_or((text, "1"));
    let label = |label: &str| {
        label.bytes().all(|b| is_lower(b) || b == b'-')
            && !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let good = host.split('.').all(label)
        && !port.is_empty()
        && port.bytes().all(|b| b.is_ascii_digit())
        && host != "index.docker.io";
    good.then_some(text)
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
    fn short_form_means_the_same_image() {
        for (text, short) in [
            ("busybox", "busybox:latest"),
            ("library/a/b", "library/a/b:latest"),
            ("docker.io/localhost/a", "docker.io/localhost/a:latest"),
            ("example.org/library/a", "example.org/library/a:latest"),
        ] {
            let reference = Reference::parse(text).unwrap();
            assert_eq!(reference.familiar(), short);
            assert_eq!(Reference::parse(short).unwrap(), reference);
        }
    }

    #[test]
    fn name_whose_first_part_has_capitals_is_refused_and_a_registry_with_capitals_is_not() {
        let error = Reference::parse("lucaLh/busybox").unwrap_err();
        assert_eq!(error.reason, "repository names are lower-case");
        let name = Reference::parse("Example.org/a/b").unwrap().name();
        assert_eq!(Reference::parse(&name).unwrap().name(), name);
    }

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
    fn plain_names_are_read_as_the_registry_client_reads_them() {
        let mut read = 0;
        for registry in [
            "",
            "docker.io/",
            "localhost/",
            "localhost:5000/",
            "a.b-c.example:1/",
            "-a.b/",
            "a..b/",
            "index.docker.io/",
            "h:/",
            "Host.example/",
            "10.0.0.1/",
            "a_b.c/",
        ] {
            for path in [
                "a",
                "library/a",
                "a/b/c",
                "a-b_c.d/e",
                "a--b",
                "a__b",
                "a_-b",
                ".a",
                "a/",
                "/a",
                "A",
                "a b",
                "",
            ] {
                for tag in ["", ":1.2-x_Y", ":_", ":-", ":", ":.a", ":a:b", ":a/b"] {
                    for digest in ["", &format!("@sha256:{HEX}"), "@sha256:12", "@"] {
                        let text = format!("{registry}{path}{tag}{digest}");
                        if let Some(found) = plain(&text) {
                            read += 1;
                            assert_eq!(Parsed::try_from(text.as_str()).ok(), Some(found), "{text}");
                        }
                    }
                }
            }
        }
        assert!(read > 100, "{read}");
        assert!(plain(&"a/".repeat(200)).is_none());
        for text in ["busybox", "geektime/sample:v2", "registry.k8s.io/pause:3.9"] {
            assert!(plain(text).is_some(), "{text}");
        }
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
