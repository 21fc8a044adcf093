//! Lines on the control socket, both ways: the host's requests with their configurations, and the machine's answers.

#![no_main]

use libfuzzer_sys::fuzz_target;
use vmpod_vmm_api::{Event, Message, Request};

fuzz_target!(|data: &[u8]| {
    if let Ok(request) = serde_json::from_slice::<Request>(data) {
        let text = serde_json::to_string(&request).expect("a request is JSON");
        let again: Request = serde_json::from_str(&text).expect("what was written is read");
        assert_eq!(again, request);
        if let Request::Create(config) = request {
            let valid = config.validate();
            for net in &config.nets {
                // What building the machine relies on.
                let addresses = net.mac_bytes().is_some()
                    && net
                        .sender
                        .as_ref()
                        .is_none_or(|sender| sender.mac_bytes().is_some());
                assert!(valid.is_err() || addresses, "{net:?}");
            }
        }
    }
    if let Ok(message) = serde_json::from_slice::<Message>(data) {
        let text = serde_json::to_string(&message).expect("a message is JSON");
        let again: Message = serde_json::from_str(&text).expect("what was written is read");
        assert_eq!(again, message);
        if let Message::Event(Event::Exited { exit }) = message {
            let _ = exit.to_string();
        }
    }
});
