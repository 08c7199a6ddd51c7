/**
 * The client and the demo page in a real Chromium against a real server:
 * `npm run test:browser`. FANFARE_BIN is the server (default
 * ../../target/debug/fanfare), CHROMIUM the browser (default
 * /usr/bin/chromium). Leaves test-results/demo.png.
 */
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { existsSync, mkdirSync } from "node:fs";
import { connect } from "node:net";
import { createInterface } from "node:readline";
import { after, before, test } from "node:test";
import { fileURLToPath } from "node:url";
import { chromium } from "playwright-core";

const at = (path) => fileURLToPath(new URL(path, import.meta.url));
const CHROMIUM = process.env.CHROMIUM ?? "/usr/bin/chromium";
const BINARY = process.env.FANFARE_BIN ?? at("../../../target/debug/fanfare");
const PAGE_FOLDER = at("../dist/demo");
const SCREENSHOT = at("../test-results/demo.png");
const START_MS = 60_000;
const STEP_MS = 15_000;
const LIMIT = { timeout: 90_000 };

let server;
let serverErrors = "";
let browser;
let origin = "";
let nats = "";
let passed = 0;
const TESTS = 8;
/** The least that can be set: a session that was sent so much is replaced. */
const ROTATE_BYTES = 1024 * 1024;

before(async () => {
  need(CHROMIUM, "no Chromium: apt-get install chromium, or set CHROMIUM");
  need(BINARY, "no server binary: cargo build, or set FANFARE_BIN");
  need(`${PAGE_FOLDER}/main.js`, "no demo page: npm run build");
  mkdirSync(at("../test-results"), { recursive: true });
  const addresses = await startServer();
  origin = addresses.page.replace(/\/$/, "");
  nats = addresses.nats_url;
  browser = await chromium.launch({
    executablePath: CHROMIUM,
    args: [
      "--headless",
      "--no-sandbox",
      "--disable-gpu",
      "--no-first-run",
      "--disable-background-networking",
      "--disable-component-update",
      "--disable-sync",
    ],
  });
}, { timeout: START_MS + STEP_MS });

after(async () => {
  await browser?.close();
  await stopServer();
  console.log(`browser tests: ${passed} of ${TESTS} passed${passed === TESTS ? "" : ", FAILED"}`);
});

test("samples arrive on their lanes, typing shows and vanishes", LIMIT, async () => {
  const page = await open("?user=alice");
  await live(page);
  for (const lane of ["high", "normal", "low"]) {
    const type = await sampleOf(page, lane);
    await page.click(id(`publish-${type}`));
    await page.waitForSelector(`${id(`lane-${lane}`)} ${id("card")}[data-type="${type}"]`, { timeout: STEP_MS });
  }
  await page.click(id("publish-message.typing"));
  await page.waitForSelector(id("typing"), { state: "visible", timeout: STEP_MS });
  const shown = await page.textContent(id("typing"));
  assert.match(shown ?? "", /typing/);
  await page.screenshot({ path: SCREENSHOT });
  await page.waitForSelector(id("typing"), { state: "hidden", timeout: STEP_MS });
  await done(page);
});

test("a story plays step after step, and a second press ends it", LIMIT, async () => {
  const page = await open("?user=alice");
  await live(page);
  await page.click(id("play"));
  for (const type of ["group.member_joined", "group.role_changed"]) {
    await page.waitForSelector(`${id("lane-normal")} ${id("card")}[data-type="${type}"]`, { timeout: STEP_MS });
  }
  assert.match((await page.textContent("#publish-hint")) ?? "", /^2 of \d+: alice becomes its owner/);
  await page.click(id("play"));
  await page.waitForFunction(() => document.getElementById("play")?.textContent === "Play: group life", undefined, { timeout: STEP_MS });
  await done(page);
});

test("MessagePack carries the same", LIMIT, async () => {
  const page = await open("?user=bob&encoding=msgpack");
  await live(page);
  assert.equal(await page.textContent(id("encoding")), "MessagePack");
  const type = await sampleOf(page, "high");
  await page.click(id(`publish-${type}`));
  await page.waitForSelector(`${id("lane-high")} ${id("card")}[data-type="${type}"]`, { timeout: STEP_MS });
  await done(page);
});

