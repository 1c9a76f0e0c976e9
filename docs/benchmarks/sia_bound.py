#!/usr/bin/env python3
"""How low the average completion of Sia's traces could be, if all were known: a bound for any schedule.

    git clone https://github.com/siasosp23/artifacts
    pip install 'pandas==2.2.3' 'numpy==1.26.4' scipy
    python3 docs/benchmarks/sia_bound.py artifacts/sia-simulator workloads/philly/workload-1.csv --slot 2 --turns 90

The relaxation: devices can be divided, jobs stopped and moved for nothing but their first start, and speeds are known: of
each configuration the best of its batch sizes, as a mean over the epochs. A job's completion is not before the mean time of its
work and half of its least run. Prices of each class in each slot are sought by subgradients; every set of prices gives a bound.
"""

import argparse
import csv
import math
import os
import sys

import numpy as np
import pandas

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("simulator")
parser.add_argument("workload")
parser.add_argument("--slot", type=float, default=2, help="minutes of a slot")
parser.add_argument("--hours", type=float, default=20, help="when the last slot ends")
parser.add_argument("--turns", type=int, default=90, help="of the search for prices")
args = parser.parse_args()
os.chdir(args.simulator)
sys.path.insert(0, ".")
# The simulator was written for an older pandas.
pandas.DataFrame.append = lambda self, other, ignore_index=False: pandas.concat([self, other], ignore_index=ignore_index)
from applications import APPLICATIONS
from simulator_config import SLOWDOWNS, cluster_ngpus_per_node, cluster_nnodes

CLASSES = list(cluster_nnodes)
CAPACITY = np.array([cluster_nnodes[name] * cluster_ngpus_per_node[name] for name in CLASSES], float)
SAMPLES = 8


def step_times(app, placement):
    """(batch size, seconds of a step) of what a job may use on a placement."""
    devices = sum(placement)
    largest = min(app.get_max_local_bsz(placement), app.max_local_bsz)
    for batch in np.geomspace(max(app.init_batch_size, app.min_local_bsz * devices), app.max_batch_size, 40):
        local = batch / devices
        accumulated = math.ceil(local / largest - 1e-8) - 1
        if devices == 1 and local > app.init_batch_size + 1e-8:
            accumulated = max(accumulated, 1)
        atomic = math.ceil(local / (accumulated + 1) - 1e-8)
        atomic = min(atomic, int(app.max_batch_size / (devices * (accumulated + 1))))
        if atomic < app.min_local_bsz:
            continue
        try:
            step, sync = app.get_throughput(placement, atomic)
        except AssertionError:  # Outside of what was profiled.
            continue
        if step > 0:
            yield devices * atomic * (accumulated + 1), step + accumulated * (step - sync)


def run_s(app, placement):
    """Seconds of a whole job on a placement; None: it cannot run there."""
    steps = list(step_times(app, placement))
    epochs = min(app.get_completion_epoch(batch) for batch in app.validation) + 1
    samples = sorted(set(np.linspace(0, epochs - 1, min(epochs, SAMPLES)).astype(int)))
    edges = [0, *((one + other) // 2 + 1 for one, other in zip(samples, samples[1:])), epochs]
    total = 0.0
    for at, epoch in enumerate(samples):
        best = 0.0
        for batch, seconds in steps:
            try:
                sqr, var = app.get_grad_stats(batch, int(epoch))
            except AssertionError:
                continue
            gain = (var + sqr) / (var * app.init_batch_size / batch + sqr)
            best = max(best, gain / seconds / SLOWDOWNS[app.name])
        if best == 0.0:
            return None
        total += (app.get_progress(edges[at + 1]) - app.get_progress(edges[at])) / best
    return total


def configurations(name):
    """(class, devices, hours of a whole job): powers of two within a node, whole nodes beyond."""
    for at, cluster in enumerate(CLASSES):
        app, of_node = APPLICATIONS[cluster][name], cluster_ngpus_per_node[cluster]
        within = [(1 << power,) for power in range(of_node.bit_length())]
        for placement in within + [(of_node,) * nodes for nodes in range(2, cluster_nnodes[cluster] + 1)]:
            if sum(placement) * app.min_local_bsz <= app.max_batch_size:
                seconds = run_s(app, placement)
                if seconds is not None:
                    yield at, sum(placement), seconds / 3600


slot, slots = args.slot / 60, int(args.hours * 60 / args.slot)
begins = np.arange(slots) * slot
tables, jobs, waits = {}, [], 0.0
with open(args.workload) as file:
    for row in csv.DictReader(file):
        name, arrived = row["application"], float(row["time"]) / 3600
        if name not in tables:
            tables[name] = [np.array(column) for column in zip(*configurations(name))]
        # It starts with a round, and then has to load.
        ready = math.ceil(arrived * 60) / 60 + APPLICATIONS[CLASSES[0]][name].rescale_time / 3600
        jobs.append((ready, name))
        waits += ready - arrived
alone = sum(tables[name][2].min() for _, name in jobs)
prices, best = np.full((len(CLASSES), slots), 0.02), 0.0
for turn in range(args.turns):
    load, total = np.zeros_like(prices), 0.0
    for ready, name in jobs:
        classes, devices, hours = tables[name]
        usable, late = np.clip(begins + slot - ready, 0, slot), np.maximum(begins - ready, 0)
        fixed = prices[classes] * devices[:, None]
        low, high = 0.0, 200.0
        for _ in range(30):
            worth = (low + high) / 2
            gain = (worth - late) / hours[:, None] - fixed
            choice = gain.argmax(0)
            gained = gain[choice, np.arange(slots)]
            done = ((gained > 0) * usable / hours[choice]).sum()
            low, high = (low, worth) if done >= 1 else (worth, high)
        total += worth - (np.maximum(gained, 0) * usable).sum() + hours.min() / 2
        runs = (gained > 0) * usable
        np.add.at(load, (classes[choice], np.arange(slots)), runs * devices[choice] * min(1, 1 / max(done, 1e-9)))
    best = max(best, (total - (prices * CAPACITY[:, None] * slot).sum()) / len(jobs))
    excess = load / (CAPACITY[:, None] * slot) - 1
    prices = np.maximum(0, prices + 0.25 / (1 + turn / 12) * excess * np.maximum(prices, 0.01))
print(f"{args.workload}: each alone {(alone + waits) / len(jobs):.3f} h, all together at least {best + waits / len(jobs):.3f} h")
