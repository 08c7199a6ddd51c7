//! What a change of one field does to what is stored and to who uses it, by the server's version. Pure: a table in the
//! form of a function. `tests/integration/provision/classes.rs` tries its rows on a real server.

use std::time::Duration;

use serde::Serialize;
use serde_json::Value;

use crate::provision::observe::parse;
use crate::provision::units;

/// How much thought a change needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Class {
    /// Nobody notices.
    #[default]
    Safe,
    /// Nothing stored is lost, but somebody will see a difference.
    Care,
    /// The server deletes stored messages, in silence.
    Destructive,
    /// The server refuses it: only a new object can have it.
    Impossible,
}

impl Class {
    /// The class in words.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Safe => "safe",
            Self::Care => "needs care",
            Self::Destructive => "destructive",
            Self::Impossible => "impossible in place",
        }
    }
}

/// Fields of a stream that the server never changes.
const FIXED_STREAM: [&str; 3] = ["storage", "persist_mode", "allow_msg_counter"];
/// Fields of a stream that can be switched on and never off.
const ONE_WAY: [&str; 5] = ["sealed", "deny_delete", "deny_purge", "allow_msg_ttl", "allow_msg_schedules"];
/// Fields of a consumer that the server never changes.
const FIXED_CONSUMER: [&str; 9] = [
    "deliver_policy",
    "opt_start_seq",
    "opt_start_time",
    "ack_policy",
    "replay_policy",
    "max_waiting",
    "mem_storage",
    "idle_heartbeat",
    "flow_control",
];

/// What a verdict depends on beside the field.
#[derive(Debug, Clone, Copy, Default)]
pub struct Facts<'a> {
    /// The server's version.
    pub version: &'a str,
    /// Messages that the stream holds.
    pub messages: u64,
    /// Bytes that the stream holds.
    pub bytes: u64,
    /// Age of its oldest message.
    pub oldest: Option<Duration>,
}

/// The class of a change and its reason.
pub type Verdict = (Class, String);

fn safe() -> Verdict {
    (Class::Safe, String::new())
}

fn care(reason: &str) -> Verdict {
    (Class::Care, reason.to_owned())
}

/// The verdict on a field of a stream that goes from `live` to `wanted`, both in the common form, in which `Null` is the
/// server's default.
pub fn stream(field: &str, live: &Value, wanted: &Value, facts: Facts<'_>) -> Verdict {
    let is = |value: &Value, text: &str| value.as_str() == Some(text);
    let narrower = limit(wanted) < limit(live);
    if FIXED_STREAM.contains(&field) {
        return never();
    }
    if ONE_WAY.contains(&field) {
        return if wanted.is_null() {
            (Class::Impossible, "it cannot be switched off again".to_owned())
        } else {
            care("it cannot be switched off again")
        };
    }
    match field {
        "first_seq" => care("only a new stream begins there"),
        "retention" if is(live, "workqueue") || is(wanted, "workqueue") => never(),
        "retention" if is(wanted, "interest") => {
            destroys(facts.messages > 0, || "the server deletes what no consumer waits for".to_owned())
        }
        "mirror" if !wanted.is_null() => never(),
        "max_consumers" if parse(facts.version) < (2, 12, 5) => {
            (Class::Impossible, "servers before 2.12.5 never change it".to_owned())
        }
        "max_bytes" => destroys(limit(wanted) < facts.bytes, || {
            let surplus = units::bytes(facts.bytes - limit(wanted));
            format!("the stream holds {}: {surplus} do not fit", units::bytes(facts.bytes))
        }),
        "max_msgs" => destroys(limit(wanted) < facts.messages, || {
            let surplus = facts.messages - limit(wanted);
            format!("the stream holds {} messages: {surplus} do not fit", facts.messages)
        }),
        "max_msgs_per_subject" => destroys(narrower && facts.messages > limit(wanted), || {
            format!("of {} messages, those beyond {} of a subject go", facts.messages, limit(wanted))
        }),
        "max_age" => {
            let oldest = facts.oldest.unwrap_or_default();
            destroys(oldest > Duration::from_nanos(limit(wanted)), || {
                format!("messages older than that go; the oldest is {} s old", oldest.as_secs())
            })
        }
        "max_msg_size" if narrower => care("larger messages are refused"),
        "max_consumers" if narrower => care("more consumers than that cannot be made"),
        "duplicate_window" if narrower => care("repetitions are noticed for a shorter time"),
        "subjects" if loses(live, wanted) => {
            care("who publishes to a subject that goes is refused; what is stored of it stays")
        }
        "num_replicas" if wanted.as_u64().unwrap_or(1) < live.as_u64().unwrap_or(1) => {
            care("fewer servers may fail")
        }
        "num_replicas" => (Class::Care, format!("{} are copied to more servers", units::bytes(facts.bytes))),
        "discard" if is(wanted, "new") => care("publishers are refused when the stream is full"),
        "discard" => care("when the stream is full, its oldest messages go in silence"),
        "no_ack" if !wanted.is_null() => care("publishers get no acknowledgement"),
        "allow_direct" | "mirror_direct" | "allow_rollup_hdrs" | "allow_atomic" | "allow_batched"
            if wanted.is_null() =>
        {
            care("who relies on it is refused")
        }
        "discard_new_per_subject"
        | "sources"
        | "mirror"
        | "republish"
        | "subject_transform"
        | "consumer_limits"
        | "placement" => care("it changes where messages come from or go to"),
        "retention"
        | "max_msg_size"
        | "max_consumers"
        | "duplicate_window"
        | "subjects"
        | "no_ack"
        | "allow_direct"
        | "mirror_direct"
        | "allow_rollup_hdrs"
        | "allow_atomic"
        | "allow_batched"
        | "compression"
        | "description"
        | "metadata"
        | "subject_delete_marker_ttl" => safe(),
        _ => unknown(),
    }
}

