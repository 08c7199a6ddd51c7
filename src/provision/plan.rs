//! The difference between what is wanted and what exists, as a list of changes in the order in which they are safe.
//! Pure; empty when nothing differs. Deletes nothing.

use std::fmt;

use serde_json::{Map, Value};

use super::normalise;
use super::subject::overlap;
use super::{Desired, Live, Wanted};

/// Fields of a stream that the server never changes.
const FIXED_STREAM: [&str; 5] = ["storage", "mirror", "persist_mode", "allow_msg_counter", "first_seq"];
/// Fields of a stream that can be switched on and never off.
const ONE_WAY: [&str; 5] = ["sealed", "deny_delete", "deny_purge", "allow_msg_ttl", "allow_msg_schedules"];
/// Fields of a consumer that the server never changes.
const FIXED_CONSUMER: [&str; 9] = [
    "deliver_policy",
    "opt_start_seq",
    "opt_start_time",
    "ack_policy",
    "replay_policy",
    "max_waiting",
    "mem_storage",
    "idle_heartbeat",
    "flow_control",
];

/// What is done to a stream or consumer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// It does not exist.
    Create,
    /// Some fields differ.
    Update,
    /// A consumer lets go of subjects that another one takes over, before that one takes them.
    Release,
    /// A consumer that took over subjects starts again at the front of the stream. It would never see what was
    /// stored there before its own position; what was acknowledged is gone from a work queue, so nothing repeats
    /// but what was in hand.
    Rewind,
    /// It cannot be changed to what is declared.
    Refuse,
}

/// One field that differs.
#[derive(Debug, Clone, PartialEq)]
pub struct Difference {
    /// The field.
    pub field: String,
    /// What the server has; `Null` for its default.
    pub live: Value,
    /// What is declared; `Null` for the server's default.
    pub wanted: Value,
    /// Why it cannot be changed and what to do; `None` when it can.
    pub refusal: Option<String>,
}

/// One request to be sent.
#[derive(Debug, Clone)]
pub struct Change {
    /// What is done.
    pub action: Action,
    /// The stream.
    pub stream: String,
    /// The consumer, or `None` for the stream itself.
    pub consumer: Option<String>,
    /// The fields that differ; empty for a creation.
    pub differences: Vec<Difference>,
    /// The whole configuration to send.
    pub config: Map<String, Value>,
}

/// All changes, in order.
#[derive(Debug, Clone, Default)]
pub struct Plan {
    /// What to send.
    pub changes: Vec<Change>,
    /// Consumers on our streams that nobody declared. Left alone, but they may take messages.
    pub strangers: Vec<String>,
    /// How many objects are as they should be.
    pub unchanged: usize,
}

impl Plan {
    /// True when there is nothing to send.
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    /// True when some change cannot be made.
    pub fn is_refused(&self) -> bool {
        self.changes.iter().any(|change| change.action == Action::Refuse)
    }
}

/// Compares `desired` with `live`.
pub fn plan(desired: &Desired, live: &Live) -> Plan {
    let mut plan = Plan::default();
    for wanted in &desired.streams {
        let existing = live.get(&wanted.stream);
        let change = change(wanted, existing.map(|stream| (&stream.config, stream.bytes)));
        plan.unchanged += usize::from(change.is_none());
        plan.changes.extend(change);
    }
    let mut consumers = Vec::new();
    for wanted in &desired.consumers {
        let change = change(wanted, live_consumer(live, wanted).map(|config| (config, 0)));
        plan.unchanged += usize::from(change.is_none());
        consumers.extend(change);
    }
    plan.changes.extend(hand_overs(desired, live, consumers));
    for (name, stream) in live {
        let declared = |consumer: &str| {
            desired
                .consumers
                .iter()
                .any(|one| one.stream == *name && one.consumer.as_deref() == Some(consumer))
        };
        let strangers = stream.consumers.keys().filter(|consumer| !declared(consumer));
        plan.strangers.extend(strangers.map(|consumer| format!("{name} > {consumer}")));
    }
    plan
}

