"""What the scripts that harm a cluster share: brokers and nodes as processes, load that keeps a log, the checker.

Build first, and install the JavaScript client (tests/setup.sh does):

    cargo build --release -p weir -p weir-tests --bins
"""

import argparse
import collections
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time

from edge import ROOT, TOKEN, Lines, Verdict, ask, ms, running

API_KEY = "an-api-key-of-the-benches"
HMAC = "a-secret-of-the-benches-of-32-bytes-or-more"
SECRET = "a-broker-secret-of-the-benches-here"
CHANNELS = """
[[channel.namespace]]
name = "load"
presence = true
history_size = 1000000
history_ttl = "24h"
force_recovery = true
force_positioning = true
allow_subscribe_for_client = true
"""


def arguments(doc, flags=(), **options):
    a = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in options.items():
        a.add_argument("--" + name.replace("_", "-"), type=type(default), default=default, help=f"default {default!r}")
    for flag in flags:
        a.add_argument(f"--{flag}", action="store_true")
    target = os.environ.get("CARGO_TARGET_DIR", f"{ROOT}/target")
    a.add_argument("--bin", default=f"{target}/release", help="where weir and cluster_load are")
    a.add_argument("--seed", type=int, default=random.randrange(1 << 32), help="of what is done when, and to whom")
    a.add_argument("--keep", default="", help="a folder to keep all logs in")
    args = a.parse_args()
    for name in ("weir", "cluster_load"):
        if not os.access(f"{args.bin}/{name}", os.X_OK):
            sys.exit(f"{args.bin}/{name} is missing: cargo build --release -p weir -p weir-tests --bins")
    return args


class Host:
    """Where a process runs: this machine, or a network namespace of it."""

    def __init__(self, address="127.0.0.1", inside=()):
        self.address, self.inside = address, list(inside)


class Process:
    """The binary with a conf of its own; it can be killed and started again, with the same conf."""

    def __init__(self, cluster, name, host, conf, admin):
        self.cluster, self.name, self.host, self.admin = cluster, name, host, f"{host.address}:{admin}"
        self.path, self.log_path = f"{cluster.folder}/{name}.toml", f"{cluster.folder}/{name}.log"
        with open(self.path, "w") as file:
            file.write(conf)
        self.child, self.read_to = None, 0

    def start(self):
        command = [*self.host.inside, f"{self.cluster.args.bin}/weir", "run", "--config", self.path]
        with open(self.log_path, "a") as log:
            self.child = subprocess.Popen(command, stdout=log, stderr=log)
        running.append(self.child)

    def signal(self, number):
        # `ip netns exec` has become the binary itself.
        self.child.send_signal(number)

    def kill(self):
        self.signal(signal.SIGKILL)
        self.child.wait()

    def runs(self):
        return self.child is not None and self.child.poll() is None

    def ask(self, path, body=None):
        return ask(self.admin, path, body, timeout=2)

    def is_ready(self):
        if not self.runs():
            sys.exit(f"{self.name} ended by itself:\n{self.tail()}")
        try:
            self.ask("/ready")
            return True
        except OSError:
            return False

    def status(self):
        """What `weir broker status` prints; None while there is no answer."""
        try:
            return json.loads(self.ask("/admin/v1/broker", b"{}"))
        except (OSError, ValueError):
            return None

    def new_lines(self):
        """What it logged since this was asked last, as objects."""
        with open(self.log_path, "rb") as file:
            file.seek(self.read_to)
            text = file.read()
        whole = text.rfind(b"\n") + 1
        self.read_to += whole
        for line in text[:whole].splitlines():
            try:
                yield json.loads(line)
            except ValueError:
                pass

    def tail(self, lines=30):
        with open(self.log_path) as file:
            return "".join(file.readlines()[-lines:])


