//! A client with the addresses of two servers: where it begins, and what makes it go to the other one.

use std::collections::HashSet;

use super::server::{Peer, Server, shared_endpoint, within};
use crate::client::{Client, Config, Trust};
use crate::protocol::CloseCode;
use crate::protocol::frame::ServerFrame;

struct Two([Server; 2]);

impl Two {
    fn start() -> Self {
        Self([Server::start(), Server::start()])
    }

    fn config(&self) -> Config {
        let [one, other] = &self.0;
        let mut config = one.config();
        config.other_urls = vec![other.url("quic")];
        config.trust = Trust::CertificateHashes(vec![one.hash, other.hash]);
        config
    }

    /// The next session at either server, welcomed.
    async fn accept(&mut self) -> (usize, Peer) {
        let [one, other] = &mut self.0;
        let (at, mut peer) = tokio::select! {
            peer = one.accept() => (0, peer),
            peer = other.accept() => (1, peer),
        };
        peer.welcome().await;
        (at, peer)
    }
}

#[tokio::test]
async fn each_client_begins_anywhere() {
    let mut two = Two::start();
    let endpoint = shared_endpoint();
    let mut begun = HashSet::new();
    let mut clients = Vec::new();
    // That all of these begin at the same one happens once in 2^63 runs.
    for _ in 0..64 {
        let mut config = two.config();
        config.endpoint = Some(endpoint.clone());
        clients.push(Client::connect(config).unwrap());
        begun.insert(two.accept().await.0);
    }
    assert_eq!(begun, HashSet::from([0, 1]));
}

#[tokio::test]
async fn what_ended_leads_to_the_next_address_and_a_rotation_does_not() {
    let mut two = Two::start();
    let mut client = Client::connect(two.config()).unwrap();
    let (first, mut peer) = two.accept().await;
    within(client.live()).await.unwrap();

    peer.close(CloseCode::HeartbeatTimeout, 1).await;
    let (second, mut peer) = two.accept().await;
    assert_ne!(second, first, "a session that ended");
    peer.close(CloseCode::Rotate, 1).await;
    let (third, mut peer) = two.accept().await;
    assert_eq!(third, second, "a session that is only to be replaced");
    peer.say(&goaway("rotate")).await;
    let (fourth, mut newer) = two.accept().await;
    assert_eq!(fourth, third, "the same by a goaway");
    peer.close(CloseCode::Replaced, 0).await;
    newer.say(&goaway("draining")).await;
    let (fifth, _peer) = two.accept().await;
    assert_ne!(fifth, fourth, "a node that stops");
}

#[tokio::test]
async fn an_address_that_cannot_be_reached_leads_to_the_next_one() {
    let mut server = Server::start();
    let mut clients = Vec::new();
    // Where a client begins is random, so some of these begin at the address that their socket cannot reach.
    for _ in 0..16 {
        let mut config = server.config();
        config.other_urls = vec!["quic://[::1]:1".to_owned()];
        clients.push(Client::connect(config).unwrap());
    }
    for _ in 0..16 {
        server.accept().await;
    }
}

fn goaway(reason: &str) -> ServerFrame {
    ServerFrame::Goaway { reason: reason.to_owned(), reconnect_after_ms: 1, close_after_ms: 60_000 }
}
