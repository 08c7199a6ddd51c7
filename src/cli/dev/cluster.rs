//! `fanfare dev --cluster`: three nats-servers, three nodes and the demo page, which can end and start each of them.

use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context;
use base64::Engine;
use serde_json::json;
use tokio::sync::Mutex;

use super::DevArgs;
use crate::config::Config;
use crate::demo::cluster::{Cluster, Settings};
use crate::demo::nats_server::NatsCluster;
use crate::demo::page::{Backstage, Page};
use crate::demo::stage::Stage;
use crate::provision::{self, Declarations, Env};
use crate::transport::tls::{self, Identity};

/// Runs until a signal comes, also while it starts. Whatever is dropped here is killed.
pub(super) async fn run(config: &Config, args: DevArgs) -> anyhow::Result<ExitCode> {
    let (page, cluster) = tokio::select! {
        started = start(config, args) => started?,
        stopped = crate::cli::serve::signal() => {
            stopped.context("listen for signals")?;
            return Ok(ExitCode::SUCCESS);
        }
    };
    crate::cli::serve::signal().await.context("listen for signals")?;
    drop(page);
    let second = tokio::select! {
        () = async { cluster.lock().await.stop().await } => false,
        _ = crate::cli::serve::signal() => true,
    };
    if second {
        cluster.lock().await.kill().await;
        anyhow::bail!("stopped by a second signal before the drain was over");
    }
    Ok(ExitCode::SUCCESS)
}

async fn start(config: &Config, args: DevArgs) -> anyhow::Result<(Page, Arc<Mutex<Cluster>>)> {
    let catalog = Arc::new(config.catalog.load()?);
    let secret = uuid::Uuid::new_v4().simple().to_string().into_bytes();
    let file =
        config.catalog.file.as_ref().map(std::path::absolute).transpose().context("find the catalog")?;
    let settings = Settings { first_port: args.listen.port(), secret: secret.clone(), catalog: file };
    let mut cluster = Cluster::start(settings).await?;
    let mut nats = config.nats.clone();
    cluster.nats_url().clone_into(&mut nats.url);
    let client = crate::nats::connect(&nats).await?;
    let desired =
        Declarations::built_in()?.desired(&catalog, Env::DEV)?.with_replicas(NatsCluster::SIZE as u8);
    provision::apply_desired(&client, &catalog, &desired)
        .await
        .context("provision the development streams")?;
    cluster.start_nodes().await?;

    let (certificate, key) = cluster.certificate();
    let certificate_hash = Identity::load(&tls::Config { certificate, key })?.sha256();
    let addresses = cluster.addresses();
    let push_urls: Vec<_> =
        addresses.iter().map(|(edge, _)| format!("https://127.0.0.1:{}/v1/push", edge.port())).collect();
    let context = async_nats::jetstream::new(client.clone());
    let stage = Stage::open(client, context, catalog.clone()).await?;
    stage.populate().await?;
    let nats_url = cluster.nats_url().to_owned();
    let cluster = Arc::new(Mutex::new(cluster));
    let backstage = Backstage {
        push_urls: push_urls.clone(),
        certificate_hash,
        secret,
        catalog,
        stage,
        folder: args.web,
        cluster: Some(cluster.clone()),
    };
    let page = Page::start(args.port, backstage)
        .await
        .with_context(|| format!("serve the demo page on port {} (another one: --port)", args.port))?;
    let page_url = format!("http://localhost:{}", page.address.port());
    let admin: Vec<_> = addresses.iter().map(|(_, admin)| format!("http://{admin}")).collect();
    if args.json {
        let hash = base64::engine::general_purpose::STANDARD.encode(certificate_hash);
        println!(
            "{}",
            json!({
                "page": page_url, "push_urls": push_urls, "certificate_hash": hash, "nats_url": nats_url,
                "admin": admin,
            })
        );
    } else {
        println!("\n  Three nodes are running. Open {page_url} in Chrome, Edge or Firefox.\n");
        println!("  push     {}\n  nats     {nats_url}", push_urls.join(" "));
        println!(
            "  metrics  {}\n",
            admin.iter().map(|url| format!("{url}/metrics")).collect::<Vec<_>>().join(" ")
        );
        println!("  Ctrl-C stops everything.");
    }
    Ok((page, cluster))
}
