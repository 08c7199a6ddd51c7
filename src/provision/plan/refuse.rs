//! Why changes of a plan are not made, where that depends on others than the one that changes. Pure.

use super::diff::taken;
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

/// The server does not check on updates that consumers of a work queue take different subjects, and on creations says
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
