//! Who is away: offline and inbox policy, time to live, and what is stored at all.

use std::collections::BTreeMap;
use std::sync::Arc;

use fanfare::catalog::{BUILT_IN, Catalog, Inbox, Lane, Offline};
use serde_json::{Value, json};

use super::case::{self, Case, PEOPLE};
use super::crowd::{publish, similar, write_members};
use super::present::inboxed;
use crate::support::{Gateway, queue};
use crate::worker::gateway::{self, Behaviour, Fake, unix_s};

/// What a publisher may ask for.
const WISHES: [Option<Offline>; 4] = [None, Some(Offline::None), Some(Offline::Alert), Some(Offline::Silent)];

/// The push that a recipient who is away must get.
fn kind(case: &Case, own: Option<Offline>, wish: Option<Offline>) -> Option<&'static str> {
    let row = case.event.offline;
    let free = !matches!(row, Offline::Never | Offline::Ring) && !case.event.ephemeral;
    let policy = match wish.filter(|_| free) {
        Some(Offline::None) => Offline::None,
        wish => own.unwrap_or(wish.unwrap_or(row)),
    };
    match policy {
        Offline::None | Offline::Never => None,
        Offline::Alert => Some("alert"),
        Offline::Ring => Some("ring"),
        Offline::Silent => Some("silent"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_row_keeps_for_the_absent_what_it_says() {
    let gateway = Gateway::start_with(|setup| setup.config.worker.call_timeout_s = 600).await;
    let (mut cases, mut pushes, mut kept) = (Vec::new(), Vec::new(), Vec::new());
    for wish in WISHES {
        let name = wish.map_or("row".to_owned(), |wish| format!("{wish:?}"));
        for mut case in case::all(&gateway.catalog, &name) {
            if let Some(wish) = wish {
                case.metadata["offline"] = json!(wish);
            }
            for who in &case.recipients {
                if let Some(kind) = kind(&case, who.offline, wish) {
                    let ttl_ms = case.event.ttl_s * 1_000;
                    pushes.push(format!("{} {kind} to {} for {ttl_ms} ms", case.id, who.user));
                }
                if case.event.inbox != Inbox::None {
                    kept.push(format!("{} of inbox.{}", case.id, who.user));
                }
            }
            cases.push(case);
        }
    }
    let mut gone_from_inboxes = case::all(&gateway.catalog, "gone");
    gone_from_inboxes.retain(|case| case.event.inbox_expires_at.is_some());
    for mut case in gone_from_inboxes {
        case.set(&case.event.inbox_expires_at.clone().unwrap(), unix_s() - 1);
        case.metadata["offline"] = json!("none");
        cases.push(case);
    }
    write_members(&gateway.context, &cases).await;

    publish(&gateway.context, &cases).await;
    gateway.settled().await;

    let records = gateway.records("OFFLINE_PUSH", gateway.count("OFFLINE_PUSH").await).await;
    let mut found = Vec::new();
    for record in &records {
        let Value::Object(record) = &record.json else { panic!("no object") };
        assert_eq!(record["reason"], "no_session");
        let text = |field: &str| record[field].as_str().expect("a text");
        let time = |field: &str| record[field].as_u64().expect("a time");
        let ttl_ms = time("expires_at_ms") - time("published_at_ms");
        for user in record["users"].as_array().unwrap() {
            let (id, kind) = (text("notification_id"), text("kind"));
            found.push(format!("{id} {kind} to {} for {ttl_ms} ms", user.as_str().unwrap()));
        }
    }
    for list in [&mut pushes, &mut found, &mut kept] {
        list.sort();
    }
    similar(&found, &pushes);
    similar(&inboxed(&gateway).await, &kept);
    assert_eq!(gateway.count("NOTIFICATIONS_DLQ").await, 0);
}

/// The built-in catalog in which nothing is worth delivering for more than a second.
fn short_lived() -> Catalog {
    let replaced = |line: &&str| line.starts_with("ttl_s = ") || line.starts_with("ack_timeout_ms = ");
    let lines = BUILT_IN.lines().filter(|line| !replaced(line));
    let text = lines.map(|line| match line {
        "[[event]]" => "[[event]]\nttl_s = 1\nack_timeout_ms = 500",
        line => line,
    });
    Catalog::from_toml(&text.collect::<Vec<_>>().join("\n")).expect("a good catalog")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_row_that_waited_too_long_is_for_nobody() {
    let everybody = |cases: &[Case]| {
        let all: Vec<_> = cases
            .iter()
            .flat_map(|case| PEOPLE.map(|(name, _)| (format!("{}-{name}", case.crowd), Behaviour::Take)))
            .collect();
        Fake::all_online(all)
    };
    let catalog = Arc::new(short_lived());
    let mut cases = case::all(&catalog, "old");
    // Never stored, so never old.
    cases.retain(|case| !case.event.ephemeral);
    let gateway = gateway::Gateway::prepare_with(everybody(&cases), catalog).await;
    write_members(&gateway.context, &cases).await;
    publish(&gateway.context, &cases).await;
    let published = unix_s();
    gateway.eventually("it is too late", async || unix_s() >= published + 2).await;

    gateway.work().await;
    gateway.drained().await;

    let offered = gateway.sessions.offered();
    assert!(offered.is_empty(), "{offered:?}");
    // Only a call is told of: it was missed.
    let missed: Vec<&Case> = cases.iter().filter(|case| case.event.offline == Offline::Ring).collect();
    for (record, case) in gateway.records("OFFLINE_PUSH", missed.len()).await.iter().zip(&missed) {
        assert_eq!(record.json["notification_id"], case.id);
        assert_eq!((&record.json["kind"], &record.json["reason"]), (&json!("alert"), &json!("expired")));
    }
    for (stream, count) in [("OFFLINE_PUSH", missed.len()), ("INBOX", 0), ("NOTIFICATIONS_DLQ", 0)] {
        assert_eq!(gateway.count(stream).await, count as u64, "{stream}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_row_is_stored_for_the_workers_of_its_lane_or_never() {
    let gateway = gateway::Gateway::prepare(Fake::default()).await;
    let catalog = Catalog::built_in().unwrap();
    let cases = case::all(&catalog, "stored");
    for case in &cases {
        let body = case.envelope().to_string().into();
        gateway.context.client().publish(case.subject.clone(), body).await.unwrap();
    }
    let stored = cases.iter().filter(|case| !case.event.ephemeral);
    let mut expected: BTreeMap<Lane, Vec<&str>> = BTreeMap::new();
    for case in stored.clone() {
        expected.entry(case.event.lane).or_default().push(&case.subject);
    }

    let all = stored.count() as u64;
    gateway.eventually("all are stored", async || gateway.queued().await >= all).await;

    assert_eq!(gateway.queued().await, all);
    let mut found = Vec::new();
    for lane in Lane::ALL {
        let queue = queue(lane.as_str());
        let info = gateway.request(&format!("STREAM.INFO.{queue}"), &json!({"subjects_filter": ">"})).await;
        found.extend(info["state"]["subjects"].as_object().unwrap().keys().cloned());
        // It counts a message some moments after its stream has it.
        let all = expected[&lane].len();
        gateway
            .eventually(&format!("{all} wait in {lane:?}"), async || {
                gateway.consumer_info(lane.as_str()).await["num_pending"] == all
            })
            .await;
    }
    assert!(expected.values().flatten().all(|subject| found.iter().any(|one| one == subject)));
}
