#!/usr/bin/env python3
"""After how long others see that a process was killed: its connections end only after its memory was given back.

    python docs/benchmarks/killed.py [--megabytes 0 70 300] [--tries 20] [--quota 10000/20000]

A process computes and holds so much memory, in small pages or, where the system has them, in large ones; it is killed (-9) at a random
moment, and the time is taken until the other end of its socket is told. With --quota (root, control groups of version 1) it has so many
microseconds of a core in so many, as workers with half a core have.
"""
import argparse
import mmap
import os
import pathlib
import random
import signal
import socket
import statistics
import time

parser = argparse.ArgumentParser()
parser.add_argument("--megabytes", type=int, nargs="+", default=[0, 70, 300])
parser.add_argument("--tries", type=int, default=20)
parser.add_argument("--quota", help="microseconds/period")
args = parser.parse_args()
group = pathlib.Path(f"/sys/fs/cgroup/cpu/killed-{os.getpid()}")
if args.quota:
    quota, period = args.quota.split("/")
    group.mkdir()
    (group / "cpu.cfs_period_us").write_text(period)
    (group / "cpu.cfs_quota_us").write_text(quota)


def hold(megabytes, advice, told):
    """Never returns."""
    if args.quota:
        (group / "tasks").write_text(str(os.getpid()))
    if megabytes:
        memory = mmap.mmap(-1, megabytes << 20, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        memory.madvise(advice)
        for at in range(0, len(memory), 4096):
            memory[at] = 1
    told.send(b"x")
    while True:
        pass


def once(megabytes, advice):
    """Milliseconds until the other end is told."""
    near, far = socket.socketpair()
    child = os.fork()
    if child == 0:
        near.close()
        hold(megabytes, advice, far)
    far.close()
    near.recv(1)
    time.sleep(0.01 + 0.04 * random.random())
    start = time.monotonic()
    os.kill(child, signal.SIGKILL)
    near.recv(1)
    took = time.monotonic() - start
    os.waitpid(child, 0)
    return 1e3 * took


kinds = [(size, *kind) for size in args.megabytes for kind in (("small", mmap.MADV_NOHUGEPAGE), ("large", mmap.MADV_HUGEPAGE))]
times = {kind[:2]: [] for kind in kinds}
for _ in range(args.tries):
    for size, name, advice in kinds:
        times[size, name].append(once(size, advice))
print(f"{'MEMORY':>8} {'PAGES':>6} {'MEDIAN':>9} {'WORST':>9}    load {os.getloadavg()[0]:.1f}")
for (size, name), found in times.items():
    print(f"{size:>5} MB {name:>6} {statistics.median(found):>6.1f} ms {max(found):>6.1f} ms")
if args.quota:
    group.rmdir()
