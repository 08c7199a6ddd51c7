//! What one worker has in hand: messages and their bytes, both bounded.
//!
//! A message that waits for its turn among the large ones steps aside: its place is free for others meanwhile, its bytes
//! still count. At most [`ASIDE_MAX`] of a worker do so; further ones wait in their places.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use metrics::gauge;
use tokio::sync::{Notify, Semaphore, SemaphorePermit};

use crate::catalog::Lane;

/// Messages of one worker that may be aside at once. With those in hand they stay below `max_ack_pending`.
const ASIDE_MAX: usize = 256;

/// The hand of one worker.
#[derive(Debug)]
pub(super) struct Hand {
    lane: Lane,
    messages_max: usize,
    bytes_max: usize,
    messages: AtomicUsize,
    bytes: AtomicUsize,
    aside: Semaphore,
    freed: Notify,
}

impl Hand {
    /// A hand for so many messages and bytes; one message is always taken.
    pub(super) fn new(lane: Lane, messages_max: usize, bytes_max: usize) -> Arc<Self> {
        Arc::new(Self {
            lane,
            messages_max: messages_max.max(1),
            bytes_max,
            messages: AtomicUsize::new(0),
            bytes: AtomicUsize::new(0),
            aside: Semaphore::new(ASIDE_MAX),
            freed: Notify::new(),
        })
    }

    /// True when another message may be taken.
    pub(super) fn has_room(&self) -> bool {
        self.messages.load(Ordering::Relaxed) < self.messages_max
            && self.bytes.load(Ordering::Relaxed) < self.bytes_max
    }

    /// Resolves when something left the hand since the last time.
    pub(super) async fn freed(&self) {
        self.freed.notified().await;
    }

    /// Takes a message of `bytes`, until the place is dropped.
    pub(super) fn place(self: &Arc<Self>, bytes: usize) -> Place {
        self.messages.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        gauge!("fanfare_worker_in_hand_messages", "lane" => self.lane.as_str()).increment(1);
        Place { hand: self.clone(), bytes }
    }

    fn leave(&self) {
        self.messages.fetch_sub(1, Ordering::Relaxed);
        self.freed.notify_one();
    }
}

/// The place of one message.
#[derive(Debug)]
pub(super) struct Place {
    hand: Arc<Hand>,
    bytes: usize,
}

impl Place {
    /// Leaves the place to others until the guard is dropped; `None` when too many are aside. Who comes back finds room,
    /// also where others took it meanwhile.
    pub(super) fn step_aside(&self) -> Option<Aside<'_>> {
        let permit = self.hand.aside.try_acquire().ok()?;
        self.hand.leave();
        gauge!("fanfare_worker_aside_messages", "lane" => self.hand.lane.as_str()).increment(1);
        Some(Aside { hand: &self.hand, _permit: permit })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.hand.bytes.fetch_sub(self.bytes, Ordering::Relaxed);
        self.hand.leave();
        gauge!("fanfare_worker_in_hand_messages", "lane" => self.hand.lane.as_str()).decrement(1);
    }
}

/// A message that left its place for a while.
#[derive(Debug)]
pub(super) struct Aside<'a> {
    hand: &'a Hand,
    _permit: SemaphorePermit<'a>,
}

impl Drop for Aside<'_> {
    fn drop(&mut self) {
        self.hand.messages.fetch_add(1, Ordering::Relaxed);
        gauge!("fanfare_worker_aside_messages", "lane" => self.hand.lane.as_str()).decrement(1);
    }
}

/// Describes the metrics of this part.
pub(super) fn describe() {
    metrics::describe_gauge!("fanfare_worker_in_hand_messages", "notifications that workers hold, by lane");
    metrics::describe_gauge!(
        "fanfare_worker_aside_messages",
        "notifications in hand that wait for their turn among the large ones and leave their place to others, by lane"
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_steps_aside_leaves_a_place_and_not_its_bytes() {
        let hand = Hand::new(Lane::High, 2, 10);
        let (one, two) = (hand.place(1), hand.place(1));
        assert!(!hand.has_room());
        let aside = one.step_aside().unwrap();
        assert!(hand.has_room());
        let large = hand.place(8);
        assert!(!hand.has_room());
        drop(two);
        assert!(hand.has_room(), "of messages 1, of bytes 9");
        drop(aside);
        assert!(!hand.has_room(), "back in its place");
        drop((one, large));
        assert!(hand.has_room());
        assert_eq!((hand.messages.load(Ordering::Relaxed), hand.bytes.load(Ordering::Relaxed)), (0, 0));
    }

    #[test]
    fn those_aside_are_bounded() {
        let hand = Hand::new(Lane::High, 1, usize::MAX);
        let places: Vec<_> = (0..=ASIDE_MAX).map(|_| hand.place(0)).collect();
        let aside: Vec<_> = places.iter().filter_map(Place::step_aside).collect();
        assert_eq!(aside.len(), ASIDE_MAX);
        assert!(!hand.has_room(), "the last one waits in its place");
        drop(aside);
        assert!(places[0].step_aside().is_some());
    }
}
