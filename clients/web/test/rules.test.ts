/** The pure parts: backoff, acks, duplicates, cursor, closing, supervisor. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { LaneAcks } from "../src/acks.js";
import { Addresses } from "../src/addresses.js";
import { backoffMs } from "../src/backoff.js";
import { endFromTransport, nextStep, type SessionEnd } from "../src/closing.js";
import { InboxCursor, SessionCursor } from "../src/cursor.js";
import { MIN_REMEMBERED, SeenIds } from "../src/dedup.js";
import { NotificationQueue } from "../src/events.js";
import type { Notification } from "../src/session.js";
import { Supervisor, type Step } from "../src/supervisor.js";
import { refreshInMs, tokenExpiresAt } from "../src/token.js";
import { fakeToken } from "./support.js";

test("backoff doubles its ceiling, jitters fully and is long after five failures", () => {
  const highest = [1, 2, 3, 4].map((n) => backoffMs(n, 0.999_999));
  assert.deepEqual(highest, [500, 1000, 2000, 4000]);
  assert.equal(backoffMs(3, 0), 0);
  assert.equal(backoffMs(5, 0), 60_000);
  assert.equal(backoffMs(50, 0.5), 120_000);
  assert.equal(backoffMs(50, 0.999_999), 180_000);
});

test("the server's retry_after_ms wins over backoff", () => {
  assert.equal(backoffMs(7, 0.5, 1500), 1500);
});

test("a frame that requires it is acked at once, with everything before it", () => {
  const acks = new LaneAcks();
  acks.frameDone(10, false, 0);
  assert.equal(acks.take(0), undefined);
  acks.frameDone(10, true, 5);
  assert.equal(acks.take(5), 2);
  assert.equal(acks.take(99_999), undefined);
});

test("others are acked after 32 frames, 16 KiB or 1 s", () => {
  const byCount = new LaneAcks();
  for (let i = 0; i < 31; i += 1) byCount.frameDone(1, false, 0);
  assert.equal(byCount.take(0), undefined);
  byCount.frameDone(1, false, 0);
  assert.equal(byCount.take(0), 32);

  const byBytes = new LaneAcks();
  byBytes.frameDone(16 * 1024, false, 0);
  assert.equal(byBytes.take(0), 1);

  const byTime = new LaneAcks();
  byTime.frameDone(1, false, 100);
  byTime.frameDone(1, false, 900);
  assert.equal(byTime.dueAt(), 1100);
  assert.equal(byTime.take(1099), undefined);
  assert.equal(byTime.take(1100), 2);
});

test("ids are remembered, the oldest forgotten first", () => {
  const seen = new SeenIds(1);
  assert.ok(seen.add("first"));
  assert.ok(!seen.add("first"));
  for (let i = 1; i < MIN_REMEMBERED; i += 1) seen.add(`id-${i}`);
  assert.ok(!seen.add("first"));
  seen.add("one more");
  assert.equal(seen.size, MIN_REMEMBERED);
  assert.ok(seen.add("first"));
});

test("a ping's cursor is stored only when everything before it is processed", () => {
  const shared = new InboxCursor("c0");
  const cursor = new SessionCursor(shared);
  const batch = cursor.batchArrived();
  cursor.ping("c1");
  assert.equal(shared.get(), "c0");
  const later = cursor.batchArrived();
  cursor.batchDone(batch);
  assert.equal(shared.get(), "c1");
  cursor.batchDone(later);
});

test("the welcome's cursor is stored at once when none is known, and never over another", () => {
  const none = new InboxCursor();
  const first = new SessionCursor(none);
  first.batchArrived();
  first.welcome("w");
  assert.equal(none.get(), "w");

  const early = new InboxCursor();
  const overtaken = new SessionCursor(early);
  overtaken.replayed("after w");
  overtaken.welcome("w");
  assert.equal(early.get(), "after w");

  const known = new InboxCursor("c0");
  const resumed = new SessionCursor(known);
  resumed.welcome("w");
  assert.equal(known.get(), "c0");
  resumed.replayed("c1");
  assert.equal(known.get(), "c1");
});

test("close codes decide about reconnecting", () => {
  const step = (code: number | undefined, more: Partial<SessionEnd> = {}): string =>
    nextStep({ code, name: "", reason: "", ...more });
  assert.equal(step(0), "stop");
  assert.equal(step(undefined), "reconnect");
  assert.equal(step(3000), "reconnect");
  assert.equal(step(3499), "reconnect");
  assert.equal(step(3005), "fresh_token");
  assert.equal(step(3500), "stop");
  assert.equal(step(3508), "stop");
  assert.equal(step(3999), "stop");
  assert.equal(step(3004, { serverSaysReconnect: false }), "stop");
  assert.equal(step(3502, { serverSaysReconnect: true }), "stop");
});

test("the transport's code is named; code 0 without a close frame is a lost connection", () => {
  assert.deepEqual(endFromTransport(3508, "replaced"), { code: 3508, name: "replaced", reason: "" });
  assert.equal(endFromTransport(0, "").code, undefined);
  assert.equal(endFromTransport(undefined, "Connection lost.").name, "lost");
  assert.equal(endFromTransport(3123, "new_thing").name, "new_thing");
});

test("tokens: exp is read, refresh comes before it", () => {
  const expiresAt = tokenExpiresAt(fakeToken(3600));
  assert.ok(expiresAt !== undefined && expiresAt > Date.now());
  assert.equal(tokenExpiresAt("nonsense"), undefined);
  assert.equal(tokenExpiresAt("a.b.c"), undefined);
  assert.equal(refreshInMs(3_600_000, 0), 3_540_000);
  assert.equal(refreshInMs(10_000, 0), 8000);
  assert.equal(refreshInMs(0, 1), undefined);
});

const LOST: SessionEnd = { code: undefined, name: "lost", reason: "" };
const end = (code: number): SessionEnd => ({ code, name: "", reason: "" });
const kinds = (steps: Step[]): string[] => steps.map((s) => (s.do === "status" ? s.status : s.do));

test("failures in a row grow the wait; a stable session forgets them", () => {
  const sup = new Supervisor(() => 0.5);
  sup.connect();
  const waits: number[] = [];
  let now = 0;
  for (let id = 1; id <= 5; id += 1) {
    sup.sessionEnded(id, LOST, now);
    waits.push(sup.nextTick() - now);
    now = sup.nextTick();
    assert.deepEqual(kinds(sup.tick(now)), ["connecting", "dial"]);
  }
  assert.deepEqual(waits, [250, 500, 1000, 2000, 120_000]);
  sup.sessionLive(6, now);
  sup.sessionEnded(6, LOST, now + 6000);
  assert.equal(sup.nextTick() - now - 6000, 250);
});

test("sessions that are made and break at once count as failures", () => {
  const sup = new Supervisor(() => 1);
  sup.connect();
  for (let id = 1; id <= 4; id += 1) {
    sup.sessionLive(id, 0);
    sup.sessionEnded(id, end(3007), 10);
    sup.tick(Infinity);
  }
  sup.sessionLive(5, 0);
  sup.sessionEnded(5, end(3007), 10);
  assert.equal(sup.nextTick() - 10, 180_000);
});

test("token_expired asks for a new token, replaced and unauthorized stop", () => {
  const sup = new Supervisor(() => 0);
  sup.connect();
  sup.sessionLive(1, 0);
  sup.sessionEnded(1, end(3005), 3000);
  assert.deepEqual(sup.tick(3000).at(-1), { do: "dial", id: 2, freshToken: true, elsewhere: true });
  sup.sessionLive(2, 3000);
  assert.deepEqual(kinds(sup.sessionEnded(2, end(3508), 4000)), ["leave", "closed"]);
  assert.equal(sup.nextTick(), Infinity);
  assert.deepEqual(sup.connect().at(-1), { do: "dial", id: 3, freshToken: true, elsewhere: true });
  assert.deepEqual(kinds(sup.sessionEnded(3, end(3501), 4000)), ["leave", "closed"]);
});

test("goaway: the successor is made after the delay and the old session's end is no news", () => {
  const sup = new Supervisor(() => 0);
  sup.connect();
  sup.sessionLive(1, 0);
  sup.goaway(1, "draining", 700, 100);
  assert.deepEqual(sup.tick(799), []);
  assert.deepEqual(kinds(sup.tick(800)), ["dial"]);
  assert.deepEqual(kinds(sup.sessionEnded(1, end(3508), 850)), ["connecting"]);
  assert.deepEqual(kinds(sup.sessionLive(2, 900)), ["live"]);
  sup.goaway(2, "draining", 10, 1000);
  sup.tick(1010);
  assert.deepEqual(sup.sessionLive(3, 1100)[0], { do: "retire", id: 2 });
  assert.deepEqual(sup.sessionEnded(2, end(3508), 1200), []);
});

test("another address is next after an end, a failure and a draining node, not after a rotation", () => {
  const dial = (steps: Step[]): boolean => {
    const step = steps.at(-1);
    assert.ok(step?.do === "dial");
    return step.elsewhere;
  };
  const sup = new Supervisor(() => 0);
  assert.equal(dial(sup.connect()), false);
  sup.sessionEnded(1, { code: undefined, name: "unreachable", reason: "" }, 0);
  assert.equal(dial(sup.tick(0)), true);
  sup.sessionLive(2, 0);
  sup.sessionEnded(2, { code: 3001, name: "rotate", reason: "" }, 10);
  assert.equal(dial(sup.tick(10)), false);
  sup.sessionEnded(3, { code: undefined, name: "no_token", reason: "" }, 20);
  assert.equal(dial(sup.tick(20_000)), false);
  sup.sessionLive(4, 20_000);
  sup.goaway(4, "rotate", 5, 20_000);
  assert.equal(dial(sup.tick(20_005)), false);
  sup.sessionLive(5, 20_010);
  // The old one was replaced: that says nothing about any address.
  sup.sessionEnded(4, { code: 3508, name: "replaced", reason: "" }, 20_011);
  sup.goaway(5, "draining", 5, 20_020);
  assert.equal(dial(sup.tick(20_025)), true);
});

test("addresses are tried in a random order, one after the other, and the first again", () => {
  const all = ["a", "b", "c"];
  const addresses = new Addresses(all, Math.random);
  const first = addresses.take(false);
  assert.equal(addresses.take(false), first);
  const round = [first, addresses.take(true), addresses.take(true)];
  assert.deepEqual(round.toSorted(), all);
  assert.equal(addresses.take(true), first);
  const begun = new Set([0, 0.4, 0.9].map((number) => new Addresses(all, () => number).take(false)));
  assert.ok(begun.size > 1, "the order depends on the random numbers");
  assert.throws(() => new Addresses([], Math.random), /no address/);
});

test("goaway, then the session ends before the delay is over: the delay stays", () => {
  const sup = new Supervisor(() => 0);
  sup.connect();
  sup.sessionLive(1, 0);
  sup.goaway(1, "rotate", 700, 100);
  assert.deepEqual(kinds(sup.sessionEnded(1, end(3000), 200)), ["waiting"]);
  assert.equal(sup.nextTick(), 800);
});

test("goaway, the attempt fails though the server took it, and the old session is replaced: it goes on", () => {
  const sup = new Supervisor(() => 0.5);
  sup.connect();
  sup.sessionLive(1, 0);
  sup.goaway(1, "draining", 100, 0);
  assert.deepEqual(kinds(sup.tick(100)), ["dial"]);
  assert.deepEqual(sup.sessionEnded(2, LOST, 10_100), []);
  const retryAt = sup.nextTick();
  assert.deepEqual(kinds(sup.sessionEnded(1, end(3508), 10_101)), ["waiting"]);
  assert.equal(sup.nextTick(), retryAt);
  assert.deepEqual(kinds(sup.tick(retryAt)), ["connecting", "dial"]);
  sup.sessionLive(3, retryAt);
  // Without a goaway somebody else has taken the place.
  assert.deepEqual(kinds(sup.sessionEnded(3, end(3508), retryAt + 1)), ["leave", "closed"]);
});

test("leaving stops everything", () => {
  const sup = new Supervisor(() => 0);
  sup.connect();
  sup.sessionEnded(1, LOST, 0);
  assert.deepEqual(kinds(sup.leave()), ["leave", "closed"]);
  assert.equal(sup.nextTick(), Infinity);
  assert.deepEqual(sup.sessionEnded(1, LOST, 1), []);
});

test("the iterator releases a notification when the next one is asked for", async () => {
  const queue = new NotificationQueue(() => undefined);
  const item = (n: number): Notification => ({ receivedAt: n }) as Notification;
  let released = false;
  void queue.push(item(1)).then(() => (released = true));
  const last = queue.push(item(2));
  assert.equal((await queue.next()).value?.receivedAt, 1);
  assert.equal(released, false);
  assert.equal((await queue.next()).value?.receivedAt, 2);
  assert.equal(released, true);
  await queue.return();
  await last;
  assert.equal((await queue.next()).done, true);
});
