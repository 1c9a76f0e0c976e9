#!/usr/bin/env python3
"""A prompt and decoding after it: `aquifer worker serve` beside llama.cpp, on the same weights, one request at a time.

    pip install torch transformers gguf llama-cpp-python      # the last one is built from source
    cargo build --release
    python docs/benchmarks/inference.py target/release/aquifer [--precisions f32,bf16,int8] [--threads 1]

125 million random parameters. In turns; medians of tokens a second of processor time are printed, and greedy tokens compared.
"""
import argparse
import ctypes
import http.client
import json
import os
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
parser = argparse.ArgumentParser()
parser.add_argument("aquifer")
parser.add_argument("--precisions", default="f32,bf16,int8")
parser.add_argument("--threads", type=int, default=1)
parser.add_argument("--prompt", type=int, default=512)
parser.add_argument("--generate", type=int, default=64)
parser.add_argument("--rounds", type=int, default=3)
parser.add_argument("--peer", help=argparse.SUPPRESS)
args = parser.parse_args()
# Without a tokenizer tokens are bytes: those, and the one that ends a text, are what our side says.
SAYABLE = 256


def prompts():
    """One for each repetition, so that nothing of them is known."""
    chance = random.Random(5)
    return [[chance.randrange(SAYABLE) for _ in range(args.prompt)] for _ in range(args.rounds + 1)]


def theirs():
    import llama_cpp as c
    import numpy
    quiet = c.llama_log_callback(lambda level, text, data: None)
    c.llama_log_set(quiet, ctypes.c_void_p(0))
    c.llama_backend_init()
    settings = c.llama_model_default_params()
    settings.use_mmap = False
    model = c.llama_model_load_from_file(args.peer.encode(), settings)
    settings = c.llama_context_default_params()
    settings.n_ctx, settings.n_batch, settings.n_ubatch = args.prompt + args.generate + 8, args.prompt, args.prompt
    settings.n_threads = settings.n_threads_batch = args.threads
    settings.flash_attn_type = 1
    if args.precisions == "f32":
        settings.type_k = settings.type_v = 0  # Its own default rounds keys and values to halves.
    context = c.llama_init_from_model(model, settings)
    size = c.llama_vocab_n_tokens(c.llama_model_get_vocab(model))
    batch = c.llama_batch_init(args.prompt, 0, 1)

    def run(tokens, start):
        batch.n_tokens = len(tokens)
        for i, token in enumerate(tokens):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.seq_id[i][0] = token, start + i, 1, 0
            batch.logits[i] = i + 1 == len(tokens)
        assert c.llama_decode(context, batch) == 0
        logits = numpy.ctypeslib.as_array(c.llama_get_logits_ith(context, len(tokens) - 1), shape=(size,))
        return int(logits[:SAYABLE].argmax())

    all_of = []
    for prompt in prompts():
        c.llama_memory_clear(c.llama_get_memory(context), True)
        begun = time.process_time()
        said = [run(prompt, 0)]
        middle = time.process_time()
        for i in range(args.generate):
            said.append(run(said[-1:], args.prompt + i))
        all_of.append({"prefill": middle - begun, "decode": time.process_time() - middle, "said": said[:args.generate]})
    print(json.dumps(all_of[1:]))


class Ours:
    def __init__(self, directory, precision):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        command = [args.aquifer, "worker", "serve", "--model", directory, "--name", "m", "--port", str(self.port),
                   "--precision", precision]
        environment = dict(os.environ, AQUIFER_CPUS=str(args.threads))
        self.process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
        while True:
            try:
                self.ask([1], 1)
                return
            except OSError:
                time.sleep(0.1)

    def cpu(self):
        """Seconds of the processor, of all threads that are."""
        tasks = f"/proc/{self.process.pid}/task"
        return sum(int(open(f"{tasks}/{task}/schedstat").read().split()[0]) for task in os.listdir(tasks)) * 1e-9

    def ask(self, prompt, says, **more):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=600)
        body = {"model": "m", "prompt": prompt, "max_tokens": says, "temperature": 0, "ignore_eos": True,
                "logit_bias": {"257": -100}, **more}
        connection.request("POST", "/v1/completions", json.dumps(body), {"content-type": "application/json"})
        response = connection.getresponse()
        assert response.status == 200, response.read()
        return json.loads(response.read())["choices"][0]

    def run(self):
        all_of = []
        for prompt in prompts():
            begun = self.cpu()
            self.ask(prompt, 1)
            middle = self.cpu()
            # All but what fills no block is known now: the first token of the answer is counted as one more.
            self.ask(prompt, args.generate + 1)
            ended = self.cpu()
            self.ask(prompt, 1)
            once = self.cpu() - ended
            words = self.ask(prompt, args.generate, logprobs=0)["logprobs"]["tokens"]
            said = [int(word[8:], 16) if word.startswith("bytes:") else ord(word) for word in words]
            all_of.append({"prefill": middle - begun, "decode": ended - middle - once, "said": said})
        self.process.terminate()
        self.process.wait()
        return all_of[1:]


if args.peer:
    theirs()
    sys.exit()
import gguf_file  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402

with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
    torch.manual_seed(1)
    transformers.utils.logging.disable_progress_bar()
    config = transformers.LlamaConfig(
        vocab_size=32000, hidden_size=768, intermediate_size=2048, num_hidden_layers=12, num_attention_heads=12,
        num_key_value_heads=4, max_position_embeddings=4096, rms_norm_eps=1e-5, tie_word_embeddings=False,
        initializer_range=0.05, bos_token_id=None, eos_token_id=257)
    model = transformers.LlamaForCausalLM(config).eval()
    model.save_pretrained(directory)
    for precision in args.precisions.split(","):
        file = directory + "/model.gguf"
        gguf_file.write(directory, file, {"int8": "q8_0"}.get(precision, precision))
        ours, llama = [], []
        # A process is one turn.
        for _ in range(2):
            ours += Ours(directory, precision).run()
            command = [sys.executable, __file__, *sys.argv[1:], "--precisions", precision, "--peer", file]
            llama += json.loads(subprocess.check_output(command).splitlines()[-1])
        rates = {}
        for name, tokens in [("prefill", args.prompt), ("decode", args.generate)]:
            a, b = (statistics.median(tokens / it[name] for it in side) for side in (ours, llama))
            rates[name] = f"{name} {a:.0f} and {b:.0f} tokens a second of a core, {a / b:.2f}x"
        same = [next((i for i, (x, y) in enumerate(zip(a["said"], b["said"])) if x != y), args.generate)
                for a, b in zip(ours, llama)]
        print(f"{precision}, {args.threads} threads, ours and llama.cpp: {rates['prefill']}; {rates['decode']}; "
              f"greedy tokens are the same for {min(same)} to {max(same)} of {args.generate}", flush=True)
        # Behind another token the texts are different ones: PyTorch says whose was the better one.
        leads = []
        for a, b, at, prompt in zip(ours, llama, same, 2 * prompts()[1:]):
            if at < args.generate:
                with torch.no_grad():
                    logits = model(torch.tensor([prompt + a["said"][:at]])).logits[0, -1]
                leads.append(float(logits[a["said"][at]] - logits[b["said"][at]]))
        if leads:
            print(f"  where they first differ, PyTorch has for ours a logit that is larger by {min(leads):.1e} to "
                  f"{max(leads):.1e}", flush=True)
        assert precision != "f32" or all(-1e-3 < lead for lead in leads), "wrong tokens in f32"
