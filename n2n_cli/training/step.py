"""One optimizer step of a network, and what it takes: optimizer, schedule, number format, average, ranks."""

from __future__ import annotations

import contextlib
import copy
import math
import random
import warnings
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from n2n_cli.errors import Diverged, N2NError
from n2n_cli.training.ema import EMA
from n2n_cli.training.evaluate import Normalize, at_least_fp32, main_output
from n2n_cli.training.guides import Guide, Guided
from n2n_cli.training.mixing import Mixing
from n2n_cli.training.optim import build_optimizer, lr_at, parameter_groups
from n2n_cli.training.options import FitOptions, check_batch, check_shard
from n2n_cli.training.precision import autocast_dtype, use_channels_last
from n2n_cli.training.profile import StepProfile
from n2n_cli.training.ranks import Ranks
from n2n_cli.training.schedule import step_seed
from n2n_cli.training.shard import gathered, local, shard

LEAST_SCALE = 2.0**-10
"""Of fp16's loss: it begins at 2**16 and is halved where the gradient overflows; below, no step will be taken again."""


class Learner:
    """A network on one rank, and `optimizer_step`, which trains it.

    ``step`` is the number of optimizer steps done, ``lr`` the rate of the last one; ``whole``: no step is half done.
    ``net`` is the network as training calls it, `parallel` of ``model``.
    """

    def __init__(
        self,
        folder: Path,
        model: nn.Module,
        options: FitOptions,
        *,
        ranks: Ranks,
        steps_per_epoch: int,
        mean: Sequence[float],
        std: Sequence[float],
        guide: Guide | None = None,
    ) -> None:
        check_batch(options.batch_size, options.accumulate, ranks.world_size)
        if options.shard:
            check_shard(ranks.world_size, options.compile)
        self.folder, self.options, self.ranks = folder, options, ranks
        self.steps_per_epoch = steps_per_epoch
        self.total_steps = round(options.epochs * steps_per_epoch)
        self.schedule = options.schedule_at(steps_per_epoch)
        self.profile = StepProfile(folder, options.profile if ranks.main else 0, ranks.device)
        self.channels_last = use_channels_last(options.channels_last)
        self.mixing = Mixing(options.mixup_alpha, options.cutmix_alpha, options.seed)
        self.normalize = Normalize(mean, std, ranks.device, self.channels_last)
        size = sum(p.numel() for p in model.parameters())
        self.autocast_dtype = autocast_dtype(options.precision, ranks.device, size)

        memory_format = torch.channels_last if self.channels_last else torch.contiguous_format
        place = "cpu" if options.shard else ranks.device  # from there, every rank takes its part
        self.model = model.to(place).to(memory_format=memory_format).train()
        for name in options.frozen:
            model.get_parameter(name).requires_grad_(False)
        self.guide = guide
        if guide is not None:
            guide.to(ranks.device, memory_format)
        self.ema = EMA(model, options.ema_decay) if options.ema_decay else None
        self._unsharded = copy.deepcopy(model).eval() if options.shard else None
        if options.shard:
            for net in (model, *([self.ema.module] if self.ema else []), *(guide.heads if guide is not None else [])):
                shard(net, ranks, options.compress_gradients)
            if self.ema is not None:
                self.ema.follow(model)
        self._parameters = list(self.model.parameters())  # looking for them in all modules takes a while
        self.optimizer = build_optimizer(model, lr=options.lr, **options.optimizer)
        if guide is not None and len(guide.heads):
            for head in guide.heads:  # one by one: the order of the parameters in checkpoints
                for group in parameter_groups(head, options.optimizer.get("weight_decay", 0.0)):
                    self.optimizer.add_param_group(group)
            self._parameters += guide.heads.parameters()
        scaled = self.autocast_dtype == torch.float16
        self.scaler = torch.amp.GradScaler(ranks.device.type, enabled=scaled)
        self.step, self.lr, self.whole = 0, options.lr, True
        self._pending: list[tuple[Tensor, Tensor]] = []  # loss and hits of steps, on the device
        self._late = ranks.device.type == "cuda"
        self._unread: tuple[int, float, Tensor, torch.cuda.Event | None] | None = None  # see `_check`
        self.net: nn.Module = model

    def optimizer_step(self, images: Tensor, labels: Tensor) -> None:
        """One update from this rank's part of the global batch: uint8 ``[b, 3, H, W]`` and int64 labels ``[b]``, or
        ``b + 1`` of each where images are mixed.

        Raises:
            Diverged: the loss or the gradient of any rank is not finite, and nothing is updated; on a GPU it may be
                that of the step before, see `settle`.
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
        try:
            with autocast():
                out = self.net(images)
        except RuntimeError as error:
            if not (self.options.shard and "DTensor" in str(error)):
                raise
            kind = type(self._unsharded).__name__
            raise N2NError(f"launch.shard: {kind} reads weights of a layer that it does not call: {error}") from error
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
            if options.shard:
                gradients = [local(gradient) for gradient in gradients]
            norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
            if options.shard:
                norm = self.ranks.sum(norm.square()).sqrt()
        self._check(loss, norm, fp16)
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

    def _check(self, loss: Tensor, norm: Tensor, fp16: bool) -> None:
        """Raises Diverged where the loss or the gradient is not finite: on a CPU before the update; on a GPU one step
        later, or at `settle`, because a step that waited for its GPU would leave it without work.

        The gradient of a loss that is not finite mostly is not either, and all ranks have the same one: no need to ask
        them. In fp16 it may overflow for another reason, and the scaler, which waits anyway, leaves such a step out: it
        is one that is not finite where no smaller scale helps.
        """
        self.settle()
        if fp16:
            infinite, lost = self.ranks.any(not loss.isfinite(), self.scaler.get_scale() < LEAST_SCALE)
            if infinite or lost:  # of this rank's loss, of another's, or at every scale
                raise self._diverged(self.step + 1, self.lr, loss.item(), math.inf)
            return
        seen = torch.stack([loss, norm]).to("cpu", non_blocking=True)
        copied = torch.cuda.Event() if seen.is_pinned() else None
        if copied is not None:
            copied.record()
        self._unread = self.step + 1, self.lr, seen, copied
        if not self._late:
            self.settle()

    def settle(self) -> None:
        """Read the loss and the gradient's norm of the last step, if nobody has yet. Raises Diverged."""
        if self._unread is None:
            return
        (step, lr, seen, copied), self._unread = self._unread, None
        if copied is not None:
            copied.synchronize()
        loss, norm = seen.tolist()
        if not math.isfinite(loss + norm):
            raise self._diverged(step, lr, loss, norm)

    def _diverged(self, step: int, lr: float, loss: float, norm: float) -> Diverged:
        what, value = ("gradient", norm) if math.isfinite(loss) else ("training loss", loss)
        return Diverged(
            f"{self.folder}: the {what} of step {step} is {value} (lr {lr:.4g}); try a smaller optim.lr, warm-up or "
            "training.clip_grad_norm"
        )

    @contextlib.contextmanager
    def unsharded(self, model: nn.Module) -> Iterator[nn.Module]:
        """``model``, the run's network or its average, to be called in eval mode by any rank as often as it likes.

        Where they are sharded, this is a copy that lies on the CPU otherwise; all ranks must ask for it.
        """
        if self._unsharded is None:
            yield model
            return
        with torch.no_grad():
            for kept in ("parameters", "buffers"):
                pairs = zip(getattr(self._unsharded, kept)(), getattr(model, kept)(), strict=True)
                for ours, theirs in pairs:
                    ours.copy_(gathered(theirs))
        try:
            yield self._unsharded.to(self.ranks.device)
        finally:
            self._unsharded.cpu()

    def parallel(self) -> nn.Module:
        """The network as training calls it: compiled if asked, its gradients averaged over ranks."""
        net: Any = self.model if self.guide is None else Guided(self.model, self.guide)
        net = torch.compile(net) if self.options.compile else net
        if self.ranks.world_size == 1 or self.options.shard:
            return net
        # find_unused_parameters keeps the gradient buckets as they are built. Otherwise DDP lays them out
        # anew after its first step, and a resumed run would add up three or more ranks in another order. It
        # also lets a network have parameters that a step does not use. Buffers: synchronised batch norm keeps
        # them equal, and evaluation takes rank 0's.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # torch 2.14 renames broadcast_buffers
            parallel = DistributedDataParallel(
                net,
                device_ids=[self.ranks.device.index] if self.ranks.device.type == "cuda" else None,
                broadcast_buffers=False,
                find_unused_parameters=True,
                gradient_as_bucket_view=True,
            )
        if self.options.compress_gradients:
            from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook

            parallel.register_comm_hook(None, bf16_compress_hook)
        return parallel


def _seed(seed: int, device: torch.device) -> None:
    """Seeds what a step draws from: Python's generator, and torch's of the CPU and of the GPUs if it computes there.

    `torch.manual_seed` asks for accelerators of every kind: 0.15 ms and more, which is felt by small networks.
    """
    random.seed(seed)
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed_all(seed)
