"""MixUp and CutMix: every training image mixed with the one before it in the global batch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from n2n_cli.training.schedule import step_seed


class Mixing:
    """torchvision's MixUp, its CutMix, or one of the two, drawn anew every step; ``alpha`` 0: not this one.

    What is drawn depends on the seed and the step alone, so that all ranks mix alike.
    """

    def __init__(self, mixup_alpha: float, cutmix_alpha: float, seed: int) -> None:
        self._ways: list[Any] = []
        self._seed = seed
        if mixup_alpha or cutmix_alpha:  # else torchvision, which takes seconds to import, is not needed
            from torchvision.transforms import v2

            ways = ((v2.MixUp, mixup_alpha), (v2.CutMix, cutmix_alpha))
            # Classes are for labels, which are not mixed here: a loss between two labels is a sum of two losses.
            self._ways = [way(alpha=alpha, num_classes=1) for way, alpha in ways if alpha]

    def __bool__(self) -> bool:
        return bool(self._ways)

    def __call__(self, images: Tensor, step: int) -> tuple[Tensor, float]:
        """Images ``[b + 1, 3, H, W]``, the first of which stands before the rank's own -> the ``b`` of them mixed, and
        the share of each one's own label."""
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(step_seed(self._seed, step, -1))
            way = self._ways[int(torch.randint(len(self._ways), ()))]
            drawn = {"labels": None, "batch_size": len(images)} | way.make_params([images])
        return way.transform(images, drawn)[1:], float(drawn.get("lam", drawn.get("lam_adjusted")))
