//! What an apply holds up (paused consumers, closed streams) when it fails, is interrupted, or is not alone.

use std::collections::BTreeMap;
use std::process::Stdio;
use std::time::Duration;

use async_nats::Client;
use async_nats::jetstream::consumer::PullConsumer;
use async_nats::jetstream::{self, Context};
use fanfare::provision::{Error, Options, Plan, apply};
use futures::StreamExt;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::migration::{lanes, publish, queue, take};
use super::{api, cut_off, declared, info, planned, settle};
use crate::support::{NatsServer, eventually};

const A: &str = r#"["a"]"#;
const B: &str = r#"["b"]"#;

/// Applies, and is interrupted at the first step that begins so.
async fn interrupted(client: &Client, plan: &Plan, desired: &super::Desired, word: &str) -> Error {
    let stop = CancellationToken::new();
    let options = Options::default();
    let mut told = |line: &str| {
        if line.starts_with(word) {
            stop.cancel();
        }
    };
    apply::apply(client, desired, plan, &options, &stop, &mut told).await.unwrap_err()
}

fn hours_ahead(live: &Value) -> i64 {
    use time::OffsetDateTime;
    use time::format_description::well_known::Rfc3339;
    let until = live["config"]["pause_until"].as_str().unwrap_or_default();
    OffsetDateTime::parse(until, &Rfc3339)
        .map_or(0, |until| (until - OffsetDateTime::now_utc()).whole_hours())
}

#[tokio::test]
async fn a_consumer_that_is_not_at_its_place_stays_paused_until_it_is() {
    let server = NatsServer::start().await;
    let client = server.client().await;
    let context = jetstream::new(client.clone());
    settle(&client, &lanes("limits", A, B, ""), &Options::default()).await.unwrap();
    for text in ["1", "2", "3"] {
        publish(&context, "a", text).await;
    }
    assert_eq!(take(&context, "x", 2).await, ["1", "2"]);
    let after = lanes("limits", A, B, ", max_waiting = 7");
    // It is made again, and not brought to its place; then an apply that finishes it is interrupted, too.
    for word in ["create consumer", "wait until"] {
        let plan = planned(&client, &after, &Options::default()).await;

        let error = interrupted(&client, &plan, &after, word).await;

        assert!(matches!(error, Error::Interrupted), "{word}: {error}");
        let live = info(&client, "CONSUMER.INFO.S.x").await;
        assert_eq!(live["paused"], true, "{word}: {live}");
        assert!(hours_ahead(&live) >= 23, "{word}: {live}");
        assert_eq!(live["config"]["metadata"]["fanfare.place"], "bookmark", "{word}: {live}");
    }
    settle(&client, &after, &Options::default()).await.unwrap();
    assert_eq!(take(&context, "x", 9).await, ["3"]);
}

#[tokio::test]
async fn what_was_brought_to_its_place_and_handed_out_is_not_brought_there_again() {
    let (_server, client) = super::inhabited().await;
    let context = jetstream::new(client.clone());
    let after = lanes("limits", A, B, ", max_waiting = 7");
    let mut sent = 0;
    loop {
        settle(&client, &lanes("limits", A, B, ""), &Options::default()).await.unwrap();
        publish(&context, "a", "1").await;
        let plan = planned(&client, &after, &Options::default()).await;
        cut_off(&client, &plan.steps[..sent], &Options::default()).await;
        // Where it hands out at all, and else later.
        let exists = api(&client, "CONSUMER.NAMES.S", &Value::Null).await["consumers"].to_string();
        let mut taken = if exists.contains("\"x\"") { take(&context, "x", 9).await } else { Vec::new() };

        settle(&client, &after, &Options::default()).await.unwrap();

        taken.extend(take(&context, "x", 9).await);
        assert_eq!(taken, ["1"], "cut off after {sent}: {plan}");
        api(&client, "STREAM.DELETE.S", &Value::Null).await;
        sent += 1;
        if sent > plan.steps.len() {
            break;
        }
    }
}

