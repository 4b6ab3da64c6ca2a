#!/usr/bin/env python3
"""kill -9 of any one process, again and again, under load: what was acknowledged and delivered, and how soon.

    tests/benches/kill.py [--kills 50] [--seed N]            in memory; each kill waits until all is in sync again
    tests/benches/kill.py --data-dir [--fast] [--kills 20]   on disk; fast: nobody waits, up to all brokers at once

Three brokers (copies = 2), two nodes, 500 subscribers on 50 channels over the published SDK, 500 publications a
second, each repeated with its key until it is acknowledged. A broker without `--data-dir` comes back as a new one.
"""

import random
import statistics
import time

from cluster import Cluster, Load, Verdict, arguments, report

args = arguments(
    __doc__, flags=("data-dir", "fast"), kills=50, brokers=3, nodes=2, channels=50, subscribers=500, rate=500, conf="",
)
rng = random.Random(args.seed)
on_disk = args.data_dir
verdict = Verdict(
    f"{args.kills} kills of {args.brokers} brokers and {args.nodes} nodes, "
    f"{'on disk' if on_disk else 'in memory'}{', without waiting' if args.fast else ''}, seed {args.seed}"
)
# One broker in memory that is killed takes everything with it.
may_end = not on_disk and (args.fast or args.brokers == 1)
cluster = Cluster(args, brokers=args.brokers, nodes=args.nodes, data=on_disk, broker=args.conf)


def victims():
    """One; or, fast, now and then several, up to all brokers."""
    if not args.fast:
        return [rng.choice(cluster.all())]
    if rng.random() < 0.5:
        return rng.sample(cluster.brokers, rng.randint(1, len(cluster.brokers)))
    return [rng.choice(cluster.all())]


def kill(these):
    died = [p for p in these if p in cluster.brokers]
    shards = set().union(*(cluster.owned_by(p.name) for p in died))
    load.mark("owner" if died else "node", load.of_shards(shards) if died else [])
    if died and len(cluster.brokers) > 1:
        load.mark("any broker", load.channels)
    for process in these:
        process.kill()
    time.sleep(rng.uniform(0.1, 3))
    for process in these:
        process.start()


try:
    cluster.start()
    load = Load(cluster, channels=args.channels, subscribers=args.subscribers, rate=args.rate)
    load.publish()
    time.sleep(5)
    back, killed = [], {}
    for n in range(args.kills):
        these = victims()
        for process in these:
            killed[process.name] = killed.get(process.name, 0) + 1
        kill(these)
        if args.fast:
            time.sleep(rng.uniform(0.2, 4))
        else:
            cluster.wait_ready()
            back.append(cluster.wait_healthy())
            time.sleep(rng.uniform(0.2, 1))
    cluster.wait_ready(60)
    cluster.wait_healthy(120)
    time.sleep(5)
    checked = load.finish(epochs_may_end=may_end)
    verdict.figure("killed", dict(sorted(killed.items())))
    report(verdict, load, checked, epochs_may_end=may_end)
    if back:
        verdict.figure("until in sync again after its start, s: median, max", f"{statistics.median(back):.2f}, {max(back):.2f}")
    for what, times in checked["figures"]["first_ack_ms"].items():
        if what == "owner" and times["count"] and not args.fast:
            verdict.must("an owner's death to the first acknowledgement, ms: p50", times["p50"], times["p50"] <= 1000)
            verdict.must("  … max", f"{times['max']} (of {times['count']} channels)", times["max"] <= 3000)
        elif times["count"]:
            verdict.figure(f"after the death of {what}, all channels, ms: p50, p99, max", f"{times['p50']}, {times['p99']}, {times['max']}")
finally:
    cluster.remove()
verdict.end()
