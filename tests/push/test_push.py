"""The examples of examples/push against what a real gateway hands off, and docs/offline-push.md against both.

    just test-push

The Go example is left out, aloud, where there is no Go.

One nats-server and one `fanfare serve` for all. The examples take turns on the same consumers, each with users of its own.
Every wait has a limit; a check that something does not come waits for what is handled after it.
"""

import asyncio
import datetime
import json
import os
import pathlib
import queue
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import unittest
import uuid
from operator import itemgetter

import fastjsonschema
import nats
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

ROOT = pathlib.Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples" / "push"
SCHEMA = json.loads((ROOT / "docs" / "offline-push.schema.json").read_text())
FANFARE = os.environ.get("FANFARE_BIN", str(ROOT / "target" / "debug" / "fanfare"))
NATS_SERVER = os.environ.get("NATS_SERVER", "nats-server")
STREAM = "OFFLINE_PUSH"
WAIT_S = 30
UNREADABLE = [b"not a record", b'{"kind":"silent","users":"all"}']
MISSED_CALL_MS = 24 * 3_600 * 1_000

COMMANDS = {
    "py": [sys.executable, str(EXAMPLES / "python" / "push.py")],
    "js": ["node", str(EXAMPLES / "node" / "push.mjs")],
    "go": [],  # built first
}
GO = shutil.which("go")

check = fastjsonschema.compile(SCHEMA)


class Services:
    """nats-server and a provisioned gateway on free ports, which starts when told to."""

    def __init__(self):
        self.folder = tempfile.TemporaryDirectory()
        folder = pathlib.Path(self.folder.name)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.url = f"nats://127.0.0.1:{free.getsockname()[1]}"
        port = self.url.rsplit(":", 1)[1]
        self.server = subprocess.Popen(
            [NATS_SERVER, "-js", "-sd", str(folder / "nats"), "-a", "127.0.0.1", "-p", port], stderr=subprocess.DEVNULL)
        self.gateway = None
        certify(folder)
        (folder / "token.key").write_text(uuid.uuid4().hex)
        self.config = folder / "fanfare.toml"
        self.config.write_text(
            f'[nats]\nurl = "{self.url}"\n[edge]\nlisten = "127.0.0.1:0"\n'
            f'[edge.tls]\ncertificate = "{folder}/cert.pem"\nkey = "{folder}/key.pem"\n'
            f'[auth]\nkeys = [{{ algorithm = "HS256", file = "{folder}/token.key" }}]\n'
            '[admin]\nlisten = "127.0.0.1:0"\n[log]\nlevel = "warn"\n')

    def fanfare(self, *args):
        subprocess.run([FANFARE, "--config", self.config, *args], check=True, stdout=subprocess.DEVNULL, timeout=WAIT_S)

    def serve(self):
        self.gateway = subprocess.Popen([FANFARE, "--config", self.config, "serve"])

    def stop(self):
        for process in filter(None, [self.gateway, self.server]):
            process.kill()
            process.wait()
        self.folder.cleanup()


class Consumer:
    """An example that runs, and the lines it has printed."""

    def __init__(self, name, url, **users):
        environment = {**os.environ, **{f"PUSH_{what}": ",".join(who) for what, who in users.items()}}
        if name == "py":  # with the packages that its own requirements name
            environment["PYTHONPATH"] = os.environ.get("PUSH_PYTHONPATH", environment.get("PYTHONPATH", ""))
        self.process = subprocess.Popen([*COMMANDS[name], url], stdout=subprocess.PIPE, text=True, env=environment)
        self.prefix, self.lines, self.seen = f"{name}-", queue.Queue(), []
        threading.Thread(target=self.read_lines, daemon=True).start()

    def read_lines(self):
        for line in self.process.stdout:
            self.lines.put(json.loads(line))
        self.lines.put(None)

    async def until(self, **expected):
        """Waits for a line that has these fields."""
        while not any(expected.items() <= push.items() for push in self.seen):
            push = await asyncio.to_thread(self.lines.get, timeout=WAIT_S)
            assert push is not None, f"it ended before {expected}"
            # The rings of an earlier example may still be timing out.
            if push["user"].startswith(self.prefix):
                self.seen.append(push)

    def stop(self):
        """Its exit code; `seen` is complete then."""
        self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(WAIT_S)
        finally:
            self.process.kill()
        rest = iter(lambda: self.lines.get(timeout=WAIT_S), None)
        self.seen += [push for push in rest if push["user"].startswith(self.prefix)]
        return code

    def kill(self):
        """Ends it in any case."""
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()


