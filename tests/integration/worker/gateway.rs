//! A gateway's workers on a nats-server of their own, and sessions that behave as a test wants.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_nats::HeaderMap;
use async_nats::jetstream::{self, Context};
use fanfare::catalog::Catalog;
use fanfare::delivery::evidence;
use fanfare::directory::Key;
use fanfare::id::{DeviceId, UserId};
use fanfare::pipeline::{Alone, Sessions};
use fanfare::protocol::Notification;
use fanfare::provision::{Env, apply_all};
use fanfare::session::{Push, Receipt, Receipts, Recipient};
use fanfare::worker;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::support::{NatsServer, queue, run};

pub(crate) fn unix_s() -> u64 {
    fanfare::clock::Now::read().unix_ms / 1_000
}

/// A message of a stream, read back.
pub(crate) struct Stored {
    pub(crate) subject: String,
    pub(crate) headers: HeaderMap,
    pub(crate) body: String,
    pub(crate) json: Value,
}

impl Stored {
    pub(crate) fn header(&self, name: &str) -> String {
        self.headers.get(name).map(|value| value.as_str().to_owned()).unwrap_or_default()
    }
}

/// What the sessions of a user do with a push.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Behaviour {
    Take,
    Ack,
    Silent,
    Lose,
    Full,
    Panic,
    /// Absent, after a while in which others could come.
    Slow,
}

/// Sessions as the test wants them.
#[derive(Default)]
pub(crate) struct Fake {
    users: HashMap<String, Behaviour>,
    taken: Mutex<usize>,
    offered: Mutex<Vec<(String, UserId)>>,
    held: Mutex<Vec<Receipt>>,
    slow: AtomicUsize,
    slow_at_once: AtomicUsize,
}

impl Fake {
    pub(crate) fn online(user: &str, behaviour: Behaviour) -> Self {
        Self::all_online([(user.to_owned(), behaviour)])
    }

    pub(crate) fn all_online(users: impl IntoIterator<Item = (String, Behaviour)>) -> Self {
        Self { users: users.into_iter().collect(), ..Self::default() }
    }

    /// Everybody whom notifications were offered to, with the event, in their order; absent users too.
    pub(crate) fn offered(&self) -> Vec<(String, UserId)> {
        self.offered.lock().clone()
    }

    /// The users whom `event` was offered to, sorted.
    pub(crate) fn offered_to(&self, event: &str) -> Vec<String> {
        let offered = self.offered();
        let mut users: Vec<String> =
            offered.into_iter().filter(|(name, _)| name == event).map(|(_, user)| user.to_string()).collect();
        users.sort();
        users
    }

    /// How many slow pushes there were at once, at most.
    pub(crate) fn slow_at_once(&self) -> usize {
        self.slow_at_once.load(Ordering::SeqCst)
    }

    pub(crate) fn taken(&self) -> usize {
        *self.taken.lock()
    }
}

impl Sessions for Fake {
    fn push(
        &self,
        note: &Arc<Notification>,
        recipient: &Recipient,
        receipts: Option<&Receipts>,
        _now: fanfare::clock::Now,
    ) -> Push {
        self.offered.lock().push((note.event.name.clone(), recipient.user.clone()));
        let Some(behaviour) = self.users.get(recipient.user.as_str()) else { return Push::Absent };
        *self.taken.lock() += 1;
        let receipt = receipts.map(|all| all.receipt(&recipient.user, &DeviceId::new("d1").unwrap()));
        match behaviour {
            Behaviour::Take | Behaviour::Lose => {}
            Behaviour::Ack => receipt.into_iter().for_each(Receipt::acked),
            Behaviour::Silent => self.held.lock().extend(receipt),
            Behaviour::Full => return Push::Full,
            Behaviour::Slow => {
                let now = self.slow.fetch_add(1, Ordering::SeqCst) + 1;
                self.slow_at_once.fetch_max(now, Ordering::SeqCst);
                std::thread::park_timeout(Duration::from_millis(50));
                self.slow.fetch_sub(1, Ordering::SeqCst);
                return Push::Absent;
            }
            Behaviour::Panic => panic!("the test wants it"),
        }
        Push::Accepted(1)
    }

    fn broadcast_part(&self, part: usize, note: &Arc<Notification>) -> Option<(usize, usize)> {
        if part > 0 {
            return None;
        }
        let all = self.users.keys().map(|user| (note.event.name.clone(), UserId::new(user).unwrap()));
        self.offered.lock().extend(all);
        Some((self.users.len(), 0))
    }
}

/// Workers on a server of their own.
pub(crate) struct Gateway {
    pub(crate) context: Context,
    pub(crate) sessions: Arc<Fake>,
    pub(crate) soft: CancellationToken,
    pub(crate) handle: Mutex<Option<worker::Handle>>,
    catalog: Arc<Catalog>,
    /// Writes evidence while it lives.
    writers: Mutex<Vec<evidence::Writer>>,
    server: NatsServer,
}

impl Gateway {
    /// A provisioned server and workers on it.
    pub(crate) async fn start(sessions: Fake) -> Self {
        let gateway = Self::prepare(sessions).await;
        gateway.work().await;
        gateway
    }

