/**
 * The demo page: signs in, shows what arrives and how the connection is.
 *
 * Place: the bundle's entry; it joins the client with the page's parts.
 * Limits: development only. Query parameters: `user`, `encoding`, and
 * `token_ttl` in seconds, which also stops early token refresh so that expiry
 * can be watched. `window.fanfare` has the SDK, for tests and the curious.
 */
import * as sdk from "../src/index.js";
import { FanfareClient, isSupported, type ClientState, type Encoding } from "../src/index.js";
import { getConfig, getToken, hashBytes, type Config } from "./api.js";
import { Cards, clock } from "./cards.js";
import { ClusterPanel } from "./cluster.js";
import { byId, make } from "./icons.js";
import { PublishPanel } from "./publish.js";
import { Typing } from "./typing.js";

const MAX_LOG = 60;
const TOKEN_TTL_S = 3600;
const ADVICE: Record<number, string> = {
  3501: "The token was refused. Sign in again.",
  3502: "This user is banned. Lift the ban with `fanfare ban remove`, or sign in as someone else.",
  3503: "This device was signed out. Sign in again to continue.",
  3504: "This user has too many sessions. Close another one, then sign in again.",
  3505: "The page and the server speak different versions. Build the page anew and reload.",
  3507: "The server does not allow this page's address. Open the address that `fanfare dev` printed.",
  3508: "This device connected somewhere else, probably in a copy of this tab. Sign in to take it back.",
};

const query = new URLSearchParams(location.search);
const encoding: Encoding = query.get("encoding") === "msgpack" ? "msgpack" : "json";
const shortTtl = Number(query.get("token_ttl")) || undefined;
const cards = new Cards();
const typing = new Typing();
const cluster = new ClusterPanel((error) => log(text(error), "bad"));
let config: Config | undefined;
let panel: PublishPanel | undefined;
let client: FanfareClient | undefined;
let lastUser = "";

Object.assign(window, { fanfare: { ...sdk, getConfig: () => config, hashBytes, client: () => client } });
void start();

async function start(): Promise<void> {
  if (!isSupported()) {
    notice(
      "This browser has no WebTransport",
      "Fanfare needs it and has no other transport to fall back to. Use a current Chromium, Edge or Firefox, and open the page on localhost or over https.",
    );
    return;
  }
  byId<HTMLFormElement>("sign-in").addEventListener("submit", (event) => {
    event.preventDefault();
    signIn(byId<HTMLInputElement>("user").value.trim());
  });
  byId("leave").addEventListener("click", signOut);
  try {
    config = await getConfig();
  } catch (error) {
    notice("The development server cannot be reached", `${text(error)}.\nStart it with \`fanfare dev\` and reload this page.`);
    return;
  }
  panel = new PublishPanel(config.samples);
  void cluster.start();
  for (const [index, user] of config.users.entries()) byId("users").append(userButton(user, index));
  const user = query.get("user");
  if (user) signIn(user);
}

function userButton(user: string, index: number): HTMLElement {
  const button = make("button");
  button.type = "button";
  button.dataset["user"] = user;
  button.dataset["testid"] = `user-${user}`;
  button.setAttribute("aria-pressed", "false");
  const face = make("span", "face", user.charAt(0).toUpperCase());
  face.style.setProperty("--hue", String((index * 67 + 225) % 360));
  face.setAttribute("aria-hidden", "true");
  button.append(face, make("span", "", user));
  button.addEventListener("click", () => signIn(user));
  return button;
}

function signIn(user: string): void {
  if (!config || user === "") return;
  client?.close();
  if (user !== lastUser) cards.clear();
  lastUser = user;
  const cursorKey = `fanfare.inbox.${user}`;
  const cursor = sessionStorage.getItem(cursorKey);
  const mine = new FanfareClient({
    url: config.urls,
    token: () => getToken(user, shortTtl ?? TOKEN_TTL_S),
    deviceId: deviceId(),
    platform: "web",
    encoding,
    serverCertificateHashes: [hashBytes(config.certificate_hash)],
    refreshToken: shortTtl === undefined,
    ...(cursor === null ? {} : { inboxCursor: cursor }),
  });
  client = mine;
  const keepCursor = (): void => {
    if (mine.inboxCursor !== undefined) sessionStorage.setItem(cursorKey, mine.inboxCursor);
  };
  mine.on("notification", (n) => {
    if (client !== mine) return;
    if (n.data.notification_type === "message.typing") typing.update(n.data.payload);
    else cards.add(n);
    keepCursor();
  });
  mine.on("ping", ({ latencyMs }) => {
    keepCursor();
    showLatency(latencyMs);
  });
  mine.on("goaway", ({ reason, reconnectAfterMs }) => log(`Server asks to reconnect in ${reconnectAfterMs} ms (${reason})`));
  mine.on("error", (error) => log(text(error), "bad"));
  mine.on("state", (state) => {
    if (client === mine) showState(state, user);
  });
  for (const button of byId("users").querySelectorAll("button")) {
    button.setAttribute("aria-pressed", String(button.dataset["user"] === user));
  }
  byId<HTMLInputElement>("user").value = "";
  panel?.signedIn(user);
  byId("device").textContent = deviceId();
  mine.connect();
}

