//! Stage 3: a plan and the members of its set become recipients.
//!
//! Nothing is copied but ids: a fan-out keeps the members as they are and walks them when it is asked.

use std::sync::Arc;

use super::Plan;
use crate::catalog::{Inbox, Kind, LARGE_SET, Lane, Role};
use crate::directory::Members;
use crate::id::UserId;
use crate::protocol::Notification;
use crate::session::{Devices, Recipient};

/// A notification with everybody it is for. A user is in it once.
#[derive(Debug)]
pub struct Fanout {
    /// The notification, shared from here on.
    pub note: Arc<Notification>,
    /// Members of the set whom the rules leave out.
    pub excluded: u64,
    /// How many recipients there are.
    pub recipients: u64,
    members: Option<Arc<Members>>,
    roles: Roles,
    except_user: Option<UserId>,
    devices: Devices,
    single: Option<UserId>,
    extras: Vec<Recipient>,
}

/// Which members are meant.
#[derive(Debug, Clone)]
enum Roles {
    All,
    Some(Vec<Role>),
    Nobody,
}

impl Roles {
    fn include(&self, role: Role) -> bool {
        match self {
            Self::All => true,
            Self::Some(roles) => roles.contains(&role),
            Self::Nobody => false,
        }
    }
}

/// Finds the recipients of a plan. `members` are those of its set, and `None` for a single user.
///
/// Broadcasts have no recipients here: they go to whoever is online.
pub fn resolve(mut plan: Plan, members: Option<Arc<Members>>) -> Fanout {
    let size = members.as_ref().map_or(0, |members| members.len());
    let large = plan.rule().large.clone().filter(|large| size > large.over);
    let roles = match &large {
        Some(large) if large.roles.is_empty() => Roles::Nobody,
        Some(large) => Roles::Some(large.roles.clone()),
        None if plan.rule().roles.is_empty() => Roles::All,
        None => Roles::Some(plan.rule().roles.clone()),
    };
    let mut extras = std::mem::take(&mut plan.also);
    if large.is_some() {
        let offline = plan.note.policy.offline;
        extras.extend(plan.large_also.iter().map(|user| Recipient {
            user: user.clone(),
            devices: Devices::All,
            offline,
        }));
    }
    plan.note.large_set = size > LARGE_SET;
    if plan.note.large_set && plan.note.event.lane != Lane::High {
        // A record for each member of a large group would cost more than it is worth; clients catch up by loading.
        plan.note.policy.inbox = Inbox::None;
    }
    let single = (plan.audience.kind == Kind::User).then(|| UserId::new(&plan.audience.id).ok()).flatten();
    let mut fanout = Fanout {
        note: Arc::new(plan.note),
        excluded: 0,
        recipients: 0,
        members,
        roles,
        except_user: plan.except_user,
        devices: plan.devices,
        single,
        extras: Vec::new(),
    };
    for extra in extras {
        let known = fanout.selects(&extra.user) || fanout.extras.iter().any(|other| other.user == extra.user);
        if !known {
            fanout.extras.push(extra);
        }
    }
    fanout.count(size);
    fanout
}

impl Fanout {
    /// A fan-out to these people, each named once.
    pub fn to(note: Arc<Notification>, recipients: Vec<Recipient>) -> Self {
        Self {
            note,
            excluded: 0,
            recipients: recipients.len() as u64,
            members: None,
            roles: Roles::Nobody,
            except_user: None,
            devices: Devices::All,
            single: None,
            extras: recipients,
        }
    }

