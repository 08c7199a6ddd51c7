//! The grants of each role, built from what its code does.

use std::collections::BTreeSet;

use super::{Grant, Permissions};
use crate::catalog::{Catalog, Lane};
use crate::nats::schedule;
use crate::nats::{
    ADVISORIES, AUDIENCE, CONTROL, DEAD_LETTERS, INBOX, NODES, OFFLINE_PUSH, OUTCOMES, PRESENCE, Role,
    TRANSIENT,
};
use crate::provision::Desired;
use crate::{cluster, directory};

/// The service whose events tell what became of a push.
const PUSH: &str = "push";

/// Nodes, which answer each other's questions.
const NODE_ROLES: [Role; 3] = [Role::Worker, Role::Edge, Role::All];

/// Collects grants, each subject once.
pub(super) struct Grants<'a> {
    catalog: &'a Catalog,
    desired: &'a Desired,
    inbox: &'a dyn Fn(&Role) -> String,
    publish: Vec<Grant>,
    subscribe: Vec<Grant>,
}

fn add(grants: &mut Vec<Grant>, subject: String, why: &'static str) {
    if grants.iter().all(|grant| grant.subject != subject) {
        grants.push(Grant { subject, why });
    }
}

fn stream(bucket: &str) -> String {
    format!("KV_{bucket}")
}

impl<'a> Grants<'a> {
    pub(super) fn new(
        catalog: &'a Catalog,
        desired: &'a Desired,
        inbox: &'a dyn Fn(&Role) -> String,
    ) -> Self {
        Self { catalog, desired, inbox, publish: Vec::new(), subscribe: Vec::new() }
    }

    pub(super) fn finish(mut self, role: Role) -> Permissions {
        let (inbox_prefix, inbox) = ((self.inbox)(&role), self.inbox_of(&role));
        add(&mut self.subscribe, inbox, "answers to its requests");
        Permissions { role, inbox_prefix, publish: self.publish, subscribe: self.subscribe }
    }

    pub(super) fn publisher(&mut self, service: &str) {
        let events: Vec<_> =
            self.catalog.events().iter().filter(|event| event.service() == service).cloned().collect();
        for event in events {
            let why = if event.ephemeral { "an event, with core NATS" } else { "an event" };
            self.publish(why, [event.subject_filter()]);
        }
    }

    pub(super) fn worker(&mut self) {
        self.node();
        for wanted in &self.desired.consumers {
            let consumer = wanted.consumer.as_deref().unwrap_or_default();
            if wanted.stream == ADVISORIES {
                self.pull("learns what JetStream gave up", ADVISORIES, consumer);
            } else if Lane::ALL.iter().any(|lane| lane.as_str() == consumer) {
                self.pull("pulls notifications", &wanted.stream, consumer);
                let verbs = ["STREAM.MSG.GET", "STREAM.MSG.DELETE"];
                self.api("takes out what JetStream gave up", verbs, &wanted.stream);
            }
        }
        let inbox = self.inbox_of(&Role::Worker);
        self.publish("speaks to itself, to know whether its connection is cut", [inbox]);
        for subject in self.catalog.ephemeral_subjects() {
            add(&mut self.subscribe, subject, "ephemeral notifications");
        }
        self.publish("what could not be handled", self.declared(DEAD_LETTERS));
        self.publish("what is due later", [schedule::SUBJECTS.to_owned()]);
        add(&mut self.subscribe, format!("$KV.{AUDIENCE}.>"), "changes of members");
        self.read_audience();
        self.publish("asks a service for members", [directory::QUESTIONS.to_owned()]);
        for (bucket, why) in [
            (AUDIENCE, "members, as events change them"),
            (CONTROL, "bans, ended logins and notices"),
            (TRANSIENT, "states of calls and synchronisations"),
        ] {
            self.update(why, bucket);
        }
        self.api("reads states of calls from the leader", ["STREAM.MSG.GET"], &stream(TRANSIENT));
    }