test("an expired token closes with 3005 and a fresh one reconnects", LIMIT, async () => {
  const page = await open("?user=alice&token_ttl=3");
  await live(page);
  const first = await page.textContent("#session");
  await closeCode(page, "3005", "token_expired");
  await page.waitForFunction(
    (old) =>
      document.getElementById("state")?.dataset.status === "live" &&
      document.getElementById("session")?.textContent !== old,
    first,
    { timeout: STEP_MS },
  );
  await done(page);
});

test("the same device elsewhere replaces the session: 3508, no reconnect", LIMIT, async () => {
  const device = "web-test-replaced";
  const first = await open("?user=alice", device);
  await live(first);
  const second = await open("?user=alice", device);
  await live(second);
  await closeCode(first, "3508", "replaced");
  await first.waitForSelector(`${id("state")}[data-status="closed"]`, { timeout: STEP_MS });
  assert.equal(await second.getAttribute(id("state"), "data-status"), "live");
  await first.close();
  await done(second);
});

test("a bad token is refused with 3501, no reconnect", LIMIT, async () => {
  const page = await open("");
  await page.waitForSelector(id("user-alice"), { timeout: STEP_MS });
  const end = await page.evaluate(async () => {
    const { FanfareClient, getConfig, hashBytes } = window.fanfare;
    const config = getConfig();
    const client = new FanfareClient({
      url: config.urls,
      token: () => Promise.resolve("not.a.token"),
      deviceId: "web-test-bad-token",
      serverCertificateHashes: [hashBytes(config.certificate_hash)],
    });
    return new Promise((resolve) => {
      client.on("state", (state) => {
        if (state.status === "closed" || state.status === "waiting") resolve({ status: state.status, ...state.end });
      });
      client.connect();
    });
  });
  assert.equal(end.code, 3501, JSON.stringify(end));
  assert.equal(end.name, "unauthorized");
  assert.equal(end.status, "closed");
  await done(page);
});

test("a session that carried much is replaced, and nothing is lost or shown twice", LIMIT, async () => {
  const page = await open("");
  await page.waitForSelector(id("user-alice"), { timeout: STEP_MS });
  await page.evaluate(() => {
    const { FanfareClient, getConfig, hashBytes } = window.fanfare;
    const config = getConfig();
    const client = new FanfareClient({
      url: config.urls,
      token: async () => {
        const body = JSON.stringify({ user: "rita", ttl_s: 3600 });
        const headers = { "content-type": "application/json" };
        return (await (await fetch("/api/token", { method: "POST", headers, body })).json()).token;
      },
      deviceId: "web-test-rotate",
      serverCertificateHashes: [hashBytes(config.certificate_hash)],
    });
    window.rotation = { shown: [], sessions: [], goaways: [], others: [] };
    client.on("notification", (n) => void window.rotation.shown.push(n.data.notification_id));
    client.on("goaway", (g) => void window.rotation.goaways.push(g.reason));
    client.on("state", (state) => {
      if (state.status === "live") window.rotation.sessions.push(state.session.session_id);
      else if (state.status !== "connecting") window.rotation.others.push(state.status);
    });
    client.connect();
  });
  const reached = (shown, sessions) =>
    page.waitForFunction(
      ([n, m]) => window.rotation.shown.length >= n && new Set(window.rotation.sessions).size >= m,
      [shown, sessions],
      { timeout: STEP_MS },
    );
  await reached(0, 1);
  await publishLarge("rita", 0, 40);
  await reached(40, 2);
  await publishLarge("rita", 40, 45);
  await reached(45, 2);
  const { shown, goaways, others } = await page.evaluate(() => window.rotation);
  assert.deepEqual([...shown].sort(), Array.from({ length: 45 }, (_, n) => `large-${n}`).sort());
  assert.deepEqual([goaways, others], [["rotate"], []]);
  await done(page);
});

test("leaving on purpose closes with 0", LIMIT, async () => {
  const page = await open("?user=carol");
  await live(page);
  await page.click(id("leave"));
  await closeCode(page, "0", "normal");
  await done(page);
});

// ---- helpers ----

function id(name) {
  return `[data-testid="${name}"]`;
}

function need(path, advice) {
  if (!existsSync(path)) throw new Error(`${path}: ${advice}`);
}

