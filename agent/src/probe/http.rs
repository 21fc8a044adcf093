//! One GET as Go's client in the kubelet makes it (HTTP/1.1, RFC 9112): the status line counts, the body is not read.
//!
//! Redirects to the same host are followed, ten at most; one to another host ends the attempt with its own status. The
//! server is a container, so what it says is hostile: it is bounded in bytes and time.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::time::{Instant, timeout_at};

use super::attempt::{connect, words};
use super::{HttpTarget, tls};

/// Bytes of a status line and its header fields.
const HEAD_BYTES: usize = 64 * 1024;

/// Redirects that are followed (Go, net/http).
const REDIRECTS: u32 = 10;

/// Gets a page from `address`, and says which status came.
///
/// # Errors
/// In words: not connected, no answer, none that is HTTP, too many redirects.
pub(super) async fn get(
    target: &HttpTarget,
    address: IpAddr,
    limit: Duration,
    agent: &str,
) -> Result<u16, String> {
    let deadline = Instant::now() + limit;
    let mut target = target.clone();
    for _ in 0..=REDIRECTS {
        let url = url(&target, address);
        let answer = match timeout_at(deadline, exchange(&target, address, deadline, agent)).await {
            Ok(answer) => answer.map_err(|why| format!("Get {url:?}: {why}"))?,
            Err(_) => {
                return Err(format!(
                    "Get {url:?}: context deadline exceeded (Client.Timeout exceeded while awaiting headers)"
                ));
            }
        };
        let location = answer
            .location
            .filter(|_| matches!(answer.status, 301 | 302 | 303 | 307 | 308));
        match location.and_then(|to| redirected(&target, address, &to)) {
            Some(next) => target = next,
            None => return Ok(answer.status),
        }
    }
    Err(format!(
        "Get {:?}: stopped after {REDIRECTS} redirects",
        url(&target, address)
    ))
}

fn authority(address: IpAddr, port: u16) -> String {
    SocketAddr::new(address, port).to_string()
}

fn url(target: &HttpTarget, address: IpAddr) -> String {
    let scheme = if target.https { "https" } else { "http" };
    format!(
        "{scheme}://{}{}",
        authority(address, target.port),
        target.path
    )
}

/// The page that `location` leads to if it is on the same host.
fn redirected(target: &HttpTarget, address: IpAddr, location: &str) -> Option<HttpTarget> {
    let mut next = target.clone();
    let path = match location.split_once("://") {
        Some((scheme, rest)) => {
            next.https = match scheme.to_ascii_lowercase().as_str() {
                "http" => false,
                "https" => true,
                _ => return None,
            };
            let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
            let (authority, path) = rest.split_at_checked(end)?;
            let (host, port) = match authority.rsplit_once(':') {
                Some((host, port)) if !port.ends_with(']') => (host, port.parse().ok()?),
                _ => (authority, if next.https { 443 } else { 80 }),
            };
            if host.trim_matches(['[', ']']).parse() != Ok(address) {
                return None;
            }
            next.port = port;
            path.to_owned()
        }
        None if location.starts_with("//") => return None,
        None if location.starts_with('/') => location.to_owned(),
        // Relative to the folder of the present page.
        None => {
            let page = target.path.split('?').next().unwrap_or("/");
            let folder = page.rsplit_once('/').map_or("", |(folder, _)| folder);
            format!("{folder}/{location}")
        }
    };
    let path = path.split('#').next().unwrap_or_default();
    next.path = if path.starts_with('/') {
        path.to_owned()
    } else {
        format!("/{path}")
    };
    let good = |b: u8| b > 0x20 && b != 0x7f;
    next.path.bytes().all(good).then_some(next)
}

#[derive(Debug, PartialEq, Eq)]
struct Answer {
    status: u16,
    location: Option<String>,
}

