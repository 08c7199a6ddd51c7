//! Tests of declarations: what they mean, and what is said of their mistakes.

use serde_json::json;

use super::*;
use crate::nats::QUEUES;

const MIB: u64 = 1 << 20;

const STREAM: &str = r#"
[[stream]]
[stream.config]
name = "A"
subjects = ["@catalog:low", "x.y"]
max_age = "24h"
max_bytes = "2GiB"
consumer_limits = { inactive_threshold = "5m", max_ack_pending = 7 }
[stream.production]
num_replicas = 3
consumer_limits = { max_ack_pending = 9 }

[[consumer]]
stream = "A"
[consumer.config]
durable_name = "c"
backoff = ["1s", "10s"]
"#;

#[test]
fn notations_become_the_servers_units() {
    let desired = desired(STREAM, Env::DEV).unwrap();
    let (stream, consumer) = (&desired.streams[0], &desired.consumers[0]);

    assert_eq!(stream.config["max_age"], json!(86_400_000_000_000_u64));
    assert_eq!(stream.config["max_bytes"], json!(2_147_483_648_u64));
    assert_eq!(stream.config["consumer_limits"]["inactive_threshold"], json!(300_000_000_000_u64));
    assert_eq!(stream.texts("subjects").len(), 6);
    assert!(stream.texts("subjects").contains(&"notification.file.processing.*"));
    assert!(!stream.config.contains_key("num_replicas"));
    assert_eq!(consumer.config["backoff"], json!([1_000_000_000_u64, 10_000_000_000_u64]));
    assert_eq!((consumer.stream.as_str(), consumer.consumer.as_deref()), ("A", Some("c")));
}

#[test]
fn an_environment_changes_the_fields_it_names() {
    let stream = desired(STREAM, Env::PRODUCTION).unwrap().streams.remove(0);

    assert_eq!(stream.config["num_replicas"], 3);
    assert_eq!(stream.config["max_age"], json!(86_400_000_000_000_u64));
    assert_eq!(
        stream.config["consumer_limits"],
        json!({ "inactive_threshold": 300_000_000_000_u64, "max_ack_pending": 9 })
    );
    assert_eq!((stream.line, stream.lines["max_age"], stream.lines["num_replicas"]), (2, 6, 10));
}

#[test]
fn environments_are_the_declarers_choice() {
    let text = STREAM.replace("[stream.production]", "[stream.staging]");
    let text = format!("environments = [\"dev\", \"staging\"]\n{text}");

    assert_eq!(desired(&text, Env::named("staging")).unwrap().streams[0].config["num_replicas"], 3);
    assert_eq!(
        desired(&text, Env::PRODUCTION).unwrap_err().to_string(),
        "there is no environment `production`: the declarations have dev, staging"
    );
}

#[test]
fn every_object_carries_its_owner() {
    let text =
        format!("{STREAM}metadata = {{ team = \"chat\" }}\n[[bucket]]\nconfig = {{ bucket = \"b\" }}\n");
    let labels = |owner: Option<&str>| {
        let declarations = Declarations::parse([("a.toml", &text)]).unwrap();
        let declarations = match owner {
            Some(owner) => declarations.with_owner(owner),
            None => declarations,
        };
        let desired = declarations.desired(&Catalog::built_in().unwrap(), Env::DEV).unwrap();
        let all = desired.streams.into_iter().chain(desired.consumers);
        (desired.owner, all.map(|one| one.config["metadata"].clone()).collect::<Vec<_>>())
    };

    let plain = json!({ "fanfare.owner": "fanfare" });
    let beside = json!({ "fanfare.owner": "fanfare", "team": "chat" });
    assert_eq!(labels(None), ("fanfare".to_owned(), vec![plain.clone(), plain, beside]));
    assert_eq!(labels(Some("chat")).1[0], json!({ "fanfare.owner": "chat" }));
    let named = format!("owner = \"calls\"\n{STREAM}");
    assert_eq!(desired(&named, Env::DEV).unwrap().owner, "calls");
}

const VARIABLES: &str = r#"
[variables]
age = "24h"
bytes = { default = "1GiB", production = "2GiB" }
copies = { dev = 1, production = 3 }
region = {}
kept = true

