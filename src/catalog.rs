//! The catalog: what each kind of notification means, as data.
//!
//! First stop of every decision: subjects, audiences, lanes, acks, TTL, shaping, offline and inbox policy all come
//! from a row of `config/catalog.toml`. The file is built in; an operator can give another one without recompiling.

pub mod document;
pub mod rules;
mod validate;

use std::collections::HashMap;
use std::sync::Arc;

pub use rules::{
    Also, Effect, Event, Field, Inbox, Kind, LARGE_SET, Lane, Large, Offline, Priority, Role, Root, Rule,
    Shape, ShapeMode, Target,
};
pub use validate::Problem;

/// The catalog that is built into the binary.
pub const BUILT_IN: &str = include_str!("../config/catalog.toml");

/// All events the gateway knows, by type (such as `friend.request`).
#[derive(Debug)]
pub struct Catalog {
    events: Vec<Arc<Event>>,
    by_type: HashMap<String, usize>,
}

/// Which catalog to use.
#[derive(Debug, Clone, Default, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// A file in TOML; absent means the built-in catalog.
    pub file: Option<std::path::PathBuf>,
}

impl Config {
    /// Reads and validates the catalog.
    pub fn load(&self) -> Result<Catalog, CatalogError> {
        let Some(path) = &self.file else {
            return Catalog::built_in();
        };
        let text = std::fs::read_to_string(path)
            .map_err(|source| CatalogError::Read { path: path.clone(), source })?;
        Catalog::from_toml(&text)
    }
}

/// Why a catalog was refused.
#[derive(Debug, thiserror::Error)]
pub enum CatalogError {
    /// The file cannot be read.
    #[error("cannot read catalog {path}: {source}")]
    Read {
        /// The file.
        path: std::path::PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Not TOML, or a field of the wrong name or type; the text shows the line.
    #[error("catalog: {0}")]
    Syntax(Box<toml::de::Error>),
    /// Rows that contradict themselves or each other: all of them, so that one round of edits is enough.
    #[error("catalog has {} mistake(s):\n{}", .0.len(), validate::list(.0))]
    Rows(Vec<Problem>),
}

/// Why a subject belongs to no row of the catalog.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SubjectError {
    /// It does not look like `notification.{service}.{event}.{target}`.
    #[error("subject is not notification.SERVICE.EVENT.TARGET")]
    Shape,
    /// The catalog has no such event.
    #[error("the catalog has no such event")]
    UnknownEvent,
    /// The last token is no id, or not `broadcast` for a broadcast.
    #[error("the last token of the subject is not a valid target")]
    Target,
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    event: Vec<Event>,
}

impl Catalog {
    /// Parses and validates a catalog in TOML.
    pub fn from_toml(text: &str) -> Result<Self, CatalogError> {
        let file: File = toml::from_str(text).map_err(|error| CatalogError::Syntax(Box::new(error)))?;
        let problems = validate::problems(&file.event);
        if !problems.is_empty() {
            return Err(CatalogError::Rows(problems));
        }
        let by_type = file.event.iter().enumerate().map(|(at, event)| (event.name.clone(), at)).collect();
        Ok(Self { events: file.event.into_iter().map(Arc::new).collect(), by_type })
    }

    /// The built-in catalog.
    pub fn built_in() -> Result<Self, CatalogError> {
        Self::from_toml(BUILT_IN)
    }

    /// The row of `event_type`, or `None` when the catalog does not know it.
    pub fn get(&self, event_type: &str) -> Option<&Arc<Event>> {
        self.by_type.get(event_type).map(|at| &self.events[*at])
    }

    /// All rows in file order.
    pub fn events(&self) -> &[Arc<Event>] {
        &self.events
    }