    /// A provisioned server.
    pub(crate) async fn prepare(sessions: Fake) -> Self {
        Self::prepare_with(sessions, Arc::new(Catalog::built_in().unwrap())).await
    }

    /// The same with another catalog.
    pub(crate) async fn prepare_with(sessions: Fake, catalog: Arc<Catalog>) -> Self {
        let server = NatsServer::start().await;
        let client = server.client().await;
        apply_all(&client, &catalog, Env::DEV).await.unwrap();
        Self {
            context: jetstream::new(client),
            sessions: Arc::new(sessions),
            soft: CancellationToken::new(),
            handle: Mutex::default(),
            catalog,
            writers: Mutex::default(),
            server,
        }
    }

    /// Starts one worker a lane.
    pub(crate) async fn work(&self) {
        let handle = self.work_until(self.soft.clone(), worker::Config::default()).await;
        *self.handle.lock() = Some(handle);
    }

    /// Starts one worker a lane, as configured beside that.
    pub(crate) async fn work_until(&self, soft: CancellationToken, config: worker::Config) -> worker::Handle {
        let catalog = self.catalog.clone();
        let config = worker::Config { high: 1, normal: 1, low: 1, drain_s: 1, ..config };
        let (client, sessions) = (self.context.client(), self.sessions.clone());
        let recorder = self.recorder(&config);
        worker::start(
            client,
            catalog,
            (sessions, Arc::new(Alone)),
            recorder,
            config,
            (worker::Duty::Pull, soft),
        )
        .await
        .unwrap()
    }

    /// Takes evidence until the gateway is dropped.
    pub(crate) fn recorder(&self, config: &worker::Config) -> evidence::Recorder {
        let (recorder, writer) = evidence::start(self.context.client(), &config.evidence, "node-1");
        self.writers.lock().push(writer);
        recorder
    }

    /// The program as an operator runs it on this server.
    pub(crate) async fn run(&self, args: &[&str]) -> (Option<i32>, String) {
        run(&self.server, args).await
    }

    /// Changes a stream's configuration as an operator could.
    pub(crate) async fn change(&self, stream: &str, change: impl FnOnce(&mut Value)) {
        let info: Value = self.request(&format!("STREAM.INFO.{stream}"), &json!({})).await;
        let mut config = info["config"].clone();
        change(&mut config);
        self.request(&format!("STREAM.UPDATE.{stream}"), &config).await;
    }

    pub(crate) async fn request(&self, path: &str, body: &Value) -> Value {
        let answer: Value = self.context.request(path.to_owned(), body).await.unwrap();
        assert!(answer["error"].is_null(), "{answer}");
        answer
    }

    pub(crate) async fn consumer_info(&self, name: &str) -> Value {
        self.request(&format!("CONSUMER.INFO.{}.{name}", queue(name)), &json!({})).await
    }

    pub(crate) async fn members(&self, of: &Key, count: usize) {
        for n in 0..count {
            let body = json!({"role": "member", "v": 1}).to_string();
            let subject = format!("$KV.audience.{}.u{n}", of.header());
            let client = self.context.client();
            client.publish(subject, body.into()).await.unwrap();
        }
        self.eventually("all members are there", async || self.count("KV_audience").await >= count as u64)
            .await;
    }

    pub(crate) async fn publish(&self, subject: &str, body: String) {
        self.context.publish(subject.to_owned(), body.into()).await.unwrap().await.unwrap();
    }

    pub(crate) async fn count(&self, stream: &str) -> u64 {
        let info = self.request(&format!("STREAM.INFO.{stream}"), &json!({})).await;
        info["state"]["messages"].as_u64().unwrap()
    }

    /// Messages in the work queues.
    pub(crate) async fn queued(&self) -> u64 {
        let mut queued = 0;
        for queue in fanfare::nats::QUEUES {
            queued += self.count(queue).await;
        }
        queued
    }

    /// Waits until the work queues are empty: every message has had its last word.
    pub(crate) async fn drained(&self) {
        self.eventually("the work queues are empty", async || self.queued().await == 0).await;
    }

    /// Waits for `count` messages in a stream and reads them.
    pub(crate) async fn records(&self, stream: &str, count: usize) -> Vec<Stored> {
        self.eventually(stream, async || self.count(stream).await >= count as u64).await;
        let stream = self.context.get_stream(stream).await.unwrap();
        let mut records = Vec::new();
        for seq in 1..=count as u64 {
            let message = stream.get_raw_message(seq).await.unwrap();
            let body = String::from_utf8(message.payload.to_vec()).unwrap();
            records.push(Stored {
                subject: message.subject.to_string(),
                headers: message.headers,
                json: serde_json::from_str(&body).unwrap_or_default(),
                body,
            });
        }
        records
    }

    pub(crate) async fn eventually(&self, what: &str, mut holds: impl AsyncFnMut() -> bool) {
        let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
        while !holds().await {
            assert!(tokio::time::Instant::now() < deadline, "not within 20 s: {what}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.soft.cancel();
    }
}