async fn exchange(
    target: &HttpTarget,
    address: IpAddr,
    deadline: Instant,
    agent: &str,
) -> Result<Answer, String> {
    let left = deadline.saturating_duration_since(Instant::now());
    let stream = connect(SocketAddr::new(address, target.port), left).await?;
    let request = request(target, address, agent);
    if target.https {
        let stream = tls::handshake(stream, address).await?;
        ask(stream, &request).await
    } else {
        ask(stream, &request).await
    }
}

fn request(target: &HttpTarget, address: IpAddr, agent: &str) -> String {
    let given = |name: &str| {
        target
            .headers
            .iter()
            .find(|(n, _)| n.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.as_str())
    };
    let host = given("Host").map_or_else(|| authority(address, target.port), str::to_owned);
    let mut text = format!("GET {} HTTP/1.1\r\nHost: {host}\r\n", target.path);
    for (name, default) in [("User-Agent", agent), ("Accept", "*/*")] {
        match given(name) {
            // An empty value leaves the field out, as the kubelet documents.
            Some("") => {}
            Some(value) => text.push_str(&format!("{name}: {value}\r\n")),
            None => text.push_str(&format!("{name}: {default}\r\n")),
        }
    }
    for (name, value) in &target.headers {
        if !["host", "user-agent", "accept", "connection"]
            .contains(&name.to_ascii_lowercase().as_str())
        {
            text.push_str(&format!("{name}: {value}\r\n"));
        }
    }
    text.push_str("Connection: close\r\n\r\n");
    text
}

async fn ask<S: AsyncRead + AsyncWrite + Unpin>(
    mut stream: S,
    request: &str,
) -> Result<Answer, String> {
    stream
        .write_all(request.as_bytes())
        .await
        .map_err(|error| format!("write: {}", words(&error)))?;
    stream
        .flush()
        .await
        .map_err(|error| format!("write: {}", words(&error)))?;
    let mut head = Vec::new();
    let mut chunk = [0_u8; 4096];
    loop {
        let count = stream
            .read(&mut chunk)
            .await
            .map_err(|error| format!("read: {}", words(&error)))?;
        head.extend_from_slice(chunk.get(..count).unwrap_or_default());
        if let Some(answer) = answer(&head)? {
            // 100 and its like come before the answer proper.
            if !(100..200).contains(&answer.0.status) {
                return Ok(answer.0);
            }
            head.drain(..answer.1);
        } else if count == 0 {
            return Err(if head.is_empty() {
                "EOF"
            } else {
                "unexpected EOF"
            }
            .into());
        } else if head.len() > HEAD_BYTES {
            return Err("the server's header fields are too long".into());
        }
    }
}

