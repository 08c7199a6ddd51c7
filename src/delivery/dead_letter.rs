//! Dead letters: what could not be handled, as it came, with the reason in headers.
//!
//! Only once JetStream has the dead letter may the original be terminated. What an operator does with them is in
//! `archive`, what may be shown of them in `redact`.

mod archive;
mod letter;
mod redact;

use async_nats::jetstream::Context;
use async_nats::jetstream::message::PublishMessage;
use async_nats::{HeaderMap, HeaderName, HeaderValue};
use bytes::Bytes;
use metrics::counter;

use super::evidence;
use crate::catalog::Catalog;
use crate::id;
use crate::nats::schedule::ID;
use crate::nats::{DEAD_LETTERS, Message, Origin, STORED_AT, WriteError, publish};
use crate::pipeline::Refusal;
pub use archive::{Archive, ArchiveError, ReplayError};
pub use letter::{Filter, Letter, Summary};
pub use redact::{shown, shown_text};

/// Why it is here: a name of the closed list of reasons.
pub const REASON: &str = "Fanfare-Reason";
/// A sentence for the publisher.
pub const DETAIL: &str = "Fanfare-Detail";
/// The stream it came from.
pub const STREAM: &str = "Fanfare-Stream";
/// Its sequence there.
pub const SEQ: &str = "Fanfare-Seq";
/// Its subject there.
pub const SUBJECT: &str = "Fanfare-Subject";
/// Unix microseconds at which it was stored there, which a replay hands on.
pub const ORIGINAL_AT: &str = "Fanfare-Original-At";
/// How often it was delivered.
pub const DELIVERIES: &str = "Fanfare-Deliveries";
/// The publisher's `Nats-Msg-Id`.
pub const MSG_ID: &str = "Fanfare-Msg-Id";

/// How many bytes the original's body has. Only a dead letter that is cut has it.
pub const ORIGINAL_BYTES: &str = "Fanfare-Original-Bytes";

/// The headers of a dead letter that are ours. Others with our prefix are the original's, such as that of one that was due.
const OURS: [&str; 10] =
    [REASON, DETAIL, STREAM, SEQ, SUBJECT, ORIGINAL_AT, DELIVERIES, MSG_ID, ID, ORIGINAL_BYTES];

/// Names the dead letter for JetStream's `duplicate_window`.
const WRITE_ID: &str = "Nats-Msg-Id";

/// JetStream takes no more of headers in one message.
const HEADERS_BYTES_MAX: usize = 65_535;

/// Writes `message` to the dead letters, and waits until JetStream has it.
pub async fn write(
    context: &Context,
    catalog: &Catalog,
    message: &Message,
    refusal: &Refusal,
) -> Result<(), WriteError> {
    let origin = &message.origin;
    let (headers, body) = fitting(message, refusal, context.client().max_payload());
    let publish = PublishMessage::build().payload(body).headers(headers);
    publish::write(context, DEAD_LETTERS, subject(catalog, &message.subject), publish).await?;
    counter!("fanfare_delivery_dead_letters_total", "reason" => refusal.reason.as_str()).increment(1);
    tracing::warn!(
        reason = refusal.reason.as_str(),
        subject = %message.subject,
        stream_seq = origin.seq,
        deliveries = origin.deliveries,
        "a message went to the dead letters"
    );
    Ok(())
}

/// The same for each delivery of one message, and another for a message with its sequence in a stream that was made anew:
/// JetStream would take that one's dead letter for a repetition, and its original would be terminated.
fn message_id(origin: &Origin) -> String {
    format!("{}:{}:{}", origin.stream, origin.seq, origin.stored_at_us)
}

/// `dlq.{service}.{event}`, or `dlq.unknown` when the catalog has no such event.
fn subject(catalog: &Catalog, original: &str) -> String {
    let name = original.strip_prefix("notification.").and_then(|rest| rest.rsplit_once('.'));
    match name.and_then(|(name, _)| catalog.get(name)) {
        Some(event) => format!("dlq.{}", event.name),
        None => "dlq.unknown".to_owned(),
    }
}

/// Headers and body of the dead letter of `message` for a server that takes `bytes_max` in one message. It would be refused
/// for ever if what the server just took from its publisher could not be written with our headers added.
fn fitting(message: &Message, refusal: &Refusal, bytes_max: usize) -> (HeaderMap, Bytes) {
    let mut headers = headers(message, refusal);
    let (head, bytes) = (size(&headers), message.body.len());
    if head <= HEADERS_BYTES_MAX && head + bytes <= bytes_max {
        return (headers, message.body.clone());
    }
    let detail = format!("cut, its {bytes} bytes and its headers do not fit here: {}", refusal.detail);
    headers.insert(DETAIL, id::one_line(&detail).as_str());
    headers.insert(ORIGINAL_BYTES, bytes.to_string().as_str());
    if size(&headers) > HEADERS_BYTES_MAX.min(bytes_max / 2) {
        headers = OURS.iter().chain([&WRITE_ID]).filter_map(|name| line(&headers, name)).collect();
    }
    let room = bytes_max.saturating_sub(size(&headers));
    (headers, message.body.slice(..bytes.min(room)))
}

/// The header `name` as one line of some 500 bytes at most: the publisher's id has no limit.
fn line(headers: &HeaderMap, name: &'static str) -> Option<(HeaderName, HeaderValue)> {
    let value = headers.get(name)?;
    Some((HeaderName::from_static(name), HeaderValue::from(id::one_line(value.as_str()))))
}

