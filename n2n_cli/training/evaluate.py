"""Exact evaluation: every image once, integer counts, on any number of ranks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from n2n_cli.errors import Everywhere, N2NError
from n2n_cli.training.fold import folded
from n2n_cli.training.precision import autocast_dtype
from n2n_cli.training.ranks import Ranks

FOLDED_FROM = 4  # batches: `folded` takes as long as a part of one, and saves a tenth or more of each


class Loader(Protocol):
    """What training and evaluation ask of a loader; `n2n_cli.data` makes them."""

    steps_per_epoch: int
    """Batches of one epoch: full global batches in training, all images in evaluation."""

    def batches(self, epoch: int, start_step: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """(uint8 ``[b, 3, H, W]``, int64 ``[b]``) for this rank, from step ``start_step`` of the epoch on."""
        ...


class Normalize:
    """uint8 images ``[b, 3, H, W]`` on any device -> float32 on ``device``: ``(x / 255 - mean) / std`` by channel.

    The images are moved as bytes and computed with there: a quarter of the traffic that floats would make.
    """

    def __init__(
        self, mean: Sequence[float], std: Sequence[float], device: torch.device, channels_last: bool = False
    ) -> None:
        shape = (1, -1, 1, 1)
        self.scale = (1.0 / (255.0 * torch.tensor(std, dtype=torch.float64))).float().view(shape).to(device)
        shift = -torch.tensor(mean, dtype=torch.float64) / torch.tensor(std, dtype=torch.float64)
        self.shift = shift.float().view(shape).to(device)
        self.device = device
        self.format = torch.channels_last if channels_last else torch.contiguous_format

    def __call__(self, images: Tensor) -> Tensor:
        images = images.to(self.device, non_blocking=True)
        x = images.to(torch.float32, memory_format=self.format)
        return torch.addcmul(self.shift, x, self.scale)


def at_least_fp32(logits: Tensor) -> Tensor:
    """For a loss: half precision as fp32, fp64 as it is."""
    return logits if logits.dtype == torch.float64 else logits.float()


def main_output(output: Any) -> tuple[Tensor, list[Tensor]]:
    """The logits of a network and its auxiliary ones (GoogLeNet, Inception v3: tuples in train mode).

    Raises:
        N2NError: the output is neither a tensor nor a tuple that starts with one.
    """
    if isinstance(output, Tensor):
        return output, []
    if isinstance(output, (tuple, list)) and output and isinstance(output[0], Tensor):
        return output[0], [o for o in output[1:] if isinstance(o, Tensor)]
    raise N2NError(f"the model returns {type(output).__name__}; expected logits or a tuple that starts with them")


@torch.no_grad()  # in inference mode, what a network keeps of its forward pass could not be trained with
def evaluate(
    model: nn.Module,
    loader: Loader,
    *,
    device: torch.device,
    mean: Sequence[float],
    std: Sequence[float],
    ranks: Ranks | None = None,
    channels_last: bool = False,
    precision: str = "fp32",
) -> dict[str, float]:
    """``{"val/top1", "val/top5", "val/loss"}`` of ``model`` over all images of all ranks' ``loader``.

    Top-1 and top-5 are fractions of exact integer counts (with fewer than 5 classes, top-5 is top-C), the
    loss the mean cross entropy summed in fp64. TF32 is off: a grown student must start at its teacher's accuracy to the
    last image; for the same reason ``precision`` is ``fp32`` unless somebody says ``bf16``. From a few batches on,
    batch norms are computed inside convolutions, which is the same to rounding. The model's mode is restored.

    Raises:
        N2NError: no images.
        Everywhere: the loader's error, of any rank.
    """
    ranks = ranks or Ranks(device=device)
    normalize = Normalize(mean, std, device, channels_last)
    counts = torch.zeros(3, dtype=torch.int64, device=device)  # top-1, top-5, images
    loss = torch.zeros(1, dtype=torch.float64, device=device)
    training = [m for m in model.modules() if m.training]
    model.eval()
    problem = ""
    half = autocast_dtype(precision, device, 0)
    try:
        with full_fp32(device):
            network = None
            for images, labels in loader.batches(0):
                labels = labels.to(device, non_blocking=True)
                x = normalize(images)
                if network is None:
                    network = folded(model, x[:2]) if loader.steps_per_epoch >= FOLDED_FROM else model
                with torch.autocast(device.type, half, enabled=half is not None):
                    logits = main_output(network(x))[0].float()
                loss += F.cross_entropy(logits, labels, reduction="none").double().sum()
                hits = logits.topk(min(5, logits.shape[1]), dim=1).indices == labels[:, None]
                counts[:2] += torch.stack([hits[:, 0].sum(), hits.sum()])
                counts[2] += len(hits)
    except N2NError as error:
        problem = str(error)
    finally:
        for module in training:
            module.training = True
    if ranks.any(bool(problem))[0]:
        raise Everywhere(ranks.first(problem))
    top1, top5, images_seen = ranks.sum(counts).tolist()
    if images_seen == 0:
        raise N2NError("nothing to evaluate: the validation set has no images")
    return {
        "val/top1": top1 / images_seen,
        "val/top5": top5 / images_seen,
        "val/loss": ranks.sum(loss).item() / images_seen,
    }


@contextmanager
def full_fp32(device: torch.device) -> Iterator[None]:
    """Convolutions and matrix products in IEEE fp32: cuDNN's default, TF32, is off by 1e-3."""
    if device.type != "cuda":
        yield
        return
    cudnn: Any = torch.backends.cudnn
    settings = [cudnn.conv, cudnn.rnn, torch.backends.cuda.matmul]
    before = [setting.fp32_precision for setting in settings]
    for setting in settings:
        setting.fp32_precision = "ieee"
    try:
        yield
    finally:
        for setting, value in zip(settings, before, strict=True):
            setting.fp32_precision = value