function signOut(): void {
  client?.close();
  panel?.signedIn(undefined);
  for (const button of byId("users").querySelectorAll("button")) button.setAttribute("aria-pressed", "false");
}

function showState(state: ClientState, user: string): void {
  const { status, session, end } = state;
  const pill = byId("state");
  pill.dataset["status"] = status;
  byId("state-text").textContent = stateText(state, user);
  byId("facts").hidden = byId("leave").hidden = status === "closed";
  byId("encoding").hidden = byId("latency").hidden = status !== "live";
  byId("encoding").textContent = encoding === "json" ? "JSON" : "MessagePack";
  cluster.on(session?.node);
  if (session) {
    byId("node").textContent = session.node;
    byId("session").textContent = session.session_id;
    showLatency(Date.now() - session.server_time);
    log(`Live as ${session.user_id}${session.recovered ? "" : "; some missed notifications are gone"}`, "good");
    notice();
  }
  if (end) showEnd(state);
}

function showEnd({ status, end, retryInMs }: ClientState): void {
  if (!end) return;
  const code = end.code === undefined ? "" : `${end.code} `;
  const again = retryInMs === undefined ? "" : `; again in ${(retryInMs / 1000).toFixed(1)} s`;
  const reason = end.reason ? `: ${end.reason}` : "";
  log(`${code}${end.name}${reason}${again}`, end.code === 0 ? "" : "bad");
  byId("last-close").hidden = false;
  byId("close-code").textContent = end.code === undefined ? "–" : String(end.code);
  byId("close-name").textContent = end.name;
  if (end.code === 0) return;
  if (status === "closed") {
    notice(`Closed: ${end.code ?? ""} ${end.name}`, ADVICE[end.code ?? 0] ?? (end.reason || "The server ended the session for good."));
  } else if (end.name === "unreachable") {
    const server = config?.urls.map((url) => new URL(url).host).join(", ") ?? "";
    notice(
      `The push server at ${server} cannot be reached`,
      "Check that `fanfare dev` is still running and that UDP to it is not blocked; after a restart of the server reload this page, because its certificate is new. The page keeps trying.",
    );
  } else if (end.name === "no_token") {
    notice("No token", `${end.reason}. Check that \`fanfare dev\` is still running; the page keeps trying.`);
  }
}

function stateText({ status, retryInMs }: ClientState, user: string): string {
  switch (status) {
    case "idle":
      return "Not connected";
    case "connecting":
      return "Connecting";
    case "live":
      return `Live · ${user}`;
    case "waiting":
      return `Reconnecting in ${Math.max(1, Math.round((retryInMs ?? 0) / 1000))} s`;
    case "closed":
      return "Disconnected";
  }
}

function showLatency(ms: number): void {
  byId("latency").textContent = `${Math.max(0, Math.round(ms))} ms`;
}

function log(message: string, tone = ""): void {
  const item = make("li");
  item.dataset["tone"] = tone;
  item.append(make("time", "", clock(Date.now())), make("span", "", message));
  const list = byId("log");
  list.prepend(item);
  while (list.children.length > MAX_LOG) list.lastElementChild?.remove();
}

function notice(title?: string, advice = ""): void {
  byId("notice").hidden = title === undefined;
  byId("notice-title").textContent = title ?? "";
  byId("notice-text").textContent = advice;
}

/** One a tab, so that two tabs are two devices and a reload is the same one. */
function deviceId(): string {
  const known = sessionStorage.getItem("fanfare.device");
  if (known) return known;
  const made = `web-${crypto.randomUUID()}`;
  sessionStorage.setItem("fanfare.device", made);
  return made;
}

function text(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}
