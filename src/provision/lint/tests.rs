//! Tests of the checks: each with an edit of the built-in declarations that it must catch.

use serde_json::json;

use super::*;
use crate::catalog::Lane;
use crate::nats::{NOTIFICATIONS, NOTIFICATIONS_HIGH, NOTIFICATIONS_LOW, QUEUES};
use crate::provision::{Declarations, Env};

#[test]
fn built_in_declarations_have_no_mistake() {
    for env in [Env::DEV, Env::PRODUCTION] {
        let (desired, catalog) = built_in(env);
        assert_eq!(lint(&desired, &catalog), []);
    }
}

/// A mistake, and the object and a part of the reason that must be named.
type Case = (Code, &'static str, &'static str, fn(&mut Desired));

const CASES: &[Case] = &[
    (Code::StreamMissing, "", "INBOX is not declared", |d| d.streams.retain(|one| one.stream != "INBOX")),
    (Code::StreamMissing, "", "NOTIFICATIONS_DLQ is not declared", |d| {
        d.streams.retain(|one| one.stream != "NOTIFICATIONS_DLQ");
    }),
    (Code::StreamMissing, "", "a work queue with subjects below notification.", |d| {
        for name in QUEUES {
            set(stream(d, name), "retention", json!("limits"));
        }
    }),
    (Code::Duplicate, "stream NOTIFICATIONS", "is also declared in streams/notifications.toml:7", |d| {
        let again = queue(d).clone();
        d.streams.push(again);
    }),
    (Code::NameInvalid, "stream a.b", "the name `a.b`", |d| extra(d).stream = "a.b".to_owned()),
    (Code::NameInvalid, "stream KV_a+b", "the name `KV_a+b`", |d| extra(d).stream = "KV_a+b".to_owned()),
    (Code::NameInvalid, "consumer NOTIFICATIONS_HIGH > hi gh", "the name `hi gh`", |d| {
        d.consumers[0].consumer = Some("hi gh".to_owned());
    }),
    (Code::NameDiffers, "consumer NOTIFICATIONS_HIGH > high", "name is low", |d| {
        set(&mut d.consumers[0], "name", json!("low"));
    }),
    (Code::StreamUnknown, "consumer NOTIFICATION > high", "its stream NOTIFICATION is not", |d| {
        d.consumers[0].stream = "NOTIFICATION".to_owned();
    }),
    (Code::StreamUnknown, "stream EXTRA", "ORIGIN, which it takes messages from", |d| {
        set(extra(d), "mirror", json!({ "name": "ORIGIN" }));
    }),
    (Code::NotCovered, "stream NOTIFICATIONS", "is taken by no consumer", |d| {
        set(lane(d, "normal"), "filter_subject", json!("notification.friend.accepted.*"));
    }),
    (Code::NotCovered, "stream NOTIFICATIONS", "message.new of the catalog is in no queue", |d| {
        set(queue(d), "subjects", json!(["notification.group.created.*"]));
    }),
    (Code::LaneMissing, "stream NOTIFICATIONS_LOW", "it has no consumer low", |d| {
        d.consumers.retain(|one| one.consumer.as_deref() != Some("low"));
    }),
    (Code::NotCovered, "stream NOTIFICATIONS_DLQ", "dlq.> is not among its subjects", |d| {
        set(stream(d, "NOTIFICATIONS_DLQ"), "subjects", json!(["dlq.message.>"]));
    }),
    (Code::Overlap, "consumer NOTIFICATIONS > normal", "> meets notification.*.*.user-1", |d| {
        let mut other = lane(d, "normal").clone();
        other.consumer = Some("other".to_owned());
        set(&mut other, "filter_subject", json!("notification.*.*.user-1"));
        d.consumers.insert(0, other);
    }),
    (Code::Overlap, "stream INBOX", "inbox.* meets inbox.user-1 of stream NOTIFICATIONS", |d| {
        set(queue(d), "subjects", json!(["inbox.user-1", "notification.message.new.*"]));
    }),
    (Code::WrongLane, "consumer NOTIFICATIONS_HIGH > high", "file.processing is in lane low", |d| {
        set(stream(d, NOTIFICATIONS_LOW), "subjects", json!(["notification.push.token_invalid.*"]));
        set(stream(d, NOTIFICATIONS_HIGH), "subjects", json!(["notification.file.processing.*"]));
    }),
    (Code::FilterList, "consumer NOTIFICATIONS > normal", "a backlog drains at a thousandth", |d| {
        let all = queue(d).config["subjects"].clone();
        set(lane(d, "normal"), "filter_subjects", all);
    }),
    (Code::EphemeralStored, "stream NOTIFICATIONS", "would store notification.message.typing", |d| {
        set(queue(d), "subjects", json!(["notification.>"]));
    }),
    (Code::TooWide, "stream NOTIFICATIONS", "events that the catalog does not know", |d| {
        set(queue(d), "subjects", json!(["notification.friend.*.*"]));
    }),
    (Code::TooWide, "consumer NOTIFICATIONS_HIGH > high", "notify.x is not within", |d| {
        set(&mut d.consumers[0], "filter_subjects", json!(["notify.x"]));
    }),
    (Code::ConsumersUnbounded, "stream NOTIFICATIONS", "max_consumers is not set", |d| {
        set(queue(d), "max_consumers", json!(-1));
    }),
    (
        Code::ConsumersTooMany,
        "stream NOTIFICATIONS",
        "2 consumers are declared and max_consumers is 1",
        |d| {
            let other = Wanted { consumer: Some("other".to_owned()), ..lane(d, "normal").clone() };
            d.consumers.push(other);
            set(queue(d), "max_consumers", json!(1));
        },
    ),
    (Code::BytesUnbounded, "stream NOTIFICATIONS", "max_bytes is not set", |d| {
        set(queue(d), "max_bytes", json!(0));
    }),
    (Code::WrongValue, "stream EXTRA", "max_age is shorter than 100 ms, and the server", |d| {
        set(extra(d), "max_age", json!(99_000_000));
    }),
    (Code::WrongValue, "stream EXTRA", "duplicate_window is shorter than 100 ms", |d| {
        set(extra(d), "duplicate_window", json!(99_000_000));
    }),
    (Code::WrongValue, "stream EXTRA", "duplicate_window is longer than max_age", |d| {
        set(extra(d), "max_age", json!(1_000_000_000));
        set(extra(d), "duplicate_window", json!(1_000_000_001));
    }),
    (Code::WrongValue, "stream EXTRA", "discard_new_per_subject needs discard = \"new\"", |d| {
        set(extra(d), "discard_new_per_subject", json!(true));
        set(extra(d), "max_msgs_per_subject", json!(1));
    }),
    (Code::WrongValue, "stream EXTRA", "discard_new_per_subject needs max_msgs_per_subject", |d| {
        set(extra(d), "discard_new_per_subject", json!(true));
        set(extra(d), "discard", json!("new"));
    }),
    (Code::WrongValue, "stream EXTRA", "mirror_direct needs a mirror", |d| {
        set(extra(d), "mirror_direct", json!(true));
    }),
    (Code::DedupMemory, "stream NOTIFICATIONS", "the server's default duplicate_window of 120 s", |d| {
        queue(d).config.remove("duplicate_window");
    }),
    (Code::DiscardsOld, "stream NOTIFICATIONS", "drops what nobody has handled", |d| {
        set(queue(d), "discard", json!("old"));
    }),
    (Code::DiscardsOld, "stream EXTRA", "drops what nobody has handled", |d| {
        set(extra(d), "retention", json!("workqueue"));
        set(extra(d), "discard", json!("old"));
    }),
    (Code::DiscardsOld, "stream NOTIFICATIONS_DLQ", "drops what nobody has handled", |d| {
        set(stream(d, "NOTIFICATIONS_DLQ"), "discard", json!("old"));
    }),
    (Code::DiscardsOld, "stream OFFLINE_PUSH", "a subject that is full drops its oldest", |d| {
        set(stream(d, "OFFLINE_PUSH"), "max_msgs_per_subject", json!(5));
    }),
    (Code::DedupMemory, "stream NOTIFICATIONS", "duplicate_window of 120 s can cost 1571 MB", |d| {
        set(queue(d), "duplicate_window", json!(120_000_000_000_u64));
    }),
    (
        Code::BackoffTooLong,
        "consumer NOTIFICATIONS_HIGH > high",
        "backoff has 3 steps and max_deliver is 2",
        |d| {
            set(&mut d.consumers[0], "backoff", json!([1, 2, 3]));
            set(&mut d.consumers[0], "max_deliver", json!(2));
        },
    ),
    (Code::AckPolicy, "consumer NOTIFICATIONS_HIGH > high", "acknowledged by itself", |d| {
        set(&mut d.consumers[0], "ack_policy", json!("all"));
    }),
    (
        Code::SchedulesUnsourced,
        "stream NOTIFICATIONS",
        "does not source due events of message from SCHEDULES",
        |d| {
            queue(d).config.remove("sources");
        },
    ),
    (
        Code::SchedulesUnsourced,
        "stream MORE",
        "sources due events of friend, which belong to NOTIFICATIONS",
        |d| {
            split(d);
            let sources = queue(d).config["sources"].clone();
            set(stream(d, "MORE"), "sources", sources);
        },
    ),
    (Code::SchedulesOff, "stream SCHEDULES", "allow_msg_schedules is not set", |d| {
        stream(d, "SCHEDULES").config.remove("allow_msg_schedules");
        set(stream(d, "SCHEDULES"), "discard", json!("new"));
    }),
    (Code::SchedulesOff, "stream SCHEDULES", "allow_msg_ttl is not set", |d| {
        stream(d, "SCHEDULES").config.remove("allow_msg_ttl");
    }),
    (Code::NotSwept, "stream NOTIFICATIONS", "no consumer of ADVISORIES hears of it", |d| {
        let other = json!(["$JS.EVENT.ADVISORY.CONSUMER.MAX_DELIVERIES.OTHER.*"]);
        set(stream(d, "ADVISORIES"), "subjects", other);
    }),
    (Code::NotSwept, "stream NOTIFICATIONS", "no consumer of ADVISORIES hears of it", |d| {
        d.consumers.retain(|one| one.stream != "ADVISORIES");
    }),
    (Code::ReplicasEven, "stream EXTRA", "4 replicas bear no more losses than 3", |d| {
        set(extra(d), "num_replicas", json!(4));
    }),
    (
        Code::ReplicasConsumer,
        "consumer NOTIFICATIONS_HIGH > high",
        "it has 3 replicas and its stream 1",
        |d| {
            set(&mut d.consumers[0], "num_replicas", json!(3));
        },
    ),
    (
        Code::ReplicasConsumer,
        "consumer NOTIFICATIONS_HIGH > high",
        "it has 1 replicas and its stream 3",
        |d| {
            set(stream(d, NOTIFICATIONS_HIGH), "num_replicas", json!(3));
            set(&mut d.consumers[0], "num_replicas", json!(1));
        },
    ),
    (Code::ReplicasMixed, "stream INBOX", "it has one replica and others have 3", |d| {
        set(queue(d), "num_replicas", json!(3));
    }),
    (Code::MemorySingle, "stream KV_nodes", "in memory with one replica", |d| {
        set(stream(d, "KV_nodes"), "storage", json!("memory"));
    }),
];

