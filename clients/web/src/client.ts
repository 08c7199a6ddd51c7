/**
 * The public client: stays connected, tells what arrives, leaves when asked.
 *
 * Place: what applications use. It owns the links (one, or two while a
 * session is replaced), the timers and the token. Limits: one user and one
 * device; nothing is stored outside memory, so keep `inboxCursor` yourself if
 * the next page load should continue.
 */
import { Addresses } from "./addresses.js";
import type { SessionEnd } from "./closing.js";
import { InboxCursor } from "./cursor.js";
import { SeenIds } from "./dedup.js";
import { Emitter, NotificationQueue, type Listener } from "./events.js";
import type { Encoding, PingFrame, WelcomeFrame } from "./frames.js";
import { Link, type LinkEvents } from "./link.js";
import type { Notification } from "./session.js";
import { Supervisor, type Status, type Step } from "./supervisor.js";
import { refreshInMs, tokenExpiresAt } from "./token.js";
import { browserTransport, SUBPROTOCOL, type Connector, type TransportInit } from "./transport.js";

/** How long a token provider may take, milliseconds. */
const TOKEN_TIMEOUT_MS = 30_000;
/** A cached token with less life than this is not used for a new session, milliseconds. */
const TOKEN_MARGIN_MS = 5000;
/** A failed refresh is tried again after this, milliseconds. */
const REFRESH_RETRY_MS = 5000;
/** A replaced session may finish what is in flight for this long, milliseconds. */
const RETIRE_MS = 5000;
/** The longest that `setTimeout` can wait, milliseconds. */
const TIMER_MAX_MS = 2 ** 31 - 1;

export interface ClientOptions {
  /**
   * `https://HOST:PORT/v1/push`, or several of them for one service: the client
   * begins at any, and goes to the next one when a connection failed or ended,
   * or its node is about to stop.
   */
  url: string | readonly string[];
  /** Gives a JWT for the user; asked again before it expires and after `token_expired`. */
  token: () => Promise<string>;
  /** 1–128 characters out of `A–Z a–z 0–9 _ -`. One device has one session. */
  deviceId: string;
  /** Default `web`. */
  platform?: string;
  /** Default `json`. */
  encoding?: Encoding;
  /** Whether ephemeral events may come as datagrams. Default true. */
  datagrams?: boolean;
  /** SHA-256 hashes of certificates to trust, for development servers. */
  serverCertificateHashes?: Uint8Array<ArrayBuffer>[];
  /** Where an earlier client of this device was, see `inboxCursor`. */
  inboxCursor?: string;
  /** Send a fresh token before the old one expires. Default true. */
  refreshToken?: boolean;
  /** Instead of the browser's `WebTransport`; for tests. */
  connector?: Connector;
}

export interface ClientState {
  status: Status;
  /** The live session, with status `live`. */
  session?: WelcomeFrame;
  /** How the last session ended, with status `waiting`, `closed` and sometimes `connecting`. */
  end?: SessionEnd;
  /** Until the next try, with status `waiting`. */
  retryInMs?: number;
}

export interface PingInfo {
  /** Unix milliseconds, the server's clock. */
  sentAt: number;
  /** Unix milliseconds, this device's clock. */
  receivedAt: number;
  /** The difference: one way plus whatever the clocks differ by. */
  latencyMs: number;
}

export interface ClientEvents {
  notification: Notification;
  state: ClientState;
  ping: PingInfo;
  /** The server asked to connect anew. */
  goaway: { reason: string; reconnectAfterMs: number };
  /** What a callback or the token provider threw. */
  error: unknown;
}

export class FanfareClient {
  private readonly emitter = new Emitter<ClientEvents>();
  private readonly queues = new Set<NotificationQueue>();
  private readonly supervisor = new Supervisor(Math.random);
  private readonly links = new Map<number, Link>();
  private readonly seen = new SeenIds();
  private readonly cursor: InboxCursor;
  private readonly addresses: Addresses;
  private dialTimer: ReturnType<typeof setTimeout> | undefined;
  private refreshTimer: ReturnType<typeof setTimeout> | undefined;
  private token: string | undefined;
  private liveId: number | undefined;
  private welcome: WelcomeFrame | undefined;
  private current: ClientState = { status: "idle" };

  constructor(private readonly options: ClientOptions) {
    this.cursor = new InboxCursor(options.inboxCursor);
    this.addresses = new Addresses(options.url, Math.random);
  }

  get state(): ClientState {
    return this.current;
  }

  /** Everything up to this place of the inbox was processed; `undefined` before the server told one. */
  get inboxCursor(): string | undefined {
    return this.cursor.get();
  }

  /**
   * Adds a callback; the result removes it. A notification is acked when its
   * callbacks have returned and the promises they gave are done.
   */
  on<K extends keyof ClientEvents>(event: K, listener: Listener<ClientEvents[K]>): () => void {
    return this.emitter.on(event, listener);
  }

  /** Notifications for a `for await` loop; it ends when the client is closed. */
  notifications(): AsyncIterableIterator<Notification> {
    const queue = new NotificationQueue(() => {
      remove();
      this.queues.delete(queue);
    });
    const remove = this.emitter.on("notification", (item) => queue.push(item));
    this.queues.add(queue);
    return queue;
  }

  /** Connects and stays connected. Also ends a wait, and starts again after `closed`. */
  connect(): void {
    this.apply(this.supervisor.connect());
  }

  /** Leaves on purpose (`bye`). */
  close(): void {
    this.apply(this.supervisor.leave());
  }

