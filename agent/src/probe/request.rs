//! Checks the handlers and probes of a `StartPod` request. The host is trusted for nothing: counts, sizes, characters.

use std::net::IpAddr;
use std::time::Duration;

use vmpod_agent_protocol::limits::{HANDLER_BYTES, HANDLER_ITEMS};
use vmpod_agent_protocol::messages;

use super::{Handler, HttpTarget, Probe};

/// A probe or hook that cannot be meant.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct HandlerError(String);

fn refuse<T>(what: impl Into<String>) -> Result<T, HandlerError> {
    Err(HandlerError(what.into()))
}

/// Takes over a probe; absent numbers are Kubernetes' defaults.
///
/// # Errors
/// A handler that cannot be meant, or one that waits only.
pub fn probe(told: &messages::Probe) -> Result<Probe, HandlerError> {
    let or = |value: u32, default: u32| if value == 0 { default } else { value };
    let seconds = |value: u32| Duration::from_secs(u64::from(value));
    let handler = handler(told.handler.get_or_default())?;
    if matches!(handler, Handler::Sleep(_)) {
        return refuse("a probe that sleeps says nothing");
    }
    Ok(Probe {
        handler,
        initial_delay: seconds(told.initial_delay_seconds),
        timeout: seconds(or(told.timeout_seconds, 1)),
        period: seconds(or(told.period_seconds, 10)),
        success_threshold: or(told.success_threshold, 1),
        failure_threshold: or(told.failure_threshold, 3),
        grace: told.has_grace.then(|| seconds(told.grace_seconds)),
    })
}

/// Takes over a handler.
///
/// # Errors
/// None or several of its kinds, too large, or with characters that would change the meaning of a request.
pub fn handler(told: &messages::Handler) -> Result<Handler, HandlerError> {
    let mut found = Vec::new();
    if let Some(exec) = told.exec.as_ref() {
        found.push(command(exec)?);
    }
    if let Some(http) = told.http.as_ref() {
        found.push(Handler::Http(page(http)?));
    }
    if let Some(tcp) = told.tcp.as_ref() {
        found.push(Handler::Tcp {
            host: host(&tcp.host)?,
            port: port(tcp.port)?,
        });
    }
    if let Some(grpc) = told.grpc.as_ref() {
        if grpc.service.len() > HANDLER_BYTES {
            return refuse("the service's name is too long");
        }
        found.push(Handler::Grpc {
            port: port(grpc.port)?,
            service: grpc.service.clone(),
        });
    }
    if let Some(sleep) = told.sleep.as_ref() {
        found.push(Handler::Sleep(Duration::from_secs(u64::from(
            sleep.seconds,
        ))));
    }
    match (found.pop(), found.is_empty()) {
        (Some(handler), true) => Ok(handler),
        (None, _) => refuse("it says neither exec, http, tcp, grpc nor sleep"),
        (Some(_), false) => refuse("it says more than one thing to do"),
    }
}

fn command(exec: &messages::ExecHandler) -> Result<Handler, HandlerError> {
    let bytes: usize = exec.command.iter().map(String::len).sum();
    if exec.command.is_empty() {
        return refuse("its command is empty");
    }
    if exec.command.len() > HANDLER_ITEMS || bytes > HANDLER_BYTES {
        return refuse("its command is too long");
    }
    if exec.command.iter().any(|word| word.contains('\0')) {
        return refuse("its command has a zero byte in it");
    }
    Ok(Handler::Exec(exec.command.clone()))
}

fn page(http: &messages::HttpHandler) -> Result<HttpTarget, HandlerError> {
    let bytes: usize = http
        .headers
        .iter()
        .map(|h| h.name.len().saturating_add(h.value.len()))
        .sum();
    if http.headers.len() > HANDLER_ITEMS || bytes > HANDLER_BYTES {
        return refuse("its header fields are too long");
    }
    if http.path.len() > HANDLER_BYTES || !http.path.starts_with('/') {
        return refuse(format!("its path {:?} does not begin with '/'", http.path));
    }
    // A line end would make one header field into two, or one request.
    let harmful = |text: &str| text.bytes().any(|b| b < 0x20 && b != b'\t' || b == 0x7f);
    if harmful(&http.path) || http.path.contains(' ') {
        return refuse(format!(
            "its path {:?} has a character that no request line can have",
            http.path
        ));
    }
    let token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
    for header in &http.headers {
        if header.name.is_empty() || !header.name.bytes().all(token) || harmful(&header.value) {
            return refuse(format!("its header field {:?} is none", header.name));
        }
    }
    Ok(HttpTarget {
        host: host(&http.host)?,
        port: port(http.port)?,
        path: http.path.clone(),
        https: http.https,
        headers: http
            .headers
            .iter()
            .map(|h| (h.name.clone(), h.value.clone()))
            .collect(),
    })
}

fn host(host: &str) -> Result<String, HandlerError> {
    match host {
        "" => Ok(String::new()),
        "localhost" => Ok("127.0.0.1".into()),
        _ if host.parse::<IpAddr>().is_ok() => Ok(host.into()),
        _ => refuse(format!("its host {host:?} is no IP address")),
    }
}

fn port(port: u32) -> Result<u16, HandlerError> {
    match u16::try_from(port) {
        Ok(port @ 1..) => Ok(port),
        _ => refuse(format!("there is no port {port}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn http(change: impl FnOnce(&mut messages::HttpHandler)) -> messages::Handler {
        let mut http = messages::HttpHandler {
            port: 80,
            path: "/".into(),
            ..Default::default()
        };
        change(&mut http);
        messages::Handler {
            http: Some(http).into(),
            ..Default::default()
        }
    }

    #[test]
    fn probe_without_numbers_has_kubernetes_defaults() {
        let told = messages::Probe {
            handler: Some(http(|_| {})).into(),
            ..Default::default()
        };
        let probe = probe(&told).unwrap();
        assert_eq!(probe.timeout, Duration::from_secs(1));
        assert_eq!(probe.period, Duration::from_secs(10));
        assert_eq!((probe.success_threshold, probe.failure_threshold), (1, 3));
        assert_eq!(probe.grace, None);
    }

    #[test]
    fn handler_of_none_or_two_kinds_is_refused() {
        assert!(handler(&messages::Handler::default()).is_err());
        let mut two = http(|_| {});
        two.sleep = Some(messages::SleepHandler::default()).into();
        assert!(handler(&two).unwrap_err().to_string().contains("more than"));
    }

    #[test]
    fn handler_with_characters_that_change_the_request_is_refused() {
        for bad in [
            http(|h| h.path = "/a b".into()),
            http(|h| h.path = "/\r\nX: y".into()),
            http(|h| h.path = "x".into()),
            http(|h| h.port = 0),
            http(|h| h.port = 65536),
            http(|h| h.host = "example.org".into()),
            http(|h| {
                h.headers.push(messages::HttpHeader {
                    name: "A".into(),
                    value: "b\r\nC: d".into(),
                    ..Default::default()
                });
            }),
            http(|h| {
                h.headers.push(messages::HttpHeader {
                    name: "A:".into(),
                    ..Default::default()
                });
            }),
        ] {
            assert!(handler(&bad).is_err(), "{bad:?}");
        }
        let good = handler(&http(|h| h.host = "localhost".into())).unwrap();
        assert!(matches!(good, Handler::Http(t) if t.host == "127.0.0.1"));
    }
}
