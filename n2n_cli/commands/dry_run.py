"""``n2n compare STUDY --dry-run``: what a study takes, and whether this machine has it, before a week is spent."""

from __future__ import annotations

import copy
import shutil
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from n2n_cli import data, lineage
from n2n_cli.arms import ARMS, find
from n2n_cli.commands import dataset, folders, grow, machine, networks
from n2n_cli.commands.prepare import options_of
from n2n_cli.config import FRESH
from n2n_cli.errors import N2NError
from n2n_cli.models import describe
from n2n_cli.ops import Compose, Op, Wider
from n2n_cli.schema import Compare
from n2n_cli.training.evaluate import main_output
from n2n_cli.training.optim import build_optimizer
from n2n_cli.training.options import FitOptions
from n2n_cli.training.precision import autocast_dtype, use_channels_last
from n2n_cli.training.ranks import pick_device
from n2n_cli.training.schedule import evaluation_steps
from n2n_cli.training.trial import settled

WARM, TIMED, ENOUGH_S = 2, 5, 20.0  # steps of each network, unless these take so many seconds
BATCHES = 4  # of training images, timed
KEPT = 3  # checkpoints of a run on disk: the best, and the last two
BUFFERS = {"sgd": 1, "rmsprop": 2, "adam": 2, "adamw": 2}  # numbers that an optimizer keeps for each parameter


class Cost(NamedTuple):
    """What a run takes: ``step_s``: seconds of a training step; ``hours``: with evaluations; ``disk``: bytes."""

    label: str
    runs: int
    parameters: int
    macs: int
    steps: int
    step_s: float
    hours: float
    disk: int


def show(cfg: Compare) -> None:
    """Prints the table of costs and their sum.

    Raises:
        N2NError: a student cannot be made, an arm's network takes no step, or the disk is too small.
    """
    study = folders.setting(cfg)
    images = dataset.load(cfg.data, pack=False)
    if cfg.data.cache == "packed" and images.train.decodes and images.name == "imagefolder":
        print("data.cache=packed: nothing is packed yet: here images are read from their files", flush=True)
    if len(images.train) < cfg.training.batch_size:
        raise N2NError(f"{images.name}: {len(images.train)} training images are fewer than one batch")
    waits = _reading(images, cfg)
    costs = _costs(cfg, images, waits)
    for line in table(costs):
        print(line)
    hours, disk = sum(cost.runs * cost.hours for cost in costs), sum(cost.runs * cost.disk for cost in costs)
    free = shutil.disk_usage(next(path for path in (study, *study.absolute().parents) if path.exists())).free
    what = machine.described(cfg)
    at_once = f", less with several at once (jobs={cfg.jobs})" if cfg.jobs != 1 and cfg.devices == 1 else ""
    print(
        f"{sum(cost.runs for cost in costs)} runs, {_time(hours)} one after the other{at_once}, measured on "
        f"{what['device']} ({what['cores']} cores): at most {TIMED} steps of each network, "
        f"a batch read in {1e3 * waits:.0f} ms"
    )
    print(f"disk: {_bytes(disk)} in {study}, where {_bytes(free)} are free", flush=True)
    if disk > free:
        raise N2NError(f"out: the study takes {_bytes(disk)}, and {study.parent} has {_bytes(free)}")


def table(costs: list[Cost]) -> list[str]:
    """One line an arm."""
    rows = [("Arm", "Runs", "Parameters", "MACs", "Steps", "Step", "A run", "Disk")]
    rows += [
        (c.label, str(c.runs), f"{c.parameters:,}", f"{c.macs:,}", f"{c.steps:,}", f"{1e3 * c.step_s:.1f} ms",
         _time(c.hours), _bytes(c.disk))
        for c in costs
    ]  # fmt: skip
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    ]
    return [lines[0], "-" * len(lines[0]), *lines[1:]]


def _costs(cfg: Compare, images: data.Dataset, waits: float) -> list[Cost]:
    batch = dataset.example(images, 2)
    made: dict[tuple[int, int], float] = {}
    costs = []

    def add(label: str, runs: int, epochs: float, model: nn.Module, count: int) -> None:
        costs.append(_cost(label, runs, epochs, model, count, cfg, images, waits, made))

    if cfg.study.stages:
        for arm in cfg.study.arms:
            before: tuple[nn.Module, dict[str, Any]] | None = None
            for fraction, word in zip(cfg.study.stages, cfg.study.strategies[arm], strict=True):
                if word in FRESH:
                    width = cfg.model.teacher_width if word == "teacher" else cfg.model.width
                    before = networks.fresh(cfg, cfg.model, width, images, cfg.seed)
                elif before:
                    before = _student(cfg.ops[word], *before, cfg, images, batch)
                assert before is not None  # `config.check`: every strategy begins with random weights
                label = f"{find(arm).label}, {100 * fraction:.3g} %"
                add(label, cfg.seeds, cfg.epochs, before[0], max(1, round(fraction * len(images.train))))
        return costs
    teacher, steps = _teacher(cfg, images)
    if cfg.teacher is None and cfg.weights is None:
        add("teacher", cfg.seeds, cfg.teacher_epochs, teacher, len(images.train))
    scales = len(cfg.lr_scale) if isinstance(cfg.lr_scale, list) else 1
    for arm in cfg.study.arms:
        op = cfg.ops[arm]
        network, _ = _student(op, teacher, steps, cfg, images, batch)
        label = ARMS[op.name].label if arm == op.name else f"{ARMS[op.name].label} ({arm})"
        add(label, cfg.seeds * scales * len(cfg.study.teacher_at), cfg.epochs, network, len(images.train))
    return costs