class Cluster:
    """Brokers b1… and nodes n1…; each node knows the brokers of `sees`, or all."""

    def __init__(self, args, brokers=3, nodes=2, hosts=None, data=False, broker="", node="", sections=CHANNELS, sees=None, reached_at=None):
        self.args = args
        if args.keep:
            os.makedirs(args.keep, exist_ok=True)
        self.folder = tempfile.mkdtemp(prefix="cluster-" if args.keep else "weir-cluster-", dir=args.keep or None)
        hosts = hosts or [Host()] * max(brokers, nodes)
        self.owners = {}
        self.listens = [f"{hosts[n].address}:{17100 + n}" for n in range(brokers)]
        # What others reach a broker at, where that is not where it listens.
        places = reached_at or self.listens
        self.brokers = [
            Process(self, f"b{n + 1}", hosts[n], self.broker_conf(n, places, hosts[n], data, broker), 17110 + n)
            for n in range(brokers)
        ]
        self.nodes = []
        for n in range(nodes):
            known = places if sees is None else [places[b] for b in sees[n]]
            conf = self.node_conf(n, known, hosts[n % len(hosts)], node, sections)
            self.nodes.append(Process(self, f"n{n + 1}", hosts[n % len(hosts)], conf, 17130 + n))
        self.node_addresses = [f"{hosts[n % len(hosts)].address}:{17120 + n}" for n in range(nodes)]

    def broker_conf(self, n, places, host, data, more):
        """One broker alone has no peers; of several the first begins the cluster."""
        several = len(places) > 1
        peers = ", ".join(f'"{p}"' for p in places if p != places[n])
        return "\n".join([
            'roles = ["broker"]',
            '[telemetry]\nformat = "json"',
            f'[admin]\nlisten = "{host.address}:{17110 + n}"\ntoken = "{TOKEN}"',
            f'[broker]\nlisten = "{self.listens[n]}"\nsecret = "{SECRET}"\nhistory_memory = "1GiB"',
            f'address = "{places[n]}"' if places[n] != self.listens[n] else "",
            f'name = "b{n + 1}"\npeers = [{peers}]' if several else "",
            "bootstrap = true" if several and n == 0 else "",
            f'data_dir = "{self.folder}/b{n + 1}.data"' if data else "",
            more, "",
        ])

    def node_conf(self, n, known, host, more, sections):
        brokers = ", ".join(f'"{b}"' for b in known)
        return "\n".join([
            'roles = ["node"]',
            '[telemetry]\nformat = "json"',
            f'[admin]\nlisten = "{host.address}:{17130 + n}"\ntoken = "{TOKEN}"',
            f'[node]\nlisten = "{host.address}:{17120 + n}"\nname = "n{n + 1}"\napi_key = "{API_KEY}"',
            f'brokers = [{brokers}]\nbroker_secret = "{SECRET}"',
            # A node that is stopped is noticed by its clients within seconds.
            'ping_interval = "3s"\npong_timeout = "2s"\nhistory_limit = 2000',
            more,
            f'[node.token]\nhmac_secret = "{HMAC}"',
            sections, "",
        ])

    def all(self):
        return self.brokers + self.nodes

    def start(self):
        for process in self.brokers:
            process.start()
        self.wait_healthy(60)
        for process in self.nodes:
            process.start()
        self.wait_ready(60)

    def wait(self, what, ready, seconds):
        """How many seconds it took; a cluster that does not come back is the end of the script."""
        begun = time.monotonic()
        while (left := ready()) is not True:
            if time.monotonic() - begun > seconds:
                self.show()
                sys.exit(f"{what}: not within {seconds} s: {left}")
            time.sleep(0.05)
        return time.monotonic() - begun

    def wait_ready(self, seconds=30):
        waits = lambda: [p.name for p in self.all() if p.runs() and not p.is_ready()] or True
        return self.wait("every process ready", waits, seconds)

    def unhealthy(self):
        """What is not right yet, of each broker; True: all is."""
        if len(self.brokers) == 1:
            return True if self.brokers[0].is_ready() else "not ready"
        wrong = {}
        for broker in self.brokers:
            if not broker.runs():
                sys.exit(f"{broker.name} ended by itself:\n{broker.tail()}")
            status = broker.status()
            if status is None:
                wrong[broker.name] = "no answer"
            elif not status["healthy"] or len(status["members"]) != len(self.brokers):
                shards = {k: v for k, v in status["shards"].items() if v}
                wrong[broker.name] = f"leader {status['leader']}, {len(status['members'])} members, shards {shards}"
        return wrong or True

    def wait_healthy(self, seconds=60):
        return self.wait("every broker healthy", self.unhealthy, seconds)

    def show(self):
        for process in self.all():
            print(f"---- {process.name} {'runs' if process.runs() else 'is down'}\n{process.tail()}", file=sys.stderr)

    def owned_by(self, name):
        """Shards; a new owner says so in its log."""
        news = []
        for broker in self.brokers:
            for line in broker.new_lines():
                fields = line.get("fields", line)
                if "a shard has another owner" in str(fields.get("message", "")):
                    news.append((line.get("timestamp", ""), fields["shard"], fields["to"]))
        for _, shard, owner in sorted(news, key=lambda n: n[0]):
            self.owners[shard] = owner
        return {shard for shard, owner in self.owners.items() if owner == name}

    def errors(self):
        """Lines that no run should have: errors, and panics."""
        found = collections.Counter()
        for process in self.all():
            with open(process.log_path, errors="replace") as file:
                for line in file:
                    if '"ERROR"' in line or "panicked" in line:
                        found[f"{process.name}: {line.strip()[:300]}"] += 1
        return found

    def stop(self):
        for process in self.all():
            if process.runs():
                process.signal(signal.SIGCONT)
                process.kill()

    def remove(self):
        self.stop()
        if not self.args.keep:
            shutil.rmtree(self.folder, ignore_errors=True)