  private apply(steps: Step[]): void {
    for (const step of steps) {
      switch (step.do) {
        case "dial":
          void this.dial(step.id, step.freshToken, this.addresses.take(step.elsewhere));
          break;
        case "retire": {
          const old = this.links.get(step.id);
          setTimeout(() => old?.leave(), RETIRE_MS);
          break;
        }
        case "leave":
          for (const link of this.links.values()) link.leave();
          break;
        case "status":
          this.setState(step);
      }
    }
    clearTimeout(this.dialTimer);
    const next = this.supervisor.nextTick();
    if (next === Infinity) return;
    const delay = Math.max(0, Math.ceil(next - performance.now()));
    this.dialTimer = setTimeout(() => this.apply(this.supervisor.tick(performance.now())), delay);
  }

  private setState(step: Extract<Step, { do: "status" }>): void {
    const state: ClientState = { status: step.status };
    if (step.status === "live" && this.welcome) state.session = this.welcome;
    if (step.end) state.end = step.end;
    if (step.retryInMs !== undefined) state.retryInMs = step.retryInMs;
    this.current = state;
    if (step.status !== "live") clearTimeout(this.refreshTimer);
    this.tell("state", state);
    if (step.status === "closed") {
      for (const queue of this.queues) queue.end();
      this.queues.clear();
    }
  }

  private async dial(id: number, freshToken: boolean, url: string): Promise<void> {
    const ended = (end: SessionEnd): void => {
      this.links.delete(id);
      this.apply(this.supervisor.sessionEnded(id, end, performance.now()));
    };
    let token: string;
    try {
      token = await this.takeToken(freshToken);
    } catch (error) {
      this.tell("error", error);
      return ended({ code: undefined, name: "no_token", reason: reasonOf(error) });
    }
    // The user may have left, or connected anew, while the token was on its way.
    if (!this.supervisor.isDialing(id)) return;
    const link = new Link(
      {
        token,
        deviceId: this.options.deviceId,
        platform: this.options.platform ?? "web",
        encoding: this.options.encoding ?? "json",
        datagrams: this.options.datagrams ?? true,
        seen: this.seen,
        cursor: this.cursor,
      },
      this.linkEvents(id, ended),
    );
    this.links.set(id, link);
    await link.run(this.options.connector ?? browserTransport, url, this.transportInit());
  }

  private linkEvents(id: number, ended: (end: SessionEnd) => void): LinkEvents {
    return {
      ended,
      deliver: (notification) => this.emitter.emit("notification", notification, (e) => this.tell("error", e)),
      live: (welcome) => {
        this.welcome = welcome;
        this.liveId = id;
        this.apply(this.supervisor.sessionLive(id, performance.now()));
        this.planRefresh(welcome.server_time - Date.now());
      },
      ping: ({ t }: PingFrame) => {
        const receivedAt = Date.now();
        if (id === this.liveId) this.tell("ping", { sentAt: t, receivedAt, latencyMs: receivedAt - t });
      },
      goaway: (frame) => {
        this.tell("goaway", { reason: frame.reason, reconnectAfterMs: frame.reconnect_after_ms });
        this.apply(this.supervisor.goaway(id, frame.reason, frame.reconnect_after_ms, performance.now()));
      },
    };
  }

  private transportInit(): TransportInit {
    const init: TransportInit = { protocols: [SUBPROTOCOL] };
    const hashes = this.options.serverCertificateHashes;
    if (hashes && hashes.length > 0) {
      init.serverCertificateHashes = hashes.map((value) => ({ algorithm: "sha-256", value }));
    }
    return init;
  }

  private async takeToken(fresh: boolean): Promise<string> {
    const cached = this.token;
    const expiresAt = cached === undefined ? undefined : tokenExpiresAt(cached);
    const usable = expiresAt === undefined || expiresAt - Date.now() > TOKEN_MARGIN_MS;
    if (cached !== undefined && !fresh && usable) return cached;
    let timer: ReturnType<typeof setTimeout> | undefined;
    const late = new Promise<never>((_, reject) => {
      timer = setTimeout(() => reject(new Error("the token provider did not answer")), TOKEN_TIMEOUT_MS);
    });
    try {
      this.token = await Promise.race([this.options.token(), late]);
      return this.token;
    } finally {
      clearTimeout(timer);
    }
  }

  /** `clockOffset`: the server's clock minus ours, milliseconds. */
  private planRefresh(clockOffset: number, notBefore = 0): void {
    clearTimeout(this.refreshTimer);
    const expiresAt = this.token === undefined ? undefined : tokenExpiresAt(this.token);
    if (this.options.refreshToken === false || expiresAt === undefined) return;
    const wait = refreshInMs(expiresAt, Date.now() + clockOffset);
    if (wait === undefined) return;
    const delay = Math.min(Math.max(wait, notBefore), TIMER_MAX_MS);
    this.refreshTimer = setTimeout(() => void this.refresh(clockOffset, delay < wait), delay);
  }

  private async refresh(clockOffset: number, early: boolean): Promise<void> {
    if (early) return this.planRefresh(clockOffset);
    const id = this.liveId;
    try {
      const token = await this.takeToken(true);
      // A session that began meanwhile has its own token and its own timer.
      if (id === undefined || id !== this.liveId) return;
      this.links.get(id)?.renew(token);
      this.planRefresh(clockOffset);
    } catch (error) {
      this.tell("error", error);
      this.planRefresh(clockOffset, REFRESH_RETRY_MS);
    }
  }

  private tell<K extends keyof ClientEvents>(event: K, value: ClientEvents[K]): void {
    // An error of an error callback has nowhere to go but the console.
    const onError = (error: unknown): void => (event === "error" ? console.error(error) : this.tell("error", error));
    void this.emitter.emit(event, value, onError);
  }
}

function reasonOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}
