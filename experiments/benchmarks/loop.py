"""What the training loop costs beside a bare one, a step beside torchvision's reference, and an optimizer's step.

    python experiments/benchmarks/loop.py [--rounds 15]

The loop is `fit`, with metrics.jsonl, TensorBoard events and a bar; a row every block of steps. Between two of its
blocks the loader, which `fit` asks for the next images, runs as many steps of the peer itself: both are timed in the
same process, in turn, on the same images in memory, in CPU seconds of one thread. A ratio is of a round; medians of
rounds. The bare loop has the same network, memory format, number format, optimizer, schedule and average, and nothing
else. The reference's step is that of torchvision's classification script: fp32, NCHW, images that are normalised
already, PyTorch's default SGD; neither has an average then.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import VisionTransformer

from n2n_cli import models
from n2n_cli.training import checkpoint
from n2n_cli.training.ema import EMA
from n2n_cli.training.evaluate import Normalize
from n2n_cli.training.loop import fit
from n2n_cli.training.optim import build_optimizer, lr_at
from n2n_cli.training.options import FitOptions
from n2n_cli.training.precision import autocast_dtype
from n2n_cli.training.ranks import Ranks

MEAN, STD, CPU = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25), torch.device("cpu")
SGD = {"name": "sgd", "momentum": 0.9, "weight_decay": 1e-4}
Step = Callable[[Tensor, Tensor], None]


class Alternating:
    """A training loader that times a block of the steps it gives images for, then one of ``peer`` on the same."""

    def __init__(self, batches: list[tuple[Tensor, Tensor]], peer: Step, block: int, rounds: int) -> None:
        self.data, self.peer, self.block, self.rounds = batches, peer, block, rounds
        self.steps_per_epoch = (rounds + 2) * block  # the first round warms up, the last one ends with the epoch
        self.seconds: list[tuple[float, float]] = []

    def batches(self, epoch: int, start_step: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        chosen = [self.data[i % len(self.data)] for i in range(self.block)]
        for number in range(self.rounds + 2):
            began = time.process_time()
            yield from chosen
            between = time.process_time()
            for images, labels in chosen:
                self.peer(images, labels)
            if number:
                self.seconds.append(((between - began) / self.block, (time.process_time() - between) / self.block))


class Validation:
    steps_per_epoch = 1

    def __init__(self, batch: tuple[Tensor, Tensor]) -> None:
        self.batch = batch

    def batches(self, epoch: int, start_step: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        yield self.batch


def bare(model: nn.Module, options: FitOptions, total: int) -> Step:
    """One step of a loop with nothing in it but training."""
    net = copy.deepcopy(model).to(memory_format=torch.channels_last).train()
    optimizer = build_optimizer(net, lr=options.lr, **options.optimizer)
    average, normalize = EMA(net, options.ema_decay or 0.0), Normalize(MEAN, STD, CPU, channels_last=True)
    dtype = autocast_dtype(options.precision, CPU, sum(p.numel() for p in net.parameters()))
    steps = iter(range(1, total))

    def step(images: Tensor, labels: Tensor) -> None:
        number = next(steps)
        for group in optimizer.param_groups:
            group["lr"] = lr_at(number, base_lr=options.lr, total_steps=total)
        with torch.autocast("cpu", dtype, enabled=dtype is not None):
            logits = net(normalize(images))
        F.cross_entropy(logits.float(), labels).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        average.update(number)

    return step


def reference(model: nn.Module, options: FitOptions) -> Step:
    net, normalize = copy.deepcopy(model).train(), Normalize(MEAN, STD, CPU)
    optimizer = torch.optim.SGD(net.parameters(), options.lr, momentum=0.9, weight_decay=1e-4)
    ready: dict[int, Tensor] = {}

    def step(images: Tensor, labels: Tensor) -> None:
        if id(images) not in ready:  # in the first round, which is not counted: the reference's loader does this
            ready[id(images)] = normalize(images)
        loss = F.cross_entropy(net(ready[id(images)]), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def compare(name: str, batch: int, size: int, block: int, rounds: int, *, against_reference: bool = False) -> None:
    torch.manual_seed(0)
    model = models.build(name, num_classes=16, **({} if name.endswith("tiny") else {"width": 0.3**0.5}))
    data = [
        (torch.randint(256, (batch, 3, size, size), dtype=torch.uint8), torch.randint(16, (batch,))) for _ in range(4)
    ]
    ema = None if against_reference else 0.99
    options = FitOptions(
        1.0, batch, 0.01, SGD, ema_decay=ema, log_every=block, evals_first_epoch=0, checkpoint_every_epochs=0
    )
    peer = reference(model, options) if against_reference else bare(model, options, (rounds + 2) * block)
    train = Alternating(data, peer, block, rounds)
    with tempfile.TemporaryDirectory() as place, open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):
        start = {"format": checkpoint.FORMAT, "model": model.state_dict(), "step": 0}
        checkpoint.save(Path(place) / "checkpoints", start, step=0)
        validation = Validation(data[0])
        plain = {"lineage": {}, "config": "", "mean": MEAN, "std": STD}
        fit(Path(place), model, train, validation, options, ranks=Ranks(), progress=True, **plain)
    ratios = [ours / theirs for ours, theirs in train.seconds]
    ours, theirs = (1e3 * statistics.median(column) for column in zip(*train.seconds, strict=True))
    what = "the reference's" if against_reference else "a bare loop's"
    print(
        f"| {name}, batch {batch}, {size} px, over {what} | {ours:.1f} ms | {theirs:.1f} ms | "
        f"{statistics.median(ratios):.3f} ({spread(ratios)}) |",
        flush=True,
    )


def spread(values: list[float]) -> str:
    """Their middle half."""
    low, _, high = statistics.quantiles(values, n=4)
    return f"{low:.3f} to {high:.3f}"


def optimizers(rounds: int) -> None:
    """A step of each form of AdamW and SGD over that of foreach, in NHWC."""
    networks = {
        "inception_bn, width sqrt(0.3)": models.build("inception_bn", width=0.3**0.5),
        "ViT, 6 layers of 384": VisionTransformer(32, 4, 6, 6, 384, 1536, num_classes=10),
        "inception_bn_tiny": models.build("inception_bn_tiny", num_classes=16),
    }
    forms = {"foreach": {"foreach": True}, "fused": {"fused": True}, "loop": {"foreach": False, "fused": False}}
    for name, net in networks.items():
        net.to(memory_format=torch.channels_last)
        for p in net.parameters():
            p.grad = torch.randn_like(p)
        size = sum(p.numel() for p in net.parameters())
        for kind, more in ((torch.optim.AdamW, {}), (torch.optim.SGD, {"momentum": 0.9})):
            made = {form: kind(net.parameters(), 1e-6, **more, **how) for form, how in forms.items()}
            seconds: dict[str, list[float]] = {form: [] for form in forms}
            for number in range(rounds + 1):
                for form, optimizer in made.items():
                    began = time.process_time()
                    for _ in range(10):
                        optimizer.step()
                    if number:
                        seconds[form].append((time.process_time() - began) / 10)
            over = {form: [a / b for a, b in zip(seconds[form], seconds["foreach"], strict=True)] for form in forms}
            told = [f"{statistics.median(over[form]):.2f} ({spread(over[form])})" for form in ("fused", "loop")]
            foreach = 1e3 * statistics.median(seconds["foreach"])
            print(
                f"| {kind.__name__}, {name}, {size / 1e6:.2f} M | {foreach:.2f} ms | {' | '.join(told)} |", flush=True
            )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--only", choices=("tiny", "inception", "reference", "optimizers"))
    given = parser.parse_args()
    rounds = given.rounds
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, one thread, {rounds} rounds; in brackets the middle half of them\n")
    print("| | ours | peer | ratio |\n|---|---|---|---|")
    if given.only in (None, "tiny"):
        compare("inception_bn_tiny", 32, 32, 25, 2 * rounds)
    if given.only in (None, "inception"):
        compare("inception_bn", 16, 64, 10, rounds)
    if given.only in (None, "reference"):
        compare("inception_bn", 16, 128, 3, rounds, against_reference=True)
    if given.only in (None, "optimizers"):
        print("\n| optimizer | foreach | fused / foreach | loop / foreach |\n|---|---|---|---|")
        optimizers(rounds)


if __name__ == "__main__":
    main()
