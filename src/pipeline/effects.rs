//! What an event does besides being delivered, read from its envelope: part of classifying, and pure.
//!
//! An effect whose fields are missing is left out and counted, and the notification is delivered all the same. Only a
//! ban that does not say until when is refused, since nothing is left of it without its effect.

use std::sync::Arc;

use metrics::counter;
use serde_json::Value;

use super::classify::Audience;
use super::{Decoded, Reason, Refusal};
use crate::catalog::{Effect, Kind, Role};
use crate::control::ban::{self, Asked};
use crate::directory::Key;
use crate::id::{self, DeviceId, UserId};
use crate::nats::Origin;
use crate::session::Devices;

/// Users that a call may have, the caller among them: its state is one value that every answer rewrites. More who are
/// invited get their invitation, and neither a timeout nor the call's news.
pub const CALL_USERS_MAX: usize = 500;

/// Kinds of data that a synchronisation may name. More are left out.
const DATA_TYPES_MAX: usize = 32;

/// A maintenance is announced so long before its start: 15 minutes, by the specification.
const ANNOUNCED_S: u64 = 15 * 60;

/// One thing to do. Unless it says otherwise it is done before the fan-out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Todo {
    /// Ban a user until these Unix milliseconds, or for ever.
    Ban(UserId, Option<u64>),
    /// End the user's older logins on these devices.
    Revoke(UserId, Devices),
    /// A user becomes a member with a role, or none any more.
    Member(Key, UserId, Option<Role>),
    /// Both users are members of a single conversation.
    Conversation(Key, [UserId; 2]),
    /// Shown to every new session until these Unix milliseconds, under this id.
    Notice(Arc<str>, u64),
    /// Delivered only if this request does not close a loop.
    LoopGuard(SyncRequest),
    /// A call begins for these users, the caller among them.
    Invite(Invite),
    /// A user joined a call (`true`), or said no.
    Answer(Arc<str>, UserId, bool),
    /// A call is over. Its members are forgotten after the fan-out.
    EndCall(Arc<str>),
    /// The whole set is forgotten, after the fan-out.
    Hide(Key),
}

/// An invitation to a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invite {
    /// The call.
    pub call: Arc<str>,
    /// Who calls, when the invitation says so.
    pub caller: Option<UserId>,
    /// Who is invited, without the caller, at most [`CALL_USERS_MAX`].
    pub invited: Vec<UserId>,
}

/// A request to synchronise.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SyncRequest {
    /// Whose devices.
    pub user: UserId,
    /// The device that asks; nobody known cannot close a loop.
    pub from: DeviceId,
    /// What it asks for; empty stands for everything.
    pub data_types: Vec<String>,
    /// The request's id.
    pub sync_id: Option<String>,
}

/// Reads the effects of a decoded message. `devices` are those that the audience rule chose.
pub(super) fn effects(
    decoded: &Decoded,
    audience: &Audience,
    devices: &Devices,
    origin: &Origin,
    now_ms: u64,
) -> Result<Vec<Todo>, Refusal> {
    let mut todos = Vec::new();
    for effect in &decoded.event.effects {
        let before = todos.len();
        one(*effect, decoded, audience, devices, now_ms, &mut todos)?;
        let applies_elsewhere = matches!(effect, Effect::Recall | Effect::Idempotent);
        if todos.len() == before && !applies_elsewhere && origin.deliveries <= 1 {
            counter!("fanfare_pipeline_effects_skipped_total", "event" => decoded.event.name.clone())
                .increment(1);
        }
    }
    Ok(todos)
}

