"""A service that owns memberships and answers Fanfare's questions about them.

    pip install nats-py
    python3 audience_responder.py nats://127.0.0.1:4222
"""

import asyncio
import json
import sys
import time

import nats

# What your database knows.
GROUPS = {"g1": {"ann": "owner", "bob": "member"}}
CONVERSATIONS = {"c1": "g1"}  # a conversation that is another name of a group


def resolve(kind, id):
    # Unix microseconds, taken before the database is read: what happens later has a higher one.
    v = time.time_ns() // 1000
    if kind == "group" and id in GROUPS:
        return {"members": [{"user": user, "role": role} for user, role in GROUPS[id].items()], "v": v}
    if kind == "conversation" and id in CONVERSATIONS:
        return {"group": CONVERSATIONS[id], "v": v}
    return {"error": "not_found"}


async def main(url):
    client = await nats.connect(url)

    async def answer(question):
        asked = json.loads(question.data)
        await question.respond(json.dumps(resolve(asked["kind"], asked["id"])).encode())

    # One of all members of the queue group answers, so run as many as you like.
    await client.subscribe("audience.resolve.*", queue="group-service", cb=answer)
    await client.flush()
    print("ready", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else "nats://127.0.0.1:4222"))
