/**
 * The inbox: a column for each lane, cards in it, tabs to filter.
 *
 * Place: `main.ts` gives it notifications. Limits: the newest `MAX_CARDS`
 * cards a lane; older ones leave the page. A datagram is shown in lane low.
 */
import type { Lane, Notification } from "../src/index.js";
import { byId, icon, make } from "./icons.js";
import { describe, withoutSecrets } from "./sentences.js";

const MAX_CARDS = 100;
const SHOWN: readonly Lane[] = ["high", "inbox", "normal", "low"];
const NAMES: Record<Lane, string> = { high: "High", inbox: "Missed", normal: "Normal", low: "Low" };
const EMPTY: Record<Lane, string> = {
  high: "Calls, security and mentions arrive here.",
  inbox: "What you missed while away.",
  normal: "Messages, groups and files arrive here.",
  low: "Receipts, progress and presence arrive here.",
};

interface Column {
  section: HTMLElement;
  list: HTMLOListElement;
  count: HTMLElement;
}

export class Cards {
  private readonly columns = new Map<Lane, Column>();
  private readonly tabs = new Map<Lane | "all", HTMLButtonElement>();
  private filter: Lane | "all" = "all";

  constructor() {
    for (const choice of ["all", ...SHOWN] as const) {
      const tab = make("button", "", choice === "all" ? "All" : NAMES[choice]);
      tab.type = "button";
      tab.dataset["testid"] = `tab-${choice}`;
      tab.addEventListener("click", () => this.show(choice));
      this.tabs.set(choice, tab);
      byId("tabs").append(tab);
    }
    for (const lane of SHOWN) this.columns.set(lane, this.column(lane));
    this.show("all");
    byId("clear").addEventListener("click", () => this.clear());
  }

  add(notification: Notification): void {
    const lane = notification.lane === "datagram" ? "low" : notification.lane;
    const column = this.columns.get(lane);
    if (!column) return;
    column.list.prepend(card(notification));
    while (column.list.children.length > MAX_CARDS) column.list.lastElementChild?.remove();
    column.count.textContent = String(column.list.children.length);
    this.show(this.filter);
  }

  clear(): void {
    for (const { list, count } of this.columns.values()) {
      list.replaceChildren();
      count.textContent = "";
    }
    this.show(this.filter === "inbox" ? "all" : this.filter);
  }

  private show(filter: Lane | "all"): void {
    this.filter = filter;
    // Lane inbox exists only after an absence, so its column does too.
    const missed = this.columns.get("inbox")?.list.childElementCount ?? 0;
    for (const [choice, tab] of this.tabs) {
      tab.setAttribute("aria-pressed", String(choice === filter));
      if (choice === "inbox") tab.hidden = missed === 0;
    }
    for (const [lane, { section }] of this.columns) {
      section.hidden = filter === "all" ? lane === "inbox" && missed === 0 : lane !== filter;
    }
    byId("lanes").classList.toggle("one", filter !== "all");
  }

  private column(lane: Lane): Column {
    const section = make("section", "lane");
    section.dataset["lane"] = lane;
    section.dataset["testid"] = `lane-${lane}`;
    section.setAttribute("aria-label", `Lane ${NAMES[lane]}`);
    const header = make("header");
    const count = make("span", "count");
    header.append(make("i"), make("h2", "", NAMES[lane]), count);
    const list = make("ol");
    list.dataset["empty"] = EMPTY[lane];
    // Low is chatter: announcing it would drown what matters.
    list.setAttribute("aria-live", lane === "low" ? "off" : "polite");
    section.append(header, list);
    byId("lanes").append(section);
    return { section, list, count };
  }
}

function card({ lane, receivedAt, data }: Notification): HTMLElement {
  const { title, sentence } = describe(data.notification_type, data.payload);
  const item = make("li", "card");
  item.dataset["testid"] = "card";
  item.dataset["type"] = data.notification_type;
  item.dataset["id"] = data.notification_id;
  const text = make("div");
  text.append(make("h3", "", title), make("p", "", sentence));
  const head = make("div", "card-head");
  head.append(icon(data.notification_type.split(".")[0] ?? ""), text);

  const badge = make("span", "badge", lane);
  badge.dataset["lane"] = lane;
  const time = make("time", "", clock(receivedAt));
  time.dateTime = new Date(receivedAt).toISOString();
  const latency = make("span", "", duration(receivedAt - data.published_at_ms));
  latency.title = "From publishing to this page";
  latency.dataset["testid"] = "card-latency";
  const meta = make("div", "meta");
  meta.append(badge, latency, time);
  if (data.require_ack) meta.append(make("span", "", "acked"));

  const details = make("details");
  details.append(make("summary", "", data.notification_type));
  details.append(make("pre", "", JSON.stringify(withoutSecrets(data.payload), null, 2)));
  item.append(head, meta, details);
  return item;
}

export function clock(unixMs: number): string {
  return new Date(unixMs).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", second: "2-digit", hour12: false });
}

function duration(ms: number): string {
  const shown = Math.max(0, Math.round(ms));
  if (shown < 10_000) return `${shown} ms`;
  return shown < 120_000 ? `${Math.round(shown / 1000)} s` : `${Math.round(shown / 60_000)} min`;
}
