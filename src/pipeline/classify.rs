//! Stage 2: the catalog's row, the envelope and JetStream's metadata become a notification and a plan for it.

use std::sync::Arc;
use std::time::Duration;

use super::effects::{self, Todo};
use super::{Decoded, Reason, Refusal};
use crate::catalog::rules::When;
use crate::catalog::{Event, Field, Inbox, Kind, Lane, Offline, Priority, Rule};
use crate::id::{self, DeviceId, UserId};
use crate::nats::Origin;
use crate::protocol::Notification;
use crate::protocol::notification::{Frames, Policy};
use crate::session::{Devices, Recipient};

/// An item in an inbox is kept for 7 days, unless the publisher sets a `ttl`: a device that was off for a week
/// catches up by loading state anew.
const INBOX_KEPT_MS: u64 = 7 * 24 * 3_600 * 1_000;

/// `metadata.deliver_at` may be 30 days ahead.
pub const AHEAD_MAX: Duration = Duration::from_hours(30 * 24);

/// The set of people a notification is for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Audience {
    /// What kind of set.
    pub kind: Kind,
    /// Which one; `broadcast` or a name for broadcasts.
    pub id: Arc<str>,
}

/// A classified notification and everything that the later stages need to know about it.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The notification.
    pub note: Notification,
    /// The set it is for.
    pub audience: Audience,
    /// The audience rule of the row that was chosen.
    pub rule: usize,
    /// A user who is left out.
    pub except_user: Option<UserId>,
    /// Which devices of the set's users.
    pub devices: Devices,
    /// More users.
    pub also: Vec<Recipient>,
    /// More users when the set is large by the rule's own measure.
    pub large_also: Vec<UserId>,
    /// Unix seconds at which it is to be delivered; `None` when that is now.
    pub deliver_at: Option<u64>,
    /// What it does besides being delivered, in this order.
    pub effects: Vec<Todo>,
    /// Version of what its effects write: JetStream's time in Unix microseconds.
    pub v: u64,
}

impl Plan {
    /// The audience rule that was chosen.
    pub fn rule(&self) -> &Rule {
        &self.note.event.audience[self.rule]
    }

    /// How many users it is for beside the set, at most.
    pub fn others(&self) -> usize {
        self.also.len() + self.large_also.len()
    }

    /// True when it is not worth delivering any more.
    pub fn is_expired(&self, now_ms: u64) -> bool {
        self.note.expires_at_ms <= now_ms
    }
}

/// Classifies a decoded message. `msg_id` is the id it has when its envelope has none: [`Message::given_id`]; `due` says
/// that a schedule released it.
///
/// [`Message::given_id`]: crate::nats::Message::given_id
pub fn classify(
    decoded: Decoded,
    origin: &Origin,
    msg_id: Option<&str>,
    due: bool,
    now_ms: u64,
) -> Result<Plan, Refusal> {
    let (at, rule) =
        decoded.event.audience.iter().enumerate().find(|(_, rule)| applies(rule, &decoded)).ok_or_else(
            || Refusal::new(Reason::NoAudience, "no audience rule of the event applies to the payload"),
        )?;
    let audience = audience(rule, &decoded)?;
    let offline = offline(&decoded.event, decoded.envelope.metadata.offline);
    let deliver_at = if due { None } else { deliver_at(&decoded, now_ms)? };
    let devices = devices(&rule.except_devices, rule.only_devices.as_ref(), &decoded)?;
    let plan = Plan {
        except_user: user(rule.except_user.as_ref(), &decoded)?,
        effects: effects::effects(&decoded, &audience, &devices, origin, now_ms)?,
        v: origin.stored_at_us,
        devices,
        also: also(rule, offline, &decoded)?,
        large_also: large_also(rule, &decoded)?,
        deliver_at,
        rule: at,
        note: notification(rule.to, policy(&decoded, origin, offline, now_ms), decoded, origin, msg_id),
        audience,
    };
    Ok(plan)
}

/// True when all conditions of an audience rule hold.
fn applies(rule: &Rule, decoded: &Decoded) -> bool {
    holds(&rule.when, decoded)
        && rule.when_target.as_ref().is_none_or(|field| text(field, decoded) == Some(&decoded.target))
}

