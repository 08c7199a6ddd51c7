#!/usr/bin/env python3
"""Writes frames.json and bad_frames.json, the byte vectors of the push protocol (docs/protocol.md).

It is an implementation of the two encodings of its own, with the standard library only, so that
the Rust and TypeScript codecs are compared with something they share no code with.

    python3 generate.py           write both files beside this script
    python3 generate.py --check   write nothing; exit 1 if a file differs from what would be written
"""

import json
import pathlib
import struct
import sys

HERE = pathlib.Path(__file__).parent
LANES = ("high", "inbox", "normal", "low")
INT_MAX = 2**53 - 1  # the largest integer that every client language holds exactly


# --- the two encodings ---------------------------------------------------------------------


def to_json(value) -> bytes:
    """Compact JSON, no spaces, non-ASCII characters as UTF-8."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode("utf-8")


def to_msgpack(value) -> bytes:
    """The part of msgpack that the protocol allows, integers and headers in their smallest form."""
    if value is None:
        return b"\xc0"
    if value is False or value is True:
        return b"\xc3" if value else b"\xc2"
    if isinstance(value, int):
        return _int(value)
    if isinstance(value, float):
        return b"\xcb" + struct.pack(">d", value)
    if isinstance(value, str):
        text = value.encode("utf-8")
        return _head(len(text), 0xA0, 32, 0xD9, 0xDA, 0xDB) + text
    if isinstance(value, list):
        return _head(len(value), 0x90, 16, None, 0xDC, 0xDD) + b"".join(map(to_msgpack, value))
    if isinstance(value, dict):
        parts = [to_msgpack(key) + to_msgpack(item) for key, item in value.items()]
        return _head(len(value), 0x80, 16, None, 0xDE, 0xDF) + b"".join(parts)
    raise TypeError(type(value))


def _int(value: int) -> bytes:
    if 0 <= value < 0x80:
        return bytes([value])
    if -32 <= value < 0:
        return struct.pack(">b", value)
    unsigned = ((0xCC, ">B", 8), (0xCD, ">H", 16), (0xCE, ">I", 32), (0xCF, ">Q", 64))
    signed = ((0xD0, ">b", 8), (0xD1, ">h", 16), (0xD2, ">i", 32), (0xD3, ">q", 64))
    for code, form, bits in unsigned if value >= 0 else signed:
        if (value < 1 << bits) if value >= 0 else (value >= -(1 << (bits - 1))):
            return bytes([code]) + struct.pack(form, value)
    raise ValueError(value)


def _head(length: int, fix: int, fix_end: int, code8, code16: int, code32: int) -> bytes:
    if length < fix_end:
        return bytes([fix | length])
    if length < 1 << 8 and code8 is not None:
        return bytes([code8, length])
    if length < 1 << 16:
        return bytes([code16]) + struct.pack(">H", length)
    return bytes([code32]) + struct.pack(">I", length)


ENCODERS = {"json": to_json, "msgpack": to_msgpack}


def framed(body: bytes) -> bytes:
    """The 4-byte big-endian length, then the body."""
    return struct.pack(">I", len(body)) + body


# --- good frames ---------------------------------------------------------------------------


def notification(payload, *, inbox=None, **changes):
    """A notification in the order of the tables. A change to None leaves the field out."""
    data = {
        "notification_id": "0b7c7f5e-3c1d-4c7e-9a52-2f1f0c1e8d11",
        "notification_type": "friend.request",
        "timestamp": 1700000000,
        "published_at_ms": 1700000000123,
        "from_user_id": "user-456",
        "priority": "high",
        "require_ack": True,
        "payload": payload,
    }
    data.update(changes)
    frame = {"type": "notification", "data": {k: v for k, v in data.items() if v is not None}}
    if inbox is not None:
        frame["inbox"] = inbox
    return frame


def payload_case(payload):
    """The smallest notification, so that the vector is about the payload."""
    changes = {"notification_type": "message.new", "priority": "normal", "from_user_id": None, "require_ack": None}
    return notification(payload, **changes)


POSITIVE = [0, 127, 128, 255, 256, 65535, 65536, 2**32 - 1, 2**32, INT_MAX]
NEGATIVE = [-1, -32, -33, -128, -129, -32768, -32769, -(2**31), -(2**31) - 1, -INT_MAX]


def hellos():
    base = {"type": "hello", "version": 1, "token": "aaa.bbb.ccc", "device_id": "device-1", "platform": "web"}
    yield "hello_shortest", base
    yield "hello_encoding_json", {**base, "encoding": "json"}
    yield "hello_encoding_msgpack", {**base, "encoding": "msgpack"}
    yield "hello_datagrams_true", {**base, "datagrams": True}
    yield "hello_datagrams_false", {**base, "datagrams": False}
    yield "hello_resume", {**base, "resume": {"inbox": "1-4711-1700000000"}}
    yield "hello_all_fields", {
        **base, "platform": "ios", "encoding": "msgpack", "datagrams": True, "resume": {"inbox": "1-4711-1700000000"}}
    yield "hello_device_id_one_character", {**base, "device_id": "_"}
    yield "hello_device_id_128_characters", {**base, "device_id": "Aa0_-" * 25 + "xyz"}
    yield "hello_platform_unknown", {**base, "platform": "smart-fridge"}


def client_frames():
    for lane in LANES:
        yield f"ack_{lane}", {"type": "ack", "lane": lane, "seq": 1}
    for value in POSITIVE[1:]:
        yield f"ack_seq_{value}", {"type": "ack", "lane": "normal", "seq": value}
    for value in POSITIVE:
        yield f"pong_t_{value}", {"type": "pong", "t": value}
    yield "pong", {"type": "pong", "t": 1700000025000}
    yield "token", {"type": "token", "token": "ddd.eee.fff"}
    yield "token_long", {"type": "token", "token": "h" * 100 + "." + "p" * 300 + "." + "s" * 86}
    yield "bye", {"type": "bye"}


def welcomes():
    base = {
        "type": "welcome", "session_id": "s-01", "user_id": "alice", "node": "node-a", "heartbeat_ms": 25000,
        "ack_timeout_ms": 10000, "window": 256, "max_frame": 1048576, "server_time": 1700000000000,
        "inbox": "1-4711-1700000000", "recovered": True}
    yield "welcome", base
    yield "welcome_not_recovered", {**base, "recovered": False}


def closes():
    names = [
        (0, "normal"), (3000, "draining"), (3001, "rotate"), (3002, "slow_consumer"), (3003, "heartbeat_timeout"),
        (3004, "overloaded"), (3005, "token_expired"), (3006, "hello_timeout"), (3007, "internal_error"),
        (3500, "protocol_error"), (3501, "unauthorized"), (3502, "banned"), (3503, "logged_out"),
        (3504, "too_many_sessions"), (3505, "unsupported_version"), (3507, "origin_denied"), (3508, "replaced")]
    for code, name in names:
        reconnect = 3000 <= code < 3500
        frame = {
            "type": "close", "code": code, "name": name, "reason": f"example of {name}", "reconnect": reconnect,
            "retry_after_ms": 0}
        yield f"close_{code}_{name}", frame
        if reconnect:
            yield f"close_{code}_{name}_retry_after", {**frame, "retry_after_ms": 1500}
    yield "close_reason_empty", {
        "type": "close", "code": 3007, "name": "internal_error", "reason": "", "reconnect": True, "retry_after_ms": 0}


def server_frames():
    yield "ping", {"type": "ping", "t": 1700000025000, "inbox": "1-4712-1700000024"}
    for reason in ("draining", "rotate"):
        yield f"goaway_{reason}", {
            "type": "goaway", "reason": reason, "reconnect_after_ms": 734, "close_after_ms": 30000}
    yield "goaway_at_once", {"type": "goaway", "reason": "rotate", "reconnect_after_ms": 0, "close_after_ms": 0}
    for lane in LANES:
        yield f"lane_{lane}", {"type": "lane", "lane": lane}
    yield from notifications()
    yield from payloads()


def notifications():
    friend = {"created_at": 1700000000, "from_nickname": "张三", "message": "你好，我是张三", "request_id": "req-123"}
    yield "notification_all_fields", notification(friend)
    yield "notification_no_from_user_id", notification(friend, from_user_id=None)
    yield "notification_no_require_ack", notification(friend, require_ack=None)
    yield "notification_shortest", payload_case({})
    yield "notification_low", notification(
        {"file_id": "file-123", "progress": 75}, notification_type="file.processing", priority="low",
        from_user_id=None, require_ack=None)
    yield "notification_id_not_a_uuid", notification({}, notification_id="NOTIFICATIONS-98765")
    yield "notification_inbox", notification(friend, inbox="1-4713-1700000100")
    shortest = {"notification_type": "group.muted", "from_user_id": None, "require_ack": None}
    yield "notification_inbox_shortest", notification({}, inbox="1-1-1700000000", **shortest)


def payloads():
    for value in POSITIVE + NEGATIVE:
        yield f"payload_integer_{value}", payload_case({"n": value})
    for value in (1.5, 0.1, -0.25):
        yield f"payload_float_{value}", payload_case({"n": value})
    yield "payload_null", payload_case({"x": None})
    yield "payload_booleans", payload_case({"no": False, "yes": True})
    yield "payload_empty_map", payload_case({"m": {}})
    yield "payload_empty_array", payload_case({"a": []})
    yield "payload_empty_string", payload_case({"s": ""})
    for count in (15, 16):
        yield f"payload_array_of_{count}", payload_case({"a": list(range(count))})
        yield f"payload_map_of_{count}", payload_case({f"k{i:02}": i for i in range(count)})
    for length in (31, 32, 255, 256, 65536):
        yield f"payload_string_of_{length}", payload_case({"s": "a" * length})
    yield "payload_key_of_32", payload_case({"k" * 32: 1})
    yield "payload_chinese", payload_case({"name": "工作群", "text": "视频转码中…"})
    # 11 characters are 33 bytes: a length counts bytes, not characters.
    yield "payload_chinese_33_bytes", payload_case({"s": "一二三四五六七八九十百"})
    yield "payload_beyond_the_basic_plane", payload_case({"s": "👩‍👧 𝄞"})
    yield "payload_escapes", payload_case({"s": "\"quoted\" \\ / \b\f\n\r\t\u0000\u0001\u001f\u007f\u2028"})
    yield "payload_nested", payload_case({
        "list": [1, "two", None, True, 2.5, [], {}, [[-1]], {"deep": {"deeper": [{"deepest": "底"}]}}],
        "map": {"inner": {"empty": {}, "number": 65536}}})


def datagrams():
    typing = {"conversation_id": "conv-456", "from_user_id": "user-789", "timestamp": 1700000000, "typing": True}
    for name, value in (("datagram_typing", True), ("datagram_typing_stopped", False)):
        yield name, notification(
            {**typing, "typing": value}, notification_type="message.typing", from_user_id="user-789",
            priority="low", require_ack=None)


def frames():
    cases = []

    def add(sender, encodings, pairs, datagram=False):
        for name, frame in pairs:
            for encoding in encodings:
                body = ENCODERS[encoding](frame)
                case = {"name": f"{name}_{encoding}", "from": sender, "encoding": encoding, "frame": frame}
                if datagram:
                    case["datagram"] = True
                case["hex"] = (body if datagram else framed(body)).hex()
                cases.append(case)

    add("client", ["json"], hellos())
    add("client", ["json", "msgpack"], client_frames())
    add("server", ["json"], welcomes())
    add("server", ["json", "msgpack"], closes())
    add("server", ["json", "msgpack"], server_frames())
    add("server", ["json", "msgpack"], datagrams(), datagram=True)
    return cases


# --- bad frames ----------------------------------------------------------------------------


def bad_lengths():
    for encoding in ENCODERS:
        yield f"length_zero_{encoding}", encoding, bytes(4), "a body has 1 byte or more"
        yield f"length_over_64_kib_{encoding}", encoding, b"\x00\x01\x00\x01", "65537 bytes: a client frame has at most 65536"
        yield f"length_4_gib_{encoding}", encoding, b"\xff" * 4, "a client frame has at most 65536 bytes"


def bad_json():
    texts = [
        ("not_json", b"hello there", "not JSON"),
        ("empty_text", b" ", "white space only"),
        ("cut_short", b'{"type":"bye"', "the value ends before it is complete"),
        ("trailing_garbage", b'{"type":"bye"}x', "bytes after the value"),
        ("two_values", b'{"type":"bye"}{"type":"bye"}', "a frame holds one value"),
        ("byte_order_mark", b'\xef\xbb\xbf{"type":"bye"}', "JSON text has no byte order mark"),
        ("not_a_number", b'{"type":"pong","t":NaN}', "NaN is not JSON"),
        ("array", b'["type","bye"]', "not an object"),
        ("bye_as_array", b'["bye"]', "a frame is an object with names, not a list of values"),
        ("ack_as_array", b'["ack","high",1]', "a frame is an object with names, not a list of values"),
        ("string", b'"bye"', "not an object"),
        ("number", b"1", "not an object"),
        ("null", b"null", "not an object"),
        ("msgpack_instead", to_msgpack({"type": "bye"}), "msgpack where JSON was agreed"),
        ("invalid_utf8", b'{"type":"bye","x":"\xff"}', "0xff is not UTF-8"),
        ("utf8_overlong", b'{"type":"bye","x":"\xc0\xaf"}', "an overlong form is not UTF-8"),
        ("utf8_surrogate", b'{"type":"bye","x":"\xed\xa0\x80"}', "a surrogate is not UTF-8"),
        ("utf8_cut_short", b'{"type":"bye","x":"\xe4\xbd"}', "a character ends before it is complete"),
        ("seq_over_64_bits", b'{"type":"ack","lane":"high","seq":18446744073709551616}', "no such integer"),
    ]
    for name, body, why in texts:
        yield f"{name}_json", "json", framed(body), why


def bad_fields():
    ack = {"type": "ack", "lane": "high", "seq": 1}
    cases = [
        ("empty_map", {}, "no type"),
        ("no_type", {"lane": "high", "seq": 1}, "no type"),
        ("type_number", {"type": 1}, "type is a string"),
        ("type_null", {"type": None}, "type is a string"),
        ("type_unknown", {"type": "subscribe"}, "no client frame has this type"),
        ("type_empty", {"type": ""}, "no client frame has this type"),
        ("type_upper_case", {"type": "Bye"}, "types are compared exactly"),
        ("type_of_the_server", {"type": "ping", "t": 1, "inbox": "1-1-1"}, "a client does not send this type"),
        ("ack_seq_missing", {"type": "ack", "lane": "high"}, "seq is required"),
        ("ack_seq_negative", {**ack, "seq": -1}, "seq is not negative"),
        ("ack_seq_string", {**ack, "seq": "1"}, "seq is an integer"),
        ("ack_seq_fraction", {**ack, "seq": 1.5}, "seq is an integer"),
        ("ack_seq_null", {**ack, "seq": None}, "seq is an integer"),
        ("ack_seq_boolean", {**ack, "seq": True}, "seq is an integer"),
        ("ack_seq_array", {**ack, "seq": [1]}, "seq is an integer"),
        ("ack_lane_missing", {"type": "ack", "seq": 1}, "lane is required"),
        ("ack_lane_unknown", {**ack, "lane": "urgent"}, "no such lane"),
        ("ack_lane_number", {**ack, "lane": 0}, "lane is a string"),
        ("pong_t_missing", {"type": "pong"}, "t is required"),
        ("pong_t_string", {"type": "pong", "t": "1700000000000"}, "t is an integer"),
        ("pong_t_fraction", {"type": "pong", "t": 0.5}, "t is an integer"),
        ("pong_t_negative", {"type": "pong", "t": -1}, "t is not negative"),
        ("token_missing", {"type": "token"}, "token is required"),
        ("token_number", {"type": "token", "token": 1}, "token is a string"),
    ]
    for name, frame, why in cases:
        for encoding, encode in ENCODERS.items():
            yield f"{name}_{encoding}", encoding, framed(encode(frame)), why


def bad_hellos():
    base = {"version": 1, "token": "aaa.bbb.ccc", "device_id": "device-1", "platform": "web"}
    cases = [(f"{field}_missing", field, None, f"{field} is required") for field in base]
    cases += [
        ("version_string", "version", "1", "version is an integer"),
        ("version_fraction", "version", 1.5, "version is an integer"),
        ("token_number", "token", 1, "token is a string"),
        ("platform_number", "platform", 1, "platform is a string"),
        ("device_id_number", "device_id", 1, "device_id is a string"),
        ("device_id_empty", "device_id", "", "device_id has 1 to 128 characters"),
        ("device_id_129_characters", "device_id", "d" * 129, "device_id has 1 to 128 characters"),
        ("device_id_dot", "device_id", "a.b", "device_id has A-Z a-z 0-9 _ - only"),
        ("device_id_space", "device_id", "a b", "device_id has A-Z a-z 0-9 _ - only"),
        ("device_id_wildcard", "device_id", "*", "device_id has A-Z a-z 0-9 _ - only"),
        ("device_id_newline", "device_id", "device-1\n", "device_id has A-Z a-z 0-9 _ - only"),
        ("device_id_chinese", "device_id", "设备", "device_id has A-Z a-z 0-9 _ - only"),
        ("encoding_unknown", "encoding", "cbor", "encoding is json or msgpack"),
        ("encoding_number", "encoding", 1, "encoding is a string"),
        ("datagrams_string", "datagrams", "yes", "datagrams is a boolean"),
        ("datagrams_number", "datagrams", 1, "datagrams is a boolean"),
        ("resume_string", "resume", "1-4711-1700000000", "resume is an object"),
        ("resume_inbox_number", "resume", {"inbox": 4711}, "the cursor is a string"),
    ]
    for name, field, value, why in cases:
        frame = {"type": "hello", **base, field: value}
        frame = {key: item for key, item in frame.items() if item is not None}
        yield f"hello_{name}_json", "json", framed(to_json(frame)), why
    msgpack = to_msgpack({"type": "hello", **base, "encoding": "msgpack"})
    yield "hello_in_msgpack_json", "json", framed(msgpack), "hello is JSON whatever encoding it asks for"


def bad_msgpack():
    text = to_msgpack
    pong = b"\x82" + text("type") + text("pong") + text("t")
    bye = b"\x81" + text("type") + text("bye")
    bye_and_x = b"\x82" + text("type") + text("bye") + text("x")
    cases = [
        ("json_instead", to_json({"type": "bye"}), "JSON where msgpack was agreed"),
        ("array", text(["type", "bye"]), "not a map"),
        ("ack_as_array", text(["ack", "high", 1]), "a frame is a map with names, not a list of values"),
        ("string", text("bye"), "not a map"),
        ("nil", b"\xc0", "not a map"),
        ("integer", b"\x01", "not a map"),
        ("never_used", b"\xc1", "0xc1 is not msgpack"),
        ("never_used_in_field", bye_and_x + b"\xc1", "0xc1 is not msgpack"),
        ("bin_type", b"\x81" + text("type") + b"\xc4\x03bye", "bin is not allowed; text is str"),
        ("bin_token", b"\x82" + text("type") + text("token") + text("token") + b"\xc4\x05a.b.c", "bin is not allowed; text is str"),
        ("bin8_unknown_field", bye_and_x + b"\xc4\x01\x00", "bin is not allowed anywhere"),
        ("bin16_unknown_field", bye_and_x + b"\xc5\x00\x01\x00", "bin is not allowed anywhere"),
        ("bin32_unknown_field", bye_and_x + b"\xc6\x00\x00\x00\x01\x00", "bin is not allowed anywhere"),
        ("ext_t", pong + b"\xd6\xff\x65\x53\xf1\x00", "ext (a timestamp) is not allowed"),
        ("fixext1_unknown_field", bye_and_x + b"\xd4\x01\x00", "ext is not allowed anywhere"),
        ("ext8_unknown_field", bye_and_x + b"\xc7\x01\x01\x00", "ext is not allowed anywhere"),
        ("integer_key", b"\x82" + text("type") + text("bye") + b"\x01" + text("x"), "a key is a str"),
        ("nil_key", b"\x82" + text("type") + text("bye") + b"\xc0" + text("x"), "a key is a str"),
        ("bin_key", b"\x81\xc4\x04type" + text("bye"), "a key is a str"),
        ("integer_key_nested", bye_and_x + b"\x81\x01\x01", "a key is a str, in nested maps too"),
        ("invalid_utf8", bye_and_x + b"\xa1\xff", "str is UTF-8"),
        ("invalid_utf8_type", b"\x81" + text("type") + b"\xa3by\xff", "str is UTF-8"),
        ("trailing_garbage", bye + b"\x00", "bytes after the value"),
        ("two_values", bye + bye, "a frame holds one value"),
        ("cut_short", pong, "the map promises 2 entries, the second has no value"),
        ("cut_short_in_integer", pong + b"\xcf\x00\x00\x01", "the integer ends before it is complete"),
        ("cut_short_in_string", b"\x81" + text("type") + b"\xa3by", "the str ends before it is complete"),
        ("map_promises_more", b"\xdf\xff\xff\xff\xff" + text("type") + text("bye"), "the map promises 4294967295 entries"),
        ("array_promises_more", bye_and_x + b"\xdd\xff\xff\xff\xff", "the array promises 4294967295 items"),
        ("string_promises_more", bye_and_x + b"\xdb\xff\xff\xff\xffa", "the str promises 4294967295 bytes"),
    ]
    for name, body, why in cases:
        yield f"{name}_msgpack", "msgpack", framed(body), why


def bad_frames():
    groups = (bad_lengths(), bad_json(), bad_fields(), bad_hellos(), bad_msgpack())
    return [
        {"name": name, "encoding": encoding, "hex": stream.hex(), "why": why}
        for group in groups
        for name, encoding, stream, why in group
    ]


# --- files ---------------------------------------------------------------------------------


def render(cases) -> str:
    """One case a line, so that a difference shows which case changed."""
    names = [case["name"] for case in cases]
    assert len(names) == len(set(names)), "two cases have one name"
    lines = ",\n".join(json.dumps(case, ensure_ascii=False) for case in cases)
    return f"[\n{lines}\n]\n"


def main() -> int:
    stale = []
    for name, cases in (("frames.json", frames()), ("bad_frames.json", bad_frames())):
        path, text = HERE / name, render(cases)
        if "--check" not in sys.argv[1:]:
            path.write_text(text, encoding="utf-8")
            print(f"{name}: {len(cases)} cases")
        elif not path.exists() or path.read_text(encoding="utf-8") != text:
            stale.append(name)
    for name in stale:
        print(f"{name} differs from what generate.py makes", file=sys.stderr)
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
