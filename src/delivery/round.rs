//! What to do with each answer of the sessions: done, try again, wait for an ack, or hand over to what comes later.
//!
//! Pure. A round is what is left to do for a batch after it was routed once.

use super::Outcome;
use crate::catalog::{Inbox, Lane, Offline};
use crate::pipeline::Answer;
use crate::protocol::notification::Policy;
use crate::session::Recipient;

/// Why a recipient did not get it live: a field of the hand-off, for the push service and for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Missed {
    /// The user has no session that is meant.
    NoSession,
    /// Every session that is meant stayed full.
    SlowClient,
    /// No ack came in time.
    AckTimeout,
    /// The sessions ended before an ack.
    SessionLost,
    /// It came too late to be shown.
    Expired,
}

impl Missed {
    /// The reason's name in the hand-off.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NoSession => "no_session",
            Self::SlowClient => "slow_client",
            Self::AckTimeout => "ack_timeout",
            Self::SessionLost => "session_lost",
            Self::Expired => "expired",
        }
    }
}

/// A recipient who did not get it live.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HandOff {
    /// Who, and which devices still lack it.
    pub recipient: Recipient,
    /// Why.
    pub missed: Missed,
}

/// What is left to do for a batch.
#[derive(Debug, Default)]
pub struct Round {
    /// Everybody whose sessions took it, with how many did, where an ack is required.
    pub awaited: Vec<(Recipient, usize)>,
    /// To be routed again, and what is said of those who still do not get it.
    pub retry: Vec<HandOff>,
    /// To be handed off.
    pub hand_off: Vec<HandOff>,
}

impl Round {
    /// Sorts one answer. Gives the outcome when it is final at once.
    pub fn take(
        &mut self,
        recipient: Recipient,
        answer: Answer,
        lane: Lane,
        require_ack: bool,
    ) -> Option<Outcome> {
        let (missed, again) = match answer {
            Answer::Accepted(sessions) if require_ack => {
                self.awaited.push((recipient, sessions));
                return None;
            }
            Answer::Accepted(_) => return Some(Outcome::Delivered),
            Answer::Coalesced => return Some(Outcome::Coalesced),
            Answer::Full => (Missed::SlowClient, true),
            // Whoever moves is known to be elsewhere within a moment.
            Answer::Moved => (Missed::NoSession, true),
            // There may be sessions, which will read what is kept.
            Answer::Unreached { again } => (Missed::SessionLost, again),
            Answer::Absent => (Missed::NoSession, false),
        };
        // Low traffic is what may be shed: it is not worth holding a message for it.
        let list = if again && lane != Lane::Low { &mut self.retry } else { &mut self.hand_off };
        list.push(HandOff { recipient, missed });
        None
    }

    /// The tries are used up.
    pub fn give_up(&mut self) {
        self.hand_off.append(&mut self.retry);
    }
}

/// What is kept for somebody who did not get it live.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Keep {
    /// The push service is told, in this way.
    pub offline: Option<Offline>,
    /// The inbox gets a record.
    pub inbox: bool,
    /// The outcome once both are written.
    pub outcome: Outcome,
}

