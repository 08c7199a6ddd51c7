//! Do the catalog, the queues of notifications and what surrounds them agree? Every stored event in exactly one queue and
//! in exactly one of its consumers, due ones too, and what the server gives up is heard of.

use serde_json::Value;

use super::super::finding::{Code, Finding};
use super::super::subject::{covers, overlap};
use super::super::{Desired, Wanted};
use super::SCHEDULES;
use crate::catalog::{Catalog, Event, Lane};
use crate::nats::ADVISORIES;

/// Where notifications are published, and where the server publishes those that were scheduled.
const NOTIFICATION: &str = "notification.";
const DUE: &str = "due.";

/// Subject of the advisory for a message that used up its deliveries: then the stream and the consumer.
const MAX_DELIVERIES: &str = "$JS.EVENT.ADVISORY.CONSUMER.MAX_DELIVERIES";

pub(super) fn check(desired: &Desired, queues: &[&Wanted], catalog: &Catalog) -> Vec<Finding> {
    let mut findings = Vec::new();
    let known = catalog.stored_subjects();
    for queue in queues {
        for subject in queue.texts("subjects") {
            if !known.iter().any(|known| covers(known, subject)) {
                let reason =
                    format!("{subject} takes events that the catalog does not know and nobody handles");
                findings.push(queue.finding(
                    Code::TooWide,
                    "subjects",
                    reason,
                    "write subjects = \"@catalog\"",
                ));
            }
        }
        findings.extend(lanes_missing(desired, queue, catalog));
        findings.extend(not_swept(desired, queue));
        findings.extend(filter_lists(desired, queue));
    }
    if !queues.is_empty() {
        for event in catalog.events().iter().filter(|event| !event.ephemeral) {
            for finding in coverage(desired, queues, event) {
                // What is said of a service is said once, not for each of its events.
                if !findings.contains(&finding) {
                    findings.push(finding);
                }
            }
        }
    }
    for ephemeral in catalog.ephemeral_subjects() {
        for stream in &desired.streams {
            let subjects = stream.texts("subjects");
            if let Some(subject) = subjects.into_iter().find(|one| overlap(one, &ephemeral)) {
                let reason = format!("{subject} would store {ephemeral}, which is never to be stored");
                let fix = "name the stored events one by one";
                findings.push(stream.finding(Code::EphemeralStored, "subjects", reason, fix));
            }
        }
    }
    findings.extend(schedules_off(desired));
    findings
}

/// A stored event belongs into one queue, into the consumer of its lane there, and comes there when it is due. That it
/// is in two is found by comparing their subjects.
fn coverage(desired: &Desired, queues: &[&Wanted], event: &Event) -> Vec<Finding> {
    let filter = event.subject_filter();
    let takes = |queue: &&&Wanted| queue.texts("subjects").iter().any(|subject| covers(subject, &filter));
    let Some(queue) = queues.iter().find(takes) else {
        let reason = format!("{} of the catalog is in no queue, so its publishers fail", event.name);
        let fix =
            format!("write subjects = \"@catalog\", or add @catalog:*:{} to one of several", event.service());
        return vec![queues[0].finding(Code::NotCovered, "subjects", reason, fix)];
    };
    let mut findings: Vec<Finding> = due(queues, queue, event).into_iter().collect();
    let takes =
        |one: &&Wanted| one.stream == queue.stream && one.takes().iter().any(|taken| covers(taken, &filter));
    let found: Vec<&Wanted> = desired.consumers.iter().filter(takes).collect();
    if found.is_empty() {
        let reason = format!("{} of the catalog is taken by no consumer and waits until max_age", event.name);
        let fix = format!(
            "add @catalog:{}:{} to a consumer, or declare one without a filter",
            event.lane.as_str(),
            event.service()
        );
        findings.push(queue.finding(Code::NotCovered, "subjects", reason, fix));
    }
    for consumer in found {
        let lane = Lane::ALL.iter().find(|lane| consumer.consumer.as_deref() == Some(lane.as_str()));
        if lane.is_some_and(|lane| *lane != event.lane) {
            let reason = format!("{} is in lane {} of the catalog", event.name, event.lane.as_str());
            let fix = "write \"@catalog:LANE\" with the consumer's own lane, into the stream's subjects or into filter_subjects";
            findings.push(consumer.finding(Code::WrongLane, "filter_subjects", reason, fix));
        }
    }
    findings
}

