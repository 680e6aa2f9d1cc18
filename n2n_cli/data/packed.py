"""Images as `n2n data pack` writes them: a few large files, read through memory maps.

``manifest.json`` (a sealed record, written last) says what there is. ``train.npz`` and ``val.npz`` hold a row an image
(`COLUMNS`) and its name. ``train-00000.bin``, ... hold the images one after the other, each from a multiple of 8 bytes
on: ``raw`` as ``[H, W, 3]`` bytes, ``jpeg`` as a file. An image's checksum is the sum of its 8-byte words: it tells any
changed byte, and costs little beside the reading.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.io import decode_jpeg

from n2n_cli.data.sources import as_batch
from n2n_cli.data.transforms import Augment
from n2n_cli.errors import N2NError

COLUMNS = ("shard", "offset", "length", "height", "width", "label", "checksum")


def checksum(words: np.ndarray) -> int:
    """The sum of ``words``, bytes ``[n]`` with n a multiple of 8."""
    return int(words.view(np.int64).sum())


def shard_file(root: Path, part: str, number: int) -> Path:
    return root / f"{part}-{number:05d}.bin"


def check(root: Path, part: str, about: Mapping[str, Any]) -> None:
    """Whether all files of a part are there, whole. Raises N2NError; bytes within the images are looked at later."""
    index, wanted = root / f"{part}.npz", about["shards"][part]
    files = [shard_file(root, part, number) for number in range(len(wanted))]
    try:
        same = hashlib.sha256(index.read_bytes()).hexdigest() == about["index"].get(part)
        wrong = [path for path, size in zip(files, wanted, strict=True) if path.stat().st_size != size]
    except OSError as error:
        raise N2NError(f"data.root: {error.filename}: {error.strerror}; pack it again") from error
    if not same or wrong:
        path = wrong[0] if same else index
        raise N2NError(f"data.root: {path} is not what was packed: remove it, and type `n2n data pack` again")


class PackedSource:
    """The images of one part (train, val) of a packed folder, augmented as those of a folder are.

    Raises `N2NError` for a folder that is incomplete, and, at the reading of an image, for one that is damaged.
    """

    decodes = True

    def __init__(self, root: Path, part: str, about: Mapping[str, Any], size: int, resize: int, augment: Augment):
        self.root, self.part, self.kind = root, part, about["kind"]
        self.faster = "n2n data pack --format raw" if self.kind == "jpeg" else ""
        self.size, self.resize, self.augment = size, resize, augment
        check(root, part, about)
        with np.load(root / f"{part}.npz") as index:
            self.rows, self.names = index["rows"], index["names"]
        self.labels = torch.from_numpy(self.rows[:, COLUMNS.index("label")].copy())
        self._sizes: list[int] = about["shards"][part]
        self._maps: dict[int, Tensor] = {}

    def __len__(self) -> int:
        return len(self.labels)

    def image(self, index: int) -> Tensor:
        """uint8 ``[3, H, W]``. Raises N2NError."""
        shard, offset, length, height, width, _, wanted = self.rows[index].tolist()
        if shard not in self._maps:
            self._maps[shard] = _mapped(shard_file(self.root, self.part, shard), self._sizes[shard])
        padded = self._maps[shard][offset : offset + length + -length % 8]
        if checksum(padded.numpy()) != wanted:
            path = shard_file(self.root, self.part, shard)
            name = bytes(self.names[index]).decode(errors="surrogateescape")
            raise N2NError(f"unreadable image {name}: {path} is damaged there: remove that file, and pack again")
        data = padded[:length]
        if self.kind == "raw":
            return data.view(height, width, 3).permute(2, 0, 1)
        return decode_jpeg(data)

    def batch(self, indices: Tensor, draws: Tensor | None) -> Tensor:
        """As of `FolderSource`."""
        images = [self.image(index) for index in indices.tolist()]
        return as_batch(images, draws, self.augment, self.resize, self.size)

    def subset(self, indices: Tensor, augment: Augment) -> PackedSource:
        """The images with these indices, as a source of its own."""
        part = object.__new__(PackedSource)
        part.__dict__ |= self.__dict__
        which = indices.numpy()
        part.rows, part.names, part.labels = self.rows[which], self.names[which], self.labels[indices]
        part.augment = augment
        return part


def _mapped(path: Path, size: int) -> Tensor:
    """The bytes of a file as a memory map, uint8 ``[size]``, copied on writing, which nobody does.

    It keeps no file open, as NumPy's map would: raw ImageNet has 1,250 shards, and a process may open 1,024 files.
    """
    with open(path, "rb") as file:  # by its number: PyTorch takes no name that is not UTF-8
        return torch.from_file(f"/dev/fd/{file.fileno()}", shared=False, size=size, dtype=torch.uint8)
