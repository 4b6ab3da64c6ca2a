#!/usr/bin/env python3
"""Weir's proxy beside nginx and HAProxy, in one run: each alone on core 0, load and echo server on core 1.

  CPU per echoed message (100 connections, one message under way on each), user and system time of all
  the proxy's processes; CPU per handshake; resident memory per idle tunnel; the latency of messages at
  half load: half of what the slowest proxy of the round echoes at full load, the same for all. Rounds
  alternate between the proxies; a Markdown table has the median and the range over the rounds.

  apt-get install nginx-light haproxy; cargo build --release -p weir -p weir-tests --bins
  tests/benches/proxy.py [--rounds 5] [--seconds 5] [--sizes 128,16384] [--idle 2000] [--target DIR]
"""
import argparse, json, os, signal, statistics, subprocess, sys, tempfile, time

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
BACKEND = 9901
TICK = os.sysconf("SC_CLK_TCK")

NGINX = """
worker_processes 1; daemon off; pid {dir}/nginx.pid; error_log stderr error; worker_rlimit_nofile 20000;
events {{ worker_connections 19000; }}
http {{ access_log off; client_body_temp_path {dir}/b; proxy_temp_path {dir}/p; fastcgi_temp_path {dir}/f; uwsgi_temp_path {dir}/u; scgi_temp_path {dir}/s;
  server {{ listen 127.0.0.1:{port} backlog=4096; location / {{
    proxy_pass http://127.0.0.1:{backend}; proxy_http_version 1.1; proxy_set_header Host $host;
    proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection "upgrade"; proxy_read_timeout 1h; }} }} }}
"""
HAPROXY = """
global
  nbthread 1
  maxconn 9000
defaults
  mode http
  timeout connect 5s
  timeout client 1h
  timeout server 1h
  timeout tunnel 1h
listen echo
  bind 127.0.0.1:{port} backlog 4096
  server one 127.0.0.1:{backend}
"""
WEIR = """
roles = ["proxy"]
[telemetry]
filter = "warn"
[admin]
enabled = false
[proxy]
listen = "127.0.0.1:{port}"
threads = 1
handshake_rate = "0/s"
max_connections_per_ip = 0
max_requests_per_ip = 0
[proxy.upstream.echo]
servers = ["127.0.0.1:{backend}"]
[[proxy.route]]
to = "echo"
"""


def pids(root):
    found, todo = [], [root]
    while todo:
        pid = todo.pop()
        found.append(pid)
        try:
            for task in os.listdir(f"/proc/{pid}/task"):
                todo += map(int, open(f"/proc/{pid}/task/{task}/children").read().split())
        except FileNotFoundError:
            pass
    return found


def cpu(root):
    total = 0
    for pid in pids(root):
        fields = open(f"/proc/{pid}/stat").read().rsplit(")", 1)[1].split()
        total += int(fields[11]) + int(fields[12])
    return total / TICK


def rss(root):
    total = 0
    for pid in pids(root):
        for line in open(f"/proc/{pid}/status"):
            if line.startswith("VmRSS:"):
                total += int(line.split()[1])
    return total


class Proxy:
    def __init__(self, name, port, dir, weir):
        conf = {"nginx": NGINX, "haproxy": HAPROXY, "weir": WEIR}[name].format(port=port, backend=BACKEND, dir=dir)
        path = f"{dir}/{name}.conf"
        open(path, "w").write(conf)
        command = {"nginx": ["nginx", "-c", path], "haproxy": ["haproxy", "-f", path], "weir": [weir, "run", "--config", path]}[name]
        self.name, self.addr = name, f"127.0.0.1:{port}"
        self.process = subprocess.Popen(["taskset", "-c", "0"] + command, stderr=subprocess.DEVNULL)
        time.sleep(1)
        if self.process.poll() is not None:
            sys.exit(f"{name} did not start")

    def stop(self):
        self.process.send_signal(signal.SIGKILL)
        for pid in pids(self.process.pid)[1:]:
            os.kill(pid, signal.SIGKILL)
        self.process.wait()


