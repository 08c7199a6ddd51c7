//! The members of one audience, and the rule by which they change: the highest version wins.
//!
//! Pure. Because only the version counts, changes may come in any order, twice, or both from the bucket and from the
//! subscription, and the result is the same.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::catalog::{Kind, Role};
use crate::id::{self, UserId};

/// Names an audience: the first two parts of its keys in the bucket.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Key {
    /// What kind of set; one that is stored.
    pub kind: Kind,
    /// Which one.
    pub id: Arc<str>,
}

impl Key {
    /// The name of a set, or `None` when no set of the kind is stored or the id is not valid.
    pub fn new(kind: Kind, id: &str) -> Option<Self> {
        (kind.is_stored() && id::is_valid(id)).then(|| Self { kind, id: id.into() })
    }

    /// The header key, `{kind}.{id}`. Members are below it, `{kind}.{id}.{user}`.
    pub fn header(&self) -> String {
        format!("{}.{}", self.kind.as_str(), self.id)
    }

    /// The key of one member.
    pub fn member(&self, user: &UserId) -> String {
        format!("{}.{}.{user}", self.kind.as_str(), self.id)
    }
}

/// One change of an audience. Versions are Unix microseconds: JetStream's time of the event that caused the change, or
/// the time of writing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// The user is a member with this role, or none any more.
    Member {
        /// Who.
        user: UserId,
        /// The role; `None` for somebody who left.
        role: Option<Role>,
        /// The version.
        v: u64,
    },
    /// Every member up to this version is gone.
    Gone {
        /// The version.
        v: u64,
    },
    /// The audience is another name of this group.
    Alias {
        /// The group's id.
        group: Arc<str>,
        /// The version.
        v: u64,
    },
}

/// The value of a key in the bucket.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Value {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) role: Option<Role>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) left: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) gone: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) group: Option<Arc<str>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) v: Option<u64>,
}

impl Value {
    /// Orders the values of one key as [`Members::apply`] does: by version, then by what they say. What is not higher
    /// than what the bucket has is not written, so that the bucket and every cache come to the same end.
    pub(crate) fn order(&self) -> (u64, u8, &str) {
        let version = self.gone.max(self.v).unwrap_or_default();
        let group = self.group.as_deref().unwrap_or_default();
        let weight = match (self.gone, self.left) {
            (Some(_), _) => 1,
            (None, left) => weight(if left { None } else { Some(self.role.unwrap_or_default()) }),
        };
        (version, weight, group)
    }
}

/// Reads a key and its value as a change of an audience; `None` when they are none, such as a purged key.
pub fn parse(key: &str, body: &[u8]) -> Option<(Key, Change)> {
    let mut parts = key.splitn(3, '.');
    let kind = stored_kind(parts.next()?)?;
    let of = Key::new(kind, parts.next()?)?;
    let value: Value = serde_json::from_slice(body).ok()?;
    let change = match parts.next() {
        Some(user) => {
            let role = if value.left { None } else { Some(value.role.unwrap_or_default()) };
            Change::Member { user: UserId::new(user).ok()?, role, v: value.v? }
        }
        None => match (value.gone, value.group) {
            (Some(v), _) => Change::Gone { v },
            (None, Some(group)) => Change::Alias { group, v: value.v? },
            (None, None) => return None,
        },
    };
    Some((of, change))
}

/// The stored kind with this name.
pub fn stored_kind(name: &str) -> Option<Kind> {
    [Kind::Group, Kind::Conversation, Kind::Call, Kind::Followers]
        .into_iter()
        .find(|kind| kind.as_str() == name)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Member {
    v: u64,
    role: Option<Role>,
}

impl Member {
    /// Orders changes: by version, then by what they say, so that two with one version have the same winner everywhere.
    fn order(self) -> (u64, u8) {
        (self.v, weight(self.role))
    }
}

/// What wins among changes of one version: whoever left is out, else the higher role.
fn weight(role: Option<Role>) -> u8 {
    match role {
        Some(Role::Member) => 0,
        Some(Role::Admin) => 1,
        Some(Role::Owner) => 2,
        None => 3,
    }
}

/// The members of one audience.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Members {
    users: BTreeMap<UserId, Member>,
    gone: u64,
    alias: Option<(u64, Arc<str>)>,
}

impl Members {
    /// Applies one change; older ones than what is known change nothing.
    pub fn apply(&mut self, change: Change) {
        match change {
            Change::Member { user, role, v } => {
                let new = Member { v, role };
                let known = self.users.entry(user).or_insert(new);
                if new.order() > known.order() {
                    *known = new;
                }
            }
            Change::Gone { v } => self.gone = self.gone.max(v),
            Change::Alias { group, v } => {
                let new = Some((v, group));
                if new > self.alias {
                    self.alias = new;
                }
            }
        }
    }

    /// The group whose members these are, when this is only another name of it.
    pub fn alias(&self) -> Option<&Arc<str>> {
        self.alias.as_ref().filter(|(v, _)| *v > self.gone).map(|(_, group)| group)
    }

