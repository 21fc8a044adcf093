//! Standard streams, terminals, archives and port connections, as the host sees them.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::PathBuf;
use std::time::Duration;

use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use vmpod_agent::boot::listen_unix;
use vmpod_agent::container::{Containers as _, ProcessName};
use vmpod_agent_protocol::messages::Stdio;
use vmpod_agent_protocol::stream::{
    StdioStream, StreamHeader, StreamReply, decode_line, encode_line,
};

use crate::fixture::Fixture;

/// Serves the stream port on a Unix socket.
async fn serve(fixture: &Fixture) -> PathBuf {
    let listeners = listen_unix(&fixture.scratch).unwrap();
    tokio::spawn(vmpod_agent::streams::serve(
        listeners.streams,
        fixture.engine.clone(),
    ));
    fixture.scratch.join("stream.sock")
}

async fn open(socket: &PathBuf, header: &StreamHeader) -> (UnixStream, StreamReply) {
    let mut stream = UnixStream::connect(socket).await.unwrap();
    stream
        .write_all(&encode_line(header).unwrap())
        .await
        .unwrap();
    let reply = read_reply(&mut stream).await;
    (stream, reply)
}

async fn read_reply(stream: &mut UnixStream) -> StreamReply {
    let mut line = Vec::new();
    loop {
        let byte = stream.read_u8().await.unwrap();
        if byte == b'\n' {
            return decode_line(&line).unwrap();
        }
        line.push(byte);
    }
}

async fn stdio(socket: &PathBuf, name: &ProcessName, stream: StdioStream) -> UnixStream {
    let (connection, reply) = open(
        socket,
        &StreamHeader::Stdio {
            container: name.container.clone(),
            exec: name.exec.clone(),
            stream,
        },
    )
    .await;
    assert_eq!(reply, StreamReply::Ready);
    connection
}

async fn rest(mut stream: UnixStream) -> String {
    let mut text = Vec::new();
    stream.read_to_end(&mut text).await.unwrap();
    String::from_utf8(text).unwrap()
}

pub async fn output_waits_for_a_connection_and_survives_the_end(fixture: Fixture) {
    let socket = serve(&fixture).await;
    // More than a pipe holds: the writer must wait for the reader, and nothing may be lost.
    let spec = fixture.spec("loud", "seq 30000; echo oops >&2");
    let name = fixture.launch("loud", &spec).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(
        !fixture
            .engine
            .processes("loud")
            .unwrap()
            .processes
            .is_empty()
    );
    let output = rest(stdio(&socket, &name, StdioStream::Stdout).await).await;
    assert_eq!(output.lines().count(), 30000);
    assert!(output.ends_with("\n30000\n"));
    fixture.engine.wait(&name).await.unwrap();
    let tail = String::from_utf8(fixture.engine.output_tail("loud")).unwrap();
    assert!(
        tail.contains("30000\n") && tail.contains("oops\n"),
        "{tail}"
    );
    fixture.engine.delete(&name).await.unwrap();
    let output = rest(stdio(&socket, &name, StdioStream::Stderr).await).await;
    assert_eq!(output, "oops\n", "still there after the deletion");
    let header = StreamHeader::Stdio {
        container: "nobody".into(),
        exec: String::new(),
        stream: StdioStream::Stdout,
    };
    let (_, reply) = open(&socket, &header).await;
    assert!(
        matches!(&reply, StreamReply::Refused { message } if message.contains("nobody")),
        "{reply:?}"
    );
}

pub async fn second_connection_takes_the_place_of_the_first(fixture: Fixture) {
    let socket = serve(&fixture).await;
    let script = "echo one; while [ ! -e /tmp/go ]; do sleep 0.02; done; echo two";
    let name = fixture
        .launch("twice", &fixture.spec("twice", script))
        .await;
    let mut first = stdio(&socket, &name, StdioStream::Stdout).await;
    let mut buffer = [0; 4];
    first.read_exact(&mut buffer).await.unwrap();
    assert_eq!(&buffer, b"one\n");
    let second = stdio(&socket, &name, StdioStream::Stdout).await;
    assert_eq!(rest(first).await, "");
    fs::write(fixture.scratch.join("twice/tmp/go"), "").unwrap();
    assert_eq!(rest(second).await, "two\n");
}

