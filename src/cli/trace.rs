//! `fanfare trace`: what became of a notification, as far as records of it are kept.

use std::process::ExitCode;

use async_nats::Client;
use clap::Args;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::config::Config;
use crate::delivery::evidence::{self, Record};
use crate::id::UserId;
use crate::nats::direct_get::{self, DirectGetError, End};
use crate::nats::{self, INBOX};

/// Users of one record that are printed; `--json` has all.
const PRINTED_MAX: usize = 20;

/// Arguments of `fanfare trace`.
#[derive(Debug, Args)]
pub(crate) struct Trace {
    /// The notification: its `notification_id`, else its `Nats-Msg-Id`, else its stream and sequence, `NOTIFICATIONS-17`.
    notification_id: String,
    /// Only what may be about this user; looks into the user's inbox, too.
    #[arg(long, value_parser = UserId::new)]
    user: Option<UserId>,
    /// One JSON object.
    #[arg(long)]
    json: bool,
}

/// What was found.
#[derive(Debug, Serialize)]
struct Found<'a> {
    notification_id: &'a str,
    /// Successes are recorded, too.
    sampled: bool,
    records: Vec<Record>,
    /// Sequences of it in the user's inbox.
    #[serde(skip_serializing_if = "Option::is_none")]
    inbox: Option<Vec<u64>>,
}

/// Runs the command against the NATS of `config`.
pub(crate) async fn run(args: &Trace, config: &Config) -> anyhow::Result<ExitCode> {
    let client = nats::connect(&config.nats).await?;
    let id = args.notification_id.as_str();
    let mut records = evidence::read(&client, id).await?;
    let sample = config.worker.evidence.sample;
    // The service may be configured otherwise than this command.
    let sampled = evidence::is_sampled(id, sample) || records.iter().any(Record::is_of_the_sample);
    let mut inbox = None;
    if let Some(user) = &args.user {
        records.retain(|record| record.may_be_about(user));
        inbox = Some(in_inbox(&client, user, id).await?);
    }
    records.sort_by_key(|record| record.at_ms);
    let found = Found { notification_id: id, sampled, records, inbox };
    if args.json {
        println!("{}", serde_json::to_string(&found)?);
    } else {
        println!("{}", told(&found, args.user.as_ref(), sample));
    }
    Ok(ExitCode::SUCCESS)
}

/// Where `user`'s inbox has the notification.
async fn in_inbox(client: &Client, user: &UserId, id: &str) -> Result<Vec<u64>, DirectGetError> {
    #[derive(Deserialize)]
    struct Named {
        notification_id: String,
    }
    let (mut sequences, mut last) = (Vec::new(), 0);
    loop {
        let request =
            serde_json::json!({ "seq": last + 1, "next_by_subj": format!("inbox.{user}"), "batch": 200 });
        let end = direct_get::many(client, INBOX, &request, |stored| {
            last = stored.sequence();
            if serde_json::from_slice(stored.body()).is_ok_and(|record: Named| record.notification_id == id) {
                sequences.push(last);
            }
        })
        .await?;
        if !matches!(end, End::More(_)) {
            return Ok(sequences);
        }
    }
}

/// The text for people.
fn told(found: &Found<'_>, user: Option<&UserId>, sample: f64) -> String {
    let Found { notification_id, sampled, records, inbox } = found;
    let mut lines = Vec::new();
    if let Some(first) = records.first() {
        let kind = first.notification_type.as_deref().unwrap_or("of an unknown type");
        lines.push(format!("{notification_id}: {kind}, stream sequence {}", first.stream_seq));
        lines.push(line(first.published_at_ms, "", "stored"));
        lines.extend(records.iter().map(|record| {
            let after = format!("+{} ms", record.at_ms.saturating_sub(record.published_at_ms));
            line(record.at_ms, &after, &ending(record, user))
        }));
    } else {
        let about = user.map_or_else(String::new, |user| format!(" that may be about {user}"));
        lines.push(format!("{notification_id}: no record{about}"));
    }
    let user = user.map_or("", UserId::as_str);
    let inboxed = inbox.iter().flatten();
    lines.extend(inboxed.map(|seq| format!("the inbox of {user} has it, sequence {seq} of {INBOX}")));
    if !sampled {
        let percent = sample * 100.0;
        lines.push(format!(
            "Failures and detours are recorded of every notification. This one is not in the sample of {percent} %\n\
             (worker.evidence.sample) of which the rest is, too: who got it live, or was away, left no record."
        ));
    }
    if records.is_empty() {
        lines.push(NO_RECORD.to_owned());
    }
    lines.join("\n")
}

/// Why there may be no record.
const NO_RECORD: &str = "\
Besides, there is none when
- it was settled more than 24 hours ago, or OUTCOMES was full and the oldest went;
- it is not settled yet: it waits in NOTIFICATIONS (fanfare_worker_backlog_messages) or in SCHEDULES;
- it was for nobody: an empty group, or everybody while nobody was connected;
- the record was dropped (fanfare_evidence_dropped_total), or the process was killed at that moment;
- it was never published under this id: the envelope's notification_id, else Nats-Msg-Id, else stream-sequence.";

