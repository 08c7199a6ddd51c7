//! Variables: `${name}` in a text; `$${` is a mere `${`. Each is defined in a `[variables]` table, with one value, a value for each
//! environment, or none; `--var` gives one for a run.

use std::collections::{BTreeMap, BTreeSet};

use super::mistake::Mistakes;
use super::node::{Node, Table, Value};
use crate::provision::field::advice;
use crate::provision::finding::{Code, Place};

const OPEN: &str = "${";

/// What stands for [`OPEN`] where no variable is meant.
const ESCAPED: &str = "$${";

/// The word for "in every environment that is not named".
pub(super) const DEFAULT: &str = "default";

/// A variable's values, by environment or [`DEFAULT`].
#[derive(Debug)]
struct Variable {
    place: Place,
    values: BTreeMap<String, Value>,
}

/// All variables of the declarations.
#[derive(Debug, Default)]
pub(super) struct Variables {
    defined: BTreeMap<String, Variable>,
    /// Values for this run, over all others.
    given: BTreeMap<String, Value>,
}

/// True when a node is a text that holds a variable, so that its meaning is not known yet.
pub(super) fn is_open(node: &Node) -> bool {
    !node.is_filled && node.text().is_some_and(|text| text.contains(OPEN))
}

/// The text as a declaration writes it, whatever is in it.
pub(in crate::provision) fn escaped(text: &str) -> String {
    text.replace(OPEN, ESCAPED)
}

impl Variables {
    /// Adds what a `[variables]` table defines.
    pub(super) fn define(&mut self, table: &Table, environments: &[String], mistakes: &mut Mistakes) {
        for (name, node) in table {
            if let Some(before) = self.defined.get(name) {
                let reason =
                    format!("`{name}` is also defined in {}:{}", before.place.file, before.place.line);
                mistakes.add(Code::Variable, node.line, reason, "define it once");
                continue;
            }
            let values = match &node.value {
                Value::Table(by_environment) => {
                    for (word, value) in by_environment {
                        if word != DEFAULT && !environments.contains(word) {
                            let known = environments.iter().map(String::as_str).chain([DEFAULT]);
                            let reason = format!("{name}: there is no environment `{word}`");
                            mistakes.add(Code::Variable, value.line, reason, advice(word, known));
                        }
                    }
                    by_environment.iter().map(|(word, node)| (word.clone(), node.clone())).collect()
                }
                _ => Table::from([(DEFAULT.to_owned(), node.clone())]),
            };
            for value in values.values() {
                if matches!(value.value, Value::List(_) | Value::Table(_) | Value::Other(_)) {
                    let reason = format!("{name}: a variable is a text, a whole number, true or false");
                    mistakes.add(Code::WrongValue, value.line, reason, "write one of these");
                }
            }
            let values = values.into_iter().map(|(word, node)| (word, node.value)).collect();
            self.defined.insert(name.clone(), Variable { place: mistakes.place(node.line), values });
        }
    }

    /// Gives one a value for this run. The text is read like a value of TOML, and as a text when it is none.
    pub(super) fn give(&mut self, name: &str, text: &str) -> Result<(), String> {
        if !self.defined.contains_key(name) {
            let known = self.defined.keys().map(String::as_str);
            return Err(match self.defined.len() {
                0 => format!("there is no variable `{name}`: the declarations define none"),
                _ => format!("there is no variable `{name}`: {}", advice(name, known)),
            });
        }
        let parsed = super::node::parse(&format!("value = {text}")).ok();
        let value = parsed.and_then(|mut table| table.remove("value")).map(|node| node.value);
        let value = value.filter(|value| matches!(value, Value::Text(_) | Value::Number(_) | Value::Flag(_)));
        self.given.insert(name.to_owned(), value.unwrap_or_else(|| Value::Text(text.to_owned())));
        Ok(())
    }

    /// Adds a mistake for each variable that nobody uses.
    pub(super) fn check_used(&self, used: &BTreeSet<String>, mistakes: &mut Mistakes) {
        for (name, variable) in self.defined.iter().filter(|(name, _)| !used.contains(*name)) {
            let reason = format!("nothing uses the variable `{name}`");
            mistakes.add_at(
                Code::Variable,
                Some(variable.place.clone()),
                reason,
                format!("write ${{{name}}} or remove it"),
            );
        }
    }

