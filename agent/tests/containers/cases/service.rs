//! The ttrpc service, called as a host calls it.

use ttrpc::Code;
use ttrpc::r#async::Client;
use ttrpc::context::Context;
use vmpod_agent::boot::listen_unix;
use vmpod_agent::server::{AgentService, serve};
use vmpod_agent_protocol::PROTOCOL_VERSION;
use vmpod_agent_protocol::messages::{
    CreateContainerRequest, Empty, EventKind, HandshakeRequest, NextEventsRequest, ProcessRef,
    SignalRequest,
};
use vmpod_agent_protocol::service::AgentClient;

use crate::fixture::Fixture;

fn code(error: ttrpc::Error) -> (Code, String) {
    match error {
        ttrpc::Error::RpcStatus(status) => (status.code(), status.message().to_owned()),
        other => panic!("{other}"),
    }
}

pub async fn service_answers_with_codes_and_sentences(fixture: Fixture) {
    let listeners = listen_unix(&fixture.scratch).unwrap();
    let service = AgentService::new(fixture.engine.clone(), None, listeners.ready_at_us);
    let _server = serve(service, listeners.service).await.unwrap();
    let address = format!("unix://{}", fixture.scratch.join("agent.sock").display());
    let client = AgentClient::new(Client::connect(&address).await.unwrap());
    let context = || Context::default();

    let hello = HandshakeRequest {
        version: PROTOCOL_VERSION,
        ..Default::default()
    };
    let answer = client.handshake(context(), &hello).await.unwrap();
    assert_eq!(answer.version, PROTOCOL_VERSION);
    assert!(answer.features.iter().any(|feature| feature == "pod"));
    let strange = HandshakeRequest {
        version: 99,
        ..Default::default()
    };
    let (refused, text) = code(client.handshake(context(), &strange).await.unwrap_err());
    assert_eq!(refused, Code::FAILED_PRECONDITION);
    assert!(text.contains("99"), "{text}");

    let spec = fixture.spec("served", "exit 6");
    let create = CreateContainerRequest {
        container_id: "served".into(),
        oci_spec: serde_json::to_vec(&spec).unwrap(),
        ..Default::default()
    };
    let started = client.create_container(context(), &create).await.unwrap();
    assert!(started.pid > 1);
    let (refused, _) = code(
        client
            .create_container(context(), &create)
            .await
            .unwrap_err(),
    );
    assert_eq!(refused, Code::ALREADY_EXISTS);
    let process = ProcessRef {
        container_id: "served".into(),
        ..Default::default()
    };
    client.start_container(context(), &process).await.unwrap();
    let status = client.wait_process(context(), &process).await.unwrap();
    assert_eq!(status.code, 6);
    let (refused, _) = code(
        client
            .start_container(context(), &process)
            .await
            .unwrap_err(),
    );
    assert_eq!(refused, Code::FAILED_PRECONDITION);
    let signal = SignalRequest {
        container_id: "served".into(),
        signal: 9,
        ..Default::default()
    };
    let (refused, _) = code(client.signal_process(context(), &signal).await.unwrap_err());
    assert_eq!(refused, Code::NOT_FOUND);
    assert_eq!(
        client
            .delete_container(context(), &process)
            .await
            .unwrap()
            .code,
        6
    );
    let (refused, text) = code(client.wait_process(context(), &process).await.unwrap_err());
    assert_eq!(refused, Code::NOT_FOUND);
    assert!(text.contains("served"), "{text}");
    let bad = CreateContainerRequest {
        container_id: "bad".into(),
        oci_spec: b"{".to_vec(),
        ..Default::default()
    };
    let (refused, _) = code(client.create_container(context(), &bad).await.unwrap_err());
    assert_eq!(refused, Code::INVALID_ARGUMENT);
    let (refused, _) = code(
        client
            .get_pod_status(context(), &Empty::default())
            .await
            .unwrap_err(),
    );
    assert_eq!(refused, Code::FAILED_PRECONDITION);
    let poll = NextEventsRequest::default();
    let events = client.next_events(context(), &poll).await.unwrap().events;
    let kinds: Vec<_> = events
        .iter()
        .map(|event| event.kind.enum_value_or_default())
        .collect();
    assert_eq!(
        kinds,
        [
            EventKind::CONTAINER_CREATED,
            EventKind::CONTAINER_STARTED,
            EventKind::CONTAINER_EXITED
        ]
    );
    assert_eq!(events.last().unwrap().exit.code, 6);
}
