"""What the scripts beside this file share: Weir with a conf, crowds of clients, servers, figures, a verdict.

Weir runs on core 0, everything else on core 1 (taskset). Build first:

    cargo build --release -p weir -p weir-tests --bins
"""

import argparse
import atexit
import collections
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
TOKEN = "a-token-of-the-benches"


def arguments(doc, **numbers):
    """Options of a script: each number with its default, and where the binaries are."""
    a = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in numbers.items():
        a.add_argument(f"--{name}", type=type(default), default=default, help=f"default {default}")
    target = os.environ.get("CARGO_TARGET_DIR", f"{ROOT}/target")
    a.add_argument("--bin", default=f"{target}/release", help="where weir and edge_load are")
    a.add_argument("--keep-log", action="store_true", help="show Weir's log")
    return a.parse_args()


running = []


@atexit.register
def end_all():
    """Whatever ends a script, nothing stays behind."""
    for process in running:
        if process.poll() is None:
            process.kill()


class Lines:
    """A helper process: it prints JSON, which is read line by line as it comes."""

    def __init__(self, *command):
        self.lines, self.over = [], False
        self.changed = threading.Condition()
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        running.append(self.process)
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self):
        for line in self.process.stdout:
            with self.changed:
                self.lines.append(json.loads(line))
                self.changed.notify_all()
        with self.changed:
            self.over = True
            self.changed.notify_all()

    def events(self, name):
        with self.changed:
            return [line for line in self.lines if line.get("event") == name]

    def wait(self, what, ready, seconds):
        """Until `ready` finds what it looks for in the lines."""
        end = time.monotonic() + seconds
        with self.changed:
            while not (found := ready(self.lines)):
                left = end - time.monotonic()
                if left <= 0 or self.over:
                    why = "the process ended" if self.over else f"not within {seconds} s"
                    raise TimeoutError(f"{what}: {why}: {self.lines[-3:]}")
                self.changed.wait(left)
            return found

    def last(self, name, seconds):
        """The last event of this name, once there is one."""
        return self.wait(name, lambda lines: [line for line in lines if line.get("event") == name], seconds)[-1]

    def order(self, word):
        self.process.stdin.write(word + "\n")
        self.process.stdin.flush()


class Tool(Lines):
    """edge_load, on core 1."""

    def __init__(self, args, *words):
        super().__init__("taskset", "-c", "1", f"{args.bin}/edge_load", *map(str, words))

    def check(self):
        """Every open connection echoes once."""
        before = len(self.events("check"))
        self.order("check")
        return self.wait("a check", lambda _: self.events("check")[before:], 60)[0]

    def end(self):
        if self.process.poll() is None:
            try:
                self.order("end")
                self.process.wait(20)
            except (BrokenPipeError, subprocess.TimeoutExpired):
                self.process.kill()
        self.process.wait()


class Clients(Tool):
    def __init__(self, args, addr, **options):
        super().__init__(args, "clients", addr, *(f"{k}={v}" for k, v in options.items()))

    def wait_open(self, count, seconds=120):
        open_now = lambda _: [s for s in self.events("second") if s["open"] >= count]
        return self.wait(f"{count} open connections", open_now, seconds)[0]

    def closes(self):
        return self.events("closed")

    def worst(self, what, since=0, until=float("inf")):
        """The highest p99 of a second between two times (ms since 1970)."""
        values = [s[what]["p99"] for s in self.events("second") if since < s["t"] <= until and s[what]["count"]]
        return max(values, default=float("nan"))

    def typical(self, what, since=0, until=float("inf")):
        """The median over the seconds of their p99."""
        values = [s[what]["p99"] for s in self.events("second") if since < s["t"] <= until and s[what]["count"]]
        return statistics.median(values) if values else float("nan")

    def failed(self, since=0, until=float("inf")):
        total = collections.Counter()
        for second in self.events("second"):
            if since < second["t"] <= until:
                total.update(second["failed"])
        return dict(total)


