//! What a run of steps holds up: consumers that it has paused, streams that it has closed; how long, for whom, and how it
//! is given back.

use async_nats::Client;
use serde_json::Value;

use super::consumer::{Consumer, PAUSE, PAUSE_UNPLACED};
use super::{found, stream};
use crate::provision::Error;
use crate::provision::observe::{label, live_consumer};
use crate::provision::plan::{editable, pause_before, unmarked};
use crate::provision::step::{self, Config, Step, What};

/// A stream or consumer that is held up.
#[derive(Debug)]
pub(super) struct Hold {
    /// The stream, and the consumer unless it is the stream itself.
    pub(super) stream: String,
    pub(super) consumer: Option<String>,
    /// The consumer carries our mark.
    marked: bool,
    /// The consumer is not at its place: it must not be resumed.
    unplaced: bool,
    /// Until when an operator had paused the consumer.
    before: Option<String>,
    /// What ends it, last first.
    back: Vec<What>,
}

impl Hold {
    pub(super) fn is_of(&self, step: &Step) -> bool {
        self.stream == step.stream && self.consumer == step.consumer
    }

    fn of(step: &Step) -> Self {
        let Step { stream, consumer, .. } = step.clone();
        Self { stream, consumer, marked: false, unplaced: false, before: None, back: Vec::new() }
    }

    fn step(&self, what: What) -> Step {
        Step { stream: self.stream.clone(), consumer: self.consumer.clone(), what }
    }

    fn of_consumer<'a>(&'a self, client: &'a Client) -> Option<Consumer<'a>> {
        self.consumer.as_deref().map(|name| Consumer { client, stream: &self.stream, name })
    }

    /// Has the pause last longer.
    pub(super) async fn renew(&self, client: &Client, id: &str) -> Result<(), Error> {
        let Some(consumer) = self.of_consumer(client) else { return Ok(()) };
        self.check(client, id, Quiet::Paused).await?;
        let time = if self.unplaced { PAUSE_UNPLACED } else { PAUSE };
        consumer.pause(time, self.before.as_deref()).await.map(drop)
    }

    /// Fails when the consumer is no longer ours to change: another apply is at it, or, where it has to be quiet for what
    /// comes, somebody has resumed it.
    pub(super) async fn check(&self, client: &Client, id: &str, quiet: Quiet) -> Result<(), Error> {
        let Some(consumer) = self.of_consumer(client) else { return Ok(()) };
        let Some(info) = found(consumer.info().await)? else { return Ok(()) };
        let live = live_consumer(&info);
        let place = || self.step(What::Drain).place();
        if self.marked && label(&live.config, step::MIGRATED_BY) != Some(id) {
            return Err(Error::Overtaken { place: place() });
        }
        match quiet {
            Quiet::No => Ok(()),
            _ if live.paused_until.is_none() => Err(Error::NotPaused { place: place() }),
            Quiet::Drained if live.unacknowledged > 0 => Err(Error::Busy {
                place: place(),
                left: live.unacknowledged,
                what: super::run::IN_HAND,
                seconds: 0,
            }),
            Quiet::Paused | Quiet::Drained => Ok(()),
        }
    }

    /// What ends it now, last first: what nobody else has ended or taken over.
    pub(super) async fn ending(&self, client: &Client, id: &str) -> Result<Vec<Step>, Error> {
        let Some(consumer) = self.of_consumer(client) else {
            let Some(info) = found(stream::info(client, &self.stream).await)? else { return Ok(Vec::new()) };
            let is_closed = stream::is_closed(&self.stream, &info);
            return Ok(self.back.iter().filter(|_| is_closed).map(|what| self.step(what.clone())).collect());
        };
        let Some(info) = found(consumer.info().await)? else { return Ok(Vec::new()) };
        let live = live_consumer(&info);
        let is_ours = label(&live.config, step::MIGRATED_BY) == Some(id);
        // Also what does not seem to be paused: the leader of a cluster may not have heard of our pause yet.
        Ok(self.back.iter().rev().filter(|_| is_ours).map(|what| self.step(what.clone())).collect())
    }
}

/// What a consumer must be for a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Quiet {
    /// It may hand out.
    No,
    /// It hands out nothing; what is in hand is accepted.
    Paused,
    /// It hands out nothing, and nothing is in hand.
    Drained,
}

