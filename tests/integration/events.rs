//! Every event, from a plain publish to the devices that must get it: what `fanfare dev --once` does, in this process.

use std::time::Duration;

use fanfare::demo::once::{self, Place, Report};
use fanfare::demo::scenario::{self, Step};
use fanfare::demo::stage::Stage;
use fanfare::demo::story;
use futures::StreamExt;

use crate::support::{Gateway, SECRET};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_event_reaches_the_right_devices_on_the_right_lane_and_nobody_else() {
    let gateway =
        Gateway::start_with(|setup| setup.config.worker.call_timeout_s = once::CALL_TIMEOUT_S).await;

    let report = run(&gateway, [scenario::steps(), story::steps()].concat()).await;

    assert!(report.passed(), "\n{}", report.render());
}

/// Shows that the story depends on what its events do.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_story_without_the_removal_does_not_pass() {
    let gateway = Gateway::start().await;
    let mut steps = story::steps();
    steps.retain(|step| step.event_type.starts_with("group.") && step.event_type != "group.member_left");

    let report = run(&gateway, steps).await;

    let text = report.render();
    for title in ["the group has a new name", "alice disbands the group"] {
        let line = text.lines().find(|line| line.starts_with(title)).expect("a line");
        assert!(line.ends_with("  alice, bob, carol, dave  FAILED"), "\n{text}");
    }
    assert!(text.ends_with("2 wrong deliveries"), "\n{text}");
    assert!(!text.contains("stream "), "\n{text}");
}

/// Shows that a run can fail, so that the one above says something.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_expectations_do_not_pass() {
    let gateway = Gateway::start().await;
    let steps = scenario::steps();
    let step = |event_type: &str| {
        steps.iter().find(|step| step.event_type == event_type).expect("every event has a step").clone()
    };
    let right = step("friend.request");
    let mut somebody_too_many = step("group.invited");
    somebody_too_many.expected = vec!["phone-123"];
    let mut another_lane = step("file.expiring");
    another_lane.lane = "low";
    let mut somebody_missing = step("message.read_receipt");
    somebody_missing.expected.push("user-789");

    let report = run(&gateway, vec![right, somebody_too_many, another_lane, somebody_missing]).await;

    assert!(!report.passed());
    let table = report.render();
    let line = |event: &str| table.lines().find(|line| line.starts_with(event)).expect("a line").to_owned();
    let failed = |event: &str| line(event).ends_with("FAILED");
    assert!(line("friend.request").ends_with(" ms"), "\n{table}");
    assert!(failed("group.invited") && failed("message.read_receipt"), "\n{table}");
    assert!(line("file.expiring").ends_with("WRONG LANE"), "\n{table}");
    assert!(table.contains("\nmessage.read_receipt: phone-789 did not get it\n"), "\n{table}");
    assert!(table.contains("\nfile.expiring: phone-123 got it on normal\n"), "\n{table}");
    assert!(table.ends_with("1 wrong deliveries"), "\n{table}");
}

/// The same for what no table of deliveries shows.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lost_sessions_and_leftovers_in_streams_do_not_pass() {
    let gateway = Gateway::start().await;
    let steps = scenario::steps();
    let step = |event_type: &str, target: &'static str| {
        let mut step = steps.iter().find(|step| step.event_type == event_type).expect("a step").clone();
        (step.target, step.expected) = (target, Vec::new());
        step
    };
    let away = step("friend.request", "user-away");
    let unknown = step("group.info_updated", "group-unknown");
    let mut no_logout = step("friend.deleted", "user-deleted");
    (no_logout.expected, no_logout.ends) = (vec!["phone-deleted"], vec!["phone-deleted"]);
    let mut published = gateway.client.subscribe("notification.>").await.expect("a subscription");
    let intruder = async {
        // Every device is connected by the first publish.
        published.next().await.expect("a notification");
        gateway.client("user-bystander", "phone-bystander").await
    };

    let (report, _intruder) = tokio::join!(run(&gateway, vec![away, unknown, no_logout]), intruder);

    assert!(!report.passed());
    let text = report.render();
    for words in [
        "phone-deleted should have been sent away and was not",
        "phone-bystander was sent away: closed with 3508",
        "stream NOTIFICATIONS_DLQ holds 1 messages at the end instead of 0",
        "stream OFFLINE_PUSH holds 1 messages at the end instead of 0",
    ] {
        assert!(text.contains(words), "{words}:\n{text}");
    }
    assert!(!text.contains("stream NOTIFICATIONS holds"), "\n{text}");
    assert!(text.ends_with("0 wrong deliveries"), "\n{text}");
}

async fn run(gateway: &Gateway, steps: Vec<Step>) -> Report {
    let stage = Stage::open(gateway.client.clone(), gateway.context.clone(), gateway.catalog.clone());
    let place = Place {
        edge: gateway.service.edge_address().expect("it serves devices"),
        certificate_hash: gateway.certificate_hash,
        secret: SECRET.to_vec(),
    };
    let stage = stage.await.expect("the bucket is there");
    // The run waits for what is missing; this is for a run that hangs.
    let report = tokio::time::timeout(Duration::from_mins(5), once::run(&stage, &place, steps));
    report.await.expect("it ends").expect("everybody is connected")
}
