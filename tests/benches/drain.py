#!/usr/bin/env python3
"""A paced drain: many tunnels, closed at a rate, oldest first, each with a code, all within the deadline.

    tests/benches/drain.py [--tunnels 5000] [--rate 500] [--by cli|sigterm]

By the command line (`weir drain --rate 500/s`), or by SIGTERM with `[proxy.drain] rate`.
"""

import collections
import re
import signal
import sys
import time

from edge import Clients, Server, Verdict, Weir, arguments, ms

args = arguments(__doc__, tunnels=5000, rate=500, by="cli")
verdict = Verdict(f"{args.tunnels} tunnels, drained at {args.rate}/s by {args.by}")
timeout = int(args.tunnels / args.rate * 1.5) + 5
server = Server(args, "127.0.0.1:17900")
by_term = args.by == "sigterm"
section = f'[proxy.drain]\nrate = "{args.rate}/s"\ntimeout = "{timeout}s"\n' if by_term else ""
weir = Weir(args, [server.addr], sections=section)
crowd = Clients(args, weir.listen, count=args.tunnels, rate=800)
try:
    crowd.wait_open(args.tunnels)
    begun = ms()
    if by_term:
        weir.signal(signal.SIGTERM)
    else:
        command = weir.command("drain", "--rate", f"{args.rate}/s", "--timeout", f"{timeout}s", "--admin", f"http://{weir.admin}", "--token", weir.token)
    progress = []
    end = time.monotonic() + timeout + 10
    while len(crowd.closes()) < args.tunnels and time.monotonic() < end:
        try:
            progress.append((ms() - begun, weir.metric("weir_proxy_tunnels")))
        except OSError:
            pass
        time.sleep(0.25)
    closes = crowd.closes()
    verdict.must("tunnels closed", f"{len(closes)} of {args.tunnels}", len(closes) == args.tunnels)
    times = sorted(c["t"] for c in closes)
    if len(times) > 1:
        # Without its ends: where it is under way.
        low, high = len(times) // 20, len(times) * 19 // 20
        pace = (high - low) * 1000 / max(1, times[high] - times[low])
        verdict.must("closes a second", f"{pace:.0f}", abs(pace - args.rate) <= args.rate / 10)
        tenths = collections.Counter((t - begun) // 1000 for t in times)
        verdict.figure("by second", " ".join(str(tenths[s]) for s in range(max(tenths) + 1)))
        verdict.must("from the order to the last close, s", f"{(times[-1] - begun) / 1000:.1f} (deadline {timeout})", times[-1] - begun <= timeout * 1000)
        # Indexes were opened in order: one that is closed long before an older one is out of order.
        order = [c["index"] for c in sorted(closes, key=lambda c: c["t"])]
        furthest = max(abs(place - index) for place, index in enumerate(order))
        verdict.must("furthest from its place by age", f"{furthest} of {args.tunnels}", furthest <= args.rate / 5)
    codes = collections.Counter(str(c["code"] or c["how"]) for c in closes)
    verdict.must("closed with", dict(codes), set(codes) <= {"1001", "1012"})
    shown = [n for _, n in progress]
    verdict.must("progress seen in the metrics", f"{len(set(shown))} different counts", len(set(shown)) > timeout / 3)
    if not by_term:
        told, status = command.communicate(timeout=30)[0], command.returncode
        verdict.must("`weir drain` ended with, and told", f"{status}, {len(told.splitlines())} lines of progress", status == 0 and len(told.splitlines()) > timeout / 3)
    try:
        status = weir.process.wait(20)
    except Exception:
        status = "still running"
    verdict.must("weir's exit status", status, status == 0)
finally:
    crowd.end()
    weir.stop()
    server.end()
verdict.end()
