//! The streams of a session's lanes and its datagrams: written by whoever pushes, and by the session's task.
//!
//! Frames are taken from the core only when their stream has nothing left to write, so what is taken is on its way;
//! what finds no room keeps its place and rings the session's bell when there is some.

use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use metrics::counter;
use web_transport_quinn as wt;

use super::outgoing::Outgoing;
use crate::clock::Now;
use crate::protocol::frame::SessionLane;
use crate::session::{Bell, Core, Outlet};

/// A lane's stream, opened when there is something to write.
enum LaneStream {
    Idle,
    Opening(BoxFuture<'static, Result<wt::SendStream, wt::SessionError>>, Vec<Bytes>),
    Open(Outgoing),
    /// It could not be opened.
    Failed(String),
}

impl LaneStream {
    /// Takes what the lane may write; false when there is nothing, or something is left from before.
    fn take(&mut self, core: &mut Core, lane: SessionLane, now: Now, transport: &Arc<wt::Session>) -> bool {
        match self {
            Self::Opening(..) | Self::Failed(_) => false,
            Self::Open(out) => {
                let free = out.chunks.is_empty();
                if free {
                    core.take(lane, now, &mut out.chunks);
                }
                free && !out.chunks.is_empty()
            }
            Self::Idle => {
                let mut chunks = Vec::new();
                core.take(lane, now, &mut chunks);
                if chunks.is_empty() {
                    return false;
                }
                chunks.insert(0, core.lane_header(lane));
                let transport = transport.clone();
                *self = Self::Opening(async move { transport.open_uni().await }.boxed(), chunks);
                true
            }
        }
    }

    /// Opens the stream if needed and writes, as far as there is room.
    fn write(&mut self, lane: SessionLane, cx: &mut Context<'_>) -> Result<(), String> {
        if let Self::Opening(opening, chunks) = self {
            let Poll::Ready(opened) = opening.poll_unpin(cx) else { return Ok(()) };
            *self = match opened {
                Ok(stream) => {
                    // A stream that is closed by now tells so when it is written to.
                    let _ = stream.set_priority(priority(lane));
                    Self::Open(Outgoing { stream, chunks: std::mem::take(chunks) })
                }
                Err(error) => Self::Failed(error.to_string()),
            };
        }
        match self {
            Self::Open(out) => match out.poll_flush(cx) {
                Poll::Ready(Err(error)) => Err(error.to_string()),
                Poll::Ready(Ok(())) | Poll::Pending => Ok(()),
            },
            Self::Failed(error) => Err(error.clone()),
            Self::Idle | Self::Opening(..) => Ok(()),
        }
    }
}

/// Below that of the control stream.
const fn priority(lane: SessionLane) -> i32 {
    3 - lane.index() as i32
}

/// Everything of a session but its control stream.
pub(super) struct Lanes {
    streams: [LaneStream; 4],
    datagrams: Vec<Bytes>,
    transport: Arc<wt::Session>,
    /// Rings the session's bell.
    waker: Waker,
}

impl Lanes {
    pub(super) fn new(transport: Arc<wt::Session>, bell: Arc<Bell>) -> Self {
        Self {
            streams: [const { LaneStream::Idle }; 4],
            datagrams: Vec::new(),
            transport,
            waker: Waker::from(bell),
        }
    }
}

impl std::fmt::Debug for Lanes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lanes").finish_non_exhaustive()
    }
}

impl Outlet for Lanes {
    fn write(&mut self, core: &mut Core, now: Now) -> Result<(), String> {
        if core.has_datagrams() {
            core.take_datagrams(&mut self.datagrams);
            for datagram in self.datagrams.drain(..) {
                if self.transport.send_datagram(datagram).is_err() {
                    counter!("fanfare_session_dropped_total", "reason" => "datagram_not_sent").increment(1);
                }
            }
        }
        for lane in SessionLane::ALL {
            if !core.has_queued(lane) {
                continue;
            }
            let stream = &mut self.streams[lane.index()];
            if stream.take(core, lane, now, &self.transport) {
                stream.write(lane, &mut Context::from_waker(&self.waker))?;
            }
        }
        Ok(())
    }

    fn resume(&mut self) -> Result<(), String> {
        for lane in SessionLane::ALL {
            self.streams[lane.index()].write(lane, &mut Context::from_waker(&self.waker))?;
        }
        Ok(())
    }
}
