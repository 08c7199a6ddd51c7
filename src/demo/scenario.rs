//! What `fanfare dev --once` publishes and who must get it: written by hand from the rules, not derived from the
//! catalog, so that it can find a mistake there.
//!
//! Events that change something for others (logout, ban, leaving, disbanding) have users, devices and groups of their
//! own.

use serde_json::{Value, json};

use crate::catalog::{Kind, Role};

/// A device: user and device id.
pub(super) type Device = (&'static str, &'static str);

/// Everybody who is connected.
pub(super) const DEVICES: [Device; 22] = [
    ("user-123", "phone-123"),
    ("user-123", "tablet-123"),
    ("user-456", "phone-456"),
    ("user-789", "phone-789"),
    ("user-bystander", "phone-bystander"),
    ("user-logout", "device-789"),
    ("user-logout", "device-old"),
    ("user-password", "phone-password"),
    ("user-banned", "phone-banned"),
    ("user-sync", "device-456"),
    ("user-sync", "device-457"),
    ("user-asked", "phone-asked"),
    ("user-answered", "phone-answered"),
    ("user-deleted", "phone-deleted"),
    ("user-left", "phone-left"),
    ("user-caller", "phone-caller"),
    ("user-callee", "phone-callee"),
    ("alice", "phone-alice"),
    ("bob", "phone-bob"),
    ("bob", "laptop-bob"),
    ("carol", "phone-carol"),
    ("dave", "phone-dave"),
];

/// A member of a set before the first event.
pub(super) type Member = (Kind, &'static str, &'static str, Role);

/// Who belongs where.
pub(super) const MEMBERS: [Member; 25] = [
    (Kind::Group, "group-123", "user-123", Role::Member),
    (Kind::Group, "group-123", "user-456", Role::Owner),
    (Kind::Group, "group-123", "user-789", Role::Member),
    (Kind::Group, "group-456", "user-123", Role::Member),
    (Kind::Group, "group-456", "user-456", Role::Member),
    (Kind::Group, "group-456", "user-789", Role::Member),
    (Kind::Group, "group-joined", "user-456", Role::Owner),
    (Kind::Group, "group-joined", "user-789", Role::Member),
    (Kind::Group, "group-left", "user-456", Role::Owner),
    (Kind::Group, "group-left", "user-left", Role::Member),
    (Kind::Group, "group-role", "user-456", Role::Owner),
    (Kind::Group, "group-role", "user-789", Role::Member),
    (Kind::Group, "group-gone", "user-123", Role::Member),
    (Kind::Group, "group-gone", "user-456", Role::Owner),
    (Kind::Conversation, "conv-456", "user-123", Role::Member),
    (Kind::Conversation, "conv-456", "user-456", Role::Member),
    (Kind::Conversation, "conv-456", "user-789", Role::Member),
    (Kind::Call, "call-123", "user-123", Role::Member),
    (Kind::Call, "call-123", "user-456", Role::Member),
    (Kind::Call, "call-123", "user-789", Role::Member),
    (Kind::Followers, "user-456", "user-123", Role::Member),
    (Kind::Followers, "user-456", "user-789", Role::Member),
    (Kind::Group, "group-456", "user-left", Role::Member),
    (Kind::Call, "call-own", "user-caller", Role::Member),
    (Kind::Call, "call-own", "user-callee", Role::Member),
];

/// One notification and what must come of it.
#[derive(Debug, Clone)]
pub struct Step {
    /// What happens, in a story; empty outside.
    pub title: &'static str,
    /// The type, which also names the sample.
    pub event_type: &'static str,
    /// Which of the event's rules it shows; empty for the only one.
    pub variant: &'static str,
    /// Last token of the subject.
    pub target: &'static str,
    /// Fields of the payload that differ from the sample.
    pub fields: Vec<(&'static str, Value)>,
    /// The envelope's metadata.
    pub metadata: Value,
    /// Who gets it, in words.
    pub audience: &'static str,
    /// Users with all their devices, or single devices.
    pub expected: Vec<&'static str>,
    /// Lane it must come on; `datagram` for none.
    pub lane: &'static str,
    /// Records that the push service must get of it.
    pub offline_pushes: u64,
    /// Devices whose sessions it ends for good.
    pub ends: Vec<&'static str>,
    /// The gateway itself makes it, after a time limit: it is not published but awaited, and `fields` is what it must
    /// say.
    pub by_itself: bool,
}

pub(super) fn step(
    event_type: &'static str,
    target: &'static str,
    audience: &'static str,
    lane: &'static str,
) -> Step {
    Step {
        title: "",
        event_type,
        variant: "",
        target,
        fields: Vec::new(),
        metadata: json!({}),
        audience,
        expected: vec![target],
        lane,
        offline_pushes: 0,
        ends: Vec::new(),
        by_itself: false,
    }
}

impl Step {
    fn variant(mut self, variant: &'static str) -> Self {
        self.variant = variant;
        self
    }

