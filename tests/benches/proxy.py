#!/usr/bin/env python3
"""Weir's proxy beside nginx and HAProxy, in one run: each alone on core 0, load and echo server on core 1.

  CPU per echoed message (100 connections, one message under way on each), user and system time of all
  the proxy's processes; resident memory per idle tunnel; CPU per handshake. Rounds alternate between
  the proxies; the median and the range over the rounds are printed, and the ratio to Weir.

  apt-get install nginx-light haproxy; cargo build --release; cargo build --release -p weir-tests --bins
  tests/benches/proxy.py [--rounds 3] [--seconds 5] [--size 128] [--idle 2000] [--target DIR]
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


def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("--rounds", type=int, default=3)
    a.add_argument("--seconds", type=int, default=5)
    a.add_argument("--size", type=int, default=128)
    a.add_argument("--idle", type=int, default=2000)
    a.add_argument("--target", default=os.environ.get("CARGO_TARGET_DIR", f"{ROOT}/target"))
    a.add_argument("--only", help="comma-separated names")
    args = a.parse_args()
    bench, weir = f"{args.target}/release/echo_bench", f"{args.target}/release/weir"
    names = args.only.split(",") if args.only else ["nginx", "haproxy", "weir"]
    seen = {name: {} for name in names}
    with tempfile.TemporaryDirectory() as dir:
        server = tool(bench, "server", f"127.0.0.1:{BACKEND}")
        time.sleep(0.5)
        try:
            for round in range(args.rounds):
                for i, name in enumerate(names):
                    # A fresh process for each figure: memory that a load left behind is not a tunnel's.
                    for measure in (lambda p: idle(p, bench, args.idle), lambda p: echo_cpu(p, bench, args.seconds, args.size)):
                        proxy = Proxy(name, 9910 + round * 10 + i, dir, weir)
                        for key, value in measure(proxy).items():
                            seen[name].setdefault(key, []).append(value)
                        proxy.stop()
        finally:
            server.kill()
    print(f"{args.rounds} rounds, {args.size} B, {args.seconds} s each, {args.idle} idle tunnels; median [lowest–highest]")
    for key, unit in (("us_per_message", "µs CPU per echoed message"), ("messages_per_s", "messages/s"), ("busy", "of core 0 in use"), ("us_per_handshake", "µs CPU per handshake"), ("kib_per_tunnel", "KiB per idle tunnel")):
        for name in names:
            values = seen[name][key]
            median = statistics.median(values)
            ratio = ""
            if "weir" in names and name != "weir":
                ratio = f"   weir/{name} = {statistics.median(seen['weir'][key]) / median:.2f}" if median else ""
            print(f"{unit:28} {name:8} {median:10.2f} [{min(values):.2f}–{max(values):.2f}]{ratio}")


main()
