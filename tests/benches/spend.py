#!/usr/bin/env python3
"""One client spends what all share: two servers behind a proxy with all defaults.

    tests/benches/spend.py [--weir target/release/weir] [--seconds 60] [--rate 50] [--quick]

127.0.0.2 asks for slow and endless URLs on every path: plain requests over HTTP/1.1 and, where curl has it, HTTP/2
(and HTTP/3), and WebSocket handshakes to slow URLs, event streams and refusals without an end. Meanwhile the others
ask for pages and open WebSockets: none of theirs may fail. Then one server is stopped (SIGSTOP) and must be out within
`handshake_timeout` (5 s) + 1 s: with clients of ten addresses, and with all of one, for WebSockets and for plain
requests alone. At last Weir has 64 descriptors, and its own lack of them is held against no server.
"""

import argparse
import asyncio
import base64
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request

APP = r"""
import asyncio, base64, hashlib, sys

async def serve(reader, writer):
    try:
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            path = head.split(" ")[1]
            low = head.lower()
            if path.startswith("/slow"):
                await asyncio.sleep(3600)
            if path.startswith("/stream"):
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n")
                while True:
                    writer.write(b"data: x\n\n")
                    await writer.drain()
                    await asyncio.sleep(0.2)
            if path.startswith("/stuck"):
                writer.write(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 1000\r\n\r\nno")
                await asyncio.sleep(3600)
            if "upgrade: websocket" in low:
                key = [l.split(":", 1)[1].strip() for l in head.split("\r\n") if l.lower().startswith("sec-websocket-key")][0]
                proof = base64.b64encode(hashlib.sha1((key + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11").encode()).digest()).decode()
                writer.write(f"HTTP/1.1 101 S\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {proof}\r\n\r\n".encode())
                await writer.drain()
                await reader.read(65536)
                return
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
            await writer.drain()
    except (asyncio.IncompleteReadError, ConnectionError, asyncio.LimitOverrunError):
        pass
    finally:
        writer.close()

async def main():
    server = await asyncio.start_server(serve, "127.0.0.1", int(sys.argv[1]), backlog=1024)
    await server.serve_forever()

asyncio.run(main())
"""

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
root = os.path.realpath(os.path.join(os.path.dirname(__file__), "../.."))
parser.add_argument("--weir", default=os.path.join(root, "target/release/weir"))
parser.add_argument("--seconds", type=float, default=60)
parser.add_argument("--rate", type=float, default=50)
parser.add_argument("--quick", action="store_true", help="two of the four ways to stop a server")
args = parser.parse_args()


def free():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


folder = tempfile.mkdtemp(prefix="weir-spend-")
PLAIN, TLS, ADMIN, SERVERS = free(), free(), free(), [free(), free()]


def start():
    cert, key = os.path.join(folder, "cert.pem"), os.path.join(folder, "key.pem")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
         "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-keyout", key, "-out", cert],
        check=True, capture_output=True)
    conf = os.path.join(folder, "weir.toml")
    with open(conf, "w") as f:
        f.write(f'''roles = ["proxy"]
[proxy]
listen = "127.0.0.1:{PLAIN}"
[proxy.tls]
listen = ["127.0.0.1:{TLS}"]
certificates = [{{ cert = "{cert}", key = "{key}" }}]
[proxy.upstream.app]
servers = ["127.0.0.1:{SERVERS[0]}", "127.0.0.1:{SERVERS[1]}"]
[[proxy.route]]
path = "/"
to = "app"
[admin]
listen = "127.0.0.1:{ADMIN}"
''')
    apps = [subprocess.Popen([sys.executable, "-c", APP, str(port)]) for port in SERVERS]
    log = open(os.path.join(folder, "weir.log"), "w")
    weir = subprocess.Popen([args.weir, "run", "--config", conf], stdout=log, stderr=log)
    for port in [*SERVERS, ADMIN, PLAIN]:
        for _ in range(200):
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                time.sleep(0.05)
    return apps, weir


def metrics():
    return urllib.request.urlopen(f"http://127.0.0.1:{ADMIN}/metrics", timeout=5).read().decode()


def breaker(port):
    found = re.search(rf'weir_proxy_breaker_state\{{[^}}]*server="127.0.0.1:{port}"[^}}]*\}} (\d+)', metrics())
    return int(found.group(1)) if found else 0


def request(path, websocket):
    more = ""
    if websocket:
        key = base64.b64encode(os.urandom(16)).decode()
        more = f"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n"
    else:
        more = "Connection: close\r\n"
    return f"GET {path} HTTP/1.1\r\nHost: localhost\r\n{more}\r\n".encode()


async def ask(ip, path, websocket, deadline):
    """The status, or what went wrong."""
    writer = None
    try:
        async with asyncio.timeout(deadline):
            reader, writer = await asyncio.open_connection("127.0.0.1", PLAIN, local_addr=(ip, 0))
            writer.write(request(path, websocket))
            head = await reader.readuntil(b"\r\n\r\n")
            return int(head.split(b" ")[1])
    except TimeoutError:
        return "timeout"
    except (OSError, asyncio.IncompleteReadError) as error:
        return repr(error)
    finally:
        if writer:
            writer.close()


