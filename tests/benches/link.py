"""Two network namespaces and a link between them that is slow and loses packets: whole IP packets, so that TCP and QUIC
meet the same. The kernel here has no netem: the delay is this process's (a TUN device at each end), the loss is nftables'.
Everything is removed again."""

import atexit
import collections
import contextlib
import fcntl
import os
import pathlib
import select
import struct
import subprocess
import sys
import threading
import time

from netns import need_rights, refuse, run

TUNSETIFF, TUN_WITHOUT_HEADER = 0x400454CA, 0x1001
# Of packets under way in one direction; what comes over it is dropped, as by a router.
UNDER_WAY = 100_000
# Of the server, in its namespace.
TLS, NODE, ADMIN, API_KEY = 21443, 21100, 21900, "a-key-of-this-bench"


class Link:
    """`client` and `server` are the namespaces; besides the slow link there is a direct one, for what is not measured."""

    client, server = "weir-client", "weir-server"
    # On the slow link and on the direct one.
    client_at, server_at, direct = "10.78.0.2", "10.78.1.2", "10.79.0.2"

    def __init__(self, milliseconds):
        need_rights()
        self.seconds, self.dropped = milliseconds / 1000, 0
        self.remove()
        atexit.register(self.remove)
        try:
            ends = self._make()
        except OSError as error:
            self.remove()
            refuse(str(error))
        threading.Thread(target=self._carry, args=ends, daemon=True).start()

    def _make(self):
        ends = []
        for name in (self.client, self.server):
            run("ip", "netns", "add", name)
            run("ip", "-n", name, "link", "set", "lo", "up")
        for name, address, other in ((self.client, self.client_at, self.server_at), (self.server, self.server_at, self.client_at)):
            device = f"{name}0"
            end = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
            fcntl.ioctl(end, TUNSETIFF, struct.pack("16sH22x", device.encode(), TUN_WITHOUT_HEADER))
            run("ip", "link", "set", device, "netns", name)
            run("ip", "-n", name, "addr", "add", f"{address}/24", "dev", device)
            run("ip", "-n", name, "link", "set", device, "up")
            run("ip", "-n", name, "route", "add", other.rsplit(".", 1)[0] + ".0/24", "dev", device)
            ends.append(end)
        run("ip", "-n", self.client, "link", "add", "direct", "type", "veth", "peer", "name", "direct", "netns", self.server)
        for name, address in ((self.client, "10.79.0.1"), (self.server, self.direct)):
            run("ip", "-n", name, "addr", "add", f"{address}/24", "dev", "direct")
            run("ip", "-n", name, "link", "set", "direct", "up")
        return ends

    def lose(self, percent):
        """Of what comes in over the slow link, at each end."""
        for name in (self.client, self.server):
            rule = f"add rule inet weir in iifname {name}0 numgen random mod 1000 < {round(percent * 10)} counter drop"
            lines = ["add table inet weir", "delete table inet weir", "add table inet weir"]
            lines += ["add chain inet weir in { type filter hook input priority 0; policy accept; }", rule]
            run("ip", "netns", "exec", name, "nft", "-f", "-", text="\n".join(lines) + "\n")

    def _carry(self, client, server):
        """Each packet comes out at the other end so many seconds later, in order."""
        other, under_way = {client: server, server: client}, collections.deque()
        while True:
            wait = None if not under_way else max(0, under_way[0][0] - time.monotonic())
            readable, _, _ = select.select([client, server], [], [], wait)
            now = time.monotonic()
            for end in readable:
                try:
                    while packet := os.read(end, 65536):
                        if len(under_way) < UNDER_WAY:
                            under_way.append((now + self.seconds, other[end], packet))
                        else:
                            self.dropped += 1
                except BlockingIOError:
                    pass
                except OSError:  # the namespaces are gone: the end
                    return
            while under_way and under_way[0][0] <= time.monotonic():
                _, end, packet = under_way.popleft()
                try:
                    os.write(end, packet)
                except OSError:  # its queue is full, or the device is down
                    self.dropped += 1

    def inside(self, name, *command):
        return ["ip", "netns", "exec", name, *command]

    def remove(self):
        """Also what an earlier run that was killed left behind."""
        for name in (self.client, self.server):
            subprocess.run(["ip", "netns", "del", name], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


@contextlib.contextmanager
def server(link, weir, folder):
    """All of Weir in one process, in the server's namespace, without limits for those who come."""
    names = f"localhost,{link.server_at}"
    subprocess.run([weir, "cert", "self-signed", "--names", names, "--out", folder], check=True, capture_output=True)
    conf = pathlib.Path(folder) / "weir.toml"
    conf.write_text(f"""
roles = ["proxy", "node", "broker"]
[admin]
listen = "127.0.0.1:{ADMIN}"
[proxy]
listen = "0.0.0.0:21080"
handshake_rate = "0/s"
max_connections_per_ip = 0
max_requests_per_ip = 0
[proxy.tls]
listen = ["0.0.0.0:{TLS}"]
certificates = [{{ cert = "{folder}/cert.pem", key = "{folder}/key.pem" }}]
handshake_rate = "0/s"
[[proxy.route]]
to = "node"
[node]
listen = "0.0.0.0:{NODE}"
anonymous = true
max_connections_per_ip = 0
api_key = "{API_KEY}"
[channel]
allow_subscribe_for_client = true
allow_subscribe_for_anonymous = true
allow_publish_for_subscriber = true
allow_publish_for_anonymous = true
[[channel.namespace]]
name = "cursor"
delivery = "datagram"
allow_subscribe_for_client = true
allow_subscribe_for_anonymous = true
""")
    log = open(f"{folder}/log", "w")
    process = subprocess.Popen(link.inside(link.server, weir, "run", "--config", str(conf)), stdout=log, stderr=log)
    try:
        ready = link.inside(link.client, "curl", "-s", "-o", "/dev/null", "--retry", "20", "--retry-connrefused",
                            "--retry-delay", "1", f"http://{link.direct}:{NODE}/")
        if subprocess.run(ready).returncode or process.poll() is not None:
            sys.exit(f"weir does not start: {open(f'{folder}/log').read()[-2000:]}")
        yield process
    finally:
        process.kill()
        process.wait()
