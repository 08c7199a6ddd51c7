/**
 * The protocol's rules for MessagePack, checked on the bytes: maps with string
 * keys, valid UTF-8, integers in their smallest form, float64, nil, bool; no
 * bin, no ext, no float32, nothing after the value.
 *
 * Place: before the library's decoder, which accepts more than the protocol
 * does and does not tell how a number was written. Limits: one pass, nesting
 * up to `MAX_DEPTH`; sizes are bounded by the frame the bytes came in.
 */
import { FrameError } from "./frames.js";

/** Nesting that a body may have; deeper is refused before it can exhaust the stack. */
export const MAX_DEPTH = 128;

const strictUtf8 = new TextDecoder("utf-8", { fatal: true });

/** Throws `FrameError` unless `bytes` is exactly one value that keeps the rules. */
export function checkMsgpack(bytes: Uint8Array): void {
  const check = new Check(bytes);
  check.value(0);
  if (check.at !== bytes.length) throw new FrameError("bytes after the value");
}

class Check {
  at = 0;
  private readonly view: DataView;

  constructor(private readonly bytes: Uint8Array) {
    this.view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  }

  value(depth: number): void {
    if (depth > MAX_DEPTH) throw new FrameError("nested too deeply");
    const tag = this.view.getUint8(this.take(1));
    if (tag <= 0x7f || tag >= 0xe0) return;
    if (tag <= 0x8f) return this.map(tag & 0x0f, depth);
    if (tag <= 0x9f) return this.array(tag & 0x0f, depth);
    if (tag <= 0xbf) return this.text(tag & 0x1f);
    switch (tag) {
      case 0xc0:
      case 0xc2:
      case 0xc3:
        return;
      case 0xcb:
        this.take(8);
        return;
      case 0xcc:
        return this.smallest(this.view.getUint8(this.take(1)), 1);
      case 0xcd:
        return this.smallest(this.view.getUint16(this.take(2)), 2);
      case 0xce:
        return this.smallest(this.view.getUint32(this.take(4)), 4);
      case 0xcf:
        return this.smallest(Number(this.view.getBigUint64(this.take(8))), 8);
      case 0xd0:
        return this.smallest(this.view.getInt8(this.take(1)), 1);
      case 0xd1:
        return this.smallest(this.view.getInt16(this.take(2)), 2);
      case 0xd2:
        return this.smallest(this.view.getInt32(this.take(4)), 4);
      case 0xd3:
        return this.smallest(Number(this.view.getBigInt64(this.take(8))), 8);
      case 0xd9:
        return this.text(this.view.getUint8(this.take(1)));
      case 0xda:
        return this.text(this.view.getUint16(this.take(2)));
      case 0xdb:
        return this.text(this.view.getUint32(this.take(4)));
      case 0xdc:
        return this.array(this.view.getUint16(this.take(2)), depth);
      case 0xdd:
        return this.array(this.view.getUint32(this.take(4)), depth);
      case 0xde:
        return this.map(this.view.getUint16(this.take(2)), depth);
      case 0xdf:
        return this.map(this.view.getUint32(this.take(4)), depth);
      default:
        throw new FrameError(`type 0x${tag.toString(16)} is not allowed (bin, ext, float32 or unused)`);
    }
  }

  private map(entries: number, depth: number): void {
    for (let i = 0; i < entries; i += 1) {
      const tag = this.bytes[this.at];
      const isText = tag !== undefined && ((tag >= 0xa0 && tag <= 0xbf) || (tag >= 0xd9 && tag <= 0xdb));
      if (!isText) throw new FrameError("a map key must be a string");
      this.value(depth + 1);
      this.value(depth + 1);
    }
  }

  private array(items: number, depth: number): void {
    for (let i = 0; i < items; i += 1) this.value(depth + 1);
  }

  private text(length: number): void {
    const start = this.take(length);
    try {
      strictUtf8.decode(this.bytes.subarray(start, start + length));
    } catch {
      throw new FrameError("a string is not UTF-8");
    }
  }

  /** `width` is the bytes after the tag; the value must not fit a shorter form. */
  private smallest(value: number, width: number): void {
    if (width > neededWidth(value)) throw new FrameError("an integer is not in its smallest form");
  }

  private take(length: number): number {
    const start = this.at;
    if (length > this.bytes.length - start) throw new FrameError("the value is cut off");
    this.at = start + length;
    return start;
  }
}

function neededWidth(value: number): number {
  if (value >= 0) {
    if (value <= 0x7f) return 0;
    if (value <= 0xff) return 1;
    if (value <= 0xffff) return 2;
    return value <= 0xffff_ffff ? 4 : 8;
  }
  if (value >= -32) return 0;
  if (value >= -0x80) return 1;
  if (value >= -0x8000) return 2;
  return value >= -0x8000_0000 ? 4 : 8;
}
