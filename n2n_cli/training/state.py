"""The state of a run, all of which a checkpoint holds, and one optimizer step of it."""

from __future__ import annotations

import contextlib
import math
import random
import time
import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from n2n_cli import records
from n2n_cli.errors import Diverged, N2NError
from n2n_cli.growth.optimizer import Equivariant, Rates
from n2n_cli.training import checkpoint
from n2n_cli.training.ema import EMA
from n2n_cli.training.evaluate import Loader, Normalize, at_least_fp32, evaluate, main_output
from n2n_cli.training.guides import Guide, Guided
from n2n_cli.training.mixing import Mixing
from n2n_cli.training.optim import build_optimizer, load_state, lr_at
from n2n_cli.training.options import FitOptions, check_batch
from n2n_cli.training.precision import autocast_dtype, use_channels_last
from n2n_cli.training.profile import StepProfile
from n2n_cli.training.ranks import Ranks
from n2n_cli.training.schedule import step_seed


class Run:
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
        check_batch(options.batch_size, options.accumulate, ranks.world_size)
        self.folder, self.options, self.ranks = folder, options, ranks
        self.checkpoints = folder / "checkpoints"
        self.steps_per_epoch = steps_per_epoch
        self.total_steps = round(options.epochs * steps_per_epoch)
        self.lineage, self.config, self.mean, self.std = lineage, config, mean, std
        self.schedule = options.schedule_at(steps_per_epoch)
        self.profile = StepProfile(folder, options.profile if ranks.main else 0, ranks.device)
        self.channels_last = use_channels_last(options.channels_last)
        self.mixing = Mixing(options.mixup_alpha, options.cutmix_alpha, options.seed)
        self.normalize = Normalize(mean, std, ranks.device, self.channels_last)
        size = sum(p.numel() for p in model.parameters())
        self.autocast_dtype = autocast_dtype(options.precision, ranks.device, size)

        memory_format = torch.channels_last if self.channels_last else torch.contiguous_format
        self.model = model.to(ranks.device).to(memory_format=memory_format).train()
        for name in options.frozen:
            model.get_parameter(name).requires_grad_(False)
        self._parameters = list(self.model.parameters())  # looking for them in all modules takes a while
        self.optimizer = build_optimizer(model, lr=options.lr, **options.optimizer)
        self.guide = guide
        if guide is not None:
            guide.to(ranks.device, memory_format)
            if len(guide.heads):
                self.optimizer.add_param_group({"params": list(guide.heads.parameters())})
                self._parameters += guide.heads.parameters()
        scaled = self.autocast_dtype == torch.float16
        self.scaler = torch.amp.GradScaler(ranks.device.type, enabled=scaled)
        self.ema = EMA(model, options.ema_decay) if options.ema_decay else None
        self.rates: Rates = {}  # an own rate for each entry, where op.optimizer=equivariant: see growth.optimizer
        self.step, self.time_s, self.lr = 0, 0.0, options.lr
        self.start: dict[str, float] = {}
        self.best: dict[str, float] = {}
        self.last: dict[str, float] = {}
        # Loss and hits of every step since the last row: on the device, then, summed over ranks, on the CPU.
        self.whole = True  # whether no step is half done
        self.saved = 0  # the step of the newest checkpoint
        self._clock = time.monotonic()
        self._pending: list[tuple[Tensor, Tensor]] = []
        self._steps = torch.zeros(0, 2, dtype=torch.float64)
        self._load()
        self.net = self._parallel()

    @property
    def epoch(self) -> float:
        return self.step / self.steps_per_epoch

    @property
    def images(self) -> int:
        return self.step * self.options.batch_size

    def optimizer_step(self, images: Tensor, labels: Tensor) -> None:
        """One update from this rank's part of the global batch: uint8 ``[b, 3, H, W]`` and int64 labels ``[b]``, or
        ``b + 1`` of each where images are mixed.

        Raises:
            Diverged: the loss or the gradient of any rank is not finite; nothing is updated.
        """
        options, device = self.options, self.ranks.device
        self.whole = False
        _seed(step_seed(options.seed, self.step, self.ranks.rank), device)
        self.lr = self._lr(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr
        with self.profile.phase("transfer"):
            images = images.to(device, non_blocking=True)
            labels = labels.to(device, non_blocking=True)
        total = torch.zeros((), device=device)
        hits = torch.zeros((), dtype=torch.int64, device=device)
        share, others = 1.0, labels
        if self.mixing:
            mixed, share = self.mixing(self.normalize(images), self.step)
            labels, others = labels[1:], labels[:-1]
        for i in range(options.accumulate):
            # Every accumulate-th image: a micro-batch then holds the same images for any number of ranks.
            some = slice(i, None, options.accumulate)
            y, other = labels[some], others[some]
            last = i == options.accumulate - 1
            wait = isinstance(self.net, DistributedDataParallel) and not last
            with self.net.no_sync() if wait else contextlib.nullcontext():  # type: ignore[operator]
                with self.profile.phase("forward"):
                    x = mixed[some] if self.mixing else self.normalize(images[some])
                    logits, loss = self._forward(x, y, other, share)
                    loss = loss * (len(y) / len(labels))
                with self.profile.phase("backward"):
                    self.scaler.scale(loss).backward()
            total += loss.detach()
            hits += (logits.detach().argmax(1) == (y if share >= 0.5 else other)).sum()
        with self.profile.phase("optimizer"):
            self._update(total)
        self._pending.append((total, hits))
        self.whole = True

    def _forward(self, images: Tensor, labels: Tensor, others: Tensor, share: float) -> tuple[Tensor, Tensor]:
        """Logits and the loss of a micro-batch, which is its mean over the images; of the labels, ``share`` is
        ``labels``, the rest ``others``."""
        half = self.autocast_dtype
        autocast = partial(torch.autocast, images.device.type, half, enabled=half is not None)
        with autocast():
            out = self.net(images)
        out, read = out if self.guide is not None else (out, [])
        logits, auxiliary = main_output(out)
        loss = self._loss(logits, labels, others, share)
        if self.guide is not None:
            with autocast():
                loss = self.guide.loss(loss, images, logits, read)
        for head in auxiliary:
            loss = loss + self.options.aux_weight * self._loss(head, labels, others, share)
        return logits, loss

    def _update(self, loss: Tensor) -> None:
        """Checked and clipped gradients -> weights -> their average. Raises Diverged."""
        options = self.options
        if options.clip_grad_norm:
            self.scaler.unscale_(self.optimizer)
        fp16 = self.autocast_dtype == torch.float16
        norm = torch.zeros_like(loss)
        if options.clip_grad_norm or not fp16:
            gradients = [p.grad for p in self._parameters if p.grad is not None]
            norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
        self._check_finite(loss, norm, fp16)
        if options.clip_grad_norm:
            torch.nn.utils.clip_grads_with_norm_(self._parameters, options.clip_grad_norm, norm, foreach=True)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        for p in self._parameters:  # the optimizer's own zero_grad takes longer
            p.grad = None
        self.step += 1
        if self.ema is not None:
            self.ema.update(self.step)

    def _loss(self, logits: Tensor, labels: Tensor, others: Tensor, share: float) -> Tensor:
        """Cross entropy against labels of which ``share`` is the image's own."""
        smoothing = self.options.label_smoothing
        logits = at_least_fp32(logits)
        loss = F.cross_entropy(logits, labels, label_smoothing=smoothing)
        if share == 1:
            return loss
        return share * loss + (1 - share) * F.cross_entropy(logits, others, label_smoothing=smoothing)

    def _lr(self, step: int) -> float:
        return lr_at(step, base_lr=self.options.lr, total_steps=self.total_steps, **self.schedule)

    def _check_finite(self, loss: Tensor, norm: Tensor, fp16: bool) -> None:
        """Raises Diverged where the loss or the gradient is not finite.

        The gradient of a loss that is not finite mostly is not either, and all ranks have the same one: no need to ask
        them. In fp16 it may overflow for another reason, and the scaler leaves such a step out.
        """
        if (self.ranks.any(not loss.isfinite())[0]) if fp16 else not math.isfinite(norm + loss):
            what = "gradient" if loss.isfinite() else "training loss"
            value = loss.item() if what == "training loss" else norm.item()
            raise Diverged(
                f"{self.folder}: the {what} of step {self.step + 1} is {value} (lr {self.lr:.4g}); try a smaller "
                "optim.lr, warm-up or training.clip_grad_norm"
            )

    def flush(self) -> None:
        """Bring the losses of the steps since the last call to the CPU, summed over ranks."""
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
        measured = evaluate(
            network,
            val,
            device=self.ranks.device,
            mean=self.mean,
            std=self.std,
            ranks=self.ranks,
            channels_last=self.channels_last,
        )
        if not math.isfinite(measured["val/loss"]):
            raise Diverged(
                f"{self.folder}: the validation loss of step {self.step} is {measured['val/loss']} (lr {self.lr:.4g}); "
                "the last checkpoint stays"
            )
        self.last = {"step": self.step, **measured}
        self.start = self.start or self.last
        if not self.best or measured["val/top1"] > self.best["val/top1"]:
            if self.ranks.main:
                checkpoint.save_best(self.checkpoints, self._weights())
            self.best = self.last
        return measured

    def save(self) -> None:
        """Write the checkpoint of this step."""
        self.flush()
        if self.ranks.main:
            state = self._weights() | {
                "optimizer": self.optimizer.state_dict(),
                "scaler": self.scaler.state_dict(),
                "rates": self.rates,
                "heads": self.guide.heads.state_dict() if self.guide is not None else {},
                "ema_age": self.ema.age if self.ema is not None else 0,
                "start": self.start,
                "best": self.best,
                "last": self.last,
                "steps_since_row": self._steps,
                "time_s": self.time_s,
            }
            self._keep(checkpoint.save(self.checkpoints, state, step=self.step))
        self.saved, self._clock = self.step, time.monotonic()

    @property
    def kept(self) -> dict[int, float]:
        """The steps whose checkpoints stay, and which share of the run each is."""
        return {round(at * self.total_steps): at for at in self.options.keep_at}

    def _keep(self, path: Path) -> None:
        if self.step in self.kept:
            checkpoint.keep_at(self.checkpoints, self.kept[self.step], path)

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
        return {
            "format": checkpoint.FORMAT,
            "lineage": self.lineage,
            "config": self.config,
            "model": self.model.state_dict(),
            "ema": self.ema.state_dict() if self.ema is not None else None,
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
            self.model.load_state_dict(state["model"])
            if self.ema is not None:
                self.ema.load_state_dict(checkpoint.weights(state))
                self.ema.age = state.get("ema_age") or 0
            if state.get("optimizer"):
                load_state(self.optimizer, state["optimizer"])
            if self.guide is not None and state.get("heads"):
                self.guide.heads.load_state_dict(state["heads"])
            self.rates = state.get("rates") or {}
            if self.rates:
                Equivariant(self.optimizer, self.model.named_parameters(), self.rates)
            if state.get("scaler"):
                self.scaler.load_state_dict(state["scaler"])
            self._steps = state.get("steps_since_row", self._steps).double().reshape(-1, 2)
        except (N2NError, RuntimeError, ValueError) as error:
            reason = " ".join(str(error).split())[:200]
            raise checkpoint.CheckpointError(f"{path} holds another network or optimizer: {reason}") from error
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

    def _parallel(self) -> nn.Module:
        """The network as training calls it: compiled if asked, its gradients averaged over ranks."""
        net: Any = self.model if self.guide is None else Guided(self.model, self.guide)
        net = torch.compile(net) if self.options.compile else net
        if self.ranks.world_size == 1:
            return net
        # find_unused_parameters keeps the gradient buckets as they are built. Otherwise DDP lays them out
        # anew after its first step, and a resumed run would add up three or more ranks in another order. It
        # also lets a network have parameters that a step does not use. Buffers: synchronised batch norm keeps
        # them equal, and evaluation takes rank 0's.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # torch 2.14 renames broadcast_buffers
            return DistributedDataParallel(
                net,
                device_ids=[self.ranks.device.index] if self.ranks.device.type == "cuda" else None,
                broadcast_buffers=False,
                find_unused_parameters=True,
                gradient_as_bucket_view=True,
            )


def _seed(seed: int, device: torch.device) -> None:
    """Seeds what a step draws from: Python's generator, and torch's of the CPU and of the GPUs if it computes there.

    `torch.manual_seed` asks for accelerators of every kind: 0.15 ms and more, which is felt by small networks.
    """
    random.seed(seed)
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed_all(seed)