    /// The row that a subject belongs to, and the subject's target: its last token.
    pub fn by_subject<'s>(&self, subject: &'s str) -> Result<(&Arc<Event>, &'s str), SubjectError> {
        let rest = subject.strip_prefix("notification.").ok_or(SubjectError::Shape)?;
        let (name, target) = rest.rsplit_once('.').ok_or(SubjectError::Shape)?;
        if !name.contains('.') {
            return Err(SubjectError::Shape);
        }
        let event = self.get(name).ok_or(SubjectError::UnknownEvent)?;
        let valid = match event.target {
            Target::Broadcast => target == "broadcast",
            _ => crate::id::is_valid(target),
        };
        if valid { Ok((event, target)) } else { Err(SubjectError::Target) }
    }

    /// Filters that together cover every stored event of a lane, sorted.
    pub fn subject_filters(&self, lane: Lane) -> Vec<String> {
        self.stored_filters(|event| event.lane == lane)
    }

    /// Filters that together cover every stored event, sorted.
    pub fn stored_subjects(&self) -> Vec<String> {
        self.stored_filters(|_| true)
    }

    /// Filters that together cover the stored events which are `wanted`, sorted.
    pub fn stored_filters(&self, wanted: impl Fn(&Event) -> bool) -> Vec<String> {
        self.filters(|event| !event.ephemeral && wanted(event))
    }

    /// The services of all events, sorted, each once.
    pub fn services(&self) -> Vec<&str> {
        let mut services: Vec<_> = self.events.iter().map(|event| event.service()).collect();
        services.sort_unstable();
        services.dedup();
        services
    }

    /// Filters that together cover every event that is never stored, sorted.
    pub fn ephemeral_subjects(&self) -> Vec<String> {
        self.filters(|event| event.ephemeral)
    }

    fn filters(&self, wanted: impl Fn(&Event) -> bool) -> Vec<String> {
        let mut filters: Vec<_> =
            self.events.iter().filter(|event| wanted(event)).map(|event| event.subject_filter()).collect();
        filters.sort();
        filters
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The events of the specification and their lanes.
    const LANES: [(Lane, &str); 3] = [
        (
            Lane::High,
            "admin.maintenance admin.user_banned auth.force_logout auth.password_changed auth.unusual_login \
             friend.request group.disbanded group.muted livekit.call_invite livekit.call_rejected \
             livekit.call_status message.mentioned",
        ),
        (
            Lane::Normal,
            "admin.announcement file.expiring file.upload_completed friend.blacklist_changed friend.deleted \
             friend.remark_updated friend.request_handled group.info_updated group.invited group.member_joined \
             group.member_left group.role_changed message.new message.recalled session.deleted \
             session.mute_updated session.pin_updated session.unread_updated sync.completed sync.request \
             system.broadcast user.friend_profile_changed user.profile_updated",
        ),
        (
            Lane::Low,
            "file.processing message.read_receipt message.typing push.delivery_status push.token_invalid \
             user.status_changed",
        ),
    ];

    #[test]
    fn built_in_catalog_has_every_event_in_its_lane() {
        let catalog = Catalog::built_in().unwrap();

        for (lane, expected) in LANES {
            let rows = catalog.events().iter().filter(|event| event.lane == lane);
            let mut names: Vec<_> = rows.map(|event| event.name.as_str()).collect();
            names.sort_unstable();
            assert_eq!(names.join(" "), expected, "{lane:?}");
        }
        assert_eq!(catalog.events().len(), 41);
        assert!(catalog.events().iter().all(|event| !event.summary.is_empty()));
    }

    #[test]
    fn built_in_rows_say_what_the_specification_says() {
        let catalog = Catalog::built_in().unwrap();

        let invite = catalog.get("livekit.call_invite").unwrap();
        assert_eq!((invite.rank, invite.ack, invite.ack_timeout_ms, invite.ttl_s), (100, true, 4_000, 30));
        assert_eq!(invite.offline, Offline::Ring);
        let acked: Vec<_> =
            catalog.events().iter().filter(|event| event.ack).map(|event| &*event.name).collect();
        assert_eq!(
            acked,
            [
                "auth.force_logout",
                "auth.unusual_login",
                "auth.password_changed",
                "friend.request",
                "message.mentioned",
                "livekit.call_invite",
                "admin.user_banned",
            ]
        );
        let own = |name| &catalog.get(name).unwrap().audience[0].except_devices;
        assert_eq!(own("session.deleted"), &[Field::parse("metadata.origin_device_id").unwrap()]);
        assert_eq!(own("sync.request").len(), 2);
        assert!(
            catalog
                .events()
                .iter()
                .filter(|event| event.service() == "push")
                .all(|event| { event.offline == Offline::Never })
        );
    }

    #[test]
    fn a_configured_file_goes_before_the_built_in_catalog() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("catalog.toml");
        std::fs::write(&file, BUILT_IN.split("# ---- user").next().unwrap()).unwrap();

        assert_eq!(Config::default().load().unwrap().events().len(), 41);
        assert_eq!(Config { file: Some(file) }.load().unwrap().events().len(), 3);
        let missing = Config { file: Some(dir.path().join("none.toml")) }.load().unwrap_err();
        assert!(matches!(missing, CatalogError::Read { .. }));
    }

    #[test]
    fn subjects_lead_to_their_rows() {
        let catalog = Catalog::built_in().unwrap();
        let find = |subject| catalog.by_subject(subject).map(|(event, target)| (event.name.clone(), target));

        assert_eq!(
            find("notification.friend.request.user-123"),
            Ok(("friend.request".to_owned(), "user-123"))
        );
        assert_eq!(find("notification.admin.maintenance.broadcast").unwrap().1, "broadcast");
        assert_eq!(find("notification.system.broadcast.hello").unwrap().1, "hello");
        assert_eq!(find("notification.admin.maintenance.user-1"), Err(SubjectError::Target));
        assert_eq!(find("notification.friend.request.a b"), Err(SubjectError::Target));
        assert_eq!(find("notification.friend.wave.user-1"), Err(SubjectError::UnknownEvent));
        assert_eq!(find("notification.friend.request.a.b"), Err(SubjectError::UnknownEvent));
        assert_eq!(find("notification.friend.request"), Err(SubjectError::Shape));
        assert_eq!(find("friend.request.user-1"), Err(SubjectError::Shape));
    }

    #[test]
    fn every_stored_event_has_one_filter_and_typing_has_none() {
        let catalog = Catalog::built_in().unwrap();

        let lanes: Vec<_> = Lane::ALL.into_iter().flat_map(|lane| catalog.subject_filters(lane)).collect();

        assert_eq!(lanes.len(), 40);
        assert_eq!(catalog.stored_subjects().len(), 40);
        assert_eq!(catalog.ephemeral_subjects(), ["notification.message.typing.*"]);
    }
}
