//! What became of each step of a run, and the table that says so. Synchronous: arrivals in, text out.

use std::collections::HashMap;
use std::time::Duration;

use serde_json::Value;
use tokio::time::Instant;

use super::super::scenario::{Device, Step};

/// What a notification says, as published or as received.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Content {
    pub(super) event_type: String,
    pub(super) timestamp: i64,
    pub(super) from_user_id: Option<String>,
    pub(super) payload: Value,
}

impl Content {
    /// Of an envelope.
    pub(super) fn published(envelope: &Value) -> Self {
        let text = |field: &str| envelope.get(field).and_then(Value::as_str).map(str::to_owned);
        Self {
            event_type: text("type").unwrap_or_default(),
            timestamp: envelope["timestamp"].as_i64().unwrap_or_default(),
            from_user_id: text("from_user_id"),
            payload: envelope["payload"].clone(),
        }
    }

    /// The first field that differs from `published`, and its two values.
    fn difference(&self, published: &Self) -> Option<String> {
        let fields = |content: &Self| {
            let Self { event_type, timestamp, from_user_id, payload } = content;
            [
                ("type", event_type.clone()),
                ("timestamp", timestamp.to_string()),
                ("from_user_id", format!("{from_user_id:?}")),
                ("payload", payload.to_string()),
            ]
        };
        let mut both = fields(self).into_iter().zip(fields(published));
        let ((name, got), (_, sent)) = both.find(|((_, got), (_, sent))| got != sent)?;
        Some(format!("{name} {got} instead of {sent}"))
    }
}

/// A notification that a device got.
#[derive(Debug, Clone)]
pub(super) struct Arrival {
    pub(super) device: Device,
    pub(super) id: String,
    /// The lane's name; `datagram` for none.
    pub(super) lane: &'static str,
    pub(super) at: Instant,
    pub(super) content: Content,
}

/// What became of one step.
#[derive(Debug)]
pub(super) struct Row {
    step: Step,
    id: String,
    content: Content,
    published_at: Instant,
    expected: Vec<Device>,
    /// The row's window, for notifications that wait in it on purpose.
    held: Option<Duration>,
    /// Of each device that should get it and did.
    latencies: HashMap<Device, Duration>,
    lanes_wrong: usize,
    wrong: usize,
    /// What else is wrong, in words.
    faults: Vec<String>,
}

impl Row {
    pub(super) fn new(
        step: Step,
        id: String,
        content: Content,
        published_at: Instant,
        held: Option<Duration>,
    ) -> Self {
        let expected = step.devices();
        Self {
            step,
            id,
            content,
            published_at,
            expected,
            held,
            latencies: HashMap::new(),
            lanes_wrong: 0,
            wrong: 0,
            faults: Vec::new(),
        }
    }

    fn book(&mut self, arrival: &Arrival) {
        let Arrival { device, lane, at, content, .. } = arrival;
        let name = device.1;
        if !self.expected.contains(device) {
            self.wrong += 1;
            self.faults.push(format!("{name} got it and should not"));
            return;
        }
        let latency = at.saturating_duration_since(self.published_at);
        if self.latencies.insert(*device, latency).is_some() {
            self.faults.push(format!("{name} got it again"));
        }
        if *lane != self.step.lane {
            self.lanes_wrong += 1;
            self.faults.push(format!("{name} got it on {lane}"));
        }
        if let Some(difference) = content.difference(&self.content) {
            self.faults.push(format!("{name} got {difference}"));
        }
    }

    fn is_complete(&self) -> bool {
        self.latencies.len() == self.expected.len()
    }

    fn passed(&self) -> bool {
        self.is_complete() && self.faults.is_empty()
    }

    fn event(&self) -> String {
        let Step { event_type, variant, .. } = &self.step;
        if variant.is_empty() { (*event_type).to_owned() } else { format!("{event_type} ({variant})") }
    }

