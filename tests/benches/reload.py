#!/usr/bin/env python3
"""Reloads under load: many open tunnels, SIGHUP again and again with a changed conf each time; none closes.

    tests/benches/reload.py [--tunnels 9000] [--reloads 100] [--pause 0.2]
"""

import collections
import signal
import socket
import time

from edge import Clients, Server, Verdict, Weir, arguments, ms


def status_of(head_bytes):
    """What a plain request with a head of this size is answered."""
    with socket.create_connection(weir.listen.split(":"), 5) as plain:
        plain.sendall(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nX: " + b"x" * head_bytes + b"\r\n\r\n")
        return plain.recv(100).split(b" ")[1].decode()


def in_force(size, refused):
    """A reload took hold: heads of 20 KiB are refused from now on, or no more."""
    weir.write(proxy=f'head_size = "{size}"')
    weir.signal(signal.SIGHUP)
    end = time.monotonic() + 5
    while (status_of(20 << 10) == "431") != refused:
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


args = arguments(__doc__, tunnels=9000, reloads=100, pause=0.2)
verdict = Verdict(f"{args.tunnels} tunnels, {args.reloads} reloads")
server = Server(args, "127.0.0.1:17900")
weir = Weir(args, [server.addr])
crowd = Clients(args, weir.listen, count=args.tunnels, rate=800, probes=200)
try:
    crowd.wait_open(args.tunnels)
    calm = ms()
    time.sleep(3)
    begun = ms()
    verdict.figure("resident memory before, KiB", open(f"/proc/{weir.process.pid}/status").read().split("VmRSS:")[1].split()[0])
    for n in range(args.reloads):
        # Another limit, another deadline, another route in front: what a reload is for.
        weir.write(
            proxy=f'head_timeout = "{5 + n % 7}s"\nhead_size = "{16 + n % 5}KiB"',
            routes=f'[[proxy.route]]\nhost = "host-{n}.test"\npath = "/only-{n}"\nto = "app"\n',
        )
        weir.signal(signal.SIGHUP)
        time.sleep(args.pause)
    took_hold = in_force("16KiB", True) and in_force("32KiB", False) and in_force("16KiB", True)
    verdict.must("what the conf says is in force", took_hold, took_hold)
    time.sleep(2)
    ended = ms()
    check = crowd.check()
    closes = crowd.closes()
    newcomer = Clients(args, weir.listen, count=50, rate=200, first=args.tunnels)
    newcomer.wait_open(50, 30)
    verdict.must("tunnels closed", f"{len(closes)} {dict(collections.Counter(str(c['code'] or c['how']) for c in closes)) or ''}", not closes)
    verdict.must("tunnels that still echo", f"{check['passed']} of {args.tunnels}", check["passed"] == args.tunnels)
    verdict.must("weir still runs", weir.process.poll() is None, weir.process.poll() is None)
    verdict.figure("resident memory after, KiB", open(f"/proc/{weir.process.pid}/status").read().split("VmRSS:")[1].split()[0])
    verdict.figure("p99 of an echo before, ms (median second)", f"{crowd.typical('echoes', calm, begun):.2f}")
    verdict.figure("p99 of an echo during, ms (median second)", f"{crowd.typical('echoes', begun, ended):.2f}")
    verdict.figure("p99 of an echo during, ms (worst second)", f"{crowd.worst('echoes', begun, ended):.2f}")
    newcomer.end()
    # A bad file changes nothing, and the process says why.
    with open(weir.path, "w") as file:
        file.write("[proxy]\nno_such_key = 1\n")
    weir.signal(signal.SIGHUP)
    time.sleep(1)
    again = crowd.check()
    verdict.must("after a bad file: tunnels that echo", f"{again['passed']}", again["passed"] == args.tunnels and weir.process.poll() is None)
    verdict.must("after a bad file: the log names the key", "no_such_key" in weir.text(), "no_such_key" in weir.text())
finally:
    crowd.end()
    weir.stop()
    server.end()
verdict.end()