#[test]
fn each_mistake_has_its_code_and_its_place() {
    for (code, object, reason, edit) in CASES {
        let (mut desired, catalog) = built_in(Env::DEV);
        edit(&mut desired);
        let findings = lint(&desired, &catalog);
        let found = findings.iter().any(|finding| {
            finding.code == *code && finding.object == *object && finding.reason.contains(reason)
        });
        assert!(found, "{code:?} {object} {reason}: {findings:#?}");
    }
}

#[test]
fn every_code_has_a_case() {
    // These are found by reading; src/provision/declaration/tests.rs has them.
    let read = [Code::Syntax, Code::UnknownField, Code::MissingField, Code::Variable, Code::Selection];
    for code in Code::ALL {
        assert!(read.contains(code) != CASES.iter().any(|case| case.0 == *code), "{code:?}");
    }
}

#[test]
fn a_missing_source_is_said_once_for_each_service() {
    let (mut desired, catalog) = built_in(Env::DEV);
    queue(&mut desired).config.remove("sources");

    let findings = lint(&desired, &catalog);

    assert!(findings.iter().all(|finding| finding.code == Code::SchedulesUnsourced), "{findings:#?}");
    let services = catalog.services().into_iter().filter(|service| {
        catalog.events().iter().any(|event| event.lane == Lane::Normal && event.service() == *service)
    });
    assert_eq!(findings.len(), services.count());
}

