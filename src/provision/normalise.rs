//! Brings declared and live configurations to one form, so that only real differences are left. Pure.
//!
//! The server fills in defaults, reports 0, -1 and absence for the same thing, adds metadata of its own and does not
//! keep the order of subjects.

use serde_json::{Map, Value};

/// Fields of a stream that are compared although nobody declared them: a change by hand would matter. `mirror_direct` is
/// not among them: the server sets it for a mirror whose origin has `allow_direct`.
const WATCHED_STREAM: [&str; 19] = [
    "retention",
    "discard",
    "compression",
    "max_msgs",
    "max_msg_size",
    "max_msgs_per_subject",
    "max_age",
    "num_replicas",
    "no_ack",
    "discard_new_per_subject",
    "sources",
    "republish",
    "subject_transform",
    "consumer_limits",
    "sealed",
    "deny_delete",
    "deny_purge",
    "allow_atomic",
    "allow_batched",
];

/// The same for consumers. `pause_until` is not among them: pausing is an operator's tool.
const WATCHED_CONSUMER: [&str; 13] = [
    "filter_subjects",
    "ack_wait",
    "max_deliver",
    "max_ack_pending",
    "backoff",
    "headers_only",
    "inactive_threshold",
    "max_batch",
    "max_expires",
    "max_bytes",
    "rate_limit_bps",
    "priority_policy",
    "num_replicas",
];

/// What the server reports for fields that were not given (nats-server 2.12 to 2.15).
const DEFAULTS: [(&str, &str); 8] = [
    ("retention", "limits"),
    ("storage", "file"),
    ("discard", "old"),
    ("compression", "none"),
    ("persist_mode", "default"),
    ("deliver_policy", "all"),
    ("replay_policy", "instant"),
    ("priority_policy", "none"),
];

/// The same for numbers: 30 s, one replica, and the server's own limits.
const DEFAULT_NUMBERS: [(&str, i64); 4] =
    [("num_replicas", 1), ("ack_wait", 30_000_000_000), ("max_waiting", 512), ("max_ack_pending", 1_000)];

/// The fields to look at for an object that declares `declared`.
pub(super) fn fields(declared: &Map<String, Value>, consumer: bool) -> Vec<String> {
    let watched: &[&str] = if consumer { &WATCHED_CONSUMER } else { &WATCHED_STREAM };
    let mut fields: Vec<String> = declared.keys().map(|key| plural(key).to_owned()).collect();
    fields.extend(watched.iter().map(|field| (*field).to_owned()));
    fields.sort();
    fields.dedup();
    fields
}

/// A single filter is a list of one.
fn plural(field: &str) -> &str {
    if field == "filter_subject" { "filter_subjects" } else { field }
}

/// The value of a field in the common form; `Null` when it is absent or the default.
pub(super) fn value(config: &Map<String, Value>, field: &str, declared: &Map<String, Value>) -> Value {
    let raw = match field {
        "filter_subjects" => match config.get("filter_subject") {
            Some(Value::String(one)) if !one.is_empty() => Value::Array(vec![Value::String(one.clone())]),
            _ => config.get(field).cloned().unwrap_or_default(),
        },
        // The server overwrites ack_wait with the first step of a backoff.
        "ack_wait" => match config.get("backoff").and_then(|steps| steps.get(0)) {
            Some(first) => first.clone(),
            None => config.get(field).cloned().unwrap_or_default(),
        },
        _ if is_sealed(config) => sealed(field, config.get(field)),
        _ => config.get(field).cloned().unwrap_or_default(),
    };
    let simple = simplify(raw);
    match (field, simple) {
        ("subjects" | "filter_subjects", Value::Array(mut items)) => {
            items.sort_by_key(ToString::to_string);
            items.dedup();
            Value::Array(items)
        }
        ("metadata", Value::Object(entries)) => metadata(entries, declared),
        (_, Value::String(text)) if DEFAULTS.contains(&(field, text.as_str())) => Value::Null,
        (_, Value::Number(number))
            if DEFAULT_NUMBERS
                .iter()
                .any(|(name, default)| *name == field && number.as_i64() == Some(*default)) =>
        {
            Value::Null
        }
        (_, other) => other,
    }
}

fn is_sealed(config: &Map<String, Value>) -> bool {
    config.get("sealed").is_some_and(|sealed| *sealed == true)
}

