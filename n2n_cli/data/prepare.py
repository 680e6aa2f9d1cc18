"""ImageNet's official archives, unpacked to an image folder: train/WNID/*.JPEG and val/WNID/*.JPEG.

Every class is written into a hidden folder, ``.WNID.partial``, which gets its name once it is whole. So what was begun
is gone on with: a file that is there in its size is not written again.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import shutil
import tarfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from torchvision.datasets.imagenet import ARCHIVE_META

from n2n_cli import records
from n2n_cli.data.index import PARTS
from n2n_cli.errors import N2NError

SIZES = {"train": 147_897_477_120, "val": 6_744_924_160, "devkit": 2_568_145}
"""Of the official archives, in bytes."""
STATE = ".prepare.json"
"""Which archives the folder is made from: ``sizes`` in bytes, and ``verified``: when those that are known good were
modified, in ns."""
ROOM = 1.02
"""Of the archives' size, that their files take on a disk: the last block of each is half empty."""
BLOCK = 1 << 22
DEVKIT = "ILSVRC2012_devkit_t12/data/"
TRUTH = "ILSVRC2012_validation_ground_truth.txt"
Watch = Callable[[Iterable[int], int, str, str], Iterable[int]]


class Image(NamedTuple):
    """A file in an archive: where its bytes begin, and how many they are."""

    name: str
    offset: int
    size: int


def imagenet(
    src: Path, dst: Path, *, verify: bool = True, watch: Watch = lambda counts, n, unit, what: counts
) -> dict[str, int]:
    """Unpacks the archives of ILSVRC 2012 in ``src`` to ``dst``; what was begun there before is gone on with.

    Args:
        verify: only the official archives, by size and MD5; else any whole ones of their layout.
        watch: wraps what is done, in ``n`` of a ``unit`` in all, and says ``what`` that is: a progress bar.

    Returns:
        How many images train/ and val/ have, and how many ``classes``.

    Raises:
        N2NError: an archive is missing, damaged or another one; the archives do not go together; the disk is too
            small; ``dst`` holds something else. Nothing is written then.
    """
    paths = {part: src / name for part, (name, _) in ARCHIVE_META.items()}
    sizes = {part: _size(path, SIZES[part] if verify else None) for part, path in paths.items()}
    verified = _begun(dst, sizes)
    times = {part: path.stat().st_mtime_ns for part, path in paths.items()}
    for part, path in paths.items():
        if verify and verified.get(part) != times[part]:
            digest = hashlib.md5()
            for _ in watch(_hashed(path, digest), sizes[part], "B", f"MD5 of {path.name}"):
                pass
            if digest.hexdigest() != ARCHIVE_META[part][1]:
                raise N2NError(f"data prepare: {path} is damaged: its MD5 is not the official one; fetch it again")
    wnids, truth = _devkit(paths["devkit"])
    have = _there(dst, wnids)
    with open(paths["train"], "rb") as train, open(paths["val"], "rb") as val:
        archive, tars = _members(train, str(paths["train"]), r"n[0-9]{8}\.tar")
        if odd := {tar.name[:9] for tar in tars} ^ wnids:
            where, other = ("the archive", "the devkit") if min(odd) not in wnids else ("the devkit", "the archive")
            raise N2NError(f"data prepare: {paths['train']}: {where} has a class {min(odd)}, and {other} has not")
        labelled = _labelled(val, paths["val"], truth)
        if not verify:  # one of the official MD5 is whole inside, too
            looked = (bool(_images(paths["train"], archive, tar)) for tar in tars)
            for _ in watch(looked, len(tars), "class", "look"):
                pass
        _check_room(dst, round(ROOM * (sizes["train"] + sizes["val"])) - have)
        records.write(dst / STATE, {"sizes": sizes, "verified": times if verify else verified})
        counts = dict.fromkeys(PARTS, 0)

        def write() -> Iterator[int]:
            for tar in tars:
                images = _images(paths["train"], archive, tar)
                counts["train"] += len(images)
                yield from _write(train, images, dst / "train" / tar.name[:9])
                yield tar.size - sum(image.size for image in images)
            for wnid, images in labelled.items():
                counts["val"] += len(images)
                yield from _write(val, images, dst / "val" / wnid)

        total = sum(tar.size for tar in tars) + sum(image.size for images in labelled.values() for image in images)
        for _ in watch(write(), total, "B", "unpack"):
            pass
    return {**counts, "classes": len(wnids)}


