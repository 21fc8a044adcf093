//! Forms of names in the Kubernetes API (DNS labels and subdomains of RFC 1123, paths, capabilities, sysctls).

use vmpod_agent_protocol::capability;

/// RFC 1123 label: at most 63 of `a-z0-9-`, alphanumeric at both ends.
pub(super) fn dns_label(name: &str) -> Result<(), &'static str> {
    if name.len() > 63 {
        return Err("must be no more than 63 characters");
    }
    if label(name) {
        Ok(())
    } else {
        Err(
            "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character",
        )
    }
}

/// RFC 1123 subdomain: labels joined by dots, at most 253 bytes.
pub(super) fn dns_subdomain(name: &str) -> Result<(), &'static str> {
    if name.len() > 253 {
        return Err("must be no more than 253 characters");
    }
    if name.split('.').all(label) {
        Ok(())
    } else {
        Err(
            "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character",
        )
    }
}

fn label(name: &str) -> bool {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = name.as_bytes();
    bytes.first().is_some_and(|b| inner(*b))
        && bytes.last().is_some_and(|b| inner(*b))
        && bytes.iter().all(|b| inner(*b) || *b == b'-')
}

/// Name of a port (RFC 6335): at most 15 of `a-z0-9-` with a letter among them, no hyphen at the ends or beside another.
pub(super) fn service_name(name: &str) -> Result<(), &'static str> {
    if name.len() > 15 {
        return Err("must be no more than 15 characters");
    }
    if !name.bytes().any(|b| b.is_ascii_lowercase()) {
        return Err("must contain at least one letter (a-z)");
    }
    if name.contains("--") {
        return Err("must not contain consecutive hyphens");
    }
    if label(name) {
        Ok(())
    } else {
        Err(
            "must contain only lower case alphanumeric characters and '-', and must not begin or end with a hyphen",
        )
    }
}

/// Key of a label or an annotation, or type of a condition: a name of at most 63 characters, behind a DNS subdomain and a slash or alone.
///
/// # Errors
/// What is wrong with it, in the API server's words.
pub fn qualified(key: &str) -> Result<(), &'static str> {
    let name = match key.split_once('/') {
        Some((prefix, name)) => {
            dns_subdomain(prefix)?;
            name
        }
        None => key,
    };
    if name.is_empty() {
        return Err("name part must be non-empty");
    }
    if word(name) {
        Ok(())
    } else {
        Err(
            "name part must consist of at most 63 alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character",
        )
    }
}

/// Value of a label: empty, or as the name of its key.
pub(super) fn label_value(value: &str) -> Result<(), &'static str> {
    if value.is_empty() || word(value) {
        Ok(())
    } else {
        Err(
            "a valid label must be an empty string or consist of at most 63 alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character",
        )
    }
}

fn word(text: &str) -> bool {
    let bytes = text.as_bytes();
    text.len() <= 63
        && bytes.first().is_some_and(u8::is_ascii_alphanumeric)
        && bytes.last().is_some_and(u8::is_ascii_alphanumeric)
        && bytes
            .iter()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
}

/// Printable ASCII other than `=` (Kubernetes' relaxed environment variable name).
pub(super) fn environment_variable(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|b| (0x20..0x7f).contains(&b) && b != b'=')
}

/// Key of a ConfigMap or Secret.
pub(super) fn config_key(key: &str) -> Result<(), &'static str> {
    let letters = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    match key {
        "." | ".." => Err("must not be '.' or '..'"),
        _ if key.len() > 253 => Err("must be no more than 253 characters"),
        _ if key.is_empty() || !key.bytes().all(letters) => {
            Err("a valid config key must consist of alphanumeric characters, '-', '_' or '.'")
        }
        _ => Ok(()),
    }
}

/// Domain that a resolver appends: a subdomain with underscores, which may end with a dot or be one.
pub(super) fn search_domain(name: &str) -> Result<(), &'static str> {
    if name == "." {
        return Ok(());
    }
    let name = name.strip_suffix('.').unwrap_or(name);
    dns_subdomain(&name.replace('_', "a"))
}

/// Relative and without a `..` part.
pub(super) fn relative_path(path: &str) -> bool {
    !path.starts_with('/') && !path.contains('\0') && path.split('/').all(|part| part != "..")
}

/// Dotted (or slashed) lower-case parts.
pub(super) fn sysctl(name: &str) -> bool {
    name.len() <= 253
        && name.contains(['.', '/'])
        && name.split(['.', '/']).all(|part| {
            !part.is_empty()
                && part
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'*'))
        })
}

/// A capability as Kubernetes manifests write it, with or without `CAP_`, in any case, or `ALL`.
pub(super) fn capability(name: &str) -> bool {
    let name = normal_capability(name);
    name == "ALL" || capability::number(&name).is_some()
}

/// Upper case, without `CAP_`.
pub(super) fn normal_capability(name: &str) -> String {
    let upper = name.to_ascii_uppercase();
    upper
        .strip_prefix("CAP_")
        .map_or(upper.clone(), str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dns_label_of_bad_forms_is_refused() {
        for bad in ["", "-a", "a-", "A", "a.b", "a_b", &"a".repeat(64)] {
            assert!(dns_label(bad).is_err(), "{bad}");
        }
        assert!(dns_label("a-1").is_ok() && dns_subdomain("a.b-c.d").is_ok());
        assert!(dns_subdomain("a..b").is_err());
    }

    #[test]
    fn keys_and_values_of_labels_of_bad_forms_are_refused() {
        for good in ["a", "app.kubernetes.io/name", "A_b.c-1", &"a".repeat(63)] {
            assert!(qualified(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            "a/",
            "/a",
            "a b",
            "-a",
            "a_",
            "A.b/c",
            "a/b/c",
            &"a".repeat(64),
        ] {
            assert!(qualified(bad).is_err(), "{bad}");
        }
        assert!(label_value("").is_ok() && label_value("v1.2_x").is_ok());
        assert!(label_value("a/b").is_err() && label_value(&"a".repeat(64)).is_err());
    }

    #[test]
    fn service_names_of_bad_forms_are_refused() {
        assert!(service_name("http").is_ok() && service_name("a1-2").is_ok());
        for bad in ["", "80", "Http", "-a", "a-", "a--b", "a_b", &"a".repeat(16)] {
            assert!(service_name(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn relative_path_out_of_the_volume_is_refused() {
        assert!(relative_path("a/b..c") && relative_path(""));
        assert!(!relative_path("/a") && !relative_path("a/../../b"));
    }

    #[test]
    fn capability_in_each_spelling_is_known() {
        assert!(capability("NET_ADMIN") && capability("CAP_NET_ADMIN") && capability("all"));
        assert!(!capability("NET_ADMINS"));
    }
}
