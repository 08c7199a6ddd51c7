//! Declarations: TOML files that wrap the server's own configuration objects, and what they mean for one environment.
//!
//! A file has any number of `[[stream]]`, `[[consumer]]` and `[[bucket]]` entries. Their `config` is what the server takes,
//! field for field; a table with an environment's name is laid over it. docs/declarations.md is the reference.

mod bucket;
mod entry;
mod mistake;
mod node;
mod selection;
mod translate;
pub(super) mod variable;

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use entry::Entry;
use mistake::Mistakes;
use node::{Table, Value as Toml};
use serde_json::{Map, Value};
use variable::Variables;

use super::finding::{Code, Finding, Place};
use super::{Error, OWNER_LABEL};
use crate::catalog::Catalog;

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

/// The file with the settings of a directory of declarations; it may be absent.
const SETTINGS: &str = "declarations.toml";

/// The owner of what is declared when no settings name one.
pub const DEFAULT_OWNER: &str = "fanfare";

/// Words that an environment cannot be called, since they mean something else where its name stands.
const RESERVED: [&str; 4] = ["config", "stream", "allow", variable::DEFAULT];

/// Which of the declared environments is meant, by name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Env(Cow<'static, str>);

impl Env {
    /// One server, small limits.
    pub const DEV: Self = Self(Cow::Borrowed("dev"));
    /// Three replicas, limits for load.
    pub const PRODUCTION: Self = Self(Cow::Borrowed("production"));

    /// An environment by its name. Whether it is declared is known when it is asked for.
    pub fn named(name: impl Into<String>) -> Self {
        Self(Cow::Owned(name.into()))
    }

    /// Its name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Declarations as read, before an environment is chosen.
#[derive(Debug)]
pub struct Declarations {
    owner: String,
    environments: Vec<String>,
    allowed: Vec<Code>,
    variables: Variables,
    entries: Vec<Entry>,
}

/// One stream or consumer that should exist.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Wanted {
    /// The file that declares it.
    pub file: String,
    /// The line where its entry begins.
    pub line: usize,
    /// The lines of its declared fields.
    pub lines: BTreeMap<String, usize>,
    /// Codes of findings that its declaration allows.
    pub allowed: Vec<Code>,
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

    /// What is wrong with a field of it, or with all of it when the field is not declared.
    pub(super) fn finding(
        &self,
        code: Code,
        field: &str,
        reason: impl Into<String>,
        fix: impl Into<String>,
    ) -> Finding {
        let line = self.lines.get(field).copied().unwrap_or(self.line);
        let place = Some(Place { file: self.file.clone(), line });
        Finding { code, place, object: self.place(), reason: reason.into(), fix: fix.into() }
    }

    /// A field that is a text; empty when absent.
    pub(super) fn text(&self, field: &str) -> &str {
        self.config.get(field).and_then(Value::as_str).unwrap_or_default()
    }

    /// A field that is a number; 0 when absent.
    pub(super) fn number(&self, field: &str) -> i64 {
        self.config.get(field).and_then(Value::as_i64).unwrap_or_default()
    }

    /// A field that is a flag.
    pub(super) fn flag(&self, field: &str) -> bool {
        self.config.get(field).and_then(Value::as_bool).unwrap_or_default()
    }

    /// The tables of a list field, such as `sources`.
    pub(super) fn tables(&self, field: &str) -> impl Iterator<Item = &Value> {
        self.config.get(field).and_then(Value::as_array).into_iter().flatten()
    }

    /// The texts of a list field, such as `subjects`; empty when absent.
    pub fn texts(&self, field: &str) -> Vec<&str> {
        let values = self.config.get(field).and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
        values.iter().filter_map(Value::as_str).collect()
    }

    /// The subjects a consumer takes: `filter_subjects`, or the single `filter_subject`.
    pub fn filters(&self) -> Vec<&str> {
        let single = Some(self.text("filter_subject")).filter(|text| !text.is_empty());
        single.into_iter().chain(self.texts("filter_subjects")).collect()
    }

    /// The same, for a consumer that has none and takes everything.
    pub fn takes(&self) -> Vec<&str> {
        let filters = self.filters();
        if filters.is_empty() { vec![">"] } else { filters }
    }
}