class Server(Tool):
    def __init__(self, args, addr, **options):
        super().__init__(args, "server", addr, *(f"{k}={v}" for k, v in options.items()))
        self.addr = addr

    def offered(self, since=0, until=float("inf")):
        return sum(l["offered"] for l in list(self.lines) if since < l["t"] <= until)

    def most_per_second(self, since=0, what="offered"):
        """The most of any second, wherever it begins."""
        tenths = collections.Counter()
        for line in list(self.lines):
            if line["t"] > since:
                tenths[line["t"] // 100] += line[what]
        return max((sum(tenths[t + i] for i in range(10)) for t in tenths), default=0)

    def accepted_in(self, since, seconds):
        return sum(l["accepted"] for l in list(self.lines) if since < l["t"] <= since + seconds * 1000)

    def signal(self, number):
        # taskset has become the tool itself.
        self.process.send_signal(number)

    def end(self):
        self.process.kill()
        self.process.wait()


CONF = """
roles = ["proxy"]
[telemetry]
filter = "warn"
[admin]
listen = "{admin}"
token = "{token}"
[proxy]
listen = "{listen}"
threads = 1
handshake_rate = "0/s"
max_connections = 0
max_requests = 0
max_connections_per_ip = 0
max_requests_per_ip = 0
{proxy}
[proxy.upstream.app]
servers = [{servers}]
{upstream}
{sections}
[[proxy.route]]
to = "app"
sticky = {{ by = "query", name = "key" }}
{routes}
"""


def ask(admin, path, body=None, timeout=5):
    """What the admin listener answers; with a body, to an order."""
    request = urllib.request.Request(f"http://{admin}{path}", body, {"Authorization": f"Bearer {TOKEN}"})
    with urllib.request.urlopen(request, timeout=timeout) as answer:
        return answer.read().decode()


class Weir:
    """The binary with a conf of its own, which `write` changes."""

    def __init__(self, args, servers, port=17000, **parts):
        self.args = args
        self.dir = tempfile.TemporaryDirectory()
        self.path = f"{self.dir.name}/weir.toml"
        self.token = f"{self.dir.name}/token"
        with open(self.token, "w") as file:
            file.write(TOKEN)
        self.listen, self.admin = f"127.0.0.1:{port}", f"127.0.0.1:{port + 1}"
        self.servers = servers
        self.write(**parts)
        self.log = open(f"{self.dir.name}/log", "w+")
        self.process = self.run()
        self.wait_ready()

    def write(self, proxy="", upstream="", sections="", routes="", admin=None):
        servers = ", ".join(f'"{s}"' for s in self.servers)
        conf = CONF.format(
            admin=admin or self.admin, token=TOKEN, listen=self.listen, proxy=proxy, servers=servers,
            upstream=upstream, sections=sections, routes=routes,
        )
        with open(self.path + ".new", "w") as file:
            file.write(conf)
        os.replace(self.path + ".new", self.path)

    def run(self, *words):
        command = ["taskset", "-c", "0", f"{self.args.bin}/weir", "run", *words, "--config", self.path]
        process = subprocess.Popen(command, stdout=self.log, stderr=self.log)
        running.append(process)
        return process

    def command(self, *words):
        """`weir WORDS`, as an operator would; under way when this returns."""
        process = subprocess.Popen([f"{self.args.bin}/weir", *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        running.append(process)
        return process

    def get(self, path, admin=None):
        return ask(admin or self.admin, path)

    def wait_ready(self, seconds=20):
        end = time.monotonic() + seconds
        while True:
            try:
                self.get("/ready")
                return
            except OSError as error:
                if self.process.poll() is not None or time.monotonic() > end:
                    sys.exit(f"weir did not start: {error}\n{self.text()}")
                time.sleep(0.05)

    def metric(self, name, *labels):
        """The sum over the label sets that have all of these."""
        total = 0.0
        for line in self.get("/metrics").splitlines():
            if line.startswith((name + "{", name + " ")) and all(label in line for label in labels):
                total += float(line.rsplit(" ", 1)[1])
        return total

    def text(self):
        self.log.flush()
        with open(self.log.name) as file:
            return file.read()

    def signal(self, number):
        self.process.send_signal(number)

    def stop(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        if self.args.keep_log:
            print(self.text(), file=sys.stderr)


class Verdict:
    """Figures, each with what it should be; the script's exit code tells whether all were right."""

    def __init__(self, title):
        self.title, self.right = title, True
        print(f"# {title}\n", flush=True)

    def figure(self, what, value):
        print(f"    {what:58} {value}", flush=True)

    def must(self, what, value, right):
        self.right &= bool(right)
        print(f"{'ok ' if right else 'NO '} {what:58} {value}", flush=True)

    def end(self):
        print(f"\n{self.title}: {'as promised' if self.right else 'NOT as promised'}")
        sys.exit(0 if self.right else 1)


def ms():
    return int(time.time() * 1000)


def sleep_until_ms(t):
    time.sleep(max(0, t - ms()) / 1000)
