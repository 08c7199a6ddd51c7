//! Shaping of bursts, as a decision: what of one user and one kind of notification leaves now, later or never.
//!
//! Pure; [`super::shaper`] keeps one [`Group`] for each user and event that has been seen lately, and calls it with the
//! time. Order is by stream sequence, not by arrival: workers run side by side and messages are redelivered.

/// How a row shapes, with its times in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Rule {
    /// Later ones within the window are dropped, instead of replacing the one that waits.
    pub(super) throttle: bool,
    /// Length of the window.
    pub(super) window_ms: u64,
    /// The first one leaves at once.
    pub(super) leading: bool,
    /// What waits for one user leaves in stream order, whatever its key.
    pub(super) ordered: bool,
}

/// One notification that arrived, as far as shaping looks at it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Arrival {
    /// Which window of the group it belongs to.
    pub(super) key: u64,
    /// Stream sequence; 0 when no stream holds it, which is newer than everything before.
    pub(super) seq: u64,
    /// It does not wait.
    pub(super) passes: bool,
}

/// What becomes of an arrival.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It leaves now.
    Now,
    /// It waits; another one will not be shown for it.
    Held,
    /// It leaves now and makes the one that waited superfluous.
    NowInstead,
    /// It takes the place of the one that waited.
    HeldInstead,
    /// It is older than what was shown or waits, or comes too soon: never.
    Dropped,
}

/// A key is remembered this long after its window, so that a late, older one is not shown after a newer one.
/// Redeliveries after a refused write come later, but those are of messages that were never shown.
const REMEMBERED_MS: u64 = 5_000;

#[derive(Debug)]
struct Held<T> {
    seq: u64,
    due_ms: u64,
    item: T,
}

#[derive(Debug)]
struct Window<T> {
    key: u64,
    /// When one last left, and the highest sequence that did.
    left: Option<(u64, u64)>,
    held: Option<Held<T>>,
}

/// One that waits, in the order in which they leave.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Waits {
    seq: u64,
    due_ms: u64,
    /// Index of its window.
    at: usize,
    key: u64,
}

/// The windows of one user and one kind of notification.
#[derive(Debug)]
pub(super) struct Group<T> {
    windows: Vec<Window<T>>,
}

impl<T> Default for Group<T> {
    fn default() -> Self {
        Self { windows: Vec::new() }
    }
}

impl<T> Group<T> {
    /// Decides about one arrival. `item` comes back when it leaves now.
    pub(super) fn arrive(
        &mut self,
        rule: Rule,
        arrival: Arrival,
        item: T,
        now_ms: u64,
    ) -> (Verdict, Option<T>) {
        let Arrival { key, seq, passes } = arrival;
        if rule.throttle && passes {
            // Outside every window, so it must not open one that nothing would ever close.
            return (Verdict::Now, Some(item));
        }
        let queue = rule.ordered && self.windows.iter().any(|window| window.held.is_some());
        let window = self.window(key);
        let next_ms = window.left.map_or(0, |(at_ms, _)| at_ms + rule.window_ms);
        if rule.throttle {
            if now_ms < next_ms {
                return (Verdict::Dropped, None);
            }
            window.leave(now_ms, seq);
            return (Verdict::Now, Some(item));
        }
        // One that passes may come twice, when its sessions were full or its worker crashed, and has to reach the
        // session that knows whether it was acked.
        let outdated = |known: u64| seq > 0 && if passes { seq < known } else { seq <= known };
        if window.left.is_some_and(|(_, shown)| outdated(shown)) {
            return (Verdict::Dropped, None);
        }
        let waiting = window.held.as_ref().map(|held| (held.seq, held.due_ms));
        match waiting {
            Some((waiting, _)) if outdated(waiting) && !passes => (Verdict::Dropped, None),
            Some((waiting, _)) if passes => {
                let superfluous = !outdated(waiting);
                if superfluous {
                    window.held = None;
                }
                window.leave(now_ms, seq);
                (if superfluous { Verdict::NowInstead } else { Verdict::Now }, Some(item))
            }
            Some((_, due_ms)) => {
                window.held = Some(Held { seq, due_ms, item });
                (Verdict::HeldInstead, None)
            }
            None if passes || (rule.leading && now_ms >= next_ms && !queue) => {
                window.leave(now_ms, seq);
                (Verdict::Now, Some(item))
            }
            None => {
                let due_ms = if rule.leading { next_ms.max(now_ms) } else { now_ms + rule.window_ms };
                window.held = Some(Held { seq, due_ms, item });
                (Verdict::Held, None)
            }
        }
    }

