//! Between a stream and the guest's socket of it: copying to the end.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::Notify;
use tokio::time::sleep;

use super::lane::{Input, MESSAGE_BYTES, Output};

/// How long the last input may be on its way when somebody ends it by hand.
const CLOSE_GRACE: Duration = Duration::from_secs(2);

impl Output {
    /// Copies until the guest's end closes, then waits until containerd has read it.
    pub async fn copy(self, mut from: UnixStream) {
        let mut chunk = vec![0; MESSAGE_BYTES];
        while let Ok(length @ 1..) = from.read(&mut chunk).await {
            self.send(chunk.get(..length).unwrap_or_default()).await;
        }
        self.end().await;
    }
}

impl Input {
    /// Copies to the guest until the end. Whoever ends it by hand, with `close`, has closed the stream before, by another
    /// way: that is waited for.
    pub async fn feed(self, mut to: UnixStream, close: Arc<Notify>) {
        let mut closing = false;
        loop {
            let input = tokio::select! {
                biased;
                input = self.next() => input,
                () = close.notified(), if !closing => {
                    closing = true;
                    continue;
                }
                () = sleep(CLOSE_GRACE), if closing => None,
            };
            let Some(input) = input else { break };
            if to.write_all(&input).await.is_err() {
                break;
            }
        }
        let _ = to.shutdown().await;
    }
}