fn live_consumer<'a>(live: &'a Live, wanted: &Wanted) -> Option<&'a Map<String, Value>> {
    live.get(&wanted.stream)?.consumers.get(wanted.consumer.as_deref()?)
}

/// The change for one object, or `None` when it is as it should be.
fn change(wanted: &Wanted, existing: Option<(&Map<String, Value>, u64)>) -> Option<Change> {
    let (stream, consumer) = (wanted.stream.clone(), wanted.consumer.clone());
    let Some((live, bytes)) = existing else {
        let config = wanted.config.clone();
        return Some(Change { action: Action::Create, stream, consumer, differences: Vec::new(), config });
    };
    let mut differences = Vec::new();
    for field in normalise::fields(&wanted.config, consumer.is_some()) {
        let found = normalise::value(live, &field, &wanted.config);
        let declared = normalise::value(&wanted.config, &field, &wanted.config);
        if found != declared {
            let refusal = refusal(&field, &found, &declared, wanted, bytes);
            differences.push(Difference { field, live: found, wanted: declared, refusal });
        }
    }
    if differences.is_empty() {
        return None;
    }
    let refused = differences.iter().any(|difference| difference.refusal.is_some());
    let action = if refused { Action::Refuse } else { Action::Update };
    let config = updated(live, wanted, &differences);
    Some(Change { action, stream, consumer, differences, config })
}

/// The configuration to send: the live one, so that what we do not declare stays, with the declared fields over it.
fn updated(live: &Map<String, Value>, wanted: &Wanted, differences: &[Difference]) -> Map<String, Value> {
    let mut config = live.clone();
    for difference in differences.iter().filter(|difference| difference.wanted.is_null()) {
        config.remove(&difference.field);
    }
    if wanted.config.contains_key("filter_subjects") {
        config.remove("filter_subject");
    }
    let mut metadata = live.get("metadata").and_then(Value::as_object).cloned().unwrap_or_default();
    metadata.retain(|key, _| !key.starts_with("_nats."));
    config.extend(wanted.config.clone());
    if let Some(ours) = wanted.config.get("metadata").and_then(Value::as_object) {
        metadata.extend(ours.clone());
    }
    config.insert("metadata".to_owned(), Value::Object(metadata));
    config
}

/// Why a field cannot change from `live` to `wanted`, and what to do.
fn refusal(field: &str, live: &Value, wanted: &Value, object: &Wanted, bytes: u64) -> Option<String> {
    let work_queue = |value: &Value| value.as_str() == Some("workqueue");
    let again = match &object.consumer {
        None => {
            format!("empty and delete the stream by hand (`nats stream rm {}`), then apply", object.stream)
        }
        Some(name) => {
            format!("delete the consumer by hand (`nats consumer rm {} {name}`), then apply", object.stream)
        }
    };
    let keep = format!("declare what the server has, or {again}");
    let fixed = match object.consumer {
        None => {
            FIXED_STREAM.contains(&field)
                || (field == "retention" && (work_queue(live) || work_queue(wanted)))
        }
        Some(_) => FIXED_CONSUMER.contains(&field),
    };
    if fixed {
        return Some(format!("the server never changes it: {keep}"));
    }
    if object.consumer.is_none() && ONE_WAY.contains(&field) && wanted.is_null() {
        return Some(format!("it cannot be switched off again: {keep}"));
    }
    let shrinks = wanted.as_u64().is_some_and(|limit| limit < bytes);
    if object.consumer.is_none() && field == "max_bytes" && shrinks {
        return Some(format!(
            "the stream holds {bytes} bytes, and the server would delete what does not fit, in silence: \
             let it drain, or declare more"
        ));
    }
    None
}

