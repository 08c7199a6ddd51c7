//! The state of one call: who was invited, who answered, whose phones ring, and what that comes to. Pure.
//!
//! Kept in bucket `transient` as `call.{id}`, and nowhere else, so any worker can go on with it. Every change only adds,
//! so events may come in any order and twice.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::id::UserId;
use crate::pipeline::effects::{CALL_USERS_MAX, Invite};

/// A call that goes on is kept so long after its last change. Once it is forgotten, an invitation that nobody answers
/// ends it for everybody.
const KEPT: Duration = Duration::from_hours(24);

/// A call that is over is kept longer than its invitations are shown; what comes after that is expired.
const KEPT_ENDED: Duration = Duration::from_hours(1);

/// How an invitation ended for one user.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// There was none in time. A later answer goes before it.
    TimedOut,
    /// No.
    Rejected,
    /// The user joined.
    Joined,
}

/// One call.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Call {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    caller: Option<UserId>,
    /// Unix milliseconds at which JetStream stored the first invitation of each.
    #[serde(default)]
    invited: BTreeMap<UserId, u64>,
    #[serde(default)]
    answers: BTreeMap<UserId, Answer>,
    /// The notification that made each phone ring.
    #[serde(default)]
    rings: BTreeMap<UserId, Arc<str>>,
    /// The notification that ended it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ended_by: Option<Arc<str>>,
    /// Unix milliseconds at which JetStream stored that.
    #[serde(default, skip_serializing_if = "is_zero")]
    ended_ms: u64,
    /// When the call before it ended, which had the same id: what is older is about that one.
    #[serde(default, skip_serializing_if = "is_zero")]
    after_ms: u64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it with a reference")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// What an invitation still comes to for one user.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ring {
    /// The user may still answer: let the phone ring when no device took it.
    Ring,
    /// It is too late for that: tell of the missed call.
    Missed,
    /// Nothing: the user has answered.
    Answered,
}

/// What the time limit of invitations comes to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Timeout {
    /// Nothing: it is over, or everybody has answered.
    Nothing,
    /// Nobody but the caller joined: the call is over for everybody.
    Ended,
    /// These have not answered, and the others go on.
    Unanswered(Vec<UserId>),
}

impl Call {
    /// Adds those who are invited. An invitation that is younger than the end is another call under the same id.
    pub fn invite(&mut self, invite: &Invite, at_ms: u64) {
        if self.has_ended() && at_ms > self.ended_ms {
            *self = Self { after_ms: self.ended_ms, ..Self::default() };
        }
        if self.is_later_than(at_ms) {
            return;
        }
        self.caller = self.caller.take().or_else(|| invite.caller.clone());
        for user in &invite.invited {
            if self.invited.len() < CALL_USERS_MAX {
                self.invited.entry(user.clone()).or_insert(at_ms);
            }
        }
    }

    /// Everybody who is part of the call by invitation, with the time of the first one in Unix milliseconds.
    pub fn participants(&self) -> impl Iterator<Item = (&UserId, u64)> {
        let first_ms = self.invited.values().min().copied().unwrap_or_default();
        let caller = self.caller.iter().map(move |caller| (caller, first_ms));
        caller.chain(self.invited.iter().map(|(user, at_ms)| (user, *at_ms)))
    }

    /// When `user` was invited, Unix milliseconds.
    pub fn invited_ms(&self, user: &UserId) -> Option<u64> {
        self.invited.get(user).copied()
    }

    /// Notes an answer. Having joined is the last word.
    pub fn answer(&mut self, user: &UserId, answer: Answer) {
        if self.answers.contains_key(user) || self.answers.len() < CALL_USERS_MAX {
            let known = self.answers.entry(user.clone()).or_insert(answer);
            *known = answer.max(*known);
        }
    }

    /// What the invitation of `user` still comes to.
    pub fn standing(&self, user: &UserId) -> Ring {
        match self.answers.get(user) {
            Some(Answer::Joined | Answer::Rejected) => Ring::Answered,
            Some(Answer::TimedOut) => Ring::Missed,
            None if self.ended_by.is_some() => Ring::Missed,
            None => Ring::Ring,
        }
    }

    /// Decides about a ring for `user`, and notes it when it is to be.
    pub fn ring(&mut self, user: &UserId, note: &Arc<str>, expired: bool) -> Ring {
        match self.standing(user) {
            Ring::Ring if expired => Ring::Missed,
            Ring::Ring => {
                self.rings.insert(user.clone(), note.clone());
                Ring::Ring
            }
            settled => settled,
        }
    }

    /// How long the state is kept from now on.
    pub fn kept(&self) -> Duration {
        if self.ended_by.is_some() { KEPT_ENDED } else { KEPT }
    }

    /// The ring of `user`, if there was one.
    pub fn ring_of(&self, user: &UserId) -> Option<&Arc<str>> {
        self.rings.get(user)
    }

    /// The rings of those who never answered.
    pub fn open_rings(&self) -> Vec<(UserId, Arc<str>)> {
        let open = self.rings.iter().filter(|(user, _)| !self.answers.contains_key(*user));
        open.map(|(user, ring)| (user.clone(), ring.clone())).collect()
    }

    /// The notification `by`, stored at `at_ms`, ends it, unless another one did. It ends no call that began later.
    pub fn end(&mut self, by: &Arc<str>, at_ms: u64) {
        let later = self.invited.values().min().is_some_and(|first_ms| *first_ms > at_ms);
        if self.ended_by.is_none() && !later && !self.is_later_than(at_ms) {
            self.ended_by = Some(by.clone());
            self.ended_ms = at_ms;
        }
    }

