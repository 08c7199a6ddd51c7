//! Bodies of frames in JSON and MessagePack, and the length before them.
//!
//! The MessagePack subset is the protocol's: maps with string keys, str, integers, float64, nil, bool. Whatever else a
//! client sends is refused before serde sees it, so that both encodings accept the same frames.

use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::LENGTH_BYTES;

/// The encoding of a session, chosen in its hello.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Encoding {
    /// JSON text.
    #[default]
    Json,
    /// MessagePack.
    Msgpack,
}

/// Why a body was refused.
#[derive(Debug, thiserror::Error)]
pub enum CodecError {
    /// Not JSON, or not the JSON of a frame.
    #[error("invalid JSON frame: {0}")]
    Json(#[from] serde_json::Error),
    /// Not MessagePack, or not the MessagePack of a frame.
    #[error("invalid MessagePack frame: {0}")]
    Msgpack(String),
    /// A body that is a list or a bare value.
    #[error("a frame is an object")]
    NotAnObject,
    /// A length that no frame can have.
    #[error("frame length {length} is not between 1 and {max}")]
    Length {
        /// The length that was announced.
        length: usize,
        /// The largest allowed.
        max: usize,
    },
}

/// Decodes one body, which must be an object (a map).
pub fn decode<T: DeserializeOwned>(encoding: Encoding, body: &[u8]) -> Result<T, CodecError> {
    match encoding {
        Encoding::Json => {
            // serde would take a tagged enum from an array, too.
            if body.trim_ascii_start().first() != Some(&b'{') {
                return Err(CodecError::NotAnObject);
            }
            Ok(serde_json::from_slice(body)?)
        }
        Encoding::Msgpack => {
            check_msgpack(body)?;
            rmp_serde::from_slice(body).map_err(|error| CodecError::Msgpack(error.to_string()))
        }
    }
}

/// Encodes `value` with its length before it.
pub fn frame<T: Serialize>(encoding: Encoding, value: &T) -> Result<Bytes, CodecError> {
    let mut out = vec![0; LENGTH_BYTES];
    match encoding {
        Encoding::Json => serde_json::to_writer(&mut out, value)?,
        Encoding::Msgpack => value
            .serialize(&mut rmp_serde::Serializer::new(&mut out).with_struct_map())
            .map_err(|error| CodecError::Msgpack(error.to_string()))?,
    }
    Ok(finish(out))
}

/// Fills in the length of a frame whose first four bytes were left for it.
pub(crate) fn finish(mut out: Vec<u8>) -> Bytes {
    let length = (out.len() - LENGTH_BYTES) as u32;
    out[..LENGTH_BYTES].copy_from_slice(&length.to_be_bytes());
    out.into()
}

/// Takes the next frame's body off the front of `buffer`, or `None` when it is not complete yet.
pub fn split(buffer: &mut bytes::BytesMut, max: usize) -> Result<Option<Bytes>, CodecError> {
    let Some(header) = buffer.first_chunk::<LENGTH_BYTES>() else { return Ok(None) };
    let length = u32::from_be_bytes(*header) as usize;
    if length == 0 || length > max {
        return Err(CodecError::Length { length, max });
    }
    if buffer.len() < LENGTH_BYTES + length {
        return Ok(None);
    }
    let mut frame = buffer.split_to(LENGTH_BYTES + length).freeze();
    Ok(Some(frame.split_off(LENGTH_BYTES)))
}

/// Deepest nesting of a body: what serde_json allows in JSON, so that a notification passes in both encodings.
const DEPTH_MAX: usize = 128;

/// Refuses everything outside the protocol's subset: bin, ext, keys that are not strings, text that is not UTF-8,
/// bytes after the value, and a body that is no map.
fn check_msgpack(body: &[u8]) -> Result<(), CodecError> {
    if !matches!(body.first(), Some(0x80..=0x8f | 0xde | 0xdf)) {
        return Err(CodecError::NotAnObject);
    }
    let rest = skip_value(body, DEPTH_MAX).map_err(|why| CodecError::Msgpack(why.to_owned()))?;
    if rest.is_empty() { Ok(()) } else { Err(CodecError::Msgpack("bytes after the value".to_owned())) }
}

/// Steps over one value and gives what follows it.
fn skip_value(body: &[u8], depth: usize) -> Result<&[u8], &'static str> {
    let (&marker, rest) = body.split_first().ok_or("value cut short")?;
    if depth == 0 {
        return Err("nested too deep");
    }
    match marker {
        0x00..=0x7f | 0xc0 | 0xc2 | 0xc3 | 0xe0..=0xff => Ok(rest),
        0xcc | 0xd0 => skip(rest, 1),
        0xcd | 0xd1 => skip(rest, 2),
        0xce | 0xd2 => skip(rest, 4),
        0xcb | 0xcf | 0xd3 => skip(rest, 8),
        0xa0..=0xbf | 0xd9..=0xdb => skip_str(body),
        0x90..=0x9f => skip_many(rest, usize::from(marker & 0x0f), false, depth),
        0xdc => length(rest, 2).and_then(|(count, rest)| skip_many(rest, count, false, depth)),
        0xdd => length(rest, 4).and_then(|(count, rest)| skip_many(rest, count, false, depth)),
        0x80..=0x8f => skip_many(rest, usize::from(marker & 0x0f), true, depth),
        0xde => length(rest, 2).and_then(|(count, rest)| skip_many(rest, count, true, depth)),
        0xdf => length(rest, 4).and_then(|(count, rest)| skip_many(rest, count, true, depth)),
        0xca => Err("float32 is not used here"),
        _ => Err("bin and ext are not used here"),
    }
}

/// Steps over `count` values, or pairs whose keys are strings.
fn skip_many(mut rest: &[u8], count: usize, pairs: bool, depth: usize) -> Result<&[u8], &'static str> {
    for _ in 0..count {
        if pairs {
            rest = skip_str(rest)?;
        }
        rest = skip_value(rest, depth - 1)?;
    }
    Ok(rest)
}

/// Steps over a string.
fn skip_str(body: &[u8]) -> Result<&[u8], &'static str> {
    let (&marker, rest) = body.split_first().ok_or("value cut short")?;
    let (count, rest) = match marker {
        0xa0..=0xbf => (usize::from(marker & 0x1f), rest),
        0xd9 => length(rest, 1)?,
        0xda => length(rest, 2)?,
        0xdb => length(rest, 4)?,
        _ => return Err("a map key is not a string"),
    };
    let (text, rest) = rest.split_at_checked(count).ok_or("value cut short")?;
    str::from_utf8(text).map_err(|_| "a string is not UTF-8")?;
    Ok(rest)
}

/// Reads a big-endian length of `width` bytes.
fn length(body: &[u8], width: usize) -> Result<(usize, &[u8]), &'static str> {
    let (head, rest) = body.split_at_checked(width).ok_or("value cut short")?;
    Ok((head.iter().fold(0, |sum, byte| sum << 8 | usize::from(*byte)), rest))
}

/// Steps over `count` bytes.
fn skip(body: &[u8], count: usize) -> Result<&[u8], &'static str> {
    body.get(count..).ok_or("value cut short")
}
