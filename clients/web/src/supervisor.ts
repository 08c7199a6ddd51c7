/**
 * Which session is the client's, and when the next one is made. No socket, no
 * timer: events and times go in, actions come out.
 *
 * Place: above `session.ts`, driven by `client.ts`. Limits: at most one
 * session is being made, one is live and one is retired (it was told to go
 * away and its successor is live), so never more than three.
 */
import { backoffMs } from "./backoff.js";
import { isPlanned, leadsElsewhere, nextStep, NORMAL, REPLACED, type SessionEnd } from "./closing.js";

/** A session that lived this long was a success: the failures before it are forgotten. */
export const STABLE_MS = 5000;

export type Status = "idle" | "connecting" | "live" | "waiting" | "closed";

export type Step =
  /** `elsewhere`: at the next address, where there are several. */
  | { do: "dial"; id: number; freshToken: boolean; elsewhere: boolean }
  /** End an old session; its successor is live. */
  | { do: "retire"; id: number }
  /** Say goodbye to every session. */
  | { do: "leave" }
  | { do: "status"; status: Status; end?: SessionEnd; retryInMs?: number };

export class Supervisor {
  private status: Status = "idle";
  private nextId = 1;
  private attempt: number | undefined;
  private live: { id: number; since: number } | undefined;
  private timer = Infinity;
  private failures = 0;
  private freshToken = false;
  private elsewhere = false;

  /** `random` gives numbers in [0, 1). */
  constructor(private readonly random: () => number) {}

  /** The user wants to be connected. While waiting, it ends the wait. */
  connect(): Step[] {
    if (this.status === "connecting" || this.status === "live") return [];
    if (this.status !== "waiting") {
      this.failures = 0;
      this.freshToken = true;
    }
    return this.dial();
  }

  /** The user wants to leave. */
  leave(): Step[] {
    if (this.status === "closed") return [];
    return this.close({ code: NORMAL, name: "normal", reason: "" });
  }

  sessionLive(id: number, now: number): Step[] {
    if (id !== this.attempt) return [];
    const steps: Step[] = this.live ? [{ do: "retire", id: this.live.id }] : [];
    this.attempt = undefined;
    this.freshToken = false;
    this.live = { id, since: now };
    steps.push(this.become("live"));
    return steps;
  }

  goaway(id: number, reason: string, reconnectAfterMs: number, now: number): Step[] {
    if (id === this.live?.id && this.attempt === undefined && this.timer === Infinity) {
      this.timer = now + reconnectAfterMs;
      this.elsewhere ||= reason === "draining";
    }
    return [];
  }

  sessionEnded(id: number, end: SessionEnd, now: number): Step[] {
    if (this.status === "closed") return [];
    if (id === this.attempt) {
      this.attempt = undefined;
      this.elsewhere ||= leadsElsewhere(end);
      return this.afterEnd(end, undefined, now);
    }
    if (id !== this.live?.id) return [];
    const since = this.live.since;
    this.live = undefined;
    // The successor ends its predecessor with `replaced`; that is no news.
    if (this.attempt !== undefined) return [this.become("connecting", end)];
    // A time is set beside a live session only after a goaway. `replaced` is planned then: the server may have taken an
    // attempt that failed here.
    if (this.timer !== Infinity && (nextStep(end) !== "stop" || end.code === REPLACED)) {
      this.freshToken ||= nextStep(end) === "fresh_token";
      this.elsewhere ||= leadsElsewhere(end);
      return [this.become("waiting", end, Math.max(0, this.timer - now))];
    }
    this.elsewhere ||= leadsElsewhere(end);
    return this.afterEnd(end, since, now);
  }

  /** False once the attempt `id` was given up. */
  isDialing(id: number): boolean {
    return id === this.attempt;
  }

  tick(now: number): Step[] {
    return now >= this.timer ? this.dial() : [];
  }

  nextTick(): number {
    return this.timer;
  }

  private afterEnd(end: SessionEnd, liveSince: number | undefined, now: number): Step[] {
    const step = nextStep(end);
    if (step === "stop") return this.close(end);
    this.freshToken ||= step === "fresh_token";
    const wasWell = liveSince !== undefined && (isPlanned(end) || now - liveSince >= STABLE_MS);
    this.failures = wasWell ? 1 : this.failures + 1;
    const delay = backoffMs(this.failures, this.random(), end.retryAfterMs);
    this.timer = now + delay;
    // With the old session still live, only the making of its successor failed.
    return this.live ? [] : [this.become("waiting", end, delay)];
  }

  private dial(): Step[] {
    this.timer = Infinity;
    this.attempt = this.nextId;
    this.nextId += 1;
    const dial: Step = { do: "dial", id: this.attempt, freshToken: this.freshToken, elsewhere: this.elsewhere };
    this.elsewhere = false;
    return this.live ? [dial] : [this.become("connecting"), dial];
  }

  private close(end: SessionEnd): Step[] {
    this.timer = Infinity;
    this.attempt = undefined;
    this.live = undefined;
    return [{ do: "leave" }, this.become("closed", end)];
  }

  private become(status: Status, end?: SessionEnd, retryInMs?: number): Step {
    this.status = status;
    const step: Step = { do: "status", status };
    if (end) step.end = end;
    if (retryInMs !== undefined) step.retryInMs = retryInMs;
    return step;
  }
}
