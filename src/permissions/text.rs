//! Permissions as an operator uses them: a block of nats-server's configuration, or JSON for `nsc` and other tools.

use std::fmt::Write;

use serde_json::{Value, json};

use super::{Grant, Permissions};
use crate::nats::Role;

/// The name of a role's user.
fn user(role: &Role) -> String {
    format!("fanfare-{role}")
}

/// The environment variable with its password, as nats-server reads it.
fn variable(role: &Role) -> String {
    format!("{}_PASSWORD", user(role).replace('-', "_").to_uppercase())
}

/// What a role is for, in words.
pub fn purpose(role: &Role) -> String {
    match role {
        Role::Publisher(service) => format!("service {service} publishes its events, and nothing else"),
        Role::Worker => "fanfare serve --role worker".to_owned(),
        Role::Edge => "fanfare serve --role edge".to_owned(),
        Role::All => "fanfare serve, with both parts in one process".to_owned(),
        Role::PushService => "your push service, which consumes OFFLINE_PUSH".to_owned(),
        Role::Members => "a service that writes members into the bucket, or is asked for them".to_owned(),
        Role::Provisioner => "fanfare provision plan and apply".to_owned(),
        Role::Monitor => "fanfare nodes, sessions and trace: looks, and changes nothing".to_owned(),
        Role::Operator => "fanfare dlq, ban and audience, and what the monitor may".to_owned(),
    }
}

const HEAD: &str = "\
# What each role of Fanfare may do in NATS; everything else is denied to it. Printed by `fanfare provision permissions`:
# print it again after each change of the catalog. nats-server reads the passwords from its environment; put in their
# place whatever your server knows users by, such as `nkey: U…` instead of user and password.
";

/// A block `authorization` for nats-server.
pub fn conf(all: &[Permissions]) -> String {
    let mut text = format!("{HEAD}authorization {{\n  users = [\n");
    for permissions in all {
        entry(&mut text, permissions);
    }
    text.push_str("  ]\n}");
    text
}

fn entry(text: &mut String, permissions: &Permissions) {
    let Permissions { role, publish, subscribe, inbox_prefix: _ } = permissions;
    let (purpose, user, variable) = (purpose(role), user(role), variable(role));
    // Writing to a text cannot fail.
    let _ = write!(text, "    # {role}: {purpose}\n    {{\n      user: {user:?}, password: ${variable}\n");
    text.push_str("      permissions: {\n");
    for (verb, grants) in [("publish", publish), ("subscribe", subscribe)] {
        let _ = writeln!(text, "        {verb}: {{ allow: [");
        let mut last = "";
        for Grant { subject, why } in grants {
            if *why != last {
                let _ = writeln!(text, "          # {why}");
                last = why;
            }
            let _ = writeln!(text, "          {subject:?}");
        }
        text.push_str("        ] }\n");
    }
    text.push_str("      }\n    }\n");
}

/// An object with one entry for each role.
pub fn json(all: &[Permissions]) -> String {
    let subjects =
        |grants: &[Grant]| json!({ "allow": grants.iter().map(|grant| &grant.subject).collect::<Vec<_>>() });
    let roles = all.iter().map(|permissions| {
        let Permissions { role, inbox_prefix, publish, subscribe } = permissions;
        let body = json!({
            "user": user(role), "purpose": purpose(role), "inbox_prefix": inbox_prefix,
            "publish": subjects(publish), "subscribe": subjects(subscribe),
        });
        (role.to_string(), body)
    });
    format!("{:#}", Value::Object(roles.collect()))
}
