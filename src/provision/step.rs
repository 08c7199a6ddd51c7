//! One request of a plan, or one wait. A plan is a list of them, so that what is sent is known before anything is.
//!
//! What a step needs and only the server knows by then (where a consumer was, where a stream ended) is kept on the
//! server, in objects that the next apply finds: nothing is remembered here.

use std::fmt;

use serde_json::{Map, Value};

/// Key of the metadata of a consumer that is being migrated. Its value is the pause that an operator had set before, or
/// [`RESUME`].
pub(super) const MIGRATING: &str = "fanfare.migrating";
/// Value of [`MIGRATING`] for a consumer that nobody had paused.
pub(super) const RESUME: &str = "resume";
/// Key of the metadata of a consumer that has yet to be brought to another place: [`FRONT`] or [`AT_BOOKMARK`].
pub(super) const PLACE: &str = "fanfare.place";
/// Key of the metadata of a consumer that is being migrated, for the apply that is at it.
pub(super) const MIGRATED_BY: &str = "fanfare.migrated_by";
/// The labels of a consumer that is being migrated.
pub(super) const MARKS: [&str; 3] = [MIGRATING, PLACE, MIGRATED_BY];
/// The front of its stream.
pub(super) const FRONT: &str = "front";
/// Where its bookmark is.
pub(super) const AT_BOOKMARK: &str = "bookmark";
/// Key of the metadata of a consumer that does nothing but keep the place of the named one.
pub(super) const BOOKMARK: &str = "fanfare.bookmark";
/// Key of the metadata of a stream that does nothing but keep the next sequence of the named one.
pub(super) const NEXT_OF: &str = "fanfare.next_of";
/// Key of its metadata for that sequence.
pub(super) const NEXT: &str = "fanfare.next";

/// The consumer that keeps the place of `consumer`.
pub(super) fn bookmark(consumer: &str) -> String {
    format!("{consumer}-bookmark")
}

/// The stream that keeps the next sequence of `stream`.
pub(super) fn note(stream: &str) -> String {
    format!("{stream}-next")
}

/// The subject of a stream that takes nothing at the moment. Nobody publishes there.
pub(super) fn closed(stream: &str) -> String {
    format!("fanfare.closed.{stream}")
}

/// The configuration of a stream with which it takes nothing.
pub(super) fn closed_config(name: &str, config: &Config) -> Config {
    let mut closed = config.clone();
    closed.insert("subjects".to_owned(), serde_json::json!([self::closed(name)]));
    closed.remove("sources");
    closed
}

/// `config` with the subjects and sources of `open`.
pub(super) fn open_config(config: &Config, open: &Config) -> Config {
    let mut config = config.clone();
    for field in ["subjects", "sources"] {
        config.remove(field);
        config.extend(open.get_key_value(field).map(|(key, value)| (key.clone(), value.clone())));
    }
    config
}

/// The filter of a consumer that takes nothing at the moment: without one it would take everything.
pub(super) fn released(consumer: &str) -> String {
    format!("fanfare.released.{consumer}")
}

/// A configuration in the server's own shape.
pub(super) type Config = Map<String, Value>;

/// One request or wait.
#[derive(Debug, Clone, PartialEq)]
pub struct Step {
    /// The stream.
    pub stream: String,
    /// The consumer, or `None` for the stream itself.
    pub consumer: Option<String>,
    /// What is done to it.
    pub what: What,
}

