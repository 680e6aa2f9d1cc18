"""The processes (ranks) of one run: their numbers, their devices and what they exchange."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from n2n_cli.errors import N2NError, suggest
from n2n_cli.training.launch import report

CPU = torch.device("cpu")
DEVICES = ("auto", "cpu", "cuda")
WAIT_S = 300
"""Seconds that a rank waits for the others before the first step."""


@dataclass(frozen=True)
class Ranks:
    """One process of ``world_size``, of which ``local_size`` are on this machine.

    Every collective is the identity when it is alone.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    device: torch.device = CPU
    local_size: int = 1

    @property
    def main(self) -> bool:
        """Whether this rank writes files and talks to the user."""
        return self.rank == 0

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """Elementwise sum over ranks, added in rank order: a value's bits do not depend on the tensor's size."""
        if self.world_size == 1:
            return tensor
        parts = [torch.empty_like(tensor) for _ in range(self.world_size)]
        dist.all_gather(parts, tensor.contiguous())
        return torch.stack(parts).sum(0)

    def any(self, *flags: bool) -> list[bool]:
        """For each flag, whether it is set on any rank. Travels by gloo, so that no rank waits for its GPU."""
        if self.world_size == 1:
            return list(flags)
        values = torch.tensor([int(flag) for flag in flags])
        dist.all_reduce(values, op=dist.ReduceOp.MAX)
        return [bool(value) for value in values.tolist()]

    def first(self, message: str) -> str:
        """The first message that is not empty, by rank."""
        if self.world_size == 1:
            return message
        messages: list[Any] = [None] * self.world_size
        dist.all_gather_object(messages, message)
        return next((said for said in messages if said), "")

    def broadcast(self, value: Any) -> Any:
        """Rank 0's ``value`` (plain data) on every rank."""
        if self.world_size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def broadcast_buffers(self, module: nn.Module) -> None:
        """Overwrite ``module``'s buffers by rank 0's: they are the ones that are saved and evaluated."""
        if self.world_size > 1:
            for buffer in module.buffers():
                dist.broadcast(buffer, src=0)


def pick_device(name: str, local_rank: int = 0) -> torch.device:
    """``auto`` (CUDA when there is one), ``cpu`` or ``cuda``, for process ``local_rank`` of this machine.

    Raises:
        N2NError: unknown name; CUDA asked for and absent; more ranks than GPUs.
    """
    if name not in DEVICES:
        raise N2NError(f"device={name!r}: expected one of {', '.join(DEVICES)}{suggest(name, DEVICES)}")
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise N2NError("device=cuda: PyTorch finds no CUDA device here; use device=cpu or device=auto")
    if local_rank >= torch.cuda.device_count():
        raise N2NError(f"devices: this machine has {torch.cuda.device_count()} GPUs, rank {local_rank} finds none left")
    return torch.device("cuda", local_rank)


@contextmanager
def ranks(device: str = "auto", *, alone: bool = False) -> Iterator[Ranks]:
    """This process's `Ranks`, from torchrun's environment (``RANK``, ``WORLD_SIZE``, ...); alone without one.

    ``alone``: whatever the environment says: it is that of a cluster's job, and this process no rank of one.

    Several ranks get one process group: CPU tensors travel by gloo, CUDA tensors by NCCL. The group is
    destroyed at the end (a rank that leaves it to the interpreter's exit aborts now and then).

    Raises:
        N2NError: see `pick_device`; the environment is incomplete or not torchrun's, or the other ranks do not come.
    """
    world_size = 1 if alone else _number("WORLD_SIZE", 1)
    local_rank = 0 if alone else _number("LOCAL_RANK", 0)
    mine = pick_device(device, local_rank)
    if mine.type == "cuda":
        # Needed by deterministic cuBLAS, and read once, when cuBLAS starts.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.cuda.set_device(mine)
    if world_size == 1:
        yield Ranks(device=mine)
        return
    needed = ("RANK", "MASTER_ADDR", "MASTER_PORT")
    if missing := [name for name in needed if name not in os.environ]:
        raise N2NError(f"WORLD_SIZE={world_size}, but no {' and '.join(missing)}: start the ranks with torchrun")
    rank = _number("RANK", 0)
    if rank >= world_size:
        raise N2NError(f"RANK={rank}, but WORLD_SIZE={world_size}: ranks count from 0; start them with torchrun")
    local_size = _number("LOCAL_WORLD_SIZE", world_size)
    if not local_rank < local_size <= world_size:
        raise N2NError(
            f"LOCAL_WORLD_SIZE={local_size}, but LOCAL_RANK={local_rank} and WORLD_SIZE={world_size}: expected a "
            "number above the one and up to the other; start the ranks with torchrun"
        )
    store = _met(rank, world_size)
    # A restarted group must not read the keys its dead predecessor left in the agent's store.
    store = dist.PrefixStore(f"attempt{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
    backend = "cpu:gloo,cuda:nccl" if mine.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=world_size)
    try:
        yield Ranks(rank, world_size, local_rank, mine, local_size)
    except Exception as error:
        # Told before the others lose this rank. The group stays: NCCL's orderly end would wait for them.
        report(error)
        raise
    except BaseException:
        dist.destroy_process_group()
        raise
    dist.destroy_process_group()


def _number(name: str, default: int) -> int:
    """A whole number of torchrun's environment. Raises N2NError."""
    text = os.environ.get(name, str(default))
    if not text.isdecimal():
        raise N2NError(f"{name}='{text}': expected a whole number, as torchrun sets it; start the ranks with torchrun")
    return int(text)


def _met(rank: int, world_size: int) -> Any:
    """The store over which the ranks find each other, once all of them are there. Raises N2NError."""
    at = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    wait = timedelta(seconds=WAIT_S)
    try:
        store = next(dist.rendezvous("env://", timeout=wait))[0]
        key = f"n2n/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
        store.set(f"{key}/{rank}", "here")
        store.wait([f"{key}/{other}" for other in range(world_size)], wait)
    except (RuntimeError, ValueError) as error:  # torch's DistStoreError, DistNetworkError
        raise N2NError(
            f"rank {rank} waited {WAIT_S} s for the other {world_size - 1} of WORLD_SIZE={world_size} at {at}"
        ) from error
    return store