/** A page of its own browser context, so its session storage is its own. */
async function open(query, device) {
  const context = await browser.newContext({ viewport: { width: 1440, height: 900 } });
  const page = await context.newPage();
  page.on("pageerror", (error) => console.error(`page error: ${error.message}`));
  if (device) await page.addInitScript((value) => sessionStorage.setItem("fanfare.device", value), device);
  await page.goto(`${origin}/${query}`);
  return page;
}

async function done(page) {
  await page.context().close();
  passed += 1;
}

async function live(page) {
  try {
    await page.waitForSelector(`${id("state")}[data-status="live"]`, { timeout: STEP_MS });
  } catch {
    const log = await page.textContent(id("log"));
    throw new Error(`the page did not get live; its log: ${log}\nserver: ${serverErrors.slice(-2000)}`);
  }
}

async function closeCode(page, code, name) {
  await page.waitForFunction(
    ([wantCode, wantName]) =>
      document.getElementById("close-code")?.textContent === wantCode &&
      document.getElementById("close-name")?.textContent === wantName,
    [code, name],
    { timeout: STEP_MS },
  );
}

/** A user sample that the server says lands on this lane and that ends no session. */
async function sampleOf(page, lane) {
  const type = await page.evaluate((wanted) => {
    const preferred = ["friend.request", "message.new", "file.processing"];
    const fit = window.fanfare
      .getConfig()
      .samples.filter((s) => s.lane === wanted && !/force_logout|password_changed|banned|typing/.test(s.type));
    return (fit.find((s) => preferred.includes(s.type)) ?? fit.find((s) => s.audience === "user") ?? fit[0])?.type;
  }, lane);
  assert.ok(type, `the configuration has no sample for lane ${lane}`);
  return type;
}

/** Publishes messages of 40 kB, numbered from `from` to before `to`, over a connection to NATS made by hand. */
async function publishLarge(user, from, to) {
  const { hostname, port } = new URL(nats);
  const socket = connect({ host: hostname, port: Number(port) });
  let text = 'CONNECT {"verbose":false}\r\n';
  for (let n = from; n < to; n += 1) {
    const payload = { conversation_type: "single", content: "x".repeat(40_000) };
    const body = JSON.stringify({ notification_id: `large-${n}`, type: "message.new", from_user_id: "bob", payload });
    text += `PUB notification.message.new.${user} ${body.length}\r\n${body}\r\n`;
  }
  // The answer to PING says that the server has read all of it.
  socket.write(`${text}PING\r\n`);
  let answer = "";
  for await (const chunk of socket) {
    answer += chunk;
    if (answer.includes("PONG\r\n")) break;
  }
  assert.ok(!answer.includes("-ERR"), answer);
}

async function startServer() {
  const args = ["dev", "--port", "0", "--listen", "127.0.0.1:0", "--json", "--web", PAGE_FOLDER];
  const env = { ...process.env, FANFARE__EDGE__ROTATE_BYTES: String(ROTATE_BYTES) };
  server = spawn(BINARY, args, { stdio: ["ignore", "pipe", "pipe"], env });
  server.stderr.on("data", (chunk) => (serverErrors = (serverErrors + chunk).slice(-20_000)));
  const lines = createInterface({ input: server.stdout });
  return new Promise((resolve, reject) => {
    const fail = (why) => reject(new Error(`fanfare dev ${why}\n${serverErrors.slice(-2000)}`));
    const timer = setTimeout(() => fail(`said nothing within ${START_MS} ms`), START_MS);
    server.once("error", (error) => fail(`did not start: ${error.message}`));
    server.once("exit", (code) => fail(`exited with ${code}`));
    lines.once("line", (line) => {
      clearTimeout(timer);
      try {
        resolve(JSON.parse(line));
      } catch {
        fail(`printed no JSON line first: ${line}`);
      }
    });
  });
}

async function stopServer() {
  if (!server || server.exitCode !== null || server.pid === undefined) return;
  const gone = new Promise((resolve) => server.once("exit", resolve));
  server.kill("SIGTERM");
  const timer = setTimeout(() => server.kill("SIGKILL"), STEP_MS);
  await gone;
  clearTimeout(timer);
}
