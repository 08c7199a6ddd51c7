//! The difference between what is wanted and what exists, as changes to be shown and steps to be sent. Pure; empty when
//! nothing differs.
//!
//! `diff` finds the fields that differ, `class` says what each does, `order` makes steps of the changes, `show` and `json`
//! write it all down.

pub mod class;
mod diff;
mod json;
mod order;
mod refuse;
mod show;
#[cfg(test)]
mod tests;

use std::time::Duration;

use serde_json::{Map, Value};

use self::diff::{differences, filters, updated};
use super::observe::{is_ours, label, parse};
use super::step::{self, Step};
use super::{Desired, Live, LiveConsumer, LiveStream, Wanted, units};

pub(super) use self::diff::{editable, texts};
pub(super) use self::order::{pause_before, unmarked};

pub use self::class::Class;
pub use self::diff::Difference;
pub use self::show::Painted;

/// The fields that say where a consumer begins.
const STARTS: [&str; 3] = ["deliver_policy", "opt_start_seq", "opt_start_time"];

/// Oldest server that can bring a consumer to another place in its stream.
const RESET_MIN: (u64, u64, u64) = (2, 14, 0);

/// What may be done beside the ordinary.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Delete what carries our label and is not declared.
    pub prune: bool,
    /// Also what destroys stored messages, and go on when a wait has taken too long.
    pub force: bool,
    /// Streams that may be deleted and made again, where a change needs it.
    pub recreate: Vec<String>,
    /// How long one wait may take.
    pub wait: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self { prune: false, force: false, recreate: Vec::new(), wait: Duration::from_mins(2) }
    }
}

/// What is done to a stream or consumer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// It does not exist.
    Create,
    /// Some fields differ.
    Update,
    /// Some fields differ that cannot change in place: it is deleted and made again.
    Replace,
    /// It is not declared.
    Delete,
    /// It is as it should be, but an earlier apply did not come to the end.
    Finish,
}

/// What waits in a stream or for a consumer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Waiting {
    /// Messages in the stream, or not handed out by the consumer.
    pub messages: u64,
    /// Bytes in the stream; 0 for a consumer.
    pub bytes: u64,
    /// Messages that the consumer handed out and that are not acknowledged.
    pub unacknowledged: u64,
}

/// What happens to one stream or consumer.
#[derive(Debug, Clone)]
pub struct Change {
    /// What is done.
    pub action: Action,
    /// The stream.
    pub stream: String,
    /// The consumer, or `None` for the stream itself.
    pub consumer: Option<String>,
    /// How much thought it needs: the most of its fields.
    pub class: Class,
    /// The fields that differ.
    pub differences: Vec<Difference>,
    /// What waits in it now.
    pub waiting: Waiting,
    /// What would be lost.
    pub lost: Option<String>,
    /// Why it is not done, and what to do; `None` when it is.
    pub refused: Option<String>,
    /// The whole configuration that it gets; empty for a deletion.
    pub config: Map<String, Value>,
}

/// Something that exists and is not declared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Undeclared {
    /// The stream.
    pub stream: String,
    /// The consumer, or `None` for the stream itself.
    pub consumer: Option<String>,
    /// It carries our label.
    pub ours: bool,
}

/// What is to be done.
#[derive(Debug, Clone, Default)]
pub struct Plan {
    /// The server's version.
    pub server: String,
    /// What changes, in the order of the declarations; deletions first.
    pub changes: Vec<Change>,
    /// What is sent, in order. Empty when some change is refused.
    pub steps: Vec<Step>,
    /// What exists, is not declared and is left alone: streams and consumers of ours, and other consumers on our streams.
    pub undeclared: Vec<Undeclared>,
    /// How many objects are as they should be.
    pub unchanged: usize,
}

impl Plan {
    /// True when nothing is to be done.
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    /// True when some change is not made. Then none is.
    pub fn is_refused(&self) -> bool {
        self.changes.iter().any(|change| change.refused.is_some())
    }

    /// True when something of ours is not declared.
    pub fn has_leftovers(&self) -> bool {
        self.undeclared.iter().any(|one| one.ours)
    }

