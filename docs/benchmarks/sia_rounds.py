#!/usr/bin/env python3
"""Runs the core's rounds inside the simulator of Sia (SOSP 2023), in the place of its integer program.

    git clone https://github.com/siasosp23/artifacts
    pip install 'pandas==2.2.3' 'numpy==1.26.4' scipy autograd cvxpy rich
    cargo build --release -p aquifer-sim --example decide
    python3 docs/benchmarks/sia_rounds.py artifacts/sia-simulator workloads/philly/workload-1.csv \
        target/release/examples/decide --history work-of-another-trace.json --work work-of-this-trace.json

Everything but the choice is the simulator's: jobs, profiles, goodput models that are fitted as jobs run, placement on
nodes, restart costs, rounds of 60 s. Of a job's rest the core is told what earlier jobs of the same application took,
by the files given as --history; without them, that it needs as much again as it has had. Before its first round a job
is told of by its throughput on one device of each class, which the simulator gives to every policy with each job.
"""

import argparse
import contextlib
import io
import json
import os
import subprocess
import sys

import numpy as np
import pandas

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("simulator")
parser.add_argument("workload")
parser.add_argument("decide")
parser.add_argument("--history", action="append", default=[], help="work by job name, as --work writes it")
parser.add_argument("--work", help="where to write the work that every job took")
args = parser.parse_args()
args.history, args.decide = [os.path.abspath(path) for path in args.history], os.path.abspath(args.decide)
args.work = args.work and os.path.abspath(args.work)
os.chdir(args.simulator)
sys.path.insert(0, ".")

# The simulator was written for an older pandas.
pandas.DataFrame.append = lambda self, other, ignore_index=False: pandas.concat([self, other], ignore_index=ignore_index)
import simulator_config as config
from cluster import Cluster
from sia import SiaPolicy, get_restart_penalty

ROUND_S = 60.0


