/**
 * When a token expires, and when to send the next one.
 *
 * Place: used by `client.ts`. Limits: it reads the JWT's `exp` and checks
 * nothing; the server does. Times are Unix milliseconds.
 */

/** A new token is asked for this long before the old one expires … */
export const REFRESH_LEAD_MS = 60_000;
/** … or after this share of what is left, for short-lived ones. */
const REFRESH_SHARE = 0.8;
/** A refresh never follows another sooner than this. */
const REFRESH_MIN_MS = 1000;

/** The `exp` of a JWT in Unix milliseconds, `undefined` when it cannot be read. */
export function tokenExpiresAt(token: string): number | undefined {
  const part = token.split(".")[1];
  if (part === undefined) return undefined;
  try {
    const text = atob(part.replaceAll("-", "+").replaceAll("_", "/"));
    const claims: unknown = JSON.parse(text);
    if (typeof claims !== "object" || claims === null || !("exp" in claims)) return undefined;
    return typeof claims.exp === "number" ? claims.exp * 1000 : undefined;
  } catch {
    return undefined;
  }
}

/** Milliseconds from `now` until a new token should be asked for; `undefined` when it is too late. */
export function refreshInMs(expiresAt: number, now: number): number | undefined {
  const left = expiresAt - now;
  if (left <= 0) return undefined;
  return Math.max(REFRESH_MIN_MS, left * REFRESH_SHARE, left - REFRESH_LEAD_MS);
}
