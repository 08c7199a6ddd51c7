//! From changes to steps, in the order in which they are safe. Pure, and made from the live state alone: cut off anywhere,
//! the next plan has what is left.
//!
//! Consumers that have to be quiet for a change (they are replaced, or their subjects go from one to another) are marked and
//! paused, then drained, so that nothing is in anybody's hands; then all that lets go of subjects is done, then all that
//! takes them; then places are put right and everybody resumes. Paused consumers hand out nothing, so no message goes to two.

use serde_json::{Map, Value, json};

use super::{
    Action, Change, LiveConsumer, Options, RESET_MIN, diff, drains, filters, is_work_queue, needs_reset,
    texts,
};
use crate::provision::declaration::DEFAULT_OWNER;
use crate::provision::observe::{label, parse};
use crate::provision::step::{self, Config, Step, What};
use crate::provision::subject::overlap;
use crate::provision::{Desired, Live, LiveStream, OWNER_LABEL, Wanted};

/// The steps for `changes`. Refuses a change that the server is too old for.
pub(super) fn steps(changes: &mut [Change], desired: &Desired, live: &Live, options: &Options) -> Vec<Step> {
    let mut steps = Vec::new();
    let is_declared = |name: &str| desired.streams.iter().any(|stream| stream.stream == name);
    let gone = |change: &Change| change.action == Action::Delete && !is_declared(&change.stream);
    let whole =
        |name: &str| changes.iter().any(|one| gone(one) && one.consumer.is_none() && one.stream == name);
    // The consumers of a stream that is deleted go with it, and stay with it when it cannot be.
    for change in changes.iter().filter(|one| gone(one) && (one.consumer.is_none() || !whole(&one.stream))) {
        steps.extend(deletion(change, live, options));
    }
    // A subject belongs to one stream at a time, so those that lose some come first, and of those the ones that are closed
    // for it.
    let (mut freeing, others): (Vec<_>, Vec<_>) = changes
        .iter()
        .filter(|one| one.consumer.is_none() && one.action != Action::Delete)
        .partition(|change| {
            let lost = |one: &diff::Difference| {
                one.field == "subjects" && super::class::loses(&one.live, &one.wanted)
            };
            matches!(change.action, Action::Update | Action::Replace) && change.differences.iter().any(lost)
        });
    freeing.sort_by_key(|change| change.action != Action::Replace);
    steps.extend(freeing.iter().filter_map(|change| let_go(change, &freeing, live)));
    let mut opened = Vec::new();
    for change in freeing.into_iter().chain(others) {
        let (now, then) = stream(change, desired, live, options);
        steps.extend(now);
        opened.extend(then);
    }
    for wanted in &desired.streams {
        let ours = changes.iter_mut().filter(|one| one.consumer.is_some() && one.stream == wanted.stream);
        steps.extend(consumers(ours.collect(), desired, live, is_work_queue(&wanted.config)));
        steps.extend(opened.extract_if(.., |step: &mut Step| step.stream == wanted.stream));
    }
    steps
}

/// The subjects that a stream has and those that it shall get.
pub(super) fn subjects(change: &Change, live: &Live) -> (Vec<String>, Vec<String>) {
    let had = live.streams.get(&change.stream).map(|one| texts(&one.config, "subjects")).unwrap_or_default();
    let gained = texts(&change.config, "subjects").into_iter().filter(|one| !had.contains(one)).collect();
    (had, gained)
}

/// True when `taker` shall get a subject that `giver` has.
pub(super) fn takes(taker: &Change, giver: &Change, live: &Live) -> bool {
    let ((had, _), (_, gained)) = (subjects(giver, live), subjects(taker, live));
    taker.stream != giver.stream && had.iter().any(|one| gained.iter().any(|other| overlap(one, other)))
}

/// Has a stream keep only the subjects that it has and shall have, where another one of `freeing` takes what it loses:
/// with streams that exchange subjects none can be the first to have all of its own.
fn let_go(change: &Change, freeing: &[&Change], live: &Live) -> Option<Step> {
    if change.action != Action::Update || !freeing.iter().any(|other| takes(other, change, live)) {
        return None;
    }
    let (mut kept, _) = subjects(change, live);
    let wanted = texts(&change.config, "subjects");
    kept.retain(|subject| wanted.contains(subject));
    if kept.is_empty() {
        kept.push(step::closed(&change.stream));
    }
    let mut config = diff::editable(&live.streams.get(&change.stream)?.config);
    config.insert("subjects".to_owned(), json!(kept));
    Some(Step::stream(&change.stream, What::Update(config)))
}

