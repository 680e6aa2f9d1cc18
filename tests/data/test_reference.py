"""The images of torchvision's classification reference, on ImageNet's photographs: crop by crop, by Pillow."""

import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms as T
from torchvision.datasets.folder import pil_loader

import n2n_cli
from n2n_cli.data.counter import uniforms
from n2n_cli.data.sources import FolderSource
from n2n_cli.data.transforms import DRAWS, Augment, crop_box

SAMPLE = Path(n2n_cli.__file__).parents[2] / "shared" / "data" / "imagenet-sample.tar"
SAMPLE = Path(os.environ.get("N2N_SAMPLE", SAMPLE))
"""1,000 photographs of ImageNet in one archive."""
MOST, MEAN = 2, 0.3
"""The tolerance, in steps of 1/255 (of a pixel at most, of an image in the mean): Pillow resizes by weights of 22 bits,
PyTorch by 16, and both round between the two directions. Of 1,000 photographs 5 reach 2; the largest mean is 0.25."""


def apart(path: str, index: int) -> list[torch.Tensor]:
    """How far our training and our validation image of a file are from the reference's, as floats."""
    which, found = torch.tensor([index]), []
    draws = uniforms(0, 0, which, DRAWS)
    photograph = pil_loader(path)
    numbers = draws[0].tolist()
    top, left, height, width = crop_box(photograph.height, photograph.width, numbers[1:])
    part = T.functional.resized_crop(photograph, top, left, height, width, [224, 224], antialias=True)
    part = part if numbers[0] < 0.5 else T.functional.hflip(part)
    whole = T.Compose([T.Resize(256, antialias=True), T.CenterCrop(224)])(photograph)
    for draw, geometry, theirs in ((draws, "imagenet", part), (None, "none", whole)):
        ours = FolderSource([path], [0], 224, 256, Augment(geometry)).batch(torch.tensor([0]), draw)[0]
        found.append((ours.float() - T.functional.pil_to_tensor(theirs).float()).abs())
    return found


def test_drawn_photographs_are_the_references(folder: Path, draw: Callable[..., None]) -> None:
    for number, (mode, size, kind) in enumerate(
        [("RGB", (500, 375), "JPEG"), ("L", (231, 640), "JPEG"), ("CMYK", (300, 300), "JPEG"), ("P", (64, 48), "PNG")]
    ):
        draw(folder / "odd.jpg", number, size=size, mode=mode, kind=kind)
        for error in apart(str(folder / "odd.jpg"), number):
            assert error.max() <= MOST and error.mean() <= MEAN
    Image.fromarray(255 - np.asarray(Image.open(folder / "odd.jpg").convert("RGB"))).save(folder / "other.png")
    ours = FolderSource([str(folder / "other.png")], [0], 48, 48).batch(torch.tensor([0]), None)[0]
    theirs = T.functional.pil_to_tensor(T.CenterCrop(48)(pil_loader(folder / "odd.jpg")))
    assert (ours.float() - theirs.float()).abs().max() > 100  # another image is seen


@pytest.mark.slow
@pytest.mark.skipif(not SAMPLE.exists(), reason=f"no {SAMPLE}")
def test_a_thousand_photographs_are_the_references(tmp_path: Path) -> None:
    count, path = 0, tmp_path / "image"
    with tarfile.open(SAMPLE) as archive:
        for member in archive:
            file = archive.extractfile(member) if member.isfile() else None
            if file is None or not member.name.lower().endswith((".jpeg", ".jpg", ".png")):
                continue
            path.write_bytes(file.read())
            for error in apart(str(path), count):
                assert error.max() <= MOST and error.mean() <= MEAN, (member.name, error.max(), error.mean())
            count += 1
    assert count == 1000
