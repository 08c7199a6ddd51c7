//! `fanfare listen`: a device on the command line, to see what a user gets.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail};
use base64::Engine;
use clap::{Args, ValueEnum};

use crate::catalog::Catalog;
use crate::client::{Client, Event, Received, Tokens, Trust, Why};
use crate::config::Config;
use crate::id::UserId;
use crate::protocol::Encoding;

/// Arguments of `fanfare listen`.
#[derive(Debug, Args)]
pub(crate) struct Listen {
    /// The user to listen as.
    #[arg(long, value_parser = UserId::new)]
    user: UserId,
    /// Where the edge is: `https://HOST:PORT/v1/push`, or `quic://HOST:PORT`.
    #[arg(long, default_value = "https://127.0.0.1:4433/v1/push")]
    url: String,
    /// A token; one is signed with the configured HS256 key when absent.
    #[arg(long)]
    token: Option<String>,
    /// Certificates (PEM) to trust: a root, or the server's own. The configured certificate when absent.
    #[arg(long, value_name = "FILE", conflicts_with = "certificate_hash")]
    ca: Option<PathBuf>,
    /// SHA-256 of the server's certificate in base64, as `fanfare dev` prints it.
    #[arg(long, value_name = "BASE64")]
    certificate_hash: Option<String>,
    /// Device to listen as; it ends another session of the same device.
    #[arg(long, default_value = "fanfare-listen")]
    device: String,
    /// Encoding on the wire.
    #[arg(long, value_enum, default_value = "json")]
    encoding: Wire,
    /// One JSON object a line.
    #[arg(long)]
    json: bool,
    /// End after so many notifications.
    #[arg(long)]
    count: Option<u64>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Wire {
    Json,
    Msgpack,
}

/// Prints notifications until the count is reached, a signal comes, or the server says not to come back.
pub(crate) async fn run(args: Listen, config: &Config) -> anyhow::Result<()> {
    let token = match &args.token {
        Some(token) => token.clone(),
        None => super::token::sign(config, &args.user, Duration::from_hours(24))?,
    };
    let catalog = config.catalog.load()?;
    let trust = trust(&args, config)?;
    let mut settings =
        crate::client::Config::new(args.url.clone(), args.device.clone(), Tokens::fixed(token), trust);
    settings.encoding = match args.encoding {
        Wire::Json => Encoding::Json,
        Wire::Msgpack => Encoding::Msgpack,
    };
    let mut client = Client::connect(settings)?;
    let mut left = args.count.unwrap_or(u64::MAX);
    while left > 0 {
        let event = tokio::select! {
            event = client.next() => event,
            signal = super::serve::signal() => {
                signal.context("wait for signals")?;
                break;
            }
        };
        match event {
            Some(Event::Notification(received)) => {
                print(&catalog, *received, args.json);
                left -= 1;
            }
            Some(Event::Repeated(_)) => {}
            Some(Event::Live(welcome)) => {
                eprintln!("live as {} on {}, session {}", welcome.user_id, welcome.node, welcome.session_id);
            }
            Some(Event::Waiting { why, delay }) => {
                let why = match why {
                    Why::Closed(closed) => closed.to_string(),
                    Why::Goaway { reason } => format!("the server asks to move: {reason}"),
                };
                eprintln!("{why}; connecting again in {:.1} s", delay.as_secs_f64());
            }
            Some(Event::Closed(closed)) => bail!("{closed}"),
            None => bail!("the client ended"),
        }
    }
    client.close().await;
    Ok(())
}

fn trust(args: &Listen, config: &Config) -> anyhow::Result<Trust> {
    if let Some(hash) = &args.certificate_hash {
        let bytes = base64::engine::general_purpose::STANDARD
            .decode(hash)
            .context("--certificate-hash is not base64")?;
        let hash = bytes.try_into().ok().context("--certificate-hash is not the SHA-256 of a certificate")?;
        return Ok(Trust::CertificateHashes(vec![hash]));
    }
    let file = args.ca.as_ref().unwrap_or(&config.edge.tls.certificate);
    if file.as_os_str().is_empty() {
        bail!("which server to trust? give --ca FILE or --certificate-hash BASE64");
    }
    let pem = std::fs::read_to_string(file).with_context(|| format!("read {}", file.display()))?;
    Ok(Trust::Roots(pem))
}

/// Prints one notification without the secrets in it: a terminal is a listing, and scrolls into logs.
fn print(catalog: &Catalog, mut received: Received, json: bool) {
    if let (Some(event), Some(payload)) =
        (catalog.get(&received.notification_type), received.payload.as_object_mut())
    {
        event.remove_secrets(payload);
    }
    let lane = received.lane.map_or("datagram", |lane| lane.as_str());
    let latency_ms = received.received_at_ms.saturating_sub(received.published_at_ms);
    if json {
        println!(
            "{}",
            serde_json::json!({
                "lane": lane, "latency_ms": latency_ms, "notification_id": received.notification_id,
                "notification_type": received.notification_type, "timestamp": received.timestamp,
                "published_at_ms": received.published_at_ms, "from_user_id": received.from_user_id,
                "priority": received.priority, "require_ack": received.require_ack,
                "payload": received.payload,
            })
        );
    } else {
        println!("{lane:<8} {latency_ms:>6} ms  {:<28} {}", received.notification_type, received.payload);
    }
}
