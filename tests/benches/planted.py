#!/usr/bin/env python3
"""Plants a mistake in a copy of the sources, builds that, and harms it: the checker must find something.

    tests/benches/planted.py [NAME…] [--kills 15]          all of them, if none is named

A debug build for each, in a target folder of its own. What the simulation finds by its own mistakes
(broker/src/replica/faults.rs) is found faster there; this shows that processes and checker, as a whole, can fail.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
FAULTS = "broker/src/replica/faults.rs"
NOT_PLANTED = "pub(super) fn planted(&self, _: Fault) -> bool {\n        false"
PLANTED = "pub(super) fn planted(&self, fault: Fault) -> bool {\n        fault == Fault::{}"
# Name → (file, what stands there, what is put in its place), and the options of kill.py that bring it out.
MISTAKES = {
    "commit_alone": ((FAULTS, NOT_PLANTED, PLANTED.replace("{}", "CommitAlone")), []),
    "serve_too_soon": ((FAULTS, NOT_PLANTED, PLANTED.replace("{}", "ServeTooSoon")), []),
    "early_ack": ((FAULTS, NOT_PLANTED, PLANTED.replace("{}", "EarlyAck")), []),
    "no_dedupe": (
        ("broker/src/state/channel.rs", "&& let Some(first) = keys.get(time, key)", "&& let Some(first) = keys.get(time, key).filter(|_| false)"),
        [],
    ),
}


def plant(copy, path, old, new):
    with open(f"{copy}/{path}") as file:
        text = file.read()
    if text.count(old) < 1:
        sys.exit(f"{path} does not have the place any more where this mistake goes:\n{old}")
    with open(f"{copy}/{path}", "w") as file:
        # The last one: what stands before may be for tests alone.
        file.write(new.join(text.rsplit(old, 1)))


def found(name, args):
    """What the checker says of that mistake."""
    (path, old, new), options = MISTAKES[name]
    with tempfile.TemporaryDirectory(prefix="weir-planted-") as folder:
        copy = f"{folder}/weir"
        subprocess.run(["git", "-C", ROOT, "worktree", "add", "--quiet", "--detach", copy], check=True)
        try:
            plant(copy, path, old, new)
            target = args.target or f"{folder}/target"
            environment = {**os.environ, "CARGO_TARGET_DIR": target}
            subprocess.run(["cargo", "build", "--quiet", "-p", "weir"], cwd=copy, env=environment, check=True)
            shutil.copy(f"{target}/debug/weir", f"{args.bin}/weir")
            command = [
                f"{ROOT}/tests/benches/kill.py", "--bin", args.bin, "--keep", f"{folder}/logs", "--kills", str(args.kills),
                "--subscribers", "100", "--rate", "200", *options,
            ]
            output = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True).stdout
            verdicts = [os.path.join(at, name) for at, _, names in os.walk(f"{folder}/logs") for name in names if name.endswith(".verdict")]
            if not verdicts:
                return None, output
            with open(verdicts[0]) as file:
                return json.load(file)["faults"], output
        finally:
            subprocess.run(["git", "-C", ROOT, "worktree", "remove", "--force", copy], check=False)


def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("names", nargs="*", choices=[[], *MISTAKES], default=[])
    a.add_argument("--kills", type=int, default=15)
    a.add_argument("--target", default="", help="a target folder that may be used again")
    args = a.parse_args()
    own = os.environ.get("CARGO_TARGET_DIR", f"{ROOT}/target")
    subprocess.run(["cargo", "build", "--quiet", "-p", "weir-tests", "--bins"], cwd=ROOT, check=True)
    missed = []
    with tempfile.TemporaryDirectory(prefix="weir-planted-bin-") as args.bin:
        shutil.copy(f"{own}/debug/cluster_load", args.bin)
        for name in args.names or MISTAKES:
            faults, output = found(name, args)
            print(f"{name:20} {'found: ' + str(faults) if faults else 'NOT found'}", flush=True)
            if not faults:
                missed.append(name)
                print(re.sub("^", "    ", output[-3000:], flags=re.M))
    sys.exit(1 if missed else 0)


main()
