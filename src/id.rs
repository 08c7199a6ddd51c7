//! Identifiers shared by every stage: users, devices and the rule that makes them valid.
//!
//! An id is a NATS subject token and a part of a key-value key, so its alphabet is small on purpose.

use std::borrow::Borrow;
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Longest id in bytes. Subjects carry up to three of them, far below NATS's 4 KiB control line.
pub const ID_BYTES_MAX: usize = 128;

/// Why a text is not an id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("an id is 1 to {ID_BYTES_MAX} characters out of A-Z a-z 0-9 _ -")]
pub struct InvalidId;

/// True when `text` can be a user, device, group, conversation or call id:
/// 1 to 128 characters out of `A–Z a–z 0–9 _ -`.
pub fn is_valid(text: &str) -> bool {
    (1..=ID_BYTES_MAX).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-')
}

/// A hash of texts in their order that is the same in every version of every program, unlike the standard library's:
/// FNV-1a, 64 bits. For names that a repetition must make again; not for anything an attacker gains from.
pub fn stable_hash<'a>(texts: impl IntoIterator<Item = &'a str>) -> u64 {
    const OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
    const PRIME: u64 = 0x0000_0100_0000_01b3;
    // A byte that no UTF-8 text has separates them.
    let bytes = texts.into_iter().flat_map(|text| text.bytes().chain([0xff]));
    bytes.fold(OFFSET, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(PRIME))
}

/// `text` as the value of a header: one line, at most 512 bytes and a character.
pub fn one_line(text: &str) -> String {
    let end = text.char_indices().map(|(at, _)| at).find(|at| *at >= 512).unwrap_or(text.len());
    text[..end].chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

macro_rules! id_type {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(Arc<str>);

        impl $name {
            /// Takes `text` when it is a valid id.
            pub fn new(text: &str) -> Result<Self, InvalidId> {
                if is_valid(text) { Ok(Self(text.into())) } else { Err(InvalidId) }
            }

            /// The id as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&self.0, f)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
                Self::new(&text).map_err(serde::de::Error::custom)
            }
        }
    };
}

id_type!(
    /// A user: the `sub` of a token, a recipient of notifications. Cheap to clone.
    UserId
);
id_type!(
    /// A device of a user. One device has at most one session. Cheap to clone.
    DeviceId
);
id_type!(
    /// One life of a node: its name and when that life began. A node that was cut off for long begins another one.
    /// Cheap to clone.
    NodeId
);

impl NodeId {
    /// The life of the node `name` that began at these Unix milliseconds. What no id may contain becomes `-`, and a name
    /// that is too long loses its end.
    pub fn of(name: &str, began_ms: u64) -> Self {
        let began = format!("-{began_ms}");
        let kept = |c: char| if c.is_ascii_alphanumeric() || c == '_' || c == '-' { c } else { '-' };
        let name: String = name.chars().take(ID_BYTES_MAX - began.len()).map(kept).collect();
        Self(format!("{name}{began}").into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn header_values_are_cut_at_a_character() {
        assert!(one_line(&"é".repeat(400)).len() <= 514);
        assert_eq!(one_line("two\nlines"), "two lines");
    }

    #[test]
    fn any_name_of_a_host_makes_a_node_id() {
        assert_eq!(NodeId::of("edge-1.example.com", 5).as_str(), "edge-1-example-com-5");
        for name in ["", "é.*>", &"x".repeat(300)] {
            assert!(is_valid(NodeId::of(name, u64::MAX).as_str()), "{name}");
        }
    }

    #[test]
    fn stable_hash_is_fnv_and_tells_texts_apart() {
        assert_eq!(stable_hash([]), 0xcbf2_9ce4_8422_2325);
        assert_ne!(stable_hash(["ab", "c"]), stable_hash(["a", "bc"]));
    }

    #[test]
    fn only_subject_safe_text_is_an_id() {
        for good in ["a", "user-123", "A_b-9", &"x".repeat(128)] {
            assert!(UserId::new(good).is_ok(), "{good}");
        }
        for bad in ["", "a.b", "a b", "*", ">", "用户", "a/b", &"x".repeat(129)] {
            assert!(UserId::new(bad).is_err(), "{bad}");
        }
    }
}
