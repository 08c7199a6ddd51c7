//! Checks declarations against the catalog and each other, without a server. Pure.
//!
//! The server does not check most of this: it accepts filters outside a stream's subjects, and on updates even two
//! consumers of a work queue that take the same message.

use std::fmt;

use serde_json::Value;

use super::subject::{covers, overlap};
use super::{Desired, Wanted};
use crate::catalog::{Catalog, Event, Lane};
use crate::nats::{ADVISORIES, DEAD_LETTERS, INBOX, NOTIFICATIONS, OFFLINE_PUSH};

/// Streams that the gateway cannot do without.
const REQUIRED: [&str; 12] = [
    NOTIFICATIONS,
    "SCHEDULES",
    OFFLINE_PUSH,
    INBOX,
    DEAD_LETTERS,
    "OUTCOMES",
    ADVISORIES,
    "KV_audience",
    "KV_presence",
    "KV_nodes",
    "KV_control",
    "KV_transient",
];

/// Streams that must refuse rather than drop.
const NEVER_DROP: [&str; 3] = [NOTIFICATIONS, OFFLINE_PUSH, DEAD_LETTERS];

/// Server memory for one remembered message id, measured on nats-server 2.15.1.
const DEDUP_ID_BYTES: u64 = 485;
/// What three replicas take of one stream a second, measured on two shared cores.
const PUBLISH_RATE: u64 = 27_000;
/// What remembering ids may cost. 30 s at that rate are 393 MB.
const DEDUP_BYTES_MAX: u64 = 512 * 1024 * 1024;

/// What kind of mistake a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Code {
    /// A stream that the gateway needs is not declared.
    StreamMissing,
    /// Two declarations have the same name.
    Duplicate,
    /// A consumer's stream is not declared.
    StreamUnknown,
    /// A stored event of the catalog is in no stream, or in no consumer.
    NotCovered,
    /// Two consumers, or two streams, take the same subjects.
    Overlap,
    /// A lane's consumer takes an event of another lane.
    WrongLane,
    /// A stream would store an event that must not be stored.
    EphemeralStored,
    /// A stream takes notifications that the catalog does not know, or a consumer what its stream does not take.
    TooWide,
    /// `max_consumers` is not set.
    ConsumersUnbounded,
    /// `max_bytes` is not set.
    BytesUnbounded,
    /// A stream that must not lose anything discards old messages.
    DiscardsOld,
    /// Remembering message ids could cost too much memory.
    DedupMemory,
    /// Due notifications would not reach their stream.
    SchedulesUnsourced,
    /// A worker could not acknowledge messages one by one.
    AckPolicy,
}

impl Code {
    /// The code's name in listings.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::StreamMissing => "stream-missing",
            Self::Duplicate => "duplicate",
            Self::StreamUnknown => "stream-unknown",
            Self::NotCovered => "not-covered",
            Self::Overlap => "overlap",
            Self::WrongLane => "wrong-lane",
            Self::EphemeralStored => "ephemeral-stored",
            Self::TooWide => "too-wide",
            Self::ConsumersUnbounded => "consumers-unbounded",
            Self::BytesUnbounded => "bytes-unbounded",
            Self::DiscardsOld => "discards-old",
            Self::DedupMemory => "dedup-memory",
            Self::SchedulesUnsourced => "schedules-unsourced",
            Self::AckPolicy => "ack-policy",
        }
    }
}

/// One mistake in the declarations.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// What kind of mistake.
    pub code: Code,
    /// The file and object.
    pub place: String,
    /// What is wrong.
    pub reason: String,
    /// What to do.
    pub fix: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} [{}] {}; {}", self.place, self.code.as_str(), self.reason, self.fix)
    }
}

/// One finding a line.
pub(super) fn list(findings: &[Finding]) -> String {
    findings.iter().map(|finding| format!("  {finding}")).collect::<Vec<_>>().join("\n")
}

fn finding(code: Code, wanted: &Wanted, reason: impl Into<String>, fix: impl Into<String>) -> Finding {
    let place = format!("{}: {}", wanted.file, wanted.place());
    Finding { code, place, reason: reason.into(), fix: fix.into() }
}

/// All mistakes; empty when the declarations can be applied.
pub fn lint(desired: &Desired, catalog: &Catalog) -> Vec<Finding> {
    let mut findings = names(desired);
    findings.extend(desired.streams.iter().flat_map(limits));
    findings.extend(pairs(&desired.streams, |stream| stream.texts("subjects")));
    for stream in &desired.streams {
        findings.extend(consumers_of(desired, stream));
    }
    findings.extend(events(desired, catalog));
    findings.extend(schedules(desired));
    findings
}

