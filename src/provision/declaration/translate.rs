//! Checks what stands in a declaration against the table of fields, and turns our notations into the server's: times
//! into nanoseconds, sizes into bytes, `@catalog` into subjects.

use std::fmt;

use serde_json::{Map, Value as Json, json};

use super::mistake::Mistakes;
use super::node::{Node, Table, Value};
use super::selection::select;
use super::variable::is_open;
use crate::catalog::Catalog;
use crate::provision::field::{Field, Kind, TRANSFORM, advice};
use crate::provision::finding::Code;
use crate::provision::subject;

/// Reads one configuration. Without a catalog it only checks, and lets pass what that would decide.
pub(super) struct Reader<'a> {
    pub(super) catalog: Option<&'a Catalog>,
    pub(super) mistakes: &'a mut Mistakes,
}

impl Reader<'_> {
    /// The fields of a table in the server's shape and units.
    pub(super) fn table(&mut self, table: &Table, fields: &'static [Field]) -> Map<String, Json> {
        let mut read = Map::new();
        for (name, node) in table {
            let Some(field) = fields.iter().find(|field| field.name == name) else {
                let fix = advice(name, fields.iter().map(|field| field.name));
                self.mistakes.add(Code::UnknownField, node.line, format!("unknown field `{name}`"), fix);
                continue;
            };
            if let Some(value) = self.value(name, node, field.kind) {
                read.insert(name.clone(), value);
            }
        }
        read
    }

    fn value(&mut self, name: &str, node: &Node, kind: Kind) -> Option<Json> {
        // A variable that is still there was said to be a mistake already, or is filled in later.
        if is_open(node) {
            return None;
        }
        let read = match (kind, &node.value) {
            (Kind::Text, Value::Text(text)) => Ok(text.as_str().into()),
            // Whoever writes `--var tenant=42` cannot know that it is read as a number.
            (Kind::Text, Value::Number(number)) if node.is_filled => Ok(number.to_string().into()),
            (Kind::Text, Value::Flag(flag)) if node.is_filled => Ok(flag.to_string().into()),
            (Kind::Subject(instead), Value::Text(text)) => {
                return self.subject(name, node.line, text, instead);
            }
            (Kind::Flag, Value::Flag(flag)) => Ok((*flag).into()),
            (Kind::Number(from, to), Value::Number(number)) if (from..=to).contains(number) => {
                Ok((*number).into())
            }
            (Kind::Size(most), Value::Number(number)) if (-1..=most).contains(number) => Ok((*number).into()),
            (Kind::Size(most), Value::Number(number)) if *number > most => Err(too_much(number, most)),
            (Kind::Size(most), Value::Text(text)) => bytes(text, most).map(Json::from),
            (Kind::Duration, Value::Number(0)) => Ok(0.into()),
            (Kind::Duration, Value::Number(number @ 1..MILLISECOND)) => Err((
                format!("`{number}` would be {number} ns"),
                format!("write \"{number}s\", \"{number}h\" or the like: a number and ms, s, m, h or d"),
            )),
            (Kind::Duration, Value::Number(number @ MILLISECOND..)) => Ok((*number).into()),
            (Kind::Duration, Value::Text(text)) => nanoseconds(text).map(Json::from),
            (Kind::Durations, Value::List(items)) => return Some(self.items(name, items, Kind::Duration)),
            (Kind::Time, Value::Text(text)) => moment(text),
            // A number is the other thing that no field takes.
            (Kind::Time, Value::Other(date)) if date.parse::<f64>().is_err() => {
                Err((format!("`{date}` stands there without quotes"), format!("write \"{date}\"")))
            }
            (Kind::Texts, Value::List(items)) => return Some(self.items(name, items, Kind::Text)),
            (Kind::Subjects, Value::Text(_)) => return Some(self.subjects(name, std::slice::from_ref(node))),
            (Kind::Subjects, Value::List(items)) => return Some(self.subjects(name, items)),
            (Kind::OneOf(words), Value::Text(text)) if words.contains(&text.as_str()) => {
                Ok(text.as_str().into())
            }
            (Kind::OneOf(words), Value::Text(text)) => {
                Err((format!("`{text}` is not among its values"), advice(text, words.iter().copied())))
            }
            (Kind::Labels, Value::Table(labels)) => {
                let labels = labels.iter().filter_map(|(key, node)| {
                    Some((key.clone(), self.value(&format!("{name}.{key}"), node, Kind::Text)?))
                });
                return Some(Json::Object(labels.collect()));
            }
            (Kind::Table(fields), Value::Table(table)) => {
                return Some(Json::Object(self.table(table, fields)));
            }
            (Kind::Tables(_) | Kind::Transforms, Value::List(items)) => {
                return Some(self.items(name, items, each(kind)));
            }
            (Kind::Transforms, Value::Text(text)) if text.starts_with('@') => {
                return Some(self.due(name, node));
            }
            (kind, value) => Err((format!("{} cannot stand here", shown(value)), wanted(kind))),
        };
        read.map_err(|(reason, fix)| {
            self.mistakes.add(Code::WrongValue, node.line, format!("{name}: {reason}"), fix);
        })
        .ok()
    }

    fn items(&mut self, name: &str, items: &[Node], kind: Kind) -> Json {
        Json::Array(items.iter().filter_map(|item| self.value(name, item, kind)).collect())
    }

    /// What a selection of the catalog is when it is due, and what it then becomes.
    fn due(&mut self, name: &str, node: &Node) -> Json {
        let selected = self.subjects(name, std::slice::from_ref(node));
        let subjects = selected.as_array().into_iter().flatten().filter_map(Json::as_str);
        let transforms = subjects.map(|subject| {
            let event = subject.strip_prefix("notification.").unwrap_or(subject);
            json!({ "src": format!("due.{event}"), "dest": filled(subject) })
        });
        transforms.collect()
    }

    /// One subject; an empty text is none.
    fn subject(&mut self, name: &str, line: usize, text: &str, instead: &str) -> Option<Json> {
        if text.starts_with('@') {
            let reason = format!("{name}: `{text}` may be several subjects");
            self.mistakes.add(Code::Selection, line, reason, format!("write {instead}"));
            return None;
        }
        if text.is_empty() || subject::is_valid(text) {
            return Some(text.into());
        }
        self.mistakes.add(Code::WrongValue, line, format!("{name}: `{text}` is not a subject"), SUBJECT);
        None
    }

    /// Subjects, with selections of the catalog in place.
    fn subjects(&mut self, name: &str, items: &[Node]) -> Json {
        let mut subjects: Vec<Json> = Vec::new();
        for item in items {
            let Some(text) = item.text() else {
                let reason = format!("{name}: {} is not a subject", shown(&item.value));
                self.mistakes.add(Code::WrongValue, item.line, reason, "write a text");
                continue;
            };
            if is_open(item) {
                continue;
            }
            if text.starts_with('@') {
                match self.catalog.map(|catalog| select(text, catalog)) {
                    None => {}
                    Some(Ok(selected)) => subjects.extend(selected.into_iter().map(Json::from)),
                    Some(Err((reason, fix))) => {
                        self.mistakes.add(Code::Selection, item.line, format!("{name}: {reason}"), fix);
                    }
                }
            } else if subject::is_valid(text) {
                subjects.push(text.into());
            } else {
                let reason = format!("{name}: `{text}` is not a subject");
                self.mistakes.add(Code::WrongValue, item.line, reason, SUBJECT);
            }
        }
        Json::Array(subjects)
    }
}