    /// Takes what an `arrival` that passes would overtake: what waits in the other windows and is older, in stream order.
    /// Nothing where the order of keys does not matter.
    pub(super) fn overtaken(&mut self, rule: Rule, arrival: Arrival, now_ms: u64) -> Vec<(Arrival, T)> {
        let Arrival { key, seq, passes } = arrival;
        if !rule.ordered || !passes {
            return Vec::new();
        }
        let mut waiting = self.waiting();
        waiting.retain(|waits| waits.key != key && (seq == 0 || waits.seq < seq));
        self.take(&waiting, true, now_ms)
    }

    /// Puts back one that could not leave, to try again a window later; false when a newer one waits by now.
    pub(super) fn hold_again(&mut self, rule: Rule, arrival: Arrival, item: T, now_ms: u64) -> bool {
        self.refused(arrival);
        let window = self.window(arrival.key);
        let free = window.held.is_none();
        if free {
            window.held = Some(Held { seq: arrival.seq, due_ms: now_ms + rule.window_ms, item });
        }
        free
    }

    /// Says that one did not leave after all. It may come again, and older ones still come too late.
    pub(super) fn refused(&mut self, arrival: Arrival) {
        if let Some((_, shown)) = &mut self.window(arrival.key).left {
            *shown = (*shown).min(arrival.seq.saturating_sub(1));
        }
    }

    /// Takes what is due, in stream order, with key and sequence of each.
    pub(super) fn due(&mut self, rule: Rule, now_ms: u64) -> Vec<(Arrival, T)> {
        let mut waiting = self.waiting();
        if rule.ordered {
            let due = waiting.iter().take_while(|waits| waits.due_ms <= now_ms).count();
            waiting.truncate(due);
        } else {
            waiting.retain(|waits| waits.due_ms <= now_ms);
        }
        let due = self.take(&waiting, false, now_ms);
        self.windows.retain(|window| {
            let over = window.left.is_none_or(|(at_ms, _)| now_ms >= at_ms + rule.window_ms + REMEMBERED_MS);
            window.held.is_some() || !over
        });
        due
    }

    /// What waits, in stream order.
    fn waiting(&self) -> Vec<Waits> {
        let waits = |(at, window): (usize, &Window<T>)| {
            let held = window.held.as_ref()?;
            Some(Waits { seq: held.seq, due_ms: held.due_ms, at, key: window.key })
        };
        let mut waiting: Vec<_> = self.windows.iter().enumerate().filter_map(waits).collect();
        waiting.sort_unstable();
        waiting
    }

    fn take(&mut self, waiting: &[Waits], passes: bool, now_ms: u64) -> Vec<(Arrival, T)> {
        let mut taken = Vec::new();
        for &Waits { seq, at, key, .. } in waiting {
            let window = &mut self.windows[at];
            if let Some(held) = window.held.take() {
                window.leave(now_ms, seq);
                taken.push((Arrival { key, seq, passes }, held.item));
            }
        }
        taken
    }

    /// When [`Self::due`] has something to do next; `None` when the group is empty.
    pub(super) fn next_ms(&self, rule: Rule) -> Option<u64> {
        let forget =
            |window: &Window<T>| window.left.map(|(at_ms, _)| at_ms + rule.window_ms + REMEMBERED_MS);
        self.windows
            .iter()
            .filter_map(|window| window.held.as_ref().map(|held| held.due_ms).or_else(|| forget(window)))
            .min()
    }

    /// True when the window of `key` is open or remembered.
    pub(super) fn knows(&self, key: u64) -> bool {
        self.windows.iter().any(|window| window.key == key)
    }

    /// Windows that are open or remembered.
    pub(super) fn len(&self) -> usize {
        self.windows.len()
    }

    fn window(&mut self, key: u64) -> &mut Window<T> {
        let at = self.windows.iter().position(|window| window.key == key).unwrap_or_else(|| {
            self.windows.push(Window { key, left: None, held: None });
            self.windows.len() - 1
        });
        &mut self.windows[at]
    }
}

