// A push service in small: it takes what Fanfare hands off (docs/offline-push.md) and prints what it would send.
//
//     npm ci
//     node push.mjs nats://127.0.0.1:4222
//
// What stands for your provider takes user ids, separated by commas, from the environment: PUSH_REFUSE (their first push is
// refused), PUSH_GONE (their tokens are gone), PUSH_STALL (pushing to them never ends).

import { once } from "node:events";
import { AckPolicy, jetstream, jetstreamManager } from "@nats-io/jetstream";
import { connect, nanos } from "@nats-io/transport-node";

const STREAM = "OFFLINE_PUSH";
const CANCEL_MS = 60_000; // no phone rings for longer
const RETRY_MS = 1_000; // yours: 5 s and more, growing with msg.info.deliveryCount
const SEEN_MAX = 100_000;
const [refuse, gone, stall] = ["REFUSE", "GONE", "STALL"].map(
  (name) => new Set((process.env[`PUSH_${name}`] ?? "").split(",")),
);

// What was pushed. Here the newest of this process; where several processes run, a store they share, for a day.
const seen = new Set();
const stopping = new AbortController();
const stopped = once(stopping.signal, "abort").then(() => null);
for (const sign of ["SIGTERM", "SIGINT"]) process.once(sign, () => stopping.abort());

const nc = await connect({ servers: process.argv[2] ?? "nats://127.0.0.1:4222", maxReconnectAttempts: -1 });
const js = jetstream(nc);

const devicesOf = (_user) => ["d1", "d2"]; // what your database knows

/** The record, or an error. */
function read(kind, msg) {
  const record = msg.json();
  if (record?.kind !== kind) throw new TypeError(`not a record of kind ${kind}`);
  const needed = { notification_id: "string", collapse_id: "string", published_at_ms: "number", payload: "object" };
  Object.assign(needed, record.cancel ? { cancel: "string" } : { notification_type: "string", expires_at_ms: "number" });
  const wrong = Object.keys(needed).filter((name) => typeof record[name] !== needed[name]);
  if (!Array.isArray(record.users)) wrong.push("users");
  if (wrong.length) throw new TypeError(`missing, or of a wrong type: ${wrong.join(", ")}`);
  return record;
}

function isExpired(record) {
  return Date.now() >= (record.cancel ? record.published_at_ms + CANCEL_MS : record.expires_at_ms);
}

function meant({ devices: { only, except } = {} }, user) {
  return devicesOf(user).filter((device) => (only?.includes(device) ?? true) && !except?.includes(device));
}

function remember(key) {
  seen.add(key);
  if (seen.size > SEEN_MAX) seen.delete(seen.values().next().value);
}

/** False when the provider says: later. */
async function send(push) {
  const { user, devices } = push;
  if (stall.has(user)) {
    await stopped;
    return false;
  }
  if (refuse.delete(user)) return false;
  if (!gone.has(user)) {
    console.log(JSON.stringify(push));
    return true;
  }
  for (const device_id of devices) { // nothing to try again: the devices are told when they connect
    const payload = { device_id, reason: "app_uninstalled", detected_at: Math.floor(Date.now() / 1000) };
    await js.publish(`notification.push.token_invalid.${user}`, JSON.stringify({ payload }));
  }
  return true;
}

/** Pushes to everybody who has not got it yet. False when somebody was refused. */
async function pushAll(msg, record) {
  let taken = true;
  const { notification_id, collapse_id, kind, cancel } = record;
  for (const [at, user] of record.users.entries()) {
    if (at % 100 === 99) msg.working(); // ack_wait begins anew
    // A second cancel has another reason.
    const key = [notification_id, kind, user, cancel ? record.reason : ""].join(" ");
    if (cancel) remember([notification_id, "ring", user, ""].join(" ")); // a ring that comes only now is over
    const devices = meant(record, user);
    if (seen.has(key) || devices.length === 0) continue;
    const what = cancel ? { cancel } : { type: record.notification_type };
    if (await send({ kind, user, devices, notification_id, collapse_id, ...what })) remember(key);
    else taken = false;
  }
  return taken;
}

/** One kind, with a consumer of its own: a ring waits for no alert. */
async function lane(kind) {
  const durable_name = `push_${kind}`;
  await (await jetstreamManager(nc)).consumers.add(STREAM, {
    durable_name, filter_subject: `push.offline.${kind}`, ack_policy: AckPolicy.Explicit,
    ack_wait: nanos(30_000), max_ack_pending: 1000, max_deliver: -1,
  });
  const consumer = await js.consumers.get(STREAM, durable_name);
  while (!stopping.signal.aborted) {
    const msg = await Promise.race([consumer.next({ expires: 30_000 }), stopped]);
    if (!msg) continue;
    let record;
    try {
      record = read(kind, msg);
    } catch (error) {
      console.error(`a record that nobody can push: ${error.message}`);
      msg.term();
      continue;
    }
    if (isExpired(record) || await pushAll(msg, record)) msg.ack();
    else if (stopping.signal.aborted) msg.nak(); // another process takes it at once
    else msg.nak(RETRY_MS);
  }
}

// A failure ends the process, and its supervisor starts it again.
await Promise.all(["ring", "alert", "silent"].map(lane));
await nc.drain();
