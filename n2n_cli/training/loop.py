"""The training loop. Every run, grown, random or resumed, goes on from the newest checkpoint in its folder."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from n2n_cli import records
from n2n_cli.errors import Diverged, Everywhere, N2NError
from n2n_cli.training import checkpoint
from n2n_cli.training.evaluate import Loader
from n2n_cli.training.guides import Guide
from n2n_cli.training.launch import heard
from n2n_cli.training.options import FitOptions
from n2n_cli.training.ranks import Ranks
from n2n_cli.training.runlog import RunLog
from n2n_cli.training.schedule import evaluation_steps, multiples
from n2n_cli.training.state import Run
from n2n_cli.training.sync_bn import synchronised

__all__ = ["FitOptions", "fit"]

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
"""Ctrl-C, the end of a job, of a terminal, and SLURM's warning of the end: the run saves and stops."""
ECHO_S = 0.5
"""Seconds within which a signal is the first one again: a parent that is killed sends one for each of its threads."""
WAIT_SHARE = 0.1
"""Share of the time spent waiting for images from which on people are told."""
Batch = tuple[Tensor, Tensor]


def fit(
    folder: Path,
    model: nn.Module,
    train: Loader,
    val: Loader,
    options: FitOptions,
    *,
    ranks: Ranks,
    lineage: dict[str, Any],
    config: str,
    mean: Sequence[float],
    std: Sequence[float],
    progress: bool | None = None,
    at_end: Callable[[nn.Module], dict[str, Any]] | None = None,
    guide: Guide | None = None,
    hparams: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Train ``model`` in the run folder ``folder`` from its newest checkpoint to the end.

    Weights, optimizer and step come from ``folder/checkpoints`` (the checkpoint of step 0 need hold no optimizer),
    so a run that was stopped after any step goes on bit-identically. Writes metrics.jsonl, TensorBoard events,
    checkpoints and, at the end, done.json; a run that is done returns at once.

    Args:
        model: the checkpoint's network (``lineage.build``); its weights are overwritten.
        train, val: this rank's loaders of uint8 images.
        options: how to train.
        ranks: the processes of this run.
        lineage, config: plain data and YAML text, written into every checkpoint.
        mean, std: of images in [0, 1], by channel.
        progress: True a bar, False nothing, None a bar on a terminal and plain lines elsewhere.
        at_end: what to measure on the trained network, for done.json and metrics.jsonl.
        guide: what the network learns from beside the labels.
        hparams: plain values for TensorBoard's HParams page, which needs the same keys in every run.

    Returns:
        What done.json says: ``step``, ``images``, ``epochs``, ``time_s`` and the ``start``, ``best`` and
        ``final`` evaluations; with ``"stopped": True`` when ``options.stop_after`` ended it early.

    Raises:
        N2NError: no good checkpoint, one of another network, a full disk, an image that cannot be read (then the steps
            before it are saved).
        Diverged: a loss, gradient or output that is not finite, before anything of it is measured or saved; the last
            checkpoint stays.
        KeyboardInterrupt: a signal of `SIGNALS`, once all ranks are at the same step and it is saved.
    """
    folder, steps_per_epoch = Path(folder), train.steps_per_epoch
    done = ranks.broadcast(_done(folder, round(options.epochs * steps_per_epoch)))
    if done is not None:
        return done
    with contextlib.ExitStack() as stack:
        if ranks.main:
            stack.enter_context(checkpoint.exclusive(folder))
            checkpoint.clean(folder)
            checkpoint.clean(folder / "checkpoints")
        stack.enter_context(_backends(options.deterministic, ranks.device))
        run = Run(
            folder,
            model,
            options,
            ranks=ranks,
            steps_per_epoch=steps_per_epoch,
            lineage=lineage,
            config=config,
            mean=mean,
            std=std,
            guide=guide,
        )
        log = RunLog(
            folder,
            start_step=run.step,
            total_steps=run.total_steps,
            progress=progress,
            main=ranks.main,
            hparams=hparams,
        )
        stack.callback(log.close)
        stack.callback(run.profile.close)
        signals = stack.enter_context(_signals())
        synced = options.sync_bn and ranks.world_size > 1  # `at_end` may record the network, as PyTorch computes it
        with _saving(run, log), synchronised(model) if synced else contextlib.nullcontext():
            summary = _train(run, train, val, log, signals)
        if "stopped" not in summary:
            with run.unsharded(run.model) as whole:
                more = at_end(whole) if at_end and ranks.main else {}
            if more:
                log.row(run.step, epoch=run.epoch, images=run.images, time_s=run.time_s, **more)
            summary = run.finish(more)
        if signals:  # too late for this run, but not for what would come after it
            raise KeyboardInterrupt(f"{folder} had come to its end")
        return summary


def _train(run: Run, train: Loader, val: Loader, log: RunLog, signals: list[int]) -> dict[str, Any]:
    options, ranks, total = run.options, run.ranks, run.total_steps
    evaluations = evaluation_steps(
        total,
        run.steps_per_epoch,
        evals_first_epoch=options.evals_first_epoch,
        eval_every_epochs=options.eval_every_epochs,
    )
    saves = multiples(options.checkpoint_every_epochs, run.steps_per_epoch, total) | {total, *run.kept}
    clock = time.perf_counter() - run.time_s  # goes on where the stopped run was
    pace = _Pace(options.batch_size, run.step)

    def measure() -> bool:
        """The row of this step, if one is due; whether it was. An error in here leaves it due."""
        step, row = run.step, {}
        if run.unlogged and (step % options.log_every == 0 or step == total):
            with run.profile.phase("logging"):
                row = run.training_means()  # waits for the device, so the time below is true
                row |= pace.row(step)
            if ranks.main:
                pace.warn(folder=run.folder, remedy=getattr(train, "remedy", ""))
        if step in evaluations and run.last.get("step") != step:
            with run.profile.phase("evaluation"):
                row |= run.evaluate(val)
        run.time_s = time.perf_counter() - clock
        if "train/loss" in row:
            run.forget_means()
        if row:
            with run.profile.phase("logging"):
                log.row(step, epoch=run.epoch, images=run.images, time_s=run.time_s, **row)
        return bool(row)

    before_s = run.time_s
    if not measure():  # of step 0; of a resumed run, what an error kept it from
        run.time_s = before_s
    elif run.step:
        log.sync()
        run.save()
    pace.restart(run.step)
    while run.step < total and run.step != options.stop_after:
        epoch, within = divmod(run.step, run.steps_per_epoch)
        epoch_end = min(total, (epoch + 1) * run.steps_per_epoch)
        for batch in _with_errors(pace.waiting(train.batches(epoch, start_step=within), run)):
            failed, interrupted, due = ranks.any(isinstance(batch, Exception), bool(signals), run.due)
            if failed:
                told = ranks.first(_line(batch))
                raise Everywhere(told) if not isinstance(batch, Exception) or isinstance(batch, N2NError) else batch
            if interrupted or due:
                _save(run, log)
                pace.restart(run.step)
            if interrupted:
                raise KeyboardInterrupt(f"stopped after step {run.step} and saved; the same command goes on from there")
            run.optimizer_step(*batch)  # type: ignore[misc]
            step = run.step
            log.advance(step)
            measured = measure()
            stopping = step == options.stop_after
            if step in saves or stopping:
                _save(run, log)
            if measured or step in saves:
                pace.restart(step)
            run.profile.step()
            if stopping or step == epoch_end:
                break
        else:
            raise N2NError(f"the training data ended at step {run.step}, short of {run.steps_per_epoch} steps an epoch")
    if run.step < total:
        return run.summary() | {"stopped": True}
    return run.summary()


class _Pace:
    """Throughput since the last restart, and the share of that time in which the loop waited for images. Evaluation and
    saving do not count."""

    def __init__(self, batch_size: int, step: int) -> None:
        self._batch_size, self._shares = batch_size, list[float]()
        self.restart(step)

    def restart(self, step: int) -> None:
        self._since, self._step, self._waited = time.perf_counter(), step, 0.0

    def waiting(self, batches: Iterator[Batch], run: Run) -> Iterator[Batch]:
        """The batches, the time until each of them counted."""
        while True:
            began = time.perf_counter()
            with run.profile.phase("data wait"):
                batch = next(batches, None)
            self._waited += time.perf_counter() - began
            if batch is None:
                return
            yield batch

    def row(self, step: int) -> dict[str, float]:
        if step == self._step:
            return {}
        seconds = time.perf_counter() - self._since
        self._shares.append(min(1.0, self._waited / seconds))
        images = (step - self._step) * self._batch_size
        return {"perf/images_per_s": images / seconds, "perf/data_wait": self._shares[-1]}

    def warn(self, folder: Path, remedy: str) -> None:
        """Says once, if so, that images are what is waited for. The first row is left out: it has the start in it."""
        if remedy and len(self._shares) == 3 and (share := sum(self._shares[1:]) / 2) > WAIT_SHARE:
            print(
                f"n2n: warning: {folder}: {100 * share:.0f} % of the time is spent waiting for images; {remedy}",
                file=sys.stderr,
                flush=True,
            )


def _save(run: Run, log: RunLog) -> None:
    """The checkpoint of this step, if it has none, once the rows that it counts on are on disk."""
    if run.saved != run.step:
        with run.profile.phase("checkpoint"):
            log.sync()
            run.save()


@contextlib.contextmanager
def _saving(run: Run, log: RunLog) -> Iterator[None]:
    """Where an error comes between two steps, the steps done are saved before it goes on its way."""
    try:
        yield
    except Exception as error:
        if run.saved == run.step or not _can_save(run, error):
            raise
        saved = True
        try:
            _save(run, log)
        except Exception:  # the error that counts is the first
            saved = False
        if isinstance(error, Everywhere):
            saved = not run.ranks.any(not saved)[0]
        if not saved or not isinstance(error, N2NError):
            raise
        raise N2NError(f"{error}; saved after step {run.step}, the same command goes on from there") from error


def _can_save(run: Run, error: Exception) -> bool:
    """Whether after this error there is still the state of a whole step, and a way to write it."""
    if isinstance(error, Diverged) or not run.whole:
        return False
    if isinstance(error, Everywhere):  # every rank has heard of it, and comes here
        return True
    if run.options.shard:  # the whole state takes all ranks
        return False
    # Of any other error a rank may be gone, and what is pending would wait for it.
    return run.ranks.world_size == 1 or isinstance(error, N2NError) or not run.pending


def _with_errors(batches: Iterator[Batch]) -> Iterator[Batch | Exception]:
    """The batches, and in the place of one that cannot be had its error: all ranks must hear of it."""
    try:
        yield from batches
    except Exception as error:
        yield error


def _line(error: Batch | Exception) -> str:
    if not isinstance(error, Exception):
        return ""
    text = " ".join(str(error).split())
    return text if isinstance(error, N2NError) else f"{type(error).__name__}: {text}"


def _done(folder: Path, total_steps: int) -> dict[str, Any] | None:
    """What done.json says if it speaks of a run of ``total_steps``."""
    try:
        done = records.read(folder / "done.json", records.DONE)
    except FileNotFoundError:
        return None
    return done if done.get("step") == total_steps else None


@contextlib.contextmanager
def _backends(deterministic: bool, device: torch.device) -> Iterator[None]:
    """cuDNN picks its fastest algorithms, or all algorithms are deterministic; put back at the end."""
    if device.type != "cuda" and not deterministic:
        yield
        return
    benchmark, before = torch.backends.cudnn.benchmark, torch.are_deterministic_algorithms_enabled()
    torch.backends.cudnn.benchmark = not deterministic
    torch.use_deterministic_algorithms(deterministic or before)
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = benchmark
        torch.use_deterministic_algorithms(before)


@contextlib.contextmanager
def _signals() -> Iterator[list[int]]:
    """`SIGNALS` received so far: the loop stops after its step; a second one interrupts at once."""
    received: list[int] = []
    first: list[float] = []
    owner = os.getpid()

    def handler(number: int, frame: object) -> None:
        if os.getpid() != owner:  # a forked data worker: its parent ends it by SIGTERM, Ctrl-C is not its business
            if number == signal.SIGTERM:
                os._exit(143)
            return
        if not received:
            first.append(time.monotonic())
        elif time.monotonic() - first[0] > ECHO_S:
            raise KeyboardInterrupt
        received.append(number)

    if threading.current_thread() is not threading.main_thread():
        yield received  # only the main thread may set handlers
        return
    before = {s: signal.signal(s, handler) for s in heard(SIGNALS)}
    try:
        yield received
    finally:
        for number, old in before.items():
            signal.signal(number, old)
