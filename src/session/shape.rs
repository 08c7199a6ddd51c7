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
        let older = |known: u64| seq > 0 && seq <= known;
        if window.left.is_some_and(|(_, shown)| older(shown)) {
            return (Verdict::Dropped, None);
        }
        let waiting = window.held.as_ref().map(|held| (held.seq, held.due_ms));
        match waiting {
            Some((waiting, _)) if older(waiting) && !passes => (Verdict::Dropped, None),
            Some((waiting, _)) if passes => {
                let superfluous = !older(waiting);
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

    /// Puts back one that could not leave, to try again a window later, unless a newer one waits by now.
    pub(super) fn hold_again(&mut self, rule: Rule, arrival: Arrival, item: T, now_ms: u64) {
        let window = self.window(arrival.key);
        if window.held.is_none() {
            window.held = Some(Held { seq: arrival.seq, due_ms: now_ms + rule.window_ms, item });
        }
    }

    /// Takes what is due, in stream order, with key and sequence of each.
    pub(super) fn due(&mut self, rule: Rule, now_ms: u64) -> Vec<(Arrival, T)> {
        let held = |window: &Window<T>| window.held.as_ref().map(|held| (held.seq, held.due_ms));
        let mut waiting: Vec<(u64, u64, usize)> = self
            .windows
            .iter()
            .enumerate()
            .filter_map(|(at, window)| held(window).map(|(seq, due_ms)| (seq, due_ms, at)))
            .collect();
        waiting.sort_unstable();
        let mut due = Vec::new();
        for (seq, due_ms, at) in waiting {
            if due_ms > now_ms {
                if rule.ordered {
                    break;
                }
                continue;
            }
            let window = &mut self.windows[at];
            if let Some(held) = window.held.take() {
                window.leave(now_ms, seq);
                due.push((Arrival { key: window.key, seq, passes: false }, held.item));
            }
        }
        self.windows.retain(|window| {
            let over = window.left.is_none_or(|(at_ms, _)| now_ms >= at_ms + rule.window_ms + REMEMBERED_MS);
            window.held.is_some() || !over
        });
        due
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

    proptest! {
        /// Any order of arrivals over time: the newest of each key is shown in the end, never an older one after it,
        /// never two of a key within the window, and every arrival is accounted for once.
        #[test]
        fn the_newest_always_arrives_and_never_two_within_the_window(
            arrivals in prop::collection::vec((0u64..3, 0u64..90), 1..60),
            order in any::<u64>(),
            leading in any::<bool>(),
            ordered in any::<bool>(),
        ) {
            let rule = Rule { throttle: false, window_ms: W, leading, ordered };
            let mut seqs: Vec<u64> = (1..=arrivals.len() as u64).collect();
            // A few swaps of neighbours and strangers, as workers and redeliveries make them.
            for step in 0..seqs.len() {
                let other = (order.rotate_left(step as u32) as usize) % seqs.len();
                seqs.swap(step, other);
            }
            let mut group = Group::default();
            let mut shown: BTreeMap<u64, Vec<(u64, u64)>> = BTreeMap::new();
            let (mut now, mut accepted, mut merged) = (0, 0, 0);
            let mut newest: BTreeMap<u64, u64> = BTreeMap::new();
            for ((key, wait), seq) in arrivals.iter().zip(&seqs) {
                for _ in 0..*wait {
                    now += 1;
                    for (arrival, ()) in group.due(rule, now) {
                        shown.entry(arrival.key).or_default().push((now, arrival.seq));
                    }
                }
                let known = newest.entry(*key).or_default();
                *known = (*known).max(*seq);
                let (verdict, left) = group.arrive(rule, at(*key, *seq), (), now);
                if left.is_some() {
                    shown.entry(*key).or_default().push((now, *seq));
                }
                match verdict {
                    Verdict::Now | Verdict::Held => accepted += 1,
                    Verdict::NowInstead | Verdict::HeldInstead | Verdict::Dropped => merged += 1,
                }
            }
            for (arrival, ()) in group.due(rule, now + 2 * W) {
                shown.entry(arrival.key).or_default().push((now + 2 * W, arrival.seq));
            }
            for (key, newest) in newest {
                let shown = &shown[&key];
                prop_assert_eq!(shown.last().unwrap().1, newest);
                prop_assert!(shown.is_sorted_by(|a, b| a.1 < b.1 && b.0 - a.0 >= W), "{:?}", shown);
            }
            let total: usize = shown.values().map(Vec::len).sum();
            prop_assert_eq!((accepted, accepted + merged), (total, arrivals.len()));
        }
    }
}