[[stream]]
[stream.config]
name = "A-${region}"
subjects = ["${region}.x"]
max_age = "${age}"
max_bytes = "${bytes}"
allow_direct = "${kept}"
description = "${copies} in ${region}"
num_replicas = "${copies}"
"#;

#[test]
fn variables_have_a_value_for_each_environment() {
    let declarations = || {
        let declarations = Declarations::parse([("a.toml", VARIABLES)]).unwrap();
        declarations.with_variable("region", "eu").unwrap()
    };
    let config = |declarations: Declarations, env| {
        let mut desired = declarations.desired(&Catalog::built_in().unwrap(), env).unwrap();
        let mut config = desired.streams.remove(0).config;
        config.remove("metadata");
        Value::Object(config)
    };

    assert_eq!(
        config(declarations(), Env::PRODUCTION),
        json!({
            "name": "A-eu", "subjects": ["eu.x"], "max_age": 86_400_000_000_000_u64, "max_bytes": 2_147_483_648_u64,
            "allow_direct": true, "description": "3 in eu", "num_replicas": 3,
        })
    );
    let given = declarations().with_variable("copies", "5").unwrap().with_variable("age", "\"1h\"").unwrap();
    let given = config(given, Env::DEV);
    assert_eq!((&given["num_replicas"], &given["max_bytes"]), (&json!(5), &json!(1_073_741_824)));
    assert_eq!(given["max_age"], json!(3_600_000_000_000_u64));
    let unknown = declarations().with_variable("copy", "1").unwrap_err();
    assert_eq!(unknown.to_string(), "there is no variable `copy`: did you mean `copies`?");
}

#[test]
fn a_variable_is_a_text_where_a_text_stands() {
    let text = format!(
        "variables = {{ tenant = 42 }}\n{}",
        STREAM.replace("\"A\"", "\"${tenant}\"").replace("backoff", "description = \"$${tenant}\"\nbackoff")
    );
    let desired = desired(&text, Env::DEV).unwrap();
    let (stream, consumer) = (&desired.streams[0], &desired.consumers[0]);
    assert_eq!((stream.stream.as_str(), &stream.config["name"]), ("42", &json!("42")));
    assert_eq!((consumer.stream.as_str(), &consumer.config["description"]), ("42", &json!("${tenant}")));
}

#[test]
fn only_files_of_text_are_read() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("streams/a.toml");
    std::fs::create_dir_all(&file).unwrap();
    let read = || Declarations::read(dir.path()).unwrap_err().to_string();
    assert_eq!(read(), format!("cannot read {}: it is no file", file.display()));
    std::fs::remove_dir(&file).unwrap();
    assert!(std::process::Command::new("mkfifo").arg(&file).status().unwrap().success());
    assert_eq!(read(), format!("cannot read {}: it is no file", file.display()));
    std::fs::remove_file(&file).unwrap();
    std::fs::write(&file, b"# a\n# caf\xe9\n").unwrap();
    let expected = "line 2 is not UTF-8: save the file as UTF-8";
    assert_eq!(read(), format!("cannot read {}: {expected}", file.display()));
}

#[test]
fn replicas_of_every_stream_can_be_chosen_for_any_environment() {
    let catalog = Catalog::built_in().unwrap();
    for env in [Env::DEV, Env::PRODUCTION] {
        let plain = Declarations::built_in().unwrap().desired(&catalog, env).unwrap();
        let five = plain.clone().with_replicas(5);
        assert!(five.streams.iter().all(|stream| stream.config["num_replicas"] == 5));
        assert_eq!(five.consumers, plain.consumers);
    }
}

