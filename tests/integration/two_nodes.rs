//! Two nodes on one server: what concerns a user reaches all their devices, wherever those are.

use std::sync::Arc;
use std::time::Duration;

use fanfare::client::{self, Client, Tokens, Trust};
use fanfare::clock::Now;
use fanfare::control::{Ban, Writer};
use fanfare::id::UserId;
use fanfare::lifecycle::{Keys, Parts, Service};
use fanfare::transport::auth::{Verifier, sign_hs256};
use fanfare::transport::tls::Identity;
use futures::StreamExt as _;
use serde_json::{Value, json};

use crate::support::{Gateway, SECRET, Setup, eventually, message, notification, within};

/// Two gateways as one. Publishing is the first one's; devices are at either.
struct TwoNodes {
    first: Gateway,
    second: Service,
    second_certificate: [u8; 32],
}

impl TwoNodes {
    async fn start() -> Self {
        Self::start_with(|_| {}).await
    }

    async fn start_with(change: impl Fn(&mut fanfare::config::Config)) -> Self {
        let mut config = None;
        let first = Box::pin(Gateway::start_with(|setup: &mut Setup| {
            change(&mut setup.config);
            config = Some(setup.config.clone());
        }))
        .await;
        let mut config = config.unwrap();
        first.server.url().clone_into(&mut config.nats.url);
        "second".clone_into(&mut config.edge.node);
        let identity = Identity::development().unwrap();
        let second_certificate = identity.sha256();
        let client = fanfare::nats::connect(&config.nats).await.unwrap();
        let (catalog, verifier) = (Arc::clone(&first.catalog), Verifier::with_secret(SECRET));
        let keys = Some(Keys { identity, verifier });
        let cluster = fanfare::cluster::Settings::default();
        let parts = Parts { config, catalog, keys, client, cluster };
        let second = Box::pin(parts.start()).await.unwrap();
        Self { first, second, second_certificate }
    }

    /// A device at the first node.
    fn here(&self, user: &str, device: &str) -> client::Config {
        self.first.device(user, device)
    }

    /// A device at the second one.
    fn there(&self, user: &str, device: &str) -> client::Config {
        let mut config = self.here(user, device);
        config.url = format!("https://{}/v1/push", self.second.edge_address().expect("it serves devices"));
        config.trust = Trust::CertificateHashes(vec![self.second_certificate]);
        config
    }

    /// A device with an open session, which the workers of both nodes know: what is published comes.
    async fn live(&self, user: &str, config: client::Config, node: &str) -> Client {
        let (mut client, welcome) = self.first.connect(config).await;
        assert_eq!(welcome.node, node);
        let mut known = 0;
        // Each worker has pulled one of a row, most likely; one that does not know the session yet hands it off.
        eventually("both nodes know the session", async || {
            let id = format!("{PROBE}{}", uuid::Uuid::new_v4());
            self.first.publish(&format!("notification.message.new.{user}"), &message(&id)).await;
            self.first.settled().await;
            let came = tokio::time::timeout(Duration::from_millis(50), async {
                while client.notification().await.expect("a session").notification_id != id {}
            });
            known = if came.await.is_ok() { known + 1 } else { 0 };
            known == 10
        })
        .await;
        client
    }

    async fn publish(&self, event: &str, user: &str, id: &str, envelope: Value) {
        let mut envelope = envelope;
        envelope["notification_id"] = id.into();
        self.first.publish(&format!("notification.{event}.{user}"), &envelope).await;
    }
}

/// The next one that is no probe.
async fn next(client: &mut Client) -> String {
    loop {
        let id = notification(client).await.notification_id;
        if !id.starts_with(PROBE) {
            return id;
        }
    }
}

async fn closed_with(client: &mut Client) -> Option<u32> {
    within(client.notification()).await.expect_err("closed").code()
}

