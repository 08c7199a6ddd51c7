/**
 * The frames of the push protocol, version 1, as types, and the checks that
 * turn a decoded map into one of them.
 *
 * Place: between `codec.ts` (bytes to maps) and `session.ts` (what a frame
 * means). Limits: unknown fields are ignored; an unknown frame type gives
 * `undefined`, which callers skip; a known type with a missing or wrong field
 * throws `FrameError`.
 */

export type Encoding = "json" | "msgpack";

/** The four lanes, in the server's order of priority. */
export const LANES = ["high", "inbox", "normal", "low"] as const;
export type Lane = (typeof LANES)[number];

export type JsonValue = null | boolean | number | string | JsonValue[] | { [key: string]: JsonValue };
export type JsonObject = { [key: string]: JsonValue };

// ---- client to server ----

export interface HelloFrame {
  type: "hello";
  version: 1;
  token: string;
  device_id: string;
  platform: string;
  /** `json` when absent. */
  encoding?: Encoding;
  /** False when absent. */
  datagrams?: boolean;
  resume?: { inbox: string };
}
export interface AckFrame {
  type: "ack";
  lane: Lane;
  /** Everything up to and including this ordinal was processed. */
  seq: number;
}
export interface PongFrame {
  type: "pong";
  t: number;
}
export interface TokenFrame {
  type: "token";
  token: string;
}
export interface ByeFrame {
  type: "bye";
}
export type ClientFrame = HelloFrame | AckFrame | PongFrame | TokenFrame | ByeFrame;

// ---- server to client ----

export interface WelcomeFrame {
  type: "welcome";
  session_id: string;
  user_id: string;
  node: string;
  heartbeat_ms: number;
  ack_timeout_ms: number;
  /** Un-acked frames a lane may hold before the server stops writing there. */
  window: number;
  max_frame: number;
  /** Unix milliseconds. */
  server_time: number;
  inbox: string;
  /** False when something after the client's cursor was lost. */
  recovered: boolean;
}
export interface PingFrame {
  type: "ping";
  /** Unix milliseconds. */
  t: number;
  inbox: string;
}
export interface GoawayFrame {
  type: "goaway";
  reason: string;
  reconnect_after_ms: number;
  close_after_ms: number;
}
export interface CloseFrame {
  type: "close";
  code: number;
  name: string;
  reason: string;
  reconnect: boolean;
  retry_after_ms?: number;
}
export interface LaneFrame {
  type: "lane";
  lane: string;
}
export interface NotificationData {
  notification_id: string;
  notification_type: string;
  /** Unix seconds, as the publisher gave it. */
  timestamp: number;
  /** Unix milliseconds: when the server side stored or received it. */
  published_at_ms: number;
  from_user_id?: string;
  priority: string;
  require_ack?: boolean;
  payload: JsonObject;
}
export interface NotificationFrame {
  type: "notification";
  data: NotificationData;
  /** The frame's cursor; only on lane `inbox`. */
  inbox?: string;
}
export type ServerFrame = WelcomeFrame | PingFrame | GoawayFrame | CloseFrame | LaneFrame | NotificationFrame;

/** Bytes or fields that break the protocol. */
export class FrameError extends Error {
  override readonly name = "FrameError";
}

export function isLane(value: string): value is Lane {
  return (LANES as readonly string[]).includes(value);
}

export type FieldKind = "string" | "count" | "boolean" | "object";
export type FieldTable = Record<string, FieldKind>;

/** Required fields of each server frame. */
const SERVER_FIELDS: Record<ServerFrame["type"], FieldTable> = {
  welcome: {
    session_id: "string",
    user_id: "string",
    node: "string",
    heartbeat_ms: "count",
    ack_timeout_ms: "count",
    window: "count",
    max_frame: "count",
    server_time: "count",
    inbox: "string",
    recovered: "boolean",
  },
  ping: { t: "count", inbox: "string" },
  goaway: { reason: "string", reconnect_after_ms: "count", close_after_ms: "count" },
  close: { code: "count", name: "string", reason: "string", reconnect: "boolean" },
  lane: { lane: "string" },
  notification: { data: "object" },
};
const SERVER_OPTIONAL: Partial<Record<ServerFrame["type"], FieldTable>> = {
  close: { retry_after_ms: "count" },
  notification: { inbox: "string" },
};
const DATA_FIELDS: FieldTable = {
  notification_id: "string",
  notification_type: "string",
  timestamp: "count",
  published_at_ms: "count",
  priority: "string",
  payload: "object",
};
const DATA_OPTIONAL: FieldTable = { from_user_id: "string", require_ack: "boolean" };

/**
 * Checks a decoded map and returns it as a server frame, `undefined` when its
 * type is unknown. Throws `FrameError` when a field is missing or wrong.
 */
export function asServerFrame(map: JsonObject): ServerFrame | undefined {
  const type = frameType(map);
  if (!Object.hasOwn(SERVER_FIELDS, type)) return undefined;
  const known = type as ServerFrame["type"];
  checkFields(known, map, SERVER_FIELDS[known], SERVER_OPTIONAL[known] ?? {});
  if (known === "notification") {
    checkFields("notification data", map["data"] as JsonObject, DATA_FIELDS, DATA_OPTIONAL);
  }
  return map as unknown as ServerFrame;
}

/** The frame's `type`. */
export function frameType(map: JsonObject): string {
  const type = Object.hasOwn(map, "type") ? map["type"] : undefined;
  if (typeof type !== "string") throw new FrameError("frame has no type");
  return type;
}

/** Throws `FrameError` unless every required field is there and every known field has its kind. */
export function checkFields(what: string, map: JsonObject, required: FieldTable, optional: FieldTable): void {
  for (const [name, kind] of Object.entries(required)) {
    if (!Object.hasOwn(map, name) || !hasKind(map[name], kind)) {
      throw new FrameError(`${what} has no valid ${name}`);
    }
  }
  for (const [name, kind] of Object.entries(optional)) {
    if (Object.hasOwn(map, name) && !hasKind(map[name], kind)) {
      throw new FrameError(`${what} has no valid ${name}`);
    }
  }
}

function hasKind(value: JsonValue | undefined, kind: FieldKind): boolean {
  switch (kind) {
    case "string":
    case "boolean":
      return typeof value === kind;
    case "count":
      return typeof value === "number" && Number.isSafeInteger(value) && value >= 0;
    case "object":
      return typeof value === "object" && value !== null && !Array.isArray(value);
  }
}
