//! The files that Kubernetes manages in each container: `/etc/hosts` and `/etc/resolv.conf`.

use std::fmt::Write as _;
use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;

use crate::manifest::plan::DnsPlan;

/// What goes into `/etc/hosts`.
#[derive(Clone, Debug)]
pub struct HostsFile<'a> {
    /// The pod's address; `None` without a network.
    pub address: Option<IpAddr>,
    /// The pod's host name.
    pub hostname: &'a str,
    /// Names of its address where there are more: the full one first.
    pub names: &'a [String],
    /// `spec.hostAliases`.
    pub aliases: &'a [(String, Vec<String>)],
}

impl HostsFile<'_> {
    /// The file as the kubelet writes it.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = String::from(
            "# Kubernetes-managed hosts file.\n\
             127.0.0.1\tlocalhost\n\
             ::1\tlocalhost ip6-localhost ip6-loopback\n\
             fe00::0\tip6-localnet\n\
             fe00::0\tip6-mcastprefix\n\
             fe00::1\tip6-allnodes\n\
             fe00::2\tip6-allrouters\n",
        );
        let address = self
            .address
            .unwrap_or(IpAddr::V4(Ipv4Addr::new(127, 0, 1, 1)));
        let names = if self.names.is_empty() {
            self.hostname.to_owned()
        } else {
            self.names.join("\t")
        };
        let _ = writeln!(text, "{address}\t{names}");
        if !self.aliases.is_empty() {
            text.push_str("\n# Entries added by HostAliases.\n");
            for (address, names) in self.aliases {
                let _ = writeln!(text, "{address}\t{}", names.join("\t"));
            }
        }
        text
    }
}

/// Files that the host's resolver configuration is taken from. systemd-resolved puts a resolver on the loopback into the
/// first, which is out of a pod's reach, and the real ones into the second.
const HOST_FILES: [&str; 2] = ["/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"];

/// Bounds of resolv.conf as Kubernetes has them.
const NAMESERVERS: usize = 3;
const SEARCHES: usize = 32;

/// The pod's `/etc/resolv.conf` for `dns`.
#[must_use]
pub fn resolv_conf(dns: &DnsPlan) -> String {
    let host = if dns.from_host {
        HOST_FILES
            .iter()
            .filter_map(|path| fs::read_to_string(Path::new(path)).ok())
            .map(|text| HostResolver::parse(&text))
            .reduce(|first, second| {
                if first.nameservers.is_empty() {
                    second
                } else {
                    first
                }
            })
            .unwrap_or_default()
    } else {
        HostResolver::default()
    };
    compose(host, dns)
}

#[derive(Debug, Default)]
struct HostResolver {
    nameservers: Vec<String>,
    searches: Vec<String>,
    options: Vec<String>,
}

impl HostResolver {
    /// Reads what matters of a resolv.conf(5), without resolvers on the host's loopback.
    fn parse(text: &str) -> Self {
        let mut found = Self::default();
        for line in text.lines() {
            let mut words = line.split_whitespace();
            match words.next() {
                Some("nameserver") => {
                    let address = words.next().unwrap_or_default();
                    let reachable = address
                        .split('%')
                        .next()
                        .and_then(|a| a.parse::<IpAddr>().ok())
                        .is_some_and(|a| !a.is_loopback() && !a.is_unspecified());
                    if reachable {
                        found.nameservers.push(address.to_owned());
                    }
                }
                // The last of these lines wins.
                Some("search" | "domain") => {
                    found.searches = words
                        .filter(|word| *word != ".")
                        .map(str::to_owned)
                        .collect();
                }
                Some("options") => found.options.extend(words.map(str::to_owned)),
                _ => {}
            }
        }
        found
    }
}

fn compose(host: HostResolver, dns: &DnsPlan) -> String {
    let mut text = String::new();
    let merged = |mut first: Vec<String>, second: &[String]| {
        for item in second {
            if !first.contains(item) {
                first.push(item.clone());
            }
        }
        first
    };
    let searches = merged(host.searches, &dns.searches);
    if !searches.is_empty() {
        let bound = searches.len().min(SEARCHES);
        let _ = writeln!(text, "search {}", searches[..bound].join(" "));
    }
    for nameserver in merged(host.nameservers, &dns.nameservers)
        .iter()
        .take(NAMESERVERS)
    {
        let _ = writeln!(text, "nameserver {nameserver}");
    }
    // An option of the manifest replaces the host's of the same name.
    let name = |option: &str| option.split(':').next().unwrap_or_default().to_owned();
    let mut options: Vec<String> = host
        .options
        .into_iter()
        .filter(|option| dns.options.iter().all(|o| name(o) != name(option)))
        .collect();
    options.extend(dns.options.iter().cloned());
    if !options.is_empty() {
        let _ = writeln!(text, "options {}", options.join(" "));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_with_aliases_is_as_the_kubelet_writes_it() {
        let text = HostsFile {
            address: Some("10.88.0.2".parse().unwrap()),
            hostname: "web",
            names: &["web.shop.default.svc.cluster.local".into(), "web".into()],
            aliases: &[("1.2.3.4".into(), vec!["foo".into(), "bar".into()])],
        }
        .text();
        assert!(text.starts_with("# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n"));
        assert!(
            text.ends_with(
                "10.88.0.2\tweb.shop.default.svc.cluster.local\tweb\n\n# Entries added by HostAliases.\n1.2.3.4\tfoo\tbar\n"
            )
        );
    }

    #[test]
    fn resolver_on_the_loopback_is_left_out() {
        let host = HostResolver::parse(
            "nameserver 127.0.0.53\nnameserver ::1\nnameserver 192.0.2.1\noptions edns0 ndots:1\nsearch a b\n",
        );
        let dns = DnsPlan {
            from_host: true,
            nameservers: vec!["192.0.2.2".into()],
            searches: vec!["b".into(), "c".into()],
            options: vec!["ndots:5".into()],
        };
        assert_eq!(
            compose(host, &dns),
            "search a b c\nnameserver 192.0.2.1\nnameserver 192.0.2.2\noptions edns0 ndots:5\n"
        );
    }

    #[test]
    fn resolver_of_policy_none_has_nothing_of_the_host() {
        let dns = DnsPlan {
            nameservers: vec!["192.0.2.9".into()],
            ..DnsPlan::default()
        };
        assert_eq!(resolv_conf(&dns), "nameserver 192.0.2.9\n");
    }
}