/// Bytes that streams of one kind of storage, `file` or `memory`, reserve when they are made: of each stream once, and of
/// all replicas.
pub fn reserved(desired: &Desired, storage: &str) -> (u64, u64) {
    let field = |stream: &Wanted, name: &str| stream.config.get(name).and_then(Value::as_u64);
    let ours = desired.streams.iter().filter(|stream| {
        let kind = stream.config.get("storage").and_then(Value::as_str);
        kind.unwrap_or("file") == storage
    });
    ours.fold((0, 0), |(once, all), stream| {
        let bytes = field(stream, "max_bytes").unwrap_or_default();
        (once + bytes, all + bytes * field(stream, "num_replicas").unwrap_or(1))
    })
}

fn names(desired: &Desired) -> Vec<Finding> {
    let mut findings = Vec::new();
    for required in REQUIRED {
        if !desired.streams.iter().any(|stream| stream.stream == required) {
            findings.push(Finding {
                code: Code::StreamMissing,
                place: "streams".to_owned(),
                reason: format!("{required} is not declared and the gateway needs it"),
                fix: "declare it".to_owned(),
            });
        }
    }
    let all: Vec<&Wanted> = desired.streams.iter().chain(&desired.consumers).collect();
    for (at, wanted) in all.iter().enumerate() {
        if let Some(other) = all[..at].iter().find(|other| other.place() == wanted.place()) {
            let reason = format!("is also declared in {}", other.file);
            findings.push(finding(Code::Duplicate, wanted, reason, "remove one of them"));
        }
    }
    for consumer in &desired.consumers {
        if !desired.streams.iter().any(|stream| stream.stream == consumer.stream) {
            let reason = format!("its stream {} is not declared", consumer.stream);
            findings.push(finding(
                Code::StreamUnknown,
                consumer,
                reason,
                "declare the stream or correct the name",
            ));
        }
    }
    findings
}

fn limits(stream: &Wanted) -> Vec<Finding> {
    let number = |field: &str| stream.config.get(field).and_then(Value::as_i64).unwrap_or_default();
    let mut findings = Vec::new();
    if number("max_consumers") <= 0 {
        let reason = "max_consumers is not set, and then the server's own limit holds";
        findings.push(finding(Code::ConsumersUnbounded, stream, reason, "set max_consumers"));
    }
    if number("max_bytes") <= 0 {
        let reason = "max_bytes is not set, so it can fill the disk of every other stream";
        findings.push(finding(Code::BytesUnbounded, stream, reason, "set max_bytes"));
    }
    let discard = stream.config.get("discard").and_then(Value::as_str).unwrap_or("old");
    if NEVER_DROP.contains(&stream.stream.as_str()) && discard != "new" {
        let reason = "when full it drops what nobody has handled, in silence";
        findings.push(finding(Code::DiscardsOld, stream, reason, "set discard = \"new\""));
    }
    let window_s = number("duplicate_window").unsigned_abs() / 1_000_000_000;
    let cost = window_s * PUBLISH_RATE * DEDUP_ID_BYTES;
    if stream.stream == NOTIFICATIONS && cost > DEDUP_BYTES_MAX {
        let reason =
            format!("duplicate_window of {window_s} s can cost {} MB of server memory", cost / 1_000_000);
        findings.push(finding(Code::DedupMemory, stream, reason, "set it to 30s or less"));
    }
    findings
}

/// Findings for each pair of objects that share a subject.
fn pairs<'a>(objects: &'a [Wanted], subjects: impl Fn(&'a Wanted) -> Vec<&'a str>) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (at, one) in objects.iter().enumerate() {
        for other in &objects[..at] {
            if one.place() == other.place() || (one.consumer.is_some() && one.stream != other.stream) {
                continue;
            }
            let theirs = subjects(other);
            for subject in subjects(one) {
                if let Some(same) = theirs.iter().find(|theirs| overlap(theirs, subject)) {
                    let reason = format!("{subject} meets {same} of {}", other.place());
                    findings.push(finding(Code::Overlap, one, reason, "leave each subject to one of them"));
                }
            }
        }
    }
    findings
}

