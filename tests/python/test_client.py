"""The server under test by an independent client: `fanfare dev` and the aioquic client of this folder.

    pip install --require-hashes -r tests/python/requirements.txt
    cargo build && python3 tests/python/test_client.py

FANFARE_BIN names the binary (default: target/debug/fanfare). One server serves all tests; each test has
a user of its own. Every wait has a limit, and nothing sleeps for a result.
"""

import asyncio
import json
import os
import pathlib
import queue
import signal
import subprocess
import sys
import threading
import unittest
import urllib.request

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import client  # noqa: E402

ROOT = pathlib.Path(__file__).resolve().parents[2]
START_S = 60  # nats-server, provisioning and the edge, on a busy machine
STOP_S = 20
WAIT_S = 10
LOCAL = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # the page is on this machine


class Server:
    """`fanfare dev` on free ports, stopped with SIGTERM."""

    def __init__(self):
        binary = os.environ.get("FANFARE_BIN", str(ROOT / "target" / "debug" / "fanfare"))
        command = [binary, "dev", "--port", "0", "--listen", "127.0.0.1:0", "--json"]
        self.process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        lines = queue.Queue()
        # The pipe is read to its end, so that a server which writes more never blocks on it.
        threading.Thread(target=self.read_lines, args=[lines], daemon=True).start()
        try:
            self.info = json.loads(lines.get(timeout=START_S))
        except (queue.Empty, json.JSONDecodeError):
            self.stop()
            raise RuntimeError(f"{binary} dev wrote no JSON line within {START_S} s") from None

    def read_lines(self, lines):
        for line in self.process.stdout:
            lines.put(line)
        lines.put("")

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise
        finally:
            self.process.stdout.close()

    def post(self, path, **body):
        request = urllib.request.Request(
            self.info["page"] + path, json.dumps(body).encode(), {"content-type": "application/json"})
        with LOCAL.open(request, timeout=WAIT_S) as answer:
            return json.load(answer)

    def connect(self):
        return client.connect(self.info["push_url"], self.info["certificate_hash"])