#[test]
fn several_queues_may_share_the_events() {
    let (mut desired, catalog) = built_in(Env::DEV);
    split(&mut desired);
    assert_eq!(lint(&desired, &catalog), []);
}

#[test]
fn ids_are_remembered_no_longer_than_messages_are_kept() {
    let (mut desired, catalog) = built_in(Env::DEV);
    queue(&mut desired).config.remove("duplicate_window");
    set(queue(&mut desired), "max_age", json!(30_000_000_000_u64));
    assert_eq!(lint(&desired, &catalog), []);
}

#[test]
fn what_a_declaration_allows_is_no_mistake() {
    let (mut desired, catalog) = built_in(Env::DEV);
    set(queue(&mut desired), "discard", json!("old"));
    queue(&mut desired).allowed = vec![Code::DiscardsOld];
    assert_eq!(lint(&desired, &catalog), []);

    set(queue(&mut desired), "max_bytes", json!(0));
    assert_eq!(lint(&desired, &catalog).len(), 1);
}

#[test]
fn what_is_reserved_follows_the_replicas() {
    const MIB: u64 = 1024 * 1024;
    let (desired, _) = built_in(Env::DEV);
    assert_eq!(reserved(&desired, "file"), (3_204 * MIB, 3_204 * MIB), "as docs/operations.md says");
    assert_eq!(reserved(&desired.with_replicas(3), "file").1, 3 * 3_204 * MIB);
    let (production, _) = built_in(Env::PRODUCTION);
    assert_eq!(reserved(&production, "memory"), (1_028 * MIB, 3 * 1_028 * MIB));
    let (once, all) = reserved(&production, "file");
    assert_eq!((once / 1024 / MIB, all), (199, 3 * once));
}

