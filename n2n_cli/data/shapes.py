"""The embedded data set: synthetic colour images, class = shape x texture, drawn from a seed in a few seconds.

An image shows one object (disc, square, triangle or cross; solid, striped, checked or dotted) at a random
place, size, angle and colour, on a background with a gradient and a grating of its own, among clutter: small
discs and bars behind the object, a bar across it, noise. Signed distances give smooth edges, so 32 pixels are
enough to tell.

The difficulty is one number, 0 (clean) to 4, 1 by default: it multiplies all that `Difficulty` lists.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from n2n_cli.data.counter import generator

SHAPES = ("disc", "square", "triangle", "cross")
TEXTURES = ("solid", "striped", "checked", "dotted")
CLASS_NAMES = tuple(f"{texture} {shape}" for shape in SHAPES for texture in TEXTURES)


class Difficulty(NamedTuple):
    """What makes the task hard, at difficulty 1; another difficulty multiplies every field."""

    rotation: float = 0.3
    """Largest rotation of the object either way, in radians."""
    noise: float = 0.03
    """Standard deviation of the pixel noise, of the range [0, 1]."""
    fade: float = 0.2
    """How much of the contrast (object to background, texture to object) an image may lose at most."""
    grating: float = 0.02
    """Largest amplitude of the background's own grating."""
    clutter: float = 0.6
    """Mean number of small things behind the object (of at most 6)."""
    occlusion: float = 0.1
    """Probability of a bar across the object."""


DIFFICULTY = Difficulty()
CANVAS = 32.0
"""Images are drawn in units of 1/32 of their side, whatever their resolution."""
_CHUNK = 250  # images drawn at once: small enough for the cache, and a unit of the random sequence
_CLUTTER = 6
_CODE = {"train": 0, "val": 1}


