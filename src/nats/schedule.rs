//! Schedules: a notification that JetStream holds until it is due, and then publishes on its own subject.
//!
//! Stream SCHEDULES keeps it under `schedule.{kind}.{id}-{hash of its subject}`; when it is due the server writes it to `due.…`, and
//! NOTIFICATIONS takes it from there as `notification.…`. A schedule with the same kind, id and
//! subject replaces the earlier one, so a repetition adds nothing; one id may be used for several recipients. Nothing is cancelled: whoever handles it looks at the state then.

use async_nats::HeaderMap;
use async_nats::jetstream::Context;
use async_nats::jetstream::message::PublishMessage;
use bytes::Bytes;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::publish::{self, WriteError};
use crate::id;

/// Notifications that are not due yet.
pub const SCHEDULES: &str = "SCHEDULES";

/// Header of a notification that a schedule released. It is never scheduled again.
pub const DUE: &str = "Fanfare-Due";

/// What schedules are written on.
pub const SUBJECTS: &str = "schedule.>";

/// Header with the id that the notification had when it was scheduled, or went to the dead letters.
pub const ID: &str = "Fanfare-Id";

/// Header with what scheduled it: the schedule's kind.
pub const KIND: &str = "Fanfare-Schedule";

/// A notification to be published later.
#[derive(Debug)]
pub struct Schedule<'a> {
    /// What schedules it: a token of the subject, such as `deliver`.
    pub kind: &'static str,
    /// The notification's id.
    pub id: &'a str,
    /// Unix seconds at which it is due.
    pub at: u64,
    /// Its subject, `notification.…`.
    pub subject: &'a str,
    /// Its body.
    pub body: Bytes,
}

impl Schedule<'_> {
    /// Writes it, and waits until JetStream has it.
    pub async fn write(&self, context: &Context) -> Result<(), WriteError> {
        let message = PublishMessage::build().payload(self.body.clone()).headers(self.headers());
        publish::write(context, SCHEDULES, self.key(), message).await
    }

    /// `schedule.{kind}.{id}-{hash}`; an id that is no subject token is in the hash alone.
    fn key(&self) -> String {
        if id::is_valid(self.id) {
            return format!("schedule.{}.{}-{:016x}", self.kind, self.id, id::stable_hash([self.subject]));
        }
        format!("schedule.{}.{:016x}", self.kind, id::stable_hash([self.id, self.subject]))
    }

    fn headers(&self) -> HeaderMap {
        let at = OffsetDateTime::from_unix_timestamp(self.at as i64).unwrap_or(OffsetDateTime::UNIX_EPOCH);
        let at = at.format(&Rfc3339).unwrap_or_default();
        let target = self.subject.strip_prefix("notification.").unwrap_or(self.subject);
        let mut headers = HeaderMap::new();
        headers.insert("Nats-Schedule", format!("@at {at}").as_str());
        headers.insert("Nats-Schedule-Target", format!("due.{target}").as_str());
        // Without it the stream's max_age would end the schedule before it is due.
        headers.insert("Nats-TTL", "never");
        headers.insert(DUE, "1");
        headers.insert(KIND, self.kind);
        headers.insert(ID, id::one_line(self.id).as_str());
        headers
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_subjects_whatever_the_id() {
        for id in ["n-1", "n 1.*"] {
            let key = key(id, "notification.a.b.c");
            assert!(id::is_valid(key.strip_prefix("schedule.deliver.").unwrap()), "{key}");
        }
        assert!(key("n-1", "notification.a.b.c").starts_with("schedule.deliver.n-1-"));
    }

    #[test]
    fn one_id_has_a_schedule_for_each_subject_and_only_one() {
        for id in ["n-1", "n 1.*"] {
            assert_eq!(key(id, "notification.a.b.c"), key(id, "notification.a.b.c"));
            assert_ne!(key(id, "notification.a.b.c"), key(id, "notification.a.b.d"));
        }
        assert_ne!(key("n 1", "notification.a.b.c"), key("n 2", "notification.a.b.c"));
    }

    #[test]
    fn headers_say_when_and_where_to() {
        let schedule = Schedule {
            kind: "deliver",
            id: "n",
            at: 1_700_000_000,
            subject: "notification.a.b.c",
            body: Bytes::new(),
        };
        let headers = schedule.headers();
        let get = |name| headers.get(name).unwrap().as_str().to_owned();
        assert_eq!(get("Nats-Schedule"), "@at 2023-11-14T22:13:20Z");
        assert_eq!(get("Nats-Schedule-Target"), "due.a.b.c");
    }

    fn key(id: &str, subject: &str) -> String {
        Schedule { kind: "deliver", id, at: 0, subject, body: Bytes::new() }.key()
    }
}
