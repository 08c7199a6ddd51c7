//! Times and sizes as declarations write them: `24h`, `1GiB`. The way back is in `declaration`. Pure.

use serde_json::{Map, Value};

use super::field::{is_size, is_time};

/// Units of time with their nanoseconds, the largest first.
const TIME_UNITS: [(&str, u64); 5] = [
    ("d", 86_400_000_000_000),
    ("h", 3_600_000_000_000),
    ("m", 60_000_000_000),
    ("s", 1_000_000_000),
    ("ms", 1_000_000),
];

const SIZE_UNITS: [(&str, u64); 4] = [("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];

/// The value of a field in declared units; a number that no unit divides stays a number.
pub(super) fn readable(field: &str, value: &Value) -> Value {
    let scaled = |units: &[(&str, u64)], number: u64| {
        let fits = |unit: &&(&str, u64)| number >= unit.1 && number.is_multiple_of(unit.1);
        let (name, scale) = units.iter().find(fits)?;
        // A day is written 24h: so are one and a half.
        let (name, scale) = if *name == "d" && number == *scale { TIME_UNITS[1] } else { (*name, *scale) };
        Some(Value::String(format!("{}{name}", number / scale)))
    };
    match value {
        Value::Number(number) => {
            let units: &[(&str, u64)] = if is_time(field) {
                &TIME_UNITS
            } else if is_size(field) {
                &SIZE_UNITS
            } else {
                return value.clone();
            };
            number.as_u64().and_then(|number| scaled(units, number)).unwrap_or_else(|| value.clone())
        }
        Value::Array(items) => Value::Array(items.iter().map(|item| readable(field, item)).collect()),
        Value::Object(entries) => {
            let entries = entries.iter().map(|(key, value)| (key.clone(), readable(key, value)));
            Value::Object(entries.collect::<Map<_, _>>())
        }
        other => other.clone(),
    }
}

/// A number of bytes for people: `1.4 GiB`.
pub(super) fn bytes(number: u64) -> String {
    let unit = SIZE_UNITS.iter().find(|(_, scale)| number >= *scale);
    unit.map_or_else(
        || format!("{number} B"),
        |(name, scale)| format!("{:.1} {name}", number as f64 / *scale as f64),
    )
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn numbers_have_the_units_of_declarations() {
        for (field, value, expected) in [
            ("max_age", json!(86_400_000_000_000_u64), json!("24h")),
            ("max_age", json!(90_000_000_000_000_u64), json!("25h")),
            ("max_age", json!(604_800_000_000_000_u64), json!("7d")),
            ("ack_wait", json!(30_000_000_000_u64), json!("30s")),
            ("ack_wait", json!(1_500_000_000_u64), json!("1500ms")),
            ("ack_wait", json!(1), json!(1)),
            ("backoff", json!([1_000_000_000, 120_000_000_000_u64]), json!(["1s", "2m"])),
            ("max_bytes", json!(1_073_741_824), json!("1GiB")),
            ("max_bytes", json!(1_000), json!(1_000)),
            ("max_deliver", json!(1_073_741_824), json!(1_073_741_824)),
            (
                "consumer_limits",
                json!({"inactive_threshold": 1_000_000_000}),
                json!({"inactive_threshold": "1s"}),
            ),
        ] {
            assert_eq!(readable(field, &value), expected, "{field}");
        }
        assert_eq!((bytes(12), bytes(1_500_000_000)), ("12 B".to_owned(), "1.4 GiB".to_owned()));
    }
}
