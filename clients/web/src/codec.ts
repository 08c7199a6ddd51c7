/**
 * Bodies to bytes and back, in JSON and in MessagePack.
 *
 * Place: above `framing.ts` (which cuts streams into bodies), below
 * `frames.ts` (which says what the maps must hold). Limits: integers beyond
 * 2^53 lose digits, as everywhere in JavaScript, so ids travel as strings.
 */
import { decode as unpack, encode as pack } from "@msgpack/msgpack";
import { FrameError, type ClientFrame, type Encoding, type JsonObject } from "./frames.js";
import { checkMsgpack, MAX_DEPTH } from "./msgpack.js";

const utf8 = new TextEncoder();
// The byte order mark is kept so that JSON.parse refuses it, as other parsers do.
const strictUtf8 = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });

/** Decodes one body into a map. Throws `FrameError` for anything but one whole, valid map. */
export function decodeBody(body: Uint8Array, encoding: Encoding): JsonObject {
  let value: unknown;
  try {
    if (encoding === "json") {
      value = JSON.parse(strictUtf8.decode(body));
    } else {
      checkMsgpack(body);
      value = unpack(body, { maxStrLength: body.length });
    }
  } catch (error) {
    if (error instanceof FrameError) throw error;
    throw new FrameError(`invalid ${encoding}: ${error instanceof Error ? error.message : String(error)}`);
  }
  if (typeof value !== "object" || value === null || Array.isArray(value)) {
    throw new FrameError("a body must be a map");
  }
  return value as JsonObject;
}

/**
 * Encodes one frame without its length prefix. Fields come out in the order
 * of the protocol text, `type` first; absent ones are left out. `hello` is
 * always JSON.
 */
export function encodeBody(frame: ClientFrame, encoding: Encoding): Uint8Array {
  const map = inFieldOrder(frame);
  if (encoding === "json" || frame.type === "hello") return utf8.encode(JSON.stringify(map));
  return pack(map, { ignoreUndefined: true, maxDepth: MAX_DEPTH });
}

function inFieldOrder(frame: ClientFrame): JsonObject {
  switch (frame.type) {
    case "hello": {
      const map: JsonObject = {
        type: "hello",
        version: frame.version,
        token: frame.token,
        device_id: frame.device_id,
        platform: frame.platform,
      };
      if (frame.encoding !== undefined) map["encoding"] = frame.encoding;
      if (frame.datagrams !== undefined) map["datagrams"] = frame.datagrams;
      if (frame.resume) map["resume"] = { inbox: frame.resume.inbox };
      return map;
    }
    case "ack":
      return { type: "ack", lane: frame.lane, seq: frame.seq };
    case "pong":
      return { type: "pong", t: frame.t };
    case "token":
      return { type: "token", token: frame.token };
    case "bye":
      return { type: "bye" };
  }
}
