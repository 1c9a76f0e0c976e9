#!/usr/bin/env python3
"""Runs the core's rounds inside the simulator of Sia (SOSP 2023), in the place of its integer program.

    git clone https://github.com/siasosp23/artifacts
    pip install 'pandas==2.2.3' 'numpy==1.26.4' scipy autograd cvxpy rich
    cargo build --release -p aquifer-sim --example decide
    python3 docs/benchmarks/sia_rounds.py artifacts/sia-simulator workloads/philly/workload-1.csv target/release/examples/decide

Everything but the choice is the simulator's: jobs, profiles, goodput models that are fitted as jobs run, placement on
nodes, restart costs, rounds of 60 s. Nothing is known that was not measured in this very run. But what was measured of
one job serves all of its application, as speeds and durations do in the server (see Kind). Before anything has run of an
application, it is told of by its throughput on one device of each class, which the simulator gives to every policy.

A job's work is counted in examples at full statistical efficiency, the unit of the simulator's goodput.
"""

import argparse
import contextlib
import io
import os
import subprocess
import sys

import numpy as np
import pandas

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("simulator")
parser.add_argument("workload")
parser.add_argument("decide")
args = parser.parse_args()
args.decide = os.path.abspath(args.decide)
os.chdir(args.simulator)
sys.path.insert(0, ".")

# The simulator was written for an older pandas.
pandas.DataFrame.append = lambda self, other, ignore_index=False: pandas.concat([self, other], ignore_index=ignore_index)
import simulator_config as config
from cluster import Cluster
from goodput import GoodputFunction
from sia import SiaPolicy, get_restart_penalty

ROUND_S = 60.0
# Of an application of which no job has ended, a job that has done nothing is taken to need so long on its slowest device.
UNKNOWN_S = 600.0
# Parts of a job's work over which its gradient statistics are taken as constant.
PARTS = 8


