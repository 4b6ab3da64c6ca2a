#!/usr/bin/env python3
"""A new binary takes over: many tunnels open, handshakes arriving; none is refused, none closes before its drain.

    tests/benches/handover.py [--tunnels 5000] [--rate 200] [--drain 500]

Starts `weir run --upgrade`, then sends SIGQUIT to the old process, which hands its listeners over and drains.
"""

import collections
import signal
import time

from edge import Clients, Server, Verdict, Weir, arguments, ms

args = arguments(__doc__, tunnels=5000, rate=200, drain=500)
verdict = Verdict(f"hand-over with {args.tunnels} tunnels and {args.rate} handshakes a second")
timeout = int(args.tunnels / args.drain * 1.5) + 10
server = Server(args, "127.0.0.1:17900")
drain = f'[proxy.drain]\nrate = "{args.drain}/s"\ntimeout = "{timeout}s"\n'
weir = Weir(args, [server.addr], sections=drain)
crowd = Clients(args, weir.listen, count=args.tunnels, rate=800)
new = None
try:
    crowd.wait_open(args.tunnels)
    arriving = Clients(args, weir.listen, count=args.rate * (timeout + 30), rate=args.rate, lasts=1, first=args.tunnels)
    time.sleep(3)
    begun = ms()
    old = weir.process
    # The old process keeps its admin listener as long as it lives.
    weir.write(sections=drain, admin="127.0.0.1:17002")
    weir.process = new = weir.run("--upgrade")
    time.sleep(1)
    handed = ms()
    old.send_signal(signal.SIGQUIT)
    weir.admin = "127.0.0.1:17002"
    weir.wait_ready(20)
    try:
        status = old.wait(timeout + 15)
    except Exception:
        status = "still running"
        old.kill()
    gone = ms()
    time.sleep(3)
    failed = arriving.failed(begun)
    ok = sum(s["handshakes"]["count"] for s in arriving.events("second") if s["t"] > begun)
    early = [c for c in crowd.closes() if c["t"] < handed]
    verdict.must("handshakes refused or failed", f"{sum(failed.values())} {failed or ''} of {ok + sum(failed.values())}", not failed)
    verdict.must("tunnels closed before the drain", len(early), not early)
    cut = [c for c in arriving.closes() if c["t"] > begun]
    # Those that came in just before the hand-over may be drained with the old process.
    cut = [c for c in cut if c["t"] - c["age"] > handed + 1000]
    verdict.must("newcomers cut off", len(cut), not cut)
    codes = collections.Counter(str(c["code"] or c["how"]) for c in crowd.closes())
    verdict.must("old tunnels closed with", dict(codes), set(codes) <= {"1001", "1012"} and sum(codes.values()) == args.tunnels)
    verdict.must("the old process ended with", f"{status} after {(gone - handed) / 1000:.1f} s", status == 0)
    verdict.must("the new process runs", new.poll() is None, new.poll() is None)
    verdict.figure("p99 of a handshake before, ms (median second)", f"{arriving.typical('handshakes', 0, begun):.2f}")
    verdict.figure("p99 of a handshake after, ms (worst second)", f"{arriving.worst('handshakes', begun):.2f}")
    arriving.end()
finally:
    crowd.end()
    weir.stop()
    server.end()
verdict.end()
