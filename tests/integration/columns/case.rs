//! A row of the catalog as notifications: one for each of its audience rules, with what the row's columns say must come
//! of it.
//!
//! The payload is the row's sample with the fields changed that the rule looks at. Expectations are read from the row
//! here, by a model of its own, and not asked of the code under test.

use std::collections::BTreeSet;
use std::sync::Arc;

use fanfare::catalog::{
    Catalog, Effect, Event, Field, Inbox, Kind, Lane, Offline, Priority, Role, Root, Rule, Target,
};
use fanfare::demo::samples::{self, Sample};
use serde_json::{Map, Value, json};

use crate::worker::gateway::unix_s;

/// A person's devices; the last two are those that rules leave out.
pub(super) const DEVICES: [&str; 3] = ["main", "left0", "left1"];

/// The people of a case: the target and all down to the sender are in its set, the last two are not.
pub(super) const PEOPLE: [(&str, Option<Role>); 7] = [
    ("target", Some(Role::Member)),
    ("owner", Some(Role::Owner)),
    ("admin", Some(Role::Admin)),
    ("member", Some(Role::Member)),
    ("sender", Some(Role::Member)),
    ("extra", None),
    ("stranger", None),
];

/// A user who must get it.
#[derive(Debug, Clone)]
pub(super) struct Recipient {
    pub(super) user: String,
    pub(super) left_out: Vec<&'static str>,
    /// The user's own offline policy, where the rule has one.
    pub(super) offline: Option<Offline>,
}

/// One notification of a row.
#[derive(Debug, Clone)]
pub(super) struct Case {
    /// The notification's id, and that of its set; unique.
    pub(super) id: String,
    pub(super) event: Arc<Event>,
    pub(super) to: Kind,
    pub(super) subject: String,
    pub(super) payload: Value,
    pub(super) metadata: Value,
    pub(super) priority: Option<Lane>,
    /// Names of its people start so.
    pub(super) crowd: String,
    /// Empty for a broadcast, which goes to whoever is there.
    pub(super) recipients: Vec<Recipient>,
}

/// One case for each audience rule of each row. `variant` keeps them apart from those of other calls.
pub(super) fn all(catalog: &Catalog, variant: &str) -> Vec<Case> {
    let samples = samples::all();
    let of_row = |event: &Arc<Event>| {
        let sample = samples.iter().find(|sample| sample.event_type == event.name);
        let sample = sample
            .unwrap_or_else(|| panic!("row {} has no sample in src/demo/samples.json: add one", event.name));
        (0..event.audience.len()).map(|rule| Case::new(event, sample, rule, variant)).collect::<Vec<_>>()
    };
    catalog.events().iter().flat_map(of_row).collect()
}

/// What effects change about who is told, or what must be so that they do not get in the way: all there is that does
/// not follow from the other columns.
fn special(event: &Event, id: &str, extra: &str, payload: &mut Map<String, Value>) -> Option<Role> {
    let mut joins = None;
    for effect in &event.effects {
        match effect {
            // They make or change a member before the look-up, or need to know whom they are about.
            Effect::MemberJoin => joins = Some(Role::Member),
            Effect::MemberRole => {
                payload.insert("new_role".to_owned(), "admin".into());
                joins = Some(Role::Admin);
            }
            // One that is over bans nobody.
            Effect::Ban => drop(payload.insert("is_permanent".to_owned(), true.into())),
            Effect::Relogin => drop(payload.insert("requires_relogin".to_owned(), true.into())),
            // A repeated state is shown once, and so is a repeated request or call: each case is another one.
            Effect::Idempotent | Effect::LoopGuard | Effect::RegisterCall => {
                payload.insert("case".to_owned(), id.into());
            }
            // These happen after the delivery, or to others.
            Effect::Revoke
            | Effect::MemberLeave
            | Effect::Disband
            | Effect::Befriend
            | Effect::Unfriend
            | Effect::RegisterConversation
            | Effect::UpdateCall
            | Effect::AnswerCall
            | Effect::Recall
            | Effect::Notice => {}
        }
    }
    let of_member =
        |effect: &Effect| matches!(effect, Effect::MemberJoin | Effect::MemberLeave | Effect::MemberRole);
    if event.effects.iter().any(of_member) {
        payload.insert("user_id".to_owned(), extra.into());
    }
    joins
}

