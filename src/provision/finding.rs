//! What is wrong with declarations: a code, a place, a reason and what to do. Both reading and linting report so.

use std::fmt;

use serde::Serialize;

/// Declares the codes with the words that listings and docs have for them.
macro_rules! codes {
    ($($(#[doc = $doc:literal])+ $variant:ident, $name:literal, $reason:literal, $fix:literal;)+) => {
        /// What kind of mistake a finding is.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Code {
            $($(#[doc = $doc])+ $variant,)+
        }

        impl Code {
            /// All codes, in the order of the docs.
            pub const ALL: &[Self] = &[$(Self::$variant),+];

            /// The code's name in listings.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $name),+ }
            }

            /// Why it is a mistake, and what to do, for any finding of the kind.
            pub const fn about(self) -> (&'static str, &'static str) {
                match self { $(Self::$variant => ($reason, $fix)),+ }
            }
        }
    };
}

impl Code {
    /// Whether declarations may say that such a finding is meant to be so. What cannot be read, or what the server refuses,
    /// means nothing.
    pub(super) const fn can_be_allowed(self) -> bool {
        !matches!(
            self,
            Self::Syntax
                | Self::UnknownField
                | Self::WrongValue
                | Self::MissingField
                | Self::Variable
                | Self::Selection
        )
    }
}

codes! {
    /// Not TOML.
    Syntax, "syntax", "the file is not TOML", "correct the line";
    /// A field that there is not.
    UnknownField, "unknown-field", "neither the server nor we know the field", "take the suggestion, or remove it";
    /// A value of the wrong type, unit or set.
    WrongValue, "wrong-value", "the field cannot hold this value", "write what the message asks for";
    /// A field that must be there.
    MissingField, "missing-field", "an object has no name, or a consumer no stream", "add the field";
    /// A variable that is undefined, unused or without a value.
    Variable, "variable", "a variable is undefined, unused, or has no value in the environment", "define it in `[variables]`, remove it, or give `--var`";
    /// A selection of the catalog that selects nothing.
    Selection, "selection", "an `@catalog` selection is misspelt, selects nothing, or stands where there can be one subject", "write `@catalog:LANE:SERVICE,SERVICE`";
    /// A stream that the gateway needs is not declared.
    StreamMissing, "stream-missing", "the gateway needs the stream: the queue, the dead letters, each bucket", "declare it";
    /// Two declarations have the same name.
    Duplicate, "duplicate", "two declarations have the same name", "remove one of them";
    /// A name that NATS refuses.
    NameInvalid, "name-invalid", "NATS refuses the name: blanks, `.`, `*`, `>`, `/`, `\\`, more than 255 bytes; buckets take letters, digits, `-` and `_`", "choose another name";
    /// A consumer whose two names differ.
    NameDiffers, "name-differs", "`name` and `durable_name` of a consumer differ, and the server refuses that", "write the same, or only `durable_name`";
    /// A consumer's stream is not declared.
    StreamUnknown, "stream-unknown", "a consumer's stream, or a source, is not declared", "declare the stream, or correct the name";
    /// Something stored is in no stream, or in no consumer.
    NotCovered, "not-covered", "a stored event is in no work queue or in no consumer, or a stream does not take what the gateway writes there", "write `@catalog` with the lane and the services";
    /// Two consumers, or two streams, take the same subjects.
    Overlap, "overlap", "two streams, or two consumers of a work queue, take the same subjects; on updates the server does not check", "leave each subject to one of them";
    /// A queue without a consumer of some lane.
    LaneMissing, "lane-missing", "workers pull from the consumers `high`, `normal` and `low` of each queue", "declare the consumer, or give the queue services that have events in the lane";
    /// A lane's consumer takes an event of another lane.
    WrongLane, "wrong-lane", "the consumer of a lane takes an event of another lane", "write `@catalog:LANE` with its own lane";
    /// A stream would store an event that must not be stored.
    EphemeralStored, "ephemeral-stored", "an event that is never to be stored (typing) would be", "name the stored events one by one";
    /// A list of filters on a queue.
    FilterList, "filter-list", "the consumer of a queue has several filters: for each message the server then looks at all subjects that wait beside it, so a backlog drains at a thousandth of the speed and slows the other lanes", "give the lane a stream of its own, and its consumer no filter";
    /// A stream takes notifications that the catalog does not know, or a consumer what its stream does not take.
    TooWide, "too-wide", "a queue takes events that the catalog does not know, or a filter is outside its stream's subjects", "correct the filter or the stream";
    /// `max_consumers` is not set.
    ConsumersUnbounded, "consumers-unbounded", "without `max_consumers` the server's own limit holds", "set `max_consumers`";
    /// More consumers are declared than a stream allows.
    ConsumersTooMany, "consumers-too-many", "more consumers are declared than `max_consumers` allows", "raise `max_consumers`";
    /// `max_bytes` is not set.
    BytesUnbounded, "bytes-unbounded", "without `max_bytes` a stream can fill the disk of all others", "set `max_bytes`";
    /// A stream that must not lose anything discards messages.
    DiscardsOld, "discards-old", "when full, the queue drops what nobody has handled, in silence; one with schedules cannot do otherwise", "set `discard = \"new\"`";
    /// Remembering message ids could cost too much memory.
    DedupMemory, "dedup-memory", "an id costs 485 B of server memory for the whole `duplicate_window`; at 27,000/s two minutes are 1.6 GB", "set `duplicate_window` to 30s or less";
    /// More delays than deliveries.
    BackoffTooLong, "backoff-too-long", "`backoff` has more steps than `max_deliver` allows deliveries, and the server refuses that", "shorten `backoff` or raise `max_deliver`";
    /// A worker could not acknowledge messages one by one.
    AckPolicy, "ack-policy", "each message is to be acknowledged by itself", "set `ack_policy = \"explicit\"`";
    /// Due notifications would not reach their stream.
    SchedulesUnsourced, "schedules-unsourced", "due notifications of an event reach no queue, or two", "source SCHEDULES in the event's queue, with `subject_transforms` from `due.` to `notification.`";
    /// The stream of schedules has none.
    SchedulesOff, "schedules-off", "SCHEDULES keeps no schedules: that needs `allow_msg_schedules` and `allow_msg_ttl`", "set both";
    /// What the server gives up of a queue would stay there unseen.
    NotSwept, "not-swept", "a message that used up its deliveries stays in the queue unseen, since no consumer of ADVISORIES hears of it", "add the queue's MAX_DELIVERIES advisory to ADVISORIES and to its consumer";
    /// An even number of replicas.
    ReplicasEven, "replicas-even", "an even number of replicas bears no more losses than the odd one below it", "write 1, 3 or 5";
    /// Replicas of a consumer that its stream does not have.
    ReplicasConsumer, "replicas-consumer", "a consumer has more replicas than its stream, or others than its work queue", "remove `num_replicas` from the consumer";
    /// One stream would be lost earlier than the others.
    ReplicasMixed, "replicas-mixed", "a stream that the gateway needs has one replica while others have more: the loss of one server stops it", "give it as many as the others";
    /// A stream that must survive is in memory with one replica.
    MemorySingle, "memory-single", "a stream in memory with one replica is gone after a restart of its server, and nobody makes it again", "set `storage = \"file\"`, or three replicas";
}

/// A line of a file.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Place {
    /// The file.
    pub file: String,
    /// The line, from 1.
    pub line: usize,
}

/// One mistake in the declarations.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What kind of mistake.
    pub code: Code,
    /// Where; `None` when it is nowhere, such as a stream that is not declared.
    pub place: Option<Place>,
    /// The stream or consumer; empty when it is about none.
    pub object: String,
    /// What is wrong.
    pub reason: String,
    /// What to do.
    pub fix: String,
}

