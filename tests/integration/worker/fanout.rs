//! Fan-outs to large groups: in batches, everybody once, and nobody else waits for them.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use fanfare::catalog::{Kind, Role};
use fanfare::directory::{Change, Key, Writer};
use fanfare::id::UserId;
use fanfare::worker;
use futures::StreamExt;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::gateway::{Behaviour, Fake, Gateway};

const INVITE: &str = "notification.livekit.call_invite.ann";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_passes_a_fan_out_to_100_000_that_reaches_everybody_once() {
    const SIZE: usize = 100_000;
    let online = |n: &usize| n % 1_000 == 7;
    let here = (0..SIZE).filter(online).map(|n| (format!("u{n}"), Behaviour::Take));
    let gateway = Gateway::start(Fake::all_online(here.chain([("ann".to_owned(), Behaviour::Ack)]))).await;
    let writer = Writer::open(gateway.context.clone()).await.unwrap();
    let conversation = Key::new(Kind::Conversation, "c1").unwrap();
    writer.write(&conversation, &Change::Alias { group: "g1".into(), v: 1 }).await.unwrap();
    gateway.members(&Key::new(Kind::Group, "g1").unwrap(), SIZE).await;
    let before = resident_bytes();

    let body = json!({"notification_id": "big", "payload":
        {"conversation_id": "c1", "conversation_type": "group", "from_user_id": "u0", "content": "hello"}});
    gateway.publish("notification.message.new.c1", body.to_string()).await;
    gateway.records("OFFLINE_PUSH", 1).await;
    gateway.publish(INVITE, r#"{"payload":{}}"#.to_owned()).await;
    let mut peak = before;
    gateway
        .eventually("everything is settled", async || {
            peak = peak.max(resident_bytes());
            gateway.queued().await == 0
        })
        .await;

    let offered = gateway.sessions.offered();
    let call = offered.iter().position(|(_, user)| user.as_str() == "ann").expect("the call was offered");
    assert!(call + 1_000 < offered.len(), "before the last batch: {call} of {}", offered.len());
    assert_eq!(offered.len(), SIZE, "everybody but the sender, and the call");
    let pushes = gateway.records("OFFLINE_PUSH", 100).await;
    assert_eq!(gateway.count("OFFLINE_PUSH").await, 100);
    let mut users = HashSet::new();
    for push in pushes {
        let batch: Vec<String> = serde_json::from_value(push.json["users"].clone()).unwrap();
        assert!(batch.len() <= 1_000);
        for user in batch {
            assert!(users.insert(user.clone()), "{user} twice");
        }
    }
    let expected = (1..SIZE).filter(|n| !online(n)).map(|n| format!("u{n}")).collect::<HashSet<_>>();
    assert!(users == expected, "{} pushed, {} are away", users.len(), expected.len());
    assert_eq!(gateway.count("INBOX").await, 0);
    // The members take 10 MB; other tests run in this process, so the bound is loose. Recipients all at once would be
    // no more than 20 MB either: `no_more_than_one_batch_exists_at_a_time` is the exact one.
    let grown = peak.saturating_sub(before) / 1_000_000;
    assert!(grown < 300, "{grown} MB more");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn records_of_a_large_group_are_paced_and_a_call_of_the_same_lane_passes_them() {
    const SIZE: usize = 4_000;
    let gateway = Gateway::start(Fake::online("ann", Behaviour::Ack)).await;
    gateway.members(&Key::new(Kind::Group, "g1").unwrap(), SIZE).await;

    let started = Instant::now();
    gateway.publish("notification.group.disbanded.g1", r#"{"payload":{}}"#.to_owned()).await;
    gateway.records("INBOX", 1).await;
    gateway.publish(INVITE, r#"{"payload":{}}"#.to_owned()).await;
    gateway
        .eventually("the call is offered", async || {
            gateway.sessions.offered_to("livekit.call_invite") == ["ann"]
        })
        .await;
    let written = gateway.count("INBOX").await;

    assert!(written < SIZE as u64, "{written} records were written before the call");
    gateway.drained().await;
    assert_eq!(gateway.count("INBOX").await, SIZE as u64, "a record each");
    assert_eq!(gateway.count("OFFLINE_PUSH").await, 4);
    // 5,000 a second, the first 64 at once.
    assert!(started.elapsed() > Duration::from_millis(700), "{:?}", started.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_passes_large_fan_outs_of_its_lane_that_wait_for_their_turn() {
    const SIZE: usize = 1_500;
    const LARGE: usize = 20;
    let gateway = Gateway::prepare(Fake::online("ann", Behaviour::Ack)).await;
    gateway.members(&Key::new(Kind::Group, "g1").unwrap(), SIZE).await;
    let body = json!({"payload": {"mention_type": "all", "group_id": "g1", "from_user_id": "nobody"}});
    for _ in 0..LARGE {
        gateway.publish("notification.message.mentioned.g1", body.to_string()).await;
    }
    // Two run at once, so two in hand and all others would have to wait for them.
    let config = worker::Config { in_hand: 4, ..worker::Config::default() };
    let _handle = gateway.work_until(gateway.soft.clone(), config).await;
    gateway.records("INBOX", 1).await;
    gateway.publish(INVITE, r#"{"payload":{}}"#.to_owned()).await;
    gateway.drained().await;

    let offered = gateway.sessions.offered();
    let call = offered.iter().position(|(_, user)| user.as_str() == "ann").expect("the call was offered");
    assert!(call < LARGE / 2 * SIZE, "{call} were offered something before the call");
    let mentioned = gateway.sessions.offered_to("message.mentioned");
    assert_eq!(mentioned.len(), LARGE * SIZE);
    let each: Vec<usize> = mentioned.chunk_by(|one, other| one == other).map(<[_]>::len).collect();
    assert_eq!(each, [LARGE; SIZE]);
    assert_eq!(gateway.count("NOTIFICATIONS_DLQ").await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_members_of_a_disbanded_group_are_removed_though_the_worker_stops_amidst() {
    const SIZE: usize = 6_000;
    let gateway = Gateway::prepare(Fake::default()).await;
    let group = Key::new(Kind::Group, "g1").unwrap();
    gateway.members(&group, SIZE).await;
    gateway.publish("notification.group.disbanded.g1", r#"{"payload":{}}"#.to_owned()).await;
    // Somebody joins a group of the same name right after it.
    gateway
        .publish("notification.group.member_joined.g1", r#"{"payload":{"user_id":"u7"}}"#.to_owned())
        .await;
    let tombstones = async || {
        let stream = gateway.context.get_stream("KV_audience").await.unwrap();
        let values = (0..SIZE).map(async |n| {
            let subject = format!("$KV.audience.group.g1.u{n}");
            stream.get_last_raw_message_by_subject(&subject).await.unwrap()
        });
        let values: Vec<_> = futures::stream::iter(values).buffer_unordered(64).collect().await;
        let lives = values.iter().filter_map(|value| value.headers.get("Nats-TTL"));
        lives.filter(|life| life.as_str() == "172800").count()
    };
    let first = CancellationToken::new();
    let handle = gateway.work_until(first.clone(), worker::Config::default()).await;
    gateway.eventually("some are removed", async || tombstones().await > 0).await;
    first.cancel();
    handle.join(Duration::from_secs(10)).await;
    let amidst = tombstones().await;
    assert!(amidst < SIZE - 1, "{amidst}: it was over before the stop");
    assert_eq!(gateway.queued().await, 1, "given back");

    let again = CancellationToken::new();
    let _handle = gateway.work_until(again.clone(), worker::Config::default()).await;
    gateway.drained().await;
    assert_eq!(tombstones().await, SIZE - 1);
    let writer = Writer::open(gateway.context.clone()).await.unwrap();
    let members = writer.read(&group).await.unwrap();
    assert_eq!(members.iter().map(|(user, _)| user.as_str()).collect::<Vec<_>>(), ["u7"]);
    assert_eq!(gateway.sessions.offered_to("group.disbanded").len(), SIZE, "each was told once");
    assert_eq!(writer.sweep(&group).await.unwrap(), 0, "nothing is left to do");
    again.cancel();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn groups_over_500_hear_of_members_by_their_owner_and_admins_only() {
    let gateway = Gateway::start(Fake::default()).await;
    let writer = Writer::open(gateway.context.clone()).await.unwrap();
    let group = Key::new(Kind::Group, "g1").unwrap();
    // One leaves below, maybe before the others are told: the group stays large either way.
    gateway.members(&group, 510).await;
    gateway.members(&Key::new(Kind::Followers, "star").unwrap(), 501).await;
    for (user, role) in [("u1", Role::Owner), ("u2", Role::Admin)] {
        let change = Change::Member { user: UserId::new(user).unwrap(), role: Some(role), v: 2 };
        assert!(writer.write(&group, &change).await.unwrap());
    }

    for event in ["member_joined", "member_left", "role_changed"] {
        gateway
            .publish(&format!("notification.group.{event}.g1"), r#"{"payload":{"user_id":"u9"}}"#.to_owned())
            .await;
    }
    let status = json!({"payload": {"user_id": "star", "status": "online"}});
    gateway.publish("notification.user.status_changed.star", status.to_string()).await;
    gateway.drained().await;

    for event in ["group.member_joined", "group.member_left", "group.role_changed"] {
        assert_eq!(gateway.sessions.offered_to(event), ["u1", "u2", "u9"], "{event}");
    }
    assert!(gateway.sessions.offered_to("user.status_changed").is_empty(), "excluded");
    assert_eq!(gateway.count("NOTIFICATIONS_DLQ").await, 0);
}

/// Memory of this process that is in use.
fn resident_bytes() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages: u64 = statm.split(' ').nth(1).and_then(|pages| pages.parse().ok()).unwrap_or_default();
    pages * 4_096
}
