//! What quinn's tasks run on: tokio, where the task that reads the socket is given longer turns.
//!
//! quinn reads for 50 µs, some dozens of packets, and then lines up behind all other tasks. When thousands of these are ready
//! that is a tenth of a second later: the socket's buffer ran over, what was lost was sent again, and a gateway that had been
//! overloaded for a moment stayed so for seconds.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Instant;

use futures::task::AtomicWaker;
use quinn::{AsyncTimer, AsyncUdpSocket, TokioRuntime};

/// A task for quinn.
type Task = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Times that the socket's task may go on at once: 8 ms at quinn's 50 µs each, in which it reads about all that the
/// socket's buffer holds. Far less is common; the other threads go on.
const TURNS: usize = 160;

/// The runtime of one endpoint.
#[derive(Debug, Default)]
pub(super) struct Runtime {
    /// An endpoint begins with its own task, which reads the socket. All others are of connections.
    reads: AtomicBool,
}

impl quinn::Runtime for Runtime {
    fn new_timer(&self, at: Instant) -> Pin<Box<dyn AsyncTimer>> {
        TokioRuntime.new_timer(at)
    }

    fn spawn(&self, task: Task) {
        if self.reads.swap(true, Ordering::Relaxed) {
            TokioRuntime.spawn(task);
        } else {
            TokioRuntime.spawn(Box::pin(Patient { task, again: Arc::default() }));
        }
    }

    fn wrap_udp_socket(&self, socket: std::net::UdpSocket) -> io::Result<Arc<dyn AsyncUdpSocket>> {
        TokioRuntime.wrap_udp_socket(socket)
    }

    fn now(&self) -> Instant {
        TokioRuntime.now()
    }
}

/// A task that goes on as long as it asks for another turn, up to [`TURNS`].
struct Patient {
    task: Task,
    again: Arc<Again>,
}

/// Wakes the task, and tells it that it was asked for.
#[derive(Debug, Default)]
struct Again {
    asked: AtomicBool,
    waker: AtomicWaker,
}

impl Wake for Again {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.asked.store(true, Ordering::Release);
        self.waker.wake();
    }
}

impl Future for Patient {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let Self { task, again } = &mut *self;
        again.waker.register(cx.waker());
        let waker = Waker::from(again.clone());
        for _ in 0..TURNS {
            again.asked.store(false, Ordering::Relaxed);
            if task.as_mut().poll(&mut Context::from_waker(&waker)).is_ready() {
                return Poll::Ready(());
            }
            if !again.asked.load(Ordering::Acquire) {
                break;
            }
        }
        // Whoever asked has woken the task, so that nothing is forgotten.
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    /// Asks for another turn so many times; counts its turns.
    fn asks(times: usize) -> (Patient, Arc<Again>) {
        let (again, mut turns) = (Arc::new(Again::default()), 0);
        let task = Box::pin(std::future::poll_fn(move |cx| {
            turns += 1;
            if turns <= times {
                cx.waker().wake_by_ref();
            }
            if turns == times + 2 { Poll::Ready(()) } else { Poll::Pending }
        }));
        (Patient { task, again: again.clone() }, again)
    }

    #[tokio::test]
    async fn it_goes_on_while_it_asks_and_gives_way_in_between() {
        let woken = Arc::new(Again::default());
        let waker = Waker::from(woken.clone());
        let cx = &mut Context::from_waker(&waker);

        let (mut few, _) = asks(3);
        assert!(few.poll_unpin(cx).is_pending());
        assert!(woken.asked.load(Ordering::Relaxed), "what asked is looked at again");
        assert!(few.poll_unpin(cx).is_ready(), "its three were in one turn, and this is the one after");

        let (mut many, _) = asks(TURNS);
        assert!(many.poll_unpin(cx).is_pending());
        assert!(many.poll_unpin(cx).is_pending(), "others had a turn before it was done");
        assert!(many.poll_unpin(cx).is_ready());
    }

    #[tokio::test]
    async fn it_is_woken_from_outside() {
        let (task, again) = asks(0);
        let (woken, task) = (Arc::new(Again::default()), &mut Box::pin(task));
        let waker = Waker::from(woken.clone());
        assert!(task.poll_unpin(&mut Context::from_waker(&waker)).is_pending());
        assert!(!woken.asked.load(Ordering::Relaxed), "it waits");
        Waker::from(again).wake();
        assert!(woken.asked.load(Ordering::Relaxed));
        assert!(task.poll_unpin(&mut Context::from_waker(&waker)).is_ready());
    }
}
