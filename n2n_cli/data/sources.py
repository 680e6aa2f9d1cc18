"""Where images come from: tensors in memory, or image files in folders.

A source answers `batch(indices, draws)`: the images with those indices, augmented by the rows of ``draws``
(see `transforms`), or as for evaluation where ``draws`` is None.
"""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torchvision.datasets.folder import IMG_EXTENSIONS, make_dataset
from torchvision.transforms.v2 import functional as F

from n2n_cli.data.transforms import Augment, crop_flip, random_resized_crop_flip, resize_center_crop
from n2n_cli.errors import N2NError


class Source(Protocol):
    labels: Tensor
    """int64 ``[len(source)]``."""
    augment: Augment
    decodes: bool
    """Whether a batch costs enough (files, decoding) to be worth worker processes."""

    def __len__(self) -> int: ...

    def batch(self, indices: Tensor, draws: Tensor | None) -> Tensor:
        """uint8 ``[len(indices), 3, image_size, image_size]``."""

    def subset(self, indices: Tensor, augment: Augment) -> Source:
        """The images with these indices, as a source of its own."""


@dataclass
class ArraySource:
    """Images in memory: uint8 ``[n, 3, H, W]``. With fewer images than labels they repeat (`data=fake`)."""

    images: Tensor
    labels: Tensor
    augment: Augment = "none"
    decodes: bool = False

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices: Tensor, draws: Tensor | None) -> Tensor:
        images = self.images[indices % len(self.images)]
        if draws is None or self.augment == "none":
            return images
        if self.augment == "crop":
            return crop_flip(images, draws)
        size = images.shape[-1]
        return torch.stack([random_resized_crop_flip(i, d, size) for i, d in zip(images, draws, strict=True)])

    def subset(self, indices: Tensor, augment: Augment) -> ArraySource:
        """The images with these indices, as a source of its own."""
        return ArraySource(self.images[indices % len(self.images)], self.labels[indices], augment)


class FolderSource:
    """Image files, decoded when asked for. Raises `N2NError` naming the file for one that cannot be read."""

    decodes = True

    def __init__(self, paths: list[str], labels: list[int], size: int, resize: int, augment: Augment = "none"):
        # One block of bytes: the pages of a million Python strings would be copied into every worker, as reading a
        # string writes its reference count.
        self.paths = np.array([os.fsencode(path) for path in paths])
        self.labels = torch.tensor(labels, dtype=torch.int64)
        self.size, self.resize, self.augment = size, resize, augment

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices: Tensor, draws: Tensor | None) -> Tensor:
        images = [read_image(os.fsdecode(self.paths[index])) for index in indices.tolist()]
        if draws is not None and self.augment == "imagenet":
            return torch.stack([random_resized_crop_flip(i, d, self.size) for i, d in zip(images, draws, strict=True)])
        batch = torch.stack([resize_center_crop(image, self.resize, self.size) for image in images])
        return crop_flip(batch, draws) if draws is not None and self.augment == "crop" else batch

    def subset(self, indices: Tensor, augment: Augment) -> FolderSource:
        """The images with these indices, as a source of its own."""
        paths = [os.fsdecode(self.paths[index]) for index in indices.tolist()]
        return FolderSource(paths, self.labels[indices].tolist(), self.size, self.resize, augment)


class CachedSource:
    """The images of a folder, decoded when first asked for and kept: uint8, as evaluation sees them.

    For augmentations that start from those (none, crop); the images are the same to the bit as without it.
    """

    decodes = False

    def __init__(self, source: FolderSource):
        self._source = source
        self.labels, self.augment = source.labels, source.augment
        self._images = torch.empty(self.nbytes(source), dtype=torch.uint8).view(
            len(source), 3, source.size, source.size
        )
        self._decoded = torch.zeros(len(source), dtype=torch.bool)

    def __len__(self) -> int:
        return len(self.labels)

    @staticmethod
    def nbytes(source: FolderSource) -> int:
        """Memory that all images of ``source`` take, in bytes."""
        return len(source) * 3 * source.size**2

    def batch(self, indices: Tensor, draws: Tensor | None) -> Tensor:
        new = indices[~self._decoded[indices]]
        if len(new):
            self._images[new] = self._source.batch(new, None)
            self._decoded[new] = True
        images = self._images[indices]
        return crop_flip(images, draws) if draws is not None and self.augment == "crop" else images

    def subset(self, indices: Tensor, augment: Augment) -> CachedSource:
        """The images with these indices, as a source of its own."""
        return CachedSource(self._source.subset(indices, augment))


def read_image(path: str) -> Tensor:
    """uint8 RGB ``[3, H, W]`` of any file that Pillow reads (by its content: ImageNet has a PNG called JPEG).

    Raises `N2NError` that names the path of a file that is missing, truncated or no image.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # broken EXIF, palette transparency: the pixels are fine
            with Image.open(path) as image:
                return F.pil_to_tensor(image.convert("RGB"))
    except Exception as error:  # Pillow's decoders raise nearly anything on damaged files
        reason = " ".join(str(error).split()) or type(error).__name__
        if isinstance(error, UnidentifiedImageError):
            reason = "no image format that Pillow knows"
        elif isinstance(error, OSError) and error.strerror:
            reason = error.strerror
        raise N2NError(f"unreadable image {path}: {reason}") from error


def scan(folder: Path) -> tuple[list[str], list[str], list[int]]:
    """(class names, paths, labels) of ``folder/<class>/**/<image>``, sorted as torchvision's ImageFolder sorts them.

    Hidden folders are no classes. Raises `N2NError` for a folder without classes and for a class without images.
    """
    try:
        names = [entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith(".")]
    except OSError as error:
        raise N2NError(f"imagefolder: cannot read {folder}: {error.strerror}") from error
    names.sort()
    if not names:
        raise N2NError(f"imagefolder: no class folders in {folder} (expected {folder}/<class>/<image>)")
    labels = {name: label for label, name in enumerate(names)}
    samples = make_dataset(str(folder), labels, extensions=IMG_EXTENSIONS, allow_empty=True)
    filled = {label for _, label in samples}
    empty = [name for name in names if labels[name] not in filled]
    if empty:
        kinds = ", ".join(IMG_EXTENSIONS)
        raise N2NError(f"imagefolder: no images in {folder / empty[0]} ({kinds})")
    return names, [path for path, _ in samples], [label for _, label in samples]
