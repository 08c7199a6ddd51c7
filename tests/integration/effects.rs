//! What events change besides being delivered: who belongs where, what is shown once, what is shown later.

use fanfare::catalog::{Kind, Role};
use fanfare::client::{Client, Config};
use fanfare::clock::Now;
use fanfare::cluster::entries;
use fanfare::directory::{Change, Key, Members, Writer};
use fanfare::id::UserId;
use serde_json::{Value, json};

use crate::support::{Gateway, eventually, notification};

fn unix_s() -> u64 {
    Now::read().unix_ms / 1_000
}

fn noted(id: &str, payload: &Value) -> Value {
    json!({"notification_id": id, "payload": payload})
}

async fn add(gateway: &Gateway, kind: Kind, id: &str, users: &[&str]) {
    let writer = Writer::open(gateway.context.clone()).await.unwrap();
    for user in users {
        let change = Change::Member { user: UserId::new(user).unwrap(), role: Some(Role::Member), v: 1 };
        writer.write(&Key::new(kind, id).unwrap(), &change).await.unwrap();
    }
}

async fn members(gateway: &Gateway, kind: Kind, id: &str) -> Members {
    let writer = Writer::open(gateway.context.clone()).await.unwrap();
    writer.read(&Key::new(kind, id).unwrap()).await.unwrap()
}

fn names(members: &Members) -> Vec<String> {
    members.iter().map(|(user, _)| user.to_string()).collect()
}

