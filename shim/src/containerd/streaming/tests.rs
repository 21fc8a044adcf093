//! Streams from end to end: containerd's side of a connection is played here.

use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::ttrpc::asynchronous::transport::Socket;
use containerd_shim_protos::ttrpc::asynchronous::{Client, ClientStream};
use containerd_shim_protos::ttrpc::proto::Request;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::lane::WINDOW_BYTES;
use super::wire::{Frame, Said, client};
use super::*;

const LIMIT: Duration = Duration::from_secs(30);

fn streams() -> Streams {
    Streams::new("unix:///run/s")
}

fn claimed(streams: &Streams, id: &str, direction: Direction, returns: bool) -> Claim {
    let uri = format!("ttrpc+unix:///run/s?streaming_id={id}");
    streams.claim(&uri, direction, returns).unwrap().unwrap()
}

/// containerd's end of a stream.
struct Peer {
    connection: UnixStream,
    served: JoinHandle<Result<(), WireError>>,
}

impl Peer {
    fn connect(streams: &Streams) -> Self {
        let (connection, theirs) = UnixStream::pair().unwrap();
        let streams = streams.clone();
        let served = tokio::spawn(async move { connection::serve(theirs, &streams).await });
        Self { connection, served }
    }

    async fn open(streams: &Streams, id: &str) -> Self {
        let mut peer = Self::connect(streams);
        peer.send(&client::open(1)).await;
        peer.send(&client::init(1, id)).await;
        client::answered(&mut peer.connection).await.unwrap();
        peer
    }

    async fn send(&mut self, frame: &[u8]) {
        self.connection.write_all(frame).await.unwrap();
    }

    async fn next(&mut self) -> Frame {
        let frame = timeout(LIMIT, Frame::read(&mut self.connection)).await;
        frame.expect("a frame in time").expect("a frame")
    }

    async fn data(&mut self) -> Vec<u8> {
        match self.next().await.said {
            Said::Data(bytes) => bytes,
            other => panic!("{other:?}"),
        }
    }

    /// The connection was given up.
    async fn refused(self) -> WireError {
        self.served.await.unwrap().unwrap_err()
    }
}

