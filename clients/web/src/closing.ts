/**
 * Close codes, and what an ended session means for the next one.
 *
 * Place: `session.ts` builds a `SessionEnd`, `supervisor.ts` acts on it.
 * Limits: pure; a code outside the protocol counts as a lost connection.
 */
import type { CloseFrame } from "./frames.js";

export const CLOSE_NAMES: Readonly<Record<number, string>> = {
  0: "normal",
  3000: "draining",
  3001: "rotate",
  3002: "slow_consumer",
  3003: "heartbeat_timeout",
  3004: "overloaded",
  3005: "token_expired",
  3006: "hello_timeout",
  3007: "internal_error",
  3500: "protocol_error",
  3501: "unauthorized",
  3502: "banned",
  3503: "logged_out",
  3504: "too_many_sessions",
  3505: "unsupported_version",
  3507: "origin_denied",
  3508: "replaced",
};

export const NORMAL = 0;
export const PROTOCOL_ERROR = 3500;
export const REPLACED = 3508;
const DRAINING = 3000;
const ROTATE = 3001;
const TOKEN_EXPIRED = 3005;

export interface SessionEnd {
  /** The server's close code; `undefined` when the connection was lost or never made. */
  code: number | undefined;
  /** The server's name for it, or `lost`, `unreachable`, `silent`, `bad_frame`, `no_token`. */
  name: string;
  reason: string;
  retryAfterMs?: number;
  /** What the server's close frame said, if there was one. */
  serverSaysReconnect?: boolean;
}

export function endFromFrame(frame: CloseFrame): SessionEnd {
  const end: SessionEnd = {
    code: frame.code,
    name: frame.name,
    reason: frame.reason,
    serverSaysReconnect: frame.reconnect,
  };
  if (frame.retry_after_ms !== undefined) end.retryAfterMs = frame.retry_after_ms;
  return end;
}

/** From `WebTransport.closed`. Code 0 without a close frame is what a vanished server looks like. */
export function endFromTransport(code: number | undefined, reason: string): SessionEnd {
  const known = code !== undefined && code !== NORMAL ? CLOSE_NAMES[code] : undefined;
  if (known !== undefined || inRange(code, 3000, 3999)) {
    const name = known ?? (reason || `code_${code}`);
    return { code, name, reason: reason === name ? "" : reason };
  }
  return { code: undefined, name: "lost", reason: reason || "the connection was lost" };
}

export type NextStep = "reconnect" | "fresh_token" | "stop";

/** 3000–3499 and lost connections: again. 3005: with a new token. 0 and 3500–3999: not by ourselves. */
export function nextStep(end: SessionEnd): NextStep {
  if (end.code === NORMAL || inRange(end.code, 3500, 3999)) return "stop";
  if (inRange(end.code, 3000, 3499) && end.serverSaysReconnect === false) return "stop";
  return end.code === TOKEN_EXPIRED ? "fresh_token" : "reconnect";
}

/** Ends that say nothing about the health of the server or the network. */
export function isPlanned(end: SessionEnd): boolean {
  return end.code === DRAINING || end.code === ROTATE || end.code === TOKEN_EXPIRED;
}

/** Whether the next session is better made at another address. A rotation and a missing token say nothing about this one. */
export function leadsElsewhere(end: SessionEnd): boolean {
  return end.code !== ROTATE && end.name !== "no_token";
}

function inRange(code: number | undefined, from: number, to: number): boolean {
  return code !== undefined && code >= from && code <= to;
}