    /// How many objects something is done to.
    pub fn count(&self, action: Action) -> usize {
        self.changes.iter().filter(|change| change.action == action).count()
    }
}

/// Compares `desired` with `live`.
pub fn plan(desired: &Desired, live: &Live, options: &Options) -> Plan {
    let mut plan = Plan { server: live.version.clone(), ..Plan::default() };
    let mut strays = strays(desired, live);
    if options.prune {
        let (ours, others) = strays.into_iter().partition(|one| one.ours);
        strays = others;
        plan.changes.extend(deletions(&ours, live, options));
    }
    plan.undeclared = strays;
    for wanted in desired.streams.iter().chain(&desired.consumers) {
        let change = match (&wanted.consumer, live.streams.get(&wanted.stream)) {
            (_, None) => Some(creation(wanted)),
            (None, Some(stream)) => stream_change(wanted, stream, (live, &desired.owner), options),
            (Some(consumer), Some(stream)) => {
                let again = plan.changes.iter().any(|change| {
                    change.consumer.is_none()
                        && change.stream == wanted.stream
                        && change.action == Action::Replace
                });
                match stream.consumers.get(consumer) {
                    Some(existing) if !again => {
                        consumer_change(wanted, existing, stream, (live, &desired.owner), options)
                    }
                    Some(existing) => Some(order::paused(creation(wanted), existing)),
                    None => Some(creation(wanted)),
                }
            }
        };
        plan.unchanged += usize::from(change.is_none());
        plan.changes.extend(change);
    }
    if !options.force {
        refuse::what_is_anothers(&mut plan, desired, live);
    }
    refuse::overlaps(&mut plan, live);
    refuse::orphans(&mut plan, options);
    refuse::exchanges(&mut plan, live);
    refuse::what_others_take(&mut plan, live);
    if !options.force {
        refuse::what_would_come_again(&mut plan, live);
    }
    let steps = order::steps(&mut plan.changes, desired, live, options);
    if !plan.is_refused() {
        plan.steps = steps;
    }
    plan
}

/// What is not declared: streams with our label and their consumers, and consumers on declared streams that last, or
/// that take messages from others. A helper of a migration is none, while what it helps is declared.
fn strays(desired: &Desired, live: &Live) -> Vec<Undeclared> {
    let mut strays = Vec::new();
    let is_stream = |name: &str| desired.streams.iter().any(|one| one.stream == name);
    for (name, stream) in &live.streams {
        let declared = is_stream(name);
        let ours = is_ours(&stream.config, &desired.owner);
        if !declared && !ours {
            continue;
        }
        let is_consumer = |consumer: &str| {
            let mut consumers = desired.consumers.iter().filter(|one| one.stream == *name);
            consumers.any(|one| one.consumer.as_deref() == Some(consumer))
        };
        for (consumer, existing) in &stream.consumers {
            let ours = is_ours(&existing.config, &desired.owner);
            let lasts = existing.config.contains_key("durable_name") || is_work_queue(&stream.config);
            let helped =
                label(&existing.config, step::BOOKMARK).filter(|one| step::bookmark(one) == *consumer);
            let wanted = is_consumer(consumer) || (ours && helped.is_some_and(is_consumer));
            if !wanted && (ours || (declared && lasts)) {
                strays.push(Undeclared { stream: name.clone(), consumer: Some(consumer.clone()), ours });
            }
        }
        let noted = label(&stream.config, step::NEXT_OF).filter(|one| step::note(one) == *name);
        if !declared && !noted.is_some_and(is_stream) {
            strays.push(Undeclared { stream: name.clone(), consumer: None, ours });
        }
    }
    strays
}

