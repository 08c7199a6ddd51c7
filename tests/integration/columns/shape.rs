//! Shaping: what is seen of a burst.

use std::time::Duration;

use fanfare::catalog::{Field, Root, ShapeMode};
use fanfare::client::AckMode;
use serde_json::json;
use tokio::time::Instant;

use super::case::{self, Case};
use super::crowd::{Crowd, publish, write_members};
use crate::support::Gateway;

/// Notifications with one key within a window.
const BURST: usize = 5;

/// A repetition of a case: the same key, another notification.
fn again(case: &Case, name: &str) -> Case {
    let mut again = case.clone();
    again.id = format!("{}-{name}", case.id);
    again
}

/// The fields of the key that can be changed without another audience: the subject's target cannot, nor what is equal to
/// it.
fn free_keys(case: &Case) -> Vec<&Field> {
    let target = case.subject.rsplit('.').next().unwrap_or_default();
    let value = |field: &Field| field.keys().fold(&case.payload, |value, key| &value[key]);
    let keys = case.event.shape.iter().flat_map(|shape| &shape.key);
    keys.filter(|field| field.root() == Root::Payload && value(field) != target).collect()
}

/// What is published of a row, and the ids that must be seen of it.
struct Burst {
    cases: Vec<Case>,
    seen: Vec<String>,
}

fn bursts(case: &Case) -> Vec<Burst> {
    let shape = case.event.shape.as_ref().unwrap();
    let mut all: Vec<Case> = (0..BURST).map(|n| again(case, &n.to_string())).collect();
    let (first, last) = (all[0].id.clone(), all[BURST - 1].id.clone());
    let mut seen = match (shape.mode, shape.leading) {
        (ShapeMode::Throttle, _) => vec![first],
        (ShapeMode::Coalesce, true) => vec![first, last],
        (ShapeMode::Coalesce, false) => vec![last],
    };
    let mut others = Vec::new();
    for field in free_keys(case) {
        let mut other = again(case, &format!("other-{}", field.as_str().replace('.', "-")));
        other.set(field, other.id.clone());
        others.push(other);
    }
    if shape.field_set {
        let mut other = again(case, "other-fields");
        other.payload["updated_fields"] = json!([other.id]);
        others.push(other);
    }
    seen.extend(others.iter().map(|other| other.id.clone()));
    all.extend(others);
    let mut bursts = vec![Burst { cases: all, seen }];

    // What passes does so at once and replaces what waits; what comes after it waits anew, or is dropped.
    for (n, pass) in shape.pass.iter().enumerate() {
        let mut case = again(case, &format!("pass{n}"));
        let event = case.event.clone();
        for key in event.shape.iter().flat_map(|shape| &shape.key) {
            case.set(key, case.id.clone());
        }
        let [early, late] = ["early", "late"].map(|name| again(&case, name));
        let mut passing = again(&case, "passing");
        for (field, value) in pass {
            let typed = value.parse::<bool>().map_or_else(|_| json!(value), |flag| json!(flag));
            passing.set(field, typed);
        }
        let mut seen = vec![passing.id.clone()];
        match shape.mode {
            ShapeMode::Throttle => seen.push(early.id.clone()),
            ShapeMode::Coalesce => seen.push(late.id.clone()),
        }
        if shape.mode == ShapeMode::Coalesce && shape.leading {
            seen.push(early.id.clone());
        }
        bursts.push(Burst { cases: vec![early, passing, late], seen });
    }
    bursts
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_shaped_row_shows_of_a_burst_what_it_says() {
    // Several workers would hand a burst over in an order of their own.
    let gateway = Gateway::start_with(|setup| {
        let worker = &mut setup.config.worker;
        (worker.high, worker.normal, worker.low) = (1, 1, 1);
    })
    .await;
    let mut crowd = Crowd::default();
    crowd.connect(&gateway, "all-target", "main", AckMode::Auto).await;
    let mut expected = Vec::new();
    let shaped = |attempt: usize| {
        let mut cases = case::all(&gateway.catalog, &format!("{attempt}"));
        cases.retain(|case| case.event.shape.is_some());
        cases
    };
    for row in 0..shaped(0).len() {
        for attempt in 0.. {
            let case = shaped(attempt).swap_remove(row);
            write_members(&gateway.context, std::slice::from_ref(&case)).await;
            let window = Duration::from_millis(case.event.shape.as_ref().unwrap().window_ms);
            let bursts = bursts(&case);
            let began = Instant::now();
            for burst in &bursts {
                publish(&gateway.context, &burst.cases).await;
            }
            gateway.settled().await;
            if began.elapsed() < window / 2 {
                expected.extend(bursts.into_iter().flat_map(|burst| burst.seen));
                break;
            }
            // The machine drew it out over more than half a window: that is no burst, and says nothing.
            assert!(attempt < 20, "{}: no burst within {window:?}", case.id);
            crowd.ignored.push(format!("{}-", case.id));
        }
    }
    assert!(!expected.is_empty());

    let expected = expected.iter().map(|id| format!("{id} to all-target/main")).collect();
    crowd.expect(&gateway, expected, |_| String::new()).await;
}
