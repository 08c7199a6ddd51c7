//! One `[[stream]]`, `[[consumer]]` or `[[bucket]]`, and what it means in one environment.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value as Json};

use super::mistake::Mistakes;
use super::node::{Node, Table, Value, merge};
use super::translate::Reader;
use super::variable::Variables;
use super::{OWNER_LABEL, Wanted, bucket};
use crate::catalog::Catalog;
use crate::provision::field::{self, Field, advice};
use crate::provision::finding::Code;

/// What an entry declares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Stream,
    Consumer,
    Bucket,
}

impl Kind {
    const ALL: [Self; 3] = [Self::Stream, Self::Consumer, Self::Bucket];

    const fn as_str(self) -> &'static str {
        match self {
            Self::Stream => "stream",
            Self::Consumer => "consumer",
            Self::Bucket => "bucket",
        }
    }

    const fn fields(self) -> &'static [Field] {
        match self {
            Self::Stream => field::STREAM,
            Self::Consumer => field::CONSUMER,
            Self::Bucket => field::BUCKET,
        }
    }

    /// The field with its name.
    const fn name(self) -> &'static str {
        match self {
            Self::Stream => "name",
            Self::Consumer => "durable_name",
            Self::Bucket => "bucket",
        }
    }
}

/// An entry as read.
#[derive(Debug)]
pub(super) struct Entry {
    kind: Kind,
    file: String,
    line: usize,
    /// The stream of a consumer.
    stream: Option<Node>,
    config: Node,
    /// What environments lay over it, by name.
    overlays: BTreeMap<String, Node>,
    allowed: Vec<Code>,
}

/// The entries of a file.
pub(super) fn read(file: Table, environments: &[String], mistakes: &mut Mistakes) -> Vec<Entry> {
    let mut entries = Vec::new();
    for (word, node) in file {
        mistakes.object.clear();
        let Some(kind) = Kind::ALL.into_iter().find(|kind| kind.as_str() == word) else {
            let known = Kind::ALL.map(Kind::as_str).into_iter().chain([
                "variables",
                "owner",
                "environments",
                "allow",
            ]);
            mistakes.add(
                Code::UnknownField,
                node.line,
                format!("unknown field `{word}`"),
                advice(&word, known),
            );
            continue;
        };
        let Value::List(items) = node.value else {
            let fix = format!("write [[{word}]]");
            mistakes.add(Code::WrongValue, node.line, format!("{word} is a list of entries"), fix);
            continue;
        };
        for item in items {
            match item.value {
                Value::Table(table) => entries.extend(one(kind, item.line, table, environments, mistakes)),
                _ => mistakes.add(
                    Code::WrongValue,
                    item.line,
                    "this is not an entry",
                    format!("write [[{word}]]"),
                ),
            }
        }
    }
    entries
}

fn one(
    kind: Kind,
    line: usize,
    mut table: Table,
    environments: &[String],
    mistakes: &mut Mistakes,
) -> Option<Entry> {
    let config = table.remove("config");
    mistakes.object = title(kind, config.as_ref());
    let stream = (kind == Kind::Consumer).then(|| table.remove("stream")).flatten();
    let allowed = table.remove("allow").map(|node| allow(&node, &OF_NO_ENTRY, mistakes)).unwrap_or_default();
    let mut overlays = BTreeMap::new();
    for (word, node) in table {
        if environments.contains(&word) {
            overlays.insert(word, node);
        } else {
            let stream = (kind == Kind::Consumer).then_some("stream");
            let known = ["config", "allow"].into_iter().chain(stream);
            let fix = advice(&word, known.chain(environments.iter().map(String::as_str)));
            let reason = format!("`{word}` is neither a field nor an environment");
            mistakes.add(Code::UnknownField, node.line, reason, fix);
        }
    }
    if kind == Kind::Consumer && stream.is_none() {
        mistakes.add(
            Code::MissingField,
            line,
            "a consumer has no stream",
            "write stream = \"NAME\" above its config",
        );
    }
    let Some(config) = config else {
        let fix = format!("write [{}.config]", kind.as_str());
        mistakes.add(Code::MissingField, line, "an entry has no config", fix);
        return None;
    };
    Some(Entry { kind, file: mistakes.file.clone(), line, stream, config, overlays, allowed })
}

/// What an entry is called in messages: as far as can be told before an environment is chosen.
fn title(kind: Kind, config: Option<&Node>) -> String {
    let name = config.and_then(|config| config.table()?.get(kind.name())?.text());
    name.map_or_else(|| kind.as_str().to_owned(), |name| format!("{} {name}", kind.as_str()))
}

/// What is a mistake of no entry, so that none can allow it.
const OF_NO_ENTRY: [Code; 1] = [Code::StreamMissing];