def tool(bench, *args):
    return subprocess.Popen(["taskset", "-c", "1", bench, *map(str, args)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def echo_cpu(proxy, bench, seconds, size):
    load = tool(bench, "load", proxy.addr, 100, seconds, size)
    assert load.stdout.readline() == "start\n"
    before = cpu(proxy.process.pid)
    result = json.loads(load.stdout.readline())
    used = cpu(proxy.process.pid) - before
    load.wait()
    return {"us_per_message": used * 1e6 / result["messages"], "messages_per_s": result["messages"] / result["seconds"], "busy": used / result["seconds"]}


def half_load(proxy, bench, seconds, size, rate):
    load = tool(bench, "paced", proxy.addr, 100, seconds, size, rate)
    assert load.stdout.readline() == "start\n"
    result = json.loads(load.stdout.readline())
    load.wait()
    return {"p50": result["p50"], "p99": result["p99"]}


def idle(proxy, bench, count):
    before, cpu_before = rss(proxy.process.pid), cpu(proxy.process.pid)
    hold = tool(bench, "hold", proxy.addr, count)
    json.loads(hold.stdout.readline())
    used = cpu(proxy.process.pid) - cpu_before
    time.sleep(2)
    after = rss(proxy.process.pid)
    hold.stdin.close()
    hold.wait()
    return {"kib_per_tunnel": (after - before) / count, "us_per_handshake": used * 1e6 / count}


def table(seen, names, sizes):
    rows = [("CPU per handshake, µs", "us_per_handshake"), ("memory per idle tunnel, KiB", "kib_per_tunnel")]
    for size in sizes:
        what = f"{size} B" if size < 1024 else f"{size // 1024} KiB"
        rows += [(f"{what}: CPU per echoed message, µs", f"{size} us_per_message"), (f"{what}: messages a second", f"{size} messages_per_s"),
                 (f"{what}: p99 at half load, µs", f"{size} p99"), (f"{what}: p50 at half load, µs", f"{size} p50")]
    others = [name for name in names if name != "weir"] if "weir" in names else []
    print("| | " + " | ".join(names) + "".join(f" | weir / {name}" for name in others) + " |")
    print("|---" * (1 + len(names) + len(others)) + "|")
    for title, key in rows:
        cells = []
        for name in names:
            values = seen[name][key]
            cells.append(f"{statistics.median(values):.2f} [{min(values):.2f}–{max(values):.2f}]")
        for name in others:
            # Memory may not have moved at all.
            median = statistics.median(seen[name][key])
            cells.append(f"{statistics.median(seen['weir'][key]) / median:.2f}" if median > 0 else "–")
        print(f"| {title} | " + " | ".join(cells) + " |")


def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("--rounds", type=int, default=5)
    a.add_argument("--seconds", type=int, default=5)
    a.add_argument("--sizes", default="128,16384")
    a.add_argument("--idle", type=int, default=2000)
    a.add_argument("--target", default=os.environ.get("CARGO_TARGET_DIR", f"{ROOT}/target"))
    a.add_argument("--only", help="comma-separated names")
    args = a.parse_args()
    bench, weir = f"{args.target}/release/echo_bench", f"{args.target}/release/weir"
    names = args.only.split(",") if args.only else ["weir", "nginx", "haproxy"]
    sizes = [int(size) for size in args.sizes.split(",")]
    seen = {name: {} for name in names}
    ports = iter(range(9910, 20000))

    def measure(name, prefix, what):
        # A fresh process for each figure: memory that a load left behind is not a tunnel's.
        proxy = Proxy(name, next(ports), dir, weir)
        try:
            found = what(proxy)
        finally:
            proxy.stop()
        for key, value in found.items():
            seen[name].setdefault(prefix + key, []).append(value)
        return found

    with tempfile.TemporaryDirectory() as dir:
        server = tool(bench, "server", f"127.0.0.1:{BACKEND}")
        time.sleep(0.5)
        try:
            for round in range(args.rounds):
                # Who is first changes with the round.
                order = names[round % len(names):] + names[:round % len(names)]
                for name in order:
                    measure(name, "", lambda p: idle(p, bench, args.idle))
                for size in sizes:
                    full = [measure(name, f"{size} ", lambda p: echo_cpu(p, bench, args.seconds, size)) for name in order]
                    rate = int(min(f["messages_per_s"] for f in full) / 2)
                    for name in order:
                        measure(name, f"{size} ", lambda p: half_load(p, bench, args.seconds, size, rate))
                print(f"round {round + 1} of {args.rounds} done", file=sys.stderr)
        finally:
            server.kill()
    print(f"{args.rounds} rounds, {args.seconds} s each, {args.idle} idle tunnels, one core each; median [lowest–highest]\n")
    table(seen, names, sizes)


main()