/// The same for a field of a consumer.
pub fn consumer(field: &str, live: &Value, wanted: &Value) -> Verdict {
    let below = |default: u64| wanted.as_u64().unwrap_or(default) < live.as_u64().unwrap_or(default);
    if FIXED_CONSUMER.contains(&field) {
        return never();
    }
    match field {
        "filter_subjects" if loses(live, wanted) => {
            care("messages of a subject that goes wait for another consumer of it")
        }
        "ack_wait" if below(30_000_000_000) => care("who takes longer has the message delivered twice"),
        "max_deliver" if limit(wanted) < limit(live) => {
            care("messages that were delivered as often already are given up")
        }
        "max_ack_pending" if below(1_000) => care("fewer messages can be in hand at once"),
        "backoff" => care("redeliveries come at other times"),
        "headers_only" => care("who reads it gets messages without their bodies, or with them again"),
        "inactive_threshold" if !wanted.is_null() => {
            care("the server deletes it when nobody asks for so long")
        }
        "max_batch" | "max_expires" | "max_bytes" if limit(wanted) < limit(live) => {
            care("larger requests are refused")
        }
        "rate_limit_bps" | "priority_policy" | "priority_groups" | "priority_timeout" | "num_replicas" => {
            care("it changes how fast, or to whom, messages go")
        }
        "filter_subjects" | "ack_wait" | "max_deliver" | "max_ack_pending" | "inactive_threshold"
        | "max_batch" | "max_expires" | "max_bytes" | "description" | "metadata" | "sample_freq" => safe(),
        _ => unknown(),
    }
}

fn never() -> Verdict {
    (Class::Impossible, "the server never changes it".to_owned())
}

/// A field that this version of the program does not know.
fn unknown() -> Verdict {
    care("what it does to stored messages is not known here")
}

fn destroys(lost: bool, what: impl Fn() -> String) -> Verdict {
    if lost { (Class::Destructive, what()) } else { safe() }
}

/// A limit as a number; without one everything fits.
fn limit(value: &Value) -> u64 {
    value.as_u64().unwrap_or(u64::MAX)
}

