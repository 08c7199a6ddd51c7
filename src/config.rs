//! Joins the sections' configuration: file over built-in defaults, environment over files, flags over both.

use std::path::PathBuf;

use figment::Figment;
use figment::providers::{Env, Format, Toml};
use serde::Deserialize;

use crate::worker::Queue;

/// The whole configuration. Each section's type lives beside the code that uses it.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// The catalog of events.
    pub catalog: crate::catalog::Config,
    /// The connection to NATS.
    pub nats: crate::nats::Config,
    /// The QUIC endpoint and its sessions.
    pub edge: crate::transport::Config,
    /// Which tokens are accepted.
    pub auth: crate::transport::auth::Config,
    /// The worker pool.
    pub worker: crate::worker::Config,
    /// The admin port.
    pub admin: crate::telemetry::admin::Config,
    /// Logs.
    pub log: crate::telemetry::logs::Config,
}

/// Why a configuration was refused; names the file or variable and the key.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A file that was named does not exist.
    #[error("configuration file {0} does not exist")]
    Missing(PathBuf),
    /// A value that cannot be used.
    #[error("configuration: {0}")]
    Invalid(Box<figment::Error>),
    /// A share that is none.
    #[error("configuration: {key} is {value}, it must be from 0 to 1")]
    NoShare {
        /// Section and key.
        key: &'static str,
        /// What was given.
        value: f64,
    },
    /// Streams that cannot be pulled from.
    #[error("configuration: worker.streams {problem}, as in [\"NOTIFICATIONS:normal\"]")]
    Streams {
        /// What is wrong with them.
        problem: String,
    },
    /// A number with which the service could not work.
    #[error("configuration: {key} is {value}, it must be at least {least}")]
    TooSmall {
        /// Section and key.
        key: &'static str,
        /// What was given.
        value: u64,
        /// The smallest that works.
        least: u64,
    },
}

/// Loads `files` in order (later wins), then `FANFARE__SECTION__KEY` variables.
pub fn load(files: &[PathBuf]) -> Result<Config, ConfigError> {
    let mut figment = Figment::new();
    for file in files {
        if !file.exists() {
            return Err(ConfigError::Missing(file.clone()));
        }
        figment = figment.merge(Toml::file_exact(file));
    }
    let config: Config = figment
        .merge(Env::prefixed("FANFARE__").split("__"))
        .extract()
        .map_err(|error| ConfigError::Invalid(error.into()))?;
    config.validate()?;
    Ok(config)
}

/// Smallest [`crate::transport::Config::rotate_bytes`]: what one connect may read of its inbox.
const ROTATE_BYTES_MIN: u64 = 1024 * 1024;

/// Smallest [`crate::transport::Config::rotate_after_s`]: twice the time a rotation may take.
const ROTATE_AFTER_S_MIN: u64 = 600;

impl Config {
    /// Refuses numbers with which the service could not work.
    fn validate(&self) -> Result<(), ConfigError> {
        let (edge, worker) = (&self.edge, &self.worker);
        // Sessions that rotate all the time would be a storm of the operator's own making; 0 is never.
        let or_never = |value, least| if value == 0 { least } else { value };
        let at_least = [
            ("edge.heartbeat_ms", edge.heartbeat_ms, 100),
            ("edge.hello_timeout_ms", edge.hello_timeout_ms, 1),
            ("edge.slow_after_ms", edge.slow_after_ms, 1),
            ("edge.window", edge.window as u64, 1),
            ("edge.queue_frames", edge.queue_frames as u64, 1),
            ("edge.sessions_max", edge.sessions_max as u64, 1),
            ("edge.sessions_per_user_max", edge.sessions_per_user_max as u64, 1),
            ("edge.handshakes_max", edge.handshakes_max as u64, 1),
            ("edge.handshakes_per_s", u64::from(edge.handshakes_per_s), 1),
            ("edge.rotate_bytes", or_never(edge.rotate_bytes, ROTATE_BYTES_MIN), ROTATE_BYTES_MIN),
            ("edge.rotate_after_s", or_never(edge.rotate_after_s, ROTATE_AFTER_S_MIN), ROTATE_AFTER_S_MIN),
            ("edge.drain_rate", u64::from(edge.drain_rate), 1),
            ("worker.high", worker.high as u64, 1),
            ("worker.normal", worker.normal as u64, 1),
            ("worker.low", worker.low as u64, 1),
            ("worker.in_hand", worker.in_hand as u64, 1),
            ("worker.in_hand_bytes", worker.in_hand_bytes as u64, 1),
        ];
        let sample = worker.evidence.sample;
        if !(0.0..=1.0).contains(&sample) {
            return Err(ConfigError::NoShare { key: "worker.evidence.sample", value: sample });
        }
        if let Some(problem) = streams_problem(&worker.streams) {
            return Err(ConfigError::Streams { problem });
        }
        match at_least.into_iter().find(|(_, value, least)| value < least) {
            Some((key, value, least)) => Err(ConfigError::TooSmall { key, value, least }),
            None => Ok(()),
        }
    }
}

/// What keeps `streams` from being pulled from.
fn streams_problem(queues: &[Queue]) -> Option<String> {
    // What NATS refuses in the name of a stream.
    let is_bad = |name: &str| {
        name.is_empty()
            || name.contains(|c: char| c.is_whitespace() || c.is_control() || ".*>/\\".contains(c))
    };
    if queues.is_empty() {
        return Some("is empty: name at least one stream".to_owned());
    }
    let twice = |at: usize| {
        let earlier = queues[..at].iter().flat_map(Queue::consumers).collect::<Vec<_>>();
        queues[at].consumers().any(|consumer| earlier.contains(&consumer))
    };
    (0..queues.len()).find_map(|at| match &queues[at] {
        Queue { stream, .. } if is_bad(stream) => {
            Some(format!("has {stream:?}, which is no name of a stream: give names"))
        }
        queue if twice(at) => Some(format!("has \"{queue}\" twice: give each stream and lane once")),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_can_be_used_and_zeros_are_refused_by_name() {
        assert!(Config::default().validate().is_ok());
        let mut config = Config::default();
        config.edge.sessions_per_user_max = 0;
        let error = config.validate().expect_err("nobody could connect");
        assert_eq!(
            error.to_string(),
            "configuration: edge.sessions_per_user_max is 0, it must be at least 1"
        );
        let mut config = Config::default();
        (config.edge.rotate_bytes, config.edge.rotate_after_s) = (0, 0);
        assert!(config.validate().is_ok(), "0 is never");
        config.edge.rotate_after_s = 1;
        let error = config.validate().expect_err("a storm");
        assert_eq!(error.to_string(), "configuration: edge.rotate_after_s is 1, it must be at least 600");
        for (streams, says) in [
            (&[][..], "is empty"),
            (&["A", "A"], "\"A\" twice"),
            (&["A", "A:low"], "\"A:low\" twice"),
            (&["A", "B.>"], "\"B.>\", which is no name"),
        ] {
            let mut config = Config::default();
            config.worker.streams =
                streams.iter().map(|name| Queue::try_from((*name).to_owned()).unwrap()).collect();
            let error = config.validate().expect_err("nothing to pull from").to_string();
            assert!(error.contains(says), "{error}");
        }
        for sample in [-0.1, 1.1, f64::NAN] {
            let mut config = Config::default();
            config.worker.evidence.sample = sample;
            let error = config.validate().expect_err("no share").to_string();
            assert!(error.contains("worker.evidence.sample"), "{error}");
        }
    }
}
