"""What clients cost that missed ten megabytes each: all of them read, and none of them does.

One process with all tiers. A channel's history is filled (--messages of --size bytes). Then --clients come back at its
begin at the same moment, twice: first each reads all that it missed, which must come once and in order; then none
reads at all, for 20 s, and half of them ask for the history on top. Whoever does not read must be closed, and the
process's memory (RSS) must stay below what outboxes and node.replies_memory allow, both times.

    cargo build --release -p weir
    python3 tests/benches/missed.py [--clients 200] [--messages 950] [--size 11000] [--bin target/release]
"""

import base64
import json
import os
import re
import selectors
import socket
import struct
import subprocess
import tempfile
import time
import urllib.request

from edge import TOKEN, Verdict, arguments, ask, running

args = arguments(__doc__, clients=200, messages=950, size=11_000, port=17800, seconds=20)
NODE, ADMIN = f"127.0.0.1:{args.port}", f"127.0.0.1:{args.port + 1}"
REPLIES = 64 << 20
CONF = f"""
roles = ["node", "broker"]
[node]
listen = "{NODE}"
anonymous = true
api_key = "{TOKEN}"
replies_memory = "64MiB"
[broker]
listen = "127.0.0.1:{args.port + 2}"
[admin]
listen = "{ADMIN}"
token = "{TOKEN}"
[telemetry]
filter = "warn"
[channel]
history_size = {args.messages}
history_ttl = "1h"
force_recovery = true
allow_subscribe_for_client = true
allow_subscribe_for_anonymous = true
allow_history_for_client = true
allow_history_for_anonymous = true
"""
verdict = Verdict(f"{args.clients} clients that missed {args.messages} messages of {args.size} bytes")
file = tempfile.NamedTemporaryFile("w", suffix=".toml")
file.write(CONF)
file.flush()
weir = subprocess.Popen([f"{args.bin}/weir", "run", "--config", file.name])
running.append(weir)


def ready():
    for _ in range(600):
        try:
            return ask(ADMIN, "/ready")
        except OSError:
            time.sleep(0.05)
    raise SystemExit("weir is not ready")


def rss():
    with open(f"/proc/{weir.pid}/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmRSS")) * 1024


def metric(name, label=""):
    lines = [line for line in ask(ADMIN, "/metrics").splitlines() if line.startswith(name) and label in line]
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines)


def api(method, **params):
    headers = {"X-API-Key": TOKEN, "Content-Type": "application/json"}
    request = urllib.request.Request(f"http://{NODE}/api/{method}", json.dumps(params).encode(), headers)
    with urllib.request.urlopen(request, timeout=20) as answer:
        return json.loads(answer.read())["result"]


OFFSET = re.compile(rb'"offset":(\d+)')


class Client:
    """A WebSocket that says its commands at once; what it reads is cut into frames."""

    def __init__(self, *commands):
        self.socket = socket.create_connection(NODE.split(":"), timeout=20)
        key = base64.b64encode(os.urandom(16)).decode()
        self.socket.sendall(
            f"GET /connection/websocket HTTP/1.1\r\nHost: {NODE}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n\r\n".encode()
        )
        self.read = b""
        while b"\r\n\r\n" not in self.read:
            self.read += self.socket.recv(1)
        self.read = bytearray()
        self.at, self.wrong, self.recovered = 0, None, None
        text = "\n".join(json.dumps(command) for command in commands).encode()
        head = struct.pack("!BBH", 0x81, 0x80 | 126, len(text)) + bytes(4)
        self.socket.sendall(head + text)
        self.socket.setblocking(False)

    def messages(self):
        while len(self.read) >= 2:
            size, start = self.read[1] & 127, 2
            if size == 126:
                size, start = struct.unpack("!H", self.read[2:4])[0] if len(self.read) >= 4 else 1 << 62, 4
            elif size == 127:
                size, start = struct.unpack("!Q", self.read[2:10])[0] if len(self.read) >= 10 else 1 << 62, 10
            if len(self.read) < start + size:
                return
            opcode, payload = self.read[0] & 15, bytes(self.read[start : start + size])
            del self.read[: start + size]
            if opcode == 8:
                self.wrong = f"closed: {payload!r}"
            if opcode == 1:
                yield payload

    def readable(self):
        data = self.socket.recv(1 << 18)
        if not data:
            self.wrong = self.wrong or "the end"
        self.read += data
        for message in self.messages():
            if b'"subscribe":' in message:
                self.recovered = b'"recovered":true' in message
                # Its position, which stands before the publications, is where this client was.
                message = message.split(b'"publications":', 1)[-1]
            for offset in map(int, OFFSET.findall(message)):
                if offset != self.at + 1:
                    self.wrong = f"{offset} after {self.at}"
                self.at = offset


ready()
data = "x" * args.size
for n in range(args.messages):
    epoch = api("publish", channel="missed", data=data)["epoch"]
connect = {"id": 1, "connect": {}}
back = {"id": 2, "subscribe": {"channel": "missed", "recover": True, "epoch": epoch, "offset": 0}}
history = {"id": 3, "history": {"channel": "missed", "limit": -1}}
before = rss()
verdict.figure("memory with the history", f"{before >> 20} MiB")

begun, most = time.monotonic(), before
clients = [Client(connect, back) for _ in range(args.clients)]
wait = selectors.DefaultSelector()
for client in clients:
    wait.register(client.socket, selectors.EVENT_READ, client)
left, looked = len(clients), 0
while left and time.monotonic() < begun + 600:
    for key, _ in wait.select(1):
        client = key.data
        client.readable()
        if client.wrong or client.at == args.messages:
            wait.unregister(client.socket)
            left -= 1
    if time.monotonic() > looked + 0.1:
        most, looked = max(most, rss()), time.monotonic()
took = time.monotonic() - begun
wrong = [client.wrong or client.at for client in clients if client.wrong or client.at != args.messages]
verdict.must("who got all, once and in order", f"{args.clients - len(wrong)} {wrong[:3]}", not wrong)
verdict.must("recovered: true", sum(c.recovered is True for c in clients), all(c.recovered for c in clients))
total = args.clients * args.messages * args.size
verdict.figure("it took", f"{took:.1f} s, {total / took / 1e6:.0f} MB/s")
# A quarter of an outbox each beside it, and what the allocator keeps.
allowed = args.clients * (1 << 20) * 5 // 4 + (64 << 20)
verdict.must("memory while they read", f"+{(most - before) >> 20} MiB of {allowed >> 20}", most - before < allowed)
for client in clients:
    client.socket.close()
time.sleep(1)

before, most, begun = rss(), 0, time.monotonic()
silent = [Client(connect, back, *([history] if n % 2 else [])) for n in range(args.clients)]
while time.monotonic() < begun + args.seconds:
    most = max(most, rss())
    time.sleep(0.05)
verdict.must("memory while nobody reads", f"+{(most - before) >> 20} MiB", most - before < allowed + REPLIES)
verdict.must("clients left after that", int(metric("weir_node_clients")), metric("weir_node_clients") == 0)
closed = metric("weir_node_disconnects_total", '"3008"')
verdict.must("closed with 3008", int(closed), closed == args.clients)
verdict.must("bytes that wait", int(metric("weir_node_outbox_bytes")), metric("weir_node_outbox_bytes") == 0)
verdict.end()