    /// The present members in the order of their ids.
    pub fn iter(&self) -> impl Iterator<Item = (&UserId, Role)> + Send {
        self.users.iter().filter_map(|(user, member)| Some((user, self.present(*member)?)))
    }

    /// The role of a present member.
    pub fn role(&self, user: &UserId) -> Option<Role> {
        self.users.get(user).and_then(|member| self.present(*member))
    }

    /// Members that the end of the audience hides, with its version: their keys are of no use any more.
    pub fn hidden(&self) -> impl Iterator<Item = (&UserId, u64)> + Send {
        let hidden = |(_, member): &(&UserId, &Member)| member.role.is_some() && member.v <= self.gone;
        self.users.iter().filter(hidden).map(|(user, _)| (user, self.gone))
    }

    /// How many users are known, present or not: no fewer than [`Self::len`].
    pub fn entries(&self) -> usize {
        self.users.len()
    }

    /// How many are present. Walks them all.
    pub fn len(&self) -> usize {
        self.iter().count()
    }

    /// True when nobody is present.
    pub fn is_empty(&self) -> bool {
        self.iter().next().is_none()
    }

    /// True when nothing was ever written: the audience is not empty but unknown.
    pub fn is_unknown(&self) -> bool {
        self.users.is_empty() && self.gone == 0 && self.alias.is_none()
    }

    /// Roughly the memory it takes, in bytes: 96 for each user's entry, id and share of the tree, measured with ids of
    /// 16 characters.
    pub fn bytes(&self) -> usize {
        256 + self.users.len() * 96
    }

    fn present(&self, member: Member) -> Option<Role> {
        member.role.filter(|_| member.v > self.gone)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn user(n: u8) -> UserId {
        UserId::new(&format!("u{n}")).unwrap()
    }

    fn changes() -> impl Strategy<Value = Vec<Change>> {
        let role = prop_oneof![
            Just(None),
            Just(Some(Role::Member)),
            Just(Some(Role::Admin)),
            Just(Some(Role::Owner))
        ];
        let change = prop_oneof![
            8 => (0u8..4, role, 1u64..8).prop_map(|(n, role, v)| Change::Member { user: user(n), role, v }),
            1 => (1u64..8).prop_map(|v| Change::Gone { v }),
            1 => (0u8..3, 1u64..8).prop_map(|(n, v)| Change::Alias { group: format!("g{n}").into(), v }),
        ];
        proptest::collection::vec(change, 0..24)
    }

    fn apply_all(changes: impl IntoIterator<Item = Change>) -> Members {
        let mut members = Members::default();
        changes.into_iter().for_each(|change| members.apply(change));
        members
    }

    proptest! {
        #[test]
        fn neither_order_nor_repetition_matters(
            (changes, shuffled) in changes().prop_flat_map(|all| (Just(all.clone()), Just(all).prop_shuffle())),
        ) {
            let expected = apply_all(changes.clone());
            prop_assert_eq!(&expected, &apply_all(shuffled.clone()));
            prop_assert_eq!(&expected, &apply_all(shuffled.into_iter().chain(changes)));
        }
    }

    #[test]
    fn those_who_left_and_those_before_the_end_are_not_present() {
        let mut members = Members::default();
        assert!(members.is_unknown());
        for (n, v) in [(1, 10), (2, 20), (3, 30)] {
            members.apply(Change::Member { user: user(n), role: Some(Role::Member), v });
        }
        members.apply(Change::Member { user: user(3), role: None, v: 31 });
        members.apply(Change::Gone { v: 10 });
        assert_eq!(members.iter().map(|(user, _)| user.clone()).collect::<Vec<_>>(), [user(2)]);
        assert_eq!(members.hidden().collect::<Vec<_>>(), [(&user(1), 10)]);
        members.apply(Change::Gone { v: 99 });
        assert!(members.is_empty() && !members.is_unknown());
        assert_eq!(members.hidden().count(), 2, "who left has a tombstone already");
    }

    #[test]
    fn keys_and_values_of_the_bucket_are_read() {
        let member = parse("group.g1.u1", br#"{"role":"admin","v":7}"#).unwrap();
        assert_eq!(member.0, Key::new(Kind::Group, "g1").unwrap());
        assert_eq!(member.1, Change::Member { user: user(1), role: Some(Role::Admin), v: 7 });
        let left = parse("call.c.u1", br#"{"left":true,"v":8}"#).unwrap().1;
        assert_eq!(left, Change::Member { user: user(1), role: None, v: 8 });
        assert_eq!(parse("group.g1", br#"{"gone":9}"#).unwrap().1, Change::Gone { v: 9 });
        let alias = parse("conversation.c", br#"{"group":"g1","v":3}"#).unwrap().1;
        assert_eq!(alias, Change::Alias { group: "g1".into(), v: 3 });
        for (key, body) in
            [("group.g1.u1", ""), ("user.u1.u2", "{}"), ("group.g1.u.x", r#"{"v":1}"#), ("group", "{}")]
        {
            assert_eq!(parse(key, body.as_bytes()), None, "{key}");
        }
    }
}
