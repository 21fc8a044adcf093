//! Checks of a container's probes and lifecycle hooks.

use k8s_openapi::api::core::v1::{
    Container, ContainerPort, ExecAction, HTTPGetAction, LifecycleHandler, PodSpec, Probe,
};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use crate::manifest::care;
use crate::manifest::problem::Collector;
use crate::oci::signal_number;

const NOT_NEGATIVE: &str = "must be greater than or equal to 0";

/// Grace of pods that set none (Kubernetes API, PodSpec).
const DEFAULT_GRACE_SECONDS: i64 = 30;

/// Checks probes and hooks of container `c`; `once` says that it is an init container that runs to its end.
pub(super) fn care(
    c: &Container,
    path: &str,
    once: bool,
    spec: &PodSpec,
    collector: &mut Collector<'_>,
) {
    let probes = [
        ("livenessProbe", &c.liveness_probe),
        ("readinessProbe", &c.readiness_probe),
        ("startupProbe", &c.startup_probe),
    ];
    let fields = [
        ("lifecycle", c.lifecycle.is_some()),
        ("livenessProbe", c.liveness_probe.is_some()),
        ("readinessProbe", c.readiness_probe.is_some()),
        ("startupProbe", c.startup_probe.is_some()),
    ];
    if once {
        for (field, _) in fields.iter().filter(|(_, there)| *there) {
            collector.add(
                format!("{path}.{field}"),
                "Forbidden: may not be set for init containers without restartPolicy=Always",
            );
        }
        return;
    }
    for (field, value) in probes {
        if let Some(value) = value {
            probe(value, field, &format!("{path}.{field}"), c, collector);
        }
    }
    let Some(lifecycle) = &c.lifecycle else {
        return;
    };
    let path = format!("{path}.lifecycle");
    let grace = spec
        .termination_grace_period_seconds
        .unwrap_or(DEFAULT_GRACE_SECONDS);
    for (field, value) in [
        ("postStart", &lifecycle.post_start),
        ("preStop", &lifecycle.pre_stop),
    ] {
        if let Some(value) = value {
            hook(value, &format!("{path}.{field}"), c, grace, collector);
        }
    }
    if let Some(signal) = &lifecycle.stop_signal {
        let path = format!("{path}.stopSignal");
        if signal_number(signal).is_none() || !signal.starts_with("SIG") {
            collector.invalid(&path, signal, "must be a signal of Linux such as SIGUSR1");
        }
        if spec.os.is_none() {
            collector.add(
                path,
                "Forbidden: may not be set for containers with empty `spec.os.name`",
            );
        }
    }
}

fn probe(p: &Probe, field: &str, path: &str, c: &Container, collector: &mut Collector<'_>) {
    let handlers = [
        ("exec", p.exec.is_some()),
        ("httpGet", p.http_get.is_some()),
        ("tcpSocket", p.tcp_socket.is_some()),
        ("grpc", p.grpc.is_some()),
    ];
    one_handler(&handlers, path, collector);
    let ports = c.ports.as_deref().unwrap_or_default();
    if let Some(action) = &p.exec {
        exec(action, path, collector);
    }
    if let Some(action) = &p.http_get {
        page(action, path, ports, collector);
    }
    if let Some(action) = &p.tcp_socket {
        let path = format!("{path}.tcpSocket");
        port(&action.port, &path, ports, collector);
        host(action.host.as_deref(), &path, collector);
    }
    if let Some(action) = &p.grpc {
        let number = IntOrString::Int(action.port);
        port(&number, &format!("{path}.grpc"), ports, collector);
    }
    for (name, value) in [
        ("initialDelaySeconds", p.initial_delay_seconds),
        ("timeoutSeconds", p.timeout_seconds),
        ("periodSeconds", p.period_seconds),
        ("successThreshold", p.success_threshold),
        ("failureThreshold", p.failure_threshold),
    ] {
        if let Some(value) = value.filter(|v| *v < 0) {
            collector.invalid(format!("{path}.{name}"), value, NOT_NEGATIVE);
        }
    }
    let readiness = field == "readinessProbe";
    if let Some(value) = p.success_threshold.filter(|v| *v > 1 && !readiness) {
        collector.invalid(format!("{path}.successThreshold"), value, "must be 1");
    }
    if let Some(value) = p.termination_grace_period_seconds {
        let path = format!("{path}.terminationGracePeriodSeconds");
        if readiness {
            collector.invalid(path, value, "must not be set for readinessProbes");
        } else if !(1..=i64::from(i32::MAX)).contains(&value) {
            collector.invalid(path, value, "must be greater than 0");
        }
    }
}