/// The codes of a list, without what nothing can allow and what is not to be allowed here.
pub(super) fn allow(node: &Node, not_here: &[Code], mistakes: &mut Mistakes) -> Vec<Code> {
    let mut allowed = Vec::new();
    if !matches!(node.value, Value::List(_)) {
        mistakes.add(Code::WrongValue, node.line, "allow is a list of codes", "write allow = [\"CODE\"]");
    }
    for (line, word) in node.texts() {
        match Code::ALL.iter().find(|code| code.as_str() == word) {
            Some(code) if !code.can_be_allowed() => {
                let reason = format!("`{word}` cannot be allowed: the server would not take it either");
                mistakes.add(Code::WrongValue, line, reason, "remove it, and correct what it is about");
            }
            Some(code) if not_here.contains(code) => {
                let reason = format!("`{word}` is about no entry, so an entry cannot allow it");
                mistakes.add(Code::WrongValue, line, reason, "write it into allow of declarations.toml");
            }
            Some(code) => allowed.push(*code),
            None => {
                let known = Code::ALL.iter().filter(|code| code.can_be_allowed()).map(|code| code.as_str());
                let fix = advice(word, known);
                mistakes.add(Code::WrongValue, line, format!("there is no code `{word}`"), fix);
            }
        }
    }
    allowed
}

impl Entry {
    /// Adds the mistakes that can be seen in whichever environment, and the variables that are used.
    pub(super) fn check(&self, variables: &Variables, used: &mut BTreeSet<String>, mistakes: &mut Mistakes) {
        self.begin(mistakes);
        for part in self.overlays.values().chain([&self.config]) {
            match part.table() {
                Some(table) => drop(Reader { catalog: None, mistakes }.table(table, self.kind.fields())),
                None => {
                    mistakes.add(
                        Code::WrongValue,
                        part.line,
                        "this is not a table",
                        "write fields of config",
                    );
                }
            }
            variables.check_defined(part, used, mistakes);
        }
        if let Some(stream) = &self.stream {
            variables.check_defined(stream, used, mistakes);
        }
    }

    fn begin(&self, mistakes: &mut Mistakes) {
        mistakes.file.clone_from(&self.file);
        mistakes.object = title(self.kind, Some(&self.config));
    }

    /// What should exist in `env`; `None` and mistakes when that cannot be said.
    pub(super) fn wanted(
        &self,
        catalog: &Catalog,
        env: &str,
        variables: &Variables,
        owner: &str,
        mistakes: &mut Mistakes,
    ) -> Option<Wanted> {
        self.begin(mistakes);
        let mut table = self.config.table().cloned().unwrap_or_default();
        if let Some(overlay) = self.overlays.get(env).and_then(Node::table) {
            table = merge(table, overlay);
        }
        for node in table.values_mut() {
            variables.fill(node, env, mistakes);
        }
        let mut config = Reader { catalog: Some(catalog), mistakes }.table(&table, self.kind.fields());
        let mut lines: BTreeMap<String, usize> =
            table.iter().map(|(name, node)| (name.clone(), node.line)).collect();
        let named = config.get(self.kind.name()).and_then(Json::as_str).filter(|name| !name.is_empty());
        let Some(name) = named.map(str::to_owned) else {
            let field = self.kind.name();
            let (reason, fix) = (format!("config has no {field}"), format!("write {field} = \"NAME\""));
            mistakes.add(Code::MissingField, self.config.line, reason, fix);
            return None;
        };
        self.label(&mut config, owner, &lines, mistakes);
        let (stream, consumer) = match self.kind {
            Kind::Stream => (name, None),
            Kind::Consumer => (self.stream_of(env, variables, mistakes)?, Some(name)),
            Kind::Bucket => {
                config = bucket::stream(config);
                lines = bucket::lines(lines);
                (format!("{}{name}", bucket::PREFIX), None)
            }
        };
        let (file, line, allowed) = (self.file.clone(), self.line, self.allowed.clone());
        Some(Wanted { file, line, lines, allowed, stream, consumer, config })
    }

    /// The stream of a consumer.
    fn stream_of(&self, env: &str, variables: &Variables, mistakes: &mut Mistakes) -> Option<String> {
        let mut node = self.stream.clone()?;
        variables.fill(&mut node, env, mistakes);
        match &node.value {
            Value::Text(text) => Some(text.clone()),
            Value::Number(number) if node.is_filled => Some(number.to_string()),
            _ => {
                mistakes.add(Code::WrongValue, node.line, "stream is the name of one", "write a text");
                None
            }
        }
    }

    /// Adds the owner to the declared labels.
    fn label(
        &self,
        config: &mut Map<String, Json>,
        owner: &str,
        lines: &BTreeMap<String, usize>,
        mistakes: &mut Mistakes,
    ) {
        let labels = config.entry("metadata").or_insert_with(|| Json::Object(Map::new()));
        if labels.get(OWNER_LABEL).is_some_and(|declared| declared != owner) {
            let line = lines.get("metadata").copied().unwrap_or(self.line);
            let reason = format!("{OWNER_LABEL} says another owner than the declarations");
            mistakes.add(
                Code::WrongValue,
                line,
                reason,
                "remove it; owner = \"NAME\" or --owner sets it for all",
            );
        }
        labels[OWNER_LABEL] = owner.into();
    }
}