fn one(
    effect: Effect,
    decoded: &Decoded,
    audience: &Audience,
    devices: &Devices,
    now_ms: u64,
    todos: &mut Vec<Todo>,
) -> Result<(), Refusal> {
    let target = || UserId::new(&decoded.target).ok();
    let stored = || Key::new(audience.kind, &audience.id);
    let user_id = user(decoded, "user_id")?;
    match effect {
        Effect::Ban => todos.extend(ban(decoded, now_ms)?),
        Effect::Revoke => todos.extend(revoke(decoded, devices.clone())),
        Effect::Relogin => {
            let required = decoded.envelope.payload.get("requires_relogin").and_then(Value::as_bool);
            let devices = less_origin(decoded, devices);
            todos.extend(revoke(decoded, devices).filter(|_| required == Some(true)));
        }
        Effect::MemberJoin => todos.extend(member(stored(), user_id, Some(role(decoded, "role")))),
        Effect::MemberLeave => todos.extend(member(stored(), user_id, None)),
        Effect::MemberRole => {
            todos.extend(member(stored(), user_id, Some(role(decoded, "new_role"))));
        }
        Effect::Disband => todos.extend(stored().map(Todo::Hide)),
        Effect::Befriend if text(decoded, "status") == Some("accepted") => {
            todos.extend(followers(target(), user(decoded, "to_user_id")?, true));
        }
        Effect::Unfriend => todos.extend(followers(target(), user(decoded, "friend_user_id")?, false)),
        Effect::RegisterConversation if text(decoded, "conversation_type") == Some("single") => {
            let key = text(decoded, "conversation_id").and_then(|id| Key::new(Kind::Conversation, id));
            let users = target().zip(user(decoded, "from_user_id")?);
            todos.extend(key.zip(users).map(|(key, (to, from))| Todo::Conversation(key, [to, from])));
        }
        Effect::RegisterCall => todos.extend(invite(decoded, target())?),
        Effect::UpdateCall => update_call(decoded, user_id, todos),
        Effect::AnswerCall => {
            let user = user(decoded, "rejector_user_id")?;
            todos.extend(call(decoded).zip(user).map(|(call, user)| Todo::Answer(call, user, false)));
        }
        Effect::LoopGuard => todos.extend(sync_request(decoded, target()).map(Todo::LoopGuard)),
        Effect::Notice => todos.extend(notice(decoded)),
        // These are done where sessions and inboxes are read.
        Effect::Recall | Effect::Idempotent | Effect::Befriend | Effect::RegisterConversation => {}
    }
    Ok(())
}

/// When an announced event is to be announced, Unix seconds; `None` when it is none or says no start.
pub(super) fn announced_at(decoded: &Decoded) -> Option<u64> {
    // The payloads of the others are not looked into.
    let announced = decoded.event.effects.contains(&Effect::Notice).then_some(decoded)?;
    let start = number(announced, "start_time").filter(|start| *start > 0)?;
    Some(start.saturating_sub(ANNOUNCED_S))
}

fn ban(decoded: &Decoded, now_ms: u64) -> Result<Option<Todo>, Refusal> {
    let permanent = decoded.envelope.payload.get("is_permanent").and_then(Value::as_bool);
    let until = number(decoded, "banned_until");
    let Ok(user) = UserId::new(&decoded.target) else { return Ok(None) };
    match ban::asked(permanent.unwrap_or_default(), until, now_ms) {
        Asked::Until(until_ms) => Ok(Some(Todo::Ban(user, until_ms))),
        Asked::Over => Ok(None),
        Asked::Nothing => {
            let detail = "a ban needs payload.banned_until (Unix seconds) or payload.is_permanent";
            Err(Refusal::new(Reason::Incomplete, detail))
        }
    }
}

fn revoke(decoded: &Decoded, devices: Devices) -> Option<Todo> {
    Some(Todo::Revoke(UserId::new(&decoded.target).ok()?, devices))
}

/// The devices that the audience rule chose, less the one that caused it.
fn less_origin(decoded: &Decoded, devices: &Devices) -> Devices {
    match (&decoded.envelope.metadata.origin_device_id, devices) {
        (None, devices) => devices.clone(),
        (Some(origin), Devices::All) => Devices::Except([origin.clone()].into()),
        (Some(origin), Devices::Except(spared)) => {
            Devices::Except(spared.iter().cloned().chain([origin.clone()]).collect())
        }
        (Some(origin), Devices::Only(only)) => {
            Devices::Only(only.iter().filter(|device| *device != origin).cloned().collect())
        }
    }
}

fn member(of: Option<Key>, user: Option<UserId>, role: Option<Role>) -> Option<Todo> {
    of.zip(user).map(|(of, user)| Todo::Member(of, user, role))
}

/// Each of the two becomes a follower of the other, or is none any more.
fn followers(one: Option<UserId>, other: Option<UserId>, follow: bool) -> Vec<Todo> {
    let Some((one, other)) = one.zip(other) else { return Vec::new() };
    let role = follow.then_some(Role::Member);
    let pairs = [(one.clone(), other.clone()), (other, one)];
    let keyed = pairs.into_iter().map(|(of, user)| (Key::new(Kind::Followers, of.as_str()), user));
    keyed.filter_map(|(of, user)| member(of, Some(user), role)).collect()
}

fn invite(decoded: &Decoded, target: Option<UserId>) -> Result<Option<Todo>, Refusal> {
    let Some(call) = call(decoded) else { return Ok(None) };
    let caller = user(decoded, "from_user_id")?.or_else(|| decoded.envelope.from_user_id.clone());
    let listed = decoded.envelope.payload.get("invited_users").and_then(Value::as_array);
    let mut invited: Vec<UserId> = target.into_iter().collect();
    for user in listed.into_iter().flatten() {
        let user = UserId::new(user.as_str().unwrap_or_default()).map_err(|_| {
            Refusal::new(Reason::InvalidId, format!("payload.invited_users: {}", id::InvalidId))
        })?;
        invited.push(user);
    }
    invited.retain(|user| Some(user) != caller.as_ref());
    invited.truncate(CALL_USERS_MAX);
    invited.sort_unstable();
    invited.dedup();
    Ok(Some(Todo::Invite(Invite { call, caller, invited })))
}

