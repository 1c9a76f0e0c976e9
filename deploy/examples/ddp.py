"""PyTorch's DistributedDataParallel without torchrun: each rank is a worker of the pool, which gives it its rank.

    aquifer run --ranks 4 --devices 1 --checkpoint-dir /shared/ddp -- python3 ddp.py --steps 1000

It stops for others without losing a step, as preemptible.py beside it does, and goes on with another number of ranks.
"""

import argparse
import os
import sys

import torch
import torch.distributed as dist
from preemptible import must_stop, replace, tell
from torch.nn.parallel import DistributedDataParallel


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--checkpoint-every", type=int, default=100)
    parser.add_argument("--checkpoint-dir", default=os.environ.get("AQUIFER_CHECKPOINT_DIR", "."))
    args = parser.parse_args()

    # Each rank sees its own devices only, so that its first is always number 0.
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda", 0) if on_gpu else torch.device("cpu")
    dist.init_process_group("nccl" if on_gpu else "gloo")  # RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT
    rank, ranks = dist.get_rank(), dist.get_world_size()

    os.makedirs(args.checkpoint_dir, exist_ok=True)
    path = os.path.join(args.checkpoint_dir, "checkpoint.pt")
    torch.manual_seed(1)
    model = DistributedDataParallel(torch.nn.Linear(64, 1).to(device))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    step = 0
    if os.path.exists(path):
        state = torch.load(path, weights_only=True, map_location=device)
        model.module.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        step = state["step"]
        print(f"rank {rank} of {ranks} goes on from step {step}", flush=True)

    def save():
        if rank == 0:
            state = {"step": step, "model": model.module.state_dict(), "optimizer": optimizer.state_dict()}
            replace(path, lambda file: torch.save(state, file))
        dist.barrier()
        tell(step=step, total_steps=args.steps, checkpoint_step=step)

    while step < args.steps:
        # What a rank reads is a function of step and rank alone, so that nothing but the step must be kept.
        x = torch.randn(32, 64, generator=torch.Generator().manual_seed(step * ranks + rank)).to(device)
        loss = (model(x) - x.sum(dim=1, keepdim=True)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        step += 1
        # Ranks are asked at slightly different times: they stop after the same step, that in which any of them was.
        stopping = torch.tensor(float(must_stop()), device=device)
        dist.all_reduce(stopping, dist.ReduceOp.MAX)
        if stopping or step == args.steps or step % args.checkpoint_every == 0:
            save()
        if stopping and step < args.steps:
            dist.destroy_process_group()
            sys.exit(143)
    print(f"rank {rank} of {ranks}: step {step}, loss {loss.item():.6f}", flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