def _size(path: Path, official: int | None) -> int:
    """Bytes of an archive. Raises N2NError where it is missing, or not as large as the official one."""
    if not path.is_file():
        raise N2NError(f"data prepare: no {path.name} in {path.parent}")
    size = path.stat().st_size
    if official not in (None, size):
        raise N2NError(
            f"data prepare: {path} has {size:,} bytes, the official one {official:,}: fetch it again, or take another "
            "copy as it is with verify=false"
        )
    return size


def _hashed(path: Path, digest: Any) -> Iterator[int]:
    """Feeds a file to ``digest``; the bytes of each piece."""
    with open(path, "rb") as file:
        while piece := file.read(BLOCK):
            digest.update(piece)
            yield len(piece)


def _begun(dst: Path, sizes: dict[str, int]) -> dict[str, int]:
    """Which archives were verified when ``dst`` was begun. Raises N2NError where it holds something else."""
    if dst.exists() and not dst.is_dir():
        raise N2NError(f"data prepare: {dst} is a file, expected a folder")
    try:
        state = records.read(dst / STATE, {"sizes": {"*": int}, "verified": {"*": int}}, ("sizes", "verified"))
    except FileNotFoundError:
        if dst.is_dir() and any(not path.name.startswith(records.TEMPORARY) for path in dst.iterdir()):
            raise N2NError(f"data prepare: {dst} holds other files: give an empty folder, or a new one") from None
        return {}
    if state["sizes"] != sizes:
        raise N2NError(f"data prepare: {dst} was begun from other archives: remove it, or give another folder")
    return dict(state["verified"])


def _there(dst: Path, wnids: set[str]) -> int:
    """Bytes of the images in ``dst``. Raises N2NError where anything else is there."""
    have = 0
    for part in os.scandir(dst) if dst.exists() else ():
        if part.name == STATE or part.name.startswith(records.TEMPORARY):
            continue
        for folder in _inside(part, part.name in PARTS):
            wnid = folder.name.removeprefix(".").removesuffix(".partial")
            for file in _inside(folder, wnid in wnids and folder.name in (wnid, f".{wnid}.partial")):
                if not file.is_file(follow_symlinks=False) or not re.fullmatch(_pattern(part.name, wnid), file.name):
                    raise N2NError(f"data prepare: {file.path} is not of ImageNet: give an empty folder, or a new one")
                have += file.stat().st_size
    return have


def _inside(folder: os.DirEntry[str], ours: bool) -> Iterator[os.DirEntry[str]]:
    if not ours or not folder.is_dir(follow_symlinks=False):
        raise N2NError(f"data prepare: {folder.path} is not of ImageNet: give an empty folder, or a new one")
    return os.scandir(folder)


def _pattern(part: str, wnid: str) -> str:
    return rf"{wnid}_[0-9]+\.JPEG" if part == "train" else r"ILSVRC2012_val_[0-9]{8}\.JPEG"


def _devkit(path: Path) -> tuple[set[str], list[str]]:
    """The classes, and that of each validation image in the order of their names. Raises N2NError."""
    from scipy.io import loadmat

    try:
        with tarfile.open(path, "r:gz") as archive:
            files = [archive.extractfile(DEVKIT + name) for name in ("meta.mat", TRUTH)]
            meta, truth = (file.read() if file else b"" for file in files)
        synsets = np.atleast_1d(loadmat(io.BytesIO(meta), squeeze_me=True)["synsets"])
        wnids = {int(one["ILSVRC2012_ID"]): str(one["WNID"]) for one in synsets if one["num_children"] == 0}
        numbers = [int(line) for line in truth.split()]
    except Exception as error:  # scipy raises nearly anything on damaged files
        reason = " ".join(str(error.args[0] if error.args else error).split())
        raise N2NError(f"data prepare: {path} is no devkit of ILSVRC 2012 ({reason})") from error
    if odd := [wnid for wnid in wnids.values() if not re.fullmatch("n[0-9]{8}", wnid)]:
        raise N2NError(f"data prepare: {path} is no devkit of ILSVRC 2012 (a class is called {odd[0]!r})")
    if other := set(numbers) ^ wnids.keys():
        raise N2NError(f"data prepare: {path}: meta.mat and {TRUTH} have other classes, such as {min(other)}")
    return set(wnids.values()), [wnids[number] for number in numbers]


