#!/usr/bin/env python3
"""Training steps: `aquifer worker train` beside PyTorch, eager and compiled, from the same weights on the same data.

    pip install torch transformers
    cargo build --release
    python docs/benchmarks/training.py target/release/aquifer [--size 10m] [--precision f32] [--threads 1]

All compute the same steps: the losses are compared. In turns; medians of tokens a second of processor time are printed.
"""
import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time

parser = argparse.ArgumentParser()
parser.add_argument("aquifer")
parser.add_argument("--size", default="10m", choices=["10m", "24m"])
parser.add_argument("--precision", default="f32", choices=["f32", "bf16"])
parser.add_argument("--threads", type=int, default=1)
parser.add_argument("--steps", type=int, default=4, help="that are measured, after one that is not")
parser.add_argument("--rounds", type=int, default=3)
parser.add_argument("--peers", default="eager,compile")
parser.add_argument("--directory", help=argparse.SUPPRESS)
parser.add_argument("--peer", help=argparse.SUPPRESS)
args = parser.parse_args()
HIDDEN, LAYERS, HEADS, KV, INNER, BATCH, CONTEXT = {
    "10m": (384, 6, 6, 6, 1024, 16, 256), "24m": (512, 8, 8, 4, 1408, 8, 512)}[args.size]
RATE, TOTAL = 1e-3, args.steps + 1


def rate(step):
    """As the worker's, without a warm-up."""
    return RATE * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * step / TOTAL)))


def theirs():
    os.environ["OMP_NUM_THREADS"] = str(args.threads)
    import torch
    import transformers
    torch.set_num_threads(args.threads)
    transformers.utils.logging.disable_progress_bar()
    model = transformers.LlamaForCausalLM.from_pretrained(args.directory, dtype=torch.float32, attn_implementation="sdpa")
    model.train()
    matrices = [p for p in model.parameters() if p.dim() == 2]
    vectors = [p for p in model.parameters() if p.dim() != 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=RATE, betas=(0.9, 0.95), eps=1e-8, fused=True)
    tokens = torch.tensor([256] + list(open(args.directory + "/text.txt", "rb").read()) + [257])
    x, y = tokens[:-1].view(BATCH, CONTEXT), tokens[1:].view(BATCH, CONTEXT)

    def loss_of(x, y):
        logits = model(x, use_cache=False).logits.float()
        return torch.nn.functional.cross_entropy(logits.view(-1, logits.shape[-1]), y.reshape(-1))

    step_loss = torch.compile(loss_of) if args.peer == "compile" else loss_of
    losses, cpu, wall = [], [], []
    for step in range(TOTAL):
        begun, used = time.perf_counter(), time.process_time()
        for group in optimizer.param_groups:
            group["lr"] = rate(step)
        with torch.autocast("cpu", torch.bfloat16, enabled=args.precision == "bf16"):
            loss = step_loss(x, y)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
        cpu.append(time.process_time() - used)
        wall.append(time.perf_counter() - begun)
    print(json.dumps({"losses": losses, "cpu": statistics.median(cpu[1:]), "wall": statistics.median(wall[1:])}))


def make(directory):
    import torch
    import transformers
    torch.manual_seed(1)
    transformers.utils.logging.disable_progress_bar()
    config = transformers.LlamaConfig(
        vocab_size=264, hidden_size=HIDDEN, intermediate_size=INNER, num_hidden_layers=LAYERS,
        num_attention_heads=HEADS, num_key_value_heads=KV, max_position_embeddings=4096, rms_norm_eps=1e-5,
        tie_word_embeddings=False, bos_token_id=256, eos_token_id=257)
    transformers.LlamaForCausalLM(config).save_pretrained(directory)
    # With the marks of its ends, as many tokens as a step needs.
    text = "".join(f"line {number} says that water finds its way, as {number * 7919 % 1000} did\n" for number in range(400))
    open(directory + "/text.txt", "w").write(text[:BATCH * CONTEXT - 1])


def run(steps, directory):
    with tempfile.TemporaryDirectory() as checkpoints:
        command = [args.aquifer, "worker", "train", "--model", directory, "--data", directory + "/text.txt", "--steps",
                   str(steps), "--batch", str(BATCH), "--micro-batch", str(BATCH), "--context", str(CONTEXT), "--precision",
                   args.precision, "--learning-rate", str(RATE), "--warmup", "0", "--clip", "1e9",
                   "--checkpoint-dir", checkpoints, "--checkpoint-every", "1000000"]
        process = subprocess.Popen(command, env=dict(os.environ, AQUIFER_CPUS=str(args.threads)), stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        assert status == 0, f"{command} ended with {status}"
        curve = [name for name in os.listdir(checkpoints) if name.endswith(".jsonl")]
        points = [json.loads(line) for line in open(os.path.join(checkpoints, curve[0]))]
        return usage.ru_utime + usage.ru_stime, points


def ours(directory):
    start, _ = run(1, directory)
    whole, points = run(TOTAL, directory)
    times = [point["at_ms"] for point in points]
    wall = statistics.median(b - a for a, b in zip(times, times[1:])) / 1000
    return {"losses": [point["loss"] for point in points], "cpu": (whole - start) / args.steps, "wall": wall}


if args.peer:
    theirs()
    sys.exit()
with tempfile.TemporaryDirectory() as directory:
    make(directory)
    peers = args.peers.split(",")
    figures = {name: [] for name in ["aquifer", *peers]}
    for _ in range(args.rounds):
        figures["aquifer"].append(ours(directory))
        for peer in peers:
            command = [sys.executable, __file__, *sys.argv[1:], "--directory", directory, "--peer", peer]
            figures[peer].append(json.loads(subprocess.check_output(command).splitlines()[-1]))
    print(f"{args.size}, {args.precision}, {args.threads} threads, {BATCH} x {CONTEXT} tokens a step, {args.rounds} rounds")
    most = 2e-3 if args.precision == "f32" else 5e-2
    expected = figures["aquifer"][0]["losses"]
    for name, all_of in figures.items():
        cpu, wall = (statistics.median(BATCH * CONTEXT / it[of] for it in all_of) for of in ("cpu", "wall"))
        apart = max(abs(a - b) for it in all_of for a, b in zip(it["losses"], expected))
        print(f"{name:8} {cpu:7.0f} tokens a second of a core, {wall:7.0f} on the wall; losses {all_of[0]['losses'][0]:.4f} to "
              f"{all_of[0]['losses'][-1]:.4f}, apart by {apart:.5f}")
        assert apart < most, f"losses of {name}: {all_of[0]['losses']}, not {expected}"
    for peer in peers:
        each = [theirs["cpu"] / ours["cpu"] for ours, theirs in zip(figures["aquifer"], figures[peer])]
        print(f"ours over {peer}: {statistics.median(each):.2f}x ({min(each):.2f} to {max(each):.2f})")
