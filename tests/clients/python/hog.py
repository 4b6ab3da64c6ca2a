"""One address takes all that it can, others come meanwhile: over HTTP/2 and HTTP/3, by h2 and aioquic.

    python -m hog HOST PORT [CONNECTIONS] [STREAMS]

127.0.0.2 opens so many connections with so many requests each to /never, whose answer never comes. While they are
open 127.0.0.3 asks for /fast, each time on a new connection, and must get it. Says `ok` and the figures, or ends
with an error.
"""

import asyncio
import collections
import ssl
import sys
import time

from aioquic.asyncio.protocol import QuicConnectionProtocol
from aioquic.h3.connection import H3_ALPN, H3Connection
from aioquic.h3.events import HeadersReceived
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection

import h2.config
import h2.connection
import h2.events

HOG, OTHER = "127.0.0.2", "127.0.0.3"
DEADLINE = 10
ASKED = 100


def head(host, port, path):
    return [(":method", "GET"), (":scheme", "https"), (":authority", f"{host}:{port}"), (":path", path)]


class Http2(asyncio.Protocol):
    def __init__(self):
        self.h2 = h2.connection.H2Connection(config=h2.config.H2Configuration(header_encoding="utf-8"))
        self.answers = {}

    def connection_made(self, transport):
        self.transport = transport
        self.h2.initiate_connection()
        self.flush()

    def flush(self):
        self.transport.write(self.h2.data_to_send())

    def data_received(self, data):
        for event in self.h2.receive_data(data):
            if isinstance(event, h2.events.ResponseReceived):
                self.answers[event.stream_id].set_result(dict(event.headers)[":status"])
        self.flush()

    def ask(self, headers):
        stream = self.h2.get_next_available_stream_id()
        self.answers[stream] = asyncio.get_running_loop().create_future()
        self.h2.send_headers(stream, headers, end_stream=True)
        self.flush()
        return self.answers[stream]

    @staticmethod
    async def dial(source, host, port):
        tls = ssl.create_default_context()
        tls.check_hostname, tls.verify_mode = False, ssl.CERT_NONE
        tls.set_alpn_protocols(["h2"])
        loop = asyncio.get_running_loop()
        opened = loop.create_connection(Http2, host, port, ssl=tls, local_addr=(source, 0))
        _, protocol = await asyncio.wait_for(opened, DEADLINE)
        return protocol

    def leave(self):
        self.transport.abort()


class Http3(QuicConnectionProtocol):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.h3, self.answers = H3Connection(self._quic), {}

    def quic_event_received(self, event):
        for event in self.h3.handle_event(event):
            if isinstance(event, HeadersReceived) and not self.answers[event.stream_id].done():
                self.answers[event.stream_id].set_result(dict(event.headers)[b":status"].decode())

    def ask(self, headers):
        stream = self._quic.get_next_available_stream_id()
        self.answers[stream] = asyncio.get_running_loop().create_future()
        self.h3.send_headers(stream, [(n.encode(), v.encode()) for n, v in headers], end_stream=True)
        self.transmit()
        return self.answers[stream]

    @staticmethod
    async def dial(source, host, port):
        configuration = QuicConfiguration(
            is_client=True, alpn_protocols=H3_ALPN, verify_mode=ssl.CERT_NONE, server_name="localhost"
        )
        opened = asyncio.get_running_loop().create_datagram_endpoint(
            lambda: Http3(QuicConnection(configuration=configuration)), local_addr=(source, 0)
        )
        _, protocol = await opened
        protocol.connect((host, port))
        await asyncio.wait_for(protocol.wait_connected(), DEADLINE)
        return protocol

    def leave(self):
        self.close()
        self.transmit()


async def hog(kind, host, port, connections, streams):
    """All that it opened, and what was answered: only refusals are."""
    opened = [await kind.dial(HOG, host, port) for _ in range(connections)]
    answers = [c.ask(head(host, port, "/never")) for c in opened for _ in range(streams)]
    # Refusals come at once.
    await asyncio.sleep(3)
    told = collections.Counter(answer.result() for answer in answers if answer.done())
    assert set(told) <= {"429", "503"}, told
    return opened, len(answers), told


async def other(kind, host, port):
    longest = 0.0
    for _ in range(ASKED):
        start = time.monotonic()
        connection = await kind.dial(OTHER, host, port)
        status = await asyncio.wait_for(connection.ask(head(host, port, "/fast")), DEADLINE)
        assert status == "200", status
        connection.leave()
        longest = max(longest, time.monotonic() - start)
    return longest


async def main(host, port, connections=20, streams=100):
    for name, kind in {"h2": Http2, "h3": Http3}.items():
        opened, asked, told = await hog(kind, host, port, connections, streams)
        for served, by in {"h2": Http2, "h3": Http3}.items():
            longest = await other(by, host, port)
            print(
                f"ok: {asked} requests over {name}: {asked - told.total()} held, refused {dict(told)}; "
                f"{ASKED} of another address over {served}: all served, {longest * 1000:.0f} ms at most"
            )
        for connection in opened:
            connection.leave()
        await asyncio.sleep(1)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), *map(int, sys.argv[3:])))