#[test]
fn a_built_in_bucket_is_the_stream_it_always_was() {
    let catalog = Catalog::built_in().unwrap();
    let buckets = |env| {
        let streams = Declarations::built_in().unwrap().desired(&catalog, env).unwrap().streams;
        let buckets = streams.into_iter().filter(|stream| stream.stream.starts_with("KV_"));
        buckets.map(|bucket| (bucket.stream, Value::Object(bucket.config))).collect::<BTreeMap<_, _>>()
    };
    let bucket = |name: &str, about: &str, rest: Value| {
        let mut config = json!({
            "name": format!("KV_{name}"), "description": about, "subjects": [format!("$KV.{name}.>")], "storage": "file",
            "max_msgs_per_subject": 1, "discard": "new", "allow_rollup_hdrs": true, "deny_delete": true,
            "allow_direct": true, "allow_msg_ttl": true, "duplicate_window": 30_000_000_000_u64, "max_consumers": 256,
            "metadata": { "fanfare.owner": "fanfare" },
        });
        let Value::Object(rest) = rest else { panic!("a table") };
        config.as_object_mut().unwrap().extend(rest);
        (format!("KV_{name}"), config)
    };
    let dev = BTreeMap::from([
        bucket(
            "audience",
            "members of groups, conversations, calls; followers",
            json!({ "max_bytes": 256 * MIB }),
        ),
        bucket("presence", "which nodes serve a user", json!({ "max_bytes": 64 * MIB })),
        bucket(
            "nodes",
            "leases of gateway nodes",
            json!({ "max_bytes": 4 * MIB, "subject_delete_marker_ttl": 15_000_000_000_u64 }),
        ),
        bucket(
            "control",
            "bans, revoked tokens, notices",
            json!({ "max_bytes": 64 * MIB, "subject_delete_marker_ttl": 3_600_000_000_000_u64 }),
        ),
        bucket(
            "transient",
            "states of calls and synchronisations",
            json!({ "max_bytes": 64 * MIB, "max_age": 90_000_000_000_000_u64, "max_consumers": 64 }),
        ),
    ]);
    assert_eq!(buckets(Env::DEV), dev);
    let production = buckets(Env::PRODUCTION);
    for (name, storage, bytes) in [
        ("KV_audience", "file", 8192),
        ("KV_presence", "memory", 1024),
        ("KV_nodes", "memory", 4),
        ("KV_control", "file", 1024),
        ("KV_transient", "file", 1024),
    ] {
        let mut expected = dev[name].clone();
        expected["num_replicas"] = json!(3);
        expected["storage"] = json!(storage);
        expected["max_bytes"] = json!(bytes * MIB);
        assert_eq!(production[name], expected);
    }
}

#[test]
fn sources_come_before_the_streams_that_need_them() {
    let catalog = Catalog::built_in().unwrap();
    let streams = Declarations::built_in().unwrap().desired(&catalog, Env::DEV).unwrap().streams;
    let at = |name| streams.iter().position(|stream| stream.stream == name);

    for queue in QUEUES {
        assert!(at("SCHEDULES") < at(queue), "{queue}");
    }
    assert_eq!(streams.len(), 14);
}

