"""The example of docs/directory.md against a gateway that asks it for members.

    pip install --require-hashes -r tests/python/requirements.txt
    cargo build && python3 tests/python/test_directory.py
"""

import asyncio
import json
import os
import subprocess
import sys
import unittest

import nats

import test_client

EXAMPLE = test_client.ROOT / "docs" / "examples" / "audience_responder.py"


class DirectoryTest(unittest.IsolatedAsyncioTestCase):
    @classmethod
    def setUpClass(cls):
        os.environ["FANFARE__WORKER__DIRECTORY__SOURCE"] = "request"
        cls.server = test_client.Server()
        cls.url = cls.server.info["nats_url"]
        cls.service = subprocess.Popen(
            [sys.executable, str(EXAMPLE), cls.url], stdout=subprocess.PIPE, text=True)
        assert cls.service.stdout.readline() == "ready\n"

    @classmethod
    def tearDownClass(cls):
        cls.service.kill()
        cls.service.wait()
        cls.service.stdout.close()
        cls.server.stop()

    async def test_members_come_from_the_service_and_unknown_groups_are_dead_letters(self):
        client = await nats.connect(self.url)
        jetstream = client.jetstream()

        async def first(stream):
            for _ in range(test_client.WAIT_S * 10):
                if (await jetstream.stream_info(stream)).state.messages:
                    return await jetstream.get_msg(stream, 1)
                await asyncio.sleep(0.1)
            self.fail(f"nothing in {stream}")

        message = {"payload": {
            "conversation_id": "c1", "conversation_type": "group", "from_user_id": "bob"}}
        await jetstream.publish("notification.message.new.c1", json.dumps(message).encode())
        await jetstream.publish("notification.group.disbanded.never", b'{"payload":{}}')
        self.assertEqual(json.loads((await first("OFFLINE_PUSH")).data)["users"], ["ann"])
        letter = await first("NOTIFICATIONS_DLQ")
        self.assertEqual(letter.headers["Fanfare-Reason"], "unknown_audience")
        await client.close()


if __name__ == "__main__":
    unittest.main(verbosity=2)