/// A message that nobody acknowledges.
async fn hold(context: &Context) -> jetstream::Message {
    let consumer: PullConsumer = context.get_consumer_from_stream("x", "S").await.unwrap();
    let mut batch = consumer.fetch().max_messages(1).messages().await.unwrap();
    batch.next().await.unwrap().unwrap()
}

#[tokio::test]
async fn a_pause_of_an_operator_outlives_an_apply_that_fails() {
    let server = NatsServer::start().await;
    let client = server.client().await;
    let context = jetstream::new(client.clone());
    settle(&client, &lanes("workqueue", A, B, ""), &Options::default()).await.unwrap();
    publish(&context, "a", "held").await;
    let held = hold(&context).await;
    let until = "2090-01-01T00:00:00Z";
    api(&client, "CONSUMER.PAUSE.S.x", &json!({ "pause_until": until })).await;
    let short = Options { wait: Duration::from_millis(300), ..Options::default() };

    let wanted = lanes("workqueue", A, B, ", max_waiting = 7");
    let error = settle(&client, &wanted, &short).await.unwrap_err();

    assert!(matches!(error, Error::Busy { left: 1, .. }), "{error}");
    let live = info(&client, "CONSUMER.INFO.S.x").await;
    assert_eq!((&live["paused"], &live["config"]["pause_until"]), (&json!(true), &json!(until)));
    assert!(live["config"]["metadata"].get("fanfare.migrating").is_none(), "nothing was begun: {live}");
    drop(held);
}

#[tokio::test]
async fn a_stream_that_an_earlier_apply_closed_is_open_after_the_next_one_gives_up() {
    let server = NatsServer::start().await;
    let client = server.client().await;
    let context = jetstream::new(client.clone());
    settle(&client, &queue("file"), &Options::default()).await.unwrap();
    publish(&context, "a", "1").await;
    let options =
        Options { recreate: vec!["S".to_owned()], wait: Duration::from_millis(300), ..Options::default() };
    let plan = planned(&client, &queue("memory"), &options).await;
    cut_off(&client, &plan.steps[..1], &options).await;
    assert_eq!(super::config_of(&client, "STREAM.INFO.S").await["subjects"], json!(["fanfare.closed.S"]));

    let error = settle(&client, &queue("memory"), &options).await.unwrap_err();

    assert!(matches!(error, Error::Busy { left: 1, .. }), "{error}");
    publish(&context, "a", "2").await;
    // Who changes their mind has nothing to do.
    assert!(planned(&client, &queue("file"), &Options::default()).await.is_empty());
}

/// In a stream by interest a message is gone when no consumer is there: until they are, it takes none.
#[tokio::test]
async fn a_stream_that_is_made_again_takes_nothing_until_its_consumers_are_there() {
    let (_server, client) = super::inhabited().await;
    let context = jetstream::new(client.clone());
    let stream = |storage: &str| {
        declared(&format!(
            r#"
[[stream]]
config = {{ name = "S", subjects = ["a"], retention = "interest", storage = "{storage}" }}
[[consumer]]
stream = "S"
config = {{ name = "x", durable_name = "x", ack_policy = "explicit" }}
"#
        ))
    };
    let may = Options { recreate: vec!["S".to_owned()], ..Options::default() };
    settle(&client, &stream("file"), &Options::default()).await.unwrap();
    let until = "2090-01-01T00:00:00Z";
    api(&client, "CONSUMER.PAUSE.S.x", &json!({ "pause_until": until })).await;
    let steps = planned(&client, &stream("memory"), &may).await.steps.len();
    for sent in 0..=steps {
        settle(&client, &stream("file"), &may).await.unwrap();
        let plan = planned(&client, &stream("memory"), &may).await;
        cut_off(&client, &plan.steps[..sent], &may).await;
        let names = super::send(&client, "CONSUMER.NAMES.S", &Value::Null).await["consumers"].to_string();
        let sent_meanwhile = context.publish("a", "1".into()).await.unwrap().await;
        settle(&client, &stream("memory"), &may)
            .await
            .map_or_else(|error| assert!(sent_meanwhile.is_ok(), "{sent}: it is not empty: {error}"), drop);
        let live = info(&client, "CONSUMER.INFO.S.x").await;
        assert_eq!(live["num_pending"], u64::from(sent_meanwhile.is_ok()), "cut off after {sent}: {plan}");
        // Where the consumer was gone its pause was, too.
        if names.contains('x') {
            let pause = (&live["paused"], &live["config"]["pause_until"]);
            assert_eq!(pause, (&json!(true), &json!(until)), "{sent}");
        }
        api(&client, "STREAM.PURGE.S", &Value::Null).await;
        settle(&client, &stream("memory"), &may).await.unwrap();
        api(&client, "CONSUMER.PAUSE.S.x", &json!({ "pause_until": until })).await;
    }
}

