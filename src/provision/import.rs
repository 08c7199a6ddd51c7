//! Writes declarations of what a live account has: the way back from `observe` to `declaration`.
//!
//! Only what differs from the server's defaults, in the units of declarations. Consumers that end with their client are
//! left out, and helpers of a migration.

use std::fs;
use std::io::Write;
use std::path::Path;

use serde_json::{Map, Value, json};

use super::declaration::variable;
use super::observe::label;
use super::{Error, Live, OWNER_LABEL, normalise, step, units};

/// One file of declarations: its path below the directory, and its text.
pub type File = (String, String);

/// What is written, and what is not.
#[derive(Debug, Default)]
pub struct Imported {
    /// A file for each object.
    pub files: Vec<File>,
    /// Each object of another owner, in words: declared here, it would be taken away from them. A stream's consumers are left
    /// out with it.
    pub left_out: Vec<String>,
}

/// Declarations of all that is there and carries no label of another owner than `owner`. Pure.
pub fn declarations(live: &Live, owner: &str) -> Result<Imported, Error> {
    let Imported { mut files, mut left_out } = Imported::default();
    for (name, stream) in &live.streams {
        if label(&stream.config, step::NEXT_OF).is_some() {
            continue;
        }
        if let Some(other) = other_owner(&stream.config, owner) {
            left_out.push(format!("stream {name} is owner {other}'s"));
            continue;
        }
        let entry = json!({ "config": declared(&stream.config) });
        files.push(file(format!("streams/{name}.toml"), name, "stream", &entry)?);
        for (consumer, existing) in &stream.consumers {
            let lasts = existing.config.get("durable_name").is_some_and(Value::is_string);
            if !lasts || label(&existing.config, step::BOOKMARK).is_some() {
                continue;
            }
            if let Some(other) = other_owner(&existing.config, owner) {
                left_out.push(format!("consumer {name} > {consumer} is owner {other}'s"));
            } else {
                let entry = json!({ "stream": name, "config": declared(&existing.config) });
                // Names have no dots, so no two files have the same.
                let path = format!("consumers/{name}.{consumer}.toml");
                files.push(file(path, &format!("{name} > {consumer}"), "consumer", &entry)?);
            }
        }
    }
    Ok(Imported { files, left_out })
}

fn other_owner<'a>(config: &'a Map<String, Value>, owner: &str) -> Option<&'a str> {
    label(config, OWNER_LABEL).filter(|label| *label != owner)
}

fn file(path: String, place: &str, kind: &str, entry: &Value) -> Result<File, Error> {
    let mistake = |problem: String| Error::Import { path: path.clone(), problem };
    if path.matches('/').count() > 1 || path.contains('\\') {
        return Err(mistake(format!("`{place}` cannot be the name of a file: declare it by hand")));
    }
    let text = toml::to_string_pretty(&json!({ kind: [escaped(entry)] }))
        .map_err(|error| mistake(error.to_string()))?;
    // A name may have characters that end a comment, or that no comment may have.
    Ok((path, format!("# {kind} {}, as a server had it.\n{text}", place.escape_debug())))
}

/// The same with every text as a declaration writes it: what looks like a variable is none.
fn escaped(value: &Value) -> Value {
    match value {
        Value::String(text) => variable::escaped(text).into(),
        Value::Array(items) => items.iter().map(escaped).collect(),
        Value::Object(fields) => {
            fields.iter().map(|(name, value)| (name.clone(), escaped(value))).collect::<Map<_, _>>().into()
        }
        other => other.clone(),
    }
}

/// The fields of a live configuration that differ from the defaults, in declared units.
fn declared(config: &Map<String, Value>) -> Map<String, Value> {
    let mut fields = Map::new();
    for field in config.keys().filter(|field| *field != "pause_until") {
        let mut value = normalise::value(config, field, config);
        if let (true, Some(labels)) = (field == "metadata", value.as_object_mut()) {
            labels.retain(|key, _| !step::MARKS.contains(&key.as_str()));
        }
        // The server makes it of the first step.
        let implied = field == "ack_wait" && config.contains_key("backoff");
        let empty = value.as_object().is_some_and(Map::is_empty);
        if !value.is_null() && !implied && !empty {
            fields.insert(field.clone(), units::readable(field, &value));
        }
    }
    fields
}

/// Writes files below `dir`, which is new or empty: nothing is ever written over.
pub fn write(dir: &Path, files: &[File]) -> Result<(), Error> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| Error::Write { path, source }
    };
    for part in ["streams", "consumers"] {
        fs::create_dir_all(dir.join(part)).map_err(failed(dir))?;
    }
    for (path, text) in files {
        let path = dir.join(path);
        let mut file = fs::File::create_new(&path).map_err(failed(&path))?;
        file.write_all(text.as_bytes()).map_err(failed(&path))?;
    }
    Ok(())
}