fn line(at_ms: u64, after: &str, what: &str) -> String {
    format!("{}  {after:>10}  {what}", time_of(at_ms))
}

/// What a record says, in a line.
fn ending(record: &Record, user: Option<&UserId>) -> String {
    let held = if record.rerouted { "an ended session held it, then: " } else { "" };
    let tries = (record.tries > 1).then(|| format!("{} tries", record.tries));
    let details: Vec<_> = record.reason.iter().cloned().chain(tries).collect();
    let details = if details.is_empty() { String::new() } else { format!(" ({})", details.join(", ")) };
    let who = match user.filter(|user| record.users.contains(user)) {
        Some(user) => user.to_string(),
        None => names(record),
    };
    format!("{held}{}{details} {who} [{}]", record.outcome.as_str(), record.node)
}

/// The users of a record, as far as they are known and a line holds them.
fn names(record: &Record) -> String {
    let names: Vec<_> = record.users.iter().take(PRINTED_MAX).map(UserId::as_str).collect();
    let others = record.count.saturating_sub(names.len() as u64);
    match (names.is_empty(), others) {
        (true, 1) => "1 recipient, not looked up".to_owned(),
        (true, others) => format!("{others} recipients without names"),
        (false, 0) => names.join(", "),
        (false, others) => format!("{} and {others} more", names.join(", ")),
    }
}

/// RFC 3339 in UTC, with milliseconds always.
fn time_of(unix_ms: u64) -> String {
    let seconds =
        OffsetDateTime::from_unix_timestamp((unix_ms / 1_000) as i64).unwrap_or(OffsetDateTime::UNIX_EPOCH);
    let seconds = seconds.format(&Rfc3339).unwrap_or_default();
    format!("{}.{:03}Z", seconds.trim_end_matches('Z'), unix_ms % 1_000)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::delivery::Outcome;

    fn record(outcome: Outcome, reason: Option<&str>, users: &[&str]) -> Record {
        Record {
            notification_id: "n1".into(),
            notification_type: Some("friend.request".to_owned()),
            stream_seq: 7,
            node: "node-1".into(),
            published_at_ms: 1_795_353_778_001,
            at_ms: 1_795_353_778_013,
            outcome,
            reason: reason.map(ToOwned::to_owned),
            tries: 1,
            rerouted: false,
            count: users.len() as u64,
            users: users.iter().map(|user| UserId::new(user).unwrap()).collect(),
        }
    }

    #[test]
    fn a_timeline_says_when_what_and_who() {
        let mut late = record(Outcome::Inboxed, Some("no_session"), &["ben"]);
        (late.rerouted, late.at_ms) = (true, late.at_ms + 9_000);
        let records = vec![record(Outcome::Acked, None, &["ann", "ben"]), late];
        let found = Found { notification_id: "n1", sampled: true, records, inbox: None };
        assert_eq!(
            told(&found, None, 0.01),
            "n1: friend.request, stream sequence 7\n\
             2026-11-22T13:22:58.001Z              stored\n\
             2026-11-22T13:22:58.013Z      +12 ms  acked ann, ben [node-1]\n\
             2026-11-22T13:23:07.013Z    +9012 ms  an ended session held it, then: inboxed (no_session) ben [node-1]"
        );
    }

    #[test]
    fn nothing_known_is_explained() {
        let found =
            Found { notification_id: "n1", sampled: false, records: Vec::new(), inbox: Some(vec![3]) };
        let ann = UserId::new("ann").unwrap();
        let text = told(&found, Some(&ann), 0.01);
        for part in
            ["no record that may be about ann", "inbox of ann has it", "not in the sample of 1 %", "24 hours"]
        {
            assert!(text.contains(part), "{part}: {text}");
        }
    }

    #[test]
    fn many_are_cut_and_the_one_asked_for_is_shown() {
        let names: Vec<String> = (0..100).map(|n| format!("u{n}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let record = record(Outcome::Undeliverable, Some("slow_client"), &names);
        assert!(ending(&record, None).ends_with("u19 and 80 more [node-1]"));
        let asked = UserId::new("u99").unwrap();
        assert_eq!(ending(&record, Some(&asked)), "undeliverable (slow_client) u99 [node-1]");
    }

    #[test]
    fn a_record_of_a_success_tells_that_it_was_in_the_sample() {
        assert!(record(Outcome::Delivered, None, &["ann"]).is_of_the_sample());
        assert!(record(Outcome::Inboxed, Some("no_session"), &["ann"]).is_of_the_sample());
        assert!(!record(Outcome::Inboxed, Some("slow_client"), &["ann"]).is_of_the_sample());
        assert!(!record(Outcome::Expired, None, &["ann"]).is_of_the_sample());
        let rerouted = Record { rerouted: true, ..record(Outcome::Delivered, None, &["ann"]) };
        assert!(!rerouted.is_of_the_sample());
    }
}
