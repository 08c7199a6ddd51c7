//! What NATS did not allow this process.
//!
//! The server drops what a user may not publish and says so beside the conversation, so whoever waits for an answer sees a
//! timeout. What it said is kept here, for the errors that come of it.

use std::fmt;

use metrics::counter;
use parking_lot::Mutex;

/// Denials that are remembered and logged; a subject may end with the id of a user. Further ones are only counted.
const REMEMBERED: usize = 32;

/// Those of this process, whose parts share one connection.
static DENIED: Mutex<Vec<Denial>> = Mutex::new(Vec::new());

/// One thing that was not allowed. Shown, it says what to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Denial {
    /// Who may not, in words.
    who: String,
    /// What: a verb and a subject.
    what: String,
    /// It is about an inbox, so answers cannot come.
    inbox: Option<String>,
}

impl fmt::Display for Denial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NATS does not allow {} to {}: ", self.who, self.what)?;
        match &self.inbox {
            Some(prefix) => write!(
                f,
                "answers come there, so allow it {prefix}.>, or set nats.inbox_prefix to the prefix that it is allowed"
            ),
            None => write!(f, "`fanfare provision permissions` prints what each role needs (docs/access.md)"),
        }
    }
}

impl Denial {
    /// Reads the server's words; `None` when they are about something else.
    fn read(said: &str, who: &str, inbox_prefix: &str) -> Option<Self> {
        let (violation, what) = said.split_at_checked("permissions violation for ".len())?;
        if !violation.eq_ignore_ascii_case("permissions violation for ") {
            return None;
        }
        let what = match (what.strip_prefix("Publish to "), what.strip_prefix("Subscription to ")) {
            (Some(subject), _) => format!("publish to {subject}"),
            (_, Some(subject)) => format!("subscribe to {subject}"),
            (None, None) => what.to_owned(),
        };
        let inbox =
            what.starts_with(&format!("subscribe to \"{inbox_prefix}.")).then(|| inbox_prefix.to_owned());
        Some(Self { who: who.to_owned(), what, inbox })
    }

    /// The same for every one of this process's inboxes, which all have other names.
    fn is_like(&self, other: &Self) -> bool {
        self == other || (self.inbox.is_some() && (&self.who, &self.inbox) == (&other.who, &other.inbox))
    }
}

/// Takes an error of the server: true when it was a denial, which is counted, and logged once.
pub(super) fn note(said: &str, who: &str, inbox_prefix: &str) -> bool {
    let Some(denial) = Denial::read(said, who, inbox_prefix) else { return false };
    counter!("fanfare_nats_denied_total").increment(1);
    let mut denied = DENIED.lock();
    if denied.len() < REMEMBERED && !denied.iter().any(|known| known.is_like(&denial)) {
        tracing::error!("{denial}");
        denied.push(denial);
    }
    true
}

/// What this process was denied so far, each once, and no more than the first 32.
pub fn denied() -> Vec<Denial> {
    DENIED.lock().clone()
}

/// Describes the metrics of this part.
pub(crate) fn describe() {
    metrics::describe_counter!(
        "fanfare_nats_denied_total",
        "publishes and subscriptions that this user's permissions do not allow"
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_denial_says_who_what_and_what_to_do() {
        let read = |said: &str| Denial::read(said, "user \"w\"", "_INBOX_w").map(|denial| denial.to_string());
        let text = read("Permissions Violation for Publish to \"inbox.a\"").unwrap();
        assert!(text.starts_with("NATS does not allow user \"w\" to publish to \"inbox.a\": "), "{text}");
        assert!(text.contains("fanfare provision permissions"), "{text}");
        let text = read("Permissions Violation for Subscription to \"a.*\" using queue \"q\"").unwrap();
        assert!(text.contains(" to subscribe to \"a.*\" using queue \"q\": `fanfare"), "{text}");
        let text = read("permissions violation for Subscription to \"_INBOX_w.Zq1\"").unwrap();
        assert!(text.contains("allow it _INBOX_w.>, or set nats.inbox_prefix"), "{text}");
        for other in ["Authorization Violation", "Permissions", "", "maximum payload exceeded and mörë"] {
            assert_eq!(read(other), None, "{other}");
        }
    }

    #[test]
    fn inboxes_are_denied_once() {
        let read = |said: &str| Denial::read(said, "w", "_INBOX").unwrap();
        let one = read("Permissions Violation for Subscription to \"_INBOX.1\"");
        assert!(one.is_like(&read("Permissions Violation for Subscription to \"_INBOX.2\"")));
        assert!(!one.is_like(&read("Permissions Violation for Subscription to \"a\"")));
        let publish = read("Permissions Violation for Publish to \"_INBOX.1\"");
        assert!(!publish.is_like(&read("Permissions Violation for Publish to \"_INBOX.2\"")));
    }
}
