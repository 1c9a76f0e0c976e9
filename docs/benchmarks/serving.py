#!/usr/bin/env python3
"""Many clients at once: `aquifer worker serve` beside transformers' `generate_batch`, and beside llama.cpp's server where
its program is named, on the same weights.

    pip install torch transformers tokenizers psutil gguf
    cargo build --release
    python docs/benchmarks/serving.py target/release/aquifer [--clients 32] [--threads 1] [--shared] [--llama llama-server]

All get the same prompts of 128 to 384 tokens, all at once, and say 64 tokens each, greedily. In turns; medians are printed.
"""
import argparse
import http.client
import json
import os
import random
import socket
import statistics
import subprocess
import sys
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
parser.add_argument("--llama", help="the program of llama.cpp's server")
args = parser.parse_args()
SAYS = 64
torch.set_num_threads(args.threads)
transformers.utils.logging.disable_progress_bar()


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


class Served:
    """A server as a process, on a free port."""

    def __init__(self):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]

    def start(self, command, environment):
        self.process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while True:
            assert self.process.poll() is None, f"{command} has ended"
            try:
                self.ask([1], 1)
                return
            except (OSError, AssertionError):
                time.sleep(0.1)

    def stop(self):
        self.process.terminate()
        self.process.wait()

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


class Ours(Served):
    def __init__(self, directory):
        super().__init__()
        command = [args.aquifer, "worker", "serve", "--model", directory, "--name", "m", "--port", str(self.port),
                   "--precision", args.precision, "--max-queue", "1000"]
        self.start(command, dict(os.environ, AQUIFER_CPUS=str(args.threads)))

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


class Llama(Served):
    """llama.cpp's server, with a place for each client."""

    def __init__(self, directory, tokenizer):
        super().__init__()
        sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
        import gguf_file
        file, self.tokenizer = directory + "/model.gguf", tokenizer
        if not os.path.exists(file):
            gguf_file.write(directory, file, {"int8": "q8_0"}.get(args.precision, args.precision))
        room = (max(map(len, asked)) + SAYS + 8) * args.clients
        threads = str(args.threads)
        self.start([args.llama, "-m", file, "--port", str(self.port), "-np", str(args.clients), "-c", str(room), "-t", threads,
                    "-tb", threads, "--no-warmup"], dict(os.environ))

    def ask(self, prompt, says):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=600)
        body = {"prompt": prompt, "n_predict": says, "temperature": 0, "ignore_eos": True, "stream": True,
                "return_tokens": True}
        connection.request("POST", "/completion", json.dumps(body), {"content-type": "application/json"})
        response, tokens, first = connection.getresponse(), [], None
        assert response.status == 200, response.read()
        for line in response:
            if line.startswith(b"data: {"):
                first = first or time.perf_counter()
                part = json.loads(line[6:])
                tokens += [] if part.get("stop") else part["tokens"]
        return self.tokenizer.decode(tokens), first, time.perf_counter()


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
    sides = {"aquifer": lambda: Ours(directory)}
    if args.llama:
        sides["llama.cpp"] = lambda: Llama(directory, tokenizer)
    rates, firsts, each, texts = ({name: [] for name in sides} for _ in range(4))
    their_texts, their_rates = None, []
    for _ in range(args.rounds):
        for name, start in sides.items():
            server = start()
            texts[name], took, first, one = server.run(asked)
            server.stop()
            rates[name].append(args.clients * SAYS / took)
            firsts[name].append((first[len(first) // 2], first[-1]))
            each[name].append(one)
        if not args.alone:
            their_texts, took = theirs(model, tokenizer, asked)
            their_rates.append(args.clients * SAYS / took)

    def same(others):
        return f"{sum(a == b for a, b in zip(texts['aquifer'], others))} of {args.clients} answers are ours"

    print(f"{args.clients} clients, {args.threads} threads, {args.precision}, {args.rounds} rounds")
    for name in sides:
        print(f"{name}: {statistics.median(rates[name]):.0f} tokens/s said, first token after "
              f"{statistics.median(f for f, _ in firsts[name]):.2f} s (last client "
              f"{statistics.median(f for _, f in firsts[name]):.2f} s), then {1000 * statistics.median(each[name]):.0f} ms each; "
              f"{same(texts[name])}")
    if not args.alone:
        print(f"transformers {transformers.__version__}: {statistics.median(their_rates):.0f} tokens/s; {same(their_texts)}")