/// Orders the changes of consumers for subjects that go from one to another. The server takes overlapping filters on
/// an update and then gives a message to both, so the one that has them lets go first; and the one that gets them
/// rewinds. No request repeats what another one already did.
fn hand_overs(desired: &Desired, live: &Live, changes: Vec<Change>) -> Vec<Change> {
    let (mut first, mut then, mut rewinds) = (Vec::new(), Vec::new(), Vec::new());
    for mut change in changes {
        let moves = Moves::of(&change, desired, live);
        if change.action != Action::Update {
            then.push(change);
            continue;
        }
        if moves.gains_stored {
            rewinds.push(Change { action: Action::Rewind, differences: Vec::new(), ..change.clone() });
        }
        if !moves.contested {
            then.push(change);
        } else if !moves.gains {
            first.push(change);
        } else if moves.kept.is_empty() {
            // An empty list of filters means everything to the server.
            change.action = Action::Refuse;
            for difference in change.differences.iter_mut().filter(|one| one.field == "filter_subjects") {
                let advice = "it would trade all its subjects at once: keep one of them for a first apply";
                difference.refusal = Some(advice.to_owned());
            }
            then.push(change);
        } else {
            first.push(Change {
                action: Action::Release,
                differences: Vec::new(),
                config: moves.release,
                ..change.clone()
            });
            then.push(change);
        }
    }
    first.into_iter().chain(then).chain(rewinds).collect()
}

/// What an update does to a consumer's subjects.
struct Moves {
    /// The subjects it has and keeps.
    kept: Vec<String>,
    /// It gets subjects.
    gains: bool,
    /// Some of those may already be in the stream.
    gains_stored: bool,
    /// Another consumer is to take subjects that it loses.
    contested: bool,
    /// Its live configuration with the kept subjects only.
    release: Map<String, Value>,
}

impl Moves {
    fn of(change: &Change, desired: &Desired, live: &Live) -> Self {
        let ours = |one: &&Wanted| one.stream == change.stream && one.consumer == change.consumer;
        let wanted = desired.consumers.iter().find(ours);
        let mut release = wanted.and_then(|wanted| live_consumer(live, wanted)).cloned().unwrap_or_default();
        let before = filters(&release);
        let after = wanted.map(Wanted::filters).unwrap_or_default();
        let (kept, lost): (Vec<String>, Vec<String>) =
            before.iter().cloned().partition(|filter| after.contains(&filter.as_str()));
        let gained: Vec<&str> =
            after.into_iter().filter(|filter| !before.iter().any(|had| had == filter)).collect();
        let stored =
            live.get(&change.stream).map(|stream| texts(&stream.config, "subjects")).unwrap_or_default();
        let meets =
            |subjects: &[String], filter: &str| subjects.iter().any(|subject| overlap(subject, filter));
        let others = desired.consumers.iter().filter(|one| one.stream == change.stream && !ours(one));
        let contested = others.flat_map(Wanted::filters).any(|taken| meets(&lost, taken));
        release.remove("filter_subject");
        release.remove("metadata");
        release.insert("filter_subjects".to_owned(), kept.clone().into());
        Self {
            gains: !gained.is_empty(),
            gains_stored: gained.iter().any(|filter| meets(&stored, filter)),
            kept,
            contested,
            release,
        }
    }
}

fn texts(config: &Map<String, Value>, field: &str) -> Vec<String> {
    let items = config.get(field).and_then(Value::as_array).into_iter().flatten();
    items.filter_map(Value::as_str).map(str::to_owned).collect()
}