/// Reads a whole head and says how long it is; `None`: more is to come.
fn answer(bytes: &[u8]) -> Result<Option<(Answer, usize)>, String> {
    let Some(end) = bytes.windows(4).position(|w| w == b"\r\n\r\n") else {
        return Ok(None);
    };
    let head = String::from_utf8_lossy(bytes.get(..end).unwrap_or_default()).into_owned();
    let mut lines = head.split("\r\n");
    let first = lines.next().unwrap_or_default();
    let status = first
        .strip_prefix("HTTP/1.")
        .and_then(|rest| rest.split(' ').nth(1))
        .filter(|code| code.len() == 3)
        .and_then(|code| code.parse().ok())
        .ok_or_else(|| {
            let start: String = first.chars().take(40).collect();
            format!("malformed HTTP response {start:?}")
        })?;
    let location = lines.find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("location")
            .then(|| value.trim().to_owned())
    });
    Ok(Some((Answer { status, location }, end.saturating_add(4))))
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use tokio::net::TcpListener;

    use super::*;

    const HERE: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
    const LIMIT: Duration = Duration::from_secs(20);

    fn target(port: u16, path: &str) -> HttpTarget {
        HttpTarget {
            host: String::new(),
            port,
            path: path.into(),
            https: false,
            headers: vec![],
        }
    }

    /// A server that gives these answers, one for each connection, and hands back the requests.
    async fn serve(answers: Vec<String>) -> (u16, tokio::task::JoinHandle<Vec<String>>) {
        let listener = TcpListener::bind((HERE, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let task = tokio::spawn(async move {
            let mut requests = Vec::new();
            for answer in answers {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut bytes = vec![0; 4096];
                let count = stream.read(&mut bytes).await.unwrap();
                requests.push(String::from_utf8_lossy(&bytes[..count]).into_owned());
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
            requests
        });
        (port, task)
    }

    #[tokio::test]
    async fn get_sends_headers_and_follows_redirects_of_the_same_host() {
        let (port, server) = serve(vec![
            "HTTP/1.1 302 Found\r\nLocation: /next?x=1#part\r\n\r\n".into(),
            "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 503 Busy\r\n\r\n".into(),
        ])
        .await;
        let mut page = target(port, "/a/b");
        page.headers = vec![
            ("Host".into(), "shop".into()),
            ("X-Who".into(), "probe".into()),
            ("Accept".into(), String::new()),
        ];
        assert_eq!(get(&page, HERE, LIMIT, "agent/1").await, Ok(503));
        let requests = server.await.unwrap();
        assert_eq!(
            requests[0],
            "GET /a/b HTTP/1.1\r\nHost: shop\r\nUser-Agent: agent/1\r\nX-Who: probe\r\nConnection: close\r\n\r\n"
        );
        assert!(requests[1].starts_with("GET /next?x=1 HTTP/1.1\r\n"));
    }

    #[tokio::test]
    async fn get_of_a_redirect_elsewhere_has_that_status() {
        let (port, _server) = serve(vec![
            "HTTP/1.1 301 Moved\r\nlocation: http://example.org/\r\n\r\n".into(),
        ])
        .await;
        assert_eq!(get(&target(port, "/"), HERE, LIMIT, "a").await, Ok(301));
    }

    #[tokio::test]
    async fn get_of_a_circle_stops() {
        let again = "HTTP/1.1 302 Found\r\nLocation: /\r\n\r\n".to_owned();
        let (port, _server) = serve(vec![again; 11]).await;
        let why = get(&target(port, "/"), HERE, LIMIT, "a").await.unwrap_err();
        assert!(why.contains("stopped after 10 redirects"), "{why}");
    }

    #[tokio::test]
    async fn get_of_what_is_no_web_server_says_what_came() {
        let (port, _server) = serve(vec!["220 mail.example ESMTP\r\n\r\n".into()]).await;
        let why = get(&target(port, "/x"), HERE, LIMIT, "a")
            .await
            .unwrap_err();
        assert_eq!(
            why,
            format!(
                "Get \"http://127.0.0.1:{port}/x\": malformed HTTP response \"220 mail.example ESMTP\""
            )
        );
        let why = get(&target(port, "/x"), HERE, LIMIT, "a")
            .await
            .unwrap_err();
        assert!(why.contains("connect: connection refused"), "{why}");
    }

    #[tokio::test]
    async fn get_of_a_server_that_is_silent_ends_in_time() {
        let listener = TcpListener::bind((HERE, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let why = get(&target(port, "/"), HERE, Duration::from_millis(100), "a")
            .await
            .unwrap_err();
        assert!(why.contains("deadline exceeded"), "{why}");
    }

    #[test]
    fn redirected_relative_and_absolute_stay_on_the_host() {
        let from = target(8080, "/a/b?c");
        let path = |to: &str| redirected(&from, HERE, to).map(|t| (t.port, t.path));
        assert_eq!(path("c"), Some((8080, "/a/c".into())));
        assert_eq!(path("http://127.0.0.1"), Some((80, "/".into())));
        assert_eq!(path("https://127.0.0.1:9/x"), Some((9, "/x".into())));
        assert_eq!(path("//elsewhere/x"), None);
        assert_eq!(path("ftp://127.0.0.1/x"), None);
        assert_eq!(path("/a b"), None);
    }
}
