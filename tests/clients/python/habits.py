"""HTTP as servers and clients of other people have it, through the proxy: servers of Python's standard library behind
it, and in front h2, aioquic and bare sockets.

    python -m habits guarded HOST PORT TLS_PORT SERVER_PORT    names that no client may use, in all spellings
    python -m habits framing HOST PORT TLS_PORT SERVER_PORT    requests without a body, at a server that is strict
    python -m habits answers HOST PORT TLS_PORT SERVER_PORT    slow and broken answers, lengths, trailers
    python -m habits closing HOST PORT TLS_PORT SERVER_PORT    how WebSockets end, with limits for frames and without

The server behind is started at SERVER_PORT. Says `ok` and what it did, or ends with an error. Certificates are not
looked at: they are the test's own.
"""

import asyncio
import json
import re
import socket
import socketserver
import ssl
import sys
import threading
import time
from contextlib import asynccontextmanager
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import h2.config
import h2.connection
import h2.events
from aioquic.asyncio.client import connect
from aioquic.asyncio.protocol import QuicConnectionProtocol
from aioquic.h3.connection import H3_ALPN, H3Connection
from aioquic.h3.events import DataReceived, HeadersReceived
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.events import ConnectionTerminated, StreamReset

DEADLINE = 20


class Answer:
    """What came back: heads, body in pieces with the time of each, trailers, and how it ended."""

    def __init__(self):
        self.interim, self.status, self.headers, self.trailers = [], None, [], []
        self.pieces, self.began, self.broken = [], time.monotonic(), False
        self.head_at = None

    def head(self, headers):
        headers = [(n.decode() if isinstance(n, bytes) else n, v.decode("latin-1") if isinstance(v, bytes) else v) for n, v in headers]
        status = dict(headers).get(":status")
        fields = [(n, v) for n, v in headers if not n.startswith(":")]
        if status is None:
            self.trailers = fields
        elif status.startswith("1"):
            self.interim.append((int(status), fields))
        else:
            self.status, self.headers, self.head_at = int(status), fields, self.at()

    def at(self):
        return time.monotonic() - self.began

    def data(self, data):
        if data:
            self.pieces.append((self.at(), data))

    @property
    def body(self):
        return b"".join(data for _, data in self.pieces)

    def values(self, name):
        return [v for n, v in self.headers if n.lower() == name]

    def __repr__(self):
        return f"{self.status} {self.headers} {self.body[:200]} trailers {self.trailers} broken {self.broken}"


class Asked:
    """`end`: when the body's end is told; "apart" is in a frame or packet of its own, a moment after the head."""

    def __init__(self, method, path, headers=(), body=b"", end="with", protocol=None):
        self.method, self.path, self.headers = method, path, list(headers)
        self.body, self.end, self.protocol = body, end, protocol

    def pseudo(self, host):
        head = [(":method", self.method), (":scheme", "https"), (":path", self.path), (":authority", host)]
        return head + ([(":protocol", self.protocol)] if self.protocol else [])


