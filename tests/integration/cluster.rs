//! Several nodes on one NATS: who is announced where, and what becomes of it when a node or NATS goes.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::{self, Context};
use fanfare::catalog::Catalog;
use fanfare::client::raw::RawSession;
use fanfare::client::{Bind, Endpoint, Target, Trust};
use fanfare::clock::Now;
use fanfare::cluster::{Presence, Settings, Times, entries};
use fanfare::config::Config;
use fanfare::delivery::inbox;
use fanfare::id::{NodeId, UserId};
use fanfare::lifecycle::{Keys, Parts, Service};
use fanfare::nats::Watch;
use fanfare::protocol::CloseCode;
use fanfare::protocol::frame::SessionLane;
use fanfare::provision::{Env, apply_all};
use fanfare::transport::auth::Verifier;
use fanfare::transport::tls::Identity;
use futures::StreamExt;
use serde_json::json;

use crate::support::{NatsServer, Peer, SECRET, eventually, hello, next_on, run, token, within};

/// Nodes on one nats-server.
struct Cluster {
    client: async_nats::Client,
    context: Context,
    catalog: Arc<Catalog>,
    endpoint: Endpoint,
    times: Times,
    sessions_per_user_max: usize,
    server: NatsServer,
}

struct Node {
    service: Service,
    presence: Arc<Presence>,
    trust: Trust,
    endpoint: Endpoint,
}

/// Times so short that a test can wait for them, and long enough for a busy machine.
const SHORT: Times = Times {
    lease: Duration::from_secs(4),
    renew: Duration::from_millis(500),
    grace: Duration::from_secs(2),
    life: Duration::from_secs(5),
};

/// Sessions that began so far apart are in an order that nobody doubts.
const BEYOND_DOUBT: Duration = Duration::from_secs(3);

impl Cluster {
    async fn start() -> Self {
        let server = NatsServer::start().await;
        let client = server.client().await;
        let catalog = Arc::new(Catalog::built_in().unwrap());
        apply_all(&client, &catalog, Env::DEV).await.unwrap();
        Self {
            context: jetstream::new(client.clone()),
            client,
            catalog,
            endpoint: Endpoint::bind(Bind::Loopback).unwrap(),
            times: Times::default(),
            sessions_per_user_max: 16,
            server,
        }
    }

    async fn node(&self, name: &str) -> Node {
        let mut config = Config::default();
        config.edge.listen = (Ipv4Addr::LOCALHOST, 0).into();
        name.clone_into(&mut config.edge.node);
        config.edge.sessions_per_user_max = self.sessions_per_user_max;
        config.admin.listen.set_port(0);
        config.worker.drain_s = 1;
        config.edge.drain_rate = 1_000;
        self.server.url().clone_into(&mut config.nats.url);
        let client = fanfare::nats::connect(&config.nats).await.unwrap();
        let identity = Identity::development().unwrap();
        let trust = Trust::CertificateHashes(vec![identity.sha256()]);
        let (catalog, verifier) = (self.catalog.clone(), Verifier::with_secret(SECRET));
        let cluster = Settings { times: self.times, ..Settings::default() };
        let keys = Some(Keys { identity, verifier });
        let service = Parts { config, catalog, keys, client, cluster }.start().await.unwrap();
        Node { presence: service.cluster().presence(), service, trust, endpoint: self.endpoint.clone() }
    }

    /// What the bucket says of a user: each session's node and device, in order.
    async fn told(&self, user: &str) -> Vec<(NodeId, String)> {
        self.asked(user).await.expect("the bucket answers")
    }

    /// The same; nothing as long as the bucket does not answer, because it has just been made.
    async fn asked(&self, user: &str) -> Option<Vec<(NodeId, String)>> {
        let read = entries::of_user(&self.client, &UserId::new(user).unwrap()).await.ok()?;
        let devices = read.entries.into_iter().flat_map(|entry| {
            let node = entry.node;
            entry.sessions.into_iter().map(move |told| (node.clone(), told.device.to_string()))
        });
        let mut devices: Vec<_> = devices.collect();
        devices.sort();
        Some(devices)
    }

