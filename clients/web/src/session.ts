/**
 * One session's rules, without a socket: frames and times go in, actions come
 * out.
 *
 * Place: between `link.ts` (which moves the bytes) and `supervisor.ts` (which
 * decides about the next session). Limits: holds no frame bodies; per lane it
 * keeps the counters of `acks.ts`. Times are milliseconds of one monotonic
 * clock, except where a field says Unix.
 */
import { LaneAcks } from "./acks.js";
import { CLOSE_NAMES, endFromFrame, endFromTransport, NORMAL, type SessionEnd } from "./closing.js";
import { SessionCursor, type InboxCursor } from "./cursor.js";
import type { SeenIds } from "./dedup.js";
import { MAX_SERVER_FRAME } from "./framing.js";
import {
  asServerFrame,
  FrameError,
  isLane,
  type ClientFrame,
  type Encoding,
  type GoawayFrame,
  type HelloFrame,
  type JsonObject,
  type Lane,
  type NotificationData,
  type PingFrame,
  type WelcomeFrame,
} from "./frames.js";

/** From the first byte sent to `welcome`. */
export const WELCOME_TIMEOUT_MS = 10_000;
/** The server may be silent for this many heartbeats before it counts as lost. */
export const SILENT_HEARTBEATS = 2.5;
/** How long the server's answer to `bye` is waited for. */
export const BYE_TIMEOUT_MS = 1000;
/** The most that a frame may have, whatever `welcome` says. */
const MAX_FRAME_CAP = 8 * MAX_SERVER_FRAME;

export interface Notification {
  /** The lane it came on, or `datagram`. */
  lane: Lane | "datagram";
  /** Unix milliseconds on this device. */
  receivedAt: number;
  data: NotificationData;
  /** Its cursor, on lane `inbox`. */
  inbox?: string;
}

/** Names a delivered frame until `Session.processed` is told that its handling ended. */
export interface Ticket {
  lane: Lane | "datagram";
  bytes: number;
  requireAck: boolean;
  inbox: string | undefined;
}

export type Action =
  | { do: "send"; frame: ClientFrame }
  | { do: "deliver"; notification: Notification; ticket: Ticket }
  | { do: "live"; welcome: WelcomeFrame }
  | { do: "ping"; ping: PingFrame }
  | { do: "goaway"; goaway: GoawayFrame }
  | { do: "end"; end: SessionEnd };

export interface SessionOptions {
  token: string;
  deviceId: string;
  platform: string;
  encoding: Encoding;
  datagrams: boolean;
  seen: SeenIds;
  cursor: InboxCursor;
}

export class Session {
  private phase: "hello" | "live" | "leaving" | "ended" = "hello";
  private readonly lanes = new Map<Lane, LaneAcks>();
  private readonly cursor: SessionCursor;
  private heartbeatMs = Infinity;
  private frameLimit = MAX_SERVER_FRAME;
  private lastHeard = 0;
  private deadline = Infinity;

  constructor(private readonly options: SessionOptions) {
    this.cursor = new SessionCursor(options.cursor);
  }

  /** The transport is ready and the control stream open. */
  start(now: number): Action[] {
    this.deadline = now + WELCOME_TIMEOUT_MS;
    const hello: HelloFrame = {
      type: "hello",
      version: 1,
      token: this.options.token,
      device_id: this.options.deviceId,
      platform: this.options.platform,
      encoding: this.options.encoding,
      datagrams: this.options.datagrams,
    };
    const inbox = this.options.cursor.get();
    if (inbox !== undefined) hello.resume = { inbox };
    return [{ do: "send", frame: hello }];
  }

  /** How the next control body is encoded: the answer to `hello` is always JSON. */
  get controlEncoding(): Encoding {
    return this.phase === "hello" ? "json" : this.options.encoding;
  }

  /** Largest body the server may send at the moment. */
  get maxFrame(): number {
    return this.frameLimit;
  }

  /** A frame of the control stream. Throws `FrameError` when it breaks the protocol. */
  control(map: JsonObject, now: number): Action[] {
    if (this.phase === "ended") return [];
    this.lastHeard = now;
    const frame = asServerFrame(map);
    switch (frame?.type) {
      case "welcome":
        return this.phase === "hello" ? this.welcomed(frame, now) : [];
      case "close":
        return this.finish(endFromFrame(frame));
      case "ping":
        this.cursor.ping(frame.inbox);
        return [
          { do: "send", frame: { type: "pong", t: frame.t } },
          { do: "ping", ping: frame },
        ];
      case "goaway":
        return [{ do: "goaway", goaway: frame }];
      default:
        return [];
    }
  }

  /** One read gave frames; tell `batchDone` its number once all of them were handled. */
  batchArrived(): number {
    return this.cursor.batchArrived();
  }

  batchDone(batch: number): void {
    this.cursor.batchDone(batch);
  }

  /** The first frame of a server stream. Gives its lane, `undefined` for one this client does not know. */
  laneOpened(map: JsonObject, now: number): Lane | undefined {
    this.lastHeard = now;
    const frame = asServerFrame(map);
    if (frame?.type !== "lane") throw new FrameError("a stream does not start with a lane frame");
    if (!isLane(frame.lane)) return undefined;
    if (this.lanes.has(frame.lane)) throw new FrameError(`lane ${frame.lane} was opened twice`);
    this.lanes.set(frame.lane, new LaneAcks());
    return frame.lane;
  }

