//! What each role may publish and subscribe to: the least with which it works, as configuration of nats-server.
//!
//! Pure. Subjects come from the catalog, from the declared streams and from the constants of the code that uses them, so that
//! a new event or stream needs no second place. `tests/integration/permissions.rs` runs every role with exactly these
//! on a server that denies the rest.

mod grants;
mod text;

use std::collections::BTreeSet;

pub use text::{conf, json, purpose};

use crate::catalog::Catalog;
use crate::nats::Role;
use crate::provision::Desired;
use grants::Grants;

/// One subject, or a filter of subjects.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    /// The subject.
    pub subject: String,
    /// What it is for.
    pub why: &'static str,
}

/// What one role may do. Everything else is denied to it.
#[derive(Debug, Clone)]
pub struct Permissions {
    /// Whose they are.
    pub role: Role,
    /// What its inboxes begin with.
    pub inbox_prefix: String,
    /// What it may publish.
    pub publish: Vec<Grant>,
    /// What it may subscribe to.
    pub subscribe: Vec<Grant>,
}

/// Every role, with a publisher for each service of `catalog`.
pub fn roles(catalog: &Catalog) -> Vec<Role> {
    let publishers = services(catalog).into_iter().map(|service| Role::Publisher(service.to_owned()));
    publishers.chain(Role::SHARED).collect()
}

/// The services that `catalog` has events of.
pub fn services(catalog: &Catalog) -> BTreeSet<&str> {
    catalog.events().iter().map(|event| event.service()).collect()
}

/// What `role` may do where `desired` is provisioned. Every role has the inboxes of `inbox_prefix` when it is given, else
/// its own.
pub fn of(role: Role, catalog: &Catalog, desired: &Desired, inbox_prefix: Option<&str>) -> Permissions {
    let inbox = |role: &Role| inbox_prefix.map_or_else(|| role.inbox_prefix(), str::to_owned);
    let mut grants = Grants::new(catalog, desired, &inbox);
    match &role {
        Role::Publisher(service) => grants.publisher(service),
        Role::Worker => grants.worker(),
        Role::Edge => grants.edge(),
        Role::All => grants.all(),
        Role::PushService => grants.push_service(),
        Role::Members => grants.members(),
        Role::Provisioner => grants.provisioner(),
        Role::Monitor => grants.monitor(),
        Role::Operator => grants.operator(),
    }
    grants.finish(role)
}