    async fn eventually_told(&self, user: &str, expected: &[(&NodeId, &str)]) {
        let expected: Vec<_> =
            expected.iter().map(|(node, device)| ((*node).clone(), (*device).to_owned())).collect();
        eventually(&format!("{user} is at {expected:?}"), async || {
            self.asked(user).await.as_ref() == Some(&expected)
        })
        .await;
    }

    /// Writes a record that was offered to all sessions at `offered_ms` into the inbox of `user`.
    async fn record(&self, user: &str, id: &str, offered_ms: u64) {
        let now_ms = Now::read().unix_ms;
        let record = json!({
            "notification_id": id, "notification_type": "friend.request", "timestamp": 1, "priority": "high",
            "published_at_ms": now_ms, "expires_at_ms": now_ms + 600_000, "stream_seq": 1, "require_ack": false,
            "payload": {"request_id": "r"},
        });
        let (user, kept) = (UserId::new(user).unwrap(), Duration::from_mins(10));
        inbox::write(&self.context, &user, record.to_string().into(), kept, Some(offered_ms)).await.unwrap();
    }

    /// Lives with a lease.
    async fn leases(&self) -> Vec<String> {
        let bucket = fanfare::nats::Bucket::open(self.context.clone(), fanfare::nats::NODES).await.unwrap();
        let mut keys = bucket.keys().await.unwrap();
        keys.sort();
        keys
    }
}

impl Node {
    fn id(&self) -> NodeId {
        self.service.cluster().node().borrow().clone()
    }

    /// A session by hand, welcomed.
    async fn session(&self, user: &str, device: &str) -> Peer {
        let url = format!("quic://{}", self.service.edge_address().expect("it serves devices"));
        let target = Target::new(&url, &self.trust, None).unwrap();
        let session = within(RawSession::connect(&target, &self.endpoint)).await.unwrap();
        let control = within(session.open_stream()).await.unwrap();
        let mut peer = Peer { session, control };
        peer.hello(hello(&token(user), device)).await;
        let welcome = peer.welcome().await;
        assert!(welcome.session_id.starts_with(self.id().as_str()), "{}", welcome.session_id);
        peer
    }

    /// The nodes at which this one sees a user.
    fn sees(&self, user: &str) -> Vec<NodeId> {
        self.presence.nodes(&UserId::new(user).unwrap())
    }

    async fn eventually_sees(&self, user: &str, nodes: &[&NodeId]) {
        let what = format!("{user} is seen at {nodes:?}");
        eventually(&what, async || self.sees(user).iter().eq(nodes.iter().copied())).await;
    }
}

#[tokio::test]
async fn sessions_are_announced_before_their_welcome_and_vanish_with_their_end() {
    let cluster = Cluster::start().await;
    let (one, two) = (cluster.node("one").await, cluster.node("two").await);
    let (a, b) = (one.id(), two.id());
    eventually("they see each other", async || {
        one.presence.edges() == [b.clone()] && two.presence.edges() == [a.clone()]
    })
    .await;
    assert!(one.presence.is_current() && two.presence.is_current());

    let phone = one.session("ann", "phone").await;
    assert_eq!(cluster.told("ann").await, [(a.clone(), "phone".to_owned())], "known at the welcome");
    let laptop = one.session("ann", "laptop").await;
    let tablet = two.session("ann", "tablet").await;
    cluster.eventually_told("ann", &[(&a, "laptop"), (&a, "phone"), (&b, "tablet")]).await;
    one.eventually_sees("ann", &[&b]).await;
    two.eventually_sees("ann", &[&a]).await;
    let devices = one.service.cluster().entries().devices_elsewhere(&UserId::new("ann").unwrap()).await;
    assert_eq!(devices.unwrap().iter().map(ToString::to_string).collect::<Vec<_>>(), ["tablet"]);

    drop((phone, laptop));
    cluster.eventually_told("ann", &[(&b, "tablet")]).await;
    two.eventually_sees("ann", &[]).await;
    drop(tablet);
    cluster.eventually_told("ann", &[]).await;
}

