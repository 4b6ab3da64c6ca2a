"""What a message costs between two nodes: processor time of all processes together, and latency.

Each round runs, one after the other and on the same cores (the system on core 0, the load on core 1):

  bus alone    A publisher's and a subscriber's process with a bus between them, no nodes. A payload of 100 bytes,
               50 channels, evenly spaced, each publish waits for its answer while others go on; the very same
               driver, clock and pace. Counted: server(s), publisher and subscriber.
                 redis       PUBLISH to SUBSCRIBE through one redis-server without persistence. The two ends are
                             written for this (bare sockets, one task): what a client library does is not in it.
                             Kept for nobody: who is away misses it.
                 weir live   the same promise: channels without history. The ends are Weir's own RemoteBus.
                 weir        channels with history: kept, numbered, and acknowledged as kept.
                 weir x3     the same with three brokers and two copies: acknowledged when two have it. The
                             publisher is at one broker, the subscriber at another.
  end to end   POST /api/publish at one node, a WebSocket at another, history on. Counted: both nodes and the
               broker(s); not the load (HTTP and WebSocket clients), which is shown apart.

The latency is from the publish call (the HTTP request) to the arrival at the subscriber. "driver late" is how
long after its time a message was made: where it is long, the machine was busy with something else.

    cargo build --release -p weir && cargo build --release -p weir-tests --example bus_load
    python3 tests/benches/bus.py [--rounds 5] [--seconds 10] [--rate 2000]
"""

import os
import statistics
import time

import brokers
from edge import Verdict, arguments

args = arguments(__doc__, rounds=5, seconds=10, rate=2000, only="", load_core="1")


def per_message(cpu):
    messages = args.rate * args.seconds
    return {name: seconds / messages * 1e6 for name, seconds in cpu.items()}


def alone(kind, publish_at, receive_at, system, history):
    options = [f"history={history}", f"rate={args.rate}", f"seconds={args.seconds}"]
    receiver = brokers.Load(args, "receive", kind, receive_at, *options)
    receiver.order("go")
    publisher = brokers.Load(args, "publish", kind, publish_at, *options)
    counted = {p.name: p for p in system} | {"publisher": publisher, "subscriber": receiver}
    before = {name: p.cpu() for name, p in counted.items()}
    told = publisher.ask("go")
    time.sleep(0.1)
    arrived = receiver.ask("report")
    cpu = {name: p.cpu() - before[name] for name, p in counted.items()}
    publisher.stop()
    receiver.stop()
    assert told["failed"] == 0 and told["answers"]["count"] == told["sent"] == arrived["count"], (told, arrived)
    return per_message(cpu), arrived, told["late"]


def edge(system):
    publish_at, receive_at = system[-2:]
    load = brokers.Load(args, "edge", publish_at.addr, brokers.KEY, receive_at.addr, f"rate={args.rate}", f"seconds={args.seconds}")
    before = {p.name: p.cpu() for p in system}
    told = load.ask("go")
    cpu = {p.name: p.cpu() - before[p.name] for p in system}
    load.stop()
    assert told["arrived"]["count"] == told["answers"]["count"] == told["sent"], told
    return per_message(cpu), told["arrived"], told["late"]


def redis():
    server = brokers.Redis()
    try:
        return alone("redis", server.addr, server.addr, [server], 0)
    finally:
        server.stop()


def weir(count, history=1, through=alone):
    system = brokers.brokers(args, count)
    try:
        if through is edge:
            system += brokers.nodes(args, [system[0], system[-1]])
            return edge(system)
        return alone("weir", system[0].addr, system[-1].addr, system, history)
    finally:
        brokers.stop(system)


VARIANTS = {
    "bus alone, redis": redis,
    "bus alone, weir live": lambda: weir(1, history=0),
    "bus alone, weir": lambda: weir(1),
    "bus alone, weir x3": lambda: weir(3),
    "end to end, weir": lambda: weir(1, through=edge),
    "end to end, weir x3": lambda: weir(3, through=edge),
}

verdict = Verdict(f"{args.rate} messages a second from one node to another, {args.rounds} rounds of {args.seconds} s")
figures, cannot = {name: [] for name in VARIANTS if args.only in name}, set()
for round in range(args.rounds):
    print(f"round {round + 1}, load average {os.getloadavg()[0]:.1f}", flush=True)
    for name in figures:
        if name in cannot:
            continue
        try:
            cpu, latency, late = VARIANTS[name]()
        except brokers.Cannot as reason:
            print(f"    {name:22} left out: {reason}", flush=True)
            cannot.add(name)
            continue
        total = sum(cpu.values())
        figures[name].append((total, latency["p50"], latency["p99"]))
        parts = ", ".join(f"{n} {us:.0f}" for n, us in cpu.items())
        print(
            f"    {name:22} {total:6.1f} µs of CPU ({parts}), p50 {latency['p50']:.0f} µs, p99 {latency['p99']:.0f} µs,"
            f" max {latency['max']:.0f} µs; driver late p99 {late['p99']:.0f} µs", flush=True,
        )

print()


def spread(name, at):
    values = sorted(f[at] for f in figures.get(name, []))
    return (statistics.median(values), f"{statistics.median(values):.0f} µs ({values[0]:.0f} to {values[-1]:.0f})") if values else (None, "")


for name, rounds in figures.items():
    if rounds:
        verdict.figure(name, f"CPU {spread(name, 0)[1]}, p50 {spread(name, 1)[1]}, p99 {spread(name, 2)[1]}")
one, three = spread("end to end, weir", 0), spread("end to end, weir x3", 0)
if one[0]:
    verdict.must("one broker, end to end: CPU per message, 60 µs or less", one[1], one[0] <= 60)
    late = spread("end to end, weir", 2)
    verdict.must("one broker, end to end: p99 below 1 ms", late[1], late[0] < 1000)
if one[0] and three[0]:
    verdict.must("three brokers: at most 2.5 times as much", f"{three[0] / one[0]:.2f} times", three[0] <= 2.5 * one[0])
verdict.end()