async fn next(client: &mut Client) -> String {
    notification(client).await.notification_id
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_who_leaves_is_told_and_gets_nothing_after() {
    let gateway = Gateway::start().await;
    add(&gateway, Kind::Group, "g", &["ann"]).await;
    let mut ann = gateway.client("ann", "a").await;
    let mut bob = gateway.client("bob", "b").await;
    let send = async |event: &str, id: &str, payload: Value| {
        gateway.publish(&format!("notification.group.{event}.g"), &noted(id, &payload)).await;
        gateway.settled().await;
    };
    let muted = json!({"mute_type": "all_members"});

    send("muted", "1", muted.clone()).await;
    send("member_joined", "2", json!({"user_id": "bob"})).await;
    send("muted", "3", muted.clone()).await;
    send("role_changed", "4", json!({"user_id": "bob", "new_role": "admin"})).await;
    let admins = members(&gateway, Kind::Group, "g").await;
    assert_eq!(admins.role(&UserId::new("bob").unwrap()), Some(Role::Admin));
    send("member_left", "5", json!({"user_id": "bob"})).await;
    send("muted", "6", muted).await;
    gateway
        .publish("notification.message.new.bob", &noted("last", &json!({"conversation_type": "group"})))
        .await;

    for id in ["1", "2", "3", "4", "5", "6"] {
        assert_eq!(next(&mut ann).await, id);
    }
    for id in ["2", "3", "4", "5", "last"] {
        assert_eq!(next(&mut bob).await, id);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disbanded_group_is_told_and_has_nobody_from_then_on() {
    let gateway = Gateway::start().await;
    add(&gateway, Kind::Group, "g", &["ann", "bob"]).await;
    let mut ann = gateway.client("ann", "a").await;
    gateway.publish("notification.group.disbanded.g", &noted("gone", &json!({}))).await;
    assert_eq!(next(&mut ann).await, "gone");
    gateway.settled().await;
    assert!(members(&gateway, Kind::Group, "g").await.is_empty());

    gateway.publish("notification.group.disbanded.g", &noted("again", &json!({}))).await;
    gateway.settled().await;
    gateway.publish("notification.message.new.ann", &noted("last", &json!({}))).await;
    assert_eq!(next(&mut ann).await, "last");
    assert_eq!(gateway.count("NOTIFICATIONS_DLQ").await, 0, "empty, not unknown");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn friends_follow_each_other_and_conversations_are_registered_once() {
    let gateway = Gateway::start().await;
    let accepted = noted("f1", &json!({"status": "accepted", "to_user_id": "bob"}));
    gateway.publish("notification.friend.request_handled.ann", &accepted).await;
    gateway.settled().await;
    assert_eq!(names(&members(&gateway, Kind::Followers, "ann").await), ["bob"]);
    assert_eq!(names(&members(&gateway, Kind::Followers, "bob").await), ["ann"]);
    gateway.publish("notification.friend.deleted.bob", &noted("f2", &json!({"friend_user_id": "ann"}))).await;
    gateway.settled().await;
    assert!(members(&gateway, Kind::Followers, "ann").await.is_empty());
    assert!(members(&gateway, Kind::Followers, "bob").await.is_empty());

    let message = json!({"conversation_type": "single", "conversation_id": "c", "from_user_id": "bob"});
    gateway.publish("notification.message.new.ann", &noted("m1", &message)).await;
    gateway.settled().await;
    assert_eq!(names(&members(&gateway, Kind::Conversation, "c").await), ["ann", "bob"]);
    let last = gateway.request("STREAM.INFO.KV_audience").await["state"]["last_seq"].clone();
    for id in ["m2", "m3", "m4"] {
        gateway.publish("notification.message.new.ann", &noted(id, &message)).await;
    }
    gateway.settled().await;
    assert_eq!(
        gateway.request("STREAM.INFO.KV_audience").await["state"]["last_seq"],
        last,
        "not written again"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_maintenance_is_shown_to_who_comes_late_and_scheduled_ahead() {
    let gateway = Gateway::start().await;
    let mut early = gateway.client("ann", "a").await;
    let maintenance = |id: &str, start: u64| {
        noted(id, &json!({"maintenance_id": id, "start_time": start, "estimated_duration": 60}))
    };
    gateway.publish("notification.admin.maintenance.broadcast", &maintenance("m1", unix_s() + 30)).await;
    assert_eq!(next(&mut early).await, "m1");
    gateway.settled().await;

    let mut late = gateway.client("bob", "b").await;
    assert_eq!(next(&mut late).await, "m1", "with the id it was announced with");
    // 15 minutes and 2 seconds ahead: announced in 2 s.
    let due = unix_s() + 2;
    gateway.publish("notification.admin.maintenance.broadcast", &maintenance("m2", due + 900)).await;
    gateway.settled().await;
    assert_eq!(gateway.count("KV_control").await, 1, "not yet");
    assert_eq!(next(&mut early).await, "m2");
    assert!(unix_s() >= due);
    assert_eq!(next(&mut late).await, "m2");
    // One that is over is told and not kept.
    gateway.publish("notification.admin.maintenance.broadcast", &maintenance("m3", unix_s() - 100)).await;
    assert_eq!(next(&mut early).await, "m3", "and none of them twice");
    let mut last = gateway.client("carol", "c").await;
    let mut shown = [next(&mut last).await, next(&mut last).await];
    shown.sort();
    assert_eq!(shown, ["m1", "m2"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_state_is_shown_once_and_devices_do_not_set_each_other_off() {
    let gateway = Gateway::start().await;
    let mut phone = gateway.client("ann", "phone").await;
    let mut tablet = gateway.client("ann", "tablet").await;
    let pinned = |at: u64| json!({"conversation_id": "c", "is_pinned": true, "pin_time": at});
    for (id, at) in [("p1", 1), ("p2", 1), ("p3", 2)] {
        gateway.publish("notification.session.pin_updated.ann", &noted(id, &pinned(at))).await;
        gateway.settled().await;
    }
    let sync = async |id: &str, from: &str, kind: &str| {
        let payload = json!({"sync_id": id, "data_types": [kind], "from_device_id": from});
        gateway.publish("notification.sync.request.ann", &noted(id, &payload)).await;
        gateway.settled().await;
    };
    sync("s1", "phone", "messages").await;
    sync("s2", "tablet", "messages").await;
    sync("s3", "tablet", "contacts").await;

    for id in ["p1", "p3", "s3"] {
        assert_eq!(next(&mut phone).await, id, "s2 closes a loop");
    }
    for id in ["p1", "p3", "s1"] {
        assert_eq!(next(&mut tablet).await, id);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_devices_that_ask_each_other_at_once_one_is_heard() {
    const ROUNDS: usize = 40;
    let gateway = Gateway::start().await;
    let mut phone = gateway.client("ann", "phone").await;
    let mut tablet = gateway.client("ann", "tablet").await;
    for round in 0..ROUNDS {
        let ask = async |from: &str| {
            let id = format!("{from}-{round}");
            let kind = format!("kind-{round}");
            let payload = json!({"sync_id": id, "data_types": [kind], "from_device_id": from});
            gateway.publish("notification.sync.request.ann", &noted(&id, &payload)).await;
        };
        tokio::join!(ask("phone"), ask("tablet"));
        gateway.settled().await;
    }
    gateway.publish("notification.message.new.ann", &noted("last", &json!({}))).await;

    let mut heard = Vec::new();
    for client in [&mut phone, &mut tablet] {
        loop {
            let id = next(client).await;
            if id == "last" {
                break;
            }
            let (_, round) = id.rsplit_once('-').unwrap();
            heard.push(round.parse::<usize>().unwrap());
        }
    }
    heard.sort_unstable();
    assert_eq!(heard, (0..ROUNDS).collect::<Vec<_>>(), "one of each round");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_recalled_message_is_not_replayed() {
    let gateway = Gateway::start().await;
    add(&gateway, Kind::Conversation, "c", &["ann"]).await;
    let config = gone(&gateway).await;
    for id in ["1", "2"] {
        gateway.publish("notification.message.new.ann", &noted(id, &json!({"message_id": id}))).await;
    }
    gateway.settled().await;
    gateway.publish("notification.message.recalled.c", &noted("r1", &json!({"message_id": "1"}))).await;
    gateway.settled().await;

    let (mut ann, _) = gateway.connect(config).await;
    for id in ["probe", "2", "r1"] {
        assert_eq!(next(&mut ann).await, id);
    }
}

/// The configuration of ann's phone, which was connected and is gone, to come back with. Its first notification will be
/// `probe`.
async fn gone(gateway: &Gateway) -> Config {
    let mut config = gateway.device("ann", "phone");
    config.resume = Some(gateway.connect(config.clone()).await.1.inbox);
    let ann = UserId::new("ann").unwrap();
    // One that is still ending may take the probe, which is then kept later than it is looked for.
    eventually("the session is gone", async || {
        entries::of_user(&gateway.client, &ann).await.is_ok_and(|told| told.entries.is_empty())
    })
    .await;
    gateway.publish("notification.message.new.ann", &noted("probe", &json!({"message_id": "0"}))).await;
    gateway.settled().await;
    assert_eq!(gateway.count("INBOX").await, 1);
    config
}

async fn rename(gateway: &Gateway, id: &str, fields: &[&str]) {
    let payload = json!({"user_id": "ann", "updated_fields": fields});
    gateway.publish("notification.user.profile_updated.ann", &noted(id, &payload)).await;
    gateway.settled().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_device_that_was_away_is_shown_the_latest_state_of_each_field_set() {
    let gateway = Gateway::start().await;
    let config = gone(&gateway).await;
    for (id, fields) in [
        ("p1", &["nickname"][..]),
        ("p2", &["avatar", "nickname"]),
        ("p3", &["nickname"]),
        ("p4", &["nickname"]),
    ] {
        rename(&gateway, id, fields).await;
    }
    assert_eq!(gateway.count("INBOX").await, 5, "every version is kept");
    gateway.publish("notification.message.new.ann", &noted("last", &json!({}))).await;
    gateway.settled().await;

    let (mut ann, welcome) = gateway.connect(config).await;
    assert!(welcome.recovered);
    for id in ["probe", "p2", "p4", "last"] {
        assert_eq!(next(&mut ann).await, id);
    }
}

/// 2 MB are more than a session is given at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_later_part_of_a_large_inbox_outdates_is_not_shown() {
    let gateway = Gateway::start().await;
    add(&gateway, Kind::Conversation, "c", &["ann"]).await;
    let config = gone(&gateway).await;
    rename(&gateway, "p1", &["nickname"]).await;
    let large: Vec<String> = (0..10).map(|n| format!("m{n}")).collect();
    for id in &large {
        let payload = json!({"message_id": id, "content": "x".repeat(200_000)});
        gateway.publish("notification.message.new.ann", &noted(id, &payload)).await;
        gateway.settled().await;
    }
    for message in ["m2", "m9"] {
        let recall = noted(&format!("r-{message}"), &json!({"message_id": message}));
        gateway.publish("notification.message.recalled.c", &recall).await;
        gateway.settled().await;
    }
    rename(&gateway, "p2", &["nickname"]).await;

    let (mut ann, welcome) = gateway.connect(config).await;
    assert!(welcome.recovered);
    for id in ["probe", "m0", "m1", "m3", "m4", "m5", "m6", "m7", "m8", "r-m2", "r-m9", "p2"] {
        assert_eq!(next(&mut ann).await, id);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_that_comes_after_its_recall_is_not_shown() {
    let gateway = Gateway::start().await;
    add(&gateway, Kind::Conversation, "c", &["ann"]).await;
    let mut ann = gateway.client("ann", "phone").await;
    gateway.publish("notification.message.recalled.c", &noted("r1", &json!({"message_id": "1"}))).await;
    gateway.settled().await;
    for id in ["1", "2"] {
        gateway.publish("notification.message.new.ann", &noted(id, &json!({"message_id": id}))).await;
        gateway.settled().await;
    }
    for id in ["r1", "2"] {
        assert_eq!(next(&mut ann).await, id);
    }
}
