"""Packing: an image folder's photographs, made smaller once, in a few large files (see `packed`)."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torchvision.io import encode_jpeg

from n2n_cli import records
from n2n_cli.data.index import PARTS, digest, layout, stamp
from n2n_cli.data.packed import checksum
from n2n_cli.data.sources import read_image, scan
from n2n_cli.data.transforms import Interpolation, resized
from n2n_cli.errors import N2NError
from n2n_cli.processes import each

IMAGES = {"raw": 1024, "jpeg": 8192}
"""Images of a shard: some 250 MB."""
SAMPLE = 64
"""Images from which the size of all is estimated."""


@dataclass(frozen=True)
class Shard:
    """What one process packs at once."""

    to: Path
    part: str
    number: int
    root: Path
    paths: list[str]
    labels: list[int]
    size: int
    kind: str
    quality: int
    interpolation: Interpolation

    @property
    def stem(self) -> Path:
        return self.to / f"{self.part}-{self.number:05d}"

    @property
    def whole(self) -> bool:
        """Whether it is packed, and its file as long as its table says."""
        try:
            with np.load(self.stem.with_suffix(".npz")) as table:
                _, offset, length, *_ = table["rows"][-1].tolist()
            return self.stem.with_suffix(".bin").stat().st_size == offset + length + -length % 8
        except (OSError, ValueError, KeyError, zipfile.BadZipFile):
            return False


def pack(
    root: Path,
    to: Path,
    *,
    size: int = 256,
    kind: str = "jpeg",
    quality: int = 90,
    interpolation: Interpolation = "bilinear",
    workers: int = 1,
    watch: Callable[[Iterable[int], int], Iterable[int]] = lambda counts, n: counts,
) -> dict[str, Any]:
    """Packs ``root/train`` and ``root/val`` into the folder ``to``; what was begun there before is gone on with.

    Args:
        size: the shorter side in pixels; smaller images stay as they are.
        kind: ``raw`` (bytes as they are: fast, large) or ``jpeg`` (of ``quality`` up to 100).
        interpolation: by which images are made smaller.
        workers: processes.
        watch: wraps the numbers of images packed, of which there are ``n`` in all: a progress bar.

    Returns:
        The manifest.

    Raises:
        N2NError: no image folder; an image that cannot be read; the disk is too small; ``to`` holds something else.
    """
    folder = layout(root, PARTS)
    found = {part: scan(folder / part) for part in PARTS}
    if found["train"].names != found["val"].names:
        odd = sorted(set(found["train"].names) ^ set(found["val"].names))[0]
        raise N2NError(f"data pack: train/ and val/ of {root} have other classes, such as {odd!r}")
    images = {part: len(files.paths) for part, files in found.items()}
    every = [path for files in found.values() for path in files.paths]
    plan = {"format": 1, "size": size, "kind": kind, "quality": quality if kind == "jpeg" else None}
    plan |= {"interpolation": interpolation} if interpolation != "bilinear" else {}
    plan |= {"classes": found["train"].names, "files": digest(every, root), "images": images}
    plan |= {"source": stamp(every, root, times=False)}
    begun = _begun(to, plan)
    step, how = IMAGES[kind], (size, kind, quality, interpolation)
    shards = [
        Shard(to, part, i // step, root, files.paths[i : i + step], files.labels[i : i + step], *how)
        for part, files in found.items()
        for i in range(0, len(files.paths), step)
    ]
    todo = [shard for shard in shards if not shard.whole]
    _check_room(to, todo)
    if not begun:
        records.write(to / "plan.json", plan)
    done = sum(images.values()) - sum(len(shard.paths) for shard in todo)
    counts = each(_pack, todo, min(workers, len(todo)), what="data pack") if todo else ()
    for _ in watch(chain([done], counts), sum(images.values())):
        pass
    return _finish(to, plan, shards)


def _begun(to: Path, plan: dict[str, Any]) -> bool:
    """Whether ``to`` is already packed by this plan, in part at least. Raises N2NError where it holds another one."""
    if to.is_dir() and any(to.iterdir()) and not (to / "plan.json").exists():
        raise N2NError(f"data pack: {to} holds other files: give an empty folder, or a new one")
    try:
        before = records.read(to / "plan.json", records.MANIFEST)
    except FileNotFoundError:
        return False
    before = {"source": plan["source"], **before}  # which older plans lack
    if other := [key for key in plan if before.get(key) != plan[key]]:
        key = other[0]
        change = f"{before.get(key)} -> {plan[key]}" if key in ("size", "kind", "quality", "images") else "changed"
        what = "its source has changed" if key in ("files", "classes", "images", "source") else "it was begun otherwise"
        raise N2NError(f"data pack: {to}: {what} ({key}: {change}): remove it, or give another folder")
    return True


def _check_room(to: Path, todo: list[Shard]) -> None:
    """Raises N2NError where the disk is too small for what is to be packed, as far as a sample of it tells."""
    paths = [(path, shard) for shard in todo for path in shard.paths]
    sample = paths[:: max(1, len(paths) // SAMPLE)]
    need = sum(len(_packed(path, shard)[0]) for path, shard in sample) / max(1, len(sample)) * len(paths)
    free = shutil.disk_usage(next(path for path in (to, *to.absolute().parents) if path.exists())).free
    if need > free:
        raise N2NError(f"data pack: {to} has room for {free / 1e9:.1f} GB, and the images take {need / 1e9:.1f} GB")


def _packed(path: str, shard: Shard) -> tuple[bytes, int, int]:
    """An image's bytes, its height and width."""
    image = read_image(path)
    if min(image.shape[-2:]) > shard.size:
        image = resized(image, shard.size, shard.interpolation)
    _, height, width = image.shape
    if shard.kind == "raw":
        return image.permute(1, 2, 0).contiguous().numpy().tobytes(), height, width
    return encode_jpeg(image.contiguous(), shard.quality).numpy().tobytes(), height, width


