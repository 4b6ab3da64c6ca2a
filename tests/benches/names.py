"""One client makes up a million names of channels with history, and what that costs everybody else: nothing.

One anonymous connection subscribes and unsubscribes in a loop, as fast as it is served. Meanwhile another client
subscribes to a new channel each quarter of a second, publishes to it, and must get its message. A third one was
subscribed to a channel that nobody ever publishes to; it comes back afterwards and must be told `recovered: true`.
A minute after the last name, `channels` is what is in use, and the memory of the process (RSS) is within a tenth of
what it was before. One broker alone and its node in one process; with `--brokers 1` a broker in a process of its own.

    cargo build --release -p weir
    python3 tests/benches/names.py [--names 1000000] [--brokers 0] [--bin target/release]
"""

import base64
import json
import os
import socket
import struct
import subprocess
import tempfile
import threading
import time

from edge import Verdict, arguments, ask, running

args = arguments(__doc__, names=1_000_000, batch=100, brokers=0, port=17700, wait=60, settle=30)
TOKEN = "a-token-of-the-benches"
CHANNELS = """
[channel]
history_size = 10
history_ttl = "5m"
force_recovery = true
allow_subscribe_for_client = true
allow_subscribe_for_anonymous = true
allow_publish_for_client = true
allow_publish_for_anonymous = true
"""
# Whoever floods is held to the rates of a connection; here they would only make it slower.
LIMITS = """[node.rate.connection]
commands = "0/s"
subscribes = "0/s"
new_channels = "0/s"
"""
BROKER, NODE = f"127.0.0.1:{args.port + 1}", f"127.0.0.1:{args.port + 2}"


class Process:
    def __init__(self, name, admin, conf):
        self.name, self.admin = name, f"127.0.0.1:{admin}"
        self.conf = tempfile.NamedTemporaryFile("w", suffix=".toml")
        self.conf.write(conf)
        self.conf.write(f'[telemetry]\nfilter = "warn"\n[admin]\nlisten = "{self.admin}"\ntoken = "{TOKEN}"\n')
        self.conf.flush()
        self.process = subprocess.Popen([f"{args.bin}/weir", "run", "--config", self.conf.name])
        running.append(self.process)
        for _ in range(600):
            try:
                ask(self.admin, "/ready")
                return
            except OSError:
                time.sleep(0.05)
        raise SystemExit(f"{name} is not ready")

    def rss(self):
        with open(f"/proc/{self.process.pid}/status") as file:
            return next(int(line.split()[1]) for line in file if line.startswith("VmRSS")) / 1024

    def metric(self, name):
        lines = ask(self.admin, "/metrics").splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith((name + "{", name + " ")))


class Client:
    """A WebSocket of the node, as bare as can be."""

    def __init__(self):
        self.socket = socket.create_connection(NODE.split(":"), 30)
        self.read, self.replies = b"", []
        key = base64.b64encode(os.urandom(16)).decode()
        head = f"GET /connection/websocket HTTP/1.1\r\nHost: {NODE}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        self.socket.sendall(f"{head}Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode())
        while b"\r\n\r\n" not in self.read:
            self.more()
        answer, self.read = self.read.split(b"\r\n\r\n", 1)
        assert b" 101 " in answer, answer
        self.ids = 0
        self.call(connect={})

    def more(self):
        data = self.socket.recv(1 << 18)
        if not data:
            raise ConnectionError("closed")
        self.read += data

    def message(self):
        """The next text; what it consists of, parsed."""
        while True:
            if len(self.read) >= 4:
                op, size, at = self.read[0] & 15, self.read[1] & 127, 2
                if size == 126:
                    size, at = struct.unpack(">H", self.read[2:4])[0], 4
                elif size == 127 and len(self.read) >= 10:
                    size, at = struct.unpack(">Q", self.read[2:10])[0], 10
                elif size == 127:
                    self.more()
                    continue
                if len(self.read) >= at + size:
                    data, self.read = self.read[at : at + size], self.read[at + size :]
                    if op == 8:
                        raise ConnectionError(f"closed: {struct.unpack('>H', data[:2])[0]} {data[2:]!r}")
                    if op == 1:
                        return [json.loads(line) for line in data.splitlines() if line]
                    continue
            self.more()

    def send(self, commands):
        data = "\n".join(map(json.dumps, commands)).encode()
        # A mask of zeros is one: it only has to be there.
        size = struct.pack(">BBH", 0x81, 0x80 | 126, len(data)) if len(data) < 65536 else None
        self.socket.sendall((size or struct.pack(">BBQ", 0x81, 0x80 | 127, len(data))) + b"\0\0\0\0" + data)

    def calls(self, commands):
        """Sends them together, and returns their replies; empty messages are pings."""
        ids = []
        for command in commands:
            self.ids += 1
            ids.append(self.ids)
            command["id"] = self.ids
        self.send(commands)
        wanted, found = set(ids), {}
        while wanted:
            for reply in self.message():
                if not reply:
                    self.send([{}])
                elif reply.get("id") in wanted:
                    wanted.remove(reply["id"])
                    found[reply["id"]] = reply
                else:
                    self.replies.append(reply)
        return [found[i] for i in ids]

    def call(self, **command):
        return self.calls([command])[0]

    def pushed(self, data):
        """Waits for a publication."""
        while not any(r.get("push", {}).get("pub", {}).get("data") == data for r in self.replies):
            for reply in self.message():
                self.replies.append(reply) if reply else self.send([{}])
        self.replies.clear()


