/**
 * When to acknowledge a lane: at once after a frame that requires it,
 * otherwise after 32 frames, 16 KiB or 1 s, whichever is first.
 *
 * Place: one for each lane of a session, driven by `session.ts`. Limits: it
 * holds four numbers; frames of a lane must be reported in order, once their
 * processing has ended. Times are milliseconds of one monotonic clock.
 */

export const ACK_FRAMES = 32;
export const ACK_BYTES = 16 * 1024;
export const ACK_DELAY_MS = 1000;

export class LaneAcks {
  /** Ordinal of the last processed frame; the lane frame itself is 0. */
  private processed = 0;
  private acked = 0;
  private bytes = 0;
  private since: number | undefined;
  private urgent = false;

  /** A frame of `bytes` body bytes was processed. */
  frameDone(bytes: number, requireAck: boolean, now: number): void {
    this.processed += 1;
    this.bytes += bytes;
    this.since ??= now;
    this.urgent ||= requireAck;
  }

  /** The `seq` to acknowledge now, if it is time. Taking it counts as sent. */
  take(now: number): number | undefined {
    const due = this.dueAt();
    return due !== undefined && now >= due ? this.flush() : undefined;
  }

  /** The `seq` of everything processed and not yet acknowledged, whatever the time. */
  flush(): number | undefined {
    if (this.processed === this.acked) return undefined;
    this.acked = this.processed;
    this.bytes = 0;
    this.since = undefined;
    this.urgent = false;
    return this.acked;
  }

  /** When `take` will have something; `undefined` when nothing waits. */
  dueAt(): number | undefined {
    if (this.since === undefined) return undefined;
    const full = this.processed - this.acked >= ACK_FRAMES || this.bytes >= ACK_BYTES;
    return this.urgent || full ? this.since : this.since + ACK_DELAY_MS;
  }
}