def _pack(shard: Shard) -> int:
    """Writes a shard and, once it is safe, its rows; the number of its images."""
    torch.set_num_threads(1)
    rows, at = [], 0
    temporary = shard.stem.with_suffix(".tmp")
    try:
        with open(temporary, "wb") as file:
            for path, label in zip(shard.paths, shard.labels, strict=True):
                data, height, width = _packed(path, shard)
                padded = data + bytes(-len(data) % 8)
                file.write(padded)
                words = np.frombuffer(padded, np.uint8)
                rows.append((shard.number, at, len(data), height, width, label, checksum(words)))
                at += len(padded)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, shard.stem.with_suffix(".bin"))
        names = np.array([os.fsencode(os.path.relpath(path, shard.root)) for path in shard.paths])
        _write(shard.stem.with_suffix(".npz"), rows=np.array(rows, np.int64), names=names)
    except OSError as error:
        raise N2NError(f"data pack: cannot write {shard.stem}.bin: {error.strerror}") from error
    finally:
        temporary.unlink(missing_ok=True)
    return len(rows)


def _write(path: Path, rows: np.ndarray, names: np.ndarray) -> str:
    """Writes an ``.npz`` file, whole or not at all; its SHA-256."""
    np.savez(buffer := io.BytesIO(), rows=rows, names=names)
    records.atomic_write(path, buffer.getbuffer())
    return hashlib.sha256(buffer.getbuffer()).hexdigest()


def _table(shard: Shard) -> tuple[np.ndarray, np.ndarray]:
    """The rows and names of a packed shard. Closed at once: there may be more shards than files that can be open."""
    with np.load(shard.stem.with_suffix(".npz")) as table:
        return table["rows"], table["names"]


def _finish(to: Path, plan: dict[str, Any], shards: list[Shard]) -> dict[str, Any]:
    """One table a part of the tables of its shards, then the manifest."""
    manifest = {**plan, "shards": {}, "index": {}}
    for part in PARTS:
        mine = [shard for shard in shards if shard.part == part]
        rows, names = zip(*(_table(shard) for shard in mine), strict=True)
        manifest["index"][part] = _write(to / f"{part}.npz", np.concatenate(rows), np.concatenate(names))
        manifest["shards"][part] = [shard.stem.with_suffix(".bin").stat().st_size for shard in mine]
    records.write(to / "manifest.json", manifest)
    return manifest
