//! Many at once, and the life of sessions: a storm of connects, a client that reads nothing beside others who do, fresh
//! sessions for old ones, and a stop that is cut short.

use std::collections::HashSet;
use std::time::Duration;

use fanfare::client::{AckMode, Bind, Client, Endpoint, Event, Why};
use fanfare::protocol::CloseCode;
use fanfare::protocol::frame::SessionLane;
use futures::future::join_all;
use serde_json::json;

use crate::node::{Node, get, value};
use crate::support::{Gateway, SCHEMES, eventually, message, next_on, notification, within};

/// A single message of 2 kB.
fn large(id: &str) -> serde_json::Value {
    let mut message = message(id);
    message["payload"]["content"] = json!("x".repeat(2_000));
    message
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_storm_of_connects_is_let_in_at_the_rate_and_all_are_live_in_the_end() {
    const CLIENTS: usize = 120;
    // 60 at once, and the others by their own backoff. Fewer a second than an unoptimised build can take, or nobody would
    // be refused.
    let node = Node::start_configured("handshakes_per_s = 30").await;
    let endpoint = Endpoint::bind(Bind::Loopback).unwrap();

    let clients = join_all((0..CLIENTS).map(async |number| {
        let mut config = node.device(&format!("user-{number}"));
        config.endpoint = Some(endpoint.clone());
        let mut client = Client::connect(config.clone()).unwrap();
        let mut refused = 0.0;
        loop {
            match within(client.next()).await {
                Some(Event::Live(_)) => return (client, refused),
                Some(Event::Waiting { why: Why::Closed(closed), delay }) => {
                    let error = closed.error.unwrap_or_default();
                    assert!(error.contains("refused"), "nothing else keeps a client out: {error}");
                    refused += 1.0;
                    // One whose jitter was short five times in a row is to wait for minutes. Its user starts it anew.
                    if delay > Duration::from_secs(30) {
                        client = Client::connect(config.clone()).unwrap();
                    }
                }
                other => panic!("{other:?}"),
            }
        }
    }))
    .await;

    let text = get(node.admin, "/metrics").await.1;
    let metric = |name: &str| value(&text, name).unwrap_or_default();
    assert!((metric("fanfare_session_open") - CLIENTS as f64).abs() < 0.5, "{text}");
    let refused: f64 = clients.iter().map(|(_, refused)| refused).sum();
    let counted = metric("fanfare_edge_refused_total{reason=\"handshake_rate\"}");
    // A client that did not hear of its refusal sent its packet again.
    assert!(refused > 0.0 && counted >= refused, "{counted} counted, {refused} were refused");
    assert!(metric("fanfare_edge_retries_total") > 0.0, "{text}");
    assert_eq!(text.matches("fanfare_edge_refused_total{").count(), 1, "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_reads_nothing_is_closed_and_only_it_waits() {
    const OTHERS: usize = 50;
    const FLOOD: u64 = 150;
    let gateway = Gateway::start_with(|setup| {
        // Some 30 of the flood fill the lane's budget and 50 wait; the others find no room.
        setup.config.edge.queue_frames = 50;
        setup.config.edge.slow_after_ms = 1_000;
    })
    .await;
    let names: Vec<String> = (0..OTHERS).map(|number| format!("user-{number}")).collect();
    let mut others = join_all(names.iter().map(|name| gateway.client(name, "d1"))).await;
    let silent = gateway.live("https", "silent", "d1").await;

    for count in 0..FLOOD {
        gateway.publish("notification.message.new.silent", &large(&format!("flood-{count}"))).await;
        let name = &names[count as usize % OTHERS];
        gateway.publish(&format!("notification.message.new.{name}"), &message(&format!("{count}"))).await;
    }

    for (number, other) in others.iter_mut().enumerate() {
        for round in 0..FLOOD as usize / OTHERS {
            assert_eq!(notification(other).await.notification_id, (number + round * OTHERS).to_string());
        }
    }
    silent.expect_close(CloseCode::SlowConsumer, "it read nothing").await;
    let kept: HashSet<String> = gateway
        .records("INBOX", FLOOD)
        .await
        .into_iter()
        .map(|record| {
            assert_eq!(record.subject, "inbox.silent");
            record.json["notification_id"].as_str().unwrap().to_owned()
        })
        .collect();
    let flood: HashSet<String> = (0..FLOOD).map(|count| format!("flood-{count}")).collect();
    assert_eq!(kept, flood, "what it held and what was refused");
    gateway.settled().await;
    gateway.serves("one that read nothing").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_does_not_fit_the_clients_window_follows_as_it_reads() {
    // What the client lets the server send on a stream before it reads, and about the longest envelope.
    const WINDOW: usize = 256 * 1024;
    let gateway = Gateway::start().await;
    for scheme in SCHEMES {
        let user = format!("{scheme}-reader");
        let mut peer = gateway.live(scheme, &user, "d1").await;
        let mut large = message("large");
        large["payload"]["content"] = json!("");
        large["payload"]["content"] = json!("x".repeat(WINDOW - large.to_string().len()));
        gateway.publish(&format!("notification.message.new.{user}"), &large).await;
        // It fills the window, so its end and the next one wait for the reader, and not for a heartbeat.
        let mut lane = peer.lane(SessionLane::Normal).await;
        gateway.publish(&format!("notification.message.new.{user}"), &message("next")).await;
        let body = within(lane.read_body()).await.unwrap().unwrap();
        assert!(body.len() > WINDOW, "{} bytes", body.len());
        let frame: serde_json::Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(frame["data"]["payload"]["content"], large["payload"]["content"]);
        peer.ack(SessionLane::Normal, 1).await;
        assert_eq!(next_on(&mut lane).await.0, "next");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_that_carried_much_is_replaced_and_nothing_is_lost_or_shown_twice() {
    let gateway = Gateway::start_with(|setup| setup.config.edge.rotate_bytes = 40_000).await;

    // One acks what it is shown; for the other all that the old session sent is delivered again.
    let clients = join_all([("ann", AckMode::Auto), ("ben", AckMode::Never)].map(async |(user, ack)| {
        let mut config = gateway.device(user, "d1");
        config.ack = ack;
        let (mut client, _) = gateway.connect(config).await;
        let mut shown = Vec::new();
        let (mut asked, mut renewed) = (false, false);
        for count in 0..25 {
            gateway
                .publish(&format!("notification.message.new.{user}"), &large(&format!("{user}-{count}")))
                .await;
        }
        while shown.len() < 30 {
            match within(client.next()).await {
                Some(Event::Notification(received)) => shown.push(received.notification_id),
                Some(Event::Waiting { why: Why::Goaway { reason }, .. }) => {
                    assert_eq!(reason, "rotate");
                    if std::mem::replace(&mut asked, true) {
                        // Who acks nothing is sent everything again, which is much again.
                        continue;
                    }
                    // Meanwhile the old session goes on.
                    for count in 25..28 {
                        gateway
                            .publish(
                                &format!("notification.message.new.{user}"),
                                &message(&format!("{user}-{count}")),
                            )
                            .await;
                    }
                }
                Some(Event::Live(_)) => {
                    assert!(asked, "the server asked for it");
                    if std::mem::replace(&mut renewed, true) {
                        continue;
                    }
                    for count in 28..30 {
                        gateway
                            .publish(
                                &format!("notification.message.new.{user}"),
                                &message(&format!("{user}-{count}")),
                            )
                            .await;
                    }
                }
                other => panic!("{other:?}"),
            }
        }
        let distinct: HashSet<_> = shown.iter().cloned().collect();
        assert_eq!(distinct, (0..30).map(|count| format!("{user}-{count}")).collect());
        assert_eq!(shown.len(), 30, "each once");
        if ack == AckMode::Never {
            eventually("what was not acked comes again", async || {
                // Repeats are not events: they are passed over while the next one is waited for.
                let next = tokio::time::timeout(Duration::from_millis(100), client.next()).await;
                assert!(!matches!(next, Ok(Some(Event::Notification(_)))), "shown twice: {next:?}");
                client.stats().duplicates >= 25
            })
            .await;
        }
        client
    }))
    .await;
    gateway.settled().await;
    for stream in ["OFFLINE_PUSH", "INBOX"] {
        assert_eq!(gateway.count(stream).await, 0, "{stream}: they were never away");
    }
    drop(clients);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_signal_ends_a_drain_at_once() {
    let mut node = Node::start().await;
    // It stays until it is closed, which is after the end of this test.
    let mut config = node.device("ann");
    config.reconnect = false;
    let mut client = Client::connect(config).unwrap();
    within(client.live()).await.unwrap();

    node.signal("TERM").await;
    eventually("it drains", async || get(node.admin, "/readyz").await.0 == 503).await;
    node.signal("TERM").await;

    assert_eq!(node.ended().await.code(), Some(1), "not the 0 of a drain that was over");
}
