"""Who has nothing to do with an attack: WebSockets over HTTP/1.1, HTTP/2 and HTTP/3 that talk all through it.

    python -m probe HOST PORT

Says `ready` when all are connected, and goes on until its input ends; then says `ok`, how often each was
answered, and the longest wait of each. An answer that does not come within DEADLINE, or a connection that
ends, is an error.
"""

import asyncio
import os
import ssl
import sys
import time

from aioquic.asyncio.client import connect
from aioquic.h3.connection import H3_ALPN
from aioquic.quic.configuration import QuicConfiguration

from transports import PATH, Client, Http2, Http3

DEADLINE = 10
PAUSE = 0.02


def tls(protocol):
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols([protocol])
    return context


class Talk:
    """One client's: asks, hears what it published itself, and asks again."""

    def __init__(self, name, client):
        self.name, self.client, self.times, self.longest = name, client, 0, 0.0

    async def once(self):
        start = time.monotonic()
        async with asyncio.timeout(DEADLINE):
            await self.client.publish(f"probe-{self.name}", {"n": self.times})
            assert await self.client.published.get() == {"n": self.times}
        self.times += 1
        self.longest = max(self.longest, time.monotonic() - start)

    async def until(self, over):
        while not over.is_set():
            await self.once()
            await asyncio.sleep(PAUSE)
        await self.once()


async def http1(host, port):
    reader, writer = await asyncio.open_connection(host, port, ssl=tls("http/1.1"))
    head = (
        f"GET {PATH} HTTP/1.1\r\nHost: {host}:{port}\r\nOrigin: https://{host}:{port}\r\nConnection: Upgrade\r\n"
        "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
    )
    writer.write(head.encode())
    answer = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), DEADLINE)
    assert answer.startswith(b"HTTP/1.1 101 "), answer
    client = Client(writer.write)

    async def hear():
        while data := await reader.read(65536):
            client.hear(data)

    return client, asyncio.ensure_future(hear())


async def main(host, port):
    first, hearing = await http1(host, port)
    _, second = await asyncio.get_running_loop().create_connection(
        lambda: Http2(host, port), host, port, ssl=tls("h2")
    )
    configuration = QuicConfiguration(is_client=True, alpn_protocols=H3_ALPN, verify_mode=ssl.CERT_NONE)
    async with connect(host, port, configuration=configuration, create_protocol=Http3) as third:
        clients = {"h1": first, "h2": await second.open(), "h3": await third.open(host, port)}
        talks = [Talk(name, client) for name, client in clients.items()]
        for talk in talks:
            await talk.client.join(f"probe-{talk.name}")
            await talk.once()
        print("ready", flush=True)
        over = asyncio.Event()
        # Its input ends when the attacks are over, or when whoever started it is gone.
        asyncio.get_running_loop().add_reader(0, lambda: os.read(0, 1) or over.set())
        await asyncio.gather(*[talk.until(over) for talk in talks])
        assert not hearing.done() and third.gone is None
        print("ok: " + ", ".join(f"{t.name} {t.times} times, {t.longest * 1000:.0f} ms at most" for t in talks))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2])))