async def attack(until, counts):
    """Plain requests and handshakes, as many at once as the limits per address let in."""
    async def one(path, websocket):
        while time.time() < until:
            status = await ask("127.0.0.2", path, websocket, until - time.time() + 0.1)
            counts[status] = counts.get(status, 0) + 1
            await asyncio.sleep(0.05)

    async def curl(version, path):
        while time.time() < until:
            process = await asyncio.create_subprocess_exec(
                "curl", version, "-sk", "--interface", "127.0.0.2", "--max-time", "8", "-o", os.devnull,
                "-w", "%{http_version}", f"https://127.0.0.1:{TLS}{path}", stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
            out, _ = await process.communicate()
            counts[f"HTTP/{out.decode()}"] = counts.get(f"HTTP/{out.decode()}", 0) + 1
            await asyncio.sleep(0.2)

    features = subprocess.run(["curl", "--version"], capture_output=True, text=True).stdout
    versions = [v for name, v in [("HTTP2", "--http2"), ("HTTP3", "--http3-only")] if name in features]
    paths = ["/slow", "/stream", "/stuck"]
    await asyncio.gather(
        *(one(path, websocket) for path in paths for websocket in (True, False) for _ in range(20)),
        *(curl(version, path) for version in versions for path in paths for _ in range(3)))


async def good(until, addresses, failed, done, kinds=(True, False)):
    pending, n = set(), 0
    begun = time.time()

    async def one(n):
        sent = time.time()
        status = await ask(addresses[n % len(addresses)], f"/ok?{n}", kinds[n % len(kinds)], 15)
        done.append(sent)
        if status not in (101, 200):
            failed.append((sent, status))

    while time.time() < until:
        task = asyncio.create_task(one(n))
        pending.add(task)
        task.add_done_callback(pending.discard)
        n += 1
        await asyncio.sleep(max(0, begun + n / args.rate - time.time()))
    await asyncio.gather(*pending)


TEN = [f"127.0.0.{n}" for n in range(10, 20)]
sound = True


def must(what, value, holds):
    global sound
    sound &= holds
    print(f"{'ok  ' if holds else 'FAIL'} {what}: {value}", flush=True)


async def spend():
    failed, done, counts = [], [], {}
    until = time.time() + args.seconds
    highest = [0, 0]

    async def look():
        while time.time() < until:
            for n, port in enumerate(SERVERS):
                highest[n] = max(highest[n], await asyncio.to_thread(breaker, port))
            await asyncio.sleep(0.5)

    await asyncio.gather(attack(until, counts), good(until, TEN, failed, done), look())
    print(f"     what 127.0.0.2 got: {counts}")
    must(f"of {len(done)} good requests in {args.seconds:.0f} s failed", f"{len(failed)} {failed[:3]}", not failed and len(done) > 10)
    must("highest state of the breakers", highest, highest == [0, 0])


async def stopped(what, apps, addresses, kinds):
    # Where all are of one address, they go to one server: that one is stopped.
    failed, done = [], []
    await good(time.time() + 2, addresses, failed, done, kinds)
    victim = 0
    if len(addresses) == 1:
        log = open(os.path.join(folder, "weir.log")).read()
        log = re.sub(r"\x1b\[[0-9;]*m", "", log)
        last = re.findall(rf'client={re.escape(addresses[0])}\b.*server="?127\.0\.0\.1:(\d+)', log)
        victim = SERVERS.index(int(last[-1]))
    apps[victim].send_signal(signal.SIGSTOP)
    begun, out = time.time(), None
    crowd = asyncio.create_task(good(begun + 9, addresses, failed, done, kinds))
    try:
        while time.time() < begun + 9:
            if await asyncio.to_thread(breaker, SERVERS[victim]):
                out = time.time() - begun
                break
            await asyncio.sleep(0.05)
        await crowd
    finally:
        apps[victim].send_signal(signal.SIGCONT)
    late = [f for f in failed if f[0] > begun + (out or 9) + 0.5]
    must(f"{what}: out after, s", f"{out and round(out, 2)} (failed: {len(failed)}, of those that came later: {len(late)})",
         out is not None and out <= 6)
    for _ in range(300):
        if breaker(SERVERS[victim]) == 0:
            break
        await good(time.time() + 0.2, addresses, [], [], kinds)


async def out_of_descriptors(apps, weir):
    """Its own lack of descriptors says nothing of a server."""
    weir.terminate()
    weir.wait()
    limited = [sys.executable, "-c", "import os, resource, sys; resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64)); os.execv(sys.argv[1], sys.argv[1:])"]
    log = open(os.path.join(folder, "weir-64.log"), "w")
    weir = subprocess.Popen([*limited, args.weir, "run", "--config", os.path.join(folder, "weir.toml")], stdout=log, stderr=log)
    await asyncio.sleep(2)
    tasks = [asyncio.create_task(ask("127.0.0.2", "/slow", n % 2 == 0, 4)) for n in range(120)]
    answers = await asyncio.gather(*tasks)
    await asyncio.sleep(1)
    refused = sum(answer == 503 for answer in answers)
    text = metrics()
    failures = re.findall(r"weir_proxy_upstream_connect_failures_total.* [1-9].*", text)
    must("with 64 descriptors: failures held against servers", f"{failures} ({refused} requests were refused)", not failures)
    must("and the breakers", [breaker(port) for port in SERVERS], [breaker(port) for port in SERVERS] == [0, 0])
    served = await ask("127.0.0.10", "/ok", False, 5)
    must("and afterwards a request gets", served, served == 200)
    return weir


async def main():
    apps, weir = start()
    try:
        await spend()
        await stopped("a stopped server, one address, WebSockets", apps, ["127.0.0.30"], (True,))
        await stopped("a stopped server, ten addresses, plain requests", apps, TEN, (False,))
        if not args.quick:
            await stopped("a stopped server, ten addresses, WebSockets", apps, TEN, (True,))
            await stopped("a stopped server, one address, plain requests", apps, ["127.0.0.31"], (False,))
        must("Weir runs", weir.poll() is None, weir.poll() is None)
        weir = await out_of_descriptors(apps, weir)
    finally:
        weir.terminate()
        for app in apps:
            app.kill()
        weir.wait()
    print("all held" if sound else f"not all held; the log is in {folder}")
    sys.exit(0 if sound else 1)


asyncio.run(main())
