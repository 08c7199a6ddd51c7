//! The table of what can change in place, row by row on a real server: it refuses what the table calls impossible, and
//! takes everything else.

use fanfare::provision::Options;
use fanfare::provision::plan::Class;
use serde_json::{Value, json};

use super::{declared, planned};

/// Stream fields: what it is made with, and what it is to have.
fn streams() -> Vec<(&'static str, Value, Value)> {
    vec![
        ("storage", json!("memory"), json!("file")),
        ("retention", json!("limits"), json!("workqueue")),
        ("retention", json!("workqueue"), json!("limits")),
        ("retention", json!("limits"), json!("interest")),
        ("retention", json!("interest"), json!("limits")),
        ("persist_mode", json!("default"), json!("async")),
        ("allow_msg_counter", json!(false), json!(true)),
        ("first_seq", json!(5), json!(9)),
        ("sealed", json!(true), json!(false)),
        ("deny_delete", json!(true), json!(false)),
        ("deny_delete", json!(false), json!(true)),
        ("deny_purge", json!(true), json!(false)),
        // What nobody declared is seen, too.
        ("sealed", json!(true), Value::Null),
        ("deny_delete", json!(true), Value::Null),
        ("deny_purge", json!(true), Value::Null),
        ("allow_atomic", json!(true), Value::Null),
        ("allow_batched", json!(true), Value::Null),
        ("allow_msg_ttl", json!(true), json!(false)),
        ("allow_msg_ttl", json!(false), json!(true)),
        ("allow_msg_schedules", json!(true), json!(false)),
        ("subjects", json!(["s", "t"]), json!(["s"])),
        ("subjects", json!(["s"]), json!(["s", "t"])),
        ("max_consumers", json!(5), json!(9)),
        ("max_consumers", json!(9), json!(5)),
        ("max_bytes", json!(100_000), json!(1_024)),
        ("max_msgs", json!(100), json!(3)),
        ("max_msgs_per_subject", json!(100), json!(2)),
        ("max_age", json!("24h"), json!("25h")),
        ("max_msg_size", json!(10_000), json!(1_000)),
        ("discard", json!("old"), json!("new")),
        ("discard", json!("new"), json!("old")),
        ("compression", json!("none"), json!("s2")),
        ("duplicate_window", json!("2m"), json!("30s")),
        ("allow_direct", json!(true), json!(false)),
        ("allow_rollup_hdrs", json!(true), json!(false)),
        ("no_ack", json!(false), json!(true)),
        ("allow_atomic", json!(false), json!(true)),
        ("description", json!("a"), json!("b")),
        ("metadata", json!({"a": "b"}), json!({"a": "c"})),
        ("republish", json!({"src": "s", "dest": "r"}), json!({"src": "s", "dest": "q"})),
        ("consumer_limits", json!({}), json!({"max_ack_pending": 50})),
        ("mirror", Value::Null, json!({"name": "OTHER"})),
    ]
}

fn consumers() -> Vec<(&'static str, Value, Value)> {
    vec![
        ("deliver_policy", json!("all"), json!("new")),
        ("ack_policy", json!("explicit"), json!("all")),
        ("replay_policy", json!("instant"), json!("original")),
        ("max_waiting", json!(100), json!(200)),
        ("mem_storage", json!(false), json!(true)),
        ("filter_subjects", json!(["s"]), json!(["s", "t"])),
        ("filter_subjects", json!(["s", "t"]), json!(["t"])),
        ("ack_wait", json!("30s"), json!("10s")),
        ("max_deliver", json!(20), json!(5)),
        ("max_ack_pending", json!(100), json!(50)),
        ("backoff", json!(["1s", "2s"]), json!(["3s"])),
        ("headers_only", json!(false), json!(true)),
        ("inactive_threshold", json!("1h"), json!("2h")),
        ("max_batch", json!(100), json!(50)),
        ("max_expires", json!("1m"), json!("30s")),
        ("description", json!("a"), json!("b")),
        ("metadata", json!({"a": "b"}), json!({"a": "c"})),
    ]
}

