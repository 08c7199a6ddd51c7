//! The business data of a notification: as it was published, and parsed when somebody looks into it.
//!
//! Many notifications go to devices as they came, or to nobody, and are never parsed. Whether one can be is known when it
//! comes.

use std::borrow::Cow;
use std::fmt;
use std::sync::OnceLock;

use bytes::Bytes;
use serde::de::{DeserializeSeed, Deserializer as _, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;
use serde_json::{Map, Value};

/// A JSON object.
#[derive(Clone)]
pub struct Payload {
    json: Bytes,
    parsed: OnceLock<Map<String, Value>>,
}

impl Payload {
    /// Parses `json`, which must be an object.
    pub fn parse(json: Bytes) -> Result<Self, serde_json::Error> {
        let parsed: Map<String, Value> = serde_json::from_slice(&json)?;
        Ok(Self { json, parsed: parsed.into() })
    }

    /// The part `raw` of `message`, which must be an object. It is parsed when it is looked into.
    pub fn part(message: &Bytes, raw: &RawValue) -> Result<Self, serde_json::Error> {
        let json = message.slice_ref(raw.get().as_bytes());
        if parses(&json) { Ok(Self { json, parsed: OnceLock::new() }) } else { Self::parse(json) }
    }

    /// As it was published.
    pub fn json(&self) -> &Bytes {
        &self.json
    }

    /// As it was published, to be put into other JSON.
    pub fn raw(&self) -> &RawValue {
        serde_json::from_slice(&self.json).expect("it was JSON when it came")
    }

    /// Parsed.
    pub fn parsed(&self) -> &Map<String, Value> {
        self.parsed.get_or_init(|| serde_json::from_slice(&self.json).expect("known to parse when it came"))
    }

    /// True when somebody looked into it.
    #[cfg(test)]
    pub fn is_parsed(&self) -> bool {
        self.parsed.get().is_some()
    }

    /// The value at `key`. The whole is parsed, for those who want more of it.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.parsed().get(key)
    }

    /// The value at `key`, for those who want no more: nothing else is parsed.
    pub fn only(&self, key: &str) -> Option<Cow<'_, Value>> {
        match self.parsed.get() {
            Some(parsed) => parsed.get(key).map(Cow::Borrowed),
            None => serde_json::Deserializer::from_slice(&self.json)
                .deserialize_map(Only(key))
                .expect("known to parse when it came")
                .map(Cow::Owned),
        }
    }
}

impl fmt::Debug for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&String::from_utf8_lossy(&self.json))
    }
}

impl From<Map<String, Value>> for Payload {
    fn from(parsed: Map<String, Value>) -> Self {
        let json = serde_json::to_vec(&parsed).expect("a JSON object is JSON");
        Self { json: json.into(), parsed: parsed.into() }
    }
}

/// True when `json`, which must be valid JSON, is an object that parses. The parser also refuses many levels, and what has
/// no value in Rust: halves of surrogate pairs and numbers that are too large. And it has a key of its own that it takes
/// for something else. Where those are possible this is false, and who asks has to try.
fn parses(json: &[u8]) -> bool {
    /// No number with fewer digits is too large without an exponent.
    const DIGITS: usize = 300;
    /// Far fewer than levels are allowed.
    const BRACKETS: usize = 64;
    json.first() == Some(&b'{')
        && count(json, is_bracket) <= BRACKETS
        && !has_pair(json, |a, b| u8::from(a == b'$') & u8::from(b == b's'))
        && !(has_pair(json, |a, b| u8::from(a.is_ascii_digit()) & u8::from(b | 0x20 == b'e'))
            && has_exponent(json))
        && !(has_pair(json, |a, b| u8::from(a == b'\\') & u8::from(b == b'u')) && has_hard_escape(json))
        && (count(json, |byte| byte.is_ascii_digit()) <= DIGITS
            || json.split(|byte| !byte.is_ascii_digit()).all(|run| run.len() <= DIGITS))
}

/// True when `is` says 1 of two bytes that follow each other. Without a way out in the middle, and with nothing wider than
/// a byte, so that many are looked at at once.
fn has_pair(json: &[u8], is: impl Fn(u8, u8) -> u8) -> bool {
    let pairs = json.iter().zip(json.get(1..).unwrap_or_default());
    pairs.fold(0, |any, (a, b)| any | is(*a, *b)) != 0
}

/// True when a number may have an exponent. In a text it seldom looks like that: the digits of a UUID come after letters or
/// the quote.
fn has_exponent(json: &[u8]) -> bool {
    let in_number = |byte: &u8| byte.is_ascii_digit() || matches!(byte, b'.' | b'-' | b'+');
    (1..json.len()).filter(|at| json[*at] | 0x20 == b'e' && json[at - 1].is_ascii_digit()).any(|at| {
        let before = json[..at].iter().rev().find(|byte| !in_number(byte));
        before.is_none_or(|byte| matches!(byte, b':' | b',' | b'[') || byte.is_ascii_whitespace())
    })
}

/// True when a text has an escape of a surrogate, which may have no other half, or of `$` or `s`, with which the parser's own
/// key begins: nobody escapes these otherwise.
fn has_hard_escape(json: &[u8]) -> bool {
    json.windows(6).any(|six| {
        let surrogate = six[2] | 0x20 == b'd' && matches!(six[3] | 0x20, b'8' | b'9' | b'a'..=b'f');
        six.starts_with(b"\\u") && (surrogate || matches!(&six[2..], b"0024" | b"0073"))
    })
}