def _student(
    op: Op, network: nn.Module, steps: dict[str, Any], cfg: Compare, images: data.Dataset, batch: torch.Tensor
) -> tuple[nn.Module, dict[str, Any]]:
    """The student of an op, and its lineage."""
    for part in op.parts if isinstance(op, Compose) else (op,):
        # Noise and what new units hold cost nothing: the student of any way has the same shapes.
        alike: Op = replace(part, new="copy", split="equal", noise=0.0) if isinstance(part, Wider) else part
        grown, to = grow.grow(network, steps, alike, cfg, images, batch, cfg.seed)
        steps = lineage.grow(steps, {**grown.recipe, "op": part.name}, to)
        network = grown.student
    return network, steps


def _teacher(cfg: Compare, images: data.Dataset) -> tuple[nn.Module, dict[str, Any]]:
    path = Path(cfg.teacher or cfg.weights or "")
    op = cfg.ops[cfg.study.arms[0]]
    if cfg.teacher is None and cfg.weights is None:
        return networks.fresh(cfg, cfg.model, cfg.model.teacher_width, images, cfg.seed)
    network, steps, _ = networks.teacher(folders.plan_grown(cfg, op, cfg.seed, None, path), cfg, images)
    return network, steps


def _cost(
    label: str,
    runs: int,
    epochs: float,
    model: nn.Module,
    count: int,
    cfg: Compare,
    images: data.Dataset,
    waits: float,
    made: dict[tuple[int, int], float],
) -> Cost:
    """``count``: training images; ``waits``: seconds in which a batch is read; ``made``: seconds of a step, by size."""
    per_epoch = count // cfg.training.batch_size
    steps = round(epochs * per_epoch)
    size, macs = describe.count_parameters(model), describe.macs(model, images.image_size)
    if (size, macs) not in made:
        machine.limit_threads(model, cfg.devices)
        print(f"measuring {label}", file=sys.stderr, flush=True)
        made[size, macs] = _step(model, cfg, images)
    step_s = max(made[size, macs], waits)
    evaluations = len(
        evaluation_steps(
            steps,
            per_epoch,
            evals_first_epoch=cfg.training.evals_first_epoch,
            eval_every_epochs=cfg.training.eval_every_epochs,
        )
    )
    # A forward pass is a third of a step (forward, and twice that backward).
    evaluating = evaluations * len(images.val) * made[size, macs] / (3 * cfg.training.batch_size)
    numbers = size * (2 + BUFFERS[cfg.optim.name] + (cfg.training.ema_decay is not None))  # with the gradient's place
    disk = KEPT * 4 * numbers
    return Cost(label, runs, size, macs, steps, step_s, (steps * step_s + evaluating) / 3600, disk)


def _step(model: nn.Module, cfg: Compare, images: data.Dataset) -> float:
    """Seconds of a training step of one rank."""
    device = pick_device(cfg.device)
    options: FitOptions = options_of(cfg, cfg.epochs)
    options, _ = settled(model, options, image_size=images.image_size, device=device, devices=cfg.devices)
    layout = torch.channels_last if use_channels_last(options.channels_last) else torch.contiguous_format
    dtype = autocast_dtype(options.precision, device, describe.count_parameters(model))
    net = copy.deepcopy(model).to(device).to(memory_format=layout).train()
    optimizer = build_optimizer(net, lr=1e-6, **cfg.optim.arguments)
    part = max(1, cfg.training.batch_size // cfg.devices // cfg.training.accumulate)
    x = torch.randn(part, 3, images.image_size, images.image_size, device=device).to(memory_format=layout)
    y = torch.zeros(part, dtype=torch.long, device=device)
    times = [time.perf_counter()]
    while len(times) <= WARM + TIMED and (len(times) < 3 or times[-1] - times[0] < ENOUGH_S):
        for _ in range(cfg.training.accumulate):
            with torch.autocast(device.type, dtype, enabled=dtype is not None):
                logits, _ = main_output(net(x))
            F.cross_entropy(logits.float(), y).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        _wait(device)
        times.append(time.perf_counter())
    warm = min(WARM, len(times) - 2)
    return (times[-1] - times[warm]) / (len(times) - 1 - warm)


def _reading(images: data.Dataset, cfg: Compare) -> float:
    """Seconds in which the loader of one rank has its part of a batch ready, once it is running."""
    workers = machine.workers(cfg.workers, cfg.devices, not images.train.decodes)
    loader = data.TrainLoader(
        images.train,
        batch_size=cfg.training.batch_size,
        seed=cfg.seed,
        world_size=cfg.devices,
        workers=workers,
        skip=images.skip,
    )
    try:
        batches = loader.batches(0)
        next(batches)
        began, count = time.perf_counter(), 0
        for _ in zip(range(BATCHES), batches, strict=False):
            count += 1
        return (time.perf_counter() - began) / max(1, count)
    finally:
        loader.close()


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _time(hours: float) -> str:
    if hours >= 48:
        return f"{hours / 24:.1f} days"
    return f"{hours:.1f} h" if hours >= 1 else f"{60 * hours:.1f} min" if hours >= 1 / 60 else f"{3600 * hours:.1f} s"


def _bytes(size: float) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"
