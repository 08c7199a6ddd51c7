//! The life of a group: steps that depend on each other. Nobody writes who its members are; each step's audience is
//! what the events before it have made of the group.
//!
//! `fanfare dev --once` compares it with what real clients get, and the demo page plays it.

use std::borrow::Cow;

use serde_json::json;

use super::scenario::{Step, step};

/// Name of the story on the page.
pub const NAME: &str = "group-life";

/// The group, which nobody ever wrote before its first event.
const GROUP: &str = "group-life";
const CONVERSATION: &str = "conv-life";
const CALL: &str = "call-life";

/// Whose place the reader of the page takes.
const OWNER: &str = "alice";

/// The steps in their order.
pub fn steps() -> Vec<Step> {
    [beginning(), talk(), end()].concat()
}

fn beginning() -> Vec<Step> {
    let joined = |title, user: &'static str| {
        of_group(title, "group.member_joined", "normal").with("user_id", user).with("nickname", user)
    };
    let role = |title, user: &'static str, role: &'static str| {
        of_group(title, "group.role_changed", "normal").with("user_id", user).with("new_role", role)
    };
    vec![
        joined("alice founds the group", "alice").to(&["alice"]),
        role("alice becomes its owner", "alice", "owner").to(&["alice"]),
        joined("bob joins", "bob").to(&["alice", "bob"]),
        joined("carol joins", "carol").to(&["alice", "bob", "carol"]),
        joined("dave joins", "dave").to(&["alice", "bob", "carol", "dave"]),
        role("bob becomes an admin", "bob", "admin").to(&["alice", "bob", "carol", "dave"]),
    ]
}

/// What members say to each other. No event makes a conversation another name of a group, so what everybody is to read
/// is a mention of everybody; a conversation of two comes from its first message.
fn talk() -> Vec<Step> {
    vec![
        of_group("alice writes to everybody", "message.mentioned", "high")
            .with("mention_type", "all")
            .with("from_user_id", "alice")
            .with("from_nickname", "alice")
            .to(&["bob", "carol", "dave"]),
        of_group("dave is muted", "group.muted", "high")
            .with("mute_type", "specific_member")
            .with("target_user_id", "dave")
            .to(&["alice", "bob", "dave"]),
        titled("carol writes to alice", step("message.new", "alice", "user", "normal"))
            .with("conversation_id", CONVERSATION)
            .with("message_id", "msg-life")
            .with("from_user_id", "carol")
            .with("from_nickname", "carol"),
        titled("carol takes it back", step("message.recalled", CONVERSATION, "conversation", "normal"))
            .with("conversation_id", CONVERSATION)
            .with("message_id", "msg-life")
            .with("operator_user_id", "carol")
            .to(&["alice", "carol"]),
        titled("alice calls carol", step("livekit.call_invite", "carol", "user", "high"))
            .with("call_id", CALL)
            .with("from_user_id", "alice")
            .with("from_nickname", "alice")
            .with("invited_users", json!(["carol"])),
        titled("nobody answers in time", step("livekit.call_status", CALL, "call", "high"))
            .with("call_id", CALL)
            .with("status", "ended")
            .with("reason", "invite_timeout")
            .by_itself()
            .to(&["alice", "carol"]),
    ]
}

fn end() -> Vec<Step> {
    vec![
        of_group("alice removes dave", "group.member_left", "normal")
            .with("user_id", "dave")
            .with("nickname", "dave")
            .with("reason", "removed_by_admin")
            .to(&["alice", "bob", "carol", "dave"]),
        of_group("the group has a new name", "group.info_updated", "normal").to(&["alice", "bob", "carol"]),
        of_group("alice disbands the group", "group.disbanded", "high").to(&["alice", "bob", "carol"]),
        // A group that is gone is known and empty, so this is for nobody, and no dead letter.
        of_group("a notice comes too late", "group.muted", "high").to(&[]),
    ]
}

fn of_group(title: &'static str, event_type: &'static str, lane: &'static str) -> Step {
    titled(title, step(event_type, GROUP, "group", lane))
        .with("group_id", GROUP)
        .with("operator_user_id", OWNER)
        .with("inviter_user_id", OWNER)
}

fn titled(title: &'static str, step: Step) -> Step {
    Step { title, ..step }
}

/// One performance for the page: with sets of its own, and somebody in the owner's place.
#[derive(Debug)]
pub struct Play {
    names: [(&'static str, String); 4],
}

impl Play {
    /// With `user` as the owner, unless that is one of the other members.
    pub fn new(user: &str) -> Self {
        let id = uuid::Uuid::new_v4().simple().to_string();
        let fresh = |name: &'static str| (name, format!("{name}-{}", &id[..8]));
        let owner = if super::stage::USERS.contains(&user) { OWNER } else { user };
        Self { names: [fresh(GROUP), fresh(CONVERSATION), fresh(CALL), (OWNER, owner.to_owned())] }
    }

    /// What stands in the place of which name.
    pub fn names(&self) -> Vec<(&str, &str)> {
        self.names.iter().map(|(old, new)| (*old, new.as_str())).collect()
    }

    /// A title with the owner's name.
    pub fn title<'a>(&self, step: &'a Step) -> Cow<'a, str> {
        let [.., (_, owner)] = &self.names;
        if owner == OWNER { step.title.into() } else { step.title.replace(OWNER, owner).into() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_left_hears_nothing_more_and_after_the_end_nobody_does() {
        let steps = steps();
        let at = |event: &str| steps.iter().position(|step| step.event_type == event).unwrap();
        let (left, gone) = (at("group.member_left"), at("group.disbanded"));
        assert!(left < gone && gone + 1 < steps.len());
        assert!(steps[left].expected.contains(&"dave"));
        assert!(steps[left + 1..].iter().all(|step| !step.expected.contains(&"dave")));
        assert!(steps[gone + 1..].iter().all(|step| step.devices().is_empty()));
        assert!(steps[..=gone].iter().all(|step| !step.devices().is_empty() && !step.title.is_empty()));
    }

    #[test]
    fn every_performance_has_sets_of_its_own_and_the_reader_as_owner() {
        let (one, two) = (Play::new("erin"), Play::new("bob"));
        assert_ne!(one.names()[0], two.names()[0]);
        let first = &steps()[0];
        assert_eq!(
            (&*one.title(first), &*two.title(first)),
            ("erin founds the group", "alice founds the group")
        );
        assert!(one.names().contains(&("alice", "erin")));
    }
}
