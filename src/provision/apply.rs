//! Sends a plan, step by step, and looks again. The only place from which a write can be reached.
//!
//! `run` takes the steps one by one, `hold` knows what they hold up and gives it back, `consumer` and `stream` are the
//! requests.

mod consumer;
mod hold;
mod run;
mod stream;

use async_nats::Client;
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use super::observe::observe;
use super::plan::{Action, Options, Plan, plan};
use super::{Desired, Error};

pub use self::run::Run;

/// The server's code for a consumer or stream that is not there.
const NOT_FOUND: [u64; 2] = [10_014, 10_059];

/// Told what is going on, a line each.
pub type Progress<'a> = &'a mut (dyn FnMut(&str) + Send);

/// What was done.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// Streams and consumers that are new.
    pub created: usize,
    /// Streams and consumers that were changed.
    pub updated: usize,
    /// Streams and consumers that were deleted and made again.
    pub replaced: usize,
    /// Streams and consumers that are gone.
    pub deleted: usize,
    /// Streams and consumers that were as they should be.
    pub unchanged: usize,
}

/// Sends the steps of `plan` in order, then reads everything again and fails when something still differs. After a failure
/// half-way, or when `stop` is cancelled, what was held up is given back, and the next plan has what is left. Sends no write
/// for an empty plan, and none at all for a plan with a change that is refused.
pub async fn apply(
    client: &Client,
    desired: &Desired,
    plan: &Plan,
    options: &Options,
    stop: &CancellationToken,
    progress: Progress<'_>,
) -> Result<Report, Error> {
    if plan.is_refused() {
        return Err(Error::Refused(Box::new(plan.clone())));
    }
    let mut run = Run::new(client, options, stop, progress);
    for step in &plan.steps {
        if let Err(error) = run.send(step).await {
            run.give_back().await;
            return Err(error);
        }
        tracing::info!(%step, "provisioned");
    }
    if !plan.is_empty() {
        verify(client, desired, options).await?;
    }
    Ok(Report {
        created: plan.count(Action::Create),
        updated: plan.count(Action::Update) + plan.count(Action::Finish),
        replaced: plan.count(Action::Replace),
        deleted: plan.count(Action::Delete),
        unchanged: plan.unchanged,
    })
}

async fn verify(client: &Client, desired: &Desired, options: &Options) -> Result<(), Error> {
    let rest = plan(desired, &observe(client, desired).await?, options);
    if rest.is_empty() { Ok(()) } else { Err(Error::NotSettled(Box::new(rest))) }
}

/// An object that is gone is no failure of its deletion.
fn found(answer: Result<Value, Error>) -> Result<Option<Value>, Error> {
    match answer {
        Err(Error::Server { code, .. }) if NOT_FOUND.contains(&code) => Ok(None),
        other => other.map(Some),
    }
}
