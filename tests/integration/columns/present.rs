//! Who is there: audience, lane, `priority`, `ack`, and what is kept of what was seen.

use fanfare::catalog::{Catalog, Inbox, Kind, Lane, Offline, Priority};
use fanfare::client::AckMode;
use serde_json::Value;

use super::case::{self, Case, DEVICES, PEOPLE, ends_sessions};
use super::crowd::{Crowd, publish, similar, write_members};
use crate::support::Gateway;

/// Plain, with each priority, for listed devices only, and with a time that is over.
fn variants(catalog: &Catalog) -> Vec<Case> {
    let mut cases = case::all(catalog, "plain");
    for (wish, other) in Lane::ALL.into_iter().zip([Lane::Low, Lane::High, Lane::Normal]) {
        for mut case in case::all(catalog, wish.as_str()) {
            // The payload says another lane, so that the two cannot be mistaken for each other.
            case.priority = Some(wish);
            case.payload["priority"] = other.as_str().into();
            cases.push(case);
        }
    }
    for mut case in case::all(catalog, "narrow") {
        let event = case.event.clone();
        if let Some(field) = event.audience.iter().find_map(|rule| rule.only_devices.as_ref()) {
            case.set(field, vec![DEVICES[0], DEVICES[1]]);
            case.recipients[0].left_out = DEVICES[1..].to_vec();
            cases.push(case);
        }
    }
    for mut case in case::all(catalog, "over") {
        if let Some(field) = case.event.expires_at.clone() {
            case.set(&field, crate::worker::gateway::unix_s() - 1);
            cases.push(case);
        }
    }
    cases
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_row_is_shown_to_its_audience_on_its_lane() {
    let gateway = Gateway::start_with(|setup| setup.config.worker.call_timeout_s = 600).await;
    let cases = variants(&gateway.catalog);
    assert!(
        [Priority::Fixed, Priority::Envelope, Priority::Payload]
            .iter()
            .all(|one| cases.iter().any(|case| case.event.priority == *one)),
        "every way of moving a lane is tried"
    );
    write_members(&gateway.context, &cases).await;
    let mut crowd = Crowd::default();
    for (person, _) in PEOPLE {
        for device in &DEVICES[..if ["target", "extra"].contains(&person) { 3 } else { 1 }] {
            crowd.connect(&gateway, &format!("all-{person}"), device, AckMode::Auto).await;
        }
    }
    for case in cases.iter().filter(|case| ends_sessions(&case.event)) {
        for device in &DEVICES[..if case.priority.is_none() { 3 } else { 1 }] {
            crowd.connect(&gateway, &format!("{}-target", case.crowd), device, AckMode::Auto).await;
        }
    }

    // Whoever is there hears a broadcast, so what ends sessions comes after them.
    let (broadcasts, others): (Vec<Case>, Vec<Case>) =
        cases.iter().cloned().partition(|case| case.to == Kind::Broadcast);
    publish(&gateway.context, &broadcasts).await;
    gateway.settled().await;
    publish(&gateway.context, &others).await;

    let due = cases.iter().filter(|case| !case.id.ends_with("-over"));
    let expected = due.clone().flat_map(|case| {
        let told = case.devices(&crowd.connected);
        assert!(!told.is_empty(), "{} has nobody to be told", case.id);
        told.into_iter().map(|(user, device)| {
            format!("{} to {user}/{device} {} {}", case.id, case.lane().as_str(), case.require_ack())
        })
    });
    crowd
        .expect(&gateway, expected.collect(), |received| {
            let lane = received.lane.map(fanfare::protocol::frame::SessionLane::as_str).unwrap_or_default();
            assert_eq!(received.priority, lane, "{}", received.notification_id);
            format!(" {lane} {}", received.require_ack)
        })
        .await;

    // Everybody was there and acked what was to be acked.
    for stream in ["OFFLINE_PUSH", "NOTIFICATIONS_DLQ"] {
        assert_eq!(gateway.count(stream).await, 0, "{stream}");
    }
    let kept = due.filter(|case| case.is_always_inboxed());
    let mut kept: Vec<String> = kept
        .flat_map(|case| case.recipients.iter().map(|who| format!("{} of inbox.{}", case.id, who.user)))
        .collect();
    kept.sort();
    similar(&inboxed(&gateway).await, &kept);
}

/// The inbox's records, sorted.
pub(super) async fn inboxed(gateway: &Gateway) -> Vec<String> {
    let records = gateway.records("INBOX", gateway.count("INBOX").await).await;
    let text = |value: &Value| value.as_str().expect("an id").to_owned();
    let mut all: Vec<String> = records
        .iter()
        .map(|record| format!("{} of {}", text(&record.json["notification_id"]), record.subject))
        .collect();
    all.sort();
    all
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_row_with_an_ack_is_handed_off_without_one_and_no_other_is() {
    let gateway = Gateway::start_with(|setup| setup.config.worker.call_timeout_s = 600).await;
    let mut cases = case::all(&gateway.catalog, "unacked");
    cases.retain(|case| case.to == Kind::User);
    let mut crowd = Crowd::default();
    for case in &cases {
        for who in &case.recipients {
            crowd.connect(&gateway, &who.user, "main", AckMode::Never).await;
        }
    }
    publish(&gateway.context, &cases).await;
    gateway.settled().await;

    let awaited = cases.iter().filter(|case| case.event.ack);
    let pushed = awaited.clone().filter(|case| {
        assert!(
            !matches!(case.event.offline, Offline::Silent | Offline::Never),
            "{}: say below what its hand-off is",
            case.id
        );
        case.event.offline != Offline::None
    });
    let mut expected: Vec<&Case> = pushed.collect();
    assert!(!expected.is_empty());
    let count = gateway.count("OFFLINE_PUSH").await;
    let stream = gateway.context.get_stream("OFFLINE_PUSH").await.unwrap();
    for seq in 1..=count {
        let message = stream.get_raw_message(seq).await.unwrap();
        let record: Value = serde_json::from_slice(&message.payload).unwrap();
        let at = expected.iter().position(|case| record["notification_id"] == case.id.as_str());
        let case = expected.remove(at.unwrap_or_else(|| panic!("not due: {record}")));
        let kind = if case.event.offline == Offline::Ring { "ring" } else { "alert" };
        assert_eq!(
            (&record["kind"], &record["users"][0]),
            (&kind.into(), &case.recipients[0].user.as_str().into())
        );
        if ends_sessions(&case.event) {
            // The session's end may come before the deadline.
            assert!(
                ["ack_timeout", "session_lost"].iter().any(|known| record["reason"] == *known),
                "{record}"
            );
            continue;
        }
        assert_eq!(record["reason"], "ack_timeout", "{}", case.id);
        let handed_off_ms = message.time.unix_timestamp_nanos() / 1_000_000;
        let deadline_ms = record["published_at_ms"].as_u64().unwrap() + case.event.ack_timeout_ms;
        assert!(handed_off_ms >= i128::from(deadline_ms), "{} was given up before its deadline", case.id);
    }
    let missing: Vec<&String> = expected.iter().map(|case| &case.id).collect();
    assert!(missing.is_empty(), "no hand-off of {missing:?}");

    let kept = cases.iter().filter(|case| match case.event.inbox {
        Inbox::None => false,
        Inbox::Missed => case.event.ack,
        Inbox::Always => true,
    });
    let mut kept: Vec<String> = kept
        .flat_map(|case| case.recipients.iter().map(|who| format!("{} of inbox.{}", case.id, who.user)))
        .collect();
    kept.sort();
    similar(&inboxed(&gateway).await, &kept);
}