fn holds(when: &When, decoded: &Decoded) -> bool {
    when.iter().all(|(field, wanted)| text(field, decoded) == Some(wanted))
}

fn text<'a>(field: &Field, decoded: &'a Decoded) -> Option<&'a str> {
    decoded.envelope.text(field, &decoded.target)
}

/// The set that a rule names, with its id checked.
fn audience(rule: &Rule, decoded: &Decoded) -> Result<Audience, Refusal> {
    let id = match &rule.id {
        None => decoded.target.clone(),
        Some(field) => {
            let missing =
                || Refusal::new(Reason::NoAudience, format!("{field} is missing, and says whom this is for"));
            let id = text(field, decoded).ok_or_else(missing)?;
            if !id::is_valid(id) {
                return Err(invalid(field));
            }
            id.into()
        }
    };
    // The envelope's `to_user_id` repeats the subject's target only where the target is the one who gets it.
    if let (Kind::User, None, Some(to)) = (rule.to, &rule.id, &decoded.envelope.to_user_id)
        && to.as_str() != &*id
    {
        let detail = format!("the subject's target is {id}, the envelope's to_user_id is {to}");
        return Err(Refusal::new(Reason::RecipientMismatch, detail));
    }
    Ok(Audience { kind: rule.to, id })
}

fn invalid(field: &Field) -> Refusal {
    Refusal::new(Reason::InvalidId, format!("{field}: {}", id::InvalidId))
}

/// The user at a field; nobody when it is absent or empty.
fn user(field: Option<&Field>, decoded: &Decoded) -> Result<Option<UserId>, Refusal> {
    let Some(field) = field else { return Ok(None) };
    match text(field, decoded) {
        None | Some("") => Ok(None),
        Some(text) => UserId::new(text).map(Some).map_err(|_| invalid(field)),
    }
}

/// The choice of devices: only those listed, less those left out.
fn devices(except: &[Field], only: Option<&Field>, decoded: &Decoded) -> Result<Devices, Refusal> {
    let mut left_out = Vec::new();
    for field in except {
        match text(field, decoded) {
            None | Some("") => {}
            Some(text) => left_out.push(DeviceId::new(text).map_err(|_| invalid(field))?),
        }
    }
    let listed = match only {
        Some(field) => decoded.envelope.devices(field).map_err(|_| invalid(field))?,
        None => None,
    };
    Ok(match listed {
        Some(listed) => {
            Devices::Only(listed.into_iter().filter(|device| !left_out.contains(device)).collect())
        }
        None if left_out.is_empty() => Devices::All,
        None => Devices::Except(left_out.into()),
    })
}

fn also(rule: &Rule, offline: Offline, decoded: &Decoded) -> Result<Vec<Recipient>, Refusal> {
    let mut extras = Vec::new();
    for also in rule.also.iter().filter(|also| holds(&also.when, decoded)) {
        let Some(user) = user(Some(&also.user), decoded)? else { continue };
        let devices = devices(&also.except_devices, None, decoded)?;
        // A publisher who wants no push at all is obeyed for everybody.
        let own = if offline == Offline::None { None } else { also.offline };
        extras.push(Recipient { user, devices, offline: own.unwrap_or(offline) });
    }
    Ok(extras)
}

fn large_also(rule: &Rule, decoded: &Decoded) -> Result<Vec<UserId>, Refusal> {
    let fields = rule.large.iter().flat_map(|large| &large.also);
    fields.filter_map(|field| user(Some(field), decoded).transpose()).collect()
}

/// The row's offline policy unless the publisher asks for another one. Rings, events about pushes and what is never
/// stored are not theirs to change, and nobody may ask for a ring.
fn offline(event: &Event, wish: Option<Offline>) -> Offline {
    match (event.offline, wish.filter(|_| !event.ephemeral)) {
        (Offline::Never | Offline::Ring, _) | (_, None | Some(Offline::Ring | Offline::Never)) => {
            event.offline
        }
        (_, Some(wish)) => wish,
    }
}

