//! The part of the event list that says what comes of bad input. Pure.

use std::fmt::Write;

use crate::delivery::Outcome;
use crate::id;
use crate::pipeline::Reason;
use crate::pipeline::classify::AHEAD_MAX;
use crate::protocol::envelope::{ENVELOPE_BYTES_MAX, NOTIFICATION_ID_BYTES_MAX, PAYLOAD_LEVELS_MAX};

const HEAD: &str = "
## What comes of bad input

The publisher gets no answer but JetStream's. A dead letter keeps the message as it came, with the reason and a sentence in its
headers, and counts as `dead_lettered`; outcomes are explained in [delivery.md](delivery.md#outcomes).

| Input | What comes of it |
|---|---|
";

/// The section as Markdown.
pub(super) fn section() -> String {
    let mut text = HEAD.to_owned();
    for &reason in Reason::ALL {
        for cause in causes(reason) {
            let _ = writeln!(text, "| {cause} | dead letter `{}` |", reason.as_str());
        }
    }
    for (input, fate) in others() {
        let _ = writeln!(text, "| {input} | {fate} |");
    }
    text
}

/// What leads to a dead letter with this reason.
fn causes(reason: Reason) -> Vec<String> {
    let causes: &[&str] = match reason {
        Reason::Malformed => &[
            "no JSON, no `payload`, or one that is no object",
            "a field of the wrong type, or a device id in `metadata` outside the alphabet",
            &format!("a payload nested deeper than {PAYLOAD_LEVELS_MAX} levels"),
        ],
        Reason::TooLarge => &[&format!("an envelope of more than {} KiB", ENVELOPE_BYTES_MAX / 1_024)],
        Reason::InvalidId => &[
            &format!("a target outside the alphabet of ids, or of more than {} characters", id::ID_BYTES_MAX),
            "such a `from_user_id` or `to_user_id`",
            "such an id in a field that says whom it is for, or what it changes",
            &format!(
                "a `notification_id` of more than {NOTIFICATION_ID_BYTES_MAX} bytes, or with control characters"
            ),
        ],
        Reason::UnknownEvent => &["an event that the stream takes and the catalog does not know any more"],
        Reason::TypeMismatch => &["subject and `type` disagree"],
        Reason::RecipientMismatch => &["target and `to_user_id` disagree"],
        Reason::NoAudience => &["no audience rule applies (rows of your own; built-in ones always have one)"],
        Reason::UnknownAudience => &["a group, conversation or call whose members nobody ever wrote"],
        Reason::TooFarAhead => {
            &[&format!("`metadata.deliver_at` more than {} days ahead", AHEAD_MAX.as_secs() / 86_400)]
        }
        Reason::Incomplete => &["a ban that says neither until when nor for ever"],
        Reason::Panic => &["nothing of yours: a defect of the gateway"],
        Reason::WriteRefused => &["nothing of yours: NATS refused a write at every try, or did not answer"],
        Reason::CrashLoop => &["nothing of yours: 15 deliveries that never came to an end"],
        Reason::MaxDeliveries => &["nothing of yours: 20 deliveries, and JetStream gave it up by itself"],
    };
    causes.iter().map(|cause| (*cause).to_owned()).collect()
}

/// What is no dead letter.
fn others() -> Vec<(&'static str, String)> {
    let outcome = |outcome: Outcome| format!("outcome `{}`", outcome.as_str());
    let skipped = "counted in `fanfare_pipeline_effects_skipped_total`";
    vec![
        (
            "a subject that no event has, or a broadcast's with another target",
            "not stored: a JetStream publish fails, a core publish vanishes".to_owned(),
        ),
        (
            "an ephemeral event with any of these faults",
            "dropped, counted in `fanfare_worker_ephemeral_dropped_total` with the reason".to_owned(),
        ),
        ("a time to live, or an `expires_at` that ends the event, that is over", outcome(Outcome::Expired)),
        ("`metadata.deliver_at` in the past", "delivered at once".to_owned()),
        ("a `priority` of another word", "delivered on the event's lane".to_owned()),
        (
            "a user whom nobody knows",
            format!(
                "as for somebody who is away: offline push and inbox of the row, else {}",
                outcome(Outcome::Absent)
            ),
        ),
        ("a user without followers", "nobody gets it, and no outcome is counted".to_owned()),
        ("somebody leaves who is no member", "delivered, also to that user; no member less".to_owned()),
        (
            "the role of somebody who is no member",
            "delivered, also to that user, who is a member from then on".to_owned(),
        ),
        ("a role of another word", "delivered; it is that of an ordinary member".to_owned()),
        (
            "an effect without the fields it needs, but for a ban",
            format!("delivered without the effect, {skipped}"),
        ),
        ("a ban that is over", format!("delivered; it bans nobody, {skipped}")),
        ("a synchronisation request that closes a loop", outcome(Outcome::Excluded)),
    ]
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_reason_has_a_cause_that_is_named_once() {
        let text = section();
        for reason in Reason::ALL {
            assert!(text.contains(&format!("dead letter `{}`", reason.as_str())), "{reason:?}");
        }
        let rows =
            text.lines().filter(|line| line.starts_with("| ")).filter_map(|line| line.split(" | ").next());
        let rows: Vec<&str> = rows.collect();
        let distinct: BTreeSet<&&str> = rows.iter().collect();
        assert_eq!(distinct.len(), rows.len(), "{text}");
    }
}
