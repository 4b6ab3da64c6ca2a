"""WebSockets over HTTP/2 and HTTP/3 by other people's protocol stacks: h2 and aioquic, with wsproto for frames.

    python -m transports http2 HOST PORT [CONNECTIONS] [STREAMS]
    python -m transports http3 HOST PORT
    python -m transports migrate HOST PORT [TIMES]     a WebSocket and a session of WebTransport, moving
    python -m transports sessions HOST PORT            two sessions; the server closes the second one when it likes

Says `ok` and what it did, or ends with an error. Certificates are not looked at: they are the test's own.
"""

import asyncio
import json
import ssl
import sys

import h2.config
import h2.connection
import h2.events
import h2.settings
from aioquic.asyncio.client import connect
from aioquic.asyncio.protocol import QuicConnectionProtocol
from aioquic.h3.connection import H3_ALPN, H3Connection
from aioquic.h3.events import DataReceived, HeadersReceived
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.events import StreamDataReceived
from wsproto.connection import Connection, ConnectionType
from wsproto.events import Ping, TextMessage

DEADLINE = 60
PATH = "/connection/websocket"


def request(host, port):
    return [
        (":method", "CONNECT"),
        (":protocol", "websocket"),
        (":scheme", "https"),
        (":path", PATH),
        (":authority", f"{host}:{port}"),
        ("sec-websocket-version", "13"),
        ("origin", f"https://{host}:{port}"),
    ]


class Client:
    """One client of the node: connects, subscribes, then keeps what is published."""

    def __init__(self, send):
        self.ws, self.send, self.rest = Connection(ConnectionType.CLIENT), send, ""
        self.replies, self.published, self.id = asyncio.Queue(), asyncio.Queue(), 2

    def say(self, command):
        self.send(self.ws.send(TextMessage(data=json.dumps(command))))

    async def publish(self, channel, data):
        self.id += 1
        await self.ask({"id": self.id, "publish": {"channel": channel, "data": data}})

    def hear(self, data):
        self.ws.receive_data(data)
        for event in self.ws.events():
            if isinstance(event, Ping):
                self.send(self.ws.send(event.response()))
            elif isinstance(event, TextMessage):
                self.rest += event.data
                if event.message_finished:
                    text, self.rest = self.rest, ""
                    for line in filter(None, text.split("\n")):
                        self.take(json.loads(line))

    def take(self, message):
        if "push" in message:
            if "pub" in message["push"]:
                self.published.put_nowait(message["push"]["pub"]["data"])
        elif "id" in message:
            self.replies.put_nowait(message)
        else:
            self.say({})  # the answer to a ping

    async def ask(self, command):
        self.say(command)
        reply = await asyncio.wait_for(self.replies.get(), DEADLINE)
        assert reply["id"] == command["id"] and "error" not in reply, reply
        return reply

    async def join(self, channel):
        await self.ask({"id": 1, "connect": {}})
        await self.ask({"id": 2, "subscribe": {"channel": channel}})


class Lines(Client):
    """The same on the stream of a session of WebTransport: a line for each message."""

    def __init__(self, send):
        super().__init__(send)
        self.disconnect, self.end = None, End()

    def take(self, message):
        self.disconnect = message.get("push", {}).get("disconnect", self.disconnect)
        super().take(message)

    def say(self, command):
        self.send(json.dumps(command).encode() + b"\n")

    def hear(self, data):
        *lines, self.rest = (self.rest + data.decode()).split("\n")
        for line in filter(None, lines):
            self.take(json.loads(line))


class End:
    """What comes on the stream that asked for a session: the capsule with which it is closed."""

    def __init__(self):
        self.data, self.closed = b"", asyncio.get_running_loop().create_future()

    def hear(self, data):
        self.data += data
        kind, at = varint(self.data, 0)
        length, at = varint(self.data, at)
        if len(self.data) >= at + length:
            assert kind == 0x2843, self.data  # WT_CLOSE_SESSION
            payload = self.data[at : at + length]
            self.closed.set_result((int.from_bytes(payload[:4], "big"), payload[4:].decode()))


def varint(data, at):
    size = 1 << (data[at] >> 6)
    return int.from_bytes(data[at : at + size], "big") & ((1 << (8 * size - 2)) - 1), at + size