/// Begins the id of what is published only to see whether it comes.
const PROBE: &str = "probe-";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_device_is_reached_and_nobody_is_called_away() {
    let nodes = TwoNodes::start().await;
    let mut phone = nodes.live("ann", nodes.here("ann", "phone"), "test").await;
    let mut tablet = nodes.live("ann", nodes.there("ann", "tablet"), "second").await;
    let mut bob = nodes.live("bob", nodes.there("bob", "phone"), "second").await;
    let before = nodes.first.count("OFFLINE_PUSH").await;
    // Whichever node pulls it. A friend request must be acked and is handed off for whom it does not reach.
    for round in 0..20 {
        let id = format!("n{round}");
        for user in ["ann", "bob"] {
            nodes.publish("friend.request", user, &format!("{user}-{id}"), json!({"payload": {}})).await;
        }
        for device in [&mut phone, &mut tablet] {
            assert_eq!(next(device).await, format!("ann-{id}"));
        }
        assert_eq!(next(&mut bob).await, format!("bob-{id}"));
    }
    nodes.first.settled().await;
    assert_eq!(nodes.first.count("OFFLINE_PUSH").await, before, "both are connected");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_coalesced_state_reaches_both_nodes_and_its_newest_is_the_last() {
    let nodes = TwoNodes::start().await;
    let phone = nodes.live("ann", nodes.here("ann", "phone"), "test").await;
    let tablet = nodes.live("ann", nodes.there("ann", "tablet"), "second").await;
    let payload = json!({"payload": {"conversation_id": "c", "reader_user_id": "bob"}});
    for round in 1..=9 {
        nodes.publish("message.read_receipt", "ann", &round.to_string(), payload.clone()).await;
    }
    for mut device in [phone, tablet] {
        let mut shown = Vec::new();
        while shown.last() != Some(&9) {
            shown.push(next(&mut device).await.parse::<u32>().unwrap());
        }
        assert!(shown.is_sorted(), "an older state after a newer one: {shown:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_forced_logout_ends_the_devices_of_both_nodes() {
    let nodes = TwoNodes::start().await;
    let now = Now::read();
    let earlier = Now { unix_ms: now.unix_ms - 60_000, ..now };
    let user = UserId::new("ann").unwrap();
    let old = sign_hs256(SECRET, &user, earlier, Duration::from_hours(1));
    let aged = |mut config: client::Config| {
        config.tokens = Tokens::fixed(old.clone());
        config
    };
    let mut phone = nodes.live("ann", aged(nodes.here("ann", "phone")), "test").await;
    let mut tablet = nodes.live("ann", aged(nodes.there("ann", "tablet")), "second").await;
    let mut new = nodes.live("ann", nodes.there("ann", "new"), "second").await;

    nodes.publish("auth.force_logout", "ann", "l1", json!({"payload": {"device_id": "new"}})).await;

    for device in [&mut phone, &mut tablet] {
        assert_eq!(next(device).await, "l1", "told before it is closed");
        assert_eq!(closed_with(device).await, Some(3503));
    }
    nodes.first.settled().await;
    nodes.first.publish("notification.message.new.ann", &message("m1")).await;
    assert_eq!(next(&mut new).await, "m1", "the new login stays");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn devices_of_two_nodes_do_not_set_each_other_off() {
    let nodes = TwoNodes::start().await;
    let mut phone = nodes.live("ann", nodes.here("ann", "phone"), "test").await;
    let mut tablet = nodes.live("ann", nodes.there("ann", "tablet"), "second").await;
    let sync = async |id: &str, from: &str| {
        let payload = json!({"sync_id": id, "data_types": ["messages"], "from_device_id": from});
        nodes.publish("sync.request", "ann", id, json!({"payload": payload})).await;
        nodes.first.settled().await;
    };
    sync("s1", "phone").await;
    assert_eq!(next(&mut tablet).await, "s1");

    // The tablet was asked just now, so its own request is an echo.
    sync("s2", "tablet").await;

    nodes.first.publish("notification.message.new.ann", &message("m1")).await;
    assert_eq!(next(&mut phone).await, "m1");
    assert_eq!(next(&mut tablet).await, "m1");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_ban_that_races_a_connect_on_another_node_leaves_no_session() {
    const USERS: u64 = 1_000;
    const AT_ONCE: usize = 10;
    let nodes = TwoNodes::start_with(|config| config.edge.handshakes_per_s = 10_000).await;
    let writer = Writer::open(nodes.first.context.clone()).await.unwrap();
    let race = async |round: u64| {
        let name = format!("user{round}");
        let user = UserId::new(&name).unwrap();
        let now_ms = Now::read().unix_ms;
        let connect = async {
            let mut client = Client::connect(nodes.there(&name, "phone")).unwrap();
            match within(client.live()).await {
                Ok(_) => closed_with(&mut client).await,
                Err(closed) => closed.code(),
            }
        };
        let ban = async {
            // A handshake takes some milliseconds, longer beside others; the ban falls into every part of it in turn.
            tokio::time::sleep(Duration::from_micros(round % 200 * 250)).await;
            let ban = Ban { notification_id: None, ..Ban::until(now_ms * 1_000, None) };
            assert!(writer.ban(&user, &ban, now_ms).await.unwrap());
        };
        let (code, ()) = tokio::join!(connect, ban);
        assert_eq!(code, Some(3502), "round {round}");
    };
    futures::stream::iter(0..USERS).for_each_concurrent(AT_ONCE, race).await;
}
