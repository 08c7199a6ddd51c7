//! A stream that workers pull from, and which of its consumers: `NAME:LANE`, or `NAME` for one that has all lanes.

use std::fmt;

use serde::Deserialize;

use crate::catalog::Lane;

/// A work queue of notifications.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Queue {
    /// The stream.
    pub stream: String,
    /// The lane whose consumer is pulled from; `None` for all.
    pub lane: Option<Lane>,
}

impl Queue {
    /// The consumers that are pulled from.
    pub fn consumers(&self) -> impl Iterator<Item = (&str, Lane)> {
        Lane::ALL
            .into_iter()
            .filter(|lane| self.lane.is_none_or(|only| only == *lane))
            .map(|lane| (self.stream.as_str(), lane))
    }
}

impl TryFrom<String> for Queue {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let Some((stream, word)) = text.split_once(':') else { return Ok(Self { stream: text, lane: None }) };
        let lane = Lane::ALL.into_iter().find(|lane| lane.as_str() == word);
        let lane = lane.ok_or_else(|| {
            format!(
                "worker.streams: `{word}` of {text:?} is not a lane: write NAME:high, NAME:normal or NAME:low"
            )
        })?;
        Ok(Self { stream: stream.to_owned(), lane: Some(lane) })
    }
}

impl fmt::Display for Queue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.lane {
            None => f.write_str(&self.stream),
            Some(lane) => write!(f, "{}:{}", self.stream, lane.as_str()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_queue_has_one_lane_or_all() {
        let read = |text: &str| Queue::try_from(text.to_owned());
        let lanes = |text| read(text).unwrap().consumers().map(|(_, lane)| lane).collect::<Vec<_>>();
        assert_eq!(lanes("Q"), Lane::ALL);
        assert_eq!(lanes("Q:low"), [Lane::Low]);
        assert_eq!(read("Q:low").unwrap().to_string(), "Q:low");
        assert!(read("Q:urgent").unwrap_err().contains("`urgent` of \"Q:urgent\" is not a lane"));
    }
}
