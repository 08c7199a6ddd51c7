//! Declarations: TOML files that wrap the server's own configuration objects, and what they mean for one environment.
//!
//! A file has any number of `[[stream]]` and `[[consumer]]` entries. Their `config` is what the server takes, field
//! for field; `dev` and `production` change fields of it. Three conveniences: times may be written `"24h"`, sizes
//! `"1GiB"`, and `"@catalog"` or `"@catalog:high"` stands for the catalog's stored subjects (of one lane).

use std::path::Path;

use serde::Deserialize;
use serde_json::{Map, Value};

use super::Error;
use crate::catalog::{Catalog, Lane};

/// The files that are built into the binary.
const BUILT_IN: [(&str, &str); 12] = [
    ("streams/notifications.toml", include_str!("../../streams/notifications.toml")),
    ("streams/schedules.toml", include_str!("../../streams/schedules.toml")),
    ("streams/offline_push.toml", include_str!("../../streams/offline_push.toml")),
    ("streams/inbox.toml", include_str!("../../streams/inbox.toml")),
    ("streams/dlq.toml", include_str!("../../streams/dlq.toml")),
    ("streams/outcomes.toml", include_str!("../../streams/outcomes.toml")),
    ("streams/advisories.toml", include_str!("../../streams/advisories.toml")),
    ("streams/buckets.toml", include_str!("../../streams/buckets.toml")),
    ("consumers/notifications_high.toml", include_str!("../../consumers/notifications_high.toml")),
    ("consumers/notifications_normal.toml", include_str!("../../consumers/notifications_normal.toml")),
    ("consumers/notifications_low.toml", include_str!("../../consumers/notifications_low.toml")),
    ("consumers/advisories_sweeper.toml", include_str!("../../consumers/advisories_sweeper.toml")),
];

/// Fields whose value is a time, in nanoseconds on the wire.
pub(super) const TIMES: [&str; 9] = [
    "max_age",
    "duplicate_window",
    "subject_delete_marker_ttl",
    "ack_wait",
    "backoff",
    "inactive_threshold",
    "max_expires",
    "idle_heartbeat",
    "priority_timeout",
];

/// Fields whose value is a size, in bytes on the wire.
pub(super) const SIZES: [&str; 2] = ["max_bytes", "max_msg_size"];

/// Which of the declared environments is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Env {
    /// One server, small limits.
    #[default]
    Dev,
    /// Three replicas, limits for load.
    Production,
}

/// Declarations as read, before an environment is chosen.
#[derive(Debug)]
pub struct Declarations {
    files: Vec<(String, File)>,
}

/// One stream or consumer that should exist.
#[derive(Debug, Clone, PartialEq)]
pub struct Wanted {
    /// The file that declares it.
    pub file: String,
    /// The stream's name, also for a consumer.
    pub stream: String,
    /// The consumer's name; `None` for a stream.
    pub consumer: Option<String>,
    /// The declared fields in the server's own shape and units.
    pub config: Map<String, Value>,
}

impl Wanted {
    /// `stream NAME` or `consumer STREAM > NAME`, for messages.
    pub fn place(&self) -> String {
        match &self.consumer {
            None => format!("stream {}", self.stream),
            Some(consumer) => format!("consumer {} > {consumer}", self.stream),
        }
    }

    /// The texts of a list field, such as `subjects`; empty when absent.
    pub fn texts(&self, field: &str) -> Vec<&str> {
        let values = self.config.get(field).and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
        values.iter().filter_map(Value::as_str).collect()
    }

    /// The subjects a consumer takes: `filter_subjects`, or the single `filter_subject`.
    pub fn filters(&self) -> Vec<&str> {
        let single =
            self.config.get("filter_subject").and_then(Value::as_str).filter(|text| !text.is_empty());
        single.into_iter().chain(self.texts("filter_subjects")).collect()
    }
}