/// True when a list does not keep all it has.
pub(super) fn loses(live: &Value, wanted: &Value) -> bool {
    let items = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let kept = items(wanted);
    // A consumer without filters takes everything.
    (live.is_null() && !kept.is_empty())
        || items(live).iter().any(|item| !kept.contains(item) && !kept.is_empty())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn streams() {
        let facts =
            Facts { version: "2.15.1", messages: 10, bytes: 500, oldest: Some(Duration::from_mins(1)) };
        let minute = 60_000_000_000_u64;
        for (field, live, wanted, expected) in [
            ("storage", json!("memory"), json!(null), Class::Impossible),
            ("retention", json!("workqueue"), json!(null), Class::Impossible),
            ("retention", json!(null), json!("workqueue"), Class::Impossible),
            ("retention", json!(null), json!("interest"), Class::Destructive),
            ("retention", json!("interest"), json!(null), Class::Safe),
            ("allow_msg_ttl", json!(true), json!(null), Class::Impossible),
            ("allow_msg_ttl", json!(null), json!(true), Class::Care),
            ("max_bytes", json!(1_000), json!(499), Class::Destructive),
            ("max_bytes", json!(1_000), json!(500), Class::Safe),
            ("max_bytes", json!(400), json!(null), Class::Safe),
            ("max_msgs", json!(null), json!(9), Class::Destructive),
            ("max_msgs", json!(null), json!(10), Class::Safe),
            ("max_msgs_per_subject", json!(20), json!(5), Class::Destructive),
            ("max_msgs_per_subject", json!(5), json!(20), Class::Safe),
            ("max_age", json!(null), json!(minute - 1), Class::Destructive),
            ("max_age", json!(null), json!(minute), Class::Safe),
            ("max_msg_size", json!(null), json!(5), Class::Care),
            ("subjects", json!(["a", "b"]), json!(["a"]), Class::Care),
            ("subjects", json!(["a"]), json!(["a", "b"]), Class::Safe),
            ("num_replicas", json!(3), json!(null), Class::Care),
            ("num_replicas", json!(null), json!(3), Class::Care),
            ("discard", json!("new"), json!(null), Class::Care),
            ("duplicate_window", json!(5), json!(4), Class::Care),
            ("duplicate_window", json!(4), json!(5), Class::Safe),
            ("description", json!("a"), json!("b"), Class::Safe),
            ("what_is_this", json!("a"), json!("b"), Class::Care),
        ] {
            let (class, reason) = stream(field, &live, &wanted, facts);
            assert_eq!(class, expected, "{field}: {live} -> {wanted}");
            assert_eq!(reason.is_empty(), class == Class::Safe, "{field}: {reason}");
        }
    }

    #[test]
    fn what_is_lost_is_counted() {
        let facts = Facts { version: "2.15.1", messages: 10, bytes: 500, oldest: None };
        let (_, reason) = stream("max_bytes", &json!(1_000), &json!(100), facts);
        assert_eq!(reason, "the stream holds 500 B: 400 B do not fit");
        let (_, reason) = stream("max_msgs", &json!(null), &json!(7), facts);
        assert_eq!(reason, "the stream holds 10 messages: 3 do not fit");
    }

    #[test]
    fn the_servers_version_decides() {
        for (version, expected) in [
            ("2.12.0", Class::Impossible),
            ("2.12.4", Class::Impossible),
            ("2.12.5", Class::Safe),
            ("2.15.1", Class::Safe),
        ] {
            let facts = Facts { version, ..Facts::default() };
            assert_eq!(stream("max_consumers", &json!(5), &json!(6), facts).0, expected, "{version}");
        }
    }

    #[test]
    fn consumers() {
        for (field, live, wanted, expected) in [
            ("deliver_policy", json!("new"), json!(null), Class::Impossible),
            ("ack_policy", json!("all"), json!("explicit"), Class::Impossible),
            ("max_waiting", json!(7), json!(null), Class::Impossible),
            ("ack_wait", json!(null), json!(10_000_000_000_u64), Class::Care),
            ("ack_wait", json!(10_000_000_000_u64), json!(null), Class::Safe),
            ("max_deliver", json!(null), json!(20), Class::Care),
            ("max_deliver", json!(20), json!(null), Class::Safe),
            ("max_ack_pending", json!(4_096), json!(null), Class::Care),
            ("filter_subjects", json!(["a", "b"]), json!(["a"]), Class::Care),
            ("filter_subjects", json!(null), json!(["a"]), Class::Care),
            ("filter_subjects", json!(["a"]), json!(null), Class::Safe),
            ("metadata", json!(null), json!({"a": "b"}), Class::Safe),
        ] {
            let (class, reason) = consumer(field, &live, &wanted);
            assert_eq!(class, expected, "{field}: {live} -> {wanted}");
            assert_eq!(reason.is_empty(), class == Class::Safe, "{field}: {reason}");
        }
    }
}