class PushTest(unittest.IsolatedAsyncioTestCase):
    @classmethod
    def setUpClass(cls):
        cls.services = Services()
        cls.addClassCleanup(cls.services.stop)
        if GO:
            COMMANDS["go"] = [os.path.join(cls.services.folder.name, "push")]
            subprocess.run([GO, "vet", "."], cwd=EXAMPLES / "go", check=True)
            subprocess.run([GO, "build", "-o", *COMMANDS["go"], "."], cwd=EXAMPLES / "go", check=True)
        asyncio.run(cls.prepare())

    @classmethod
    async def prepare(cls):
        """Everything before the gateway starts: streams, members, and a call that is over before anybody heard of it."""
        client = await connect(cls.services.url)
        cls.services.fanfare("provision", "apply", "--yes")
        for name in COMMANDS:
            members = [f"{name}-{user}" for user in ("author", "fay", "gus", "hal")]
            cls.services.fanfare("audience", "add", "conversation", f"{name}-talk", *members)
        await publish(client.jetstream(), "livekit.call_invite", "kit", invite("late"), ttl=1)
        await asyncio.sleep(1.1)  # its time is over, by JetStream's clock
        cls.services.serve()
        cls.missed_call = json.loads((await eventually(lambda: get(client.jetstream(), 1))).data)
        await client.close()

    async def asyncSetUp(self):
        self.client = await connect(self.services.url)
        self.addAsyncCleanup(self.client.close)
        self.js = self.client.jetstream()

    async def test_python(self):
        await self.example("py")

    async def test_node(self):
        await self.example("js")

    @unittest.skipUnless(GO, "NOT TESTED: the Go example, because there is no go on the PATH")
    async def test_go(self):
        await self.example("go")

    def test_a_call_that_nobody_heard_of_is_a_missed_call(self):
        missed = self.missed_call
        check(missed)
        self.assertEqual((missed["users"], missed["kind"], missed["reason"]), (["kit"], "alert", "expired"))
        self.assertEqual(missed["expires_at_ms"] - missed["published_at_ms"], MISSED_CALL_MS)
        self.assertNotIn("livekit_token", missed["payload"])

    def test_documented_records_keep_the_schema(self):
        text = (ROOT / "docs" / "offline-push.md").read_text()
        records = [json.loads(block.split("```")[0]) for block in text.split("```json\n")[1:]]
        self.assertGreaterEqual(len(records), 4)
        for record in records:
            check(record)
            self.assertLessEqual(record.keys(), SCHEMA["properties"].keys())
        fields = {name for name in SCHEMA["properties"] if f"| `{name}` |" in text}
        self.assertEqual(fields, SCHEMA["properties"].keys(), "each field has a line in the table")

    async def example(self, name):
        ids, records = await self.hand_off(name)
        ivys_ring = await self.disturb(records, f"{name}-ann", f"{name}-ivy")

        def to(user, kind, **other):
            push = {"user": f"{name}-{user}", "kind": kind, "devices": ["d1", "d2"]}
            return {**push, "notification_id": ids[user], "collapse_id": ids[user], **other}

        def said(user, type, kind="alert", **other):
            return to(user, kind, type=type, **other)

        def cancels(user, call):
            return to(user, "silent", cancel=f"{name}-{call}")

        gone = await self.client.subscribe("notification.push.token_invalid.>")
        first = Consumer(
            name, self.services.url, REFUSE=[f"{name}-gus"], GONE=[f"{name}-leo"], STALL=[f"{name}-kim"])
        self.addCleanup(first.kill)
        for user in ("gus", "cat", "ivy"):
            await first.until(user=f"{name}-{user}")

        # A ring that comes after its own cancel; the next ring is handled after it.
        await self.js.publish("push.offline.ring", json.dumps(ivys_ring).encode())
        ids["max"] = await publish(self.js, "livekit.call_invite", f"{name}-max", invite(f"{name}-c3"))
        await first.until(user=f"{name}-max", kind="ring")
        # Answers end rings.
        for user, call in (("cat", "c1"), ("max", "c3")):
            await self.reject(name, user, call)
            await first.until(user=f"{name}-{user}", cancel=f"{name}-{call}")
        # Tokens that are gone are told of, and nothing is sent.
        await publish(self.js, "message.new", f"{name}-leo", {"content": "hello"})
        for device in ("d1", "d2"):
            told = await gone.next_msg(timeout=WAIT_S)
            self.assertEqual(told.subject, f"notification.push.token_invalid.{name}-leo")
            self.assertEqual(json.loads(told.data)["payload"]["device_id"], device)
        # A push that never ends holds up alerts, and no ring.
        ids["kim"] = await publish(self.js, "message.new", f"{name}-kim", {"content": "hello"})
        await eventually(lambda: self.waits_in_hand("push_alert"))
        ids["ned"] = await publish(self.js, "message.new", f"{name}-ned", {"content": "hello"})
        ids["oda"] = await publish(self.js, "livekit.call_invite", f"{name}-oda", invite(f"{name}-c4"))
        await first.until(user=f"{name}-oda", kind="ring")
        await self.reject(name, "oda", "c4")
        await first.until(user=f"{name}-oda", cancel=f"{name}-c4")
        self.assertEqual(first.stop(), 0)

        message, call = "message.new", "livekit.call_invite"
        self.assert_same(first.seen, [
            said("ann", message), said("ben", "auth.force_logout", devices=["d2"]),
            said("bea", "auth.force_logout", devices=["d1"]), said("cat", call, "ring"), said("dan", message, "silent"),
            said("fay", message), said("gus", message), said("hal", message), cancels("ivy", "c2"), said("jon", call),
            said("max", call, "ring"), cancels("cat", "c1"), cancels("max", "c3"),
            said("oda", call, "ring"), cancels("oda", "c4")])

        # What was not acked, and that alone, comes again.
        again = Consumer(name, self.services.url)
        self.addCleanup(again.kill)
        await again.until(user=f"{name}-ned")
        await eventually(lambda: self.is_empty(f"{name}-"))
        self.assertEqual(again.stop(), 0)
        self.assert_same(again.seen, [said("kim", message), said("ned", message)])

    async def hand_off(self, name):
        """Makes one record of each sort while nobody consumes them, and compares each with what is documented."""
        sent = {}

        async def event(user, kind, payload, **metadata):
            sent[user] = await publish(self.js, kind, f"{name}-{user}", payload, **metadata)

        await event("ann", "message.new", {"content": "hello"})
        await event("ben", "auth.force_logout", {"reason": "new_device_login", "device_id": "d1"})
        await event("bea", "auth.force_logout", {"reason": "new_device_login", "device_id": "d2"}, target_device_ids=["d1"])
        await event("cat", "livekit.call_invite", invite(f"{name}-c1"))
        await event("dan", "message.new", {"content": "hello"}, offline="silent")
        await event("eve", "message.new", {"content": "hello"}, ttl=1)
        await event("talk", "message.new", {
            "conversation_id": f"{name}-talk", "conversation_type": "group", "from_user_id": f"{name}-author"})
        await event("ivy", "livekit.call_invite", invite(f"{name}-c2"))
        await self.records(name, 8)
        # Its ring ends with the call. Who is invited too late has missed it.
        over = {"call_id": f"{name}-c2", "status": "ended"}
        await publish(self.js, "livekit.call_status", f"{name}-c2", over)
        await self.records(name, 9)
        await event("jon", "livekit.call_invite", invite(f"{name}-c5"), age_s=60)
        stored = await self.records(name, 10)
        for user in ("fay", "gus", "hal"):
            sent[user] = sent["talk"]

        records = {}
        for subject, record in stored:
            check(record)
            self.assertLessEqual(record.keys(), SCHEMA["properties"].keys())
            self.assertEqual(subject, f"push.offline.{record['kind']}")
            self.assertEqual(record["collapse_id"], record["notification_id"])
            user = record["users"][0].removeprefix(f"{name}-")
            records[user, record["kind"]] = record
            self.assertEqual(record["notification_id"], sent[user])
        self.assertEqual(records.keys(), {
            ("ann", "alert"), ("ben", "alert"), ("bea", "alert"), ("cat", "ring"), ("dan", "silent"), ("eve", "alert"),
            ("fay", "alert"), ("ivy", "ring"), ("ivy", "silent"), ("jon", "alert")})

        def field(key, name):
            return records[key].get(name)

        self.assertEqual(field(("fay", "alert"), "users"), [f"{name}-fay", f"{name}-gus", f"{name}-hal"])
        self.assertEqual(field(("ann", "alert"), "devices"), None)
        self.assertEqual(field(("ben", "alert"), "devices"), {"except": ["d1"]})
        self.assertEqual(field(("bea", "alert"), "devices"), {"only": ["d1"]})
        self.assertEqual(field(("ivy", "silent"), "cancel"), f"{name}-c2")
        others = {r["reason"] for key, r in records.items() if key not in {("ivy", "silent"), ("jon", "alert")}}
        self.assertEqual(others, {"no_session"})
        self.assertEqual(field(("jon", "alert"), "reason"), "expired")
        self.assertEqual(field(("ivy", "silent"), "reason"), "ended")
        self.assertNotIn("livekit_token", field(("cat", "ring"), "payload"))
        lives = {key: r["expires_at_ms"] - r["published_at_ms"] for key, r in records.items() if "expires_at_ms" in r}
        self.assertEqual(
            [lives[key] for key in (("ann", "alert"), ("cat", "ring"), ("eve", "alert"), ("jon", "alert"))],
            [3_600_000, 30_000, 1_000, MISSED_CALL_MS])
        return sent, records

    async def disturb(self, records, twice, late):
        """What a consumer must bear: a record that comes twice, one that cannot be read, one that is over, and a cancel
        without its ring, which is returned."""
        for subject, record in await self.stored():
            if record["users"] == [twice]:
                await self.js.publish(subject, json.dumps(record).encode())
        for unreadable in UNREADABLE:
            await self.js.publish("push.offline.silent", unreadable)
        expired = records["eve", "alert"]["expires_at_ms"] / 1000
        await asyncio.sleep(max(0, expired - time.time()) + 0.1)
        info = await self.js.stream_info(STREAM)
        for seq in range(info.state.first_seq, info.state.last_seq + 1):
            message = await get(self.js, seq)
            if message and message.subject == "push.offline.ring" and json.loads(message.data)["users"] == [late]:
                await self.js.delete_msg(STREAM, seq)
                return json.loads(message.data)
        self.fail("no ring")

    async def reject(self, name, user, call):
        answer = {"call_id": f"{name}-{call}", "rejector_user_id": f"{name}-{user}"}
        await publish(self.js, "livekit.call_rejected", f"{name}-caller", answer)

    async def stored(self):
        """Subject and record of everything in the stream; a record that cannot be read is None."""
        state = (await self.js.stream_info(STREAM)).state
        messages = [await get(self.js, seq) for seq in range(state.first_seq, state.last_seq + 1)]
        return [(m.subject, None if m.data in UNREADABLE else json.loads(m.data)) for m in messages if m]

    async def records(self, name, count):
        """Those of this example's users, once there are so many."""
        async def enough():
            mine = [r for r in await self.stored() if r[1]["users"][0].startswith(f"{name}-")]
            return mine if len(mine) == count else None
        return await eventually(enough)

    async def is_empty(self, prefix):
        return not [r for _, r in await self.stored() if r is None or r["users"][0].startswith(prefix)]

    async def waits_in_hand(self, consumer):
        return (await self.js.consumer_info(STREAM, consumer)).num_ack_pending == 1

    def assert_same(self, pushes, expected):
        order = itemgetter("user", "kind")
        self.assertEqual(sorted(pushes, key=order), sorted(expected, key=order))