fn update_call(decoded: &Decoded, user: Option<UserId>, todos: &mut Vec<Todo>) {
    let Some(key) = Key::new(Kind::Call, &decoded.target) else { return };
    let call = decoded.target.clone();
    match (text(decoded, "status"), user) {
        (Some("user_joined"), Some(user)) => {
            todos.push(Todo::Member(key, user.clone(), Some(Role::Member)));
            todos.push(Todo::Answer(call, user, true));
        }
        (Some("user_left"), Some(user)) => todos.push(Todo::Member(key, user, None)),
        (Some("ended"), _) => todos.extend([Todo::EndCall(call), Todo::Hide(key)]),
        _ => {}
    }
}

fn sync_request(decoded: &Decoded, user: Option<UserId>) -> Option<SyncRequest> {
    let listed = decoded.envelope.payload.get("data_types").and_then(Value::as_array);
    let data_types = listed.into_iter().flatten().filter_map(Value::as_str).take(DATA_TYPES_MAX);
    Some(SyncRequest {
        user: user?,
        from: DeviceId::new(text(decoded, "from_device_id")?).ok()?,
        data_types: data_types.map(|kind| kind.chars().take(64).collect()).collect(),
        sync_id: text(decoded, "sync_id").map(id::one_line),
    })
}

/// Until the start and the estimated duration are over.
fn notice(decoded: &Decoded) -> Option<Todo> {
    let start = number(decoded, "start_time").filter(|start| *start > 0)?;
    let until = start.saturating_add(number(decoded, "estimated_duration").unwrap_or_default());
    let named = text(decoded, "maintenance_id").filter(|id| !id.is_empty())?;
    let id =
        if id::is_valid(named) { named.to_owned() } else { format!("{:016x}", id::stable_hash([named])) };
    Some(Todo::Notice(id.into(), until.saturating_mul(1_000)))
}

fn call(decoded: &Decoded) -> Option<Arc<str>> {
    text(decoded, "call_id").filter(|call| id::is_valid(call)).map(Into::into)
}

/// An unknown role is that of an ordinary member.
fn role(decoded: &Decoded, field: &str) -> Role {
    match text(decoded, field) {
        Some("owner") => Role::Owner,
        Some("admin") => Role::Admin,
        _ => Role::Member,
    }
}

fn text<'a>(decoded: &'a Decoded, field: &str) -> Option<&'a str> {
    decoded.envelope.payload.get(field).and_then(Value::as_str)
}

fn number(decoded: &Decoded, field: &str) -> Option<u64> {
    decoded.envelope.payload.get(field).and_then(Value::as_u64)
}

/// The user at a field of the payload; nobody when it is absent or empty.
fn user(decoded: &Decoded, field: &'static str) -> Result<Option<UserId>, Refusal> {
    match text(decoded, field) {
        None | Some("") => Ok(None),
        Some(text) => UserId::new(text)
            .map(Some)
            .map_err(|_| Refusal::new(Reason::InvalidId, format!("payload.{field}: {}", id::InvalidId))),
    }
}

