"""A push service in small: it takes what Fanfare hands off (docs/offline-push.md) and prints what it would send.

    pip install --require-hashes -r requirements.txt
    python3 push.py nats://127.0.0.1:4222

What stands for your provider takes user ids, separated by commas, from the environment: PUSH_REFUSE (their first push is
refused), PUSH_GONE (their tokens are gone), PUSH_STALL (pushing to them never ends).
"""

import asyncio
import json
import os
import signal
import sys
import time

import nats
from nats.js.api import AckPolicy, ConsumerConfig

STREAM = "OFFLINE_PUSH"
CANCEL_MS = 60_000  # no phone rings for longer
RETRY_S = 1  # yours: 5 and more, growing with msg.metadata.num_delivered
SEEN_MAX = 100_000
REFUSE, GONE, STALL = (set(os.environ.get(f"PUSH_{name}", "").split(",")) - {""} for name in ("REFUSE", "GONE", "STALL"))

# What was pushed. Here the newest of this process; where several processes run, a store they share, for a day.
seen = {}


class Refused(Exception):
    """The provider says: later."""


def devices_of(user):
    return ["d1", "d2"]  # what your database knows


def read(kind, body):
    """The record, or a ValueError."""
    record = json.loads(body)
    if not isinstance(record, dict) or record.get("kind") != kind:
        raise ValueError(f"not a record of kind {kind}")
    fields = {"notification_id": str, "collapse_id": str, "users": list, "published_at_ms": int, "payload": dict}
    fields |= {"cancel": str} if "cancel" in record else {"notification_type": str, "expires_at_ms": int}
    wrong = [name for name, of in fields.items() if not isinstance(record.get(name), of)]
    if wrong:
        raise ValueError(f"missing, or of a wrong type: {', '.join(wrong)}")
    return record


def is_expired(record):
    until_ms = record["published_at_ms"] + CANCEL_MS if "cancel" in record else record["expires_at_ms"]
    return time.time() * 1000 >= until_ms


def meant(record, user):
    only_or_except = record.get("devices", {})
    devices = [d for d in devices_of(user) if d in only_or_except.get("only", [d])]
    return [d for d in devices if d not in only_or_except.get("except", [])]


def remember(key):
    seen[key] = None
    if len(seen) > SEEN_MAX:
        del seen[next(iter(seen))]


async def send(js, push):
    user = push["user"]
    if user in STALL:
        await asyncio.Event().wait()
    if user in REFUSE:
        REFUSE.remove(user)
        raise Refused
    if user in GONE:  # nothing to try again: the devices are told when they connect
        for device in push["devices"]:
            note = {"payload": {"device_id": device, "reason": "app_uninstalled", "detected_at": int(time.time())}}
            await js.publish(f"notification.push.token_invalid.{user}", json.dumps(note).encode())
        return
    print(json.dumps(push), flush=True)


async def push_all(js, msg, record):
    """Pushes to everybody who has not got it yet. False when somebody was refused."""
    taken, id, kind, cancel = True, record["notification_id"], record["kind"], record.get("cancel")
    for at, user in enumerate(record["users"]):
        if at % 100 == 99:
            await msg.in_progress()  # ack_wait begins anew
        key = (id, kind, user, record["reason"] if cancel else None)  # a second cancel has another reason
        devices = meant(record, user)
        if cancel:
            remember((id, "ring", user, None))  # a ring that comes only now is over
        if key in seen or not devices:
            continue
        push = {"kind": kind, "user": user, "devices": devices, "notification_id": id, "collapse_id": record["collapse_id"]}
        push |= {"cancel": cancel} if cancel else {"type": record["notification_type"]}
        try:
            await send(js, push)
            remember(key)
        except Refused:
            taken = False
    return taken


async def lane(js, kind):
    """One kind, with a consumer of its own: a ring waits for no alert."""
    name = f"push_{kind}"
    await js.add_consumer(STREAM, ConsumerConfig(
        durable_name=name, filter_subject=f"push.offline.{kind}", ack_policy=AckPolicy.EXPLICIT,
        ack_wait=30, max_ack_pending=1000, max_deliver=-1))
    pull = await js.pull_subscribe_bind(durable=name, stream=STREAM)
    while True:
        try:
            [msg] = await pull.fetch(1, timeout=30)
        except nats.errors.TimeoutError:
            continue
        try:
            record = read(kind, msg.data)
            done = is_expired(record) or await push_all(js, msg, record)
            await (msg.ack() if done else msg.nak(delay=RETRY_S))
        except ValueError as error:
            print(f"a record that nobody can push: {error}", file=sys.stderr)
            await msg.term()
        except asyncio.CancelledError:
            await msg.nak()  # another process takes it at once
            raise


async def main(url):
    client = await nats.connect(url, max_reconnect_attempts=-1)
    lanes = [asyncio.create_task(lane(client.jetstream(), kind)) for kind in ("ring", "alert", "silent")]
    loop = asyncio.get_running_loop()
    for sign in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(sign, lambda: [task.cancel() for task in lanes])
    try:
        await asyncio.gather(*lanes)
    except asyncio.CancelledError:
        await asyncio.wait(lanes)
    finally:
        await client.drain()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else "nats://127.0.0.1:4222"))
