//! What became of the sessions of devices, by what the devices wrote down.

use std::collections::BTreeMap;

use serde_json::Value;

/// One thing that happened to a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Turn {
    /// A session is open, at the node of this name.
    Live(String),
    /// The server asked it to connect anew.
    Asked,
    /// Its session, or an attempt to open one, ended; why.
    Lost(String),
    /// It was shown a notification, so many milliseconds after JetStream stored it.
    Shown { ms: u64 },
}

/// Each user's device and what happened to it, in order.
#[derive(Debug, Default)]
pub(crate) struct History(BTreeMap<String, Vec<Turn>>);

impl History {
    /// Adds what a process of devices wrote.
    pub(crate) fn read(&mut self, lines: &str) {
        // The last line may be half written.
        for line in lines.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()) {
            let text = |name: &str| line[name].as_str().map(str::to_owned);
            let turn = if let Some(node) = text("live") {
                Turn::Live(node)
            } else if text("asked").is_some() {
                Turn::Asked
            } else if let Some(why) = text("lost") {
                Turn::Lost(why)
            } else if let Some(ms) = line["ms"].as_u64() {
                Turn::Shown { ms }
            } else {
                continue;
            };
            if let Some(user) = text("u") {
                self.0.entry(user).or_default().push(turn);
            }
        }
    }

    /// Users and where their newest session is.
    pub(crate) fn places(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().filter_map(|(user, turns)| {
            let mut newest = turns.iter().rev();
            let node = newest.find_map(|turn| if let Turn::Live(node) = turn { Some(node) } else { None })?;
            Some((user.as_str(), node.as_str()))
        })
    }

    /// The users whose newest session is at `node`.
    pub(crate) fn at(&self, node: &str) -> Vec<String> {
        self.places().filter(|(_, at)| *at == node).map(|(user, _)| user.to_owned()).collect()
    }

    /// The users who have no session, by what their devices know.
    pub(crate) fn waiting(&self) -> Vec<&str> {
        let waits = |turns: &[Turn]| {
            let newest = turns.iter().rev().find(|turn| !matches!(turn, Turn::Shown { .. }));
            !matches!(newest, Some(Turn::Live(_)))
        };
        self.0.iter().filter(|(_, turns)| waits(turns)).map(|(user, _)| user.as_str()).collect()
    }

    /// What happened to a user's session since `before`, notifications left out.
    pub(crate) fn since(&self, before: &Self, user: &str) -> Vec<&Turn> {
        let of = |history: &Self| history.0.get(user).map_or(0, Vec::len);
        let turns = self.0.get(user).map_or(&[][..], Vec::as_slice);
        turns[of(before)..].iter().filter(|turn| !matches!(turn, Turn::Shown { .. })).collect()
    }

    /// Milliseconds to the application of what was shown by sessions at `node` since `before`.
    pub(crate) fn latencies_ms(&self, before: &Self, node: &str) -> Vec<u64> {
        let mut found = Vec::new();
        for (user, turns) in &self.0 {
            let from = before.0.get(user).map_or(0, Vec::len);
            let mut here = false;
            for (at, turn) in turns.iter().enumerate() {
                match turn {
                    Turn::Live(name) => here = name == node,
                    Turn::Shown { ms } if here && at >= from => found.push(*ms),
                    Turn::Shown { .. } | Turn::Asked | Turn::Lost(_) => {}
                }
            }
        }
        found.sort_unstable();
        found
    }
}

/// A percentile of sorted numbers; 0 of none.
pub(crate) fn percentile(sorted: &[u64], percent: usize) -> u64 {
    sorted.get(sorted.len() * percent / 100).or(sorted.last()).copied().unwrap_or_default()
}
