"""Image transforms on uint8 tensors, each a pure function of the image and of its row of uniform numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate
from torchvision.transforms import InterpolationMode, v2

Geometry = Literal["none", "crop", "imagenet"]
"""none: as in evaluation; crop: padded by reflection, cropped, flipped; imagenet: a random part, resized, flipped."""
Interpolation = Literal["bilinear", "bicubic"]

PAD = 4
ATTEMPTS = 10
DRAWS = 3 + 2 * ATTEMPTS + 1
"""Uniform numbers that an image gets in an epoch: the flip, two for the position, two for each try at a crop's size,
and the seed of what torchvision draws."""


@dataclass(frozen=True)
class Augment:
    """What happens to training images: first the ``geometry``, then ``policy``, then erasing.

    ``policy``: torchvision's RandAugment (2 operations of ``magnitude`` of 31), its TrivialAugmentWide, or none.
    ``erase``: the share of images of which a part is erased (torchvision's RandomErasing), to ``fill`` (bytes).
    ``scale``, ``ratio``: of imagenet's random part, the area over the image's and the width over the height.
    ``interpolation``: of what is resized, in evaluation too; a policy's own is bilinear.
    """

    geometry: Geometry = "none"
    policy: Literal["none", "randaugment", "trivial"] = "none"
    magnitude: int = 9
    erase: float = 0.0
    fill: tuple[int, int, int] = (0, 0, 0)
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    interpolation: Interpolation = "bilinear"

    @property
    def as_in_evaluation(self) -> Augment:
        return replace(self, geometry="none", policy="none", erase=0.0)

    @cached_property
    def drawn_by_torchvision(self) -> list[nn.Module]:
        """What follows the geometry."""
        how = InterpolationMode.BILINEAR  # torchvision rotates tensors by no other that is smooth
        policies: dict[str, list[nn.Module]] = {
            "none": [],
            "randaugment": [v2.RandAugment(2, self.magnitude, interpolation=how)],
            "trivial": [v2.TrivialAugmentWide(interpolation=how)],
        }
        return policies[self.policy] + ([v2.RandomErasing(self.erase, value=self.fill)] if self.erase else [])


AS_IT_IS = Augment()
"""No augmentation."""


def augmented(images: Tensor, draws: Tensor, augment: Augment) -> Tensor:
    """Training images uint8 ``[N, 3, H, W]`` of one size, imagenet's random parts already taken; ``draws``
    ``[N, DRAWS]``."""
    if augment.geometry == "crop":
        images = crop_flip(images, draws)
    if not augment.drawn_by_torchvision:
        return images
    out = torch.empty_like(images)
    with torch.random.fork_rng(devices=[]):  # torchvision draws from the global generator of the CPU
        for place, image, number in zip(out, images, draws[:, -1].tolist(), strict=True):
            torch.default_generator.manual_seed(int(number * 2**53))
            for transform in augment.drawn_by_torchvision:
                image = transform(image)
            place.copy_(image)
    return out


def crop_flip(images: Tensor, draws: Tensor, pad: int = PAD) -> Tensor:
    """Images uint8 ``[N, 3, H, W]`` shifted by up to ``pad`` pixels each way (edges reflected), half of them mirrored.

    ``draws`` are `DRAWS` uniform numbers for each, ``[N, DRAWS]``. The usual augmentation of CIFAR, but with reflected
    edges instead of black ones: that needs no padded copy, one gather does it. The result is in channels_last memory
    format.
    """
    n, _, height, width = images.shape
    rows = _reflected(draws[:, 1], height, pad)
    cols = _reflected(draws[:, 2], width, pad)
    cols = torch.where(draws[:, :1] < 0.5, cols, cols.flip(1))
    source = images.permute(0, 2, 3, 1)
    picked = source[torch.arange(n)[:, None, None], rows[:, :, None], cols[:, None, :]]
    return picked.permute(0, 3, 1, 2)


def _reflected(draw: Tensor, size: int, pad: int) -> Tensor:
    """``[N, size]``: for every image the source positions of a window moved by -pad .. pad."""
    shift = (draw * (2 * pad + 1)).long() - pad
    position = (shift[:, None] + torch.arange(size)).abs()
    return size - 1 - (size - 1 - position).abs()


def random_resized_crop_flip(image: Tensor, draws: Tensor, size: int, augment: Augment) -> Tensor:
    """torchvision's RandomResizedCrop (by default 8 to 100 % of the area, aspect 3:4 to 4:3), then a flip."""
    numbers: list[float] = draws.tolist()
    height, width = image.shape[-2:]
    top, left, height, width = crop_box(height, width, numbers[1:], augment.scale, augment.ratio)
    part = _resized(image[:, top : top + height, left : left + width], size, size, augment.interpolation)
    return part if numbers[0] < 0.5 else part.flip(-1)


def crop_box(
    height: int,
    width: int,
    numbers: list[float],
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> tuple[int, int, int, int]:
    """(top, left, height, width) as torchvision draws it, from 2 + 2 * ATTEMPTS numbers in [0, 1)."""
    low, high = math.log(ratio[0]), math.log(ratio[1])
    for attempt in range(ATTEMPTS):
        area = height * width * (scale[0] + (scale[1] - scale[0]) * numbers[2 + 2 * attempt])
        aspect = math.exp(low + (high - low) * numbers[3 + 2 * attempt])
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return int(numbers[0] * (height - h + 1)), int(numbers[1] * (width - w + 1)), h, w
    # Nothing fitted, as in very long images: the largest allowed box in the centre.
    w = min(width, round(height * ratio[1]))
    h = min(height, round(width / ratio[0]))
    return (height - h) // 2, (width - w) // 2, h, w


def resize_center_crop(image: Tensor, resize: int, size: int, interpolation: Interpolation = "bilinear") -> Tensor:
    """Shorter side to ``resize``, then the ``size`` x ``size`` centre."""
    image = resized(image, resize, interpolation)
    top, left = (round((side - size) / 2) for side in image.shape[-2:])
    return image[:, top : top + size, left : left + size]


def resized(image: Tensor, short: int, interpolation: Interpolation = "bilinear") -> Tensor:
    """uint8 ``[3, H, W]`` with its shorter side at ``short`` pixels."""
    height, width = image.shape[-2:]
    now = min(height, width)
    if now == short:
        return image
    return _resized(image, int(short * height / now), int(short * width / now), interpolation)


def _resized(image: Tensor, height: int, width: int, interpolation: Interpolation) -> Tensor:
    """uint8 ``[3, height, width]``: antialiased, the bytes of torchvision's resize in half its time."""
    # In this memory format PyTorch resizes bytes fast; of a part of an image, only once it lies by itself.
    image = image[None].contiguous(memory_format=torch.channels_last)
    return interpolate(image, (height, width), mode=interpolation, antialias=True)[0]