/// Deletes a stream that is not declared, or a consumer of one.
fn deletion(change: &Change, live: &Live, options: &Options) -> Vec<Step> {
    let Some(existing) = live.streams.get(&change.stream) else { return Vec::new() };
    if let Some(consumer) = &change.consumer {
        let existing = existing.consumers.get(consumer);
        let delete =
            |one: &LiveConsumer| What::Delete { created: one.created.clone(), empty: false, closed: false };
        return existing
            .map(|one| Step::consumer(&change.stream, consumer, delete(one)))
            .into_iter()
            .collect();
    }
    let close = close(&change.stream, existing, None);
    let closed = close.is_some() || is_closed(&change.stream, existing);
    let delete = What::Delete { created: existing.created.clone(), empty: !options.force, closed };
    close.into_iter().chain([Step::stream(&change.stream, delete)]).collect()
}

/// An apply has closed it.
pub(super) fn is_closed(name: &str, existing: &LiveStream) -> bool {
    texts(&existing.config, "subjects") == [step::closed(name)]
}

/// What is done to a stream before its consumers are, and what after them.
fn stream(change: &Change, desired: &Desired, live: &Live, options: &Options) -> (Vec<Step>, Option<Step>) {
    let name = &change.stream;
    let forget = || Step::stream(&step::note(name), What::Forget);
    let noted = live.note(name, &desired.owner).is_some();
    let open = || Some(Step::stream(name, What::Open(change.config.clone())));
    let (mut steps, mut then) = (Vec::new(), None);
    match (change.action, live.streams.get(name)) {
        (Action::Create, _) if noted => {
            steps.push(Step::stream(name, What::CreateClosed(change.config.clone())));
            steps.push(forget());
            then = open();
        }
        (Action::Replace, Some(existing)) => {
            steps.extend(noted.then(forget));
            steps.extend(close(name, existing, Some(&change.config)));
            if drains(&existing.config, options) {
                steps.extend(takers(name, existing, desired));
                steps.push(Step::stream(name, What::AwaitEmpty));
            }
            steps.push(Step::stream(name, What::Note(note_config(name, &change.config))));
            let delete = What::Delete {
                created: existing.created.clone(),
                empty: !options.force,
                closed: close(name, existing, Some(&change.config)).is_some(),
            };
            steps.push(Step::stream(name, delete));
            steps.push(Step::stream(name, What::CreateClosed(change.config.clone())));
            steps.push(forget());
            then = open();
        }
        (Action::Update, Some(existing)) if is_closed(name, existing) => {
            steps.extend(noted.then(forget));
            then = Some(Step::stream(name, What::Update(change.config.clone())));
        }
        (Action::Update, _) => {
            steps.extend(noted.then(forget));
            steps.push(Step::stream(name, What::Update(change.config.clone())));
        }
        (Action::Create, _) => steps.push(Step::stream(name, What::Create(change.config.clone()))),
        (Action::Finish | Action::Delete | Action::Replace, _) => steps.extend(noted.then(forget)),
    }
    (steps, then)
}

/// Sees to it that somebody can empty the stream: makes the declared consumers that are missing, and resumes those that an
/// earlier apply has paused.
fn takers(name: &str, existing: &LiveStream, desired: &Desired) -> Vec<Step> {
    let declared = desired.consumers.iter().filter(|one| one.stream == name);
    let taker = |wanted: &Wanted| {
        let consumer = wanted.consumer.as_deref()?;
        let what = match existing.consumers.get(consumer) {
            None => What::Create(wanted.config.clone()),
            Some(held) if is_held(held) => What::Resume(pause(held)),
            Some(_) => return None,
        };
        Some(Step::consumer(name, consumer, what))
    };
    declared.filter_map(taker).collect()
}

/// An earlier apply has paused it, and it is where it belongs.
fn is_held(existing: &LiveConsumer) -> bool {
    let marked = label(&existing.config, step::MIGRATING).is_some();
    marked && existing.paused_until.is_some() && !is_unplaced(existing)
}

/// It is not yet at its place, and would hand out everything again.
pub(super) fn is_unplaced(existing: &LiveConsumer) -> bool {
    label(&existing.config, step::PLACE) == Some(step::AT_BOOKMARK)
}