/// Declarations that were rolled back after an apply that was cut off anywhere.
#[tokio::test]
async fn a_work_queue_can_be_emptied_whatever_was_cut_off() {
    let (_server, client) = super::inhabited().await;
    let context = jetstream::new(client.clone());
    let may = Options { recreate: vec!["S".to_owned()], ..Options::default() };
    settle(&client, &queue("file"), &Options::default()).await.unwrap();
    let plan = planned(&client, &queue("memory"), &may).await;
    let before_consumer = plan.steps.iter().position(|step| step.consumer.is_some()).unwrap();
    cut_off(&client, &plan.steps[..before_consumer], &may).await;
    // Somebody opened it by hand, and something came.
    let mut config = info(&client, "STREAM.INFO.S").await["config"].clone();
    config["subjects"] = json!(["a"]);
    api(&client, "STREAM.UPDATE.S", &config).await;
    publish(&context, "a", "1").await;

    let done = CancellationToken::new();
    let mut worker = JoinSet::new();
    worker.spawn(work(context.clone(), "x", done.clone()));
    settle(&client, &queue("file"), &may).await.unwrap();

    done.cancel();
    assert_eq!(worker.join_all().await.concat(), ["1"]);
    assert_eq!(super::config_of(&client, "STREAM.INFO.S").await["storage"], "file");
}

