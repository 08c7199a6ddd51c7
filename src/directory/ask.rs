//! Asks the service that owns memberships for a whole audience, by a NATS request.
//!
//! The request goes to `audience.resolve.{kind}` with `{"kind","id"}`. One message answers it, so an audience is as
//! large as one message of the server may be (`max_payload`, 1 MiB unless the server says otherwise: about 20,000
//! members with ids of 16 characters). What the bucket's subscription brings later is laid over the answer.

use std::sync::Arc;
use std::time::Duration;

use async_nats::{Client, RequestErrorKind};
use serde::Deserialize;

use super::members::{Change, Key, Members};
use crate::catalog::Role;
use crate::clock::Now;
use crate::id::{self, UserId};

/// Subjects of the questions, before the kind.
const SUBJECT: &str = "audience.resolve";

/// All of them.
pub const QUESTIONS: &str = "audience.resolve.*";

/// The `error` of an answer that knows no such audience.
const NOT_FOUND: &str = "not_found";

/// A version further ahead than this is no time in microseconds: it would hide every change to come.
const AHEAD_MAX: Duration = Duration::from_hours(24);

/// Why a service gave no members.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// Nobody subscribes to the subject, or this account may not send to it.
    #[error("{subject}: nobody answers there (is the service running, and may this user publish to it?)")]
    Nobody {
        /// The subject.
        subject: String,
    },
    /// No answer in time.
    #[error("{subject}: no answer within {after:?}")]
    TimedOut {
        /// The subject.
        subject: String,
        /// The time limit.
        after: Duration,
    },
    /// The connection failed.
    #[error("{subject}: {source}")]
    Nats {
        /// The subject.
        subject: String,
        /// What the client said.
        source: async_nats::RequestError,
    },
    /// The service could not say.
    #[error("{subject}: the service says: {error}")]
    Refused {
        /// The subject.
        subject: String,
        /// The `error` of its answer.
        error: String,
    },
    /// The answer is not what it should be.
    #[error("{subject}: the answer cannot be used: {why}")]
    Answer {
        /// The subject.
        subject: String,
        /// What is wrong with it.
        why: String,
    },
}

/// An answer. Fields that are not here are for later versions and are passed over.
#[derive(Deserialize)]
struct Answer {
    #[serde(default)]
    members: Option<Vec<Member>>,
    #[serde(default)]
    group: Option<Arc<str>>,
    #[serde(default)]
    v: Option<u64>,
    #[serde(default)]
    error: Option<String>,
}

#[derive(Deserialize)]
struct Member {
    user: UserId,
    #[serde(default)]
    role: Role,
}

/// Asks for `key`. One that the service does not know comes back as [`Members::is_unknown`].
pub(crate) async fn ask(client: &Client, key: &Key, timeout: Duration) -> Result<Members, AskError> {
    let subject = format!("{SUBJECT}.{}", key.kind.as_str());
    let asked = Now::read();
    let body = serde_json::json!({ "kind": key.kind.as_str(), "id": &*key.id }).to_string();
    let request = async_nats::Request::new().payload(body.into()).timeout(Some(timeout));
    match client.send_request(subject.clone(), request).await {
        Ok(answer) => members(&answer.payload, asked, subject),
        Err(error) if error.kind() == RequestErrorKind::NoResponders => Err(AskError::Nobody { subject }),
        Err(error) if error.kind() == RequestErrorKind::TimedOut => {
            Err(AskError::TimedOut { subject, after: timeout })
        }
        Err(source) => Err(AskError::Nats { subject, source }),
    }
}

fn members(body: &[u8], asked: Now, subject: String) -> Result<Members, AskError> {
    let wrong = |why: String| AskError::Answer { subject: subject.clone(), why };
    let answer: Answer = serde_json::from_slice(body).map_err(|error| wrong(error.to_string()))?;
    match answer.error {
        Some(error) if error == NOT_FOUND => return Ok(Members::default()),
        Some(error) => return Err(AskError::Refused { subject, error: id::one_line(&error) }),
        None => {}
    }
    let now_us = asked.unix_ms * 1_000;
    let v = answer.v.unwrap_or(now_us);
    if v == 0 || v > now_us + AHEAD_MAX.as_micros() as u64 {
        return Err(wrong(format!("v is {v}, and must be Unix microseconds")));
    }
    let mut members = Members::default();
    match (answer.members, answer.group) {
        (Some(all), None) => {
            // The answer is the whole audience: older changes of users who are not in it are over.
            members.apply(Change::Gone { v: v - 1 });
            for Member { user, role } in all {
                members.apply(Change::Member { user, role: Some(role), v });
            }
        }
        (None, Some(group)) if id::is_valid(&group) => members.apply(Change::Alias { group, v }),
        (None, Some(group)) => return Err(wrong(format!("group `{group}`: {}", id::InvalidId))),
        _ => return Err(wrong("it has neither members nor group, or both".to_owned())),
    }
    Ok(members)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(body: &str) -> Result<Members, AskError> {
        let asked = Now { instant: tokio::time::Instant::now(), unix_ms: 1_000_000 };
        members(body.as_bytes(), asked, "audience.resolve.group".to_owned())
    }

    fn change(user: &str, role: Option<Role>, v: u64) -> Change {
        Change::Member { user: UserId::new(user).unwrap(), role, v }
    }

    #[test]
    fn an_answer_is_the_whole_audience_as_of_its_version() {
        let mut members = read(r#"{"members":[{"user":"a","role":"owner"},{"user":"b"}],"v":100}"#).unwrap();
        for older in [change("c", Some(Role::Member), 99), change("a", None, 99)] {
            members.apply(older);
        }
        let names = |members: &Members| members.iter().map(|(user, _)| user.to_string()).collect::<Vec<_>>();
        assert_eq!(names(&members), ["a", "b"]);
        members.apply(change("b", None, 101));
        members.apply(change("c", Some(Role::Member), 102));
        assert_eq!(names(&members), ["a", "c"]);
    }

    #[test]
    fn nobody_in_it_is_not_the_same_as_not_known() {
        assert!(!read(r#"{"members":[]}"#).unwrap().is_unknown());
        assert!(read(r#"{"error":"not_found"}"#).unwrap().is_unknown());
        assert_eq!(read(r#"{"group":"g1","v":5}"#).unwrap().alias().unwrap().as_ref(), "g1");
    }

    #[test]
    fn answers_that_cannot_be_meant_are_refused() {
        for bad in [
            "",
            "{}",
            r#"{"members":[{"user":"a b"}]}"#,
            r#"{"members":[{"user":"a","role":"boss"}]}"#,
            r#"{"members":[],"group":"g"}"#,
            r#"{"group":"a.b"}"#,
            r#"{"members":[],"v":0}"#,
            r#"{"members":[],"v":1700000000000000000}"#,
        ] {
            assert!(matches!(read(bad), Err(AskError::Answer { .. })), "{bad}");
        }
        assert!(matches!(read(r#"{"error":"busy"}"#), Err(AskError::Refused { .. })));
    }
}
