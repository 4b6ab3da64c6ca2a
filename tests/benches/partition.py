#!/usr/bin/env python3
"""Three brokers, each with a network of its own, that lose sight of each other under load.

    tests/benches/partition.py [partition] [one-way] [bridge] [stop] [loss] [--seconds 30] [--seed N]

partition   one broker and its node on one side, two and theirs on the other, publishers on both sides
one-way     what one broker sends does not reach another, while all else does
bridge      two brokers do not see each other, while the third sees both
stop        the leader is stopped (SIGSTOP), and goes on 20 s later
loss        5 % of what brokers and nodes send each other is lost
delay       all between brokers, and from nodes to them, takes 50 ms each way (through relays)

All of them, if none is named. Exit code 77: this machine does not let it (the text says what is missing). Network
namespaces, a bridge and nftables rules in them are made, and removed again.
"""

import random
import signal
import subprocess
import sys
import time

import netns
from cluster import CHANNELS, Cluster, Load, Verdict, arguments, ms, outcomes, report
from edge import ROOT, running

PHASES = ["partition", "one-way", "bridge", "stop", "loss", "delay"]
asked = [word for word in sys.argv[1:] if word in PHASES]
sys.argv = [word for word in sys.argv if word not in PHASES]
args = arguments(__doc__, seconds=30, channels=50, subscribers=200, rate=300, percent=5, delay=50, conf="")
rng = random.Random(args.seed)
# n1 is beside b1, and knows only it; n2 is beside b2, and knows b2 and b3.
SEES = [[0], [1, 2]]
# Where clients would rather have messages that are not kept than none.
LIVE = CHANNELS.replace('name = "load"', 'name = "live"') + 'when_minority = "live"\n'


def first_acks(path, since):
    """Of each channel, the milliseconds from then to its first acknowledgement."""
    first = {}
    for t, kind, channel, _, _ in outcomes(path):
        if kind == "ack" and t >= since:
            first.setdefault(channel, t - since)
    return first


def told_between(path, since, until):
    """What publishers were told from `since` to `until`: acknowledged, and anything else."""
    acked = other = 0
    for t, kind, _, _, _ in outcomes(path):
        if since <= t < until:
            acked, other = acked + (kind == "ack"), other + (kind != "ack")
    return acked, other


class Run:
    """A cluster of its own for each phase, from its start to the verdict."""

    def __init__(self, phase, **more):
        self.verdict = Verdict(f"{phase}, seed {args.seed}")
        self.cluster = Cluster(args, hosts=net.hosts, broker=args.conf, sees=SEES, sections=CHANNELS + LIVE, **more)

    def __enter__(self):
        self.cluster.start()
        self.load = Load(self.cluster, channels=args.channels, subscribers=args.subscribers, rate=args.rate)
        a, b = self.cluster.node_addresses
        self.left = self.load.publish("left", nodes=[a], rate=args.rate / 2, per_channel=1)
        self.right = self.load.publish("right", nodes=[b], rate=args.rate / 2, per_channel=1)
        time.sleep(5)
        return self

    def __exit__(self, kind, *_):
        net.heal()
        if kind and kind is not SystemExit:
            self.cluster.show()
        self.cluster.remove()

    def heal_and_check(self, heal):
        healed = ms()
        heal()
        back = self.cluster.wait_healthy(60)
        self.verdict.must("healed: every broker healthy after, s", f"{back:.2f}", back <= 5)
        time.sleep(10)
        checked = self.load.finish()
        for side, path in (("left", self.left), ("right", self.right)):
            first = first_acks(path, healed)
            worst = max(first.values(), default=float("inf"))
            good = len(first) == args.channels and worst <= 5000
            self.verdict.must(f"healed: until the {side} side publishes in every channel, ms", f"{worst} ({len(first)} channels)", good)
        report(self.verdict, self.load, checked)
        return checked

    def leaders(self):
        """Who led, by the brokers' logs: how often that changed."""
        return sum(
            "this broker leads the brokers" in str(line)
            for broker in self.cluster.brokers
            for line in open(broker.log_path)
        )


