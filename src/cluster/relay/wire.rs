//! What nodes say to each other.
//!
//! A request is a version byte, the time at which it was sent (8 bytes), the length of its head (4 bytes, both
//! big-endian), the head in MessagePack and the payload as it was published. The head's fields have names, so that a
//! newer version may add one. An answer is a kind byte and MessagePack. Both are read with care: another version may
//! have written them.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::catalog::{Catalog, Inbox, Lane, Offline};
use crate::id::{DeviceId, NodeId, UserId};
use crate::pipeline::{Answer, BATCH_USERS_MAX};
use crate::protocol::notification::{Frames, Policy};
use crate::protocol::{Notification, Payload};
use crate::session::{AckEvent, Devices, Recipient};

/// The version of both. A node answers another one with [`Reply::Refused`].
const VERSION: u8 = 1;

/// A message that asks whether the node is there. When it is not, NATS says so.
pub(super) const PING: &[u8] = &[VERSION];

const SENT_AT: usize = 1;

const LENGTH_AT: usize = 9;

const HEAD_AT: usize = 13;

/// Why a request or an answer cannot be read.
#[derive(Debug, thiserror::Error)]
pub(super) enum WireError {
    /// Another version of the program.
    #[error("version {0} of the relay is not spoken here (this is {VERSION}): update this node")]
    Version(u8),
    /// Cut or damaged.
    #[error("a message between nodes cannot be read: {0}")]
    Malformed(String),
    /// The catalogs differ.
    #[error("this node's catalog has no event {0}: give all nodes the same catalog")]
    Unknown(String),
}

#[expect(clippy::needless_pass_by_value, reason = "it is what `map_err` gives")]
fn malformed(error: impl ToString) -> WireError {
    WireError::Malformed(error.to_string())
}

/// Whom a request is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum To {
    /// These.
    Users(Vec<Recipient>),
    /// Everybody with a session.
    Everybody,
}

/// A request as it is read.
#[derive(Debug)]
pub(super) struct Request {
    /// Who asks.
    pub(super) from: NodeId,
    /// The same for every repetition.
    pub(super) id: u64,
    /// Unix milliseconds of the asking node's clock.
    pub(super) sent_ms: u64,
    /// How long the asking node waits for an answer.
    pub(super) patience: Duration,
    /// What is to be offered.
    pub(super) note: Arc<Notification>,
    /// To whom.
    pub(super) to: To,
}

/// One user, with what differs from the most common: all devices, and the policy of the notification.
#[derive(Debug, Serialize, Deserialize)]
struct User(UserId, Option<Offline>, Option<Choice>);

#[derive(Debug, Serialize, Deserialize)]
enum Choice {
    Except(Vec<DeviceId>),
    Only(Vec<DeviceId>),
}

#[derive(Debug, Serialize, Deserialize)]
struct Head {
    from: NodeId,
    id: u64,
    patience_ms: u64,
    notification_id: Arc<str>,
    event: String,
    lane: Lane,
    timestamp: i64,
    published_at_ms: u64,
    expires_at_ms: u64,
    stream_seq: u64,
    from_user_id: Option<UserId>,
    require_ack: bool,
    large_set: bool,
    offline: Offline,
    inbox: Inbox,
    inbox_until_ms: u64,
    ack_every_device: bool,
    /// `None` for everybody.
    users: Option<Vec<User>>,
}

