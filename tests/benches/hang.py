#!/usr/bin/env python3
"""One server of four hangs (SIGSTOP): how soon its breaker opens, what the others' clients feel, how it comes back.

    tests/benches/hang.py [--rate 200] [--hang 20] [--timeout 2s]

`--timeout` is proxy.handshake_timeout.
"""

import signal
import time

from edge import Clients, Server, Verdict, Weir, arguments, ms

args = arguments(__doc__, rate=200, hang=20, timeout="2s", failures=5)
verdict = Verdict(f"one of four servers hangs for {args.hang} s, {args.rate} handshakes a second")
servers = [Server(args, f"127.0.0.1:{17900 + n}") for n in range(4)]
victim = servers[2]
weir = Weir(
    args, [s.addr for s in servers],
    proxy=f'handshake_timeout = "{args.timeout}"',
    sections=f'[proxy.breaker]\nfailures = {args.failures}\nopen_for = "2s"\nopen_max = "4s"\n',
)
crowd = Clients(args, weir.listen, count=args.rate * (args.hang + 60), rate=args.rate, lasts=2)
label = f'server="{victim.addr}"'


def breaker():
    return weir.metric("weir_proxy_breaker_state", label)


try:
    time.sleep(3)
    before = ms()
    time.sleep(5)
    stopped = ms()
    victim.signal(signal.SIGSTOP)
    while breaker() < 1 and ms() - stopped < 30_000:
        time.sleep(0.02)
    opened = ms()
    verdict.must("until the breaker opened, s", f"{(opened - stopped) / 1000:.2f}", opened - stopped < 5000)
    # Those whose handshake was under way then still run into its deadline.
    settled = opened + 3000
    time.sleep(args.hang - (ms() - stopped) / 1000)
    continued = ms()
    victim.signal(signal.SIGCONT)
    while breaker() >= 1 and ms() - continued < 30_000:
        time.sleep(0.02)
    closed = ms()
    time.sleep(6)
    end = ms()
    failed_opening, failed_open = crowd.failed(stopped, settled), crowd.failed(settled, continued)
    base, during = crowd.typical("handshakes", before, stopped), crowd.typical("handshakes", settled, continued)
    verdict.figure("handshakes that failed until it was open", failed_opening)
    verdict.figure("handshakes that failed while it was open (trials)", failed_open)
    verdict.figure("p99 of a handshake before, ms (median second)", f"{base:.2f}")
    verdict.must("p99 of a handshake while it was open, ms (median second)", f"{during:.2f}", during <= max(2 * base, 10))
    verdict.figure("p99 of a handshake while it was open, ms (worst second)", f"{crowd.worst('handshakes', settled, continued):.2f}")
    verdict.must("until the breaker closed after SIGCONT, s", f"{(closed - continued) / 1000:.2f}", closed - continued < 8000)
    share = args.rate / 4
    most = victim.most_per_second(closed, "accepted")
    verdict.figure("handshakes in its first second back", victim.accepted_in(closed, 1))
    verdict.must("the most in a second since then", f"{most} (its share is {share:.0f})", most <= share * 2)
    verdict.must("p99 of a handshake afterwards, ms (median second)", f"{crowd.typical('handshakes', closed, end):.2f}", crowd.typical("handshakes", closed, end) <= max(2 * base, 10))
finally:
    victim.signal(signal.SIGCONT)
    crowd.end()
    weir.stop()
    for server in servers:
        server.end()
verdict.end()