pub async fn input_reaches_the_process_until_it_ends(fixture: Fixture) {
    let socket = serve(&fixture).await;
    let wanted = Stdio {
        stdin: true,
        stdout: true,
        ..Default::default()
    };
    let spec = fixture.spec("echo", "cat; echo end");
    fixture.create_with("echo", &spec, wanted).await.unwrap();
    let name = ProcessName::container("echo");
    fixture.engine.start(&name).await.unwrap();
    // Header and first bytes in one write: what follows the line belongs to the stream.
    let header = StreamHeader::Stdio {
        container: "echo".into(),
        exec: String::new(),
        stream: StdioStream::Stdin,
    };
    let mut input = UnixStream::connect(&socket).await.unwrap();
    let mut bytes = encode_line(&header).unwrap();
    bytes.extend_from_slice(b"first\n");
    input.write_all(&bytes).await.unwrap();
    assert_eq!(read_reply(&mut input).await, StreamReply::Ready);
    let output = stdio(&socket, &name, StdioStream::Stdout).await;
    input.write_all(&vec![b'x'; 300_000]).await.unwrap();
    input.shutdown().await.unwrap();
    let text = rest(output).await;
    assert!(text.starts_with("first\nxxx") && text.ends_with("xend\n"));
    assert_eq!(text.len(), 6 + 300_000 + 4);
}

pub async fn terminal_has_its_size_and_is_the_console(fixture: Fixture) {
    let socket = serve(&fixture).await;
    let wanted = Stdio {
        stdin: true,
        stdout: true,
        terminal: true,
        rows: 33,
        columns: 99,
        ..Default::default()
    };
    let mut spec = fixture.spec(
        "tty",
        "tty; stty size; stat -c %u $(tty); test -c /dev/console && echo console; read line; stty size; echo got $line",
    );
    spec["process"]["user"] = json!({"uid": 1000, "gid": 1000});
    fixture
        .create_with("tty", &spec, wanted.clone())
        .await
        .unwrap();
    let name = ProcessName::container("tty");
    fixture.engine.start(&name).await.unwrap();
    let mut input = stdio(&socket, &name, StdioStream::Stdin).await;
    let mut output = stdio(&socket, &name, StdioStream::Stdout).await;
    let mut text = String::new();
    while !text.contains("console") {
        let mut buffer = [0; 512];
        let length = output.read(&mut buffer).await.unwrap();
        assert!(length > 0, "{text}");
        text.push_str(std::str::from_utf8(&buffer[..length]).unwrap());
    }
    assert!(
        text.starts_with("/dev/pts/0\r\n33 99\r\n1000\r\n"),
        "{text:?}"
    );
    fixture.engine.resize(&name, 40, 120).unwrap();
    input.write_all(b"hello\n").await.unwrap();
    let text = rest(output).await;
    assert!(text.contains("40 120\r\ngot hello\r\n"), "{text:?}");
    assert_eq!(fixture.engine.wait(&name).await.unwrap().code, 0);

    let spec = fixture.spec("ttyexec", "sleep 1000");
    fixture.launch("ttyexec", &spec).await;
    let request = vmpod_agent::container::CreateExec {
        container: "ttyexec".into(),
        exec: "shell".into(),
        process: br#"{"args":["sh","-c","tty; stty size"]}"#.to_vec(),
        stdio: wanted,
    };
    fixture.engine.create_exec(request).await.unwrap();
    let name = ProcessName::exec("ttyexec", "shell");
    fixture.engine.start(&name).await.unwrap();
    let output = rest(stdio(&socket, &name, StdioStream::Stdout).await).await;
    assert_eq!(output, "/dev/pts/0\r\n33 99\r\n");
}

