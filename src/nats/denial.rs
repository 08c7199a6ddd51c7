//! What NATS did not allow this process.
//!
//! The server drops what a user may not publish and says so beside the conversation, so whoever waits for an answer sees a
//! timeout. What it said is kept here, for the errors that come of it.

use std::fmt;

use metrics::counter;
use parking_lot::Mutex;

use super::Role;

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
    inbox: Option<Inbox>,
}

/// The inboxes of a process: what their subjects begin with, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Inbox {
    pub(super) prefix: String,
    /// The prefix is that of this role, which the process has.
    pub(super) role: Option<Role>,
}

impl fmt::Display for Denial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NATS does not allow {} to {}: ", self.who, self.what)?;
        match &self.inbox {
            // To allow a user the inboxes of another role would let it read what that one is answered.
            Some(Inbox { role: Some(role), .. }) => write!(
                f,
                "this command needs role {role}, so connect as a user that has it (`fanfare provision permissions`, \
                 docs/access.md); if {} has it with other inboxes, set nats.inbox_prefix to theirs",
                self.who
            ),
            Some(Inbox { prefix, role: None }) => write!(
                f,
                "answers come there, so allow it {prefix}.>, or set nats.inbox_prefix to the prefix that it is allowed"
            ),
            None => write!(f, "`fanfare provision permissions` prints what each role needs (docs/access.md)"),
        }
    }
}

impl Denial {
    /// Reads the server's words; `None` when they are about something else.
    fn read(said: &str, who: &str, inbox: &Inbox) -> Option<Self> {
        let (violation, what) = said.split_at_checked("permissions violation for ".len())?;
        if !violation.eq_ignore_ascii_case("permissions violation for ") {
            return None;
        }
        let what = match (what.strip_prefix("Publish to "), what.strip_prefix("Subscription to ")) {
            (Some(subject), _) => format!("publish to {subject}"),
            (_, Some(subject)) => format!("subscribe to {subject}"),
            (None, None) => what.to_owned(),
        };
        let is_inbox = what.starts_with(&format!("subscribe to \"{}.", inbox.prefix));
        let inbox = is_inbox.then(|| inbox.clone());
        Some(Self { who: who.to_owned(), what, inbox })
    }

    /// The same for every one of this process's inboxes, which all have other names.
    fn is_like(&self, other: &Self) -> bool {
        self == other || (self.inbox.is_some() && (&self.who, &self.inbox) == (&other.who, &other.inbox))
    }
}

/// Takes an error of the server: true when it was a denial, which is counted, and logged once.
pub(super) fn note(said: &str, who: &str, inbox: &Inbox) -> bool {
    let Some(denial) = Denial::read(said, who, inbox) else { return false };
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
        let mut inbox = Inbox { prefix: "_INBOX_w".to_owned(), role: None };
        let read = |said: &str| Denial::read(said, "user \"w\"", &inbox).map(|denial| denial.to_string());
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
        inbox.role = Some(Role::Operator);
        let denial =
            Denial::read("Permissions Violation for Subscription to \"_INBOX_w.Z\"", "user \"w\"", &inbox);
        let text = denial.unwrap().to_string();
        assert!(
            text.contains(": this command needs role operator, ") && !text.contains("allow it"),
            "{text}"
        );
    }

    #[test]
    fn inboxes_are_denied_once() {
        let inbox = Inbox { prefix: "_INBOX".to_owned(), role: None };
        let read = |said: &str| Denial::read(said, "w", &inbox).unwrap();
        let one = read("Permissions Violation for Subscription to \"_INBOX.1\"");
        assert!(one.is_like(&read("Permissions Violation for Subscription to \"_INBOX.2\"")));
        assert!(!one.is_like(&read("Permissions Violation for Subscription to \"a\"")));
        let publish = read("Permissions Violation for Publish to \"_INBOX.1\"");
        assert!(!publish.is_like(&read("Permissions Violation for Publish to \"_INBOX.2\"")));
    }
}