/// A request about `note`, for `users` or for everybody, to be stamped when it is sent.
pub(super) fn request(
    (from, id, patience): (&NodeId, u64, Duration),
    note: &Notification,
    users: Option<&[&Recipient]>,
) -> Unstamped {
    let user = |recipient: &&Recipient| {
        let choice = match &recipient.devices {
            Devices::All => None,
            Devices::Except(devices) => Some(Choice::Except(devices.to_vec())),
            Devices::Only(devices) => Some(Choice::Only(devices.to_vec())),
        };
        let offline = (recipient.offline != note.policy.offline).then_some(recipient.offline);
        User(recipient.user.clone(), offline, choice)
    };
    let head = Head {
        from: from.clone(),
        id,
        patience_ms: patience.as_millis() as u64,
        notification_id: note.id.clone(),
        event: note.event.name.clone(),
        lane: note.lane,
        timestamp: note.timestamp,
        published_at_ms: note.published_at_ms,
        expires_at_ms: note.expires_at_ms,
        stream_seq: note.stream_seq,
        from_user_id: note.from_user_id.clone(),
        require_ack: note.require_ack,
        large_set: note.large_set,
        offline: note.policy.offline,
        inbox: note.policy.inbox,
        inbox_until_ms: note.policy.inbox_until_ms,
        ack_every_device: note.policy.ack_every_device,
        users: users.map(|users| users.iter().map(user).collect()),
    };
    let mut body = vec![0; HEAD_AT];
    body[0] = VERSION;
    rmp_serde::encode::write_named(&mut body, &head).expect("ids, numbers and names have an encoding");
    let length = u32::try_from(body.len() - HEAD_AT).expect("1,000 users of at most 128 bytes");
    body[LENGTH_AT..HEAD_AT].copy_from_slice(&length.to_be_bytes());
    body.extend_from_slice(note.payload.json());
    Unstamped(body)
}

/// A request that does not say yet when it was sent.
pub(super) struct Unstamped(Vec<u8>);

impl Unstamped {
    /// Its size in bytes.
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// The request as it is sent at these Unix milliseconds.
    pub(super) fn stamped(&self, now_ms: u64) -> Bytes {
        let mut body = self.0.clone();
        body[SENT_AT..LENGTH_AT].copy_from_slice(&now_ms.to_be_bytes());
        body.into()
    }
}

/// Reads a request. The payload is not copied.
pub(super) fn read_request(body: &Bytes, catalog: &Catalog) -> Result<Request, WireError> {
    match body.first() {
        Some(&VERSION) => {}
        Some(other) => return Err(WireError::Version(*other)),
        None => return Err(malformed("it is empty")),
    }
    let sent_ms =
        body.get(SENT_AT..LENGTH_AT).and_then(|bytes| bytes.try_into().ok()).map(u64::from_be_bytes);
    let length = body.get(LENGTH_AT..HEAD_AT).and_then(|bytes| bytes.try_into().ok()).map(u32::from_be_bytes);
    let end = length.map_or(usize::MAX, |length| HEAD_AT.saturating_add(length as usize));
    let head = body.get(HEAD_AT..end).ok_or_else(|| malformed("its head is cut"))?;
    let head: Head = rmp_serde::from_slice(head).map_err(malformed)?;
    let raw = serde_json::from_slice(&body[end..]).map_err(malformed)?;
    let payload = Payload::part(body, raw).map_err(malformed)?;
    let event = catalog.get(&head.event).cloned().ok_or(WireError::Unknown(head.event))?;
    if head.users.as_ref().is_some_and(|users| users.len() > BATCH_USERS_MAX) {
        return Err(malformed(format!("it has more than {BATCH_USERS_MAX} users")));
    }
    let policy = Policy {
        offline: head.offline,
        inbox: head.inbox,
        inbox_until_ms: head.inbox_until_ms,
        ack_every_device: head.ack_every_device,
    };
    let recipient = |User(user, offline, choice)| {
        let devices = match choice {
            None => Devices::All,
            Some(Choice::Except(devices)) => Devices::Except(devices.into()),
            Some(Choice::Only(devices)) => Devices::Only(devices.into()),
        };
        Recipient { user, devices, offline: offline.unwrap_or(head.offline) }
    };
    let note = Notification {
        id: head.notification_id,
        event,
        lane: head.lane,
        timestamp: head.timestamp,
        published_at_ms: head.published_at_ms,
        expires_at_ms: head.expires_at_ms,
        stream_seq: head.stream_seq,
        from_user_id: head.from_user_id,
        require_ack: head.require_ack,
        large_set: head.large_set,
        policy,
        payload,
        frames: Frames::default(),
    };
    let users = head.users.map(|users| users.into_iter().map(recipient).collect());
    Ok(Request {
        from: head.from,
        id: head.id,
        sent_ms: sent_ms.unwrap_or_default(),
        patience: Duration::from_millis(head.patience_ms),
        note: Arc::new(note),
        to: users.map_or(To::Everybody, To::Users),
    })
}

