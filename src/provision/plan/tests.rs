//! Plans without a server.

mod model;
mod worlds;

use serde_json::json;

use self::model::run;
use self::worlds::{
    consumer, declared, desired, exchange, existing, lane_move, queue, recreation, replacement, split, trade,
    with,
};
use super::*;
use crate::provision::OWNER_LABEL;
use crate::provision::declaration::DEFAULT_OWNER;
use crate::provision::step::What;

#[test]
fn what_the_server_fills_in_is_no_difference() {
    let live = json!({
        "name": "S", "subjects": ["b", "a"], "retention": "limits", "max_consumers": 5, "max_msgs": -1,
        "max_bytes": 100, "max_age": 0, "max_msgs_per_subject": -1, "max_msg_size": -1, "discard": "old",
        "storage": "file", "num_replicas": 1, "duplicate_window": 30, "compression": "none",
        "allow_direct": false, "sealed": false, "allow_rollup_hdrs": true, "consumer_limits": {},
        "metadata": {"_nats.level": "5", "_nats.ver": "2.15.1"}
    });

    let plan = planned(&desired(&declared()), &existing(&live));

    assert_eq!(plan.to_string(), "nothing to do (1 unchanged)");
    assert!(plan.is_empty());
}

#[test]
fn an_update_keeps_what_is_not_declared() {
    let live = json!({
        "name": "S", "subjects": ["a", "c"], "max_consumers": 5, "max_bytes": 100, "duplicate_window": 30,
        "max_msgs": 7, "description": "x", "metadata": {"_nats.level": "5", "owner": "me"}
    });

    let plan = planned(&desired(&declared()), &existing(&live));

    assert_eq!(
        plan.to_string(),
        "~ update stream S  [needs care]\n    max_msgs: 7 -> default\n    \
         subjects: -c +b  [needs care: who publishes to a subject that goes is refused; what is stored of it stays]\n\
         \x20   holds 5 messages, 50 B\n0 to create, 1 to update, 0 unchanged"
    );
    let [Step { what: What::Update(config), .. }] = &plan.steps[..] else { panic!("{:?}", plan.steps) };
    assert_eq!(
        Value::Object(config.clone()),
        json!({
            "name": "S", "subjects": ["a", "b"], "max_consumers": 5, "max_bytes": 100, "duplicate_window": 30,
            "description": "x", "metadata": {"owner": "me"}
        })
    );
}

#[test]
fn what_would_destroy_messages_is_refused_without_force() {
    let mut wanted = declared();
    wanted["max_bytes"] = json!(40);
    let live = existing(&declared());
    let desired = desired(&wanted);

    let plan = planned(&desired, &live);
    let forced = super::plan(&desired, &live, &Options { force: true, ..Options::default() });

    assert!(plan.is_refused() && plan.steps.is_empty());
    let text = plan.to_string();
    assert!(
        text.contains("    max_bytes: 100 -> 40  [destructive: the stream holds 50 B: 10 B do not fit]"),
        "{text}"
    );
    assert!(text.contains("    lost: max_bytes: the stream holds 50 B: 10 B do not fit"), "{text}");
    assert!(text.contains("    holds 5 messages, 50 B"), "{text}");
    assert!(text.contains("refused: the server would delete them"), "{text}");
    assert!(!forced.is_refused() && forced.steps.len() == 1);
}

#[test]
fn of_a_source_what_changes_is_shown() {
    let source = |events: &[&str], start: u64| {
        let due = |event: &&str| json!({ "src": format!("due.{event}"), "dest": format!("n.{event}") });
        let transforms: Vec<Value> = events.iter().map(due).collect();
        json!([{ "name": "O", "opt_start_seq": start, "subject_transforms": transforms }])
    };
    let with = |sources: Value| {
        let mut config = declared();
        config["sources"] = sources;
        config
    };
    let shown = |before, after| {
        let plan = planned(&desired(&with(after)), &existing(&with(before))).to_string();
        plan.lines().find(|line| line.contains("sources:")).map(str::to_owned).expect("they differ")
    };
    let line = shown(source(&["a", "b"], 1), source(&["b", "c"], 1));
    assert!(line.starts_with("    sources: -due.a -> n.a +due.c -> n.c  [needs care"), "{line}");
    let line = shown(source(&["a", "b"], 1), source(&["b"], 1));
    assert!(line.starts_with("    sources: -due.a -> n.a  [needs care"), "{line}");
    let line = shown(source(&["a"], 1), source(&["a"], 2));
    assert!(line.contains("-{\"name\":\"O\",\"opt_start_seq\":1") && line.contains(" +{"), "{line}");
}