/// So that nothing is published between the last look and the deletion: publishers are refused, and know it. One that an
/// earlier apply has closed is opened as it is declared, where it is.
fn close(name: &str, existing: &LiveStream, wanted: Option<&Config>) -> Option<Step> {
    let fixed = ["sealed", "mirror"].iter().any(|field| {
        existing.config.get(*field).is_some_and(|value| *value != Value::Bool(false) && !value.is_null())
    });
    let open = diff::editable(&existing.config);
    // An update that changes nothing is never sent.
    let what = if is_closed(name, existing) {
        What::Close(None, step::open_config(&open, wanted?))
    } else {
        What::Close(Some(step::closed_config(name, &open)), open)
    };
    (!fixed).then(|| Step::stream(name, what))
}

/// Whose a declared object is. All are labelled.
fn owner(config: &Config) -> &str {
    label(config, OWNER_LABEL).unwrap_or(DEFAULT_OWNER)
}

/// A stream whose only content is its metadata. The sequence is filled in when it is known.
fn note_config(name: &str, config: &Config) -> Config {
    let note = step::note(name);
    let config = json!({
        "name": note, "subjects": [format!("fanfare.next.{name}")], "storage": "file", "max_msgs": 1,
        "max_bytes": 1_024, "discard": "new", "max_consumers": 1,
        "num_replicas": config.get("num_replicas").cloned().unwrap_or(json!(1)),
        "description": "where the sequences of a stream go on that is being made again",
        "metadata": { OWNER_LABEL: owner(config), step::NEXT_OF: name },
    });
    config.as_object().cloned().unwrap_or_default()
}

/// The parts of a stream's consumers' migrations, each done for all of them before the next one.
#[derive(Default)]
struct Phases {
    hush: Vec<Step>,
    drain: Vec<Step>,
    narrow: Vec<Step>,
    widen: Vec<Step>,
    place: Vec<Step>,
    resume: Vec<Step>,
    clean: Vec<Step>,
}

impl Phases {
    fn into_steps(self) -> Vec<Step> {
        [self.hush, self.drain, self.narrow, self.widen, self.place, self.resume, self.clean].concat()
    }
}

fn consumers(changes: Vec<&mut Change>, desired: &Desired, live: &Live, work_queue: bool) -> Vec<Step> {
    let mut phases = Phases::default();
    for change in changes {
        let stream = live.streams.get(&change.stream);
        let name = change.consumer.clone().unwrap_or_default();
        let existing = stream.and_then(|stream| stream.consumers.get(&name));
        let bookmark = stream.and_then(|stream| stream.bookmark(&name, &desired.owner));
        let one = One { change, name: &name, bookmark };
        match (one.change.action, existing) {
            (Action::Delete, Some(existing)) => one.prune(existing, &mut phases),
            (Action::Replace, Some(existing)) => one.replace(existing, work_queue, &mut phases),
            (Action::Update | Action::Finish, Some(existing)) => {
                let moves = Moves::of(&existing.config, one.change, desired, stream);
                let place = if work_queue && moves.gains_stored {
                    Some(step::FRONT)
                } else {
                    label(&existing.config, step::PLACE)
                };
                if place.is_some() && parse(&live.version) < RESET_MIN {
                    let advice = needs_reset(&live.version);
                    one.change.refused = Some(format!("it gets subjects of stored messages, and {advice}"));
                    continue;
                }
                one.update(existing, &moves, work_queue, place, &mut phases);
            }
            _ => one.create(&mut phases),
        }
    }
    phases.into_steps()
}

/// A change of one consumer.
struct One<'a> {
    change: &'a mut Change,
    name: &'a str,
    /// What an earlier apply kept its place by.
    bookmark: Option<&'a LiveConsumer>,
}