class Http2(asyncio.Protocol):
    def __init__(self, host, port):
        self.host, self.port = host, port
        config = h2.config.H2Configuration(client_side=True, header_encoding="utf-8")
        self.h2 = h2.connection.H2Connection(config=config)
        self.clients, self.answers, self.pending = {}, {}, {}
        self.allowed, self.lost = asyncio.Event(), asyncio.get_running_loop().create_future()

    def connection_made(self, transport):
        assert transport.get_extra_info("ssl_object").selected_alpn_protocol() == "h2"
        self.transport = transport
        self.h2.initiate_connection()
        self.h2.increment_flow_control_window(1 << 24)
        self.flush()

    def connection_lost(self, error):
        for answer in self.answers.values():
            if not answer.done():
                answer.set_exception(error or ConnectionError("closed"))

    def flush(self):
        self.transport.write(self.h2.data_to_send())

    def data_received(self, data):
        for event in self.h2.receive_data(data):
            if isinstance(event, h2.events.RemoteSettingsChanged):
                self.allowed.set()
            elif isinstance(event, h2.events.ResponseReceived):
                self.answers[event.stream_id].set_result(dict(event.headers))
            elif isinstance(event, h2.events.DataReceived):
                self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                self.clients[event.stream_id].hear(event.data)
            elif isinstance(event, (h2.events.StreamReset, h2.events.ConnectionTerminated)):
                raise AssertionError(f"{event}")
        self.flush()

    async def open(self):
        await asyncio.wait_for(self.allowed.wait(), DEADLINE)
        assert self.h2.remote_settings.get(h2.settings.SettingCodes.ENABLE_CONNECT_PROTOCOL) == 1
        stream = self.h2.get_next_available_stream_id()

        def send(data):
            self.h2.send_data(stream, data)
            self.flush()

        self.answers[stream] = asyncio.get_running_loop().create_future()
        self.clients[stream] = Client(send)
        self.h2.send_headers(stream, request(self.host, self.port))
        self.flush()
        answer = await asyncio.wait_for(self.answers[stream], DEADLINE)
        assert answer[":status"] == "200", answer
        return self.clients[stream]


class Http3(QuicConnectionProtocol):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.h3 = H3Connection(self._quic, enable_webtransport=True)
        self.clients, self.answers = {}, {}
        self.gone = None

    def connection_lost(self, error):
        self.gone = error or True
        super().connection_lost(error)

    def quic_event_received(self, event):
        # aioquic knows no answers on a session's stream that the client itself has opened.
        if isinstance(event, StreamDataReceived) and isinstance(self.clients.get(event.stream_id), Lines):
            return self.clients[event.stream_id].hear(event.data)
        for event in self.h3.handle_event(event):
            if isinstance(event, HeadersReceived):
                self.answers[event.stream_id].set_result(dict(event.headers))
            elif isinstance(event, DataReceived) and event.data:
                self.clients[event.stream_id].hear(event.data)

    async def open(self, host, port):
        stream = self._quic.get_next_available_stream_id()

        def send(data):
            self.h3.send_data(stream, data, end_stream=False)
            self.transmit()

        self.answers[stream] = asyncio.get_running_loop().create_future()
        self.clients[stream] = Client(send)
        headers = [(name.encode(), value.encode()) for name, value in request(host, port)]
        self.h3.send_headers(stream, headers)
        self.transmit()
        answer = await asyncio.wait_for(self.answers[stream], DEADLINE)
        assert answer[b":status"] == b"200", answer
        return self.clients[stream]


    async def open_session(self, host, port):
        session = self._quic.get_next_available_stream_id()
        self.answers[session] = asyncio.get_running_loop().create_future()
        head = {":protocol": "webtransport", ":path": "/connection/webtransport"}
        headers = [(n, head.get(n, v)) for n, v in request(host, port) if n != "sec-websocket-version"]
        headers.append(("sec-webtransport-http3-draft02", "1"))
        self.h3.send_headers(session, [(name.encode(), value.encode()) for name, value in headers])
        self.transmit()
        answer = await asyncio.wait_for(self.answers[session], DEADLINE)
        assert answer[b":status"] == b"200", answer
        stream = self.h3.create_webtransport_stream(session)

        def send(data):
            self._quic.send_stream_data(stream, data)
            self.transmit()

        self.clients[stream] = Lines(send)
        self.clients[session] = self.clients[stream].end
        return self.clients[stream]


