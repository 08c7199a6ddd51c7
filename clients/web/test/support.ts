/**
 * The server's side, for tests only: it checks client frames as strictly as a
 * server must, and plays a server behind a fake WebTransport.
 */
import { encode as pack } from "@msgpack/msgpack";
import { decodeBody } from "../src/codec.js";
import { FrameReader, MAX_CLIENT_FRAME } from "../src/framing.js";
import {
  checkFields,
  FrameError,
  frameType,
  isLane,
  type ClientFrame,
  type Encoding,
  type FieldTable,
  type JsonObject,
} from "../src/frames.js";
import type { Connector, Transport } from "../src/transport.js";

const FIELDS: Record<ClientFrame["type"], FieldTable> = {
  hello: { version: "count", token: "string", device_id: "string", platform: "string" },
  ack: { lane: "string", seq: "count" },
  pong: { t: "count" },
  token: { token: "string" },
  bye: {},
};
const HELLO_OPTIONAL: FieldTable = { encoding: "string", datagrams: "boolean", resume: "object" };

/** Checks a client frame as the server does. */
export function asClientFrame(map: JsonObject): ClientFrame {
  const type = frameType(map);
  if (!Object.hasOwn(FIELDS, type)) throw new FrameError(`no client frame is called ${type}`);
  const known = type as ClientFrame["type"];
  checkFields(known, map, FIELDS[known], known === "hello" ? HELLO_OPTIONAL : {});
  const frame = map as unknown as ClientFrame;
  if (frame.type === "ack" && !isLane(frame.lane)) throw new FrameError("no such lane");
  if (frame.type === "hello") {
    if (!/^[A-Za-z0-9_-]{1,128}$/.test(frame.device_id)) throw new FrameError("hello has no valid device_id");
    if (!["json", "msgpack", undefined].includes(frame.encoding)) throw new FrameError("no such encoding");
    if (frame.resume) checkFields("resume", frame.resume, {}, { inbox: "string" });
  }
  return frame;
}

export function fromHex(hex: string): Uint8Array {
  return Uint8Array.from(Buffer.from(hex, "hex"));
}

export function framed(map: JsonObject, encoding: Encoding = "json"): Uint8Array {
  const body = bodyOf(map, encoding);
  const bytes = new Uint8Array(4 + body.length);
  new DataView(bytes.buffer).setUint32(0, body.length);
  bytes.set(body, 4);
  return bytes;
}

export function bodyOf(map: JsonObject, encoding: Encoding = "json"): Uint8Array {
  return encoding === "json" ? new TextEncoder().encode(JSON.stringify(map)) : pack(map);
}

export function welcome(changes: JsonObject = {}): JsonObject {
  return {
    type: "welcome",
    session_id: "s-1",
    user_id: "alice",
    node: "node-a",
    heartbeat_ms: 25_000,
    ack_timeout_ms: 10_000,
    window: 256,
    max_frame: 1_048_576,
    server_time: Date.now(),
    inbox: "1-10-1700000000",
    recovered: true,
    ...changes,
  };
}

export function notification(id: string, data: JsonObject = {}, top: JsonObject = {}): JsonObject {
  return {
    type: "notification",
    data: {
      notification_id: id,
      notification_type: "message.new",
      timestamp: 1_700_000_000,
      published_at_ms: 1_700_000_000_123,
      priority: "normal",
      payload: { content: "你好" },
      ...data,
    },
    ...top,
  };
}

/** A token without a valid signature: the client reads `exp` only. */
export function fakeToken(lifeS: number): string {
  const part = (value: unknown): string => Buffer.from(JSON.stringify(value)).toString("base64url");
  return `${part({ alg: "none" })}.${part({ sub: "alice", exp: Math.floor(Date.now() / 1000) + lifeS })}.x`;
}

/** One connection, seen from the server. */
export class FakeServer {
  readonly frames: ClientFrame[] = [];
  encoding: Encoding = "json";
  clientClosed: { closeCode?: number; reason?: string } | undefined;
  readonly transport: Transport;
  private control!: ReadableStreamDefaultController<Uint8Array>;
  private streams!: ReadableStreamDefaultController<ReadableStream<Uint8Array>>;
  private grams!: ReadableStreamDefaultController<Uint8Array>;
  private settle!: { resolve(info: { closeCode?: number; reason?: string }): void; reject(error: Error): void };
  private waiters: (() => void)[] = [];

  constructor(readonly protocols: readonly string[] = []) {
    const reader = new FrameReader(() => MAX_CLIENT_FRAME);
    const readable = new ReadableStream<Uint8Array>({ start: (c) => void (this.control = c) });
    const writable = new WritableStream<Uint8Array>({
      write: (chunk) => {
        for (const body of reader.push(chunk)) this.take(body);
      },
    });
    this.transport = {
      ready: Promise.resolve(),
      closed: new Promise((resolve, reject) => void (this.settle = { resolve, reject })),
      incomingUnidirectionalStreams: new ReadableStream({ start: (c) => void (this.streams = c) }),
      datagrams: { readable: new ReadableStream({ start: (c) => void (this.grams = c) }) },
      createBidirectionalStream: () => Promise.resolve({ readable, writable }),
      close: (info) => {
        this.clientClosed = info ?? {};
        this.settle.resolve(info ?? {});
      },
    };
  }

  send(map: JsonObject): void {
    const first = map["type"] === "welcome";
    this.control.enqueue(framed(map, first ? "json" : this.encoding));
  }

  sendRaw(bytes: Uint8Array): void {
    this.control.enqueue(bytes);
  }

  datagram(map: JsonObject): void {
    this.grams.enqueue(bodyOf(map, this.encoding));
  }

  /** Opens a lane; the result sends on it. */
  lane(name: string): (map: JsonObject) => void {
    let lane!: ReadableStreamDefaultController<Uint8Array>;
    this.streams.enqueue(new ReadableStream({ start: (c) => void (lane = c) }));
    lane.enqueue(framed({ type: "lane", lane: name }, this.encoding));
    return (map) => lane.enqueue(framed(map, this.encoding));
  }

  closeTransport(closeCode: number, reason: string): void {
    this.settle.resolve({ closeCode, reason });
  }

  lose(): void {
    this.settle.reject(new Error("Connection lost."));
  }

  /** The first client frame of this type, now or when it comes. */
  async frame<T extends ClientFrame["type"]>(type: T, nth = 1): Promise<Extract<ClientFrame, { type: T }>> {
    for (;;) {
      const found = this.frames.filter((frame) => frame.type === type)[nth - 1];
      if (found) return found as Extract<ClientFrame, { type: T }>;
      await new Promise<void>((resolve) => this.waiters.push(resolve));
    }
  }

  private take(body: Uint8Array): void {
    const first = this.frames.length === 0;
    const frame = asClientFrame(decodeBody(body, first ? "json" : this.encoding));
    if (frame.type === "hello") this.encoding = frame.encoding ?? "json";
    this.frames.push(frame);
    for (const wake of this.waiters.splice(0)) wake();
  }
}

/** Gives a connector and the servers it made, in order. */
export function fakeNetwork(onConnect: (server: FakeServer, index: number) => void): {
  connector: Connector;
  servers: FakeServer[];
  urls: string[];
} {
  const servers: FakeServer[] = [];
  const urls: string[] = [];
  const connector: Connector = (url, init) => {
    urls.push(url);
    const server = new FakeServer(init.protocols);
    servers.push(server);
    onConnect(server, servers.length - 1);
    return server.transport;
  };
  return { connector, servers, urls };
}