/// True for what opens a level.
pub(super) fn is_bracket(byte: u8) -> bool {
    matches!(byte, b'{' | b'[')
}

/// How many of `bytes` are such: many at once, because no sum of a chunk is wider than a byte.
pub(super) fn count(bytes: &[u8], is: impl Fn(u8) -> bool) -> usize {
    let of = |chunk: &[u8]| usize::from(chunk.iter().map(|byte| u8::from(is(*byte))).sum::<u8>());
    bytes.chunks(u8::MAX as usize).map(of).sum()
}

/// Finds the value of one key; of several the last one, like the whole parser.
struct Only<'a>(&'a str);

impl<'de> Visitor<'de> for Only<'_> {
    type Value = Option<Value>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Option<Value>, A::Error> {
        let mut found = None;
        while let Some(is_it) = map.next_key_seed(Is(self.0))? {
            if is_it {
                found = Some(map.next_value()?);
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(found)
    }
}

/// Whether a key is this one.
struct Is<'a>(&'a str);

impl<'de> DeserializeSeed<'de> for Is<'_> {
    type Value = bool;

    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<bool, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for Is<'_> {
    type Value = bool;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E>(self, key: &str) -> Result<bool, E> {
        Ok(key == self.0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn part(json: &str) -> Result<Payload, serde_json::Error> {
        let message = Bytes::copy_from_slice(json.as_bytes());
        Payload::part(&message, serde_json::from_slice(&message).unwrap())
    }

    #[test]
    fn what_cannot_be_parsed_is_refused_when_it_comes() {
        let long = format!(r#"{{"n":{}}}"#, "9".repeat(400));
        for json in
            ["1", "[]", "null", r#""{""#, r#"{"n":1e999}"#, r#"{"n":1E999}"#, r#"{"t":"\ud800"}"#, &long]
        {
            assert!(part(json).is_err(), "{json}");
        }
        // The parser's own key, and other ways to write it.
        for dollar in ["$", r"\u0024"] {
            for s in ["s", r"\u0073"] {
                let json = format!(r#"{{"a":{{"{dollar}{s}erde_json::private::RawValue":1}}}}"#);
                assert!(part(&json).is_err(), "{json}");
            }
        }
        let long = format!(r#"{{"n":{}}}"#, "9".repeat(301));
        for json in [r#"{"n":[1e9]}"#, r#"{"n": 1e9}"#, r#"{"t":"\ud83d\ude00"}"#, r#"{"t":"of 1e9"}"#, &long]
        {
            assert!(part(json).unwrap().is_parsed(), "{json}");
        }
        let digits = format!(r#"{{"n":[{}]}}"#, vec!["1234567"; 100].join(","));
        let uuid = r#"{"id":"1e6f8e4c-0d5b-4a3e-9e1e-2e7e8e9e0e1e"}"#;
        for json in [uuid, r#"{"t":"1e999","u":"a9e9"}"#, r#"{"t":"\u00e9\u4f60\u003c"}"#, &digits] {
            assert!(!part(json).unwrap().is_parsed(), "{json}");
        }
    }

    #[test]
    fn a_plain_one_is_parsed_when_it_is_looked_into() {
        let payload = part(r#"{"a":{"b":[1,-2.5,true]},"c":"x\ny","c":null}"#).unwrap();
        assert_eq!(payload.only("c").as_deref(), Some(&Value::Null), "the last of two");
        assert_eq!(payload.only("b"), None);
        assert!(!payload.is_parsed());
        assert_eq!(payload.get("a").unwrap()["b"][1], -2.5);
        assert_eq!(payload.only("c").as_deref(), payload.get("c"));
    }

    /// JSON as people write it, and as they should not.
    fn json() -> impl Strategy<Value = String> {
        let number = prop_oneof![
            "-?(0|[1-9][0-9]{0,30})(\\.[0-9]{1,20})?([eE][+-]?[0-9]{1,4})?",
            "[1-9][0-9]{290,320}"
        ];
        let text = "\"((\\$|\\\\u0024)(s|\\\\u0073)erde_json::private::RawValue|([ -!#-\\[\\]-~äß€]|\\\\[nrt\"\\\\/bf]|\\\\u[0-9a-fA-F]{4}){0,12})\"";
        let leaf = prop_oneof![number, text, Just("null".to_owned()), Just("true".to_owned())];
        leaf.prop_recursive(4, 24, 4, move |inner| {
            let pair = (text, inner.clone()).prop_map(|(key, value)| format!("{key}: {value}"));
            prop_oneof![
                prop::collection::vec(inner, 0..4).prop_map(|all| format!("[{}]", all.join(","))),
                prop::collection::vec(pair, 0..4).prop_map(|all| format!("{{{}}}", all.join(" , "))),
            ]
        })
    }

    proptest! {
        #[test]
        fn it_is_what_the_whole_parser_says(json in json(), key in "[a-c]") {
            let whole: Result<Map<String, Value>, _> = serde_json::from_str(&json);
            match (part(&json), whole) {
                (Ok(payload), Ok(whole)) => {
                    prop_assert_eq!(payload.only(&key).map(Cow::into_owned), whole.get(&key).cloned());
                    for key in whole.keys() {
                        prop_assert_eq!(payload.only(key).map(Cow::into_owned), whole.get(key).cloned());
                    }
                    prop_assert_eq!(payload.parsed(), &whole);
                }
                (Err(_), Err(_)) => {}
                (part, whole) => prop_assert!(false, "{part:?} {whole:?}"),
            }
        }
    }
}
