"""What bus.py and channels.py share: brokers, nodes and Redis as processes on core 0, loads on core 1, and what
they cost. Build first:

    cargo build --release -p weir && cargo build --release -p weir-tests --example bus_load
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error

from edge import TOKEN, ask, running

SYSTEM = "0"
TICKS = os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")
KEY = "key-of-the-benches"


try:
    # Loads and system alike, so that whatever else the machine does is not measured.
    os.setpriority(os.PRIO_PROCESS, 0, -15)
except PermissionError:
    print("without the right to a higher priority: what else this machine does is in the figures")


class Cannot(Exception):
    """Something is not there on this machine or in this build."""


class Process:
    """One process of the system under test."""

    def __init__(self, name, command):
        self.name, self.log = name, tempfile.NamedTemporaryFile("w+", prefix=f"{name}-", suffix=".log")
        self.process = subprocess.Popen(["taskset", "-c", SYSTEM, *command], stdout=self.log, stderr=self.log)
        running.append(self.process)

    def cpu(self):
        """Seconds of user and system time, of all threads."""
        with open(f"/proc/{self.process.pid}/stat") as file:
            fields = file.read().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / TICKS

    def rss(self):
        with open(f"/proc/{self.process.pid}/statm") as file:
            return int(file.read().split()[1]) * PAGE

    def text(self):
        with open(self.log.name) as file:
            return file.read()

    def stop(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()


class Weir(Process):
    def __init__(self, args, name, port, text):
        self.addr, self.admin = f"127.0.0.1:{port}", f"127.0.0.1:{port + 50}"
        self.conf = tempfile.NamedTemporaryFile("w", suffix=".toml")
        head = f'[telemetry]\nfilter = "warn"\n[admin]\nlisten = "{self.admin}"\ntoken = "{TOKEN}"\n'
        self.conf.write(text.replace("[telemetry]\n", head))
        self.conf.flush()
        super().__init__(name, [f"{args.bin}/weir", "run", "--config", self.conf.name])

    def ask(self, path, body=None):
        return ask(self.admin, path, body)

    def wait(self, ready, seconds=30):
        end = time.monotonic() + seconds
        while True:
            try:
                if ready():
                    return
            except (OSError, urllib.error.URLError):
                pass
            if self.process.poll() is not None or time.monotonic() > end:
                if "no such key" in self.text() or "unknown key" in self.text():
                    raise Cannot("this build of Weir has no broker cluster")
                sys.exit(f"{self.name} is not ready:\n{self.text()}")
            time.sleep(0.05)

    def wait_ready(self):
        self.wait(lambda: self.ask("/ready") is not None)


def brokers(args, count, port=17300, broker=""):
    """One broker by itself, or a cluster with two copies of each shard."""
    if count == 1:
        conf = f'roles = ["broker"]\n[telemetry]\n[broker]\nlisten = "127.0.0.1:{port}"\n{broker}'
        started = [Weir(args, "broker", port, conf)]
        started[0].wait_ready()
        return started
    peers = ", ".join(f'"127.0.0.1:{port + n}"' for n in range(count))
    started = []
    try:
        for n in range(count):
            conf = f"""roles = ["broker"]
[telemetry]
[broker]
listen = "127.0.0.1:{port + n}"
name = "broker-{n}"
peers = [{peers}]
bootstrap = {"true" if n == 0 else "false"}
copies = 2
{broker}"""
            started.append(Weir(args, f"broker-{n}", port + n, conf))
        for each in started:
            each.wait(lambda: json.loads(each.ask("/admin/v1/broker", b"{}"))["healthy"], 60)
    except Cannot:
        stop(started)
        raise
    return started


def stop(processes):
    for process in processes:
        process.stop()


def nodes(args, at, port=17400):
    """One node on each of these brokers."""
    started = []
    for n, broker in enumerate(at):
        conf = f"""roles = ["node"]
[telemetry]
[node]
listen = "127.0.0.1:{port + n}"
api_key = "{KEY}"
anonymous = true
brokers = ["{broker.addr}"]
[channel]
history_size = 100
history_ttl = "10m"
allow_subscribe_for_client = true
allow_subscribe_for_anonymous = true
[[channel.namespace]]
name = "bench"
history_size = 100
history_ttl = "10m"
allow_positioning = true
allow_recovery = true
allow_subscribe_for_client = true
allow_subscribe_for_anonymous = true
"""
        started.append(Weir(args, f"node-{n}", port + n, conf))
    for each in started:
        each.wait_ready()
    return started


class Redis(Process):
    def __init__(self, port=17380):
        if not shutil.which("redis-server"):
            raise Cannot("there is no redis-server here (apt-get install redis-server)")
        self.addr = f"127.0.0.1:{port}"
        # Nothing is written to disk, as with Weir here; all else as it comes.
        super().__init__("redis", ["redis-server", "--port", str(port), "--save", "", "--appendonly", "no"])
        end = time.monotonic() + 10
        while "Ready to accept connections" not in self.text():
            if time.monotonic() > end:
                sys.exit(f"redis-server did not start:\n{self.text()}")
            time.sleep(0.05)


class Load:
    """bus_load: waits until it is ready."""

    def __init__(self, args, *words):
        self.process = subprocess.Popen(
            ["taskset", "-c", args.load_core, f"{args.bin}/examples/bus_load", *map(str, words)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        running.append(self.process)
        if self.process.stdout.readline() != "ready\n":
            sys.exit(f"bus_load {' '.join(map(str, words))} did not start")

    cpu = Process.cpu

    def order(self, word):
        self.process.stdin.write(word + "\n")
        self.process.stdin.flush()

    def line(self):
        line = self.process.stdout.readline()
        if not line:
            sys.exit("bus_load ended")
        return json.loads(line)

    def ask(self, word):
        self.order(word)
        return self.line()

    def stop(self):
        self.process.kill()
        self.process.wait()
