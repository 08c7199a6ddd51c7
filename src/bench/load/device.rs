//! A device of the load: the push protocol and nothing else, in one task and little memory. Whatever ends a session
//! here counts as its failure.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use super::arrivals::Arrivals;
use crate::client::raw::{RawLane, RawSession, RawStream};
use crate::client::{Endpoint, Target};
use crate::protocol::frame::{Hello, SessionLane};
use crate::protocol::{ClientFrame, Encoding, ServerFrame};

const JSON: Encoding = Encoding::Json;

/// When an ack is due: the protocol's rule.
const ACK_FRAMES: u32 = 32;
const ACK_BYTES: usize = 16 * 1024;
const ACK_AFTER: Duration = Duration::from_secs(1);

/// A frame that must be acked says so.
const URGENT: &[u8] = b"\"require_ack\":true";

/// An open session with its control stream.
pub(super) struct Device {
    session: RawSession,
    control: RawStream,
}

impl Device {
    /// Opens a session and reads its welcome.
    pub(super) async fn connect(target: &Target, endpoint: &Endpoint, hello: Hello) -> Result<Self, String> {
        let session = RawSession::connect(target, endpoint).await.map_err(|error| error.to_string())?;
        let mut control = session.open_stream().await.map_err(|error| error.to_string())?;
        let hello = ClientFrame::Hello(hello);
        control.write_frame(JSON, &hello).await.map_err(|error| error.to_string())?;
        match control.read_frame(JSON).await.map_err(|error| error.to_string())? {
            Some(ServerFrame::Welcome(_)) => Ok(Self { session, control }),
            Some(ServerFrame::Close(close)) => Err(format!("closed with {}: {}", close.name, close.reason)),
            other => Err(format!("no welcome but {other:?}")),
        }
    }

    /// Answers pings and reads lanes until the session ends; says why it did.
    pub(super) async fn run(mut self, arrivals: Arc<Arrivals>) -> String {
        let mut lanes: [Option<Lane>; 4] = [const { None }; 4];
        let mut ack_at: Option<Instant> = None;
        loop {
            let due = async {
                match ack_at {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            let urgent = tokio::select! {
                biased;
                frame = self.control.read_frame(JSON) => match frame {
                    Ok(Some(ServerFrame::Ping { t, .. })) => {
                        if let Err(error) = self.control.write_frame(JSON, &ClientFrame::Pong { t }).await {
                            return error.to_string();
                        }
                        false
                    }
                    Ok(Some(frame)) => return format!("{frame:?}"),
                    Ok(None) => return "the control stream has ended".to_owned(),
                    Err(error) => return error.to_string(),
                },
                (at, body) = next(&mut lanes) => match body {
                    Ok(body) => {
                        let lane = lanes[at].as_mut().expect("it was read");
                        arrivals.arrived(&body, Instant::now());
                        ack_at.get_or_insert_with(|| Instant::now() + ACK_AFTER);
                        lane.note(&body)
                    }
                    Err(error) => return error,
                },
                lane = self.session.accept_lane() => match open(lane).await {
                    Ok(lane) => {
                        let at = lane.name.index();
                        lanes[at] = Some(lane);
                        false
                    }
                    Err(error) => return error,
                },
                () = due => true,
            };
            if urgent {
                ack_at = None;
                for lane in lanes.iter_mut().flatten() {
                    if let Some(ack) = lane.ack()
                        && let Err(error) = self.control.write_frame(JSON, &ack).await
                    {
                        return error.to_string();
                    }
                }
            }
        }
    }
}

/// A lane and what of it is to be acked.
struct Lane {
    name: SessionLane,
    stream: RawLane,
    seq: u64,
    frames: u32,
    bytes: usize,
}

impl Lane {
    /// Notes a frame; true when an ack is due.
    fn note(&mut self, body: &[u8]) -> bool {
        self.seq += 1;
        self.frames += 1;
        self.bytes += body.len();
        self.frames >= ACK_FRAMES
            || self.bytes >= ACK_BYTES
            || body.windows(URGENT.len()).any(|window| window == URGENT)
    }

    /// The ack of everything so far, unless it was sent.
    fn ack(&mut self) -> Option<ClientFrame> {
        let due = std::mem::take(&mut self.frames) > 0;
        self.bytes = 0;
        due.then_some(ClientFrame::Ack { lane: self.name, seq: self.seq })
    }
}

/// Reads which lane a new stream is.
async fn open(stream: Result<RawLane, crate::client::raw::RawError>) -> Result<Lane, String> {
    let mut stream = stream.map_err(|error| error.to_string())?;
    let name = stream.read_header(JSON).await.map_err(|error| error.to_string())?;
    let name = name.ok_or("a stream without a lane")?;
    Ok(Lane { name, stream, seq: 0, frames: 0, bytes: 0 })
}

/// The next frame of any lane, the most urgent first, and the lane's place. Cancel-safe.
async fn next(lanes: &mut [Option<Lane>; 4]) -> (usize, Result<Bytes, String>) {
    async fn read(lane: &mut Option<Lane>) -> Result<Bytes, String> {
        let Some(lane) = lane else { return std::future::pending().await };
        let body = lane.stream.read_body().await.map_err(|error| error.to_string())?;
        body.ok_or_else(|| "a lane has ended".to_owned())
    }
    let [high, inbox, normal, low] = lanes;
    tokio::select! {
        biased;
        body = read(high) => (0, body),
        body = read(inbox) => (1, body),
        body = read(normal) => (2, body),
        body = read(low) => (3, body),
    }
}
