/**
 * How long to wait before connecting again.
 *
 * Place: asked by `supervisor.ts` after a session ended. Limits: a pure
 * function; `goaway` does not come here, its delay is used as it is.
 */

/** Ceiling of the first wait, milliseconds. */
export const BASE_MS = 500;
/** Highest ceiling of the exponential part, milliseconds. */
export const CEILING_MS = 30_000;
/** The wait once `MANY_FAILURES` happened in a row, milliseconds, on average: it varies by half. */
export const LONG_WAIT_MS = 120_000;
export const MANY_FAILURES = 5;

/**
 * Milliseconds to wait after `failures` failures in a row (1 or more).
 * `retryAfterMs` is the server's wish and wins; `random` is in [0, 1).
 *
 * Full jitter: the wait is anywhere between 0 and a ceiling that doubles,
 * so that clients which failed together do not come back together. Those of a
 * storm reach the long wait within seconds of each other: it varies, too.
 */
export function backoffMs(failures: number, random: number, retryAfterMs?: number): number {
  if (retryAfterMs !== undefined && retryAfterMs > 0) return retryAfterMs;
  if (failures >= MANY_FAILURES) return Math.round(LONG_WAIT_MS * (0.5 + random));
  const ceiling = Math.min(CEILING_MS, BASE_MS * 2 ** Math.max(0, failures - 1));
  return Math.round(ceiling * random);
}
