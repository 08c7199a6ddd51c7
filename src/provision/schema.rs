//! The JSON schema of a file of declarations, for editors. Made from the table of fields.

use serde_json::{Map, Value, json};

use super::field::{BUCKET, CONSUMER, Field, Kind, STREAM, TRANSFORM};

/// The schema as text, with a newline at its end.
pub fn text() -> String {
    let mut text = serde_json::to_string_pretty(&schema()).unwrap_or_default();
    text.push('\n');
    text
}

/// Draft 7, which editors of TOML understand.
fn schema() -> Value {
    let variable = json!({
        "description": "A value, or one for each environment and a default; {} when --var gives it.",
        "anyOf": [scalar(), { "type": "object", "additionalProperties": scalar() }],
    });
    json!({
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "Fanfare: streams, consumers and buckets of a NATS account",
        "description": "docs/declarations.md is the reference. Any value may be a variable, \"${name}\".",
        "type": "object",
        "additionalProperties": false,
        "properties": {
            "owner": { "type": "string", "minLength": 1, "description": "Whose these objects are; fanfare by default." },
            "environments": {
                "type": "array",
                "minItems": 1,
                "items": { "type": "string", "pattern": "^[a-z0-9_-]+$" },
                "description": "Environments that entries may have a table for; dev and production by default.",
            },
            "allow": {
                "type": "array",
                "items": { "type": "string" },
                "description": "Codes of findings about what is not declared at all, such as stream-missing.",
            },
            "variables": { "type": "object", "additionalProperties": variable },
            "stream": entries("A stream.", "stream", &[]),
            "consumer": entries("A durable consumer.", "consumer", &["stream"]),
            "bucket": entries("A key-value bucket.", "bucket", &[]),
        },
        "definitions": {
            "stream": table(STREAM),
            "consumer": table(CONSUMER),
            "bucket": table(BUCKET),
            "message_size": { "anyOf": [
                { "type": "integer", "minimum": -1, "maximum": i32::MAX },
                { "type": "string", "pattern": r"^[0-9]+ *(KiB|MiB|GiB)$|\$\{" },
            ] },
            "size": text_or(-1, r"^[0-9]+ *(KiB|MiB|GiB|TiB)$|\$\{"),
            "duration": { "anyOf": [{ "const": 0 }, text_or(1_000_000, r"^[0-9]+ *(ms|s|m|h|d)$|\$\{")] },
        },
    })
}

fn scalar() -> Value {
    json!({ "type": ["string", "integer", "boolean"] })
}

/// A list of entries whose `config` has these fields.
fn entries(about: &str, fields: &str, texts: &[&str]) -> Value {
    let mut properties = Map::new();
    for text in texts {
        properties
            .insert((*text).to_owned(), json!({ "type": "string", "description": "The stream's name." }));
    }
    let codes: Vec<_> = super::finding::Code::ALL
        .iter()
        .filter(|code| code.can_be_allowed() && **code != super::finding::Code::StreamMissing)
        .map(|code| code.as_str())
        .collect();
    let allow = json!({
        "type": "array",
        "items": { "enum": codes },
        "description": "Findings of `provision lint` that are meant to be so.",
    });
    properties.insert("allow".to_owned(), allow);
    properties.insert("config".to_owned(), defined(fields, "What the server takes."));
    let required: Vec<&str> = texts.iter().copied().chain(["config"]).collect();
    json!({
        "type": "array",
        "description": about,
        "items": {
            "type": "object",
            "properties": properties,
            "required": required,
            "additionalProperties": defined(fields, "What an environment lays over config."),
        },
    })
}

/// Draft 7 ignores what stands beside a `$ref`, so it stands in a list of one.
fn defined(name: &str, about: &str) -> Value {
    json!({ "description": about, "allOf": [{ "$ref": format!("#/definitions/{name}") }] })
}

fn text_or(minimum: i64, pattern: &str) -> Value {
    json!({ "anyOf": [{ "type": "integer", "minimum": minimum }, { "type": "string", "pattern": pattern }] })
}

fn table(fields: &[Field]) -> Value {
    let properties: Map<String, Value> =
        fields.iter().map(|field| (field.name.to_owned(), of(field))).collect();
    json!({ "type": "object", "properties": properties, "additionalProperties": false })
}

fn of(field: &Field) -> Value {
    let mut schema = kind(field.kind);
    schema["description"] = field.about.into();
    schema
}

fn kind(kind: Kind) -> Value {
    let list = |of: Value| json!({ "type": "array", "items": of });
    let text = || json!({ "type": "string" });
    match kind {
        Kind::Text | Kind::Subject(_) => text(),
        Kind::Flag => or_variable(&json!({ "type": "boolean" })),
        Kind::Number(from, i64::MAX) => or_variable(&json!({ "type": "integer", "minimum": from })),
        Kind::Number(from, to) => or_variable(&json!({ "type": "integer", "minimum": from, "maximum": to })),
        Kind::Size(i64::MAX) => defined("size", ""),
        Kind::Size(_) => defined("message_size", ""),
        Kind::Duration => defined("duration", ""),
        Kind::Durations => list(defined("duration", "One of them.")),
        Kind::Time => or_variable(&json!({ "type": "string", "format": "date-time" })),
        Kind::Texts => list(text()),
        Kind::Subjects => json!({ "anyOf": [text(), list(text())] }),
        Kind::OneOf(words) => or_variable(&json!({ "enum": words })),
        Kind::Labels => json!({ "type": "object", "additionalProperties": text() }),
        Kind::Table(fields) => table(fields),
        Kind::Tables(fields) => list(table(fields)),
        Kind::Transforms => json!({ "anyOf": [text(), list(table(TRANSFORM))] }),
    }
}

fn or_variable(schema: &Value) -> Value {
    json!({ "anyOf": [schema, { "type": "string", "pattern": r"\$\{" }] })
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_committed_schema_is_the_generated_one() {
        assert!(
            include_str!("../../docs/declarations.schema.json") == super::text(),
            "docs/declarations.schema.json is out of date: run \
             `fanfare docs declarations-schema > docs/declarations.schema.json`"
        );
    }
}
