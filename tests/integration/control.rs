//! Bans, ended logins and notices: what closes sessions, what refuses them, and what new ones are shown.

use std::sync::Arc;
use std::time::Duration;

use fanfare::catalog::Catalog;
use fanfare::client::{Client, Tokens};
use fanfare::clock::Now;
use fanfare::control::{self, Ban, Writer};
use fanfare::id::UserId;
use fanfare::protocol::{ClientFrame, CloseCode};
use fanfare::session::Registry;
use fanfare::transport::auth::sign_hs256;
use serde_json::{Value, json};

use crate::support::{
    Gateway, NatsServer, Peer, SECRET, eventually, hello, message, notification, token, within,
};

fn unix_s() -> u64 {
    Now::read().unix_ms / 1_000
}

fn user(name: &str) -> UserId {
    UserId::new(name).unwrap()
}

fn ban(id: &str, until_s: u64) -> Value {
    json!({"notification_id": id, "payload": {"banned_until": until_s, "is_permanent": false}})
}

/// A token that was issued so many seconds ago; negative for one of the future.
fn token_aged(name: &str, seconds: i64) -> String {
    let now = Now::read();
    let issued = Now { unix_ms: now.unix_ms.saturating_add_signed(-seconds * 1_000), ..now };
    sign_hs256(SECRET, &user(name), issued, Duration::from_hours(2))
}

async fn closed_with(client: &mut Client) -> Option<u32> {
    within(client.notification()).await.expect_err("closed").code()
}

async fn refused(gateway: &Gateway, token: &str, device: &str, code: CloseCode, what: &str) {
    let mut peer = gateway.open("https").await;
    peer.hello(hello(token, device)).await;
    peer.expect_close(code, what).await;
}