impl Serialize for Code {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(place) = &self.place {
            write!(f, "{}:{}: ", place.file, place.line)?;
        }
        if !self.object.is_empty() {
            write!(f, "{} ", self.object)?;
        }
        write!(f, "[{}] {}; {}", self.code.as_str(), self.reason, self.fix)
    }
}

/// Findings in the order of files and lines, those of no place first.
pub(super) fn sorted(mut findings: Vec<Finding>) -> Vec<Finding> {
    findings.sort_by(|a, b| a.place.cmp(&b.place));
    findings
}

/// One finding a line.
pub(super) fn list(findings: &[Finding]) -> String {
    findings.iter().map(|finding| format!("  {finding}")).collect::<Vec<_>>().join("\n")
}

/// The codes as a table of Markdown, for docs/declarations.md.
pub fn table() -> String {
    let rows = Code::ALL.iter().map(|code| {
        let (reason, fix) = code.about();
        format!("| `{}` | {reason} | {fix} |\n", code.as_str())
    });
    format!("| code | why it is a mistake | what to do |\n|---|---|---|\n{}", rows.collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_docs_have_the_table_of_codes() {
        let docs = include_str!("../../docs/declarations.md");
        assert!(docs.contains(&table()), "docs/declarations.md lacks what `fanfare docs lint` prints");
    }
}
