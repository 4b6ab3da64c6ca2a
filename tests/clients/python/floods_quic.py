"""What a client of QUIC and HTTP/3 may not do, by aioquic and by packets that no library would send.

    python -m floods_quic HOST PORT ATTACK...

Says how each went and then `ok`, or ends with an error. Sources of datagrams are addresses of 127.0.0.0/8.
"""

import asyncio
import random
import select
import socket
import ssl
import sys
import time
from contextlib import asynccontextmanager

from aioquic.asyncio.client import connect
from aioquic.buffer import Buffer
from aioquic.h3.connection import H3_ALPN, FrameType, encode_frame
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection
from aioquic.quic.events import ConnectionTerminated, StopSendingReceived, StreamReset
from aioquic.quic.packet import pull_quic_header

from transports import DEADLINE, Http3, Nat

UNKNOWN = 0x1A2A3A4B
EXCESSIVE_LOAD, ENCODER_STREAM_ERROR, STREAM_LIMIT_ERROR = 0x107, 0x201, 0x4
SMALLEST = 1200


def configuration(**more):
    return QuicConfiguration(is_client=True, alpn_protocols=H3_ALPN, verify_mode=ssl.CERT_NONE, **more)


def initial(address):
    """A whole first packet, with an id of its own."""
    client = QuicConnection(configuration=configuration(server_name="localhost"))
    client.connect(address, now=0.0)
    return client.datagrams_to_send(now=0.0)[0][0]


def long_header(version, size, source=b"12345678"):
    """Begins as a packet of that version does."""
    head = b"\xc0" + version.to_bytes(4) + b"\x08abcdefgh" + bytes([len(source)]) + source
    return head + bytes(size - len(head))