#[test]
fn mistakes_say_where_why_and_what_to_do() {
    for (line, replacement, expected) in [
        ("[[stream]]", "[[stream]", "2: [syntax] "),
        (
            "[stream.production]",
            "[stream.prod]",
            "9: stream A [unknown-field] `prod` is neither a field nor an environment; did you mean `production`?",
        ),
        (
            "[[stream]]",
            "[general]\n[[stream]]",
            "2: [unknown-field] unknown field `general`; write one of stream, ",
        ),
        (
            "max_age",
            "max_agee",
            "6: stream A [unknown-field] unknown field `max_agee`; did you mean `max_age`?",
        ),
        (
            "max_ack_pending = 9",
            "max_ack_pendin = 9",
            "11: stream A [unknown-field] unknown field `max_ack_pendin`; did you mean `max_ack_pending`?",
        ),
        (
            "24h",
            "24 hours",
            "6: stream A [wrong-value] max_age: `24 hours` is not a time; write a number and ms, s, m, h or d",
        ),
        (
            "\"24h\"",
            "24",
            "6: stream A [wrong-value] max_age: `24` would be 24 ns; write \"24s\", \"24h\" or the like",
        ),
        (
            "24h",
            "99999999999d",
            "6: stream A [wrong-value] max_age: `99999999999d` is too long; write 106751d",
        ),
        ("24h", "300000d", "6: stream A [wrong-value] max_age: `300000d` is too long; write 106751d or less"),
        ("24h", "h", "6: stream A [wrong-value] max_age: `h` is not a time"),
        (
            "2GiB",
            "9999999999TiB",
            "7: stream A [wrong-value] max_bytes: `9999999999TiB` is too much for the server",
        ),
        (
            "max_bytes = \"2GiB\"",
            "max_msg_size = \"2GiB\"",
            "7: stream A [wrong-value] max_msg_size: `2GiB` is too much for the server; write 2147483647 bytes or less",
        ),
        (
            "num_replicas = 3",
            "max_msg_size = 3000000000",
            "10: stream A [wrong-value] max_msg_size: `3000000000` is too much for the server",
        ),
        (
            "backoff",
            "filter_subject = \"@catalog:high\"\nbackoff",
            "17: consumer c [selection] filter_subject: `@catalog:high` may be several subjects; write filter_subjects",
        ),
        (
            "backoff",
            "filter_subject = \"a..b\"\nbackoff",
            "17: consumer c [wrong-value] filter_subject: `a..b` is not",
        ),
        (
            "num_replicas = 3",
            "sources = [{ name = \"x\", opt_start_time = 2026-01-02T03:04:05Z }]",
            "opt_start_time: `2026-01-02T03:04:05Z` stands there without quotes; write \"2026-01-02T03:04:05Z\"",
        ),
        ("2GiB", "2GB", "7: stream A [wrong-value] max_bytes: `2GB` is not a size"),
        (
            "num_replicas = 3",
            "num_replicas = 7",
            "10: stream A [wrong-value] num_replicas: `7` cannot stand here; write a whole number from 0 to 5",
        ),
        (
            "num_replicas = 3",
            "retention = \"workqeue\"",
            "10: stream A [wrong-value] retention: `workqeue` is not among its values; did you mean `workqueue`?",
        ),
        ("num_replicas = 3", "allow_direct = 1", "allow_direct: `1` cannot stand here; write true or false"),
        (
            "num_replicas = 3",
            "max_msgs = 1.5",
            "max_msgs: `1.5` cannot stand here; write a whole number of -1 or more",
        ),
        ("num_replicas = 3", "metadata = { a = 1 }", "metadata.a: `1` cannot stand here; write a text"),
        (
            "num_replicas = 3",
            "sources = [{ name = \"x\", opt_start_time = \"then\" }]",
            "10: stream A [wrong-value] opt_start_time: `then` is not a moment; write a time such as",
        ),
        ("x.y", "x..y", "5: stream A [wrong-value] subjects: `x..y` is not a subject; write tokens"),
        (
            "@catalog:low",
            "@catalog:urgent",
            "5: stream A [selection] subjects: `urgent` is not a lane; write high, normal, low or * for any",
        ),
        ("name = \"A\"", "", "3: stream [missing-field] config has no name; write name = \"NAME\""),
        ("stream = \"A\"", "", "13: consumer c [missing-field] a consumer has no stream; write stream = "),
        (
            "[stream.config]",
            "[stream.dev]",
            "2: stream [missing-field] an entry has no config; write [stream.config]",
        ),
        (
            "[stream.config]",
            "allow = [\"discards\"]\n[stream.config]",
            "3: stream A [wrong-value] there is no code `discards`; did you mean `discards-old`?",
        ),
        (
            "[stream.config]",
            "allow = [\"syntax\"]\n[stream.config]",
            "3: stream A [wrong-value] `syntax` cannot be allowed: the server would not take it either; remove it",
        ),
        (
            "[stream.config]",
            "allow = [\"stream-missing\"]\n[stream.config]",
            "3: stream A [wrong-value] `stream-missing` is about no entry, so an entry cannot allow it; write it into",
        ),
        (
            "[[stream]]",
            "allow = [\"stream-missing\", \"wrong-value\"]\n[[stream]]",
            "2: [wrong-value] `wrong-value` cannot be allowed",
        ),
        (
            "2GiB",
            "${byte}",
            "7: stream A [variable] there is no variable `byte`; define it in a [variables] table",
        ),
        ("2GiB", "${byte", "7: stream A [variable] `${byte` has ${ without a closing brace; write ${name}"),
        (
            "[[stream]]",
            "[variables]\nbyte = 1\n[[stream]]",
            "3: [variable] nothing uses the variable `byte`; write ${byte} or remove it",
        ),
        (
            "2GiB",
            "${b}\"\n[variables]\nb = {}\n[stream.dev]\ndescription = \"",
            "7: stream A [variable] `b` has no value in dev; give it one in [variables], or --var b=VALUE",
        ),
        (
            "[[stream]]",
            "variables = { age = { prod = 1 } }\n[[stream]]",
            "2: [variable] age: there is no environment `prod`; did you mean `production`?",
        ),
        (
            "[[stream]]",
            "owner = \"\"\n[[stream]]",
            "2: [wrong-value] owner is a text; write owner = \"NAME\"",
        ),
        ("[[stream]]", "environments = [\"config\"]\n[[stream]]", "2: [wrong-value] these are no names of"),
        (
            "backoff",
            "metadata = { \"fanfare.owner\" = \"me\" }\nbackoff",
            "17: consumer c [wrong-value] fanfare.owner says another owner than the declarations; remove it",
        ),
    ] {
        assert!(STREAM.contains(line), "{line}");
        let error = desired(&STREAM.replace(line, replacement), Env::DEV).unwrap_err().to_string();
        let found = error.lines().any(|line| line.starts_with("  a.toml:") && line.contains(expected));
        assert!(found, "{error}\nnot {expected}");
    }
}

