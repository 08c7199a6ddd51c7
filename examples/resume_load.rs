//! Measures what it costs that very many clients come back at once and fetch what they missed, against the same number
//! that come without a past.
//!
//!     cargo run --release --example resume_load
//!
//! Needs `nats-server` (the variable NATS_SERVER or the path). Everything runs in this process on loopback: NATS beside
//! it, the gateway, and the clients, so the figures are of all of them together. An argument is the number of clients.

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_nats::jetstream;
use async_nats::jetstream::message::PublishMessage;
use fanfare::catalog::Catalog;
use fanfare::client::{self, Bind, Client, Endpoint, Tokens, Trust};
use fanfare::clock::Now;
use fanfare::cluster::Settings;
use fanfare::config::Config;
use fanfare::demo::NatsServer;
use fanfare::id::UserId;
use fanfare::lifecycle::{Keys, Parts, Service};
use fanfare::provision::{Env, apply_all};
use fanfare::transport::auth::{Verifier, sign_hs256};
use fanfare::transport::tls::Identity;
use futures::StreamExt;
use tokio::task::JoinSet;

const SECRET: &[u8] = b"a secret of 32 bytes or more, for loads";

/// Notifications that each client missed.
const MISSED: usize = 5;

type Failed = Box<dyn std::error::Error + Send + Sync>;

#[tokio::main]
async fn main() -> Result<(), Failed> {
    let clients: usize = std::env::args().nth(1).map_or(Ok(10_000), |text| text.parse())?;
    let nats = NatsServer::start().await?;
    let mut config = Config::default();
    config.nats.url.clone_from(&nats.url);
    config.edge.listen = ([127, 0, 0, 1], 0).into();
    config.admin.listen.set_port(0);
    // What is measured is the inbox, not how a node defends itself against so many handshakes.
    (config.edge.handshakes_per_s, config.edge.handshakes_max) = (20_000, 20_000);
    let catalog = Arc::new(Catalog::built_in()?);
    let nats_client = fanfare::nats::connect(&config.nats).await?;
    apply_all(&nats_client, &catalog, Env::DEV).await?;
    let identity = Identity::development()?;
    let trust = Trust::CertificateHashes(vec![identity.sha256()]);
    let verifier = Verifier::with_secret(SECRET);
    let client = nats_client.clone();
    let parts = Parts {
        config,
        catalog,
        keys: Some(Keys { identity, verifier }),
        client,
        cluster: Settings::default(),
    };
    let service = parts.start().await?;
    let world = World {
        url: format!("https://{}/v1/push", service.edge_address().expect("it serves devices")),
        trust,
    };

    let (_, before) = world.connect("first", None, &Endpoint::bind(Bind::Loopback)?).await?;
    publish(nats_client, clients).await?;
    for (name, resume) in [("without a past", None), ("with a past", Some(before))] {
        run(&world, name, clients, resume).await?;
        // The sessions of one run have ended before the next begins.
        tokio::time::sleep(Duration::from_secs(5)).await;
    }
    Service::stop(service).await;
    Ok(())
}

struct World {
    url: String,
    trust: Trust,
}

impl World {
    /// A client with an open session, and the cursor of its welcome.
    async fn connect(
        &self,
        user: &str,
        resume: Option<String>,
        endpoint: &Endpoint,
    ) -> Result<(Client, String), Failed> {
        let token = sign_hs256(SECRET, &UserId::new(user)?, Now::read(), Duration::from_hours(1));
        let mut config = client::Config::new(&self.url, "device", Tokens::fixed(token), self.trust.clone());
        config.endpoint = Some(endpoint.clone());
        config.resume = resume;
        let mut client = Client::connect(config)?;
        let welcome = client.live().await.map_err(|closed| closed.to_string())?;
        Ok((client, welcome.inbox))
    }
}

/// Publishes what each user misses, and waits until the inbox has it.
async fn publish(client: async_nats::Client, clients: usize) -> Result<(), Failed> {
    let context = jetstream::context::ContextBuilder::new().backpressure_on_inflight(true).build(client);
    let started = Instant::now();
    let publishes = futures::stream::iter(0..clients * MISSED).map(|n| {
        let context = &context;
        async move {
            let subject = format!("notification.message.new.user-{}", n / MISSED);
            let body = format!(
                r#"{{"notification_id":"n{n}","type":"message.new","payload":{{"content":"{}"}}}}"#,
                "x".repeat(300)
            );
            let message = PublishMessage::build().payload(body.into());
            context.send_publish(subject, message).await?.await?;
            Ok::<_, Failed>(())
        }
    });
    let mut publishes = Box::pin(publishes.buffer_unordered(256));
    while let Some(published) = publishes.next().await {
        published?;
    }
    while context.get_stream("NOTIFICATIONS").await?.cached_info().state.messages > 0 {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    println!("{} notifications in inboxes after {:.1} s", clients * MISSED, started.elapsed().as_secs_f64());
    Ok(())
}

/// Connects all clients at once; with a past, each waits for what it missed.
async fn run(world: &World, name: &str, clients: usize, resume: Option<String>) -> Result<(), Failed> {
    let started = Instant::now();
    let mut tasks = JoinSet::new();
    let mut endpoint = Endpoint::bind(Bind::Loopback)?;
    let world = Arc::new(World { url: world.url.clone(), trust: world.trust.clone() });
    for n in 0..clients {
        if n % 500 == 0 {
            endpoint = Endpoint::bind(Bind::Loopback)?;
        }
        let (world, endpoint, resume) = (world.clone(), endpoint.clone(), resume.clone());
        tasks.spawn(async move {
            let expected = if resume.is_some() { MISSED } else { 0 };
            let (mut client, _) = world.connect(&format!("user-{n}"), resume, &endpoint).await?;
            let live = started.elapsed();
            for _ in 0..expected {
                client.notification().await.map_err(|closed| closed.to_string())?;
            }
            Ok::<_, Failed>((live, started.elapsed(), client))
        });
    }
    let mut live = Vec::new();
    let mut done = Vec::new();
    let mut open = Vec::new();
    while let Some(joined) = tasks.join_next().await {
        let (at, end, client) = joined??;
        live.push(at);
        done.push(end);
        open.push(client);
    }
    live.sort_unstable();
    done.sort_unstable();
    let at = |times: &[Duration], share: usize| times[(times.len() - 1) * share / 100].as_secs_f64();
    println!(
        "{clients} {name}: live p50 {:.2} s, p99 {:.2} s, last {:.2} s; had all p50 {:.2} s, p99 {:.2} s, last {:.2} s",
        at(&live, 50),
        at(&live, 99),
        at(&live, 100),
        at(&done, 50),
        at(&done, 99),
        at(&done, 100)
    );
    Ok(())
}
