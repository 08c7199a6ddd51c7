//! Checks a catalog when it is loaded, so that no stage after it needs to doubt a row. Pure.

use std::collections::HashSet;

use super::rules::{Event, Field, Inbox, Kind, Offline, Root, Rule, Shape, ShapeMode, Target};

/// One mistake in a catalog: where it is and what to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The row's `type`.
    pub row: String,
    /// The field, such as `audience[1].large`.
    pub field: String,
    /// What is wrong, and what to do.
    pub advice: String,
}

/// One mistake a line.
pub(super) fn list(problems: &[Problem]) -> String {
    let lines =
        problems.iter().map(|problem| format!("  {}: {}: {}", problem.row, problem.field, problem.advice));
    lines.collect::<Vec<_>>().join("\n")
}

/// Collects the mistakes of one row.
struct Row<'a> {
    event: &'a Event,
    problems: Vec<Problem>,
}

impl Row<'_> {
    /// Notes a mistake when `wrong` holds.
    fn refuse(&mut self, wrong: bool, field: impl Into<String>, advice: impl Into<String>) {
        if wrong {
            let row = self.event.name.clone();
            self.problems.push(Problem { row, field: field.into(), advice: advice.into() });
        }
    }
}

/// All mistakes in `events`; empty when the catalog can be used.
pub(super) fn problems(events: &[Event]) -> Vec<Problem> {
    let mut seen = HashSet::new();
    let mut problems = Vec::new();
    for event in events {
        let mut row = Row { event, problems: Vec::new() };
        let again = !seen.insert(event.name.as_str());
        row.refuse(again, "type", "appears twice: merge the two rows or rename one");
        check_name(&mut row);
        check_numbers(&mut row);
        check_audience(&mut row);
        check_policies(&mut row);
        if let Some(shape) = &event.shape {
            check_shape(&mut row, shape);
        }
        problems.append(&mut row.problems);
    }
    problems
}

fn check_name(row: &mut Row<'_>) {
    let word = |text: &str| {
        !text.is_empty() && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
    };
    let good = row.event.name.split_once('.').is_some_and(|(service, event)| word(service) && word(event));
    row.refuse(!good, "type", "is not a type: write service.event in lower case, such as friend.request");
}

fn check_numbers(row: &mut Row<'_>) {
    let event = row.event;
    row.refuse(
        event.rank > 100,
        "rank",
        format!("{} is too high: 0 to 100, higher leaves first", event.rank),
    );
    row.refuse(
        event.ttl_s == 0,
        "ttl_s",
        "0 would expire everything: write seconds, or leave it out for 3600",
    );
    let late = event.ack && event.ack_timeout().as_secs() >= event.ttl_s;
    row.refuse(late, "ack_timeout_ms", "is not shorter than ttl_s: the hand-off would find it expired");
    let zero = event.ack_timeout_ms == 0;
    row.refuse(
        zero,
        "ack_timeout_ms",
        "0 leaves no time to answer: write milliseconds, or leave it out for 10000",
    );
}

fn check_audience(row: &mut Row<'_>) {
    let event = row.event;
    row.refuse(event.audience.is_empty(), "audience", "is empty, so nobody would get it: add a rule");
    let last = event.audience.len().saturating_sub(1);
    for (at, rule) in event.audience.iter().enumerate() {
        let here = |field: &str| format!("audience[{at}]{}{field}", if field.is_empty() { "" } else { "." });
        let always = rule.when.is_empty() && rule.when_target.is_none();
        row.refuse(
            always && at < last,
            here(""),
            "has no condition, so the rules after it are never reached: give it `when` or move it to the end",
        );
        row.refuse(!fits(event.target, rule), here("to"), misfit(event.target, rule));
        let set = rule.to.is_stored();
        row.refuse(
            rule.large.is_some() && !set,
            here("large"),
            format!("needs a set of members, not `{}`: remove it", rule.to.as_str()),
        );
        row.refuse(
            !rule.roles.is_empty() && !set,
            here("roles"),
            format!("needs a set of members, not `{}`: remove it", rule.to.as_str()),
        );
        let reaches_all = rule.to == Kind::Broadcast;
        row.refuse(
            reaches_all && !rule.also.is_empty(),
            here("also"),
            "adds nobody to a broadcast: remove it",
        );
        for also in &rule.also {
            let odd = matches!(also.offline, Some(Offline::Ring | Offline::Never));
            row.refuse(
                odd,
                here("also.offline"),
                "ring and never belong to whole rows: write none, alert or silent",
            );
        }
    }
}

/// A rule without `id` takes the subject's target as the id of its set, so the two must be of one sort.
fn fits(target: Target, rule: &Rule) -> bool {
    let broadcast = matches!(target, Target::Broadcast | Target::Name);
    match (rule.to, &rule.id) {
        (Kind::Broadcast, id) => broadcast && id.is_none(),
        (_, Some(_)) => true,
        (to, None) => match target {
            Target::User => matches!(to, Kind::User | Kind::Followers),
            Target::Group => to == Kind::Group,
            Target::Conversation => to == Kind::Conversation,
            Target::Call => to == Kind::Call,
            Target::Any => true,
            Target::Broadcast | Target::Name => false,
        },
    }
}

