//! What became of each step of a run, and the table that says so. Synchronous: arrivals in, text out.

use std::collections::{BTreeSet, HashMap};
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
    /// Who got it and should not.
    wrong: Vec<Device>,
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
            wrong: Vec::new(),
            faults: Vec::new(),
        }
    }

    /// Of a step that nobody publishes. Its id and time are known when it comes.
    pub(super) fn awaited(step: Step, from: Instant) -> Self {
        let payload = step.fields.iter().map(|(field, value)| ((*field).to_owned(), value.clone())).collect();
        let event_type = step.event_type.to_owned();
        let content = Content { event_type, timestamp: 0, from_user_id: None, payload };
        Self::new(step, String::new(), content, from, Some(Duration::ZERO))
    }

    /// True when `content` is the first of what is awaited here.
    fn awaits(&self, content: &Content) -> bool {
        let says = |(field, value): &(&str, Value)| content.payload.get(field) == Some(value);
        let open = self.step.by_itself && self.id.is_empty();
        open && content.event_type == self.step.event_type && self.step.fields.iter().all(says)
    }

    fn book(&mut self, arrival: &Arrival) {
        let Arrival { device, lane, at, content, .. } = arrival;
        let name = device.1;
        if !self.expected.contains(device) {
            self.wrong.push(*device);
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

    fn is_of_story(&self) -> bool {
        !self.step.title.is_empty()
    }

    fn event(&self) -> String {
        let Step { event_type, variant, .. } = &self.step;
        if variant.is_empty() { (*event_type).to_owned() } else { format!("{event_type} ({variant})") }
    }

    /// What the row is called where its event alone says too little.
    fn name(&self) -> String {
        match self.step.title {
            "" => self.event(),
            title => format!("{title} ({})", self.event()),
        }
    }

    /// The row's line; for a step of a story that is what happens and whom it reached.
    fn render(&self) -> String {
        let Step { title, audience, .. } = &self.step;
        let (event, figures, verdict) = (self.event(), self.figures(), self.verdict());
        if title.is_empty() {
            format!("{event:<38} {audience:<28} {figures}{verdict}")
        } else {
            format!("{title:<38} {event:<28} {figures}  {}{verdict}", self.reached())
        }
    }

    fn figures(&self) -> String {
        let slowest = self.latencies.values().max().map(Duration::as_secs_f64);
        let latency = match (slowest, self.held) {
            (Some(slowest), None) => format!("{:.1} ms", slowest * 1e3),
            (Some(slowest), Some(Duration::ZERO)) => format!("{slowest:.1} s"),
            (Some(slowest), Some(window)) => {
                format!("{} s + {:.0} ms", window.as_secs(), (slowest - window.as_secs_f64()) * 1e3)
            }
            (None, _) => "-".to_owned(),
        };
        let (expected, actual, wrong) = (self.expected.len(), self.latencies.len(), self.wrong.len());
        format!("{expected:>8} {actual:>6} {wrong:>5}  {:<8} {latency:>10}", self.step.lane)
    }

    fn verdict(&self) -> &'static str {
        match (self.passed(), self.lanes_wrong) {
            (true, _) => "",
            (false, 0) => "  FAILED",
            (false, _) => "  WRONG LANE",
        }
    }

    /// The users who got it, with those who should not have.
    fn reached(&self) -> String {
        let devices: Vec<_> = self.latencies.keys().chain(&self.wrong).collect();
        let users: BTreeSet<_> = devices.into_iter().map(|(user, _)| *user).collect();
        if users.is_empty() { "nobody".to_owned() } else { users.into_iter().collect::<Vec<_>>().join(", ") }
    }

    /// What is wrong, in words.
    fn explained(&self) -> impl Iterator<Item = String> {
        let missing = self.expected.iter().filter(|device| !self.latencies.contains_key(device));
        let missing = missing.map(|(_, device)| format!("{device} did not get it"));
        missing.chain(self.faults.iter().cloned()).map(|what| format!("{}: {what}", self.name()))
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
        if !row.id.is_empty() {
            self.by_id.insert(row.id.clone(), at);
        }
        self.rows.push(row);
        at
    }

    /// True when every device that should get it has.
    pub(super) fn is_complete(&self, at: usize) -> bool {
        self.rows[at].is_complete()
    }

    /// Books one delivery on the row of its notification.
    pub(super) fn book(&mut self, arrival: Arrival) {
        if !self.by_id.contains_key(&arrival.id)
            && let Some(at) = self.rows.iter().position(|row| row.awaits(&arrival.content))
        {
            // The others must get the same.
            self.by_id.insert(arrival.id.clone(), at);
            self.rows[at].id.clone_from(&arrival.id);
            self.rows[at].content.clone_from(&arrival.content);
        }
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

    /// The tables of events and of the story, what went wrong in words and, as the last line, the summary.
    pub fn render(&self) -> String {
        let head = |what: &str, of: &str| {
            let (expected, actual, wrong, lane, latency) = ("expected", "actual", "wrong", "lane", "latency");
            format!("{what:<38} {of:<28} {expected:>8} {actual:>6} {wrong:>5}  {lane:<8} {latency:>10}")
        };
        let (story, events): (Vec<_>, Vec<_>) = self.rows.iter().partition(|row| row.is_of_story());
        let mut lines = Vec::new();
        let tables =
            [(events, head("event", "audience")), (story, head("story: group life", "event") + "  reached")];
        for (rows, head) in tables.into_iter().filter(|(rows, _)| !rows.is_empty()) {
            lines.push(head);
            lines.extend(rows.into_iter().map(Row::render));
            lines.push(String::new());
        }
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
        let wrong: usize = self.rows.iter().map(|row| row.wrong.len()).sum::<usize>() + self.strays;
        let story = || self.rows.iter().filter(|row| row.is_of_story());
        let steps = match story().count() {
            0 => String::new(),
            all => format!(", {} of {all} steps of the story", story().filter(|row| row.passed()).count()),
        };
        format!(
            "{} of {} events delivered ({} of {expected} deliveries in {} notifications{steps}), P95 {:.1} ms \
             without the {held} that a window or a time limit held, {wrong} wrong deliveries",
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

    #[test]
    fn what_the_gateway_makes_itself_is_booked_when_it_comes_and_must_be_one_for_all() {
        let steps = crate::demo::story::steps();
        let step = steps.into_iter().find(|step| step.by_itself).unwrap();
        let mut report = Report::default();
        report.add(Row::awaited(step, Instant::now()));
        let payload = json!({
            "call_id": "call-life", "status": "ended", "reason": "invite_timeout", "timestamp": 7
        });
        let event_type = "livekit.call_status".to_owned();
        let content = Content { event_type, timestamp: 7, from_user_id: None, payload };
        let arrival = |device, id: &str| Arrival {
            device,
            id: id.to_owned(),
            content: content.clone(),
            ..arrival(PHONE)
        };
        report.book(Arrival { content: super::tests::content(), ..arrival(("alice", "phone-alice"), "n") });
        assert_eq!(report.strays, 1, "another event is not taken for it");
        for device in [("alice", "phone-alice"), ("dave", "phone-dave")] {
            report.book(arrival(device, "n2"));
        }
        report.book(arrival(("carol", "phone-carol"), "n3"));
        let text = report.render();
        assert!(!report.passed() && report.strays == 2, "{text}");
        assert!(text.contains("  alice, dave  FAILED\n"), "{text}");
        let words = "nobody answers in time (livekit.call_status): phone-dave got it and should not";
        assert!(text.contains(words) && text.ends_with("3 wrong deliveries"), "{text}");
        report.book(arrival(("carol", "phone-carol"), "n2"));
        assert!(report.is_complete(0));
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
