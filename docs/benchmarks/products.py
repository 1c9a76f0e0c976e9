#!/usr/bin/env python3
"""Matrix products and long attention: `aquifer bench kernels` beside PyTorch (oneDNN, its own fused attention), one thread.

    pip install torch
    cargo build --release
    python docs/benchmarks/products.py target/release/aquifer [--precisions f32,bf16] [--window 32768]

In turns; medians of GFLOP/s of processor time are printed.
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
parser.add_argument("--precisions", default="f32,bf16")
parser.add_argument("--window", type=int, default=32768)
parser.add_argument("--rounds", type=int, default=2)
parser.add_argument("--peer", help=argparse.SUPPRESS)
args = parser.parse_args()
SHAPES = [(512, 512, 512), (1024, 1024, 1024), (2048, 2048, 2048), (4096, 384, 1024), (4096, 512, 1408), (512, 768, 2048)]


def median(work, least):
    work()
    times = []
    while len(times) < least or (sum(times) < 0.4 and len(times) < 200):
        begun = time.process_time()
        work()
        times.append(time.process_time() - begun)
    return statistics.median(times)


def theirs():
    os.environ["OMP_NUM_THREADS"] = "1"
    import torch
    torch.set_num_threads(1)
    torch.manual_seed(1)
    kind = {"f32": torch.float32, "bf16": torch.bfloat16}[args.peer]
    rates = {}
    for rows, inputs, outputs in SHAPES:
        x, w, dy = (torch.randn(shape).to(kind) for shape in [(rows, inputs), (outputs, inputs), (rows, outputs)])
        operations = 2e-9 * rows * inputs * outputs
        for name, work in [("linear", lambda: torch.mm(x, w.t())), ("linear, to its input", lambda: torch.mm(dy, w)),
                           ("linear, to its weight", lambda: torch.mm(dy.t(), x))]:
            rates[f"{name} {rows} x {inputs} x {outputs}"] = operations / median(work, 5)
    tokens = args.window
    q, k, v = (torch.randn(1, 1, tokens, 64).to(kind).requires_grad_() for _ in range(3))
    operations = 2e-9 * tokens * tokens * 64
    attend = torch.nn.functional.scaled_dot_product_attention
    with torch.no_grad():
        forward = median(lambda: attend(q, k, v, is_causal=True), 1)
    out = attend(q, k, v, is_causal=True)
    gradient = torch.randn_like(out)
    backward = median(lambda: torch.autograd.grad(out, (q, k, v), gradient, retain_graph=True), 1)
    rates[f"attention, forward, {tokens} tokens, 1 heads"] = operations / forward
    rates[f"attention, backward, {tokens} tokens, 1 heads"] = 2.5 * operations / backward
    print(json.dumps(rates))


if args.peer:
    theirs()
    sys.exit()
for precision in args.precisions.split(","):
    sides = {"ours": [], "torch": []}
    for _ in range(args.rounds):
        command = [args.aquifer, "bench", "kernels", "--precision", precision, "--window", str(args.window), "--json"]
        rows = json.loads(subprocess.check_output(command, stderr=subprocess.DEVNULL))
        sides["ours"].append({row["name"]: row["value"] for row in rows})
        command = [sys.executable, __file__, *sys.argv[1:], "--peer", precision]
        sides["torch"].append(json.loads(subprocess.check_output(command).splitlines()[-1]))
    print(f"{precision}, one thread, {args.rounds} rounds, GFLOP/s: ours, PyTorch's, ours over theirs")
    for name in sides["torch"][0]:
        ours, torch = (statistics.median(it[name] for it in sides[side]) for side in ("ours", "torch"))
        print(f"  {name:44} {ours:7.1f} {torch:7.1f} {ours / torch:6.2f}x", flush=True)
