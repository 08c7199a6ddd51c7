//! The byte vectors of `tests/vectors`, which every client's tests read too: both directions, both encodings.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use bytes::BytesMut;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::Value;

use super::codec::{self, Encoding};
use super::notification::{Frames, Notification, with_cursor};
use super::{CLIENT_FRAME_BYTES_MAX, ClientFrame, LENGTH_BYTES, SERVER_FRAME_BYTES_MAX, ServerFrame};
use crate::catalog::{Catalog, Lane};
use crate::id::{DeviceId, UserId};

#[derive(Deserialize)]
struct Good {
    name: String,
    from: String,
    encoding: Encoding,
    frame: Value,
    #[serde(default)]
    datagram: bool,
    hex: String,
}

#[derive(Deserialize)]
struct Bad {
    name: String,
    encoding: Encoding,
    hex: String,
    why: String,
}

/// Frames that are well formed and that only the session refuses, because of what is in them.
const REFUSED_BY_VALIDATION: &[&str] = &[
    "hello_device_id_empty_json",
    "hello_device_id_129_characters_json",
    "hello_device_id_dot_json",
    "hello_device_id_space_json",
    "hello_device_id_wildcard_json",
    "hello_device_id_newline_json",
    "hello_device_id_chinese_json",
];

#[test]
fn client_frames_have_their_bytes_both_ways() {
    let mut exact = 0;
    for good in frames("client") {
        let bytes = bytes(&good.hex);
        let decoded: ClientFrame = decode(&good, CLIENT_FRAME_BYTES_MAX);
        let encoded = codec::frame(good.encoding, &decoded).unwrap();
        if has_defaults(&good.frame) {
            exact += 1;
            assert_eq!(encoded, bytes, "{}", good.name);
        }
        assert_eq!(
            decoded,
            split_and_decode(good.encoding, &encoded, CLIENT_FRAME_BYTES_MAX),
            "{}",
            good.name
        );
        if let ClientFrame::Hello(hello) = decoded {
            assert!(DeviceId::new(&hello.device_id).is_ok(), "{}", good.name);
        }
    }
    assert!(exact > 50, "{exact}");
}

#[test]
fn server_frames_have_their_bytes_both_ways() {
    let mut seen = 0;
    for good in frames("server").filter(|good| good.frame["type"] != "notification") {
        seen += 1;
        let decoded: ServerFrame = decode(&good, SERVER_FRAME_BYTES_MAX);
        assert_eq!(serde_json::to_value(&decoded).unwrap(), good.frame, "{}", good.name);
        assert_eq!(codec::frame(good.encoding, &decoded).unwrap(), bytes(&good.hex), "{}", good.name);
    }
    assert!(seen > 50, "{seen}");
}

#[test]
fn notifications_have_their_bytes_both_ways() {
    let mut seen = 0;
    for good in frames("server").filter(|good| good.frame["type"] == "notification") {
        seen += 1;
        let expected = bytes(&good.hex);
        let notification = notification(&good.frame);
        let encoded = if good.datagram {
            notification.datagram(good.encoding).unwrap()
        } else {
            match good.frame.get("inbox") {
                Some(cursor) => {
                    with_cursor(good.encoding, &notification.frame(good.encoding), cursor.as_str().unwrap())
                }
                None => notification.frame(good.encoding),
            }
        };
        let body = |bytes: &[u8]| bytes[if good.datagram { 0 } else { LENGTH_BYTES }..].to_vec();
        for bytes in [&expected[..], &encoded[..]] {
            let value: Value = codec::decode(good.encoding, &body(bytes)).unwrap();
            assert_eq!(value, good.frame, "{}", good.name);
        }
        assert_eq!(encoded, expected, "{}", good.name);
    }
    assert!(seen > 50, "{seen}");
}

