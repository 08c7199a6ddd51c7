//! Finds out that a follower of a stream gets no more of it though the connection is well.
//!
//! An ordered consumer is one replica in memory: when its server dies, the client notices by missed heartbeats after 30 s
//! or more. The stream itself knows at once that there is more.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_nats::jetstream::Context;
use async_nats::jetstream::ErrorCode;
use async_nats::jetstream::context::GetStreamErrorKind;
use time::OffsetDateTime;
use tokio::time::{MissedTickBehavior, interval, timeout};

use crate::clock::Now;

/// How often the stream is asked. A follower that got nothing from one answer to the next, and has not all, is stuck.
const ASK: Duration = Duration::from_secs(1);

/// Why a follower must start over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Lost {
    /// There is more, and it does not come.
    #[error("what is written to it does not come any more")]
    Stuck,
    /// The stream is another one of the same name, or an older copy.
    #[error("it is another one than before")]
    Another,
    /// It is not there.
    #[error("it is gone")]
    Gone,
}

/// What one answer says to a follower that had seen everything up to `seen` when it asked, and up to `before` at the
/// answer before if that told of more.
fn judge(before: Option<u64>, seen: u64, last: u64) -> Option<Lost> {
    match () {
        () if last < seen => Some(Lost::Another),
        () if last > seen && before == Some(seen) => Some(Lost::Stuck),
        () => None,
    }
}

/// Resolves when the follower of `stream`, which was made at `created`, must start over. `seen` is the highest sequence
/// that it has seen. As long as nobody answers it goes on asking. `as_of_ms` is moved to the Unix milliseconds up to which
/// the follower has seen everything.
pub async fn lost(
    context: Context,
    stream: String,
    created: OffsetDateTime,
    seen: Arc<AtomicU64>,
    as_of_ms: Arc<AtomicU64>,
) -> Lost {
    let mut ask = interval(ASK);
    ask.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut before = None;
    loop {
        ask.tick().await;
        // Before the question: what is seen meanwhile may be newer than the answer.
        let (asked_ms, seen) = (Now::read().unix_ms, seen.load(Ordering::Acquire));
        // A server that hangs must not be waited for: another one may lead by now.
        let stream = match timeout(ASK, context.get_stream(&stream)).await {
            Err(_) => continue,
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => match error.kind() {
                GetStreamErrorKind::JetStream(error) if error.error_code() == ErrorCode::STREAM_NOT_FOUND => {
                    return Lost::Gone;
                }
                _ => continue,
            },
        };
        let info = stream.cached_info();
        if info.created != created {
            return Lost::Another;
        }
        let last = info.state.last_sequence;
        if let Some(lost) = judge(before, seen, last) {
            return lost;
        }
        if last <= seen {
            as_of_ms.fetch_max(asked_ms, Ordering::AcqRel);
        }
        before = (last > seen).then_some(seen);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stuck_is_who_gets_nothing_though_there_is_more() {
        assert_eq!(judge(None, 5, 5), None);
        assert_eq!(judge(None, 5, 9), None, "it may be on its way");
        assert_eq!(judge(Some(5), 7, 9), None, "slow, but it comes");
        assert_eq!(judge(Some(5), 5, 9), Some(Lost::Stuck));
        assert_eq!(judge(Some(5), 5, 5), None);
        assert_eq!(judge(None, 5, 4), Some(Lost::Another));
    }
}
