//! The value of `ban.{user}`, and which ban an event asks for. Pure.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// A ban further ahead than a century is for ever: it needs no end, and NATS counts a key's life in 64-bit nanoseconds.
const FOR_EVER_MS: u64 = 100 * 365 * 24 * 3_600 * 1_000;

/// A lifted ban is remembered longer than an older event can wait in the work queue (24 h), so that a redelivery does
/// not ban again.
const LIFTED_TTL: Duration = Duration::from_hours(48);

/// A ban, or the memory of one that was lifted.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ban {
    /// Version, Unix microseconds: JetStream's time of the event that caused it, or the time of writing. The highest
    /// wins.
    pub v: u64,
    /// Unix milliseconds until which it holds; absent for ever.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until_ms: Option<u64>,
    /// It was lifted before its time.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub lifted: bool,
    /// The notification that tells the user.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub notification_id: Option<Arc<str>>,
}

/// Which ban an event asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asked {
    /// A ban until these Unix milliseconds, or for ever.
    Until(Option<u64>),
    /// None: its end is in the past already, and an earlier ban stays as it is.
    Over,
    /// The event says neither until when nor for ever.
    Nothing,
}

/// Decides from `payload.is_permanent` and `payload.banned_until`, Unix seconds (0 counts as absent).
pub fn asked(permanent: bool, banned_until: Option<u64>, now_ms: u64) -> Asked {
    let until_ms = banned_until.filter(|until| *until > 0).map(|until| until.saturating_mul(1_000));
    match until_ms {
        _ if permanent => Asked::Until(None),
        None => Asked::Nothing,
        Some(until) if until <= now_ms => Asked::Over,
        Some(until) if until > now_ms.saturating_add(FOR_EVER_MS) => Asked::Until(None),
        Some(until) => Asked::Until(Some(until)),
    }
}

impl Ban {
    /// A ban until these Unix milliseconds, or for ever.
    pub fn until(v: u64, until_ms: Option<u64>) -> Self {
        Self { v, until_ms, ..Self::default() }
    }

    /// The memory of a ban that is over.
    pub fn lifted(v: u64) -> Self {
        Self { v, lifted: true, ..Self::default() }
    }

    /// True while the user is banned.
    pub fn holds(&self, now_ms: u64) -> bool {
        !self.lifted && self.until_ms.is_none_or(|until| until > now_ms)
    }

    /// How long its key is kept; `None` for ever.
    pub fn ttl(&self, now_ms: u64) -> Option<Duration> {
        if self.lifted {
            return Some(LIFTED_TTL);
        }
        self.until_ms.map(|until| Duration::from_millis(until.saturating_sub(now_ms)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_ban_is_permanent_given_past_or_missing() {
        let now_ms = 1_000_000;
        assert_eq!(asked(true, Some(1), now_ms), Asked::Until(None));
        assert_eq!(asked(false, Some(1_001), now_ms), Asked::Until(Some(1_001_000)));
        assert_eq!(asked(false, Some(1_000), now_ms), Asked::Over);
        assert_eq!(asked(false, Some(u64::MAX), now_ms), Asked::Until(None));
        assert_eq!(asked(false, Some(0), now_ms), Asked::Nothing);
        assert_eq!(asked(false, None, now_ms), Asked::Nothing);
    }

    #[test]
    fn a_ban_holds_until_its_end_unless_it_was_lifted() {
        assert!(Ban::until(1, None).holds(u64::MAX));
        assert!(Ban::until(1, Some(10)).holds(9) && !Ban::until(1, Some(10)).holds(10));
        assert!(!Ban::lifted(1).holds(0));
        assert_eq!(Ban::until(1, Some(10)).ttl(4), Some(Duration::from_millis(6)));
        assert_eq!(Ban::until(1, None).ttl(4), None);
    }
}
