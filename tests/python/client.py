"""A small client for the push protocol, written from docs/protocol.md alone, on aioquic.

It shows that the protocol text is enough to write a client with, and it is a second WebTransport
implementation to test the server with. It speaks JSON and MessagePack.

    async with connect(push_url, certificate_hash) as session:
        welcome = await session.hello(token, "device-1")
        lane, seq, notification = await session.next_notification(timeout=10)

Acks and pongs are sent from within: a notification counts as processed once it is in the queue, which
is right for tests; an application acks after it has stored or shown it. Every wait has a limit.
"""

import asyncio
import base64
import collections
import contextlib
import hashlib
import json
import ssl
import struct
from urllib.parse import urlsplit

import msgpack
from aioquic.asyncio.client import connect as quic_connect
from aioquic.asyncio.protocol import QuicConnectionProtocol
from aioquic.buffer import Buffer, BufferReadError
from aioquic.h3.connection import H3_ALPN, H3Connection
from aioquic.h3.events import DatagramReceived, DataReceived, HeadersReceived, WebTransportStreamDataReceived
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.events import ConnectionTerminated, StreamDataReceived
from cryptography.hazmat.primitives.serialization import Encoding

TIMEOUT_S = 10
CLOSE_CAPSULE = 0x2843  # WT_CLOSE_SESSION, draft-ietf-webtrans-http3
FIRST_WT_ERROR = 0x52E4A40FA8DB  # where application error codes begin inside HTTP/3's
SERVER_FRAME_MAX = 1024 * 1024
ACK_FRAMES, ACK_BYTES, ACK_S = 32, 16 * 1024, 1.0
REMEMBERED_IDS = 1024


class Closed(Exception):
    """The session ended. `code` is None if the connection was lost without a close code."""

    def __init__(self, code, reason):
        super().__init__(f"closed with {code} ({reason})")
        self.code, self.reason = code, reason


class Lane:
    """One incoming stream: its name from the lane frame, and what is not acked yet."""

    def __init__(self):
        self.name, self.buffer = None, bytearray()
        self.seq = self.acked = self.unacked_bytes = 0
        self.timer = None


def split_frames(buffer):
    """Takes the whole frames off the front of `buffer` and yields their bodies."""
    while len(buffer) >= 4:
        length = int.from_bytes(buffer[:4], "big")
        if not 1 <= length <= SERVER_FRAME_MAX:
            raise ValueError(f"the server sent a frame of {length} bytes")
        if len(buffer) < 4 + length:
            return
        yield bytes(buffer[4 : 4 + length])
        del buffer[: 4 + length]


