"""What growth costs, as a fraction of one forward pass of the teacher on 32 images, measured in turn.

    .venv/bin/python experiments/benchmarks/growth.py [--rounds 5] [--threads 1]

Prints medians over the rounds: inference of the groups, the growth itself (with noise), and the proof in fp64.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
import torchvision
from torch import nn

from n2n_cli import models
from n2n_cli.growth.infer import infer
from n2n_cli.growth.plan import draw, solve
from n2n_cli.growth.prove import small
from n2n_cli.growth.wider import _proof, _student, grow_state

NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "resnet50": lambda: torchvision.models.resnet50(),
    "inception_bn sqrt(0.3)": lambda: models.build("inception_bn", width=0.3**0.5),
    "inception_rect sqrt(0.3)": lambda: models.build("inception_rect", width=0.3**0.5),
}


def seconds(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"torch {torch.__version__}, {options.threads} thread(s), median of {options.rounds} rounds, factor 1.5")
    print(f"{'network':26}{'forward':>9}{'infer':>9}{'grow':>9}{'proof':>9}   grow/forward  proof/forward")
    for name, build in NETWORKS.items():
        torch.manual_seed(0)
        model = build().eval()
        batch = torch.randn(32, 3, 224, 224)
        structure = infer(model, batch)
        mappings = draw(structure, solve(structure, 1.5), 0)

        def grow(teacher: nn.Module, noise: float = 0.0) -> nn.Module:
            state = grow_state(teacher, structure, mappings, noise=noise)  # noqa: B023
            return _student(teacher, structure, mappings, state, None)  # noqa: B023

        def forward() -> None:
            with torch.inference_mode():
                model(batch)  # noqa: B023

        steps = {
            "forward": forward,
            "infer": lambda: infer(model, batch),  # noqa: B023
            "grow": lambda: grow(model, 0.01),  # noqa: B023
            "proof": lambda: _proof(model, grow, small(batch)),  # noqa: B023
        }
        times: dict[str, list[float]] = {step: [] for step in steps}
        for _ in range(options.rounds):
            for step, function in steps.items():
                times[step].append(seconds(function))
        median = {step: statistics.median(values) for step, values in times.items()}
        print(
            f"{name:26}"
            + "".join(f"{median[step]:8.2f}s" for step in steps)
            + f"{median['grow'] / median['forward']:15.3f}{median['proof'] / median['forward']:15.2f}"
        )


if __name__ == "__main__":
    main()
