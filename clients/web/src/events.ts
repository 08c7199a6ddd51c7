/**
 * Typed callbacks, and the async iterator made from them.
 *
 * Place: the outer face of `client.ts`. Limits: nothing is queued beyond one
 * notification a lane: a lane is not read on until the handlers of its last
 * frame are done, so a slow reader is felt by the server and not by memory.
 */
import type { Notification } from "./session.js";

export type Listener<T> = (value: T) => void | Promise<void>;

export class Emitter<Events extends object> {
  private readonly listeners = new Map<keyof Events, Set<Listener<never>>>();

  /** Adds a callback and returns the function that removes it. */
  on<K extends keyof Events>(event: K, listener: Listener<Events[K]>): () => void {
    const set = this.listeners.get(event) ?? new Set();
    this.listeners.set(event, set);
    set.add(listener as Listener<never>);
    return () => void set.delete(listener as Listener<never>);
  }

  /** Calls every callback and waits for all; what they throw goes to `onError`. */
  async emit<K extends keyof Events>(event: K, value: Events[K], onError: (error: unknown) => void): Promise<void> {
    const waits: Promise<void>[] = [];
    for (const listener of [...(this.listeners.get(event) ?? [])]) {
      try {
        const result = (listener as Listener<Events[K]>)(value);
        if (result) waits.push(result.catch(onError));
      } catch (error) {
        onError(error);
      }
    }
    if (waits.length > 0) await Promise.all(waits);
  }
}

/**
 * A notification counts as processed when the loop asks for the next one or
 * ends, and is acked then.
 */
export class NotificationQueue implements AsyncIterableIterator<Notification> {
  private readonly items: { value: Notification; done: () => void }[] = [];
  private inHand: (() => void) | undefined;
  private waiting: ((result: IteratorResult<Notification>) => void)[] = [];
  private ended = false;

  constructor(private readonly onReturn: () => void) {}

  /** Resolves when the loop is done with it. */
  push(value: Notification): Promise<void> {
    if (this.ended) return Promise.resolve();
    return new Promise((done) => {
      const waiter = this.waiting.shift();
      if (waiter) {
        this.inHand = done;
        waiter({ done: false, value });
      } else {
        this.items.push({ value, done });
      }
    });
  }

  /** No more will come; what is queued is still given out. */
  end(): void {
    this.ended = true;
    for (const waiter of this.waiting.splice(0)) waiter({ done: true, value: undefined });
  }

  next(): Promise<IteratorResult<Notification>> {
    this.inHand?.();
    this.inHand = undefined;
    const item = this.items.shift();
    if (item) {
      this.inHand = item.done;
      return Promise.resolve({ done: false, value: item.value });
    }
    if (this.ended) return Promise.resolve({ done: true, value: undefined });
    return new Promise((resolve) => this.waiting.push(resolve));
  }

  return(): Promise<IteratorResult<Notification>> {
    this.onReturn();
    this.inHand?.();
    this.inHand = undefined;
    for (const item of this.items.splice(0)) item.done();
    this.end();
    return Promise.resolve({ done: true, value: undefined });
  }

  [Symbol.asyncIterator](): this {
    return this;
  }
}