    fn render(&self) -> String {
        let Step { audience, lane, .. } = &self.step;
        let slowest = self.latencies.values().max().map(Duration::as_secs_f64);
        let latency = match (slowest, self.held) {
            (Some(slowest), None) => format!("{:.1} ms", slowest * 1e3),
            (Some(slowest), Some(window)) => {
                format!("{} s + {:.0} ms", window.as_secs(), (slowest - window.as_secs_f64()) * 1e3)
            }
            (None, _) => "-".to_owned(),
        };
        let verdict = match (self.passed(), self.lanes_wrong) {
            (true, _) => "",
            (false, 0) => "  FAILED",
            (false, _) => "  WRONG LANE",
        };
        format!(
            "{:<38} {audience:<28} {:>8} {:>6} {:>5}  {lane:<8} {latency:>10}{verdict}",
            self.event(),
            self.expected.len(),
            self.latencies.len(),
            self.wrong,
        )
    }

    /// What is wrong, in words.
    fn explained(&self) -> impl Iterator<Item = String> {
        let missing = self.expected.iter().filter(|device| !self.latencies.contains_key(device));
        let missing = missing.map(|(_, device)| format!("{device} did not get it"));
        missing.chain(self.faults.iter().cloned()).map(|what| format!("{}: {what}", self.event()))
    }
}

/// The result of a run.
#[derive(Debug, Default)]
pub struct Report {
    rows: Vec<Row>,
    /// Rows by notification id.
    by_id: HashMap<String, usize>,
    /// Deliveries of notifications that nobody published.
    strays: usize,
    /// What is wrong and belongs to no step.
    pub(super) faults: Vec<String>,
}

impl Report {
    /// Adds what was published and gives its place.
    pub(super) fn add(&mut self, row: Row) -> usize {
        let at = self.rows.len();
        self.by_id.insert(row.id.clone(), at);
        self.rows.push(row);
        at
    }

    /// True when every device that should get it has.
    pub(super) fn is_complete(&self, at: usize) -> bool {
        self.rows[at].is_complete()
    }

    /// Books one delivery on the row of its notification.
    pub(super) fn book(&mut self, arrival: Arrival) {
        if let Some(at) = self.by_id.get(&arrival.id) {
            self.rows[*at].book(&arrival);
        } else {
            self.strays += 1;
            let Arrival { device, id, content, .. } = arrival;
            self.faults.push(format!("{} got {} {id}, which nobody published", device.1, content.event_type));
        }
    }

    /// True when every expected delivery arrived as it was published, on its lane, no other did, and nothing else
    /// went wrong.
    pub fn passed(&self) -> bool {
        self.faults.is_empty() && self.rows.iter().all(Row::passed)
    }

    /// The table, what went wrong in words and, as the last line, the summary.
    pub fn render(&self) -> String {
        let mut lines = vec![format!(
            "{:<38} {:<28} {:>8} {:>6} {:>5}  {:<8} {:>10}",
            "event", "audience", "expected", "actual", "wrong", "lane", "latency"
        )];
        lines.extend(self.rows.iter().map(Row::render));
        lines.push(String::new());
        if !self.passed() {
            lines.extend(self.rows.iter().flat_map(Row::explained));
            lines.extend(self.faults.iter().cloned());
            lines.push(String::new());
        }
        lines.push(self.summary());
        lines.join("\n")
    }

    fn summary(&self) -> String {
        let events = |wanted: fn(&Row) -> bool| {
            let mut by_type: HashMap<&str, bool> = HashMap::new();
            for row in &self.rows {
                *by_type.entry(row.step.event_type).or_insert(true) &= wanted(row);
            }
            by_type.values().filter(|whole| **whole).count()
        };
        let of = |held: bool| self.rows.iter().filter(move |row| row.held.is_some() == held);
        let mut latencies: Vec<_> = of(false).flat_map(|row| row.latencies.values().copied()).collect();
        let held: usize = of(true).map(|row| row.latencies.len()).sum();
        let p95 = percentile(&mut latencies, 0.95).unwrap_or_default();
        let expected: usize = self.rows.iter().map(|row| row.expected.len()).sum();
        let wrong: usize = self.rows.iter().map(|row| row.wrong).sum::<usize>() + self.strays;
        format!(
            "{} of {} events delivered ({} of {expected} deliveries in {} notifications), P95 {:.1} ms \
             without the {held} that a coalescing window held, {wrong} wrong deliveries",
            events(Row::passed),
            events(|_| true),
            latencies.len() + held,
            self.rows.len(),
            p95.as_secs_f64() * 1e3,
        )
    }
}

