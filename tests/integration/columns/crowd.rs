//! Many devices of many people, and all that they get.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use fanfare::catalog::Lane;
use fanfare::client::{AckMode, Received};
use parking_lot::Mutex;
use serde_json::json;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::case::Case;
use crate::support::Gateway;

/// User and device.
pub(super) type Device = (String, String);

#[derive(Default)]
struct Heard {
    received: Vec<(Device, Received)>,
    ended: BTreeSet<Device>,
}

/// Connected devices. Their tasks end with it.
#[derive(Default)]
pub(super) struct Crowd {
    pub(super) connected: BTreeSet<Device>,
    /// Starts of ids that say nothing.
    pub(super) ignored: Vec<String>,
    heard: Arc<Mutex<Heard>>,
    tasks: JoinSet<()>,
}

impl Crowd {
    /// Opens a session, unless there is one, and listens until it ends.
    pub(super) async fn connect(&mut self, gateway: &Gateway, user: &str, device: &str, ack: AckMode) {
        let who = (user.to_owned(), device.to_owned());
        if !self.connected.insert(who.clone()) {
            return;
        }
        let mut config = gateway.device(user, device);
        // A datagram may get lost, and says no lane.
        (config.datagrams, config.reconnect, config.ack) = (false, false, ack);
        let (mut client, _) = gateway.connect(config).await;
        let heard = self.heard.clone();
        self.tasks.spawn(async move {
            while let Ok(received) = client.notification().await {
                heard.lock().received.push((who.clone(), received));
            }
            heard.lock().ended.insert(who);
        });
    }

    /// What was heard of notifications whose ids are meant, each as `describe` says, sorted.
    fn heard(&self, is_meant: impl Fn(&str) -> bool, describe: impl Fn(&Received) -> String) -> Vec<String> {
        let heard = self.heard.lock();
        let meant = heard.received.iter().filter(|(_, received)| is_meant(&received.notification_id));
        let mut all: Vec<String> = meant
            .map(|((user, device), received)| {
                format!("{} to {user}/{device}{}", received.notification_id, describe(received))
            })
            .collect();
        all.sort();
        all
    }

    /// Waits for what is `expected` and asserts that nothing else was heard but markers: whatever was on its way has
    /// come once those have.
    pub(super) async fn expect(
        &self,
        gateway: &Gateway,
        mut expected: Vec<String>,
        describe: impl Fn(&Received) -> String,
    ) {
        expected.sort();
        let meant =
            |id: &str| !id.starts_with("marker") && !self.ignored.iter().any(|some| id.starts_with(some));
        let heard = || self.heard(meant, &describe);
        let deadline = Instant::now() + Duration::from_secs(20);
        while heard().len() < expected.len() && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        gateway.settled().await;
        self.flush(gateway).await;
        similar(&heard(), &expected);
    }

    /// Sends a marker by each lane to everybody and waits until those who are still connected have them.
    async fn flush(&self, gateway: &Gateway) {
        let users: BTreeSet<&String> = self.connected.iter().map(|(user, _)| user).collect();
        for user in users {
            for lane in Lane::ALL {
                let id = format!("marker-{user}-{}", lane.as_str());
                // Its rank is low, its priority free, and it leaves nothing behind.
                let marker = json!({"notification_id": id, "priority": lane.as_str(), "payload": {}});
                gateway.publish(&format!("notification.sync.completed.{user}"), &marker).await;
            }
        }
        crate::support::eventually("all markers", async || {
            let heard = self.heard(|id| id.starts_with("marker"), |_| String::new());
            let heard: BTreeSet<&String> = heard.iter().collect();
            let ended = self.heard.lock().ended.clone();
            self.connected.iter().filter(|who| !ended.contains(*who)).all(|(user, device)| {
                Lane::ALL.iter().all(|lane| {
                    heard.contains(&format!("marker-{user}-{} to {user}/{device}", lane.as_str()))
                })
            })
        })
        .await;
    }
}

/// Asserts that both have the same lines, or says which are missing and which are not due.
pub(super) fn similar(found: &[String], expected: &[String]) {
    let without = |some: &[String], others: &[String]| {
        let mut left = others.to_vec();
        let mut only = some.to_vec();
        only.retain(|one| match left.iter().position(|other| other == one) {
            Some(at) => {
                left.swap_remove(at);
                false
            }
            None => true,
        });
        only.join("\n  ")
    };
    let (missing, surplus) = (without(expected, found), without(found, expected));
    assert!(missing.is_empty() && surplus.is_empty(), "missing:\n  {missing}\nnot due:\n  {surplus}");
}

/// Writes the members of each case's set.
pub(super) async fn write_members(context: &async_nats::jetstream::Context, cases: &[Case]) {
    for case in cases {
        for (user, role) in case.members() {
            let subject = format!("$KV.audience.{}.{}.{user}", case.to.as_str(), case.id);
            let body = json!({"role": role, "v": 1}).to_string();
            context.client().publish(subject, body.into()).await.expect("NATS takes it");
        }
    }
    context.client().flush().await.expect("NATS has it");
}

/// Publishes each case as its row wants it: with JetStream, or with core NATS what is never stored.
pub(super) async fn publish(context: &async_nats::jetstream::Context, cases: &[Case]) {
    for case in cases {
        let (subject, body) = (case.subject.clone(), case.envelope().to_string().into());
        if case.event.ephemeral {
            context.client().publish(subject, body).await.expect("NATS takes it");
        } else {
            let sent = context.publish(subject, body).await.expect("NATS takes it");
            sent.await.unwrap_or_else(|error| panic!("{}: {error}", case.id));
        }
    }
}