class Load:
    """Subscribers of the published SDK and publishers, from their beginning to the checker's verdict."""

    def __init__(self, cluster, channels=50, subscribers=500, rate=500, namespace="load"):
        self.cluster, self.args, self.rate = cluster, cluster.args, rate
        self.each = subscribers // channels
        self.words = f"channels={namespace}:0..{channels}"
        self.channels = [f"{namespace}:{n}" for n in range(channels)]
        self.logs = [f"{cluster.folder}/{namespace}.{kind}" for kind in ("crowd", "end", "marks")]
        for path in self.logs:
            open(path, "w").close()
        self.namespace, self.publishers = namespace, []
        self.shards = json.loads(self.tool("shards", self.words))
        plan = {
            "log": self.logs[0], "channels": self.channels, "count": subscribers, "secret": HMAC,
            "nodes": [f"ws://{a}/connection/websocket" for a in cluster.node_addresses],
        }
        self.crowd = Lines("node", f"{ROOT}/tests/clients/js/crowd.js", json.dumps(plan))
        self.crowd.last("up", 60)

    def tool(self, *words):
        return subprocess.run([f"{self.args.bin}/cluster_load", *words], stdout=subprocess.PIPE, text=True).stdout

    def publish(self, name="p", nodes=None, rate=None, per_channel=2):
        """Publishers of their own name; their log's path."""
        path = f"{self.cluster.folder}/{self.namespace}.publish-{name}"
        open(path, "w").close()
        self.logs.append(path)
        nodes = ",".join(nodes or self.cluster.node_addresses)
        command = [
            f"{self.args.bin}/cluster_load", "publish", path, f"nodes={nodes}", f"key={API_KEY}", self.words,
            f"rate={rate or self.rate}", f"name={name}", f"per_channel={per_channel}",
        ]
        self.publishers.append(Lines(*command))
        return path

    def mark(self, what, channels=()):
        with open(self.logs[2], "a") as file:
            file.write(json.dumps({"e": "mark", "t": ms(), "what": what, "chs": list(channels)}) + "\n")

    def of_shards(self, shards):
        return [channel for channel, shard in self.shards.items() if shard in shards]

    def finish(self, presence=True, **rules):
        """Ends the publishers, waits for the subscribers to settle, reads what is left, and checks."""
        for publisher in self.publishers:
            publisher.process.stdin.close()
        for publisher in self.publishers:
            publisher.process.wait(120)
        self.crowd.order(f"settle {len(self.publishers)}")
        self.settled = self.crowd.last("settled", 30)
        words = ["look", self.logs[1], f"nodes={','.join(self.cluster.node_addresses)}", f"key={API_KEY}", self.words]
        self.tool(*words, *([f"clients={self.each}"] if presence else []))
        self.crowd.process.stdin.close()
        self.crowd.process.wait(20)
        checked = self.tool("check", *self.logs, *(f"{rule}=1" for rule, on in rules.items() if on))
        with open(f"{self.cluster.folder}/{self.namespace}.verdict", "w") as file:
            file.write(checked)
        return json.loads(checked)