/// Fails when there is something in `dir`.
pub fn check_target(dir: &Path) -> Result<(), Error> {
    let failed = |source| Error::Write { path: dir.to_owned(), source };
    let mut entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        other => other.map_err(failed)?,
    };
    let taken = || {
        let advice = "there is something in it: name a new directory";
        failed(std::io::Error::new(std::io::ErrorKind::AlreadyExists, advice))
    };
    if entries.next().is_none() { Ok(()) } else { Err(taken()) }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::provision::{LiveConsumer, LiveStream};

    #[test]
    fn only_what_is_not_the_default_is_declared_in_readable_units() {
        let config = |value: Value| value.as_object().cloned().unwrap();
        let consumer = |value: Value| LiveConsumer { config: config(value), ..LiveConsumer::default() };
        let consumers = BTreeMap::from([
            (
                "c".to_owned(),
                consumer(
                    json!({"durable_name": "c", "ack_policy": "explicit", "ack_wait": 30_000_000_000_u64,
                    "max_waiting": 512, "num_replicas": 0, "pause_until": "2030-01-01T00:00:00Z",
                    "metadata": {"fanfare.migrating": "resume"}}),
                ),
            ),
            ("ephemeral".to_owned(), consumer(json!({"name": "ephemeral"}))),
        ]);
        let stream = LiveStream {
            config: config(json!({"name": "S", "subjects": ["b", "a"], "max_age": 86_400_000_000_000_u64,
                "max_bytes": 1_048_576, "max_msgs": -1, "retention": "workqueue", "storage": "file",
                "metadata": {"_nats.level": "5", "fanfare.owner": "fanfare"}, "consumer_limits": {}})),
            consumers,
            ..LiveStream::default()
        };
        let live = Live {
            version: "2.15.1".to_owned(),
            streams: BTreeMap::from([("S".to_owned(), stream)]),
            ..Live::default()
        };

        let Imported { files, left_out } = declarations(&live, "fanfare").unwrap();

        assert_eq!(left_out, [] as [&str; 0]);
        let [(stream, stream_text), (consumer, consumer_text)] = &files[..] else { panic!("{files:?}") };
        assert_eq!((stream.as_str(), consumer.as_str()), ("streams/S.toml", "consumers/S.c.toml"));
        let parsed: Value = toml::from_str(stream_text).unwrap();
        assert_eq!(
            parsed["stream"][0]["config"],
            json!({"name": "S", "subjects": ["a", "b"], "max_age": "24h", "max_bytes": "1MiB",
                "retention": "workqueue", "metadata": {"fanfare.owner": "fanfare"}})
        );
        let parsed: Value = toml::from_str(consumer_text).unwrap();
        assert_eq!(
            parsed["consumer"][0],
            json!({"stream": "S", "config": {"durable_name": "c", "ack_policy": "explicit"}})
        );
    }

    #[test]
    fn what_is_written_can_be_read_whatever_the_name() {
        for name in ["a\u{1}b", "line\nend", "\u{7f}", "quote\"s", "tabs\tare", "Ünïcode", "# x"] {
            let config = json!({"name": name, "subjects": ["a"]}).as_object().cloned().unwrap();
            let stream = LiveStream { config, ..LiveStream::default() };
            let streams = BTreeMap::from([(name.to_owned(), stream)]);
            let files = declarations(&Live { streams, ..Live::default() }, "me").unwrap().files;
            let parsed: Value =
                toml::from_str(&files[0].1).unwrap_or_else(|error| panic!("{name:?}: {error}"));
            assert_eq!(parsed["stream"][0]["config"]["name"], name);
        }
    }

    #[test]
    fn what_carries_another_owners_label_is_left_out_and_named() {
        let config = |name: &str, owner: Value| {
            let config = json!({"durable_name": name, "name": name, "metadata": {"fanfare.owner": owner}});
            config.as_object().cloned().unwrap()
        };
        let consumer = |name: &str, owner: &str| {
            (name.to_owned(), LiveConsumer { config: config(name, json!(owner)), ..LiveConsumer::default() })
        };
        let stream = |name: &str, owner: Value, consumers: &[(String, LiveConsumer)]| {
            let consumers = consumers.iter().cloned().collect();
            (name.to_owned(), LiveStream { config: config(name, owner), consumers, ..LiveStream::default() })
        };
        let streams = BTreeMap::from([
            stream("OURS", json!("us"), &[consumer("a", "us"), consumer("b", "them")]),
            stream("THEIRS", json!("them"), &[consumer("c", "us")]),
            stream("NOBODYS", Value::Null, &[]),
        ]);

        let imported = declarations(&Live { streams, ..Live::default() }, "us").unwrap();

        let paths: Vec<&str> = imported.files.iter().map(|(path, _)| path.as_str()).collect();
        assert_eq!(paths, ["streams/NOBODYS.toml", "streams/OURS.toml", "consumers/OURS.a.toml"]);
        assert_eq!(imported.left_out, ["consumer OURS > b is owner them's", "stream THEIRS is owner them's"]);
    }

    #[test]
    fn what_looks_like_a_variable_is_read_as_it_was() {
        let text = "${a} $${b} ${ $";
        let config = json!({"name": "S", "subjects": ["s"], "description": text, "metadata": {"k": text}});
        let stream = LiveStream { config: config.as_object().cloned().unwrap(), ..LiveStream::default() };
        let streams = BTreeMap::from([("S".to_owned(), stream)]);
        let files = declarations(&Live { streams, ..Live::default() }, "me").unwrap().files;
        let catalog = crate::catalog::Catalog::built_in().unwrap();
        let desired = crate::provision::Declarations::parse(files).unwrap();
        let desired = desired.desired(&catalog, crate::provision::Env::DEV).unwrap();
        let config = &desired.streams[0].config;
        assert_eq!((&config["description"], &config["metadata"]["k"]), (&json!(text), &json!(text)));
    }

    #[test]
    fn nothing_is_written_over() {
        let dir = tempfile::tempdir().unwrap();
        check_target(dir.path()).unwrap();
        let files = [("streams/S.toml".to_owned(), "text".to_owned())];
        write(dir.path(), &files).unwrap();
        let error = check_target(dir.path()).unwrap_err().to_string();
        assert!(error.contains("there is something in it"), "{error}");
        assert!(write(dir.path(), &files).is_err());
        check_target(&dir.path().join("new")).unwrap();
    }
}
