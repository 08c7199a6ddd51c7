/**
 * The inbox cursor: where a reconnect continues.
 *
 * Place: one for each client, so it outlives sessions; `session.ts` reports
 * to it. Limits: cursors are opaque, so they are never compared; it begins at
 * the first welcome, and moves only to a place of which everything before has
 * been processed. Moving back is harmless, because repeats are dropped by id.
 */

export class InboxCursor {
  constructor(private value?: string) {}

  get(): string | undefined {
    return this.value;
  }

  set(cursor: string): void {
    this.value = cursor;
  }
}

/** What one session knows about the cursor. */
export class SessionCursor {
  /** Batches (what one read of a stream gave, or a datagram) that came, all lanes together. */
  private received = 0;
  private readonly open = new Set<number>();
  private waiting: { cursor: string; upTo: number } | undefined;

  constructor(private readonly shared: InboxCursor) {}

  /**
   * Without a cursor of its own `hello` had none: nothing of before is
   * replayed, and everything to come is after the cursor of `welcome`, whatever
   * is still unprocessed. A cursor of its own stays: that of `welcome` would
   * skip what is being replayed.
   */
  welcome(cursor: string): void {
    if (this.shared.get() === undefined) this.shared.set(cursor);
  }

  /** A batch came; the number goes to `batchDone` when all of it was handled. */
  batchArrived(): number {
    this.received += 1;
    this.open.add(this.received);
    return this.received;
  }

  batchDone(batch: number): void {
    this.open.delete(batch);
    this.settle();
  }

  /** A frame of lane `inbox` was processed. */
  replayed(cursor: string): void {
    this.shared.set(cursor);
  }

  ping(cursor: string): void {
    // The older cursor stays until it is reached: with a handler that is always busy the newest never would be.
    this.waiting ??= { cursor, upTo: this.received };
    this.settle();
  }

  private settle(): void {
    if (!this.waiting) return;
    for (const batch of this.open) if (batch <= this.waiting.upTo) return;
    this.shared.set(this.waiting.cursor);
    this.waiting = undefined;
  }
}