class Session(QuicConnectionProtocol):
    """One QUIC connection with one WebTransport session on it."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.http = H3Connection(self._quic, enable_webtransport=True)
        self.session_id = self.control = None
        self.encoding, self.welcomed, self.close_frame = "json", False, self._loop.create_future()
        self.control_buffer, self.capsules, self.lanes = bytearray(), bytearray(), {}
        self.status, self.ended = self._loop.create_future(), self._loop.create_future()
        self.control_frames, self.notifications, self.datagrams = (asyncio.Queue() for _ in range(3))
        self.seen = collections.OrderedDict()

    # --- opening -----------------------------------------------------------------------------

    async def open(self, authority, path):
        """The WebTransport session: an extended CONNECT, then the control stream."""
        self.session_id = self._quic.get_next_available_stream_id()
        self.http.send_headers(self.session_id, [
            (b":method", b"CONNECT"), (b":protocol", b"webtransport"), (b":scheme", b"https"),
            (b":authority", authority.encode()), (b":path", path.encode()),
            (b"wt-available-protocols", b'"fanfare.v1"')])
        self.transmit()
        if (status := await self._or_closed(asyncio.shield(self.status))) != 200:
            raise Closed(None, f"HTTP status {status}")
        self.control = self.http.create_webtransport_stream(self.session_id)

    async def hello(self, token, device_id, platform="desktop", encoding="json", datagrams=True, resume=None):
        """Sends hello and returns the welcome frame; raises Closed if the server refuses."""
        self.encoding = encoding
        self.send({
            "type": "hello", "version": 1, "token": token, "device_id": device_id, "platform": platform,
            "encoding": encoding, "datagrams": datagrams, **({"resume": {"inbox": resume}} if resume else {})})
        return await self.next_control("welcome")

    def send(self, frame):
        """A frame on the control stream. hello is JSON whatever the encoding."""
        plain = self.encoding == "json" or frame["type"] == "hello"
        body = json.dumps(frame, separators=(",", ":"), ensure_ascii=False).encode() if plain else msgpack.packb(frame)
        self._quic.send_stream_data(self.control, struct.pack(">I", len(body)) + body)
        self.transmit()

    # --- waiting -----------------------------------------------------------------------------

    async def next_control(self, kind, timeout=TIMEOUT_S):
        """The next control frame of that type; frames of other types before it are dropped."""
        async with asyncio.timeout(timeout):
            while True:
                frame = await self._or_closed(self.control_frames.get(), None)
                if frame["type"] == kind:
                    return frame

    async def next_notification(self, timeout=TIMEOUT_S):
        """(lane, seq, data) of the next notification that is not a duplicate."""
        return await self._or_closed(self.notifications.get(), timeout)

    async def next_datagram(self, timeout=TIMEOUT_S):
        """The data of the next notification that came as a datagram."""
        return await self._or_closed(self.datagrams.get(), timeout)

    async def wait_close(self, timeout=TIMEOUT_S):
        """(code, reason) of the WebTransport close."""
        return await asyncio.wait_for(asyncio.shield(self.ended), timeout)

    async def wait_close_frame(self, timeout=TIMEOUT_S):
        """The close frame, which may come before or after the close of the session."""
        return await asyncio.wait_for(asyncio.shield(self.close_frame), timeout)

    async def _or_closed(self, awaitable, timeout=TIMEOUT_S):
        """The result, or Closed if the session ends first. What has arrived before the end is delivered."""
        task = asyncio.ensure_future(awaitable)
        try:
            await asyncio.wait({task, self.ended}, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
            raise Closed(*self.ended.result()) if self.ended.done() else TimeoutError()
        finally:
            task.cancel()

    # --- receiving ---------------------------------------------------------------------------

    def quic_event_received(self, event):
        """Called by aioquic. Streams are read as they arrive, so no lane waits for another."""
        if isinstance(event, ConnectionTerminated):
            code = event.error_code - FIRST_WT_ERROR  # the capsule may be lost; this is the same code, mapped
            self._end(code - code // 0x1F if 0 <= code < 2**33 else None, event.reason_phrase)
        elif isinstance(event, StreamDataReceived) and event.stream_id == self.control:
            # The answer on a stream that we opened has no WebTransport header, so HTTP/3 must not parse it.
            self.control_buffer += event.data
            for body in split_frames(self.control_buffer):
                self._control_frame(self._decode(body, plain=not self.welcomed))
        else:
            for http_event in self.http.handle_event(event):
                self._http_event(http_event)

    def _http_event(self, event):
        if isinstance(event, HeadersReceived) and event.stream_id == self.session_id:
            if not self.status.done():
                self.status.set_result(int(dict(event.headers)[b":status"]))
        elif isinstance(event, DataReceived) and event.stream_id == self.session_id:
            self._capsule_data(event.data, event.stream_ended)
        elif isinstance(event, WebTransportStreamDataReceived):
            self._lane_data(self.lanes.setdefault(event.stream_id, Lane()), event.data)
        elif isinstance(event, DatagramReceived):
            self.datagrams.put_nowait(self._decode(event.data)["data"])

    def _capsule_data(self, data, stream_ended):
        self.capsules += data
        buffer = Buffer(data=bytes(self.capsules))
        with contextlib.suppress(BufferReadError):  # the last capsule is not complete yet
            while not buffer.eof():
                kind, value = buffer.pull_uint_var(), buffer.pull_bytes(buffer.pull_uint_var())
                del self.capsules[: len(self.capsules) - (buffer.capacity - buffer.tell())]
                if kind == CLOSE_CAPSULE:
                    self._end(struct.unpack_from(">I", value)[0], value[4:].decode())
        if stream_ended:
            self._end(0, "")  # the end of the session without a capsule means code 0

    def _control_frame(self, frame):
        self.welcomed |= frame["type"] == "welcome"
        if frame["type"] == "ping":
            self.send({"type": "pong", "t": frame["t"]})
        elif frame["type"] == "close":
            self.close_frame.set_result(frame)
        self.control_frames.put_nowait(frame)

    def _lane_data(self, lane, data):
        lane.buffer += data
        for body in split_frames(lane.buffer):
            frame = self._decode(body)
            if lane.name is None:
                lane.name = frame["lane"]  # the first frame; it has no seq
                continue
            lane.seq += 1
            lane.unacked_bytes += len(body)
            note = frame["data"] if frame["type"] == "notification" else {}
            if note and note["notification_id"] not in self.seen:
                self.seen[note["notification_id"]] = True
                if len(self.seen) > REMEMBERED_IDS:
                    self.seen.popitem(last=False)
                self.notifications.put_nowait((lane.name, lane.seq, note))
            due = lane.seq - lane.acked >= ACK_FRAMES or lane.unacked_bytes >= ACK_BYTES
            if note.get("require_ack") or due:
                self._ack(lane)
            elif lane.timer is None:
                lane.timer = self._loop.call_later(ACK_S, self._ack, lane)

    def _ack(self, lane):
        if lane.timer is not None:
            lane.timer.cancel()
        lane.timer, lane.acked, lane.unacked_bytes = None, lane.seq, 0
        if not self.ended.done():
            self.send({"type": "ack", "lane": lane.name, "seq": lane.seq})

    def _decode(self, body, plain=False):
        return json.loads(body) if plain or self.encoding == "json" else msgpack.unpackb(body)

    def _end(self, code, reason):
        if not self.ended.done():
            self.ended.set_result((code, reason))


@contextlib.asynccontextmanager
async def connect(push_url, certificate_hash):
    """A WebTransport session whose certificate has this base64 SHA-256 hash; hello is not sent yet."""
    url = urlsplit(push_url)
    # No certificate authority is asked; TLS still proves that the server has the key of its certificate.
    configuration = QuicConfiguration(
        is_client=True, alpn_protocols=H3_ALPN, verify_mode=ssl.CERT_NONE, max_datagram_frame_size=65536)
    async with contextlib.AsyncExitStack() as stack:
        async with asyncio.timeout(TIMEOUT_S):
            session = await stack.enter_async_context(
                quic_connect(url.hostname, url.port, configuration=configuration, create_protocol=Session))
        certificate = session._quic.tls._peer_certificate.public_bytes(Encoding.DER)
        if hashlib.sha256(certificate).digest() != base64.b64decode(certificate_hash):
            raise ssl.SSLCertVerificationError("the certificate is not the one that was announced")
        await session.open(url.netloc, url.path)
        yield session
