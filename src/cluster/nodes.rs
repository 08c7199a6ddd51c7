//! Which nodes live, and whose entries are to be dropped: decisions, with the time as an argument.
//!
//! A lease that was deleted takes its node's entries with it at once. One that ran out, and a node without a lease, get
//! a grace: a short outage of NATS makes nobody offline.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;

use tokio::time::Instant;

use super::entry::Lease;
use crate::id::NodeId;

/// Nodes remembered as dropped. When there are more they are forgotten, and one of them that comes back is complete again
/// only after the next reading.
const DROPPED_MAX: usize = 1_024;

/// A node without a lease.
#[derive(Debug, Clone, Copy)]
struct Lost {
    since: Instant,
    serves_devices: bool,
}

impl Lost {
    /// What had this lease until now.
    fn with(lease: &Lease, since: Instant) -> Self {
        Self { since, serves_devices: lease.role.serves_devices() }
    }
}

/// What the leases say.
#[derive(Debug, Default)]
pub(super) struct Nodes {
    live: BTreeMap<NodeId, Lease>,
    /// Nodes with entries and without a lease.
    lost: HashMap<NodeId, Lost>,
    /// Nodes whose entries were dropped since the last reading.
    dropped: HashSet<NodeId>,
}

impl Nodes {
    /// `node` has this lease. True when its entries were dropped, so that they must be read again.
    pub(super) fn lives(&mut self, node: NodeId, lease: Lease) -> bool {
        self.lost.remove(&node);
        let dropped = self.dropped.remove(&node);
        self.live.insert(node, lease);
        dropped
    }

    /// The lease of `node` was deleted: its entries are to be dropped.
    pub(super) fn left(&mut self, node: &NodeId) {
        self.live.remove(node);
        self.lost.remove(node);
        self.note_dropped(node.clone());
    }

    /// The lease of `node` ran out.
    pub(super) fn lost(&mut self, node: &NodeId, now: Instant) {
        if let Some(lease) = self.live.remove(node) {
            self.lost.insert(node.clone(), Lost::with(&lease, now));
        }
    }

    /// `node` has an entry. True when nothing was known of it.
    pub(super) fn has_entries(&mut self, node: &NodeId, now: Instant) -> bool {
        let new = !self.live.contains_key(node) && !self.lost.contains_key(node);
        if new {
            // Who has entries has devices.
            self.lost.insert(node.clone(), Lost { since: now, serves_devices: true });
        }
        new
    }

    /// Its entries in the bucket could not be removed: tried again after another grace.
    pub(super) fn not_cleaned(&mut self, node: NodeId, now: Instant) {
        if !self.live.contains_key(&node) {
            self.lost.insert(node, Lost { since: now, serves_devices: true });
        }
    }

    /// These leases are there, and no others. Entries are read after it.
    pub(super) fn replace(&mut self, live: BTreeMap<NodeId, Lease>, now: Instant) {
        let before = std::mem::replace(&mut self.live, live);
        for (node, lease) in before.into_iter().filter(|(node, _)| !self.live.contains_key(node)) {
            self.lost.entry(node).or_insert_with(|| Lost::with(&lease, now));
        }
        let live = &self.live;
        self.lost.retain(|node, _| !live.contains_key(node));
        self.dropped.clear();
    }

    /// Nodes other than `own` whose grace is over: their entries are to be dropped. Each is given once.
    pub(super) fn over(&mut self, own: &NodeId, now: Instant, grace: Duration) -> Vec<NodeId> {
        let over = |node: &NodeId, lost: &mut Lost| node != own && now - lost.since >= grace;
        let nodes: Vec<_> =
            self.lost.extract_if(|node, lost| over(node, lost)).map(|(node, _)| node).collect();
        nodes.iter().cloned().for_each(|node| self.note_dropped(node));
        nodes
    }

    /// The node that cleans up after the others.
    pub(super) fn first(&self) -> Option<&NodeId> {
        self.live.keys().next()
    }

    /// Those that live.
    pub(super) fn live(&self) -> impl ExactSizeIterator<Item = &NodeId> {
        self.live.keys()
    }

    /// How many there are beside this one, those included whose grace is not over. All its lives are `own`.
    pub(super) fn others(&self, own: impl Fn(&NodeId) -> bool) -> usize {
        self.live.keys().chain(self.lost.keys()).filter(|node| !own(node)).count()
    }

