"""What growth costs, beside one forward pass of the teacher on 32 images, measured in turn; and its memory.

    .venv/bin/python experiments/benchmarks/growth.py [--rounds 5] [--threads 1] [--factor 1.5]

Prints medians over the rounds: inference of the groups, the growth itself (with noise), the proof in fp64, and the peak
of the process's memory over a whole ``widen`` as a multiple of the student's size (the student itself included, and
the activations of the proof's few images left out: they are measured by a proof of the teacher against itself).
"""

from __future__ import annotations

import argparse
import gc
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torchvision
from torch import nn

from n2n_cli import growth, models
from n2n_cli.growth.build.students import build
from n2n_cli.growth.build.weights import weights_in_double
from n2n_cli.growth.groups.infer import infer, trace
from n2n_cli.growth.proof.prove import prove_in_double
from n2n_cli.growth.sizes.draw import draw
from n2n_cli.growth.sizes.solve import solve
from n2n_cli.growth.trace.examples import first_samples

NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "resnet50": lambda: torchvision.models.resnet50(),
    "inception_bn sqrt(0.3)": lambda: models.build("inception_bn", width=0.3**0.5),
    "inception_rect sqrt(0.3)": lambda: models.build("inception_rect", width=0.3**0.5),
}


def seconds(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def times(name: str, rounds: int, factor: float) -> dict[str, float]:
    """Medians in seconds."""
    torch.manual_seed(0)
    model, batch = NETWORKS[name]().eval(), torch.randn(32, 3, 224, 224)
    structure = infer(model, trace(model, batch))
    remappings = draw(structure, solve(structure, factor).sizes, 0)
    grown = build(model, structure, remappings)
    weights = weights_in_double(model, structure, remappings, grown.maps, grown.random)

    def forward() -> None:
        with torch.inference_mode():
            model(batch)

    steps: dict[str, Callable[[], object]] = {
        "forward": forward,
        "infer": lambda: infer(model, trace(model, batch)),
        "grow": lambda: build(model, structure, remappings, grown.attributes, noise=0.01),
        "proof": lambda: prove_in_double(model, grown.student, weights, first_samples(batch)),
    }
    found: dict[str, list[float]] = {step: [] for step in steps}
    for _ in range(rounds):
        for step, function in steps.items():
            found[step].append(seconds(function))
    return {step: statistics.median(values) for step, values in found.items()}


def peak_above(function: Callable[[], object]) -> float:
    """Bytes by which the process's memory rises at most (Linux)."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # forget the old peak
    before = _status("VmRSS")
    result = function()
    del result
    return _status("VmHWM") - before


def _status(key: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return float(next(line for line in lines if line.startswith(key)).split()[1]) * 1024


def memory(name: str, factor: float) -> tuple[float, float]:
    """Peak extra memory of ``widen`` over the student's size: all, and without the proof's activations."""
    torch.manual_seed(0)
    model, batch = NETWORKS[name]().eval(), torch.randn(4, 3, 224, 224)
    growth.widen(model, batch[:2, :, :64, :64], factor)  # import and allocate whatever is done once
    activations = peak_above(lambda: prove_in_double(model, model, {}, batch))
    peak = peak_above(lambda: growth.widen(model, batch, factor, noise=0.01))
    student = growth.widen(model, batch[:2, :, :64, :64], factor).student
    size = sum(t.numel() * t.element_size() for t in student.state_dict().values())
    return peak / size, max(peak - activations, 0) / size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--factor", type=float, default=1.5)
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.memory_of:
        print("{:.2f} {:.2f}".format(*memory(options.memory_of, options.factor)))
        return
    print(f"torch {torch.__version__}, {options.threads} thread(s), median of {options.rounds} rounds, 224 px")
    columns = ("forward", "infer", "grow", "proof")
    print(f"{'network':26}" + "".join(f"{c:>9}" for c in columns) + "   grow/forward  proof/forward  memory/student")
    for name in NETWORKS:
        median = times(name, options.rounds, options.factor)
        command = [sys.executable, __file__, "--memory-of", name, "--factor", str(options.factor)]
        peak = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
        print(
            f"{name:26}"
            + "".join(f"{median[step]:8.2f}s" for step in columns)
            + f"{median['grow'] / median['forward']:15.3f}{median['proof'] / median['forward']:15.2f}"
            + f"{peak[0]:>9} ({peak[1]} without activations)"
        )


if __name__ == "__main__":
    main()
