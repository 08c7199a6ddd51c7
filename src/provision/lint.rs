//! Checks declarations against the catalog and each other, without a server. Pure.
//!
//! The server does not check most of this: it accepts filters outside a stream's subjects, and on updates even two
//! consumers of a work queue that take the same message.
//!
//! A stream is a queue of notifications when it is a work queue that takes subjects below `notification.`. There may be
//! one, or several that share the events.

mod object;
mod queue;

use serde_json::Value;

use super::finding::{Code, Finding, sorted};
use super::subject::{covers, overlap};
use super::{Desired, Wanted};
use crate::catalog::Catalog;
use crate::nats::{ADVISORIES, DEAD_LETTERS, INBOX, OFFLINE_PUSH};

/// Streams that the gateway cannot do without, beside its queues, and what it writes there.
const REQUIRED: [(&str, &[&str]); 11] = [
    (SCHEDULES, &["schedule.>", "due.>"]),
    (OFFLINE_PUSH, &["push.offline.*"]),
    (INBOX, &["inbox.*"]),
    (DEAD_LETTERS, &["dlq.>"]),
    ("OUTCOMES", &["outcome.*"]),
    (ADVISORIES, &[]),
    ("KV_audience", &["$KV.audience.>"]),
    ("KV_presence", &["$KV.presence.>"]),
    ("KV_nodes", &["$KV.nodes.>"]),
    ("KV_control", &["$KV.control.>"]),
    ("KV_transient", &["$KV.transient.>"]),
];

const SCHEDULES: &str = "SCHEDULES";

/// All mistakes but those that a declaration allows; empty when the declarations can be applied.
pub fn lint(desired: &Desired, catalog: &Catalog) -> Vec<Finding> {
    let queues: Vec<&Wanted> = desired.streams.iter().filter(|stream| is_queue(stream)).collect();
    let mut findings = required(desired, &queues);
    findings.extend(duplicates(desired));
    for stream in &desired.streams {
        let consumers: Vec<&Wanted> =
            desired.consumers.iter().filter(|one| one.stream == stream.stream).collect();
        findings.extend(object::stream(stream, &consumers));
        findings.extend(origins(desired, stream));
        if is_work_queue(stream) {
            // Only a work queue gives a message to one consumer.
            findings.extend(pairs(&consumers, Wanted::takes));
        }
    }
    for consumer in &desired.consumers {
        let stream = desired.streams.iter().find(|stream| stream.stream == consumer.stream);
        findings.extend(object::consumer(consumer, stream));
    }
    findings.extend(pairs(&desired.streams.iter().collect::<Vec<_>>(), |stream| stream.texts("subjects")));
    findings.extend(survival(desired));
    findings.extend(queue::check(desired, &queues, catalog));
    findings.retain(|finding| !allowed(desired, finding));
    sorted(findings)
}

fn allowed(desired: &Desired, finding: &Finding) -> bool {
    if finding.object.is_empty() {
        return desired.allowed.contains(&finding.code);
    }
    let mut all = desired.streams.iter().chain(&desired.consumers);
    all.any(|one| one.place() == finding.object && one.allowed.contains(&finding.code))
}

/// Bytes that streams of one kind of storage, `file` or `memory`, reserve when they are made: of each stream once, and of
/// all replicas.
pub fn reserved(desired: &Desired, storage: &str) -> (u64, u64) {
    let number = |stream: &Wanted, name: &str| u64::try_from(stream.number(name)).unwrap_or_default();
    let ours =
        desired.streams.iter().filter(|stream| (stream.text("storage") == "memory") == (storage == "memory"));
    ours.fold((0, 0), |(once, all), stream| {
        let bytes = number(stream, "max_bytes");
        (once + bytes, all + bytes * number(stream, "num_replicas").max(1))
    })
}

fn is_work_queue(stream: &Wanted) -> bool {
    stream.text("retention") == "workqueue"
}

/// A work queue of notifications.
fn is_queue(stream: &Wanted) -> bool {
    is_work_queue(stream) && stream.texts("subjects").iter().any(|subject| overlap(subject, "notification.>"))
}

