//! Which connections may begin their handshake: decided by number and by rate, before any cryptography.
//!
//! A storm of connects would otherwise take the processor from the sessions that are open. Whoever is refused comes
//! back after its backoff. No sockets and no clock: `endpoint` does what is decided here.

use std::time::Duration;

use tokio::time::Instant;

/// Handshakes that may be ahead of the rate, as the time they take at it.
const PENDING_MAX: Duration = Duration::from_secs(2);

/// What becomes of a connection's first packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Decision {
    /// The handshake begins.
    Accept,
    /// The address must first show that it is real, which costs its owner a round trip and us nothing.
    Retry,
    /// Refused, for this reason.
    Refuse(&'static str),
}

/// Decides for one endpoint.
#[derive(Debug)]
pub(super) struct Admission {
    under_way_max: usize,
    rate: Rate,
}

impl Admission {
    /// At most `under_way_max` handshakes at once and `per_s` a second.
    pub(super) fn new(under_way_max: usize, per_s: u32, now: Instant) -> Self {
        Self { under_way_max, rate: Rate::new(per_s, now) }
    }

    /// Decides about a connection while `under_way` handshakes are. `proven` says that its address is known to be real,
    /// or cannot be asked to show it. From half of either bound on only such ones are taken, so that packets with
    /// invented senders never take the room of the others.
    pub(super) fn decide(&mut self, under_way: usize, proven: bool, now: Instant) -> Decision {
        if under_way >= self.under_way_max {
            Decision::Refuse("handshakes_full")
        } else if !self.rate.has_room(now) {
            Decision::Refuse("handshake_rate")
        } else if !proven && (under_way > self.under_way_max / 2 || self.rate.pending(now) > PENDING_MAX / 2)
        {
            Decision::Retry
        } else {
            self.rate.take(now);
            Decision::Accept
        }
    }
}

/// A token bucket of [`PENDING_MAX`] at the rate, kept as the time at which everything taken so far is paid for: one
/// number to update, and nothing to round away.
#[derive(Debug)]
struct Rate {
    /// What one costs.
    each: Duration,
    paid_at: Instant,
}

impl Rate {
    fn new(per_s: u32, now: Instant) -> Self {
        // Rounded up, so that the rate is never exceeded.
        let each = Duration::from_nanos(1_000_000_000_u64.div_ceil(u64::from(per_s.max(1))));
        Self { each, paid_at: now }
    }

    /// How far what was taken is ahead of the rate.
    fn pending(&self, now: Instant) -> Duration {
        self.paid_at.saturating_duration_since(now)
    }

    fn has_room(&self, now: Instant) -> bool {
        self.pending(now) + self.each <= PENDING_MAX
    }

    fn take(&mut self, now: Instant) {
        self.paid_at = self.paid_at.max(now) + self.each;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn count(admission: &mut Admission, tries: usize, proven: bool, now: Instant) -> [usize; 3] {
        let mut counts = [0; 3];
        for _ in 0..tries {
            counts[match admission.decide(0, proven, now) {
                Decision::Accept => 0,
                Decision::Retry => 1,
                Decision::Refuse(reason) => {
                    assert_eq!(reason, "handshake_rate");
                    2
                }
            }] += 1;
        }
        counts
    }

    #[test]
    fn a_storm_gets_two_seconds_at_once_and_then_the_rate() {
        let start = Instant::now();
        let mut admission = Admission::new(1_000_000, 100, start);
        assert_eq!(count(&mut admission, 1_000, true, start), [200, 0, 800]);
        assert_eq!(count(&mut admission, 1_000, true, start + Duration::from_millis(500)), [50, 0, 950]);
        assert_eq!(count(&mut admission, 1_000, true, start + Duration::from_mins(1)), [200, 0, 800]);
    }

    #[test]
    fn invented_addresses_leave_half_of_each_bound_to_real_ones() {
        let start = Instant::now();
        let mut admission = Admission::new(10, 100, start);
        assert_eq!(admission.decide(5, false, start), Decision::Accept);
        assert_eq!(admission.decide(6, false, start), Decision::Retry);
        assert_eq!(admission.decide(6, true, start), Decision::Accept);
        assert_eq!(admission.decide(10, true, start), Decision::Refuse("handshakes_full"));
        // Two are taken, and the one that exceeds the half is the last.
        assert_eq!(count(&mut admission, 1_000, false, start), [99, 901, 0]);
        assert_eq!(count(&mut admission, 1_000, true, start), [99, 0, 901]);
    }

    proptest! {
        #[test]
        fn never_more_than_the_rate_and_two_seconds_of_it(
            per_s in 1_u32..20_000,
            pauses in prop::collection::vec(0_u64..50_000_000, 1..2_000),
        ) {
            let start = Instant::now();
            let mut now = start;
            let mut admission = Admission::new(usize::MAX, per_s, start);
            let mut accepted = 0_u32;
            for pause in pauses {
                now += Duration::from_nanos(pause);
                accepted += u32::from(admission.decide(0, true, now) == Decision::Accept);
                let most = f64::from(per_s) * (PENDING_MAX + (now - start)).as_secs_f64();
                prop_assert!(f64::from(accepted) <= most + 1e-6, "{accepted} of {most}");
            }
        }
    }
}