@lru_cache(maxsize=4)
def generate(seed: int, split: str, count: int, size: int = 32, difficulty: float = 1.0) -> tuple[Tensor, Tensor]:
    """(uint8 ``[count, 3, size, size]``, int64 labels ``[count]``) of split "train" or "val".

    Cached: do not write to the tensors. Image i is of class i modulo 16. A longer data set begins with the shorter
    one of the same seed.
    """
    images = torch.empty(count, 3, size, size, dtype=torch.uint8)
    labels = torch.arange(count) % len(CLASS_NAMES)
    hard = Difficulty(*(value * difficulty for value in DIFFICULTY))
    for start in range(0, count, _CHUNK):
        random = generator(seed, _CODE[split], start // _CHUNK)
        classes = (start + torch.arange(_CHUNK)) % len(CLASS_NAMES)
        images[start : start + _CHUNK] = _draw(classes, size, hard, random)[: count - start]
    return images, labels


def _draw(classes: Tensor, size: int, hard: Difficulty, random: torch.Generator) -> Tensor:
    n = len(classes)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return torch.rand(n, *shape, generator=random) * (high - low) + low

    def column(low: float, high: float) -> Tensor:
        return uniform(low, high, 1, 1)

    axis = (torch.arange(size) + 0.5) * (CANVAS / size) - CANVAS / 2
    y, x = axis[:, None].expand(size, size), axis.expand(size, size)
    sharp = size / CANVAS  # one pixel of smooth edge

    # Colours: a background, an object away from it, a second colour of the texture away from both.
    ground = uniform(0.2, 0.8, 3, 1, 1)
    contrast = 1 - hard.fade * uniform(0, 1, 1, 1, 1)
    first, second = _directions(n, random)
    object_colour = _away(ground, 0.55 * contrast * first)
    texture_colour = _away(object_colour, 0.5 * contrast * second)

    # Background: a gradient and a grating.
    u, v = _rotate(x, y, column(0, 2 * math.pi))
    wave = torch.sin(v * (2 * math.pi / column(4, 12)) + column(0, 2 * math.pi))
    shade = u * (0.12 / CANVAS) * column(-1, 1) * 2 + column(0, 1) * hard.grating * wave
    image = ground + shade[:, None]

    # Clutter behind the object: discs and bars of any colour.
    for i in range(_CLUTTER):
        here = (uniform(0, 1, 1, 1, 1) < hard.clutter / _CLUTTER).float()
        u, v = _rotate(x - column(-15, 15), y - column(-15, 15), column(0, math.pi))
        distance = _disc(u, v, column(1.0, 2.5)) if i % 2 else _box(u, v, column(2, 4.5), column(0.6, 1.4))
        image = _over(image, _reflect(ground + 0.5 * uniform(-1, 1, 3, 1, 1)), here * _cover(distance, sharp))

    # The object.
    place = CANVAS / 2 - 10.5
    u, v = _rotate(x - column(-place, place), y - column(-place, place), column(-hard.rotation, hard.rotation))
    distance = _shape_distance(classes // len(TEXTURES), u, v, column(8.0, 12.0))
    u, v = _rotate(x - column(-4, 4), y - column(-4, 4), column(0, math.pi))
    pattern = _texture(classes % len(TEXTURES), u, v, column(5.0, 7.0))
    filling = object_colour + (texture_colour - object_colour) * pattern[:, None]
    image = _over(image, filling, _cover(distance, sharp))

    # A bar across, light and noise.
    here = (uniform(0, 1, 1, 1, 1) < hard.occlusion).float()
    u, v = _rotate(x - column(-6, 6), y - column(-6, 6), column(0, math.pi))
    bar = _cover(_box(u, v, column(6, 14), column(0.6, 1.2)), sharp)
    image = _over(image, _reflect(ground + 0.5 * uniform(-1, 1, 3, 1, 1)), here * bar)
    image = (image - 0.5) * uniform(0.8, 1.1, 1, 1, 1) + 0.5 + uniform(-0.08, 0.08, 1, 1, 1)
    image = image + torch.randn(image.shape, generator=random) * hard.noise
    return image.mul_(255).round_().clamp_(0, 255).to(torch.uint8)


def _directions(n: int, random: torch.Generator) -> tuple[Tensor, Tensor]:
    """Two perpendicular unit vectors in colour space for each image, ``[n, 3, 1, 1]``."""
    a, b = torch.randn(2, n, 3, generator=random)
    a = a / a.norm(dim=1, keepdim=True)
    b = b - (a * b).sum(1, keepdim=True) * a
    return a[..., None, None], (b / b.norm(dim=1, keepdim=True))[..., None, None]


def _away(colour: Tensor, step: Tensor) -> Tensor:
    """The colour a step away from ``colour``, in the direction that leads less far out of [0, 1]."""
    there, back = colour + step, colour - step
    out = [(c - c.clamp(0, 1)).abs().sum(1, keepdim=True) for c in (there, back)]
    return _reflect(torch.where(out[0] <= out[1], there, back))


def _reflect(colour: Tensor) -> Tensor:
    """Back into [0, 1] at its borders, which loses less contrast than clamping."""
    return 1 - (1 - colour.abs()).abs()


def _rotate(x: Tensor, y: Tensor, angle: Tensor) -> tuple[Tensor, Tensor]:
    cos, sin = angle.cos(), angle.sin()
    return x * cos + y * sin, y * cos - x * sin


def _disc(u: Tensor, v: Tensor, radius: Tensor) -> Tensor:
    return torch.hypot(u, v) - radius


def _box(u: Tensor, v: Tensor, half_width: Tensor, half_height: Tensor) -> Tensor:
    return torch.maximum(u.abs() - half_width, v.abs() - half_height)


def _shape_distance(shape: Tensor, u: Tensor, v: Tensor, radius: Tensor) -> Tensor:
    """Signed distance to each image's own shape (negative inside); the sizes give about equal areas."""
    slope = math.sqrt(3) / 2
    distances = torch.empty(len(shape), *u.shape[1:])
    for kind in range(len(SHAPES)):
        mine = shape == kind
        a, b, r = u[mine], v[mine], radius[mine]
        if kind == 0:
            distances[mine] = _disc(a, b, 0.8 * r)
        elif kind == 1:
            distances[mine] = _box(a, b, 0.72 * r, 0.72 * r)
        elif kind == 2:
            sides = torch.maximum(a * slope + b * 0.5, b * 0.5 - a * slope)
            distances[mine] = torch.maximum(sides, -b) - 0.6 * r
        else:
            distances[mine] = torch.minimum(_box(a, b, r, 0.36 * r), _box(a, b, 0.36 * r, r))
    return distances


def _texture(texture: Tensor, u: Tensor, v: Tensor, period: Tensor) -> Tensor:
    """Amount of the second colour, 0 to 1; ``u`` and ``v`` in pixels along the texture's own axes."""
    a, b = (u * (2 * math.pi / period)).sin(), (v * (2 * math.pi / period)).sin()
    kind = texture[:, None, None]
    wave = torch.where(kind == 1, a, torch.where(kind == 2, 2 * a * b, a + b - 0.7))
    return (0.5 + 1.5 * wave).clamp_(0, 1) * (kind > 0)


def _cover(distance: Tensor, sharp: float) -> Tensor:
    """Opacity ``[n, 1, H, W]`` of what has this signed distance."""
    return (0.5 - distance * sharp).clamp_(0, 1)[:, None]


def _over(image: Tensor, colour: Tensor, opacity: Tensor) -> Tensor:
    return image + (colour - image) * opacity
