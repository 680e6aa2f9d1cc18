"""Every image file of a folder opened once: what cannot be read, what is odd, what stands there twice.

A check that is stopped leaves what it found in the user's cache folder, and the next one of the same folder goes on
from there; one that came to its end leaves nothing, as the next shall look at every file again.
"""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import astuple, dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

from PIL import Image

from n2n_cli.data.index import PARTS, cache_folder
from n2n_cli.data.sources import Files, read_image, scan
from n2n_cli.errors import N2NError
from n2n_cli.processes import each

FORMATS = {
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".png": "PNG",
    ".ppm": "PPM",
    ".pgm": "PPM",
    ".bmp": "BMP",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".webp": "WEBP",
}
MODES = {"P": "palette", "RGBA": "transparency", "LA": "transparency"}
CHUNK = 64  # files that a process is given at once


@dataclass(frozen=True)
class File:
    """What is found in one file: why it cannot be read (``error``, else None), what is odd about it, its digest, and
    its `state` before."""

    path: str
    error: str | None
    odd: tuple[str, ...]
    digest: str
    state: tuple[int, int]


@dataclass
class Report:
    """What `check` found. Paths are those below the root.

    ``images`` and ``classes`` by part; ``unreadable``: path and reason; ``odd``: paths by what is odd about them;
    ``duplicates``: paths of the same bytes, ``leaks`` those of them that stand in train and in val;
    ``hidden`` and ``others`` (by suffix): files that are passed over; ``missing``: classes that one part lacks.
    """

    images: dict[str, int] = field(default_factory=dict)
    classes: dict[str, dict[str, int]] = field(default_factory=dict)
    unreadable: dict[str, str] = field(default_factory=dict)
    odd: dict[str, list[str]] = field(default_factory=dict)
    duplicates: list[list[str]] = field(default_factory=list)
    leaks: list[list[str]] = field(default_factory=list)
    hidden: dict[str, int] = field(default_factory=dict)
    others: dict[str, dict[str, int]] = field(default_factory=dict)
    missing: dict[str, list[str]] = field(default_factory=dict)


def check(
    root: Path, workers: int, watch: Callable[[Iterable[Any], int], Iterable[Any]] = lambda files, n: files
) -> Report:
    """Opens every image below ``root/train`` and ``root/val`` once.

    Args:
        root: a folder of class folders in train/ and val/; one of the two may be missing.
        workers: processes.
        watch: wraps the results, of which there are ``n``: a progress bar.

    Raises:
        N2NError: there is neither train/ nor val/, or a class without images.
    """
    found = {part: scan(root / part) for part in PARTS if (root / part).is_dir()}
    if not found:
        raise N2NError(f"data check: no folder train/ or val/ in {root}")
    paths = [path for files in found.values() for path in files.paths]
    notes = _notes(root)
    known = _known(notes, set(paths))
    todo = [path for path in paths if path not in known]
    looked = each(look, todo, min(workers, len(todo) // CHUNK + 1), chunk=CHUNK, what="data check")
    files = list(watch(chain(known.values(), _noted(notes, looked)), len(paths)))
    if notes is not None:
        notes.unlink(missing_ok=True)
    by_path = {file.path: file for file in files}
    return _report(root, found, [by_path[path] for path in paths])


def state(path: str) -> tuple[int, int]:
    """A file's bytes, and when it was modified, in ns; twice 0 where there is none."""
    try:
        status = os.stat(path)
    except OSError:
        return 0, 0
    return status.st_size, status.st_mtime_ns


def _notes(root: Path) -> Path | None:
    """The file of what a check of ``root`` has found so far; None where no such file can be written."""
    with suppress(OSError):
        cache_folder().mkdir(mode=0o700, parents=True, exist_ok=True)
        notes = cache_folder() / f"{hashlib.sha256(os.fsencode(os.path.abspath(root))).hexdigest()[:24]}.check"
        notes.touch(mode=0o600)
        return notes
    return None


def _known(notes: Path | None, paths: set[str]) -> dict[str, File]:
    """What was found before in ``paths`` that have not changed since. What is no such note is passed over."""
    known = {}
    with suppress(OSError):
        for line in notes.read_bytes().splitlines() if notes else ():
            with suppress(ValueError, TypeError):
                path, error, odd, digest, was = json.loads(line)
                if path in paths and state(path) == tuple(was):
                    known[path] = File(path, error, tuple(odd), digest, tuple(was))
    return known


def _noted(notes: Path | None, files: Iterable[File]) -> Iterator[File]:
    """``files``, each written down first."""
    with open(notes or os.devnull, "ab", buffering=0) as written:  # a buffer would be written on closing, unguarded
        for file in files:
            with suppress(OSError):  # a full disk: the next check begins anew
                written.write(json.dumps(astuple(file)).encode() + b"\n")
            yield file


def look(path: str) -> File:
    """One file: decoded as training decodes it."""
    before = state(path)
    try:
        read_image(path)
    except N2NError as error:
        return File(path, str(error).partition(f"{path}: ")[2], (), "", before)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with Image.open(path) as image:
                odd = _odd(path, image)
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):  # torchvision reads some of these
            odd = ["header that Pillow does not read"]
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return File(path, None, tuple(odd), digest, before)


def _odd(path: str, image: Image.Image) -> list[str]:
    odd, named = [], FORMATS.get(os.path.splitext(path)[1].lower())
    if image.format != named and not (named == "JPEG" and image.format == "MPO"):
        odd.append(f"{image.format}, named {os.path.splitext(path)[1]}")
    if image.mode.startswith("I"):
        odd.append("16 bits, scaled to 8")
    elif image.mode not in ("RGB", "L"):
        odd.append(MODES.get(image.mode, image.mode))
    if min(image.size) < 8:
        odd.append("smaller than 8 px")
    return odd


def _report(root: Path, found: dict[str, Files], files: list[File]) -> Report:
    report, by_digest, odd = Report(), defaultdict[str, list[str]](list), defaultdict[str, list[str]](list)
    for file in files:
        name = os.path.relpath(file.path, root)
        if file.error is not None:
            report.unreadable[name] = file.error
            continue
        by_digest[file.digest].append(name)
        for what in file.odd:
            odd[what].append(name)
    report.odd = dict(odd)
    report.duplicates = [names for names in by_digest.values() if len(names) > 1]
    report.leaks = [names for names in report.duplicates if len({name.split(os.sep)[0] for name in names}) > 1]
    for part, listed in found.items():
        count = Counter(listed.labels)
        report.images[part] = len(listed.paths)
        report.classes[part] = {name: count[label] for label, name in enumerate(listed.names)}
        report.hidden[part], report.others[part] = listed.hidden, dict(listed.others)
        rest = {name for other, files_ in found.items() if other != part for name in files_.names} - set(listed.names)
        report.missing[part] = sorted(rest)
    return report
