/**
 * The panel of `fanfare dev --cluster`: each node and each nats-server, how it
 * is, and buttons to kill, stop and start it.
 *
 * Place: used by `main.ts`, which says which node this page is on. Limits:
 * asks again every second, and never again when there is no cluster.
 */
import { getMembers, order, type Action, type Member, type Members } from "./api.js";
import { byId, make } from "./icons.js";

const ASK_AGAIN_MS = 1000;

export class ClusterPanel {
  private mine: string | undefined;
  private last: Members | undefined;
  /** What is on the page, as text: it is left alone while nothing changes, so that a button stays under the finger. */
  private shown = "";

  /** `onError` is told what went wrong. */
  constructor(private readonly onError: (error: unknown) => void) {}

  /** Shows the panel if there is a cluster, and keeps it up to date. */
  async start(): Promise<void> {
    try {
      const members = await getMembers();
      if (members === undefined) return;
      this.show(members);
    } catch {
      // The page's own server is gone; the notice of the connection says so.
    }
    setTimeout(() => void this.start(), ASK_AGAIN_MS);
  }

  /** The node of this page's session. */
  on(node: string | undefined): void {
    this.mine = node;
    if (this.last) this.show(this.last);
  }

  private show(members: Members): void {
    this.last = members;
    const text = JSON.stringify([members, this.mine]);
    if (text === this.shown) return;
    this.shown = text;
    byId("cluster").hidden = false;
    const nodes = members.nodes.map((member, at) => this.item("node", member, at + 1));
    const servers = members.servers.map((member, at) => this.item("server", member, at + 1));
    byId("members").replaceChildren(...nodes, ...servers);
  }

  private item(what: "node" | "server", member: Member, number: number): HTMLElement {
    const item = make("li");
    item.dataset["testid"] = `member-${member.name}`;
    item.dataset["state"] = member.state;
    const here = member.name === this.mine ? " · this page" : "";
    const sessions = member.sessions === undefined ? "" : `, ${member.sessions} sessions`;
    item.append(make("b", "", member.name), make("span", "", `${member.state}${sessions}${here}`));
    const actions: Action[] = member.state === "down" ? ["start"] : ["stop", "kill"];
    for (const action of actions) {
      const button = make("button", "quiet small", action);
      button.type = "button";
      button.dataset["testid"] = `${action}-${member.name}`;
      button.addEventListener("click", () => void this.act(what, number, action));
      item.append(button);
    }
    return item;
  }

  private async act(what: "node" | "server", number: number, action: Action): Promise<void> {
    try {
      this.show(await order(what, number, action));
    } catch (error) {
      this.onError(error);
    }
  }
}
