/**
 * The development server's API: configuration, tokens, publishing samples.
 *
 * Place: used by `main.ts` and `publish.ts`. Limits: development only; a real
 * application gets its tokens from its own sign-in.
 */

export interface Sample {
  type: string;
  title: string;
  service: string;
  lane: string;
  audience: string;
}

export interface Config {
  url: string;
  /** Base64 SHA-256 of the server's certificate. */
  certificate_hash: string;
  users: string[];
  samples: Sample[];
}

export interface Published {
  subject: string;
  notification_id: string;
}

export const getConfig = (): Promise<Config> => call<Config>("/api/config");

export async function getToken(user: string, ttlS: number): Promise<string> {
  return (await call<{ token: string }>("/api/token", { user, ttl_s: ttlS })).token;
}

export const publish = (type: string, user: string): Promise<Published> =>
  call<Published>("/api/publish", { type, user });

export function hashBytes(base64: string): Uint8Array<ArrayBuffer> {
  return Uint8Array.from(atob(base64), (c) => c.charCodeAt(0));
}

async function call<T>(path: string, body?: object): Promise<T> {
  const init: RequestInit = body
    ? { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body) }
    : {};
  let response: Response;
  try {
    response = await fetch(path, { ...init, signal: AbortSignal.timeout(10_000) });
  } catch {
    throw new Error("the development server does not answer");
  }
  const answer = (await response.json().catch(() => undefined)) as (T & { error?: string }) | undefined;
  if (!response.ok || answer === undefined) throw new Error(answer?.error ?? `${path} answered ${response.status}`);
  return answer;
}