/// Checks of one stream's consumers that need no catalog.
fn consumers_of(desired: &Desired, stream: &Wanted) -> Vec<Finding> {
    let mut findings = Vec::new();
    let subjects = stream.texts("subjects");
    let ours: Vec<Wanted> =
        desired.consumers.iter().filter(|one| one.stream == stream.stream).cloned().collect();
    for consumer in &ours {
        for filter in consumer.filters() {
            if !subjects.iter().any(|subject| covers(subject, filter)) {
                let reason =
                    format!("{filter} is not within the stream's subjects, so nothing arrives there");
                findings.push(finding(Code::TooWide, consumer, reason, "correct the filter or the stream"));
            }
        }
        if consumer.config.get("ack_policy").and_then(Value::as_str) != Some("explicit") {
            let reason = "a work queue needs each message acknowledged by itself";
            findings.push(finding(Code::AckPolicy, consumer, reason, "set ack_policy = \"explicit\""));
        }
    }
    // Only a work queue gives a message to one consumer.
    if stream.config.get("retention").and_then(Value::as_str) == Some("workqueue") {
        findings.extend(pairs(&ours, Wanted::filters));
    }
    findings
}

/// Does the catalog agree with the work queue and its consumers?
fn events(desired: &Desired, catalog: &Catalog) -> Vec<Finding> {
    let Some(queue) = notifications(desired) else {
        return Vec::new();
    };
    let mut findings = Vec::new();
    let known = catalog.stored_subjects();
    for subject in queue.texts("subjects") {
        if !known.iter().any(|known| covers(known, subject)) {
            let reason = format!("{subject} takes events that the catalog does not know and nobody handles");
            findings.push(finding(Code::TooWide, queue, reason, "write subjects = \"@catalog\""));
        }
    }
    for event in catalog.events().iter().filter(|event| !event.ephemeral) {
        findings.extend(coverage(desired, queue, event));
    }
    for ephemeral in catalog.ephemeral_subjects() {
        for stream in &desired.streams {
            let subjects = stream.texts("subjects");
            if let Some(subject) = subjects.into_iter().find(|one| overlap(one, &ephemeral)) {
                let reason = format!("{subject} would store {ephemeral}, which is never to be stored");
                let fix = "name the stored events one by one";
                findings.push(finding(Code::EphemeralStored, stream, reason, fix));
            }
        }
    }
    findings
}

/// A stored event belongs into the work queue and into the consumer of its lane.
fn coverage(desired: &Desired, queue: &Wanted, event: &Event) -> Vec<Finding> {
    let mut findings = Vec::new();
    let filter = event.subject_filter();
    if !queue.texts("subjects").iter().any(|subject| covers(subject, &filter)) {
        let reason = format!("{} of the catalog is in no subject, so its publishers fail", event.name);
        findings.push(finding(Code::NotCovered, queue, reason, "write subjects = \"@catalog\""));
    }
    let takes = |one: &&Wanted| {
        one.stream == NOTIFICATIONS && one.filters().iter().any(|taken| covers(taken, &filter))
    };
    let found: Vec<&Wanted> = desired.consumers.iter().filter(takes).collect();
    if found.is_empty() {
        let reason = format!("{} of the catalog is taken by no consumer and waits until max_age", event.name);
        let fix = format!("add @catalog:{} to a consumer", event.lane.as_str());
        findings.push(finding(Code::NotCovered, queue, reason, fix));
    }
    for consumer in found {
        let lane = Lane::ALL.iter().find(|lane| consumer.consumer.as_deref() == Some(lane.as_str()));
        if lane.is_some_and(|lane| *lane != event.lane) {
            let reason = format!("{} is in lane {} of the catalog", event.name, event.lane.as_str());
            let fix = "write filter_subjects = \"@catalog:LANE\" with the consumer's own lane";
            findings.push(finding(Code::WrongLane, consumer, reason, fix));
        }
    }
    findings
}

fn schedules(desired: &Desired) -> Option<Finding> {
    let queue = notifications(desired)?;
    let sources = queue.config.get("sources").and_then(Value::as_array);
    let mut names =
        sources.into_iter().flatten().filter_map(|source| source.get("name").and_then(Value::as_str));
    let missing = !names.any(|name| name == "SCHEDULES");
    missing.then(|| {
        let reason = "does not source SCHEDULES, so due notifications never arrive";
        let fix = "add a source with subject_transforms due.> to notification.>";
        finding(Code::SchedulesUnsourced, queue, reason, fix)
    })
}

