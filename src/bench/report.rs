//! What a bench found: tables for people, JSON for machines, and lines that say whether it is good enough.

use std::fmt::Write as _;

use serde::Serialize;
use serde_json::Value;

/// What came out of one bench.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Its name.
    pub bench: &'static str,
    /// The command that repeats it.
    pub command: String,
    /// When it began, in UTC.
    pub started: String,
    /// What it ran on.
    pub machine: Machine,
    /// What must be so, and what is aimed at.
    pub lines: Vec<Line>,
    /// What else has to be known to read the figures.
    pub notes: Vec<String>,
    /// The figures.
    pub results: Value,
    /// The figures for people.
    #[serde(skip)]
    pub tables: Vec<Table>,
    /// Curves.
    #[serde(skip)]
    pub plots: Vec<Plot>,
}

/// A drawing.
#[derive(Debug, Clone)]
pub struct Plot {
    /// Names its file.
    pub name: String,
    /// What is in it.
    pub svg: String,
}

/// A table of figures.
#[derive(Debug, Clone)]
pub struct Table {
    /// Names of the columns.
    pub head: Vec<&'static str>,
    /// Rows with as many fields.
    pub rows: Vec<Vec<String>>,
}

/// How strictly a line is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// The bench fails when it is missed.
    Must,
    /// Where it should go.
    Aim,
}

/// Which side of the limit is the good one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Bound {
    /// The value may not be larger.
    AtMost,
    /// The value may not be smaller.
    AtLeast,
}

/// One value and its limit.
#[derive(Debug, Clone, Serialize)]
pub struct Line {
    /// Must or aim.
    pub kind: Kind,
    /// What is judged, with the unit.
    pub what: String,
    /// What was measured; `None` when that did not succeed, and then the line is missed.
    pub value: Option<f64>,
    /// At most or at least.
    pub bound: Bound,
    /// What it is compared with.
    pub limit: f64,
    /// Value by limit.
    pub ratio: Option<f64>,
    /// Good enough.
    pub met: bool,
}

impl Line {
    /// A line that fails the bench.
    pub fn must(what: impl Into<String>, value: Option<f64>, bound: Bound, limit: f64) -> Self {
        Self::new(Kind::Must, what.into(), value, bound, limit)
    }

    /// A line that only says how far it is.
    pub fn aim(what: impl Into<String>, value: Option<f64>, bound: Bound, limit: f64) -> Self {
        Self::new(Kind::Aim, what.into(), value, bound, limit)
    }

    fn new(kind: Kind, what: String, value: Option<f64>, bound: Bound, limit: f64) -> Self {
        let met = value.is_some_and(|value| match bound {
            Bound::AtMost => value <= limit,
            Bound::AtLeast => value >= limit,
        });
        let ratio = value.filter(|_| limit > 0.0).map(|value| value / limit);
        Self { kind, what, value, bound, limit, ratio, met }
    }

    fn told(&self) -> String {
        let kind = if self.kind == Kind::Must { "must" } else { "aim" };
        let verdict = if self.met { "met" } else { "MISSED" };
        let bound = if self.bound == Bound::AtMost { "at most" } else { "at least" };
        let value = self.value.map_or_else(|| "not measured".to_owned(), figure);
        let ratio = self.ratio.map(|ratio| format!(" (ratio {ratio:.2})")).unwrap_or_default();
        format!("{kind}  {verdict:<6}  {}: {value}, {bound} {}{ratio}", self.what, figure(self.limit))
    }
}

/// The machine of a report.
#[derive(Debug, Clone, Serialize)]
pub struct Machine {
    /// Processors this process may use.
    pub cores: usize,
    /// What they are.
    pub processor: String,
    /// Bytes of memory.
    pub memory: u64,
    /// Version of Linux.
    pub kernel: String,
    /// Of a release build, or of one for debugging, whose figures say nothing.
    pub build: &'static str,
}

impl Machine {
    /// This one; what the system does not say is empty.
    pub fn here() -> Self {
        let line = |file: &str, name: &str| {
            let text = std::fs::read_to_string(file).unwrap_or_default();
            let line = text.lines().find_map(|line| line.strip_prefix(name)).map(str::to_owned);
            line.map(|line| line.trim_start_matches([' ', '\t', ':']).to_owned()).unwrap_or_default()
        };
        let memory = line("/proc/meminfo", "MemTotal:");
        let memory = memory.trim_end_matches(" kB").parse::<u64>().unwrap_or_default() * 1_024;
        Self {
            cores: std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
            processor: line("/proc/cpuinfo", "model name"),
            memory,
            kernel: line("/proc/sys/kernel/osrelease", ""),
            build: if cfg!(debug_assertions) { "debug" } else { "release" },
        }
    }
}

impl Report {
    /// An empty one of a bench that begins now.
    pub fn begin(bench: &'static str, command: String) -> Self {
        let started = time::OffsetDateTime::now_utc().format(&time::format_description::well_known::Rfc3339);
        Self {
            bench,
            command,
            started: started.unwrap_or_default(),
            machine: Machine::here(),
            lines: Vec::new(),
            notes: Vec::new(),
            results: Value::Null,
            tables: Vec::new(),
            plots: Vec::new(),
        }
    }