/// What a step does.
#[derive(Debug, Clone, PartialEq)]
pub enum What {
    /// Makes it.
    Create(Config),
    /// Makes the consumer paused, because it has yet to be brought to its bookmark.
    CreateAgain(Config),
    /// Makes the stream so that its sequences go on where the noted ones ended, and so that it takes nothing until its
    /// consumers are there: a message that nobody is interested in may be gone at once.
    CreateClosed(Config),
    /// Has the stream take what this configuration says, and leaves the rest of it as it is.
    Open(Config),
    /// Changes it.
    Update(Config),
    /// Says on a consumer that it is being migrated.
    Mark(Config),
    /// Has the consumer let go of subjects that another one takes over.
    Release(Config),
    /// Has the stream take nothing; the second configuration opens it again. Without the first one an earlier apply has
    /// closed it, and nothing is sent.
    Close(Option<Config>, Config),
    /// Waits until the stream is empty.
    AwaitEmpty,
    /// Notes where the stream's sequences end, in a stream made from this configuration.
    Note(Config),
    /// Deletes it. Not when it was made anew meanwhile, or, where `empty` says so, when the stream holds messages.
    Delete {
        /// When the one that is meant was made.
        created: String,
        /// Only an empty stream.
        empty: bool,
        /// Only a stream that takes nothing at the moment.
        closed: bool,
    },
    /// Deletes a helper of a migration: only what says of itself that it is one.
    Forget,
    /// Has the consumer hand out nothing for a while.
    Pause {
        /// Until when an operator had paused it.
        before: Option<String>,
        /// It is not yet at its place, and would hand out everything again.
        unplaced: bool,
    },
    /// Waits until all that the consumer handed out is acknowledged.
    Drain,
    /// Keeps the consumer's place by another one, made from this configuration.
    Bookmark(Config),
    /// Brings the consumer to the front of its stream. It would never see what was stored before its own position; what was
    /// acknowledged is gone from a work queue, so nothing repeats.
    Rewind,
    /// Brings the consumer to its bookmark.
    Return,
    /// Says on the consumer that it is at its place.
    Placed(Config),
    /// Has the consumer hand out again, or stay paused until then, as an operator had it.
    Resume(Option<String>),
    /// Takes the marks of a migration off the consumer.
    Unmark(Config),
}

impl Step {
    /// A step on a stream.
    pub(super) fn stream(stream: &str, what: What) -> Self {
        Self { stream: stream.to_owned(), consumer: None, what }
    }

    /// A step on a consumer.
    pub(super) fn consumer(stream: &str, consumer: &str, what: What) -> Self {
        Self { stream: stream.to_owned(), consumer: Some(consumer.to_owned()), what }
    }

    /// `stream NAME` or `consumer STREAM > NAME`.
    pub fn place(&self) -> String {
        match &self.consumer {
            None => format!("stream {}", self.stream),
            Some(consumer) => format!("consumer {} > {consumer}", self.stream),
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let place = self.place();
        match &self.what {
            What::Create(_) => write!(f, "create {place}"),
            What::CreateAgain(_) => write!(f, "create {place}, paused"),
            What::CreateClosed(_) => {
                write!(f, "create {place}, closed to publishers, its sequences going on")
            }
            What::Open(_) => write!(f, "open {place} to publishers"),
            What::Update(_) => write!(f, "update {place}"),
            What::Mark(_) => write!(f, "mark {place} as being migrated"),
            What::Release(_) => write!(f, "take subjects from {place}"),
            What::Close(Some(_), _) => write!(f, "close {place} to publishers"),
            What::Close(None, _) => write!(f, "keep {place} closed to publishers"),
            What::AwaitEmpty => write!(f, "wait until {place} is empty"),
            What::Note(_) => write!(f, "note where {place} ends"),
            What::Delete { .. } | What::Forget => write!(f, "delete {place}"),
            What::Pause { .. } => write!(f, "pause {place}"),
            What::Drain => write!(f, "wait until what {place} handed out is acknowledged"),
            What::Bookmark(_) => write!(f, "keep the place of {place}"),
            What::Rewind => write!(f, "rewind {place}"),
            What::Return => write!(f, "bring {place} to its place"),
            What::Placed(_) => write!(f, "mark {place} as being at its place"),
            What::Resume(_) => write!(f, "resume {place}"),
            What::Unmark(_) => write!(f, "take the mark off {place}"),
        }
    }
}