/// Everything that should exist in one environment, in an order in which it can be made.
#[derive(Debug, Clone, Default)]
pub struct Desired {
    /// Streams; those that are sources of others come first.
    pub streams: Vec<Wanted>,
    /// Consumers.
    pub consumers: Vec<Wanted>,
    /// Whose they are: the value of each one's [`OWNER_LABEL`].
    pub owner: String,
    /// Codes of findings that are allowed about what is not declared.
    pub allowed: Vec<Code>,
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

impl Declarations {
    /// The declarations that are built into the binary.
    pub fn built_in() -> Result<Self, Error> {
        Self::parse(BUILT_IN)
    }

    /// Reads `declarations.toml`, `streams/*.toml` and `consumers/*.toml` below `dir`. Who has only streams needs no folder
    /// of consumers.
    pub fn read(dir: &Path) -> Result<Self, Error> {
        let mut paths = Vec::new();
        let folders = ["streams", "consumers"].map(|part| dir.join(part));
        let none = !folders.iter().any(|folder| folder.exists());
        for folder in folders.into_iter().filter(|folder| none || folder.exists()) {
            let found = std::fs::read_dir(&folder).and_then(|entries| {
                entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<PathBuf>, _>>()
            });
            let mut found = found.map_err(|source| Error::Read { path: folder, source })?;
            found.retain(|path| path.extension().is_some_and(|extension| extension == "toml"));
            found.sort();
            paths.extend(found);
        }
        let settings = dir.join(SETTINGS);
        paths.extend(settings.exists().then_some(settings));
        let mut texts = Vec::new();
        for path in paths {
            let text = contents(&path).map_err(|source| Error::Read { path: path.clone(), source })?;
            texts.push((path.display().to_string(), text));
        }
        Self::parse(texts)
    }

    /// Parses files, given as name and text. All mistakes are said at once.
    pub fn parse<N: Into<String>, T: AsRef<str>>(
        texts: impl IntoIterator<Item = (N, T)>,
    ) -> Result<Self, Error> {
        let mut mistakes = Mistakes::default();
        let mut files: Vec<(String, Table)> = Vec::new();
        for (name, text) in texts {
            mistakes.file = name.into();
            match node::parse(text.as_ref()) {
                Ok(table) => files.push((mistakes.file.clone(), table)),
                Err((line, problem)) => mistakes.add(Code::Syntax, line, problem, "correct it"),
            }
        }
        let (owner, environments, allowed) = settings(&mut files, &mut mistakes);
        let mut variables = Variables::default();
        let mut entries = Vec::new();
        for (file, mut table) in files {
            mistakes.file = file;
            if let Some(defined) = table.remove("variables") {
                match defined.table() {
                    Some(defined) => variables.define(defined, &environments, &mut mistakes),
                    None => mistakes.add(
                        Code::WrongValue,
                        defined.line,
                        "variables are a table",
                        "write [variables]",
                    ),
                }
            }
            entries.extend(entry::read(table, &environments, &mut mistakes));
        }
        let mut used = BTreeSet::new();
        for entry in &entries {
            entry.check(&variables, &mut used, &mut mistakes);
        }
        mistakes.object.clear();
        variables.check_used(&used, &mut mistakes);
        mistakes.or(Self { owner, environments, allowed, variables, entries })
    }

    /// The same for another owner.
    #[must_use]
    pub fn with_owner(mut self, owner: impl Into<String>) -> Self {
        self.owner = owner.into();
        self
    }

    /// The same with another value of a variable, in every environment.
    pub fn with_variable(mut self, name: &str, value: &str) -> Result<Self, Error> {
        match self.variables.give(name, value) {
            Ok(()) => Ok(self),
            Err(reason) => Err(Error::Variable(reason)),
        }
    }