fn filters(config: &Map<String, Value>) -> Vec<String> {
    let single = config.get("filter_subject").and_then(Value::as_str).filter(|text| !text.is_empty());
    single.map(str::to_owned).into_iter().chain(texts(config, "filter_subjects")).collect()
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for change in &self.changes {
            writeln!(f, "{change}")?;
        }
        for stranger in &self.strangers {
            writeln!(f, "? consumer {stranger} is not declared: left alone, but it may take messages")?;
        }
        if self.changes.is_empty() {
            return write!(f, "nothing to do ({} unchanged)", self.unchanged);
        }
        let count = |action| self.changes.iter().filter(|change| change.action == action).count();
        write!(
            f,
            "{} to create, {} to update, {} refused, {} unchanged",
            count(Action::Create),
            count(Action::Update),
            count(Action::Refuse),
            self.unchanged
        )
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = match self.action {
            Action::Create => "+ create",
            Action::Update => "~ update",
            Action::Release => "~ release subjects of",
            Action::Rewind => "~ rewind",
            Action::Refuse => "! cannot change",
        };
        match &self.consumer {
            None => write!(f, "{sign} stream {}", self.stream)?,
            Some(consumer) => write!(f, "{sign} consumer {} > {consumer}", self.stream)?,
        }
        for difference in &self.differences {
            write!(f, "\n    {difference}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let (Value::Array(live), Value::Array(wanted)) = (&self.live, &self.wanted) {
            write!(f, "{}:", self.field)?;
            for gone in live.iter().filter(|item| !wanted.contains(item)) {
                write!(f, " -{gone}")?;
            }
            for new in wanted.iter().filter(|item| !live.contains(item)) {
                write!(f, " +{new}")?;
            }
        } else {
            let shown = |value: &Value| {
                if value.is_null() { "default".to_owned() } else { value.to_string() }
            };
            write!(f, "{}: {} -> {}", self.field, shown(&self.live), shown(&self.wanted))?;
        }
        match &self.refusal {
            None => Ok(()),
            Some(refusal) => write!(f, " ({refusal})"),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::provision::observe::LiveStream;

    #[test]
    fn what_the_server_fills_in_is_no_difference() {
        let live = json!({
            "name": "S", "subjects": ["b", "a"], "retention": "limits", "max_consumers": 5, "max_msgs": -1,
            "max_bytes": 100, "max_age": 0, "max_msgs_per_subject": -1, "max_msg_size": -1, "discard": "old",
            "storage": "file", "num_replicas": 1, "duplicate_window": 30, "compression": "none",
            "allow_direct": false, "sealed": false, "allow_rollup_hdrs": true, "consumer_limits": {},
            "metadata": {"_nats.level": "5", "_nats.ver": "2.15.1"}
        });

        let plan = plan(&desired(vec![stream(&declared())]), &existing(&live, 0));

        assert_eq!(plan.to_string(), "nothing to do (1 unchanged)");
        assert!(plan.is_empty());
    }

    #[test]
    fn an_update_keeps_what_is_not_declared() {
        let live = json!({
            "name": "S", "subjects": ["a", "c"], "max_consumers": 5, "max_bytes": 100, "duplicate_window": 30,
            "max_msgs": 7, "placement": {"cluster": "x"}, "metadata": {"_nats.level": "5", "owner": "me"}
        });

        let plan = plan(&desired(vec![stream(&declared())]), &existing(&live, 0));

        assert_eq!(
            plan.to_string(),
            "~ update stream S\n    max_msgs: 7 -> default\n    subjects: -\"c\" +\"b\"\n\
             0 to create, 1 to update, 0 refused, 0 unchanged"
        );
        assert_eq!(
            Value::Object(plan.changes[0].config.clone()),
            json!({
                "name": "S", "subjects": ["a", "b"], "max_consumers": 5, "max_bytes": 100, "duplicate_window": 30,
                "placement": {"cluster": "x"}, "metadata": {"owner": "me"}
            })
        );
    }

    #[test]
    fn changes_that_lose_data_or_are_impossible_are_refused() {
        let declared = declared();
        let case = |field: &str, live_value: Value, wanted_value: Value, bytes| {
            let (mut live, mut wanted) = (declared.clone(), declared.clone());
            live[field] = live_value;
            wanted[field] = wanted_value;
            plan(&desired(vec![stream(&wanted)]), &existing(&live, bytes))
        };

        assert!(case("max_bytes", json!(1_000), json!(100), 500).is_refused());
        assert!(!case("max_bytes", json!(1_000), json!(600), 500).is_refused());
        assert!(case("storage", json!("memory"), json!("file"), 0).is_refused());
        assert!(case("retention", json!("workqueue"), json!("limits"), 0).is_refused());
        assert!(case("retention", json!("limits"), json!("workqueue"), 0).is_refused());
        assert!(!case("retention", json!("interest"), json!("limits"), 0).is_refused());
        assert!(case("allow_msg_ttl", json!(true), json!(false), 0).is_refused());
        assert!(!case("allow_msg_ttl", json!(false), json!(true), 0).is_refused());
    }

    #[test]
    fn a_subject_is_released_before_it_is_taken_and_then_rewound() {
        let mut desired = desired(vec![stream(&declared())]);
        desired.consumers = vec![consumer("x", &["a", "b"]), consumer("y", &["c"])];
        let mut live = existing(&declared(), 0);
        let consumers = &mut live.get_mut("S").unwrap().consumers;
        consumers.insert("x".to_owned(), consumer("x", &["a"]).config);
        consumers.insert("y".to_owned(), consumer("y", &["b", "c"]).config);
        consumers.insert("z".to_owned(), consumer("z", &["d"]).config);

        let plan = plan(&desired, &live);

        let order: Vec<_> =
            plan.changes.iter().map(|one| (one.action, one.consumer.as_deref().unwrap())).collect();
        assert_eq!(order, [(Action::Update, "y"), (Action::Update, "x"), (Action::Rewind, "x")]);
        assert_eq!(plan.changes[0].config["filter_subjects"], json!(["c"]));
        assert_eq!(plan.strangers, ["S > z"]);
    }

    #[test]
    fn consumers_that_trade_subjects_release_them_first() {
        let mut desired = desired(vec![stream(&declared())]);
        desired.consumers = vec![consumer("x", &["b", "c"]), consumer("y", &["a", "d"])];
        let mut live = existing(&declared(), 0);
        let consumers = &mut live.get_mut("S").unwrap().consumers;
        consumers.insert("x".to_owned(), consumer("x", &["a", "c"]).config);
        consumers.insert("y".to_owned(), consumer("y", &["b", "d"]).config);

        let plan = plan(&desired, &live);

        let actions: Vec<_> = plan.changes.iter().map(|one| one.action).collect();
        assert_eq!(
            actions,
            [
                Action::Release,
                Action::Release,
                Action::Update,
                Action::Update,
                Action::Rewind,
                Action::Rewind
            ]
        );
        assert_eq!(plan.changes[0].config["filter_subjects"], json!(["c"]));
        assert_eq!(plan.changes[2].config["filter_subjects"], json!(["b", "c"]));
    }

    #[test]
    fn a_total_trade_of_subjects_is_refused() {
        let mut desired = desired(vec![stream(&declared())]);
        desired.consumers = vec![consumer("x", &["b"]), consumer("y", &["a"])];
        let mut live = existing(&declared(), 0);
        let consumers = &mut live.get_mut("S").unwrap().consumers;
        consumers.insert("x".to_owned(), consumer("x", &["a"]).config);
        consumers.insert("y".to_owned(), consumer("y", &["b"]).config);

        assert!(plan(&desired, &live).is_refused());
    }

    fn declared() -> Value {
        json!({"name": "S", "subjects": ["a", "b"], "max_consumers": 5, "max_bytes": 100, "duplicate_window": 30})
    }

    fn wanted(consumer: Option<&str>, config: &Value) -> Wanted {
        Wanted {
            file: "s.toml".to_owned(),
            stream: "S".to_owned(),
            consumer: consumer.map(str::to_owned),
            config: config.as_object().unwrap().clone(),
            ..Wanted::default()
        }
    }

    fn stream(config: &Value) -> Wanted {
        wanted(None, config)
    }

    fn consumer(name: &str, filters: &[&str]) -> Wanted {
        wanted(
            Some(name),
            &json!({"durable_name": name, "filter_subjects": filters, "ack_policy": "explicit"}),
        )
    }

    fn desired(streams: Vec<Wanted>) -> Desired {
        Desired { streams, ..Desired::default() }
    }

    fn existing(config: &Value, bytes: u64) -> Live {
        let config = config.as_object().unwrap().clone();
        Live::from([("S".to_owned(), LiveStream { config, bytes, ..LiveStream::default() })])
    }
}