    /// True when every line that must be met is.
    pub fn passed(&self) -> bool {
        self.lines.iter().all(|line| line.met || line.kind == Kind::Aim)
    }

    /// For a terminal.
    pub fn text(&self) -> String {
        let mut out = format!("{}  ({})\n", self.bench, self.place());
        for table in &self.tables {
            out.push('\n');
            out.push_str(&table.text());
        }
        if !self.lines.is_empty() {
            out.push('\n');
        }
        for line in &self.lines {
            let _ = writeln!(out, "{}", line.told());
        }
        for note in &self.notes {
            let _ = writeln!(out, "note  {note}");
        }
        out
    }

    /// For a page of the documentation.
    pub fn markdown(&self) -> String {
        let mut out = format!("`{}`, {}\n", self.command, self.place());
        for table in &self.tables {
            out.push('\n');
            out.push_str(&table.markdown());
        }
        out.push('\n');
        for line in &self.lines {
            let _ = writeln!(out, "- {}", line.told());
        }
        for note in &self.notes {
            let _ = writeln!(out, "- {note}");
        }
        out
    }

    fn place(&self) -> String {
        let Machine { cores, processor, memory, kernel, build } = &self.machine;
        let gib = *memory as f64 / f64::from(1 << 30);
        format!("{}, {cores} cores of {processor}, {gib:.0} GiB, Linux {kernel}, {build} build", self.started)
    }
}

impl Table {
    /// Without rows.
    pub fn new(head: &[&'static str]) -> Self {
        Self { head: head.to_vec(), rows: Vec::new() }
    }

    /// Columns under each other; the first one to the left, figures to the right.
    fn text(&self) -> String {
        let width = |at: usize| {
            let fields = self.rows.iter().map(|row| row[at].chars().count());
            fields.chain([self.head[at].chars().count()]).max().unwrap_or_default()
        };
        let widths: Vec<usize> = (0..self.head.len()).map(width).collect();
        let line = |fields: Vec<&str>| {
            let padded = fields.iter().zip(&widths).enumerate().map(|(at, (field, width))| match at {
                0 => format!("{field:<width$}"),
                _ => format!("{field:>width$}"),
            });
            format!("{}\n", padded.collect::<Vec<_>>().join("  ").trim_end())
        };
        let head = line(self.head.clone());
        let rows = self.rows.iter().map(|row| line(row.iter().map(String::as_str).collect()));
        head + &rows.collect::<String>()
    }

    fn markdown(&self) -> String {
        let line = |fields: &[String]| format!("| {} |\n", fields.join(" | "));
        let head: Vec<String> = self.head.iter().map(|name| (*name).to_owned()).collect();
        let rule = format!("|---|{}\n", "---:|".repeat(self.head.len() - 1));
        line(&head) + &rule + &self.rows.iter().map(|row| line(row)).collect::<String>()
    }
}

/// A figure with three digits that count.
pub fn figure(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 || value == 0.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        size if size >= 0.1 => format!("{value:.2}"),
        _ => format!("{value:.4}"),
    }
}

/// The same, or a dash where there is none.
pub fn maybe(value: Option<f64>) -> String {
    value.map_or_else(|| "-".to_owned(), figure)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_must_line_that_was_not_measured_is_missed() {
        let mut report = Report::begin("x", "fanfare bench x".to_owned());
        report.lines.push(Line::must("kB a session", Some(40.0), Bound::AtMost, 42.0));
        report.lines.push(Line::aim("kB a session", Some(40.0), Bound::AtMost, 26.0));
        assert!(report.passed(), "an aim is no must");
        assert!(report.text().contains("must  met     kB a session: 40.0, at most 42.0 (ratio 0.95)"));
        assert!(report.text().contains("aim  MISSED"));
        report.lines.push(Line::must("share of raw", None, Bound::AtLeast, 0.7));
        assert!(!report.passed());
        assert!(report.text().contains("not measured"));
    }

    #[test]
    fn limits_hold_on_their_side() {
        let met = |value, bound| Line::must("", Some(value), bound, 1.0).met;
        assert!(met(1.0, Bound::AtMost) && met(1.0, Bound::AtLeast));
        assert!(!met(1.1, Bound::AtMost) && !met(0.9, Bound::AtLeast));
        assert!(Line::must("", Some(0.0), Bound::AtMost, 0.0).ratio.is_none());
    }

    #[test]
    fn tables_are_aligned_and_markdown() {
        let mut table = Table::new(&["what", "n"]);
        table.rows.push(vec!["a".to_owned(), "100".to_owned()]);
        assert_eq!(table.text(), "what    n\na     100\n");
        assert_eq!(table.markdown(), "| what | n |\n|---|---:|\n| a | 100 |\n");
    }

    #[test]
    fn three_digits_of_a_figure_count() {
        assert_eq!(
            [0.0, 12_345.6, 12.34, 1.234, 0.012_34].map(figure),
            ["0", "12346", "12.3", "1.23", "0.0123"]
        );
    }
}
