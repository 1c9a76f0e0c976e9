#!/usr/bin/env python3
"""Sums of a vector over several processes on one machine: `aquifer bench exchange` beside Gloo's all-reduce (PyTorch).

    pip install torch
    cargo build --release
    python docs/benchmarks/exchange.py target/release/aquifer [--ranks 2 4] [--size 100]

In turns; the median of the medians is printed. Aquifer's members are threads of one process with a connection each, Gloo's are
processes; both go through loopback. Aquifer's sum is in a fixed order, the same bits whoever computes.
"""
import argparse
import json
import os
import statistics
import subprocess
import sys
import time

parser = argparse.ArgumentParser()
parser.add_argument("aquifer")
parser.add_argument("--ranks", type=int, nargs="+", default=[2, 4])
parser.add_argument("--size", type=int, default=100, help="megabytes of f32")
parser.add_argument("--rounds", type=int, default=10)
parser.add_argument("--turns", type=int, default=3)
parser.add_argument("--member", type=int, help=argparse.SUPPRESS)
args = parser.parse_args()


def member(ranks):
    """One process of Gloo; rank 0 prints its median in milliseconds."""
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    dist.init_process_group("gloo", rank=args.member, world_size=ranks)
    vector, times = torch.ones(args.size * 1_000_000 // 4), []
    for _ in range(args.rounds + 2):
        vector.fill_(1.0)
        dist.barrier()
        start = time.perf_counter()
        dist.all_reduce(vector)
        times.append(1e3 * (time.perf_counter() - start))
        assert vector[0] == ranks and vector[-1] == ranks
    if args.member == 0:
        print(statistics.median(times[2:]))
    dist.destroy_process_group()


def gloo(ranks, turn):
    environment = dict(os.environ, MASTER_PORT=str(29500 + turn))
    command = [sys.executable, __file__, args.aquifer, "--ranks", str(ranks), "--size", str(args.size)]
    command += ["--rounds", str(args.rounds), "--member"]
    run = [subprocess.Popen(command + [str(rank)], env=environment, stdout=subprocess.PIPE) for rank in range(ranks)]
    return float([process.communicate()[0] for process in run][0])


def aquifer(ranks):
    command = [args.aquifer, "bench", "exchange", "--json", "--ranks", str(ranks), "--size", str(args.size)]
    rows = json.loads(subprocess.check_output(command + ["--rounds", str(args.rounds)], stderr=subprocess.DEVNULL))
    return next(row["value"] for row in rows if row["name"] == "sum, median")


if args.member is not None:
    member(args.ranks[0])
else:
    for ranks in args.ranks:
        both = [(aquifer(ranks), gloo(ranks, turn)) for turn in range(args.turns)]
        ours, theirs = (statistics.median(times) for times in zip(*both))
        print(f"{ranks} members, {args.size} MB: aquifer {ours:.0f} ms, gloo {theirs:.0f} ms, {theirs / ours:.2f}x", flush=True)
