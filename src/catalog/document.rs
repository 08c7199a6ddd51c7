//! The event list for authors of services, generated from a catalog as Markdown. Pure.

use std::fmt::Write;

use super::Catalog;
use super::rules::{
    Effect, Event, Field, Inbox, Kind, Offline, Priority, Role, Rule, ShapeMode, Target, When,
};

const HEAD: &str = "\
# Events

<!-- Generated from config/catalog.toml by `fanfare docs events`; change the catalog, not this file. -->

What a service can publish, who gets it and with which promise. The last token of a subject is its target, such as a
user id.

- **Lane, rank**: urgent lanes have workers and streams of their own; within a lane the higher rank leaves first.
- **Ack**: a client must confirm it within that time, or the user is handed off as if offline.
- **Offline**: what a user gets whom no session serves. `alert` shows a message, `ring` rings, `silent` wakes the
  app, `never` forbids a push whatever the publisher asks for.
- **Inbox**: what is kept for devices that were away. `missed`: when no session of the user took it; `always`: for
  each device that was away.
- **TTL**: seconds a notification is worth delivering, counted from the time at which JetStream stored it.
";

const RULES: &str = "
## Rules for all events

- **Publish with JetStream** and set `Nats-Msg-Id`: the publisher then learns that it is stored, or that the event is
  unknown, and a repeat within 30 s is stored once. Ephemeral events are the exception: publish them with core NATS;
  they are never stored and arrive at most once.
- **Ids** (users, groups, conversations, calls, devices) have 1 to 128 characters out of `A-Z a-z 0-9 _ -`.
- **Only `type` and `payload` are needed.** A missing `notification_id` is taken from `Nats-Msg-Id`, else from the
  position in the stream; the rest comes from the row. An envelope has at most 256 KiB, and its payload
  at most 64 levels of nesting.
- **`metadata.require_ack: true`** asks for an ack where a single user is addressed; `false` never removes one.
- **`metadata.ttl`** (seconds) goes before the row's TTL.
- **`metadata.offline`** (`none`, `silent`, `alert`) goes before the row's, except for `never`, `ring` and
  ephemeral events.
- **`metadata.deliver_at`** (Unix seconds, up to 30 days ahead) delays any stored event.
- **`metadata.origin_device_id`** names the device that caused the event, so that it is not told what it knows.
- **`priority`** moves a notification between lanes on its way to the devices, for the rows that allow it; which
  workers take it is decided by its subject alone.
- **Dead letters**: what cannot be decoded, contradicts its subject, or belongs to no known audience goes to the dead
  letters with [the reason](#what-comes-of-bad-input), and the rest goes on.
- **No order** is promised between notifications: payloads that need one carry a `seq` of their own.
- **Repeats** are possible, and have the same `notification_id`: clients drop them.
";

/// The event list of `catalog` as Markdown.
pub fn markdown(catalog: &Catalog) -> String {
    let mut text = HEAD.to_owned();
    let mut service = "";
    for event in catalog.events() {
        if event.service() != service {
            service = event.service();
            let _ = write!(
                text,
                "\n## {service}\n\n\
                 | Event and subject | Who gets it | Lane, rank | Ack | Offline | Inbox | Shaping | Effects | TTL |\n\
                 |---|---|---|---|---|---|---|---|---|\n"
            );
        }
        row(&mut text, event);
    }
    text.push_str(RULES);
    text
}

fn row(text: &mut String, event: &Event) {
    let stored = if event.ephemeral { "<br>ephemeral" } else { "" };
    let _ = writeln!(
        text,
        "| **{}**<br>{}<br>`notification.{}.{}`{stored} | {} | {} | {} | {} | {} | {} | {} | {} |",
        event.name,
        event.summary,
        event.name,
        placeholder(event.target),
        audience(event),
        lane(event),
        ack(event),
        offline(event.offline),
        inbox(event.inbox),
        shape(event),
        dash(event.effects.iter().map(|effect| does(*effect)).collect::<Vec<_>>().join("; ")),
        ttl(event),
    );
}

fn dash(text: String) -> String {
    if text.is_empty() { "–".to_owned() } else { text }
}

const fn placeholder(target: Target) -> &'static str {
    match target {
        Target::User => "{user}",
        Target::Group => "{group}",
        Target::Conversation => "{conversation}",
        Target::Call => "{call}",
        Target::Any => "{user, group or conversation}",
        Target::Broadcast => "broadcast",
        Target::Name => "{name}",
    }
}

