//! Changes that cannot be made in place: nothing is lost, nothing comes twice, and a second apply finishes the first.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_nats::jetstream::consumer::PullConsumer;
use async_nats::jetstream::{self, Context};
use fanfare::provision::{Desired, Error, Options};
use futures::StreamExt;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::{api, cut_off, declared, info, planned, settle};
use crate::support::{NatsServer, eventually};

/// A stream with two consumers; what stands in braces differs from test to test.
pub(super) fn lanes(retention: &str, x: &str, y: &str, more: &str) -> Desired {
    declared(&format!(
        r#"
[[stream]]
config = {{ name = "S", subjects = ["a", "b", "c"], retention = "{retention}" }}
[[consumer]]
stream = "S"
config = {{ name = "x", durable_name = "x", ack_policy = "explicit", filter_subjects = {x}{more} }}
[[consumer]]
stream = "S"
config = {{ name = "y", durable_name = "y", ack_policy = "explicit", filter_subjects = {y} }}
"#
    ))
}

/// Takes what a consumer has and acknowledges it, until there is nothing for a moment.
pub(super) async fn take(context: &Context, consumer: &str, most: usize) -> Vec<String> {
    let consumer: PullConsumer = context.get_consumer_from_stream(consumer, "S").await.expect("it exists");
    let mut taken = Vec::new();
    while taken.len() < most {
        let mut batch = consumer.fetch().max_messages(1).messages().await.expect("a batch");
        let Some(message) = batch.next().await else { break };
        let message = message.expect("no error");
        taken.push(String::from_utf8_lossy(&message.payload).into_owned());
        message.double_ack().await.expect("an answer");
    }
    taken
}