#[tokio::test]
async fn a_node_that_takes_leave_is_forgotten_at_once() {
    let cluster = Cluster::start().await;
    let (one, two) = (cluster.node("one").await, cluster.node("two").await);
    let _phone = one.session("ann", "phone").await;
    two.eventually_sees("ann", &[&one.id()]).await;
    let leases = cluster.context.get_key_value("nodes").await.unwrap();
    let a = one.id().to_string();
    // The phone does not heed its goaway, so there is time to see it.
    tokio::join!(
        within(one.service.stop()),
        eventually("it says that it is about to stop", async || {
            let lease = leases.get(&a).await.unwrap().unwrap_or_default();
            serde_json::from_slice::<serde_json::Value>(&lease).unwrap_or_default()["draining"] == true
        })
    );
    assert!(cluster.told("ann").await.is_empty());
    assert_eq!(cluster.leases().await, [two.id().to_string()]);
    // With these times a lost lease would leave it there for a minute.
    two.eventually_sees("ann", &[]).await;
    eventually("no other edge", async || two.presence.edges().is_empty()).await;
}

#[tokio::test]
async fn a_node_that_died_is_forgotten_after_its_grace_and_cleaned_up_after() {
    let mut cluster = Cluster::start().await;
    cluster.times = SHORT;
    let (one, two) = (cluster.node("one").await, cluster.node("two").await);
    let (a, b) = (one.id(), two.id());
    let _phone = one.session("ann", "phone").await;
    let _other = two.session("ben", "phone").await;
    two.eventually_sees("ann", &[&a]).await;
    drop(one.service);
    assert_eq!(cluster.told("ann").await, [(a, "phone".to_owned())], "it went without a word");
    two.eventually_sees("ann", &[]).await;
    cluster.eventually_told("ann", &[]).await;
    assert_eq!(cluster.told("ben").await, [(b.clone(), "phone".to_owned())], "who is alive stays");
    assert_eq!(cluster.leases().await, [b.to_string()]);
}

#[tokio::test]
async fn the_newer_session_of_a_device_ends_the_older_one_on_another_node() {
    let cluster = Cluster::start().await;
    let (one, two) = (cluster.node("one").await, cluster.node("two").await);
    // Back and forth, so that neither the order of nodes nor of clocks decides.
    let first = one.session("ann", "phone").await;
    let second = two.session("ann", "phone").await;
    first.expect_close(CloseCode::Rotate, "the first: so close that it may be the newer one").await;
    cluster.eventually_told("ann", &[(&two.id(), "phone")]).await;
    tokio::time::sleep(BEYOND_DOUBT).await;
    let _third = one.session("ann", "phone").await;
    second.expect_close(CloseCode::Replaced, "the second").await;
    cluster.eventually_told("ann", &[(&one.id(), "phone")]).await;
}

#[tokio::test]
async fn what_counts_is_when_a_session_began_and_not_when_others_heard_of_it() {
    let cluster = Cluster::start().await;
    let one = cluster.node("one").await;
    let (_phone, tablet) = (one.session("ann", "phone").await, one.session("ann", "tablet").await);
    let (a, b) = (one.id(), NodeId::of("other", 1));
    cluster.eventually_told("ann", &[(&a, "phone"), (&a, "tablet")]).await;
    // A node that was cut off tells late of a phone that it has had for long, and of a tablet that is new.
    let now_ms = Now::read().unix_ms;
    let late = json!([
        {"device": "phone", "start": now_ms - 60_000, "age_ms": 60_000},
        {"device": "tablet", "start": now_ms, "age_ms": 0},
    ]);
    let presence = cluster.context.get_key_value("presence").await.unwrap();
    presence.put(format!("ann.{b}"), late.to_string().into()).await.unwrap();
    tablet.expect_close(CloseCode::Rotate, "newer on the other node").await;
    cluster.eventually_told("ann", &[(&a, "phone"), (&b, "phone"), (&b, "tablet")]).await;
}

