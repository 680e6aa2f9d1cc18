"""What a run gets of this machine: CPU threads, loading processes, memory."""

from __future__ import annotations

import contextlib
import os
import platform
from collections.abc import Iterator
from typing import Any

import torch
import torchvision
from torch import nn

import n2n_cli
from n2n_cli.errors import RunError
from n2n_cli.growth.errors import lacks_memory
from n2n_cli.models import describe
from n2n_cli.schema import RunConfig

ONE_THREAD_BELOW = 100_000  # parameters
VERSIONS = ("n2n", "torch", "torchvision", "python")
"""Of what `described` says, what changes the numbers of a run without anybody asking for it."""
runs_at_once = 1  # processes like this one that share the cores (`parallel` sets it in each of them)


@contextlib.contextmanager
def enough_memory() -> Iterator[None]:
    """Raises RunError where PyTorch cannot get the memory it asks for; its other errors pass."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not lacks_memory(error):
            raise
        raise RunError(
            "not enough memory; try a smaller network, a smaller training.batch_size, or training.accumulate=2"
        ) from error


def limit_threads(model: nn.Module, processes: int = 1) -> None:
    """Sets the CPU threads of this process, one of ``processes`` that share the cores.

    A small network gets one thread, as more would wait for each other longer than they compute.
    ``OMP_NUM_THREADS`` in the environment wins.
    """
    if "OMP_NUM_THREADS" not in os.environ:
        small = describe.count_parameters(model) < ONE_THREAD_BELOW
        torch.set_num_threads(1 if small else max(1, _cores() // processes))


def workers(choice: str | int, devices: int, in_memory: bool) -> int:
    """Loading processes of each device; ``auto`` shares the cores, and needs none for images that lie in memory."""
    if choice != "auto":
        return int(choice)
    return 0 if in_memory else max(1, min(16, _cores() // devices))


def _cores() -> int:
    return max(1, len(os.sched_getaffinity(0)) // runs_at_once)


def described(cfg: RunConfig) -> dict[str, Any]:
    """What run.json says of the machine."""
    cuda = cfg.device != "cpu" and torch.cuda.is_available()
    return {
        "device": torch.cuda.get_device_name() if cuda else platform.processor() or platform.machine(),
        "devices": cfg.devices,
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "n2n": n2n_cli.__version__,
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "python": platform.python_version(),
        "system": platform.system(),
    }
