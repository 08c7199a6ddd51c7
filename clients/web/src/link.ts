/**
 * Moves one session's bytes: opens the transport, reads the control stream,
 * all lanes and the datagrams at the same time, writes what the session says.
 *
 * Place: the only file that touches sockets; `session.ts` has the rules,
 * `client.ts` owns the link and ends it. Limits: `MAX_STREAMS` server streams,
 * `MAX_UNSENT` frames waiting to be written (then the connection counts as
 * lost), one frame a lane in the handlers' hands.
 */
import { decodeBody, encodeBody } from "./codec.js";
import { NORMAL, PROTOCOL_ERROR, type SessionEnd } from "./closing.js";
import { FrameReader, withPrefix } from "./framing.js";
import { FrameError, type ClientFrame, type GoawayFrame, type Lane, type PingFrame, type WelcomeFrame } from "./frames.js";
import { Session, type Action, type Notification, type SessionOptions } from "./session.js";
import type { Connector, Transport, TransportInit } from "./transport.js";

/** From the call to a ready transport and an open control stream. */
export const CONNECT_TIMEOUT_MS = 10_000;
/** The server may have read streams that this client does not know; beyond this they are refused. */
const MAX_STREAMS = 16;
/** Client frames are tiny and merge (acks); so many unsent ones mean a dead connection. */
const MAX_UNSENT = 1024;
/** A close frame and the transport's end race; the frame says more, so it gets this long, milliseconds. */
const CLOSE_GRACE_MS = 50;
/** After the control stream or a lane broke, the close code may still come, milliseconds. */
const BROKEN_GRACE_MS = 1000;

export interface LinkEvents {
  /** The frame counts as processed when the promise is done. */
  deliver(notification: Notification): Promise<void>;
  live(welcome: WelcomeFrame): void;
  ping(ping: PingFrame): void;
  goaway(goaway: GoawayFrame): void;
  ended(end: SessionEnd): void;
}

export class Link {
  private readonly session: Session;
  private transport: Transport | undefined;
  private writer: WritableStreamDefaultWriter<Uint8Array> | undefined;
  private unsent = 0;
  private timer: ReturnType<typeof setTimeout> | undefined;
  private ended = false;

  constructor(
    private readonly options: SessionOptions,
    private readonly events: LinkEvents,
  ) {
    this.session = new Session(options);
  }

  /** Connects and reads until the session ends; how it ended goes to `events.ended`, once. */
  async run(connector: Connector, url: string, init: TransportInit): Promise<void> {
    try {
      const transport = connector(url, init);
      this.transport = transport;
      this.watchClosed(transport);
      const stream = await within(CONNECT_TIMEOUT_MS, openControl(transport));
      if (this.ended) return;
      this.writer = stream.writable.getWriter();
      this.apply(this.session.start(performance.now()));
      void this.readControl(stream.readable);
      void this.readLanes(transport);
      void this.readDatagrams(transport);
    } catch (error) {
      // `closed` carries the server's code when there is one, so it goes first.
      setTimeout(() => this.apply(this.session.fail("unreachable", text(error))), CLOSE_GRACE_MS);
    }
  }

  renew(token: string): void {
    this.apply(this.session.renew(token));
  }

  /** Says `bye` and ends soon after, with or without an answer. */
  leave(): void {
    this.apply(this.session.leave(performance.now()));
  }

  private watchClosed(transport: Transport): void {
    const closed = (code: number | undefined, reason: string): void => {
      setTimeout(() => this.apply(this.session.transportClosed(code, reason)), CLOSE_GRACE_MS);
    };
    transport.closed.then(
      (info) => closed(info.closeCode, info.reason ?? ""),
      (error: unknown) => closed(undefined, text(error)),
    );
    transport.ready.then(undefined, () => undefined);
  }

  private async readControl(readable: ReadableStream<Uint8Array>): Promise<void> {
    await this.guard("control stream", async () => {
      await this.readBodies(readable, async (bodies) => {
        for (const body of bodies) {
          const map = decodeBody(body, this.session.controlEncoding);
          this.apply(this.session.control(map, performance.now()));
        }
      });
      this.broken("the server ended the control stream");
    });
  }

  private async readLanes(transport: Transport): Promise<void> {
    await this.guard("streams", async () => {
      const reader = transport.incomingUnidirectionalStreams.getReader();
      for (let count = 1; ; count += 1) {
        const { done, value } = await reader.read();
        if (done) return;
        if (count > MAX_STREAMS) void value.cancel().catch(() => undefined);
        else void this.guard("lane", () => this.readLane(value));
      }
    });
  }

