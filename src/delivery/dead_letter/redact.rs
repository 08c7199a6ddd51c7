//! What of a dead letter's body may be shown. Pure.
//!
//! A dead letter may be broken, or not what its subject says, so every secret of the catalog is looked for everywhere.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::catalog::Catalog;

/// What stands in the place of a secret.
const LEFT_OUT: &str = "(left out)";

/// `body` without secrets: what is JSON with the values of secret keys replaced, else the text; `None` when it is no
/// JSON and may have one.
pub fn shown(catalog: &Catalog, body: &[u8]) -> Option<Value> {
    let names = names(catalog);
    if let Ok(mut value) = serde_json::from_slice(body) {
        redact(&names, &mut value);
        return Some(value);
    }
    let text = String::from_utf8_lossy(body);
    (!suspect(&names, &text)).then(|| Value::String(text.into_owned()))
}

/// A sentence about a message that may quote it: the reasons for what is no envelope do.
pub fn shown_text<'a>(catalog: &Catalog, text: &'a str) -> &'a str {
    if suspect(&names(catalog), text) { LEFT_OUT } else { text }
}

fn names(catalog: &Catalog) -> BTreeSet<&str> {
    let secrets = catalog.events().iter().flat_map(|event| &event.secrets);
    secrets.filter_map(|field| field.keys().last()).collect()
}

fn redact(names: &BTreeSet<&str>, value: &mut Value) {
    match value {
        Value::Object(object) => {
            for (key, value) in object {
                if names.contains(key.as_str()) {
                    *value = LEFT_OUT.into();
                } else {
                    redact(names, value);
                }
            }
        }
        Value::Array(values) => values.iter_mut().for_each(|value| redact(names, value)),
        // A payload that was encoded twice.
        Value::String(text) if suspect(names, text) => *value = LEFT_OUT.into(),
        _ => {}
    }
}

/// Does it name a secret, or could an escape hide the name?
fn suspect(names: &BTreeSet<&str>, text: &str) -> bool {
    text.contains("\\u") || names.iter().any(|name| text.contains(name))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn secrets_are_left_out_wherever_they_are() {
        let catalog = Catalog::built_in().unwrap();
        let shown = |body: &str| shown(&catalog, body.as_bytes());
        let left_out = json!(LEFT_OUT);
        assert_eq!(shown(r#"{"payload":{"a":1}}"#), Some(json!({"payload": {"a": 1}})));
        let token = r#"{"type":"friend.request","payload":{"call_id":"c","livekit_token":"s"}}"#;
        let expected =
            json!({"type": "friend.request", "payload": {"call_id": "c", "livekit_token": left_out}});
        assert_eq!(shown(token), Some(expected));
        assert_eq!(
            shown(r#"[{"livekit\u005ftoken":{"a":"s"}}]"#),
            Some(json!([{"livekit_token": left_out}]))
        );
        assert_eq!(shown(r#"{"payload":"{\"old_token\":\"s\"}"}"#), Some(json!({"payload": left_out})));
        let quoting = r#"invalid type: string "{\"old_token\":\"s\"}", expected a map"#;
        assert_eq!(shown_text(&catalog, quoting), LEFT_OUT);
        assert_eq!(shown_text(&catalog, "expected a map"), "expected a map");
        assert_eq!(shown("{broken"), Some(json!("{broken")));
        assert_eq!(shown(r#"{"payload":{"old_token":"s"}"#), None);
        assert_eq!(shown(r#"{"payload":{"old\u005ftoken":"s"}"#), None);
    }
}