/// True when the row ends sessions of those who get it, so that they can be used once.
pub(super) fn ends_sessions(event: &Event) -> bool {
    event.effects.iter().any(|effect| matches!(effect, Effect::Revoke | Effect::Relogin | Effect::Ban))
}

impl Case {
    fn new(event: &Arc<Event>, sample: &Sample, at: usize, variant: &str) -> Self {
        let id = format!("{}-{at}-{variant}", event.name.replace('.', "-"));
        let crowd = if ends_sessions(event) { id.clone() } else { "all".to_owned() };
        let person = |name: &str| format!("{crowd}-{name}");
        let rule = &event.audience[at];
        let target = match (rule.to, event.target) {
            (Kind::User, _) => person("target"),
            (_, Target::Broadcast) => "broadcast".to_owned(),
            _ => id.clone(),
        };
        let now_s = unix_s();
        let mut payload = sample.payload_at(now_s.cast_signed(), &[]);
        let fields = payload.as_object_mut().expect("a sample's payload is an object");
        for (name, value) in &mut *fields {
            if name.ends_with("_id") && !name.ends_with("user_id") && !name.ends_with("device_id") {
                *value = id.as_str().into();
            }
        }
        if event.priority == Priority::Payload {
            fields.remove("priority");
        }
        if event.shape.as_ref().is_some_and(|shape| shape.field_set) {
            fields.insert("updated_fields".to_owned(), json!([id]));
        }
        let joins = special(event, &id, &person("extra"), fields);
        let mut case = Self {
            subject: format!("notification.{}.{target}", event.name),
            event: event.clone(),
            to: rule.to,
            payload,
            metadata: json!({}),
            priority: None,
            recipients: Vec::new(),
            crowd: crowd.clone(),
            id: id.clone(),
        };
        for key in event.shape.iter().flat_map(|shape| &shape.key) {
            case.set(key, id.as_str());
        }
        for field in [&event.expires_at, &event.inbox_expires_at].into_iter().flatten() {
            case.set(field, now_s + 3_600);
        }
        for earlier in &event.audience[..at] {
            case.avoid(earlier, rule);
        }
        case.meet(rule, &target, &person);
        case.recipients = recipients(rule, joins, &person);
        case
    }

    /// Sets a field of the envelope.
    pub(super) fn set(&mut self, field: &Field, value: impl Into<Value>) {
        let root = match field.root() {
            Root::Payload => &mut self.payload,
            Root::Metadata => &mut self.metadata,
            // The subject has it.
            Root::Target => return,
            Root::FromUserId => panic!("no rule of the built-in catalog looks at from_user_id"),
        };
        let place = field.keys().fold(root, |value, key| &mut value[key]);
        *place = value.into();
    }

    /// Makes `earlier` not apply, by a field that `rule` does not need.
    fn avoid(&mut self, earlier: &Rule, rule: &Rule) {
        let free = earlier.when.keys().find(|field| !rule.when.contains_key(*field));
        let target = earlier.when_target.as_ref().filter(|field| rule.when_target.as_ref() != Some(*field));
        let field = free.or(target).unwrap_or_else(|| panic!("{}: a rule that never applies", self.id));
        self.set(&field.clone(), format!("{}-else", self.id));
    }

    /// Makes `rule` apply, and fills in whom it names.
    fn meet(&mut self, rule: &Rule, target: &str, person: &impl Fn(&str) -> String) {
        assert!(rule.id.is_none(), "{}: no rule had an id of its own; say here how to fill it", self.id);
        let large = rule.large.iter().flat_map(|large| &large.also);
        for field in rule.also.iter().map(|also| &also.user).chain(large) {
            self.set(field, person("extra"));
        }
        if let Some(field) = &rule.except_user {
            self.set(field, person("sender"));
        }
        for (field, device) in left_out(rule) {
            self.set(field, device);
        }
        for (field, value) in rule.when.iter().chain(rule.also.iter().flat_map(|also| &also.when)) {
            self.set(field, value.as_str());
        }
        if let Some(field) = &rule.when_target {
            self.set(field, target);
        }
    }