/// A subject as the destination of a transform, which takes over what its wildcards stood for.
fn filled(subject: &str) -> String {
    let mut wildcards = 0;
    let fill = |token: &str| {
        if token != "*" {
            return token.to_owned();
        }
        wildcards += 1;
        format!("{{{{wildcard({wildcards})}}}}")
    };
    subject.split('.').map(fill).collect::<Vec<_>>().join(".")
}

fn each(kind: Kind) -> Kind {
    match kind {
        Kind::Tables(fields) => Kind::Table(fields),
        Kind::Transforms => Kind::Table(TRANSFORM),
        other => other,
    }
}

fn shown(value: &Value) -> String {
    match value {
        Value::Text(text) => format!("`{text}`"),
        Value::Number(number) => format!("`{number}`"),
        Value::Flag(flag) => format!("`{flag}`"),
        Value::Other(other) => format!("`{other}`"),
        Value::List(_) => "a list".to_owned(),
        Value::Table(_) => "a table".to_owned(),
    }
}

/// In nanoseconds. The server has no time that is shorter; whoever writes less forgot the unit.
const MILLISECOND: i64 = 1_000_000;

/// What a field of the kind takes, as advice.
fn wanted(kind: Kind) -> String {
    match kind {
        Kind::Text => "write a text".to_owned(),
        Kind::Flag => "write true or false".to_owned(),
        Kind::Number(from, i64::MAX) => format!("write a whole number of {from} or more"),
        Kind::Number(from, to) => format!("write a whole number from {from} to {to}"),
        Kind::Subject(_) => "write a subject".to_owned(),
        Kind::Size(_) => SIZE.to_owned(),
        Kind::Duration => DURATION.to_owned(),
        Kind::Durations => "write a list of times such as [\"1s\", \"10s\"]".to_owned(),
        Kind::Time => MOMENT.to_owned(),
        Kind::Texts => "write a list of texts".to_owned(),
        Kind::Subjects => "write a subject or a list of them".to_owned(),
        Kind::OneOf(words) => format!("write one of {}", words.join(", ")),
        Kind::Labels => "write a table of texts".to_owned(),
        Kind::Table(fields) => format!("write a table with {}", names(fields)),
        Kind::Tables(fields) => format!("write a list of tables with {}", names(fields)),
        Kind::Transforms => format!("write @catalog:LANE, or a list of tables with {}", names(TRANSFORM)),
    }
}