    /// Everybody it is for, in the order of their ids and the extra users last, so that a repetition makes the same
    /// batches.
    pub fn targets(&self) -> impl Iterator<Item = Recipient> + Send + '_ {
        let members = self.members.iter().flat_map(|members| members.iter());
        let members = members.filter(|(user, role)| self.is_member_meant(user, *role)).map(|(user, _)| user);
        let single = self.single.iter().filter(|user| self.except_user.as_ref() != Some(user));
        let set = single.chain(members).map(|user| Recipient {
            user: user.clone(),
            devices: self.devices.clone(),
            offline: self.note.policy.offline,
        });
        set.chain(self.extras.iter().cloned())
    }

    /// True when the set itself, without the extra users, has `user` as a recipient.
    fn selects(&self, user: &UserId) -> bool {
        let role = self.members.as_ref().and_then(|members| members.role(user));
        role.is_some_and(|role| self.is_member_meant(user, role))
            || (self.single.as_ref() == Some(user) && self.except_user.as_ref() != Some(user))
    }

    fn is_member_meant(&self, user: &UserId, role: Role) -> bool {
        self.except_user.as_ref() != Some(user) && self.roles.include(role)
    }

    fn count(&mut self, size: usize) {
        let extras = self.extras.len() as u64;
        self.recipients = self.targets().count() as u64;
        let of_set = self.recipients - extras;
        let size = size as u64 + u64::from(self.single.is_some());
        // A user whom the set leaves out and an extra names is a recipient, not somebody left out.
        let moved = self.extras.iter().filter(|extra| self.is_in_set(&extra.user)).count() as u64;
        self.excluded = size - of_set - moved;
    }

    fn is_in_set(&self, user: &UserId) -> bool {
        self.single.as_ref() == Some(user)
            || self.members.as_ref().is_some_and(|members| members.role(user).is_some())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use bytes::Bytes;
    use proptest::prelude::*;

    use super::*;
    use crate::catalog::Offline;
    use crate::catalog::{Catalog, Large};
    use crate::directory::Change;
    use crate::id::DeviceId;
    use crate::nats::Origin;
    use crate::pipeline::{BATCH_USERS_MAX, batches, classify, decode};

    /// What decides who gets a notification; users are numbers.
    #[derive(Debug, Clone)]
    struct Input {
        /// `None` for a set, else the one user it is for.
        single: Option<u16>,
        /// What happened to the members, in this order: a role, or that they left.
        history: Vec<(u16, Option<Role>)>,
        roles: Vec<Role>,
        except: Option<u16>,
        also: Vec<(u16, Offline)>,
        large: Option<(usize, Vec<Role>, Vec<u16>)>,
    }

    fn user(n: u16) -> UserId {
        UserId::new(&format!("u{n}")).unwrap()
    }

    fn role() -> impl Strategy<Value = Role> {
        prop_oneof![1 => Just(Role::Owner), 1 => Just(Role::Admin), 4 => Just(Role::Member)]
    }

    /// Users out of `users`, and up to `events` changes of members.
    fn input(users: u16, events: usize) -> impl Strategy<Value = Input> {
        let who = 0..users;
        let policy = prop_oneof![Just(Offline::None), Just(Offline::Alert), Just(Offline::Silent)];
        let roles = || proptest::collection::vec(role(), 0..3);
        let large = (0..events, roles(), proptest::collection::vec(who.clone(), 0..3));
        (
            proptest::option::weighted(0.2, who.clone()),
            proptest::collection::vec((who.clone(), proptest::option::weighted(0.8, role())), 0..events),
            roles(),
            proptest::option::of(who.clone()),
            proptest::collection::vec((who, policy), 0..4),
            proptest::option::of(large),
        )
            .prop_map(|(single, history, roles, except, also, large)| Input {
                single,
                history: if single.is_some() { Vec::new() } else { history },
                roles,
                except,
                also,
                large,
            })
    }

    fn devices(name: &str) -> Devices {
        Devices::Except([DeviceId::new(name).unwrap()].into())
    }

    /// The plan and the members that say the same.
    fn plan(input: &Input) -> (Plan, Option<Arc<Members>>) {
        let event = if input.single.is_some() { "friend.request" } else { "group.info_updated" };
        let id = input.single.map_or("g".to_owned(), |n| user(n).to_string());
        let subject = format!("notification.{event}.{id}");
        let body = Bytes::from_static(br#"{"payload":{}}"#);
        let origin = Origin { stream: "N".to_owned(), seq: 1, stored_at_us: 1_000_000, deliveries: 1 };
        let decoded = decode(&Catalog::built_in().unwrap(), &subject, &body).unwrap();
        let mut plan = classify(decoded, &origin, None, false, 1_000).unwrap();
        let rule = &mut Arc::make_mut(&mut plan.note.event).audience[0];
        rule.roles.clone_from(&input.roles);
        rule.large = input.large.clone().map(|(over, roles, _)| Large { over, roles, also: Vec::new() });
        plan.except_user = input.except.map(user);
        plan.devices = devices("of-the-set");
        plan.also = input
            .also
            .iter()
            .map(|(n, offline)| Recipient {
                user: user(*n),
                devices: devices("of-the-extra"),
                offline: *offline,
            })
            .collect();
        plan.large_also = input.large.iter().flat_map(|(_, _, also)| also.iter().map(|n| user(*n))).collect();
        let mut members = Members::default();
        for (v, (n, role)) in (1..).zip(&input.history) {
            members.apply(Change::Member { user: user(*n), role: *role, v });
        }
        (plan, input.single.is_none().then(|| Arc::new(members)))
    }

    /// Who gets it, with offline policy and devices, and how many of the set do not: with plain sets.
    fn expected(input: &Input, row: Offline) -> (BTreeMap<UserId, (Offline, Devices)>, usize) {
        let mut present: BTreeMap<u16, Role> = BTreeMap::new();
        for (n, role) in &input.history {
            match role {
                Some(role) => drop(present.insert(*n, *role)),
                None => drop(present.remove(n)),
            }
        }
        let large = input.large.as_ref().filter(|(over, ..)| present.len() > *over);
        let mut all: BTreeSet<u16> = present.keys().copied().chain(input.single).collect();
        let in_set = all.clone();
        all.retain(|n| {
            let role = present.get(n);
            let meant = match (role, large) {
                (None, _) => true,
                (Some(role), Some((_, roles, _))) => roles.contains(role),
                (Some(role), None) => input.roles.is_empty() || input.roles.contains(role),
            };
            meant && input.except != Some(*n)
        });
        let mut told: BTreeMap<UserId, (Offline, Devices)> =
            all.iter().map(|n| (user(*n), (row, devices("of-the-set")))).collect();
        for (n, offline) in &input.also {
            told.entry(user(*n)).or_insert((*offline, devices("of-the-extra")));
        }
        for n in large.iter().flat_map(|(_, _, also)| also) {
            told.entry(user(*n)).or_insert((row, Devices::All));
        }
        let excluded = in_set.iter().filter(|n| !told.contains_key(&user(**n))).count();
        (told, excluded)
    }

    fn check(input: &Input) -> Result<(), TestCaseError> {
        let (plan, members) = plan(input);
        let (told, excluded) = expected(input, plan.note.policy.offline);
        let fanout = resolve(plan, members);
        let batches: Vec<Vec<Recipient>> = batches(fanout.targets()).collect();
        prop_assert!(batches.iter().all(|batch| (1..=BATCH_USERS_MAX).contains(&batch.len())));
        let all: Vec<Recipient> = batches.into_iter().flatten().collect();
        prop_assert!(all.iter().cloned().eq(fanout.targets()), "batches are the set, in its order");
        prop_assert_eq!(fanout.recipients, all.len() as u64);
        prop_assert_eq!(all.len(), told.len(), "each is told once");
        let found = all.into_iter().map(|one| (one.user, (one.offline, one.devices)));
        prop_assert_eq!(found.collect::<BTreeMap<_, _>>(), told);
        prop_assert_eq!(fanout.excluded, excluded as u64);
        Ok(())
    }

    proptest! {
        #[test]
        fn everybody_who_is_meant_is_told_once_and_nobody_else(input in input(12, 24)) {
            check(&input)?;
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn it_is_the_same_for_sets_of_several_batches(input in input(4_000, 6_000)) {
            check(&input)?;
        }
    }
}
