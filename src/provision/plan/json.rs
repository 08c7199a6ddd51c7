//! A plan for machines. The shape is documented in `docs/provisioning.md`; fields are added, never changed.

use serde_json::{Value, json};

use super::{Action, Change, Plan};
use crate::provision::units;

/// Number of the shape. It changes when a field goes or means something else.
const FORMAT: u64 = 1;

impl Plan {
    /// The plan as JSON.
    pub fn json(&self) -> Value {
        json!({
            "format": FORMAT,
            "server": self.server,
            "changes": self.changes.iter().map(change).collect::<Vec<_>>(),
            "steps": self.steps.iter().map(ToString::to_string).collect::<Vec<_>>(),
            "undeclared": self.undeclared.iter().map(|one| json!({
                "stream": one.stream, "consumer": one.consumer, "ours": one.ours,
            })).collect::<Vec<_>>(),
            "summary": {
                "create": self.count(Action::Create),
                "update": self.count(Action::Update),
                "replace": self.count(Action::Replace),
                "delete": self.count(Action::Delete),
                "finish": self.count(Action::Finish),
                "refused": self.changes.iter().filter(|change| change.refused.is_some()).count(),
                "unchanged": self.unchanged,
            },
        })
    }
}

fn change(change: &Change) -> Value {
    json!({
        "action": change.action.as_str(),
        "stream": change.stream,
        "consumer": change.consumer,
        "class": change.class,
        "fields": change.differences.iter().map(|one| json!({
            "field": one.field,
            "from": units::readable(&one.field, &one.live),
            "to": units::readable(&one.field, &one.wanted),
            "class": one.class,
            "reason": one.reason,
        })).collect::<Vec<_>>(),
        "waiting": {
            "messages": change.waiting.messages,
            "bytes": change.waiting.bytes,
            "unacknowledged": change.waiting.unacknowledged,
        },
        "lost": change.lost,
        "refused": change.refused,
    })
}
