#!/usr/bin/env python3
"""Memory per idle tunnel and CPU per round trip of the proxy over TLS with HTTP/1.1, HTTP/2 and HTTP/3, beside HAProxy
(HTTP/1.1, HTTP/2) and Caddy (HTTP/2, HTTP/3); and a certificate that is replaced while tunnels are open.

    tests/clients/python/.venv/bin/python tests/benches/versions.py [--tunnels 2000] [--rounds 3] [--weir BINARY]
    …/versions.py --certificate [--tunnels 5000]

The proxy runs alone on core 0; a node behind it, and the clients (Python's asyncio, h2, aioquic), on the others. A round
trip is a command of 128 bytes to the node and its answer, over all tunnels at once; CPU is the proxy's own (user and
system). HAProxy must be installed for its part, and Caddy for its own:
go install github.com/caddyserver/caddy/v2/cmd/caddy@v2.11.9
"""

import argparse
import asyncio
import importlib.util
import os
import pathlib
import shutil
import signal
import ssl
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
spec = importlib.util.spec_from_file_location("transports", ROOT / "tests/clients/python/transports.py")
transports = importlib.util.module_from_spec(spec)
spec.loader.exec_module(transports)

parser = argparse.ArgumentParser()
parser.add_argument("--weir", default=str(ROOT / "target/release/weir"))
parser.add_argument("--tunnels", type=int, default=0)
parser.add_argument("--rounds", type=int, default=3)
parser.add_argument("--certificate", action="store_true")
args = parser.parse_args()
HOST, NODE, TLS, ADMIN = "127.0.0.1", 22100, 22443, 22900
STREAMS = 100
CADDY = shutil.which("caddy") or str(pathlib.Path.home() / "go/bin/caddy")
PAD = "x" * 90

folder = pathlib.Path(tempfile.mkdtemp(prefix="weir-versions-"))
processes = []


def start(command, core=None):
    pinned = ["taskset", "-c", core] if core else []
    process = subprocess.Popen(pinned + command, stdout=open(folder / "log", "a"), stderr=subprocess.STDOUT)
    processes.append(process)
    return process


def certificate(days):
    subprocess.run([args.weir, "cert", "self-signed", "--names", "localhost,127.0.0.1", "--days", str(days), "--force",
                    "--out", str(folder)], check=True, capture_output=True)
    (folder / "both.pem").write_text((folder / "cert.pem").read_text() + (folder / "key.pem").read_text())


def node():
    (folder / "node.toml").write_text(f"""
roles = ["node", "broker"]
[admin]
listen = "{HOST}:{ADMIN + 1}"
[node]
listen = "{HOST}:{NODE}"
anonymous = true
max_connections_per_ip = 0
ping_interval = "10m"
[broker]
listen = "{HOST}:{NODE + 1}"
""")
    return start([args.weir, "run", "--config", str(folder / "node.toml")], "1")


def weir():
    (folder / "proxy.toml").write_text(f"""
roles = ["proxy"]
[admin]
listen = "{HOST}:{ADMIN}"
[proxy]
listen = "{HOST}:{TLS + 1}"
threads = 1
handshake_rate = "0/s"
max_connections_per_ip = 0
max_requests_per_ip = 0
max_connections = 0
max_requests = 0
[proxy.tls]
listen = ["{HOST}:{TLS}"]
certificates = [{{ cert = "{folder}/cert.pem", key = "{folder}/key.pem" }}]
handshake_rate = "0/s"
[proxy.upstream.node]
servers = ["{HOST}:{NODE}"]
[[proxy.route]]
to = "node"
""")
    return start([args.weir, "run", "--config", str(folder / "proxy.toml")], "0")


def haproxy():
    (folder / "haproxy.cfg").write_text(f"""
global
  nbthread 1
  maxconn 8000
defaults
  mode http
  timeout connect 5s
  timeout client 10m
  timeout server 10m
  timeout tunnel 1h
frontend f
  bind {HOST}:{TLS} ssl crt {folder}/both.pem alpn h2,http/1.1
  default_backend b
backend b
  server s {HOST}:{NODE}
""")
    return start(["haproxy", "-f", str(folder / "haproxy.cfg"), "-db"], "0")


def caddy():
    (folder / "Caddyfile").write_text(f"""
{{
  admin off
  auto_https off
}}
https://{HOST}:{TLS}, https://localhost:{TLS} {{
  tls {folder}/cert.pem {folder}/key.pem
  reverse_proxy {HOST}:{NODE}
}}
""")
    # Extended CONNECT over HTTP/2 is off in Go without this.
    settings = ["env", "GODEBUG=http2xconnect=1", "GOMAXPROCS=1"]
    return start([*settings, CADDY, "run", "--config", str(folder / "Caddyfile"), "--adapter", "caddyfile"], "0")


def memory(pid):
    for line in open(f"/proc/{pid}/smaps_rollup"):
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024


def cpu(pid):
    """Seconds of all its threads, to the nanosecond (`stat` counts ticks of 10 ms)."""
    return sum(int(task.read_text().split()[0]) for task in pathlib.Path(f"/proc/{pid}/task").glob("*/schedstat")) / 1e9


def trust(alpn):
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    tls.check_hostname, tls.verify_mode = False, ssl.CERT_NONE
    tls.set_alpn_protocols([alpn])
    return tls


OVER = {alpn: trust(alpn) for alpn in ["http/1.1", "h2"]}