    pub(super) fn edge(&mut self) {
        self.node();
        add(&mut self.subscribe, cluster::relay::SUBJECTS.to_owned(), "what other nodes ask of its sessions");
        for role in &NODE_ROLES {
            self.publish("answers other nodes", [self.inbox_of(role)]);
        }
        self.follow("bans, ended logins and notices", &stream(CONTROL));
        self.publish("its sessions", [format!("$KV.{PRESENCE}.>")]);
        self.follow("the end of the inbox", INBOX);
        self.api("reads what devices missed", ["DIRECT.GET", "STREAM.MSG.GET"], INBOX);
    }

    pub(super) fn all(&mut self) {
        self.worker();
        self.edge();
    }

    pub(super) fn push_service(&mut self) {
        self.api("finds the stream", ["STREAM.INFO"], OFFLINE_PUSH);
        let of_consumers = ["CONSUMER.CREATE", "CONSUMER.INFO", "CONSUMER.MSG.NEXT"];
        let api = of_consumers.map(|verb| format!("$JS.API.{verb}.{OFFLINE_PUSH}.>"));
        self.publish("its consumers, by whatever name", api);
        self.publish("acknowledges", acks(OFFLINE_PUSH, "*"));
        self.publisher(PUSH);
    }

    pub(super) fn members(&mut self) {
        self.update("members", AUDIENCE);
        self.read_audience();
        add(&mut self.subscribe, directory::QUESTIONS.to_owned(), "questions for members");
        for role in [Role::Worker, Role::All] {
            self.publish("answers them", [self.inbox_of(&role)]);
        }
    }

    pub(super) fn provisioner(&mut self) {
        // Also of streams that carry our label and are not declared any more.
        for listing in ["STREAM.LIST", "CONSUMER.LIST.*"] {
            add(&mut self.publish, format!("$JS.API.{listing}"), "what there is");
        }
        for wanted in &self.desired.streams {
            let verbs = ["STREAM.INFO", "STREAM.CREATE", "STREAM.UPDATE"];
            self.api("makes the stream what is declared", verbs, &wanted.stream);
        }
        let streams: BTreeSet<&str> =
            self.desired.consumers.iter().map(|wanted| wanted.stream.as_str()).collect();
        for stream in streams {
            // Any of their names: one that is replaced has a bookmark beside it, and one that is pruned is not declared.
            let verbs =
                ["CONSUMER.CREATE", "CONSUMER.INFO", "CONSUMER.RESET", "CONSUMER.PAUSE", "CONSUMER.DELETE"];
            self.api("makes the consumers what is declared", verbs, &format!("{stream}.*"));
        }
    }

    pub(super) fn monitor(&mut self) {
        self.follow("fanfare nodes", &stream(NODES));
        self.api("fanfare sessions", ["DIRECT.GET"], &stream(PRESENCE));
        self.api("fanfare trace", ["DIRECT.GET"], OUTCOMES);
        self.api("fanfare trace --user: can read what devices missed", ["DIRECT.GET"], INBOX);
    }

    pub(super) fn operator(&mut self) {
        self.follow("fanfare dlq", DEAD_LETTERS);
        let verbs = ["STREAM.MSG.GET", "STREAM.MSG.DELETE", "STREAM.PURGE"];
        self.api("fanfare dlq show, replay, purge", verbs, DEAD_LETTERS);
        self.publish("fanfare dlq replay", self.catalog.stored_subjects());
        self.update("fanfare ban", CONTROL);
        self.list("fanfare ban list", CONTROL);
        self.update("fanfare audience", AUDIENCE);
        self.read_audience();
        self.monitor();
        for role in [Role::Members, Role::Monitor] {
            let inbox = self.inbox_of(&role);
            add(&mut self.subscribe, inbox, "answers to fanfare audience, nodes, sessions and trace");
        }
    }

    fn inbox_of(&self, role: &Role) -> String {
        format!("{}.>", (self.inbox)(role))
    }

