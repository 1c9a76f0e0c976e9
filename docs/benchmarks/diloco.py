#!/usr/bin/env python3
"""Steps and rounds of replicas (DiLoCo) over a slow link: the same model on the same tokens, with its loss on text that it has not seen.

    cargo build --release
    python docs/benchmarks/diloco.py target/release/aquifer [--mbit 100] [--delay 20] [--inner 10 30] [--text DIR]

Two members, each with half of the cores, talk through a relay of this program that lets so many megabits a second pass in
each direction, each byte after so many milliseconds: no privileges are needed. What a training ends with does not depend on the link, nor on how many members it has, so each is run
once without the link for its loss, and a few steps of it with the link for the time that each takes. The text is that of this
repository unless another is given; every twentieth file of it is held out.
"""
import argparse
import json
import os
import pathlib
import queue
import shutil
import socket
import statistics
import subprocess
import tempfile
import threading
import time

parser = argparse.ArgumentParser()
parser.add_argument("aquifer")
parser.add_argument("--mbit", type=float, default=100)
parser.add_argument("--delay", type=float, default=20, help="milliseconds, one way")
parser.add_argument("--inner", type=int, nargs="+", default=[10, 30], help="steps of a round; divisors of --steps")
parser.add_argument("--replicas", type=int, default=4)
parser.add_argument("--steps", type=int, default=600)
parser.add_argument("--batch", type=int, default=64)
parser.add_argument("--model", default="tiny")
parser.add_argument("--measured", type=int, default=12, help="steps over the link, rounds are a third of that")
parser.add_argument("--seeds", type=int, default=1)
parser.add_argument("--text", type=pathlib.Path, default=pathlib.Path(__file__).parents[2])
args = parser.parse_args()


def split(directory):
    """Copies the text into two directories: what is learned, and what is held out."""
    files = sorted(path for path in args.text.rglob("*") if path.suffix in (".md", ".rs", ".txt", ".proto"))
    files = [path for path in files if "target" not in path.parts and path.is_file()]
    for place, path in enumerate(files):
        to = directory / ("held-out" if place % 20 == 0 else "text")
        to.mkdir(exist_ok=True)
        shutil.copy(path, to / f"{place}{path.suffix}")
    assert 20 <= len(files), f"{args.text} has {len(files)} files of text"
    return directory / "text", directory / "held-out"


def relay(port):
    """Listens at a port of its own, and passes on to another one what the link lets pass."""
    listener = socket.create_server(("127.0.0.1", 0))

    def pump(source, sink):
        sent, free = queue.SimpleQueue(), 0.0

        def deliver():
            while True:
                due, part = sent.get()
                time.sleep(max(0, due - time.monotonic()))
                try:
                    sink.sendall(part) if part else sink.shutdown(socket.SHUT_WR)
                except OSError:
                    return
                if not part:
                    return

        threading.Thread(target=deliver, daemon=True).start()
        while True:
            try:
                part = source.recv(1 << 14)
            except OSError:
                part = b""
            free = max(free, time.monotonic()) + 8 * len(part) / (1e6 * args.mbit)
            time.sleep(max(0, free - time.monotonic()))
            sent.put((free + args.delay / 1e3, part))
            if not part:
                return

    def accept():
        while True:
            near, _ = listener.accept()
            try:
                far = socket.create_connection(("127.0.0.1", port))
            except ConnectionRefusedError:  # Not yet: it asks again.
                near.close()
                continue
            for ends in ((near, far), (far, near)):
                for end in ends:
                    end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                threading.Thread(target=pump, args=ends, daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    return listener.getsockname()[1]


def train(data, directory, options, ranks=1, link=False):
    """Runs a training; returns its curve, a line a step."""
    directory.mkdir(parents=True)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    workers, cores = [], len(os.sched_getaffinity(0))
    for rank in range(ranks):
        at = relay(port) if link and rank else port
        environment = {key: value for key, value in os.environ.items() if not key.startswith("AQUIFER_")}
        environment |= dict(RANK=str(rank), WORLD_SIZE=str(ranks), MASTER_PORT=str(at))
        environment |= dict(AQUIFER_CPUS=str(max(1, cores // ranks)), AQUIFER_PIN="off", AQUIFER_JOB="link")
        command = [args.aquifer, "worker", "train", "--data", data, "--device", "cpu", "--context", "128"]
        command += ["--checkpoint-dir", directory, "--checkpoint-every", "1000000", *map(str, options)]
        workers.append(subprocess.Popen(list(map(str, command)), env=environment, stdout=subprocess.DEVNULL))
    codes = [worker.wait() for worker in workers]
    assert codes == [0] * ranks, f"workers ended with {codes}"
    return [json.loads(line) for line in (directory / "steps.jsonl").read_text().splitlines()]


def loss_of(model, held_out, directory):
    """Mean loss of a model on what is held out: that of a step before its update."""
    options = ["--model", model, "--steps", 1, "--warmup", 0, "--batch", 512, "--learning-rate", 1e-9, "--seed", 7]
    return train(held_out, directory, options)[0]["loss"]


with tempfile.TemporaryDirectory() as directory:
    directory = pathlib.Path(directory)
    text, held_out = split(directory)
    base, tokens = None, args.steps * args.batch * 128
    print(f"{args.model}, {tokens / 1e6:.1f}M tokens, {args.mbit:.0f} Mbit/s, {args.delay:.0f} ms; load {os.getloadavg()[0]:.1f}")
    print(f"{'':12} {'LOSS':>8} {'HELD OUT':>9} {'':>8} {'A STEP':>10} {'OVER THE LINK':>14} {'ALL STEPS':>10} {'':>7}", flush=True)
    for inner in [1, *args.inner]:
        assert args.steps % inner == 0, f"--inner {inner} does not divide --steps"
        name, rounds = ("steps" if inner == 1 else f"rounds of {inner}"), args.steps // inner
        mode = ["--model", args.model, "--batch", args.batch]
        mode += [] if inner == 1 else ["--inner-steps", inner, "--replicas", args.replicas]
        losses, unseen = [], []
        for seed in range(1, args.seeds + 1):
            place = directory / f"{inner}-{seed}"
            options = [*mode, "--steps", rounds, "--seed", seed]
            curve = train(text, place / "run", options)
            losses.append(curve[-1]["loss"])
            unseen.append(loss_of(place / "run" / f"step-{rounds:06}", held_out, place / "held-out"))
        few = args.measured if inner == 1 else max(4, args.measured // 3)

        def pace(link):
            curve = train(text, directory / f"{inner}-{link}", [*mode, "--steps", few], 2, link)
            times = [after["at_ms"] - before["at_ms"] for before, after in zip(curve, curve[1:])]
            return statistics.median(times) / inner / 1e3

        near, far, loss = pace(False), pace(True), statistics.mean(unseen)
        base = base or (loss, far)
        change, faster = 100 * (loss / base[0] - 1), base[1] / far
        print(
            f"{name:12} {statistics.mean(losses):8.4f} {loss:9.4f} {change:+7.2f}% {1e3 * near:7.0f} ms {1e3 * far:11.0f} ms"
            f" {far * args.steps:8.0f} s {faster:6.2f}x",
            flush=True,
        )
