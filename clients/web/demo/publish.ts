/**
 * The panel that publishes samples for the signed-in user.
 *
 * Place: filled by `main.ts` from the configuration. Limits: "Publish all"
 * sends one sample every `PACE_MS` and stops when the user leaves. What would
 * end the session (bans, sign-outs) goes last. A story is paced by the server.
 */
import { play, publish, type Sample } from "./api.js";
import { byId, icon, make } from "./icons.js";

const PACE_MS = 150;
const ENDS_SESSION = ["auth.force_logout", "auth.password_changed", "admin.user_banned"];

export class PublishPanel {
  private user: string | undefined;
  private running = false;
  private playing: AbortController | undefined;
  private readonly all = byId<HTMLButtonElement>("publish-all");
  private readonly story = byId<HTMLButtonElement>("play");

  constructor(private readonly samples: Sample[]) {
    const groups = new Map<string, Sample[]>();
    for (const sample of samples) {
      groups.set(sample.service, [...(groups.get(sample.service) ?? []), sample]);
    }
    for (const [service, items] of groups) byId("samples").append(this.group(service, items));
    this.all.addEventListener("click", () => void this.publishAll());
    this.story.addEventListener("click", () => void this.play());
    this.signedIn(undefined);
  }

  signedIn(user: string | undefined): void {
    this.user = user;
    for (const button of byId("samples").querySelectorAll("button")) button.disabled = user === undefined;
    this.all.disabled = this.story.disabled = user === undefined;
    if (user === undefined) this.playing?.abort();
    this.say(user === undefined ? "Sign in first; samples are published to the signed-in user." : `To ${user}. Pick one, or send them all.`);
  }

  private group(service: string, items: Sample[]): DocumentFragment {
    const part = document.createDocumentFragment();
    const heading = make("h3");
    heading.append(icon(service), make("span", "", service.charAt(0).toUpperCase() + service.slice(1)));
    const list = make("ul");
    for (const sample of items) {
      const button = make("button");
      button.type = "button";
      button.dataset["testid"] = `publish-${sample.type}`;
      const label = make("span", "", sample.type.split(".").slice(1).join(" ").replaceAll("_", " "));
      const title = make("small", "", sample.title);
      title.lang = "zh";
      label.append(title);
      const badge = make("span", "badge", sample.lane);
      badge.dataset["lane"] = sample.lane;
      button.append(label, badge);
      button.addEventListener("click", () => void this.send(sample.type));
      const item = make("li");
      item.append(button);
      list.append(item);
    }
    part.append(heading, list);
    return part;
  }

  private async send(type: string): Promise<boolean> {
    if (this.user === undefined) return false;
    try {
      const { subject } = await publish(type, this.user);
      this.say(`Published ${subject}`);
      return true;
    } catch (error) {
      this.say(`${type}: ${error instanceof Error ? error.message : String(error)}`, "bad");
      return false;
    }
  }

  private async publishAll(): Promise<void> {
    if (this.running) {
      this.running = false;
      return;
    }
    this.running = true;
    this.all.textContent = "Stop";
    const ordered = [...this.samples].sort((a, b) => Number(isLast(a)) - Number(isLast(b)));
    let sent = 0;
    const user = this.user;
    for (const sample of ordered) {
      if (!this.running || this.user !== user) break;
      if (await this.send(sample.type)) sent += 1;
      await new Promise((resolve) => setTimeout(resolve, PACE_MS));
    }
    this.running = false;
    this.all.textContent = "Publish all";
    if (sent < ordered.length) this.say(`Published ${sent} of ${ordered.length}.`, "bad");
    else this.say(`Published all ${sent}.`);
  }

  private async play(): Promise<void> {
    if (this.playing) {
      this.playing.abort();
      return;
    }
    if (this.user === undefined) return;
    const playing = (this.playing = new AbortController());
    this.story.textContent = "Stop";
    try {
      for await (const { step, of, title, subject } of play("group-life", this.user, playing.signal)) {
        this.say(`${step} of ${of}: ${title} (${subject})`);
      }
      this.say("The group's life is over. The call that nobody answered ends by itself, half a minute after it began.");
    } catch (error) {
      if (!playing.signal.aborted) this.say(`Story: ${error instanceof Error ? error.message : String(error)}`, "bad");
    }
    this.playing = undefined;
    this.story.textContent = "Play: group life";
  }

  private say(text: string, tone = ""): void {
    const hint = byId("publish-hint");
    hint.textContent = text;
    hint.dataset["tone"] = tone;
  }
}

function isLast(sample: Sample): boolean {
  return ENDS_SESSION.includes(sample.type);
}
