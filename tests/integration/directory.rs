//! Audiences against a real nats-server: whole populations come in, and members are found.

mod import;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_nats::Client;
use async_nats::jetstream;
use fanfare::catalog::{Catalog, Kind, Role};
use fanfare::directory::{Change, Config, Directory, Key, LookupError, Row, Source, Writer, write_all};
use fanfare::id::UserId;
use fanfare::provision::{Env, apply_all};
use futures::StreamExt;
use futures::future::join_all;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::support::NatsServer;

const V: u64 = 1_700_000_000_000_000;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_cold_audiences_asked_at_once_are_all_found() {
    let server = provisioned().await;
    let directory = directory(&server, &Config::default()).await;
    let writer = Writer::open(jetstream::new(server.client().await)).await.unwrap();
    let rows = (0..3_000_u64).map(|n| (n, row(&format!("g{}", n / 3), &format!("u{n}"))));
    let written: Vec<_> = write_all(&writer, V, futures::stream::iter(rows)).collect().await;
    assert!(written.iter().all(|result| result.as_ref().is_ok_and(|imported| imported.written)));

    let keys: Vec<Key> = (0..1_000).map(|n| group(&format!("g{n}"))).collect();
    let found = join_all(keys.iter().map(|key| directory.members(key))).await;

    for (n, members) in found.into_iter().enumerate() {
        let members = members.unwrap();
        let users: Vec<&str> = members.iter().map(|(user, _)| user.as_str()).collect();
        let mut expected: Vec<String> = (3 * n..3 * n + 3).map(|n| format!("u{n}")).collect();
        expected.sort();
        assert_eq!(users, expected);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_is_asked_once_for_an_audience_that_many_need() {
    let server = provisioned().await;
    let service = Service::start(server.client().await).await;
    let config = Config { source: Source::Request, ..Config::default() };
    let directory = directory(&server, &config).await;

    let (group, conversation) = (group("g1"), Key::new(Kind::Conversation, "c1").unwrap());
    let found = join_all((0..50).map(|_| directory.members(&conversation))).await;
    assert!(found.into_iter().all(|members| members.unwrap().len() == 2));
    let members = directory.members(&group).await.unwrap();
    assert_eq!(members.role(&UserId::new("ann").unwrap()), Some(Role::Owner));
    assert_eq!(service.asked.load(Ordering::Relaxed), 2, "once for the conversation, once for its group");
    for (key, users_max, known) in [(&group, 2, Some(2)), (&conversation, 2, Some(2)), (&group, 1, None)] {
        let members = directory.known(key, users_max);
        assert_eq!(members.map(|members| members.len()), known, "{key:?}, up to {users_max}");
    }
    assert!(directory.known(&Key::new(Kind::Group, "g2").unwrap(), 2).is_none(), "nobody asked for it yet");

    // What is written later than the answer is applied to it, and what is older is not.
    let writer = Writer::open(jetstream::new(server.client().await)).await.unwrap();
    for (user, v) in [("late", V + 1), ("early", V - 1)] {
        let change = Change::Member { user: UserId::new(user).unwrap(), role: Some(Role::Member), v };
        writer.write(&group, &change).await.unwrap();
    }
    let deadline = tokio::time::Instant::now() + Duration::from_secs(5);
    while directory.members(&group).await.unwrap().len() < 3 {
        assert!(tokio::time::Instant::now() < deadline);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(directory.members(&group).await.unwrap().role(&UserId::new("early").unwrap()).is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_that_does_not_know_differs_from_one_that_cannot_say() {
    let server = provisioned().await;
    let config = Config { source: Source::Request, request_timeout_ms: 1_500, ..Config::default() };
    let directory = directory(&server, &config).await;
    let error = directory.members(&group("g1")).await.unwrap_err();
    assert!(
        matches!(&error, LookupError::Load(_)) && error.to_string().contains("nobody answers"),
        "{error}"
    );

    let _service = Service::start(server.client().await).await;
    assert!(matches!(directory.members(&group("never")).await, Err(LookupError::Unknown(_))));
    assert!(directory.members(&group("empty")).await.unwrap().is_empty());
    for (id, text) in [("broken", "the service says: on fire"), ("silent", "no answer within")] {
        let error = directory.members(&group(id)).await.unwrap_err();
        assert!(matches!(&error, LookupError::Load(_)) && error.to_string().contains(text), "{error}");
    }
    // Calls are filled by the gateway, so nobody else is asked for them.
    let call = Key::new(Kind::Call, "k1").unwrap();
    assert!(matches!(directory.members(&call).await, Err(LookupError::Unknown(_))));
}

/// A service that owns memberships.
struct Service {
    asked: Arc<AtomicUsize>,
    _task: JoinSet<()>,
}

impl Service {
    async fn start(client: Client) -> Self {
        let mut questions = client.subscribe("audience.resolve.*").await.unwrap();
        // An answer to what was sent after it says that the server knows the subscription; a flush does not.
        jetstream::new(client.clone()).query_account().await.unwrap();
        let asked = Arc::new(AtomicUsize::new(0));
        let (count, mut task) = (asked.clone(), JoinSet::new());
        task.spawn(async move {
            while let Some(question) = questions.next().await {
                count.fetch_add(1, Ordering::Relaxed);
                let body: Value = serde_json::from_slice(&question.payload).unwrap();
                let answer = match (body["kind"].as_str().unwrap(), body["id"].as_str().unwrap()) {
                    ("conversation", "c1") => json!({"group": "g1", "v": V}),
                    ("group", "g1") => {
                        json!({"members": [{"user": "ann", "role": "owner"}, {"user": "bob"}], "v": V})
                    }
                    ("group", "empty") => json!({"members": []}),
                    ("group", "broken") => json!({"error": "on fire"}),
                    ("group", "silent") => continue,
                    _ => json!({"error": "not_found"}),
                };
                client.publish(question.reply.unwrap(), answer.to_string().into()).await.unwrap();
            }
        });
        Self { asked, _task: task }
    }
}

/// A directory and the task that keeps it current.
struct Found {
    directory: Arc<Directory>,
    _task: JoinSet<()>,
}

impl std::ops::Deref for Found {
    type Target = Directory;

    fn deref(&self) -> &Directory {
        &self.directory
    }
}

async fn directory(server: &NatsServer, config: &Config) -> Found {
    let client = server.client().await;
    let directory = Arc::new(Directory::new(client.clone(), jetstream::new(client), config));
    let (follower, writes, mut task) =
        (directory.clone(), directory.subscribe().await.unwrap(), JoinSet::new());
    task.spawn(async move { follower.follow(writes).await });
    Found { directory, _task: task }
}

async fn provisioned() -> NatsServer {
    let server = NatsServer::start().await;
    apply_all(&server.client().await, &Catalog::built_in().unwrap(), Env::DEV).await.unwrap();
    server
}

fn group(id: &str) -> Key {
    Key::new(Kind::Group, id).unwrap()
}

fn row(id: &str, user: &str) -> Row {
    Row { of: group(id), user: UserId::new(user).unwrap(), role: Role::Member }
}

/// Who is in the bucket.
async fn in_bucket(server: &NatsServer, id: &str) -> BTreeMap<String, Role> {
    let writer = Writer::open(jetstream::new(server.client().await)).await.unwrap();
    let members = writer.read(&group(id)).await.unwrap();
    members.iter().map(|(user, role)| (user.to_string(), role)).collect()
}
