"""Loaders: which rank sees which images in which order, and which process decodes them.

The order of an epoch is a permutation f(seed, epoch) and augmentation is f(seed, epoch, index), so the images
of a global step are the same for any number of ranks and workers, and after any stop. A loader never touches
torch's global random state. Images come as uint8; normalise them on the device.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from n2n_cli.data.counter import generator, uniforms
from n2n_cli.data.sources import Source
from n2n_cli.data.transforms import DRAWS
from n2n_cli.errors import N2NError

TIMEOUT_S = 300
"""Seconds after which a silent worker (a hung file system) is an error instead of a hung run."""
LOOK_S = 5
"""Seconds after which a waiting loader looks whether its workers are still alive."""
SHARED = "/dev/shm"
AHEAD = 2
"""Batches that a worker has ready before they are asked for."""

Batch = tuple[Tensor, Tensor]


class TrainLoader:
    """Shuffled, augmented batches; ``batch_size`` in global images, a multiple of ``world_size``: a rank gets its part.

    ``steps_per_epoch``: full global batches. The images that do not fill a last one are left out (others each epoch).
    Raises `N2NError` where there is no full batch.
    """

    def __init__(
        self, source: Source, *, batch_size: int, seed: int, rank: int = 0, world_size: int = 1, workers: int = 0
    ) -> None:
        if len(source) < batch_size:
            raise N2NError(f"{len(source)} training images are too few for one batch of batch_size {batch_size}")
        self.steps_per_epoch = len(source) // batch_size
        self._reader = _Reader(source, seed, workers, world_size)
        self._images, self._seed, self._batch_size = len(source), seed, batch_size
        part = batch_size // world_size
        self._part = slice(rank * part, (rank + 1) * part)

    def batches(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        """(uint8 ``[b, 3, H, W]``, int64 ``[b]``) for this rank, from step ``start_step`` of the epoch on."""
        order = torch.randperm(self._images, generator=generator(self._seed, epoch))
        steps = order.split(self._batch_size)[start_step : self.steps_per_epoch]
        return self._reader.read(epoch, [step[self._part] for step in steps])


class EvalLoader:
    """Every image once over all ranks, none twice: rank r takes indices r::world_size, in order, unaugmented.

    ``batch_size`` is in images of one rank; the last batch may be smaller.
    """

    def __init__(
        self, source: Source, *, batch_size: int, rank: int = 0, world_size: int = 1, workers: int = 0
    ) -> None:
        own = torch.arange(rank, max(len(source), rank), world_size)
        self._indices = own.split(batch_size) if len(own) else ()
        self.steps_per_epoch = len(self._indices)
        self._reader = _Reader(source, None, workers, world_size)

    def batches(self, epoch: int = 0, start_step: int = 0) -> Iterator[Batch]:
        """As those of `TrainLoader`; the same in every epoch."""
        return self._reader.read(epoch, self._indices[start_step:])


class _Reader:
    """Turns the indices of each batch into batches: here, or in worker processes that stay alive."""

    def __init__(self, source: Source, seed: int | None, workers: int, beside: int = 1):
        """``beside``: readers like this one on this machine."""
        self._beside = beside
        self._batches = _Batches(source, seed)
        self._keys = _Keys()
        self._workers = workers if source.decodes else 0
        self._loader: DataLoader[Any] | None = None

    def read(self, epoch: int, steps: Sequence[Tensor]) -> Iterator[Batch]:
        if not self._workers:
            for indices in steps:
                yield self._batches.fetch(epoch, indices)
            return
        # Lists: tensors would travel to the workers by file descriptors, one for every batch.
        self._keys.epoch = [(epoch, indices.tolist()) for indices in steps]
        message, batches = "", None
        try:
            self._loader = self._loader or self._start(max(map(len, steps), default=0))
            with _no_signal_of_workers():
                batches = iter(self._loader)
            for _ in steps:
                item = _patient(batches)
                if isinstance(item, str):
                    message = item
                    break
                yield _tensors(item)
        except RuntimeError as error:
            if "DataLoader" not in str(error):
                raise
            message = f"data workers: {' '.join(str(error).split())}"  # killed, or silent for TIMEOUT_S
        if message:
            # End the workers now, with nothing left that refers to them: collected later, together with their
            # queues, they cannot be told to end, and the program would wait five seconds for each.
            self._loader = batches = None
            raise N2NError(message)

    def _start(self, images: int) -> DataLoader[Any]:
        """``images``: of the largest batch."""
        ready = images * 3 * getattr(self._batches.source, "size", 0) ** 2 * AHEAD * self._workers
        self._batches.by_pipe = _shared_memory() < 2 * ready * self._beside
        return DataLoader(
            self._batches,
            batch_size=None,  # a key is that of a whole batch
            sampler=self._keys,
            num_workers=self._workers,
            collate_fn=_identity,
            persistent_workers=True,
            pin_memory=torch.cuda.is_available(),
            timeout=LOOK_S,
            prefetch_factor=AHEAD,
            worker_init_fn=_start_worker,
            generator=torch.Generator(),  # or every epoch would draw from the global state
        )


class _Batches(Dataset[Any]):
    def __init__(self, source: Source, seed: int | None):
        self.source, self.seed = source, seed
        self.by_pipe = False  # where shared memory is too small (64 MB in a Docker container): slower, as it is copied

    def fetch(self, epoch: int, indices: Tensor) -> Batch:
        draws = None if self.seed is None else uniforms(self.seed, epoch, indices, DRAWS)
        return self.source.batch(indices, draws), self.source.labels[indices]

    def __getitem__(self, key: tuple[int, list[int]]) -> Any:
        # In a worker. The message is returned: an exception would come back wrapped in the worker's traceback.
        try:
            batch = self.fetch(key[0], torch.tensor(key[1]))
            return [part.numpy() for part in batch] if self.by_pipe else batch
        except N2NError as error:
            return str(error)


class _Keys(Sampler[Any]):
    """The keys of the epoch that is being read, iterated over in the main process."""

    def __init__(self) -> None:
        self.epoch: list[tuple[int, list[int]]] = []

    def __iter__(self) -> Iterator[tuple[int, list[int]]]:
        return iter(self.epoch)

    def __len__(self) -> int:
        return len(self.epoch)


def _patient(batches: Iterator[Any]) -> Any:
    """The next batch, waited for in slices of `LOOK_S`: after each, dead workers are told."""
    for _ in range(TIMEOUT_S // LOOK_S - 1):
        try:
            return next(batches)
        except RuntimeError as error:
            if "timed out" not in str(error):
                raise
    try:
        return next(batches)
    except RuntimeError as error:
        raise RuntimeError(str(error).replace(f"{LOOK_S} seconds", f"{TIMEOUT_S} seconds")) from error


@contextlib.contextmanager
def _no_signal_of_workers() -> Iterator[None]:
    """A worker's death is found by looking: torch's handler of SIGCHLD would raise in the middle of a step."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGCHLD)
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, before)


def _tensors(item: Any) -> Batch:
    images, labels = (torch.from_numpy(part) if isinstance(part, np.ndarray) else part for part in item)
    return images, labels


def _shared_memory() -> int:
    """Free bytes of shared memory; without bound where the system does not say."""
    try:
        found = os.statvfs(SHARED)
    except OSError:
        return sys.maxsize
    return found.f_bavail * found.f_frsize


def _identity(item: Any) -> Any:
    return item


def _start_worker(_: int) -> None:
    # Ctrl-C reaches the whole process group; the main process decides when to stop, after its checkpoint.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
