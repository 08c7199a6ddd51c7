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

/// Times that the socket's task may go on at once. Each reads at least once, up to 32 packets, and after so many reads tokio,
/// too, wants a task to give way: some 4,000 packets, in some milliseconds.
const TURNS: usize = 128;

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
    use std::sync::atomic::AtomicUsize;

    use futures::FutureExt;
    use tokio::sync::oneshot;
    use tokio::task::JoinSet;

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
    async fn only_the_first_task_of_an_endpoint_is_patient() {
        let (turns, mut other) = (Arc::new(AtomicUsize::new(0)), JoinSet::new());
        let count = turns.clone();
        other.spawn(std::future::poll_fn(move |cx| -> Poll<()> {
            count.fetch_add(1, Ordering::Relaxed);
            cx.waker().wake_by_ref();
            Poll::Pending
        }));
        let runtime = Runtime::default();
        // Turns of the other task while one of the endpoint's has nine.
        let mut between = Vec::new();
        for _ in 0..2 {
            let (turns, (tell, told)) = (turns.clone(), oneshot::channel());
            let task = async move {
                let (before, mut left) = (turns.load(Ordering::Relaxed), 9);
                std::future::poll_fn(|cx| {
                    cx.waker().wake_by_ref();
                    left -= 1;
                    if left == 0 { Poll::Ready(()) } else { Poll::Pending }
                })
                .await;
                tell.send(turns.load(Ordering::Relaxed) - before).unwrap();
            };
            quinn::Runtime::spawn(&runtime, Box::pin(task));
            between.push(told.await.unwrap());
        }
        assert!(between[0] == 0 && between[1] >= 4, "{between:?}");
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
