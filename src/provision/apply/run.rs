//! One apply under way: takes the steps one by one.

use std::time::Duration;

use async_nats::Client;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::consumer::Consumer;
use super::hold::{Holds, Quiet, signed};
use super::{Progress, stream};
use crate::provision::observe::{label, live_consumer, live_stream};
use crate::provision::step::{self, Step, What};
use crate::provision::{Error, Options};

/// Time between two looks while something is waited for.
const LOOK: Duration = Duration::from_millis(100);

/// Time between two reports of how much is left.
const REPORT: Duration = Duration::from_secs(2);

/// Time after which pauses are made longer, while something is waited for.
const RENEW: Duration = Duration::from_mins(5);

/// Time for giving back, all in all: a server that is gone would take five seconds for each request.
const GIVE_BACK: Duration = Duration::from_secs(30);

/// What a consumer's messages are in the way by.
pub(super) const IN_HAND: &str = "in hand that are not acknowledged";

/// One apply under way. When it is dropped half-way, what it has paused stays so for a while, and what it has closed until
/// the next apply.
pub struct Run<'a> {
    client: &'a Client,
    options: &'a Options,
    stop: &'a CancellationToken,
    progress: Progress<'a>,
    /// By which consumers say that this one is at them.
    id: String,
    holds: Holds,
    renewed: Instant,
}

impl std::fmt::Debug for Run<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Run").field("id", &self.id).field("holds", &self.holds).finish_non_exhaustive()
    }
}

impl<'a> Run<'a> {
    /// A run that has not begun. It ends early when `stop` is cancelled.
    pub fn new(
        client: &'a Client,
        options: &'a Options,
        stop: &'a CancellationToken,
        progress: Progress<'a>,
    ) -> Self {
        let id = uuid::Uuid::new_v4().to_string();
        Self { client, options, stop, progress, id, holds: Holds::default(), renewed: Instant::now() }
    }

    /// Sends one step and waits for what it says.
    pub async fn send(&mut self, step: &Step) -> Result<(), Error> {
        if self.stop.is_cancelled() {
            return Err(Error::Interrupted);
        }
        (self.progress)(&step.to_string());
        self.check(step).await?;
        self.holds.before(self.client, step).await?;
        match (&step.what, &step.consumer) {
            (What::AwaitEmpty, _) => self.wait(step, stream::UNTAKEN).await?,
            (What::Drain, _) => self.wait(step, IN_HAND).await?,
            (_, None) => stream::send(self.client, step).await?,
            (what, Some(name)) => {
                let step = Step { what: self.signed(what), ..step.clone() };
                Consumer { client: self.client, stream: &step.stream, name }.send(&step).await?;
            }
        }
        self.holds.after(step);
        Ok(())
    }

    /// After a failure: nobody should wait longer than needed.
    pub async fn give_back(&mut self) {
        let progress = &mut self.progress;
        let giving = self.holds.give_back(self.client, &self.id, |line| progress(line));
        if tokio::time::timeout(GIVE_BACK, giving).await.is_err() {
            (self.progress)("not everything could be given back: the server does not answer; apply again");
        }
    }

    fn signed(&self, what: &What) -> What {
        match what {
            What::CreateAgain(config) => What::CreateAgain(signed(config, &self.id)),
            What::Update(config) => What::Update(signed(config, &self.id)),
            What::Mark(config) => What::Mark(signed(config, &self.id)),
            What::Release(config) => What::Release(signed(config, &self.id)),
            What::Placed(config) => What::Placed(signed(config, &self.id)),
            other => other.clone(),
        }
    }

    /// Looks at a consumer that is held before it is changed: somebody else may have meanwhile.
    async fn check(&self, step: &Step) -> Result<(), Error> {
        let Some(hold) = self.holds.0.iter().find(|hold| hold.is_of(step)) else {
            return self.check_unheld(step).await;
        };
        let quiet = match &step.what {
            What::Pause { .. } | What::Resume(_) | What::Unmark(_) => Quiet::No,
            What::Update(_)
            | What::Release(_)
            | What::Bookmark(_)
            | What::Delete { .. }
            | What::Rewind
            | What::Return
            | What::Placed(_) => {
                if self.options.force {
                    Quiet::Paused
                } else {
                    Quiet::Drained
                }
            }
            _ => return Ok(()),
        };
        hold.check(self.client, &self.id, quiet).await
    }

    /// An update that needs no pause must not wipe out the marks of another apply.
    async fn check_unheld(&self, step: &Step) -> Result<(), Error> {
        let (What::Update(_), Some(name)) = (&step.what, &step.consumer) else { return Ok(()) };
        let info = Consumer { client: self.client, stream: &step.stream, name }.info().await?;
        if label(&live_consumer(&info).config, step::MIGRATING).is_some() {
            return Err(Error::Overtaken { place: step.place() });
        }
        Ok(())
    }

    /// How many messages are left of what `step` waits for.
    async fn left(&self, step: &Step) -> Result<u64, Error> {
        let Step { stream, consumer, .. } = step;
        match consumer {
            None => Ok(live_stream(&stream::info(self.client, stream).await?).messages),
            Some(name) => {
                let info = Consumer { client: self.client, stream, name }.info().await?;
                Ok(live_consumer(&info).unacknowledged)
            }
        }
    }

    /// Waits until nothing is left. With `force` it goes on after the time is over.
    async fn wait(&mut self, step: &Step, what: &'static str) -> Result<(), Error> {
        let started = Instant::now();
        let mut reported = started;
        loop {
            let left = self.left(step).await?;
            if left == 0 {
                return Ok(());
            }
            if started.elapsed() >= self.options.wait {
                if self.options.force {
                    (self.progress)(&format!("{}: going on with {left} messages {what}", step.place()));
                    return Ok(());
                }
                let seconds = self.options.wait.as_secs();
                return Err(Error::Busy { place: step.place(), left, what, seconds });
            }
            if reported.elapsed() >= REPORT {
                reported = Instant::now();
                (self.progress)(&format!("{}: {left} messages {what}", step.place()));
            }
            if self.renewed.elapsed() >= RENEW {
                self.renewed = Instant::now();
                for hold in &self.holds.0 {
                    hold.renew(self.client, &self.id).await?;
                }
            }
            tokio::select! {
                () = tokio::time::sleep(LOOK) => {}
                () = self.stop.cancelled() => return Err(Error::Interrupted),
            }
        }
    }
}
