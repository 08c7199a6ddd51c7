/**
 * Frames on a stream: a 4-byte big-endian length, then the body.
 *
 * Place: between the transport's chunks and `codec.ts`. Limits: a reader
 * holds at most one unfinished body (up to the maximum size) and the chunk it
 * was given; a zero or larger length is refused from the prefix alone, before
 * anything is stored.
 */
import { FrameError } from "./frames.js";

/** Bytes of the length prefix. */
export const PREFIX_BYTES = 4;
/** Largest body a client may send: 64 KiB. */
export const MAX_CLIENT_FRAME = 64 * 1024;
/** Largest body a server may send until `welcome` says otherwise: 1 MiB. */
export const MAX_SERVER_FRAME = 1024 * 1024;

/** Puts the length before a body. Throws `FrameError` when it is empty or above the client's limit. */
export function withPrefix(body: Uint8Array): Uint8Array {
  if (body.length === 0 || body.length > MAX_CLIENT_FRAME) {
    throw new FrameError(`a client frame of ${body.length} bytes cannot be sent`);
  }
  const framed = new Uint8Array(PREFIX_BYTES + body.length);
  new DataView(framed.buffer).setUint32(0, body.length);
  framed.set(body, PREFIX_BYTES);
  return framed;
}

/** Cuts a stream of chunks into bodies. One reader a stream. */
export class FrameReader {
  private readonly prefix = new Uint8Array(PREFIX_BYTES);
  private prefixFill = 0;
  private body: Uint8Array | undefined;
  private bodyFill = 0;

  /** `maxBytes` is asked at each frame, because `welcome` may change it. */
  constructor(private readonly maxBytes: () => number) {}

  /** Takes a chunk and returns the bodies it completes. Throws `FrameError` on a bad length. */
  push(chunk: Uint8Array): Uint8Array[] {
    const bodies: Uint8Array[] = [];
    let at = 0;
    while (at < chunk.length) {
      if (!this.body) {
        at += this.fillPrefix(chunk, at);
        continue;
      }
      const part = chunk.subarray(at, at + this.body.length - this.bodyFill);
      this.body.set(part, this.bodyFill);
      this.bodyFill += part.length;
      at += part.length;
      if (this.bodyFill === this.body.length) {
        bodies.push(this.body);
        this.body = undefined;
      }
    }
    return bodies;
  }

  /** Call at the end of the stream. Throws `FrameError` when it ends inside a frame. */
  finish(): void {
    if (this.body || this.prefixFill > 0) throw new FrameError("the stream ends inside a frame");
  }

  private fillPrefix(chunk: Uint8Array, at: number): number {
    const part = chunk.subarray(at, at + PREFIX_BYTES - this.prefixFill);
    this.prefix.set(part, this.prefixFill);
    this.prefixFill += part.length;
    if (this.prefixFill === PREFIX_BYTES) {
      const length = new DataView(this.prefix.buffer).getUint32(0);
      if (length === 0) throw new FrameError("a frame of length zero");
      if (length > this.maxBytes()) throw new FrameError(`a frame of ${length} bytes is above the limit`);
      this.body = new Uint8Array(length);
      this.bodyFill = 0;
      this.prefixFill = 0;
    }
    return part.length;
  }
}
