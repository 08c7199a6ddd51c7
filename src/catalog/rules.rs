//! The shape of a catalog row: typed rules that the pipeline and the edge read, and nothing else.
//!
//! Pure data, deserialised from TOML with unknown fields refused.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};

/// The three lanes of JetStream consumers and of live traffic to a session, most urgent first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Lane {
    /// Calls, bans, friend requests: never waits for the other two.
    High,
    /// Messages and state changes.
    Normal,
    /// Presence, typing, progress.
    Low,
}

impl Lane {
    /// All lanes, most urgent first.
    pub const ALL: [Self; 3] = [Self::High, Self::Normal, Self::Low];

    /// The lane's name in files, on the wire and in metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::High => "high",
            Self::Normal => "normal",
            Self::Low => "low",
        }
    }
}

/// What the last token of an event's subject names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Target {
    /// A user id.
    User,
    /// A group id.
    Group,
    /// A conversation id.
    Conversation,
    /// A call id.
    Call,
    /// A user, a group or a conversation: the rules tell by comparing with the payload.
    Any,
    /// The literal token `broadcast`.
    Broadcast,
    /// Any name, for a broadcast (`notification.system.broadcast.{name}`).
    Name,
}

/// A set of people that a rule can address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// One user.
    User,
    /// The members of a group.
    Group,
    /// The members of a conversation (which may be an alias of a group).
    Conversation,
    /// The participants of a call.
    Call,
    /// The people who follow a user (friends who see profile and status).
    Followers,
    /// Everyone who is online.
    Broadcast,
}

impl Kind {
    /// The kind's name in files and in keys of the `audience` bucket.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::Group => "group",
            Self::Conversation => "conversation",
            Self::Call => "call",
            Self::Followers => "followers",
            Self::Broadcast => "broadcast",
        }
    }

    /// True for kinds whose members are kept in the `audience` bucket.
    pub const fn is_stored(self) -> bool {
        matches!(self, Self::Group | Self::Conversation | Self::Call | Self::Followers)
    }
}

/// A member's role in an audience.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// The owner of a group.
    Owner,
    /// An administrator of a group.
    Admin,
    /// Everyone else.
    #[default]
    Member,
}

/// Where a [`Field`] starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Root {
    /// The business data, `payload.…`.
    Payload,
    /// Delivery hints, `metadata.…`.
    Metadata,
    /// The envelope's `from_user_id`.
    FromUserId,
    /// The last token of the subject.
    Target,
}

/// The place of a value in a notification, such as `payload.group_id` or `metadata.origin_device_id`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Field {
    text: String,
}

impl Field {
    /// Parses a place; `None` when the text names none.
    pub fn parse(text: &str) -> Option<Self> {
        let known = match text.split_once('.') {
            Some(("payload" | "metadata", rest)) => {
                !rest.is_empty() && rest.split('.').all(|part| !part.is_empty())
            }
            Some(_) => false,
            None => matches!(text, "from_user_id" | "target"),
        };
        known.then(|| Self { text: text.to_owned() })
    }

    /// Where the place starts.
    pub fn root(&self) -> Root {
        match self.text.split('.').next() {
            Some("payload") => Root::Payload,
            Some("metadata") => Root::Metadata,
            Some("from_user_id") => Root::FromUserId,
            _ => Root::Target,
        }
    }

    /// The object keys below the root, outermost first.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.text.split('.').skip(1)
    }

    /// The place as written in the catalog.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

impl fmt::Display for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl<'de> Deserialize<'de> for Field {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).ok_or_else(|| {
            serde::de::Error::custom(format!(
                "`{text}` is not a field: write payload.NAME, metadata.NAME, from_user_id or target"
            ))
        })
    }
}

/// Conditions on values: all must hold. Text compares as it is, `true` and `false` as these words; anything else,
/// and an absent value, never equals.
pub type When = BTreeMap<Field, String>;

