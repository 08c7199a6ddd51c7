//! The rows: what breaks, under which load, and how the protection is switched off in the control.

use std::time::Duration;

use async_nats::jetstream;
use fanfare::nats::{NOTIFICATIONS, NOTIFICATIONS_HIGH};
use futures::future::LocalBoxFuture;
use serde_json::json;

use crate::account::{Account, Promise, Published};
use crate::link::{Link, Weather};
use crate::publisher::{Load, Progress, publish, publish_core};
use crate::stack::{Changes, Stack};

/// Needs an ack, alerts who is away, and is kept in the inbox.
pub(crate) const ACKED: &[&str] = &["friend.request"];

/// Is handed to the push service and kept nowhere else.
const PUSHED: &[&str] = &["auth.force_logout"];

/// The default class: no ack is required.
pub(crate) const PLAIN: &[&str] = &["message.new"];

/// Time without anything new after which a run is over: longer than an ack's deadline of two heartbeats.
pub(crate) const CALM: Duration = Duration::from_secs(3);

/// How much is published.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scale {
    /// All that the row is about.
    Full,
    /// A tenth.
    Short,
}

impl Scale {
    pub(crate) fn of(self, count: usize) -> usize {
        if self == Self::Full { count } else { count / 10 }
    }
}

/// Whether the protection is on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Guard {
    /// As shipped.
    On,
    /// The control.
    Off,
}

pub(crate) type Run = fn(Scale, Guard) -> LocalBoxFuture<'static, anyhow::Result<Account>>;

/// One fault.
pub(crate) struct Row {
    pub(crate) name: &'static str,
    /// What is off in the control; empty when a row has none.
    pub(crate) control: &'static str,
    pub(crate) promise: Promise,
    /// Part of the short form.
    pub(crate) short: bool,
    pub(crate) run: Run,
}

/// Every row.
pub(crate) fn all() -> Vec<Row> {
    let row =
        |name, control, short, run: Run| Row { name, control, promise: Promise::Everything, short, run };
    vec![
        row("the gateway is killed (-9) among require_ack", "max_deliver = 1", true, |scale, guard| {
            Box::pin(gateway_killed(scale, guard))
        }),
        Row {
            name: "the gateway is killed (-9), default class",
            control: "",
            promise: Promise::UnlessCrashed,
            short: false,
            run: |scale, _| Box::pin(gateway_killed_default(scale)),
        },
        row("twelve restarts in a row under load", "max_deliver = 3", false, |scale, guard| {
            Box::pin(restarts(scale, guard))
        }),
        row("nats-server is killed for 8 s", "the stream is in memory", true, |scale, guard| {
            Box::pin(nats_killed(scale, guard))
        }),
        row("a device's link is cut and changed", "devices do not resume", true, |scale, guard| {
            Box::pin(link_cut(scale, guard, None))
        }),
        row(
            "the same, and the devices' clocks are 6 h fast",
            "devices do not resume",
            false,
            |scale, guard| Box::pin(link_cut(scale, guard, Some("+6h"))),
        ),
        row(
            "the same, and the devices' clocks are 6 h slow",
            "devices do not resume",
            false,
            |scale, guard| Box::pin(link_cut(scale, guard, Some("-6h"))),
        ),
        row("5 % loss and 100 ms delay", "datagrams", false, |scale, guard| Box::pin(bad_link(scale, guard))),
        row("devices that never ack", "no ack required, nothing kept", true, |scale, guard| {
            Box::pin(never_acks(scale, guard))
        }),
        row("a device that stops reading among 1,000", "nothing kept", false, |scale, guard| {
            Box::pin(stops_reading(scale, guard))
        }),
        row("NATS refuses writes: OFFLINE_PUSH is full", "discard = old", true, |scale, guard| {
            Box::pin(refused(scale, guard))
        }),
        row(
            "a consumer is deleted under the workers",
            "max_age is shorter than the outage",
            false,
            |scale, guard| Box::pin(consumer_deleted(scale, guard)),
        ),
        row("the publisher's clock is 6 h off", "a TTL that is over", true, |scale, guard| {
            Box::pin(publisher_clock(scale, guard))
        }),
    ]
    .into_iter()
    .chain(crate::cluster::all())
    .collect()
}

pub(crate) fn users(count: usize) -> Vec<String> {
    (0..count).map(|number| format!("user-{number}")).collect()
}

/// Devices in processes of 50.
pub(crate) async fn connect(stack: &mut Stack, users: &[String]) -> anyhow::Result<()> {
    for some in users.chunks(50) {
        stack.devices(some, true, |_| {}).await?;
    }
    Ok(())
}