class Victim(threading.Thread):
    def __init__(self):
        super().__init__(daemon=True)
        self.client, self.worst, self.good, self.bad, self.over = Client(), 0, 0, [], False

    def run(self):
        n = 0
        while not self.over:
            n, channel, begun = n + 1, f"victim-{n}", time.monotonic()
            subscribed = self.client.call(subscribe={"channel": channel})
            published = self.client.call(publish={"channel": channel, "data": n})
            if "error" in subscribed or "error" in published:
                self.bad.append((subscribed, published))
            else:
                self.client.pushed(n)
                self.good, self.worst = self.good + 1, max(self.worst, time.monotonic() - begun)
            self.client.call(unsubscribe={"channel": channel})
            time.sleep(0.25)


verdict = Verdict(f"{args.names} names by one client")
node = f'[node]\nlisten = "{NODE}"\nanonymous = true\n{LIMITS}\n'
if args.brokers:
    processes = [Process("broker", args.port + 3, f'roles = ["broker"]\n[broker]\nlisten = "{BROKER}"\n')]
    node = node.replace("anonymous", f'brokers = ["{BROKER}"]\nanonymous')
    processes.append(Process("node", args.port + 4, f'roles = ["node"]\n{node}{CHANNELS}'))
else:
    conf = f'roles = ["node", "broker"]\n{node}[broker]\nlisten = "{BROKER}"\n{CHANNELS}'
    processes = [Process("weir", args.port + 3, conf)]
broker, last = processes[0], processes[-1]


def channels():
    return broker.metric("weir_broker_channels"), last.metric("weir_node_channels")


def flood(client, first, count):
    bad = 0
    for begin in range(first, first + count, args.batch):
        names = [f"made-up-{n}" for n in range(begin, min(begin + args.batch, first + count))]
        replies = client.calls([{"subscribe": {"channel": name}} for name in names])
        bad += sum("error" in reply for reply in replies)
        client.calls([{"unsubscribe": {"channel": name}} for name in names])
    return bad


silent = Client()
given = silent.call(subscribe={"channel": "silent", "recover": False})["subscribe"]
del silent
victim = Victim()
victim.start()
client = Client()
# Buffers and tables have the size that any traffic gives them.
flood(client, 0, min(20_000, args.names // 10))
del client  # It would have to answer pings meanwhile.
time.sleep(args.settle)
client = Client()
before_channels, before = channels(), [p.rss() for p in processes]
victims = victim.good
begun = time.monotonic()
refused = flood(client, 10_000_000, args.names)
took = time.monotonic() - begun
peak = [p.rss() for p in processes]
victims_meanwhile = victim.good - victims
time.sleep(args.wait)
after_channels, after = channels(), [p.rss() for p in processes]
victim.over = True
victim.join(10)
back = Client().call(
    subscribe={"channel": "silent", "recover": True, "epoch": given["epoch"], "offset": given.get("offset", 0)}
)
verdict.figure("names a second", f"{args.names / took:,.0f} ({took:.1f} s)")
verdict.figure("refused", refused)
for process, a, b, c in zip(processes, before, peak, after):
    verdict.figure(f"RSS of {process.name}: before, at the end, after", f"{a:.1f}, {b:.1f}, {c:.1f} MiB")
    verdict.must(f"RSS of {process.name} after", f"{c / a - 1:+.1%}, at most +10 %", c <= a * 1.1)
# The victim's own are published to, and stay for their time.
own = victim.good + len(victim.bad)
verdict.figure("channels at broker and node, before", before_channels)
verdict.must("channels at the broker after", f"{after_channels[0]:.0f}, at most the victim's {own} and 10", after_channels[0] <= own + 10)
verdict.must("channels at the node after", f"{after_channels[1]:.0f}, at most 20", after_channels[1] <= 20)
worst = f"{victim.good} of {own} ({victims_meanwhile} during it), worst {victim.worst * 1000:.0f} ms"
verdict.must("the victim's new channels", worst, not victim.bad and victims_meanwhile > 0)
verdict.must("who comes back to a silent channel", f"recovered: {back['subscribe'].get('recovered', False)}", back["subscribe"].get("recovered") is True)
verdict.end()