def _members(file: IO[bytes], name: str, pattern: str) -> tuple[tarfile.TarFile, list[tarfile.TarInfo]]:
    """A tar archive, called ``name`` in errors, and its members. Raises N2NError where it is none, is not whole, or
    holds anything but files named like ``pattern``, each once."""
    try:
        archive = tarfile.open(fileobj=file, mode="r:")  # noqa: SIM115  # its file is the caller's
        members = archive.getmembers()
        file.seek(archive.offset)
        if file.read(512).strip(b"\0"):  # tarfile takes what is no header for the end
            raise tarfile.ReadError(f"no header at byte {archive.offset:,}")
    except (tarfile.TarError, OSError, ValueError) as error:
        raise N2NError(f"data prepare: {name} is no whole tar archive ({' '.join(str(error).split())})") from error
    names = Counter(member.name for member in members)
    for member in members:
        if not re.fullmatch(pattern, member.name) or not member.isreg() or member.issparse() or names[member.name] > 1:
            raise N2NError(f"data prepare: {name} is not ImageNet's: it holds {member.name[:80]!r}")
    return archive, members


def _images(path: Path, archive: tarfile.TarFile, tar: tarfile.TarInfo) -> list[Image]:
    """The images of a class. Raises N2NError."""
    inner = archive.extractfile(tar)
    assert inner is not None  # a regular file
    _, members = _members(inner, f"{path}: {tar.name}", _pattern("train", tar.name[:9]))
    if not members:
        raise N2NError(f"data prepare: {path}: {tar.name} is empty")
    return [Image(member.name, tar.offset_data + member.offset_data, member.size) for member in members]


def _labelled(file: IO[bytes], path: Path, truth: list[str]) -> dict[str, list[Image]]:
    """The validation images by class. Raises N2NError where they are not those that the devkit labels."""
    _, members = _members(file, str(path), _pattern("val", ""))
    names = [f"ILSVRC2012_val_{number:08d}.JPEG" for number in range(1, len(truth) + 1)]
    found = {member.name: Image(member.name, member.offset_data, member.size) for member in members}
    if odd := found.keys() ^ set(names):
        raise N2NError(
            f"data prepare: {path} has {len(found):,} images, the devkit {len(truth):,} labels; {min(odd)} has no "
            f"{'label' if min(odd) in found else 'image'}"
        )
    labelled: dict[str, list[Image]] = {}
    for name, wnid in zip(names, truth, strict=True):
        labelled.setdefault(wnid, []).append(found[name])
    return labelled


def _check_room(dst: Path, need: int) -> None:
    """Raises N2NError where the disk has not so many bytes."""
    folder = next(path for path in (dst, *dst.absolute().parents) if path.exists())
    free = shutil.disk_usage(folder).free
    if need > free:
        raise N2NError(f"data prepare: {dst} has room for {free / 1e9:.1f} GB, and the images take {need / 1e9:.1f} GB")


def _write(file: IO[bytes], images: list[Image], folder: Path) -> Iterator[int]:
    """Writes what is not there yet of a class; the bytes of each image, whether there or not. Raises N2NError."""
    partial = folder.with_name(f".{folder.name}.partial")
    to = folder if folder.exists() else partial
    try:
        to.mkdir(parents=True, exist_ok=True)
        sizes = {entry.name: entry.stat().st_size for entry in os.scandir(to)}
        if odd := sizes.keys() - {image.name for image in images}:
            raise N2NError(f"data prepare: {to / min(odd)} is not in {file.name}: remove it")
        for image in images:
            if sizes.get(image.name) != image.size:
                file.seek(image.offset)
                (to / image.name).write_bytes(file.read(image.size))
            yield image.size
        if to == partial:
            partial.rename(folder)
    except OSError as error:
        raise N2NError(f"data prepare: {folder}: {error.strerror}") from error