    /// Adds a mistake for each variable in `node` that is not defined, and the others to `used`.
    pub(super) fn check_defined(&self, node: &Node, used: &mut BTreeSet<String>, mistakes: &mut Mistakes) {
        for (line, text) in node.texts() {
            for part in parts(text) {
                match part {
                    Part::Variable(name) if self.defined.contains_key(name) => {
                        used.insert(name.to_owned());
                    }
                    Part::Variable(name) => {
                        let known = self.defined.keys().map(String::as_str);
                        let fix = match crate::provision::field::nearest(name, known) {
                            Some(near) => format!("did you mean `{near}`?"),
                            None => "define it in a [variables] table".to_owned(),
                        };
                        mistakes.add(Code::Variable, line, format!("there is no variable `{name}`"), fix);
                    }
                    Part::Unclosed => {
                        let reason = format!("`{text}` has {OPEN} without a closing brace");
                        mistakes.add(Code::Variable, line, reason, "write ${name}");
                    }
                    Part::Text(_) => {}
                }
            }
        }
    }

    /// Puts the values for `env` into `node`.
    pub(super) fn fill(&self, node: &mut Node, env: &str, mistakes: &mut Mistakes) {
        let is_open = is_open(node);
        match &mut node.value {
            Value::Text(text) if is_open => {
                if let Some(value) = self.filled(text, node.line, env, mistakes) {
                    node.value = value;
                    node.is_filled = true;
                }
            }
            Value::List(items) => items.iter_mut().for_each(|item| self.fill(item, env, mistakes)),
            Value::Table(table) => table.values_mut().for_each(|item| self.fill(item, env, mistakes)),
            _ => {}
        }
    }

    /// A text that is one variable becomes its value, a number too; within a text it becomes a text.
    fn filled(&self, text: &str, line: usize, env: &str, mistakes: &mut Mistakes) -> Option<Value> {
        let mut whole = String::new();
        let parts = parts(text);
        let alone = parts.len() == 1;
        for part in parts {
            let name = match part {
                Part::Text(text) => {
                    whole.push_str(text);
                    continue;
                }
                Part::Variable(name) => name,
                Part::Unclosed => return None,
            };
            let Some(value) = self.value(name, env) else {
                let reason = format!("`{name}` has no value in {env}");
                let fix = format!("give it one in [variables], or --var {name}=VALUE");
                mistakes.add(Code::Variable, line, reason, fix);
                return None;
            };
            match value {
                value if alone => return Some(value.clone()),
                Value::Text(text) => whole.push_str(text),
                Value::Number(number) => whole.push_str(&number.to_string()),
                Value::Flag(flag) => whole.push_str(&flag.to_string()),
                Value::List(_) | Value::Table(_) | Value::Other(_) => return None,
            }
        }
        Some(Value::Text(whole))
    }

    fn value(&self, name: &str, env: &str) -> Option<&Value> {
        let values = &self.defined.get(name)?.values;
        self.given.get(name).or_else(|| values.get(env)).or_else(|| values.get(DEFAULT))
    }
}

enum Part<'t> {
    Text(&'t str),
    Variable(&'t str),
    Unclosed,
}

fn parts(mut text: &str) -> Vec<Part<'_>> {
    let mut parts = Vec::new();
    while let Some((before, rest)) = text.split_once(OPEN) {
        let (before, is_escaped) = match before.strip_suffix('$') {
            Some(before) => (before, true),
            None => (before, false),
        };
        if !before.is_empty() {
            parts.push(Part::Text(before));
        }
        if is_escaped {
            parts.push(Part::Text(OPEN));
            text = rest;
            continue;
        }
        let Some((name, after)) = rest.split_once('}') else {
            parts.push(Part::Unclosed);
            return parts;
        };
        parts.push(Part::Variable(name.trim()));
        text = after;
    }
    if !text.is_empty() {
        parts.push(Part::Text(text));
    }
    parts
}
