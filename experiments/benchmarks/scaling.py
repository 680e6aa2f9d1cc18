"""How time and memory grow with width, depth, resolution, batch, files and ranks: four points each, and the exponent.

    OMP_NUM_THREADS=1 python experiments/benchmarks/scaling.py [--rounds 3] [--only width]

Every point is a process of its own, on one thread. Growth (Net2Wider by 1.5, noise 0.01) is told apart into inference
of the groups, the growth itself and its proof in fp64; a training step is n2n's own (SGD, average, fp32, NHWC), on
one batch in memory. Times are the least of the rounds, by the clock; memory is the rise of the process's peak over
`widen`, or over two steps (activations, gradients, momentum). An exponent is the slope of the least squares line
through the logarithms: time is proportional to the axis to that power. Ranks: as many processes as cores at most,
each with its own batch; what grows is the time of a step.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from n2n_cli import growth, models
from n2n_cli.data.sources import scan
from n2n_cli.growth.build.students import build
from n2n_cli.growth.build.weights import weights_in_double
from n2n_cli.growth.groups.infer import infer, trace
from n2n_cli.growth.proof.prove import prove_in_double
from n2n_cli.growth.sizes.draw import draw
from n2n_cli.growth.sizes.solve import solve
from n2n_cli.growth.trace.examples import first_samples
from n2n_cli.training.options import FitOptions
from n2n_cli.training.ranks import Ranks
from n2n_cli.training.step import Learner
from n2n_cli.training.sync_bn import synchronised

BASE = {"width": 0.5, "pairs": 0, "resolution": 96, "batch": 8}
AXES: dict[str, tuple[float, ...]] = {
    "width": (0.25, 0.5, 1.0, 2.0),
    "pairs": (0, 1, 3, 7),
    "resolution": (64, 96, 128, 192),
    "batch": (2, 4, 8, 16),
    "files": (5_000, 10_000, 20_000, 40_000),
    "ranks": tuple(n for n in (1, 2, 4, 8) if n <= len(os.sched_getaffinity(0))),
}
FACTOR = 1.5


def least(function: Callable[[], object], rounds: int) -> float:
    """Seconds, after one call that warms up."""
    function()
    found = []
    for _ in range(rounds):
        began = time.perf_counter()
        function()
        found.append(time.perf_counter() - began)
    return min(found)


def rise(function: Callable[[], object]) -> float:
    """Megabytes by which the process's memory rises at most (Linux)."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # forget the old peak
    before = _status("VmRSS")
    kept = function()
    peak = _status("VmHWM")
    del kept
    return (peak - before) / 1e6