async def joined(client):
    await client.ask({"id": 1, "connect": {}})
    return client


async def around(client, number):
    """128 bytes there, and an answer (that this command is not available) back."""
    client.say({"id": number, "rpc": {"data": PAD}})
    reply = await asyncio.wait_for(client.replies.get(), transports.DEADLINE)
    assert reply["id"] == number, reply


class Http1(asyncio.Protocol):
    """One WebSocket on a connection of its own."""

    async def open(self):
        self.head, self.opened = b"", asyncio.get_running_loop().create_future()
        loop, tls = asyncio.get_running_loop(), OVER["http/1.1"]
        self.transport, _ = await loop.create_connection(lambda: self, HOST, TLS, ssl=tls)
        self.client = transports.Client(self.transport.write)
        self.transport.write(
            f"GET {transports.PATH} HTTP/1.1\r\nHost: {HOST}:{TLS}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n".encode())
        await asyncio.wait_for(self.opened, transports.DEADLINE)
        return await joined(self.client)

    def data_received(self, data):
        if self.opened.done():
            return self.client.hear(data)
        self.head += data
        if b"\r\n\r\n" in self.head:
            assert self.head.startswith(b"HTTP/1.1 101"), self.head
            self.opened.set_result(None)

    def connection_lost(self, error):
        self.client.lost = True


async def http1(count):
    clients = []
    for _ in range(0, count, 50):
        clients += await asyncio.gather(*[Http1().open() for _ in range(50)])
    return clients, None


async def http2(count):
    tls, clients = OVER["h2"], []
    for _ in range(count // STREAMS):
        make = lambda: transports.Http2(HOST, TLS)
        _, protocol = await asyncio.get_running_loop().create_connection(make, HOST, TLS, ssl=tls)
        opened = await asyncio.gather(*[protocol.open() for _ in range(STREAMS)])
        clients += await asyncio.gather(*[joined(client) for client in opened])
    return clients, None


async def http3(count, streams=STREAMS):
    clients, kept = [], []
    for _ in range(count // streams):
        configuration = transports.QuicConfiguration(
            is_client=True, alpn_protocols=transports.H3_ALPN, verify_mode=ssl.CERT_NONE)
        opening = transports.connect(HOST, TLS, configuration=configuration, create_protocol=transports.Http3)
        protocol = await opening.__aenter__()
        kept.append((opening, protocol))
        clients += [await joined(await protocol.open(HOST, TLS)) for _ in range(streams)]
    return clients, kept


async def measure(name, proxy, opening, count):
    await asyncio.sleep(1)
    before = memory(proxy.pid)
    clients, _kept = await opening(count)
    await asyncio.sleep(2)
    each = (memory(proxy.pid) - before) / count
    used = []
    for turn in range(args.rounds):
        begun, spent = time.monotonic(), cpu(proxy.pid)
        for again in range(5):
            number = 10 + turn * 5 + again
            await asyncio.gather(*[around(client, number) for client in clients])
        used.append((cpu(proxy.pid) - spent) / (5 * count) * 1e6)
    spread = f"{min(used):.1f} to {max(used):.1f}"
    print(f"{name:22} {each / 1024:7.1f} KiB a tunnel   {sorted(used)[len(used) // 2]:6.1f} µs a round trip ({spread})", flush=True)


async def table():
    count = args.tunnels or 2000
    http3s = [("h3", http3), ("h3, 10 a connection", lambda n: http3(n, 10)), ("h3, 1 a connection", lambda n: http3(n, 1))]
    kinds = [
        ("weir", args.weir, weir, [("h1", http1), ("h2", http2), *http3s]),
        ("haproxy", "haproxy", haproxy, [("h1", http1), ("h2", http2)]),
        ("caddy", CADDY, caddy, [("h1", http1), ("h2", http2), *http3s]),
    ]
    for name, program, run, openings in kinds:
        if not shutil.which(program):
            print(f"{name} is not installed")
            continue
        for transport, opening in openings:
            proxy = run()
            await measure(f"{name} {transport}", proxy, opening, count)
            proxy.kill()
            proxy.wait()


async def replaced():
    count = args.tunnels or 5000
    proxy = weir()
    await asyncio.sleep(1)
    shown = lambda: ssl.get_server_certificate((HOST, TLS))
    first = shown()
    begun = time.monotonic()
    clients, _ = await http1(count)
    print(f"{count} tunnels with TLS after {time.monotonic() - begun:.1f} s")
    certificate(12)
    proxy.send_signal(signal.SIGHUP)
    begun = time.monotonic()
    while shown() == first:
        assert time.monotonic() - begun < 10, "the old certificate is still shown"
        await asyncio.sleep(0.01)
    print(f"another certificate {time.monotonic() - begun:.2f} s after SIGHUP")
    await asyncio.sleep(3)
    await asyncio.gather(*[around(client, 2) for client in clients])
    closed = sum(hasattr(client, "lost") for client in clients)
    print(f"{closed} closed, {count} answer")
    sys.exit(closed > 0)


async def main():
    certificate(13)
    node()
    await asyncio.sleep(1)
    await (replaced() if args.certificate else table())


try:
    os.sched_setaffinity(0, set(range(1, os.cpu_count())) or {0})
    asyncio.run(main())
finally:
    for process in processes:
        process.kill()
    print((folder / "log").read_text()[-600:]) if sys.exc_info()[0] else None
    shutil.rmtree(folder, ignore_errors=True)
