//! A bell for one task: rung from anywhere, and heard once however often it was rung.
//!
//! Many ring it and one listens, so there is no list of waiting tasks and no lock, as `tokio::sync::Notify` has.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake};

use futures::task::AtomicWaker;

/// See the module. The task that listened last is the one that is woken.
#[derive(Debug, Default)]
pub struct Bell {
    rung: AtomicBool,
    task: AtomicWaker,
}

impl Bell {
    /// Wakes the task, now or when it listens next.
    pub fn ring(&self) {
        // Whoever rang it and was not heard yet wakes the task.
        if !self.rung.swap(true, Ordering::AcqRel) {
            self.task.wake();
        }
    }

    /// Ready when it was rung since it was heard last; else the next ring wakes the task.
    pub fn poll_rung(&self, cx: &mut Context<'_>) -> Poll<()> {
        // In this order: a ring in between wakes the task.
        self.task.register(cx.waker());
        if self.rung.swap(false, Ordering::AcqRel) { Poll::Ready(()) } else { Poll::Pending }
    }
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.ring();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.ring();
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::task::Waker;

    use super::*;

    fn heard(bell: &Bell, waker: &Waker) -> bool {
        bell.poll_rung(&mut Context::from_waker(waker)).is_ready()
    }

    #[test]
    fn it_is_heard_once_however_often_it_was_rung_before() {
        let bell = Bell::default();
        assert!(!heard(&bell, Waker::noop()));
        bell.ring();
        bell.ring();
        assert!(heard(&bell, Waker::noop()));
        assert!(!heard(&bell, Waker::noop()));
    }

    #[test]
    fn a_bell_that_wakes_another_one_is_a_waker() {
        let (inner, outer) = (Bell::default(), Arc::new(Bell::default()));
        assert!(!heard(&inner, &Waker::from(outer.clone())));
        inner.ring();
        assert!(heard(&outer, Waker::noop()));
        assert!(heard(&inner, Waker::noop()));
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn no_ring_is_lost_between_two_threads() {
        let (bell, answer) = (Arc::new(Bell::default()), Arc::new(Bell::default()));
        let (rung, answered) = (bell.clone(), answer.clone());
        let mut listener = tokio::task::JoinSet::new();
        listener.spawn(async move {
            for _ in 0..10_000 {
                poll_fn(|cx| rung.poll_rung(cx)).await;
                answered.ring();
            }
        });
        // One that is lost stops both.
        for _ in 0..10_000 {
            bell.ring();
            poll_fn(|cx| answer.poll_rung(cx)).await;
        }
        listener.join_next().await.unwrap().unwrap();
    }
}
