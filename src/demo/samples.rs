//! The specification's example payloads, made current: placeholders filled in and times shifted to now.

use serde::Deserialize;
use serde_json::Value;

/// The Unix second that every example of the specification uses.
const EXAMPLE_S: i64 = 1_234_567_890;

/// Examples name times up to 90,000 s after [`EXAMPLE_S`]; other numbers are nowhere near.
const EXAMPLE_RANGE_S: i64 = 1_000_000;

/// One example notification.
#[derive(Debug, Clone, Deserialize)]
pub struct Sample {
    /// `{service}.{event}`.
    #[serde(rename = "type")]
    pub event_type: String,
    /// Title in the specification's language.
    pub title: String,
    /// The last token of the subject, or a placeholder such as `{user_id}`.
    pub target: String,
    /// The payload as the specification writes it.
    pub payload: Value,
}

/// All examples, in the specification's order.
pub fn all() -> Vec<Sample> {
    serde_json::from_str(include_str!("samples.json")).expect("the built-in samples are JSON")
}

impl Sample {
    /// The payload with times moved so that the specification's example second is `now_s`, and with the first of each
    /// `a|b|c` choice taken unless `choices` names a value for that field.
    pub fn payload_at(&self, now_s: i64, choices: &[(&str, Value)]) -> Value {
        let mut payload = current(&self.payload, now_s);
        if let Some(fields) = payload.as_object_mut() {
            for (field, value) in choices {
                fields.insert((*field).to_owned(), value.clone());
            }
        }
        payload
    }
}

fn current(value: &Value, now_s: i64) -> Value {
    match value {
        Value::Number(number) => match number.as_i64() {
            Some(time) if (time - EXAMPLE_S).abs() < EXAMPLE_RANGE_S => (time - EXAMPLE_S + now_s).into(),
            _ => value.clone(),
        },
        Value::String(text) => text.split('|').next().unwrap_or_default().into(),
        Value::Array(items) => items.iter().map(|item| current(item, now_s)).collect(),
        Value::Object(fields) => {
            fields.iter().map(|(key, value)| (key.clone(), current(value, now_s))).collect()
        }
        Value::Null | Value::Bool(_) => value.clone(),
    }
}

/// `payload` with each text that is a key of `names` replaced.
pub fn renamed(payload: &Value, names: &[(&str, &str)]) -> Value {
    match payload {
        Value::String(text) => {
            names.iter().find(|(old, _)| old == text).map_or(text.as_str(), |(_, new)| new).into()
        }
        Value::Array(items) => items.iter().map(|item| renamed(item, names)).collect(),
        Value::Object(fields) => {
            fields.iter().map(|(key, value)| (key.clone(), renamed(value, names))).collect()
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => payload.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_event_of_the_catalog_has_one_sample() {
        let catalog = crate::catalog::Catalog::built_in().unwrap();
        let samples = all();
        assert_eq!(samples.len(), catalog.events().len());
        for sample in samples {
            assert!(catalog.get(&sample.event_type).is_some(), "{}", sample.event_type);
        }
    }

    #[test]
    fn times_move_choices_are_made_and_other_values_stay() {
        let muted = all().into_iter().find(|sample| sample.event_type == "group.muted").unwrap();

        let payload = muted.payload_at(2_000_000_000, &[("operator_user_id", "user-1".into())]);

        assert_eq!(payload["muted_at"], 2_000_000_000);
        assert_eq!(payload["unmute_at"], 2_000_003_600_i64);
        assert_eq!(payload["duration"], 3_600);
        assert_eq!(payload["mute_type"], "all_members");
        assert_eq!(payload["operator_user_id"], "user-1");
        assert_eq!(renamed(&payload, &[("user-1", "bob")])["operator_user_id"], "bob");
    }
}
