//! Frames as a client reads them: off a stream, and out of their encoding.
//!
//! Unknown frame types are ignored, as the protocol asks; a known type with the wrong fields is an error.

use bytes::{Bytes, BytesMut};
use serde::Deserialize;
use web_transport_quinn::{ReadError, RecvStream};

use crate::protocol::codec::{self, CodecError, Encoding};
use crate::protocol::frame::{ServerFrame, SessionLane};

/// Bytes taken off a stream at once.
const CHUNK_BYTES: usize = 64 * 1024;

/// Why a stream gave no frame.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The stream or the session ended without order.
    #[error("read: {0}")]
    Read(#[from] ReadError),
    /// The stream ended inside a frame.
    #[error("the stream ended inside a frame")]
    CutShort,
    /// Not a frame of the protocol.
    #[error(transparent)]
    Codec(#[from] CodecError),
}

/// Splits a stream into the bodies of frames.
#[derive(Debug)]
pub(crate) struct FrameReader {
    stream: RecvStream,
    buffer: BytesMut,
    max: usize,
}

impl FrameReader {
    /// Reads bodies of up to `max` bytes.
    pub(crate) fn new(stream: RecvStream, max: usize) -> Self {
        Self { stream, buffer: BytesMut::new(), max }
    }

    /// Sets the largest body from now on.
    pub(crate) fn set_max(&mut self, max: usize) {
        self.max = max;
    }

    /// Asks the server to send no more on this stream.
    pub(crate) fn stop(&mut self, code: u32) {
        // An error means that the stream has ended already.
        let _ = self.stream.stop(code);
    }

    /// The next body, or `None` where the stream ends between frames. Cancel-safe.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>, FrameError> {
        loop {
            if let Some(body) = codec::split(&mut self.buffer, self.max)? {
                return Ok(Some(body));
            }
            match self.stream.read_chunk(CHUNK_BYTES, true).await? {
                Some(chunk) => self.buffer.extend_from_slice(&chunk.bytes),
                None if self.buffer.is_empty() => return Ok(None),
                None => return Err(FrameError::CutShort),
            }
        }
    }
}

/// A notification's fields on the wire.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub(crate) struct Data {
    pub(crate) notification_id: String,
    pub(crate) notification_type: String,
    pub(crate) timestamp: i64,
    pub(crate) published_at_ms: u64,
    #[serde(default)]
    pub(crate) from_user_id: Option<String>,
    pub(crate) priority: String,
    #[serde(default)]
    pub(crate) require_ack: bool,
    pub(crate) payload: serde_json::Value,
}

/// What can come on a lane or in a datagram.
#[derive(Debug, PartialEq)]
pub(crate) enum LaneFrame {
    /// The header of a lane.
    Lane(SessionLane),
    /// A notification, and its cursor when it is replayed.
    Notification(Data, Option<String>),
    /// A type of a later version.
    Unknown,
}

#[derive(Deserialize)]
struct Flat {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    lane: Option<SessionLane>,
    #[serde(default)]
    data: Option<Data>,
    #[serde(default)]
    inbox: Option<String>,
}

#[derive(Deserialize)]
struct Kind {
    #[serde(rename = "type")]
    kind: String,
}

/// Decodes a body of a lane, or a datagram.
pub(crate) fn lane_frame(encoding: Encoding, body: &[u8]) -> Result<LaneFrame, CodecError> {
    // One struct for all types: a tagged enum would copy the payload once more.
    match codec::decode::<Flat>(encoding, body) {
        Ok(Flat { kind, data: Some(data), inbox, .. }) if kind == "notification" => {
            Ok(LaneFrame::Notification(data, inbox))
        }
        Ok(Flat { kind, lane: Some(lane), .. }) if kind == "lane" => Ok(LaneFrame::Lane(lane)),
        Ok(Flat { kind, .. }) if kind != "notification" && kind != "lane" => Ok(LaneFrame::Unknown),
        Ok(_) => Err(<serde_json::Error as serde::de::Error>::missing_field("data or lane").into()),
        Err(_) if is_unknown(encoding, body, &["notification", "lane"]) => Ok(LaneFrame::Unknown),
        Err(error) => Err(error),
    }
}

/// Decodes a body of the control stream; `None` for a type of a later version.
pub(crate) fn control_frame(encoding: Encoding, body: &[u8]) -> Result<Option<ServerFrame>, CodecError> {
    match codec::decode(encoding, body) {
        Ok(frame) => Ok(Some(frame)),
        Err(_) if is_unknown(encoding, body, &["welcome", "ping", "goaway", "close", "lane"]) => Ok(None),
        Err(error) => Err(error),
    }
}

fn is_unknown(encoding: Encoding, body: &[u8], known: &[&str]) -> bool {
    codec::decode::<Kind>(encoding, body).is_ok_and(|Kind { kind }| !known.contains(&kind.as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_types_are_ignored_and_unknown_fields_too() {
        let json = |text: &str| lane_frame(Encoding::Json, text.as_bytes());
        assert_eq!(json(r#"{"type":"later","data":1,"lane":[]}"#).unwrap(), LaneFrame::Unknown);
        assert_eq!(json(r#"{"x":1,"lane":"low","type":"lane"}"#).unwrap(), LaneFrame::Lane(SessionLane::Low));
        for bad in
            [r#"{"type":"lane"}"#, r#"{"type":"lane","lane":"x"}"#, r#"{"type":"notification"}"#, "{}", "1"]
        {
            assert!(json(bad).is_err(), "{bad}");
        }
        let control = |text: &str| control_frame(Encoding::Json, text.as_bytes());
        assert_eq!(control(r#"{"type":"later","t":"x"}"#).unwrap(), None);
        assert_eq!(
            control(r#"{"inbox":"c","x":{},"t":1,"type":"ping"}"#).unwrap(),
            Some(ServerFrame::Ping { t: 1, inbox: "c".into() })
        );
        assert!(control(r#"{"type":"ping","t":"x"}"#).is_err());
    }
}
