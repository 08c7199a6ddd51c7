//! Control frames, both ways, and the lane header. Notification frames are in [`super::notification`].
//!
//! Field order here is the order on the wire; decoders take any order and ignore unknown fields.

use serde::{Deserialize, Serialize};

use super::CloseCode;

/// A stream from the server to a client, most urgent first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SessionLane {
    /// Urgent traffic.
    High,
    /// Replay of what was missed.
    Inbox,
    /// Ordinary traffic.
    Normal,
    /// Traffic that may be shed.
    Low,
}

impl SessionLane {
    /// All lanes, most urgent first.
    pub const ALL: [Self; 4] = [Self::High, Self::Inbox, Self::Normal, Self::Low];

    /// The lane's place in [`Self::ALL`].
    pub const fn index(self) -> usize {
        self as usize
    }

    /// The lane's name on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::High => "high",
            Self::Inbox => "inbox",
            Self::Normal => "normal",
            Self::Low => "low",
        }
    }
}

impl From<crate::catalog::Lane> for SessionLane {
    fn from(lane: crate::catalog::Lane) -> Self {
        match lane {
            crate::catalog::Lane::High => Self::High,
            crate::catalog::Lane::Normal => Self::Normal,
            crate::catalog::Lane::Low => Self::Low,
        }
    }
}

/// What a client says on the control stream.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ClientFrame {
    /// The first frame.
    Hello(Hello),
    /// Everything up to and including `seq` on `lane` has been processed.
    Ack {
        /// The lane.
        lane: SessionLane,
        /// Ordinal on the lane, from 1.
        seq: u64,
    },
    /// The answer to a ping.
    Pong {
        /// `t` of the ping.
        t: u64,
    },
    /// A fresh token for the same user.
    Token {
        /// The JWT.
        token: String,
    },
    /// The client leaves on purpose.
    Bye,
}

/// The first frame of a client.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub struct Hello {
    /// Protocol version; this page speaks 1.
    pub version: u64,
    /// JWT that says who the user is.
    pub token: String,
    /// The device; one session a device.
    pub device_id: String,
    /// `ios`, `android`, `web`, `desktop`, …
    pub platform: String,
    /// Encoding of every later frame.
    #[serde(default, skip_serializing_if = "is_default")]
    pub encoding: super::Encoding,
    /// The client reads datagrams.
    #[serde(default, skip_serializing_if = "is_default")]
    pub datagrams: bool,
    /// Where an earlier session left off.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resume: Option<Resume>,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

impl std::fmt::Debug for Hello {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hello")
            .field("version", &self.version)
            .field("device_id", &self.device_id)
            .finish_non_exhaustive()
    }
}

/// Where an earlier session left off.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Resume {
    /// The last inbox cursor whose notifications are all processed.
    pub inbox: String,
}

/// What the server says on the control stream, and the header of a lane.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ServerFrame {
    /// The session is open.
    Welcome(Welcome),
    /// Are you there?
    Ping {
        /// Unix milliseconds.
        t: u64,
        /// Inbox cursor now.
        inbox: String,
    },
    /// Please connect anew soon.
    Goaway {
        /// `draining` or `rotate`.
        reason: String,
        /// Wait this long, as it is.
        reconnect_after_ms: u64,
        /// The session ends after this time.
        close_after_ms: u64,
    },
    /// The last frame.
    Close(Close),
    /// The first frame of a lane.
    Lane {
        /// Which lane this stream is.
        lane: SessionLane,
    },
}

/// The session's terms.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Welcome {
    /// Names the session in logs.
    pub session_id: String,
    /// The token's user.
    pub user_id: String,
    /// The node that serves the session.
    pub node: String,
    /// Time between pings.
    pub heartbeat_ms: u64,
    /// A `require_ack` frame that is not acked within it goes to offline push.
    pub ack_timeout_ms: u64,
    /// Frames a lane may hold un-acked.
    pub window: u64,
    /// Largest body the server sends, in bytes.
    pub max_frame: u64,
    /// Unix milliseconds.
    pub server_time: u64,
    /// Inbox cursor now.
    pub inbox: String,
    /// Nothing after the client's cursor was lost.
    pub recovered: bool,
}

/// Why the session ends.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Close {
    /// See [`CloseCode`].
    pub code: u32,
    /// The code's name.
    pub name: String,
    /// A sentence for a developer.
    pub reason: String,
    /// Connect again by yourself.
    pub reconnect: bool,
    /// Wait this long first; 0, or nothing on the wire, leaves it to the client's backoff.
    #[serde(default)]
    pub retry_after_ms: u64,
}

impl Close {
    /// The frame for `code`.
    pub fn new(code: CloseCode, reason: impl Into<String>, retry_after_ms: u64) -> Self {
        Self {
            code: code.code(),
            name: code.name().to_owned(),
            reason: reason.into(),
            reconnect: code.reconnect(),
            retry_after_ms,
        }
    }
}