#[tokio::test]
async fn output_goes_to_a_stream_that_came_before_its_process_or_after() {
    for first in [true, false] {
        let streams = streams();
        let mut peer = None;
        if first {
            peer = Some(Peer::open(&streams, "a").await);
        }
        let claim = claimed(&streams, "a", Direction::Output, true);
        let output = claim.output();
        output.send(b"words").await;
        let mut peer = match peer {
            Some(peer) => peer,
            None => Peer::open(&streams, "a").await,
        };
        peer.send(&wire::window(1, 100)).await;
        assert_eq!(peer.data().await, b"words");
        let ended = tokio::spawn(output.end());
        assert!(peer.next().await.last);
        // It has ended when containerd says that it has everything.
        assert!(!ended.is_finished());
        peer.send(&wire::close(1)).await;
        timeout(LIMIT, ended).await.unwrap().unwrap();
        peer.served.await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn output_is_sent_as_far_as_the_window_goes() {
    let streams = streams();
    let claim = claimed(&streams, "a", Direction::Output, true);
    let output = claim.output();
    let mut peer = Peer::open(&streams, "a").await;
    output.send(&[1; 100]).await;
    peer.send(&wire::window(1, 60)).await;
    assert_eq!(peer.data().await.len(), 60);
    // The next bytes wait for the rest of these.
    let blocked = timeout(Duration::from_millis(50), output.send(&[2; 10])).await;
    assert!(blocked.is_err());
    peer.send(&wire::window(1, 30)).await;
    assert_eq!(peer.data().await.len(), 30);
    peer.send(&wire::window(1, 1000)).await;
    assert_eq!(peer.data().await.len(), 10);
    output.send(&[2; 10]).await;
    assert_eq!(peer.data().await, [2; 10]);
}

#[tokio::test]
async fn output_that_nobody_reads_any_more_holds_no_process_up() {
    let streams = streams();
    let claim = claimed(&streams, "a", Direction::Output, true);
    let output = claim.output();
    let mut peer = Peer::open(&streams, "a").await;
    peer.send(&wire::close(1)).await;
    for _ in 0..10 {
        timeout(LIMIT, output.send(&[0; 1000])).await.unwrap();
    }
    timeout(LIMIT, output.end()).await.unwrap();
    assert!(peer.next().await.last);
}

#[tokio::test]
async fn output_of_a_container_goes_on_after_a_broken_connection_and_that_of_an_exec_does_not() {
    let streams = streams();
    let container = claimed(&streams, "a", Direction::Output, true);
    let exec = claimed(&streams, "b", Direction::Output, false);
    let (of_container, of_exec) = (container.output(), exec.output());
    for id in ["a", "b"] {
        let peer = Peer::open(&streams, id).await;
        drop(peer.connection);
        assert!(matches!(
            peer.served.await.unwrap(),
            Err(WireError::Connection(_))
        ));
    }
    for output in [&of_container, &of_exec] {
        output.send(b"late").await;
    }
    let mut peer = Peer::open(&streams, "a").await;
    peer.send(&wire::window(1, 100)).await;
    assert_eq!(peer.data().await, b"late");
    timeout(LIMIT, of_exec.end()).await.unwrap();
}

#[tokio::test]
async fn newer_connection_takes_a_stream_over() {
    let streams = streams();
    let claim = claimed(&streams, "a", Direction::Output, true);
    let output = claim.output();
    let mut former = Peer::open(&streams, "a").await;
    former.send(&wire::window(1, 100)).await;
    let mut newer = Peer::open(&streams, "a").await;
    former.served.await.unwrap().unwrap();
    output.send(b"x").await;
    newer.send(&wire::window(1, 100)).await;
    assert_eq!(newer.data().await, b"x");
}

#[tokio::test]
async fn input_comes_within_its_window_and_ends_with_the_stream() {
    let streams = streams();
    let mut peer = Peer::open(&streams, "a").await;
    let claim = claimed(&streams, "a", Direction::Input, true);
    let input = claim.input();
    let window = i32::try_from(WINDOW_BYTES).unwrap();
    assert_eq!(peer.next().await.said, Said::Window(WINDOW_BYTES));
    let half = vec![7; WINDOW_BYTES / 2];
    peer.send(&wire::data(1, half.clone())).await;
    peer.send(&wire::data(1, half.clone())).await;
    let mut got = 0;
    while got < WINDOW_BYTES {
        got += input.next().await.unwrap().len();
    }
    let mut more = 0;
    while more < window {
        match peer.next().await.said {
            Said::Window(update) => more += i32::try_from(update).unwrap(),
            other => panic!("{other:?}"),
        }
    }
    peer.send(&wire::data(1, b"end".to_vec())).await;
    peer.send(&wire::close(1)).await;
    assert_eq!(input.next().await.as_deref(), Some(&b"end"[..]));
    assert_eq!(input.next().await, None);
}

#[tokio::test]
async fn input_beyond_its_window_or_before_it_gives_the_connection_up() {
    let streams = streams();
    let mut early = Peer::open(&streams, "a").await;
    early.send(&wire::data(1, vec![0])).await;
    assert!(matches!(early.refused().await, WireError::Protocol { .. }));
    let mut peer = Peer::open(&streams, "b").await;
    let claim = claimed(&streams, "b", Direction::Input, true);
    let _input = claim.input();
    assert_eq!(peer.next().await.said, Said::Window(WINDOW_BYTES));
    for _ in 0..2 {
        peer.send(&wire::data(1, vec![0; WINDOW_BYTES - 1])).await;
    }
    assert!(matches!(peer.refused().await, WireError::Protocol { .. }));
}

#[tokio::test]
async fn input_that_a_process_does_not_want_any_more_lets_its_writer_go() {
    let streams = streams();
    let mut peer = Peer::open(&streams, "a").await;
    let claim = claimed(&streams, "a", Direction::Input, true);
    let input = claim.input();
    assert_eq!(peer.next().await.said, Said::Window(WINDOW_BYTES));
    drop(input);
    assert!(matches!(peer.next().await.said, Said::Window(more) if more > WINDOW_BYTES));
    assert!(peer.next().await.last);
}

#[tokio::test]
async fn input_of_a_container_outlives_a_connection_and_that_of_an_exec_ends_with_it() {
    let streams = streams();
    let container = claimed(&streams, "a", Direction::Input, true);
    let exec = claimed(&streams, "b", Direction::Input, false);
    let (of_container, of_exec) = (container.input(), exec.input());
    for id in ["a", "b"] {
        let peer = Peer::open(&streams, id).await;
        drop(peer.connection);
        peer.served.await.unwrap().unwrap_err();
    }
    assert_eq!(timeout(LIMIT, of_exec.next()).await.unwrap(), None);
    let mut peer = Peer::open(&streams, "a").await;
    assert_eq!(peer.next().await.said, Said::Window(WINDOW_BYTES));
    peer.send(&wire::data(1, b"x".to_vec())).await;
    assert_eq!(of_container.next().await.as_deref(), Some(&b"x"[..]));
}

#[tokio::test]
async fn input_ended_by_hand_is_fed_to_its_end() {
    for closed in [true, false] {
        let streams = streams();
        let mut peer = Peer::open(&streams, "a").await;
        let claim = claimed(&streams, "a", Direction::Input, true);
        let (to, mut guest) = UnixStream::pair().unwrap();
        let close = Arc::new(Notify::new());
        let fed = tokio::spawn(claim.input().feed(to, Arc::clone(&close)));
        assert_eq!(peer.next().await.said, Said::Window(WINDOW_BYTES));
        if closed {
            // The order to end comes before the last bytes do.
            close.notify_one();
            peer.send(&wire::data(1, b"last".to_vec())).await;
            peer.send(&wire::close(1)).await;
        } else {
            peer.send(&wire::data(1, b"last".to_vec())).await;
            close.notify_one();
        }
        let mut got = String::new();
        let read = timeout(LIMIT, guest.read_to_string(&mut got)).await;
        read.unwrap().unwrap();
        assert_eq!(got, "last");
        timeout(LIMIT, fed).await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn peer_that_does_not_keep_to_the_protocol_is_given_up() {
    let mut long = wire::data(1, Vec::new());
    long[..4].copy_from_slice(&(wire::FRAME_BYTES + 1).to_be_bytes());
    for frame in [
        long,
        client::open(1),
        client::open(3),
        wire::window(3, 1),
        wire::window(1, -1),
        client::init(1, "b"),
    ] {
        let streams = streams();
        let mut peer = Peer::open(&streams, "a").await;
        peer.send(&frame).await;
        let error = peer.refused().await;
        assert!(!matches!(error, WireError::Connection(_)), "{error}");
        // Nobody had it.
        assert!(streams.lanes().is_empty());
    }
    let mut peer = Peer::connect(&streams());
    peer.send(&client::open(1)).await;
    peer.send(&client::init(1, &"x".repeat(300))).await;
    let refusal = client::answered(&mut peer.connection).await.unwrap_err();
    assert!(refusal.contains("not 300"), "{refusal}");
}

#[tokio::test]
async fn stream_whose_process_never_comes_is_held_within_bounds() {
    let streams = streams();
    let entered: Vec<_> = (0..WAITING)
        .map(|number| streams.enter(&number.to_string()).unwrap())
        .collect();
    let mut peer = Peer::connect(&streams);
    peer.send(&client::open(1)).await;
    peer.send(&client::init(1, "one more")).await;
    let refusal = client::answered(&mut peer.connection).await.unwrap_err();
    assert!(refusal.contains("too many streams"), "{refusal}");
    drop(entered);
    assert!(streams.lanes().is_empty());
}

#[tokio::test]
async fn claim_is_of_this_shims_streams_and_of_each_once() {
    let streams = streams();
    let claim = |uri: &str| streams.claim(uri, Direction::Output, true);
    for uri in ["/run/fifo", "file:///x", "binary:///x?a=b", "fifo:///x"] {
        assert!(claim(uri).unwrap().is_none(), "{uri}");
    }
    for uri in [
        "ttrpc+unix:///run/other?streaming_id=a",
        "grpc+unix:///run/s?streaming_id=a",
        "ttrpc+unix:///run/s?streaming_id=",
    ] {
        let error = claim(uri).unwrap_err();
        assert!(matches!(error, ClaimError::Elsewhere { .. }), "{error}");
    }
    let held = claim("ttrpc+unix:///run/s?streaming_id=a").unwrap();
    let taken = claim("ttrpc+unix:///run/s?streaming_id=a").unwrap_err();
    assert_eq!(taken, ClaimError::Taken { id: "a".into() });
    drop(held);
    assert!(streams.lanes().is_empty());
    claim("ttrpc+unix:///run/s?streaming_id=a").unwrap();
}

#[tokio::test]
async fn connections_are_told_apart_by_their_service() {
    use futures_util::StreamExt;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let streams = streams();
    let (open, mut hung_up) = mpsc::channel(1);
    let listener = UnixListener::bind(&path).unwrap();
    let mut others = Box::pin(streams.sort(listener, open.downgrade()));
    // One that says nothing holds nobody up.
    let _silent = UnixStream::connect(&path).await.unwrap();
    let mut held = None;
    for service in ["x", "containerd.services.streaming.v1.Streamers and more"] {
        let mut other = UnixStream::connect(&path).await.unwrap();
        let request = client::other_request(service);
        other.write_all(&request).await.unwrap();
        let mut came = others.next().await.unwrap().unwrap();
        let mut got = vec![0; request.len()];
        came.read_exact(&mut got).await.unwrap();
        assert_eq!(got, request);
        came.write_all(b"answer").await.unwrap();
        let mut answer = [0; 6];
        other.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"answer");
        held = Some(came);
    }
    // The library's own client: what it takes for frames, this does.
    let claim = claimed(&streams, "a", Direction::Output, true);
    let output = claim.output();
    let connection = UnixStream::connect(&path).await.unwrap();
    let client = Client::new(Socket::new(connection));
    let request = Request {
        service: wire::SERVICE.into(),
        method: "Stream".into(),
        ..Default::default()
    };
    let stream = client.new_stream(request, true, true).await.unwrap();
    let mut stream = ClientStream::<Any, Any>::new(stream);
    let any = |type_url: &str, value: &[u8]| Any {
        type_url: type_url.into(),
        value: value.to_vec(),
        ..Default::default()
    };
    let init = any("containerd.services.streaming.v1.StreamInit", b"\x0a\x01a");
    stream.send(&init).await.unwrap();
    assert_eq!(
        stream.recv().await.unwrap().type_url,
        "google.protobuf.Empty"
    );
    let window = any("containerd.types.transfer.WindowUpdate", b"\x08\x40");
    stream.send(&window).await.unwrap();
    output.send(b"hi").await;
    let data = stream.recv().await.unwrap();
    assert_eq!(data.type_url, "containerd.types.transfer.Data");
    assert_eq!(data.value, b"\x0a\x02hi");
    let ended = tokio::spawn(output.end());
    assert!(stream.recv().await.is_err());
    stream.close_send().await.unwrap();
    timeout(LIMIT, ended).await.unwrap().unwrap();
    // Until the last of the others is closed, somebody may still read an answer.
    drop(open);
    assert_eq!(hung_up.try_recv(), Err(mpsc::error::TryRecvError::Empty));
    drop(held);
    assert_eq!(timeout(LIMIT, hung_up.recv()).await.unwrap(), None);
}