class Sources:
    """Sockets at addresses of their own, and what went out and came in at each."""

    def __init__(self, count, server):
        self.server, self.sockets = server, []
        for n in range(count):
            self.sockets.append(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            self.sockets[-1].bind((f"127.{10 + n // 62500}.{n // 250 % 250}.{n % 250 + 1}", 0))
            self.sockets[-1].setblocking(False)
        self.sent, self.got = [0] * count, [[] for _ in range(count)]

    def send(self, n, data):
        self.sent[n] += len(data)
        self.sockets[n].sendto(data, self.server)

    def receive(self):
        for n, each in enumerate(self.sockets):
            while True:
                try:
                    self.got[n].append(each.recv(65536))
                except BlockingIOError:
                    break

    def wait(self, n, what):
        """For the next datagram to one of them."""
        before, deadline = len(self.got[n]), time.monotonic() + DEADLINE
        while len(self.got[n]) == before:
            assert time.monotonic() < deadline, f"not in time: {what}"
            select.select([self.sockets[n]], [], [], 0.1)
            self.receive()
        return self.got[n][before:]

    def factor(self):
        """Bytes out for each byte in, where that is most."""
        return max(sum(map(len, got)) / sent for got, sent in zip(self.got, self.sent) if sent)


def version_negotiation(data):
    return data[0] & 0x80 and data[1:5] == bytes(4)


def fence(sources, n):
    """Everything sent before has been looked at when this is answered: by a version negotiation, always."""
    sources.send(n, long_header(UNKNOWN, SMALLEST, b"fence"))
    while not any(version_negotiation(got) and b"fence" in got for got in sources.wait(n, "an answer")):
        pass


async def initials(host, port, count=400, at_once=20):
    """First packets from ever other addresses. Meanwhile somebody comes in who can answer a Retry."""
    sources, packets = Sources(count, (host, port)), [initial((host, port)) for _ in range(count)]
    for start in range(0, count, at_once):
        these = range(start, start + at_once)
        for n in these:
            sources.send(n, packets[n])
        for n in these:
            if not sources.got[n]:
                sources.wait(n, "an answer to a first packet")
    async with connect(host, port, configuration=configuration(), create_protocol=Http3) as protocol:
        assert await status(protocol, host, port) == b"200"
    sources.receive()
    types = [pull_quic_header(Buffer(data=got[0])).packet_type.name for got in sources.got]
    retries = types.count("RETRY")
    assert retries > count // 2, f"{retries} Retries"
    # quinn lets a datagram begin that goes over it (quinn-rs/quinn#1082).
    assert all(sum(map(len, got)) < 3 * sent + SMALLEST for got, sent in zip(sources.got, sources.sent))
    answers = [sum(map(len, got)) / len(packet) for got, packet in zip(sources.got, packets)]
    return f"{count} first packets, {retries} Retries; bytes out for each in: {max(answers):.2f} at most"


async def garbage(host, port):
    """Of each length, with each form of a header."""
    sources, noise, sent = Sources(1, (host, port)), random.Random(7), 0
    for size in range(1, 1501):
        for bits in (0x00, 0x40, 0x80, 0xC0):
            data = bytes([bits | noise.randrange(0x40)]) + noise.randbytes(size - 1)
            # The version that there is, so that it goes further than to its version.
            if bits == 0xC0 and size > 6:
                data = data[:1] + b"\0\0\0\1" + data[5:]
            sources.send(0, data)
            sent += 1
        if size % 50 == 0:
            fence(sources, 0)
    assert sources.factor() <= 1, f"{sources.factor()} bytes for each"
    return f"{sent} datagrams, {sources.factor():.2f} bytes out for each in"


async def versions(host, port):
    """Unknown versions are told which there are, if they come in a datagram as large as a first one."""
    sources = Sources(1, (host, port))
    for size in (20, 100, 600, SMALLEST - 1):
        sources.send(0, long_header(UNKNOWN, size, b"small"))
    fence(sources, 0)
    assert not any(b"small" in got for got in sources.got[0]), "a small datagram was answered"
    answer = next(got for got in sources.got[0] if version_negotiation(got))
    rest = answer[5:]
    rest = rest[1 + rest[0] :]
    told = rest[1 + rest[0] :]
    assert b"\0\0\0\1" in [told[at : at + 4] for at in range(0, len(told), 4)], told
    sources = Sources(200, (host, port))
    for n in range(200):
        sources.send(n, long_header(UNKNOWN, SMALLEST))
        sources.wait(n, "an answer")
    assert sources.factor() < 1
    return "answered from 1200 bytes on"


class Mangler(Nat):
    """Sends each datagram of the client three times: cut, with a bit turned, and as it is."""

    noise, mangled = random.Random(7), 0

    def datagram_received(self, data, client):
        self.client = client
        bit, cut = self.noise.randrange(8 * len(data)), self.noise.randrange(1, len(data))
        turned = bytearray(data)
        turned[bit // 8] ^= 1 << bit % 8
        self.mangled += 2
        for each in (data[:cut], bytes(turned), data):
            self.out.sendto(each)


async def mangled(host, port, times=100):
    loop = asyncio.get_running_loop()
    inside, nat = await loop.create_datagram_endpoint(lambda: Mangler((host, port)), local_addr=("127.0.0.1", 0))
    await nat.move()
    at = inside.get_extra_info("sockname")[1]
    async with connect("127.0.0.1", at, configuration=configuration(), create_protocol=Http3) as protocol:
        client = await protocol.open(host, port)
        await client.join("mangled")
        for number in range(times):
            await client.publish("mangled", {"number": number})
            assert await asyncio.wait_for(client.published.get(), DEADLINE) == {"number": number}
        assert protocol.gone is None
    return f"{times} messages in spite of {nat.mangled} broken datagrams"


class Rude(Http3):
    """Notes how the connection and its streams end."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.end, self.ended, self.refused = None, asyncio.Event(), {}
        self.answers = Answers(self.answers)

    def quic_event_received(self, event):
        if isinstance(event, ConnectionTerminated):
            self.end = event.error_code
            self.ended.set()
        elif isinstance(event, (StreamReset, StopSendingReceived)):
            self.refused[event.stream_id] = event.error_code
        else:
            super().quic_event_received(event)

    async def ends(self, code):
        await asyncio.wait_for(self.ended.wait(), DEADLINE)
        assert self.end == code, f"ended with {self.end:#x}"
        return f"ended with {self.end:#x}"

    async def until(self, happened, what):
        async with asyncio.timeout(DEADLINE):
            while not happened():
                assert not self.ended.is_set(), f"ended with {self.end:#x} before: {what}"
                await asyncio.sleep(0.01)


class Answers(dict):
    def __missing__(self, stream):
        return self.setdefault(stream, asyncio.get_running_loop().create_future())


@asynccontextmanager
async def rude(host, port):
    async with connect(host, port, configuration=configuration(), create_protocol=Rude) as protocol:
        # Its settings have come: it has looked at us.
        assert await status(protocol, host, port) == b"200"
        yield protocol


def fields(host, port, method=b"GET", **more):
    head = [(b":method", method), (b":scheme", b"https"), (b":path", b"/page")]
    head.append((b":authority", f"{host}:{port}".encode()))
    return head + [(name.encode(), value) for name, value in more.items()]


def ask(protocol, headers, end=True, send=True):
    stream = protocol._quic.get_next_available_stream_id()
    protocol.answers.setdefault(stream, asyncio.get_running_loop().create_future())
    protocol.clients[stream] = Nobody()
    protocol.h3.send_headers(stream, headers, end_stream=end)
    if send:
        protocol.transmit()
    return stream


async def answered(protocol, stream):
    answer = await asyncio.wait_for(protocol.answers[stream], DEADLINE)
    return answer[b":status"]


async def status(protocol, host, port):
    return await answered(protocol, ask(protocol, fields(host, port)))


class Nobody:
    def hear(self, _):
        pass


async def qpack_bomb(host, port):
    """Fields of the static table, a byte each, far over the limit: refused, and the connection goes on."""
    async with rude(host, port) as protocol:
        quic = protocol._quic
        section = b"\0\0\xd1\xd7\xc1\x50\x01a" + b"\xff\x0c" * 60_000
        stream = quic.get_next_available_stream_id()
        protocol.clients[stream] = Nobody()
        answer = protocol.answers[stream]
        quic.send_stream_data(stream, encode_frame(FrameType.HEADERS, section), True)
        protocol.transmit()
        await protocol.until(lambda: answer.done() or stream in protocol.refused, "431")
        told = answer.result()[b":status"] if answer.done() else protocol.refused[stream]
        assert await status(protocol, host, port) == b"200"
        return f"{told}, and then 200"


async def qpack_table(host, port):
    """Entries for a table that was not offered."""
    async with rude(host, port) as protocol:
        quic = protocol._quic
        # Insert with a name of the static table.
        insert = (b"\xc0\x7f" + b"\x81\x1f" + b"x" * 4096) * 10
        quic.send_stream_data(protocol.h3._local_encoder_stream_id, insert)
        protocol.transmit()
        return await protocol.ends(ENCODER_STREAM_ERROR)


async def too_many_streams(host, port):
    """More than were allowed, at once."""
    async with rude(host, port) as protocol:
        protocol._quic._remote_max_streams_bidi = 1 << 20
        for _ in range(150):
            ask(protocol, fields(host, port, b"POST"), end=False, send=False)
        protocol.transmit()
        return await protocol.ends(STREAM_LIMIT_ERROR)


async def resets(host, port, rounds=20):
    """Requests that are taken back when they have begun, as many at once as there may be."""
    async with rude(host, port) as protocol:
        quic, count = protocol._quic, 0
        for _ in range(rounds):
            begun = []
            while (stream := quic.get_next_available_stream_id()) // 4 < quic._remote_max_streams_bidi:
                protocol.clients[stream] = Nobody()
                quic.send_stream_data(stream, b"\x01\x40")
                begun.append(stream)
            protocol.transmit()
            for stream in begun:
                quic.reset_stream(stream, 0x10C)
            protocol.transmit()
            count += len(begun)
            room = lambda: quic.get_next_available_stream_id() // 4 < quic._remote_max_streams_bidi
            async with asyncio.timeout(DEADLINE):
                while not room() and not protocol.ended.is_set():
                    await asyncio.sleep(0.001)
            if protocol.ended.is_set():
                break
        return await protocol.ends(EXCESSIVE_LOAD) + f", after {count} requests"


async def empty_frames(host, port):
    """DATA without a byte, on a WebSocket."""
    async with rude(host, port) as protocol:
        await protocol.open(host, port)
        stream = max(protocol.clients)
        protocol._quic.send_stream_data(stream, encode_frame(FrameType.DATA, b"") * 5000)
        protocol.transmit()
        return await protocol.ends(EXCESSIVE_LOAD)


async def streams_one_way(host, port, count=1000):
    """Each of a kind that nobody knows, ended at once: refused, and there is room for the next."""
    async with rude(host, port) as protocol:
        quic = protocol._quic
        for _ in range(count):
            async with asyncio.timeout(DEADLINE):
                while quic.get_next_available_stream_id(True) // 4 >= quic._remote_max_streams_uni:
                    await asyncio.sleep(0)
            quic.send_stream_data(quic.get_next_available_stream_id(True), b"\x21", True)
            protocol.transmit()
        assert await status(protocol, host, port) == b"200"
        return f"{count} streams, and then 200"


async def early(host, port):
    """With a ticket of another connection: GET in early data, CONNECT and POST there are 425."""
    tickets = []
    async with connect(
        host, port, configuration=configuration(), create_protocol=Http3, session_ticket_handler=tickets.append
    ) as protocol:
        assert await status(protocol, host, port) == b"200"
        async with asyncio.timeout(DEADLINE):
            while not tickets:
                await asyncio.sleep(0.01)
    connects = fields(host, port, b"CONNECT", **{":protocol": b"websocket", "sec-websocket-version": b"13"})
    again = configuration(session_ticket=tickets[0])
    async with connect(host, port, configuration=again, create_protocol=Http3, wait_connected=False) as protocol:
        streams = [ask(protocol, head) for head in (fields(host, port), fields(host, port, b"POST"), connects)]
        told = [(await answered(protocol, stream)).decode() for stream in streams]
        assert protocol._quic.tls.early_data_accepted
        assert told == ["200", "425", "425"], told
        # Once the handshake is over the same is no matter.
        assert await status(protocol, host, port) == b"200"
        client = await protocol.open(host, port)
        await client.join("early")
    return " ".join(told)


ATTACKS = {
    attack.__name__: attack
    for attack in (
        initials, garbage, versions, mangled, qpack_bomb, qpack_table, too_many_streams, resets, empty_frames,
        streams_one_way, early,
    )
}  # fmt: skip


async def main(host, port, *names):
    for name in names:
        start = time.monotonic()
        print(f"{name}:", await ATTACKS[name](host, int(port)), f"({time.monotonic() - start:.1f} s)", flush=True)
    print("ok: all", len(names))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
