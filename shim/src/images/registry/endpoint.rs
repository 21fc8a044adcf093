//! Which hosts are asked for an image, in which order, and by https or plain http.

use std::net::IpAddr;

use oci_client::Reference as ClientReference;

use super::super::reference::Reference;

/// A host that serves images of another registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mirror {
    /// The registry it stands in for, e.g. `docker.io`; `*` for all.
    pub registry: String,
    /// Host and port, e.g. `mirror.example:5000`.
    pub host: String,
}

/// One host to ask, and the name to ask it for.
#[derive(Debug, Clone)]
pub(super) struct Endpoint {
    /// Host and port as they are connected to.
    pub(super) host: String,
    /// The name, told to go to that host.
    pub(super) reference: ClientReference,
    /// Whether this is a mirror rather than the registry of the name.
    pub(super) is_mirror: bool,
}

/// Mirrors in their order, then the registry itself.
pub(super) fn endpoints(reference: &Reference, mirrors: &[Mirror]) -> Vec<Endpoint> {
    let own = reference.as_client();
    let mut found: Vec<Endpoint> = Vec::new();
    for mirror in mirrors {
        let applies = mirror.registry == "*" || mirror.registry == reference.registry();
        if applies
            && mirror.host != own.resolve_registry()
            && !found.iter().any(|other| other.host == mirror.host)
        {
            let mut through = own.clone();
            through.set_mirror_registry(mirror.host.clone());
            found.push(Endpoint {
                host: mirror.host.clone(),
                reference: through,
                is_mirror: true,
            });
        }
    }
    found.push(Endpoint {
        host: own.resolve_registry().to_owned(),
        reference: own.clone(),
        is_mirror: false,
    });
    found
}

/// Whether a host is spoken to without TLS: this machine's own, and those the caller lists (with or without port).
pub(super) fn is_plain_http(host: &str, insecure: &[String]) -> bool {
    let name = match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((inside, _)) => inside,
        None => host.rsplit_once(':').map_or(host, |(name, _)| name),
    };
    let is_loopback = name == "localhost"
        || name
            .parse::<IpAddr>()
            .is_ok_and(|address| address.is_loopback());
    is_loopback
        || insecure
            .iter()
            .any(|listed| listed == host || listed == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mirrors_come_before_the_registry_they_stand_for() {
        let mirror = |registry: &str, host: &str| Mirror {
            registry: registry.into(),
            host: host.into(),
        };
        let mirrors = [
            mirror("docker.io", "m1:5000"),
            mirror("quay.io", "m2"),
            mirror("*", "m3"),
            mirror("*", "m1:5000"),
        ];
        let hosts = |name: &str| {
            endpoints(&Reference::parse(name).unwrap(), &mirrors)
                .into_iter()
                .map(|e| e.host)
                .collect::<Vec<_>>()
        };
        assert_eq!(hosts("busybox"), ["m1:5000", "m3", "index.docker.io"]);
        assert_eq!(hosts("quay.io/a/b"), ["m2", "m3", "m1:5000", "quay.io"]);
        assert_eq!(hosts("m3.lan/a"), ["m3", "m1:5000", "m3.lan"]);
    }

    #[test]
    fn plain_http_is_for_loopback_and_listed_hosts_only() {
        let listed = ["registry.lan".to_owned(), "other.lan:5000".to_owned()];
        for host in [
            "localhost",
            "localhost:5000",
            "127.0.0.1:1",
            "127.9.9.9",
            "[::1]:5000",
            "registry.lan:80",
            "other.lan:5000",
        ] {
            assert!(is_plain_http(host, &listed), "{host}");
        }
        for host in [
            "docker.io",
            "10.0.0.1:5000",
            "other.lan",
            "other.lan:443",
            "localhost.evil",
            "[::2]:5000",
        ] {
            assert!(!is_plain_http(host, &listed), "{host}");
        }
    }
}
