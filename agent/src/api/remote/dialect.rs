//! The older forms of the protocol, which API servers still pass on to nodes as they came: messages in base64, and results
//! that are a text, and none at all where all went well (`k8s.io/apimachinery/pkg/util/httpstream/wsstream`).

use axum::extract::WebSocketUpgrade;
use axum::extract::ws::{Message, Utf8Bytes};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::{BufMut as _, BytesMut};
use futures::{SinkExt as _, StreamExt as _, future, stream};
use http::header::SEC_WEBSOCKET_PROTOCOL;
use http::request::Parts;
use serde_json::Value;

use super::{Input, MAX_MESSAGE, Output, READ_BUFFER, STATUS};
use crate::api::ApiError;

/// The names, the best one first.
const PROTOCOLS: [&str; 5] = [
    "v5.channel.k8s.io",
    "v4.channel.k8s.io",
    "v4.base64.channel.k8s.io",
    "channel.k8s.io",
    "base64.channel.k8s.io",
];

/// How messages look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Dialect {
    /// A digit for the channel, then base64, as text.
    base64: bool,
    /// The result is a `metav1.Status`; else it is a text, and only told if something went wrong.
    status: bool,
}

impl Dialect {
    /// That of a protocol; callers that name none speak the oldest.
    fn of(protocol: &str) -> Self {
        Self {
            base64: protocol.contains("base64."),
            status: protocol.starts_with("v4.") || protocol.starts_with("v5."),
        }
    }

    /// What to send for a message of today's form, if anything.
    fn outgoing(self, message: Message) -> Option<Message> {
        let Message::Binary(bytes) = message else { return Some(message) };
        let (&channel, data) = bytes.split_first()?;
        let text;
        let data = match (channel, self.status) {
            (STATUS, false) => {
                text = failure(data)?;
                text.as_bytes()
            }
            _ => data,
        };
        if self.base64 {
            let digit = char::from(b'0'.saturating_add(channel));
            return Some(Message::Text(Utf8Bytes::from(format!("{digit}{}", STANDARD.encode(data)))));
        }
        let mut message = BytesMut::with_capacity(data.len() + 1);
        message.put_u8(channel);
        message.put_slice(data);
        Some(Message::Binary(message.freeze()))
    }

    /// A message that came, in today's form; one that means nothing is left out.
    fn incoming(self, message: Message) -> Option<Message> {
        let Message::Text(text) = &message else { return Some(message) };
        if !self.base64 {
            return Some(message);
        }
        let (digit, data) = text.split_at_checked(1)?;
        let channel = digit.parse::<u8>().ok()?;
        let data = STANDARD.decode(data).ok()?;
        let mut message = BytesMut::with_capacity(data.len() + 1);
        message.put_u8(channel);
        message.put_slice(&data);
        Some(Message::Binary(message.freeze()))
    }

    /// Both directions in today's form.
    pub fn translate(self, output: Output, input: Input) -> (Output, Input) {
        if self == Self::of(PROTOCOLS[0]) {
            return (output, input);
        }
        let output = output.with_flat_map(move |message| stream::iter(self.outgoing(message).map(Ok)));
        let input = input.filter_map(move |message| {
            future::ready(match message {
                Ok(message) => self.incoming(message).map(Ok),
                Err(error) => Some(Err(error)),
            })
        });
        (Box::pin(output), Box::pin(input))
    }
}

/// What went wrong, if anything did.
fn failure(status: &[u8]) -> Option<String> {
    let status: Value = serde_json::from_slice(status).ok()?;
    let failed = status["status"] != "Success";
    failed.then(|| status["message"].as_str().unwrap_or("the command failed").to_owned())
}

/// Settles the protocol.
///
/// # Errors
/// The caller names protocols, and none of them is known here.
pub(super) fn negotiate(
    parts: &Parts,
    upgrade: WebSocketUpgrade,
) -> Result<(WebSocketUpgrade, Dialect), ApiError> {
    let upgrade = upgrade
        .protocols(PROTOCOLS)
        .max_message_size(MAX_MESSAGE)
        .read_buffer_size(READ_BUFFER)
        .max_frame_size(MAX_MESSAGE);
    let chosen = upgrade.selected_protocol().map(|protocol| protocol.to_str().unwrap_or_default().to_owned());
    let Some(chosen) = chosen else {
        if parts.headers.contains_key(SEC_WEBSOCKET_PROTOCOL) {
            let known = PROTOCOLS.join(", ");
            return Err(ApiError::bad_request(format!(
                "unable to upgrade: no common protocol, want {known}"
            )));
        }
        return Ok((upgrade, Dialect::of("")));
    };
    let dialect = Dialect::of(&chosen);
    Ok((upgrade, dialect))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::frame;
    use super::*;

    const SUCCESS: &[u8] = br#"{"status":"Success"}"#;
    const FAILURE: &[u8] = br#"{"status":"Failure","message":"exit status 3"}"#;

    #[test]
    fn the_oldest_form_tells_failures_only_and_as_text() {
        let old = Dialect::of("channel.k8s.io");
        assert_eq!(old, Dialect::of(""));
        assert_eq!(old.outgoing(frame(STATUS, SUCCESS)), None);
        assert_eq!(old.outgoing(frame(STATUS, FAILURE)), Some(frame(STATUS, b"exit status 3")));
        assert_eq!(old.outgoing(frame(1, b"out")), Some(frame(1, b"out")));
    }

    #[test]
    fn base64_has_a_digit_for_the_channel() {
        let text = Dialect::of("v4.base64.channel.k8s.io");
        let sent = text.outgoing(frame(1, b"out")).unwrap();
        assert_eq!(sent, Message::Text("1b3V0".into()));
        assert_eq!(text.incoming(sent), Some(frame(1, b"out")));
        assert_eq!(text.incoming(Message::Text("xb3V0".into())), None);
        assert_eq!(text.incoming(Message::Text("1?".into())), None);
        let status = text.outgoing(frame(STATUS, SUCCESS)).unwrap();
        assert_eq!(text.incoming(status), Some(frame(STATUS, SUCCESS)));
    }
}