  /**
   * A further frame of a lane. When it is not delivered (a repeat, an unknown
   * type) it still counts on the lane and is acked.
   */
  laneFrame(lane: Lane, map: JsonObject, bytes: number, now: number, unixNow: number): Action[] {
    this.lastHeard = now;
    const frame = asServerFrame(map);
    const ticket: Ticket = { lane, bytes, requireAck: false, inbox: undefined };
    if (frame?.type !== "notification") return this.processed(ticket, now);
    ticket.requireAck = frame.data.require_ack === true;
    ticket.inbox = lane === "inbox" ? frame.inbox : undefined;
    if (!this.options.seen.add(frame.data.notification_id)) return this.processed(ticket, now);
    const notification: Notification = { lane, receivedAt: unixNow, data: frame.data };
    if (ticket.inbox !== undefined) notification.inbox = ticket.inbox;
    return [{ do: "deliver", notification, ticket }];
  }

  datagram(map: JsonObject, now: number, unixNow: number): Action[] {
    this.lastHeard = now;
    const frame = asServerFrame(map);
    if (frame?.type !== "notification" || !this.options.seen.add(frame.data.notification_id)) return [];
    const ticket: Ticket = { lane: "datagram", bytes: 0, requireAck: false, inbox: undefined };
    return [{ do: "deliver", notification: { lane: "datagram", receivedAt: unixNow, data: frame.data }, ticket }];
  }

  /** The handling of a frame has ended. Call in order for each lane. */
  processed(ticket: Ticket, now: number): Action[] {
    if (ticket.inbox !== undefined) this.cursor.replayed(ticket.inbox);
    if (ticket.lane !== "datagram") {
      this.lanes.get(ticket.lane)?.frameDone(ticket.bytes, ticket.requireAck, now);
    }
    return this.dueAcks(now);
  }

  /** A fresh token for the same user. */
  renew(token: string): Action[] {
    return this.phase === "live" ? [{ do: "send", frame: { type: "token", token } }] : [];
  }

  /** Leave on purpose: the rest is acked, then `bye`. */
  leave(now: number): Action[] {
    if (this.phase === "hello") return this.finish(normalEnd());
    if (this.phase !== "live") return [];
    const actions = this.flushAcks();
    this.phase = "leaving";
    this.deadline = now + BYE_TIMEOUT_MS;
    actions.push({ do: "send", frame: { type: "bye" } });
    return actions;
  }

  /** `WebTransport.closed` settled, or the control stream ended; `code` when the server gave one. */
  transportClosed(code: number | undefined, reason: string): Action[] {
    if (this.phase === "leaving") return this.finish(normalEnd());
    const end = endFromTransport(code, reason);
    const neverMade = this.phase === "hello" && end.code === undefined;
    return this.finish(neverMade ? { ...end, name: "unreachable" } : end);
  }

  /** Something on this side ends the session: bytes that break the protocol, a full queue. */
  fail(name: string, reason: string): Action[] {
    return this.finish({ code: undefined, name, reason });
  }

  tick(now: number): Action[] {
    if (now >= this.deadline) {
      if (this.phase === "hello") return this.fail("unreachable", "the server did not answer hello");
      if (this.phase === "leaving") return this.finish(normalEnd());
    }
    if (this.phase === "live" && now >= this.silentAt()) {
      return this.fail("silent", `no frame for ${Math.round(now - this.lastHeard)} ms`);
    }
    return this.dueAcks(now);
  }

  /** When `tick` wants to be called next; `Infinity` for never. */
  nextTick(): number {
    if (this.phase === "ended") return Infinity;
    if (this.phase !== "live") return this.deadline;
    let next = this.silentAt();
    for (const acks of this.lanes.values()) next = Math.min(next, acks.dueAt() ?? Infinity);
    return next;
  }

  private welcomed(welcome: WelcomeFrame, now: number): Action[] {
    this.phase = "live";
    this.deadline = Infinity;
    this.heartbeatMs = Math.max(1, welcome.heartbeat_ms);
    this.frameLimit = Math.min(welcome.max_frame, MAX_FRAME_CAP);
    this.cursor.welcome(welcome.inbox);
    return [{ do: "live", welcome }, ...this.dueAcks(now)];
  }

  private silentAt(): number {
    return this.lastHeard + SILENT_HEARTBEATS * this.heartbeatMs;
  }

  /** Lanes may be ahead of `welcome`; their acks wait for it, as only `hello` may come before. */
  private dueAcks(now: number): Action[] {
    if (this.phase !== "live") return [];
    return this.acks((lane) => lane.take(now));
  }

  private flushAcks(): Action[] {
    return this.acks((lane) => lane.flush());
  }

  private acks(take: (lane: LaneAcks) => number | undefined): Action[] {
    const actions: Action[] = [];
    for (const [lane, acks] of this.lanes) {
      const seq = take(acks);
      if (seq !== undefined) actions.push({ do: "send", frame: { type: "ack", lane, seq } });
    }
    return actions;
  }

  private finish(end: SessionEnd): Action[] {
    if (this.phase === "ended") return [];
    this.phase = "ended";
    return [{ do: "end", end }];
  }
}

function normalEnd(): SessionEnd {
  return { code: NORMAL, name: CLOSE_NAMES[NORMAL] ?? "normal", reason: "" };
}
