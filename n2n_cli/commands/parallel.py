"""Several runs of a study at once: processes that stay, one thread each for small networks."""

from __future__ import annotations

import contextlib
import io
import multiprocessing
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any

import torch

from n2n_cli.commands import grow, machine, train
from n2n_cli.commands.folders import PlannedRun
from n2n_cli.errors import N2NError, RunError
from n2n_cli.processes import stop_with_parent
from n2n_cli.schema import Compare
from n2n_cli.training.launch import heard
from n2n_cli.training.loop import SIGNALS

Result = dict[str, Any] | RunError | None
"""What done.json says; why the run cannot be made; None if it stopped early."""
Finished = Callable[[PlannedRun, Result, str], Sequence[PlannedRun]]
STOPPED = "every run is stopped; the same command goes on from there"


def run_all(runs: Sequence[PlannedRun], cfg: Compare, jobs: int, finished: Finished) -> None:
    """Trains ``runs`` in ``jobs`` processes; ``finished`` gets every result and returns the runs it makes possible.

    Raises:
        N2NError: of the first run that fails for a reason that may be another run's too; the others save and stop.
        KeyboardInterrupt: Ctrl-C or SIGTERM; every run has saved and stopped.
    """
    todo, running = list(runs), dict[Connection, PlannedRun]()
    with _signals(), _processes(cfg, jobs) as idle:
        while todo or running:
            while todo and idle:
                pipe = idle.pop(0)
                running[pipe] = todo.pop(0)
                with contextlib.suppress(BrokenPipeError):  # it is gone: the next recv says so
                    pipe.send((running[pipe], cfg))
            ready = wait(list(running))
            for pipe in [pipe for pipe in running if pipe in ready]:
                try:
                    told = pipe.recv()
                except (EOFError, ConnectionError) as error:
                    folder = running[pipe].folder
                    raise N2NError(
                        f"{folder}: its process was killed (no memory?); the same command goes on"
                    ) from error
                if isinstance(told, BaseException):
                    raise told
                idle.append(pipe)
                todo += finished(running.pop(pipe), *told)


def jobs_at_once(cfg: Compare, runs: int) -> int:
    """``jobs``, or with ``auto`` one a core on a CPU and one a set of ``devices`` on GPUs."""
    if cfg.jobs != "auto":
        return min(int(cfg.jobs), runs)
    if cfg.device != "cpu" and torch.cuda.is_available():
        return max(1, min(runs, torch.cuda.device_count() // cfg.devices))
    return max(1, min(runs, 8, len(os.sched_getaffinity(0)) // cfg.devices))


def run_one(planned: PlannedRun, cfg: Compare) -> Result:
    """One run of a study in this process."""
    cfg = planned.with_images(cfg)
    try:
        with machine.enough_memory():
            return (train.from_scratch if planned.teacher is None else grow.from_teacher)(planned, cfg)
    except RunError as error:
        return RunError(str(error))


@contextlib.contextmanager
def _processes(cfg: Compare, jobs: int) -> Iterator[list[Connection]]:
    """Pipes to ``jobs`` processes that train what they are sent; none of them is left at the end."""
    context = multiprocessing.get_context("spawn")
    pipes: list[Connection] = []
    processes: list[SpawnProcess] = []
    try:
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # inherited: a child must not hear Ctrl-C
        try:
            for slot in range(jobs):
                ours, theirs = context.Pipe()
                process = context.Process(target=_serve, args=(theirs, slot, jobs, cfg.devices))
                process.start()
                theirs.close()
                pipes.append(ours)
                processes.append(process)
        finally:
            signal.signal(signal.SIGINT, before)
        yield list(pipes)
    except BaseException:
        for process in processes:
            process.terminate()  # SIGTERM: the loop saves and stops
        raise
    finally:
        for pipe in pipes:
            pipe.close()
        while any(process.is_alive() for process in processes):
            try:
                for process in processes:
                    process.join()
            except KeyboardInterrupt:  # again: at once
                for process in processes:
                    process.terminate()


@contextlib.contextmanager
def _signals() -> Iterator[None]:
    """`SIGNALS` interrupt the parent, also one that a shell started in the background."""

    def interrupt(number: int, frame: Any) -> None:
        raise KeyboardInterrupt(STOPPED)

    before = {number: signal.signal(number, interrupt) for number in heard(SIGNALS)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _serve(pipe: Connection, slot: int, jobs: int, devices: int) -> None:
    """The body of a process: it trains the runs that ``pipe`` sends, on GPUs of its own.

    It is a process group of its own, so that Ctrl-C reaches the parent alone.
    """
    os.setpgrp()
    stop_with_parent()
    _own_gpus(slot, devices)
    sys.stderr = _Plain(sys.stderr.buffer, line_buffering=True)  # bars of several processes would write over each other
    machine.runs_at_once = jobs
    while True:
        try:
            planned, cfg = pipe.recv()
            pipe.send(_told(planned, cfg))
        except (EOFError, ConnectionError):  # the parent has no more, or is gone
            return


def _told(planned: PlannedRun, cfg: Compare) -> tuple[Result, str] | BaseException:
    """The result of one run and what it said, or why there is none."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said):
            return run_one(planned, cfg), said.getvalue()
    except N2NError as error:
        return N2NError(str(error))
    except (OSError, KeyboardInterrupt) as error:
        return error
    except BaseException:
        return RuntimeError(f"{planned.folder}:\n{traceback.format_exc()}")


def _own_gpus(slot: int, devices: int) -> None:
    """Leaves this process its ``devices`` of the visible GPUs, unless there are too few for all slots."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible != "":
        ids = visible.split(",") if visible else None
        mine = range(slot * devices, (slot + 1) * devices)
        if ids is None or len(ids) > mine[-1]:
            os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(ids[i] if ids else str(i) for i in mine)


class _Plain(io.TextIOWrapper):
    """A stream that is no terminal: progress comes as lines."""

    def isatty(self) -> bool:
        return False
