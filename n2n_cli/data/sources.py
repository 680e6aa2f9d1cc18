"""Where images come from: tensors in memory, or image files in folders.

A source answers `batch(indices, draws)`: the images with those indices, augmented by the rows of ``draws``
(see `transforms`), or as for evaluation where ``draws`` is None.
"""

from __future__ import annotations

import os
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torchvision.datasets.folder import IMG_EXTENSIONS
from torchvision.io import decode_jpeg, read_file
from torchvision.transforms.v2 import functional as F

from n2n_cli.data import index
from n2n_cli.data.index import Listed
from n2n_cli.data.transforms import AS_IT_IS, Augment, augmented, random_resized_crop_flip, resize_center_crop
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
    augment: Augment = AS_IT_IS
    decodes: bool = False

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices: Tensor, draws: Tensor | None) -> Tensor:
        images = self.images[indices % len(self.images)]
        if draws is None:
            return images
        if self.augment.geometry == "imagenet":
            images = torch.stack(_parts(images, draws, self.augment, images.shape[-1]))
        return augmented(images, draws, self.augment)

    def subset(self, indices: Tensor, augment: Augment) -> ArraySource:
        """The images with these indices, as a source of its own. Of images that repeat, none is copied."""
        images = self.images if len(self.images) < len(self.labels) else self.images[indices]
        return ArraySource(images, self.labels[indices], augment)


class FolderSource:
    """Image files, decoded when asked for. Raises `N2NError` naming the file for one that cannot be read."""

    decodes = True
    faster = "data.cache=packed (smaller copies, made once) or n2n data pack"

    def __init__(
        self,
        paths: list[str],
        labels: list[int],
        size: int,
        resize: int,
        augment: Augment = AS_IT_IS,
        decoder: str = "auto",
    ):
        # One block of bytes: the pages of a million Python strings would be copied into every worker, as reading a
        # string writes its reference count.
        self.paths = np.array(os.fsencode("\0".join(paths)).split(b"\0") if paths else [], np.bytes_)
        self.labels = torch.tensor(labels, dtype=torch.int64)
        self.size, self.resize, self.augment, self.decoder = size, resize, augment, decoder

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices: Tensor, draws: Tensor | None) -> Tensor:
        images = [read_image(os.fsdecode(self.paths[index]), self.decoder) for index in indices.tolist()]
        return as_batch(images, draws, self.augment, self.resize, self.size)

    def subset(self, indices: Tensor, augment: Augment) -> FolderSource:
        """The images with these indices, as a source of its own."""
        paths = [os.fsdecode(self.paths[index]) for index in indices.tolist()]
        return FolderSource(paths, self.labels[indices].tolist(), self.size, self.resize, augment, self.decoder)


def as_batch(images: list[Tensor], draws: Tensor | None, augment: Augment, resize: int, size: int) -> Tensor:
    """Images of any size, augmented or as for evaluation: uint8 ``[n, 3, size, size]``, in the memory format that they
    are resized in and that training takes.

    ``draws``: see `Source.batch`; ``resize``: the shorter side before a centre crop.
    """
    if draws is not None and augment.geometry == "imagenet":
        parts = _parts(images, draws, augment, size)
    else:
        parts = [resize_center_crop(image, resize, size, augment.interpolation) for image in images]
    batch = torch.empty((len(parts), 3, size, size), dtype=torch.uint8, memory_format=torch.channels_last)
    for place, part in zip(batch, parts, strict=True):
        place.copy_(part)
    return batch if draws is None else augmented(batch, draws, augment)


def _parts(images: Iterable[Tensor], draws: Tensor, augment: Augment, size: int) -> list[Tensor]:
    return [random_resized_crop_flip(i, d, size, augment) for i, d in zip(images, draws, strict=True)]


class CachedSource:
    """The images of a folder, decoded when first asked for and kept: uint8, as evaluation sees them.

    For augmentations that start from those; the images are the same to the bit as without it.
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
        return images if draws is None else augmented(images, draws, self.augment)

    def subset(self, indices: Tensor, augment: Augment) -> CachedSource:
        """The images with these indices, as a source of its own."""
        source = self._source.subset(indices, augment)
        source.labels = self.labels[indices]
        return CachedSource(source)


def read_image(path: str, decoder: str = "auto") -> Tensor:
    """uint8 RGB ``[3, H, W]`` of any file that Pillow reads (by its content: ImageNet has a PNG called JPEG).

    ``decoder``: "torchvision", "torchcodec": JPEG files by that, which gives Pillow's pixels in less time (and reads
    some broken headers that Pillow does not), and everything that it does not decode by Pillow; "auto": torchvision;
    "pil": Pillow alone.

    Raises `N2NError` that names the path of a file that is missing, truncated or no image, and where there is no
    torchcodec.
    """
    if decoder != "pil" and (decoded := _jpeg(path, jpeg_decoder(decoder))) is not None:
        return decoded
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # broken EXIF, palette transparency: the pixels are fine
            with Image.open(path) as image:
                return F.pil_to_tensor(_eight_bits(image).convert("RGB"))
    except Exception as error:  # Pillow's decoders raise nearly anything on damaged files
        reason = " ".join(str(error).split()) or type(error).__name__
        if isinstance(error, UnidentifiedImageError):
            reason = "no image format that Pillow knows"
        elif isinstance(error, OSError) and error.strerror:
            reason = error.strerror
        raise N2NError(f"unreadable image {path}: {reason}") from error


@cache
def jpeg_decoder(decoder: str) -> Callable[[Tensor], Tensor]:
    """What turns the bytes of a JPEG (uint8 ``[n]``) into uint8 ``[C, H, W]``; it raises RuntimeError or ValueError.

    Raises `N2NError` where there is no torchcodec that decodes images.
    """
    if decoder != "torchcodec":
        return decode_jpeg
    try:
        from torchcodec.decoders import decode_jpeg as decode
    except (ImportError, OSError, RuntimeError) as error:  # not there, too old, or for another PyTorch
        reason = " ".join(str(error).split())[:200]
        raise N2NError(
            f"data.decoder=torchcodec: pip install 'n2n-cli[torchcodec]', or take data.decoder=auto ({reason})"
        ) from error

    def upright(data: Tensor) -> Tensor:
        # It turns what EXIF says is lying, and cannot be told not to; the peers, torchvision and Pillow, leave it.
        return decode_jpeg(data) if b"Exif\0\0" in data.numpy().tobytes() else decode(data, mode="UNCHANGED")

    return upright


def _jpeg(path: str, decode: Callable[[Tensor], Tensor]) -> Tensor | None:
    """A JPEG in gray or colour by ``decode``; None for whatever Pillow must look at: CMYK, damaged, no JPEG."""
    try:
        data = read_file(path)
        if data[:2].tolist() != [0xFF, 0xD8]:
            return None
        image = decode(data)
    except (RuntimeError, ValueError):
        return None
    return image.expand(3, -1, -1) if len(image) == 1 else image if len(image) == 3 else None


def _eight_bits(image: Image.Image) -> Image.Image:
    """The image, 16-bit gray scaled to 8 bits: Pillow's own conversion cuts off all above 255. Raises ValueError."""
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):
        return Image.fromarray((np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8))
    if image.mode in ("I", "F"):
        kind = "32-bit numbers" if image.mode == "I" else "floating-point numbers"
        raise ValueError(f"its pixels are {kind}, of no known range; convert it to 8 or 16 bits")
    return image