    /// True when what was stored at `at_ms` is about a call before this one.
    pub fn is_later_than(&self, at_ms: u64) -> bool {
        at_ms <= self.after_ms
    }

    /// True when it is over.
    pub fn has_ended(&self) -> bool {
        self.ended_by.is_some()
    }

    /// Decides at the time limit of everybody who was invited up to `until_ms`. `by` names the notification that would
    /// end the call; said again, it comes to the same.
    pub fn timeout(&self, by: &str, until_ms: u64) -> Timeout {
        if let Some(ended_by) = &self.ended_by {
            return if **ended_by == *by { Timeout::Ended } else { Timeout::Nothing };
        }
        if self.invited.values().min().is_some_and(|first_ms| *first_ms > until_ms) {
            // The time limit of another call, which had the same id.
            return Timeout::Nothing;
        }
        let joined = |user: &UserId| self.answers.get(user) == Some(&Answer::Joined);
        if !self.answers.keys().any(|user| joined(user) && Some(user) != self.caller.as_ref()) {
            return Timeout::Ended;
        }
        let late = self.invited.iter().filter(|(user, at_ms)| {
            **at_ms <= until_ms && !self.answers.contains_key(*user) && Some(*user) != self.caller.as_ref()
        });
        let late: Vec<UserId> = late.map(|(user, _)| user.clone()).collect();
        if late.is_empty() { Timeout::Nothing } else { Timeout::Unanswered(late) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(name: &str) -> UserId {
        UserId::new(name).unwrap()
    }

    fn call() -> Call {
        let invited = vec![user("bob"), user("carol")];
        let mut call = Call::default();
        call.invite(&Invite { call: "c".into(), caller: Some(user("ann")), invited }, 100);
        call
    }

    #[test]
    fn nobody_but_the_caller_ends_the_call_for_all() {
        let mut call = call();
        call.answer(&user("ann"), Answer::Joined);
        call.answer(&user("carol"), Answer::Rejected);
        assert_eq!(call.timeout("t", 100), Timeout::Ended);
        call.end(&"t".into(), 100);
        assert_eq!(call.timeout("t", 100), Timeout::Ended, "again, after a crash");
        assert_eq!(call.timeout("other", 100), Timeout::Nothing);
    }

    #[test]
    fn those_without_an_answer_are_out_when_another_joined() {
        let mut call = call();
        call.answer(&user("carol"), Answer::Joined);
        assert_eq!(call.timeout("t", 100), Timeout::Unanswered(vec![user("bob")]));
        assert_eq!(call.timeout("t", 99), Timeout::Nothing, "invited later, so not yet");
        call.answer(&user("bob"), Answer::TimedOut);
        assert_eq!(call.timeout("t", 100), Timeout::Nothing);
        call.answer(&user("bob"), Answer::Joined);
        call.answer(&user("bob"), Answer::Rejected);
        assert_eq!(call.answers[&user("bob")], Answer::Joined);
    }

    #[test]
    fn somebody_invited_two_hours_later_ends_the_call_for_nobody_else() {
        const LATER_MS: u64 = 100 + 2 * 3_600 * 1_000;
        let mut call = call();
        call.answer(&user("bob"), Answer::TimedOut);
        call.answer(&user("carol"), Answer::Joined);
        assert!(call.kept() > Duration::from_millis(LATER_MS), "it is still known then");
        call.invite(&Invite { call: "c".into(), caller: None, invited: vec![user("dave")] }, LATER_MS);
        assert_eq!(call.standing(&user("dave")), Ring::Ring);
        assert_eq!(call.timeout("t", LATER_MS), Timeout::Unanswered(vec![user("dave")]));
        call.end(&"e".into(), u64::MAX);
        assert!(call.kept() < Duration::from_millis(LATER_MS));
    }

    #[test]
    fn an_id_that_is_used_again_is_another_call_and_old_news_end_it_not() {
        let invite = Invite { call: "c".into(), caller: None, invited: vec![user("bob")] };
        let mut call = call();
        call.answer(&user("bob"), Answer::Rejected);
        call.end(&"e".into(), 200);
        call.invite(&invite, 150);
        assert!(call.has_ended() && call.standing(&user("bob")) == Ring::Answered, "it was on its way");
        call.invite(&invite, 201);
        assert!(!call.has_ended() && call.standing(&user("bob")) == Ring::Ring);
        call.end(&"e".into(), 200);
        call.invite(&Invite { call: "c".into(), caller: None, invited: vec![user("carol")] }, 150);
        assert!(!call.has_ended() && call.is_later_than(150), "delivered again");
        assert_eq!(call.invited_ms(&user("carol")), None);
        call.end(&"f".into(), 300);
        assert!(call.has_ended());
    }

    #[test]
    fn a_phone_rings_only_while_nobody_answered_and_the_call_goes_on() {
        let note: Arc<str> = "n".into();
        let mut call = call();
        assert_eq!(call.ring(&user("bob"), &note, false), Ring::Ring);
        assert_eq!(call.ring(&user("carol"), &note, true), Ring::Missed);
        assert_eq!(call.open_rings(), [(user("bob"), note.clone())]);
        call.answer(&user("bob"), Answer::Rejected);
        assert_eq!(call.ring(&user("bob"), &note, false), Ring::Answered);
        assert_eq!((call.open_rings().len(), call.ring_of(&user("bob"))), (0, Some(&note)));
        call.end(&"e".into(), u64::MAX);
        assert_eq!(call.ring(&user("carol"), &note, false), Ring::Missed);
        assert_eq!(call.standing(&user("carol")), Ring::Missed);
        assert_eq!(call.standing(&user("bob")), Ring::Answered);
    }
}
