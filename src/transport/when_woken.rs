//! A future that is polled only when it was woken itself.
//!
//! Whatever wakes a task polls everything that the task waits for. A session waits for several things that seldom
//! happen and are dear to poll, and it is woken for every push.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use crate::session::Bell;

/// Polls `F` at first, after each time that it was ready, and when it was woken. So `F` may be one that is ready again
/// and again.
#[derive(Debug)]
pub(super) struct WhenWoken<F> {
    future: F,
    bell: Arc<Bell>,
    /// Rings the bell.
    waker: Waker,
    due: bool,
}

impl<F> WhenWoken<F> {
    pub(super) fn new(future: F) -> Self {
        let bell = Arc::new(Bell::default());
        Self { future, waker: Waker::from(bell.clone()), bell, due: true }
    }
}

impl<F: Future + Unpin> Future for WhenWoken<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = &mut *self;
        this.due |= this.bell.poll_rung(cx).is_ready();
        if !this.due {
            return Poll::Pending;
        }
        let poll = Pin::new(&mut this.future).poll(&mut Context::from_waker(&this.waker));
        this.due = poll.is_ready();
        poll
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use futures::FutureExt;
    use futures::channel::mpsc;
    use futures::stream::StreamExt;

    use super::*;

    #[test]
    fn it_is_polled_at_first_and_when_it_was_woken() {
        let (sender, mut receiver) = mpsc::unbounded();
        let mut polls = 0;
        let mut numbers = WhenWoken::new(poll_fn(|cx| {
            polls += 1;
            receiver.poll_next_unpin(cx)
        }));
        for _ in 0..3 {
            assert_eq!((&mut numbers).now_or_never(), None);
        }
        sender.unbounded_send(1).unwrap();
        sender.unbounded_send(2).unwrap();
        for expected in [Some(Some(1)), Some(Some(2)), None, None] {
            assert_eq!((&mut numbers).now_or_never(), expected);
        }
        assert_eq!(polls, 4, "once at first, and for two numbers and the end of them");
    }

    #[tokio::test]
    async fn its_waking_wakes_the_task() {
        let (sender, mut receiver) = mpsc::unbounded();
        let mut numbers = WhenWoken::new(poll_fn(|cx| receiver.poll_next_unpin(cx)));
        assert_eq!((&mut numbers).now_or_never(), None);
        let mut later = tokio::task::JoinSet::new();
        later.spawn(async move {
            tokio::task::yield_now().await;
            sender.unbounded_send(3).unwrap();
        });
        assert_eq!(numbers.await, Some(3));
    }
}
