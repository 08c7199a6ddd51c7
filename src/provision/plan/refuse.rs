//! Why changes of a plan are not made, where that depends on others than the one that changes. Pure.

use serde_json::Value;

use super::diff::{taken, texts};
use super::{Action, Change, Options, Plan, is_work_queue, order};
use crate::provision::observe::label;
use crate::provision::subject::overlap;
use crate::provision::{Desired, Live, OWNER_LABEL};

/// An object with the label of another owner is declared by somebody else as well.
pub(super) fn what_is_anothers(plan: &mut Plan, desired: &Desired, live: &Live) {
    for change in &mut plan.changes {
        let Some(stream) = live.streams.get(&change.stream) else { continue };
        let config = match &change.consumer {
            None => Some(&stream.config),
            Some(name) => stream.consumers.get(name).map(|consumer| &consumer.config),
        };
        let owner = config.and_then(|config| label(config, OWNER_LABEL));
        if let Some(owner) = owner.filter(|owner| *owner != desired.owner && change.refused.is_none()) {
            change.refused = Some(format!(
                "it belongs to {owner:?}: leave it to them, or take it over with --force, and have them remove it from their \
                 declarations"
            ));
        }
    }
}

/// Not every server checks on updates that consumers of a work queue take different subjects, and on creations it says
/// less.
pub(super) fn overlaps(plan: &mut Plan, live: &Live) {
    for change in &mut plan.changes {
        let Some(stream) = live.streams.get(&change.stream).filter(|one| is_work_queue(&one.config)) else {
            continue;
        };
        if change.consumer.is_none() || matches!(change.action, Action::Delete | Action::Finish) {
            continue;
        }
        let takes = taken(&change.config);
        let other = plan.undeclared.iter().filter(|one| one.stream == change.stream).find_map(|one| {
            let name = one.consumer.as_ref()?;
            let has = taken(&stream.consumers.get(name)?.config);
            let meets = |taken: &String| takes.iter().any(|filter| overlap(filter, taken));
            has.iter().any(meets).then_some(name)
        });
        if let Some(other) = other {
            change.refused = Some(format!(
                "consumer {} > {other}, which is not declared, takes some of its subjects: delete it by hand, or, if it \
                 carries our label, apply with --prune",
                change.stream
            ));
        }
    }
}

/// Consumers go with their stream, also those that would not be made again.
pub(super) fn orphans(plan: &mut Plan, options: &Options) {
    for change in &mut plan.changes {
        if change.consumer.is_some() || change.action != Action::Replace || options.force {
            continue;
        }
        let orphans = plan.undeclared.iter().filter(|one| one.stream == change.stream);
        let orphans: Vec<&str> = orphans.filter_map(|one| one.consumer.as_deref()).collect();
        if !orphans.is_empty() && change.refused.is_none() {
            let names = orphans.join(", ");
            change.refused = Some(format!(
                "its consumers {names} are not declared and would be gone: declare them, or apply with --force"
            ));
        }
    }
}

/// Of two streams that exchange subjects and are made again, none can be the first.
pub(super) fn exchanges(plan: &mut Plan, live: &Live) {
    let again = |change: &Change| change.consumer.is_none() && change.action == Action::Replace;
    let all: Vec<Change> = plan.changes.iter().filter(|change| again(change)).cloned().collect();
    for change in plan.changes.iter_mut().filter(|change| again(change) && change.refused.is_none()) {
        if let Some(other) = all.iter().find(|other| order::takes(change, other, live)) {
            change.refused = Some(format!(
                "it gets subjects of {}, which is made again, too: make the other one again in an apply of its own",
                other.stream
            ));
        }
    }
}

/// A subject belongs to one stream, also where the other one is not declared here: the server would refuse half-way.
pub(super) fn what_others_take(plan: &mut Plan, live: &Live) {
    let stays = |name: &str| {
        let is_change = |change: &Change| change.consumer.is_none() && change.stream == name;
        !plan.changes.iter().any(is_change)
    };
    let undeclared = plan.undeclared.iter().filter(|one| one.consumer.is_none()).map(|one| &one.stream);
    let ours = undeclared
        .filter(|name| stays(name))
        .filter_map(|name| Some((name.clone(), texts(&live.streams.get(name)?.config, "subjects"))));
    let others: Vec<(String, Vec<String>)> = ours.chain(live.others.clone()).collect();
    for change in plan.changes.iter_mut().filter(|one| one.consumer.is_none() && one.refused.is_none()) {
        let (_, gained) = order::subjects(change, live);
        let meets = |(_, taken): &&(String, Vec<String>)| {
            taken.iter().any(|taken| gained.iter().any(|one| overlap(one, taken)))
        };
        if let Some((other, _)) = others.iter().find(meets) {
            change.refused = Some(format!(
                "stream {other}, which is not declared, takes some of its subjects: a subject belongs to one stream. Take them \
                 from the other one, or delete it, by hand or, if it carries our label, with --prune"
            ));
        }
    }
}

/// A stream that is made again takes all that its sources hold, also what its predecessor had taken. What a work queue gave
/// is gone from there.
pub(super) fn what_would_come_again(plan: &mut Plan, live: &Live) {
    let again = |change: &&mut Change| {
        change.consumer.is_none() && change.action == Action::Replace && change.refused.is_none()
    };
    for change in plan.changes.iter_mut().filter(again) {
        let sources = change.config.get("sources").and_then(Value::as_array).into_iter().flatten();
        let mut names = sources.filter_map(|source| source.get("name").and_then(Value::as_str));
        let keeps = |name: &&str| !live.streams.get(*name).is_some_and(|one| is_work_queue(&one.config));
        if let Some(name) = names.find(keeps) {
            change.refused = Some(format!(
                "made again it takes all that its source {name} holds, also what it has taken before: declare a start \
                 (opt_start_seq) for the source, and apply with --force"
            ));
        }
    }
}
