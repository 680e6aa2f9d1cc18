"""Several runs of a study at once: processes that stay, one thread each for small networks."""

from __future__ import annotations

import contextlib
import io
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from n2n_cli.commands.folders import Plan
from n2n_cli.config import Compare
from n2n_cli.errors import N2NError

Finished = Callable[[Plan, dict[str, Any] | None, str], Sequence[Plan]]


def run_all(plans: Sequence[Plan], cfg: Compare, jobs: int, finished: Finished) -> None:
    """Trains ``plans`` in ``jobs`` processes; ``finished`` gets every result and returns the plans it makes possible.

    Raises:
        N2NError: of the first run that fails; the others save and stop.
        KeyboardInterrupt: Ctrl-C or SIGTERM; every run has saved and stopped.
    """
    context = multiprocessing.get_context("spawn")
    slots = context.Queue()
    for slot in range(jobs):
        slots.put(slot)
    pool = ProcessPoolExecutor(jobs, context, initializer=_start, initargs=(slots, cfg.devices))
    waiting: dict[Future[tuple[dict[str, Any] | None, str]], Plan] = {}
    with _terminable():
        try:
            for plan in plans:
                waiting[pool.submit(_one, plan, cfg)] = plan
            while waiting:
                for future in wait(waiting, return_when=FIRST_COMPLETED).done:
                    plan = waiting.pop(future)
                    for more in finished(plan, *future.result()):
                        waiting[pool.submit(_one, more, cfg)] = more
        except BaseException as error:
            for child in multiprocessing.active_children():
                child.terminate()  # SIGTERM: the loop saves and stops
            pool.shutdown(wait=True, cancel_futures=True)
            if isinstance(error, BrokenProcessPool):
                raise N2NError("a run's process was killed (out of memory?); the same command goes on") from error
            raise
        pool.shutdown()


def jobs_at_once(cfg: Compare, runs: int) -> int:
    """``jobs``, or with ``auto`` one a core on a CPU and one a set of ``devices`` on GPUs."""
    if cfg.jobs != "auto":
        return min(int(cfg.jobs), runs)
    import torch

    if cfg.device != "cpu" and torch.cuda.is_available():
        return max(1, min(runs, torch.cuda.device_count() // cfg.devices))
    return max(1, min(runs, 8, len(os.sched_getaffinity(0)) // cfg.devices))


def _start(slots: Any, devices: int) -> None:
    """A process begins: a group of its own (the parent alone hears Ctrl-C), and GPUs of its own."""
    os.setpgrp()
    slot = slots.get()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible != "":
        ids = visible.split(",") if visible else None
        mine = range(slot * devices, (slot + 1) * devices)
        if ids is None or len(ids) > mine[-1]:
            os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(ids[i] if ids else str(i) for i in mine)
    sys.stderr = _Plain(sys.stderr)  # bars of several processes would write over each other


class _Plain(io.TextIOBase):
    """A stream that is no terminal: progress comes as lines."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        return int(self._stream.write(text))

    def flush(self) -> None:
        self._stream.flush()

    def isatty(self) -> bool:
        return False


def _one(plan: Plan, cfg: Compare) -> tuple[dict[str, Any] | None, str]:
    """One run to its end, and what it said."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        done = train(plan, cfg)
    return done, said.getvalue()


def train(plan: Plan, cfg: Compare) -> dict[str, Any] | None:
    """One run of a study in this process; None if it stopped early."""
    if plan.teacher is None:
        from n2n_cli.commands.train import from_scratch

        return from_scratch(plan, cfg)
    from n2n_cli.commands.grow import from_teacher

    return from_teacher(plan, cfg)


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM ends as Ctrl-C does."""

    def interrupt(number: int, frame: Any) -> None:
        raise KeyboardInterrupt(f"signal {number}")

    try:
        before = signal.signal(signal.SIGTERM, interrupt)
    except ValueError:  # not the main thread: whoever runs us handles signals
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
