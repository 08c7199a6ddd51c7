//! The fields in which a declared object differs from the live one, each with its class. Pure.

use serde_json::{Map, Value};

use super::class::{self, Class, Facts};
use crate::provision::normalise;
use crate::provision::{LiveStream, Wanted};

/// One field that differs.
#[derive(Debug, Clone, PartialEq)]
pub struct Difference {
    /// The field.
    pub field: String,
    /// What the server has; `Null` for its default.
    pub live: Value,
    /// What is declared; `Null` for the server's default.
    pub wanted: Value,
    /// How much thought it needs.
    pub class: Class,
    /// Why; empty when it is safe.
    pub reason: String,
}

/// The differences of one object, which has the configuration `live` and, for a consumer, is on `stream`.
pub(super) fn differences(
    wanted: &Wanted,
    live: &Map<String, Value>,
    stream: &LiveStream,
    version: &str,
) -> Vec<Difference> {
    let consumer = wanted.consumer.is_some();
    let facts = Facts { version, messages: stream.messages, bytes: stream.bytes, oldest: stream.oldest };
    let mut differences = Vec::new();
    for field in normalise::fields(&wanted.config, consumer) {
        let found = normalise::value(live, &field, &wanted.config);
        let declared = normalise::value(&wanted.config, &field, &wanted.config);
        if found != declared {
            let (class, reason) = if consumer {
                class::consumer(&field, &found, &declared)
            } else {
                class::stream(&field, &found, &declared, facts)
            };
            differences.push(Difference { field, live: found, wanted: declared, class, reason });
        }
    }
    differences
}

/// The configuration to send: the live one, so that what we do not declare stays, with the declared fields over it.
pub(super) fn updated(
    live: &Map<String, Value>,
    wanted: &Wanted,
    differences: &[Difference],
) -> Map<String, Value> {
    let mut config = editable(live);
    for difference in differences.iter().filter(|difference| difference.wanted.is_null()) {
        config.remove(&difference.field);
        if difference.field == "filter_subjects" {
            config.remove("filter_subject");
        }
    }
    if wanted.config.contains_key("filter_subjects") {
        config.remove("filter_subject");
    }
    let mut metadata = config.get("metadata").and_then(Value::as_object).cloned().unwrap_or_default();
    config.extend(wanted.config.clone());
    if let Some(ours) = wanted.config.get("metadata").and_then(Value::as_object) {
        metadata.extend(ours.clone());
    }
    config.insert("metadata".to_owned(), Value::Object(metadata));
    config
}

/// A live configuration without what belongs to the server: its own metadata, and the pause, which has a request of its
/// own.
pub(in crate::provision) fn editable(live: &Map<String, Value>) -> Map<String, Value> {
    let mut config = live.clone();
    config.remove("pause_until");
    if let Some(metadata) = config.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.retain(|key, _| !key.starts_with("_nats."));
    }
    config
}

/// The filters of a consumer.
pub(super) fn filters(config: &Map<String, Value>) -> Vec<String> {
    let single = config.get("filter_subject").and_then(Value::as_str).filter(|text| !text.is_empty());
    single.map(str::to_owned).into_iter().chain(texts(config, "filter_subjects")).collect()
}

/// The same, for a consumer that has no filter and takes everything.
pub(super) fn taken(config: &Map<String, Value>) -> Vec<String> {
    let filters = filters(config);
    if filters.is_empty() { vec![">".to_owned()] } else { filters }
}

/// The texts of a list.
pub(in crate::provision) fn texts(config: &Map<String, Value>, field: &str) -> Vec<String> {
    let items = config.get(field).and_then(Value::as_array).into_iter().flatten();
    items.filter_map(Value::as_str).map(str::to_owned).collect()
}