fn notifications(desired: &Desired) -> Option<&Wanted> {
    desired.streams.iter().find(|stream| stream.stream == NOTIFICATIONS)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::provision::{Declarations, Env};

    #[test]
    fn built_in_declarations_have_no_mistake() {
        for env in [Env::Dev, Env::Production] {
            let (desired, catalog) = built_in(env);
            assert_eq!(lint(&desired, &catalog), []);
        }
    }

    #[test]
    fn each_mistake_has_its_code() {
        type Edit = fn(&mut Desired);
        let cases: [(Code, Edit); 15] = [
            (Code::StreamMissing, |d| {
                d.streams.retain(|one| one.stream != "INBOX");
            }),
            (Code::Duplicate, |d| d.streams.push(d.streams[0].clone())),
            (Code::StreamUnknown, |d| {
                d.consumers[0].stream = "NOTIFICATION".to_owned();
            }),
            (Code::NotCovered, |d| d.consumers.truncate(2)),
            (Code::NotCovered, |d| {
                set(queue(d), "subjects", json!(["notification.friend.request.*"]));
            }),
            (Code::Overlap, |d| {
                set(&mut d.consumers[0], "filter_subjects", json!(["notification.*.*.user-1"]));
            }),
            (Code::Overlap, |d| {
                set(queue(d), "subjects", json!(["inbox.user-1"]));
            }),
            (Code::WrongLane, |d| {
                set(&mut d.consumers[0], "filter_subjects", json!(["notification.file.processing.*"]));
            }),
            (Code::EphemeralStored, |d| {
                set(queue(d), "subjects", json!(["notification.>"]));
            }),
            (Code::TooWide, |d| {
                set(queue(d), "subjects", json!(["notification.friend.*.*"]));
            }),
            (Code::TooWide, |d| {
                set(&mut d.consumers[0], "filter_subjects", json!(["notify.x"]));
            }),
            (Code::ConsumersUnbounded, |d| {
                set(queue(d), "max_consumers", json!(-1));
            }),
            (Code::BytesUnbounded, |d| set(queue(d), "max_bytes", json!(0))),
            (Code::DiscardsOld, |d| set(queue(d), "discard", json!("old"))),
            (Code::DedupMemory, |d| {
                set(queue(d), "duplicate_window", json!(120_000_000_000_u64));
            }),
        ];
        for (code, edit) in cases {
            let (mut desired, catalog) = built_in(Env::Dev);
            edit(&mut desired);
            let findings = lint(&desired, &catalog);
            assert!(findings.iter().any(|finding| finding.code == code), "{code:?}: {findings:?}");
        }
    }

    #[test]
    fn sources_and_ack_policies_are_checked() {
        let (mut desired, catalog) = built_in(Env::Dev);
        queue(&mut desired).config.remove("sources");
        set(&mut desired.consumers[0], "ack_policy", json!("all"));

        let codes: Vec<_> = lint(&desired, &catalog).into_iter().map(|finding| finding.code).collect();

        assert_eq!(codes, [Code::AckPolicy, Code::SchedulesUnsourced]);
    }

    #[test]
    fn what_is_reserved_follows_the_replicas() {
        const MIB: u64 = 1024 * 1024;
        let (desired, _) = built_in(Env::Dev);
        assert_eq!(reserved(&desired, "file"), (2_692 * MIB, 2_692 * MIB), "as docs/operations.md says");
        assert_eq!(reserved(&desired.with_replicas(3), "file").1, 3 * 2_692 * MIB);
        let (production, _) = built_in(Env::Production);
        assert_eq!(reserved(&production, "memory"), (1_028 * MIB, 3 * 1_028 * MIB));
        let (once, all) = reserved(&production, "file");
        assert_eq!((once / 1024 / MIB, all), (175, 3 * once));
    }

    #[test]
    fn a_finding_says_where_why_and_what_to_do() {
        let (mut desired, catalog) = built_in(Env::Dev);
        set(queue(&mut desired), "discard", json!("old"));

        let findings = lint(&desired, &catalog);

        assert_eq!(
            list(&findings),
            "  streams/notifications.toml: stream NOTIFICATIONS [discards-old] when full it drops what nobody has \
             handled, in silence; set discard = \"new\""
        );
    }

    fn built_in(env: Env) -> (Desired, Catalog) {
        let catalog = Catalog::built_in().unwrap();
        (Declarations::built_in().unwrap().desired(&catalog, env).unwrap(), catalog)
    }

    fn queue(desired: &mut Desired) -> &mut Wanted {
        desired.streams.iter_mut().find(|stream| stream.stream == NOTIFICATIONS).unwrap()
    }

    fn set(wanted: &mut Wanted, field: &str, value: Value) {
        wanted.config.insert(field.to_owned(), value);
    }
}