#[test]
fn all_mistakes_are_said_at_once_and_settings_once() {
    let text = STREAM.replace("24h", "24 hours").replace("2GiB", "2GB");
    let error = desired(&text, Env::DEV).unwrap_err().to_string();
    let lines: Vec<_> = error.lines().map(|line| line.split(" [").next().unwrap()).collect();
    assert_eq!(
        lines,
        ["declarations have 2 mistake(s):", "  a.toml:6: stream A", "  a.toml:7: stream A"],
        "{error}"
    );

    let twice = Declarations::parse([("a.toml", "owner = \"a\""), ("b.toml", "owner = \"b\"")]).unwrap_err();
    assert!(
        twice.to_string().contains("b.toml:1: [duplicate] it is also set in a.toml:1; set it once"),
        "{twice}"
    );
}

#[test]
fn a_mistake_in_another_environment_is_found_too() {
    let error = desired(&STREAM.replace("num_replicas = 3", "num_replica = 3"), Env::DEV).unwrap_err();
    assert!(error.to_string().contains("unknown field `num_replica`"), "{error}");
}

fn desired(text: &str, env: Env) -> Result<Desired, Error> {
    Declarations::parse([("a.toml", text)])?.desired(&Catalog::built_in().unwrap(), env)
}

/// Lines that are right, wrong, or wrong where they come to stand.
const LINES: &[&str] = &[
    "[[stream]]",
    "[stream.config]",
    "[stream.dev]",
    "[[bucket]]",
    "[bucket.config]",
    "[[consumer]]",
    "[consumer.config]",
    "[variables]",
    "[stream.config.metadata]",
    "stream = \"A\"",
    "stream = 1",
    "name = \"A\"",
    "bucket = \"b\"",
    "durable_name = \"c\"",
    "metadata = 1",
    "metadata = { x = \"y\", \"fanfare.owner\" = 2 }",
    "config = 1",
    "config = { bucket = \"\" }",
    "sources = [{}, { name = 1 }, 3, { name = \"\", subject_transforms = [{}] }]",
    "sources = {}",
    "mirror = {}",
    "mirror = { name = \"KV_\" }",
    "subjects = \"\"",
    "subjects = [\"@catalog:\", \"@catalog:::\", \"@\", 1, [], \"${\", \"${x}\"]",
    "filter_subjects = \"@catalog\"",
    "max_age = \"${x}\"",
    "max_age = \"9223372036854775807d\"",
    "max_bytes = \"KiB\"",
    "backoff = [[\"1s\"]]",
    "history = -9223372036854775808",
    "num_replicas = 99999999999999999999",
    "x = {}",
    "x = { dev = [] }",
    "owner = []",
    "environments = [1]",
    "allow = [\"syntax\", 1]",
    "= =",
];

proptest::proptest! {
    #[test]
    fn no_text_makes_it_panic(lines in proptest::collection::vec(proptest::sample::select(LINES), 0..10)) {
        if let Ok(desired) = desired(&lines.join("\n"), Env::DEV) {
            crate::provision::lint::lint(&desired, &Catalog::built_in().unwrap());
        }
    }
}