pub(crate) fn changed(guard: Guard, declarations: &[(&'static str, &'static str, &'static str)]) -> Changes {
    let declarations = if guard == Guard::Off { declarations.to_vec() } else { Vec::new() };
    Changes { declarations, ..Changes::default() }
}

/// Publishes `load`, kills the gateway in the middle of it, and starts it again.
async fn kill_in_the_middle(stack: &mut Stack, load: &Load) -> anyhow::Result<Vec<Published>> {
    let (progress, context) = (Progress::default(), stack.context.clone());
    let crash = async {
        progress.reached(load.count / 2).await;
        stack.kill(0).await?;
        stack.serve(0).await
    };
    let (published, crashed) = tokio::join!(publish(&context, load, &progress), crash);
    crashed?;
    Ok(published)
}

async fn gateway_killed(scale: Scale, guard: Guard) -> anyhow::Result<Account> {
    let changes = changed(guard, &[("notifications_high.toml", "max_deliver = 20", "max_deliver = 1")]);
    let users = users(200);
    let mut stack = Stack::start(&changes).await?;
    connect(&mut stack, &users).await?;
    let load = Load::new(ACKED, &users, scale.of(20_000));
    let published = kill_in_the_middle(&mut stack, &load).await?;
    // Without its redeliveries what was in hand ends in the dead letters.
    stack.settled(CALM).await?;
    stack.account(&published).await
}

async fn gateway_killed_default(scale: Scale) -> anyhow::Result<Account> {
    let users = users(200);
    let mut stack = Stack::start(&Changes::default()).await?;
    connect(&mut stack, &users).await?;
    let mut load = Load::new(PLAIN, &users, scale.of(10_000));
    load.per_s = Some(1_000);
    let published = kill_in_the_middle(&mut stack, &load).await?;
    stack.settled(CALM).await?;
    stack.account(&published).await
}

async fn restarts(scale: Scale, guard: Guard) -> anyhow::Result<Account> {
    let users = users(50);
    let limit = ("notifications_high.toml", "max_deliver = 20", "max_deliver = 3");
    let mut stack = Stack::start(&changed(guard, &[limit])).await?;
    connect(&mut stack, &users).await?;
    // What nobody can be told of is in hand at restart after restart.
    let away: Vec<String> = (0..20).map(|number| format!("away-{number}")).collect();
    offline_push(&stack.context, 1_024, None).await?;
    let (held, mut load) = (Load::new(PUSHED, &away, 20), Load::new(ACKED, &users, scale.of(10_000)));
    load.per_s = Some(u32::try_from(load.count / 30).unwrap_or(1));
    let (progress, context) = (Progress::default(), stack.context.clone());
    let crashes = async {
        for _ in 0..12 {
            tokio::time::sleep(Duration::from_secs(2)).await;
            stack.kill(0).await?;
            stack.serve(0).await?;
        }
        anyhow::Ok(())
    };
    let (held, published, ended) =
        tokio::join!(publish(&context, &held, &progress), publish(&context, &load, &progress), crashes);
    ended?;
    offline_push(&context, 64 * 1024 * 1024, None).await?;
    stack.settled(CALM).await?;
    stack.account(&[held, published].concat()).await
}

/// The work queue in memory, which lint calls a mistake.
pub(crate) const IN_MEMORY: [(&str, &str, &str); 2] = [
    ("notifications.toml", "storage = \"file\"", "storage = \"memory\""),
    ("notifications.toml", "[[stream]]\n", "[[stream]]\nallow = [\"memory-single\"]\n"),
];

async fn nats_killed(scale: Scale, guard: Guard) -> anyhow::Result<Account> {
    let users = users(50);
    let mut stack = Stack::start(&changed(guard, &IN_MEMORY)).await?;
    connect(&mut stack, &users).await?;
    let load = Load::new(&["friend.request", "message.new"], &users, scale.of(10_000));
    let (progress, context) = (Progress::default(), stack.context.clone());
    let middle = load.count / 2;
    let outage = async {
        progress.reached(middle).await;
        // So that some are waiting in the stream when it happens.
        let until = time::OffsetDateTime::now_utc() + Duration::from_secs(4);
        for (stream, consumer) in [(NOTIFICATIONS_HIGH, "high"), (NOTIFICATIONS, "normal")] {
            stack.context.get_stream(stream).await?.pause_consumer(consumer, until).await?;
        }
        progress.reached(middle + load.count / 10).await;
        stack.nats.kill(0).await;
        tokio::time::sleep(Duration::from_secs(8)).await;
        stack.nats.restart(0).await?;
        if guard == Guard::Off {
            // A stream in memory is gone with its server.
            stack.provision().await?;
        }
        anyhow::Ok(())
    };
    let (published, ended) = tokio::join!(publish(&context, &load, &progress), outage);
    ended?;
    stack.settled(CALM).await?;
    stack.account(&published).await
}

async fn link_cut(scale: Scale, guard: Guard, clock: Option<&str>) -> anyhow::Result<Account> {
    let users = users(20);
    let mut stack = Stack::start(&Changes::default()).await?;
    let link = Link::start(stack.nodes[0].edge, Weather::default()).await?;
    let through = link.address;
    stack
        .devices(&users, true, |orders| {
            orders.edges = vec![through];
            orders.resumes = guard == Guard::On;
            orders.clock = clock.map(str::to_owned);
        })
        .await?;
    let mut load = Load::new(&["message.new", "friend.request"], &users, scale.of(20_000));
    load.per_s = Some(500);
    let (progress, context) = (Progress::default(), stack.context.clone());
    let step = load.count / 8;
    let weather = async {
        // For a moment, with another address afterwards, and for so long that the sessions are given up.
        progress.reached(step).await;
        link.set(Weather { cut: true, ..Weather::default() });
        tokio::time::sleep(Duration::from_millis(500)).await;
        link.change_address().await?;
        link.set(Weather::default());
        progress.reached(3 * step).await;
        link.set(Weather { cut: true, ..Weather::default() });
        tokio::time::sleep(Duration::from_secs(6)).await;
        link.set(Weather::default());
        anyhow::Ok(())
    };
    let (published, changed) = tokio::join!(publish(&context, &load, &progress), weather);
    changed?;
    stack.settled(Duration::from_secs(8)).await?;
    let mut account = stack.account(&published).await?;
    // Every device is back, so what is kept for it and was not shown did not arrive.
    account.lost += account.inboxed + account.handed_off;
    (account.inboxed, account.handed_off) = (0, 0);
    Ok(account)
}

async fn bad_link(scale: Scale, guard: Guard) -> anyhow::Result<Account> {
    let users = users(20);
    let mut stack = Stack::start(&Changes::default()).await?;
    let weather = Weather { loss: 0.05, delay: Duration::from_millis(100), cut: false };
    let link = Link::start(stack.nodes[0].edge, weather).await?;
    let through = link.address;
    stack.devices(&users, true, |orders| orders.edges = vec![through]).await?;
    let events: &[&str] =
        if guard == Guard::On { &["message.new", "friend.request"] } else { &["message.typing"] };
    let mut load = Load::new(events, &users, scale.of(10_000));
    load.per_s = Some(500);
    let published = if guard == Guard::On {
        publish(&stack.context, &load, &Progress::default()).await
    } else {
        publish_core(&stack.client, &load).await?
    };
    stack.settled(CALM).await?;
    stack.account(&published).await
}

/// The built-in catalog, with rows that keep nothing and wait for no ack.
pub(crate) fn careless() -> String {
    let text = include_str!("../../config/catalog.toml");
    let mut rows = Vec::new();
    for row in text.split("[[event]]") {
        let careless = ["\"friend.request\"", "\"message.new\""]
            .iter()
            .any(|name| row.lines().any(|line| line.starts_with("type = ") && line.ends_with(name)));
        rows.push(if careless {
            row.replace("ack = true", "ack = false")
                .replace("offline = \"alert\"", "offline = \"none\"")
                .replace("inbox = \"missed\"", "inbox = \"none\"")
        } else {
            row.to_owned()
        });
    }
    rows.join("[[event]]")
}

fn keeping(guard: Guard, config: &'static str) -> Changes {
    let catalog = (guard == Guard::Off).then(careless);
    Changes { catalog, config, ..Changes::default() }
}

async fn never_acks(scale: Scale, guard: Guard) -> anyhow::Result<Account> {
    let users = users(20);
    let mut stack = Stack::start(&keeping(guard, "")).await?;
    // Whoever does not ack may as well not have it, so what they were shown does not count.
    stack.devices(&users, false, |orders| orders.acks = false).await?;
    let load = Load::new(&["friend.request", "message.new"], &users, scale.of(8_000));
    let published = publish(&stack.context, &load, &Progress::default()).await;
    stack.settled(CALM).await?;
    // What needs no ack is the session's until it ends; then it goes to whoever keeps it.
    stack.kill_devices().await?;
    stack.settled(Duration::from_secs(12)).await?;
    stack.account(&published).await
}

async fn stops_reading(scale: Scale, guard: Guard) -> anyhow::Result<Account> {
    let silent = vec!["silent".to_owned()];
    let others = users(scale.of(1_000));
    let mut stack = Stack::start(&keeping(guard, "slow_after_ms = 3000")).await?;
    for some in others.chunks(250) {
        stack.devices(some, true, |_| {}).await?;
    }
    stack.devices(&silent, true, |orders| orders.reads = false).await?;
    // More than the session holds, and no more than the 200 that an inbox keeps.
    let mut flood = Load::new(PLAIN, &silent, 180);
    (flood.per_s, flood.bytes) = (Some(20), 30_000);
    let mut rest = Load::new(PLAIN, &others, 10 * others.len());
    rest.per_s = Some(u32::try_from(others.len()).unwrap_or(1_000));
    let progress = Progress::default();
    let (a, b) =
        tokio::join!(publish(&stack.context, &flood, &progress), publish(&stack.context, &rest, &progress));
    stack.settled(Duration::from_secs(6)).await?;
    stack.kill_devices().await?;
    stack.settled(Duration::from_secs(8)).await?;
    let published: Vec<Published> = a.into_iter().chain(b).collect();
    stack.account(&published).await
}

/// Changes how much OFFLINE_PUSH takes, and what it does beyond that.
async fn offline_push(
    context: &jetstream::Context,
    max_bytes: i64,
    discard: Option<jetstream::stream::DiscardPolicy>,
) -> anyhow::Result<()> {
    let stream = context.get_stream("OFFLINE_PUSH").await?;
    let mut config: jetstream::stream::Config = stream.cached_info().config.clone();
    config.max_bytes = max_bytes;
    config.discard = discard.unwrap_or(config.discard);
    context.update_stream(config).await?;
    Ok(())
}

async fn refused(scale: Scale, guard: Guard) -> anyhow::Result<Account> {
    let stack = Stack::start(&Changes::default()).await?;
    // By hand: provisioning refuses to declare it.
    let discard = (guard == Guard::Off).then_some(jetstream::stream::DiscardPolicy::Old);
    offline_push(&stack.context, 64 * 1024, discard).await?;
    let load = Load::new(PUSHED, &users(50), scale.of(5_000));
    let published = publish(&stack.context, &load, &Progress::default()).await;
    if guard == Guard::On {
        stack.said("a notification could not be finished").await?;
    } else {
        stack.settled(CALM).await?;
    }
    offline_push(&stack.context, 64 * 1024 * 1024, None).await?;
    stack.settled(CALM).await?;
    stack.account(&published).await
}

async fn consumer_deleted(scale: Scale, guard: Guard) -> anyhow::Result<Account> {
    let short = ("notifications.toml", "max_age = \"24h\"", "max_age = \"2s\"");
    // JetStream refuses a window for duplicates that is longer than messages live.
    let window = ("notifications.toml", "duplicate_window = \"30s\"", "duplicate_window = \"2s\"");
    let users = users(50);
    let mut stack = Stack::start(&changed(guard, &[short, window])).await?;
    connect(&mut stack, &users).await?;
    let mut load = Load::new(ACKED, &users, scale.of(5_000));
    load.per_s = Some(500);
    let (progress, context) = (Progress::default(), stack.context.clone());
    let middle = load.count / 2;
    let outage = async {
        progress.reached(middle).await;
        context.get_stream(NOTIFICATIONS_HIGH).await?.delete_consumer("high").await?;
        tokio::time::sleep(Duration::from_secs(5)).await;
        stack.said("nothing of this consumer is handled").await?;
        stack.provision().await
    };
    let (published, ended) = tokio::join!(publish(&context, &load, &progress), outage);
    ended?;
    stack.settled(CALM).await?;
    stack.account(&published).await
}

async fn publisher_clock(scale: Scale, guard: Guard) -> anyhow::Result<Account> {
    let users = users(20);
    let mut stack = Stack::start(&Changes::default()).await?;
    let mut load = Load::new(&["message.new", "friend.request"], &users, scale.of(2_000));
    load.clock_off_s = -6 * 3_600;
    if guard == Guard::Off {
        load.metadata = json!({ "ttl": 1 });
        stack.kill(0).await?;
    }
    let published = if guard == Guard::Off {
        let published = publish(&stack.context, &load, &Progress::default()).await;
        tokio::time::sleep(Duration::from_secs(2)).await;
        stack.serve(0).await?;
        published
    } else {
        connect(&mut stack, &users).await?;
        publish(&stack.context, &load, &Progress::default()).await
    };
    stack.settled(CALM).await?;
    stack.account(&published).await
}