/// What the server makes of the other fields of a stream that is sealed.
fn sealed(field: &str, declared: Option<&Value>) -> Value {
    match field {
        "deny_delete" | "deny_purge" => true.into(),
        "discard" => "new".into(),
        "max_age" | "allow_rollup_hdrs" => Value::Null,
        _ => declared.cloned().unwrap_or_default(),
    }
}

/// Only the entries that are declared: others belong to the server (`_nats.…`) or to other tools.
fn metadata(mut entries: Map<String, Value>, declared: &Map<String, Value>) -> Value {
    let ours = declared.get("metadata").and_then(Value::as_object);
    entries.retain(|key, _| ours.is_some_and(|ours| ours.contains_key(key)) && !key.starts_with("_nats."));
    if entries.is_empty() { Value::Null } else { Value::Object(entries) }
}

/// Absent, empty, false, 0 and -1 mean "not set" in every field of the two configurations.
fn simplify(value: Value) -> Value {
    let unset = match &value {
        Value::Null => true,
        Value::Bool(set) => !set,
        Value::Number(number) => matches!(number.as_i64(), Some(0 | -1)),
        Value::String(text) => text.is_empty(),
        Value::Array(_) | Value::Object(_) => false,
    };
    match value {
        _ if unset => Value::Null,
        Value::Array(items) if items.is_empty() => Value::Null,
        Value::Array(items) => Value::Array(items.into_iter().map(simplify).collect()),
        Value::Object(entries) => {
            let mut kept: Map<String, Value> =
                entries.into_iter().map(|(key, value)| (key, simplify(value))).collect();
            kept.retain(|_, value| !value.is_null());
            if kept.is_empty() { Value::Null } else { Value::Object(kept) }
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn of(config: &Value, field: &str) -> Value {
        let config = config.as_object().unwrap();
        value(config, field, config)
    }

    #[test]
    fn words_for_nothing_are_the_same() {
        for config in [json!({}), json!({"f": null}), json!({"f": 0}), json!({"f": -1}), json!({"f": false})]
        {
            assert_eq!(of(&config, "f"), Value::Null, "{config}");
        }
        for config in [json!({"f": ""}), json!({"f": []}), json!({"f": {}}), json!({"f": {"a": 0}})] {
            assert_eq!(of(&config, "f"), Value::Null, "{config}");
        }
        assert_eq!(of(&json!({"retention": "limits"}), "retention"), Value::Null);
        assert_eq!(of(&json!({"retention": "workqueue"}), "retention"), json!("workqueue"));
        assert_eq!(of(&json!({"num_replicas": 1}), "num_replicas"), Value::Null);
        assert_eq!(of(&json!({"ack_wait": 30_000_000_000_u64}), "ack_wait"), Value::Null);
    }

    #[test]
    fn subjects_are_sets_and_one_filter_is_a_list() {
        assert_eq!(of(&json!({"subjects": ["b", "a", "b"]}), "subjects"), json!(["a", "b"]));
        assert_eq!(of(&json!({"filter_subject": "a"}), "filter_subjects"), json!(["a"]));
    }

    #[test]
    fn the_servers_metadata_is_not_ours() {
        let live = json!({"metadata": {"_nats.level": "5", "owner": "x", "other": "y"}});
        let declared = json!({"metadata": {"owner": "x"}});
        let value = value(live.as_object().unwrap(), "metadata", declared.as_object().unwrap());
        assert_eq!(value, json!({"owner": "x"}));
    }

    #[test]
    fn a_seal_decides_what_else_is_denied() {
        let config = json!({"sealed": true, "max_age": 5, "max_msgs": 7, "allow_rollup_hdrs": true});
        for (field, expected) in [
            ("deny_delete", json!(true)),
            ("deny_purge", json!(true)),
            ("discard", json!("new")),
            ("max_age", Value::Null),
            ("allow_rollup_hdrs", Value::Null),
            ("max_msgs", json!(7)),
        ] {
            assert_eq!(of(&config, field), expected, "{field}");
        }
    }

    #[test]
    fn a_backoff_decides_the_ack_wait() {
        assert_eq!(of(&json!({"backoff": [5, 10], "ack_wait": 7}), "ack_wait"), json!(5));
    }
}
