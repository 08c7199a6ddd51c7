/** The byte vectors that all implementations of the protocol share. */
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { fileURLToPath } from "node:url";
import { decodeBody, encodeBody } from "../src/codec.js";
import { FrameReader, MAX_CLIENT_FRAME, MAX_SERVER_FRAME, withPrefix } from "../src/framing.js";
import { asServerFrame, FrameError, type ClientFrame, type Encoding, type JsonObject } from "../src/frames.js";
import { asClientFrame, fromHex } from "./support.js";

interface Vector {
  name: string;
  from: "client" | "server";
  encoding: Encoding;
  frame: JsonObject;
  datagram?: boolean;
  hex: string;
}
interface BadVector {
  name: string;
  encoding: Encoding;
  hex: string;
  why: string;
}

const vectors = load<Vector>("frames.json");
const badVectors = load<BadVector>("bad_frames.json");

test("every good frame decodes to its value and is accepted", () => {
  assert.ok(vectors.length > 0);
  for (const vector of vectors) {
    const limit = vector.from === "client" ? MAX_CLIENT_FRAME : MAX_SERVER_FRAME;
    const body = vector.datagram ? fromHex(vector.hex) : onlyBody(fromHex(vector.hex), limit);
    const map = decodeBody(body, vector.encoding);
    assert.deepEqual(map, vector.frame, vector.name);
    if (vector.from === "client") asClientFrame(map);
    else assert.ok(asServerFrame(map), vector.name);
  }
});

test("frames cut at any byte decode to the same value", () => {
  for (const vector of vectors.filter((v) => !v.datagram).slice(0, 60)) {
    const reader = new FrameReader(() => MAX_SERVER_FRAME);
    const bodies = [...fromHex(vector.hex)].flatMap((byte) => reader.push(Uint8Array.of(byte)));
    assert.equal(bodies.length, 1, vector.name);
    assert.deepEqual(decodeBody(bodies[0]!, vector.encoding), vector.frame, vector.name);
  }
});

test("every client frame encodes to exactly its bytes", () => {
  const mine = vectors.filter((vector) => vector.from === "client");
  assert.ok(mine.length > 0);
  for (const vector of mine) {
    // Another order of fields, so that the encoder's own order is what shows.
    const frame = Object.fromEntries(Object.entries(vector.frame).reverse()) as unknown as ClientFrame;
    const bytes = withPrefix(encodeBody(frame, vector.encoding));
    assert.equal(Buffer.from(bytes).toString("hex"), vector.hex, vector.name);
  }
});

test("every bad frame is refused", () => {
  assert.ok(badVectors.length > 0);
  for (const vector of badVectors) {
    assert.throws(
      () => {
        const body = onlyBody(fromHex(vector.hex), MAX_CLIENT_FRAME);
        asClientFrame(decodeBody(body, vector.encoding));
      },
      FrameError,
      `${vector.name}: ${vector.why}`,
    );
  }
});

test("what is wrong in its bytes is refused by a client too", () => {
  const inBytes = /^(length_(zero|4)|not_|empty_text|cut_|trailing|two_values|byte_order|array_|string_|bin|ext|fixext)/;
  for (const vector of badVectors.filter((v) => inBytes.test(v.name))) {
    assert.throws(
      () => asServerFrame(decodeBody(onlyBody(fromHex(vector.hex), MAX_SERVER_FRAME), vector.encoding)),
      FrameError,
      `${vector.name}: ${vector.why}`,
    );
  }
});

function onlyBody(bytes: Uint8Array, limit: number): Uint8Array {
  const reader = new FrameReader(() => limit);
  const bodies = reader.push(bytes);
  reader.finish();
  assert.equal(bodies.length, 1);
  return bodies[0]!;
}

function load<T>(name: string): T[] {
  // The bundled test lies in dist/test, three folders below clients.
  const path = fileURLToPath(new URL(`../../../../tests/vectors/${name}`, import.meta.url));
  return JSON.parse(readFileSync(path, "utf8")) as T[];
}