class ClientTest(unittest.IsolatedAsyncioTestCase):
    @classmethod
    def setUpClass(cls):
        cls.server = Server()

    @classmethod
    def tearDownClass(cls):
        cls.server.stop()

    async def test_welcome_has_every_field(self):
        async with self.server.connect() as session:
            welcome = await session.hello(await self.token("wendy"), "device-1")
        kinds = {
            "session_id": str, "user_id": str, "node": str, "heartbeat_ms": int, "ack_timeout_ms": int, "window": int,
            "max_frame": int, "server_time": int, "inbox": str, "recovered": bool}
        self.assertEqual({key: type(welcome.get(key)) for key in kinds}, kinds)
        self.assertEqual(welcome["user_id"], "wendy")
        self.assertTrue(welcome["recovered"], "without resume nothing is lost")
        self.assertLessEqual(welcome["max_frame"], client.SERVER_FRAME_MAX)

    async def test_each_event_comes_on_its_lane_in_json(self):
        await self.events_come_on_their_lanes("alice", "json")

    async def test_each_event_comes_on_its_lane_in_msgpack(self):
        await self.events_come_on_their_lanes("amber", "msgpack")

    async def test_typing_comes_as_a_datagram(self):
        async with self.server.connect() as session:
            await session.hello(await self.token("dora"), "device-1", datagrams=True)
            sent = await self.publish("message.typing", "dora")
            data = await session.next_datagram(WAIT_S)
        self.assertEqual(data["notification_id"], sent["notification_id"])
        self.assertEqual(data["notification_type"], "message.typing")

    async def test_typing_comes_on_lane_low_without_datagrams(self):
        async with self.server.connect() as session:
            await session.hello(await self.token("lola"), "device-1", datagrams=False)
            sent = await self.publish("message.typing", "lola")
            lane, _, data = await session.next_notification(WAIT_S)
            self.assertTrue(session.datagrams.empty())
        self.assertEqual((lane, data["notification_id"]), ("low", sent["notification_id"]))

    async def test_heartbeats_go_on_after_an_ack(self):
        async with self.server.connect() as session:
            welcome = await session.hello(await self.token("hanna"), "device-1")
            await self.publish("friend.request", "hanna")
            lane, seq, data = await session.next_notification(WAIT_S)
            self.assertEqual((lane, seq, data.get("require_ack")), ("high", 1, True))
            self.assertEqual(self.acked(session, "high"), 1)
            # A refused ack would end the session long before this ping.
            ping = await session.next_control("ping", 2 * welcome["heartbeat_ms"] / 1000 + WAIT_S)
            self.assertEqual((type(ping["t"]), type(ping["inbox"])), (int, str))
            await self.publish("friend.request", "hanna")
            self.assertEqual((await session.next_notification(WAIT_S))[:2], ("high", 2))

    async def test_bad_token_is_unauthorized(self):
        async with self.server.connect() as session:
            with self.assertRaises(client.Closed):
                await session.hello("not-a-token", "device-1")
            await self.assert_closed(session, 3501, "unauthorized")

    async def test_second_hello_is_a_protocol_error(self):
        token = await self.token("sara")
        async with self.server.connect() as session:
            await session.hello(token, "device-1")
            with self.assertRaises(client.Closed):
                await session.hello(token, "device-1")
            await self.assert_closed(session, 3500, "protocol_error")

    async def test_ack_beyond_what_was_sent_is_a_protocol_error(self):
        async with self.server.connect() as session:
            await session.hello(await self.token("anton"), "device-1")
            session.send({"type": "ack", "lane": "normal", "seq": 1})
            await self.assert_closed(session, 3500, "protocol_error")

    async def test_newer_session_of_a_device_replaces_the_older(self):
        token = await self.token("rita")
        async with self.server.connect() as older, self.server.connect() as newer:
            await older.hello(token, "device-1")
            await newer.hello(token, "device-1")
            await self.assert_closed(older, 3508, "replaced")
            await self.publish("message.new", "rita")
            self.assertEqual((await newer.next_notification(WAIT_S))[0], "normal")

    async def test_bye_closes_with_code_0(self):
        async with self.server.connect() as session:
            await session.hello(await self.token("boris"), "device-1")
            session.send({"type": "bye"})
            await self.assert_closed(session, 0, "normal")

    async def test_wrong_certificate_hash_is_noticed_by_the_client(self):
        with self.assertRaises(client.ssl.SSLCertVerificationError):
            async with client.connect(self.server.info["push_url"], "AAAA"):
                self.fail("connected to a server with another certificate")

    # --- helpers -----------------------------------------------------------------------------

    async def events_come_on_their_lanes(self, user, encoding):
        lanes = {"friend.request": "high", "message.new": "normal", "file.processing": "low"}
        async with self.server.connect() as session:
            await session.hello(await self.token(user), "device-1", encoding=encoding)
            sent = {kind: (await self.publish(kind, user))["notification_id"] for kind in lanes}
            seen = [await session.next_notification(WAIT_S) for _ in lanes]
            self.assertEqual({data["notification_type"]: lane for lane, _, data in seen}, lanes)
            self.assertEqual({data["notification_type"]: data["notification_id"] for _, _, data in seen}, sent)
            self.assertEqual([seq for _, seq, _ in seen], [1, 1, 1])
            for _, _, data in seen:
                self.assertIsInstance(data["timestamp"], int)
                self.assertIsInstance(data["published_at_ms"], int)
                self.assertIsInstance(data["payload"], dict)
                self.assertIn(data["priority"], ("high", "normal", "low"))

    async def assert_closed(self, session, code, name):
        """The close of the session, and the close frame, which every session with a control stream gets."""
        self.assertEqual(await session.wait_close(WAIT_S), (code, name))
        frame = await session.wait_close_frame(WAIT_S)
        self.assertEqual((frame["code"], frame["name"]), (code, name))
        self.assertEqual(frame["reconnect"], 3000 <= code < 3500)

    @staticmethod
    def acked(session, name):
        return next(lane.acked for lane in session.lanes.values() if lane.name == name)

    async def token(self, user):
        answer = await asyncio.to_thread(self.server.post, "/api/token", user=user, ttl_s=3600)
        return answer["token"]

    async def publish(self, kind, user):
        return await asyncio.to_thread(self.server.post, "/api/publish", type=kind, user=user)


if __name__ == "__main__":
    unittest.main()
