"""A PyTorch loop that loses no step when it is asked to stop, and goes on where it was.

    aquifer run --checkpoint-dir /shared/mine -- python3 preemptible.py --steps 1000

What comes before main() is all that a loop of your own needs; it works without PyTorch, and outside of a pool too.
"""

import json
import os
import signal
import sys

RUN_DIR = os.environ.get("AQUIFER_RUN_DIR", "")
# stop.json says it too, and more. Processes that load data inherit it: they must not end before the loop does.
signal.signal(signal.SIGTERM, signal.SIG_IGN)


def must_stop():
    """Whether this worker is asked to end. Why, and until when, stands in the file."""
    return RUN_DIR != "" and os.path.exists(os.path.join(RUN_DIR, "stop.json"))


def acknowledge():
    """Says that all is saved: nobody waits for the end of the interpreter, which takes a second with PyTorch."""
    open(os.path.join(RUN_DIR, "stop-ack"), "w").close()


def replace(path, write):
    """Writes a file so that whoever looks sees the old one or the new one, and a crash of the machine neither half."""
    with open(path + ".tmp", "wb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(path + ".tmp", path)


def tell(**status):
    """Says how far it is. With `checkpoint_step` the pool knows what it would lose if it were stopped."""
    if RUN_DIR:
        replace(os.path.join(RUN_DIR, "status.json"), lambda file: file.write(json.dumps(status).encode()))


def main():
    import argparse

    import torch

    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--checkpoint-every", type=int, default=100)
    parser.add_argument("--checkpoint-dir", default=os.environ.get("AQUIFER_CHECKPOINT_DIR", "."))
    args = parser.parse_args()
    os.makedirs(args.checkpoint_dir, exist_ok=True)
    path = os.path.join(args.checkpoint_dir, "checkpoint.pt")

    torch.set_num_threads(1)
    torch.manual_seed(1)
    model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Tanh(), torch.nn.Dropout(0.1), torch.nn.Linear(64, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    step = 0
    if os.path.exists(path):
        state = torch.load(path, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["rng"])  # without it the next step drops and draws something else
        step = state["step"]
        print(f"goes on from step {step}", flush=True)

    def save():
        state = {"step": step, "model": model.state_dict(), "optimizer": optimizer.state_dict()}
        replace(path, lambda file: torch.save(state | {"rng": torch.get_rng_state()}, file))
        tell(step=step, total_steps=args.steps, checkpoint_step=step)

    while step < args.steps:
        x = torch.randn(32, 64)
        loss = (model(x) - x.sum(dim=1, keepdim=True)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        step += 1
        stopping = must_stop()
        if stopping or step == args.steps or step % args.checkpoint_every == 0:
            save()
        if stopping and step < args.steps:
            print(f"stopped after step {step}", flush=True)
            acknowledge()
            sys.exit(143)
    print(f"step {step} of {args.steps}", flush=True)


if __name__ == "__main__":
    main()
