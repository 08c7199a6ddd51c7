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