/// What a node says of one user of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Said {
    /// The user has sessions, and none is meant.
    NotMeant,
    /// The user has no session here.
    NotHere,
    Full,
    Coalesced,
    Accepted(usize),
}

impl Said {
    fn code(self) -> u64 {
        match self {
            Self::NotMeant => 0,
            Self::NotHere => 1,
            Self::Full => 2,
            Self::Coalesced => 3,
            Self::Accepted(sessions) => 4 + sessions as u64,
        }
    }

    fn of(code: u64) -> Self {
        match code {
            0 => Self::NotMeant,
            1 => Self::NotHere,
            2 => Self::Full,
            3 => Self::Coalesced,
            more => Self::Accepted((more - 4) as usize),
        }
    }
}

impl From<Said> for Answer {
    fn from(said: Said) -> Self {
        match said {
            Said::NotMeant => Self::Absent,
            Said::NotHere => Self::Moved,
            Said::Full => Self::Full,
            Said::Coalesced => Self::Coalesced,
            Said::Accepted(sessions) => Self::Accepted(sessions),
        }
    }
}

/// What comes back for a request: one answer, and for what must be acked one report of each session that took it.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Reply {
    /// Of each user, in the order of the request.
    Said(Vec<Said>),
    /// A broadcast is done: so many users took it, so many were full.
    Told(usize, usize),
    /// The request cannot be carried out, and asking again will not help.
    Refused(String),
    /// A session acked, or never will.
    Acked(AckEvent),
    /// The node is there.
    Pong,
}

const SAID: u8 = 1;
const TOLD: u8 = 2;
const REFUSED: u8 = 3;
const ACKED: u8 = 4;
const LOST: u8 = 5;
const PONG: u8 = 6;

impl Reply {
    pub(super) fn encode(&self) -> Bytes {
        fn pack(kind: u8, value: impl Serialize) -> Bytes {
            let mut body = vec![kind];
            rmp_serde::encode::write(&mut body, &value).expect("ids, numbers and texts have an encoding");
            body.into()
        }
        match self {
            Self::Said(said) => pack(SAID, said.iter().map(|said| said.code()).collect::<Vec<u64>>()),
            Self::Told(accepted, full) => pack(TOLD, (accepted, full)),
            Self::Refused(reason) => pack(REFUSED, reason),
            Self::Acked(AckEvent::Acked(user, device)) => pack(ACKED, (user, device)),
            Self::Acked(AckEvent::Lost(user)) => pack(LOST, user),
            Self::Pong => Bytes::from_static(&[PONG]),
        }
    }