class Rounds(SiaPolicy):
    """Sia's policy with the choice of configurations made by the core."""

    def begin(self, history):
        self.history = history
        self.core = subprocess.Popen([args.decide], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)
        # Rounds so far; by job: work done, in seconds on its slowest single device; (speed, round of its start); first round.
        self.round, self.work, self.running, self.first = 0, {}, {}, {}

    def optimize_mip(self, jobs, nodes, before):
        self.infos = jobs
        return super().optimize_mip(jobs, nodes, before)

    def speeds(self, name, fitted):
        """By configuration: as fitted, or, of a job that has not run, by its throughput on one device of each class."""
        info = self.infos[name]
        if any(fit is not None for fit in info.speedup_fn.values()):
            return fitted
        least, speeds = min(info.cluster_throughputs[cluster] for cluster in self.cluster_ordering), fitted.copy()
        for at in np.flatnonzero(fitted > 0.001):
            speeds[at] = info.cluster_throughputs[self.idx_to_config_map[at][0]] / least
        return speeds

    def left_s(self, name):
        done, earlier = self.work.get(name, 0.0), self.history.get(name.split("-")[0], [])
        longer = [work - done for work in earlier if work > done + 60]
        if longer:
            return max(60.0, sum(longer) / len(longer))
        return max(60.0, 0.1 * done) if earlier else max(600.0, done)

    def account(self, name):
        """Adds the work of the last round, less what of it was spent on a restart."""
        if name in self.running:
            speed, since = self.running[name]
            worked = (self.round - since) * ROUND_S - get_restart_penalty(name)
            self.work[name] = self.work.get(name, 0.0) + speed * min(ROUND_S, max(0.0, worked))

    def modes(self, kind, speeds, replicas):
        """(configuration, class, devices, speed) of all that a job may use."""
        for at in np.flatnonzero(speeds > 0.001):
            if kind == "rigid":
                yield int(at), int(at), int(replicas), float(speeds[at])
            else:
                cluster, _, devices = self.idx_to_config_map[at]
                yield int(at), self.cluster_ordering.index(cluster), int(devices), float(speeds[at])

    def _SiaPolicy__solve_mip_rescaled(self, parameters, free, weights, restarting):
        rigid, adaptive = parameters["rigid"], parameters["adaptive"]
        jobs = [("rigid", name, list(self.modes("rigid", rigid[1][at], rigid[2][at]))) for at, name in enumerate(rigid[0])]
        for at, name in enumerate(adaptive[0]):
            jobs.append(("adaptive", name, list(self.modes("adaptive", self.speeds(name, adaptive[1][at]), 0))))
        devices = [int(self.cluster_total_gpus[cluster]) for cluster in self.cluster_ordering]
        chosen, lines, asked = {}, [], []
        for kind, name, modes in jobs:
            self.account(name)
            self.first.setdefault(name, self.round)
            before = self.prev_allocs_v2[kind].get(name)
            # Jobs in the middle of a restart keep what they have.
            if name in restarting[kind]:
                kept = [mode for mode in modes if mode[0] == before]
                if not kept:
                    cluster, _, count = self.idx_to_config_map[before]
                    kept = [(before, self.cluster_ordering.index(cluster), int(count), 1.0)]
                chosen[name] = kept[0]
                devices[kept[0][1]] -= kept[0][2]
                continue
            current = next((str(at) for at, mode in enumerate(modes) if mode[0] == before), "-")
            waited_ms, restart_ms = int((self.round - self.first[name]) * ROUND_S * 1000), get_restart_penalty(name) * 1000
            left_ms = self.left_s(name) * 1000
            words = [f"{mode[1]}:{mode[2]}:{max(1, int(left_ms / mode[3]))}" for mode in modes]
            lines.append(" ".join(["job", str(waited_ms), str(restart_ms), current, *words]))
            asked.append((name, modes))
        lines = [" ".join(["classes", *map(str, devices)]), *lines, "plan"]
        self.core.stdin.write("\n".join(lines) + "\n")
        self.core.stdin.flush()
        for (name, modes), word in zip(asked, self.core.stdout.readline().split()):
            chosen[name] = None if word == "-" else modes[int(word)]
        return self.take(jobs, chosen)

    def take(self, jobs, chosen):
        """The choice as the simulator wants it: by job, and by cluster."""
        of_job, of_cluster, running = {}, {}, {}
        before, self.prev_allocs_v2 = self.prev_allocs_v2, {"rigid": {}, "adaptive": {}}
        for kind, name, _ in jobs:
            mode = chosen[name]
            of_job[name], self.prev_allocs_v2[kind][name] = None, None
            if mode is None:
                continue
            at, index, devices, speed = mode
            cluster = self.cluster_ordering[index]
            nodes = -(-devices // self.cluster_ngpus_per_node[cluster])
            of_job[name] = (cluster, (nodes, devices))
            of_cluster.setdefault(cluster, {})[name] = (nodes, devices)
            self.prev_allocs_v2[kind][name] = at
            stays = before[kind].get(name) == at and name in self.running
            running[name] = (speed, self.running[name][1] if stays else self.round)
        self.running = running
        self.round += 1
        return of_job, of_cluster


history = {}
for path in args.history:
    with open(path) as file:
        for name, work in json.load(file).items():
            history.setdefault(name.split("-")[0], []).append(work)
devices_per_node = {cluster: config.cluster_ngpus_per_node[cluster] for cluster in config.cluster_nnodes}
with contextlib.redirect_stdout(io.StringIO()) as noise:
    policy = Rounds(p_fairness=-0.5, lambda_a=0.01, lambda_n=1.1, project_throughputs=True, share_max_replicas=True)
    policy.populate_valid_configs(config.cluster_nnodes, devices_per_node, config.cluster_max_physical_nnodes)
    policy.begin(history)
    pool = Cluster(pandas.read_csv(args.workload), policy, config.cluster_nnodes, devices_per_node,
                   max_physical_nodes=config.cluster_max_physical_nnodes)
    while not pool.all_complete():
        pool.step(int(ROUND_S))
        pool.logs = pool.logs[-1:]
        noise.seek(0)
        noise.truncate(0)
hours = [(job.completion_time - job.submission_time) / 3600 for job in pool.jobs]
makespan = max(job.completion_time for job in pool.jobs) / 3600
restarts = np.mean([job.num_restarts or 0 for job in pool.jobs])
print(f"{args.workload}: avg {np.mean(hours):.3f} h, p99 {np.percentile(hours, 99):.2f} h, makespan {makespan:.2f} h, {restarts:.1f} restarts a job")
if args.work:
    with open(args.work, "w") as file:
        json.dump(policy.work, file)
