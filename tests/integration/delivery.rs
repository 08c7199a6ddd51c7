//! What the gateway promises about a notification, from the publish to the client's ack, with real clients.

use fanfare::catalog::{BUILT_IN, Catalog};
use fanfare::client::{AckMode, Received};
use fanfare::protocol::frame::SessionLane;
use fanfare::protocol::{ClientFrame, CloseCode, Encoding};
use serde_json::{Value, json};

use crate::support::{
    Gateway, SCHEMES, Setup, eventually, hello, message, next_on, notification, request, token, within,
};

const HIGH: SessionLane = SessionLane::High;
const NORMAL: SessionLane = SessionLane::Normal;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_must_be_acked_stays_in_jetstream_until_it_is() {
    let gateway = Gateway::start().await;

    for scheme in SCHEMES {
        let mut peer = gateway.live(scheme, "ann", "d1").await;
        gateway.publish("notification.friend.request.ann", &request(scheme)).await;
        let mut high = peer.lane(HIGH).await;
        assert_eq!(next_on(&mut high).await.0, scheme);
        assert_eq!((gateway.queued().await, gateway.ack_pending("high").await), (1, 1));

        peer.ack(HIGH, 1).await;

        gateway.settled().await;
        assert_eq!(gateway.ack_pending("high").await, 0);
    }
    for stream in ["OFFLINE_PUSH", "INBOX", "NOTIFICATIONS_DLQ"] {
        assert_eq!(gateway.count(stream).await, 0, "{stream}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_ack_that_never_comes_is_handed_off_and_a_late_one_is_welcome() {
    let gateway = Gateway::start_with(short_deadlines).await;
    let mut config = gateway.device("ann", "d1");
    config.ack = AckMode::Never;
    let (mut never, _) = gateway.connect(config).await;

    gateway.publish("notification.friend.request.ann", &request("n1")).await;

    assert_eq!(notification(&mut never).await.notification_id, "n1");
    let push = gateway.records("OFFLINE_PUSH", 1).await.remove(0);
    assert_eq!(push.subject, "push.offline.alert");
    assert_eq!((&push.json["notification_id"], &push.json["users"]), (&json!("n1"), &json!(["ann"])));
    assert_eq!(push.json["reason"], json!("ack_timeout"));
    assert_eq!(gateway.records("INBOX", 1).await[0].subject, "inbox.ann");
    gateway.settled().await;

    let mut late = gateway.live("quic", "ben", "d1").await;
    gateway.publish("notification.friend.request.ben", &request("n2")).await;
    let mut high = late.lane(HIGH).await;
    next_on(&mut high).await;
    gateway.settled().await;
    late.ack(HIGH, 1).await;
    gateway.publish("notification.friend.request.ben", &request("n3")).await;
    assert_eq!(next_on(&mut high).await.0, "n3", "the session goes on");
    late.ack(HIGH, 2).await;
    gateway.settled().await;
    assert_eq!(gateway.count("OFFLINE_PUSH").await, 2, "n1 and n2, not n3");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_that_ends_without_its_ack_is_handed_off_before_the_deadline() {
    let gateway = Gateway::start().await;

    for (count, scheme) in (1..).zip(SCHEMES.into_iter().cycle()).take(4) {
        let mut peer = gateway.live(scheme, "ann", "d1").await;
        gateway.publish("notification.friend.request.ann", &request(&format!("n{count}"))).await;
        next_on(&mut peer.lane(HIGH).await).await;
        if count <= 2 {
            drop(peer);
        } else {
            peer.send(&ClientFrame::Bye).await;
            peer.expect_close(CloseCode::Normal, scheme).await;
        }

        let push = gateway.records("OFFLINE_PUSH", count).await.remove(count as usize - 1);
        // At the deadline it would be `ack_timeout`.
        assert_eq!(push.json["reason"], json!("session_lost"), "{scheme}");
        gateway.settled().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_ack_of_one_device_is_enough_when_the_others_leave() {
    let gateway = Gateway::start().await;
    let mut first = gateway.live("https", "ann", "d1").await;
    let second = gateway.live("quic", "ann", "d2").await;

    gateway.publish("notification.friend.request.ann", &request("n1")).await;
    next_on(&mut first.lane(HIGH).await).await;
    next_on(&mut second.lane(HIGH).await).await;
    drop(second);
    first.ack(HIGH, 1).await;

    gateway.settled().await;
    assert_eq!(gateway.count("OFFLINE_PUSH").await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_state_that_must_be_acked_waits_for_no_window_and_outdates_what_does() {
    let gateway = Gateway::start().await;
    let mut peer = gateway.live("quic", "ann", "d1").await;
    let changed = |id: &str, field: &str, require_ack: bool| {
        json!({"notification_id": id, "type": "user.profile_updated", "metadata": {"require_ack": require_ack},
            "payload": {"user_id": "ann", "updated_fields": [field]}})
    };
    let subject = "notification.user.profile_updated.ann";

    gateway.publish(subject, &changed("held", "nickname", false)).await;
    gateway.settled().await;
    gateway.publish(subject, &changed("urgent", "nickname", true)).await;
    let mut normal = peer.lane(NORMAL).await;
    assert_eq!(next_on(&mut normal).await.0, "urgent");
    assert_eq!(gateway.queued().await, 1, "its ack is awaited");
    peer.ack(NORMAL, 1).await;
    gateway.settled().await;

    // Its window ends later than the one of what was held.
    gateway.publish(subject, &changed("other", "avatar", false)).await;
    assert_eq!(next_on(&mut normal).await.0, "other");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_need_not_be_acked_is_done_when_a_session_has_it() {
    let gateway = Gateway::start().await;
    let mut config = gateway.device("ann", "d1");
    config.ack = AckMode::Never;
    let (mut never, _) = gateway.connect(config).await;

    for count in 0..5 {
        let id = format!("n{count}");
        gateway.publish("notification.message.new.ann", &message(&id)).await;
        assert_eq!(notification(&mut never).await.notification_id, id);
    }

    gateway.settled().await;
    assert_eq!(gateway.ack_pending("normal").await, 0);
    for stream in ["OFFLINE_PUSH", "INBOX", "NOTIFICATIONS_DLQ"] {
        assert_eq!(gateway.count(stream).await, 0, "{stream}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_window_holds_its_lane_until_acks_come_and_no_other() {
    for scheme in SCHEMES {
        // One each: what the first session leaves un-acked would be delivered again to the second.
        let gateway = Gateway::start_with(|setup| setup.config.edge.window = 4).await;
        let mut peer = gateway.open(scheme).await;
        peer.hello(hello(&token(scheme), "d1")).await;
        assert_eq!(peer.welcome().await.window, 4);
        for count in 1..=10 {
            gateway
                .publish(
                    &format!("notification.message.new.{scheme}"),
                    &message(&format!("{scheme}-{count}")),
                )
                .await;
            gateway.settled().await;
        }
        let mut normal = peer.lane(NORMAL).await;
        for count in 1..=4 {
            assert_eq!(next_on(&mut normal).await.0, format!("{scheme}-{count}"));
        }

        // High overtakes six that wait. When it is here, a fifth frame would be, too.
        gateway.publish(&format!("notification.friend.request.{scheme}"), &request(scheme)).await;
        let mut high = peer.lane(HIGH).await;
        assert_eq!(next_on(&mut high).await.0, scheme);
        {
            let fifth = next_on(&mut normal);
            tokio::pin!(fifth);
            assert!(futures::poll!(&mut fifth).is_pending(), "the window is full");

            peer.ack(NORMAL, 1).await;
            assert_eq!(fifth.await.0, format!("{scheme}-5"), "an ack of one makes room for one");
        }
        peer.ack(NORMAL, 5).await;
        for count in 6..=9 {
            assert_eq!(next_on(&mut normal).await.0, format!("{scheme}-{count}"));
        }
        peer.ack(NORMAL, 9).await;
        assert_eq!(next_on(&mut normal).await.0, format!("{scheme}-10"));
        peer.ack(HIGH, 1).await;
        gateway.settled().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_keeps_up_gets_more_than_a_window() {
    let gateway = Gateway::start_with(|setup| setup.config.edge.window = 4).await;
    let mut manual = gateway.device("ann", "manual");
    manual.ack = AckMode::Manual;
    let (mut manual, _) = gateway.connect(manual).await;

    for count in 1..=12 {
        gateway.publish("notification.message.new.ann", &message(&format!("n{count}"))).await;
    }

    let mut got = Vec::new();
    for _ in 0..12 {
        let received = notification(&mut manual).await;
        manual.ack(&received);
        got.push(received.notification_id);
    }
    got.sort_unstable();
    got.dedup();
    assert_eq!(got.len(), 12);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_notification_published_twice_is_sent_once() {
    let gateway = Gateway::start().await;
    // By hand, since a client would drop the second one itself.
    let mut peer = gateway.live("https", "ann", "d1").await;

    for id in ["m1", "m1", "m2"] {
        gateway.publish("notification.message.new.ann", &message(id)).await;
        gateway.settled().await;
    }
    let mut normal = peer.lane(NORMAL).await;
    assert_eq!((next_on(&mut normal).await.0, next_on(&mut normal).await.0), ("m1".into(), "m2".into()));

    // Un-acked, the second takes the first one's place, and one ack answers for both.
    for _ in 0..2 {
        gateway.publish("notification.friend.request.ann", &request("n1")).await;
    }
    let mut high = peer.lane(HIGH).await;
    assert_eq!(next_on(&mut high).await.0, "n1");
    eventually("both are pulled", async || gateway.ack_pending("high").await == 2).await;
    peer.ack(HIGH, 1).await;
    gateway.settled().await;

    // Once it is acked, a third is known.
    gateway.publish("notification.friend.request.ann", &request("n1")).await;
    gateway.settled().await;
    gateway.publish("notification.friend.request.ann", &request("n2")).await;
    assert_eq!(next_on(&mut high).await.0, "n2");
    peer.ack(HIGH, 2).await;
    gateway.settled().await;
    assert_eq!(gateway.count("OFFLINE_PUSH").await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_encodings_carry_the_same() {
    let gateway = Gateway::start().await;
    let mut clients = Vec::new();
    for (scheme, encoding) in SCHEMES.into_iter().flat_map(|scheme| {
        [Encoding::Json, Encoding::Msgpack].into_iter().map(move |encoding| (scheme, encoding))
    }) {
        let mut config = gateway.device("ann", &format!("{scheme}-{encoding:?}"));
        config.url = gateway.url(scheme);
        config.encoding = encoding;
        clients.push(gateway.connect(config).await.0);
    }

    let payload = json!({
        "text": "你好 \u{1f389} \"quoted\" \\ \n \u{0}", "empty": "", "null": null, "yes": true, "no": false,
        "numbers": [0, -1, 127, 128, 255, 65_536, -32_769, 4_294_967_296_u64, u64::MAX, i64::MIN, 0.5, -1e300, 1e-7],
        "nested": {"list": [[], {}, [1, [2, [3]]]], "键": {"a.b": 1}}, "long": "x".repeat(70_000),
        "many": (0..1_000).collect::<Vec<_>>(),
    });
    let envelope = json!({"notification_id": "n1", "type": "friend.request", "from_user_id": "bob",
        "timestamp": 1_234_567_890, "payload": payload});
    gateway.publish("notification.friend.request.ann", &envelope).await;

    let mut got = Vec::new();
    for client in &mut clients {
        let received = notification(client).await;
        assert_eq!(received.payload, payload);
        assert!(received.require_ack);
        assert_eq!((received.timestamp, received.from_user_id.as_deref()), (1_234_567_890, Some("bob")));
        got.push(fields(&received));
    }
    assert!(got.iter().all(|fields| *fields == got[0]), "{got:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn typing_is_a_datagram_where_asked_for_and_never_stored() {
    let gateway = Gateway::start_with(|setup| setup.config.worker.evidence.sample = 1.0).await;
    let mut with = gateway.client("ann", "with").await;
    let mut bare = gateway.device("ann", "bare");
    bare.url = gateway.url("quic");
    let (mut bare, _) = gateway.connect(bare).await;
    let mut without = gateway.device("ann", "without");
    without.datagrams = false;
    let (mut without, _) = gateway.connect(without).await;
    let before = stored(&gateway).await;

    let typing = |content: &str| json!({"type": "message.typing", "payload": {"conversation_id": content, "typing": false}});
    gateway.publish_core("notification.message.typing.ann", &typing("short")).await;
    for client in [&mut with, &mut bare] {
        let received = notification(client).await;
        assert!(received.via_datagram && received.lane.is_none());
        assert_eq!(received.payload["conversation_id"], "short");
    }
    let received = notification(&mut without).await;
    assert_eq!((received.lane, received.via_datagram), (Some(SessionLane::Low), false));

    // What does not fit a datagram comes on the lane, to all of them.
    let long = "c".repeat(1_000);
    gateway.publish_core("notification.message.typing.ann", &typing(&long)).await;
    for client in [&mut with, &mut bare, &mut without] {
        let received = notification(client).await;
        assert_eq!((received.lane, received.via_datagram), (Some(SessionLane::Low), false));
        assert_eq!(received.payload["conversation_id"], long);
    }
    // To somebody who is away it goes nowhere; a stored notification behind it says that it was handled.
    gateway.publish_core("notification.message.typing.nobody", &typing("short")).await;
    gateway.publish_core("notification.message.typing.ann", &typing("last")).await;
    assert_eq!(notification(&mut without).await.payload["conversation_id"], "last");
    assert_eq!(stored(&gateway).await, before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_resumes_gets_what_it_missed_on_the_inbox_lane() {
    let gateway = Gateway::start().await;

    for scheme in SCHEMES {
        let user = format!("ann-{scheme}");
        let subject = format!("notification.friend.request.{user}");
        let mut config = gateway.device(&user, "d1");
        config.url = gateway.url(scheme);
        let (client, welcome) = gateway.connect(config.clone()).await;
        assert!(welcome.recovered, "without a cursor nothing can be lost");
        assert_eq!(within(client.close()).await.code(), Some(0));

        let before = gateway.count("INBOX").await;
        let away = [format!("{scheme}-1"), format!("{scheme}-2")];
        for (count, id) in (1..).zip(&away) {
            gateway.publish(&subject, &request(id)).await;
            gateway.records("INBOX", before + count).await;
        }
        gateway.settled().await;

        config.resume = Some(welcome.inbox.clone());
        let (mut client, resumed) = gateway.connect(config.clone()).await;
        assert!(resumed.recovered);
        let mut cursor = None;
        for id in &away {
            let received = notification(&mut client).await;
            assert_eq!((&received.notification_id, received.lane), (id, Some(SessionLane::Inbox)));
            assert_eq!(received.payload["message"], json!(id));
            assert!(received.inbox.is_some() && received.inbox != cursor, "each has its own cursor");
            cursor = received.inbox;
        }
        assert_eq!(within(client.close()).await.code(), Some(0));

        // From the first one's cursor only the second is missing; from the second one's nothing is.
        config.resume = cursor;
        let (mut client, resumed) = gateway.connect(config.clone()).await;
        assert!(resumed.recovered);
        gateway.publish(&subject, &request(&format!("{scheme}-live"))).await;
        let received = notification(&mut client).await;
        assert_eq!((received.notification_id, received.lane), (format!("{scheme}-live"), Some(HIGH)));
        assert_eq!(within(client.close()).await.code(), Some(0));
        gateway.settled().await;

        for nonsense in ["", "nonsense", "1-2", "1-2-3", "-1-2-3", "1-2-3-4", "18446744073709551616-1-1"] {
            config.resume = Some(nonsense.to_owned());
            let (mut client, resumed) = gateway.connect(config.clone()).await;
            assert!(!resumed.recovered, "{nonsense}");
            let received = notification(&mut client).await;
            assert_eq!((&received.notification_id, received.lane), (&away[0], Some(SessionLane::Inbox)));
            assert_eq!(within(client.close()).await.code(), Some(0));
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cursor_beyond_every_record_is_no_reason_to_fail() {
    let gateway = Gateway::start().await;
    let (client, welcome) = gateway.connect(gateway.device("ann", "d1")).await;
    within(client.close()).await;
    let parts: Vec<&str> = welcome.inbox.split('-').collect();

    for sequence in ["1000000", "18446744073709551615"] {
        let mut config = gateway.device("ann", "d1");
        config.resume = Some(format!("{}-{sequence}-{}", parts[0], parts[2]));
        let (client, _) = gateway.connect(config).await;
        assert_eq!(within(client.close()).await.code(), Some(0), "{sequence}");
    }
    gateway.serves("cursors of the future").await;
}

/// The built-in catalog, with friend requests that wait for an ack for half a second only.
fn short_deadlines(setup: &mut Setup) {
    let row = "type = \"friend.request\"\n";
    let text = BUILT_IN.replace(row, &format!("{row}ack_timeout_ms = 500\n"));
    assert_ne!(text, BUILT_IN);
    setup.catalog = Catalog::from_toml(&text).expect("a good catalog");
}

/// Everything but how it came.
fn fields(received: &Received) -> Value {
    json!([
        received.notification_id,
        received.notification_type,
        received.timestamp,
        received.published_at_ms,
        received.from_user_id,
        received.priority,
        received.require_ack,
        received.payload,
        received.lane,
        received.seq,
    ])
}

/// The last sequence of every stream.
async fn stored(gateway: &Gateway) -> Vec<(String, u64)> {
    let answer = gateway.request("STREAM.LIST").await;
    let streams = answer["streams"].as_array().expect("a list");
    let mut stored: Vec<_> = streams
        .iter()
        .map(|stream| {
            let name = stream["config"]["name"].as_str().expect("a name").to_owned();
            (name, stream["state"]["last_seq"].as_u64().expect("a number"))
        })
        .collect();
    stored.sort();
    assert!(stored.len() > 4, "{stored:?}");
    stored
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_session_held_at_its_end_is_kept_for_the_next_one() {
    let gateway = Gateway::start().await;
    let mut silent = gateway.device("ann", "d1");
    silent.ack = AckMode::Never;
    silent.reconnect = false;
    let (mut client, welcome) = gateway.connect(silent.clone()).await;
    gateway.publish("notification.message.new.ann", &message("m1")).await;
    assert_eq!(notification(&mut client).await.notification_id, "m1");
    gateway.settled().await;
    assert_eq!(gateway.count("INBOX").await, 0, "a session took it");

    drop(client);

    assert_eq!(gateway.records("INBOX", 1).await[0].json["notification_id"], "m1");
    assert_eq!(gateway.records("OFFLINE_PUSH", 1).await[0].json["users"], json!(["ann"]));
    silent.resume = Some(welcome.inbox);
    let (mut client, _) = gateway.connect(silent).await;
    let again = notification(&mut client).await;
    assert_eq!((again.notification_id.as_str(), again.lane), ("m1", Some(SessionLane::Inbox)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_session_held_at_its_end_goes_to_the_session_that_replaced_it() {
    let gateway = Gateway::start().await;
    let mut silent = gateway.device("ann", "d1");
    silent.ack = AckMode::Never;
    silent.reconnect = false;
    let (mut first, _) = gateway.connect(silent).await;
    gateway.publish("notification.message.new.ann", &message("m1")).await;
    gateway.publish("notification.friend.request.ann", &request("r1")).await;
    for _ in 0..2 {
        notification(&mut first).await;
    }

    let (mut second, _) = gateway.connect(gateway.device("ann", "d1")).await;

    let mut ids =
        [notification(&mut second).await.notification_id, notification(&mut second).await.notification_id];
    ids.sort();
    assert_eq!(ids, ["m1", "r1"], "the same device is back, with or without a required ack");
    gateway.settled().await;
    assert_eq!((gateway.count("INBOX").await, gateway.count("OFFLINE_PUSH").await), (0, 0), "it has them");
}