fn names(fields: &[Field]) -> String {
    fields.iter().map(|field| field.name).collect::<Vec<_>>().join(", ")
}

const SUBJECT: &str = "write tokens between dots, `*` for any one, `>` for the rest";
const DURATION: &str = "write a number and ms, s, m, h or d";
const SIZE: &str = "write a number and KiB, MiB, GiB or TiB, or bytes";
const MOMENT: &str = "write a time such as 2026-01-02T03:04:05Z";

/// A reason and an advice.
type Refusal = (String, String);

/// `"1h30m"` is not needed here, so one number and one unit: ms, s, m, h, d.
fn nanoseconds(text: &str) -> Result<i64, Refusal> {
    let units = [
        ("ms", 1_000_000),
        ("s", 1_000_000_000),
        ("m", 60_000_000_000),
        ("h", 3_600_000_000_000),
        ("d", 86_400_000_000_000),
    ];
    match scaled(text, &units) {
        None => Err((format!("`{text}` is not a time"), DURATION.to_owned())),
        Some(time) if time < i64::MAX => Ok(time),
        Some(_) => {
            let most = i64::MAX / units[4].1;
            Err((format!("`{text}` is too long"), format!("write {most}d or less; 0 is without end")))
        }
    }
}

fn bytes(text: &str, most: i64) -> Result<i64, Refusal> {
    let units = [("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30), ("TiB", 1 << 40)];
    match scaled(text, &units) {
        None => Err((format!("`{text}` is not a size"), SIZE.to_owned())),
        Some(size) if size <= most && size < i64::MAX => Ok(size),
        Some(_) => Err(too_much(text, most)),
    }
}

fn too_much(size: impl fmt::Display, most: i64) -> Refusal {
    (
        format!("`{size}` is too much for the server"),
        format!("write {most} bytes or less; -1 is without a bound"),
    )
}

/// What is beyond all numbers is the largest one.
fn scaled(text: &str, units: &[(&str, i64)]) -> Option<i64> {
    let digits = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = text.split_at(digits);
    let scale = units.iter().find(|(name, _)| *name == unit.trim())?.1;
    if number.is_empty() {
        return None;
    }
    // Digits are no number only when they are too many.
    Some(number.parse::<i64>().unwrap_or(i64::MAX).saturating_mul(scale))
}

fn moment(text: &str) -> Result<Json, Refusal> {
    let format = &time::format_description::well_known::Rfc3339;
    match time::OffsetDateTime::parse(text, format) {
        Ok(_) => Ok(text.into()),
        Err(_) => Err((format!("`{text}` is not a moment"), MOMENT.to_owned())),
    }
}