fn audience(event: &Event) -> String {
    let rules: Vec<String> =
        event.audience.iter().enumerate().map(|(at, rule)| describe(rule, at > 0)).collect();
    rules.join("<br>")
}

fn describe(rule: &Rule, later: bool) -> String {
    let mut conditions = conditions(&rule.when);
    conditions.extend(rule.when_target.iter().map(|field| format!("the target is `{field}`")));
    let mut text = match (conditions.is_empty(), later) {
        (true, false) => String::new(),
        (true, true) => "otherwise: ".to_owned(),
        (false, _) => format!("if {}: ", conditions.join(" and ")),
    };
    if !rule.roles.is_empty() {
        let _ = write!(text, "{} among ", roles(&rule.roles));
    }
    text.push_str(set(rule.to));
    if let Some(id) = &rule.id {
        let _ = write!(text, " `{id}`");
    }
    if let Some(user) = &rule.except_user {
        let _ = write!(text, ", except `{user}`");
    }
    text.push_str(&devices(&rule.except_devices));
    if let Some(only) = &rule.only_devices {
        let _ = write!(text, ", only on devices `{only}` when given");
    }
    for also in &rule.also {
        let _ = write!(text, "; also the user `{}`", also.user);
        let when = self::conditions(&also.when);
        if !when.is_empty() {
            let _ = write!(text, " if {}", when.join(" and "));
        }
        text.push_str(&devices(&also.except_devices));
        if let Some(policy) = also.offline {
            let policy = if policy == Offline::None { "none" } else { offline(policy) };
            let _ = write!(text, " (offline {policy})");
        }
    }
    if let Some(large) = &rule.large {
        let mut who: Vec<String> = large.also.iter().map(|user| format!("the user `{user}`")).collect();
        if !large.roles.is_empty() {
            who.push(roles(&large.roles));
        }
        let who = if who.is_empty() { "nobody".to_owned() } else { who.join(", ") };
        let _ = write!(text, "; over {}: only {who}", large.over);
    }
    text.replace(": only nobody", ": nobody")
}

fn conditions(when: &When) -> Vec<String> {
    when.iter().map(|(field, value)| format!("`{field}` is `{value}`")).collect()
}

fn devices(except: &[Field]) -> String {
    let fields: Vec<String> = except.iter().map(|field| format!("`{field}`")).collect();
    if fields.is_empty() { String::new() } else { format!(", except on device {}", fields.join(", ")) }
}

fn roles(roles: &[Role]) -> String {
    let names = roles.iter().map(|role| match role {
        Role::Owner => "owner",
        Role::Admin => "administrators",
        Role::Member => "ordinary members",
    });
    names.collect::<Vec<_>>().join(" and ")
}

const fn set(kind: Kind) -> &'static str {
    match kind {
        Kind::User => "the user",
        Kind::Group => "members of the group",
        Kind::Conversation => "members of the conversation",
        Kind::Call => "participants of the call",
        Kind::Followers => "followers of the user",
        Kind::Broadcast => "everybody who is online",
    }
}

fn lane(event: &Event) -> String {
    let moved = match event.priority {
        Priority::Fixed => "",
        Priority::Envelope => "<br>`priority` moves it",
        Priority::Payload => "<br>`payload.priority` moves it",
    };
    format!("{} {}{moved}", event.lane.as_str(), event.rank)
}

fn ack(event: &Event) -> String {
    if !event.ack {
        return "–".to_owned();
    }
    let who = if event.ack_every_device { ", each device" } else { "" };
    let mixed =
        if event.audience.iter().any(|rule| rule.to != Kind::User) { ", single user only" } else { "" };
    format!("{} s{who}{mixed}", event.ack_timeout().as_secs_f64())
}