/// A queue, or another stream that the gateway needs.
fn is_needed(stream: &Wanted) -> bool {
    is_queue(stream) || REQUIRED.iter().any(|(name, _)| *name == stream.stream)
}

fn required(desired: &Desired, queues: &[&Wanted]) -> Vec<Finding> {
    let missing = |what: &str| Finding {
        code: Code::StreamMissing,
        place: None,
        object: String::new(),
        reason: format!("{what} is not declared and the gateway needs it"),
        fix: "declare it".to_owned(),
    };
    let mut findings = Vec::new();
    if queues.is_empty() {
        findings.push(missing("a work queue with subjects below notification."));
    }
    for (name, subjects) in REQUIRED {
        let Some(stream) = desired.streams.iter().find(|stream| stream.stream == name) else {
            findings.push(missing(name));
            continue;
        };
        for subject in subjects {
            if !stream.texts("subjects").iter().any(|taken| covers(taken, subject)) {
                let reason = format!("{subject} is not among its subjects, and the gateway writes there");
                findings.push(stream.finding(Code::NotCovered, "subjects", reason, "add it"));
            }
        }
    }
    findings
}

fn duplicates(desired: &Desired) -> Vec<Finding> {
    let all: Vec<&Wanted> = desired.streams.iter().chain(&desired.consumers).collect();
    let mut findings = Vec::new();
    for (at, wanted) in all.iter().enumerate() {
        if let Some(other) = all[..at].iter().find(|other| other.place() == wanted.place()) {
            let reason = format!("is also declared in {}:{}", other.file, other.line);
            findings.push(wanted.finding(Code::Duplicate, "", reason, "remove one of them"));
        }
    }
    findings
}

/// A source or mirror of this account must be declared, too.
fn origins(desired: &Desired, stream: &Wanted) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (field, origin) in stream
        .tables("sources")
        .map(|source| ("sources", source))
        .chain(stream.config.get("mirror").map(|mirror| ("mirror", mirror)))
    {
        let name = origin.get("name").and_then(Value::as_str).unwrap_or_default();
        if origin.get("external").is_none() && !desired.streams.iter().any(|other| other.stream == name) {
            let reason = format!("{name}, which it takes messages from, is not declared");
            let fix = "declare the stream or correct the name";
            findings.push(stream.finding(Code::StreamUnknown, field, reason, fix));
        }
    }
    findings
}

/// Findings for each pair of objects that share a subject.
fn pairs<'a>(objects: &[&'a Wanted], subjects: impl Fn(&'a Wanted) -> Vec<&'a str>) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (at, one) in objects.iter().copied().enumerate() {
        for other in objects[..at].iter().copied().filter(|other| other.place() != one.place()) {
            let theirs = subjects(other);
            for subject in subjects(one) {
                if let Some(same) = theirs.iter().find(|theirs| overlap(theirs, subject)) {
                    let reason = format!("{subject} meets {same} of {}", other.place());
                    let field = if one.consumer.is_some() { "filter_subjects" } else { "subjects" };
                    findings.push(one.finding(
                        Code::Overlap,
                        field,
                        reason,
                        "leave each subject to one of them",
                    ));
                }
            }
        }
    }
    findings
}

/// What the gateway needs outlives the loss of a server where anything does, and a restart everywhere.
fn survival(desired: &Desired) -> Vec<Finding> {
    let replicas = |stream: &Wanted| stream.number("num_replicas").max(1);
    let most = desired.streams.iter().map(replicas).max().unwrap_or(1);
    let mut findings = Vec::new();
    for stream in desired.streams.iter().filter(|stream| is_needed(stream) && replicas(stream) == 1) {
        if most > 1 {
            let reason =
                format!("it has one replica and others have {most}: the loss of one server stops it");
            findings.push(stream.finding(
                Code::ReplicasMixed,
                "num_replicas",
                reason,
                "give it as many as the others",
            ));
        }
        if stream.text("storage") == "memory" {
            let reason = "in memory with one replica it is gone after a restart, and nobody makes it again";
            let fix = "set storage = \"file\", or three replicas";
            findings.push(stream.finding(Code::MemorySingle, "storage", reason, fix));
        }
    }
    findings
}

#[cfg(test)]
mod tests;
