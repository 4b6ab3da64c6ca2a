#!/usr/bin/env python3
"""A storm: thousands come back within a second to an app that takes some hundred handshakes a second.

    tests/benches/storm.py [--clients 8000] [--pace 300] [--calm 200]

Clients obey Retry-After. `--admission ''` leaves Weir's admission budget out, to see the difference.
"""

import time

from edge import Clients, Server, Verdict, Weir, arguments, ms

args = arguments(__doc__, clients=8000, pace=300, calm=200, admission='[proxy.admission]\nrate = "{pace}/s"\nburst = 10\n')
verdict = Verdict(f"{args.clients} clients in a second, an app that takes {args.pace}/s")
server = Server(args, "127.0.0.1:17900", rate=args.pace)
weir = Weir(args, [server.addr], sections=args.admission.format(pace=args.pace))
calm = Clients(args, weir.listen, count=args.calm, rate=args.pace / 4, probes=args.calm, every=50, first=100_000)
crowd = None
try:
    calm.wait_open(args.calm)
    before = ms()
    time.sleep(5)
    begun = ms()
    crowd = Clients(args, weir.listen, count=args.clients, rate=args.clients, retry=1)
    expected = args.clients / args.pace
    try:
        last = crowd.wait_open(args.clients, expected * 4 + 30)
        took = (last["t"] - begun) / 1000
    except TimeoutError:
        took = float("inf")
    ended = ms()
    failed = crowd.failed()
    verdict.must("most handshakes offered to the app in any second", server.most_per_second(begun), server.most_per_second(begun) <= args.pace * 1.05)
    verdict.must("until all were in, s", f"{took:.1f} (at that pace {expected:.1f})", took <= expected * 1.5 + 2)
    verdict.figure("offered in all", server.offered(begun))
    verdict.figure("told to come again, and what else failed", failed)
    verdict.must("failed without an answer", sum(n for what, n in failed.items() if not what.isdigit()), all(w.isdigit() for w in failed))
    base, during = calm.typical("echoes", before, begun), calm.typical("echoes", begun, ended)
    verdict.figure("p99 of an echo before, ms (median second)", f"{base:.2f}")
    verdict.must("p99 of an echo during, ms (median second)", f"{during:.2f}", during <= max(2 * base, 5))
    verdict.figure("p99 of an echo during, ms (worst second)", f"{calm.worst('echoes', begun, ended):.2f}")
    verdict.must("connected clients that were cut off", len(calm.closes()), not calm.closes())
    check = calm.check()
    verdict.must("connected clients that echo", check["passed"], check["passed"] == args.calm)
finally:
    calm.end()
    if crowd:
        crowd.end()
    weir.stop()
    server.end()
verdict.end()