/// The value below which the share `of` of `values` lies; sorts them.
fn percentile(values: &mut [Duration], of: f64) -> Option<Duration> {
    values.sort_unstable();
    let at = (values.len() as f64 * of).ceil() as usize;
    values.get(at.saturating_sub(1)).copied()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::demo::scenario;

    const PHONE: Device = ("user-123", "phone-123");
    const TABLET: Device = ("user-123", "tablet-123");

    #[test]
    fn everything_as_it_was_published_passes() {
        let mut report = published();
        report.book(arrival(PHONE));
        assert!(!report.is_complete(0) && !report.passed());
        report.book(arrival(TABLET));
        assert!(report.is_complete(0) && report.passed(), "{}", report.render());
        assert!(report.render().ends_with("0 wrong deliveries"));
    }

    #[test]
    fn one_device_twice_is_not_two_devices() {
        let mut report = published();
        report.book(arrival(PHONE));
        report.book(arrival(PHONE));
        assert!(!report.is_complete(0));
        let text = report.render();
        assert!(text.contains("friend.request: phone-123 got it again"), "{text}");
        assert!(text.contains("friend.request: tablet-123 did not get it"), "{text}");
    }

    #[test]
    fn every_change_of_the_content_is_a_failure_in_words() {
        let content = |change: fn(&mut Content)| {
            let mut content = content();
            change(&mut content);
            content
        };
        let altered = [
            ("got type x.y", content(|content| content.event_type = "x.y".to_owned())),
            ("got timestamp 8 instead of 7", content(|content| content.timestamp = 8)),
            ("got from_user_id None instead of", content(|content| content.from_user_id = None)),
            (
                "got payload {\"a\":2} instead of {\"a\":1}",
                content(|content| content.payload = json!({"a": 2})),
            ),
        ];
        for (words, content) in altered {
            let mut report = published();
            report.book(arrival(PHONE));
            report.book(Arrival { content, ..arrival(TABLET) });
            assert!(!report.passed() && report.render().contains(words), "{words}:\n{}", report.render());
        }
    }

    #[test]
    fn what_belongs_to_no_step_fails_all_the_same() {
        let mut stray = published();
        let mut report = published();
        for device in [PHONE, TABLET] {
            stray.book(arrival(device));
            report.book(arrival(device));
        }
        stray.book(Arrival { id: "other".to_owned(), ..arrival(PHONE) });
        assert!(!stray.passed() && stray.render().ends_with("1 wrong deliveries"));
        report.faults.push("a session was lost".to_owned());
        assert!(
            !report.passed() && report.render().contains("\na session was lost\n"),
            "{}",
            report.render()
        );
    }

    #[test]
    fn percentile_is_the_smallest_value_that_covers_the_share() {
        let mut values: Vec<_> = (1..=20).map(Duration::from_millis).collect();
        assert_eq!(percentile(&mut values, 0.95), Some(Duration::from_millis(19)));
        assert_eq!(percentile(&mut values, 1.0), Some(Duration::from_millis(20)));
        assert_eq!(percentile(&mut [], 0.5), None);
    }

    fn content() -> Content {
        Content::published(&json!({
            "type": "friend.request", "timestamp": 7, "from_user_id": "bob", "payload": {"a": 1}
        }))
    }

    fn published() -> Report {
        let step = scenario::steps().into_iter().find(|step| step.event_type == "friend.request").unwrap();
        let mut report = Report::default();
        report.add(Row::new(step, "n1".to_owned(), content(), Instant::now(), None));
        report
    }

    fn arrival(device: Device) -> Arrival {
        Arrival { device, id: "n1".to_owned(), lane: "high", at: Instant::now(), content: content() }
    }
}