fn misfit(target: Target, rule: &Rule) -> String {
    format!(
        "`{}` cannot be found by a target of kind {target:?}: change `target`, or name the field with its `id`",
        rule.to.as_str()
    )
}

fn check_policies(row: &mut Row<'_>) {
    let event = row.event;
    let to_user = event.audience.iter().any(|rule| rule.to == Kind::User);
    let set = event.audience.iter().any(|rule| rule.to != Kind::User);
    row.refuse(
        event.ack && !to_user,
        "ack",
        "needs a rule with to = \"user\": a set of people cannot ack as one",
    );
    row.refuse(event.ack_every_device && !event.ack, "ack_every_device", "needs ack = true");
    let ring = event.offline == Offline::Ring;
    row.refuse(
        ring && !event.ack,
        "offline",
        "ring needs ack = true: without it nobody knows whether to ring",
    );
    row.refuse(ring && set, "offline", "ring needs rules with to = \"user\" only: a set cannot be rung");
    let push = event.service() == "push" && event.offline != Offline::Never;
    row.refuse(push, "offline", "an event about pushes must not cause one: write never");
    if event.ephemeral {
        let advice =
            "an ephemeral event is never stored and delivered at most once: remove it, or `ephemeral`";
        row.refuse(event.ack, "ack", advice);
        row.refuse(event.inbox != Inbox::None, "inbox", advice);
        row.refuse(!matches!(event.offline, Offline::None | Offline::Never), "offline", advice);
        row.refuse(!event.effects.is_empty(), "effects", advice);
    }
}

fn check_shape(row: &mut Row<'_>, shape: &Shape) {
    let event = row.event;
    row.refuse(
        shape.key.is_empty(),
        "shape.key",
        "is empty: name the fields that belong together, or `target`",
    );
    let known = |field: &Field| match field.root() {
        Root::Payload | Root::FromUserId => true,
        Root::Target => event.target == Target::User,
        Root::Metadata => false,
    };
    row.refuse(
        !shape.key.iter().all(known),
        "shape.key",
        "may name fields of the payload, `from_user_id` and, where the target is a user, `target`: sessions know no others",
    );
    row.refuse(
        shape.window_ms == 0,
        "shape.window_ms",
        "0 shapes nothing: write milliseconds, or remove `shape`",
    );
    let zero = shape.window_large_ms == Some(0);
    row.refuse(zero, "shape.window_large_ms", "0 shapes nothing: write milliseconds, or leave it out");
    let all = shape.pass.iter().any(std::collections::BTreeMap::is_empty);
    row.refuse(all, "shape.pass", "has an entry without a condition, which lets everything pass: remove it");
    row.refuse(
        event.ack,
        "shape",
        "a notification that is merged away is never acked: remove `shape` or `ack`",
    );
    if shape.mode == ShapeMode::Throttle {
        let kept = event.offline != Offline::None || event.inbox != Inbox::None || !event.effects.is_empty();
        row.refuse(kept, "shape.mode", "throttle drops, and this row promises more: write coalesce");
        row.refuse(shape.leading, "shape.leading", "a throttle always lets the first one pass: remove it");
        row.refuse(
            shape.field_set,
            "shape.field_set",
            "a throttle would drop changed fields: write coalesce",
        );
    }
}

#[cfg(test)]
mod tests {
    use crate::catalog::Catalog;

    /// A valid row, in which tests replace lines.
    const ROW: &str = r#"
[[event]]
type = "friend.request"
target = "user"
lane = "high"
rank = 60
audience = [{ to = "user" }]
"#;

