//! What became of every published notification, by what was found afterwards. Pure.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use tokio::time::Instant;

/// A notification for one user: user and notification id.
pub(crate) type Copy = (String, String);

/// A user's device: user, and what the device is to them.
pub(crate) type Device = (String, String);

/// A copy that JetStream has acknowledged.
#[derive(Debug, Clone)]
pub(crate) struct Published {
    pub(crate) copy: Copy,
    pub(crate) at: Instant,
}

/// What was found, each as (user, notification id).
#[derive(Debug, Default)]
pub(crate) struct Found {
    /// What applications were shown, in the order and as often as it happened, and on which of the user's devices.
    pub(crate) seen: Vec<(Copy, String)>,
    /// Handed to the push service.
    pub(crate) handed_off: HashSet<Copy>,
    /// In an inbox.
    pub(crate) inboxed: HashSet<Copy>,
    /// In the dead letters, by notification id.
    pub(crate) dead: HashSet<String>,
    /// Frames that came again and were not shown.
    pub(crate) again: u64,
    /// From JetStream to the application, of what was shown.
    pub(crate) latencies_ms: Vec<u64>,
}

/// What a row promises.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Promise {
    /// Nothing is lost, nothing shown twice, and more than 999 of 1,000 reach somebody.
    Everything,
    /// Lost is only what was published around the crash: at most once after a session took it.
    UnlessCrashed,
    /// The control: something is lost.
    Loses,
}

/// The sums of one run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Account {
    pub(crate) published: u64,
    pub(crate) delivered: u64,
    pub(crate) handed_off: u64,
    pub(crate) inboxed: u64,
    pub(crate) dead: u64,
    pub(crate) lost: u64,
    pub(crate) shown_twice: u64,
    /// Frames that came again and were not shown.
    pub(crate) again: u64,
    /// Shown to the user, and handed to the push service as well.
    pub(crate) also_pushed: u64,
    /// 99th percentile from JetStream to the application, in milliseconds.
    pub(crate) p99_ms: u64,
    /// Of the lost ones, those that no crash explains.
    pub(crate) unexplained: u64,
}

/// How long before a crash something may have been published that was lost in it: sessions take it within
/// milliseconds, and send it as fast as a busy machine lets them.
const BEFORE: Duration = Duration::from_millis(500);

/// The same after it: an acknowledgement of JetStream may arrive here later than the notification there.
const AFTER: Duration = Duration::from_millis(200);

impl Account {
    /// Sorts every published copy into the first place where it was found. `crash` is when the gateway was killed.
    pub(crate) fn settle(published: &[Published], found: &Found, crash: Option<Instant>) -> Self {
        let mut times: HashMap<&(Copy, String), u64> = HashMap::new();
        for shown in &found.seen {
            *times.entry(shown).or_default() += 1;
        }
        let seen: HashSet<&Copy> = found.seen.iter().map(|(copy, _)| copy).collect();
        let mut latencies_ms = found.latencies_ms.clone();
        latencies_ms.sort_unstable();
        let p99_ms = latencies_ms.get(latencies_ms.len() * 99 / 100).copied().unwrap_or_default();
        let mut account = Self { again: found.again, p99_ms, ..Self::default() };
        for Published { copy, at } in published {
            account.published += 1;
            let place = if seen.contains(copy) {
                account.also_pushed += u64::from(found.handed_off.contains(copy));
                &mut account.delivered
            } else if found.handed_off.contains(copy) {
                &mut account.handed_off
            } else if found.inboxed.contains(copy) {
                &mut account.inboxed
            } else if found.dead.contains(&copy.1) {
                &mut account.dead
            } else {
                let explained = crash.is_some_and(|crash| crash <= *at + BEFORE && *at <= crash + AFTER);
                account.unexplained += u64::from(!explained);
                &mut account.lost
            };
            *place += 1;
        }
        account.shown_twice = times.values().map(|times| times - 1).sum();
        account
    }

    /// Share of what was published that reached a device, the push service or an inbox.
    fn ratio(&self) -> f64 {
        let reached = self.delivered + self.handed_off + self.inboxed;
        if self.published == 0 { 0.0 } else { reached as f64 / self.published as f64 }
    }

    /// What is wrong, if anything.
    pub(crate) fn verdict(&self, promise: Promise) -> Result<&'static str, String> {
        if self.published == 0 {
            return Err("nothing was published".to_owned());
        }
        match promise {
            Promise::Everything if self.lost > 0 => Err(format!("{} LOST", self.lost)),
            Promise::Everything if self.shown_twice > 0 => Err(format!("{} SHOWN TWICE", self.shown_twice)),
            Promise::Everything if self.ratio() <= 0.999 => Err("RATIO TOO LOW".to_owned()),
            Promise::UnlessCrashed if self.unexplained > 0 => {
                Err(format!("{} LOST THAT NO CRASH EXPLAINS", self.unexplained))
            }
            Promise::UnlessCrashed if self.shown_twice > 0 => {
                Err(format!("{} SHOWN TWICE", self.shown_twice))
            }
            Promise::Loses if self.lost + self.dead == 0 => Err("NOTHING WAS LOST".to_owned()),
            Promise::Loses => Ok("fails, as it must"),
            Promise::UnlessCrashed => Ok("lost only what sessions held at the crash"),
            Promise::Everything => Ok("ok"),
        }
    }

    pub(crate) fn heading() -> String {
        format!(
            "{:<58} {:>9} {:>9} {:>10} {:>7} {:>5} {:>5} {:>11} {:>10} {:>11} {:>7} {:>7} {:>5}",
            "fault",
            "published",
            "delivered",
            "handed off",
            "inboxed",
            "dead",
            "lost",
            "shown twice",
            "came again",
            "also pushed",
            "p99 ms",
            "ratio",
            "s"
        )
    }

    pub(crate) fn line(&self, name: &str, took: Duration, verdict: &Result<&'static str, String>) -> String {
        let verdict = match verdict {
            Ok(text) => (*text).to_owned(),
            Err(text) => format!("FAILED: {text}"),
        };
        format!(
            "{name:<58} {:>9} {:>9} {:>10} {:>7} {:>5} {:>5} {:>11} {:>10} {:>11} {:>7} {:>7.4} {:>5}  {verdict}",
            self.published,
            self.delivered,
            self.handed_off,
            self.inboxed,
            self.dead,
            self.lost,
            self.shown_twice,
            self.again,
            self.also_pushed,
            self.p99_ms,
            self.ratio(),
            took.as_secs(),
        )
    }
}