/// Describes the metrics of this part.
pub(crate) fn describe() {
    metrics::describe_counter!(
        "fanfare_pipeline_effects_skipped_total",
        "events whose effect does not apply, or lacks the fields it needs, by event"
    );
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use serde_json::json;

    use super::*;
    use crate::catalog::Catalog;
    use crate::pipeline::{classify, decode};

    fn plan(subject: &str, payload: &Value, metadata: &Value) -> Result<Vec<Todo>, Refusal> {
        let body = json!({ "payload": payload, "metadata": metadata }).to_string();
        let decoded =
            decode(&Catalog::built_in().unwrap(), &format!("notification.{subject}"), &Bytes::from(body))?;
        let origin = Origin { stream: "N".to_owned(), seq: 7, stored_at_us: 5_000_000, deliveries: 1 };
        classify(decoded, &origin, None, false, 1_000_000).map(|plan| plan.effects)
    }

    fn todos(subject: &str, payload: &Value) -> Vec<Todo> {
        plan(subject, payload, &json!({})).unwrap()
    }

    fn user(name: &str) -> UserId {
        UserId::new(name).unwrap()
    }

    fn key(kind: Kind, id: &str) -> Key {
        Key::new(kind, id).unwrap()
    }

    #[test]
    fn bans_and_logouts() {
        let ban = |payload| plan("admin.user_banned.u", &payload, &json!({}));
        assert_eq!(ban(json!({"is_permanent": true})).unwrap(), [Todo::Ban(user("u"), None)]);
        assert_eq!(ban(json!({"banned_until": 2_000})).unwrap(), [Todo::Ban(user("u"), Some(2_000_000))]);
        assert_eq!(ban(json!({"banned_until": 1_000})).unwrap(), []);
        assert_eq!(ban(json!({})).unwrap_err().reason, Reason::Incomplete);

        let device = |name: &str| DeviceId::new(name).unwrap();
        let spared = Devices::Except([device("new")].into());
        let origin = json!({"origin_device_id": "origin"});
        let logout = plan("auth.force_logout.u", &json!({"device_id": "new"}), &origin).unwrap();
        assert_eq!(logout, [Todo::Revoke(user("u"), spared)]);
        let changed = |required: bool| {
            plan("auth.password_changed.u", &json!({"requires_relogin": required}), &origin).unwrap()
        };
        assert_eq!(changed(true), [Todo::Revoke(user("u"), Devices::Except([device("origin")].into()))]);
        assert_eq!(changed(false), []);
        assert_eq!(plan("auth.password_changed.u", &json!({}), &origin).unwrap(), []);
    }

    #[test]
    fn members_come_go_and_change_roles() {
        let group = || key(Kind::Group, "g");
        for (event, payload, role) in [
            ("group.member_joined", json!({"user_id": "u"}), Some(Role::Member)),
            ("group.member_left", json!({"user_id": "u"}), None),
            ("group.role_changed", json!({"user_id": "u", "new_role": "admin"}), Some(Role::Admin)),
        ] {
            assert_eq!(todos(&format!("{event}.g"), &payload), [Todo::Member(group(), user("u"), role)]);
        }
        assert_eq!(todos("group.member_joined.g", &json!({})), []);
        assert_eq!(todos("group.disbanded.g", &json!({})), [Todo::Hide(group())]);
        let follow = |of, who, role| Todo::Member(key(Kind::Followers, of), user(who), role);
        let handled =
            |status| todos("friend.request_handled.a", &json!({"status": status, "to_user_id": "b"}));
        let member = Some(Role::Member);
        assert_eq!(handled("accepted"), [follow("a", "b", member), follow("b", "a", member)]);
        assert_eq!(handled("rejected"), []);
        let deleted = todos("friend.deleted.a", &json!({"friend_user_id": "b"}));
        assert_eq!(deleted, [follow("a", "b", None), follow("b", "a", None)]);
    }

    #[test]
    fn a_single_message_names_its_conversation_and_a_group_message_does_not() {
        let of = |kind| {
            let payload = json!({"conversation_type": kind, "conversation_id": "c", "from_user_id": "a"});
            todos("message.new.b", &payload)
        };
        assert_eq!(of("single"), [Todo::Conversation(key(Kind::Conversation, "c"), [user("b"), user("a")])]);
        assert_eq!(of("group"), []);
    }

    #[test]
    fn calls_begin_are_answered_and_end() {
        let invited = json!({"call_id": "c", "from_user_id": "a", "invited_users": ["b", "d", "a"]});
        let expected =
            Invite { call: "c".into(), caller: Some(user("a")), invited: vec![user("b"), user("d")] };
        assert_eq!(todos("livekit.call_invite.b", &invited), [Todo::Invite(expected)]);
        let said = |status| todos("livekit.call_status.c", &json!({"status": status, "user_id": "b"}));
        let call = || key(Kind::Call, "c");
        assert_eq!(
            said("user_joined"),
            [Todo::Member(call(), user("b"), Some(Role::Member)), Todo::Answer("c".into(), user("b"), true)]
        );
        assert_eq!(said("user_left"), [Todo::Member(call(), user("b"), None)]);
        assert_eq!(said("ended"), [Todo::EndCall("c".into()), Todo::Hide(call())]);
        assert_eq!(said("started"), []);
        let no = todos("livekit.call_rejected.a", &json!({"call_id": "c", "rejector_user_id": "b"}));
        assert_eq!(no, [Todo::Answer("c".into(), user("b"), false)]);
    }

    #[test]
    fn a_maintenance_is_shown_until_it_is_over() {
        let payload = json!({"maintenance_id": "m", "start_time": 1_000, "estimated_duration": 60});
        assert_eq!(todos("admin.maintenance.broadcast", &payload), [Todo::Notice("m".into(), 1_060_000)]);
        assert_eq!(todos("admin.maintenance.broadcast", &json!({"maintenance_id": "m"})), []);
    }
}
