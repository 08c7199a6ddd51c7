//! Stage 1: subject and body become a catalog row, a target and an envelope, or a refusal.

use std::sync::Arc;

use bytes::Bytes;

use super::{Reason, Refusal};
use crate::catalog::{Catalog, Event, SubjectError};
use crate::protocol::{Envelope, EnvelopeError};

/// A message that says what it is.
#[derive(Debug, Clone)]
pub struct Decoded {
    /// The catalog row.
    pub event: Arc<Event>,
    /// The last token of the subject: a valid id, or `broadcast`.
    pub target: Arc<str>,
    /// The body.
    pub envelope: Envelope,
}

/// Decodes one message. Fails when nobody could say what it means, or for whom.
pub fn decode(catalog: &Catalog, subject: &str, body: &Bytes) -> Result<Decoded, Refusal> {
    let (event, target) = row(catalog, subject)?;
    let envelope = Envelope::decode(body).map_err(|error| refusal(&error))?;
    if let Some(named) = envelope.event_type.as_deref().filter(|named| *named != event.name) {
        let detail = format!("the subject says {}, the envelope's type says {named}", event.name);
        return Err(Refusal::new(Reason::TypeMismatch, detail));
    }
    Ok(Decoded { event: event.clone(), target: target.into(), envelope })
}

/// The row and the target of a subject, which is `notification.{service}.{event}.{target}`.
fn row<'a, 's>(catalog: &'a Catalog, subject: &'s str) -> Result<(&'a Arc<Event>, &'s str), Refusal> {
    catalog.by_subject(subject).map_err(|error| {
        let reason = match error {
            SubjectError::Shape | SubjectError::UnknownEvent => Reason::UnknownEvent,
            SubjectError::Target => Reason::InvalidId,
        };
        Refusal::new(reason, format!("{error}: {subject}"))
    })
}

fn refusal(error: &EnvelopeError) -> Refusal {
    let reason = match error {
        EnvelopeError::TooLarge(_) => Reason::TooLarge,
        EnvelopeError::Json(_) | EnvelopeError::TooDeep => Reason::Malformed,
        EnvelopeError::NotificationId | EnvelopeError::Id { .. } => Reason::InvalidId,
    };
    Refusal::new(reason, error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reason(subject: &str, body: &str) -> Reason {
        let catalog = Catalog::built_in().unwrap();
        decode(&catalog, subject, &Bytes::copy_from_slice(body.as_bytes())).unwrap_err().reason
    }

    #[test]
    fn old_publishers_send_only_type_and_payload() {
        let catalog = Catalog::built_in().unwrap();
        let body = Bytes::from_static(br#"{"type":"friend.request","payload":{"a":1}}"#);
        let decoded = decode(&catalog, "notification.friend.request.u1", &body).unwrap();
        assert_eq!((decoded.event.name.as_str(), &*decoded.target), ("friend.request", "u1"));
        assert_eq!(decoded.envelope.payload.json(), r#"{"a":1}"#);
    }

    #[test]
    fn a_body_that_is_no_envelope_is_malformed() {
        for body in ["", "{", "[]", r#"{"payload":1}"#, r#"{"type":"friend.request"}"#] {
            assert_eq!(reason("notification.friend.request.u1", body), Reason::Malformed, "{body}");
        }
    }

    #[test]
    fn subject_and_type_must_agree() {
        let body = r#"{"type":"friend.deleted","payload":{}}"#;
        assert_eq!(reason("notification.friend.request.u1", body), Reason::TypeMismatch);
    }

    #[test]
    fn a_broadcast_has_no_other_target() {
        assert_eq!(reason("notification.admin.maintenance.u1", r#"{"payload":{}}"#), Reason::InvalidId);
    }

    #[test]
    fn ids_outside_the_alphabet_are_refused() {
        let body = r#"{"payload":{}}"#;
        assert_eq!(reason("notification.friend.request.u*1", body), Reason::InvalidId);
        let body = r#"{"payload":{},"from_user_id":"a b"}"#;
        assert_eq!(reason("notification.friend.request.u1", body), Reason::InvalidId);
    }

    #[test]
    fn subjects_the_catalog_lacks_are_unknown() {
        for subject in ["notification.friend.hug.u1", "notification.friend", "other"] {
            assert_eq!(reason(subject, r#"{"payload":{}}"#), Reason::UnknownEvent, "{subject}");
        }
    }

    #[test]
    fn more_than_256_kib_is_too_large() {
        let body = format!(r#"{{"payload":{{"a":"{}"}}}}"#, "x".repeat(256 * 1024));
        assert_eq!(reason("notification.friend.request.u1", &body), Reason::TooLarge);
    }
}