def _status(key: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return float(next(line for line in lines if line.startswith(key)).split()[1]) * 1024


def network(at: dict[str, float]) -> torch.nn.Module:
    torch.manual_seed(0)
    return models.build("inception_rect", num_classes=100, width=at["width"], extra_pairs=int(at["pairs"]))


def point(axis: str, value: float, rounds: int) -> dict[str, float]:
    """What is measured at one point; also ``x``, that which the exponent is of."""
    if axis == "files":
        return {"x": value, "scan, s": _scan(int(value), rounds)}
    at = {**BASE, axis: value}
    size, count = int(at["resolution"]), int(at["batch"])
    found = {"x": value}
    torch.manual_seed(0)
    model, batch = network(at), torch.randn(count, 3, size, size)
    found["parameters, M"] = sum(p.numel() for p in model.parameters()) / 1e6
    if axis == "pairs":  # depth is the number of convolutions
        found["x"] = sum(isinstance(m, torch.nn.Conv2d) for m in model.modules())
    if axis != "ranks":
        found |= _growth(model.eval(), batch, rounds)
    run = _learner(network(at), count)
    images, labels = torch.randint(256, batch.shape, dtype=torch.uint8), torch.randint(100, (count,))
    if dist.is_initialized():
        with synchronised(run.model):
            found["step, s"] = least(lambda: run.optimizer_step(images, labels), 3 * rounds)
        return found
    if axis != "ranks":
        found["step, MB"] = rise(lambda: [run.optimizer_step(images, labels) for _ in range(2)])
    found["step, s"] = least(lambda: run.optimizer_step(images, labels), 3 * rounds)
    return found


def _growth(model: torch.nn.Module, batch: torch.Tensor, rounds: int) -> dict[str, float]:
    memory = rise(lambda: growth.widen(model, batch, FACTOR, noise=0.01))
    structure = infer(model, trace(model, batch))
    remappings = draw(structure, solve(structure, FACTOR).sizes, 0)
    grown = build(model, structure, remappings)
    weights = weights_in_double(model, structure, remappings, grown.maps, grown.random)
    return {
        "infer, s": least(lambda: infer(model, trace(model, batch)), rounds),
        "grow, s": least(lambda: build(model, structure, remappings, grown.attributes, noise=0.01), rounds),
        "prove, s": least(lambda: prove_in_double(model, grown.student, weights, first_samples(batch)), rounds),
        "widen, MB": memory,
    }


def _learner(model: torch.nn.Module, batch: int) -> Learner:
    world = dist.get_world_size() if dist.is_initialized() else 1
    rank = dist.get_rank() if world > 1 else 0
    options = FitOptions(1.0, batch * world, 0.01, {"name": "sgd", "momentum": 0.9}, ema_decay=0.99, precision="fp32")
    place: dict[str, Any] = {"steps_per_epoch": 10**6, "mean": (0.5,) * 3, "std": (0.25,) * 3}
    made = Learner(Path(), model, options, ranks=Ranks(rank, world, rank), **place)
    made.net = made.parallel()
    return made


def _scan(files: int, rounds: int) -> float:
    """Seconds in which ``files`` empty files in classes of 1,000 are found."""
    with tempfile.TemporaryDirectory() as place:
        for number in range(files):
            path = Path(place) / f"n{number // 1000:08d}" / f"{number}.JPEG"
            if number % 1000 == 0:
                path.parent.mkdir()
            path.touch()
        return least(lambda: scan(Path(place)), rounds)


def in_ranks(count: int, rounds: int) -> dict[str, float]:
    """`point` of the ranks axis in ``count`` processes; that of rank 0."""
    with tempfile.TemporaryDirectory() as place:
        line = [sys.executable, __file__, "--point", "ranks", str(count), "--rounds", str(rounds), "--store", place]
        started = [subprocess.Popen([*line, "--rank", str(r)], stdout=subprocess.PIPE, text=True) for r in range(count)]
        told = [process.communicate()[0] for process in started]
    if any(process.returncode for process in started):
        raise SystemExit(f"{count} ranks failed")
    found: dict[str, float] = json.loads(told[0])
    return found


def exponent(xs: list[float], ys: list[float]) -> float:
    """Slope of the least squares line through the logarithms."""
    a, b = [math.log(x) for x in xs], [math.log(max(y, 1e-9)) for y in ys]
    x, y = sum(a) / len(a), sum(b) / len(b)
    return sum((p - x) * (q - y) for p, q in zip(a, b, strict=True)) / sum((p - x) ** 2 for p in a)


def show(axis: str, rounds: int) -> None:
    rows = []
    for value in AXES[axis]:
        if axis == "ranks":
            rows.append(in_ranks(int(value), rounds))
            continue
        line = [sys.executable, __file__, "--point", axis, str(value), "--rounds", str(rounds)]
        rows.append(json.loads(subprocess.run(line, check=True, stdout=subprocess.PIPE, text=True).stdout))
    xs = [row.pop("x") for row in rows]
    label = "convolutions" if axis == "pairs" else axis
    print(f"| {label} | {' | '.join(f'{x:g}' for x in xs)} | exponent |\n|---|{'---|' * (len(xs) + 1)}")
    for key in rows[-1]:
        values = [row[key] for row in rows]
        slope = f"{exponent(xs, values):.2f}" if len(xs) > 1 else ""
        print(f"| {key} | {' | '.join(f'{v:.3g}' for v in values)} | {slope} |", flush=True)
    print(flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=tuple(AXES))
    parser.add_argument("--point", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--rank", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--store", help=argparse.SUPPRESS)
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.point:
        axis, value = given.point[0], float(given.point[1])
        several = axis == "ranks" and value > 1
        if several:
            store = dist.FileStore(f"{given.store}/store", int(value))
            dist.init_process_group("gloo", store=store, rank=given.rank, world_size=int(value))
        print(json.dumps(point(axis, value, given.rounds)))
        if several:
            dist.destroy_process_group()
        return
    base = ", ".join(f"{key} {value:g}" for key, value in BASE.items())
    print(f"torch {torch.__version__}, inception_rect, one thread, {given.rounds} rounds; elsewhere {base}\n")
    for axis in [given.only] if given.only else AXES:
        show(axis, given.rounds)


if __name__ == "__main__":
    main()
