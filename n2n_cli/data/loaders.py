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
import weakref
from collections.abc import Iterator, Sequence
from multiprocessing.connection import wait
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
MOST_SKIPPED = 100
"""Unreadable images of a run after which it ends all the same: the disk is at fault, or the folder."""
SHARED = "/dev/shm"
AHEAD = 2
"""Batches that a worker has ready before they are asked for."""

Batch = tuple[Tensor, Tensor]


class TrainLoader:
    """Shuffled, augmented batches; ``batch_size`` in global images, a multiple of ``world_size``: a rank gets its part.

    ``steps_per_epoch``: full global batches. The images that do not fill a last one are left out (others each epoch).
    ``remedy``: what to try where training waits for images.
    ``skip``: an image that cannot be read is warned of, and the next one that can be takes its place, up to
    `MOST_SKIPPED` of them. ``before``: one image more than the rank's part comes first, which stands before it in the
    global batch (before the very first: the last), so that images mixed with each other are the same for any number of
    ranks. ``beside``: how many of the ``world_size`` are on this machine; None: all. Raises `N2NError` where there is
    no full batch.
    """

    def __init__(
        self,
        source: Source,
        *,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        workers: int = 0,
        skip: bool = False,
        before: bool = False,
        beside: int | None = None,
    ) -> None:
        if len(source) < batch_size:
            raise N2NError(f"{len(source)} training images are too few for one batch of batch_size {batch_size}")
        self.steps_per_epoch = len(source) // batch_size
        self._reader = _Reader(source, seed, workers, beside or world_size, skip)
        self._images, self._seed, self._batch_size = len(source), seed, batch_size
        self.remedy = (
            f"try workers= above {workers} (of {len(os.sched_getaffinity(0))} cores), a faster disk"
            + "".join(f", or {what}" for what in [getattr(source, "faster", "")] if what)
            if source.decodes
            else ""
        )
        part = batch_size // world_size
        self._part = torch.arange(rank * part - before, (rank + 1) * part)

    def close(self) -> None:
        """End the worker processes, if there are any."""
        self._reader.close()

    def batches(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        """(uint8 ``[b, 3, H, W]``, int64 ``[b]``) for this rank, from step ``start_step`` of the epoch on."""
        order = torch.randperm(self._images, generator=generator(self._seed, epoch))
        steps = order.split(self._batch_size)[start_step : self.steps_per_epoch]
        return self._reader.read(epoch, [step[self._part] for step in steps])


class EvalLoader:
    """Every image once over all ranks, none twice: rank r takes indices r::world_size, in order, unaugmented.

    ``batch_size`` is in images of one rank; the last batch may be smaller. ``beside``: as of `TrainLoader`.
    """

    def __init__(
        self,
        source: Source,
        *,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        workers: int = 0,
        beside: int | None = None,
    ) -> None:
        own = torch.arange(rank, max(len(source), rank), world_size)
        self._indices = own.split(batch_size) if len(own) else ()
        self.steps_per_epoch = len(self._indices)
        self._reader = _Reader(source, None, workers, beside or world_size)

    def close(self) -> None:
        """As of `TrainLoader`."""
        self._reader.close()

    def batches(self, epoch: int = 0, start_step: int = 0) -> Iterator[Batch]:
        """As those of `TrainLoader`; the same in every epoch."""
        return self._reader.read(epoch, self._indices[start_step:])


class _Reader:
    """Turns the indices of each batch into batches: here, or in worker processes that stay alive."""

    def __init__(self, source: Source, seed: int | None, workers: int, beside: int = 1, skip: bool = False):
        """``beside``: readers like this one on this machine; ``skip``: as for `TrainLoader`."""
        self._beside = beside
        self._skipped: set[str] = set()
        self._batches = _Batches(source, seed, skip)
        self._keys = _Keys()
        self._workers = workers if source.decodes else 0
        self._loader: DataLoader[Any] | None = None

    def read(self, epoch: int, steps: Sequence[Tensor]) -> Iterator[Batch]:
        if not self._workers:
            for indices in steps:
                yield self._taken(self._batches.fetch(epoch, indices))
            return
        # Lists: tensors would travel to the workers by file descriptors, one for every batch.
        self._keys.epoch = [(epoch, indices.tolist()) for indices in steps]
        message, batches, lost = "", None, False
        try:
            self._loader = self._loader or self._start(max(map(len, steps), default=0))
            with _no_signal_of_workers():
                batches = iter(self._loader)
            _without_their_lock(batches)
            for _ in steps:
                item = _patient(batches)
                if isinstance(item, str):
                    message = item
                    break
                yield self._taken(item)
        except (RuntimeError, OSError, EOFError) as error:
            # Its connection ends a moment before the worker counts as dead.
            if "DataLoader" not in str(error) and not self._killed(within_s=LOOK_S):
                raise
            message = f"data workers: {' '.join(str(error).split())}"  # killed, or silent for TIMEOUT_S
            message += "" if "DataLoader" in message else " (one of them was killed)"
            lost = True
        if message:
            self.close(force=lost)
            raise N2NError(message)

    def close(self, *, force: bool = False) -> None:
        """Ends the workers, with ``force`` at once: torch waits five seconds for each that hangs.

        Collected later, together with their queues, they could not be told to end: the program would wait five seconds
        for each, and until then they hold what this process had open, such as a run's lock.
        """
        running: Any = self._loader and self._loader._iterator
        if running and (force or self._killed()):
            _end_by_force(running)
        elif running:
            running._shutdown_workers()
        self._loader = None

    def _killed(self, within_s: float = 0) -> bool:
        """Whether a worker is gone, or goes within so many seconds."""
        running: Any = self._loader and self._loader._iterator
        workers = running._workers if running else []
        return bool(wait([worker.sentinel for worker in workers], within_s)) if workers else False

    def _taken(self, item: Any) -> Batch:
        """A batch as tensors, its skipped images told. Raises N2NError for too many of them."""
        images, labels, problems = item
        for problem in problems:
            if problem not in self._skipped:
                self._skipped.add(problem)
                print(f"n2n: warning: skipped {problem}", file=sys.stderr, flush=True)
        if len(self._skipped) > MOST_SKIPPED:
            raise N2NError(f"{len(self._skipped)} images cannot be read: more than data.on_error=skip puts up with")
        if isinstance(images, np.ndarray):
            return torch.from_numpy(images), torch.from_numpy(labels)
        return images, labels

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
    def __init__(self, source: Source, seed: int | None, skip: bool):
        self.source, self.seed, self.skip = source, seed, skip
        self.by_pipe = False  # where shared memory is too small (64 MB in a Docker container): slower, as it is copied

    def fetch(self, epoch: int, indices: Tensor) -> tuple[Tensor, Tensor, list[str]]:
        """Images, labels, and what was skipped."""
        draws = None if self.seed is None else uniforms(self.seed, epoch, indices, DRAWS)
        problems: list[str] = []
        try:
            images = self.source.batch(indices, draws)
        except N2NError:
            if not self.skip:
                raise
            indices = torch.tensor([self._readable(index, problems) for index in indices.tolist()])
            images = self.source.batch(indices, draws)
        return images, self.source.labels[indices], problems

    def _readable(self, index: int, problems: list[str]) -> int:
        """The image itself, or the next that can be read. Raises N2NError where `MOST_SKIPPED` in a row cannot."""
        for step in range(MOST_SKIPPED + 1):
            other = (index + step) % len(self.source)
            try:
                self.source.batch(torch.tensor([other]), None)
                return other
            except N2NError as error:
                problems.append(str(error))
        raise N2NError(problems[-1])

    def __getitem__(self, key: tuple[int, list[int]]) -> Any:
        # In a worker. The message is returned: an exception would come back wrapped in the worker's traceback.
        try:
            images, labels, problems = self.fetch(key[0], torch.tensor(key[1]))
            return (images.numpy(), labels.numpy(), problems) if self.by_pipe else (images, labels, problems)
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


def _without_their_lock(batches: Any) -> None:
    """Lets torch's loader find a killed worker. It asks an event first whether it is shutting down, and a worker that
    is killed while it asks the same holds the event's lock for ever."""
    running = weakref.ref(batches)
    batches._workers_done_event.is_set = lambda: getattr(running(), "_shutdown", True)


def _end_by_force(running: Any) -> None:
    """Ends the workers of which one hangs, or was killed: torch's own way would wait for the lock that it may hold."""
    running._shutdown = True
    if hasattr(running, "_pin_memory_thread_done_event"):
        running._pin_memory_thread_done_event.set()
    for worker in running._workers:
        worker.kill()
    if running._worker_pids_set:  # a later loader may be another one at the same address
        torch.utils.data._utils.signal_handling._remove_worker_pids(id(running))
        running._worker_pids_set = False
    for worker in running._workers:
        worker.join(timeout=LOOK_S)  # not for ever for one that waits for a disk
    for queue in (*running._index_queues, running._worker_result_queue):
        queue.cancel_join_thread()
        queue.close()


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