pub(super) async fn publish(context: &Context, subject: &str, text: &str) {
    context.publish(subject.to_owned(), text.to_owned().into()).await.unwrap().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_consumer_is_replaced_under_load_and_every_message_is_handled_once() {
    let server = NatsServer::start().await;
    let client = server.client().await;
    let context = jetstream::new(client.clone());
    settle(&client, &lanes("workqueue", r#"["a"]"#, r#"["b"]"#, ""), &Options::default()).await.unwrap();
    let done = Arc::new(AtomicBool::new(false));
    let mut workers = JoinSet::new();
    for _ in 0..3 {
        workers.spawn(work(context.clone(), Arc::clone(&done)));
    }
    let mut publisher = JoinSet::new();
    let stop = Arc::new(AtomicBool::new(false));
    let (own, stopped) = (context.clone(), Arc::clone(&stop));
    publisher.spawn(async move {
        let mut sent = 0;
        while !stopped.load(Ordering::Relaxed) {
            publish(&own, "a", &sent.to_string()).await;
            sent += 1;
        }
        sent
    });

    for waiting in [7, 9, 11] {
        let wanted = lanes("workqueue", r#"["a"]"#, r#"["b"]"#, &format!(", max_waiting = {waiting}"));
        let report = settle(&client, &wanted, &Options::default()).await.unwrap();
        assert_eq!((report.replaced, report.updated, report.created), (1, 0, 0));
        let config = super::config_of(&client, "CONSUMER.INFO.S.x").await;
        assert_eq!(config["max_waiting"], waiting);
        assert!(config["metadata"].get("fanfare.migrating").is_none(), "{config}");
    }

    stop.store(true, Ordering::Relaxed);
    let sent: usize = publisher.join_next().await.unwrap().unwrap();
    eventually("all is handled", async || info(&client, "STREAM.INFO.S").await["state"]["messages"] == 0)
        .await;
    done.store(true, Ordering::Relaxed);
    let mut handled: BTreeMap<String, usize> = BTreeMap::new();
    for id in workers.join_all().await.into_iter().flatten() {
        *handled.entry(id).or_default() += 1;
    }
    assert!(sent > 10, "there was load: {sent}");
    assert_eq!(handled.len(), sent, "nothing is lost");
    assert!(handled.values().all(|times| *times == 1), "nothing comes twice: {handled:?}");
}

/// A worker that goes on when its consumer vanishes and comes again.
async fn work(context: Context, done: Arc<AtomicBool>) -> Vec<String> {
    let mut handled = Vec::new();
    while !done.load(Ordering::Relaxed) {
        let Ok(consumer) = context.get_consumer_from_stream("x", "S").await else { continue };
        let consumer: PullConsumer = consumer;
        let batch = consumer.batch().max_messages(8).expires(Duration::from_millis(300)).messages().await;
        let Ok(mut batch) = batch else { continue };
        while let Some(message) = batch.next().await {
            let Ok(message) = message else { continue };
            handled.push(String::from_utf8_lossy(&message.payload).into_owned());
            tokio::time::sleep(Duration::from_millis(2)).await;
            message.double_ack().await.expect("an answer");
        }
    }
    handled
}

/// Every migration, cut off after every one of its requests.
#[tokio::test]
async fn cut_off_after_any_request_a_second_apply_comes_to_the_end() {
    let (_server, client) = super::inhabited().await;
    let context = jetstream::new(client.clone());
    let (a, b, ab) = (r#"["a"]"#, r#"["b"]"#, r#"["a", "b"]"#);
    let more = ", max_waiting = 7";
    for (what, before, after, x, y) in [
        (
            "lane move",
            lanes("workqueue", a, r#"["b", "c"]"#, ""),
            lanes("workqueue", ab, r#"["c"]"#, ""),
            "a2 b1 b2",
            "",
        ),
        ("trade", lanes("workqueue", a, b, ""), lanes("workqueue", b, a, ""), "b1 b2", "a2"),
        ("work queue", lanes("workqueue", a, b, ""), lanes("workqueue", a, b, more), "a2", "b1 b2"),
        ("limits", lanes("limits", a, b, ""), lanes("limits", a, b, more), "a2", "b1 b2"),
        ("interest", lanes("interest", a, b, ""), lanes("interest", a, b, more), "a2", "b1 b2"),
    ] {
        let mut sent = 0;
        loop {
            settle(&client, &before, &Options::default()).await.unwrap();
            for (subject, text) in [("a", "a1"), ("b", "b1"), ("a", "a2"), ("b", "b2")] {
                publish(&context, subject, text).await;
            }
            assert_eq!(take(&context, "x", 1).await, ["a1"], "{what}");
            let plan = planned(&client, &after, &Options::default()).await;
            assert!(plan.steps.len() > 3, "{what}: {plan}");
            cut_off(&client, &plan.steps[..sent], &Options::default()).await;

            let report = settle(&client, &after, &Options::default()).await;

            assert!(report.is_ok(), "{what}, cut off after {sent}: {report:?}\n{plan}");
            assert!(planned(&client, &after, &Options::default()).await.is_empty(), "{what}, {sent}");
            let mut both = [take(&context, "x", 9).await, take(&context, "y", 9).await];
            for taken in &mut both {
                taken.sort();
            }
            assert_eq!(both.map(|taken| taken.join(" ")), [x, y], "{what}, cut off after {sent}");
            let names = api(&client, "CONSUMER.NAMES.S", &Value::Null).await;
            assert_eq!(names["consumers"], json!(["x", "y"]), "{what}, {sent}");
            api(&client, "STREAM.DELETE.S", &Value::Null).await;
            sent += 1;
            if sent > plan.steps.len() {
                break;
            }
        }
    }
}

#[tokio::test]
async fn a_consumer_whose_worker_does_not_answer_is_left_as_it_was() {
    let server = NatsServer::start().await;
    let client = server.client().await;
    let context = jetstream::new(client.clone());
    let wanted = lanes("workqueue", r#"["a"]"#, r#"["b"]"#, ", max_waiting = 7");
    settle(&client, &lanes("workqueue", r#"["a"]"#, r#"["b"]"#, ""), &Options::default()).await.unwrap();
    publish(&context, "a", "held").await;
    let consumer: PullConsumer = context.get_consumer_from_stream("x", "S").await.unwrap();
    let mut batch = consumer.fetch().max_messages(1).messages().await.unwrap();
    let held = batch.next().await.unwrap().unwrap();
    let short = Options { wait: Duration::from_millis(300), ..Options::default() };

    let error = settle(&client, &wanted, &short).await.unwrap_err();

    assert!(matches!(error, Error::Busy { left: 1, .. }), "{error}");
    let live = info(&client, "CONSUMER.INFO.S.x").await;
    assert!(live.get("paused").is_none_or(|paused| *paused == json!(false)), "{live}");
    assert_eq!(live["config"]["max_waiting"], 512);
    // With force it goes on, and the message comes again: at least once.
    settle(&client, &wanted, &Options { force: true, ..short }).await.unwrap();
    assert_eq!(take(&context, "x", 9).await, ["held"]);
    drop(held);
}

#[tokio::test]
async fn a_pause_of_an_operator_outlives_a_migration() {
    let (_server, client) = super::inhabited().await;
    for retention in ["workqueue", "limits"] {
        settle(&client, &lanes(retention, r#"["a"]"#, r#"["b"]"#, ""), &Options::default()).await.unwrap();
        let until = "2090-01-01T00:00:00Z";
        api(&client, "CONSUMER.PAUSE.S.x", &json!({ "pause_until": until })).await;

        let wanted = lanes(retention, r#"["a"]"#, r#"["b"]"#, ", max_waiting = 7");
        settle(&client, &wanted, &Options::default()).await.unwrap();

        let live = info(&client, "CONSUMER.INFO.S.x").await;
        assert_eq!((&live["paused"], &live["config"]["pause_until"]), (&json!(true), &json!(until)));
        api(&client, "STREAM.DELETE.S", &Value::Null).await;
    }
}

#[tokio::test]
async fn a_stream_that_is_made_again_goes_on_counting_wherever_it_was_cut_off() {
    let (_server, client) = super::inhabited().await;
    let context = jetstream::new(client.clone());
    let options = Options { recreate: vec!["S".to_owned()], ..Options::default() };
    let mut sent = 0;
    loop {
        settle(&client, &queue("file"), &Options::default()).await.unwrap();
        for text in ["1", "2", "3"] {
            publish(&context, "a", text).await;
        }
        assert_eq!(take(&context, "x", 9).await.len(), 3);
        let refused = settle(&client, &queue("memory"), &Options::default()).await.unwrap_err();
        assert!(refused.to_string().contains("apply --recreate S"), "{refused}");
        let plan = planned(&client, &queue("memory"), &options).await;
        cut_off(&client, &plan.steps[..sent], &options).await;

        settle(&client, &queue("memory"), &options).await.unwrap();

        publish(&context, "a", "4").await;
        assert_eq!(take(&context, "x", 9).await, ["4"], "{sent}");
        let live = info(&client, "STREAM.INFO.S").await;
        assert_eq!(
            (&live["config"]["storage"], &live["state"]["last_seq"]),
            (&json!("memory"), &json!(4)),
            "{sent}"
        );
        assert_eq!(
            api(&client, "STREAM.NAMES", &Value::Null).await["streams"],
            json!(["KEEP", "S"]),
            "{sent}"
        );
        api(&client, "STREAM.DELETE.S", &Value::Null).await;
        sent += 1;
        if sent > plan.steps.len() {
            break;
        }
    }
}

/// As SCHEDULES is by NOTIFICATIONS.
#[tokio::test]
async fn a_stream_that_sources_one_that_is_made_again_finds_it() {
    let server = NatsServer::start().await;
    let client = server.client().await;
    let context = jetstream::new(client.clone());
    let sourced = |storage: &str| {
        declared(&format!(
            r#"
[[stream]]
config = {{ name = "UP", subjects = ["up.>"], retention = "workqueue", storage = "{storage}" }}
[[stream]]
config = {{ name = "S", retention = "workqueue", sources = [{{ name = "UP" }}] }}
"#
        ))
    };
    settle(&client, &sourced("file"), &Options::default()).await.unwrap();
    publish(&context, "up.a", "1").await;
    eventually("it is taken over", async || info(&client, "STREAM.INFO.UP").await["state"]["messages"] == 0)
        .await;
    let options = Options { recreate: vec!["UP".to_owned()], ..Options::default() };

    settle(&client, &sourced("memory"), &options).await.unwrap();

    publish(&context, "up.a", "2").await;
    // nats-server 2.15.1 takes 21 s to notice that its source is another one.
    let taken = async || {
        while info(&client, "STREAM.INFO.S").await["state"]["messages"] != 2 {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(Duration::from_mins(2), taken()).await.expect("what comes after is taken over, too");
}

pub(super) fn queue(storage: &str) -> Desired {
    declared(&format!(
        r#"
[[stream]]
config = {{ name = "S", subjects = ["a"], retention = "workqueue", storage = "{storage}" }}
[[consumer]]
stream = "S"
config = {{ name = "x", durable_name = "x", ack_policy = "explicit" }}
"#
    ))
}

#[tokio::test]
async fn a_work_queue_is_made_again_once_its_workers_have_emptied_it() {
    let server = NatsServer::start().await;
    let client = server.client().await;
    let context = jetstream::new(client.clone());
    settle(&client, &queue("file"), &Options::default()).await.unwrap();
    publish(&context, "a", "1").await;
    let options =
        Options { recreate: vec!["S".to_owned()], wait: Duration::from_millis(300), ..Options::default() };

    // Nobody takes the message: the stream is opened again and has it still.
    let error = settle(&client, &queue("memory"), &options).await.unwrap_err();
    assert!(matches!(error, Error::Busy { left: 1, .. }), "{error}");
    publish(&context, "a", "2").await;
    let done = Arc::new(AtomicBool::new(false));
    let mut workers = JoinSet::new();
    workers.spawn(work(context.clone(), Arc::clone(&done)));
    let patient = Options { wait: Duration::from_mins(1), ..options };
    let report = settle(&client, &queue("memory"), &patient).await.unwrap();

    assert_eq!((report.replaced, report.created), (1, 1), "the stream, and its consumer");
    publish(&context, "a", "3").await;
    eventually("all is handled", async || info(&client, "STREAM.INFO.S").await["state"]["messages"] == 0)
        .await;
    done.store(true, Ordering::Relaxed);
    assert_eq!(workers.join_all().await.concat(), ["1", "2", "3"]);
    assert_eq!(super::config_of(&client, "STREAM.INFO.S").await["storage"], "memory");
}