/// Everything that is held up.
#[derive(Debug, Default)]
pub(super) struct Holds(pub(super) Vec<Hold>);

impl Holds {
    fn entry(&mut self, step: &Step) -> &mut Hold {
        let at = self.0.iter().position(|hold| hold.is_of(step)).unwrap_or_else(|| {
            self.0.push(Hold::of(step));
            self.0.len() - 1
        });
        &mut self.0[at]
    }

    /// Notes how to end what `step` is about to hold up, before it is sent: its answer may be lost.
    pub(super) async fn before(&mut self, client: &Client, step: &Step) -> Result<(), Error> {
        match (&step.what, &step.consumer) {
            (What::Mark(config), Some(name)) => {
                let info = Consumer { client, stream: &step.stream, name }.info().await?;
                let live = live_consumer(&info).config;
                if unmarked(&editable(&live)) != unmarked(config) {
                    return Err(Error::Overtaken { place: step.place() });
                }
                let hold = self.entry(step);
                hold.marked = true;
                // What an earlier apply left half-done stays marked.
                if label(&live, step::MIGRATING).is_none() {
                    hold.back.push(What::Unmark(editable(&live)));
                }
            }
            (What::Pause { before, unplaced }, _) => {
                let hold = self.entry(step);
                (hold.before, hold.unplaced) = (before.clone(), *unplaced);
                if !unplaced {
                    hold.back.push(What::Resume(before.clone()));
                }
            }
            (What::CreateAgain(config), Some(_)) => {
                let hold = self.entry(step);
                (hold.marked, hold.unplaced, hold.before) = (true, true, pause_before(config));
            }
            (What::Close(_, open), _) => self.entry(step).back.push(What::Open(open.clone())),
            // With interest a message would be gone while there are no consumers: then it stays closed, and publishers know.
            (What::CreateClosed(config), _)
                if config.get("retention").is_none_or(|one| one != "interest") =>
            {
                self.entry(step).back.push(What::Open(config.clone()));
            }
            // From here on it is another one than it was.
            (What::Update(_) | What::Release(_), Some(_)) => {
                if let Some(hold) = self.0.iter_mut().find(|hold| hold.is_of(step)) {
                    hold.back.retain(|what| !matches!(what, What::Unmark(_)));
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// Forgets what `step` has ended.
    pub(super) fn after(&mut self, step: &Step) {
        match (&step.what, &step.consumer) {
            (What::Delete { .. } | What::Unmark(_) | What::Open(_), _) => {
                self.0.retain(|hold| !hold.is_of(step));
            }
            (What::Placed(_), _) => {
                let hold = self.entry(step);
                hold.unplaced = false;
                hold.back.push(What::Resume(hold.before.clone()));
            }
            (What::Resume(_), _) => self.entry(step).back.clear(),
            _ => {}
        }
    }

    /// Gives everything back, also when something of it fails. Pauses that could not be ended end by themselves.
    pub(super) async fn give_back(&mut self, client: &Client, id: &str, mut said: impl FnMut(&str)) {
        for hold in std::mem::take(&mut self.0).into_iter().rev() {
            if let Err(error) = hold.give_back(client, id, &mut said).await {
                let place = hold.step(What::Drain).place();
                tracing::warn!(%error, %place, "could not be given back");
                said(&format!("{place} could not be given back; apply again: {error}"));
            }
        }
    }
}

impl Hold {
    async fn give_back(&self, client: &Client, id: &str, said: &mut impl FnMut(&str)) -> Result<(), Error> {
        for step in self.ending(client, id).await? {
            said(&format!("giving up: {step}"));
            match (&step.what, self.of_consumer(client)) {
                (_, Some(consumer)) => consumer.send(&step).await?,
                (_, None) => stream::send(client, &step).await?,
            }
        }
        Ok(())
    }
}

/// A consumer's configuration with the label of who is migrating it, where it is being migrated.
pub(super) fn signed(config: &Config, id: &str) -> Config {
    let mut config = config.clone();
    if let Some(labels) = config.get_mut("metadata").and_then(Value::as_object_mut)
        && labels.contains_key(step::MIGRATING)
    {
        labels.insert(step::MIGRATED_BY.to_owned(), id.into());
    }
    config
}
