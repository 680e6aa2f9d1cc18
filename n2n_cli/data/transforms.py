"""Image transforms on uint8 tensors, each a pure function of the image and of its row of uniform numbers."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import interpolate

Augment = Literal["none", "crop", "imagenet"]
"""Of training images. none: as in evaluation; crop: padded by reflection, cropped, flipped; imagenet: a random part,
resized, flipped."""

PAD = 4
ATTEMPTS = 10
DRAWS = 3 + 2 * ATTEMPTS
"""Uniform numbers that an image gets in an epoch: the flip, two for the position, two for each try at a crop's size."""


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


def random_resized_crop_flip(image: Tensor, draws: Tensor, size: int) -> Tensor:
    """torchvision's RandomResizedCrop (8 to 100 % of the area, aspect 3:4 to 4:3), then a flip."""
    numbers: list[float] = draws.tolist()
    top, left, height, width = crop_box(image.shape[-2], image.shape[-1], numbers[1:])
    part = _resized(image[:, top : top + height, left : left + width], size, size)
    return part if numbers[0] < 0.5 else part.flip(-1)


def crop_box(height: int, width: int, numbers: list[float]) -> tuple[int, int, int, int]:
    """(top, left, height, width) as torchvision draws it, from 2 + 2 * ATTEMPTS numbers in [0, 1)."""
    low, high = math.log(3 / 4), math.log(4 / 3)
    for attempt in range(ATTEMPTS):
        area = height * width * (0.08 + (1 - 0.08) * numbers[2 + 2 * attempt])
        aspect = math.exp(low + (high - low) * numbers[3 + 2 * attempt])
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return int(numbers[0] * (height - h + 1)), int(numbers[1] * (width - w + 1)), h, w
    # Nothing fitted, as in very long images: the largest allowed box in the centre.
    w = min(width, round(height * 4 / 3))
    h = min(height, round(width * 4 / 3))
    return (height - h) // 2, (width - w) // 2, h, w


def resize_center_crop(image: Tensor, resize: int, size: int) -> Tensor:
    """Shorter side to ``resize``, then the ``size`` x ``size`` centre."""
    image = resized(image, resize)
    top, left = (round((side - size) / 2) for side in image.shape[-2:])
    return image[:, top : top + size, left : left + size]


def resized(image: Tensor, short: int) -> Tensor:
    """uint8 ``[3, H, W]`` with its shorter side at ``short`` pixels."""
    height, width = image.shape[-2:]
    now = min(height, width)
    return image if now == short else _resized(image, int(short * height / now), int(short * width / now))


def _resized(image: Tensor, height: int, width: int) -> Tensor:
    """uint8 ``[3, height, width]``: bilinear, antialiased, the bytes of torchvision's resize in half its time."""
    # In this memory format PyTorch resizes bytes fast; of a part of an image, only once it lies by itself.
    image = image[None].contiguous(memory_format=torch.channels_last)
    return interpolate(image, (height, width), mode="bilinear", antialias=True)[0]
