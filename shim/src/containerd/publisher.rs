//! Events of tasks on their way to containerd (ttrpc service containerd.services.events.ttrpc.v1.Events): in order, each
//! until it is taken. One task owns the queue and the connection; a containerd that is restarted gets what it missed.

use std::collections::VecDeque;
use std::time::Duration;

use containerd_shim_protos::api::ForwardRequest;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::{MessageDyn, MessageField};
use containerd_shim_protos::shim::event::Envelope;
use containerd_shim_protos::shim_async::{Client, EventsClient};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{sleep, timeout};

use super::timestamp;
use crate::pod::clock;
use crate::pod::journal::chain;

/// Events that wait at most. Beyond it the oldest go: containerd asks for the state of tasks anew when it comes back.
const WAITING: usize = 4096;

/// How often an event is tried again that containerd refuses, as opposed to not being there.
const REFUSALS: u32 = 5;

/// How long containerd may take for one event.
const CALL_LIMIT: Duration = Duration::from_secs(5);

/// Pauses between attempts: the first, and the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

enum Item {
    Event(Box<Envelope>),
    /// Answered when everything before it was taken.
    Flush(oneshot::Sender<()>),
}

/// Where events are handed in. A handle; clones lead to the same queue.
#[derive(Clone, Debug)]
pub struct Publisher {
    namespace: String,
    queue: mpsc::UnboundedSender<Item>,
}

impl std::fmt::Debug for Item {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Event(event) => f.write_str(&event.topic),
            Self::Flush(_) => f.write_str("flush"),
        }
    }
}

impl Publisher {
    /// Starts a queue for events of `namespace` to the socket at `address` (`TTRPC_ADDRESS`).
    #[must_use]
    pub fn start(address: &str, namespace: &str) -> Self {
        let (queue, items) = mpsc::unbounded_channel();
        let address = if address.contains("://") {
            address.to_owned()
        } else {
            format!("unix://{address}")
        };
        tokio::spawn(forward(address, items));
        Self {
            namespace: namespace.to_owned(),
            queue,
        }
    }

    /// Hands in an event. Returns at once.
    pub fn publish(&self, topic: &str, event: &dyn MessageDyn) {
        let value = match event.write_to_bytes_dyn() {
            Ok(value) => value,
            Err(error) => {
                tracing::error!(topic, error = chain(&error), "an event cannot be encoded");
                return;
            }
        };
        let envelope = Envelope {
            topic: topic.to_owned(),
            namespace: self.namespace.clone(),
            timestamp: MessageField::some(timestamp(clock::now_ns())),
            event: MessageField::some(Any {
                type_url: event.descriptor_dyn().full_name().to_owned(),
                value,
                ..Default::default()
            }),
            ..Default::default()
        };
        // The other end lives as long as the runtime.
        let _ = self.queue.send(Item::Event(Box::new(envelope)));
    }

    /// Waits until containerd has taken everything, at most `limit`.
    pub async fn flush(&self, limit: Duration) {
        let (done, wait) = oneshot::channel();
        if self.queue.send(Item::Flush(done)).is_ok() {
            let _ = timeout(limit, wait).await;
        }
    }
}

async fn forward(address: String, mut items: mpsc::UnboundedReceiver<Item>) {
    let mut waiting = VecDeque::new();
    let mut client: Option<EventsClient> = None;
    let mut pause = FIRST_PAUSE;
    let mut refusals = 0;
    loop {
        if waiting.is_empty() {
            match items.recv().await {
                Some(item) => waiting.push_back(item),
                None => return,
            }
        }
        while let Ok(item) = items.try_recv() {
            waiting.push_back(item);
        }
        while waiting.len() > WAITING {
            waiting.pop_front();
        }
        match waiting.pop_front() {
            Some(Item::Flush(done)) => {
                let _ = done.send(());
            }
            Some(Item::Event(event)) => match send(&address, &mut client, &event).await {
                Ok(()) => {
                    pause = FIRST_PAUSE;
                    refusals = 0;
                }
                Err(Failure { error, refused }) => {
                    client = None;
                    refusals += u32::from(refused);
                    let again = refusals < REFUSALS;
                    tracing::debug!(
                        topic = event.topic,
                        error,
                        again,
                        "containerd does not take an event"
                    );
                    if again {
                        waiting.push_front(Item::Event(event));
                    } else {
                        refusals = 0;
                    }
                    sleep(pause).await;
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
            },
            None => {}
        }
    }
}

/// An event was not taken.
struct Failure {
    error: String,
    /// containerd said no, and will again.
    refused: bool,
}

async fn send(
    address: &str,
    client: &mut Option<EventsClient>,
    event: &Envelope,
) -> Result<(), Failure> {
    let absent = |error: String| Failure {
        error,
        refused: false,
    };
    let connected = match client {
        Some(connected) => connected,
        None => {
            let connection = timeout(CALL_LIMIT, Client::connect(address))
                .await
                .map_err(|_| absent("no connection in time".to_owned()))?
                .map_err(|error| absent(chain(&error)))?;
            client.insert(EventsClient::new(connection))
        }
    };
    let request = ForwardRequest {
        envelope: MessageField::some(event.clone()),
        ..Default::default()
    };
    let context = containerd_shim_protos::ttrpc::context::with_duration(CALL_LIMIT);
    match timeout(CALL_LIMIT, connected.forward(context, &request)).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => Err(Failure {
            refused: matches!(error, containerd_shim_protos::ttrpc::Error::RpcStatus(_)),
            error: chain(&error),
        }),
        Err(_) => Err(absent("no answer in time".to_owned())),
    }
}
