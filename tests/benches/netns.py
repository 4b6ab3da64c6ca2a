"""Network namespaces on one bridge, and what can be done to the packets between them. Everything is removed again."""

import atexit
import os
import shutil
import subprocess
import sys

from cluster import Host

BRIDGE = "weir-br"
# What `refuse` ends with when this machine does not let a test do this.
NO_RIGHTS = 77


def run(*words, text=None):
    done = subprocess.run(words, input=text, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        raise OSError(f"{' '.join(words)}: {done.stdout.strip()}")
    return done.stdout


def refuse(why):
    print(f"cannot make a network of its own here: {why}", file=sys.stderr)
    sys.exit(NO_RIGHTS)


def need_rights():
    for tool, package in (("ip", "iproute2"), ("nft", "nftables")):
        if not shutil.which(tool):
            refuse(f"{tool} is missing (Debian: {package})")
    if os.geteuid() != 0:
        refuse("network namespaces need root (or CAP_NET_ADMIN and CAP_SYS_ADMIN)")


class Net:
    """One namespace for each name, with the address 10.77.0.10, .11, … ; this machine is 10.77.0.1."""

    def __init__(self, names):
        need_rights()
        self.names = [f"weir-{name}" for name in names]
        self.addresses = [f"10.77.0.{10 + n}" for n in range(len(names))]
        self.remove()
        atexit.register(self.remove)
        try:
            self._make()
        except OSError as error:
            self.remove()
            refuse(str(error))
        self.hosts = [Host(a, ["ip", "netns", "exec", n]) for n, a in zip(self.names, self.addresses)]

    def _make(self):
        run("ip", "link", "add", BRIDGE, "type", "bridge")
        run("ip", "addr", "add", "10.77.0.1/24", "dev", BRIDGE)
        run("ip", "link", "set", BRIDGE, "up")
        for n, (name, address) in enumerate(zip(self.names, self.addresses)):
            run("ip", "netns", "add", name)
            outer, inner = f"weir-v{n}", f"weir-w{n}"
            run("ip", "link", "add", outer, "type", "veth", "peer", "name", inner)
            run("ip", "link", "set", inner, "netns", name)
            run("ip", "link", "set", outer, "master", BRIDGE, "up")
            run("ip", "-n", name, "addr", "add", f"{address}/24", "dev", inner)
            run("ip", "-n", name, "link", "set", inner, "up")
            run("ip", "-n", name, "link", "set", "lo", "up")
            # nf_tables must be there, too: found out now, not in the middle.
            run("ip", "netns", "exec", name, "nft", "-f", "-", text="add table inet weir\n")

    def rules(self, at, *rules):
        """In that namespace, on what comes in, in place of those before; none: all passes."""
        lines = ["add table inet weir", "delete table inet weir", "add table inet weir"]
        if rules:
            lines.append("add chain inet weir in { type filter hook input priority 0; policy accept; }")
            lines += [f"add rule inet weir in {rule}" for rule in rules]
        run("ip", "netns", "exec", self.names[at], "nft", "-f", "-", text="\n".join(lines) + "\n")

    def cut(self, one, other):
        """Nothing from `other` reaches `one`; the other way is open."""
        self.rules(one, f"ip saddr {self.addresses[other]} drop")

    def isolate(self, one):
        """From and to all others; this machine still reaches it."""
        others = [a for n, a in enumerate(self.addresses) if n != one]
        self.rules(one, f"ip saddr {{ {', '.join(others)} }} drop")
        for n in range(len(self.names)):
            if n != one:
                self.rules(n, f"ip saddr {self.addresses[one]} drop")

    def lose(self, percent):
        """Of what comes to each from the others; what the load sends is spared."""
        for n in range(len(self.names)):
            others = [a for m, a in enumerate(self.addresses) if m != n]
            self.rules(n, f"ip saddr {{ {', '.join(others)} }} numgen random mod 100 < {percent} drop")

    def heal(self):
        for n in range(len(self.names)):
            self.rules(n)

    def remove(self):
        """Also what an earlier run that was killed left behind."""
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        for name in self.names:
            subprocess.run(["ip", "netns", "del", name], **quiet)
        for n in range(len(self.names)):
            subprocess.run(["ip", "link", "del", f"weir-v{n}"], **quiet)
        subprocess.run(["ip", "link", "del", BRIDGE], **quiet)
