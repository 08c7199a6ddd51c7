//! Schedules: a notification that JetStream holds until it is due, and then publishes on its own subject.
//!
//! Stream SCHEDULES keeps it under `schedule.{kind}.{id}`; when it is due the server writes it to `due.…`, and
//! NOTIFICATIONS takes it from there as `notification.…`. A schedule with the same kind and id replaces the earlier
//! one, so a repetition adds nothing. Nothing is cancelled: whoever handles it looks at the state then.

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

/// Header with the id that the notification had when it was scheduled.
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

    /// `schedule.{kind}.{id}`; ids that are no subject token become a hash.
    fn key(&self) -> String {
        if id::is_valid(self.id) {
            return format!("schedule.{}.{}", self.kind, self.id);
        }
        format!("schedule.{}.{:016x}", self.kind, id::stable_hash([self.id]))
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
        let key = |id| {
            Schedule { kind: "deliver", id, at: 0, subject: "notification.a.b.c", body: Bytes::new() }.key()
        };
        assert_eq!(key("n-1"), "schedule.deliver.n-1");
        let hashed = key("n 1.*");
        assert!(id::is_valid(hashed.strip_prefix("schedule.deliver.").unwrap()), "{hashed}");
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
}
