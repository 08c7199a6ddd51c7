//! The devices of a run: real clients, each watched by a task of its own.
//!
//! [`Devices`] owns the tasks and ends them. What a client hears beside notifications is a fault, in words.

use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::super::scenario::{DEVICES, Device};
use super::report::{Arrival, Content};
use super::{OnceError, Place};
use crate::client::{Bind, Client, Config, Endpoint, Event, Received, Stats, Tokens, Trust, Why};
use crate::clock::Now;
use crate::id::UserId;
use crate::protocol::Encoding;
use crate::transport::auth;

/// The connected devices.
pub(super) struct Devices {
    /// Each gives what was wrong.
    tasks: JoinSet<Vec<String>>,
    enough: CancellationToken,
}

impl Devices {
    /// Connects every device and waits until all are live. The server must send away those that `ends` names.
    pub(super) async fn connect(
        place: &Place,
        arrivals: mpsc::Sender<Arrival>,
        ends: &[&str],
    ) -> Result<Self, OnceError> {
        let endpoint = Endpoint::bind(Bind::Loopback)?;
        let (mut tasks, enough) = (JoinSet::new(), CancellationToken::new());
        for (at, device) in DEVICES.into_iter().enumerate() {
            let mut client = Client::connect(config(place, at, device, endpoint.clone()))?;
            let live = client.live().await;
            live.map_err(|closed| OnceError::NoSession { device: device.1, closed })?;
            tasks.spawn(watch(client, device, ends.contains(&device.1), arrivals.clone(), enough.clone()));
        }
        Ok(Self { tasks, enough })
    }

    /// Ends every session and gives what was wrong with them.
    pub(super) async fn end(self) -> Vec<String> {
        self.enough.cancel();
        let mut faults = self.tasks.join_all().await.concat();
        faults.sort_unstable();
        faults
    }
}

fn config(place: &Place, at: usize, (user, device_id): Device, endpoint: Endpoint) -> Config {
    let user = UserId::new(user).expect("a valid id");
    let token = auth::sign_hs256(&place.secret, &user, Now::read(), Duration::from_hours(1));
    let url = match at % 3 {
        0 => format!("quic://{}", place.edge),
        _ => format!("https://{}/v1/push", place.edge),
    };
    let trust = Trust::CertificateHashes(vec![place.certificate_hash]);
    let mut config = Config::new(url, device_id, Tokens::fixed(token), trust);
    config.encoding = if at.is_multiple_of(2) { Encoding::Json } else { Encoding::Msgpack };
    config.endpoint = Some(endpoint);
    config
}

/// Passes on what a client gets, until told that it is enough, and gives what else happened to it.
async fn watch(
    mut client: Client,
    device: Device,
    ends: bool,
    arrivals: mpsc::Sender<Arrival>,
    enough: CancellationToken,
) -> Vec<String> {
    let (mut faults, mut sent_away) = (Vec::new(), false);
    loop {
        let event = tokio::select! {
            biased;
            event = client.next() => event,
            () = enough.cancelled() => break,
        };
        match event {
            Some(Event::Notification(received)) => {
                if arrivals.send(arrival(device, *received)).await.is_err() {
                    break;
                }
            }
            // The first one was before; a further one counts among the sessions.
            Some(Event::Live(_) | Event::Repeated(_)) => {}
            Some(Event::Waiting { why: Why::Closed(closed), .. }) => {
                faults.push(format!("{} lost its session: {closed}", device.1));
            }
            Some(Event::Waiting { why: Why::Goaway { reason }, .. }) => {
                faults.push(format!("{} was asked to connect again: {reason}", device.1));
            }
            Some(Event::Closed(_)) if ends => sent_away = true,
            Some(Event::Closed(closed)) => faults.push(format!("{} was sent away: {closed}", device.1)),
            None => break,
        }
    }
    if ends && !sent_away {
        faults.push(format!("{} should have been sent away and was not", device.1));
    }
    faults.extend(odd(client.stats()).map(|what| format!("{} {what}", device.1)));
    faults
}

/// What a client that had one calm session does not count.
fn odd(stats: Stats) -> Option<String> {
    let Stats { sessions, duplicates, skipped, datagrams_dropped, notifications: _ } = stats;
    let calm = (sessions, duplicates, skipped, datagrams_dropped) == (1, 0, 0, 0);
    (!calm).then(|| {
        format!(
            "had {sessions} sessions, got {duplicates} notifications twice, could not read {skipped} and dropped \
             {datagrams_dropped} datagrams"
        )
    })
}

fn arrival(device: Device, received: Received) -> Arrival {
    Arrival {
        device,
        id: received.notification_id,
        lane: received.lane.map_or("datagram", |lane| lane.as_str()),
        at: received.received_at,
        content: Content {
            event_type: received.notification_type,
            timestamp: received.timestamp,
            from_user_id: received.from_user_id,
            payload: received.payload,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_calm_session_is_not_odd_and_all_else_is() {
        let calm = Stats { sessions: 1, notifications: 9, ..Stats::default() };
        assert_eq!(odd(calm), None);
        for stats in [
            Stats { sessions: 2, ..calm },
            Stats { duplicates: 1, ..calm },
            Stats { skipped: 1, ..calm },
            Stats { datagrams_dropped: 1, ..calm },
        ] {
            assert!(odd(stats).is_some(), "{stats:?}");
        }
    }
}
