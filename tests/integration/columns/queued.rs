//! Ranks within a lane, at the session core, and what rows say of large sets.

use std::sync::Arc;
use std::time::Duration;

use fanfare::catalog::{Catalog, Effect, Lane, Role};
use fanfare::clock::Now;
use fanfare::id::UserId;
use fanfare::protocol::frame::SessionLane;
use fanfare::protocol::notification::{Frames, Policy};
use fanfare::protocol::{Encoding, Notification};
use fanfare::session::inbox::{Cursor, Missed};
use fanfare::session::{Core, Limits, Offer, Recipient, Rotation};
use serde_json::{Value, json};

use super::case::{self, Case};
use super::crowd::publish;
use crate::worker::gateway::{Fake, Gateway};

fn note(case: &Case) -> Arc<Notification> {
    let now_ms = Now::read().unix_ms;
    Arc::new(Notification {
        id: case.id.as_str().into(),
        lane: case.event.lane,
        timestamp: 1,
        published_at_ms: now_ms,
        expires_at_ms: now_ms + 600_000,
        stream_seq: 1,
        from_user_id: None,
        require_ack: false,
        large_set: false,
        policy: Policy::default(),
        payload: case.payload.as_object().unwrap().clone().into(),
        frames: Frames::default(),
        event: case.event.clone(),
    })
}

/// The ids of the frames that `lane` may write now.
fn written(core: &mut Core, lane: SessionLane) -> Vec<String> {
    let mut frames = Vec::new();
    core.take(lane, Now::read(), &mut frames);
    let id = |frame: &bytes::Bytes| {
        let text: Value = serde_json::from_slice(&frame[4..]).expect("a length and JSON");
        text["data"]["notification_id"].as_str().expect("an id").to_owned()
    };
    frames.iter().map(id).collect()
}

#[test]
fn behind_a_full_window_the_rows_of_a_lane_leave_by_rank() {
    let catalog = Catalog::built_in().unwrap();
    for (of_row, lane) in
        [(Lane::High, SessionLane::High), (Lane::Normal, SessionLane::Normal), (Lane::Low, SessionLane::Low)]
    {
        let mut cases = case::all(&catalog, "ranked");
        // The order that is furthest from the one in which they must leave.
        cases.retain(|case| case.event.lane == of_row);
        cases.sort_by_key(|case| case.event.rank);
        let limits = Limits {
            window: 1,
            queue_frames: 1_000,
            heartbeat: Duration::from_secs(25),
            slow_after: Duration::from_secs(30),
            rotation: Rotation::new(0, Duration::ZERO),
        };
        let now = Now::read();
        let mut core = Core::new(limits, Encoding::Json, false, now.unix_ms + 600_000, now);
        core.welcome(bytes::Bytes::new(), Cursor::parse("1-1-1").unwrap(), Missed::default());
        let whom = Recipient::online(UserId::new("user").unwrap());
        let mut first = cases[0].clone();
        first.id = "fills-the-window".to_owned();
        assert_eq!(core.offer(&note(&first), &whom, || None, now), Offer::Accepted);
        assert_eq!(written(&mut core, lane), ["fills-the-window"]);
        for case in &cases {
            assert_eq!(core.offer(&note(case), &whom, || None, now), Offer::Accepted, "{}", case.id);
        }

        let mut order = Vec::new();
        for acked in 1..=cases.len() {
            assert!(written(&mut core, lane).is_empty(), "the window is full");
            let ack = json!({"type": "ack", "lane": lane.as_str(), "seq": acked});
            core.on_frame(ack.to_string().as_bytes(), Now::read());
            order.extend(written(&mut core, lane));
        }

        // Stable, so equal ranks keep the order in which they came.
        cases.sort_by_key(|case| std::cmp::Reverse(case.event.rank));
        let expected: Vec<&String> = cases.iter().map(|case| &case.id).collect();
        assert_eq!(order.iter().collect::<Vec<_>>(), expected, "{of_row:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_for_large_sets_tell_few_beyond_their_size_and_all_up_to_it() {
    let gateway = Gateway::start(Fake::default()).await;
    let catalog = Catalog::built_in().unwrap();
    let rows = |variant| {
        let large = |case: &Case| case.event.audience.iter().any(|rule| rule.large.is_some());
        let mut cases = case::all(&catalog, variant);
        cases.retain(|case| large(case) && case.to.is_stored());
        cases
    };
    assert!(!rows("any").is_empty());
    let mut written = 0;
    for (case, beyond) in
        rows("full").into_iter().map(|case| (case, 0)).chain(rows("over").into_iter().map(|case| (case, 1)))
    {
        let rule = case.event.audience.iter().find(|rule| rule.large.is_some()).unwrap();
        let large = rule.large.as_ref().unwrap();
        // Who joins by the event itself is one of them.
        let joins = |effect: &Effect| matches!(effect, Effect::MemberJoin | Effect::MemberRole);
        let extra = format!("{}-extra", case.crowd);
        let joined = case.event.effects.iter().any(joins);
        let size = large.over + beyond - usize::from(joined);
        let nth = |n: usize| [Role::Owner, Role::Admin].get(n).copied().unwrap_or(Role::Member);
        let members: Vec<(String, Role)> = (0..size).map(|n| (format!("m{n}"), nth(n))).collect();
        for (user, role) in &members {
            let subject = format!("$KV.audience.{}.{}.{user}", case.to.as_str(), case.id);
            let body = json!({"role": role, "v": 1}).to_string();
            gateway.context.client().publish(subject, body.into()).await.unwrap();
        }
        written += members.len() as u64;
        gateway
            .eventually("all members are there", async || gateway.count("KV_audience").await >= written)
            .await;
        let before = gateway.sessions.offered().len();

        publish(&gateway.context, std::slice::from_ref(&case)).await;
        gateway.drained().await;

        written += u64::from(joined);
        let mut expected: Vec<String> = members
            .into_iter()
            .filter(|(_, role)| beyond == 0 || large.roles.contains(role))
            .map(|(user, _)| user)
            .collect();
        let named = if beyond == 0 { joined || !rule.also.is_empty() } else { !large.also.is_empty() };
        if named {
            expected.push(extra);
        }
        let offered = gateway.sessions.offered();
        let mut told: Vec<String> = offered[before..].iter().map(|(_, user)| user.to_string()).collect();
        expected.sort();
        told.sort();
        assert_eq!(told, expected, "{}", case.id);
    }
}