/// Everything that should exist in one environment, in an order in which it can be made.
#[derive(Debug, Clone)]
pub struct Desired {
    /// Streams; those that are sources of others come first.
    pub streams: Vec<Wanted>,
    /// Consumers.
    pub consumers: Vec<Wanted>,
}

impl Desired {
    /// The same with so many replicas of every stream and bucket, whatever the environment says. Consumers have those of
    /// their stream.
    #[must_use]
    pub fn with_replicas(mut self, replicas: u8) -> Self {
        for stream in &mut self.streams {
            stream.config.insert("num_replicas".to_owned(), replicas.into());
        }
        self
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    stream: Vec<StreamEntry>,
    #[serde(default)]
    consumer: Vec<ConsumerEntry>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct StreamEntry {
    config: Map<String, Value>,
    #[serde(default)]
    dev: Map<String, Value>,
    #[serde(default)]
    production: Map<String, Value>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ConsumerEntry {
    stream: String,
    config: Map<String, Value>,
    #[serde(default)]
    dev: Map<String, Value>,
    #[serde(default)]
    production: Map<String, Value>,
}

impl Declarations {
    /// The declarations that are built into the binary.
    pub fn built_in() -> Result<Self, Error> {
        Self::parse(BUILT_IN)
    }

    /// Reads `streams/*.toml` and `consumers/*.toml` below `dir`.
    pub fn read(dir: &Path) -> Result<Self, Error> {
        let mut texts = Vec::new();
        for part in ["streams", "consumers"] {
            let folder = dir.join(part);
            let failed = |source| Error::Read { path: folder.clone(), source };
            let mut paths = std::fs::read_dir(&folder)
                .and_then(|entries| entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>, _>>())
                .map_err(failed)?;
            paths.retain(|path| path.extension().is_some_and(|extension| extension == "toml"));
            paths.sort();
            for path in paths {
                let text = std::fs::read_to_string(&path)
                    .map_err(|source| Error::Read { path: path.clone(), source })?;
                texts.push((path.display().to_string(), text));
            }
        }
        Self::parse(texts)
    }

    /// Parses files, given as name and text.
    pub fn parse<N: Into<String>, T: AsRef<str>>(
        texts: impl IntoIterator<Item = (N, T)>,
    ) -> Result<Self, Error> {
        let mut files = Vec::new();
        for (name, text) in texts {
            let name = name.into();
            let file = toml::from_str(text.as_ref())
                .map_err(|error| Error::Declaration { file: name.clone(), problem: error.to_string() })?;
            files.push((name, file));
        }
        Ok(Self { files })
    }

    /// What should exist in `env` for the events of `catalog`.
    pub fn desired(&self, catalog: &Catalog, env: Env) -> Result<Desired, Error> {
        let mut streams = Vec::new();
        let mut consumers = Vec::new();
        for (file, entries) in &self.files {
            for entry in &entries.stream {
                let config =
                    config(&entry.config, choose(env, &entry.dev, &entry.production), catalog, file)?;
                let stream = name(&config, "name", file)?;
                streams.push(Wanted { file: file.clone(), stream, consumer: None, config });
            }
            for entry in &entries.consumer {
                let config =
                    config(&entry.config, choose(env, &entry.dev, &entry.production), catalog, file)?;
                let consumer = Some(name(&config, "durable_name", file)?);
                consumers.push(Wanted { file: file.clone(), stream: entry.stream.clone(), consumer, config });
            }
        }
        Ok(Desired { streams: sources_first(streams), consumers })
    }
}

fn choose<'a>(
    env: Env,
    dev: &'a Map<String, Value>,
    production: &'a Map<String, Value>,
) -> &'a Map<String, Value> {
    match env {
        Env::Dev => dev,
        Env::Production => production,
    }
}

fn name(config: &Map<String, Value>, field: &str, file: &str) -> Result<String, Error> {
    config.get(field).and_then(Value::as_str).map(str::to_owned).ok_or_else(|| Error::Declaration {
        file: file.to_owned(),
        problem: format!("an entry has no config.{field}: give it one"),
    })
}

/// Lays `changes` over `base` and turns our notations into the server's.
fn config(
    base: &Map<String, Value>,
    changes: &Map<String, Value>,
    catalog: &Catalog,
    file: &str,
) -> Result<Map<String, Value>, Error> {
    let mut merged = base.clone();
    merged.extend(changes.clone());
    for (key, value) in &mut merged {
        translate(key, value, catalog).map_err(|problem| Error::Declaration {
            file: file.to_owned(),
            problem: format!("{key}: {problem}"),
        })?;
    }
    Ok(merged)
}

fn translate(key: &str, value: &mut Value, catalog: &Catalog) -> Result<(), String> {
    match value {
        Value::String(text) if TIMES.contains(&key) => *value = nanoseconds(text)?.into(),
        Value::Array(items) if TIMES.contains(&key) => {
            for item in items {
                translate(key, item, catalog)?;
            }
        }
        Value::String(text) if SIZES.contains(&key) => *value = bytes(text)?.into(),
        _ if matches!(key, "subjects" | "filter_subjects") => {
            let items = match value.take() {
                Value::Array(items) => items,
                single => vec![single],
            };
            let mut subjects = Vec::new();
            for item in items {
                subjects.extend(expand(&item, catalog)?.into_iter().map(Value::String));
            }
            *value = Value::Array(subjects);
        }
        Value::Object(inner) => {
            for (key, value) in inner {
                translate(key, value, catalog)?;
            }
        }
        _ => {}
    }
    Ok(())
}

fn expand(item: &Value, catalog: &Catalog) -> Result<Vec<String>, String> {
    match item.as_str() {
        None => Err(format!("{item} is not a subject: write a text")),
        Some("@catalog") => Ok(catalog.stored_subjects()),
        Some(text) => match text.strip_prefix("@catalog:") {
            None if text.starts_with('@') => Err(format!("`{text}`: write @catalog or @catalog:LANE")),
            None => Ok(vec![text.to_owned()]),
            Some(lane) => Lane::ALL
                .into_iter()
                .find(|known| known.as_str() == lane)
                .map(|lane| catalog.subject_filters(lane))
                .ok_or_else(|| format!("`{lane}` is not a lane: write high, normal or low")),
        },
    }
}

/// `"1h30m"` is not needed here, so one number and one unit: ms, s, m, h, d.
fn nanoseconds(text: &str) -> Result<u64, String> {
    let units = [
        ("ms", 1_000_000),
        ("s", 1_000_000_000),
        ("m", 60_000_000_000),
        ("h", 3_600_000_000_000),
        ("d", 86_400_000_000_000),
    ];
    scaled(text, &units).ok_or_else(|| format!("`{text}` is not a time: write a number and ms, s, m, h or d"))
}

fn bytes(text: &str) -> Result<u64, String> {
    let units = [("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30), ("TiB", 1 << 40)];
    scaled(text, &units)
        .ok_or_else(|| format!("`{text}` is not a size: write a number and KiB, MiB, GiB or TiB"))
}

/// The server's numbers are signed 64-bit, so larger products count as mistakes.
fn scaled(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let digits = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = text.split_at(digits);
    let scale = units.iter().find(|(name, _)| *name == unit.trim())?.1;
    number.parse::<u64>().ok()?.checked_mul(scale).filter(|product| i64::try_from(*product).is_ok())
}

/// Streams in an order in which each finds its sources. A ring of sources keeps the order of the files.
fn sources_first(mut streams: Vec<Wanted>) -> Vec<Wanted> {
    let mut sorted: Vec<Wanted> = Vec::with_capacity(streams.len());
    while !streams.is_empty() {
        let waiting: Vec<&str> = streams.iter().map(|stream| stream.stream.as_str()).collect();
        let ready = streams.iter().position(|stream| {
            let sources = stream.config.get("sources").and_then(Value::as_array);
            let mut names = sources.into_iter().flatten().filter_map(|source| source.get("name")?.as_str());
            names.all(|name| !waiting.contains(&name))
        });
        sorted.push(streams.remove(ready.unwrap_or(0)));
    }
    sorted
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const STREAM: &str = r#"
[[stream]]
[stream.config]
name = "A"
subjects = ["@catalog:low", "x.y"]
max_age = "24h"
max_bytes = "2GiB"
consumer_limits = { inactive_threshold = "5m" }
[stream.production]
num_replicas = 3
"#;

    #[test]
    fn notations_become_the_servers_units() {
        let wanted = desired(STREAM, Env::Dev).unwrap().streams.remove(0);

        assert_eq!(wanted.config["max_age"], json!(86_400_000_000_000_u64));
        assert_eq!(wanted.config["max_bytes"], json!(2_147_483_648_u64));
        assert_eq!(wanted.config["consumer_limits"]["inactive_threshold"], json!(300_000_000_000_u64));
        assert_eq!(wanted.texts("subjects").len(), 6);
        assert!(wanted.texts("subjects").contains(&"notification.file.processing.*"));
        assert!(!wanted.config.contains_key("num_replicas"));
    }

    #[test]
    fn production_changes_the_fields_it_names() {
        let wanted = desired(STREAM, Env::Production).unwrap().streams.remove(0);

        assert_eq!(wanted.config["num_replicas"], 3);
        assert_eq!(wanted.config["max_age"], json!(86_400_000_000_000_u64));
    }

    #[test]
    fn replicas_of_every_stream_can_be_chosen_for_any_environment() {
        let catalog = Catalog::built_in().unwrap();
        for env in [Env::Dev, Env::Production] {
            let plain = Declarations::built_in().unwrap().desired(&catalog, env).unwrap();
            let five = plain.clone().with_replicas(5);
            assert!(five.streams.iter().all(|stream| stream.config["num_replicas"] == 5));
            assert_eq!(five.consumers, plain.consumers);
        }
    }

    #[test]
    fn mistakes_name_the_file_and_the_key() {
        for (line, replacement, expected) in [
            ("[stream.production]", "[stream.prod]", "unknown field `prod`"),
            ("[[stream]]", "[general]\n[[stream]]", "unknown field `general`"),
            ("24h", "24 hours", "max_age: `24 hours` is not a time: write a number and ms, s, m, h or d"),
            ("24h", "99999999999d", "max_age: `99999999999d` is not a time"),
            ("2GiB", "2GB", "max_bytes: `2GB` is not a size"),
            (
                "@catalog:low",
                "@catalog:urgent",
                "subjects: `urgent` is not a lane: write high, normal or low",
            ),
            ("@catalog:low", "@events", "subjects: `@events`: write @catalog or @catalog:LANE"),
            ("name = \"A\"", "", "an entry has no config.name"),
        ] {
            let error = desired(&STREAM.replace(line, replacement), Env::Dev).unwrap_err().to_string();
            assert!(error.starts_with("a.toml: ") && error.contains(expected), "{error}\nnot {expected}");
        }
    }

    #[test]
    fn sources_come_before_the_streams_that_need_them() {
        let catalog = Catalog::built_in().unwrap();
        let streams = Declarations::built_in().unwrap().desired(&catalog, Env::Dev).unwrap().streams;
        let at = |name| streams.iter().position(|stream| stream.stream == name);

        assert!(at("SCHEDULES") < at("NOTIFICATIONS"));
        assert_eq!(streams.len(), 12);
    }

    fn desired(text: &str, env: Env) -> Result<Desired, Error> {
        Declarations::parse([("a.toml", text)])?.desired(&Catalog::built_in().unwrap(), env)
    }
}
