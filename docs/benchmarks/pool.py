#!/usr/bin/env python3
"""Aquifer beside HyperQueue and Slurm on this machine, in one run, the three taking turns.

usage: pool.py --aquifer target/release/aquifer [--hq PATH] [--slurm-conf FILE] [--jobs 10000] [--rounds 3]

HyperQueue: build it outside this repository. Slurm: a one-node Slurm that runs already (Debian's slurm-wlm), with
SchedulerParameters=batch_sched_delay=0,sched_min_interval=0. All three get 16 cores, whatever the machine has, and
keep their state on the disk that TMPDIR names.
"""
import argparse, os, statistics, subprocess, tempfile, time

QUIET = dict(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


class Aquifer:
    name = "Aquifer"

    def __init__(self, binary, directory):
        self.env = dict(os.environ, AQUIFER_LOG_LEVEL="warn")
        self.binary = os.path.abspath(binary)
        self.server = subprocess.Popen(
            [self.binary, "server", "--listen", "127.0.0.1:0", "--data-dir", directory + "/server"],
            stdout=subprocess.PIPE, text=True, env=self.env)
        self.env["AQUIFER_SERVER"] = "http://" + self.server.stdout.readline().split()[-1]
        self.agent = subprocess.Popen(
            [self.binary, "agent", "--devices", "none", "--cpus", "16", "--run-as", "agent",
             "--state-dir", directory + "/agent"],
            env=self.env, **QUIET)
        while b" up " not in subprocess.run([self.binary, "nodes"], env=self.env, capture_output=True).stdout:
            if self.agent.poll() is not None:
                raise SystemExit("the agent has ended: run it by hand to see why")
            time.sleep(0.05)

    def wait_true(self):
        subprocess.run([self.binary, "run", "--", "true"], check=True, env=self.env, **QUIET)

    def submit(self, *command):
        subprocess.run([self.binary, "run", "-d", "--", *command], check=True, env=self.env, **QUIET)

    def array(self, n):
        subprocess.run([self.binary, "run", "--array", f"1-{n}", "--", "true"], check=True, env=self.env, **QUIET)

    def stop(self):
        for process in (self.agent, self.server):
            process.terminate()
            process.wait()


class HyperQueue:
    name = "HyperQueue"

    def __init__(self, binary, directory):
        self.base = [os.path.abspath(binary), "--server-dir", directory]
        self.server = subprocess.Popen(
            self.base + ["server", "start", "--host", "127.0.0.1", "--journal", directory + "/journal"], **QUIET)
        time.sleep(1)
        self.worker = subprocess.Popen(
            self.base + ["worker", "start", "--cpus", "16", "--detect-resources", "none",
                         "--work-dir", directory + "/w"], **QUIET)
        while b"RUNNING" not in subprocess.run(self.base + ["worker", "list"], capture_output=True).stdout:
            time.sleep(0.1)
        self.flags = ["--stdout=none", "--stderr=none"]

    def wait_true(self):
        subprocess.run(self.base + ["submit", "--wait", *self.flags, "true"], check=True, **QUIET)

    def submit(self, *command):
        subprocess.run(self.base + ["submit", *self.flags, *command], check=True, **QUIET)

    def array(self, n):
        subprocess.run(self.base + ["submit", "--wait", *self.flags, "--array", f"1-{n}", "true"], check=True, **QUIET)

    def stop(self):
        subprocess.run(self.base + ["worker", "stop", "all"], **QUIET)
        subprocess.run(self.base + ["server", "stop"], **QUIET)
        for process in (self.worker, self.server):
            process.terminate()
            process.wait()


class Slurm:
    name = "Slurm"

    def __init__(self, conf, directory):
        self.env = dict(os.environ, SLURM_CONF=conf)
        self.directory = directory

    def wait_true(self):
        subprocess.run(["sbatch", "--wait", "-Q", "-o", "/dev/null", "--wrap", "true"], check=True, env=self.env, **QUIET)

    def submit(self, *command):
        wrapped = " ".join(f"'{word}'" for word in command)
        subprocess.run(["sbatch", "-Q", "-o", "/dev/null", "--wrap", wrapped], check=True, env=self.env, **QUIET)

    def array(self, n):
        n = min(n, 300)  # At some 20 jobs a second, more would take minutes.
        subprocess.run(["sbatch", "--wait", "-Q", "-o", "/dev/null", f"--array=1-{n}", "--wrap", "true"],
                       check=True, env=self.env, **QUIET)
        return n

    def stop(self):
        pass


def first_instruction(system, directory):
    path = f"{directory}/first"
    begun = time.time()
    system.submit("bash", "-c", f"date +%s.%N > {path}.t; mv {path}.t {path}")
    while not os.path.exists(path):
        time.sleep(0.0005)
    took = float(open(path).read()) - begun
    os.unlink(path)
    return took


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--aquifer", required=True)
    parser.add_argument("--hq")
    parser.add_argument("--slurm-conf")
    parser.add_argument("--jobs", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--latency-jobs", type=int, default=20)
    args = parser.parse_args()
    print("load", " ".join(open("/proc/loadavg").read().split()[:3]), "cores", os.cpu_count())
    with tempfile.TemporaryDirectory() as top:
        made = lambda name: os.makedirs(f"{top}/{name}") or f"{top}/{name}"
        systems = [Aquifer(args.aquifer, made("aquifer"))]
        if args.hq:
            systems.append(HyperQueue(args.hq, made("hq")))
        if args.slurm_conf:
            systems.append(Slurm(args.slurm_conf, made("slurm")))
        wait = {s.name: [] for s in systems}
        first = {s.name: [] for s in systems}
        rate = {s.name: [] for s in systems}
        try:
            for _ in range(args.rounds):
                for s in systems:
                    few = args.latency_jobs if s.name != "Slurm" else max(3, args.latency_jobs // 5)
                    for _ in range(few):
                        begun = time.time()
                        s.wait_true()
                        wait[s.name].append(time.time() - begun)
                    for _ in range(few):
                        first[s.name].append(first_instruction(s, top))
                for s in systems:
                    begun = time.time()
                    n = s.array(args.jobs) or args.jobs
                    rate[s.name].append(n / (time.time() - begun))
        finally:
            for s in systems:
                s.stop()
        ms = lambda times, share: f"{sorted(times)[int((len(times) - 1) * share)] * 1e3:.1f}"
        print(f"{'':12} {'submit -> end of `true`, ms':>30} {'submit -> first instruction, ms':>34} {'array of `true`, jobs/s':>26}")
        print(f"{'':12} {'p50':>20} {'p95':>9} {'p50':>24} {'p95':>9} {'median':>17} {'rounds':>8}")
        for s in systems:
            rates = " ".join(f"{r:.0f}" for r in rate[s.name])
            print(f"{s.name:12} {ms(wait[s.name], .5):>20} {ms(wait[s.name], .95):>9} {ms(first[s.name], .5):>24} "
                  f"{ms(first[s.name], .95):>9} {statistics.median(rate[s.name]):>17.0f}   {rates}")
    print("load", " ".join(open("/proc/loadavg").read().split()[:3]))


main()