#[test]
fn machines_get_the_same() {
    let mut wanted = declared();
    wanted["max_bytes"] = json!(40);
    wanted["max_age"] = json!(3_600_000_000_000_u64);

    let json = planned(&desired(&wanted), &existing(&declared())).json();

    assert_eq!(
        json["changes"][0],
        json!({
            "action": "update", "stream": "S", "consumer": null, "class": "destructive",
            "fields": [
                {"field": "max_age", "from": null, "to": "1h", "class": "safe", "reason": ""},
                {"field": "max_bytes", "from": 100, "to": 40, "class": "destructive",
                    "reason": "the stream holds 50 B: 10 B do not fit"},
            ],
            "waiting": {"messages": 5, "bytes": 50, "unacknowledged": 0},
            "lost": "max_bytes: the stream holds 50 B: 10 B do not fit",
            "refused": "the server would delete them in silence: let it drain, declare more, or apply with --force",
        })
    );
    assert_eq!((&json["format"], &json["server"]), (&json!(1), &json!("2.15.1")));
    assert_eq!(json["summary"]["refused"], 1);
}

#[test]
fn colours_change_nothing_but_colours() {
    let plan = planned(&desired(&declared()), &Live::default());
    let painted = Painted(&plan).to_string();
    assert_ne!(painted, plan.to_string());
    assert_eq!(anstream::adapter::strip_str(&painted).to_string(), plan.to_string());
}

#[test]
fn a_subject_is_released_before_it_is_taken_and_then_its_taker_starts_again() {
    let (desired, live) = lane_move();

    let plan = planned(&desired, &live);

    assert_eq!(
        shown(&plan),
        [
            "mark x", "pause x", "mark y", "pause y", "drain x", "drain y", "update y", "update x",
            "rewind x", "resume x", "unmark x", "resume y", "unmark y"
        ]
    );
    assert_eq!(plan.undeclared.len(), 1);
    assert!(plan.to_string().contains("? consumer S > z is not declared; left alone"), "{plan}");
}

#[test]
fn an_older_server_cannot_move_subjects() {
    let (desired, mut live) = lane_move();
    live.version = "2.13.4".to_owned();

    let plan = planned(&desired, &live);

    assert!(plan.is_refused() && plan.steps.is_empty());
    assert!(plan.to_string().contains("needs nats-server 2.14 or later, and this is 2.13.4"), "{plan}");
}

#[test]
fn consumers_that_trade_all_their_subjects_release_them_first() {
    let (desired, live) = trade();

    let plan = planned(&desired, &live);

    let released: Vec<_> = plan
        .steps
        .iter()
        .filter_map(|step| match &step.what {
            What::Release(config) => Some(config["filter_subjects"].clone()),
            _ => None,
        })
        .collect();
    assert_eq!(released, [json!(["fanfare.released.x"]), json!(["fanfare.released.y"])]);
}

#[test]
fn who_is_not_declared_and_takes_the_same_stands_in_the_way() {
    let (desired, mut live) = lane_move();
    let stranger = live.streams.get_mut("S").unwrap().consumers.get_mut("z").unwrap();
    stranger.config = consumer("z", &["b"]).config;

    assert!(
        planned(&desired, &live).to_string().contains("consumer S > z, which is not declared, takes some")
    );

    let stranger = live.streams.get_mut("S").unwrap().consumers.get_mut("z").unwrap();
    stranger.config.insert("metadata".to_owned(), json!({ OWNER_LABEL: DEFAULT_OWNER }));
    let pruned = super::plan(&desired, &live, &Options { prune: true, ..Options::default() });
    assert!(!pruned.is_refused(), "{pruned}");
    let order = shown(&pruned);
    let at = |step: &str| order.iter().position(|one| one == step).unwrap();
    assert!(at("drain z") < at("delete z") && at("delete z") < at("update x"), "{order:?}");

    let mut all = desired.clone();
    all.consumers[0].config.remove("filter_subjects");
    live.streams.get_mut("S").unwrap().consumers.get_mut("z").unwrap().config = consumer("z", &["d"]).config;
    assert!(
        planned(&all, &live).to_string().contains("consumer S > z, which is not declared"),
        "it takes all"
    );
}