    pub(super) fn decode(body: &[u8]) -> Result<Self, WireError> {
        fn read<T: DeserializeOwned>(body: &[u8]) -> Result<T, WireError> {
            rmp_serde::from_slice(body).map_err(malformed)
        }
        let (kind, body) = body.split_first().ok_or_else(|| malformed("it is empty"))?;
        match *kind {
            SAID => Ok(Self::Said(read::<Vec<u64>>(body)?.into_iter().map(Said::of).collect())),
            TOLD => read(body).map(|(accepted, full)| Self::Told(accepted, full)),
            REFUSED => read(body).map(Self::Refused),
            ACKED => read(body).map(|(user, device)| Self::Acked(AckEvent::Acked(user, device))),
            PONG => Ok(Self::Pong),
            LOST => read(body).map(|user| Self::Acked(AckEvent::Lost(user))),
            other => Err(malformed(format!("kind {other} is unknown"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn user(name: &str) -> UserId {
        UserId::new(name).unwrap()
    }

    fn device(name: &str) -> DeviceId {
        DeviceId::new(name).unwrap()
    }

    fn note(catalog: &Catalog) -> Notification {
        let payload = json!({"a": 1, "text": "é"});
        Notification {
            id: "n-1".into(),
            event: catalog.get("friend.request").unwrap().clone(),
            lane: Lane::Normal,
            timestamp: -3,
            published_at_ms: 7,
            expires_at_ms: u64::MAX,
            stream_seq: 9,
            from_user_id: Some(user("ann")),
            require_ack: true,
            large_set: true,
            policy: Policy {
                offline: Offline::Alert,
                inbox: Inbox::Always,
                inbox_until_ms: 11,
                ack_every_device: true,
            },
            payload: payload.as_object().unwrap().clone().into(),
            frames: Frames::default(),
        }
    }

    #[test]
    fn a_request_comes_over_whole() {
        let catalog = Catalog::built_in().unwrap();
        let (note, me) = (note(&catalog), NodeId::of("a", 1));
        let all = Recipient { user: user("bob"), devices: Devices::All, offline: Offline::Alert };
        let some = Recipient {
            user: user("carol"),
            devices: Devices::Except([device("d")].into()),
            offline: Offline::None,
        };
        let one = Recipient {
            user: user("dave"),
            devices: Devices::Only([device("e")].into()),
            offline: Offline::Silent,
        };
        let users = vec![all, some, one];
        let named: Vec<_> = users.iter().collect();
        let patience = Duration::from_millis(7);
        let body = request((&me, 5, patience), &note, Some(&named)).stamped(6);
        let read = read_request(&body, &catalog).unwrap();
        assert_eq!((read.from, read.id, read.sent_ms, read.patience), (me.clone(), 5, 6, patience));
        assert_eq!(read.to, To::Users(users));
        // Everything a notification has, so that a new field cannot be forgotten.
        assert_eq!(format!("{:?}", read.note), format!("{:?}", Arc::new(note.clone())));
        let everybody = read_request(&request((&me, 5, patience), &note, None).stamped(6), &catalog).unwrap();
        assert_eq!(everybody.to, To::Everybody);
    }

    #[test]
    fn what_cannot_be_read_is_refused_with_a_reason() {
        let catalog = Catalog::built_in().unwrap();
        let body = request((&NodeId::of("a", 1), 5, Duration::ZERO), &note(&catalog), None).stamped(6);
        for cut in 0..body.len() {
            assert!(read_request(&body.slice(..cut), &catalog).is_err(), "{cut} bytes of {}", body.len());
        }
        let mut other = body.to_vec();
        other[0] = 2;
        let error = read_request(&other.into(), &catalog).unwrap_err().to_string();
        assert!(error.contains("version 2"), "{error}");
        let other = include_str!("../../../config/catalog.toml").replace("friend.request", "friend.other");
        let error = read_request(&body, &Catalog::from_toml(&other).unwrap()).unwrap_err().to_string();
        assert!(error.contains("no event friend.request"), "{error}");
    }

    #[test]
    fn replies_come_over_whole() {
        let acked = AckEvent::Acked(user("u"), device("d"));
        let lost = AckEvent::Lost(user("u"));
        let said = [
            Said::NotMeant,
            Said::NotHere,
            Said::Full,
            Said::Coalesced,
            Said::Accepted(0),
            Said::Accepted(300),
        ];
        let replies = [
            Reply::Said(said.to_vec()),
            Reply::Told(70_000, 1),
            Reply::Refused("why".to_owned()),
            Reply::Acked(acked),
            Reply::Acked(lost),
            Reply::Pong,
        ];
        for reply in replies {
            assert_eq!(Reply::decode(&reply.encode()).unwrap(), reply);
        }
        for body in [&b""[..], &[9], &[SAID, 0xc1], &[ACKED]] {
            assert!(Reply::decode(body).is_err(), "{body:?}");
        }
    }
}