fn deletions(ours: &[Undeclared], live: &Live, options: &Options) -> Vec<Change> {
    let mut changes = Vec::new();
    for one in ours {
        let Some(stream) = live.streams.get(&one.stream) else { continue };
        let (waiting, gone) = match one.consumer.as_ref().and_then(|name| stream.consumers.get(name)) {
            // Only there does a message go with the last consumer that waits for it.
            Some(consumer) if is(&stream.config, "retention", "interest") => {
                (waiting_for(consumer), consumer.pending + consumer.unacknowledged)
            }
            Some(consumer) => (waiting_for(consumer), 0),
            None => (waiting_in(stream), stream.messages),
        };
        let lost = (gone > 0).then(|| format!("{gone} messages"));
        let refused = (lost.is_some() && !options.force)
            .then(|| "it is not empty: let it drain, or apply with --prune --force".to_owned());
        changes.push(Change {
            action: Action::Delete,
            stream: one.stream.clone(),
            consumer: one.consumer.clone(),
            class: if lost.is_some() { Class::Destructive } else { Class::Care },
            differences: Vec::new(),
            waiting,
            lost,
            refused,
            config: Map::new(),
        });
    }
    changes.sort_by_key(|change| change.consumer.is_none());
    changes
}

fn creation(wanted: &Wanted) -> Change {
    Change {
        action: Action::Create,
        stream: wanted.stream.clone(),
        consumer: wanted.consumer.clone(),
        class: Class::Safe,
        differences: Vec::new(),
        waiting: Waiting::default(),
        lost: None,
        refused: None,
        config: wanted.config.clone(),
    }
}

fn stream_change(
    wanted: &Wanted,
    stream: &LiveStream,
    (live, owner): (&Live, &str),
    options: &Options,
) -> Option<Change> {
    let differences = differences(wanted, &stream.config, stream, &live.version);
    let name = &wanted.stream;
    let noted = live.note(name, owner).is_some();
    if differences.is_empty() && !noted {
        return None;
    }
    let class = differences.iter().map(|one| one.class).max().unwrap_or_default();
    let reasons = || {
        let lossy = differences.iter().filter(|one| one.class == Class::Destructive);
        lossy.map(|one| format!("{}: {}", one.field, one.reason)).collect::<Vec<_>>().join("; ")
    };
    let mut change = Change {
        action: if differences.is_empty() { Action::Finish } else { Action::Update },
        config: updated(&stream.config, wanted, &differences),
        class,
        waiting: waiting_in(stream),
        lost: (class == Class::Destructive).then(reasons),
        differences,
        ..creation(wanted)
    };
    if class == Class::Impossible {
        change.action = Action::Replace;
        change.config.clone_from(&wanted.config);
        change.lost = (stream.messages > 0 && !drains(&stream.config, options))
            .then(|| format!("{} messages", stream.messages));
        change.refused = recreation_refused(name, stream, options);
        if change.refused.is_none() && !noted && live.streams.contains_key(&step::note(name)) {
            change.refused = Some(format!(
                "where it ends would be noted in a stream {}, and somebody has one of that name: rename that one",
                step::note(name)
            ));
        }
    } else if change.lost.is_some() && !options.force {
        change.refused = Some(
            "the server would delete them in silence: let it drain, declare more, or apply with --force"
                .to_owned(),
        );
    }
    Some(change)
}

/// Why a stream is not deleted and made again.
fn recreation_refused(name: &str, stream: &LiveStream, options: &Options) -> Option<String> {
    if !options.recreate.iter().any(|one| one == name) {
        let closed = texts(&stream.config, "subjects") == [step::closed(name)];
        return Some(format!(
            "{}declare what the server has, or have it deleted and made again: apply --recreate {name}{}",
            if closed {
                "an apply that was cut off has closed it to publishers, until one comes to the end: "
            } else {
                ""
            },
            if stream.messages > 0 && !drains(&stream.config, options) { ", once it is empty" } else { "" }
        ));
    }
    (stream.messages > 0 && !options.force && !drains(&stream.config, options)).then(|| {
        format!(
            "it holds {} messages ({}), and nobody takes them away: copy what matters, or wait until they are too \
             old; then apply --recreate {name}. With --force they are lost",
            stream.messages,
            units::bytes(stream.bytes)
        )
    })
}

