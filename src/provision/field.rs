//! The fields that a declaration may have: the server's StreamConfig and ConsumerConfig as of nats-server 2.15, and the
//! vocabulary of key-value buckets. One table, from which come the checks, the units and the JSON schema.

use Kind::{
    Duration, Durations, Flag, Labels, Number, OneOf, Size, Subject, Subjects, Table, Tables, Text, Texts,
    Time, Transforms,
};

/// One field of a configuration.
#[derive(Debug)]
pub struct Field {
    /// Its name, as the server spells it.
    pub name: &'static str,
    /// What may stand there.
    pub kind: Kind,
    /// What it is for, for editors.
    pub about: &'static str,
}

/// What may stand in a field.
#[derive(Debug, Clone, Copy)]
pub enum Kind {
    /// A text.
    Text,
    /// One subject. A selection of the catalog, which may be several, stands in the field with this name.
    Subject(&'static str),
    /// `true` or `false`.
    Flag,
    /// A whole number between two others.
    Number(i64, i64),
    /// Bytes, `"1GiB"` or a number, up to a bound.
    Size(i64),
    /// A time such as `"24h"`, or nanoseconds.
    Duration,
    /// A list of them.
    Durations,
    /// A moment, as RFC 3339.
    Time,
    /// A list of texts.
    Texts,
    /// A list of subjects, or one: each may be a selection of the catalog.
    Subjects,
    /// One of these words.
    OneOf(&'static [&'static str]),
    /// Texts under keys of the writer's choice.
    Labels,
    /// A table with these fields.
    Table(&'static [Field]),
    /// A list of such tables.
    Tables(&'static [Field]),
    /// How subjects are rewritten: a list of tables, or a selection of the catalog, which stands for its events when they
    /// are due.
    Transforms,
}

const fn field(name: &'static str, kind: Kind, about: &'static str) -> Field {
    Field { name, kind, about }
}

/// Zero or more.
const COUNT: Kind = Number(0, i64::MAX);
/// -1 says "no limit", in the server's words.
const LIMIT: Kind = Number(-1, i64::MAX);
/// Bytes of which there can be any number.
const BYTES: Kind = Size(i64::MAX);
/// The server's own bound of a message's size is 32 bit.
const MESSAGE: Kind = Size(i32::MAX as i64);
const REPLICAS: Kind = Number(0, 5);

const STORAGE: Kind = OneOf(&["file", "memory"]);

/// The server's StreamConfig.
pub const STREAM: &[Field] = &[
    field("name", Text, "The stream's name."),
    field("description", Text, "What it is for."),
    field("subjects", Subjects, "The subjects it stores; \"@catalog\" stands for those of the catalog."),
    field("retention", OneOf(&["limits", "interest", "workqueue"]), "When a message leaves."),
    field("max_consumers", LIMIT, "How many consumers it may have."),
    field("max_msgs", LIMIT, "How many messages it holds."),
    field("max_bytes", BYTES, "How much it holds; reserved when it is made."),
    field("max_age", Duration, "How long a message is kept."),
    field("max_msgs_per_subject", LIMIT, "How many messages it holds of each subject."),
    field("max_msg_size", MESSAGE, "The largest message it takes."),
    field("discard", OneOf(&["old", "new"]), "What goes when it is full: the oldest, or what comes."),
    field("discard_new_per_subject", Flag, "Whether discard = \"new\" holds for each subject, too."),
    field("storage", STORAGE, "Where messages are kept."),
    field("num_replicas", REPLICAS, "On how many servers."),
    field("no_ack", Flag, "Whether publishers get no acknowledgement."),
    field("duplicate_window", Duration, "For how long message ids are remembered."),
    field("placement", Table(PLACEMENT), "On which servers."),
    field("mirror", Table(SOURCE), "The stream that it is a copy of."),
    field("sources", Tables(SOURCE), "Streams that it takes messages from."),
    field("compression", OneOf(&["none", "s2"]), "How messages are compressed on disk."),
    field("first_seq", COUNT, "Sequence of its first message."),
    field("subject_transform", Table(TRANSFORM), "How subjects are rewritten before a message is stored."),
    field("republish", Table(REPUBLISH), "Where stored messages are published again."),
    field("allow_direct", Flag, "Whether every replica answers reads."),
    field("mirror_direct", Flag, "Whether mirrors answer reads, too."),
    field("sealed", Flag, "Whether nothing can come or go any more."),
    field("deny_delete", Flag, "Whether messages cannot be deleted by the API."),
    field("deny_purge", Flag, "Whether it cannot be purged by the API."),
    field("allow_rollup_hdrs", Flag, "Whether a message may replace all of its subject."),
    field("consumer_limits", Table(CONSUMER_LIMITS), "Bounds and defaults of its consumers."),
    field("allow_msg_ttl", Flag, "Whether a message may have a life of its own."),
    field(
        "subject_delete_marker_ttl",
        Duration,
        "How long a marker stays where the last of a subject ended.",
    ),
    field("allow_msg_counter", Flag, "Whether it holds counters, and nothing else."),
    field("allow_atomic", Flag, "Whether batches can be published as one."),
    field("allow_batched", Flag, "Whether fast batches can be published."),
    field("allow_msg_schedules", Flag, "Whether messages can be scheduled."),
    field("persist_mode", OneOf(&["default", "async"]), "When a write is on disk."),
    field("metadata", Labels, "Labels; the owner's is added."),
];

/// The server's ConsumerConfig.
pub const CONSUMER: &[Field] = &[
    field("durable_name", Text, "The consumer's name."),
    field("name", Text, "The same again, for readers."),
    field("description", Text, "What it is for."),
    field(
        "deliver_policy",
        OneOf(&["all", "last", "new", "by_start_sequence", "by_start_time", "last_per_subject"]),
        "Where in the stream it starts.",
    ),
    field("opt_start_seq", COUNT, "The sequence that it starts at."),
    field("opt_start_time", Time, "The time that it starts at."),
    field(
        "ack_policy",
        OneOf(&["none", "all", "explicit", "flow_control"]),
        "Which acknowledgements it needs.",
    ),
    field("ack_wait", Duration, "How long it waits for one."),
    field("max_deliver", LIMIT, "How often a message is delivered."),
    field("backoff", Durations, "How long it waits before each redelivery; the first goes over ack_wait."),
    field("filter_subject", Subject("filter_subjects"), "The subject that it takes."),
    field(
        "filter_subjects",
        Subjects,
        "The subjects that it takes; \"@catalog:high\" stands for those of a lane.",
    ),
    field("replay_policy", OneOf(&["instant", "original"]), "How fast it delivers what is stored."),
    field("rate_limit_bps", COUNT, "Bits a second at most."),
    field("sample_freq", Text, "Which part of the acknowledgements is published, in percent."),
    field("max_waiting", COUNT, "How many pulls may wait."),
    field("max_ack_pending", LIMIT, "How many messages may be unacknowledged."),
    field("flow_control", Flag, "Whether a push consumer waits for its reader."),
    field("headers_only", Flag, "Whether it delivers headers without bodies."),
    field("max_batch", LIMIT, "The largest pull, in messages."),
    field("max_expires", Duration, "The longest pull."),
    field("max_bytes", BYTES, "The largest pull, in bytes."),
    field("deliver_subject", Text, "Where a push consumer delivers."),
    field("deliver_group", Text, "The queue group of a push consumer."),
    field("idle_heartbeat", Duration, "How often an idle push consumer gives a sign."),
    field("inactive_threshold", Duration, "How long it lives without a reader."),
    field("num_replicas", REPLICAS, "On how many servers; 0 means those of its stream."),
    field("mem_storage", Flag, "Whether its state is kept in memory."),
    field("direct", Flag, "For the server's own use."),
    field("sourcing", Flag, "For the server's own use."),
    field("metadata", Labels, "Labels; the owner's is added."),
    field("pause_until", Time, "Until when it delivers nothing."),
    field("priority_groups", Texts, "Its priority groups."),
    field(
        "priority_policy",
        OneOf(&["none", "overflow", "pinned_client", "prioritized"]),
        "Which reader goes first.",
    ),
    field("priority_timeout", Duration, "When another reader is pinned."),
];

/// What key-value clients call the parts of a bucket, and the fields of its stream that they have no word for.
pub const BUCKET: &[Field] = &[
    field("bucket", Text, "The bucket's name."),
    field("description", Text, "What it is for."),
    field("history", Number(1, 64), "How many values are kept of each key."),
    field("ttl", Duration, "How long a value is kept."),
    field(
        "limit_marker_ttl",
        Duration,
        "How long a marker stays where a value ended; allows keys a life of their own.",
    ),
    field("max_bytes", BYTES, "How much it holds; reserved when it is made."),
    field("max_value_size", MESSAGE, "The largest value."),
    field("storage", STORAGE, "Where values are kept."),
    field("replicas", REPLICAS, "On how many servers."),
    field("compression", Flag, "Whether values are compressed on disk."),
    field("placement", Table(PLACEMENT), "On which servers."),
    field("republish", Table(REPUBLISH), "Where writes are published again."),
    field("mirror", Table(SOURCE), "The bucket that it is a copy of."),
    field("sources", Tables(SOURCE), "Buckets that it takes values from."),
    field("metadata", Labels, "Labels; the owner's is added."),
    field("allow_msg_ttl", Flag, "Of the stream: keys may have a life of their own, and leave no marker."),
    field("max_consumers", LIMIT, "Of the stream: how many watchers and listings there may be."),
    field("duplicate_window", Duration, "Of the stream: for how long message ids are remembered."),
];

const PLACEMENT: &[Field] = &[
    field("cluster", Text, "The cluster's name."),
    field("tags", Texts, "Tags that a server must have."),
    field("preferred", Text, "The server that should lead."),
];

const SOURCE: &[Field] = &[
    field("name", Text, "The stream."),
    field("opt_start_seq", COUNT, "The sequence that it starts at."),
    field("opt_start_time", Time, "The time that it starts at."),
    field("filter_subject", Subject("subject_transforms"), "The subject that is taken."),
    field(
        "subject_transforms",
        Transforms,
        "The subjects that are taken, and what becomes of them; \"@catalog:high\" stands for the due events of a lane.",
    ),
    field("external", Table(EXTERNAL), "The account or domain that it is in."),
    field("consumer", Table(SOURCE_CONSUMER), "A durable consumer to take it by."),
];

/// One rewriting of subjects.
pub const TRANSFORM: &[Field] =
    &[field("src", Text, "The subjects that are rewritten."), field("dest", Text, "What they become.")];

const REPUBLISH: &[Field] = &[
    field("src", Text, "The subjects that are published again."),
    field("dest", Text, "Where."),
    field("headers_only", Flag, "Whether bodies are left out."),
];

const EXTERNAL: &[Field] = &[
    field("api", Text, "Prefix of the other API's subjects."),
    field("deliver", Text, "Prefix of the subjects that it delivers to."),
];

const SOURCE_CONSUMER: &[Field] =
    &[field("name", Text, "The consumer's name."), field("deliver_subject", Text, "Where it delivers.")];

const CONSUMER_LIMITS: &[Field] = &[
    field("inactive_threshold", Duration, "The longest inactive_threshold, and the default."),
    field("max_ack_pending", LIMIT, "The largest max_ack_pending, and the default."),
];

/// Whether a field of the server's configurations is a time, in nanoseconds on the wire; a name means the same everywhere.
pub fn is_time(name: &str) -> bool {
    any(&[STREAM, CONSUMER], name, |kind| matches!(kind, Duration | Durations))
}

/// Whether a field of the server's configurations is a number of bytes.
pub fn is_size(name: &str) -> bool {
    any(&[STREAM, CONSUMER], name, |kind| matches!(kind, Size(_)))
}

/// Whether a field with this name and such a kind is in one of the tables, or below.
fn any(tables: &[&'static [Field]], name: &str, is: fn(Kind) -> bool) -> bool {
    tables.iter().copied().flatten().any(|field| match field.kind {
        Table(fields) | Tables(fields) => any(&[fields], name, is),
        kind => field.name == name && is(kind),
    })
}

/// The word of `known` that was probably meant.
pub(super) fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let scored = known.into_iter().map(|one| (strsim::jaro_winkler(word, one), one));
    scored.filter(|(score, _)| *score > 0.75).max_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, one)| one)
}

