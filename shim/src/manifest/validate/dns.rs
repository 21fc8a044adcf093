//! Checks of `spec.dnsPolicy` and `spec.dnsConfig`.

use k8s_openapi::api::core::v1::{PodDNSConfig, PodSpec};

use crate::manifest::names;
use crate::manifest::problem::Collector;

/// What a resolver takes at most (Kubernetes API, PodDNSConfig).
const NAMESERVERS: usize = 3;
const SEARCHES: usize = 32;
const SEARCH_CHARACTERS: usize = 2048;

pub(super) fn dns(spec: &PodSpec, collector: &mut Collector<'_>) {
    if let Some(policy) = &spec.dns_policy {
        let supported = ["ClusterFirst", "ClusterFirstWithHostNet", "Default", "None"];
        collector.one_of("spec.dnsPolicy", policy, &supported);
        let servers = spec
            .dns_config
            .as_ref()
            .and_then(|d| d.nameservers.as_ref());
        if policy == "None" && servers.is_none_or(Vec::is_empty) {
            collector.add(
                "spec.dnsConfig.nameservers",
                "Required value: must provide at least one DNS nameserver when `dnsPolicy` is None",
            );
        }
    }
    if let Some(config) = &spec.dns_config {
        self::config(config, collector);
    }
}

fn config(config: &PodDNSConfig, collector: &mut Collector<'_>) {
    let path = "spec.dnsConfig";
    let servers = config.nameservers.as_deref().unwrap_or_default();
    if servers.len() > NAMESERVERS {
        collector.invalid(
            format!("{path}.nameservers"),
            servers,
            &format!("must not have more than {NAMESERVERS} nameservers"),
        );
    }
    for (i, server) in servers.iter().enumerate() {
        if server.parse::<std::net::IpAddr>().is_err() {
            collector.invalid(
                format!("{path}.nameservers[{i}]"),
                server,
                "must be a valid IP address",
            );
        }
    }
    let searches = config.searches.as_deref().unwrap_or_default();
    if searches.len() > SEARCHES {
        collector.invalid(
            format!("{path}.searches"),
            searches,
            &format!("must not have more than {SEARCHES} search paths"),
        );
    }
    // With a space between two, as resolv.conf has them.
    if searches.join(" ").len() > SEARCH_CHARACTERS {
        collector.invalid(
            format!("{path}.searches"),
            searches,
            &format!(
                "must not have more than {SEARCH_CHARACTERS} characters (including spaces) in the search list"
            ),
        );
    }
    for (i, search) in searches.iter().enumerate() {
        if let Err(why) = names::search_domain(search) {
            collector.invalid(format!("{path}.searches[{i}]"), search, why);
        }
    }
    for (i, option) in config.options.iter().flatten().enumerate() {
        if option.name.as_deref().unwrap_or_default().is_empty() {
            collector.required(format!("{path}.options[{i}].name"));
        }
    }
}
