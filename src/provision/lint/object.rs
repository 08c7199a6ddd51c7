//! Checks of a stream or consumer by itself.

use super::super::Wanted;
use super::super::finding::{Code, Finding};
use super::super::subject::covers;
use super::{is_needed, is_queue, is_work_queue};
use crate::nats::DEAD_LETTERS;

/// The server's longest name.
const NAME_MAX: usize = 255;

const MILLISECOND: i64 = 1_000_000;
/// The server's shortest times of a stream.
const SHORTEST: i64 = 100 * MILLISECOND;
/// The server's `duplicate_window` when none is declared; not longer than `max_age`.
const WINDOW: i64 = 120_000 * MILLISECOND;

/// Server memory for one remembered message id, measured on nats-server 2.15.1.
const DEDUP_ID_BYTES: u64 = 485;
/// What three replicas take of one stream a second, measured on two shared cores.
const PUBLISH_RATE: u64 = 27_000;
/// What remembering ids may cost. 30 s at that rate are 393 MB.
const DEDUP_BYTES_MAX: u64 = 512 * 1024 * 1024;

/// Mistakes of a stream.
pub(super) fn stream(stream: &Wanted, consumers: &[&Wanted]) -> Vec<Finding> {
    let mut findings: Vec<Finding> =
        [name(stream, &stream.stream, "name"), replicas(stream)].into_iter().flatten().collect();
    let most = stream.number("max_consumers");
    if most <= 0 {
        let reason = "max_consumers is not set, and then the server's own limit holds";
        findings.push(stream.finding(Code::ConsumersUnbounded, "max_consumers", reason, "set max_consumers"));
    } else if consumers.len() > usize::try_from(most).unwrap_or(usize::MAX) {
        let reason = format!("{} consumers are declared and max_consumers is {most}", consumers.len());
        findings.push(stream.finding(Code::ConsumersTooMany, "max_consumers", reason, "raise it"));
    }
    if stream.number("max_bytes") <= 0 {
        let reason = "max_bytes is not set, so it can fill the disk of every other stream";
        findings.push(stream.finding(Code::BytesUnbounded, "max_bytes", reason, "set max_bytes"));
    }
    findings.extend(refused(stream));
    findings.extend(discard(stream));
    findings.extend(is_queue(stream).then(|| deduplication(stream)).flatten());
    findings
}

/// Mistakes of a consumer.
pub(super) fn consumer(consumer: &Wanted, stream: Option<&Wanted>) -> Vec<Finding> {
    let own = consumer.consumer.as_deref().unwrap_or_default();
    let mut findings: Vec<Finding> =
        [name(consumer, own, "durable_name"), replicas(consumer)].into_iter().flatten().collect();
    let other = consumer.text("name");
    if !other.is_empty() && other != own {
        let reason = format!("name is {other} and durable_name is {own}, and the server refuses that");
        findings.push(consumer.finding(Code::NameDiffers, "name", reason, "write the same"));
    }
    let deliveries = consumer.number("max_deliver");
    let steps = consumer.tables("backoff").count();
    if deliveries > 0 && steps > usize::try_from(deliveries).unwrap_or(usize::MAX) {
        let reason =
            format!("backoff has {steps} steps and max_deliver is {deliveries}, and the server refuses that");
        findings.push(consumer.finding(
            Code::BackoffTooLong,
            "backoff",
            reason,
            "shorten it or raise max_deliver",
        ));
    }
    let Some(stream) = stream else {
        let reason = format!("its stream {} is not declared", consumer.stream);
        let fix = "declare the stream or correct the name";
        findings.push(consumer.finding(Code::StreamUnknown, "", reason, fix));
        return findings;
    };
    if (is_work_queue(stream) || is_needed(stream)) && consumer.text("ack_policy") != "explicit" {
        let reason = "each message there is to be acknowledged by itself";
        findings.push(consumer.finding(
            Code::AckPolicy,
            "ack_policy",
            reason,
            "set ack_policy = \"explicit\"",
        ));
    }
    let subjects = stream.texts("subjects");
    for filter in consumer.filters() {
        if !subjects.iter().any(|subject| covers(subject, filter)) {
            let reason = format!("{filter} is not within the stream's subjects, so nothing arrives there");
            let fix = "correct the filter or the stream";
            findings.push(consumer.finding(Code::TooWide, "filter_subjects", reason, fix));
        }
    }
    let (ours, theirs) = (consumer.number("num_replicas"), stream.number("num_replicas").max(1));
    if ours > theirs || (ours != 0 && ours != theirs && is_work_queue(stream)) {
        let reason = format!("it has {ours} replicas and its stream {theirs}, and the server refuses that");
        findings.push(consumer.finding(
            Code::ReplicasConsumer,
            "num_replicas",
            reason,
            "remove it: those of the stream hold",
        ));
    }
    findings
}