async fn admitted(gateway: &Gateway, token: &str, device: &str) -> Peer {
    let mut peer = gateway.open("https").await;
    peer.hello(hello(token, device)).await;
    peer.welcome().await;
    peer
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_ban_ends_the_users_sessions_and_refuses_new_ones_until_it_is_lifted() {
    let gateway = Gateway::start().await;
    let mut acking = gateway.client("ann", "phone").await;
    let silent = gateway.live("quic", "ann", "tablet").await;
    let mut bob = gateway.client("bob", "phone").await;

    let published = tokio::time::Instant::now();
    gateway.publish("notification.admin.user_banned.ann", &ban("b1", unix_s() + 3_600)).await;

    assert_eq!(notification(&mut acking).await.notification_id, "b1", "told before it is closed");
    assert_eq!(closed_with(&mut acking).await, Some(3502));
    silent.expect_close(CloseCode::Banned, "without an ack").await;
    assert!(
        published.elapsed() >= Duration::from_millis(1_900),
        "not before its 2 s: {:?}",
        published.elapsed()
    );
    refused(&gateway, &token("ann"), "other", CloseCode::Banned, "hello while banned").await;
    gateway.publish("notification.message.new.bob", &message("m1")).await;
    assert_eq!(notification(&mut bob).await.notification_id, "m1", "others are not concerned");

    let writer = Writer::open(gateway.context.clone()).await.unwrap();
    assert_eq!(writer.bans(Now::read().unix_ms).await.unwrap()[0].0, user("ann"));
    let now_ms = Now::read().unix_ms;
    assert!(writer.ban(&user("ann"), &Ban::lifted(now_ms * 1_000), now_ms).await.unwrap());
    assert_eq!(writer.bans(now_ms).await.unwrap(), []);
    eventually("the ban is lifted", async || {
        let mut client = Client::connect(gateway.device("ann", "phone")).unwrap();
        within(client.live()).await.is_ok()
    })
    .await;
    gateway.settled().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_ban_ends_with_its_time_and_one_of_the_past_is_none() {
    let gateway = Gateway::start().await;
    gateway.publish("notification.admin.user_banned.bob", &ban("b0", unix_s() - 10)).await;
    gateway.publish("notification.admin.user_banned.ann", &ban("b1", unix_s() + 3)).await;
    eventually("the ban is there", async || gateway.count("KV_control").await == 1).await;

    gateway.client("bob", "phone").await;
    refused(&gateway, &token("ann"), "phone", CloseCode::Banned, "while it lasts").await;
    eventually("it is over", async || {
        let mut client = Client::connect(gateway.device("ann", "phone")).unwrap();
        within(client.live()).await.is_ok()
    })
    .await;
    gateway.publish("notification.admin.user_banned.ann", &json!({"payload": {"reason": "x"}})).await;
    let letter = gateway.records("NOTIFICATIONS_DLQ", 1).await.remove(0);
    assert_eq!(letter.header("Fanfare-Reason"), "incomplete");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_ban_that_races_a_connect_never_leaves_a_session() {
    let gateway = Gateway::start().await;
    let writer = Writer::open(gateway.context.clone()).await.unwrap();
    for round in 0..40_u64 {
        let name = format!("user{round}");
        let now_ms = Now::read().unix_ms;
        let connect = async {
            // The handshake takes some milliseconds; the ban falls into every part of it in turn.
            let mut client = Client::connect(gateway.device(&name, "phone")).unwrap();
            match within(client.live()).await {
                Ok(_) => closed_with(&mut client).await,
                Err(closed) => closed.code(),
            }
        };
        let banned = user(&name);
        let ban = async {
            tokio::time::sleep(Duration::from_micros(round * 250)).await;
            let ban = Ban { notification_id: None, ..Ban::until(now_ms * 1_000, None) };
            assert!(writer.ban(&banned, &ban, now_ms).await.unwrap());
        };
        let (code, ()) = tokio::join!(connect, ban);
        assert_eq!(code, Some(3502), "round {round}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn force_logout_ends_the_other_devices_and_their_tokens() {
    let gateway = Gateway::start().await;
    let old = token_aged("ann", 60);
    let mut new = gateway.client("ann", "new").await;
    let mut config = gateway.device("ann", "phone");
    config.tokens = Tokens::fixed(old.clone());
    let (mut phone, _) = gateway.connect(config).await;
    let silent = admitted(&gateway, &old, "tablet").await;

    let body = json!({"notification_id": "l1", "payload": {"device_id": "new"}});
    gateway.publish("notification.auth.force_logout.ann", &body).await;

    assert_eq!(notification(&mut phone).await.notification_id, "l1");
    assert_eq!(closed_with(&mut phone).await, Some(3503));
    refused(&gateway, &old, "phone", CloseCode::LoggedOut, "an old token").await;
    refused(&gateway, &old, "unheard-of", CloseCode::LoggedOut, "on another device").await;
    silent.expect_close(CloseCode::LoggedOut, "without an ack").await;
    admitted(&gateway, &token_aged("ann", -2), "phone").await;

    // A narrower one later does not bring the old tokens back, and ends the fresh one of its device only.
    let fresh = token_aged("ann", -1);
    let mut kept = admitted(&gateway, &fresh, "desktop").await;
    eventually("the second of the token is over", async || Now::read().unix_ms / 1_000 > unix_s_of(&fresh))
        .await;
    let gone = admitted(&gateway, &fresh, "watch").await;
    let body = json!({"payload": {"device_id": "new"}, "metadata": {"target_device_ids": ["watch"]}});
    gateway.publish("notification.auth.force_logout.ann", &body).await;
    gone.expect_close(CloseCode::LoggedOut, "the device that is named").await;
    refused(&gateway, &old, "tablet", CloseCode::LoggedOut, "still").await;
    refused(&gateway, &fresh, "watch", CloseCode::LoggedOut, "not fresh enough there").await;

    gateway.publish("notification.message.new.ann", &message("m1")).await;
    assert_eq!(notification(&mut new).await.notification_id, "m1", "the new login stays");
    kept.send(&ClientFrame::Token { token: old }).await;
    kept.expect_close(CloseCode::LoggedOut, "an old token as a fresh one").await;
}

/// The `iat` of a token.
fn unix_s_of(token: &str) -> u64 {
    use base64::Engine;
    let claims = token.split('.').nth(1).unwrap();
    let claims = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(claims).unwrap();
    serde_json::from_slice::<Value>(&claims).unwrap()["iat"].as_u64().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_password_ends_other_logins_only_when_it_says_so() {
    let gateway = Gateway::start().await;
    let mut origin = gateway.client("ann", "desktop").await;
    let mut phone = gateway.client("ann", "phone").await;
    let changed = |id: &str, required: bool| {
        json!({"notification_id": id, "payload": {"requires_relogin": required},
            "metadata": {"origin_device_id": "desktop"}})
    };

    gateway.publish("notification.auth.password_changed.ann", &changed("p1", false)).await;
    assert_eq!(notification(&mut phone).await.notification_id, "p1");
    gateway.publish("notification.auth.password_changed.ann", &changed("p2", true)).await;
    assert_eq!(notification(&mut phone).await.notification_id, "p2");
    assert_eq!(closed_with(&mut phone).await, Some(3503));

    gateway.publish("notification.message.new.ann", &message("m1")).await;
    for id in ["p1", "p2", "m1"] {
        assert_eq!(notification(&mut origin).await.notification_id, id, "spared");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_stay_while_nats_is_away_and_bans_count_again_when_it_is_back() {
    let mut gateway = Gateway::start().await;
    let mut ann = gateway.client("ann", "phone").await;
    gateway.server.kill();
    let early = tokio::time::timeout(Duration::from_secs(2), ann.notification()).await;
    assert!(early.is_err(), "the session stays: {early:?}");
    gateway.server.restart().await;

    let now_ms = Now::read().unix_ms;
    eventually("NATS is back", async || {
        let Ok(writer) = Writer::open(gateway.context.clone()).await else { return false };
        writer.ban(&user("ann"), &Ban::until(now_ms * 1_000, None), now_ms).await.is_ok()
    })
    .await;

    assert_eq!(closed_with(&mut ann).await, Some(3502));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_cannot_read_who_is_banned_does_not_start() {
    let server = NatsServer::start().await;
    let catalog = Arc::new(Catalog::built_in().unwrap());
    let started = control::start(server.client().await, catalog, Arc::new(Registry::default())).await;
    assert!(started.unwrap_err().to_string().contains("fanfare provision apply"));
}
