//! TOML with lines: what stands in a file, and where. Two tables can be laid over each other.

use std::collections::BTreeMap;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// A value and the line where it stands; in a table that of its key.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Node {
    pub(super) line: usize,
    pub(super) value: Value,
    /// It was a text with variables, and has their values now.
    pub(super) is_filled: bool,
}

/// What a declaration can hold.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value {
    Text(String),
    Number(i64),
    Flag(bool),
    List(Vec<Node>),
    Table(Table),
    /// Something that no field takes: a fraction, a date, too large a number.
    Other(String),
}

pub(super) type Table = BTreeMap<String, Node>;

impl Node {
    pub(super) fn new(line: usize, value: Value) -> Self {
        Self { line, value, is_filled: false }
    }

    pub(super) fn table(&self) -> Option<&Table> {
        match &self.value {
            Value::Table(table) => Some(table),
            _ => None,
        }
    }

    pub(super) fn text(&self) -> Option<&str> {
        match &self.value {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    /// All texts within.
    pub(super) fn texts(&self) -> Vec<(usize, &str)> {
        match &self.value {
            Value::Text(text) => vec![(self.line, text)],
            Value::List(items) => items.iter().flat_map(Node::texts).collect(),
            Value::Table(table) => table.values().flat_map(Node::texts).collect(),
            Value::Number(_) | Value::Flag(_) | Value::Other(_) => Vec::new(),
        }
    }
}

/// Parses a file; a mistake is a line and what is wrong there.
pub(super) fn parse(text: &str) -> Result<Table, (usize, String)> {
    let lines = Lines(text);
    match DeTable::parse(text) {
        Ok(table) => Ok(lines.table(table.get_ref())),
        Err(error) => {
            let at = error.span().map_or(0, |span| span.start);
            Err((lines.line(at), error.message().to_owned()))
        }
    }
}

/// Lays `over` on `base`: where a table meets a table, field by field; anything else replaces what was there.
pub(super) fn merge(mut base: Table, over: &Table) -> Table {
    for (key, node) in over {
        let merged = match (base.remove(key), node) {
            (
                Some(Node { value: Value::Table(below), .. }),
                Node { line, value: Value::Table(above), .. },
            ) => Node::new(*line, Value::Table(merge(below, above))),
            (_, node) => node.clone(),
        };
        base.insert(key.clone(), merged);
    }
    base
}

struct Lines<'t>(&'t str);

impl Lines<'_> {
    fn line(&self, offset: usize) -> usize {
        1 + self.0.bytes().take(offset).filter(|byte| *byte == b'\n').count()
    }

    fn table(&self, table: &DeTable<'_>) -> Table {
        let entries = table.iter().map(|(key, value)| {
            let node = Node::new(self.line(key.span().start), self.value(value.get_ref()));
            (key.get_ref().to_string(), node)
        });
        entries.collect()
    }

    fn node(&self, value: &Spanned<DeValue<'_>>) -> Node {
        Node::new(self.line(value.span().start), self.value(value.get_ref()))
    }

    fn value(&self, value: &DeValue<'_>) -> Value {
        match value {
            DeValue::String(text) => Value::Text(text.to_string()),
            DeValue::Integer(number) => i64::from_str_radix(number.as_str(), number.radix())
                .map_or_else(|_| Value::Other(number.as_str().to_owned()), Value::Number),
            DeValue::Boolean(flag) => Value::Flag(*flag),
            DeValue::Float(number) => Value::Other(number.as_str().to_owned()),
            DeValue::Datetime(time) => Value::Other(time.to_string()),
            DeValue::Array(items) => Value::List(items.iter().map(|item| self.node(item)).collect()),
            DeValue::Table(table) => Value::Table(self.table(table)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "# head\n[[stream]]\n\n[stream.config]\nname = \"A\"\nsubjects = [\n  \"a\",\n  \"b\",\n]\n\
                        limits = { x = 1, y = 0x10 }\n\n[[stream]]\nz = 1.5\n";

    #[test]
    fn every_value_knows_its_line() {
        let file = parse(TEXT).unwrap();
        let Value::List(streams) = &file["stream"].value else { panic!("a list") };
        let config = &streams[0].table().unwrap()["config"];
        let fields = config.table().unwrap();

        assert_eq!((streams[0].line, config.line, fields["name"].line), (2, 4, 5));
        assert_eq!(fields["subjects"].texts(), [(7, "a"), (8, "b")]);
        assert_eq!(fields["limits"].table().unwrap()["y"], Node::new(10, Value::Number(16)));
        assert_eq!(streams[1].line, 12);
        assert_eq!(streams[1].table().unwrap()["z"].value, Value::Other("1.5".to_owned()));
    }

    #[test]
    fn a_mistake_of_syntax_has_a_line() {
        assert_eq!(parse("a = 1\nb = \n").unwrap_err().0, 2);
        assert_eq!(parse("a = 1\na = 2\n").unwrap_err(), (2, "duplicate key".to_owned()));
    }

    #[test]
    fn tables_are_merged_and_all_else_is_replaced() {
        let base = parse("a = 1\nlist = [1, 2]\n[t]\nx = 1\ny = { p = 1, q = 2 }\n").unwrap();
        let over = parse("list = [3]\n[t]\ny = { q = 3 }\nz = 4\n").unwrap();

        let merged = merge(base, &over);

        let table = merged["t"].table().unwrap();
        let numbers = |table: &Table| -> Vec<(String, Value)> {
            table.iter().map(|(key, node)| (key.clone(), node.value.clone())).collect()
        };
        assert_eq!(table["x"].value, Value::Number(1));
        assert_eq!(table["z"], Node::new(4, Value::Number(4)));
        assert_eq!(
            numbers(table["y"].table().unwrap()),
            [("p".to_owned(), Value::Number(1)), ("q".to_owned(), Value::Number(3))]
        );
        assert_eq!(merged["list"].value, Value::List(vec![Node::new(1, Value::Number(3))]));
        assert_eq!(merged["a"].value, Value::Number(1));
    }
}
