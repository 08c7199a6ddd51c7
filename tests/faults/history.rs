//! What became of the sessions of devices, by what the devices wrote down.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::account::Device;

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
    Shown { id: String, ms: u64 },
}

/// What happened to each device, in order.
#[derive(Debug, Default)]
pub(crate) struct History(BTreeMap<Device, Vec<Turn>>);

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
            } else if let (Some(id), Some(ms)) = (text("n"), line["ms"].as_u64()) {
                Turn::Shown { id, ms }
            } else {
                continue;
            };
            if let (Some(user), Some(device)) = (text("u"), text("d")) {
                self.0.entry((user, device)).or_default().push(turn);
            }
        }
    }

    /// Every device.
    pub(crate) fn devices(&self) -> impl Iterator<Item = &Device> {
        self.0.keys()
    }

    /// The devices whose newest session is at `node`.
    pub(crate) fn at(&self, node: &str) -> Vec<Device> {
        let is_there = |turns: &[Turn]| {
            let mut newest = turns.iter().rev();
            let node =
                newest.find_map(|turn| if let Turn::Live(at) = turn { Some(at == node) } else { None });
            node == Some(true)
        };
        self.0.iter().filter(|(_, turns)| is_there(turns)).map(|(device, _)| device.clone()).collect()
    }

    /// The devices that have no session, by what they know.
    pub(crate) fn waiting(&self) -> Vec<&Device> {
        let waits = |turns: &[Turn]| {
            let newest = turns.iter().rev().find(|turn| !matches!(turn, Turn::Shown { .. }));
            !matches!(newest, Some(Turn::Live(_)))
        };
        self.0.iter().filter(|(_, turns)| waits(turns)).map(|(device, _)| device).collect()
    }

    /// What happened to a device's session since `before`, notifications left out.
    pub(crate) fn since(&self, before: &Self, device: &Device) -> Vec<&Turn> {
        let of = |history: &Self| history.0.get(device).map_or(0, Vec::len);
        let turns = self.0.get(device).map_or(&[][..], Vec::as_slice);
        turns[of(before)..].iter().filter(|turn| !matches!(turn, Turn::Shown { .. })).collect()
    }

    /// What a device showed since `before`: notification ids, and milliseconds to the application.
    pub(crate) fn shown_to(&self, before: &Self, device: &Device) -> impl Iterator<Item = (&str, u64)> {
        let from = before.0.get(device).map_or(0, Vec::len);
        let turns = self.0.get(device).map_or(&[][..], Vec::as_slice);
        turns[from..].iter().filter_map(|turn| match turn {
            Turn::Shown { id, ms } => Some((id.as_str(), *ms)),
            Turn::Live(_) | Turn::Asked | Turn::Lost(_) => None,
        })
    }
}

/// A percentile; 0 of none.
pub(crate) fn percentile(numbers: &[u64], percent: usize) -> u64 {
    let mut sorted = numbers.to_vec();
    sorted.sort_unstable();
    sorted.get(sorted.len() * percent / 100).or(sorted.last()).copied().unwrap_or_default()
}
