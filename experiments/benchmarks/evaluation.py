"""Evaluation beside torchvision's reference evaluation: images a second, and whether the predictions are the same.

    OMP_NUM_THREADS=1 python experiments/benchmarks/evaluation.py [--rounds 5] [--images 256] [--batch 32] [--only 128]

The reference's evaluation is that of torchvision's classification script, as it is described: eval mode, inference
mode, fp32, NCHW, a batch of 32, the loss and both accuracies of every batch read and averaged. Its images are
normalised already; ours come as bytes. Both take the same images from memory, in turn, in CPU seconds of one thread;
a ratio is the reference's time over ours in the same round. The networks have seen a few batches, so that their batch
norms differ.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

from n2n_cli import models
from n2n_cli.training.evaluate import Normalize, evaluate

MEAN, STD, CPU = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25), torch.device("cpu")
NETWORKS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "inception_bn, width sqrt(0.3), 128 px": (lambda: models.build("inception_bn", width=0.3**0.5), 128),
    "inception_bn, width sqrt(0.3), 224 px": (lambda: models.build("inception_bn", width=0.3**0.5), 224),
    "resnet18, 224 px": (torchvision.models.resnet18, 224),
    "inception_bn_tiny, 32 px": (lambda: models.build("inception_bn_tiny"), 32),
}


class Memory:
    def __init__(self, images: Tensor, labels: Tensor, batch: int) -> None:
        self.parts = list(zip(images.split(batch), labels.split(batch), strict=True))
        self.steps_per_epoch = len(self.parts)

    def batches(self, epoch: int, start_step: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        return iter(self.parts)


def reference(model: nn.Module, parts: list[tuple[Tensor, Tensor]]) -> tuple[float, float, float]:
    """Mean loss, top-1 and top-5 in per cent, weighted by batch."""
    criterion = nn.CrossEntropyLoss()
    sums, count = [0.0, 0.0, 0.0], 0
    model.eval()
    with torch.inference_mode():
        for images, labels in parts:
            output = model(images)
            loss = criterion(output, labels)
            hits = output.topk(5, 1).indices.t().eq(labels[None])
            values = [
                loss.item(),
                *(100 * hits[:k].flatten().sum(dtype=torch.float32).item() / len(labels) for k in (1, 5)),
            ]
            sums = [total + value * len(labels) for total, value in zip(sums, values, strict=True)]
            count += len(labels)
    loss_mean, top1, top5 = (total / count for total in sums)
    return loss_mean, top1, top5


def compare(name: str, rounds: int, count: int, batch: int) -> None:
    build, size = NETWORKS[name]
    torch.manual_seed(0)
    model = build().train()
    images = torch.randint(256, (count, 3, size, size), dtype=torch.uint8)
    ready = Normalize(MEAN, STD, CPU)(images)
    with torch.no_grad():
        for part in ready[:64].split(16):
            model(part)
        labels = torch.cat([model.eval()(part).argmax(1) for part in ready.split(32)])  # so that top-1 is agreement
    theirs = list(zip(ready.split(32), labels.split(32), strict=True))
    nhwc = copy.deepcopy(model).to(memory_format=torch.channels_last)
    loader = Memory(images, labels, batch)
    seconds: dict[str, list[float]] = {form: [] for form in ("reference", "fp32", "bf16")}
    agree = dict.fromkeys(seconds, 1.0)
    for number in range(rounds + 1):
        for form, took in seconds.items():
            began = time.process_time()
            if form == "reference":
                reference(model, theirs)
            else:
                how: dict[str, Any] = {"mean": MEAN, "std": STD, "channels_last": True, "precision": form}
                agree[form] = evaluate(nhwc, loader, device=CPU, **how)["val/top1"]
            if number:  # the first warms up
                took.append(time.process_time() - began)
    for form, took in seconds.items():
        low, middle, high = statistics.quantiles([a / b for a, b in zip(seconds["reference"], took, strict=True)], n=4)
        told = "1" if form == "reference" else f"{middle:.2f} ({low:.2f} to {high:.2f})"
        speed = count / statistics.median(took)
        print(f"| {name} | {form} | {speed:.0f} | {told} | {round(agree[form] * count)} of {count} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--only", default="")
    given = parser.parse_args()
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, one thread, {given.rounds} rounds of {given.images} images\n")
    print(
        "| network | evaluation | images/s | over the reference | predictions of the reference |\n|---|---|---|---|---|"
    )
    for name in NETWORKS:
        if given.only in name:
            compare(name, given.rounds, given.images, given.batch)


if __name__ == "__main__":
    main()