class Nat(asyncio.DatagramProtocol):
    """Stands between client and server, and gives the client another address from time to time."""

    def __init__(self, server):
        self.server, self.client, self.out, self.used = server, None, None, set()

    def connection_made(self, transport):
        self.inside = transport

    def datagram_received(self, data, client):
        self.client = client
        self.out.sendto(data)

    async def move(self):
        nat = self

        class Outside(asyncio.DatagramProtocol):
            def datagram_received(self, data, _):
                nat.inside.sendto(data, nat.client)

        before = self.out
        self.out, _ = await asyncio.get_running_loop().create_datagram_endpoint(Outside, remote_addr=self.server)
        self.used.add(self.out.get_extra_info("sockname"))
        if before:
            before.close()


async def migrate(host, port, times=100):
    """Publishes on both, and moves, so many times: each message comes to each, once and in order."""
    loop = asyncio.get_running_loop()
    inside, nat = await loop.create_datagram_endpoint(lambda: Nat((host, port)), local_addr=("127.0.0.1", 0))
    await nat.move()
    configuration = QuicConfiguration(
        is_client=True, alpn_protocols=H3_ALPN, verify_mode=ssl.CERT_NONE, max_datagram_frame_size=65536
    )
    at = inside.get_extra_info("sockname")[1]
    async with connect("127.0.0.1", at, configuration=configuration, create_protocol=Http3) as protocol:
        clients = [await protocol.open(host, port), await protocol.open_session(host, port)]
        for client in clients:
            await client.join("on-the-move")
        for number in range(times):
            await nat.move()
            await clients[number % 2].publish("on-the-move", {"number": number})
            for client in clients:
                got = await asyncio.wait_for(client.published.get(), DEADLINE)
                assert got == {"number": number}, got
        assert protocol.gone is None and all(client.published.empty() for client in clients)
        print(f"ok: {times} messages to 2 clients from {len(nat.used)} addresses of theirs")


async def all_hear(clients, channel):
    """One publishes, and each hears it once."""
    text = f"to all {len(clients)}"
    await clients[0].publish(channel, {"text": text})
    for client in clients:
        assert await asyncio.wait_for(client.published.get(), DEADLINE) == {"text": text}
    assert all(client.published.empty() for client in clients)


async def http2(host, port, connections=10, streams=100):
    tls = ssl.create_default_context()
    tls.check_hostname, tls.verify_mode = False, ssl.CERT_NONE
    tls.set_alpn_protocols(["h2"])
    loop, clients = asyncio.get_running_loop(), []
    for _ in range(connections):
        _, protocol = await loop.create_connection(lambda: Http2(host, port), host, port, ssl=tls)
        opened = await asyncio.gather(*[protocol.open() for _ in range(streams)])
        await asyncio.gather(*[client.join("over-h2") for client in opened])
        clients += opened
    await all_hear(clients, "over-h2")
    print(f"ok: {len(clients)} WebSockets on {connections} connections of HTTP/2")


async def http3(host, port):
    configuration = QuicConfiguration(is_client=True, alpn_protocols=H3_ALPN, verify_mode=ssl.CERT_NONE)
    async with connect(host, port, configuration=configuration, create_protocol=Http3) as protocol:
        clients = [await protocol.open(host, port) for _ in range(20)]
        await asyncio.gather(*[client.join("over-h3") for client in clients])
        await all_hear(clients, "over-h3")
        print(f"ok: {len(clients)} WebSockets on a connection of HTTP/3")


async def sessions(host, port):
    """Two that hear each other. What is wrong with the first, and why the second is closed, comes with its code."""
    configuration = QuicConfiguration(
        is_client=True, alpn_protocols=H3_ALPN, verify_mode=ssl.CERT_NONE, max_datagram_frame_size=65536
    )
    async with connect(host, port, configuration=configuration, create_protocol=Http3) as protocol:
        first, second = [await protocol.open_session(host, port) for _ in range(2)]
        for client in (first, second):
            await client.join("over-webtransport")
        await all_hear([first, second], "over-webtransport")
        first.send(b"nonsense\n")
        closes = []
        for client in (first, second):
            code, reason = await asyncio.wait_for(client.end.closed, DEADLINE)
            assert client.disconnect["code"] == code and client.disconnect["reason"] == reason, client.disconnect
            closes.append(f"{code} {reason}")
        assert protocol.gone is None
        print(f"ok: closed with {', '.join(closes)}")


if __name__ == "__main__":
    kind, host, port, *rest = sys.argv[1:]
    asyncio.run({"http2": http2, "http3": http3, "migrate": migrate, "sessions": sessions}[kind](host, int(port), *map(int, rest)))