class Http1:
    name = "h1"

    def __init__(self, host, port, version="1.1"):
        self.host, self.port, self.version = host, port, version

    @asynccontextmanager
    async def session(self):
        yield self

    async def ask(self, asked):
        method, headers = asked.method, list(asked.headers)
        if asked.protocol == "websocket":
            method = "GET"
            headers += [("Connection", "Upgrade"), ("Upgrade", "websocket")]
            headers += [("Sec-WebSocket-Version", "13"), ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ==")]
        elif not any(n.lower() == "connection" for n, _ in headers):
            headers.append(("Connection", "close"))
        if asked.body and not any(n.lower() == "content-length" for n, _ in headers):
            headers.append(("Content-Length", str(len(asked.body))))
        head = f"{method} {asked.path} HTTP/{self.version}\r\nHost: {self.host}\r\n"
        head += "".join(f"{n}: {v}\r\n" for n, v in headers) + "\r\n"
        answer = Answer()
        reader, writer = await asyncio.open_connection(self.host, self.port)
        writer.write(head.encode("utf-8") + asked.body)
        try:
            await asyncio.wait_for(self.read(reader, method, answer), DEADLINE)
        finally:
            writer.close()
        return answer

    async def fields(self, reader):
        fields = []
        while (line := (await reader.readuntil(b"\r\n"))[:-2]):
            name, value = line.decode("latin-1").split(": ", 1)
            fields.append((name.lower(), value))
        return fields

    async def read(self, reader, method, answer):
        try:
            while answer.status is None:
                line = (await reader.readuntil(b"\r\n")).decode("latin-1")
                assert line.startswith("HTTP/1.1 "), line
                answer.head([(":status", line[9:12])] + await self.fields(reader))
            lengths, chunked = answer.values("content-length"), answer.values("transfer-encoding")
            if method == "HEAD" or answer.status in (204, 304):
                assert not await reader.read(1), "a body where none may be"
            elif chunked:
                assert chunked == ["chunked"] and not lengths, answer
                while (size := int((await reader.readuntil(b"\r\n")), 16)):
                    answer.data(await reader.readexactly(size))
                    assert await reader.readexactly(2) == b"\r\n"
                answer.trailers = await self.fields(reader)
            elif lengths:
                assert len(lengths) == 1, answer
                left = int(lengths[0])
                while left:
                    data = await reader.read(left)
                    if not data:
                        raise asyncio.IncompleteReadError(b"", left)
                    answer.data(data)
                    left -= len(data)
            else:
                while data := await reader.read(65536):
                    answer.data(data)
        except (asyncio.IncompleteReadError, ConnectionError):
            answer.broken = True


class Http2:
    name = "h2"

    def __init__(self, host, port):
        self.host, self.port = host, port

    @asynccontextmanager
    async def session(self):
        yield self

    async def ask(self, asked):
        """On a connection of its own: what breaks a rule may cost it."""
        tls = ssl.create_default_context()
        tls.check_hostname, tls.verify_mode = False, ssl.CERT_NONE
        tls.set_alpn_protocols(["h2"])
        reader, writer = await asyncio.open_connection(self.host, self.port, ssl=tls)
        config = h2.config.H2Configuration(
            client_side=True, header_encoding="latin-1", validate_outbound_headers=False, normalize_outbound_headers=False
        )
        conn = h2.connection.H2Connection(config=config)
        conn.initiate_connection()
        answer = Answer()
        try:
            await asyncio.wait_for(self.exchange(reader, writer, conn, asked, answer), DEADLINE)
        finally:
            writer.close()
        return answer

    async def exchange(self, reader, writer, conn, asked, answer):
        stream = conn.get_next_available_stream_id()
        headers = asked.pseudo(f"{self.host}:{self.port}") + [(n.lower(), v) for n, v in asked.headers]
        if asked.protocol == "websocket":
            headers.append(("sec-websocket-version", "13"))
        at_once = asked.end == "with" and not asked.body and not asked.protocol
        conn.send_headers(stream, headers, end_stream=at_once)
        writer.write(conn.data_to_send())
        if not at_once and not asked.protocol:
            await asyncio.sleep(0.2)
            conn.send_data(stream, asked.body, end_stream=True)
            writer.write(conn.data_to_send())
        while True:
            data = await reader.read(65536)
            if not data:
                answer.broken = True
                return
            for event in conn.receive_data(data):
                if isinstance(event, (h2.events.ResponseReceived, h2.events.InformationalResponseReceived)):
                    answer.head(event.headers)
                elif isinstance(event, h2.events.TrailersReceived):
                    answer.head(event.headers)
                elif isinstance(event, h2.events.DataReceived):
                    conn.acknowledge_received_data(event.flow_controlled_length, stream)
                    answer.data(event.data)
                elif isinstance(event, h2.events.StreamEnded):
                    return
                elif isinstance(event, (h2.events.StreamReset, h2.events.ConnectionTerminated)):
                    answer.broken = True
                    return
            writer.write(conn.data_to_send())


class LengthsOfHeads(H3Connection):
    """aioquic's own check knows no answers with a length and no content: those to HEAD, and 304."""

    def _check_content_length(self, stream):
        if stream.content_length:
            super()._check_content_length(stream)


class Protocol(QuicConnectionProtocol):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.h3, self.answers, self.ended = LengthsOfHeads(self._quic, enable_webtransport=True), {}, {}

    def finish(self, stream, broken=False):
        if not self.ended[stream].done():
            self.answers[stream].broken = broken
            self.ended[stream].set_result(None)

    def quic_event_received(self, event):
        if isinstance(event, ConnectionTerminated):
            for stream in self.ended:
                self.finish(stream, True)
        if isinstance(event, StreamReset) and event.stream_id in self.answers:
            self.finish(event.stream_id, True)
        for event in self.h3.handle_event(event):
            if isinstance(event, HeadersReceived):
                self.answers[event.stream_id].head(event.headers)
            elif isinstance(event, DataReceived):
                self.answers[event.stream_id].data(event.data)
            if getattr(event, "stream_ended", False):
                self.finish(event.stream_id)

    async def ask(self, host, asked):
        stream = self._quic.get_next_available_stream_id()
        answer = self.answers[stream] = Answer()
        self.ended[stream] = asyncio.get_running_loop().create_future()
        headers = asked.pseudo(host) + [(n.lower(), v) for n, v in asked.headers]
        if asked.protocol == "websocket":
            headers.append(("sec-websocket-version", "13"))
        at_once = asked.end == "with" and not asked.body and not asked.protocol
        self.h3.send_headers(stream, [(n.encode(), v.encode()) for n, v in headers], end_stream=at_once)
        self.transmit()
        if not at_once and not asked.protocol:
            await asyncio.sleep(0.2)
            if asked.body:
                self.h3.send_data(stream, asked.body, end_stream=True)
            else:
                self._quic.send_stream_data(stream, b"", end_stream=True)
            self.transmit()
        await asyncio.wait_for(self.ended[stream], DEADLINE)
        return answer


class Http3:
    name = "h3"

    def __init__(self, host, port):
        self.host, self.port = host, port

    @asynccontextmanager
    async def session(self):
        yield self

    async def ask(self, asked):
        configuration = QuicConfiguration(is_client=True, alpn_protocols=H3_ALPN, verify_mode=ssl.CERT_NONE)
        configuration.max_datagram_frame_size = 65536
        async with connect(self.host, self.port, configuration=configuration, create_protocol=Protocol) as protocol:
            return await protocol.ask(f"{self.host}:{self.port}", asked)


# What no client may say. `None`: dropped; a pattern: what Weir says itself.
ADDRESS = r"127\.0\.0\.1"
GUARDED = {
    "X-Forwarded-For": ADDRESS, "X-Forwarded-Proto": "https?", "X-Request-Id": "[0-9a-z]+",
    "X-Forwarded-Host": None, "X-Forwarded-Port": None, "X-Forwarded-Ssl": None, "X-Forwarded-Prefix": None,
    "X-Forwarded-Client-Cert": None, "Forwarded": None, "X-Real-IP": None, "X-Original-URL": None,
    "X-Original-Host": None, "X-Rewrite-URL": None, "Proxy": None, "True-Client-IP": None, "CF-Connecting-IP": None,
    "X-Client-IP": None, "X-Cluster-Client-IP": None, "Fastly-Client-IP": None, "X-Host": None, "Client-IP": None,
    "X-Client-Cert-San": None, "X-Client-Cert-Subject": None, "X-Auth-Subject": None, "X-Tier": "edge", "X-Debug": None,
    "Front-End-Https": None, "X-Scheme": None, "Remote-User": None,
}


def spellings(name):
    yield from (name, name.upper(), name.replace("-", "_"), name.upper().replace("-", "_"))
    if "-" in name:
        yield from (name.replace("-", "_", 1), name.replace("-", "."), name.replace("-", "~"), name.replace("-", "--"))
    yield from (name + "_", "_" + name)


def variable(name):
    """As coarse as any server's way from a header to a variable."""
    return re.sub("[^A-Z0-9]+", "_", name.upper()).strip("_")


def environ_app(environ, start):
    told = {k: v for k, v in environ.items() if k.startswith(("HTTP_", "CONTENT_")) and isinstance(v, str)}
    # A handshake is refused, so that the answer is seen.
    start("403 Forbidden" if "HTTP_UPGRADE" in environ else "200 OK", [("Content-Type", "application/json")])
    return [json.dumps(told).encode()]


class Quiet(WSGIRequestHandler):
    def log_message(self, *_):
        pass


class Threaded(socketserver.ThreadingMixIn, WSGIServer):
    daemon_threads = True
    request_queue_size = 64


def serve_wsgi(port):
    server = make_server("127.0.0.1", port, environ_app, Threaded, Quiet)
    threading.Thread(target=server.serve_forever, daemon=True).start()


async def guarded(host, port, tls, server):
    serve_wsgi(server)
    rows = 0
    for client in (Http1(host, port), Http2(host, tls), Http3(host, tls)):
        for protocol in (None, "websocket", "webtransport"):
            if protocol == "webtransport" and client.name != "h3":
                continue
            method = "CONNECT" if protocol and client.name != "h1" else "GET"
            for name, ours in GUARDED.items():
                headers = [(spelled, "forged") for spelled in spellings(name)]
                answer = await client.ask(Asked(method, "/wsgi", headers + [("X-Mine", "kept"), ("my_id", "kept")], protocol=protocol))
                at = f"{client.name} {protocol} {name}: {answer}"
                assert answer.status == (403 if protocol else 200), at
                seen = {}
                for key, value in json.loads(answer.body).items():
                    seen.setdefault(variable(key.removeprefix("HTTP_")), []).append(value)
                assert seen["X_MINE"] == ["kept"] and seen["MY_ID"] == ["kept"], f"{at} {seen}"
                assert not any("forged" in value for values in seen.values() for value in values), f"{at} {seen}"
                got = seen.get(variable(name))
                fits = got is None if ours is None else got and len(got) == 1 and re.fullmatch(ours, got[0])
                assert fits, f"{at} {got}"
                rows += len(headers)
    rows += await named_away(host, port, tls)
    print(f"ok: {rows} rows")


async def named_away(host, port, tls):
    """`Connection` takes nothing away that somebody goes by; over HTTP/2 and /3 there is none (RFC 9113 §8.2.2)."""
    kept = {
        "Origin": "https://a.test", "Authorization": "Basic eDp5", "Cookie": "a=b", "X-Api-Key": "key",
        "Content-Type": "text/plain", "X-Csrf-Token": "t", "X-Tenant": "blue",
    }
    for name, value in kept.items():
        headers = [("Connection", f"close, {name}, x-hop"), (name, value), ("X-Hop", "gone")]
        answer = await Http1(host, port).ask(Asked("GET", "/wsgi", headers))
        seen = json.loads(answer.body)
        key = variable(name)
        assert seen.get(key if name.startswith("Content-") else f"HTTP_{key}") == value, f"{name} {seen}"
        assert "HTTP_X_HOP" not in seen, seen
    for ours in ("X-Forwarded-For", "X-Request-Id", "Host", "X-Tier", "X-Auth-Subject"):
        answer = await Http1(host, port).ask(Asked("GET", "/wsgi", [("Connection", f"close, {ours}")]))
        seen = json.loads(answer.body)
        there = f"HTTP_{variable(ours)}" in seen
        assert there == (ours != "X-Auth-Subject"), f"{ours} {seen}"
    for client in (Http2(host, tls), Http3(host, tls)):
        answer = await client.ask(Asked("GET", "/wsgi", [("connection", "origin"), ("origin", "https://a.test")]))
        assert answer.status != 200, f"{client.name} {answer}"
    return len(kept) + 7


class Strict:
    """One request after the other on a connection, as a simple server reads them: head, then as many bytes as
    Content-Length says. Chunks it does not know (501), and what is no request is a 400 that ends the connection."""

    def __init__(self, port):
        self.heads, self.odd = [], []
        listener = socket.create_server(("127.0.0.1", port))
        threading.Thread(target=self.accept, args=(listener,), daemon=True).start()

    def accept(self, listener):
        while True:
            threading.Thread(target=self.serve, args=(listener.accept()[0],), daemon=True).start()

    def serve(self, conn):
        with conn, conn.makefile("rb") as file:
            while line := file.readline():
                request = line.decode("latin-1").rstrip("\r\n").split(" ")
                fields = {}
                while (field := file.readline()) not in (b"\r\n", b""):
                    name, value = field.decode("latin-1").rstrip("\r\n").split(": ", 1)
                    fields[name.lower()] = value
                if len(request) != 3 or not request[2].startswith("HTTP/1."):
                    self.odd.append(line)
                    conn.sendall(b"HTTP/1.1 400 Bad\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
                    return
                self.heads.append((request[0], request[1], fields))
                if "transfer-encoding" in fields:
                    conn.sendall(b"HTTP/1.1 501 No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
                    return
                body = file.read(int(fields.get("content-length", 0)))
                if request[0] == "HEAD":
                    body = b""
                conn.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))


async def framing(host, port, tls, server):
    strict, rows = Strict(server), 0
    expected = {"POST": "0", "PUT": "0", "PATCH": "0"}
    for client in (Http1(host, port), Http2(host, tls), Http3(host, tls)):
        for method in ("GET", "HEAD", "OPTIONS", "DELETE", "POST", "PUT", "PATCH", "REPORT"):
            for end in ("with", "apart"):
                for headers, body, length in (([], b"", expected.get(method)), ([("content-length", "0")], b"", "0"),
                                              ([("content-length", "4")], b"body", "4")):
                    # Who says that there is nothing has nothing more to say.
                    if (body and method in ("HEAD", "OPTIONS")) or (end == "apart" and length == "0" and headers):
                        continue
                    strict.heads.clear()
                    answer = await client.ask(Asked(method, f"/strict?{rows}", headers, body, end))
                    at = f"{client.name} {method} {end} {headers}: {answer} {strict.heads}"
                    assert answer.status == 200 and answer.body == (b"" if method == "HEAD" else body), at
                    (seen,) = strict.heads
                    assert seen[:2] == (method, f"/strict?{rows}"), at
                    assert seen[2].get("content-length") == length and "transfer-encoding" not in seen[2], at
                    rows += 1
    assert not strict.odd, strict.odd
    # Targets that are odd, and mean one thing.
    targets = ["/strict?f={a:1}", "/strict/a|b^c[d]?x=[1]&y=^|", "/strict/\u00e9?q=\u00fc", "/strict?a=\\"]
    for client in (Http1(host, port), Http2(host, tls), Http3(host, tls)):
        # The h2 crate takes no quotes in a query.
        for target in targets + (['/strict?f={"a":1}', "/strict/<a>"] if client.name != "h2" else []):
            strict.heads.clear()
            answer = await client.ask(Asked("GET", target))
            assert answer.status == 200, f"{client.name} {target} {answer}"
            want = target.replace('"', "%22").replace("<", "%3C").replace(">", "%3E")
            assert strict.heads[0][1] == want.encode().decode("latin-1"), f"{client.name} {target} {strict.heads}"
            rows += 1
    print(f"ok: {rows} rows")


class Script:
    """A server that answers each path with bytes and pauses; `None` ends the connection with a reset or an end."""

    SLOW = [b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\nX-Kind: slow\r\n\r\n", 1.0, b"abc", 1.0, b"def"]
    STEPS = {
        "/slow": SLOW,
        "/slow-chunks": [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", 1.0, b"3\r\nabc\r\n", 1.0, b"3\r\ndef\r\n0\r\n\r\n"],
        "/broken": [b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf", 0.5, None],
        "/broken-chunks": [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n", 0.5, None],
        "/broken-at-once": [b"HTTP/1.1 200 OK\r\nContent-Length: 200000\r\n\r\n" + b"x" * 50_000, None],
        "/old": [b"HTTP/1.0 200 OK\r\n\r\nuntil the end", None],
        "/plain": [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nplain\r\n0\r\n\r\n"],
        "/hop": [b"HTTP/1.1 200 OK\r\nConnection: keep-alive, X-Hop\r\nX-Hop: 1\r\nKeep-Alive: timeout=5\r\n"
                 b"Proxy-Connection: keep-alive\r\nUpgrade: h2c\r\nX-End: 1\r\nContent-Length: 2\r\n\r\nok"],
        "/early": [b"HTTP/1.1 103 Early Hints\r\nLink: </a>; rel=preload\r\nContent-Length: 9\r\n\r\n", 0.3,
                   b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"],
        "/empty": [b"HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\n"],
        "/same": [b"HTTP/1.1 304 Not Modified\r\nContent-Length: 1234\r\nETag: \"a\"\r\n\r\n"],
        "/head": [b"HTTP/1.1 200 OK\r\nContent-Length: 1234\r\n\r\n"],
        "/twice": [b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nok"],
        "/list": [b"HTTP/1.1 200 OK\r\nContent-Length: 2, 2\r\n\r\nok"],
        "/differ": [b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nokk"],
        "/trailers": [b"HTTP/1.1 200 OK\r\nTrailer: Grpc-Status\r\nTransfer-Encoding: chunked\r\n\r\n"
                      b"2\r\nok\r\n0\r\nGrpc-Status: 0\r\nGrpc-Message: fine\r\n\r\n"],
    }

    def __init__(self, port):
        self.ended = []
        self.requests = 0
        listener = socket.create_server(("127.0.0.1", port))
        threading.Thread(target=self.accept, args=(listener,), daemon=True).start()

    def accept(self, listener):
        while True:
            threading.Thread(target=self.serve, args=(listener.accept()[0],), daemon=True).start()

    def serve(self, conn):
        path = None
        with conn, conn.makefile("rb") as file:
            conn.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            while line := file.readline():
                path = line.decode().split(" ")[1]
                while file.readline() not in (b"\r\n", b""):
                    pass
                self.requests += 1
                for step in self.STEPS[path]:
                    if step is None:
                        return
                    if isinstance(step, float):
                        time.sleep(step)
                    else:
                        conn.sendall(step)
        self.ended.append(path)


async def answers(host, port, tls, server):
    script, rows = Script(server), 0
    for client in (Http1(host, port), Http2(host, tls), Http3(host, tls), Http1(host, port, "1.0")):
        old = isinstance(client, Http1) and client.version == "1.0"
        async def ask(path, method="GET", headers=()):
            nonlocal rows
            rows += 1
            answer = await client.ask(Asked(method, path, headers))
            answer.at_ = f"{client.name} {'1.0 ' if old else ''}{method} {path}: {answer} {answer.pieces}"
            return answer

        for path in ("/slow", "/slow-chunks"):
            got = await ask(path)
            assert got.status == 200 and got.body == b"abcdef" and not got.broken, got.at_
            assert got.head_at < 0.7, f"the head was held for {got.head_at} s: {got.at_}"
            assert got.pieces[0][1] == b"abc" and 0.7 < got.pieces[0][0] < 1.7, f"the first piece: {got.at_}"
        for path in ("/broken", "/broken-chunks"):
            got = await ask(path)
            assert got.status == 200 and got.body == b"half", got.at_
            # Without a length or chunks nothing tells an end from a cut.
            assert got.broken or (old and path == "/broken-chunks"), got.at_
        got = await ask("/broken-at-once")
        assert got.status == 200 and got.body == b"x" * 50_000 and got.broken, f"{len(got.body)} {got.at_[:300]}"
        got = await ask("/old")
        assert got.body == b"until the end" and not got.broken, got.at_
        got = await ask("/plain")
        assert got.body == b"plain" and not got.broken, got.at_
        if old:
            assert not got.values("transfer-encoding") and got.values("connection") == ["close"], got.at_
        got = await ask("/hop")
        names = {name for name, _ in got.headers}
        assert got.body == b"ok" and "x-end" in names, got.at_
        assert not names & {"x-hop", "keep-alive", "proxy-connection", "upgrade"}, got.at_
        got = await ask("/early")
        assert got.status == 200 and got.body == b"ok", got.at_
        if old:
            assert not got.interim, got.at_
        else:
            ((status, fields),) = got.interim
            assert status == 103 and [n for n, _ in fields] == ["link"], f"{got.interim} {got.at_}"
        got = await ask("/empty")
        assert got.status == 204 and not got.values("content-length"), got.at_
        got = await ask("/same")
        assert got.status == 304 and got.values("content-length") == ["1234"], got.at_
        got = await ask("/head", "HEAD")
        assert got.status == 200 and got.values("content-length") == ["1234"] and not got.body, got.at_
        for path in ("/twice", "/list"):
            got = await ask(path)
            assert got.values("content-length") == ["2"] and got.body == b"ok", got.at_
        got = await ask("/differ")
        assert got.status == 502, got.at_
        got = await ask("/trailers", headers=[("te", "trailers")])
        assert got.body == b"ok", got.at_
        want = [] if old else [("grpc-status", "0"), ("grpc-message", "fine")]
        assert got.trailers == want, got.at_
        got = await ask("/trailers")
        assert got.body == b"ok" and got.trailers == (want if client.name != "h1" else []), got.at_
    while script.ended.count("/differ") < 4:
        await asyncio.sleep(0.02)
    print(f"ok: {rows} rows")


class Tunnel:
    """Bytes of a WebSocket: `send` them, and `hear` those that come; b"" is the end."""

    def __init__(self, send, incoming, close):
        self.send, self.incoming, self.close = send, incoming, close

    async def hear(self, seconds):
        try:
            return await asyncio.wait_for(self.incoming.get(), seconds)
        except asyncio.TimeoutError:
            return None


async def tunnel1(client, path):
    reader, writer = await asyncio.open_connection(client.host, client.port)
    writer.write(
        f"GET {path} HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n".encode()
    )
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), DEADLINE)
    assert b" 101 " in head, head
    incoming = asyncio.Queue()

    async def read():
        data = True
        while data:
            try:
                data = await reader.read(65536)
            except ConnectionError:
                data = b""
            incoming.put_nowait(data)

    reading = asyncio.create_task(read())

    def close():
        reading.cancel()
        writer.close()

    return Tunnel(writer.write, incoming, close)


async def tunnel2(client, path):
    tls = ssl.create_default_context()
    tls.check_hostname, tls.verify_mode = False, ssl.CERT_NONE
    tls.set_alpn_protocols(["h2"])
    reader, writer = await asyncio.open_connection(client.host, client.port, ssl=tls)
    conn = h2.connection.H2Connection(config=h2.config.H2Configuration(client_side=True, header_encoding="utf-8"))
    conn.initiate_connection()
    writer.write(conn.data_to_send())
    stream, incoming, answered = conn.get_next_available_stream_id(), asyncio.Queue(), asyncio.Event()
    allowed = asyncio.Event()

    async def read():
        while data := await reader.read(65536):
            for event in conn.receive_data(data):
                if isinstance(event, h2.events.RemoteSettingsChanged):
                    allowed.set()
                elif isinstance(event, h2.events.ResponseReceived):
                    assert dict(event.headers)[":status"] == "200", event.headers
                    answered.set()
                elif isinstance(event, h2.events.DataReceived):
                    conn.acknowledge_received_data(event.flow_controlled_length, stream)
                    if event.data:
                        incoming.put_nowait(event.data)
                elif isinstance(event, h2.events.StreamEnded):
                    incoming.put_nowait(b"")
                elif isinstance(event, h2.events.StreamReset):
                    incoming.put_nowait(event)
            writer.write(conn.data_to_send())

    def send(data):
        try:
            conn.send_data(stream, data)
        except h2.exceptions.StreamClosedError:
            return
        writer.write(conn.data_to_send())

    reading = asyncio.create_task(read())
    await asyncio.wait_for(allowed.wait(), DEADLINE)
    head = Asked("CONNECT", path, protocol="websocket").pseudo("a") + [("sec-websocket-version", "13")]
    conn.send_headers(stream, head)
    writer.write(conn.data_to_send())
    await asyncio.wait_for(answered.wait(), DEADLINE)

    def close():
        reading.cancel()
        writer.close()

    return Tunnel(send, incoming, close)


def frame(first, payload=b"", masked=True):
    """Masked with zeros: the payload stays readable."""
    length = bytes([0x80 | len(payload)]) if len(payload) < 126 else b"\xfe" + len(payload).to_bytes(2, "big")
    return bytes([first]) + length + bytes(4) + payload


def code(number, reason=b""):
    return frame(0x88, number.to_bytes(2, "big") + reason)


ENDINGS = {
    **{f"reserved opcode {opcode:#x}": frame(0x80 | opcode, b"x") for opcode in (3, 4, 5, 6, 7, 11, 12, 13, 14, 15)},
    "a ping of 126 bytes": frame(0x89, b"x" * 126),
    "a ping in pieces": frame(0x09, b"x") + frame(0x80, b"y"),
    "a pong in pieces": frame(0x0A, b"x") + frame(0x80, b"y"),
    "a close of 126 bytes": frame(0x88, b"\x03\xe8" + b"x" * 124),
    "reserved bits": frame(0xC1, b"x"),
    "a continuation of nothing": frame(0x80, b"x"),
    "text that is none": frame(0x81, b"\xff\xfe"),
    "a close": code(1000),
    "a close with a reason": code(1000, b"done"),
    "a close without a code": frame(0x88),
    "a close with half a code": frame(0x88, b"\x03"),
    "a close with a code of nobody": code(1005),
    "a close, then a ping": code(1000) + frame(0x89, b"x"),
    "a close, then text": code(1000) + frame(0x81, b"late"),
    "a close, then nonsense": code(1000) + frame(0x83, b"x"),
    "a close within a message": frame(0x01, b"half") + code(1000),
}


def frames_of(data):
    """Of a server: whole frames, and the rest."""
    frames = []
    while len(data) >= 2:
        length, at = data[1] & 0x7F, 2
        if length == 126:
            length, at = int.from_bytes(data[2:4], "big"), 4
        if len(data) < at + length:
            break
        frames.append((data[0] & 0xF, data[at : at + length]))
        data = data[at + length :]
    return frames, data


async def ending(opened, sent):
    """What a client hears, and whether the other side ends the connection in time, as a server has to."""
    opened.send(frame(0x81, b"hello"))
    rest, heard, closed = b"", [], None
    assert await opened.hear(DEADLINE) == b"\x81\x05hello"
    opened.send(sent)
    while True:
        data = await opened.hear(1.0 if closed is not None else DEADLINE)
        if not data:
            ended = "in order" if data == b"" else "late"
            break
        if not isinstance(data, bytes):
            ended = f"{data}"
            break
        frames, rest = frames_of(rest + data)
        for opcode, payload in frames:
            if opcode == 8:
                closed = int.from_bytes(payload[:2], "big") if payload else 1005
                opened.send(frame(0x88, payload[:2]))
            else:
                heard.append((opcode, payload))
    opened.close()
    return heard, closed, ended


async def closing(host, port, tls, server):
    import websockets.asyncio.server

    async def echo(socket):
        async for message in socket:
            await socket.send(message)

    rows = 0
    async with websockets.asyncio.server.serve(echo, "127.0.0.1", server, compression=None, ping_interval=None):
        for client, way in ((Http1(host, port), tunnel1), (Http2(host, tls), tunnel2)):
            for name, sent in ENDINGS.items():
                free = await ending(await way(client, "/ws/free"), sent)
                limited = await ending(await way(client, "/ws/limited"), sent)
                assert free == limited, f"{client.name} {name}: without limits {free}, with limits {limited}"
                assert free[1] is not None and free[2] == "in order", f"{client.name} {name}: {free}"
                rows += 1
    print(f"ok: {rows} rows")


if __name__ == "__main__":
    kind, host, *ports = sys.argv[1:]
    asyncio.run({"guarded": guarded, "framing": framing, "answers": answers, "closing": closing}[kind](host, *map(int, ports)))