def outcomes(path):
    """Of a publishers' log: (t, kind, channel, id, why) for each line that says what came of an attempt."""
    channel_of = {}
    with open(path) as file:
        for line in file:
            event = json.loads(line)
            if event["e"] == "pub":
                channel_of[event["id"]] = event["ch"]
            elif event["id"] in channel_of:
                yield event["t"], event["e"], channel_of[event["id"]], event["id"], event.get("why")


def report(verdict, load, checked, epochs_may_end=False):
    """The checker's counts, each with what it should be."""
    counts, figures, faults = checked["counts"], checked["figures"], checked["faults"]
    verdict.figure("published, acknowledged", f"{counts['published']}, {counts['acked']}")
    verdict.figure("delivered to subscribers", figures["delivered"])
    verdict.figure("attempts that failed, by what was told", figures["failed_attempts"] or "none")
    verdict.figure("left open, refused for certain", f"{counts['unknown']}, {counts['refused']}")
    groups = {
        "acknowledged publications lost": ["Lost"] if epochs_may_end else ["Lost", "LostWithEpoch"],
        "duplicated": ["Duplicate", "Twice", "Moved"] + ([] if epochs_may_end else ["TwiceAcrossEpochs"]),
        "out of order": ["OutOfOrder", "AckOrder"],
        "gaps that nobody was told of": ["Gap", "FalseRecovery", "Hole", "TopWentBack"],
        "two publications at one offset": ["Split"],
        "never published, or refused, and yet there": ["Phantom", "Refused", "Stray"],
        "subscribers that are not at the top at the end": ["Behind"],
        "presence: missing, left over": ["Absent", "Ghost"],
    }
    for what, kinds in groups.items():
        count = sum(faults.get(kind, 0) for kind in kinds)
        verdict.must(what, count, count == 0)
    if epochs_may_end:
        declared = {k: faults[k] for k in ("LostWithEpoch", "TwiceAcrossEpochs") if k in faults}
        verdict.figure("gone with an epoch, and told", declared or "none")
    verdict.must("the checker's verdict", "right" if checked["right"] else "wrong", checked["right"])
    verdict.figure("subscribers told that they could not recover", figures["resets"])
    verdict.figure("subscribers settled after, ms", load.settled["after"])
    verdict.figure("longest silence of a channel, ms", figures["longest_silence_ms"][:3])
    for example in checked["examples"]:
        print(f"      {example}")
    errors = load.cluster.errors()
    verdict.must("panics, errors in logs", sum(errors.values()), not errors)
    for line, count in list(errors.items())[:10]:
        print(f"      {count} x {line}")


__all__ = [
    "Cluster", "Host", "Lines", "Load", "Process", "Verdict", "arguments", "ms", "outcomes", "report", "API_KEY", "CHANNELS",
]