    /// The members of its set, if it is for one that is stored.
    pub(super) fn members(&self) -> impl Iterator<Item = (String, Role)> {
        let stored = self.to.is_stored();
        let in_set =
            PEOPLE.into_iter().filter_map(move |(name, role)| Some((name, role.filter(|_| stored)?)));
        in_set.map(|(name, role)| (format!("{}-{name}", self.crowd), role))
    }

    /// The devices that must get it, of those that are connected.
    pub(super) fn devices(&self, connected: &BTreeSet<(String, String)>) -> Vec<(String, String)> {
        let meant = |user: &str, device: &str| {
            self.to == Kind::Broadcast
                || self.recipients.iter().any(|who| who.user == user && !who.left_out.contains(&device))
        };
        connected.iter().filter(|(user, device)| meant(user, device)).cloned().collect()
    }

    pub(super) fn envelope(&self) -> Value {
        json!({
            "notification_id": self.id,
            "type": self.event.name,
            "priority": self.priority.map(Lane::as_str),
            "payload": self.payload,
            "metadata": self.metadata,
        })
    }

    /// The lane by which it must come.
    pub(super) fn lane(&self) -> Lane {
        let wish = match self.event.priority {
            Priority::Fixed => None,
            Priority::Envelope => self.priority,
            Priority::Payload => Lane::ALL.into_iter().find(|lane| self.payload["priority"] == lane.as_str()),
        };
        wish.unwrap_or(self.event.lane)
    }

    /// Whether its frames ask for an ack.
    pub(super) fn require_ack(&self) -> bool {
        self.event.ack && self.to == Kind::User
    }

    /// Whether a user who got it live has a record of it in the inbox.
    pub(super) fn is_always_inboxed(&self) -> bool {
        self.event.inbox == Inbox::Always
    }
}

/// Each field that leaves a device out, with the device it names.
fn left_out(rule: &Rule) -> Vec<(&Field, &'static str)> {
    let mut fields: Vec<(&Field, &'static str)> = Vec::new();
    for field in rule.except_devices.iter().chain(rule.also.iter().flat_map(|also| &also.except_devices)) {
        if fields.iter().all(|(known, _)| *known != field) {
            fields
                .push((field, DEVICES.get(1 + fields.len()).expect("a row with more fields: add a device")));
        }
    }
    fields
}

fn recipients(rule: &Rule, joins: Option<Role>, person: &impl Fn(&str) -> String) -> Vec<Recipient> {
    let named = left_out(rule);
    let devices = |fields: &[Field]| {
        named.iter().filter(|(field, _)| fields.contains(field)).map(|(_, device)| *device).collect()
    };
    let one = |name: &str, fields: &[Field], offline| Recipient {
        user: person(name),
        left_out: devices(fields),
        offline,
    };
    let mut all = Vec::new();
    match rule.to {
        Kind::Broadcast => return all,
        Kind::User => all.push(one("target", &rule.except_devices, None)),
        Kind::Group | Kind::Conversation | Kind::Call | Kind::Followers => {
            let joined = PEOPLE.map(|(name, role)| (name, if name == "extra" { joins } else { role }));
            let meant = |role: Role| rule.roles.is_empty() || rule.roles.contains(&role);
            let set = joined.into_iter().filter(|(name, role)| {
                role.is_some_and(meant) && !(rule.except_user.is_some() && *name == "sender")
            });
            all.extend(set.map(|(name, _)| one(name, &rule.except_devices, None)));
        }
    }
    for also in &rule.also {
        if all.iter().all(|known: &Recipient| known.user != person("extra")) {
            all.push(one("extra", &also.except_devices, also.offline));
        }
    }
    all
}