/// Decides what is kept of a notification of `lane`, at `now_ms`, for somebody who did not get it live. Both times are
/// Unix milliseconds.
///
/// After `expires_at_ms` nothing is kept, but for calls: their state says whether a ring becomes a missed call. A record
/// that is `always` written is there already, but sessions that were open need not read it: one of a user who has
/// sessions, and got nothing from them, is written again.
pub fn keep(hand_off: &HandOff, policy: &Policy, lane: Lane, expires_at_ms: u64, now_ms: u64) -> Keep {
    if expires_at_ms <= now_ms && hand_off.recipient.offline != Offline::Ring {
        return Keep { offline: None, inbox: false, outcome: Outcome::Expired };
    }
    let offline = match hand_off.recipient.offline {
        Offline::None | Offline::Never => None,
        push => Some(push),
    };
    let inboxed = policy.inbox != Inbox::None;
    // Somebody with a slow session is there: the inbox reaches them without an alert.
    let offline = offline.filter(|_| !(inboxed && hand_off.missed == Missed::SlowClient));
    let outcome = match (offline, inboxed, hand_off.missed) {
        (Some(_), ..) => Outcome::OfflinePushed,
        (None, true, _) => Outcome::Inboxed,
        (None, false, Missed::NoSession) => Outcome::Absent,
        (None, false, Missed::SlowClient) if lane == Lane::Low => Outcome::DroppedLow,
        (None, false, _) => Outcome::Undeliverable,
    };
    let inbox = match policy.inbox {
        Inbox::None => false,
        Inbox::Missed => true,
        Inbox::Always => hand_off.missed != Missed::NoSession,
    };
    Keep { offline, inbox, outcome }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::UserId;
    use crate::session::Devices;

    fn target(offline: Offline) -> Recipient {
        let user = UserId::new("u").unwrap();
        Recipient { user, devices: Devices::All, offline }
    }

    fn kept(offline: Offline, inbox: Inbox, missed: Missed, lane: Lane) -> (Option<Offline>, bool, Outcome) {
        let policy = Policy { offline, inbox, inbox_until_ms: 0, ack_every_device: false };
        let keep = keep(&HandOff { recipient: target(offline), missed }, &policy, lane, 1, 0);
        (keep.offline, keep.inbox, keep.outcome)
    }

    #[test]
    fn who_is_away_gets_what_the_row_keeps() {
        use Missed::NoSession;
        let (alert, none) = (Offline::Alert, Offline::None);
        let n = Lane::Normal;
        assert_eq!(kept(alert, Inbox::Missed, NoSession, n), (Some(alert), true, Outcome::OfflinePushed));
        assert_eq!(kept(alert, Inbox::None, NoSession, n), (Some(alert), false, Outcome::OfflinePushed));
        assert_eq!(kept(none, Inbox::Missed, NoSession, n), (None, true, Outcome::Inboxed));
        assert_eq!(kept(none, Inbox::Always, NoSession, n), (None, false, Outcome::Inboxed));
        assert_eq!(kept(Offline::Never, Inbox::None, NoSession, n), (None, false, Outcome::Absent));
    }

    #[test]
    fn who_is_slow_gets_the_inbox_before_an_alert() {
        use Missed::SlowClient;
        let (alert, none) = (Offline::Alert, Offline::None);
        assert_eq!(kept(alert, Inbox::Missed, SlowClient, Lane::Normal), (None, true, Outcome::Inboxed));
        assert_eq!(
            kept(alert, Inbox::None, SlowClient, Lane::High),
            (Some(alert), false, Outcome::OfflinePushed)
        );
        assert_eq!(kept(none, Inbox::None, SlowClient, Lane::Normal), (None, false, Outcome::Undeliverable));
        assert_eq!(kept(none, Inbox::None, SlowClient, Lane::Low), (None, false, Outcome::DroppedLow));
    }

    #[test]
    fn a_missing_ack_that_nothing_replaces_is_undeliverable() {
        let kept = kept(Offline::None, Inbox::None, Missed::AckTimeout, Lane::High);
        assert_eq!(kept, (None, false, Outcome::Undeliverable));
    }

    #[test]
    fn nothing_is_kept_of_what_expired_and_a_call_is_told_of() {
        let policy = Policy {
            offline: Offline::Alert,
            inbox: Inbox::Always,
            inbox_until_ms: 9,
            ack_every_device: false,
        };
        let kept = |offline, missed, now_ms| {
            let keep = keep(&HandOff { recipient: target(offline), missed }, &policy, Lane::High, 5, now_ms);
            (keep.offline, keep.inbox, keep.outcome)
        };
        for missed in [Missed::NoSession, Missed::SlowClient, Missed::AckTimeout, Missed::SessionLost] {
            for offline in [Offline::None, Offline::Never, Offline::Silent, Offline::Alert] {
                assert_eq!(
                    kept(offline, missed, 5),
                    (None, false, Outcome::Expired),
                    "{offline:?} {missed:?}"
                );
            }
        }
        for now_ms in [4, 5] {
            let rings = kept(Offline::Ring, Missed::AckTimeout, now_ms);
            assert_eq!(rings, (Some(Offline::Ring), true, Outcome::OfflinePushed));
        }
    }

    #[test]
    fn full_is_tried_again_and_low_traffic_is_not() {
        let mut round = Round::default();
        assert_eq!(round.take(target(Offline::None), Answer::Full, Lane::Normal, false), None);
        assert_eq!(round.take(target(Offline::None), Answer::Full, Lane::Low, false), None);
        assert_eq!((round.retry.len(), round.hand_off.len()), (1, 1));
        round.give_up();
        assert_eq!((round.retry.len(), round.hand_off.len()), (0, 2));
    }

    #[test]
    fn who_moved_is_looked_for_and_a_silent_node_may_still_have_sessions() {
        let mut round = Round::default();
        let answers = [Answer::Moved, Answer::Unreached { again: true }, Answer::Unreached { again: false }];
        for answer in answers {
            assert_eq!(round.take(target(Offline::None), answer, Lane::High, false), None);
        }
        assert_eq!((round.retry.len(), round.hand_off.len()), (2, 1));
        round.give_up();
        let missed: Vec<_> = round.hand_off.iter().map(|hand_off| hand_off.missed).collect();
        assert_eq!(missed, [Missed::SessionLost, Missed::NoSession, Missed::SessionLost]);
        let kept = kept(Offline::None, Inbox::Always, Missed::SessionLost, Lane::High);
        assert!(kept.1, "a record that says nothing of an offer, so that sessions beyond reach read it");
    }

    #[test]
    fn acceptance_is_final_only_without_a_required_ack() {
        let mut round = Round::default();
        let done = round.take(target(Offline::None), Answer::Accepted(2), Lane::High, false);
        assert_eq!(done, Some(Outcome::Delivered));
        assert_eq!(round.take(target(Offline::None), Answer::Accepted(2), Lane::High, true), None);
        assert_eq!(round.awaited.len(), 1);
    }
}
