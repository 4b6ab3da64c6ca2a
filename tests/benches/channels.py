"""Very many channels with history at the broker(s): memory, how fast they come and go, and who notices.

One node (no clients: it speaks to the broker as a node does) subscribes to 100,000 channels, publishes one
message to each, then more, then unsubscribes, as fast as it can with 64 calls under way. Another publishes all the
time to channels of its own, 500 a second, and measures each: that is "anybody's publish".

Memory is what the kernel counts as resident (RSS) of the broker, or of all brokers together. The bare channel is
what a subscribed one with a stream and nothing in it adds; "beyond the messages" is what one with a message adds,
less the bytes of its payload. With --memory below what the messages take, the oldest are dropped all the time.

    cargo build --release -p weir && cargo build --release -p weir-tests --example bus_load
    python3 tests/benches/channels.py [--channels 100000] [--brokers 1]
"""

import os
import time

import brokers
from edge import Verdict, arguments

args = arguments(__doc__, channels=100_000, brokers=1, size=100, more=4, memory="1GiB", load_core="1")
verdict = Verdict(f"{args.channels} channels with history at {args.brokers} broker(s)")
try:
    system = brokers.brokers(args, args.brokers, broker=f'history_memory = "{args.memory}"')
except brokers.Cannot as reason:
    print(f"left out: {reason}")
    raise SystemExit(0)


def rss():
    return sum(b.rss() for b in system)


class Probe:
    """The other publisher: a line for each second."""

    def __init__(self):
        self.load = brokers.Load(args, "publish", "weir", system[-1].addr, "rate=500", "seconds=3600", "every=1")
        # It shares a core with the load, whose turns it must not wait for.
        if os.getpriority(os.PRIO_PROCESS, 0) < 0:
            os.setpriority(os.PRIO_PROCESS, self.load.process.pid, -20)
        self.load.order("go")
        self.load.line()

    def during(self, phase):
        """Runs the phase, and one whole second more; the worst of what was measured meanwhile."""
        brokers_before, begun = sum(b.cpu() for b in system), time.monotonic()
        result = phase()
        ended = time.monotonic()
        worst, late, failed, seen = 0, 0, 0, 0
        while seen < ended - begun + 1:
            line = self.load.line()
            seen += 1
            failed = line["failed"]
            if line["answers"]["count"]:
                worst, late = max(worst, line["answers"]["max"]), max(late, line["late"]["max"])
        return result, worst / 1000, late / 1000, failed, sum(b.cpu() for b in system) - brokers_before


# What the brokers need for any traffic: rumqttd keeps the last 12 MiB that went through it.
warm = brokers.Load(args, "channels", system[0].addr, "count=100", "first=900000", "messages=2000")
for order in ("go", "publish", "unsubscribe"):
    warm.ask(order)
warm.stop()
load = brokers.Load(args, "channels", system[0].addr, f"count={args.channels}", f"size={args.size}", f"messages={args.more}")
probe = Probe()
time.sleep(1)
bare, stalls = rss(), {}


def phase(name, order):
    told, worst, late, failed, cpu = probe.during(lambda: load.ask(order))
    assert told["failed"] == 0 and failed == 0, (told, failed)
    stalls[name] = worst
    rate = told["count"] / told["seconds"]
    verdict.figure(name, f"{rate:,.0f} a second, {cpu / told['count'] * 1e6:.0f} µs of the brokers' CPU each")
    verdict.figure(f"  longest publish of another meanwhile", f"{worst:.1f} ms (made up to {late:.1f} ms late)")
    return told


phase("subscribe", "go")
empty = rss()
verdict.figure("memory of a bare channel", f"{(empty - bare) / args.channels:.0f} B")
phase(f"{args.more} messages of {args.size} B to each", "publish")
full = rss()
_, worst, late, _, _ = probe.during(lambda: time.sleep(10))
verdict.figure("10 s of nothing else: longest publish", f"{worst:.1f} ms (made up to {late:.1f} ms late)")
phase("subscribe again (another stream's position)", "subscribe")
phase("unsubscribe", "unsubscribe")
phase("subscribe once more", "subscribe")
_, worst, late, _, _ = probe.during(lambda: (load.stop(), time.sleep(1)))
stalls["killed"] = worst
verdict.figure("the node is killed, with all that interest", f"longest publish of another {worst:.1f} ms (made up to {late:.1f} ms late)")
beyond = (full - bare) / args.channels - args.more * args.size
each = (full - empty) / args.channels / args.more
verdict.figure("memory of each message", f"{each:.0f} B for {args.size} B of payload")
verdict.figure("memory after the unsubscribe, of all channels", f"{(rss() - bare) / args.channels:.0f} B each")
what = f"beyond the messages, with {args.more} kept"
if args.brokers == 1:
    verdict.must(f"{what}: 1 KiB or less", f"{beyond:.0f} B", beyond <= 1024)
else:
    # Two copies, and the logs by which a copy that was away catches up: 512 KiB a shard at most.
    verdict.figure(f"{what}, at all brokers together", f"{beyond:.0f} B")
verdict.must("no publish of another stalled for 50 ms", f"{max(stalls.values()):.1f} ms", max(stalls.values()) < 50)
probe.load.stop()
brokers.stop(system)
verdict.end()