    /// The nodes that are not `own` and serve devices, those included whose grace is not over: after an outage of NATS all
    /// leases are gone for a moment.
    pub(super) fn edges(&self, own: impl Fn(&NodeId) -> bool) -> Vec<NodeId> {
        let live = self.live.iter().map(|(node, lease)| (node, lease.role.serves_devices()));
        let all = live.chain(self.lost.iter().map(|(node, lost)| (node, lost.serves_devices)));
        let mut edges: Vec<_> =
            all.filter(|(node, serves)| !own(node) && *serves).map(|(node, _)| node.clone()).collect();
        edges.sort_unstable();
        edges
    }

    fn note_dropped(&mut self, node: NodeId) {
        if self.dropped.len() >= DROPPED_MAX {
            self.dropped.clear();
        }
        self.dropped.insert(node);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::Role;

    const GRACE: Duration = Duration::from_mins(1);

    fn node(name: &str) -> NodeId {
        NodeId::of(name, 1)
    }

    fn own(node: &NodeId) -> bool {
        node.as_str().starts_with("own")
    }

    fn over(nodes: &mut Nodes, now: Instant) -> Vec<NodeId> {
        nodes.over(&node("own"), now, GRACE)
    }

    #[test]
    fn a_lease_that_ran_out_leaves_a_grace_and_a_deleted_one_none() {
        let now = Instant::now();
        let mut nodes = Nodes::default();
        for name in ["own", "a", "b"] {
            assert!(!nodes.lives(node(name), Lease::default()));
        }
        nodes.left(&node("b"));
        assert_eq!(nodes.live().len(), 2);
        nodes.lost(&node("a"), now);
        nodes.lost(&node("own"), now);
        assert_eq!((nodes.live().len(), nodes.others(own)), (0, 1));
        // A second marker does not begin the grace anew.
        nodes.lost(&node("a"), now + GRACE / 2);
        assert!(over(&mut nodes, now + GRACE / 2).is_empty());
        assert_eq!(over(&mut nodes, now + GRACE), [node("a")], "not its own");
        assert_eq!(nodes.others(own), 0);
        assert!(over(&mut nodes, now + GRACE * 2).is_empty(), "once");
        assert!(nodes.lives(node("a"), Lease::default()), "it was dropped and must be read again");
        assert!(nodes.lives(node("b"), Lease::default()), "this one, too");
    }

    #[test]
    fn a_node_that_comes_back_in_time_keeps_its_entries() {
        let now = Instant::now();
        let mut nodes = Nodes::default();
        nodes.lives(node("a"), Lease::default());
        nodes.lost(&node("a"), now);
        assert!(!nodes.lives(node("a"), Lease::default()));
        assert!(over(&mut nodes, now + GRACE).is_empty());
    }

    #[test]
    fn entries_without_a_lease_get_the_grace_from_when_they_are_seen() {
        let now = Instant::now();
        let mut nodes = Nodes::default();
        nodes.lives(node("a"), Lease::default());
        nodes.lives(node("b"), Lease::default());
        nodes.replace(BTreeMap::from([(node("b"), Lease::default())]), now);
        assert!(nodes.has_entries(&node("c"), now + GRACE / 2));
        assert!(!nodes.has_entries(&node("c"), now + GRACE));
        assert!(!nodes.has_entries(&node("b"), now));
        assert_eq!(over(&mut nodes, now + GRACE), [node("a")]);
        assert_eq!(over(&mut nodes, now + GRACE * 3 / 2), [node("c")]);
        nodes.not_cleaned(node("c"), now + GRACE * 2);
        assert_eq!(over(&mut nodes, now + GRACE * 3), [node("c")]);
    }

    #[test]
    fn devices_are_at_nodes_that_serve_them() {
        let mut nodes = Nodes::default();
        for (name, role) in [("own", Role::All), ("a", Role::All), ("w", Role::Worker), ("e", Role::Edge)] {
            nodes.lives(node(name), Lease { role, ..Lease::default() });
        }
        assert_eq!(nodes.edges(own), [node("a"), node("e")]);
        // While all leases are gone they are asked all the same.
        let now = Instant::now();
        for name in ["own", "w", "e"] {
            nodes.lost(&node(name), now);
        }
        nodes.replace(BTreeMap::new(), now);
        assert_eq!(nodes.edges(own), [node("a"), node("e")]);
        nodes.has_entries(&node("own"), now);
        nodes.lives(node("own"), Lease::default());
        over(&mut nodes, now + GRACE);
        assert!(nodes.edges(own).is_empty());
        nodes.lives(node("a"), Lease::default());
        assert_eq!(nodes.first(), Some(&node("a")));
    }
}
