//! What operators see: liveness, readiness, and metrics that say what happened.

use fanfare::client::{self, AckMode, Target};
use fanfare::protocol::frame::SessionLane;
use fanfare::protocol::{ClientFrame, CloseCode, ServerFrame};
use serde_json::Value;

use crate::node::{Node, get, value};
use crate::support::{Gateway, eventually, message, next_on, notification, request, within};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_without_nats_is_alive_and_not_ready() {
    let mut gateway = Gateway::start().await;
    let admin = gateway.service.admin_address();
    assert_eq!(get(admin, "/livez").await, (200, "ok\n".to_owned()));
    assert_eq!(get(admin, "/readyz").await, (200, "ready\n".to_owned()));
    assert_eq!(get(admin, "/").await.0, 404);
    let mut peer = gateway.live("https", "ann", "d1").await;

    gateway.server.kill();
    eventually("not ready", async || get(admin, "/readyz").await.0 == 503).await;
    assert_eq!(get(admin, "/readyz").await.1, "not connected to NATS\n");
    assert_eq!(get(admin, "/livez").await.0, 200);

    gateway.server.restart().await;
    eventually("ready again", async || get(admin, "/readyz").await.0 == 200).await;
    gateway.serves("NATS was away").await;
    gateway.publish("notification.message.new.ann", &message("n1")).await;
    let mut normal = peer.lane(SessionLane::Normal).await;
    assert_eq!(next_on(&mut normal).await.0, "n1", "the session has stayed");
    peer.send(&ClientFrame::Bye).await;
    peer.expect_close(CloseCode::Normal, "bye").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_draining_node_is_not_ready_and_asks_its_sessions_to_leave() {
    let gateway = Gateway::start().await;
    let (admin, url, trust) = (gateway.service.admin_address(), gateway.url("quic"), gateway.trust());
    let mut peer = gateway.live("https", "ann", "d1").await;
    let mut stop = tokio::task::JoinSet::new();
    let Gateway { service, server, endpoint, .. } = gateway;

    stop.spawn(service.stop());

    match peer.frame().await {
        ServerFrame::Goaway { reason, close_after_ms, .. } => {
            assert_eq!(reason, "draining");
            assert!(close_after_ms > 0);
        }
        other => panic!("no goaway: {other:?}"),
    }
    assert_eq!(get(admin, "/readyz").await, (503, "draining\n".to_owned()));
    assert_eq!(get(admin, "/livez").await.0, 200);
    let target = Target::new(&url, &trust, None).expect("a good URL");
    let late = within(client::raw::RawSession::connect(&target, &endpoint)).await;
    assert!(late.is_err(), "no new sessions");
    peer.send(&ClientFrame::Bye).await;
    peer.expect_close(CloseCode::Normal, "it leaves").await;
    within(stop.join_next()).await.expect("one task").expect("it ends without a panic");
    drop(server);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_without_nats_stops_in_time_with_messages_in_hand() {
    let mut gateway = Gateway::start().await;
    let mut config = gateway.device("ann", "d1");
    config.ack = AckMode::Never;
    let (mut client, _) = gateway.connect(config).await;
    gateway.publish("notification.friend.request.ann", &request("r1")).await;
    notification(&mut client).await;
    client.leave();
    gateway.server.kill();
    // Nothing takes what the connection has to send, so its queue fills and whoever wants to say more waits.
    let nats = gateway.client.clone();
    let full = async || {
        let sent = nats.publish("nobody.listens", "".into());
        tokio::time::timeout(std::time::Duration::from_millis(200), sent).await.is_err()
    };
    while !full().await {}
    let Gateway { service, server, .. } = gateway;

    within(service.stop()).await;

    drop(server);
}

/// In a process of its own, because the metrics of one process are the sums of all its services.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn metrics_say_what_happened() {
    let node = Node::start().await;
    let mut acks = node.client("ann", AckMode::Auto).await;
    let mut never = node.client("ben", AckMode::Never).await;

    for count in 0..3 {
        node.publish("notification.message.new.ann", &message(&format!("m{count}"))).await;
        notification(&mut acks).await;
    }
    node.publish("notification.friend.request.ann", &request("r1")).await;
    notification(&mut acks).await;
    // To somebody who is away: one goes to offline push, one to nobody.
    node.publish("notification.friend.request.nobody", &request("r2")).await;
    node.publish("notification.message.read_receipt.nobody", &serde_json::json!({"payload": {}})).await;
    node.publish("notification.message.new.ann", &Value::Null).await;
    node.publish("notification.friend.request.ben", &request("r3")).await;
    notification(&mut never).await;

    let metric = async |name: &str| value(&get(node.admin, "/metrics").await.1, name);
    for (outcome, count) in
        [("delivered", 3.0), ("acked", 1.0), ("offline_pushed", 1.0), ("absent", 1.0), ("dead_lettered", 1.0)]
    {
        let name = format!("fanfare_delivery_outcomes_total{{outcome=\"{outcome}\"}}");
        eventually(&name, async || metric(&name).await == Some(count)).await;
    }
    // One waits for ben's ack, and all else is done. Read every five seconds.
    eventually("the backlog is read", async || {
        metric("fanfare_worker_unacked_messages{stream=\"NOTIFICATIONS_HIGH\",lane=\"high\"}").await
            == Some(1.0)
    })
    .await;
    let text = get(node.admin, "/metrics").await.1;
    for (name, expected) in [
        ("fanfare_session_open", 2.0),
        // 150,000 sessions at 300/s, and 25 s.
        ("fanfare_lifecycle_grace_seconds", 525.0),
        ("fanfare_worker_backlog_messages{stream=\"NOTIFICATIONS_HIGH\",lane=\"high\"}", 0.0),
        ("fanfare_worker_backlog_messages{stream=\"NOTIFICATIONS\",lane=\"normal\"}", 0.0),
        ("fanfare_worker_backlog_messages{stream=\"NOTIFICATIONS_LOW\",lane=\"low\"}", 0.0),
        ("fanfare_worker_unacked_messages{stream=\"NOTIFICATIONS\",lane=\"normal\"}", 0.0),
        ("fanfare_worker_unacked_messages{stream=\"NOTIFICATIONS_LOW\",lane=\"low\"}", 0.0),
        ("fanfare_delivery_dead_letters_total{reason=\"malformed\"}", 1.0),
        ("fanfare_delivery_accept_seconds_count{lane=\"normal\"}", 3.0),
        ("fanfare_delivery_accept_seconds_count{lane=\"high\"}", 2.0),
        ("fanfare_delivery_accept_seconds_bucket{lane=\"high\",le=\"+Inf\"}", 2.0),
        ("fanfare_delivery_ack_seconds_count{lane=\"high\"}", 1.0),
        // 3 delivered, 1 acked and 1 pushed, of these and 1 dead letter; who is absent does not count.
        ("fanfare_delivery_ratio", 5.0 / 6.0),
    ] {
        let found = value(&text, name).unwrap_or_else(|| panic!("no {name} in\n{text}"));
        assert!((found - expected).abs() < 1e-9, "{name} is {found}, not {expected}");
    }
    for name in ["accept_seconds_sum{lane=\"normal\"}", "ack_seconds_sum{lane=\"high\"}"] {
        let seconds = value(&text, &format!("fanfare_delivery_{name}")).expect(name);
        assert!((0.0..20.0).contains(&seconds), "{name} is {seconds}");
    }
    let users = text.split(|c: char| !c.is_alphanumeric()).any(|word| word == "ann" || word == "ben");
    assert!(!users && !text.contains("friend.request"), "no users and no subjects:\n{text}");

    within(acks.close()).await;
    eventually("a session less", async || metric("fanfare_session_open").await == Some(1.0)).await;
    node.terminate(never).await;
}