/// True for a stream that its consumers empty, once nobody publishes to it. Schedules stay until they are due.
fn drains(config: &Map<String, Value>, options: &Options) -> bool {
    let schedules = config.get("allow_msg_schedules").and_then(Value::as_bool).unwrap_or_default();
    is_work_queue(config) && !schedules && !options.force
}

fn consumer_change(
    wanted: &Wanted,
    existing: &LiveConsumer,
    stream: &LiveStream,
    (live, owner): (&Live, &str),
    options: &Options,
) -> Option<Change> {
    let differences = differences(wanted, &existing.config, stream, &live.version);
    let name = wanted.consumer.as_deref().unwrap_or_default();
    let bookmarked = stream.bookmark(name, owner).is_some();
    let half_done = label(&existing.config, step::MIGRATING).is_some() || bookmarked;
    if differences.is_empty() && !half_done {
        return None;
    }
    let class = differences.iter().map(|one| one.class).max().unwrap_or_default();
    let mut change = Change {
        action: if differences.is_empty() { Action::Finish } else { Action::Update },
        config: updated(&existing.config, wanted, &differences),
        class,
        waiting: waiting_for(existing),
        differences,
        ..creation(wanted)
    };
    if order::is_unplaced(existing) && !bookmarked && !options.force {
        change.refused = Some(format!(
            "it has yet to be brought to the place that {} kept, and that is gone: it would hand out everything again. \
             Bring it to its place by hand (`nats consumer rm` and `add` with a start), or apply with --force",
            step::bookmark(name)
        ));
    }
    if class == Class::Impossible {
        change.action = Action::Replace;
        change.config.clone_from(&wanted.config);
        let room = stream.config.get("max_consumers").and_then(Value::as_i64).filter(|most| *most > 0);
        let start = wanted.config.get("deliver_policy").and_then(Value::as_str).unwrap_or("all");
        if is_work_queue(&stream.config) {
            // What is not acknowledged stays in the queue, and a new consumer begins at its front.
        } else if !matches!(start, "all" | "by_start_sequence" | "by_start_time") {
            change.refused = Some(format!(
                "a consumer with deliver_policy {start} cannot go on where the old one was: delete it by hand \
                 (`nats consumer rm {} {}`), then apply",
                wanted.stream, name
            ));
        } else if parse(&live.version) < RESET_MIN {
            change.refused = Some(needs_reset(&live.version));
        } else if start != "all" && change.differences.iter().any(|one| STARTS.contains(&one.field.as_str()))
        {
            change.refused = Some(format!(
                "it would begin somewhere else, and what lies in between would be skipped: delete it by hand \
                 (`nats consumer rm {} {name}`), then apply",
                wanted.stream
            ));
        } else if !bookmarked && stream.consumers.contains_key(&step::bookmark(name)) {
            change.refused = Some(format!(
                "its place would be kept by a consumer {}, and somebody has one of that name: rename that one",
                step::bookmark(name)
            ));
        } else if !bookmarked && room.is_some_and(|most| stream.consumers.len() as i64 >= most) {
            change.refused = Some(format!(
                "its place is kept by another consumer meanwhile, and max_consumers of {} has no room for one: raise it first",
                wanted.stream
            ));
        }
    }
    Some(change)
}

/// Why a step that moves a consumer's place cannot be sent.
fn needs_reset(version: &str) -> String {
    format!(
        "that needs nats-server 2.14 or later, and this is {version}: upgrade it, or keep the declaration as it was"
    )
}

fn waiting_in(stream: &LiveStream) -> Waiting {
    Waiting { messages: stream.messages, bytes: stream.bytes, unacknowledged: 0 }
}

fn waiting_for(consumer: &LiveConsumer) -> Waiting {
    Waiting { messages: consumer.pending, bytes: 0, unacknowledged: consumer.unacknowledged }
}

fn is(config: &Map<String, Value>, field: &str, text: &str) -> bool {
    config.get(field).and_then(Value::as_str) == Some(text)
}

fn is_work_queue(config: &Map<String, Value>) -> bool {
    is(config, "retention", "workqueue")
}