def partition():
    with Run("partition") as run:
        live = Load(run.cluster, channels=10, subscribers=20, rate=50, namespace="live")
        lively = live.publish("lively", nodes=run.cluster.node_addresses[:1], per_channel=1)
        # The one may lead, or not.
        begun = ms()
        net.isolate(0)
        time.sleep(args.seconds)
        ended = ms()
        run.heal_and_check(net.heal)
        # From when the lease is over on the one side, and given to others on the other.
        acked, other = told_between(run.left, begun + 3000, ended)
        run.verdict.must("the one's side: acknowledged, told that it cannot", f"{acked}, {other}", acked == 0 and other > 0)
        first = first_acks(run.right, begun + 50)
        worst = max(first.values(), default=float("inf")) + 50
        run.verdict.must("the two's side: until every channel is served, ms", f"{worst} ({len(first)})", worst <= 5000 and len(first) == args.channels)
        acked, other = told_between(run.right, begun + 5000, ended)
        checked = live.finish()
        acked, other = told_between(lively, begun + 3000, ended)
        run.verdict.must("where messages may be only live: acknowledged, failed", f"{acked}, {other}", acked > 0 and other == 0)
        got = checked["figures"]["without_offset"]
        run.verdict.must("  … messages that came without an offset", got, got > 0)
        run.verdict.must("  … the checker's verdict", checked["faults"] or "right", checked["right"])
        run.verdict.must("the two's side, after 5 s: acknowledged, failed", f"{acked}, {other}", acked > 0 and other == 0)
    return run.verdict


def cut(phase, make):
    with Run(phase) as run:
        before, begun = run.leaders(), ms()
        make()
        time.sleep(args.seconds)
        changes = run.leaders() - before
        ended = ms()
        run.heal_and_check(net.heal)
        run.verdict.must("changes of the leader meanwhile", changes, changes <= 3)
        for side, path in (("left", run.left), ("right", run.right)):
            acked, other = told_between(path, begun + 5000, ended)
            run.verdict.figure(f"meanwhile, after 5 s, {side}: acknowledged, failed", f"{acked}, {other}")
    return run.verdict


def one_way():
    one, other = rng.sample(range(3), 2)
    return cut(f"one-way: nothing from b{other + 1} reaches b{one + 1}", lambda: net.cut(one, other))


def bridge():
    def make():
        net.cut(0, 2)
        net.cut(2, 0)
    return cut("bridge: b1 and b3 do not see each other, b2 sees both", make)


def stop():
    with Run("stop") as run:
        leader = run.cluster.brokers[0].status()["leader"]
        victim = next(b for b in run.cluster.brokers if b.name == leader)
        run.verdict.figure("stopped", victim.name)
        run.load.mark("stop", run.load.of_shards(run.cluster.owned_by(victim.name)))
        begun = ms()
        victim.signal(signal.SIGSTOP)
        time.sleep(20)
        checked = run.heal_and_check(lambda: victim.signal(signal.SIGCONT))
        times = checked["figures"]["first_ack_ms"].get("stop", {})
        if times.get("count"):
            run.verdict.must("its channels are served again, ms: p50, max", f"{times['p50']}, {times['max']}", times["max"] <= 5000)
        first = first_acks(run.right, begun + 50)
        run.verdict.figure("the side that has two brokers: every channel after, ms", max(first.values(), default=0) + 50)
    return run.verdict


def loss():
    with Run(f"{args.percent} % loss") as run:
        before, begun = run.leaders(), ms()
        net.lose(args.percent)
        time.sleep(args.seconds)
        changes = run.leaders() - before
        ended = ms()
        run.heal_and_check(net.heal)
        acked, other = told_between(run.left, begun, ended)
        right = told_between(run.right, begun, ended)
        acked, other = acked + right[0], other + right[1]
        run.verdict.must("attempts meanwhile: acknowledged, failed", f"{acked}, {other}", other <= acked * 0.02)
        run.verdict.must("changes of the leader meanwhile", changes, changes <= 1)
    return run.verdict


def delay():
    relays, ends = [], [f"10.77.0.1:{17150 + n}" for n in range(3)]
    for end, host, port in zip(ends, net.hosts, range(17100, 17103)):
        command = [sys.executable, f"{ROOT}/tests/benches/relay.py", end, f"{host.address}:{port}", str(args.delay)]
        relays.append(subprocess.Popen(command))
        running.append(relays[-1])
    try:
        with Run(f"{args.delay} ms each way", reached_at=ends) as run:
            before, begun = run.leaders(), ms()
            time.sleep(args.seconds)
            changes, ended = run.leaders() - before, ms()
            run.heal_and_check(lambda: None)
            (acked, other), right = told_between(run.left, begun, ended), told_between(run.right, begun, ended)
            acked, other = acked + right[0], other + right[1]
            run.verdict.must("attempts: acknowledged, failed", f"{acked}, {other}", acked > 0 and other <= acked * 0.01)
            run.verdict.must("changes of the leader meanwhile", changes, changes == 0)
    finally:
        for relay in relays:
            relay.kill()
            relay.wait()
    return run.verdict


net = netns.Net(["a", "b", "c"])
every = {"partition": partition, "one-way": one_way, "bridge": bridge, "stop": stop, "loss": loss, "delay": delay}
done = [every[phase]() for phase in asked or PHASES]
wrong = [v.title for v in done if not v.right]
print("\n" + (f"NOT as promised: {wrong}" if wrong else "all as promised"))
sys.exit(1 if wrong else 0)