class Kind:
    """What was learned of one application from all of its jobs."""

    def __init__(self):
        # By class: step and synchronisation time by (nodes, devices, batch of a device).
        self.points = {}
        # By class: that goodput function of the simulator which is least wrong about these; devices that it may be asked for.
        self.fits, self.most = {}, {}
        # Work that jobs took which have ended.
        self.ended = []
        # By job: (work done, gradient statistics then).
        self.paths = {}
        # Gradient statistics in equal parts of the work of the first job that ended, and its work.
        self.path, self.path_work = None, 0.0

    def measure(self, job, cluster, fn, limit):
        """Takes in what a job measured on a class, and the model that it fitted to that."""
        points = self.points.setdefault(cluster, {})
        known = len(points)
        for at, times in job.profiles[cluster].items():
            points.setdefault(at, times)
        own = fn._goodput_fn
        fits = [own._perf_params]
        if cluster in self.fits:
            fits.append(self.fits[cluster]._goodput_fn._perf_params)
        if known < len(points):
            fits.append(job.optimize_perf_params(points))
        best = min(fits, key=lambda fit: error(fit, points))
        if cluster not in self.fits or tuple(best) != tuple(self.fits[cluster]._goodput_fn._perf_params):
            goodput = GoodputFunction(best, own._grad_params, own._init_batch_size)
            self.fits[cluster] = type(fn)(goodput, fn._max_batch_size, fn._atomic_bsz_range, accumulation=True)
        self.most[cluster] = min(2 * max(at[1] for at in points), 64, limit)

    def end(self, name, work):
        """Takes in that a job has ended, after so much work."""
        self.ended.append(work)
        if self.path is None and name in self.paths:
            middles = [work * (part + 0.5) / PARTS for part in range(PARTS)]
            path = self.paths[name]
            self.path = [([gradients for done, gradients in path if done <= middle] or [path[0][1]])[-1] for middle in middles]
            self.path_work = work

    def ahead(self, done, left, now):
        """[(work, gradient statistics)] of what is left to a job: as of the first that ended, or of that which is furthest."""
        if self.path is not None:
            width = self.path_work / PARTS
            ends = [width * (part + 1) for part in range(PARTS - 1)] + [done + left]
            parts, at = [], done
            for end, gradients in zip(ends, self.path):
                end = min(end, done + left)
                if at < end:
                    parts.append((end - at, gradients))
                    at = end
            return parts or [(left, self.path[-1])]
        furthest = max(self.paths.values(), key=lambda path: path[-1][0])
        now = now or next(iter(self.paths.values()))[0][1]
        later = [(work, gradients) for work, gradients in furthest if done < work]
        if not later:
            return [(left, now)]
        seen = min(left, later[-1][0] - done)
        parts = [(seen / 2, now), (seen / 2, later[len(later) // 2][1])]
        return parts + ([(left - seen, later[-1][1])] if seen < left else [])

    def goodput(self, cluster, nodes, devices, gradients):
        """Examples a second in these configurations."""
        fn = self.fits[cluster]
        goodput = GoodputFunction(fn._goodput_fn._perf_params, gradients, fn._goodput_fn._init_batch_size)
        nodes, devices = nodes.astype(np.float32), devices.astype(np.float32)
        return goodput.optimize(nodes, devices, fn._max_batch_size, fn._atomic_bsz_range, True)[0]


def error(fit, points):
    """How wrong a model of the time of a step is, as the simulator's fit counts it, without its regularisation."""
    nodes, devices, batch = np.array(list(points), float).T
    step, sync = np.array(list(points.values()), float).T
    more = np.maximum(devices - 2, 1e-8)
    inner = np.where(devices > 1, fit.alpha_r + fit.beta_r * more, 1e-8)
    network = np.where(nodes > 1, fit.alpha_n + fit.beta_n * more, inner)
    compute = fit.alpha_c + fit.beta_c * batch
    top = np.maximum(compute, network)
    total = top * ((compute / top) ** fit.gamma + (network / top) ** fit.gamma) ** (1 / fit.gamma)
    return sum(np.sqrt(np.mean(np.log(told / true) ** 2)) for told, true in [(compute, step - sync), (total, step)])


class Rounds(SiaPolicy):
    """Sia's policy with the choice of configurations made by the core."""

    def begin(self):
        self.core = subprocess.Popen([args.decide], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)
        self.kinds, self.ended, self.infos, self.active = {}, set(), {}, {}
        # Rounds so far; by job: work done; (speed, round of its start, configuration); first round.
        self.round, self.work, self.running, self.first = 0, {}, {}, {}

    def optimize_mip(self, jobs, nodes, before):
        self.active = jobs
        self.infos.update(jobs)
        return super().optimize_mip(jobs, nodes, before)

    def kind(self, name):
        return self.kinds.setdefault(name.split("-")[0], Kind())

    def gradients(self, name):
        """Gradient statistics of a job as they are now, if it has run."""
        fits = [fn for fn in self.infos[name].speedup_fn.values() if fn is not None]
        return tuple(fits[0]._goodput_fn._grad_params) if fits else None

    def learn(self):
        """Takes in what jobs measured in the last round, and who has ended."""
        for name, info in self.active.items():
            kind, job = self.kind(name), self.jobs[name]
            for cluster, fn in info.speedup_fn.items():
                if fn is not None:
                    app = job.applications[cluster]
                    kind.measure(job, cluster, fn, app.max_batch_size // app.min_local_bsz)
            gradients = self.gradients(name)
            path = kind.paths.setdefault(name, []) if gradients else None
            if gradients and (not path or path[-1][1] != gradients):
                path.append((self.work.get(name, 0.0), gradients))
        for name in [name for name in self.work if name not in self.active and name not in self.ended]:
            self.ended.add(name)
            self.account(name)
            self.kind(name).end(name, self.work[name])

    def account(self, name):
        """Adds the work of the last round, less what of it was spent on a restart."""
        if name in self.running:
            speed, since, at = self.running[name]
            gradients = self.gradients(name)
            cluster, nodes, devices = self.idx_to_config_map[at]
            if gradients and cluster in self.kind(name).fits:
                speed = float(self.kind(name).goodput(cluster, np.array([nodes]), np.array([devices]), gradients)[0])
            worked = (self.round - since) * ROUND_S - get_restart_penalty(name)
            self.work[name] = self.work.get(name, 0.0) + speed * min(ROUND_S, max(0.0, worked))

    def left(self, name):
        """Work that is left: what those took that took more, where one that still runs counts as half done; of the first of
        an application, as much again as it has had."""
        done, least = self.work.get(name, 0.0), min(self.infos[name].cluster_throughputs[it] for it in self.cluster_ordering)
        app = name.split("-")[0]
        beside = [work for it, work in self.work.items() if it in self.active and it != name and it.split("-")[0] == app]
        alike = self.kind(name).ended + [2 * work for work in beside if 1.05 * done < work]
        longer = [work - done for work in alike if done + 60 * least < work]
        if longer:
            return max(60 * least, sum(longer) / len(longer))
        return max(60 * least, 0.1 * done) if alike else max(UNKNOWN_S * least, done)

    def modes(self, name):
        """(configuration, class, devices, speed) of all that a job may use; the mean speed over what is left."""
        info, kind, done, left = self.infos[name], self.kind(name), self.work.get(name, 0.0), self.left(name)
        most = max([1, *info.max_replicas.values(), *kind.most.values()])
        ahead = kind.ahead(done, left, self.gradients(name)) if kind.fits else []

        def mean(cluster, nodes, devices):
            return left / sum(work / np.maximum(kind.goodput(cluster, nodes, devices, it), 1e-9) for work, it in ahead)

        for index, cluster in enumerate(self.cluster_ordering):
            nodes, devices = (column[self.configs[cluster][1] <= most] for column in self.configs[cluster])
            if cluster in kind.fits:
                speeds = mean(cluster, nodes, devices)
            elif kind.fits:
                # Not measured: the best that any other class lets expect.
                ratios = info.cluster_throughput_ratios[cluster]
                speeds = np.max([mean(other, nodes, devices) * ratios[other] for other in kind.fits], axis=0)
            else:
                speeds = np.full(len(devices), info.cluster_throughputs[cluster])
            for count, host, speed in zip(devices, nodes, speeds):
                if speed > 1e-9:
                    yield self.config_to_idx_map[cluster, host, count], index, int(count), float(speed)

    def _SiaPolicy__solve_mip_rescaled(self, parameters, free, weights, restarting):
        self.learn()
        jobs = [(name, list(self.modes(name))) for name in parameters["adaptive"][0]]
        devices = [int(self.cluster_total_gpus[cluster]) for cluster in self.cluster_ordering]
        chosen, lines, asked = {}, [], []
        for name, modes in jobs:
            self.account(name)
            self.first.setdefault(name, self.round)
            before = self.prev_allocs_v2["adaptive"].get(name)
            # Jobs in the middle of a restart keep what they have.
            if name in restarting["adaptive"]:
                kept = [mode for mode in modes if mode[0] == before]
                if not kept:
                    cluster, _, count = self.idx_to_config_map[before]
                    kept = [(before, self.cluster_ordering.index(cluster), int(count), 1.0)]
                chosen[name] = kept[0]
                devices[kept[0][1]] -= kept[0][2]
                continue
            current = next((str(at) for at, mode in enumerate(modes) if mode[0] == before), "-")
            waited_ms, restart_ms = int((self.round - self.first[name]) * ROUND_S * 1000), get_restart_penalty(name) * 1000
            left_ms = self.left(name) * 1000
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
        for name, _ in jobs:
            mode = chosen[name]
            of_job[name], self.prev_allocs_v2["adaptive"][name] = None, None
            if mode is None:
                continue
            at, index, devices, speed = mode
            cluster = self.cluster_ordering[index]
            nodes = -(-devices // self.cluster_ngpus_per_node[cluster])
            of_job[name] = (cluster, (nodes, devices))
            of_cluster.setdefault(cluster, {})[name] = (nodes, devices)
            self.prev_allocs_v2["adaptive"][name] = at
            stays = before["adaptive"].get(name) == at and name in self.running
            running[name] = (speed, self.running[name][1] if stays else self.round, at)
        self.running = running
        self.round += 1
        return of_job, of_cluster


devices_per_node = {cluster: config.cluster_ngpus_per_node[cluster] for cluster in config.cluster_nnodes}
with contextlib.redirect_stdout(io.StringIO()) as noise:
    policy = Rounds(p_fairness=-0.5, lambda_a=0.01, lambda_n=1.1, project_throughputs=True, share_max_replicas=True)
    policy.populate_valid_configs(config.cluster_nnodes, devices_per_node, config.cluster_max_physical_nnodes)
    policy.begin()
    pool = Cluster(pandas.read_csv(args.workload), policy, config.cluster_nnodes, devices_per_node,
                   max_physical_nodes=config.cluster_max_physical_nnodes)
    policy.jobs = {job.name: job for job in pool.jobs}
    while not pool.all_complete():
        pool.step(int(ROUND_S))
        pool.logs = pool.logs[-1:]
        noise.seek(0)
        noise.truncate(0)
hours = [(job.completion_time - job.submission_time) / 3600 for job in pool.jobs]
makespan = max(job.completion_time for job in pool.jobs) / 3600
restarts = np.mean([job.num_restarts or 0 for job in pool.jobs])
print(f"{args.workload}: avg {np.mean(hours):.3f} h, p99 {np.percentile(hours, 99):.2f} h, makespan {makespan:.2f} h, {restarts:.1f} restarts a job")
