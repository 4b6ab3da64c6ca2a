#!/usr/bin/env python3
"""One server of four hangs (SIGSTOP), then goes on (SIGCONT): what clients of Weir's proxy see of it.

  Handshakes arrive at a steady rate, each with a key of its own. Printed for the time before, while it hangs,
  and after: handshakes, failures, p50 and p99; how many failed until the breaker opened; how long after SIGCONT it
  was closed again, and the most handshakes that the server had at once until then.

  cargo build --release
  tests/benches/hanging.py [--rate 200] [--seconds 10] [--binary target/release/weir]
"""
import argparse, asyncio, base64, hashlib, json, os, signal, subprocess, sys, tempfile, time, urllib.request

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
FRONT, ADMIN, SERVERS = 9910, 9911, [9921, 9922, 9923, 9924]
CONF = """
roles = ["proxy"]
[telemetry]
filter = "warn"
[admin]
listen = "127.0.0.1:{admin}"
[proxy]
listen = "127.0.0.1:{front}"
handshake_rate = "0/s"
max_connections_per_ip = 0
handshake_timeout = "1s"
[proxy.breaker]
open_for = "2s"
open_max = "2s"
[proxy.upstream.app]
servers = [{servers}]
[[proxy.route]]
to = "app"
sticky = {{ by = "header", name = "x-key" }}
"""
GUID = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


async def serve(port):
    """Takes 20 ms for a handshake; GET /most says how many it had at once since it was asked before."""
    now, most = 0, 0

    async def one(reader, writer):
        nonlocal now, most
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            if head.startswith("GET /most "):
                body, most = str(most).encode(), now
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
                return await writer.drain()
            now, most = now + 1, max(most, now + 1)
            try:
                await asyncio.sleep(0.02)
            finally:
                now -= 1
            key = next(line.split(": ")[1] for line in head.split("\r\n") if line.lower().startswith("sec-websocket-key"))
            accept = base64.b64encode(hashlib.sha1((key + GUID).encode()).digest()).decode()
            writer.write(f"HTTP/1.1 101 S\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {accept}\r\n\r\n".encode())
            await writer.drain()
            await reader.read()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(one, "127.0.0.1", port, backlog=4096)
    await server.serve_forever()


def most(port):
    return int(urllib.request.urlopen(f"http://127.0.0.1:{port}/most").read())


def breaker(port):
    text = urllib.request.urlopen(f"http://127.0.0.1:{ADMIN}/metrics").read().decode()
    for line in text.splitlines():
        if line.startswith("weir_proxy_breaker_state") and f'server="127.0.0.1:{port}"' in line:
            return int(float(line.rsplit(" ", 1)[1]))
    return 0


async def shake():
    begun = time.monotonic()
    reader, writer = await asyncio.open_connection("127.0.0.1", FRONT)
    key = base64.b64encode(os.urandom(16)).decode()
    writer.write(f"GET / HTTP/1.1\r\nHost: a\r\nX-Key: {key}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n\r\n".encode())
    status = (await reader.readuntil(b"\r\n\r\n")).split(b" ")[1]
    writer.close()
    return status == b"101", time.monotonic() - begun


async def load(rate, until):
    """Handshakes at this rate until `until()`, each on time whatever became of those before."""
    tasks, begun = [], time.monotonic()
    while not until():
        tasks.append(asyncio.create_task(shake()))
        await asyncio.sleep(max(0, begun + len(tasks) / rate - time.monotonic()))
    return await asyncio.gather(*tasks)


def told(name, results):
    times = sorted(1000 * t for ok, t in results if ok)
    row = {"phase": name, "handshakes": len(results), "failed": sum(not ok for ok, _ in results)}
    row.update(p50_ms=round(times[len(times) // 2], 1), p99_ms=round(times[len(times) * 99 // 100], 1))
    print(json.dumps(row), flush=True)


async def run(rate, seconds, hung):
    def after(seconds):
        end = time.monotonic() + seconds
        return lambda: time.monotonic() >= end

    loop = asyncio.get_running_loop()
    told("before", await load(rate, after(seconds)))
    os.kill(hung.pid, signal.SIGSTOP)
    state = {"open": None}

    def is_open():
        return state["open"] is not None

    async def watch():
        begun = time.monotonic()
        while await loop.run_in_executor(None, breaker, SERVERS[0]) == 0:
            await asyncio.sleep(0.01)
        state["open"] = time.monotonic() - begun

    watching = asyncio.create_task(watch())
    told("hangs, breaker not open yet", await load(rate, is_open))
    await watching
    print(json.dumps({"breaker_open_after_s": round(state["open"], 2)}))
    told("hangs, breaker open", await load(rate, after(seconds)))
    os.kill(hung.pid, signal.SIGCONT)
    begun = time.monotonic()
    # What it finds in its queue is of those who have gone, and not to be counted.
    await asyncio.sleep(0.3)
    await loop.run_in_executor(None, most, SERVERS[0])
    closed = {}

    async def watch_closing():
        peak = 0
        while await loop.run_in_executor(None, breaker, SERVERS[0]) != 0:
            peak = max(peak, await loop.run_in_executor(None, most, SERVERS[0]))
        closed.update(after_s=round(time.monotonic() - begun, 2), most_at_once=peak)

    watching = asyncio.create_task(watch_closing())
    told("goes on", await load(rate, after(seconds)))
    await watching
    print(json.dumps({"breaker_closed": closed, "most_at_once_then": most(SERVERS[0])}))


def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("--rate", type=float, default=200)
    a.add_argument("--seconds", type=float, default=10)
    a.add_argument("--binary", default=f"{os.environ.get('CARGO_TARGET_DIR', f'{ROOT}/target')}/release/weir")
    a.add_argument("--serve", type=int, help=argparse.SUPPRESS)
    args = a.parse_args()
    if args.serve:
        return asyncio.run(serve(args.serve))
    servers = [subprocess.Popen([sys.executable, __file__, "--serve", str(port)]) for port in SERVERS]
    with tempfile.TemporaryDirectory() as dir:
        conf = CONF.format(admin=ADMIN, front=FRONT, servers=", ".join(f'"127.0.0.1:{port}"' for port in SERVERS))
        open(f"{dir}/weir.toml", "w").write(conf)
        weir = subprocess.Popen([args.binary, "run", "--config", f"{dir}/weir.toml"])
        try:
            time.sleep(2)
            asyncio.run(run(args.rate, args.seconds, servers[0]))
        finally:
            for process in [weir, *servers]:
                process.kill()


main()
