//! A slow link between client and edge: what is urgent overtakes what waits, in the queue and on the wire.

pub(crate) mod link;

use std::collections::HashSet;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use fanfare::catalog::{Catalog, Event};
use fanfare::client::{Bind, Client, Config, Tokens, Trust};
use fanfare::clock::Now;
use fanfare::id::{DeviceId, NodeId, UserId};
use fanfare::protocol::Notification;
use fanfare::protocol::notification::{Frames, Policy};
use fanfare::session::inbox::{Missed, Position, Replay};
use fanfare::session::{Push, Recipient, Registry};
use fanfare::transport::tls::Identity;
use fanfare::transport::{self, Edge, auth};
use futures::FutureExt;
use futures::future::BoxFuture;
use serde_json::json;
use tokio::sync::watch;

use link::Link;

/// Bytes that the lanes normal and low may have on their way together, beyond which everything waits in the queue
/// where it can be overtaken: their budgets, 64 and 32 KiB.
const BUDGET_BYTES: usize = 96 * 1024;

/// What the link may hold: 1.3 s of its rate. Nothing overtakes there.
const LINK_QUEUE_BYTES: usize = 16 * 1024;

const FLOOD: usize = 100_000;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_overtakes_a_flood_on_a_link_of_100_kbit() {
    let edge = edge();
    let link = Link::start(edge.handle.address(), 100_000, LINK_QUEUE_BYTES, Duration::from_millis(40)).await;
    let mut client = edge.client(link.address());
    client.live().await.unwrap();
    let catalog = Catalog::built_in().unwrap();
    let flood_events = [catalog.get("message.new").unwrap(), catalog.get("file.processing").unwrap()];

    let mut accepted = HashSet::new();
    let mut frame_bytes = usize::MAX;
    for n in 0..FLOOD {
        let note = note(flood_events[n % 2], format!("flood-{n}"));
        if let Push::Accepted(_) = edge.push(&note) {
            frame_bytes = frame_bytes.min(note.frame(fanfare::protocol::Encoding::Json).len());
            accepted.insert(note.id.to_string());
        }
        if n % 100 == 0 {
            tokio::task::yield_now().await;
        }
    }
    // The link is full when the flood comes out at its other end.
    for _ in 0..20 {
        assert!(accepted.contains(&client.notification().await.unwrap().notification_id));
    }
    let invite = note(catalog.get("livekit.call_invite").unwrap(), "invite".to_owned());
    assert_eq!(edge.push(&invite), Push::Accepted(1), "however full the queue is");

    let mut before = 0;
    while client.notification().await.unwrap().notification_id != "invite" {
        before += 1;
    }
    let on_the_way = BUDGET_BYTES / frame_bytes;
    assert!(accepted.len() > 2 * on_the_way, "{} flood frames were published before it", accepted.len());
    // Behind what the lanes had written it would come after `on_the_way` frames. It overtakes most of these as well:
    // only what the link itself holds, and what quinn had given to it, goes before.
    assert!(before < on_the_way / 2, "{before} frames came before it, {on_the_way} were written");
    client.notification().await.expect("and the flood goes on");
}

struct Node {
    handle: transport::Handle,
    registry: Arc<Registry>,
    secret: Vec<u8>,
    hash: [u8; 32],
    user: UserId,
}

fn edge() -> Node {
    let identity = Identity::development().unwrap();
    let (hash, secret) = (identity.sha256(), b"a secret of this test, long enough".to_vec());
    let registry = Arc::new(Registry::default());
    let config = transport::Config {
        listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
        ..transport::Config::default()
    };
    let handle = Edge {
        config,
        identity,
        verifier: auth::Verifier::with_secret(&secret),
        node: watch::channel(NodeId::of("node", 1)).1,
        registry: registry.clone(),
        inbox: Position::default(),
        replay: Arc::new(NothingMissed),
        control: Arc::default(),
    }
    .start()
    .unwrap();
    Node { handle, registry, secret, hash, user: UserId::new("ann").unwrap() }
}

impl Node {
    fn client(&self, address: SocketAddr) -> Client {
        let token = auth::sign_hs256(&self.secret, &self.user, Now::read(), Duration::from_mins(10));
        let trust = Trust::CertificateHashes(vec![self.hash]);
        let url = format!("https://{address}/v1/push");
        let mut config = Config::new(url, "phone", Tokens::fixed(token), trust);
        config.bind = Bind::Loopback;
        Client::connect(config).unwrap()
    }

    fn push(&self, note: &Arc<Notification>) -> Push {
        let recipient = Recipient::online(self.user.clone());
        self.registry.push(note, &recipient, None, Now::read())
    }
}

fn note(event: &Arc<Event>, id: String) -> Arc<Notification> {
    let payload = json!({"text": "x".repeat(200)});
    let now_ms = Now::read().unix_ms;
    Arc::new(Notification {
        id: id.into(),
        event: event.clone(),
        lane: event.lane,
        timestamp: 1,
        published_at_ms: now_ms,
        expires_at_ms: now_ms + 600_000,
        stream_seq: 1,
        from_user_id: None,
        require_ack: event.ack,
        large_set: false,
        policy: Policy::default(),
        payload: payload.as_object().unwrap().clone().into(),
        frames: Frames::default(),
    })
}

#[derive(Debug)]
struct NothingMissed;

impl Replay for NothingMissed {
    fn missed<'a>(&'a self, _: &'a UserId, _: &'a DeviceId, _: Option<&'a str>) -> BoxFuture<'a, Missed> {
        async { Missed { recovered: true, ..Missed::default() } }.boxed()
    }
}