/// What the server refuses of a name. A bucket's is read by clients, which take less.
fn name(object: &Wanted, name: &str, field: &str) -> Option<Finding> {
    let bucket = object.consumer.is_none().then(|| name.strip_prefix("KV_")).flatten();
    let sound = match bucket {
        Some(bucket) => {
            let letter = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
            !bucket.is_empty() && bucket.chars().all(letter)
        }
        None => !name.contains(|c: char| c.is_whitespace() || c.is_control() || ".*>/\\".contains(c)),
    };
    (!sound || name.len() > NAME_MAX).then(|| {
        let fix = "write letters, digits, - and _";
        object.finding(Code::NameInvalid, field, format!("NATS does not take the name `{name}`"), fix)
    })
}

fn replicas(object: &Wanted) -> Option<Finding> {
    let number = object.number("num_replicas");
    (number > 0 && number % 2 == 0).then(|| {
        let reason = format!("{number} replicas bear no more losses than {}", number - 1);
        object.finding(Code::ReplicasEven, "num_replicas", reason, "write 1, 3 or 5")
    })
}

/// What the server refuses of a stream's fields, each of which it would take beside others.
fn refused(stream: &Wanted) -> Vec<Finding> {
    let (max_age, window) = (stream.number("max_age"), stream.number("duplicate_window"));
    let per_subject = stream.flag("discard_new_per_subject");
    let has_mirror = stream.config.get("mirror").is_some_and(|mirror| !mirror.is_null());
    let rules = [
        (0 < max_age && max_age < SHORTEST, "max_age", "is shorter than 100 ms", "write 100ms or more"),
        (
            0 < window && window < SHORTEST,
            "duplicate_window",
            "is shorter than 100 ms",
            "write 100ms or more",
        ),
        (0 < max_age && max_age < window, "duplicate_window", "is longer than max_age", "shorten it"),
        (
            per_subject && stream.text("discard") != "new",
            "discard_new_per_subject",
            "needs discard = \"new\"",
            "add it, or remove this",
        ),
        (
            per_subject && stream.number("max_msgs_per_subject") <= 0,
            "discard_new_per_subject",
            "needs max_msgs_per_subject",
            "set it, or remove this",
        ),
        (
            stream.flag("mirror_direct") && !has_mirror,
            "mirror_direct",
            "needs a mirror",
            "declare one, or remove this",
        ),
    ];
    let broken = rules.into_iter().filter(|(is_broken, ..)| *is_broken);
    let finding = |(_, field, reason, fix)| {
        let reason = format!("{field} {reason}, and the server refuses that");
        stream.finding(Code::WrongValue, field, reason, fix)
    };
    broken.map(finding).collect()
}

/// A queue says no when it is full. One with schedules cannot: the server takes only `old` there.
fn discard(stream: &Wanted) -> Option<Finding> {
    let keeps =
        (is_work_queue(stream) && !stream.flag("allow_msg_schedules")) || stream.stream == DEAD_LETTERS;
    if !keeps {
        return None;
    }
    if stream.text("discard") != "new" {
        let reason = "when full it drops what nobody has handled, in silence";
        return Some(stream.finding(Code::DiscardsOld, "discard", reason, "set discard = \"new\""));
    }
    let drops = stream.number("max_msgs_per_subject") > 0 && !stream.flag("discard_new_per_subject");
    drops.then(|| {
        let reason = "a subject that is full drops its oldest, in silence";
        let fix = "remove max_msgs_per_subject or set discard_new_per_subject = true";
        stream.finding(Code::DiscardsOld, "max_msgs_per_subject", reason, fix)
    })
}

fn deduplication(queue: &Wanted) -> Option<Finding> {
    let (declared, max_age) = (queue.number("duplicate_window"), queue.number("max_age"));
    let (window, whose) = match declared {
        0 if max_age > 0 => (WINDOW.min(max_age), "the server's default duplicate_window"),
        0 => (WINDOW, "the server's default duplicate_window"),
        declared => (declared, "duplicate_window"),
    };
    let window_s = window.unsigned_abs() / 1_000_000_000;
    let cost = window_s.saturating_mul(PUBLISH_RATE * DEDUP_ID_BYTES);
    (cost > DEDUP_BYTES_MAX).then(|| {
        let reason = format!("{whose} of {window_s} s can cost {} MB of server memory", cost / 1_000_000);
        queue.finding(Code::DedupMemory, "duplicate_window", reason, "set it to 30s or less")
    })
}