#[tokio::test]
async fn streams_change_in_place_as_the_table_says() {
    let (_server, client) = super::inhabited().await;
    for (field, from, to) in streams() {
        let config = |value: &Value| {
            let mut config = json!({"name": "S", "subjects": ["s"]});
            // Beside some values the server wants others.
            if field == "allow_msg_schedules" {
                config["allow_msg_ttl"] = json!(true);
            }
            if !value.is_null() {
                config[field] = value.clone();
            }
            if field == "mirror" && !value.is_null() {
                config.as_object_mut().unwrap().remove("subjects");
            }
            config
        };
        let row = format!("{field}: {from} -> {to}");
        create(&client, &declared(&toml(&json!({"stream": [{"config": made(field, config(&from))}]}))), &row)
            .await;
        if field == "sealed" {
            super::api(&client, "STREAM.UPDATE.S", &config(&from)).await;
        }
        let desired = declared(&toml(&json!({"stream": [{"config": config(&to)}]})));

        let plan = planned(&client, &desired, &Options::default()).await;

        let [change] = &plan.changes[..] else { panic!("{row}: {plan}") };
        let update = super::send(&client, "STREAM.UPDATE.S", &json!(desired.streams[0].config)).await;
        let refused = update.get("error").is_some();
        assert_eq!(change.class == Class::Impossible, refused, "{row}: {plan}\n{update}");
        super::api(&client, "STREAM.DELETE.S", &Value::Null).await;
    }
}

/// What the server makes of other fields by itself is no difference.
#[tokio::test]
async fn what_a_setting_implies_is_no_drift() {
    let (_server, client) = super::inhabited().await;
    let origin =
        json!({"name": "ORIGIN", "subjects": ["s.*"], "allow_direct": true, "max_msgs_per_subject": 1});
    let streams = [
        origin,
        json!({"name": "COPY", "mirror": {"name": "ORIGIN"}}),
        json!({"name": "LAST", "mirror": {"name": "ORIGIN"}, "max_msgs_per_subject": 1}),
        json!({"name": "DUE", "subjects": ["d"], "allow_msg_schedules": true, "allow_msg_ttl": true}),
        json!({"name": "MARKED", "subjects": ["m"], "subject_delete_marker_ttl": "1h", "allow_msg_ttl": true}),
        json!({"name": "COUNTERS", "subjects": ["c"], "allow_msg_counter": true}),
        json!({"name": "BATCHES", "subjects": ["b"], "allow_atomic": true, "allow_batched": true}),
    ];
    let entries: Vec<Value> = streams.iter().map(|config| json!({"config": config})).collect();
    let buckets = json!([
        {"config": {"bucket": "one", "limit_marker_ttl": "1h"}},
        {"config": {"bucket": "two", "mirror": {"name": "one"}}},
    ]);
    let desired = declared(&toml(&json!({"stream": entries, "bucket": buckets})));
    create(&client, &desired, "all").await;

    let plan = planned(&client, &desired, &Options::default()).await;
    assert!(plan.is_empty(), "{plan}");

    // A seal denies, keeps for ever and ends roll-ups; it is declared once the stream is there.
    let mut kept = json!({"name": "S", "subjects": ["s2"], "max_age": "24h", "allow_rollup_hdrs": true});
    create(&client, &declared(&toml(&json!({"stream": [{"config": kept}]}))), "open").await;
    kept["sealed"] = json!(true);
    let desired = declared(&toml(&json!({"stream": [{"config": kept}]})));
    create(&client, &desired, "sealed").await;
    let plan = planned(&client, &desired, &Options::default()).await;
    assert!(plan.is_empty(), "{plan}");
}

/// A stream can be sealed only once it exists.
fn made(field: &str, mut config: Value) -> Value {
    if field == "sealed" {
        config[field] = json!(false);
    }
    config
}

#[tokio::test]
async fn consumers_change_in_place_as_the_table_says() {
    let (_server, client) = super::inhabited().await;
    for (field, from, to) in consumers() {
        let config = |value: &Value| {
            let mut consumer = json!({"name": "c", "durable_name": "c", "ack_policy": "explicit"});
            if field == "backoff" {
                consumer["max_deliver"] = json!(5);
            }
            consumer[field] = value.clone();
            let stream = json!({"name": "S", "subjects": ["s", "t"]});
            json!({"stream": [{"config": stream}], "consumer": [{"stream": "S", "config": consumer}]})
        };
        let row = format!("{field}: {from} -> {to}");
        create(&client, &declared(&toml(&config(&from))), &row).await;
        let desired = declared(&toml(&config(&to)));

        let plan = planned(&client, &desired, &Options::default()).await;

        let [change] = &plan.changes[..] else { panic!("{row}: {plan}") };
        let body = json!({"stream_name": "S", "config": desired.consumers[0].config, "action": "update"});
        let update = super::send(&client, "CONSUMER.CREATE.S.c", &body).await;
        let refused = update.get("error").is_some();
        assert_eq!(change.class == Class::Impossible, refused, "{row}: {plan}\n{update}");
        super::api(&client, "STREAM.DELETE.S", &Value::Null).await;
    }
}

async fn create(client: &async_nats::Client, desired: &fanfare::provision::Desired, row: &str) {
    let report = super::settle(client, desired, &Options::default()).await;
    assert!(report.is_ok(), "{row}: {report:?}");
}

fn toml(value: &Value) -> String {
    toml::to_string(value).expect("no nulls")
}