/// A signal to the program while it waits.
#[tokio::test]
async fn an_interrupted_apply_opens_what_it_closed() {
    let server = NatsServer::start().await;
    let client = server.client().await;
    let context = jetstream::new(client.clone());
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(dir.path().join("streams")).unwrap();
    let declare = |file: &str, text: &str| std::fs::write(dir.path().join(file), text).unwrap();
    let chat = |storage: &str| {
        declare(
            "streams/chat.toml",
            &format!(
                "[[stream]]\n[stream.config]\nname = \"CHAT\"\nsubjects = [\"chat.>\"]\nretention = \"workqueue\"\n\
                 discard = \"new\"\nmax_bytes = \"1MiB\"\nmax_consumers = 1\nstorage = \"{storage}\"\n"
            ),
        );
    };
    declare("declarations.toml", "owner = \"chat\"\nallow = [\"stream-missing\"]\n");
    let at = dir.path().to_str().unwrap();
    chat("file");
    let (code, text) = super::fanfare(&server, &["provision", "apply", "--yes", "--dir", at]);
    assert_eq!(code, Some(0), "{text}");
    publish(&context, "chat.a", "1").await;
    chat("memory");
    for signal in ["-INT", "-HUP"] {
        let mut apply = tokio::process::Command::new(env!("CARGO_BIN_EXE_fanfare"))
            .args([
                "--nats",
                server.url(),
                "provision",
                "apply",
                "--yes",
                "--recreate",
                "CHAT",
                "--wait",
                "600",
            ])
            .args(["--dir", at])
            .stderr(Stdio::piped())
            .stdout(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(apply.stderr.take().unwrap()).lines();
        while !lines.next_line().await.unwrap().expect("it waits").starts_with("stream CHAT: ") {}
        let closed = context.publish("chat.a", "2".into()).await.unwrap().await;
        assert!(closed.is_err(), "{closed:?}");
        // When the terminal goes, nobody reads any more what is printed.
        let mut lines = Some(lines).filter(|_| signal == "-INT");

        let pid = apply.id().unwrap().to_string();
        assert!(std::process::Command::new("kill").args([signal, &pid]).status().unwrap().success());

        let status = apply.wait().await.unwrap();
        let mut rest = String::new();
        if let Some(lines) = &mut lines {
            while let Some(line) = lines.next_line().await.unwrap() {
                rest += &line;
            }
            assert!(rest.contains("giving up: open stream CHAT"), "{rest}");
            assert!(rest.contains("interrupted; what is not"), "{rest}");
        }
        assert_eq!(status.code(), Some(1), "{signal}: {rest}");
        publish(&context, "chat.a", signal).await;
    }
}

#[tokio::test]
async fn what_only_has_the_name_of_a_helper_keeps_what_is_in_it() {
    let server = NatsServer::start().await;
    let client = server.client().await;
    let context = jetstream::new(client.clone());
    let both = |storage: &str, more: &str| {
        declared(&format!(
            r#"
[[stream]]
config = {{ name = "S", subjects = ["a"], storage = "{storage}" }}
[[stream]]
config = {{ name = "S-next", subjects = ["n"] }}
[[consumer]]
stream = "S"
config = {{ name = "x", durable_name = "x", ack_policy = "explicit"{more} }}
[[consumer]]
stream = "S"
config = {{ name = "x-bookmark", durable_name = "x-bookmark", ack_policy = "explicit" }}
"#
        ))
    };
    settle(&client, &both("file", ""), &Options::default()).await.unwrap();
    publish(&context, "n", "kept").await;
    let created = info(&client, "CONSUMER.INFO.S.x-bookmark").await["created"].clone();
    let may = Options { recreate: vec!["S".to_owned()], prune: true, ..Options::default() };

    assert!(planned(&client, &both("file", ""), &may).await.is_empty(), "declared is declared");
    let again = settle(&client, &both("memory", ""), &may).await.unwrap_err();
    let replaced = settle(&client, &both("file", ", max_waiting = 7"), &may).await.unwrap_err();

    assert!(again.to_string().contains("a stream S-next, and somebody has one of that name"), "{again}");
    assert!(replaced.to_string().contains("a consumer x-bookmark, and somebody has one"), "{replaced}");
    assert_eq!(info(&client, "STREAM.INFO.S-next").await["state"]["messages"], 1);
    assert_eq!(info(&client, "CONSUMER.INFO.S.x-bookmark").await["created"], created);
}

#[tokio::test]
async fn streams_exchange_subjects_and_who_took_all_is_split() {
    let server = NatsServer::start().await;
    let client = server.client().await;
    let context = jetstream::new(client.clone());
    let streams = |s: &str, t: &str, consumers: &str| {
        declared(&format!(
            r#"
[[stream]]
config = {{ name = "S", subjects = {s}, retention = "workqueue" }}
[[stream]]
config = {{ name = "T", subjects = {t}, retention = "workqueue" }}
{consumers}"#
        ))
    };
    let consumer = |name: &str, filters: &str| {
        format!(
            "[[consumer]]\nstream = \"S\"\nconfig = {{ name = \"{name}\", durable_name = \"{name}\", \
             ack_policy = \"explicit\"{filters} }}\n"
        )
    };
    let before = streams(r#"["a", "b"]"#, r#"["c", "d"]"#, &consumer("x", ""));
    settle(&client, &before, &Options::default()).await.unwrap();
    for subject in ["a", "b"] {
        publish(&context, subject, subject).await;
    }

    // The new one comes first by its name.
    let lanes =
        consumer("new", r#", filter_subjects = ["a"]"#) + &consumer("x", r#", filter_subjects = ["b", "c"]"#);
    let after = streams(r#"["a", "c", "b"]"#, r#"["d"]"#, &lanes);
    settle(&client, &after, &Options::default()).await.unwrap();
    assert_eq!(
        (take(&context, "new", 9).await, take(&context, "x", 9).await),
        (vec!["a".to_owned()], vec!["b".to_owned()])
    );
    let exchanged = streams(r#"["a", "d"]"#, r#"["b", "c"]"#, &lanes.replace(r#"["b", "c"]"#, r#"["d"]"#));
    settle(&client, &exchanged, &Options::default()).await.unwrap();
    assert!(planned(&client, &exchanged, &Options::default()).await.is_empty());
}

/// Takes what there is, until told to end.
async fn work(context: Context, consumer: &'static str, done: CancellationToken) -> Vec<String> {
    let mut handled = Vec::new();
    while !done.is_cancelled() {
        let Ok(queue) = context.get_consumer_from_stream(consumer, "S").await else { continue };
        let queue: PullConsumer = queue;
        let batch = queue.batch().max_messages(2).expires(Duration::from_millis(100)).messages().await;
        let Ok(mut batch) = batch else { continue };
        while let Some(Ok(message)) = batch.next().await {
            handled.push(String::from_utf8_lossy(&message.payload).into_owned());
            message.double_ack().await.expect("an answer");
        }
    }
    handled
}

/// Whatever the one has done when the other begins, and whichever of them was planned first.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_applies_one_gives_way_and_every_message_is_handled_once() {
    let (_server, client) = super::inhabited().await;
    let context = jetstream::new(client.clone());
    let options = Options::default();
    let before = lanes("workqueue", A, r#"["b", "c"]"#, "");
    let after = lanes("workqueue", r#"["a", "b"]"#, r#"["c"]"#, "");
    let (mut sent, mut overtaken) = (0, 0);
    for early in [true, false] {
        loop {
            settle(&client, &before, &options).await.unwrap();
            let done = CancellationToken::new();
            let mut workers = JoinSet::new();
            for consumer in ["x", "y"] {
                workers.spawn(work(context.clone(), consumer, done.clone()));
            }
            let plan = planned(&client, &after, &options).await;
            let (stop, mut told, mut told2) = (CancellationToken::new(), |_: &str| {}, |_: &str| {});
            let mut first = apply::Run::new(&client, &options, &stop, &mut told);
            for step in &plan.steps[..sent] {
                publish(&context, "b", &format!("{sent} {step}")).await;
                first.send(step).await.unwrap();
            }

            let second = if early { plan.clone() } else { planned(&client, &after, &options).await };
            let second = apply::apply(&client, &after, &second, &options, &stop, &mut told2).await;
            let mut given_up = None;
            for step in &plan.steps[sent..] {
                if let Err(error) = first.send(step).await {
                    first.give_back().await;
                    given_up = Some(error);
                    break;
                }
            }

            match (&second, &given_up) {
                (Err(Error::Overtaken { .. }), _) | (_, Some(Error::Overtaken { .. })) => overtaken += 1,
                (Ok(_), None) => {}
                other => panic!("{early}, {sent}: {other:?}"),
            }
            settle(&client, &after, &options).await.unwrap();
            publish(&context, "b", &format!("{sent} last")).await;
            eventually("all is handled", async || {
                info(&client, "STREAM.INFO.S").await["state"]["messages"] == 0
            })
            .await;
            done.cancel();
            let mut handled: BTreeMap<String, usize> = BTreeMap::new();
            for id in workers.join_all().await.into_iter().flatten() {
                *handled.entry(id).or_default() += 1;
            }
            assert_eq!(handled.len(), sent + 1, "{early}, {sent}: {handled:?}");
            assert!(handled.values().all(|times| *times == 1), "{early}, {sent}: {handled:?}");
            api(&client, "STREAM.DELETE.S", &Value::Null).await;
            sent += 1;
            if sent > plan.steps.len() {
                sent = 0;
                break;
            }
        }
    }
    assert!(overtaken > 10, "{overtaken}");
}