def invite(call):
    return {"call_id": call, "room_name": "room-1", "call_type": "audio", "from_user_id": "caller", "livekit_token": "secret"}


async def publish(js, kind, target, payload, age_s=0, **metadata):
    id = str(uuid.uuid4())
    body = {"notification_id": id, "type": kind, "payload": payload, "metadata": metadata}
    headers = {"Nats-Msg-Id": id}
    if age_s:
        # As `fanfare dlq replay` says when something was stored first.
        headers["Fanfare-Stored-At"] = str(int((time.time() - age_s) * 1_000_000))
    await js.publish(f"notification.{kind}.{target}", json.dumps(body).encode(), headers=headers)
    return id


async def get(js, seq):
    try:
        return await js.get_msg(STREAM, seq)
    except nats.js.errors.NotFoundError:
        return None


async def eventually(condition):
    for _ in range(WAIT_S * 20):
        if result := await condition():
            return result
        await asyncio.sleep(0.05)
    raise AssertionError(f"it did not come to that within {WAIT_S} s")


async def connect(url):
    """Connects as soon as the server listens."""
    async def unheard(_):
        """The client would log each try."""

    async def ready():
        try:
            return await nats.connect(url, allow_reconnect=False, connect_timeout=1, error_cb=unheard)
        except (OSError, nats.errors.Error):
            return None
    return await eventually(ready)


def certify(folder):
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.timezone.utc)
    certificate = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
        .serial_number(x509.random_serial_number()).not_valid_before(now)
        .not_valid_after(now + datetime.timedelta(days=1)).sign(key, hashes.SHA256()))
    pem = serialization.Encoding.PEM
    (folder / "cert.pem").write_bytes(certificate.public_bytes(pem))
    (folder / "key.pem").write_bytes(key.private_bytes(
        pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))


if __name__ == "__main__":
    unittest.main(verbosity=2)