#[test]
fn a_stream_is_made_again_only_when_it_may_be() {
    let mut wanted = declared();
    wanted["storage"] = json!("memory");
    let desired = desired(&wanted);
    let mut live = existing(&declared());
    let may = Options { recreate: vec!["S".to_owned()], ..Options::default() };
    let forced = Options { force: true, ..may.clone() };

    assert!(planned(&desired, &live).to_string().contains("apply --recreate S, once it is empty"));
    assert!(super::plan(&desired, &live, &may).to_string().contains("it holds 5 messages (50 B)"));
    let plan = super::plan(&desired, &live, &forced);
    assert!(plan.to_string().contains("lost: 5 messages") && !plan.is_refused(), "{plan}");
    live.streams.get_mut("S").unwrap().messages = 0;
    assert!(!super::plan(&desired, &live, &may).is_refused());
}

#[test]
fn only_what_is_ours_is_pruned_and_only_when_it_is_empty() {
    let mut live = existing(&declared());
    let ours = json!({"name": "OLD", "subjects": ["o"], "metadata": { OWNER_LABEL: DEFAULT_OWNER }});
    live.streams.insert("OLD".to_owned(), existing(&ours).streams.remove("S").unwrap());
    let prune = Options { prune: true, ..Options::default() };

    let plain = planned(&desired(&declared()), &live);
    assert!(plain.is_empty() && plain.has_leftovers());
    let full = super::plan(&desired(&declared()), &live, &prune);
    assert!(full.is_refused() && full.to_string().contains("- delete stream OLD"), "{full}");
    live.streams.get_mut("OLD").unwrap().messages = 0;
    let empty = super::plan(&desired(&declared()), &live, &prune);
    assert_eq!(empty.steps.last().map(ToString::to_string).unwrap(), "delete stream OLD");
    assert!(!empty.has_leftovers());
}

#[test]
fn what_only_has_the_name_of_a_helper_is_left_alone() {
    let (desired, live) = replacement("limits");
    let mut named = live.clone();
    let consumers = &mut named.streams.get_mut("S").unwrap().consumers;
    consumers.insert(
        "x-bookmark".to_owned(),
        LiveConsumer { config: consumer("x-bookmark", &["a"]).config, ..LiveConsumer::default() },
    );
    let plan = planned(&desired, &named);
    assert!(plan.to_string().contains("somebody has one of that name: rename that one"), "{plan}");
    assert!(plan.steps.is_empty(), "{plan}");

    // The same that helps: it is not shown, and goes.
    let bookmark = consumers_of(&mut named).get_mut("x-bookmark").unwrap();
    bookmark.config.insert("metadata".to_owned(), json!({ OWNER_LABEL: DEFAULT_OWNER, step::BOOKMARK: "x" }));
    let plan = planned(&desired, &named);
    assert!(plan.steps.iter().any(|step| step.what == What::Forget), "{plan}");
    assert!(!plan.to_string().contains("x-bookmark is not declared"), "{plan}");

    // Of somebody who is not declared it is like any other.
    consumers_of(&mut named)
        .get_mut("x-bookmark")
        .unwrap()
        .config
        .insert("metadata".to_owned(), json!({ OWNER_LABEL: DEFAULT_OWNER, step::BOOKMARK: "gone" }));
    let plan = planned(&desired, &named);
    assert!(plan.to_string().contains("S > x-bookmark is not declared; it is ours"), "{plan}");

    let mut wanted = declared();
    wanted["storage"] = json!("memory");
    let desired = self::desired(&wanted);
    let mut live = existing(&declared());
    live.streams.get_mut("S").unwrap().messages = 0;
    let other = existing(&json!({"name": "S-next", "subjects": ["n"]})).streams.remove("S").unwrap();
    live.streams.insert("S-next".to_owned(), other);
    let may = Options { recreate: vec!["S".to_owned()], prune: true, ..Options::default() };
    let plan = super::plan(&desired, &live, &may);
    assert!(plan.to_string().contains("a stream S-next, and somebody has one of that name"), "{plan}");
    assert!(plan.undeclared.is_empty() && plan.count(Action::Delete) == 0, "{plan}");
}