  private async readLane(readable: ReadableStream<Uint8Array>): Promise<void> {
    let lane: Lane | "unknown" | undefined;
    await this.readBodies(readable, async (bodies) => {
      const batch = this.session.batchArrived();
      for (const body of bodies) {
        const map = decodeBody(body, this.options.encoding);
        const now = performance.now();
        if (lane === undefined) lane = this.session.laneOpened(map, now) ?? "unknown";
        else if (lane !== "unknown") {
          await this.perform(this.session.laneFrame(lane, map, body.length, now, Date.now()));
        }
      }
      this.session.batchDone(batch);
    });
  }

  private async readDatagrams(transport: Transport): Promise<void> {
    if (!this.options.datagrams) return;
    await this.guard("datagrams", async () => {
      const reader = transport.datagrams.readable.getReader();
      for (;;) {
        const { done, value } = await reader.read();
        if (done || this.ended) return;
        const batch = this.session.batchArrived();
        await this.readDatagram(value);
        this.session.batchDone(batch);
      }
    });
  }

  private async readDatagram(body: Uint8Array): Promise<void> {
    try {
      const map = decodeBody(body, this.options.encoding);
      await this.perform(this.session.datagram(map, performance.now(), Date.now()));
    } catch (error) {
      // Datagrams promise nothing: one that makes no sense is like one that was lost.
      if (!(error instanceof FrameError)) throw error;
    }
  }

  private async readBodies(
    readable: ReadableStream<Uint8Array>,
    handle: (bodies: Uint8Array[]) => Promise<void>,
  ): Promise<void> {
    const frames = new FrameReader(() => this.session.maxFrame);
    const reader = readable.getReader();
    try {
      for (;;) {
        const { done, value } = await reader.read();
        if (done || this.ended) break;
        await handle(frames.push(value));
      }
      if (!this.ended) frames.finish();
    } finally {
      reader.releaseLock();
    }
  }

  /** Runs a reader; broken rules end the session, a broken stream waits for the close code. */
  private async guard(what: string, read: () => Promise<void>): Promise<void> {
    try {
      await read();
    } catch (error) {
      if (this.ended) return;
      if (error instanceof FrameError) this.apply(this.session.fail("bad_frame", error.message));
      else this.broken(`${what}: ${text(error)}`);
    }
  }

  private broken(reason: string): void {
    setTimeout(() => this.apply(this.session.transportClosed(undefined, reason)), BROKEN_GRACE_MS);
  }

  /** Does the session's actions and waits for handlers. */
  private async perform(actions: Action[]): Promise<void> {
    for (const action of actions) {
      if (action.do === "deliver") {
        await this.events.deliver(action.notification);
        this.apply(this.session.processed(action.ticket, performance.now()));
      } else {
        this.one(action);
      }
    }
    this.schedule();
  }

  private apply(actions: Action[]): void {
    for (const action of actions) this.one(action);
    this.schedule();
  }

  private one(action: Action): void {
    switch (action.do) {
      case "send":
        return this.send(action.frame);
      case "live":
        return this.events.live(action.welcome);
      case "ping":
        return this.events.ping(action.ping);
      case "goaway":
        return this.events.goaway(action.goaway);
      case "end":
        return this.end(action.end);
      case "deliver":
        return;
    }
  }

  private send(frame: ClientFrame): void {
    if (!this.writer || this.ended) return;
    if (this.unsent >= MAX_UNSENT) {
      return this.apply(this.session.fail("lost", "the connection takes no more bytes"));
    }
    this.unsent += 1;
    const bytes = withPrefix(encodeBody(frame, this.options.encoding));
    this.writer.write(bytes).then(
      () => void (this.unsent -= 1),
      (error: unknown) => this.broken(text(error)),
    );
  }

  private end(end: SessionEnd): void {
    if (this.ended) return;
    this.ended = true;
    clearTimeout(this.timer);
    const code = end.name === "bad_frame" ? PROTOCOL_ERROR : NORMAL;
    try {
      this.transport?.close({ closeCode: code, reason: code === NORMAL ? "" : "protocol_error" });
    } catch {
      // It was closed before, which is what we want.
    }
    this.events.ended(end);
  }

  private schedule(): void {
    clearTimeout(this.timer);
    const next = this.session.nextTick();
    if (this.ended || next === Infinity) return;
    const delay = Math.max(0, next - performance.now());
    this.timer = setTimeout(() => this.apply(this.session.tick(performance.now())), Math.ceil(delay));
  }
}

async function openControl(transport: Transport): ReturnType<Transport["createBidirectionalStream"]> {
  await transport.ready;
  return transport.createBidirectionalStream();
}

async function within<T>(ms: number, work: Promise<T>): Promise<T> {
  let timer: ReturnType<typeof setTimeout> | undefined;
  const late = new Promise<never>((_, reject) => {
    timer = setTimeout(() => reject(new Error(`no connection within ${ms} ms`)), ms);
  });
  try {
    return await Promise.race([work, late]);
  } finally {
    clearTimeout(timer);
  }
}

function text(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}