impl One<'_> {
    fn step(&self, what: What) -> Step {
        Step::consumer(&self.change.stream, self.name, what)
    }

    fn delete(&self, existing: &LiveConsumer) -> Step {
        self.step(What::Delete { created: existing.created.clone(), empty: false, closed: false })
    }

    fn forget_bookmark(&self) -> Step {
        Step::consumer(&self.change.stream, &step::bookmark(self.name), What::Forget)
    }

    /// Drained first: who takes over its subjects would have the messages in hand a second time.
    fn prune(&self, existing: &LiveConsumer, phases: &mut Phases) {
        self.hush(existing, &marks(pause(existing).as_deref(), None), phases);
        phases.narrow.push(self.delete(existing));
    }

    fn create(&self, phases: &mut Phases) {
        match self.bookmark {
            Some(bookmark) => self.create_again(pause(bookmark), phases),
            None => phases.widen.push(self.step(What::Create(self.change.config.clone()))),
        }
    }

    /// Makes a consumer whose place a bookmark keeps.
    fn create_again(&self, pause: Option<String>, phases: &mut Phases) {
        let marks = marks(pause.as_deref(), Some(step::AT_BOOKMARK));
        phases.widen.push(self.step(What::CreateAgain(marked(&self.change.config, &marks))));
        self.bring_back(pause.as_deref(), phases);
        phases.resume.push(self.step(What::Resume(pause)));
        phases.resume.push(self.step(What::Unmark(self.change.config.clone())));
        phases.clean.push(self.forget_bookmark());
    }

    /// To its bookmark, once: what it hands out afterwards must not come again.
    fn bring_back(&self, pause: Option<&str>, phases: &mut Phases) {
        phases.place.push(self.step(What::Return));
        let config = marked(&unmarked(&self.change.config), &marks(pause, None));
        phases.place.push(self.step(What::Placed(config)));
    }

    fn replace(&self, existing: &LiveConsumer, work_queue: bool, phases: &mut Phases) {
        self.hush(existing, &marks(pause(existing).as_deref(), None), phases);
        if work_queue {
            phases.narrow.push(self.delete(existing));
            let mut config = self.change.config.clone();
            if let Some(until) = pause(existing) {
                config.insert("pause_until".to_owned(), Value::String(until));
            }
            phases.widen.push(self.step(What::Create(config)));
        } else if is_unplaced(existing) {
            // It has handed out nothing: its bookmark says where it goes on.
            phases.narrow.push(self.delete(existing));
            self.create_again(pause(existing), phases);
        } else {
            if self.bookmark.is_some() {
                // Of an earlier try: the old consumer may have gone on since.
                phases.narrow.push(self.forget_bookmark());
            }
            phases.narrow.push(self.step(What::Bookmark(self.bookmark_config(existing))));
            phases.narrow.push(self.delete(existing));
            self.create_again(pause(existing), phases);
        }
    }

    fn update(
        &self,
        existing: &LiveConsumer,
        moves: &Moves,
        work_queue: bool,
        place: Option<&str>,
        phases: &mut Phases,
    ) {
        let contested = work_queue && moves.contested;
        let half_done = label(&existing.config, step::MIGRATING).is_some();
        let pause = pause(existing);
        let marks = marks(pause.as_deref(), place);
        let updates = self.change.action == Action::Update;
        if self.bookmark.is_some() {
            phases.clean.push(self.forget_bookmark());
        }
        if !(contested || place.is_some() || half_done) {
            if updates {
                phases.widen.push(self.step(What::Update(self.change.config.clone())));
            }
            return;
        }
        self.hush(existing, &marks, phases);
        let update = self.step(What::Update(marked(&self.change.config, &marks)));
        match (updates, contested) {
            (false, _) => {}
            (true, false) => phases.widen.push(update),
            (true, true) if !moves.gains => phases.narrow.push(update),
            (true, true) => {
                phases.narrow.push(self.step(What::Release(marked(&moves.release, &marks))));
                phases.widen.push(update);
            }
        }
        match place {
            Some(step::FRONT) => phases.place.push(self.step(What::Rewind)),
            Some(step::AT_BOOKMARK) if self.bookmark.is_some() => self.bring_back(pause.as_deref(), phases),
            _ => {}
        }
        phases.resume.push(self.step(What::Resume(pause)));
        phases.resume.push(self.step(What::Unmark(unmarked(&self.change.config))));
    }

    /// Marked first: a pause alone could be an operator's. Also what is marked already: whose mark it is says who is at it.
    fn hush(&self, existing: &LiveConsumer, marks: &Map<String, Value>, phases: &mut Phases) {
        let config = marked(&diff::editable(&existing.config), marks);
        phases.hush.push(self.step(What::Mark(config)));
        let unplaced = is_unplaced(existing);
        phases.hush.push(self.step(What::Pause { before: pause(existing), unplaced }));
        phases.drain.push(self.step(What::Drain));
    }

    /// A consumer that takes the same subjects, so that a stream by interest keeps their messages. It keeps an operator's
    /// pause, too. Its place is filled in when it is known.
    fn bookmark_config(&self, existing: &LiveConsumer) -> Config {
        let name = step::bookmark(self.name);
        let config = json!({
            "name": name, "durable_name": name, "ack_policy": "explicit", "deliver_policy": "by_start_sequence",
            "filter_subjects": filters(&existing.config), "description": "keeps the place of another consumer",
            "metadata": { OWNER_LABEL: owner(&self.change.config), step::BOOKMARK: self.name },
        });
        marked(config.as_object().unwrap_or(&Map::new()), &marks(pause(existing).as_deref(), None))
    }
}