/// Workers pull from a consumer for each lane that the queue has events of.
fn lanes_missing(desired: &Desired, queue: &Wanted, catalog: &Catalog) -> Vec<Finding> {
    let subjects = queue.texts("subjects");
    let is_there = |event: &Event| {
        let filter = event.subject_filter();
        !event.ephemeral && subjects.iter().any(|subject| overlap(subject, &filter))
    };
    let needs = |lane| catalog.events().iter().any(|event| event.lane == lane && is_there(event));
    let has = |lane: &str| {
        desired
            .consumers
            .iter()
            .any(|one| one.stream == queue.stream && one.consumer.as_deref() == Some(lane))
    };
    let missing =
        Lane::ALL.into_iter().filter(|lane| needs(*lane)).map(Lane::as_str).filter(|lane| !has(lane));
    let finding = |lane: &str| {
        let reason =
            format!("it has no consumer {lane} for its events of that lane, and workers pull from it");
        let fix = "declare it, or leave those events to another queue";
        queue.finding(Code::LaneMissing, "name", reason, fix)
    };
    missing.map(finding).collect()
}

/// With several filters the server looks at all subjects that wait beside a message, for each message.
fn filter_lists(desired: &Desired, queue: &Wanted) -> Vec<Finding> {
    let listed = desired.consumers.iter().filter(|one| one.stream == queue.stream && one.filters().len() > 1);
    let finding = |one: &Wanted| {
        let reason =
            "with a list of filters a backlog drains at a thousandth of the speed, and slows the others"
                .to_owned();
        let fix =
            "give the lane a stream of its own, subjects = \"@catalog:LANE\", and its consumer no filter";
        one.finding(Code::FilterList, "filter_subjects", reason, fix)
    };
    listed.map(finding).collect()
}

/// A due notification goes to the event's own queue, and to no other.
fn due(queues: &[&Wanted], own: &Wanted, event: &Event) -> Option<Finding> {
    let filter = event.subject_filter().replacen(NOTIFICATION, DUE, 1);
    let service = event.service();
    let sourced = |queue: &Wanted| {
        transforms(queue).any(|(src, dest)| covers(src, &filter) && dest.starts_with(NOTIFICATION))
    };
    if !sourced(own) {
        let reason =
            format!("does not source due events of {service} from {SCHEDULES}, so they never arrive");
        let fix = "give the source the subject_transforms that the stream has as subjects, such as \"@catalog:LANE\"";
        return Some(own.finding(Code::SchedulesUnsourced, "sources", reason, fix));
    }
    let other = queues.iter().find(|queue| queue.stream != own.stream && sourced(queue))?;
    let reason = format!("sources due events of {service}, which belong to {}", own.stream);
    Some(other.finding(Code::SchedulesUnsourced, "sources", reason, "leave it to that stream"))
}

/// What a queue takes from the stream of schedules, and as what.
fn transforms(queue: &Wanted) -> impl Iterator<Item = (&str, &str)> {
    let sources = queue
        .tables("sources")
        .filter(|source| source.get("name").and_then(Value::as_str) == Some(SCHEDULES));
    let transforms = sources.filter_map(|source| source.get("subject_transforms")?.as_array()).flatten();
    transforms
        .filter_map(|transform| Some((transform.get("src")?.as_str()?, transform.get("dest")?.as_str()?)))
}

/// The stream of schedules must be able to hold them.
fn schedules_off(desired: &Desired) -> Option<Finding> {
    let stream = desired.streams.iter().find(|stream| stream.stream == SCHEDULES)?;
    let missing = ["allow_msg_schedules", "allow_msg_ttl"].into_iter().find(|flag| !stream.flag(flag))?;
    let reason = format!("{missing} is not set, so nothing can be scheduled there");
    Some(stream.finding(Code::SchedulesOff, missing, reason, format!("set {missing} = true")))
}

/// What used up its deliveries in a queue is known from the advisory only.
fn not_swept(desired: &Desired, queue: &Wanted) -> Option<Finding> {
    let subject = format!("{MAX_DELIVERIES}.{}.*", queue.stream);
    let takes = |subjects: Vec<&str>| subjects.iter().any(|taken| covers(taken, &subject));
    let advisories = desired.streams.iter().find(|stream| stream.stream == ADVISORIES)?;
    let heard = desired.consumers.iter().any(|one| one.stream == ADVISORIES && takes(one.filters()));
    if takes(advisories.texts("subjects")) && heard {
        return None;
    }
    let reason = "what uses up its deliveries stays in it unseen: no consumer of ADVISORIES hears of it";
    let fix = format!("add {subject} to ADVISORIES and to its consumer");
    Some(queue.finding(Code::NotSwept, "name", reason, fix))
}