    /// What every node does, whatever else it does.
    fn node(&mut self) {
        for (bucket, why) in [(NODES, "the leases of nodes"), (PRESENCE, "which nodes serve whom")] {
            self.follow(why, &stream(bucket));
        }
        self.publish("its lease", [format!("$KV.{NODES}.>")]);
        self.api("reads a user's sessions", ["DIRECT.GET"], &stream(PRESENCE));
        self.api("removes what a node left behind", ["STREAM.PURGE"], &stream(PRESENCE));
        self.api("makes sure that it is gone", ["STREAM.MSG.GET"], &stream(NODES));
        self.publish("asks other nodes", [cluster::relay::SUBJECTS.to_owned()]);
        for bucket in [AUDIENCE, CONTROL, TRANSIENT] {
            self.api("opens the bucket", ["STREAM.INFO"], &stream(bucket));
        }
        self.publish("what devices missed", self.declared(INBOX));
        self.publish("hand-offs to the push service", self.declared(OFFLINE_PUSH));
        self.publish("what became of notifications", self.declared(OUTCOMES));
    }

    fn publish(&mut self, why: &'static str, subjects: impl IntoIterator<Item = String>) {
        for subject in subjects {
            add(&mut self.publish, subject, why);
        }
    }

    /// Requests of JetStream's API about one stream, or one consumer.
    fn api<const N: usize>(&mut self, why: &'static str, verbs: [&str; N], place: &str) {
        self.publish(why, verbs.map(|verb| format!("$JS.API.{verb}.{place}")));
    }

    /// The subjects of a declared stream.
    fn declared(&self, stream: &str) -> Vec<String> {
        let wanted = self.desired.streams.iter().find(|wanted| wanted.stream == stream);
        let subjects = wanted.and_then(|wanted| wanted.config.get("subjects")?.as_array());
        let subjects = subjects.into_iter().flatten().filter_map(|subject| subject.as_str());
        subjects.map(str::to_owned).collect()
    }

    /// A durable consumer that is there.
    fn pull(&mut self, why: &'static str, stream: &str, consumer: &str) {
        let verbs = ["CONSUMER.INFO", "CONSUMER.MSG.NEXT"];
        self.api(why, verbs, &format!("{stream}.{consumer}"));
        self.publish("acknowledges them", acks(stream, consumer));
    }

    /// A consumer of its own, under a name that it makes up.
    fn follow(&mut self, why: &'static str, stream: &str) {
        self.api(why, ["STREAM.INFO", "CONSUMER.CREATE"], stream);
        // After a reconnect it asks whether the consumer is still there, and makes another one.
        let verbs = ["CONSUMER.MSG.NEXT", "CONSUMER.INFO", "CONSUMER.DELETE"];
        self.publish(why, verbs.map(|verb| format!("$JS.API.{verb}.{stream}.>")));
    }

    /// Lists the keys of a bucket, which the server sends by itself.
    fn list(&mut self, why: &'static str, bucket: &str) {
        let stream = stream(bucket);
        self.api(why, ["CONSUMER.CREATE"], &stream);
        let verbs = ["CONSUMER.INFO", "CONSUMER.DELETE"];
        self.publish(why, verbs.map(|verb| format!("$JS.API.{verb}.{stream}.>")));
    }

    /// Reads and writes single keys of a bucket.
    fn update(&mut self, why: &'static str, bucket: &str) {
        let stream = stream(bucket);
        self.api(why, ["STREAM.INFO"], &stream);
        self.publish(why, [format!("$JS.API.DIRECT.GET.{stream}.>"), format!("$KV.{bucket}.>")]);
    }

    /// Loads whole audiences.
    fn read_audience(&mut self) {
        let stream = stream(AUDIENCE);
        self.api("loads members", ["DIRECT.GET"], &stream);
        self.follow("loads many members", &stream);
    }
}

/// What a consumer's messages are acknowledged on.
fn acks(stream: &str, consumer: &str) -> [String; 1] {
    [format!("$JS.ACK.{stream}.{consumer}.>")]
}
