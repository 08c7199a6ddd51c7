/**
 * The inbox cursor: where a reconnect continues.
 *
 * Place: one for each client, so it outlives sessions; `session.ts` reports
 * to it. Limits: cursors are opaque, so they are never compared; it moves
 * only to a place of which everything before has been processed. Moving back
 * is harmless, because repeats are dropped by id.
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
  private atWelcome: string | undefined;
  private sawInbox = false;

  constructor(private readonly shared: InboxCursor) {}

  welcome(cursor: string): void {
    this.atWelcome = cursor;
  }

  /** The inbox lane was opened: something is being replayed. */
  inboxLane(): void {
    this.sawInbox = true;
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

  /**
   * A first session that ends before any ping was never told a processed
   * cursor. Its `welcome` may serve, but only when no replay was under way,
   * which it would skip.
   */
  ended(): void {
    if (this.shared.get() === undefined && this.atWelcome !== undefined && !this.sawInbox && this.open.size === 0) {
      this.shared.set(this.atWelcome);
    }
  }

  private settle(): void {
    if (!this.waiting) return;
    for (const batch of this.open) if (batch <= this.waiting.upTo) return;
    this.shared.set(this.waiting.cursor);
    this.waiting = undefined;
  }
}