impl<T> Window<T> {
    fn leave(&mut self, now_ms: u64, seq: u64) {
        let shown = self.left.map_or(0, |(_, shown)| shown);
        self.left = Some((now_ms, seq.max(shown)));
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::session::tests::shuffle;

    const W: u64 = 1_000;

    fn rule() -> Rule {
        Rule { throttle: false, window_ms: W, leading: false, ordered: false }
    }

    fn at(key: u64, seq: u64) -> Arrival {
        Arrival { key, seq, passes: false }
    }

    fn items<T>(due: Vec<(Arrival, T)>) -> Vec<T> {
        due.into_iter().map(|(_, item)| item).collect()
    }

    #[test]
    fn the_latest_of_a_window_leaves_at_its_end() {
        let mut group = Group::default();
        assert_eq!(group.arrive(rule(), at(1, 1), "a", 0), (Verdict::Held, None));
        assert_eq!(group.arrive(rule(), at(1, 3), "c", 500), (Verdict::HeldInstead, None));
        assert_eq!(group.arrive(rule(), at(1, 2), "b", 600), (Verdict::Dropped, None));
        assert!(group.due(rule(), 999).is_empty());
        assert_eq!(items(group.due(rule(), 1_000)), ["c"]);
        assert_eq!(group.arrive(rule(), at(1, 2), "b", 1_500), (Verdict::Dropped, None), "late and older");
    }

    #[test]
    fn a_leading_one_leaves_at_once_and_the_rest_of_the_window_is_merged() {
        let rule = Rule { leading: true, ..rule() };
        let mut group = Group::default();
        assert_eq!(group.arrive(rule, at(1, 1), "a", 0), (Verdict::Now, Some("a")));
        assert_eq!(group.arrive(rule, at(1, 2), "b", 100), (Verdict::Held, None));
        assert_eq!(group.arrive(rule, at(1, 3), "c", 900), (Verdict::HeldInstead, None));
        assert_eq!(group.next_ms(rule), Some(1_000));
        assert_eq!(items(group.due(rule, 1_000)), ["c"]);
        assert_eq!(group.arrive(rule, at(1, 4), "d", 1_999).0, Verdict::Held);
        assert_eq!(items(group.due(rule, 2_000)), ["d"]);
    }

    #[test]
    fn what_passes_makes_what_waits_superfluous_only_if_it_is_newer() {
        let passing = |seq| Arrival { key: 1, seq, passes: true };
        let mut group = Group::default();
        group.arrive(rule(), at(1, 5), "75 %", 0);
        assert_eq!(group.arrive(rule(), passing(6), "done", 10), (Verdict::NowInstead, Some("done")));
        assert!(group.due(rule(), 5_000).is_empty());

        let mut group = Group::default();
        group.arrive(rule(), at(1, 5), "again", 0);
        assert_eq!(group.arrive(rule(), passing(4), "failed", 10), (Verdict::Now, Some("failed")));
        assert_eq!(items(group.due(rule(), 1_000)), ["again"]);
    }

    #[test]
    fn ordered_groups_leave_in_stream_order_whatever_the_key() {
        let rule = Rule { leading: true, ordered: true, ..rule() };
        let mut group = Group::default();
        group.arrive(rule, at(1, 1), "a1", 0);
        group.arrive(rule, at(2, 2), "b1", 100);
        group.arrive(rule, at(2, 3), "b2", 200);
        group.arrive(rule, at(1, 4), "a2", 300);
        assert_eq!(
            group.arrive(rule, at(3, 5), "c1", 400).0,
            Verdict::Held,
            "a newer total must not overtake"
        );
        assert!(group.due(rule, 1_000).is_empty(), "the older one is due at 1.1 s");
        assert_eq!(items(group.due(rule, 1_100)), ["b2", "a2", "c1"]);
    }

    #[test]
    fn a_throttled_one_is_dropped_within_the_window_but_what_passes_is_not() {
        let rule = Rule { throttle: true, window_ms: 3_000, ..rule() };
        let mut group = Group::default();
        assert_eq!(group.arrive(rule, at(1, 0), "typing", 0).0, Verdict::Now);
        assert_eq!(group.arrive(rule, at(1, 0), "typing", 2_999).0, Verdict::Dropped);
        let stopped = Arrival { key: 1, seq: 0, passes: true };
        assert_eq!(group.arrive(rule, stopped, "stopped", 2_999).0, Verdict::Now);
        assert_eq!(group.arrive(rule, at(1, 0), "typing", 3_000).0, Verdict::Now);
    }

    #[test]
    fn what_could_not_leave_waits_for_another_window_unless_a_newer_one_does() {
        let mut group = Group::default();
        group.arrive(rule(), at(1, 1), "a", 0);
        let (arrival, item) = group.due(rule(), W).remove(0);
        group.hold_again(rule(), arrival, item, W);
        assert_eq!(group.arrive(rule(), at(1, 2), "b", W + 1).0, Verdict::HeldInstead);
        assert_eq!(items(group.due(rule(), 2 * W)), ["b"]);
    }

    #[test]
    fn a_group_forgets_when_nothing_can_come_too_late_any_more() {
        let mut group = Group::default();
        group.arrive(rule(), at(1, 1), "a", 0);
        group.due(rule(), W);
        assert_eq!(group.next_ms(rule()), Some(2 * W + REMEMBERED_MS));
        group.due(rule(), 2 * W + REMEMBERED_MS);
        assert_eq!((group.len(), group.next_ms(rule())), (0, None));
    }

    /// One that was shown: when, its sequence, and whether it passed.
    type Shown = (u64, u64, bool);

    /// A group and a session that refuses now and then, with what [`super::super::shaper`] does about it.
    struct Run {
        rule: Rule,
        group: Group<()>,
        shown: BTreeMap<u64, Vec<Shown>>,
        /// Of the windows that waited, how many did not have to be shown.
        replaced: usize,
    }

    impl Run {
        fn show(&mut self, arrival: Arrival, now: u64) {
            self.shown.entry(arrival.key).or_default().push((now, arrival.seq, arrival.passes));
        }

        /// The highest sequence that was shown of `taken`; the rest goes back.
        fn send(&mut self, taken: Vec<(Arrival, ())>, full: bool, now: u64) -> Option<u64> {
            let mut stopped = false;
            let mut shown = None;
            for (arrival, ()) in taken {
                if full || stopped {
                    stopped = self.rule.ordered;
                    self.hold_again(arrival, now);
                } else {
                    self.show(arrival, now);
                    shown = shown.max(Some(arrival.seq));
                }
            }
            shown
        }

        fn hold_again(&mut self, arrival: Arrival, now: u64) {
            self.replaced += usize::from(!self.group.hold_again(self.rule, arrival, (), now));
        }

        fn arrive(&mut self, arrival: Arrival, full: bool, now: u64) -> (Verdict, Option<u64>) {
            let overtaken = self.group.overtaken(self.rule, arrival, now);
            let stopped = full && !overtaken.is_empty();
            let mut shown = self.send(overtaken, full, now);
            let (verdict, left) = self.group.arrive(self.rule, arrival, (), now);
            if left.is_some() && !full && !stopped {
                self.show(arrival, now);
                shown = shown.max(Some(arrival.seq));
            } else if left.is_some() {
                self.hold_again(arrival, now);
            }
            (verdict, shown)
        }

        /// True when something that waits is older than what was `shown` in one go, where that counts.
        fn overtook(&self, shown: Option<u64>) -> bool {
            let oldest =
                self.group.windows.iter().filter_map(|window| window.held.as_ref()).map(|held| held.seq);
            self.rule.ordered && shown.zip(oldest.min()).is_some_and(|(shown, oldest)| oldest < shown)
        }
    }

    proptest! {
        /// Any order of arrivals over time, some of which pass, at a session that refuses some: the newest of each key
        /// is shown in the end, never an older one after it, never two of a key within the window but for those that
        /// pass, nothing older waits where order counts, and every arrival is accounted for once.
        #[test]
        fn the_newest_always_arrives_and_never_two_within_the_window(
            arrivals in prop::collection::vec((0_u64..3, 0_u64..6, 0_u32..5, 0_u32..5), 1..60),
            order in any::<u64>(),
            leading in any::<bool>(),
            ordered in any::<bool>(),
        ) {
            // All of it takes less than the time for which a window is remembered.
            let rule = Rule { throttle: false, window_ms: W, leading, ordered };
            let mut seqs: Vec<u64> = (1..=arrivals.len() as u64).collect();
            shuffle(&mut seqs, order);
            let mut run = Run { rule, group: Group::default(), shown: BTreeMap::new(), replaced: 0 };
            let (mut now, mut accepted, mut merged) = (0, 0, 0);
            let mut newest: BTreeMap<u64, u64> = BTreeMap::new();
            for ((key, wait, pass, refuse), seq) in arrivals.iter().zip(&seqs) {
                let full = *refuse == 0;
                for _ in 0..*wait {
                    now += 20;
                    let due = run.group.due(rule, now);
                    let shown = run.send(due, full, now);
                    prop_assert!(!run.overtook(shown), "{:?}: {:?}", shown, run.group);
                }
                let known = newest.entry(*key).or_default();
                *known = (*known).max(*seq);
                let arrival = Arrival { key: *key, seq: *seq, passes: *pass == 0 };
                let (verdict, shown) = run.arrive(arrival, full, now);
                prop_assert!(!run.overtook(shown), "{:?}: {:?}", shown, run.group);
                match verdict {
                    Verdict::Now | Verdict::Held => accepted += 1,
                    Verdict::NowInstead | Verdict::HeldInstead | Verdict::Dropped => merged += 1,
                }
            }
            for _ in 0..3 {
                now += W;
                let due = run.group.due(rule, now);
                run.send(due, false, now);
            }
            for (key, newest) in newest {
                let shown = &run.shown[&key];
                prop_assert_eq!(shown.last().unwrap().1, newest);
                let apart = |a: &Shown, b: &Shown| a.2 || b.2 || b.0 - a.0 >= W;
                prop_assert!(shown.is_sorted_by(|a, b| a.1 < b.1 && apart(a, b)), "{:?}", shown);
            }
            let total: usize = run.shown.values().map(Vec::len).sum();
            prop_assert_eq!((accepted - run.replaced, accepted + merged), (total, arrivals.len()));
        }
    }
}