fn policy(decoded: &Decoded, origin: &Origin, offline: Offline, now_ms: u64) -> Policy {
    let event = &decoded.event;
    let ttl_ms = decoded.envelope.metadata.ttl.filter(|ttl| *ttl > 0).map(|ttl| ttl.saturating_mul(1_000));
    let until = origin.stored_at_ms().saturating_add(ttl_ms.unwrap_or(INBOX_KEPT_MS));
    let ends = [event.expires_at.as_ref(), event.inbox_expires_at.as_ref()];
    let until = ends.into_iter().filter_map(|field| unix_ms(field, decoded)).fold(until, u64::min);
    Policy {
        offline,
        inbox: if until > now_ms { event.inbox } else { Inbox::None },
        inbox_until_ms: until,
        ack_every_device: event.ack_every_device,
    }
}

/// The Unix seconds at a field, in milliseconds.
fn unix_ms(field: Option<&Field>, decoded: &Decoded) -> Option<u64> {
    let seconds = decoded.envelope.value(field?)?.as_u64().filter(|seconds| *seconds > 0)?;
    Some(seconds.saturating_mul(1_000))
}

/// The publisher's time of delivery when it is still to come.
fn deliver_at(decoded: &Decoded, now_ms: u64) -> Result<Option<u64>, Refusal> {
    let present = now_ms / 1_000;
    let wanted = decoded.envelope.metadata.deliver_at.filter(|at| *at > present);
    match wanted.or_else(|| effects::announced_at(decoded)) {
        Some(at) if at > present.saturating_add(AHEAD_MAX.as_secs()) => {
            let detail = format!(
                "its time of delivery is {} days ahead, at most 30 are possible",
                (at - present) / 86_400
            );
            Err(Refusal::new(Reason::TooFarAhead, detail))
        }
        Some(at) if at > present && !decoded.event.ephemeral => Ok(Some(at)),
        _ => Ok(None),
    }
}

fn lane(decoded: &Decoded) -> Lane {
    let wish = match decoded.event.priority {
        Priority::Fixed => None,
        Priority::Envelope => decoded.envelope.priority,
        Priority::Payload => {
            match decoded.envelope.payload.get("priority").and_then(serde_json::Value::as_str) {
                Some("high") => Some(Lane::High),
                Some("normal") => Some(Lane::Normal),
                Some("low") => Some(Lane::Low),
                _ => None,
            }
        }
    };
    wish.unwrap_or(decoded.event.lane)
}

fn notification(
    to: Kind,
    policy: Policy,
    decoded: Decoded,
    origin: &Origin,
    msg_id: Option<&str>,
) -> Notification {
    let lane = lane(&decoded);
    let expiry = unix_ms(decoded.event.expires_at.as_ref(), &decoded);
    let Decoded { event, envelope, .. } = decoded;
    let stored_ms = origin.stored_at_ms();
    // A `ttl` of 0 is what publishers send whose language has no absent number: it counts as absent.
    let ttl_s = envelope.metadata.ttl.filter(|ttl| *ttl > 0).unwrap_or(event.ttl_s);
    let expires = stored_ms.saturating_add(ttl_s.saturating_mul(1_000));
    let id = match (envelope.notification_id, msg_id) {
        (Some(id), _) => id.into(),
        (None, Some(id)) if !id.is_empty() => id.into(),
        _ if origin.seq == 0 => uuid::Uuid::new_v4().to_string().into(),
        _ => format!("{}-{}", origin.stream, origin.seq).into(),
    };
    Notification {
        id,
        lane,
        timestamp: envelope.timestamp.unwrap_or((stored_ms / 1_000) as i64),
        published_at_ms: stored_ms,
        expires_at_ms: expiry.map_or(expires, |expiry| expiry.min(expires)),
        stream_seq: origin.seq,
        from_user_id: envelope.from_user_id,
        require_ack: to == Kind::User && !event.ephemeral && (event.ack || envelope.metadata.require_ack),
        large_set: false,
        policy,
        payload: envelope.payload,
        frames: Frames::default(),
        event,
    }
}
