//! `fanfare publish`: one notification from the command line, as a service would publish it.

use std::io::Read;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail};
use async_nats::HeaderMap;
use clap::Args;
use serde_json::{Value, json};

use crate::clock::Now;
use crate::config::Config;
use crate::demo::samples;

/// Arguments of `fanfare publish`.
#[derive(Debug, Args)]
pub(crate) struct Publish {
    /// Type of the notification, such as `friend.request`.
    #[arg(
        long = "type",
        value_name = "TYPE",
        required_unless_present = "samples",
        conflicts_with = "samples"
    )]
    event_type: Option<String>,
    /// The target: a user, group, conversation or call id, or `broadcast`.
    #[arg(long)]
    to: String,
    /// File with the payload (a JSON object), `-` for standard input; the built-in sample when absent.
    #[arg(long, value_name = "FILE", conflicts_with = "samples")]
    payload: Option<PathBuf>,
    /// Publish every built-in sample that is addressed to a user.
    #[arg(long)]
    samples: bool,
}

impl Publish {
    /// The service that would publish it; `None` for samples of several.
    pub(super) fn service(&self) -> Option<String> {
        let (service, _) = self.event_type.as_ref()?.split_once('.')?;
        crate::id::is_valid(service).then(|| service.to_owned())
    }
}

/// Time in which NATS says that a publish is denied: it answers nothing to one that it takes.
const DENIAL: Duration = Duration::from_millis(100);

/// Publishes and prints subject and id of each notification.
pub(crate) async fn run(args: &Publish, config: &Config) -> anyhow::Result<()> {
    let catalog = config.catalog.load()?;
    let client = crate::nats::connect(&config.nats).await?;
    let context = async_nats::jetstream::new(client.clone());
    let now_s = (Now::read().unix_ms / 1_000) as i64;
    let samples = samples::all();
    let chosen: Vec<(&str, Value)> = match &args.event_type {
        Some(event_type) => {
            let sample = samples.iter().find(|sample| sample.event_type == *event_type);
            let payload = match (&args.payload, sample) {
                (Some(file), _) => read(file)?,
                (None, Some(sample)) => sample.payload_at(now_s, &[]),
                (None, None) => bail!("there is no sample of {event_type}: give a payload with --payload"),
            };
            vec![(event_type, payload)]
        }
        None => samples
            .iter()
            .filter(|sample| sample.target.ends_with("user_id}"))
            .map(|sample| (sample.event_type.as_str(), sample.payload_at(now_s, &[])))
            .collect(),
    };
    for (event_type, payload) in chosen {
        let subject = format!("notification.{event_type}.{}", args.to);
        let (event, _) = catalog.by_subject(&subject).with_context(|| format!("publish on {subject}"))?;
        let id = uuid::Uuid::new_v4().to_string();
        let envelope = json!({
            "notification_id": id, "type": event_type, "timestamp": now_s, "payload": payload,
        });
        let body = envelope.to_string().into();
        if event.ephemeral {
            client.publish(subject.clone(), body).await?;
            client.flush().await?;
            tokio::time::sleep(DENIAL).await;
        } else {
            let mut headers = HeaderMap::new();
            headers.insert("Nats-Msg-Id", id.as_str());
            let stored = context.publish_with_headers(subject.clone(), headers, body).await?.await;
            stored.with_context(|| {
                format!("publish on {subject} (no stream takes it? run `fanfare provision apply`)")
            })?;
        }
        println!("{subject} {id}");
    }
    Ok(())
}

fn read(file: &PathBuf) -> anyhow::Result<Value> {
    let mut text = String::new();
    if file.as_os_str() == "-" {
        std::io::stdin().read_to_string(&mut text).context("read the payload from standard input")?;
    } else {
        text =
            std::fs::read_to_string(file).with_context(|| format!("read the payload {}", file.display()))?;
    }
    let payload: Value =
        serde_json::from_str(&text).with_context(|| format!("parse the payload {}", file.display()))?;
    if !payload.is_object() {
        bail!("the payload {} is not a JSON object", file.display());
    }
    Ok(payload)
}
