"""The state of a run, all of which a checkpoint holds: what learns, and what is known of it so far."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from n2n_cli import records
from n2n_cli.errors import Diverged, N2NError
from n2n_cli.growth.optimizer import Equivariant, Rates
from n2n_cli.training import checkpoint
from n2n_cli.training.evaluate import Loader, evaluate
from n2n_cli.training.guides import Guide
from n2n_cli.training.optim import load_state
from n2n_cli.training.options import FitOptions
from n2n_cli.training.ranks import Ranks
from n2n_cli.training.shard import gathered, scattered
from n2n_cli.training.step import Learner


class Run(Learner):
    """The state of one run on one rank, taken from the newest checkpoint in ``folder/checkpoints``.

    ``step`` is the number of optimizer steps done, ``images`` the global images seen, ``time_s`` the training
    time over all resumes.

    Raises:
        N2NError: no good checkpoint there, or it holds another network than ``model``.
    """

    def __init__(
        self,
        folder: Path,
        model: nn.Module,
        options: FitOptions,
        *,
        ranks: Ranks,
        steps_per_epoch: int,
        lineage: dict[str, Any],
        config: str,
        mean: Sequence[float],
        std: Sequence[float],
        guide: Guide | None = None,
    ) -> None:
        super().__init__(
            folder, model, options, ranks=ranks, steps_per_epoch=steps_per_epoch, mean=mean, std=std, guide=guide
        )
        self.checkpoints = folder / "checkpoints"
        self.lineage, self.config, self.mean, self.std = lineage, config, mean, std
        self.rates: Rates = {}  # an own rate for each entry, where op.optimizer=equivariant: see growth.optimizer
        self.time_s = 0.0
        self.start: dict[str, float] = {}
        self.best: dict[str, float] = {}
        self.last: dict[str, float] = {}
        self.saved = 0  # the step of the newest checkpoint
        self._clock = time.monotonic()
        # Loss and hits of every step since the last row, summed over ranks, on the CPU.
        self._steps = torch.zeros(0, 2, dtype=torch.float64)
        self._load()
        self.net = self.parallel()

    @property
    def epoch(self) -> float:
        return self.step / self.steps_per_epoch

    @property
    def images(self) -> int:
        return self.step * self.options.batch_size

    def flush(self) -> None:
        """Bring the losses of the steps since the last call to the CPU, summed over ranks.

        Raises:
            Diverged: one of them, or a gradient, was not finite: what follows is neither measured nor saved.
        """
        self.settle()
        if not self._pending:
            return
        losses = torch.stack([loss.double() for loss, _ in self._pending]) / self.ranks.world_size
        hits = torch.stack([hit for _, hit in self._pending]).double()
        values = self.ranks.sum(torch.stack([losses, hits], 1)).cpu()
        self._pending = []
        self._steps = torch.cat([self._steps, values])

    @property
    def pending(self) -> bool:
        """Whether `flush` has something to do, which takes all ranks."""
        return bool(self._pending)

    @property
    def unlogged(self) -> bool:
        """Whether there were steps since `forget_means`."""
        return bool(self._pending) or len(self._steps) > 0

    def forget_means(self) -> None:
        """The steps so far are logged."""
        self._steps = self._steps[:0]

    def training_means(self) -> dict[str, float]:
        """``train/loss`` and ``train/top1`` over the steps since `forget_means`; ``lr`` of the last one."""
        self.flush()
        loss, hits = self._steps.sum(0).tolist()
        n = len(self._steps)
        return {
            "train/loss": loss / n,
            "train/top1": hits / (n * self.options.batch_size),
            "lr": self.lr,
        }

    def evaluate(self, val: Loader) -> dict[str, float]:
        """Evaluate (the average, when there is one), and keep the checkpoint if it is the best so far.

        Raises:
            Diverged: an output is not finite: such a network is never the best.
        """
        self.flush()
        network = self.ema.module if self.ema is not None else self.model
        self.ranks.broadcast_buffers(network)
        with self.unsharded(network) as whole:
            measured = evaluate(
                whole,
                val,
                device=self.ranks.device,
                mean=self.mean,
                std=self.std,
                ranks=self.ranks,
                channels_last=self.channels_last,
                precision=self.options.eval_precision,
            )
        if not math.isfinite(measured["val/loss"]):
            raise Diverged(
                f"{self.folder}: the validation loss of step {self.step} is {measured['val/loss']} (lr {self.lr:.4g}); "
                "the last checkpoint stays"
            )
        self.last = {"step": self.step, **measured}
        self.start = self.start or self.last
        if not self.best or measured["val/top1"] > self.best["val/top1"]:
            state = self._weights()
            if self.ranks.main:
                checkpoint.save_best(self.checkpoints, state)
            self.best = self.last
        return measured

    def save(self) -> None:
        """Write the checkpoint of this step."""
        self.flush()
        state = self._weights() | {
            "optimizer": gathered(self.optimizer.state_dict(), self.ranks.main),
            "scaler": self.scaler.state_dict(),
            "rates": self.rates,
            "heads": gathered(self.guide.heads.state_dict(), self.ranks.main) if self.guide is not None else {},
            "ema_age": self.ema.age if self.ema is not None else 0,
            "start": self.start,
            "best": self.best,
            "last": self.last,
            "steps_since_row": self._steps,
            "time_s": self.time_s,
        }
        if self.ranks.main:
            self._keep(checkpoint.save(self.checkpoints, state, step=self.step))
        self.saved, self._clock = self.step, time.monotonic()

    @property
    def kept(self) -> dict[int, list[float]]:
        """The steps whose checkpoints stay, and which shares of the run each is: in a short run, close ones meet."""
        steps: dict[int, list[float]] = {}
        for at in self.options.keep_at:
            steps.setdefault(round(at * self.total_steps), []).append(at)
        return steps

    def _keep(self, path: Path) -> None:
        for at in self.kept.get(self.step, []):
            checkpoint.keep_at(self.checkpoints, at, path)

    @property
    def due(self) -> bool:
        """Whether it is ``checkpoint_every_minutes`` since the last checkpoint, by the clock of rank 0."""
        minutes = self.options.checkpoint_every_minutes
        return bool(minutes) and self.ranks.main and time.monotonic() - self._clock > 60 * minutes

    def summary(self) -> dict[str, Any]:
        """The content of done.json."""
        return {
            "step": self.step,
            "images": self.images,
            "epochs": self.epoch,
            "time_s": round(self.time_s, 3),
            "start": self.start,
            "best": self.best,
            "final": self.last,
        }

    def finish(self, more: Mapping[str, Any]) -> dict[str, Any]:
        """Write done.json, with what else was measured: the run is complete."""
        summary = {**self.summary(), **more}
        if self.ranks.main:
            records.write(self.folder / "done.json", summary)
        return summary

    def _weights(self) -> dict[str, Any]:
        """All ranks must ask for them, and the main one has them."""
        return {
            "format": checkpoint.FORMAT,
            "lineage": self.lineage,
            "config": self.config,
            "model": gathered(self.model.state_dict(), self.ranks.main),
            "ema": gathered(self.ema.state_dict(), self.ranks.main) if self.ema is not None else None,
            "step": self.step,
            "epoch": self.epoch,
            "images": self.images,
        }

    def _load(self) -> None:
        newest, damaged = checkpoint.newest(self.checkpoints) if self.ranks.main else (None, [])
        checkpoint.warn(damaged)
        path = self.ranks.broadcast(str(newest) if newest else None)
        if path is None:
            raise checkpoint.CheckpointError(f"no good checkpoint in {self.checkpoints} to start from")
        state = checkpoint.load(Path(path), ["step"])
        try:
            self.model.load_state_dict(scattered(state["model"], self.model.state_dict()))
            if self.ema is not None:
                self.ema.load_state_dict(scattered(checkpoint.weights(state), self.ema.state_dict()))
                self.ema.age = state.get("ema_age") or 0
            if state.get("optimizer"):
                load_state(self.optimizer, state["optimizer"])
            if self.guide is not None and state.get("heads"):
                self.guide.heads.load_state_dict(scattered(state["heads"], self.guide.heads.state_dict()))
            self.rates = state.get("rates") or {}
            if self.rates and not self.options.shard:
                Equivariant(self.optimizer, self.model.named_parameters(), self.rates)
            if state.get("scaler"):
                self.scaler.load_state_dict(state["scaler"])
            self._steps = state.get("steps_since_row", self._steps).double().reshape(-1, 2)
        except (N2NError, RuntimeError, ValueError) as error:
            reason = " ".join(str(error).split())[:200]
            raise checkpoint.CheckpointError(f"{path} holds another network or optimizer: {reason}") from error
        if self.rates and self.options.shard:
            raise N2NError("launch.shard: not with op.optimizer=equivariant; this run goes on without it")
        if self.rates and self.options.clip_grad_norm:
            raise N2NError("training.clip_grad_norm: the norm counts copies, so op.optimizer=equivariant has none")
        self.step = self.saved = state["step"]
        if self.ranks.main:
            self._keep(Path(path))  # it may have been killed in between
        if self.step:
            self.lr = self._lr(self.step - 1)
        if not 0 <= self.step <= self.total_steps:
            raise checkpoint.CheckpointError(
                f"{path} is at step {self.step}, beyond the {self.total_steps} steps of this run"
            )
        self.time_s = float(state.get("time_s") or 0.0)
        self.start, self.best, self.last = (dict(state.get(k) or {}) for k in ("start", "best", "last"))
