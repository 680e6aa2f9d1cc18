"""How a run trains, as one value for `fit`. The students of a study share all but rate and seed."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from n2n_cli.errors import N2NError

PLAIN_STEPS, WARMUP_STEPS = 5, 3
"""Steps before those that ``training.profile`` asks for: without the profiler, then with it, unrecorded."""


def check_batch(batch_size: int, accumulate: int, devices: int) -> None:
    """Whether a batch of ``batch_size`` images divides over ``devices`` ranks, and a rank's part into micro-batches.

    Asked twice with other numbers: of the config, before anything starts, and of the ranks that run, since
    ``torchrun`` may start more of them than the config's ``devices``.

    Raises:
        N2NError: it does not.
    """
    if batch_size % devices:
        raise N2NError(f"training.batch_size: {batch_size} images do not divide over devices={devices}")
    part = batch_size // devices
    if accumulate > part:
        raise N2NError(
            f"training.accumulate: {accumulate} micro-batches are more than the {part} images of a device's batch"
        )
    if devices > 1 and part % accumulate:  # they would hold other images than those of one device
        raise N2NError(
            f"training.accumulate: {accumulate} micro-batches do not divide the {part} images of a device's batch"
        )


def check_shard(devices: int, compiled: bool) -> None:
    """Whether ``launch.shard`` goes with the rest; asked twice, as `check_batch` is. Raises N2NError."""
    if devices == 1:
        raise N2NError("launch.shard: splits a network over devices, and devices=1")
    if compiled:
        raise N2NError("launch.shard: not with training.compile")


@dataclass(frozen=True)
class FitOptions:
    """How to train. Lengths in epochs are of the training set and may be fractions."""

    epochs: float  # 0: evaluate only
    batch_size: int  # images of one optimizer step, over all ranks
    lr: float  # the schedule's highest rate, scaled already
    optimizer: dict[str, Any] = field(default_factory=lambda: {"name": "sgd"})  # see optim.build_optimizer
    # name, warmup_epochs, step_epochs, factor: see optim.lr_at
    schedule: dict[str, Any] = field(default_factory=lambda: {"name": "cosine"})
    label_smoothing: float = 0.0
    mixup_alpha: float = 0.0  # 0: none; else the loader gives ``before``, see `loaders.TrainLoader`
    cutmix_alpha: float = 0.0
    clip_grad_norm: float | None = None  # largest global L2 norm of the gradient
    accumulate: int = 1  # micro-batches a step; batch norm sees one at a time
    ema_decay: float | None = None  # None: no average
    precision: str = "auto"  # auto | fp32 | bf16 | fp16, of training
    channels_last: bool | str = "auto"  # auto | true | false
    compile: bool = False
    sync_bn: bool = True  # batch-norm statistics over all ranks
    compress_gradients: bool = False  # bf16 between the ranks: half the traffic, and rounded
    shard: bool = False  # weights, gradients, optimizer state and average split over the ranks, see `shard`
    eval_batch_size: int = 256  # of the validation loader, which the caller makes; `fit` does not read it
    eval_precision: str = "fp32"  # or bf16
    evals_first_epoch: int = 4  # evaluations within the first epoch, evenly spaced
    eval_every_epochs: float = 1.0
    checkpoint_every_epochs: float = 1.0  # 0: when stopped and at the end only
    checkpoint_every_minutes: float = 15.0  # of wall time, beside those; 0: none
    keep_at: tuple[float, ...] = ()  # shares of the run's steps whose checkpoints stay
    log_every: int = 50  # steps
    profile: int = 0  # steps to be profiled, see profile.StepProfile; 0: none
    seed: int = 0
    aux_weight: float = 0.3  # of each auxiliary loss (GoogLeNet, Inception v3)
    deterministic: bool = False  # bit-identical on CUDA too, slower there; CPU runs are in any case
    frozen: tuple[str, ...] = ()  # parameters that are not trained
    stop_after: int | None = None  # end after this optimizer step of the run, as if stopped by a signal

    def schedule_at(self, steps_per_epoch: int) -> dict[str, Any]:
        """``schedule`` with its epochs turned into steps, for `optim.lr_at`.

        Raises:
            N2NError: an unknown key.
        """
        given = {k: v for k, v in self.schedule.items() if v is not None}
        schedule: dict[str, Any] = {k: given.pop(k) for k in ("name", "factor") if k in given}
        for key in ("warmup", "step"):
            if f"{key}_epochs" in given:
                schedule[f"{key}_steps"] = round(given.pop(f"{key}_epochs") * steps_per_epoch)
        if given:
            raise N2NError(f"optim.schedule.{next(iter(given))}: expected name, warmup_epochs, step_epochs or factor")
        return schedule
