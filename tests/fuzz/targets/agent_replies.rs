//! What an agent that the guest has taken over answers: messages of the service, and what the host makes of them.

#![no_main]

use libfuzzer_sys::fuzz_target;
use protobuf::Message;
use vmpod_agent_protocol::messages as m;
use vmpod_agent_protocol::stream;
use vmpod_fuzz::Feed;
use vmpod_shim::pod::status::{self, PodStatus};

/// Bytes of the largest status that a pod of one container may come to on disk.
const STATUS_BYTES: usize = 128 << 10;

fuzz_target!(|data: &[u8]| {
    let mut feed = Feed::new(data);
    let kind = feed.u8();
    let bytes = feed.rest();
    match kind % 8 {
        0 | 1 => {
            let Ok(told) = m::PodStatus::parse_from_bytes(bytes) else {
                return;
            };
            let mut pod = status::example::running();
            pod.containers.truncate(1);
            pod.update(&told, 9);
            pod.update(&told, 9);
            let written = serde_json::to_vec(&pod).expect("a status is JSON");
            assert!(written.len() < STATUS_BYTES, "{}", written.len());
            let _: PodStatus = serde_json::from_slice(&written).expect("it is read again");
        }
        2 => {
            if let Ok(told) = m::ExitStatus::parse_from_bytes(bytes) {
                let exit = status::exit(&told);
                assert!(exit.signal <= 64);
            }
        }
        3 => {
            let _ = m::NextEventsResponse::parse_from_bytes(bytes);
        }
        4 => {
            let _ = m::StatsResponse::parse_from_bytes(bytes);
        }
        5 => {
            let _ = m::ListProcessesResponse::parse_from_bytes(bytes);
        }
        6 => {
            let _ = stream::decode_line::<stream::StreamHeader>(bytes);
            let _ = stream::decode_line::<stream::StreamReply>(bytes);
        }
        _ => {
            let text = status::bounded(&String::from_utf8_lossy(bytes));
            assert!(text.len() <= vmpod_agent_protocol::limits::MESSAGE_BYTES);
            assert!(
                !text
                    .chars()
                    .any(|c| c.is_control() && c != '\n' && c != '\t')
            );
        }
    }
});
