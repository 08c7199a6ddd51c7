/**
 * Remembers notification ids, so that a repeat is dropped (and still acked).
 *
 * Place: one for each client, so it outlives sessions. Limits: the last
 * `capacity` ids (1,024 or more); the oldest is forgotten first.
 */

/** The least the protocol asks for. */
export const MIN_REMEMBERED = 1024;

export class SeenIds {
  // A Set iterates in insertion order, so its first entry is the oldest.
  private readonly ids = new Set<string>();
  private readonly capacity: number;

  constructor(capacity = 2 * MIN_REMEMBERED) {
    this.capacity = Math.max(MIN_REMEMBERED, capacity);
  }

  /** True when `id` is new; it is remembered from now on. */
  add(id: string): boolean {
    if (this.ids.has(id)) return false;
    this.ids.add(id);
    if (this.ids.size > this.capacity) {
      const oldest = this.ids.values().next();
      if (!oldest.done) this.ids.delete(oldest.value);
    }
    return true;
  }

  get size(): number {
    return this.ids.size;
  }
}
