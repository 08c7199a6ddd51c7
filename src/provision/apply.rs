//! Sends a plan, change by change, and looks again. The only place from which a write can be reached.

use async_nats::Client;
use serde_json::{Value, json};

use super::observe::{REWIND_MIN, observe, parse, request};
use super::plan::{Action, Change, Plan, plan};
use super::{Desired, Error};

/// What was done.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// Streams and consumers that are new.
    pub created: usize,
    /// Streams and consumers that were changed.
    pub updated: usize,
    /// Streams and consumers that were as they should be.
    pub unchanged: usize,
}

/// Sends the changes of `plan` in order, then reads everything again and fails when something still differs.
/// After a failure half-way the next plan has what is left, except for rewinds of consumers that were changed.
/// Sends no write for an empty plan, and none at all for a plan with a change that cannot be made.
pub async fn apply(client: &Client, desired: &Desired, plan: &Plan) -> Result<Report, Error> {
    if plan.is_refused() {
        return Err(Error::Refused(plan.clone()));
    }
    let version = client.server_info().version;
    let rewinds = plan.changes.iter().any(|change| change.action == Action::Rewind);
    if rewinds && parse(&version) < REWIND_MIN {
        return Err(Error::NoRewind { found: version });
    }
    let mut report = Report { unchanged: plan.unchanged, ..Report::default() };
    for change in &plan.changes {
        let (subject, body) = message(change);
        request(client, &subject, &body).await?;
        tracing::info!(%subject, "provisioned");
        match change.action {
            Action::Create => report.created += 1,
            Action::Update => report.updated += 1,
            Action::Release | Action::Rewind | Action::Refuse => {}
        }
    }
    if !plan.is_empty() {
        verify(client, desired).await?;
    }
    Ok(report)
}

async fn verify(client: &Client, desired: &Desired) -> Result<(), Error> {
    let rest = plan(desired, &observe(client, desired).await?);
    if rest.is_empty() { Ok(()) } else { Err(Error::NotSettled(rest)) }
}

/// The API request for a change: subject and body.
fn message(change: &Change) -> (String, Value) {
    let stream = &change.stream;
    let config = Value::Object(change.config.clone());
    match (&change.consumer, change.action) {
        (None, Action::Create) => (format!("$JS.API.STREAM.CREATE.{stream}"), config),
        (None, _) => (format!("$JS.API.STREAM.UPDATE.{stream}"), config),
        (Some(consumer), Action::Rewind) => {
            (format!("$JS.API.CONSUMER.RESET.{stream}.{consumer}"), json!({ "seq": 1 }))
        }
        (Some(consumer), action) => {
            let action = if action == Action::Create { "create" } else { "update" };
            let body = json!({ "stream_name": stream, "config": config, "action": action });
            (format!("$JS.API.CONSUMER.CREATE.{stream}.{consumer}"), body)
        }
    }
}