/// The pause that an operator had set, also when we have paused it since.
fn pause(existing: &LiveConsumer) -> Option<String> {
    if label(&existing.config, step::MIGRATING).is_some() {
        pause_before(&existing.config)
    } else {
        existing.paused_until.clone()
    }
}

/// A consumer that is made again with its stream has the pause that it had.
pub(super) fn paused(mut change: Change, existing: &LiveConsumer) -> Change {
    if let Some(until) = pause(existing) {
        change.config.insert("pause_until".to_owned(), Value::String(until));
    }
    change
}

/// The pause that the mark of a migration tells: the one that an operator had set before.
pub(in crate::provision) fn pause_before(config: &Config) -> Option<String> {
    label(config, step::MIGRATING).filter(|until| *until != step::RESUME).map(str::to_owned)
}

fn marks(pause: Option<&str>, place: Option<&str>) -> Map<String, Value> {
    let mut marks = Map::new();
    marks.insert(step::MIGRATING.to_owned(), pause.unwrap_or(step::RESUME).into());
    if let Some(place) = place {
        marks.insert(step::PLACE.to_owned(), place.into());
    }
    marks
}

fn marked(config: &Config, marks: &Map<String, Value>) -> Config {
    let mut config = config.clone();
    let mut metadata = config.get("metadata").and_then(Value::as_object).cloned().unwrap_or_default();
    metadata.extend(marks.clone());
    config.insert("metadata".to_owned(), Value::Object(metadata));
    config
}

/// A configuration without the marks of a migration.
pub(in crate::provision) fn unmarked(config: &Config) -> Config {
    let mut config = config.clone();
    if let Some(metadata) = config.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.retain(|key, _| !step::MARKS.contains(&key.as_str()));
    }
    config
}

/// What an update does to a consumer's subjects.
struct Moves {
    /// It gets subjects.
    gains: bool,
    /// Some of those may already be in the stream.
    gains_stored: bool,
    /// Another consumer is to take subjects that it loses.
    contested: bool,
    /// Its live configuration with only the subjects that it keeps.
    release: Config,
}

impl Moves {
    fn of(existing: &Config, change: &Change, desired: &Desired, stream: Option<&LiveStream>) -> Self {
        let ours = |one: &&Wanted| one.stream == change.stream && one.consumer == change.consumer;
        let wanted = |one: &Wanted| one.takes().into_iter().map(str::to_owned).collect::<Vec<_>>();
        let after = desired.consumers.iter().find(ours).map(wanted).unwrap_or_default();
        let before = diff::taken(existing);
        let (kept, lost): (Vec<String>, Vec<String>) =
            before.iter().cloned().partition(|filter| after.contains(filter));
        let gained: Vec<String> = after.into_iter().filter(|filter| !before.contains(filter)).collect();
        let stored = stream.map(|stream| texts(&stream.config, "subjects")).unwrap_or_default();
        let meets =
            |subjects: &[String], filter: &str| subjects.iter().any(|subject| overlap(subject, filter));
        let others = desired.consumers.iter().filter(|one| one.stream == change.stream && !ours(one));
        let contested = others.flat_map(wanted).any(|taken| meets(&lost, &taken));
        let kept = if kept.is_empty() {
            vec![step::released(change.consumer.as_deref().unwrap_or_default())]
        } else {
            kept
        };
        let mut release = diff::editable(existing);
        release.remove("filter_subject");
        release.insert("filter_subjects".to_owned(), kept.into());
        Self {
            gains: !gained.is_empty(),
            gains_stored: gained.iter().any(|filter| meets(&stored, filter)),
            contested,
            release,
        }
    }
}