    pub(super) fn with(mut self, field: &'static str, value: impl Into<Value>) -> Self {
        self.fields.push((field, value.into()));
        self
    }

    fn metadata(mut self, metadata: Value) -> Self {
        self.metadata = metadata;
        self
    }

    pub(super) fn to(mut self, expected: &[&'static str]) -> Self {
        self.expected = expected.to_vec();
        self
    }

    pub(super) fn by_itself(mut self) -> Self {
        self.by_itself = true;
        self
    }

    fn ends(mut self, devices: &[&'static str]) -> Self {
        self.ends = devices.to_vec();
        self
    }

    /// Caused on the tablet, so only the phone is told.
    fn by_tablet(self) -> Self {
        self.metadata(json!({ "origin_device_id": "tablet-123" })).to(&["phone-123"])
    }

    /// The devices that must get it.
    pub(super) fn devices(&self) -> Vec<Device> {
        let meant = |(user, device): &Device| {
            self.expected.iter().any(|name| name == user || name == device || *name == EVERYBODY)
        };
        DEVICES.into_iter().filter(meant).collect()
    }
}

/// Stands for all devices in [`Step::expected`].
const EVERYBODY: &str = "*";
const TRIO: [&str; 3] = ["user-123", "user-456", "user-789"];

/// Every event of the specification, and each of its audience rules.
pub fn steps() -> Vec<Step> {
    [auth_and_user(), friends(), groups(), messages(), sessions_and_files(), calls_sync_admin()].concat()
}

fn auth_and_user() -> Vec<Step> {
    vec![
        step("auth.unusual_login", "user-123", "user", "high"),
        step("user.profile_updated", "user-123", "own other devices", "normal").by_tablet(),
        step("user.friend_profile_changed", "user-123", "user", "normal"),
        step("user.friend_profile_changed", "user-456", "followers", "normal")
            .variant("followers")
            .to(&["user-123", "user-789"]),
        step("user.status_changed", "user-123", "user", "low"),
        step("user.status_changed", "user-456", "followers", "low")
            .variant("followers")
            .to(&["user-123", "user-789"]),
    ]
}

fn friends() -> Vec<Step> {
    vec![
        step("friend.request", "user-123", "user", "high"),
        step("friend.request_handled", "user-asked", "both sides", "normal")
            .variant("accepted")
            .with("to_user_id", "user-answered")
            .to(&["user-asked", "user-answered"]),
        step("friend.request_handled", "user-asked", "user", "normal")
            .variant("rejected")
            .with("status", "rejected")
            .with("to_user_id", "user-answered"),
        step("friend.deleted", "user-deleted", "user", "normal"),
        step("friend.remark_updated", "user-123", "own other devices", "normal").by_tablet(),
        step("friend.blacklist_changed", "user-123", "own other devices", "normal").by_tablet(),
    ]
}

fn groups() -> Vec<Step> {
    vec![
        step("group.invited", "user-123", "user", "normal"),
        step("group.member_joined", "group-joined", "group", "normal")
            .with("group_id", "group-joined")
            .to(&["user-456", "user-789"]),
        step("group.member_left", "group-left", "group + who left", "normal")
            .with("group_id", "group-left")
            .with("user_id", "user-left")
            .to(&["user-456", "user-left"]),
        step("group.info_updated", "group-123", "group", "normal").to(&TRIO),
        step("group.role_changed", "group-role", "group", "normal")
            .with("group_id", "group-role")
            .to(&["user-456", "user-789"]),
        step("group.muted", "group-123", "group", "high").variant("all").to(&TRIO),
        step("group.muted", "group-123", "member + admins", "high")
            .variant("one")
            .with("mute_type", "specific_member")
            .to(&["user-456", "user-789"]),
        step("group.disbanded", "group-gone", "group", "high")
            .with("group_id", "group-gone")
            .to(&["user-123", "user-456"]),
    ]
}

fn messages() -> Vec<Step> {
    vec![
        step("message.new", "user-123", "user", "normal").variant("single"),
        step("message.new", "conv-456", "conversation - sender", "normal")
            .variant("group")
            .with("conversation_type", "group")
            .to(&["user-123", "user-456"]),
        step("message.read_receipt", "user-123", "user", "low"),
        step("message.recalled", "conv-456", "conversation", "normal").to(&TRIO),
        step("message.typing", "user-123", "user", "datagram"),
        step("message.mentioned", "user-123", "user", "high").variant("single"),
        step("message.mentioned", "group-456", "group - sender", "high")
            .variant("all")
            .with("mention_type", "all")
            .to(&["user-123", "user-456", "user-left"]),
    ]
}

fn sessions_and_files() -> Vec<Step> {
    vec![
        step("session.unread_updated", "user-123", "user", "normal"),
        step("session.pin_updated", "user-123", "own other devices", "normal").by_tablet(),
        step("session.deleted", "user-123", "own other devices", "normal").by_tablet(),
        step("session.mute_updated", "user-123", "own other devices", "normal").by_tablet(),
        step("file.upload_completed", "user-123", "own other devices", "normal").by_tablet(),
        step("file.processing", "user-123", "user", "low"),
        step("file.expiring", "user-123", "user", "normal"),
        step("push.delivery_status", "user-123", "user", "low"),
        step("push.token_invalid", "user-123", "user", "low"),
    ]
}

fn calls_sync_admin() -> Vec<Step> {
    vec![
        step("livekit.call_invite", "user-callee", "user", "high")
            .with("call_id", "call-own")
            .with("from_user_id", "user-caller")
            .with("invited_users", json!(["user-callee"])),
        step("livekit.call_status", "call-123", "call", "high").to(&TRIO),
        step("livekit.call_rejected", "user-caller", "caller + rejector's others", "high")
            .with("call_id", "call-own")
            .with("rejector_user_id", "user-callee")
            .metadata(json!({ "origin_device_id": "phone-callee" })),
        // Otherwise the time limit of the invitation would end it, some time later.
        step("livekit.call_status", "call-own", "call", "high")
            .variant("ended")
            .with("call_id", "call-own")
            .with("status", "ended")
            .to(&["user-caller", "user-callee"]),
        step("sync.request", "user-sync", "own but from_device_id", "normal").to(&["device-457"]),
        step("sync.completed", "user-123", "own other devices", "normal").by_tablet(),
        step("admin.announcement", "broadcast", "everybody", "normal")
            .with("priority", "normal")
            .to(&[EVERYBODY]),
        step("admin.maintenance", "broadcast", "everybody", "high").to(&[EVERYBODY]),
        step("system.broadcast", "all", "everybody", "normal").to(&[EVERYBODY]),
        // What ends sessions comes last: everybody has heard the broadcasts by then.
        step("auth.force_logout", "user-logout", "user but the new device", "high")
            .to(&["device-old"])
            .ends(&["device-old"]),
        step("auth.password_changed", "user-password", "user", "high").ends(&["phone-password"]),
        step("admin.user_banned", "user-banned", "user", "high")
            .with("user_id", "user-banned")
            .with("is_permanent", true)
            .ends(&["phone-banned"]),
    ]
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_event_of_the_catalog_has_a_step_that_somebody_gets() {
        let steps = steps();
        let named: BTreeSet<_> = steps.iter().map(|step| step.event_type).collect();
        let catalog = crate::catalog::Catalog::built_in().unwrap();
        let known: BTreeSet<_> = catalog.events().iter().map(|event| event.name.as_str()).collect();
        assert_eq!(named, known);
        for step in steps {
            assert!(!step.devices().is_empty(), "{} {}", step.event_type, step.variant);
        }
    }
}