/// The bytes of `headers` on the wire.
fn size(headers: &HeaderMap) -> usize {
    let lines = headers.iter().flat_map(|(name, values)| {
        let name: &str = name.as_ref();
        values.iter().map(move |value| name.len() + ": \r\n".len() + value.as_str().len())
    });
    "NATS/1.0\r\n\r\n".len() + lines.sum::<usize>()
}

/// The publisher's own headers and ours. NATS's own would make the server do things (expectations, TTL).
fn headers(message: &Message, refusal: &Refusal) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, values) in message.headers.iter() {
        let name: &str = name.as_ref();
        // The age of one that was sent again is in the origin, and is not that of this dead letter.
        if !name.to_ascii_lowercase().starts_with("nats-") && !name.eq_ignore_ascii_case(STORED_AT) {
            for value in values {
                headers.append(name, value.clone());
            }
        }
    }
    if let Some(id) = message.header("Nats-Msg-Id") {
        headers.insert(MSG_ID, id);
    }
    // A replay has another `Nats-Msg-Id` and another place, and is to be the same notification.
    headers.insert(ID, &*evidence::refused_id(message));
    let origin = &message.origin;
    headers.insert(REASON, refusal.reason.as_str());
    headers.insert(DETAIL, id::one_line(&refusal.detail).as_str());
    headers.insert(STREAM, origin.stream.as_str());
    headers.insert(SEQ, origin.seq.to_string().as_str());
    headers.insert(ORIGINAL_AT, origin.stored_at_us.to_string().as_str());
    headers.insert(SUBJECT, message.subject.as_str());
    headers.insert(DELIVERIES, origin.deliveries.to_string().as_str());
    headers.insert(WRITE_ID, message_id(origin).as_str());
    headers
}

/// Describes the metrics of this part.
pub(crate) fn describe() {
    metrics::describe_counter!(
        "fanfare_delivery_dead_letters_total",
        "messages sent to the dead letters, by reason"
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::Reason;

    #[test]
    fn headers_say_where_it_came_from_and_drop_those_of_nats() {
        let mut original = HeaderMap::new();
        original.insert("Nats-Msg-Id", "m1");
        original.insert("Nats-Expected-Stream", "X");
        original.insert("Trace", "t");
        original.insert(STORED_AT, "9");
        let origin = Origin { stream: "S".to_owned(), seq: 7, stored_at_us: 9, deliveries: 2 };
        let message = Message { subject: "a.b".to_owned(), body: "x".into(), headers: original, origin };
        let headers = headers(&message, &Refusal::new(Reason::Malformed, "two\nlines"));
        let get = |name| headers.get(name).map(|value| value.as_str().to_owned());
        assert_eq!(get(REASON).as_deref(), Some("malformed"));
        assert_eq!(get(DETAIL).as_deref(), Some("two lines"));
        assert_eq!(get(SEQ).as_deref(), Some("7"));
        assert_eq!(get(ORIGINAL_AT).as_deref(), Some("9"));
        assert_eq!((get(MSG_ID).as_deref(), get(ID).as_deref()), (Some("m1"), Some("m1")));
        assert_eq!(get("Trace").as_deref(), Some("t"));
        assert_eq!(get("Nats-Expected-Stream"), None);
        assert_eq!(get(STORED_AT), None);
    }

    #[test]
    fn what_does_not_fit_is_cut_and_says_so_and_nothing_else_is() {
        let refusal = Refusal::new(Reason::Malformed, "no");
        let message = |body: usize, header: usize, id: usize| {
            let mut headers = HeaderMap::new();
            headers.insert("Trace", "t".repeat(header).as_str());
            headers.insert("Nats-Msg-Id", "i".repeat(id).as_str());
            let origin = Origin { stream: "S".to_owned(), seq: 7, stored_at_us: 9, deliveries: 2 };
            Message { subject: "a.b".to_owned(), body: vec![b'x'; body].into(), headers, origin }
        };
        let whole = |message: &Message, bytes_max| {
            let (headers, body) = fitting(message, &refusal, bytes_max);
            assert!(size(&headers) <= HEADERS_BYTES_MAX && size(&headers) + body.len() <= bytes_max);
            let cut = headers.get(ORIGINAL_BYTES).is_some();
            assert_eq!(cut, headers.get(DETAIL).unwrap().as_str().starts_with("cut, "));
            assert_eq!(headers.get(WRITE_ID).unwrap().as_str(), "S:7:9");
            (!cut, headers.get("Trace").is_some(), body.len())
        };
        let one = message(10_000, 1, 1);
        let exactly = size(&headers(&one, &refusal)) + 10_000;
        assert_eq!(whole(&one, exactly), (true, true, 10_000));
        assert!(!whole(&one, exactly - 1).0);
        let (is_whole, trace, kept) = whole(&message(1_048_576, 100, 1), 1_048_576);
        assert!(!is_whole && trace && kept > 1_040_000, "{kept}");
        assert_eq!(whole(&message(10, 65_500, 1), 1_048_576), (false, false, 10));
        assert_eq!(whole(&message(10, 1, 65_000), 1_048_576), (false, false, 10));
    }

    #[test]
    fn a_redelivery_has_the_same_id_and_a_message_of_a_new_stream_another() {
        let origin =
            |stored_at_us, deliveries| Origin { stream: "S".to_owned(), seq: 1, stored_at_us, deliveries };
        assert_eq!(message_id(&origin(5, 1)), message_id(&origin(5, 2)));
        assert_ne!(message_id(&origin(5, 1)), message_id(&origin(6, 1)));
    }
}
