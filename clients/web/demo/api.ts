/**
 * The development server's API: configuration, tokens, publishing samples and stories.
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
  /** Where to connect, one for each node. */
  urls: string[];
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

export interface Member {
  name: string;
  /** `ready`, `down`, or what a node says of itself. */
  state: string;
  sessions?: number;
}

export interface Members {
  nodes: Member[];
  servers: Member[];
}

export type Action = "kill" | "stop" | "start";

/** How the nodes and servers are; `undefined` where there is one node. */
export async function getMembers(): Promise<Members | undefined> {
  const response = await fetch("/api/cluster", { signal: AbortSignal.timeout(10_000) });
  return response.status === 204 ? undefined : ((await response.json()) as Members);
}

export const order = (what: "node" | "server", number: number, action: Action): Promise<Members> =>
  call<Members>("/api/cluster", { what, number, action });

export interface Step {
  step: number;
  of: number;
  title: string;
  subject: string;
}

/** Has a story played with `user` in the first part, and gives each step as it happens. Aborting ends it. */
export async function* play(story: string, user: string, signal: AbortSignal): AsyncGenerator<Step> {
  const response = await fetch("/api/play", {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify({ story, user }),
    signal,
  });
  if (!response.ok || response.body === null) throw new Error(`/api/play answered ${response.status}`);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const lines = (rest + value).split("\n");
    rest = lines.pop() ?? "";
    for (const line of lines) {
      const step = JSON.parse(line) as Step & { error?: string };
      if (step.error !== undefined) throw new Error(step.error);
      yield step;
    }
  }
}

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