#[tokio::test]
async fn beyond_a_users_limit_the_oldest_sessions_of_all_nodes_end() {
    let mut cluster = Cluster::start().await;
    cluster.sessions_per_user_max = 2;
    let (one, two) = (cluster.node("one").await, cluster.node("two").await);
    let d1 = one.session("ann", "d1").await;
    let d2 = two.session("ann", "d2").await;
    let _d3 = two.session("ann", "d3").await;
    d1.expect_close(CloseCode::TooManySessions, "the oldest").await;
    let _d4 = one.session("ann", "d4").await;
    d2.expect_close(CloseCode::TooManySessions, "the next").await;
    cluster.eventually_told("ann", &[(&one.id(), "d4"), (&two.id(), "d3")]).await;
}

#[tokio::test]
async fn what_came_and_went_while_nats_was_away_is_right_afterwards() {
    let mut cluster = Cluster::start().await;
    let (one, two) = (cluster.node("one").await, cluster.node("two").await);
    let (leaves, _stays) = (one.session("leaves", "d").await, one.session("stays", "d").await);
    two.eventually_sees("leaves", &[&one.id()]).await;
    two.eventually_sees("stays", &[&one.id()]).await;

    cluster.server.kill();
    eventually("it knows that it may miss something", async || !two.presence.is_current()).await;
    assert_eq!(two.sees("stays"), [one.id()], "what was known stays in use");
    drop(leaves);
    // Welcomed though nobody can be told.
    let _comes = one.session("comes", "d").await;
    cluster.server.restart().await;

    cluster.eventually_told("leaves", &[]).await;
    cluster.eventually_told("stays", &[(&one.id(), "d")]).await;
    cluster.eventually_told("comes", &[(&one.id(), "d")]).await;
    two.eventually_sees("leaves", &[]).await;
    two.eventually_sees("comes", &[&one.id()]).await;
    eventually("it is current again", async || two.presence.is_current()).await;
    assert_eq!(two.sees("stays"), [one.id()]);
}