fn consumers_of(live: &mut Live) -> &mut std::collections::BTreeMap<String, LiveConsumer> {
    &mut live.streams.get_mut("S").unwrap().consumers
}

#[test]
fn streams_that_exchange_subjects_are_not_both_made_again() {
    let (mut desired, live) = exchange();
    for stream in &mut desired.streams {
        stream.config.insert("storage".to_owned(), json!("memory"));
    }
    let may = Options { recreate: vec!["S".to_owned(), "T".to_owned()], force: true, ..Options::default() };
    let plan = super::plan(&desired, &live, &may);
    assert!(plan.is_refused() && plan.to_string().contains("in an apply of its own"), "{plan}");
}

#[test]
fn a_consumer_that_would_begin_somewhere_else_is_refused() {
    let mut stream = declared();
    stream["retention"] = json!("limits");
    let mut desired = desired(&stream);
    let mut wanted = consumer("x", &["a"]);
    wanted.config.insert("deliver_policy".to_owned(), json!("by_start_sequence"));
    wanted.config.insert("opt_start_seq".to_owned(), json!(900));
    desired.consumers = vec![wanted];
    let plan = planned(&desired, &with(&stream, &[consumer("x", &["a"])]));
    assert!(plan.to_string().contains("it would begin somewhere else"), "{plan}");
}

#[test]
fn a_stream_that_was_closed_is_opened_as_it_is_declared() {
    let (desired, mut live) = recreation();
    let may = Options { recreate: vec!["S".to_owned()], ..Options::default() };
    live.streams.get_mut("S").unwrap().config.insert("subjects".to_owned(), json!([step::closed("S")]));

    let plan = super::plan(&desired, &live, &may);
    let Some(What::Close(None, open)) = plan.steps.first().map(|step| &step.what) else { panic!("{plan}") };
    assert_eq!((texts(open, "subjects"), open.get("storage")), (vec!["a".to_owned(), "b".to_owned()], None));
    assert!(planned(&desired, &live).to_string().contains("has closed it to publishers"), "{plan}");
}

#[test]
fn what_is_not_at_its_place_is_not_asked_where_it_is() {
    let (desired, live) = replacement("limits");
    let whole = planned(&desired, &live);
    let created = whole.steps.iter().position(|step| matches!(step.what, What::CreateAgain(_))).unwrap();
    let mut now = live.clone();
    run(&mut now, &whole.steps[..=created], "cut off");
    let mut other = desired.clone();
    other.consumers[0].config.insert("max_waiting".to_owned(), json!(9));

    // Back to something else: the bookmark stays, and is where the next one goes on.
    let plan = planned(&other, &now);
    assert!(!plan.steps.iter().any(|step| matches!(step.what, What::Bookmark(_))), "{plan}");
    run(&mut now, &plan.steps, "replaced again");
    assert!(planned(&other, &now).is_empty());

    let mut now = live.clone();
    run(&mut now, &whole.steps[..=created], "cut off");
    consumers_of(&mut now).remove("x-bookmark");
    let plan = planned(&desired, &now);
    assert!(plan.to_string().contains("that is gone: it would hand out everything again"), "{plan}");
}

#[test]
fn a_bookmark_needs_room() {
    let (desired, mut live) = replacement("limits");
    live.streams.get_mut("S").unwrap().config.insert("max_consumers".to_owned(), json!(2));
    assert!(planned(&desired, &live).to_string().contains("max_consumers of S has no room for one"));
}