def _walk(root: str, at: str, seen: set[str], hidden: bool) -> Iterator[Listed]:
    """Every folder from ``root/at`` on, links followed, each once, and its files (no pipes or sockets).

    ``hidden``: whether it lies in a hidden folder.
    """
    folder = f"{root}/{at}"
    if (real := os.path.realpath(folder)) in seen:  # a link in a circle
        return
    seen.add(real)
    times: list[int] | None = index.times(folder)
    files = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir():
                yield from _walk(root, f"{at}/{entry.name}", seen, hidden or entry.name.startswith("."))
            elif entry.is_file():
                files.append(entry.name)
            elif entry.is_symlink():  # to nothing: an image that cannot be read, until one day a folder is there
                files.append(entry.name)
                times = None
    shown = [] if hidden else sorted(name for name in files if not name.startswith("."))
    images = [name for name in shown if name.lower().endswith(IMG_EXTENSIONS)]
    others = Counter[str]()
    if len(images) < len(shown):
        others.update(os.path.splitext(name)[1].lower() for name in shown if not name.lower().endswith(IMG_EXTENSIONS))
    yield Listed(at, times, images, len(files) - len(shown), others)


def _list(folder: Path) -> list[Listed]:
    """The folder itself, named "", and all of every class, sorted as torchvision does. Raises OSError."""
    times: list[int] | None = index.times(folder)
    with os.scandir(folder) as entries:
        inside = [entry for entry in entries if not entry.name.startswith(".")]
        names = sorted(entry.name for entry in inside if entry.is_dir())
        if any(entry.is_symlink() and not os.path.exists(entry.path) for entry in inside):  # to nothing, as above
            times = None
    classes = (sorted(_walk(str(folder), name, set(), False)) for name in names)
    return [Listed("", times, [], 0, {}), *(row for rows in classes for row in rows)]


@dataclass(frozen=True)
class Files:
    """The image files below a folder: ``names`` of the classes, ``paths`` and ``labels`` of the images; how many files
    were passed over: ``hidden`` ones, and ``others`` by suffix."""

    names: list[str]
    paths: list[str]
    labels: list[int]
    hidden: int
    others: Mapping[str, int]

    def passed_over(self) -> str:
        """``3 hidden files, 2 .gif``; empty where there are none."""
        said = [f"{self.hidden} hidden {'file' if self.hidden == 1 else 'files'}"] if self.hidden else []
        return ", ".join([*said, *(f"{count} {suffix or 'without a suffix'}" for suffix, count in self.others.items())])


def scan(folder: Path) -> Files:
    """The files ``folder/<class>/**/<image>``, sorted as torchvision's ImageFolder sorts them.

    Hidden files and folders are passed over. Raises `N2NError` for a folder without classes and for a class without
    images.
    """
    found = index.read(folder)
    if found is None:
        start = time.time_ns()
        try:
            found = _list(folder)
        except OSError as error:
            raise N2NError(f"imagefolder: cannot read {error.filename}: {error.strerror}") from error
        index.write(folder, found, start)
    names, paths, labels, others = list[str](), list[str](), list[int](), Counter[str]()
    images = Counter[str]()
    for row in found[1:]:
        name = row.at.partition("/")[0]
        if name == row.at:
            names.append(name)
        images[name] += len(row.images)
        at = str(folder / row.at)
        paths += [f"{at}/{image}" for image in row.images]
        labels += [len(names) - 1] * len(row.images)
        others.update(row.others)
    if not names:
        raise N2NError(f"imagefolder: no class folders in {folder} (expected {folder}/<class>/<image>)")
    if empty := [name for name in names if not images[name]]:
        raise N2NError(f"imagefolder: no images in {folder / empty[0]} ({', '.join(IMG_EXTENSIONS)})")
    return Files(names, paths, labels, sum(row.hidden for row in found), dict(others.most_common()))
