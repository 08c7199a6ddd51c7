//! The parts of the path that neither wait nor touch a socket, each by itself: `cargo bench`. What the whole costs is
//! measured by `fanfare bench`.

use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use fanfare::catalog::{Catalog, Offline};
use fanfare::clock::Now;
use fanfare::id::{DeviceId, UserId};
use fanfare::nats::Origin;
use fanfare::pipeline::{Decoded, batches, classify, decode};
use fanfare::protocol::frame::SessionLane;
use fanfare::protocol::notification::Frames;
use fanfare::protocol::{Encoding, Notification};
use fanfare::session::inbox::{Cursor, Missed};
use fanfare::session::{Core, Devices, Limits, Recipient, Registry, Rotation};

/// A message as services publish it, with a payload of some 300 B.
fn published(event: &str) -> (String, Bytes) {
    let content = "x".repeat(200);
    let body = format!(
        r#"{{"notification_id":"0b7c7f5e-3c1d-4c7e-9a52-2f1f0c1e8d11","type":"{event}","timestamp":1700000000,"from_user_id":"user-456","payload":{{"message_id":"msg-123","conversation_id":"conv-456","conversation_type":"group","content":"{content}"}}}}"#
    );
    (format!("notification.{event}.user-123"), body.into())
}

fn decoded(catalog: &Catalog, event: &str) -> Decoded {
    let (subject, body) = published(event);
    decode(catalog, &subject, &body).expect("a good message")
}

fn origin(seq: u64) -> Origin {
    Origin { stream: "NOTIFICATIONS".to_owned(), seq, stored_at_us: 1_700_000_000_000_000, deliveries: 1 }
}

/// Number `seq` of its stream; each has an id of its own.
fn note(catalog: &Catalog, event: &str, seq: u64) -> Notification {
    let plan = classify(decoded(catalog, event), &origin(seq), None, false, 1_700_000_000_000);
    let note = plan.expect("a good message").note;
    Notification { id: seq.to_string().into(), expires_at_ms: u64::MAX, ..note }
}

fn user(n: usize) -> UserId {
    UserId::new(&format!("user-{n}")).expect("a valid id")
}

/// An open session without a socket.
fn session() -> Core {
    let limits = Limits {
        window: 256,
        queue_frames: 1_000,
        heartbeat: Duration::from_secs(25),
        slow_after: Duration::from_secs(30),
        rotation: Rotation::new(0, Duration::ZERO),
    };
    let mut core = Core::new(limits, Encoding::Json, false, u64::MAX, Now::read());
    core.welcome(Bytes::from_static(b"welcome"), Cursor::default(), Missed::default());
    core
}

fn pipeline(criterion: &mut Criterion) {
    let catalog = Catalog::built_in().expect("the built-in catalog");
    let mut group = criterion.benchmark_group("pipeline");
    let (subject, body) = published("message.new");
    group.throughput(Throughput::Bytes(body.len() as u64));
    group.bench_function("decode", |bencher| bencher.iter(|| decode(&catalog, black_box(&subject), &body)));
    group.throughput(Throughput::Elements(1));
    let (decoded, origin) = (decoded(&catalog, "message.new"), origin(1));
    group.bench_function("classify", |bencher| {
        bencher.iter_batched(
            || decoded.clone(),
            |decoded| classify(decoded, &origin, None, false, 1_700_000_000_000),
            BatchSize::SmallInput,
        );
    });
    let recipient = |n| Recipient { user: user(n), devices: Devices::All, offline: Offline::None };
    let members: Vec<Recipient> = (0..10_000).map(recipient).collect();
    group.throughput(Throughput::Elements(members.len() as u64));
    group.bench_function("batch", |bencher| {
        bencher.iter(|| batches(members.iter().cloned()).map(|batch| batch.len()).sum::<usize>());
    });
    group.finish();
}

fn encode(criterion: &mut Criterion) {
    let catalog = Catalog::built_in().expect("the built-in catalog");
    let note = note(&catalog, "message.new", 1);
    let mut group = criterion.benchmark_group("encode");
    for (name, encoding) in [("json", Encoding::Json), ("msgpack", Encoding::Msgpack)] {
        group.throughput(Throughput::Bytes(note.frame(encoding).len() as u64));
        group.bench_function(name, |bencher| {
            bencher.iter_batched_ref(
                || Notification { frames: Frames::default(), ..note.clone() },
                |note| note.frame(encoding),
                BatchSize::SmallInput,
            );
        });
    }
    group.finish();
}

/// Notifications that a session takes before it is acked.
const TAKEN: u64 = 32;

fn lane(criterion: &mut Criterion) {
    let catalog = Catalog::built_in().expect("the built-in catalog");
    let notes: Vec<_> = (1..=TAKEN).map(|seq| Arc::new(note(&catalog, "message.new", seq))).collect();
    let recipient = Recipient::online(user(1));
    let ack = format!(r#"{{"type":"ack","lane":"normal","seq":{TAKEN}}}"#);
    let now = Now::read();
    let mut group = criterion.benchmark_group("session");
    group.throughput(Throughput::Elements(TAKEN));
    group.bench_function("lane", |bencher| {
        bencher.iter_batched_ref(
            session,
            |core| {
                let mut frames = Vec::new();
                for note in &notes {
                    core.offer(note, &recipient, || None, now);
                }
                core.take(SessionLane::Normal, now, &mut frames);
                core.on_frame(ack.as_bytes(), now);
                assert_eq!(frames.len(), notes.len());
            },
            BatchSize::SmallInput,
        );
    });
    group.finish();
}

fn shape(criterion: &mut Criterion) {
    let catalog = Catalog::built_in().expect("the built-in catalog");
    let notes: Vec<_> =
        (1..=TAKEN).map(|seq| Arc::new(note(&catalog, "session.unread_updated", seq))).collect();
    let recipient = Recipient::online(user(1));
    let device = DeviceId::new("d1").expect("a valid id");
    let now = Now::read();
    let mut group = criterion.benchmark_group("session");
    group.throughput(Throughput::Elements(TAKEN));
    group.bench_function("shape", |bencher| {
        bencher.iter_batched_ref(
            || {
                let registry = Registry::new(16);
                registry.register(user(1), device.clone(), "desktop".to_owned(), session());
                registry
            },
            |registry| {
                for note in &notes {
                    black_box(registry.push(note, &recipient, None, now));
                }
            },
            BatchSize::SmallInput,
        );
    });
    group.finish();
}

criterion_group!(benches, pipeline, encode, lane, shape);
criterion_main!(benches);