#[test]
fn decoders_take_fields_in_any_order_and_ignore_unknown_ones() {
    #[derive(Serialize)]
    struct Shuffled {
        later: Vec<Value>,
        seq: u64,
        lane: &'static str,
        r#type: &'static str,
    }
    let shuffled = Shuffled {
        later: vec![Value::Null, serde_json::json!({"a": [1.5, -1]})],
        seq: 7,
        lane: "low",
        r#type: "ack",
    };
    for encoding in [Encoding::Json, Encoding::Msgpack] {
        let frame = codec::frame(encoding, &shuffled).unwrap();
        let decoded: ClientFrame = codec::decode(encoding, &frame[LENGTH_BYTES..]).unwrap();
        assert_eq!(decoded, ClientFrame::Ack { lane: super::frame::SessionLane::Low, seq: 7 });
    }
}

#[test]
fn bad_frames_are_refused() {
    let bad: Vec<Bad> = read("bad_frames.json");
    assert!(bad.len() > 100);
    let mut accepted = BTreeSet::new();
    let mut validated = BTreeSet::new();
    for bad in bad {
        let mut stream = BytesMut::from(&bytes(&bad.hex)[..]);
        let Ok(body) = codec::split(&mut stream, CLIENT_FRAME_BYTES_MAX) else {
            continue;
        };
        let body = body.unwrap_or_else(|| panic!("{}: not a whole frame", bad.name));
        match codec::decode::<ClientFrame>(bad.encoding, &body) {
            Err(_) => {}
            Ok(ClientFrame::Hello(hello)) if DeviceId::new(&hello.device_id).is_err() => {
                validated.insert(bad.name);
            }
            Ok(_) => {
                accepted.insert(format!("{}: {}", bad.name, bad.why));
            }
        }
    }
    assert_eq!(accepted, BTreeSet::new());
    assert_eq!(validated, REFUSED_BY_VALIDATION.iter().map(|name| (*name).to_owned()).collect());
}

fn frames(from: &'static str) -> impl Iterator<Item = Good> {
    let all: Vec<Good> = read("frames.json");
    all.into_iter().filter(move |good| good.from == from)
}

fn read<T: DeserializeOwned>(name: &str) -> T {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors").join(name);
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_str(&text).unwrap()
}

fn bytes(hex: &str) -> Vec<u8> {
    hex.as_bytes()
        .chunks(2)
        .map(|pair| u8::from_str_radix(str::from_utf8(pair).unwrap(), 16).unwrap())
        .collect()
}

fn decode<T: DeserializeOwned>(good: &Good, max: usize) -> T {
    split_and_decode(good.encoding, &bytes(&good.hex), max)
}

fn split_and_decode<T: DeserializeOwned>(encoding: Encoding, stream: &[u8], max: usize) -> T {
    let mut stream = BytesMut::from(stream);
    let body = codec::split(&mut stream, max).unwrap().unwrap();
    assert!(stream.is_empty());
    codec::decode(encoding, &body).unwrap()
}

/// False for a hello that leaves out what our encoder always writes.
fn has_defaults(frame: &Value) -> bool {
    frame["type"] != "hello" || (frame.get("encoding").is_some() && frame.get("datagrams").is_some())
}

fn notification(frame: &Value) -> Notification {
    let data = &frame["data"];
    let kind = data["notification_type"].as_str().unwrap();
    let catalog = format!(
        "[[event]]\ntype = \"{kind}\"\ntarget = \"user\"\nlane = \"high\"\nrank = 1\nack = true\noffline = \"alert\"\n\
         inbox = \"missed\"\npriority = \"fixed\"\naudience = [{{ to = \"user\" }}]\n"
    );
    let payload = data["payload"].as_object().unwrap().clone();
    Notification {
        large_set: false,
        policy: crate::protocol::notification::Policy::default(),
        id: data["notification_id"].as_str().unwrap().into(),
        event: Arc::clone(Catalog::from_toml(&catalog).unwrap().get(kind).unwrap()),
        lane: Lane::ALL.into_iter().find(|lane| lane.as_str() == data["priority"]).unwrap(),
        timestamp: data["timestamp"].as_i64().unwrap(),
        published_at_ms: data["published_at_ms"].as_u64().unwrap(),
        expires_at_ms: u64::MAX,
        stream_seq: 1,
        from_user_id: data.get("from_user_id").map(|id| UserId::new(id.as_str().unwrap()).unwrap()),
        require_ack: data.get("require_ack").is_some(),
        payload: payload.into(),
        frames: Frames::default(),
    }
}
