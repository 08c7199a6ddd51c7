/** The whole client against a fake server: no network, real streams. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { FanfareClient, type ClientOptions, type ClientState } from "../src/client.js";
import type { Notification } from "../src/session.js";
import type { Status } from "../src/supervisor.js";
import { fakeNetwork, fakeToken, FakeServer, notification, welcome } from "./support.js";

const limit = { timeout: 10_000 };

test("hello offers everything, acks wait for welcome, lanes may come first", limit, async () => {
  const { client, server } = await connected({ encoding: "msgpack", inboxCursor: "1-2-3" }, false);
  const hello = await server.frame("hello");
  assert.deepEqual(server.protocols, ["fanfare.v1"]);
  assert.deepEqual(
    { ...hello, token: "" },
    {
      type: "hello",
      version: 1,
      token: "",
      device_id: "device-1",
      platform: "web",
      encoding: "msgpack",
      datagrams: true,
      resume: { inbox: "1-2-3" },
    },
  );
  const got = next(client);
  server.lane("high")(notification("n1", { require_ack: true, payload: { a: 1 } }));
  const first = await got;
  assert.equal(first.lane, "high");
  assert.deepEqual(first.data.payload, { a: 1 });
  assert.equal(server.frames.length, 1);
  server.send(welcome());
  assert.deepEqual(await server.frame("ack"), { type: "ack", lane: "high", seq: 1 });
  await leave(client, server);
});

test("all lanes are read at the same time, a waiting handler holds only its own", limit, async () => {
  const { client, server } = await connected();
  const seen: string[] = [];
  let release = (): void => undefined;
  const both = new Promise<void>((resolve) => {
    client.on("notification", async (n) => {
      seen.push(`${n.lane} ${n.data.notification_id}`);
      if (n.lane === "low") await new Promise<void>((done) => (release = done));
      if (seen.length === 2) resolve();
    });
  });
  const low = server.lane("low");
  low(notification("a", { require_ack: true }));
  low(notification("b"));
  server.lane("normal")(notification("c", { require_ack: true }));
  await both;
  assert.deepEqual(seen, ["low a", "normal c"]);
  assert.deepEqual(await server.frame("ack"), { type: "ack", lane: "normal", seq: 1 });
  release();
  assert.deepEqual(await server.frame("ack", 2), { type: "ack", lane: "low", seq: 1 });
  await leave(client, server);
});

test("repeats and unknown frames are not delivered, and counted on the lane", limit, async () => {
  const { client, server } = await connected();
  const seen: string[] = [];
  client.on("notification", (n) => void seen.push(n.data.notification_id));
  const lane = server.lane("normal");
  lane(notification("a"));
  lane(notification("a"));
  lane({ type: "from_the_future", x: 1 });
  server.send({ type: "another_future" });
  lane(notification("b", { require_ack: true }));
  assert.deepEqual(await server.frame("ack"), { type: "ack", lane: "normal", seq: 4 });
  assert.deepEqual(seen, ["a", "b"]);
  await leave(client, server);
});

test("an unknown lane is read and ignored", limit, async () => {
  const { client, server } = await connected();
  const got = next(client);
  server.lane("bulk")(notification("x"));
  server.lane("high")(notification("y", { require_ack: true }));
  assert.equal((await got).data.notification_id, "y");
  assert.deepEqual(await server.frame("ack"), { type: "ack", lane: "high", seq: 1 });
  await leave(client, server);
});

test("datagrams are delivered, never acked, and nonsense in one does no harm", limit, async () => {
  const { client, server } = await connected({ encoding: "msgpack" });
  const got = next(client);
  server.datagram({ no: "type" });
  server.datagram(notification("t", { notification_type: "message.typing" }));
  assert.equal((await got).lane, "datagram");
  await leave(client, server);
  assert.equal(server.frames.some((f) => f.type === "ack"), false);
});

test("ping is answered, and its cursor resumes the next session", limit, async () => {
  const { client, server, servers } = await connected();
  server.send({ type: "ping", t: 17, inbox: "1-20-1700000001" });
  assert.deepEqual(await server.frame("pong"), { type: "pong", t: 17 });
  assert.equal(client.inboxCursor, "1-20-1700000001");
  const waiting = status(client, "waiting");
  server.lose();
  assert.equal((await waiting).end?.name, "lost");
  client.connect();
  const again = await nextServer(servers, 1);
  assert.deepEqual((await again.frame("hello")).resume, { inbox: "1-20-1700000001" });
  again.send(welcome());
  const got = next(client);
  again.lane("inbox")(notification("r", {}, { inbox: "1-21-1700000002" }));
  assert.equal((await got).inbox, "1-21-1700000002");
  await leave(client, again);
  assert.equal(client.inboxCursor, "1-21-1700000002");
});

test("a first session that breaks while a handler runs resumes from its welcome", limit, async () => {
  const { client, server, servers } = await connected();
  const handling = new Promise<void>((resolve) => {
    client.on("notification", () => {
      resolve();
      return new Promise<void>(() => undefined);
    });
  });
  server.lane("high")(notification("h", { require_ack: true }));
  await handling;
  const waiting = status(client, "waiting");
  server.lose();
  await waiting;
  client.connect();
  const again = await nextServer(servers, 1);
  assert.deepEqual((await again.frame("hello")).resume, { inbox: welcome()["inbox"] });
  const live = status(client, "live");
  again.send(welcome());
  await live;
  await leave(client, again);
});

test("a close frame's code, name and reason reach the state; 3508 stops", limit, async () => {
  const { client, server, servers } = await connected();
  const closed = status(client, "closed");
  server.send({ type: "close", code: 3508, name: "replaced", reason: "a newer session", reconnect: false });
  const { end } = await closed;
  assert.deepEqual([end?.code, end?.name, end?.reason], [3508, "replaced", "a newer session"]);
  assert.equal(servers.length, 1);
});

test("without a close frame the transport's code is used", limit, async () => {
  const { client, server } = await connected();
  const closed = status(client, "closed");
  server.closeTransport(3502, "banned");
  assert.deepEqual((await closed).end, { code: 3502, name: "banned", reason: "" });
});

test("token_expired gets a new token before it reconnects", limit, async () => {
  let asked = 0;
  const token = (): Promise<string> => Promise.resolve(fakeToken(3600 + (asked += 1)));
  const { client, server, servers } = await connected({ token });
  assert.equal(asked, 1);
  server.send({
    type: "close",
    code: 3005,
    name: "token_expired",
    reason: "",
    reconnect: true,
    retry_after_ms: 1,
  });
  const again = await nextServer(servers, 1);
  await again.frame("hello");
  assert.equal(asked, 2);
  const live = status(client, "live");
  again.send(welcome());
  await live;
  await leave(client, again);
});

test("a fresh token is sent before the old one expires", limit, async () => {
  const lives = [2, 3600];
  const token = (): Promise<string> => Promise.resolve(fakeToken(lives.shift() ?? 3600));
  const { client, server } = await connected({ token });
  const frame = await server.frame("token");
  assert.ok(frame.token.length > 10);
  await leave(client, server);
});

test("goaway connects anew and the old session's end is ignored", limit, async () => {
  const { client, server, servers } = await connected();
  const states: Status[] = [];
  client.on("state", (s) => void states.push(s.status));
  server.send({ type: "goaway", reason: "rotate", reconnect_after_ms: 5, close_after_ms: 1000 });
  const successor = await nextServer(servers, 1);
  await successor.frame("hello");
  const live = status(client, "live");
  successor.send(welcome({ session_id: "s-2" }));
  await live;
  server.send({ type: "close", code: 3508, name: "replaced", reason: "", reconnect: false });
  const got = next(client);
  successor.lane("high")(notification("after"));
  await got;
  assert.equal(client.state.session?.session_id, "s-2");
  assert.deepEqual(states, ["live"]);
  await leave(client, successor);
});

test("what the old session did not ack comes again on its successor and is shown once", limit, async () => {
  const { client, server, servers } = await connected();
  const shown: string[] = [];
  client.on("notification", (n) => void shown.push(n.data.notification_id));
  const onOld = next(client);
  server.send({ type: "goaway", reason: "rotate", reconnect_after_ms: 5, close_after_ms: 1000 });
  server.lane("normal")(notification("on both"));
  await onOld;
  const successor = await nextServer(servers, 1);
  await successor.frame("hello");
  const live = status(client, "live");
  successor.send(welcome({ session_id: "s-2" }));
  await live;
  server.send({ type: "close", code: 3508, name: "replaced", reason: "", reconnect: false });
  const lane = successor.lane("normal");
  const onNew = next(client);
  lane(notification("on both"));
  lane(notification("on the new one", { require_ack: true }));
  await onNew;
  assert.deepEqual(shown, ["on both", "on the new one"]);
  assert.deepEqual(await successor.frame("ack"), { type: "ack", lane: "normal", seq: 2 }, "the repeat is acked, too");
  await leave(client, successor);
});

test("silence for 2.5 heartbeats is a lost connection", limit, async () => {
  const { client } = await connected({}, true, { heartbeat_ms: 40 });
  assert.equal((await status(client, "waiting")).end?.name, "silent");
  client.close();
});

test("bytes that break the protocol close with 3500", limit, async () => {
  const { client, server } = await connected();
  const waiting = status(client, "waiting");
  server.sendRaw(Uint8Array.of(0, 0, 0, 0));
  assert.equal((await waiting).end?.name, "bad_frame");
  assert.equal(server.clientClosed?.closeCode, 3500);
  client.close();
});

test("a frame above max_frame is refused from its length", limit, async () => {
  const { client, server } = await connected({}, true, { max_frame: 2000 });
  const waiting = status(client, "waiting");
  server.sendRaw(Uint8Array.of(0, 0, 0x07, 0xd1));
  assert.equal((await waiting).end?.name, "bad_frame");
  client.close();
});

test("a token provider that fails is told and tried again", limit, async () => {
  const network = fakeNetwork(() => undefined);
  const client = make(network.connector, { token: () => Promise.reject(new Error("sign-in server is down")) });
  const errors: unknown[] = [];
  client.on("error", (error) => void errors.push(error));
  const waiting = status(client, "waiting");
  client.connect();
  assert.equal((await waiting).end?.name, "no_token");
  assert.equal(errors.length, 1);
  client.close();
});

test("what a handler throws is an error event, and the frame is acked", limit, async () => {
  const { client, server } = await connected();
  const error = new Promise((resolve) => client.on("error", resolve));
  client.on("notification", () => {
    throw new Error("handler");
  });
  server.lane("high")(notification("n", { require_ack: true }));
  assert.match(String(await error), /handler/);
  await server.frame("ack");
  await leave(client, server);
});

test("a for await loop gets notifications and ends with close", limit, async () => {
  const { client, server } = await connected();
  const loop = (async () => {
    const ids: string[] = [];
    for await (const n of client.notifications()) {
      ids.push(n.data.notification_id);
      if (ids.length === 2) client.close();
    }
    return ids;
  })();
  const lane = server.lane("high");
  lane(notification("1"));
  lane(notification("2"));
  assert.deepEqual(await loop, ["1", "2"]);
  await server.frame("bye");
});

test("of two addresses the other one is next when a connection was lost", limit, async () => {
  const network = fakeNetwork(() => undefined);
  const url = ["https://a.example/v1/push", "https://b.example/v1/push"];
  const client = make(network.connector, { url });
  const live = status(client, "live");
  client.connect();
  const first = await nextServer(network.servers, 0);
  await first.frame("hello");
  first.send(welcome());
  await live;
  const again = status(client, "live");
  first.lose();
  const second = await nextServer(network.servers, 1);
  assert.deepEqual(network.urls.toSorted(), url);
  await second.frame("hello");
  second.send(welcome());
  await again;
  await leave(client, second);
});

// ---- helpers ----

function make(connector: ClientOptions["connector"], options: Partial<ClientOptions>): FanfareClient {
  return new FanfareClient({
    url: "https://127.0.0.1:1/v1/push",
    token: () => Promise.resolve(fakeToken(3600)),
    deviceId: "device-1",
    ...options,
    ...(connector ? { connector } : {}),
  });
}

async function connected(
  options: Partial<ClientOptions> = {},
  greet = true,
  changes: Parameters<typeof welcome>[0] = {},
): Promise<{ client: FanfareClient; server: FakeServer; servers: FakeServer[] }> {
  const network = fakeNetwork(() => undefined);
  const client = make(network.connector, options);
  const live = status(client, "live");
  client.connect();
  const server = await nextServer(network.servers, 0);
  if (greet) {
    await server.frame("hello");
    server.send(welcome(changes));
    await live;
  }
  return { client, server, servers: network.servers };
}

function status(client: FanfareClient, wanted: Status): Promise<ClientState> {
  return new Promise((resolve) => {
    const remove = client.on("state", (state) => {
      if (state.status !== wanted) return;
      remove();
      resolve(state);
    });
  });
}

function next(client: FanfareClient): Promise<Notification> {
  return new Promise((resolve) => {
    const remove = client.on("notification", (n) => {
      remove();
      resolve(n);
    });
  });
}

async function nextServer(servers: FakeServer[], index: number): Promise<FakeServer> {
  for (let tries = 0; tries < 1000; tries += 1) {
    const server = servers[index];
    if (server) return server;
    await new Promise((resolve) => setTimeout(resolve, 2));
  }
  throw new Error(`the client did not connect ${index + 1} times`);
}

async function leave(client: FanfareClient, server: FakeServer): Promise<void> {
  client.close();
  await server.frame("bye");
  server.send({ type: "close", code: 0, name: "normal", reason: "", reconnect: false });
}
