"""A small folder of real image files."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image


def picture(path: Path, seed: int, size: tuple[int, int] = (40, 48), mode: str = "RGB", kind: str = "JPEG") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = torch.randint(256, (size[1] // 8, size[0] // 8, 3), generator=torch.Generator().manual_seed(seed))
    image = Image.fromarray(pixels.to(torch.uint8).numpy()).resize(size, Image.Resampling.BICUBIC)
    image.convert(mode).save(path, format=kind)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """``data/{train,val}/{ant,bee,cat}/<n>.jpg``: 4 training and 2 validation images a class."""
    for split, count in (("train", 4), ("val", 2)):
        for label, name in enumerate(("ant", "bee", "cat")):
            for n in range(count):
                picture(tmp_path / "data" / split / name / f"{n}.jpg", seed=100 * label + 10 * n + count)
    return tmp_path / "data"


@pytest.fixture
def draw() -> Callable[..., None]:
    return picture
