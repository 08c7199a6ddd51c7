//! Waiting for acks: who has acked, who still may, and what is handed off in the end.
//!
//! Pure; the worker feeds it with events and a deadline.

use std::time::Duration;

use super::{HandOff, Missed};
use crate::id::{DeviceId, UserId};
use crate::session::{AckEvent, Devices, Recipient};

/// A phone is to ring within 5 s of the publish: half a second is left for the hand-off and the push service.
const RING_BY: Duration = Duration::from_millis(4_500);

/// How long an offer waits for acks that is made `age` after the publish: the row's time, and for what rings no longer
/// than a phone may stay silent.
pub fn patience(timeout: Duration, rings: bool, age: Duration) -> Duration {
    if rings { timeout.min(RING_BY.saturating_sub(age)) } else { timeout }
}

/// The copies of one notification whose acks are awaited: those of one or two users.
#[derive(Debug)]
pub struct AckWait {
    every_device: bool,
    users: Vec<Awaited>,
}

#[derive(Debug)]
struct Awaited {
    recipient: Recipient,
    /// How many have it, since it was last offered.
    sessions: usize,
    /// How many of them acked, and how many ended without.
    answered: usize,
    lost: usize,
    /// Every device that has acked.
    acked: Vec<DeviceId>,
}

impl AckWait {
    /// Waits for any device of each user, or with `every_device` for each session that took it.
    pub fn new(every_device: bool) -> Self {
        Self { every_device, users: Vec::new() }
    }

    /// So many sessions of this user have it.
    pub fn expect(&mut self, recipient: Recipient, sessions: usize) {
        self.users.push(Awaited { recipient, sessions, answered: 0, lost: 0, acked: Vec::new() });
    }

    /// Takes an event; true when it completes its user.
    pub fn take(&mut self, event: &AckEvent) -> bool {
        let (AckEvent::Acked(user, _) | AckEvent::Lost(user)) = event;
        let every_device = self.every_device;
        let Some(at) = self.position(user) else { return false };
        let awaited = &mut self.users[at];
        match event {
            AckEvent::Acked(_, device) => {
                awaited.answered += 1;
                if !awaited.acked.contains(device) {
                    awaited.acked.push(device.clone());
                }
            }
            AckEvent::Lost(..) => awaited.lost += 1,
        }
        let complete = !awaited.acked.is_empty() && (!every_device || awaited.answered >= awaited.sessions);
        if complete {
            self.users.swap_remove(at);
        }
        complete
    }

    /// True when nobody is awaited any more.
    pub fn is_done(&self) -> bool {
        self.users.is_empty()
    }

    /// True when no awaited session can ack any more.
    pub fn is_lost(&self) -> bool {
        self.users.iter().all(|awaited| awaited.answered + awaited.lost >= awaited.sessions)
    }

    /// Whom it may be offered to again when all their sessions have answered or ended: the devices that have not acked.
    pub fn rest(&self) -> Vec<Recipient> {
        self.users.iter().map(Awaited::rest).collect()
    }

    /// So many newer sessions of this user took it.
    pub fn renew(&mut self, user: &UserId, sessions: usize) {
        if let Some(at) = self.position(user) {
            let awaited = &mut self.users[at];
            (awaited.sessions, awaited.answered, awaited.lost) = (sessions, 0, 0);
        }
    }

    /// Hands off everybody who is still awaited, to the devices that have not acked.
    pub fn give_up(self, missed: Missed) -> Vec<HandOff> {
        self.users.into_iter().map(|awaited| HandOff { recipient: awaited.rest(), missed }).collect()
    }

    fn position(&self, user: &UserId) -> Option<usize> {
        self.users.iter().position(|awaited| awaited.recipient.user == *user)
    }
}

impl Awaited {
    /// The devices that have not acked.
    fn rest(&self) -> Recipient {
        let mut rest = self.recipient.clone();
        if !self.acked.is_empty() {
            let acked = || self.acked.iter().cloned();
            rest.devices = match &rest.devices {
                Devices::All => Devices::Except(acked().collect()),
                Devices::Except(except) => Devices::Except(except.iter().cloned().chain(acked()).collect()),
                Devices::Only(only) => {
                    let left = only.iter().filter(|device| !self.acked.contains(device));
                    Devices::Only(left.cloned().collect())
                }
            };
        }
        rest
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::Offline;

    fn wait(every_device: bool) -> AckWait {
        let user = UserId::new("u").unwrap();
        let recipient = Recipient { user, devices: Devices::All, offline: Offline::Alert };
        let mut wait = AckWait::new(every_device);
        wait.expect(recipient, 2);
        wait
    }

    fn device(name: &str) -> DeviceId {
        DeviceId::new(name).unwrap()
    }

    fn acked(name: &str) -> AckEvent {
        AckEvent::Acked(UserId::new("u").unwrap(), device(name))
    }

    fn lost() -> AckEvent {
        AckEvent::Lost(UserId::new("u").unwrap())
    }

    #[test]
    fn a_phone_rings_in_time_however_late_the_offer_was() {
        let timeout = Duration::from_secs(4);
        let ring_at = |age_ms: u64| {
            let age = Duration::from_millis(age_ms);
            (age + patience(timeout, true, age)).as_millis()
        };
        assert_eq!([0, 100, 500].map(ring_at), [4_000, 4_100, 4_500]);
        assert_eq!([501, 3_000, 4_499].map(ring_at), [4_500; 3], "a shorter wait");
        assert_eq!([4_500, 60_000].map(ring_at), [4_500, 60_000], "at once");
        assert_eq!(patience(timeout, false, Duration::from_mins(1)), timeout, "what does not ring");
    }

    #[test]
    fn any_device_is_enough() {
        let mut wait = wait(false);
        assert!(!wait.take(&lost()));
        assert!(wait.take(&acked("d2")));
        assert!(wait.is_done());
    }

    #[test]
    fn a_newer_session_may_ack_in_the_place_of_one_that_ended() {
        let mut wait = wait(false);
        wait.take(&lost());
        wait.take(&lost());
        assert!(wait.is_lost());
        wait.renew(&UserId::new("u").unwrap(), 1);
        assert!(!wait.is_lost());
        assert!(wait.take(&acked("d1")) && wait.is_done());
    }

    #[test]
    fn after_a_reconnect_the_rest_of_the_devices_are_asked() {
        let mut wait = wait(true);
        assert!(!wait.take(&acked("d1")));
        wait.take(&lost());
        assert!(wait.is_lost());
        let rest = wait.rest().remove(0);
        assert_eq!(rest.devices, Devices::Except([device("d1")].into()), "what d1 acked says nothing of d2");
        wait.renew(&rest.user, 1);
        assert!(!wait.is_lost());
        assert!(wait.take(&acked("d2")));
    }

    #[test]
    fn every_device_must_ack_when_the_row_says_so() {
        let mut wait = wait(true);
        assert!(!wait.take(&acked("d1")));
        assert!(!wait.is_done());
        assert!(wait.take(&acked("d2")));
    }

    #[test]
    fn devices_that_acked_are_not_pushed_to() {
        let mut wait = wait(true);
        wait.take(&acked("d1"));
        assert!(!wait.is_lost());
        wait.take(&lost());
        assert!(wait.is_lost());
        let hand_off = wait.give_up(Missed::SessionLost).remove(0);
        assert_eq!(hand_off.recipient.devices, Devices::Except([device("d1")].into()));
    }
}
