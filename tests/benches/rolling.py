#!/usr/bin/env python3
"""Brokers are restarted in order (SIGTERM), one after the other, under load; and all at once, with what is on disk.

    tests/benches/rolling.py [rolling] [whole] [--rounds 2] [--data-dir]

rolling   each broker in turn is told to go (SIGTERM), ends, comes back, and all is healthy again before the next
whole     all brokers are stopped and started: history and epochs are as before (always on disk)
"""

import json
import signal
import sys
import time

from cluster import Cluster, Load, Verdict, arguments, ms, outcomes, report

PHASES = ["rolling", "whole"]
asked = [word for word in sys.argv[1:] if word in PHASES]
sys.argv = [word for word in sys.argv if word not in PHASES]
args = arguments(__doc__, flags=("data-dir",), rounds=2, channels=50, subscribers=500, rate=500, conf="")


def stop(brokers):
    """In order; how long each took."""
    begun = time.monotonic()
    for broker in brokers:
        broker.signal(signal.SIGTERM)
    for broker in brokers:
        broker.child.wait(60)
    return time.monotonic() - begun


def longest_trouble(path):
    """The longest time that one publication was repeated, ms."""
    begun, worst = {}, 0
    for t, kind, _, id, _ in outcomes(path):
        begun.setdefault(id, t)
        if kind == "ack":
            worst = max(worst, t - begun[id])
    return worst


def rolling():
    verdict = Verdict(f"rolling restart of three brokers, {args.rounds} rounds, {'on disk' if args.data_dir else 'in memory'}")
    cluster = Cluster(args, data=args.data_dir, broker=args.conf)
    try:
        cluster.start()
        load = Load(cluster, channels=args.channels, subscribers=args.subscribers, rate=args.rate)
        path = load.publish()
        time.sleep(5)
        went, back = [], []
        for _ in range(args.rounds):
            for broker in cluster.brokers:
                load.mark("going", load.channels)
                went.append(stop([broker]))
                broker.start()
                cluster.wait_ready()
                back.append(cluster.wait_healthy())
        time.sleep(5)
        checked = load.finish()
        report(verdict, load, checked)
        verdict.figure("from SIGTERM to its end, s: max", f"{max(went):.2f}")
        verdict.figure("from its start to all healthy, s: max", f"{max(back):.2f}")
        silence = checked["figures"]["longest_silence_ms"][0][1]
        verdict.must("longest time a channel could not be published to, ms", silence, silence <= 3000)
        trouble = longest_trouble(path)
        verdict.must("longest time that one publication had errors, ms", trouble, trouble <= 3000)
    finally:
        cluster.remove()
    return verdict


def histories(path):
    """channel → (epoch, top, publications), as noted last."""
    with open(path) as file:
        events = [json.loads(line) for line in file]
    return {e["ch"]: (e["ep"], e["off"], e["pubs"]) for e in events if e["e"] == "hist"}


def whole():
    verdict = Verdict("whole cluster, stopped and started, on disk")
    cluster = Cluster(args, data=True, broker=args.conf)
    try:
        cluster.start()
        load = Load(cluster, channels=args.channels, subscribers=args.subscribers, rate=args.rate)
        load.publish("before")
        time.sleep(10)
        load.publishers[0].process.stdin.close()
        load.publishers[0].process.wait(60)
        before_path = f"{cluster.folder}/before"
        look = [f"nodes={','.join(cluster.node_addresses)}", "key=an-api-key-of-the-benches", load.words]
        load.tool("look", before_path, *look)
        load.logs.append(before_path)
        before = histories(before_path)
        verdict.must("channels with history", len(before), len(before) == args.channels)
        verdict.figure("all stopped after, s", f"{stop(cluster.brokers):.2f}")
        time.sleep(2)
        begun = ms()
        for broker in cluster.brokers:
            broker.start()
        verdict.figure("all healthy after, s", f"{cluster.wait_healthy(60):.2f}")
        cluster.wait_ready()
        after_path = f"{cluster.folder}/after"
        load.tool("look", after_path, *look)
        load.logs.append(after_path)
        after = histories(after_path)
        same = sum(before[ch] == after.get(ch) for ch in before)
        verdict.must("channels whose epoch and history are as before", same, same == args.channels)
        for ch in [ch for ch in before if before[ch] != after.get(ch)][:5]:
            was, now = before[ch], after.get(ch, ("", 0, []))
            print(f"      {ch}: epoch {was[0]}, top {was[1]}, {len(was[2])} kept; then {now[0]}, {now[1]}, {len(now[2])}")
        path = load.publish("after")
        time.sleep(5)
        checked = load.finish()
        first = [t for t, kind, _, _, _ in outcomes(path) if kind == "ack"]
        verdict.figure("from the start of all to the first acknowledgement, ms", min(first, default=0) - begun)
        report(verdict, load, checked)
        verdict.must("subscribers told that they could not recover", checked["figures"]["resets"], checked["figures"]["resets"] == 0)
    finally:
        cluster.remove()
    return verdict


every = {"rolling": rolling, "whole": whole}
done = [every[phase]() for phase in asked or PHASES]
wrong = [v.title for v in done if not v.right]
print("\n" + (f"NOT as promised: {wrong}" if wrong else "all as promised"))
sys.exit(1 if wrong else 0)