fn hook(
    hook: &LifecycleHandler,
    path: &str,
    c: &Container,
    grace: i64,
    collector: &mut Collector<'_>,
) {
    let handlers = [
        ("exec", hook.exec.is_some()),
        ("httpGet", hook.http_get.is_some()),
        ("tcpSocket", hook.tcp_socket.is_some()),
        ("sleep", hook.sleep.is_some()),
    ];
    one_handler(&handlers, path, collector);
    if let Some(action) = &hook.exec {
        exec(action, path, collector);
    }
    if let Some(action) = &hook.http_get {
        page(
            action,
            path,
            c.ports.as_deref().unwrap_or_default(),
            collector,
        );
    }
    if hook.tcp_socket.is_some() {
        collector.add(
            format!("{path}.tcpSocket"),
            "Forbidden: Kubernetes keeps the field and runs no such hook: use exec, httpGet or sleep",
        );
    }
    if let Some(sleep) = &hook.sleep
        && !(0..=grace).contains(&sleep.seconds)
    {
        collector.invalid(
            format!("{path}.sleep.seconds"),
            sleep.seconds,
            &format!(
                "must be non-negative and less than or equal to terminationGracePeriodSeconds ({grace})"
            ),
        );
    }
}

fn one_handler(handlers: &[(&str, bool)], path: &str, collector: &mut Collector<'_>) {
    let mut given = handlers.iter().filter(|(_, there)| *there);
    if given.next().is_none() {
        collector.add(path, "Required value: must specify a handler type");
    }
    for (field, _) in given {
        collector.add(
            format!("{path}.{field}"),
            "Forbidden: may not specify more than 1 handler type",
        );
    }
}

fn exec(action: &ExecAction, path: &str, collector: &mut Collector<'_>) {
    if action.command.as_ref().is_none_or(Vec::is_empty) {
        collector.required(format!("{path}.exec.command"));
    }
}

fn page(
    action: &HTTPGetAction,
    path: &str,
    ports: &[ContainerPort],
    collector: &mut Collector<'_>,
) {
    let path = format!("{path}.httpGet");
    port(&action.port, &path, ports, collector);
    host(action.host.as_deref(), &path, collector);
    if let Some(scheme) = &action.scheme {
        collector.one_of(format!("{path}.scheme"), scheme, &["HTTP", "HTTPS"]);
    }
    for (i, header) in action.http_headers.iter().flatten().enumerate() {
        let letters = |b: u8| b.is_ascii_alphanumeric() || b == b'-';
        if header.name.is_empty() || !header.name.bytes().all(letters) {
            collector.invalid(
                format!("{path}.httpHeaders[{i}].name"),
                &header.name,
                "a valid HTTP header must consist of alphanumeric characters or '-' (e.g. 'X-Header-Name')",
            );
        }
        if header
            .value
            .bytes()
            .any(|b| b < 0x20 && b != b'\t' || b == 0x7f)
        {
            collector.invalid(
                format!("{path}.httpHeaders[{i}].value"),
                &header.value,
                "must not contain control characters",
            );
        }
    }
}

fn port(value: &IntOrString, path: &str, ports: &[ContainerPort], collector: &mut Collector<'_>) {
    let path = format!("{path}.port");
    match value {
        IntOrString::Int(number) if care::port(value, ports).is_none() => {
            collector.invalid(path, number, "must be between 1 and 65535, inclusive");
        }
        // Elsewhere a name that no port has is noticed by the first probe, which then never succeeds.
        IntOrString::String(name) if care::port(value, ports).is_none() => {
            collector.not_found(path, name);
        }
        _ => {}
    }
}

fn host(host: Option<&str>, path: &str, collector: &mut Collector<'_>) {
    let Some(host) = host.filter(|h| !h.is_empty() && *h != "localhost") else {
        return;
    };
    if host.parse::<std::net::IpAddr>().is_err() {
        collector.invalid(
            format!("{path}.host"),
            host,
            "must be an IP address: probes and hooks are made inside the pod's machine, which looks up no names; for a virtual host set the header Host",
        );
    }
}
