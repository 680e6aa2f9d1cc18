"""Two ranks on two cores beside two independent processes: how much of their throughput is left.

    python experiments/benchmarks/ranks.py [--rounds 7] [--steps 4] [--batch 16] [--size 128]

Two processes of one thread each take turns between forms of the same step, n2n's own, on images in memory: alone,
each process with a network of its own and nothing exchanged, and as two ranks of one run. All of a block's steps lie
between two barriers, and its time is that of the slower process, by the clock (a rank that waits uses no CPU). A
ratio is the time of the independent processes over that of the ranks in the same round: 1 is perfect. The forms:

    ranks              as n2n trains: batch norm over both ranks, buckets that stay as they are built
    local batch norm   training.sync_bn=false
    bf16 gradients     training.compress_gradients=true
    static graph       DDP's static_graph, which lays its buckets out anew after the first step
    no bucket views    gradients are copied out of the buckets
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.nn.parallel import DistributedDataParallel

from n2n_cli import models
from n2n_cli.training.options import FitOptions
from n2n_cli.training.ranks import Ranks
from n2n_cli.training.step import Learner
from n2n_cli.training.sync_bn import synchronised

RANKS, ALONE = 2, "independent"
FORMS: dict[str, dict[str, Any]] = {
    ALONE: {},
    "ranks": {},
    "local batch norm": {"sync_bn": False},
    "bf16 gradients": {"compress_gradients": True},
    "static graph": {"ddp": {"static_graph": True, "gradient_as_bucket_view": True}},
    "no bucket views": {"ddp": {"find_unused_parameters": True}},
}


def learner(name: str, form: str, rank: int, batch: int, width: float) -> Learner:
    torch.manual_seed(0)
    options = dict(FORMS[form])
    ddp = options.pop("ddp", None)
    world = 1 if form == ALONE else RANKS
    made = Learner(
        Path(),
        models.build(name, num_classes=1000, **({} if name.endswith("tiny") or width == 1 else {"width": width})),
        FitOptions(1.0, batch * world, 0.01, {"name": "sgd", "momentum": 0.9}, ema_decay=0.99, **options),
        ranks=Ranks(rank, world, rank) if world > 1 else Ranks(),
        steps_per_epoch=10**6,
        mean=(0.5, 0.5, 0.5),
        std=(0.25, 0.25, 0.25),
    )
    made.net = made.parallel() if ddp is None else DistributedDataParallel(made.model, broadcast_buffers=False, **ddp)
    return made


def rank_main(rank: int, given: argparse.Namespace, store: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.FileStore(store, RANKS), rank=rank, world_size=RANKS)
    learners = {form: learner(given.model, form, rank, given.batch, given.width) for form in FORMS}
    shape = (given.batch, 3, given.size, given.size)
    data = [(torch.randint(256, shape, dtype=torch.uint8), torch.randint(1000, (given.batch,))) for _ in range(4)]
    seconds: dict[str, list[float]] = {form: [] for form in FORMS}
    for number in range(given.rounds + 1):
        for form, made in learners.items():
            every = form != ALONE and made.options.sync_bn
            with synchronised(made.model) if every else contextlib.nullcontext():
                dist.barrier()
                began = time.perf_counter()
                for i in range(given.steps):
                    made.optimizer_step(*data[i % len(data)])
                took = torch.tensor((time.perf_counter() - began) / given.steps)
            dist.all_reduce(took, op=dist.ReduceOp.MAX)
            made._pending.clear()
            if number:  # the first warms up
                seconds[form].append(took.item())
    if rank == 0:
        report(given, seconds, sum(p.numel() for p in learners[ALONE].model.parameters()))
    dist.destroy_process_group()


def report(given: argparse.Namespace, seconds: dict[str, list[float]], parameters: int) -> None:
    name = f"{given.model} ({parameters / 1e6:.2f} M), batch {given.batch} a rank, {given.size} px"
    for form, took in seconds.items():
        low, middle, high = statistics.quantiles([a / b for a, b in zip(seconds[ALONE], took, strict=True)], n=4)
        told = f"{middle:.3f} ({low:.3f} to {high:.3f})" if form != ALONE else "1"
        print(f"| {name} | {form} | {1e3 * statistics.median(took):.1f} ms | {told} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--model", default="inception_bn")
    parser.add_argument("--width", type=float, default=0.3**0.5)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--size", type=int, default=128)
    given = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    print(f"torch {torch.__version__}, {RANKS} processes of one thread, {given.rounds} rounds of {given.steps} steps\n")
    print("| network | form | step | over independent processes |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as place:
        mp.spawn(rank_main, (copy.copy(given), f"{place}/store"), RANKS)


if __name__ == "__main__":
    main()