/// `did you mean X?`, or what there is when nothing is near.
pub(super) fn advice<'a>(word: &str, known: impl IntoIterator<Item = &'a str> + Clone) -> String {
    match nearest(word, known.clone()) {
        Some(one) => format!("did you mean `{one}`?"),
        None => format!("write one of {}", known.into_iter().collect::<Vec<_>>().join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_that_is_nearly_known_is_recognised() {
        let names = || STREAM.iter().map(|field| field.name);
        for (word, meant) in
            [("max_byte", "max_bytes"), ("retension", "retention"), ("replicas", "num_replicas")]
        {
            assert_eq!(nearest(word, names()), Some(meant), "{word}");
        }
        assert_eq!(nearest("colour", names()), None);
        assert_eq!(advice("colour", ["file", "memory"]), "write one of file, memory");
    }

    #[test]
    fn units_are_known_by_name() {
        for time in ["max_age", "backoff", "ack_wait", "inactive_threshold", "priority_timeout"] {
            assert!(is_time(time) && !is_size(time), "{time}");
        }
        for size in ["max_bytes", "max_msg_size"] {
            assert!(is_size(size) && !is_time(size), "{size}");
        }
        assert!(!is_time("opt_start_time") && !is_time("name"));
    }

    #[test]
    fn no_field_is_there_twice() {
        for table in [STREAM, CONSUMER, BUCKET, PLACEMENT, SOURCE, TRANSFORM, REPUBLISH, EXTERNAL] {
            let mut names: Vec<_> = table.iter().map(|field| field.name).collect();
            names.sort_unstable();
            names.dedup();
            assert_eq!(names.len(), table.len());
        }
    }
}
