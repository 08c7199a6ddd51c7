//! What a connection is for: which user it comes as where the operator gave each role its own, and where its answers come.
//!
//! Each role has inboxes of its own, because `_INBOX.>` for everybody would let everybody read what the others are answered.

use std::fmt;

/// Who connects.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Role {
    /// A service that publishes notifications.
    Publisher(String),
    /// `fanfare serve --role worker`.
    Worker,
    /// `fanfare serve --role edge`.
    Edge,
    /// `fanfare serve` with both.
    All,
    /// The push service that consumes OFFLINE_PUSH.
    PushService,
    /// A service that writes members, and one that is asked for them.
    Members,
    /// `fanfare provision`.
    Provisioner,
    /// The commands that only look.
    Monitor,
    /// The commands that change something.
    Operator,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Publisher(service) => write!(f, "{}-{service}", self.kind()),
            _ => f.write_str(self.kind()),
        }
    }
}

impl Role {
    /// Every role but the publishers, of which each service has its own.
    pub const SHARED: [Self; 8] = [
        Self::Worker,
        Self::Edge,
        Self::All,
        Self::PushService,
        Self::Members,
        Self::Provisioner,
        Self::Monitor,
        Self::Operator,
    ];

    /// Its name, the same for all publishers.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Publisher(_) => "publisher",
            Self::Worker => "worker",
            Self::Edge => "edge",
            Self::All => "all",
            Self::PushService => "push-service",
            Self::Members => "members",
            Self::Provisioner => "provisioner",
            Self::Monitor => "monitor",
            Self::Operator => "operator",
        }
    }

    /// What the subjects of its inboxes begin with.
    pub fn inbox_prefix(&self) -> String {
        format!("_INBOX_fanfare-{self}")
    }
}