#[tokio::test]
async fn entries_that_somebody_deleted_come_back_and_so_does_a_lost_bucket() {
    let cluster = Cluster::start().await;
    let (one, two) = (cluster.node("one").await, cluster.node("two").await);
    let _phone = one.session("ann", "phone").await;
    let told = [(&one.id(), "phone")];
    let presence = cluster.context.get_key_value("presence").await.unwrap();
    presence.purge(format!("ann.{}", one.id())).await.unwrap();
    cluster.eventually_told("ann", &told).await;
    two.eventually_sees("ann", &[&one.id()]).await;

    // A stranger's entry under this node's id, as a write that came late would be.
    let late = format!("stranger.{}", one.id());
    presence.put(late, r#"[{"device":"d"}]"#.into()).await.unwrap();
    cluster.eventually_told("stranger", &[]).await;
    let leases = cluster.context.get_key_value("nodes").await.unwrap();
    for id in [one.id(), two.id()].iter().cycle().take(12).map(ToString::to_string) {
        leases.delete(&id).await.unwrap();
        eventually("the lease is back", async || cluster.leases().await.contains(&id)).await;
        two.eventually_sees("ann", &[&one.id()]).await;
        cluster.eventually_told("ann", &told).await;
    }

    cluster.context.delete_stream("KV_presence").await.unwrap();
    // Served all the same.
    let _ben = one.session("ben", "phone").await;
    apply_all(&cluster.client, &cluster.catalog, Env::DEV).await.unwrap();
    cluster.eventually_told("ann", &told).await;
    cluster.eventually_told("ben", &told).await;
    two.eventually_sees("ben", &[&one.id()]).await;
    // The new bucket goes on with the order of the old one.
    let other = two.session("ann", "phone").await;
    cluster.eventually_told("ann", &[(&two.id(), "phone")]).await;
    drop(other);
}

#[tokio::test]
async fn a_node_that_was_cut_off_for_long_goes_on_under_another_id() {
    let mut cluster = Cluster::start().await;
    cluster.times = SHORT;
    let (one, two) = (cluster.node("one").await, cluster.node("two").await);
    let before = one.id();
    let mut lives = one.service.cluster().node();
    let phone = one.session("ann", "phone").await;
    two.eventually_sees("ann", &[&before]).await;
    let cut_ms = Now::read().unix_ms;
    cluster.server.kill();
    tokio::time::sleep(SHORT.life).await;
    cluster.server.restart().await;
    within(lives.changed()).await.unwrap();
    let after = one.id();
    assert_ne!(before, after);
    cluster.eventually_told("ann", &[(&after, "phone")]).await;
    two.eventually_sees("ann", &[&after]).await;
    assert!(one.sees("ann").is_empty(), "an earlier life is not another node");
    eventually("the old lease is gone", async || !cluster.leases().await.contains(&before.to_string())).await;
    // The session went on through all of it, and reads what was offered while the others had forgotten it.
    cluster.record("ann", "meanwhile", cut_ms + SHORT.life.as_millis() as u64 + 500).await;
    let mut inbox = phone.lane(SessionLane::Inbox).await;
    assert_eq!(next_on(&mut inbox).await.0, "meanwhile");
    one.session("ann", "laptop").await;
}

#[tokio::test]
async fn under_another_id_nothing_is_left_of_the_old_one() {
    let mut cluster = Cluster::start().await;
    // Nobody cleans up within the time of this test.
    cluster.times = Times { grace: Duration::from_mins(10), ..SHORT };
    let (one, two) = (cluster.node("one").await, cluster.node("two").await);
    let mut lives = one.service.cluster().node();
    let (_stays, leaves) = (one.session("stays", "d").await, one.session("leaves", "d").await);
    two.eventually_sees("leaves", &[&one.id()]).await;
    cluster.server.kill();
    drop(leaves);
    tokio::time::sleep(SHORT.life).await;
    cluster.server.restart().await;
    within(lives.changed()).await.unwrap();
    cluster.eventually_told("stays", &[(&one.id(), "d")]).await;
    cluster.eventually_told("leaves", &[]).await;
    two.eventually_sees("stays", &[&one.id()]).await;
    // An earlier life without a lease is no other node that a broadcast should go to.
    eventually("the other node is there", async || one.presence.edges().contains(&two.id())).await;
    let edges = one.presence.edges();
    assert!(edges.iter().all(|edge| edge.as_str().starts_with("two")), "{edges:?}");
}

#[tokio::test]
async fn a_session_whose_entry_was_lost_reads_what_was_offered_meanwhile() {
    let cluster = Cluster::start().await;
    let (one, two) = (cluster.node("one").await, cluster.node("two").await);
    let phone = one.session("ann", "phone").await;
    two.eventually_sees("ann", &[&one.id()]).await;
    // The session was known from 5 s after its start on, until its entry vanishes.
    let offered_ms = Now::read().unix_ms + 5_500;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let presence = cluster.context.get_key_value("presence").await.unwrap();
    presence.purge(format!("ann.{}", one.id())).await.unwrap();
    cluster.eventually_told("ann", &[(&one.id(), "phone")]).await;
    cluster.record("ann", "meanwhile", offered_ms).await;
    let mut inbox = phone.lane(SessionLane::Inbox).await;
    assert_eq!(next_on(&mut inbox).await.0, "meanwhile");
}

#[tokio::test]
async fn buckets_whose_writes_do_not_come_any_more_are_read_anew() {
    let cluster = Cluster::start().await;
    let (one, two) = (cluster.node("one").await, cluster.node("two").await);
    let phone = one.session("ann", "phone").await;
    two.eventually_sees("ann", &[&one.id()]).await;
    // A paused consumer is as silent as one whose server died, and its heartbeats hide it.
    let until = time::OffsetDateTime::now_utc() + Duration::from_mins(10);
    for bucket in ["KV_presence", "KV_control"] {
        let stream = cluster.context.get_stream(bucket).await.unwrap();
        let mut names = stream.consumer_names();
        let mut paused = 0;
        while let Some(name) = names.next().await {
            assert!(stream.pause_consumer(&name.unwrap(), until).await.unwrap().paused);
            paused += 1;
        }
        assert_eq!(paused, 2, "a consumer each node");
    }
    let _tablet = one.session("ben", "tablet").await;
    two.eventually_sees("ben", &[&one.id()]).await;
    let control = cluster.context.get_key_value("control").await.unwrap();
    control.put("ban.ann", r#"{"v":1}"#.into()).await.unwrap();
    phone.expect_close(CloseCode::Banned, "the ban is seen").await;
}

#[tokio::test]
async fn a_reading_ends_when_the_rest_of_the_bucket_is_purged() {
    let cluster = Cluster::start().await;
    let presence = cluster.context.get_key_value("presence").await.unwrap();
    for user in 0..10 {
        presence.put(format!("user-{user}.gone"), "[]".into()).await.unwrap();
    }
    let mut watch = Watch::open(&cluster.context, fanfare::nats::PRESENCE).await.unwrap();
    cluster.context.get_stream("KV_presence").await.unwrap().purge().await.unwrap();
    assert!(watch.read().await.expect("it does not wait for them").is_none());
}

#[tokio::test]
async fn both_commands_show_what_the_buckets_say() {
    let cluster = Cluster::start().await;
    let one = cluster.node("one").await;
    let _phone = one.session("ann", "phone").await;
    let id = one.id();
    let (code, text) = run(&cluster.server, &["nodes"]).await;
    assert_eq!(code, Some(0), "{text}");
    let line = text.lines().find(|line| line.starts_with(id.as_str())).expect(&text);
    let words: Vec<_> = line.split_whitespace().skip(1).take(3).collect();
    assert_eq!(words, ["one", "all", env!("CARGO_PKG_VERSION")], "{line}");
    let (_, text) = run(&cluster.server, &["nodes", "--json"]).await;
    let node: serde_json::Value = serde_json::from_str(text.lines().next().unwrap()).expect(&text);
    assert_eq!((node["node"].as_str(), node["draining"].as_bool()), (Some(id.as_str()), Some(false)));

    let (code, text) = run(&cluster.server, &["sessions", "ann"]).await;
    assert_eq!(code, Some(0), "{text}");
    let line = text.lines().find(|line| line.starts_with(id.as_str())).expect(&text);
    assert!(line.contains("phone") && line.contains("desktop"), "{line}");
    let (_, text) = run(&cluster.server, &["sessions", "ann", "--json"]).await;
    let session: serde_json::Value = serde_json::from_str(text.lines().next().unwrap()).expect(&text);
    assert_eq!((session["node"].as_str(), session["device"].as_str()), (Some(id.as_str()), Some("phone")));
    let (code, text) = run(&cluster.server, &["sessions", "nobody"]).await;
    assert_eq!((code, text.trim()), (Some(0), "no sessions"));

    let (code, text) = run(&cluster.server, &["sessions", "not an id"]).await;
    assert!(code != Some(0) && text.contains("an id is 1 to 128 characters"), "{text}");
    let bare = NatsServer::start().await;
    for command in [&["nodes"][..], &["sessions", "ann"]] {
        let (code, text) = run(&bare, command).await;
        assert!(code == Some(1) && text.contains("fanfare provision apply"), "{command:?}: {text}");
    }
}

#[tokio::test]
async fn a_node_does_not_start_without_its_buckets_and_says_what_to_do() {
    let cluster = Cluster::start().await;
    cluster.context.delete_stream("KV_nodes").await.unwrap();
    let started = fanfare::cluster::Cluster {
        client: cluster.client.clone(),
        registry: Arc::default(),
        announcements: fanfare::cluster::Announcements::new(),
        name: "one".to_owned(),
        sessions_per_user_max: 16,
        sessions_max: 1,
        settings: Settings::default(),
        draining: tokio_util::sync::CancellationToken::new(),
    };
    let error = started.start().await.expect_err("there is no bucket").to_string();
    assert!(error.contains("nodes") && error.contains("fanfare provision apply"), "{error}");
}
