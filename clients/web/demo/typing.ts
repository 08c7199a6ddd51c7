/**
 * The typing indicator: who is typing where, forgotten after 5 s.
 *
 * Place: `main.ts` gives it `message.typing`. Limits: `MAX_TYPING` people;
 * the oldest makes room.
 */
import type { JsonObject } from "../src/index.js";
import { byId, make } from "./icons.js";

const FORGET_MS = 5000;
const MAX_TYPING = 20;

export class Typing {
  private readonly people = new Map<string, { name: string; timer: ReturnType<typeof setTimeout> }>();

  update(payload: JsonObject): void {
    const name = text(payload["from_user_id"]) ?? "Someone";
    const key = `${name} ${text(payload["conversation_id"]) ?? ""}`;
    this.forget(key);
    if (payload["typing"] !== false) {
      const oldest = this.people.keys().next();
      if (this.people.size >= MAX_TYPING && !oldest.done) this.forget(oldest.value);
      this.people.set(key, { name, timer: setTimeout(() => this.forget(key), FORGET_MS) });
    }
    this.draw();
  }

  private forget(key: string): void {
    clearTimeout(this.people.get(key)?.timer);
    this.people.delete(key);
    this.draw();
  }

  private draw(): void {
    const names = [...new Set([...this.people.values()].map((p) => p.name))];
    const box = byId("typing");
    box.hidden = names.length === 0;
    const dots = make("span", "dots");
    dots.append(make("i"), make("i"), make("i"));
    const verb = names.length === 1 ? "is" : "are";
    const who = names.length <= 2 ? names.join(" and ") : `${names.length} people`;
    box.replaceChildren(dots, make("span", "", `${who} ${verb} typing`));
  }
}

function text(value: unknown): string | undefined {
  return typeof value === "string" ? value : undefined;
}