    #[test]
    fn each_mistake_names_row_field_and_remedy() {
        let cases = [
            ("friend.request", "FriendRequest", "FriendRequest: type: is not a type: write service.event"),
            ("friend.request", "friend.", "friend.: type: is not a type"),
            ("friend.request", "friend.request.x", "friend.request.x: type: is not a type"),
            (
                "friend.request",
                "push.request",
                "push.request: offline: an event about pushes must not cause one: write never",
            ),
            ("rank = 60", "rank = 101", "friend.request: rank: 101 is too high: 0 to 100"),
            ("rank = 60", "rank = 1\nttl_s = 0", "ttl_s: 0 would expire everything"),
            ("rank = 60", "rank = 1\nack_timeout_ms = 0", "ack_timeout_ms: 0 leaves no time"),
            ("rank = 60", "rank = 1\nack = true\nttl_s = 10", "ack_timeout_ms: is not shorter than ttl_s"),
            ("rank = 60", "rank = 1\nack_every_device = true", "ack_every_device: needs ack = true"),
            ("[{ to = \"user\" }]", "[]", "audience: is empty, so nobody would get it: add a rule"),
            (
                "[{ to = \"user\" }]",
                "[{ to = \"user\" }, { to = \"user\" }]",
                "audience[0]: has no condition, so the rules after it",
            ),
            (
                "[{ to = \"user\" }]",
                "[{ to = \"user\", large = { over = 5 } }]",
                "audience[0].large: needs a set of members, not `user`",
            ),
            (
                "[{ to = \"user\" }]",
                "[{ to = \"user\", roles = [\"owner\"] }]",
                "audience[0].roles: needs a set",
            ),
            (
                "[{ to = \"user\" }]",
                "[{ to = \"group\" }]",
                "audience[0].to: `group` cannot be found by a target of kind User",
            ),
            (
                "[{ to = \"user\" }]",
                "[{ to = \"broadcast\" }]",
                "audience[0].to: `broadcast` cannot be found",
            ),
            (
                "[{ to = \"user\" }]",
                "[{ to = \"user\", also = [{ user = \"payload.x\", offline = \"never\" }] }]",
                "audience[0].also.offline: ring and never belong to whole rows",
            ),
            (
                "rank = 60\naudience = [{ to = \"user\" }]",
                "rank = 1\nack = true\naudience = [{ to = \"followers\" }]",
                "ack: needs a rule with to = \"user\"",
            ),
            ("rank = 60", "rank = 1\noffline = \"ring\"", "offline: ring needs ack = true"),
            (
                "rank = 60",
                "rank = 1\nephemeral = true\nack = true",
                "ack: an ephemeral event is never stored",
            ),
            (
                "rank = 60",
                "rank = 1\nephemeral = true\ninbox = \"missed\"",
                "inbox: an ephemeral event is never stored",
            ),
            (
                "rank = 60",
                "rank = 1\nephemeral = true\noffline = \"alert\"",
                "offline: an ephemeral event is never stored",
            ),
            (
                "rank = 60",
                "rank = 1\nephemeral = true\neffects = [\"ban\"]",
                "effects: an ephemeral event is never stored",
            ),
            (
                "rank = 60",
                "rank = 1\nshape = { mode = \"coalesce\", window_ms = 1, key = [] }",
                "shape.key: is empty",
            ),
            (
                "rank = 60",
                "rank = 1\nshape = { mode = \"coalesce\", window_ms = 1, key = [\"metadata.a\"] }",
                "shape.key: may name fields of the payload",
            ),
            (
                "rank = 60",
                "rank = 1\nshape = { mode = \"coalesce\", window_ms = 0, key = [\"target\"] }",
                "shape.window_ms: 0 shapes nothing",
            ),
            (
                "rank = 60",
                "rank = 1\nshape = { mode = \"coalesce\", window_ms = 1, window_large_ms = 0, key = [\"target\"] }",
                "shape.window_large_ms: 0 shapes nothing",
            ),
            (
                "rank = 60",
                "rank = 1\nshape = { mode = \"coalesce\", window_ms = 1, key = [\"target\"], pass = [{}] }",
                "shape.pass: has an entry without a condition",
            ),
            (
                "rank = 60",
                "rank = 1\nack = true\nshape = { mode = \"coalesce\", window_ms = 1, key = [\"target\"] }",
                "shape: a notification that is merged away",
            ),
            (
                "rank = 60",
                "rank = 1\ninbox = \"missed\"\nshape = { mode = \"throttle\", window_ms = 1, key = [\"target\"] }",
                "shape.mode: throttle drops",
            ),
            (
                "rank = 60",
                "rank = 1\nshape = { mode = \"throttle\", window_ms = 1, key = [\"target\"], leading = true }",
                "shape.leading: a throttle always lets the first one pass",
            ),
            (
                "rank = 60",
                "rank = 1\nshape = { mode = \"throttle\", window_ms = 1, key = [\"target\"], field_set = true }",
                "shape.field_set: a throttle would drop",
            ),
            ("\"high\"", "\"urgent\"", "unknown variant `urgent`, expected one of `high`, `normal`, `low`"),
            ("rank = 60", "rnk = 60", "unknown field `rnk`"),
            (
                "rank = 60",
                "rank = 60\nexpires_at = \"expires\"",
                "`expires` is not a field: write payload.NAME",
            ),
        ];
        assert!(Catalog::from_toml(ROW).is_ok());
        for (line, replacement, expected) in cases {
            let error = Catalog::from_toml(&ROW.replace(line, replacement)).unwrap_err().to_string();
            assert!(error.contains(expected), "{replacement}\n  gave {error}\n  not {expected}");
        }
    }

    #[test]
    fn a_type_may_appear_once() {
        let error = Catalog::from_toml(&format!("{ROW}{ROW}")).unwrap_err().to_string();
        assert!(
            error.contains("friend.request: type: appears twice: merge the two rows or rename one"),
            "{error}"
        );
    }

    #[test]
    fn all_mistakes_are_told_at_once() {
        let text = ROW.replace("rank = 60", "rank = 200\nttl_s = 0");
        let error = Catalog::from_toml(&text).unwrap_err().to_string();
        assert!(error.starts_with("catalog has 2 mistake(s):"), "{error}");
    }
}