#[test]
fn a_finding_says_where_why_and_what_to_do() {
    let (mut desired, catalog) = built_in(Env::PRODUCTION);
    set(queue(&mut desired), "max_bytes", json!(0));

    let findings = lint(&desired, &catalog);

    assert_eq!(
        findings[0].to_string(),
        "streams/notifications.toml:40: stream NOTIFICATIONS [bytes-unbounded] max_bytes is not set, so it can fill \
         the disk of every other stream; set max_bytes"
    );
    assert_eq!(
        serde_json::to_value(&findings[0]).unwrap(),
        json!({
            "code": "bytes-unbounded", "place": { "file": "streams/notifications.toml", "line": 40 },
            "object": "stream NOTIFICATIONS", "fix": "set max_bytes",
            "reason": "max_bytes is not set, so it can fill the disk of every other stream",
        })
    );
}

fn built_in(env: Env) -> (Desired, Catalog) {
    let catalog = Catalog::built_in().unwrap();
    (Declarations::built_in().unwrap().desired(&catalog, env).unwrap(), catalog)
}

/// Gives the events of service `message` in lane normal to a queue of their own, `MORE`.
fn split(desired: &mut Desired) {
    let is_theirs = |subject: &&str| subject.starts_with("notification.message.");
    let queue = queue(desired);
    let (theirs, ours): (Vec<_>, Vec<_>) = queue.texts("subjects").into_iter().partition(is_theirs);
    let due = |subject: &&str| json!({ "src": subject.replacen("notification", "due", 1), "dest": subject.replace('*', "{{wildcard(1)}}") });
    let source = |subjects: &[&str]| json!([{ "name": "SCHEDULES", "subject_transforms": subjects.iter().map(due).collect::<Vec<_>>() }]);
    let sources = (source(&theirs), source(&ours));
    let (theirs, ours) = (json!(theirs), json!(ours));
    let mut more = queue.clone();
    more.stream = "MORE".to_owned();
    set(&mut more, "subjects", theirs);
    set(&mut more, "sources", sources.0);
    set(queue, "sources", sources.1);
    set(queue, "subjects", ours);
    desired.streams.push(more);
    let mut more = lane(desired, "normal").clone();
    more.stream = "MORE".to_owned();
    desired.consumers.push(more);
    let advisory = |stream: &str| format!("$JS.EVENT.ADVISORY.CONSUMER.MAX_DELIVERIES.{stream}.*");
    let all: Vec<String> = QUEUES.into_iter().chain(["MORE"]).map(advisory).collect();
    set(stream(desired, "ADVISORIES"), "subjects", json!(all));
    let sweeper = desired.consumers.iter_mut().find(|one| one.stream == "ADVISORIES").unwrap();
    set(sweeper, "filter_subjects", json!(all));
}

fn lane<'a>(desired: &'a mut Desired, name: &str) -> &'a mut Wanted {
    desired.consumers.iter_mut().find(|one| one.consumer.as_deref() == Some(name)).unwrap()
}

fn stream<'a>(desired: &'a mut Desired, name: &str) -> &'a mut Wanted {
    desired.streams.iter_mut().find(|stream| stream.stream == name).unwrap()
}

fn queue(desired: &mut Desired) -> &mut Wanted {
    stream(desired, NOTIFICATIONS)
}

/// A stream of somebody else's, without a mistake.
fn extra(desired: &mut Desired) -> &mut Wanted {
    if !desired.streams.iter().any(|stream| stream.stream == "EXTRA") {
        let config = json!({ "name": "EXTRA", "subjects": ["extra.>"], "max_bytes": 1, "max_consumers": 1 });
        let config = config.as_object().unwrap().clone();
        desired.streams.push(Wanted { stream: "EXTRA".to_owned(), config, ..Wanted::default() });
    }
    stream(desired, "EXTRA")
}

fn set(wanted: &mut Wanted, field: &str, value: Value) {
    wanted.config.insert(field.to_owned(), value);
}