pub async fn archive_goes_out_and_in_with_owners_modes_and_links(fixture: Fixture) {
    let socket = serve(&fixture).await;
    let spec = fixture.spec("source", "sleep 1000");
    let root = fixture.scratch.join("source");
    let tree = root.join("tree");
    fs::create_dir_all(tree.join("sub")).unwrap();
    fs::write(tree.join("sub/program"), "bytes").unwrap();
    fs::set_permissions(tree.join("sub/program"), fs::Permissions::from_mode(0o4751)).unwrap();
    std::os::unix::fs::chown(tree.join("sub/program"), Some(11), Some(22)).unwrap();
    fs::set_permissions(tree.join("sub/program"), fs::Permissions::from_mode(0o4751)).unwrap();
    fs::hard_link(tree.join("sub/program"), tree.join("twin")).unwrap();
    symlink("/etc/passwd", tree.join("link")).unwrap();
    nix::unistd::mkfifo(&tree.join("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    // An absolute link means the container's own root.
    symlink("/tree", root.join("absolute")).unwrap();
    fixture.launch("source", &spec).await;
    fixture
        .launch("target", &fixture.spec("target", "sleep 1000"))
        .await;

    let (mut out, reply) = open(
        &socket,
        &StreamHeader::ArchiveRead {
            container: "source".into(),
            path: "/absolute".into(),
        },
    )
    .await;
    assert_eq!(reply, StreamReply::Ready);
    let mut archive = Vec::new();
    out.read_to_end(&mut archive).await.unwrap();
    assert!(archive.len() > 2048);

    let (mut inward, reply) = open(
        &socket,
        &StreamHeader::ArchiveWrite {
            container: "target".into(),
            path: "/tmp".into(),
        },
    )
    .await;
    assert_eq!(reply, StreamReply::Ready);
    inward.write_all(&archive).await.unwrap();
    inward.shutdown().await.unwrap();
    assert_eq!(read_reply(&mut inward).await, StreamReply::Ready);
    let copy = fixture.scratch.join("target/tmp/absolute");
    let program = fs::metadata(copy.join("sub/program")).unwrap();
    assert_eq!(
        (program.uid(), program.gid(), program.mode() & 0o7777),
        (11, 22, 0o4751)
    );
    assert_eq!(
        program.ino(),
        fs::metadata(copy.join("twin")).unwrap().ino()
    );
    assert_eq!(
        fs::read_link(copy.join("link")).unwrap(),
        PathBuf::from("/etc/passwd")
    );

    for (container, path, words) in [
        ("source", "/nowhere", "no such file or directory"),
        ("nobody", "/", "nobody"),
        ("source", "relative", "not an absolute path"),
    ] {
        let header = StreamHeader::ArchiveRead {
            container: container.into(),
            path: path.into(),
        };
        let (_, reply) = open(&socket, &header).await;
        assert!(
            matches!(&reply, StreamReply::Refused { message } if message.contains(words)),
            "{reply:?}"
        );
    }
    let header = StreamHeader::ArchiveWrite {
        container: "target".into(),
        path: "/tmp".into(),
    };
    let (mut inward, reply) = open(&socket, &header).await;
    assert_eq!(reply, StreamReply::Ready);
    inward.write_all(&vec![b'z'; 4096]).await.unwrap();
    inward.shutdown().await.unwrap();
    let reply = read_reply(&mut inward).await;
    assert!(matches!(reply, StreamReply::Refused { .. }), "{reply:?}");
}

pub async fn connection_to_a_port_of_the_pod_carries_bytes(fixture: Fixture) {
    let socket = serve(&fixture).await;
    up();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut request = Vec::new();
        stream.read_to_end(&mut request).await.unwrap();
        request.reverse();
        stream.write_all(&request).await.unwrap();
    });
    let (mut connection, reply) = open(&socket, &StreamHeader::Connect { port }).await;
    assert_eq!(reply, StreamReply::Ready);
    connection.write_all(b"abc").await.unwrap();
    connection.shutdown().await.unwrap();
    assert_eq!(rest(connection).await, "cba");
    let (_, reply) = open(&socket, &StreamHeader::Connect { port: 9 }).await;
    assert!(
        matches!(&reply, StreamReply::Refused { message } if message.contains("port 9")),
        "{reply:?}"
    );
    let mut nonsense = UnixStream::connect(&socket).await.unwrap();
    nonsense.write_all(b"GET / HTTP/1.1\n").await.unwrap();
    assert!(matches!(
        read_reply(&mut nonsense).await,
        StreamReply::Refused { .. }
    ));
}

/// Sets the loopback of the case's network namespace up.
fn up() {
    vmpod_agent::boot::loopback_up().unwrap();
}
