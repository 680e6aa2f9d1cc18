"""Training from files to the last checkpoint: `n2n train teacher` beside torchvision's reference train loop.

    python experiments/benchmarks/end_to_end.py FOLDER [--rounds 1] [--epochs 2] [--train 256] [--val 64]

FOLDER holds photographs named CLASS_ANYTHING.jpg, in any subfolders. The script lays out a small image folder of them
(ten classes, made of neighbours in the order of names) and trains the same network on it twice, each time in a
process of its own: by the command, with its defaults for this machine (bf16 and NHWC where that gains, its loaders,
metrics.jsonl, TensorBoard, a checkpoint an epoch), and by the loop that torchvision's classification reference
describes with its defaults (fp32, NCHW, PIL; ImageFolder, DataLoader and transforms are torchvision's and PyTorch's
own; loss and both accuracies read every step, a line every ten, evaluation and a checkpoint every epoch). Both take
SGD, 224 px, the same batch, and no average of the weights. The time is by the clock, from before the first epoch to
after the last checkpoint: the start of the processes and our evaluation before the first step, which the reference
has none of, do not count.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

CLASSES, SUFFIXES = 10, (".jpg", ".jpeg")


def lay_out(folder: Path, place: Path, train: int, val: int) -> None:
    """``place/train/CLASS`` and ``place/val/CLASS``, links to ``train`` and ``val`` of the photographs."""
    files = sorted(p.resolve() for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES)
    if len(files) < train + val:
        raise SystemExit(f"{folder}: {len(files)} photographs, {train + val} are needed")
    files = [files[i * len(files) // (train + val)] for i in range(train + val)]
    every = (train + val) // val
    for number, file in enumerate(files):
        part = "val" if number % every == 0 and number // every < val else "train"
        into = place / part / f"class{number * CLASSES // len(files)}"
        into.mkdir(parents=True, exist_ok=True)
        (into / file.name).symlink_to(file)


def ours(place: Path, out: Path, given: argparse.Namespace) -> float:
    """Seconds of the training loop of `n2n train teacher`."""
    words = [
        "train", "teacher", "data=imagefolder", f"data.root={place}", f"model={given.model}", "optim=sgd",
        "training.ema_decay=null", f"training.batch_size={given.batch}", "training.evals_first_epoch=0",
        "training.log_every=10", f"epochs={given.epochs}", f"out={out}", "data.cache=none", "device=cpu",
    ]  # fmt: skip
    words += [f"model.teacher_width={given.width}"] if given.width != 1 else []
    told = subprocess.run([sys.executable, "-m", "n2n_cli", *words], capture_output=True, text=True)
    if told.returncode:
        raise SystemExit(told.stderr)
    (run,) = out.glob("*/teacher-*")
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    done = json.loads((run / "done.json").read_text())
    assert rows[0]["step"] == 0 and done["epochs"] == given.epochs
    seconds: float = done["time_s"] - rows[0]["time_s"]
    return seconds


def reference(place: Path, given: argparse.Namespace) -> float:
    """Seconds of the reference's loop, in this process."""
    import torch
    from torch import nn
    from torchvision import transforms as T
    from torchvision.datasets import ImageFolder
    from torchvision.transforms._presets import ImageClassification

    from n2n_cli import models

    looks = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
    augment = T.Compose(
        [
            T.RandomResizedCrop(224, antialias=True),
            T.RandomHorizontalFlip(0.5),
            T.PILToTensor(),
            T.ConvertImageDtype(torch.float),
            T.Normalize(**looks),
        ]
    )
    size = {"batch_size": given.batch, "num_workers": given.workers}
    train = torch.utils.data.DataLoader(ImageFolder(str(place / "train"), augment), shuffle=True, **size)
    val = torch.utils.data.DataLoader(
        ImageFolder(str(place / "val"), ImageClassification(crop_size=224, **looks)), **size
    )
    width = {"width": given.width} if given.width != 1 else {}
    model = models.build(given.model, num_classes=CLASSES, **width)
    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 30, 0.1)
    began = time.perf_counter()
    for epoch in range(given.epochs):
        model.train()
        meters = Meters()
        for number, (images, labels) in enumerate(train):
            if len(labels) < given.batch:  # n2n trains on full batches
                continue
            start = time.perf_counter()
            output = model(images)
            loss = criterion(output, labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            meters.update(output, labels, loss)
            meters.values.setdefault("img/s", []).append(len(labels) / (time.perf_counter() - start))
            if number % 10 == 0:
                print(meters.line(f"epoch {epoch} [{number}] lr {optimizer.param_groups[0]['lr']}"), flush=True)
        schedule.step()
        model.eval()
        tested = Meters()
        with torch.inference_mode():
            for images, labels in val:
                output = model(images)
                tested.update(output, labels, criterion(output, labels))
        print(tested.line("test"), flush=True)
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "schedule": schedule.state_dict()}
        for name in (f"model_{epoch}.pth", "checkpoint.pth"):
            torch.save({**state, "epoch": epoch}, place / name)
    return time.perf_counter() - began


class Meters:
    """Loss and accuracies of batches, read as they come, as the reference's logger does."""

    def __init__(self) -> None:
        self.values: dict[str, list[float]] = {}

    def update(self, output: Any, labels: Any, loss: Any) -> None:
        hits = output.topk(5, 1).indices.t().eq(labels[None])
        found = {"loss": loss.item(), "acc1": hits[:1].sum().item(), "acc5": hits[:5].sum().item()}
        for name, value in found.items():
            self.values.setdefault(name, []).append(value if name == "loss" else 100 * value / len(labels))

    def line(self, head: str) -> str:
        told = (f"{name} {statistics.median(v):.3f} ({statistics.mean(v):.3f})" for name, v in self.values.items())
        return f"{head}  {'  '.join(told)}"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--train", type=int, default=256)
    parser.add_argument("--val", type=int, default=64)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--model", default="inception_bn")
    parser.add_argument("--width", type=float, default=0.3**0.5)
    parser.add_argument("--workers", type=int, default=2, help="of the reference's loaders")
    parser.add_argument("--reference", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.reference:
        seconds = reference(given.reference, given)
        Path(given.reference / "seconds").write_text(str(seconds))
        return
    ratios = []
    cores = len(os.sched_getaffinity(0))
    print(
        f"{given.model}, width {given.width:.3f}, 224 px, batch {given.batch}, {cores} cores: {given.epochs} epochs of",
        end="",
    )
    print(f" {given.train} images, {given.val} validated on\n\n| round | n2n | reference | ratio |\n|---|---|---|---|")
    for number in range(given.rounds):
        with tempfile.TemporaryDirectory() as where:
            place = Path(where) / "images"
            lay_out(given.folder, place, given.train, given.val)
            mine = ours(place, Path(where) / "runs", given)
            line = [sys.executable, __file__, *sys.argv[1:], "--reference", str(place)]
            subprocess.run(line, check=True, stdout=subprocess.DEVNULL)
            theirs = float((place / "seconds").read_text())
        ratios.append(theirs / mine)
        print(f"| {number + 1} | {mine:.1f} s | {theirs:.1f} s | {ratios[-1]:.2f} |", flush=True)
    print(f"\nmedian {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")


if __name__ == "__main__":
    main()
