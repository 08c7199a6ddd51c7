//! What is declared and what exists, in small.

use serde_json::json;

use super::super::*;
use crate::provision::OWNER_LABEL;
use crate::provision::declaration::DEFAULT_OWNER;

/// `b` goes from `y` to `x`.
pub(super) fn lane_move() -> (Desired, Live) {
    let mut desired = desired(&queue());
    desired.consumers = vec![consumer("x", &["a", "b"]), consumer("y", &["c"])];
    let live = with(&queue(), &[consumer("x", &["a"]), consumer("y", &["b", "c"]), consumer("z", &["d"])]);
    (desired, live)
}

pub(super) fn trade() -> (Desired, Live) {
    let mut desired = desired(&queue());
    desired.consumers = vec![consumer("x", &["b"]), consumer("y", &["a"])];
    (desired, with(&queue(), &[consumer("x", &["a"]), consumer("y", &["b"])]))
}

/// `x` is to have another `max_waiting`; `z` is ours and not declared.
pub(super) fn replacement(retention: &str) -> (Desired, Live) {
    let mut stream = declared();
    stream["retention"] = json!(retention);
    let mut desired = desired(&stream);
    let mut wanted = consumer("x", &["a"]);
    wanted.config.insert("max_waiting".to_owned(), json!(7));
    desired.consumers = vec![wanted];
    let mut stray = consumer("z", &["b"]);
    stray.config.insert("metadata".to_owned(), json!({ OWNER_LABEL: DEFAULT_OWNER }));
    (desired, with(&stream, &[consumer("x", &["a"]), stray]))
}

/// Without a filter it took everything; now `a` and `b` have a consumer each.
pub(super) fn split() -> (Desired, Live) {
    let mut desired = desired(&queue());
    desired.consumers = vec![consumer("new", &["a"]), consumer("old", &["b"])];
    let mut all = consumer("old", &[]);
    all.config.remove("filter_subjects");
    (desired, with(&queue(), &[all]))
}

/// `b` goes from S to T, and `c` from T to S.
pub(super) fn exchange() -> (Desired, Live) {
    let stream = |name: &str, subjects: &[&str]| json!({"name": name, "subjects": subjects});
    let mut desired = desired(&stream("S", &["a", "c"]));
    desired.streams.push(Wanted { stream: "T".to_owned(), ..wanted(None, &stream("T", &["b", "d"])) });
    let mut live = existing(&stream("S", &["a", "b"]));
    let other = existing(&stream("T", &["c", "d"])).streams.remove("S").unwrap();
    live.streams.insert("T".to_owned(), other);
    (desired, live)
}

pub(super) fn recreation() -> (Desired, Live) {
    let mut wanted = queue();
    wanted["storage"] = json!("memory");
    let mut desired = desired(&wanted);
    desired.consumers = vec![consumer("x", &["a"])];
    (desired, with(&queue(), &[consumer("x", &["a"])]))
}

pub(super) fn declared() -> Value {
    json!({"name": "S", "subjects": ["a", "b"], "max_consumers": 5, "max_bytes": 100, "duplicate_window": 30})
}

pub(super) fn queue() -> Value {
    let mut queue = declared();
    queue["retention"] = json!("workqueue");
    queue
}

pub(super) fn wanted(consumer: Option<&str>, config: &Value) -> Wanted {
    Wanted {
        file: "s.toml".to_owned(),
        stream: "S".to_owned(),
        consumer: consumer.map(str::to_owned),
        config: config.as_object().unwrap().clone(),
        ..Wanted::default()
    }
}

pub(super) fn consumer(name: &str, filters: &[&str]) -> Wanted {
    let config = json!({"durable_name": name, "filter_subjects": filters, "ack_policy": "explicit"});
    wanted(Some(name), &config)
}

pub(super) fn desired(stream: &Value) -> Desired {
    Desired { streams: vec![wanted(None, stream)], owner: DEFAULT_OWNER.to_owned(), ..Desired::default() }
}

/// A server with the stream and five messages in it.
pub(super) fn existing(config: &Value) -> Live {
    let config = config.as_object().unwrap().clone();
    let stream = LiveStream { config, messages: 5, bytes: 50, ..LiveStream::default() };
    Live { version: "2.15.1".to_owned(), streams: [("S".to_owned(), stream)].into(), ..Live::default() }
}

/// The same with consumers that have something in hand.
pub(super) fn with(stream: &Value, consumers: &[Wanted]) -> Live {
    let mut live = existing(stream);
    for one in consumers {
        let consumer =
            LiveConsumer { config: one.config.clone(), unacknowledged: 2, ..LiveConsumer::default() };
        live.streams.get_mut("S").unwrap().consumers.insert(one.consumer.clone().unwrap(), consumer);
    }
    live
}