const fn offline(offline: Offline) -> &'static str {
    match offline {
        Offline::None => "–",
        Offline::Alert => "alert",
        Offline::Ring => "ring",
        Offline::Silent => "silent",
        Offline::Never => "never",
    }
}

const fn inbox(inbox: Inbox) -> &'static str {
    match inbox {
        Inbox::None => "–",
        Inbox::Missed => "missed",
        Inbox::Always => "always",
    }
}

fn shape(event: &Event) -> String {
    let Some(shape) = &event.shape else {
        return "–".to_owned();
    };
    let seconds = |window_ms: u64| std::time::Duration::from_millis(window_ms).as_secs_f64();
    let mode = match shape.mode {
        ShapeMode::Throttle => "at most one in",
        ShapeMode::Coalesce => "the latest of",
    };
    let mut text = format!("{mode} {} s", seconds(shape.window_ms));
    if let Some(large) = shape.window_large_ms {
        let _ = write!(text, " ({} s in large sets)", seconds(large));
    }
    let mut keys: Vec<String> = shape.key.iter().map(|field| format!("`{field}`")).collect();
    if shape.field_set {
        keys.push("the set of `payload.updated_fields`".to_owned());
    }
    let _ = write!(text, " for each {}", keys.join(" and "));
    if shape.leading {
        text.push_str("; the first at once");
    }
    if shape.ordered {
        text.push_str("; in stream order");
    }
    for pass in &shape.pass {
        let _ = write!(text, "; at once if {}", conditions(pass).join(" and "));
    }
    text
}

fn ttl(event: &Event) -> String {
    match &event.expires_at {
        None => event.ttl_s.to_string(),
        Some(field) => format!("{}, at most until `{field}`", event.ttl_s),
    }
}

const fn does(effect: Effect) -> &'static str {
    match effect {
        Effect::Revoke => "older logins of the user end, except on the devices left out",
        Effect::Relogin => {
            "if `payload.requires_relogin` is `true`, older logins end, except on `metadata.origin_device_id`"
        }
        Effect::Ban => {
            "the user's sessions end and new ones are refused until `payload.banned_until`, or for ever with `payload.is_permanent`; an end in the past bans nobody"
        }
        Effect::MemberJoin => "`payload.user_id` becomes a member",
        Effect::MemberLeave => "`payload.user_id` is no member any more",
        Effect::MemberRole => "the role of `payload.user_id` changes",
        Effect::Disband => "the group's members are forgotten",
        Effect::Befriend => "if accepted, both follow each other",
        Effect::Unfriend => "neither follows the other any more",
        Effect::RegisterConversation => "both users of a single chat become its conversation",
        Effect::RegisterCall => "caller and invited users become the call, with a timeout",
        Effect::UpdateCall => "`payload.user_id` joins or leaves the call, or it ends",
        Effect::AnswerCall => "counts as an answer to the invitation",
        Effect::Recall => "the message leaves queues and replays",
        Effect::Idempotent => "repeats of the same state are shown once",
        Effect::LoopGuard => "devices that trigger each other are stopped",
        Effect::Notice => "announced 15 minutes ahead and shown until it is over",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_tells_what_a_service_author_needs() {
        let text = markdown(&Catalog::built_in().unwrap());
        for part in [
            "`notification.livekit.call_invite.{user}` | the user | high 100 | 4 s | ring | – | – |",
            "if `payload.mute_type` is `all_members`: members of the group<br>otherwise: owner and administrators \
             among members of the group; also the user `payload.target_user_id`",
            "; over 500: nobody",
            "the latest of 1 s (5 s in large sets) for each `payload.group_id` and the set of `payload.updated_fields`",
        ] {
            assert!(text.contains(part), "{part}\n\n{text}");
        }
        assert_eq!(text.matches("<br>`notification.").count(), 41);
    }
}
