//! Notifications for single users, at random times: the events of the catalog that go to one user and do nothing else,
//! each as often, with the specification's payloads.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde::{Deserialize, Serialize};

use super::arrivals::{Arrivals, MESSAGES_MAX};
use super::connect::user;
use super::flow::{Flow, Shot, open_loop};
use super::publisher::{Message, Publisher};
use crate::bench::{BenchError, failed};
use crate::catalog::{Catalog, Effect, Event, Lane, Target};
use crate::clock::Now;
use crate::demo::samples::{self, Sample};

/// Traffic that is to be made.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(in crate::bench) struct Traffic {
    /// Notifications a second.
    pub(in crate::bench) rate: f64,
    /// How long.
    pub(in crate::bench) seconds: f64,
    /// Users, each with a session.
    pub(in crate::bench) users: u32,
    /// Only events of lane high.
    pub(in crate::bench) high_only: bool,
}

/// Classes whose latency is told apart, in this order.
pub(in crate::bench) const CLASSES: [&str; 4] = ["high", "normal", "low", "shaped"];

/// Of [`CLASSES`]: a burst of them is held back on purpose, and only the last of a window may come.
const SHAPED: usize = 3;

/// One event with its place in the mix.
struct Template {
    event: String,
    class: usize,
    /// With `@user` and `@mark`.
    body: String,
}

/// The events of the mix.
fn mix(catalog: &Catalog, now_s: i64, high_only: bool) -> Vec<Template> {
    let fits = |event: &Event| {
        matches!(event.target, Target::User | Target::Any)
            && !event.ephemeral
            && event
                .effects
                .iter()
                .all(|effect| matches!(effect, Effect::Idempotent | Effect::RegisterConversation))
            && (event.lane == Lane::High || !high_only)
    };
    let samples = samples::all().into_iter();
    samples
        .filter_map(|sample| {
            let event = catalog.get(&sample.event_type).filter(|event| fits(event))?;
            Some(template(event, &sample, now_s))
        })
        .collect()
}

fn template(event: &Event, sample: &Sample, now_s: i64) -> Template {
    // A message to a member of a group, published once for each: it registers no conversation.
    let choices: &[_] =
        if event.name == "message.new" { &[("conversation_type", "group".into())] } else { &[] };
    let payload = samples::renamed(&sample.payload_at(now_s, choices), &[("user-123", "@user")]).to_string();
    let body = format!(
        r#"{{"notification_id":"t-@mark","type":"{}","timestamp":{now_s},"payload":{{"mark":@mark,{}}}"#,
        event.name,
        &payload[1..]
    );
    let class = match (&event.shape, event.lane) {
        (Some(_), _) => SHAPED,
        (None, Lane::High) => 0,
        (None, Lane::Normal) => 1,
        (None, Lane::Low) => 2,
    };
    Template { event: event.name.clone(), class, body }
}

/// Publishes at the times of a Poisson process, each to a random user.
pub(super) async fn run(
    arrivals: &Arrivals,
    publisher: &mut Publisher,
    traffic: &Traffic,
) -> Result<Flow, BenchError> {
    let catalog = Catalog::built_in().map_err(failed("read the catalog"))?;
    let mix = mix(&catalog, (Now::read().unix_ms / 1_000) as i64, traffic.high_only);
    // The same traffic each time, so that two runs can be compared.
    let mut random = StdRng::seed_from_u64(0);
    let (mut at, end) = (0.0, traffic.seconds);
    let shots = std::iter::from_fn(move || {
        // The gaps of a Poisson process are exponential; 1 - x is never 0.
        at -= (1.0 - random.random::<f64>()).ln() / traffic.rate;
        let Template { event, class, body } = &mix[random.random_range(0..mix.len())];
        let user = user(random.random_range(0..traffic.users.max(1)));
        (at < end).then(|| Shot {
            at: Duration::from_secs_f64(at),
            expected: 1,
            class: *class,
            all: *class != SHAPED,
            message: Message {
                subject: format!("notification.{event}.{user}"),
                to: (0, 0),
                body: body.replace("@user", &user),
            },
        })
    });
    open_loop(arrivals, publisher, CLASSES.len(), shots.take(MESSAGES_MAX)).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mix_has_every_lane_and_only_envelopes_for_one_user() {
        let catalog = Catalog::built_in().unwrap();
        let all = mix(&catalog, 1_700_000_000, false);
        for (class, name) in CLASSES.iter().enumerate() {
            assert!(all.iter().any(|template| template.class == class), "{name}");
        }
        for Template { event, body, .. } in &all {
            let body = body.replace("@user", "bench-1").replace("@mark", "16777216").into_bytes();
            let subject = format!("notification.{event}.bench-1");
            let decoded = crate::pipeline::decode(&catalog, &subject, &body.clone().into()).unwrap();
            assert_eq!(decoded.envelope.payload.parsed()["mark"], 16_777_216, "{event}");
            assert!(
                !String::from_utf8(body).unwrap().contains('@') || event == "message.mentioned",
                "{event}"
            );
        }
        let high = mix(&catalog, 1_700_000_000, true);
        assert!(!high.is_empty() && high.iter().all(|template| template.class == 0));
    }
}