    /// What should exist in `env` for the events of `catalog`.
    pub fn desired(&self, catalog: &Catalog, env: Env) -> Result<Desired, Error> {
        if !self.environments.iter().any(|known| known == env.as_str()) {
            return Err(Error::Environment { name: env.0.into_owned(), known: self.environments.join(", ") });
        }
        let mut mistakes = Mistakes::default();
        let (mut streams, mut consumers) = (Vec::new(), Vec::new());
        for entry in &self.entries {
            let wanted = entry.wanted(catalog, env.as_str(), &self.variables, &self.owner, &mut mistakes);
            match wanted {
                Some(wanted) if wanted.consumer.is_some() => consumers.push(wanted),
                wanted => streams.extend(wanted),
            }
        }
        let (owner, allowed) = (self.owner.clone(), self.allowed.clone());
        mistakes.or(Desired { streams: sources_first(streams), consumers, owner, allowed })
    }
}

/// The text of a file. Anything else that has its name, such as a pipe, could be read for ever.
fn contents(path: &Path) -> std::io::Result<String> {
    let invalid = |reason| std::io::Error::new(std::io::ErrorKind::InvalidData, reason);
    if !std::fs::metadata(path)?.is_file() {
        return Err(invalid("it is no file".to_owned()));
    }
    String::from_utf8(std::fs::read(path)?).map_err(|error| {
        let valid = &error.as_bytes()[..error.utf8_error().valid_up_to()];
        let line = valid.split(|byte| *byte == b'\n').count();
        invalid(format!("line {line} is not UTF-8: save the file as UTF-8"))
    })
}

/// Takes the owner, the environments and what is allowed out of the files: each may stand in one of them.
fn settings(files: &mut [(String, Table)], mistakes: &mut Mistakes) -> (String, Vec<String>, Vec<Code>) {
    let mut allowed: Option<(Vec<Code>, Place)> = None;
    let mut owner: Option<(String, Place)> = None;
    let mut environments: Option<(Vec<String>, Place)> = None;
    for (file, table) in files {
        mistakes.file.clone_from(file);
        if let Some(node) = table.remove("owner") {
            match node.text() {
                Some(text) if !text.is_empty() => set(&mut owner, text.to_owned(), node.line, mistakes),
                _ => mistakes.add(Code::WrongValue, node.line, "owner is a text", "write owner = \"NAME\""),
            }
        }
        if let Some(node) = table.remove("allow") {
            let codes = entry::allow(&node, &[], mistakes);
            set(&mut allowed, codes, node.line, mistakes);
        }
        if let Some(node) = table.remove("environments") {
            let names: Vec<String> = node.texts().into_iter().map(|(_, text)| text.to_owned()).collect();
            let sound = |name: &String| {
                let letters = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '_';
                !name.is_empty() && name.chars().all(letters) && !RESERVED.contains(&name.as_str())
            };
            if matches!(node.value, Toml::List(_)) && !names.is_empty() && names.iter().all(sound) {
                set(&mut environments, names, node.line, mistakes);
            } else {
                let fix =
                    format!("write a list of names of a-z, 0-9, - and _, none of {}", RESERVED.join(", "));
                mistakes.add(Code::WrongValue, node.line, "these are no names of environments", fix);
            }
        }
    }
    let built_in = || [Env::DEV, Env::PRODUCTION].map(|env| env.as_str().to_owned()).to_vec();
    (
        owner.map_or_else(|| DEFAULT_OWNER.to_owned(), |(owner, _)| owner),
        environments.map_or_else(built_in, |(names, _)| names),
        allowed.map_or_else(Vec::new, |(codes, _)| codes),
    )
}

/// Sets what may be set once.
fn set<T>(setting: &mut Option<(T, Place)>, value: T, line: usize, mistakes: &mut Mistakes) {
    match setting {
        None => *setting = Some((value, mistakes.place(line))),
        Some((_, before)) => {
            let reason = format!("it is also set in {}:{}", before.file, before.line);
            mistakes.add(Code::Duplicate, line, reason, "set it once");
        }
    }
}

/// Streams in an order in which each finds its sources. A ring of sources keeps the order of the files.
fn sources_first(mut streams: Vec<Wanted>) -> Vec<Wanted> {
    let mut sorted: Vec<Wanted> = Vec::with_capacity(streams.len());
    while !streams.is_empty() {
        let waiting: Vec<&str> = streams.iter().map(|stream| stream.stream.as_str()).collect();
        let ready = streams.iter().position(|stream| {
            let origins = stream.tables("sources").chain(stream.config.get("mirror"));
            let mut names = origins.filter_map(|origin| origin.get("name")?.as_str());
            names.all(|name| !waiting.contains(&name))
        });
        sorted.push(streams.remove(ready.unwrap_or(0)));
    }
    sorted
}

#[cfg(test)]
mod tests;
