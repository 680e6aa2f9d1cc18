"""A tiny run for the tests of the loop: network, loaders, options; as a module, one rank of such a run.

``python -m training_worker JOBS`` does a JSON list of jobs, one after the other in one process group.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from n2n_cli.errors import N2NError
from n2n_cli.training import checkpoint, launch
from n2n_cli.training.loop import FitOptions, fit
from n2n_cli.training.ranks import Ranks, ranks
from n2n_cli.training.shard import local

CLASSES, BATCH, IMAGES = 4, 8, 44  # 5 steps an epoch
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
LINEAGE = {"steps": [{"op": "build", "name": "tiny", "num_classes": CLASSES, "kwargs": {}}]}
Heads = namedtuple("Heads", ["logits", "aux2", "aux1"])


class Tiny(nn.Module):
    """conv-BN-ReLU twice, dropout, classifier; optionally with one auxiliary head of two, or in fp64 and without BN."""

    def __init__(self, dropout: float = 0.0, aux: bool = False, double: bool = False) -> None:
        super().__init__()
        self.double_precision = double
        self.features = nn.Sequential(
            nn.Conv2d(3, 6, 3, padding=1, bias=False),
            nn.Identity() if double else nn.BatchNorm2d(6),
            nn.ReLU(),
            nn.Conv2d(6, 8, 3, stride=2, bias=False),
            nn.Identity() if double else nn.BatchNorm2d(8),
            nn.ReLU(),
        )
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(8, CLASSES)
        self.aux = nn.Linear(8, CLASSES) if aux else None
        self.to(torch.float64 if double else torch.float32)

    def forward(self, x: Tensor) -> Any:
        x = self.features(x.double() if self.double_precision else x).mean((2, 3))
        logits = self.classifier(self.dropout(x))
        return Heads(logits, None, self.aux(x)) if self.aux is not None and self.training else logits


class MemoryLoader:
    """Images in memory, in the order that `n2n_cli.data` promises; ``noisy``: draws global randoms."""

    def __init__(
        self,
        rank: int = 0,
        world_size: int = 1,
        *,
        train: bool,
        noisy: bool = True,
        seed: int = 0,
        before: bool = False,
    ):
        generator = torch.Generator().manual_seed(seed + 1 + train)
        n = IMAGES if train else 21
        self.labels = torch.randint(CLASSES, (n,), generator=generator)
        base = torch.randint(0, 200, (n, 3, 9, 9), generator=generator)
        base[:, 0] += 14 * self.labels[:, None, None]
        self.images = base.to(torch.uint8)
        self.rank, self.world_size, self.train, self.noisy = rank, world_size, train, noisy
        self.steps_per_epoch = n // BATCH
        self.before = before

    def batches(self, epoch: int, start_step: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        if self.noisy:
            torch.rand(3)  # as DataLoader does for its workers' seeds
        if not self.train:
            mine = torch.arange(self.rank, len(self.labels), self.world_size)
            for part in mine.split(4):
                yield self.images[part], self.labels[part]
            return
        order = torch.randperm(len(self.labels), generator=torch.Generator().manual_seed(100 + epoch))
        share = BATCH // self.world_size
        for step in range(start_step, self.steps_per_epoch):
            first = self.rank * share
            mine = order[step * BATCH : (step + 1) * BATCH][torch.arange(first - self.before, first + share)]
            yield self.images[mine], self.labels[mine]


def options(**changes: Any) -> FitOptions:
    defaults = dict(epochs=2.0, batch_size=BATCH, lr=0.05, log_every=3, evals_first_epoch=2)
    return FitOptions(**{**defaults, **changes})


def start(folder: Path, *, seed: int = 3, **model: Any) -> Path:
    """A run folder with its start checkpoint."""
    torch.manual_seed(seed)
    net = Tiny(**model)
    state = {"format": 1, "lineage": LINEAGE, "config": "a: 1\n", "model": net.state_dict(), "step": 0}
    checkpoint.save(Path(folder) / "checkpoints", state, step=0)
    return Path(folder)


def run(
    folder: Path, mine: Ranks | None = None, *, model: dict[str, Any] | None = None, check: bool = False, **changes: Any
) -> dict[str, Any]:
    """`fit` in ``folder``, with a network of other random weights than the checkpoint's.

    ``check``: done.json says whether the trained network, as it is given away, is an ordinary one, and the file
    ``held.RANK`` how many of its parameters this rank holds.
    """
    mine = mine or Ranks()
    torch.manual_seed(1234)
    net = Tiny(**(model or {}))
    done = fit(
        Path(folder),
        net,
        MemoryLoader(mine.rank, mine.world_size, train=True, before="mixup_alpha" in changes),
        MemoryLoader(mine.rank, mine.world_size, train=False),
        options(**changes),
        ranks=mine,
        lineage=LINEAGE,
        config="a: 1\n",
        mean=MEAN,
        std=STD,
        progress=False,
        at_end=ordinary if check else None,
    )
    if check:
        (Path(folder) / f"held.{mine.rank}").write_text(str(sum(local(p).numel() for p in net.parameters())))
    return done


def ordinary(model: nn.Module) -> dict[str, Any]:
    plain = all(type(p) is nn.Parameter for p in model.parameters())
    patched = any("forward" in vars(m) for m in model.modules())
    return {"ordinary": int(type(model) is Tiny and plain and not patched)}


def failing(step: int) -> Any:
    """`MemoryLoader.batches` that cannot read the images of one optimizer step."""
    original = MemoryLoader.batches

    def batches(self: MemoryLoader, epoch: int, start_step: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        for i, batch in enumerate(original(self, epoch, start_step), start_step):
            if self.train and epoch * self.steps_per_epoch + i == step:
                raise N2NError("unreadable image cat.jpg: truncated")
            yield batch

    return batches


def spoiled(step: int) -> Any:
    """`Tiny.forward` that gives NaN in one optimizer step."""
    original, calls = Tiny.forward, iter(range(1_000_000))

    def forward(self: Tiny, x: Tensor) -> Any:
        out = original(self, x)
        return out * float("nan") if self.training and next(calls) == step else out

    return forward


def when_training(folder: str, number: signal.Signals) -> None:
    """Send ourselves a signal once some rows are written."""
    metrics = Path(folder) / "metrics.jsonl"
    while not (metrics.exists() and metrics.stat().st_size > 2000):
        time.sleep(0.02)
    os.kill(os.getpid(), number)


def main() -> None:
    jobs = json.loads(sys.argv[1])
    torch.set_num_threads(1)
    with ranks("cpu") as mine:
        for job in jobs:
            action = job.pop("action", "run")
            if action == "run":
                run(job.pop("folder"), mine, **job)
            elif action == "user_error" and mine.rank == job["rank"]:
                raise N2NError("image cat.jpg: unreadable, on one rank only")
            elif action == "crash" and mine.rank == job["rank"]:
                raise ZeroDivisionError("a bug")
            elif action == "killed_once_during_run":
                rank, folder = job.pop("rank"), job.pop("folder")
                attempt = os.environ["TORCHELASTIC_RESTART_COUNT"]
                (Path(folder) / f"attempt{attempt}").touch()
                if mine.rank == rank and attempt == "0":
                    threading.Thread(target=when_training, args=(folder, signal.SIGKILL)).start()
                run(folder, mine, **job)
            elif action == "bad_image_during_run":
                if mine.rank == job["rank"]:
                    MemoryLoader.batches = failing(job["step"])  # type: ignore[method-assign]
                run(job["folder"], mine, checkpoint_every_epochs=0, shard=job.get("shard", False))
            elif action == "nan_during_run":
                if mine.rank == job["rank"]:
                    Tiny.forward = spoiled(job["step"])  # type: ignore[method-assign]
                run(job["folder"], mine, checkpoint_every_epochs=0.2)
            elif action == "killed_during_run":
                if mine.rank == job.pop("rank"):
                    threading.Thread(target=when_training, args=(job["folder"], signal.SIGKILL)).start()
                run(job.pop("folder"), mine, **job)
            elif action == "sigterm_during_run":
                if mine.rank == job.pop("rank"):
                    threading.Thread(target=when_training, args=(job["folder"], signal.SIGTERM)).start()
                run(job.pop("folder"), mine, **job)
            mine.any(False)


if __name__ == "__main__":
    raise SystemExit(launch.run_rank(main))
