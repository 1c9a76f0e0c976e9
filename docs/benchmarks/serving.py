#!/usr/bin/env python3
"""Many clients at once: `aquifer worker serve` beside transformers' `generate_batch`, on the same weights.

    pip install torch transformers tokenizers psutil
    cargo build --release
    python docs/benchmarks/serving.py target/release/aquifer [--clients 32] [--threads 1] [--shared]

Both get the same prompts of 128 to 384 tokens, all at once, and say 64 tokens each, greedily. In turns; medians are printed.
"""
import argparse
import http.client
import json
import os
import random
import socket
import statistics
import subprocess
import tempfile
import threading
import time

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

parser = argparse.ArgumentParser()
parser.add_argument("aquifer")
parser.add_argument("--clients", type=int, default=32)
parser.add_argument("--threads", type=int, default=1)
parser.add_argument("--rounds", type=int, default=3)
parser.add_argument("--precision", default="f32")
parser.add_argument("--shared", action="store_true", help="all prompts begin with the same 256 tokens")
parser.add_argument("--alone", action="store_true", help="without transformers")
args = parser.parse_args()
SAYS = 64
torch.set_num_threads(args.threads)


def make_model(directory):
    """120 million random parameters, and a byte-level tokenizer for 8,192 tokens."""
    here = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    files = [os.path.join(root, name) for root, _, names in os.walk(here) for name in names if name.endswith(".md")]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train(files, trainers.BpeTrainer(vocab_size=8192, initial_alphabet=alphabet, show_progress=False))
    size = tokenizer.get_vocab_size()
    tokenizer.save(os.path.join(directory, "tokenizer.json"))
    torch.manual_seed(1)
    config = transformers.LlamaConfig(
        vocab_size=size, hidden_size=768, intermediate_size=2048, num_hidden_layers=16, num_attention_heads=12,
        num_key_value_heads=12, max_position_embeddings=1024, tie_word_embeddings=True, initializer_range=0.05,
        bos_token_id=None, eos_token_id=None, pad_token_id=None)
    model = transformers.LlamaForCausalLM(config).eval()
    model.save_pretrained(directory)
    return model, tokenizer, size


def prompts(size):
    chance = random.Random(7)
    start = [chance.randrange(size) for _ in range(256)] if args.shared else []
    return [start + [chance.randrange(size) for _ in range(chance.randint(128, 384))] for _ in range(args.clients)]


class Ours:
    def __init__(self, directory):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        command = [args.aquifer, "worker", "serve", "--model", directory, "--name", "m", "--port", str(self.port),
                   "--precision", args.precision, "--max-queue", "1000"]
        self.process = subprocess.Popen(command, env=dict(os.environ, AQUIFER_CPUS=str(args.threads)),
                                        stdout=subprocess.DEVNULL)
        while True:
            try:
                self.ask([1], 1)
                return
            except OSError:
                time.sleep(0.1)

    def ask(self, prompt, says):
        """The text, when its first piece came and when its last."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=600)
        body = {"model": "m", "prompt": prompt, "max_tokens": says, "temperature": 0, "ignore_eos": True, "stream": True}
        connection.request("POST", "/v1/completions", json.dumps(body), {"content-type": "application/json"})
        response, text, first = connection.getresponse(), "", None
        assert response.status == 200, response.read()
        for line in response:
            if line.startswith(b"data: {"):
                first = first or time.perf_counter()
                text += json.loads(line[6:])["choices"][0]["text"]
        return text, first, time.perf_counter()

    def run(self, asked):
        answers, begun = [None] * len(asked), time.perf_counter()

        def client(number):
            answers[number] = self.ask(asked[number], SAYS)

        threads = [threading.Thread(target=client, args=(number,)) for number in range(len(asked))]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
        took = max(last for _, _, last in answers) - begun
        firsts = sorted(first - begun for _, first, _ in answers)
        each = statistics.median((last - first) / (SAYS - 1) for _, first, last in answers)
        return [text for text, _, _ in answers], took, firsts, each


def theirs(model, tokenizer, asked):
    config = transformers.GenerationConfig(max_new_tokens=SAYS, min_new_tokens=SAYS, do_sample=False, eos_token_id=-1,
                                           pad_token_id=0)
    begun = time.perf_counter()
    outputs = model.generate_batch(inputs=asked, generation_config=config, progress_bar=False)
    took = time.perf_counter() - begun
    said = sorted(outputs.values(), key=lambda output: int(output.request_id.rsplit("_", 1)[-1]))
    return [tokenizer.decode(output.generated_tokens) for output in said], took


with tempfile.TemporaryDirectory() as directory:
    model, tokenizer, size = make_model(directory)
    asked = prompts(size)
    rates, their_rates, firsts, each, same = [], [], [], [], None
    for _ in range(args.rounds):
        ours = Ours(directory)
        texts, took, first, one = ours.run(asked)
        ours.process.terminate()
        ours.process.wait()
        rates.append(args.clients * SAYS / took)
        firsts.append((first[len(first) // 2], first[-1]))
        each.append(one)
        if not args.alone:
            their_texts, took = theirs(model, tokenizer, asked)
            their_rates.append(args.clients * SAYS / took)
            same = sum(a == b for a, b in zip(texts, their_texts))
    print(f"{args.clients} clients, {args.threads} threads, {args.precision}, {args.rounds} rounds")
    print(f"aquifer: {statistics.median(rates):.0f} tokens/s said, first token after "
          f"{statistics.median(f for f, _ in firsts):.2f} s (last client {statistics.median(f for _, f in firsts):.2f} s), "
          f"then {1000 * statistics.median(each):.0f} ms each")
    if not args.alone:
        print(f"transformers {transformers.__version__}: {statistics.median(their_rates):.0f} tokens/s; "
              f"{same} of {args.clients} answers are the same")
