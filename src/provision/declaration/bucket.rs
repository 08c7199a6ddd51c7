//! Key-value buckets: the stream that a key-value client would make of the same settings.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

/// What comes before a bucket's name in that of its stream.
pub(super) const PREFIX: &str = "KV_";

/// The stream of a bucket with these settings, as `nats kv add` makes it. What is not set is left to the server.
pub(super) fn stream(mut bucket: Map<String, Value>) -> Map<String, Value> {
    let name = bucket.remove("bucket").and_then(|name| name.as_str().map(str::to_owned)).unwrap_or_default();
    let mut stream = Map::new();
    stream.insert("name".to_owned(), format!("{PREFIX}{name}").into());
    stream.insert("max_msgs_per_subject".to_owned(), bucket.remove("history").unwrap_or_else(|| json!(1)));
    stream.insert("discard".to_owned(), "new".into());
    for flag in ["allow_rollup_hdrs", "deny_delete", "allow_direct"] {
        stream.insert(flag.to_owned(), true.into());
    }
    if bucket.contains_key("limit_marker_ttl") {
        stream.insert("allow_msg_ttl".to_owned(), true.into());
    }
    if let Some(compressed) = bucket.remove("compression") {
        let kind = if compressed == true { "s2" } else { "none" };
        stream.insert("compression".to_owned(), kind.into());
    }
    if let Some(mut mirror) = bucket.remove("mirror") {
        prefix(&mut mirror);
        stream.insert("mirror".to_owned(), mirror);
        stream.insert("mirror_direct".to_owned(), true.into());
    } else {
        stream.insert("subjects".to_owned(), json!([format!("$KV.{name}.>")]));
    }
    if let Some(Value::Array(mut sources)) = bucket.remove("sources") {
        for source in &mut sources {
            rewritten(source, &name);
        }
        stream.insert("sources".to_owned(), sources.into());
    }
    stream.extend(bucket.into_iter().map(|(field, value)| (of_stream(&field).to_owned(), value)));
    stream
}

/// The lines of a bucket's settings under the names that its stream has for them.
pub(super) fn lines(bucket: BTreeMap<String, usize>) -> BTreeMap<String, usize> {
    bucket.into_iter().map(|(field, line)| (of_stream(&field).to_owned(), line)).collect()
}

fn of_stream(field: &str) -> &str {
    match field {
        "bucket" => "name",
        "history" => "max_msgs_per_subject",
        "ttl" => "max_age",
        "limit_marker_ttl" => "subject_delete_marker_ttl",
        "max_value_size" => "max_msg_size",
        "replicas" => "num_replicas",
        same => same,
    }
}

/// A source without transforms is another bucket, whose keys become ours.
fn rewritten(source: &mut Value, bucket: &str) {
    let transforms = source.get("subject_transforms").and_then(Value::as_array);
    if transforms.is_some_and(|transforms| !transforms.is_empty()) {
        return;
    }
    prefix(source);
    let other = source["name"].as_str().and_then(|name| name.strip_prefix(PREFIX)).unwrap_or_default();
    // The same bucket of another account or domain has the same subjects.
    if source.get("external").is_none() || other != bucket {
        let transform = json!([{ "src": format!("$KV.{other}.>"), "dest": format!("$KV.{bucket}.>") }]);
        source["subject_transforms"] = transform;
    }
}

fn prefix(source: &mut Value) {
    if let Some(name) = source.get("name").and_then(Value::as_str)
        && !name.starts_with(PREFIX)
    {
        source["name"] = format!("{PREFIX}{name}").into();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(bucket: Value) -> Value {
        let Value::Object(bucket) = bucket else { panic!("a table") };
        Value::Object(stream(bucket))
    }

    #[test]
    fn settings_become_those_of_a_stream() {
        let bucket = json!({
            "bucket": "b", "history": 5, "ttl": 60, "limit_marker_ttl": 30, "max_value_size": 10, "max_bytes": 100,
            "replicas": 3, "compression": true, "storage": "memory", "max_consumers": 7,
        });
        assert_eq!(
            of(bucket),
            json!({
                "name": "KV_b", "subjects": ["$KV.b.>"], "max_msgs_per_subject": 5, "max_age": 60,
                "allow_msg_ttl": true, "subject_delete_marker_ttl": 30, "max_msg_size": 10, "max_bytes": 100,
                "num_replicas": 3, "compression": "s2", "storage": "memory", "max_consumers": 7, "discard": "new",
                "allow_rollup_hdrs": true, "deny_delete": true, "allow_direct": true,
            })
        );
    }

    #[test]
    fn mirrors_and_sources_are_buckets() {
        let mirror = of(json!({ "bucket": "b", "mirror": { "name": "a" } }));
        assert_eq!((&mirror["mirror"]["name"], &mirror["mirror_direct"]), (&json!("KV_a"), &json!(true)));
        assert_eq!(mirror.get("subjects"), None);

        let transforms = json!([{ "src": "x.>", "dest": "$KV.b.>" }]);
        let sources = json!([{ "name": "a" }, { "name": "S", "subject_transforms": transforms }]);
        assert_eq!(
            of(json!({ "bucket": "b", "sources": sources }))["sources"],
            json!([
                { "name": "KV_a", "subject_transforms": [{ "src": "$KV.a.>", "dest": "$KV.b.>" }] },
                { "name": "S", "subject_transforms": transforms },
            ])
        );
    }
}