#[test]
fn a_subject_of_a_stranger_is_refused() {
    let mut live = existing(&declared());
    live.streams.get_mut("S").unwrap().config.insert("subjects".to_owned(), json!(["a"]));
    live.others =
        vec![("THEIRS".to_owned(), vec!["b.>".to_owned()]), ("MORE".to_owned(), vec!["b".to_owned()])];
    let plan = planned(&desired(&declared()), &live);
    assert!(
        plan.to_string().contains("stream MORE, which is not declared, takes some of its subjects"),
        "{plan}"
    );
    live.streams.remove("S");
    assert!(planned(&desired(&declared()), &live).is_refused(), "a creation as well");
    live.others.pop();
    assert!(!planned(&desired(&declared()), &live).is_refused());
}

#[test]
fn a_stream_that_would_take_everything_again_is_refused() {
    let mut wanted = queue();
    wanted["sources"] = json!([{ "name": "UP" }]);
    let mut live = existing(&wanted);
    live.streams.get_mut("S").unwrap().messages = 0;
    wanted["storage"] = json!("memory");
    let may = Options { recreate: vec!["S".to_owned()], ..Options::default() };
    let up = |retention: &str| {
        existing(&json!({ "name": "UP", "retention": retention })).streams.remove("S").unwrap()
    };
    live.streams.insert("UP".to_owned(), up("limits"));
    let plan = super::plan(&desired(&wanted), &live, &may);
    assert!(plan.to_string().contains("it takes all that its source UP holds"), "{plan}");
    live.streams.insert("UP".to_owned(), up("workqueue"));
    assert!(!super::plan(&desired(&wanted), &live, &may).is_refused());
}

/// The heart of it: whatever was under way, cut off after any step, a second apply comes to the same end; and never does a
/// consumer that hands out meet another one, or vanish while it does.
#[test]
fn cut_off_after_any_step_the_next_plan_comes_to_the_end() {
    let recreate = Options { recreate: vec!["S".to_owned()], ..Options::default() };
    let prune = Options { prune: true, ..Options::default() };
    for (what, (desired, live), options) in [
        ("an event that changes lanes", lane_move(), &Options::default()),
        ("lanes that trade all their events", trade(), &Options::default()),
        ("a consumer of a work queue is replaced", replacement("workqueue"), &Options::default()),
        ("a consumer of a stream that keeps is replaced", replacement("limits"), &Options::default()),
        ("a stream is made again", recreation(), &recreate),
        ("consumers are pruned", replacement("workqueue"), &prune),
        ("who took all takes one", split(), &Options::default()),
        ("streams exchange subjects", exchange(), &Options::default()),
    ] {
        let whole = super::plan(&desired, &live, options);
        assert!(!whole.is_refused() && whole.steps.len() > 2, "{what}: {whole}");
        for sent in 0..=whole.steps.len() {
            let mut now = live.clone();
            run(&mut now, &whole.steps[..sent], what);
            let rest = super::plan(&desired, &now, options);
            assert!(!rest.is_refused(), "{what}, cut off after {sent}: {rest}");
            run(&mut now, &rest.steps, what);
            let end = super::plan(&desired, &now, options);
            assert!(end.is_empty(), "{what}, cut off after {sent}: {end}");
            let left = now.streams.values().flat_map(|stream| stream.consumers.values());
            assert!(left.clone().all(|one| one.paused_until.is_none()), "{what}, cut off after {sent}");
            let marks = |one: &LiveConsumer| step::MARKS.iter().any(|key| label(&one.config, key).is_some());
            assert!(!left.clone().any(marks), "{what}, cut off after {sent}");
            assert!(left.clone().all(|one| label(&one.config, step::BOOKMARK).is_none()), "{what}, {sent}");
            assert!(!now.streams.contains_key("S-next"), "{what}, {sent}");
        }
    }
}

fn shown(plan: &Plan) -> Vec<String> {
    let name = |step: &Step| step.consumer.clone().unwrap_or_else(|| step.stream.clone());
    let word = |step: &Step| match &step.what {
        What::Drain => "drain",
        What::Unmark(_) => "unmark",
        What::Mark(_) => "mark",
        What::Update(_) => "update",
        What::Rewind => "rewind",
        What::Pause { .. } => "pause",
        What::Resume(_) => "resume",
        What::Delete { .. } => "delete",
        _ => "other",
    };
    plan.steps.iter().map(|step| format!("{} {}", word(step), name(step))).collect()
}

fn planned(desired: &Desired, live: &Live) -> Plan {
    super::plan(desired, live, &Options::default())
}