/// One audience rule. The first rule of a row whose conditions hold decides.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// Fields that must have these values.
    #[serde(default)]
    pub when: When,
    /// The subject's target must equal this field.
    #[serde(default)]
    pub when_target: Option<Field>,
    /// Who gets it. The set's id is the subject's target, unless `id` names a field.
    pub to: Kind,
    /// Field with the id of the set, when it is not the subject's target.
    #[serde(default)]
    pub id: Option<Field>,
    /// Only members with these roles; empty means everybody.
    #[serde(default)]
    pub roles: Vec<Role>,
    /// A user who is left out, such as the sender.
    #[serde(default)]
    pub except_user: Option<Field>,
    /// Devices that are left out, by fields with a device id. Applies to the user(s) of `to`.
    #[serde(default)]
    pub except_devices: Vec<Field>,
    /// Field with a list of device ids: when present, only these get it.
    #[serde(default)]
    pub only_devices: Option<Field>,
    /// More users beside the set.
    #[serde(default)]
    pub also: Vec<Also>,
    /// What changes when the set is large.
    #[serde(default)]
    pub large: Option<Large>,
}

/// One more user who gets the notification.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Also {
    /// Field with the user's id; nobody when the field is absent.
    pub user: Field,
    /// Fields that must have these values.
    #[serde(default)]
    pub when: When,
    /// Offline policy for this user, when it differs from the row's.
    #[serde(default)]
    pub offline: Option<Offline>,
    /// Devices of this user that are left out.
    #[serde(default)]
    pub except_devices: Vec<Field>,
}

/// Sets with more members than this are large wherever a row says no number of its own: 500, the specification's
/// large group.
pub const LARGE_SET: usize = 500;

/// The rule for sets with more than `over` members.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Large {
    /// The rule applies to sets with more members than this.
    pub over: usize,
    /// Only these roles get it. Empty means that nobody of the set does (each counts as `excluded`).
    #[serde(default)]
    pub roles: Vec<Role>,
    /// Users who get it besides.
    #[serde(default)]
    pub also: Vec<Field>,
}

/// What happens for users whom no session serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Offline {
    /// Nothing.
    #[default]
    None,
    /// A visible push notification.
    Alert,
    /// A ringing push notification, for calls.
    Ring,
    /// A push that the user does not see.
    Silent,
    /// Nothing, and no publisher may ask for it (events about pushes must not cause pushes).
    Never,
}

/// What is kept for devices that missed a notification.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Inbox {
    /// Nothing.
    #[default]
    None,
    /// Kept when no session of the user took it.
    Missed,
    /// Always kept, for the devices that were away.
    Always,
}

/// What may move a notification to another session lane than the row's.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Priority {
    /// The envelope's `priority`.
    #[default]
    Envelope,
    /// Nothing: the row decides.
    Fixed,
    /// A priority named in the payload (`payload.priority`).
    Payload,
}

/// How bursts are shaped on their way to a session.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Shape {
    /// Throttle or coalesce.
    pub mode: ShapeMode,
    /// Length of the window in milliseconds.
    pub window_ms: u64,
    /// Window for sets with more than [`LARGE_SET`] members in milliseconds, when it differs.
    #[serde(default)]
    pub window_large_ms: Option<u64>,
    /// Fields that, together with the user, name the window.
    pub key: Vec<Field>,
    /// The set of `payload.updated_fields` is part of the key, so that no changed field is lost.
    #[serde(default)]
    pub field_set: bool,
    /// The first one of a window leaves at once.
    #[serde(default)]
    pub leading: bool,
    /// What waits for one user leaves in stream order whatever its key: for payloads with a total over all keys.
    #[serde(default)]
    pub ordered: bool,
    /// Notifications with one of these values pass at once.
    #[serde(default)]
    pub pass: Vec<When>,
}

/// The two ways of shaping.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ShapeMode {
    /// Later ones within the window are dropped.
    Throttle,
    /// The latest one within the window replaces the earlier ones.
    Coalesce,
}

/// What an event does besides being delivered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Effect {
    /// Ends the user's older sessions and refuses their tokens, except for the devices that the audience rule leaves
    /// out and `metadata.origin_device_id`.
    Revoke,
    /// The same, when `payload.requires_relogin` is true.
    Relogin,
    /// Ends the user's sessions and refuses new ones.
    Ban,
    /// The user of the payload becomes a member of the target.
    MemberJoin,
    /// The user of the payload is no member of the target any more.
    MemberLeave,
    /// The role of the user of the payload changes.
    MemberRole,
    /// The whole set is gone, once everyone has been told.
    Disband,
    /// Both users follow each other from now on.
    Befriend,
    /// Neither user follows the other any more.
    Unfriend,
    /// Both users of a single chat become its conversation.
    RegisterConversation,
    /// The invited users and the caller become the call, with a timeout.
    RegisterCall,
    /// A participant joined, left, or the call ended.
    UpdateCall,
    /// An invited user said no.
    AnswerCall,
    /// A recalled message leaves the queues and the replay.
    Recall,
    /// Repeats of the same state are shown once.
    Idempotent,
    /// Devices that trigger each other are stopped.
    LoopGuard,
    /// Announced ahead of `payload.start_time` and shown until it is over.
    Notice,
}

