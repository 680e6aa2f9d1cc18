"""Stateless random numbers, and the transforms that read them, against torchvision and brute force."""

import math

import pytest
import torch
import torchvision
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from n2n_cli.data.counter import generator, key, uniforms
from n2n_cli.data.transforms import (
    DRAWS,
    Augment,
    crop_box,
    crop_flip,
    random_resized_crop_flip,
    resize_center_crop,
)


def splitmix(state: int) -> int:
    """The published finalizer, in Python's own integers."""
    mask = (1 << 64) - 1
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & mask
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & mask
    return state ^ (state >> 31)


def test_uniforms_are_splitmix64() -> None:
    golden, mask = 0x9E3779B97F4A7C15, (1 << 64) - 1
    for index in (0, 1, 12_345, 2**40):
        state = splitmix((index * golden + key(7, 3)) & mask)
        expected = [(splitmix((state + n * golden) & mask) >> 11) * 2.0**-53 for n in (1, 2, 3)]
        assert uniforms(7, 3, torch.tensor([index]), 3)[0].tolist() == expected


def test_uniforms_are_uniform_and_depend_on_every_argument() -> None:
    draws = uniforms(0, 0, torch.arange(20_000), 4)
    assert draws.min() >= 0 and draws.max() < 1
    for power in (1, 2, 3):
        assert (draws**power).mean(0).sub(1 / (power + 1)).abs().max() < 0.01
    assert torch.corrcoef(draws.T).sub(torch.eye(4)).abs().max() < 0.03
    assert abs(torch.corrcoef(torch.stack([draws[:-1, 0], draws[1:, 0]]))[0, 1]) < 0.03
    for other in (uniforms(1, 0, torch.arange(20_000), 4), uniforms(0, 1, torch.arange(20_000), 4)):
        assert abs(torch.corrcoef(torch.stack([draws[:, 0], other[:, 0]]))[0, 1]) < 0.03


def test_a_row_depends_on_its_index_alone() -> None:
    whole = uniforms(5, 2, torch.arange(100), DRAWS)
    picked = torch.tensor([99, 3, 3, 50])
    assert torch.equal(uniforms(5, 2, picked, DRAWS), whole[picked])
    assert torch.equal(uniforms(5, 2, picked, 3), whole[picked, :3])


def test_keys_are_stable_and_differ() -> None:
    # Literal: a changed hash would change every order of training images without notice.
    assert key(0, 0) == 6485217212945885871
    assert len({key(a, b) for a in range(50) for b in range(50)}) == 2500
    assert key(1, 2) != key(2, 1) and key(0) != key(0, 0)
    assert torch.equal(torch.randperm(5, generator=generator(3)), torch.randperm(5, generator=generator(3)))


def test_crop_flip_is_reflect_pad_crop_and_flip() -> None:
    images = torch.randint(256, (64, 3, 12, 10), dtype=torch.uint8)
    draws = uniforms(0, 0, torch.arange(64), DRAWS)
    out = crop_flip(images, draws)
    seen = set()
    for image, row, got in zip(images, draws.tolist(), out, strict=True):
        dy, dx, flip = int(row[1] * 9), int(row[2] * 9), row[0] >= 0.5
        padded = torch.nn.functional.pad(image[None].float(), (4, 4, 4, 4), mode="reflect")[0].to(torch.uint8)
        expected = padded[:, dy : dy + 12, dx : dx + 10]
        assert torch.equal(got, expected.flip(-1) if flip else expected)
        seen |= {("y", dy), ("x", dx), ("flip", flip)}
    assert len(seen) == 9 + 9 + 2
    assert out.dtype == torch.uint8 and out.is_contiguous(memory_format=torch.channels_last)


def test_crop_boxes_have_torchvisions_distribution() -> None:
    """Same means and spreads of area, aspect and place as `RandomResizedCrop.get_params` on a wide image."""
    height, width = 60, 100
    boxes = [crop_box(height, width, row[1:]) for row in uniforms(1, 1, torch.arange(4000), DRAWS).tolist()]
    image = torch.empty(3, height, width)
    theirs = [
        torchvision.transforms.RandomResizedCrop.get_params(image, (0.08, 1.0), (3 / 4, 4 / 3)) for _ in range(4000)
    ]

    def features(rows: list[tuple[int, int, int, int]]) -> torch.Tensor:
        top, left, h, w = torch.tensor(rows, dtype=torch.float64).T
        return torch.stack([top / height, left / width, h * w / (height * width), (w / h).log()])

    ours_f, theirs_f = features(boxes), features(theirs)
    assert (ours_f.mean(1) - theirs_f.mean(1)).abs().max() < 0.02
    assert (ours_f.std(1) - theirs_f.std(1)).abs().max() < 0.02
    assert all(min(box) >= 0 and box[0] + box[2] <= height and box[1] + box[3] <= width for box in boxes)


@pytest.mark.parametrize(("height", "width"), [(10, 400), (400, 10), (1, 1), (7, 3)])
def test_crop_box_of_odd_images(height: int, width: int) -> None:
    for row in uniforms(0, 0, torch.arange(50), DRAWS).tolist():
        top, left, h, w = crop_box(height, width, row[1:])
        assert h >= 1 and w >= 1 and 0 <= top <= height - h and 0 <= left <= width - w
        if max(height, width) > 100:
            assert max(h / w, w / h) < math.sqrt(2)


def test_random_resized_crop_flip_of_a_box() -> None:
    image = torch.randint(256, (3, 50, 70), dtype=torch.uint8)
    for row in uniforms(3, 0, torch.arange(10), DRAWS):
        expected = F.resized_crop(image, *crop_box(50, 70, row[1:].tolist()), [24, 24], antialias=True)
        if row[0] >= 0.5:
            expected = expected.flip(-1)
        assert torch.equal(random_resized_crop_flip(image, row, 24, Augment("imagenet")), expected)


@pytest.mark.parametrize("shape", [(50, 70), (70, 50), (32, 32), (20, 90)])
def test_resize_center_crop_is_torchvisions(shape: tuple[int, int]) -> None:
    image = torch.randint(256, (3, *shape), dtype=torch.uint8)
    reference = v2.Compose([v2.Resize(32, antialias=True), v2.CenterCrop(24)])(image)
    assert torch.equal(resize_center_crop(image, 32, 24), reference)
    assert reference.shape == (3, 24, 24)
