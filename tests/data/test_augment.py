"""Augmentation by torchvision's own transforms, drawn from (seed, epoch, index) alone."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torchvision.io import ImageReadMode, read_image
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as F

from n2n_cli.data import EvalLoader, TrainLoader, load
from n2n_cli.data.counter import uniforms
from n2n_cli.data.sources import ArraySource
from n2n_cli.data.transforms import DRAWS, Augment, crop_box
from n2n_cli.errors import N2NError
from n2n_cli.training.mixing import Mixing
from n2n_cli.training.schedule import step_seed


def photographs(count: int = 24, size: int = 32) -> ArraySource:
    images = torch.randint(256, (count, 3, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return ArraySource(F.resize(images, [size, size]), torch.arange(count))


def drawn(source: ArraySource, augment: Augment, seed: int = 0, epoch: int = 0) -> Tensor:
    which = torch.arange(len(source))
    return ArraySource(source.images, source.labels, augment).batch(which, uniforms(seed, epoch, which, DRAWS))


@pytest.mark.parametrize(
    ("augment", "theirs"),
    [
        (Augment(policy="randaugment"), [v2.RandAugment(2, 9, interpolation=InterpolationMode.BILINEAR)]),
        (
            Augment(policy="randaugment", magnitude=20),
            [v2.RandAugment(2, 20, interpolation=InterpolationMode.BILINEAR)],
        ),
        (
            Augment(policy="trivial"),
            [v2.TrivialAugmentWide(interpolation=InterpolationMode.BILINEAR)],
        ),
        (Augment(erase=0.7, fill=(10, 20, 30)), [v2.RandomErasing(0.7, value=(10, 20, 30))]),
        (
            Augment(policy="trivial", erase=0.9),
            [v2.TrivialAugmentWide(interpolation=InterpolationMode.BILINEAR), v2.RandomErasing(0.9, value=(0, 0, 0))],
        ),
    ],
)
def test_policies_are_torchvisions(augment: Augment, theirs: list[torch.nn.Module]) -> None:
    source = photographs()
    before = torch.get_rng_state()
    ours = drawn(source, augment)
    assert torch.equal(before, torch.get_rng_state())
    numbers = uniforms(0, 0, torch.arange(len(source)), DRAWS)[:, -1]
    with torch.random.fork_rng():
        for image, number, got in zip(source.images, numbers.tolist(), ours, strict=True):
            torch.manual_seed(int(number * 2**53))
            for transform in theirs:
                image = transform(image)
            assert torch.equal(got, image)
    changed = (ours != source.images).flatten(1).any(1)
    assert changed.sum() > len(source) / 2  # and not all by chance the same
    assert torch.equal(ours, drawn(source, augment)) and not torch.equal(ours, drawn(source, augment, epoch=1))
    assert not torch.equal(ours, drawn(source, augment, seed=1))


def test_a_policy_comes_after_the_geometry() -> None:
    source = photographs()
    cropped = drawn(source, Augment("crop"))
    both = drawn(source, Augment("crop", policy="trivial", erase=0.5))
    draws = uniforms(0, 0, torch.arange(len(source)), DRAWS)
    again = ArraySource(cropped, source.labels, Augment(policy="trivial", erase=0.5)).batch(source.labels, draws)
    assert torch.equal(both, again) and not torch.equal(both, cropped)


def test_erased_parts_have_the_mean_colour() -> None:
    data = load("shapes", train_images=64, val_images=8, augment="none", random_erase=1.0)
    plain = load("shapes", train_images=64, val_images=8, augment="none")
    (ours, _), (theirs, _) = (next(TrainLoader(d.train, batch_size=64, seed=0).batches(0)) for d in (data, plain))
    changed = (ours != theirs).any(1)
    assert changed.flatten(1).any(1).all() and (ours.permute(0, 2, 3, 1)[changed] == 128).all()
    (ours, _), (theirs, _) = (next(EvalLoader(d.val, batch_size=8).batches()) for d in (data, plain))
    assert torch.equal(ours, theirs)


def test_ranks_see_the_same_images(folder: Path) -> None:
    data = load("imagefolder", root=folder, image_size=24, augment="randaugment", random_erase=0.5, cache="none")
    (whole, _) = next(TrainLoader(data.train, batch_size=4, seed=3).batches(1))
    parts = [next(TrainLoader(data.train, batch_size=4, seed=3, rank=r, world_size=2).batches(1))[0] for r in (0, 1)]
    assert torch.equal(whole, torch.cat(parts))


@pytest.mark.parametrize("augment", ["randaugment", "trivial"])
def test_a_cache_changes_nothing(folder: Path, augment: str) -> None:
    kept, read = (
        load("imagefolder", root=folder, image_size=24, augment=augment, random_erase=0.5, cache=cache)
        for cache in ("memory", "none")
    )
    for epoch in (0, 1):
        (ours, _), (theirs, _) = (
            next(TrainLoader(d.train, batch_size=12, seed=0).batches(epoch)) for d in (kept, read)
        )
        assert torch.equal(ours, theirs)


def test_the_training_crop_keeps_to_scale_and_ratio() -> None:
    numbers = torch.rand(2000, DRAWS, generator=torch.Generator().manual_seed(0)).tolist()
    boxes = [crop_box(300, 400, row, (0.5, 0.6), (1.0, 1.5)) for row in numbers]
    areas = [h * w / (300 * 400) for _, _, h, w in boxes]
    ratios = [w / h for _, _, h, w in boxes]
    assert 0.49 < min(areas) < 0.51 and 0.59 < max(areas) < 0.61
    assert 0.99 < min(ratios) < 1.02 and 1.45 < max(ratios) < 1.51
    assert crop_box(10, 400, numbers[0], (0.9, 1.0), (0.5, 1.5)) == (0, 192, 10, 15)  # nothing fits: the centre


def test_interpolation_is_torchvisions(folder: Path) -> None:
    for interpolation in ("bilinear", "bicubic"):
        sizes = {"image_size": 24, "resize_size": 30, "cache": "none", "interpolation": interpolation}
        data = load("imagefolder", root=folder, **sizes)
        (ours, _) = next(EvalLoader(data.val, batch_size=100).batches())
        how = InterpolationMode(interpolation)
        for path, image in zip(data.val.paths, ours, strict=True):
            theirs = F.resize(read_image(path.decode(), ImageReadMode.RGB), [30], interpolation=how, antialias=True)
            assert torch.equal(image, F.center_crop(theirs, [24, 24]))


def test_wrong_words() -> None:
    with pytest.raises(N2NError, match=r"data.augment must be .*not 'randaug' \(did you mean 'randaugment'\?\)"):
        load("shapes", augment="randaug")
    with pytest.raises(N2NError, match=r"data\.interpolation must be one of bilinear, bicubic, not 'cubic'"):
        load("shapes", interpolation="cubic")


# --- mixing -----------------------------------------------------------------------------------------------


def before(images: Tensor) -> Tensor:
    """With the last one first, as a loader gives it."""
    return torch.cat([images[-1:], images])


@pytest.mark.parametrize(
    ("alphas", "theirs"), [((0.4, 0.0), v2.MixUp(alpha=0.4, num_classes=8)), ((0.0, 1.0), v2.CutMix(num_classes=8))]
)
def test_mixing_is_torchvisions(alphas: tuple[float, float], theirs: Callable[..., tuple[Tensor, Tensor]]) -> None:
    images = torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(8)
    logits = torch.randn(8, 8, generator=torch.Generator().manual_seed(1))
    shares = set()
    for step in range(5):
        state = torch.get_rng_state()
        ours, share = Mixing(*alphas, seed=7)(before(images), step)
        assert torch.equal(state, torch.get_rng_state())
        with torch.random.fork_rng():
            torch.manual_seed(step_seed(7, step, -1))
            torch.randint(1, ())  # which of the two ways
            mixed, soft = theirs(images, labels)
        torch.testing.assert_close(ours, mixed, rtol=0, atol=0)
        cross = torch.nn.functional.cross_entropy
        by_two = share * cross(logits, labels) + (1 - share) * cross(logits, labels.roll(1))
        torch.testing.assert_close(by_two, cross(logits, soft))
        shares.add(share)
    assert len(shares) == 5


def test_both_ways_are_taken_and_no_step_is_like_another() -> None:
    mixing, images = Mixing(0.2, 1.0, seed=0), torch.rand(5, 3, 16, 16)
    cut = [bool(((m == images[1:]) | (m == images[:-1])).all()) for m in (mixing(images, s)[0] for s in range(20))]
    assert 3 < sum(cut) < 17
    assert not Mixing(0.0, 0.0, seed=0)


def test_ranks_mix_alike() -> None:
    source = photographs()
    mixing = Mixing(0.2, 1.0, seed=0)

    def mixed(rank: int, ranks: int, first: bool = True) -> Tensor:
        loader = TrainLoader(source, batch_size=8, seed=0, rank=rank, world_size=ranks, before=first)
        images, labels = next(loader.batches(0))
        assert len(images) == len(labels) == 8 // ranks + first
        return mixing(images.float() if first else before(images.float()), 3)[0]

    whole = mixed(0, 1)
    assert torch.equal(whole, torch.cat([mixed(0, 2), mixed(1, 2)]))
    assert torch.equal(whole, mixed(0, 1, first=False))
    assert not torch.equal(whole, torch.cat([mixed(0, 2, first=False), mixed(1, 2, first=False)]))