/// One row of the catalog: everything the gateway knows about one kind of notification.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Event {
    /// `{service}.{event}`, such as `friend.request`.
    #[serde(rename = "type")]
    pub name: String,
    /// What the last token of the subject names.
    pub target: Target,
    /// Audience rules; the first that applies decides.
    pub audience: Vec<Rule>,
    /// JetStream consumer, and session lane unless the priority moves it.
    pub lane: Lane,
    /// Order within the lane, 0 to 100, higher first.
    pub rank: u8,
    /// A client must acknowledge it. Holds for rules with `to = "user"`; a row's other rules ask for no ack.
    #[serde(default)]
    pub ack: bool,
    /// Each device concerned must acknowledge it, where otherwise any device of the user is enough.
    #[serde(default)]
    pub ack_every_device: bool,
    /// Time from the hand-over to the client's ack, after which the offline hand-off happens. Milliseconds.
    #[serde(default = "default_ack_timeout_ms")]
    pub ack_timeout_ms: u64,
    /// Seconds a notification is worth delivering, from JetStream's store time, when the publisher sets no `ttl`.
    #[serde(default = "default_ttl_s")]
    pub ttl_s: u64,
    /// What happens for users whom no session serves.
    #[serde(default)]
    pub offline: Offline,
    /// What is kept for devices that missed it.
    #[serde(default)]
    pub inbox: Inbox,
    /// Never stored: core NATS only, at most once.
    #[serde(default)]
    pub ephemeral: bool,
    /// What may move it to another session lane.
    #[serde(default)]
    pub priority: Priority,
    /// Shaping on the way to a session.
    #[serde(default)]
    pub shape: Option<Shape>,
    /// What it does besides being delivered.
    #[serde(default)]
    pub effects: Vec<Effect>,
    /// Field with the Unix time in seconds after which it is not worth delivering.
    #[serde(default)]
    pub expires_at: Option<Field>,
    /// Field with the Unix time in seconds after which the inbox forgets it. Devices that are connected get it all
    /// the same: a clock that is a little off must not cost them a reminder.
    #[serde(default)]
    pub inbox_expires_at: Option<Field>,
    /// Fields that never appear in logs, evidence or listings.
    #[serde(default)]
    pub secrets: Vec<Field>,
    /// One line for a reader of the generated event list.
    #[serde(default)]
    pub summary: String,
}

/// 3,600 s, the `ttl` of the specification's example envelope.
const fn default_ttl_s() -> u64 {
    3_600
}

/// Time for a client's ack where the row says nothing else. 10 s: a phone on a slow link answers within it, and a user
/// is told by push soon enough otherwise.
pub const ACK_TIMEOUT_MS: u64 = 10_000;

const fn default_ack_timeout_ms() -> u64 {
    ACK_TIMEOUT_MS
}

impl Event {
    /// The service part of the type, such as `friend`.
    pub fn service(&self) -> &str {
        self.name.split('.').next().unwrap_or_default()
    }

    /// The NATS subject filter that covers every notification of this row.
    pub fn subject_filter(&self) -> String {
        match self.target {
            Target::Broadcast => format!("notification.{}.broadcast", self.name),
            _ => format!("notification.{}.*", self.name),
        }
    }

    /// Takes the fields out of `payload` that nobody but the devices may see.
    pub fn remove_secrets(&self, payload: &mut Map<String, Value>) {
        for field in self.secrets.iter().filter(|field| field.root() == Root::Payload) {
            let keys: Vec<&str> = field.keys().collect();
            let Some((last, parents)) = keys.split_last() else { continue };
            let object = parents
                .iter()
                .try_fold(&mut *payload, |object, key| object.get_mut(*key).and_then(Value::as_object_mut));
            if let Some(object) = object {
                object.remove(*last);
            }
        }
    }

    /// Time from the hand-over to the client's ack before the offline hand-off.
    pub fn ack_timeout(&self) -> Duration {
        Duration::from_millis(self.ack_timeout_ms)
    }
}
