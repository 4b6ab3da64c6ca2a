#!/usr/bin/env python3
"""A client of HTTP/3 that gets another IP address again and again, as a phone between networks, with a WebSocket and a
session of WebTransport open on one connection: nothing may close, and no message be lost, doubled or out of order.

    tests/clients/python/.venv/bin/python tests/benches/migrate.py [--times 100] [--weir BINARY]

The client (aioquic) is in a network namespace (link.py) whose address is taken away and replaced. Around each move the
server publishes three times by its HTTP API: before it, when the client has no address, and after it; and the client
publishes once with its new address. Wants root, iproute2 and nftables.
"""

import argparse
import asyncio
import json
import os
import pathlib
import ssl
import subprocess
import sys
import tempfile
import time
import urllib.request

from link import ADMIN, API_KEY, NODE, TLS, Link, server

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests/clients/python"))
import transports  # noqa: E402

target = os.environ.get("CARGO_TARGET_DIR", f"{ROOT}/target")
parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--weir", default=f"{target}/release/weir")
parser.add_argument("--times", type=int, default=100)
parser.add_argument("--delay", type=float, default=10, help="milliseconds, each way")
parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
args = parser.parse_args()
CHANNEL, DEVICE = "on-the-move", f"{Link.client}0"


def publish(number):
    body = json.dumps({"channel": CHANNEL, "data": {"number": number}}).encode()
    headers = {"Content-Type": "application/json", "X-API-Key": API_KEY}
    request = urllib.request.Request(f"http://{Link.direct}:{NODE}/api/publish", body, headers)
    with urllib.request.urlopen(request, timeout=10) as answer:
        reply = json.load(answer)
    assert "error" not in reply, reply


def ip(*lines):
    subprocess.run(["ip", "-batch", "-"], input="\n".join(lines) + "\n", text=True, check=True)


def address(number):
    return f"10.78.0.{10 + number % 240}"


async def hear(clients, number):
    for client in clients:
        got = await asyncio.wait_for(client.published.get(), transports.DEADLINE)
        assert got == {"number": number}, f"{got} in place of {number}"


async def move():
    configuration = transports.QuicConfiguration(
        is_client=True, alpn_protocols=transports.H3_ALPN, verify_mode=ssl.CERT_NONE)
    at = (Link.server_at, TLS)
    async with transports.connect(*at, configuration=configuration, create_protocol=transports.Http3) as protocol:
        clients = [await protocol.open(*at), await protocol.open_session(*at)]
        for client in clients:
            await client.join(CHANNEL)
        number, silent = 0, []
        for turn in range(args.times):
            publish(number)
            ip(f"addr flush dev {DEVICE}")
            publish(number + 1)
            ip(f"addr add {address(turn)}/24 dev {DEVICE}", f"route add 10.78.1.0/24 dev {DEVICE}")
            begun = time.monotonic()
            publish(number + 2)
            await clients[turn % 2].publish(CHANNEL, {"number": number + 3})
            for each in range(4):
                await hear(clients, number + each)
            silent.append(time.monotonic() - begun)
            number += 4
        assert protocol.gone is None and all(client.published.empty() for client in clients)
        silent.sort()
        print(f"{args.times} addresses, {number} messages to each of 2 clients: none lost, doubled or out of order, none "
              f"closed. All had come {silent[len(silent) // 2] * 1000:.0f} ms (median, at most "
              f"{silent[-1] * 1000:.0f} ms) after a new address.")


def main():
    link = Link(args.delay)
    with tempfile.TemporaryDirectory(prefix="weir-migrate-") as folder:
        with server(link, args.weir, folder):
            command = link.inside(link.client, sys.executable, __file__, "--inside", "--times", str(args.times))
            ended = subprocess.run(command).returncode
            metrics = subprocess.run(link.inside(link.server, "curl", "-s", f"http://127.0.0.1:{ADMIN}/metrics"),
                                     capture_output=True, text=True).stdout
        for line in metrics.splitlines():
            if line.startswith(("weir_proxy_handshakes_total", "weir_proxy_quic")):
                print(f"  {line}")
        sys.exit(ended)


asyncio.run(move()) if args.inside else main()
