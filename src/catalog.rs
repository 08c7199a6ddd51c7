//! The catalog: what each kind of notification means, as data.
//!
//! First stop of every decision: subjects, audiences, lanes, acks, TTL, shaping, offline and inbox policy all come
//! from a row of `config/catalog.toml`. The file is built in; an operator can give another one without recompiling.

pub mod rules;

use std::collections::HashMap;

pub use rules::{
    Also, Effect, Event, Field, Inbox, Kind, LARGE_SET, Lane, Large, Offline, Priority, Role, Root, Rule,
    Shape, ShapeMode, Target,
};

/// The catalog that is built into the binary.
pub const BUILT_IN: &str = include_str!("../config/catalog.toml");

/// All events the gateway knows, by type (such as `friend.request`).
#[derive(Debug)]
pub struct Catalog {
    events: Vec<std::sync::Arc<Event>>,
    by_type: HashMap<String, usize>,
}

/// Why a catalog was refused: each message names the row and the field.
#[derive(Debug, thiserror::Error)]
#[error("catalog: {0}")]
pub struct CatalogError(pub String);

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    event: Vec<Event>,
}

impl Catalog {
    /// Parses and validates a catalog in TOML.
    pub fn from_toml(text: &str) -> Result<Self, CatalogError> {
        let file: File = toml::from_str(text).map_err(|error| CatalogError(error.to_string()))?;
        let by_type = file
            .event
            .iter()
            .enumerate()
            .map(|(at, event)| (event.name.clone(), at))
            .collect();
        Ok(Self {
            events: file.event.into_iter().map(Into::into).collect(),
            by_type,
        })
    }

    /// The row of `event_type`, or `None` when the catalog does not know it.
    pub fn get(&self, event_type: &str) -> Option<&std::sync::Arc<Event>> {
        self.by_type.get(event_type).map(|at| &self.events[*at])
    }

    /// All rows in file order.
    pub fn events(&self) -> &[std::sync::Arc<Event>] {
        &self.events
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn built_in_catalog_loads() {
        let catalog = Catalog::from_toml(BUILT_IN).expect("the built-in catalog is valid");
        assert_eq!(catalog.events().len(), 41);
    }
}
