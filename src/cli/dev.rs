//! `fanfare dev`: NATS, service and demo page in one command; `--once` for a run with a verdict.

mod cluster;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use base64::Engine;
use clap::Args;

use crate::catalog::Catalog;
use crate::clock::Now;
use crate::config::Config;
use crate::demo::page::{Backstage, Page};
use crate::demo::stage::Stage;
use crate::demo::{NatsServer, once, scenario, story};
use crate::lifecycle::{Keys, Parts, Service};
use crate::provision::{self, Env};
use crate::telemetry::logs;
use crate::transport::auth::Verifier;
use crate::transport::tls::Identity;

/// Arguments of `fanfare dev`.
#[derive(Debug, Args)]
pub(super) struct DevArgs {
    /// Publish every sample event and a story of events that depend on each other, receive with real clients, print
    /// tables, exit 0 only if all is right.
    #[arg(long)]
    once: bool,
    /// Three nats-servers and three nodes, each a process that the page can kill, stop and start.
    #[arg(long, conflicts_with = "once")]
    cluster: bool,
    /// TCP port of the demo page on loopback; 0 picks a free one.
    #[arg(long, default_value_t = 8080)]
    port: u16,
    /// UDP address of the edge; with --cluster of the first one, the others have the next ports of loopback.
    #[arg(long, default_value = "127.0.0.1:4433")]
    listen: SocketAddr,
    /// Print one line of JSON with all addresses when ready, instead of text.
    #[arg(long)]
    json: bool,
    /// Folder with the built demo page.
    #[arg(long, default_value = "clients/web/dist/demo", value_name = "DIR")]
    web: PathBuf,
}

struct Running {
    service: Service,
    client: async_nats::Client,
    catalog: Arc<Catalog>,
    secret: Vec<u8>,
    certificate_hash: [u8; 32],
    /// Last, so that it goes last.
    nats: NatsServer,
}

/// Runs the development environment.
pub(super) async fn run(mut config: Config, args: DevArgs) -> anyhow::Result<ExitCode> {
    if args.once {
        // The table is what counts; a failure's reason is in the warnings.
        "warn".clone_into(&mut config.log.level);
        config.worker.call_timeout_s = once::CALL_TIMEOUT_S;
    }
    logs::install(&config.log);
    if args.cluster {
        return cluster::run(&config, args).await;
    }
    let listen = if args.once { SocketAddr::from(([127, 0, 0, 1], 0)) } else { args.listen };
    let running = start(config, listen, args.port).await?;
    if args.once { once(running).await } else { page(running, args).await }
}

async fn start(mut config: Config, listen: SocketAddr, page_port: u16) -> anyhow::Result<Running> {
    let nats = NatsServer::start().await?;
    config.nats.url.clone_from(&nats.url);
    config.edge.listen = listen;
    "dev".clone_into(&mut config.edge.node);
    config.worker.evidence.sample = 1.0;
    config.edge.allowed_origins = vec!["*".to_owned()];
    if page_port == 0 || listen.port() == 0 {
        config.admin.listen.set_port(0);
    }
    let catalog = Arc::new(config.catalog.load()?);
    let client = crate::nats::connect(&config.nats).await?;
    provision::apply_all(&client, &catalog, Env::DEV).await.context("provision the development streams")?;
    let identity = Identity::development()?;
    let certificate_hash = identity.sha256();
    let secret = uuid::Uuid::new_v4().simple().to_string().into_bytes();
    let verifier = Verifier::with_secret(&secret);
    let parts = Parts {
        config,
        catalog: catalog.clone(),
        keys: Some(Keys { identity, verifier }),
        client: client.clone(),
        cluster: crate::cluster::Settings::default(),
    };
    let service = parts.start().await?;
    Ok(Running { service, client, catalog, secret, certificate_hash, nats })
}

fn edge_address(service: &Service) -> SocketAddr {
    service.edge_address().expect("it has keys, so it serves devices")
}

async fn stage(running: &Running) -> anyhow::Result<Stage> {
    let context = async_nats::jetstream::new(running.client.clone());
    Ok(Stage::open(running.client.clone(), context, running.catalog.clone()).await?)
}

async fn once(mut running: Running) -> anyhow::Result<ExitCode> {
    let place = once::Place {
        edge: edge_address(&running.service),
        certificate_hash: running.certificate_hash,
        secret: running.secret.clone(),
    };
    let started = Now::read().instant;
    let stage = stage(&running).await?;
    let steps = [scenario::steps(), story::steps()].concat();
    let report = tokio::select! {
        report = once::run(&stage, &place, steps) => report?,
        part = running.service.failed() => anyhow::bail!("the {part} has ended before its time"),
    };
    running.service.stop().await;
    end(&running.client, running.nats).await;
    println!("{}", report.render());
    tracing::info!(seconds = started.elapsed().as_secs(), "done");
    Ok(if report.passed() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Ends the connection before its server, so that nobody is told of a loss that is meant.
async fn end(client: &async_nats::Client, nats: NatsServer) {
    // Fails only when it is closed already.
    let _ = client.drain().await;
    let closed = async {
        while client.connection_state() == async_nats::connection::State::Connected {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    // A server that hangs is not waited for: it is killed in the next line.
    let _ = tokio::time::timeout(Duration::from_secs(1), closed).await;
    drop(nats);
}

async fn page(running: Running, args: DevArgs) -> anyhow::Result<ExitCode> {
    let edge = edge_address(&running.service);
    let push_url = format!("https://127.0.0.1:{}/v1/push", edge.port());
    let stage = stage(&running).await?;
    stage.populate().await?;
    let backstage = Backstage {
        push_urls: vec![push_url.clone()],
        certificate_hash: running.certificate_hash,
        secret: running.secret.clone(),
        catalog: running.catalog.clone(),
        stage,
        folder: args.web,
        cluster: None,
    };
    let page = Page::start(args.port, backstage)
        .await
        .with_context(|| format!("serve the demo page on port {} (another one: --port)", args.port))?;
    let page_url = format!("http://localhost:{}", page.address.port());
    let admin = running.service.admin_address();
    if args.json {
        let hash = base64::engine::general_purpose::STANDARD.encode(running.certificate_hash);
        println!(
            "{}",
            serde_json::json!({
                "page": page_url, "push_url": push_url, "certificate_hash": hash,
                "nats_url": running.nats.url, "admin": format!("http://{admin}"),
            })
        );
    } else {
        println!("\n  Fanfare is running. Open {page_url} in Chrome, Edge or Firefox.\n");
        println!(
            "  push     {push_url}\n  nats     {}\n  metrics  http://{admin}/metrics\n",
            running.nats.url
        );
        println!("  Ctrl-C stops everything.");
    }
    let stopped = super::serve::until_stopped(running.service).await;
    drop(page);
    end(&running.client, running.nats).await;
    stopped.map(|()| ExitCode::SUCCESS)
}
