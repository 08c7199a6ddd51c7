//! A session by hand, for tests and tools: arbitrary bytes out, frames in, and nothing by itself.
//!
//! Says no hello, sends no ack, answers no ping and never connects again. Applications use [`Client`](super::Client).

use bytes::Bytes;
use web_transport_quinn::{RecvStream, SendStream, SessionError, WebTransportError, WriteError};

use super::endpoint::OwnedSession;
use super::wire::{FrameReader, control_frame};
use super::{Closed, ConnectError, Endpoint, FrameError, Target};
use crate::protocol::codec::{self, CodecError};
use crate::protocol::frame::{ServerFrame, SessionLane};
use crate::protocol::{ClientFrame, Encoding, SERVER_FRAME_BYTES_MAX};

/// Why something was not sent.
#[derive(Debug, thiserror::Error)]
pub enum RawError {
    /// The session is over, or it opens no more streams.
    #[error("use the session: {0}")]
    Session(#[from] SessionError),
    /// The stream takes no more bytes.
    #[error("write: {0}")]
    Write(#[from] WriteError),
    /// The stream is finished or reset already.
    #[error("end a stream: {0}")]
    Ended(#[from] web_transport_quinn::ClosedStream),
    /// The frame has no encoding.
    #[error("encode: {0}")]
    Codec(#[from] CodecError),
}

/// A session without any client behind it. Dropping it closes the session with code 0.
#[derive(Debug)]
pub struct RawSession {
    session: OwnedSession,
}

impl RawSession {
    /// Opens the session and no stream.
    pub async fn connect(target: &Target, endpoint: &Endpoint) -> Result<Self, ConnectError> {
        Ok(Self { session: target.open(endpoint).await? })
    }

    /// Opens a bidirectional stream. The first one is the control stream; a second one is against the protocol.
    pub async fn open_stream(&self) -> Result<RawStream, RawError> {
        let (send, receive) = self.session.open_bi().await?;
        Ok(RawStream { send, reader: FrameReader::new(receive, SERVER_FRAME_BYTES_MAX) })
    }

    /// Opens a unidirectional stream and writes `bytes` to it: against the protocol.
    pub async fn send_uni(&self, bytes: &[u8]) -> Result<(), RawError> {
        let mut send = self.session.open_uni().await?;
        send.write_all(bytes).await?;
        Ok(send.finish()?)
    }

    /// Sends a datagram: against the protocol.
    pub fn send_datagram(&self, body: Bytes) -> Result<(), RawError> {
        Ok(self.session.send_datagram(body)?)
    }

    /// The body of the next datagram.
    pub async fn read_datagram(&self) -> Result<Bytes, RawError> {
        Ok(self.session.read_datagram().await?)
    }

    /// The next stream that the server opens, unread.
    pub async fn accept_lane(&self) -> Result<RawLane, RawError> {
        let stream: RecvStream = self.session.accept_uni().await?;
        Ok(RawLane { reader: FrameReader::new(stream, SERVER_FRAME_BYTES_MAX) })
    }

    /// Closes the session from this side.
    pub fn close(&self, code: u32, reason: &str) {
        self.session.close(code, reason.as_bytes());
    }

    /// Waits for the session's end. Only the transport's close is known here; the frame is on the control stream.
    pub async fn closed(&self) -> Closed {
        match self.session.closed().await {
            SessionError::WebTransportError(WebTransportError::Closed(code, reason)) => {
                Closed { transport: Some((code, reason)), ..Closed::default() }
            }
            error => Closed::failed(error),
        }
    }
}

/// A bidirectional stream, such as the control stream. Dropping it finishes the sending side.
#[derive(Debug)]
pub struct RawStream {
    send: SendStream,
    reader: FrameReader,
}

impl RawStream {
    /// Writes bytes as they are, without a length.
    pub async fn write(&mut self, bytes: &[u8]) -> Result<(), RawError> {
        Ok(self.send.write_all(bytes).await?)
    }

    /// Writes a frame with its length.
    pub async fn write_frame(&mut self, encoding: Encoding, frame: &ClientFrame) -> Result<(), RawError> {
        let bytes = codec::frame(encoding, frame)?;
        self.write(&bytes).await
    }

    /// Finishes the sending side.
    pub fn finish(&mut self) -> Result<(), RawError> {
        Ok(self.send.finish()?)
    }

    /// Resets the sending side.
    pub fn reset(&mut self, code: u32) -> Result<(), RawError> {
        Ok(self.send.reset(code)?)
    }

    /// The body of the server's next frame, or `None` at the end of the stream.
    pub async fn read_body(&mut self) -> Result<Option<Bytes>, FrameError> {
        self.reader.next().await
    }

    /// The server's next frame of a known type, or `None` at the end of the stream.
    pub async fn read_frame(&mut self, encoding: Encoding) -> Result<Option<ServerFrame>, FrameError> {
        while let Some(body) = self.read_body().await? {
            if let Some(frame) = control_frame(encoding, &body)? {
                return Ok(Some(frame));
            }
        }
        Ok(None)
    }
}

/// A unidirectional stream of the server.
#[derive(Debug)]
pub struct RawLane {
    reader: FrameReader,
}

impl RawLane {
    /// Reads the first frame: which lane it is; `None` when the first frame says something else.
    pub async fn read_header(&mut self, encoding: Encoding) -> Result<Option<SessionLane>, FrameError> {
        let Some(body) = self.read_body().await? else {
            return Ok(None);
        };
        match control_frame(encoding, &body)? {
            Some(ServerFrame::Lane { lane }) => Ok(Some(lane)),
            _ => Ok(None),
        }
    }

    /// The body of the next frame, or `None` at the end of the stream.
    pub async fn read_body(&mut self) -> Result<Option<Bytes>, FrameError> {
        self.reader.next().await
    }

    /// The next frame as a value, or `None` at the end of the stream.
    pub async fn read_value(&mut self, encoding: Encoding) -> Result<Option<serde_json::Value>, FrameError> {
        let Some(body) = self.read_body().await? else {
            return Ok(None);
        };
        Ok(Some(codec::decode(encoding, &body)?))
    }

    /// Tells the server to stop sending on this stream.
    pub fn stop(&mut self, code: u32) {
        self.reader.stop(code);
    }
}
