#!/usr/bin/env python3
"""Delivery over a slow link that loses packets: one channel to 200 clients, over a WebSocket on TCP (HTTP/1.1 with TLS),
a WebSocket on HTTP/3 and a session of WebTransport (by its stream, and by datagrams), side by side.

    tests/benches/loss.py [--rounds 3] [--loss 2] [--delay 25] [--rate 10] [--seconds 30] [--weir BINARY]

The link is between two network namespaces (link.py): `--delay` milliseconds each way, `--loss` percent of the packets
each way. Each client has a connection of its own. Publications (128 bytes) come to the server by its HTTP API on a
link that loses nothing, so the time is that of the delivery. Times are measured by `weir bench`, whose publisher and
clients are one process. Wants root, iproute2 and nftables.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile

from link import API_KEY, NODE, TLS, Link, server

ROOT = pathlib.Path(__file__).resolve().parents[2]
KINDS = [
    ("WebSocket on TCP", "h1", "wss", "websocket"),
    ("WebSocket on HTTP/3", "h3", "wss", "websocket"),
    ("WebTransport", "webtransport", "https", "webtransport"),
    ("… with datagrams", "webtransport", "https", "webtransport?cf_datagrams=true"),
]

target = os.environ.get("CARGO_TARGET_DIR", f"{ROOT}/target")
parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--weir", default=f"{target}/release/weir")
parser.add_argument("--clients", type=int, default=200)
parser.add_argument("--rounds", type=int, default=3)
parser.add_argument("--loss", type=float, default=2, help="percent of the packets, each way")
parser.add_argument("--delay", type=float, default=25, help="milliseconds, each way")
parser.add_argument("--rate", type=float, default=10, help="publications per second")
parser.add_argument("--seconds", type=int, default=30)
args = parser.parse_args()


def measure(link, transport, scheme, path):
    command = link.inside(
        link.client, args.weir, "bench", "--json", "--insecure", "--transport", transport, "--clients", str(args.clients),
        "--url", f"{scheme}://{link.server_at}:{TLS}/connection/{path}", "--streams-per-connection", "1",
        "--rate", str(args.rate), "--duration", f"{args.seconds}s", "--connect-rate", "100",
        "--channel-prefix", "cursor:bench" if "?" in path else "bench",
        "--api", f"http://{link.direct}:{NODE}/api", "--api-key", API_KEY)
    if transport == "h1":
        at = command.index("--streams-per-connection")
        del command[at:at + 2]
    done = subprocess.run(command, capture_output=True, text=True)
    if not done.stdout.strip():
        sys.exit(f"weir bench: {done.stderr}")
    return json.loads(done.stdout)


def table(link, rounds):
    """Rounds alternate, so that what else the machine does meets all of them."""
    reports = {name: [] for name, *_ in KINDS}
    for _ in range(rounds):
        for name, *kind in KINDS:
            reports[name].append(measure(link, *kind))
    for name, seen in reports.items():
        part = lambda what: " ".join(f"{report['latency_us'][what] / 1000:6.0f}" for report in seen)
        absent = sum(sum(report["failed_to_connect"].values()) for report in seen)
        of = lambda what: sum(report[what] for report in seen)
        print(f"  {name:20} p50 {part('p50')}   p99 {part('p99')}   max {part('max')} ms"
              f"   {of('deliveries')} delivered, {of('lost')} lost, {of('duplicated')} twice, {absent} not there"
              f"{'   VOID' if any(report['void'] for report in seen) else ''}", flush=True)


def main():
    link = Link(args.delay)
    with tempfile.TemporaryDirectory(prefix="weir-loss-") as folder:
        with server(link, args.weir, folder):
            for percent in (0, args.loss):
                link.lose(percent)
                print(f"{percent:g} % lost and {args.delay:g} ms, each way")
                table(link, args.rounds if percent else 1)
        if link.dropped:
            print(f"the link itself dropped {link.dropped} packets: it was too slow, this does not count")


main()
