//! A plan for people, in the manner of terraform.

use std::fmt;

use anstyle::{AnsiColor, Style};
use serde_json::Value;

use super::{Action, Change, Class, Difference, Plan, Waiting};
use crate::provision::units;

/// A plan in colours. Who prints it to something else than a terminal takes them out: `anstream` does.
#[derive(Debug)]
pub struct Painted<'a>(pub &'a Plan);

impl Action {
    /// The action in one word.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Update => "update",
            Self::Replace => "replace",
            Self::Delete => "delete",
            Self::Finish => "finish",
        }
    }

    const fn sign(self) -> &'static str {
        match self {
            Self::Create => "+",
            Self::Update | Self::Finish => "~",
            Self::Replace => "-/+",
            Self::Delete => "-",
        }
    }

    const fn colour(self) -> AnsiColor {
        match self {
            Self::Create => AnsiColor::Green,
            Self::Update | Self::Finish => AnsiColor::Yellow,
            Self::Replace | Self::Delete => AnsiColor::Red,
        }
    }
}

impl Class {
    const fn colour(self) -> AnsiColor {
        match self {
            Self::Safe => AnsiColor::Green,
            Self::Care => AnsiColor::Yellow,
            Self::Destructive | Self::Impossible => AnsiColor::Red,
        }
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write(f, self, false)
    }
}

impl fmt::Display for Painted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write(f, self.0, true)
    }
}

/// A text in a colour, where there are colours.
fn paint(painted: bool, colour: AnsiColor, text: &str) -> String {
    if !painted {
        return text.to_owned();
    }
    let style = Style::new().fg_color(Some(colour.into()));
    format!("{style}{text}{style:#}")
}

fn write(f: &mut fmt::Formatter<'_>, plan: &Plan, painted: bool) -> fmt::Result {
    for change in &plan.changes {
        write_change(f, change, painted)?;
    }
    for one in &plan.undeclared {
        let (place, stays) = match (&one.consumer, one.ours) {
            (None, _) => (format!("stream {}", one.stream), "it is ours: --prune deletes it"),
            (Some(name), true) => {
                (format!("consumer {} > {name}", one.stream), "it is ours: --prune deletes it")
            }
            (Some(name), false) => {
                (format!("consumer {} > {name}", one.stream), "left alone, but it may take messages")
            }
        };
        writeln!(f, "? {place} is not declared; {stays}")?;
    }
    if plan.is_empty() {
        return write!(f, "nothing to do ({} unchanged)", plan.unchanged);
    }
    // A long way is worth knowing beforehand; a creation or an update says itself what is sent.
    if plan.steps.len() > plan.changes.len() {
        writeln!(f, "in these steps:")?;
        for (at, step) in plan.steps.iter().enumerate() {
            writeln!(f, "  {:>2}. {step}", at + 1)?;
        }
    }
    let refused = plan.changes.iter().filter(|change| change.refused.is_some()).count();
    write!(f, "{} to create, {} to update", plan.count(Action::Create), plan.count(Action::Update))?;
    for (count, what) in [
        (plan.count(Action::Replace), "to replace"),
        (plan.count(Action::Delete), "to delete"),
        (plan.count(Action::Finish), "to finish"),
        (refused, "refused"),
    ] {
        if count > 0 {
            write!(f, ", {count} {what}")?;
        }
    }
    write!(f, ", {} unchanged", plan.unchanged)?;
    if refused > 0 { write!(f, "; nothing is done while something is refused") } else { Ok(()) }
}

fn write_change(f: &mut fmt::Formatter<'_>, change: &Change, painted: bool) -> fmt::Result {
    let place = match &change.consumer {
        None => format!("stream {}", change.stream),
        Some(consumer) => format!("consumer {} > {consumer}", change.stream),
    };
    let head = format!("{} {} {place}", change.action.sign(), change.action.as_str());
    write!(f, "{}", paint(painted, change.action.colour(), &head))?;
    match change.action {
        Action::Create => {}
        Action::Delete => write!(f, "  (not declared)")?,
        Action::Finish => write!(f, "  (an earlier apply did not come to the end)")?,
        Action::Update | Action::Replace => {
            write!(f, "  [{}]", paint(painted, change.class.colour(), change.class.as_str()))?;
        }
    }
    writeln!(f)?;
    for difference in &change.differences {
        write_difference(f, difference, painted)?;
    }
    let Waiting { messages, bytes, unacknowledged } = change.waiting;
    match &change.consumer {
        _ if messages + unacknowledged == 0 => {}
        None => writeln!(f, "    holds {messages} messages, {}", units::bytes(bytes))?,
        Some(_) => writeln!(f, "    {messages} messages wait, {unacknowledged} are in hand")?,
    }
    if let Some(lost) = &change.lost {
        writeln!(f, "    {}", paint(painted, AnsiColor::Red, &format!("lost: {lost}")))?;
    }
    match &change.refused {
        None => Ok(()),
        Some(refused) => writeln!(f, "    {} {refused}", paint(painted, AnsiColor::Red, "refused:")),
    }
}

/// What `one` has and `other` has not. Of a table that both have under its name, such as a source, what its lists have.
fn leaves(one: &[Value], other: &[Value]) -> Vec<Value> {
    let found =
        |item: &Value| other.iter().find(|other| item["name"].is_string() && other["name"] == item["name"]);
    let mut leaves = Vec::new();
    for item in one.iter().filter(|item| !other.contains(item)) {
        match found(item) {
            Some(other) if !(parts(item, other).is_empty() && parts(other, item).is_empty()) => {
                leaves.extend(parts(item, other));
            }
            _ => leaves.push(item.clone()),
        }
    }
    leaves
}

/// What the lists of a table have and those of another one have not; rewritings of subjects as `from -> to`.
fn parts(one: &Value, other: &Value) -> Vec<Value> {
    let lists =
        one.as_object().into_iter().flatten().filter_map(|(key, value)| Some((key, value.as_array()?)));
    let text = |item: &Value| match (item["src"].as_str(), item["dest"].as_str()) {
        (Some(from), Some(to)) => Value::String(format!("{from} -> {to}")),
        _ => item.clone(),
    };
    let gone = lists.flat_map(|(key, items)| {
        let others = other[key].as_array().cloned().unwrap_or_default();
        items.iter().filter(move |item| !others.contains(item)).map(text)
    });
    gone.collect()
}

fn write_difference(f: &mut fmt::Formatter<'_>, one: &Difference, painted: bool) -> fmt::Result {
    let shown = |value: &Value| match units::readable(&one.field, value) {
        Value::Null => "default".to_owned(),
        Value::String(text) => text,
        other => other.to_string(),
    };
    if let (Value::Array(live), Value::Array(wanted)) = (&one.live, &one.wanted) {
        write!(f, "    {}:", one.field)?;
        let (gone, new) = (leaves(live, wanted), leaves(wanted, live));
        for gone in gone {
            write!(f, " {}", paint(painted, AnsiColor::Red, &format!("-{}", shown(&gone))))?;
        }
        for new in new {
            write!(f, " {}", paint(painted, AnsiColor::Green, &format!("+{}", shown(&new))))?;
        }
    } else {
        write!(f, "    {}: {} -> {}", one.field, shown(&one.live), shown(&one.wanted))?;
    }
    if one.class == Class::Safe {
        return writeln!(f);
    }
    writeln!(
        f,
        "  {}",
        paint(painted, one.class.colour(), &format!("[{}: {}]", one.class.as_str(), one.reason))
    )
}
