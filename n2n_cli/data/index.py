"""What `scan` found in a folder, kept in the user's cache folder: listing a million files on a cold disk takes minutes.

An index counts as long as no folder has changed since, by its times of modification and of change. Whatever is wrong
with one, the folder is listed anew and nobody is told.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import zlib
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from torchvision.datasets.folder import IMG_EXTENSIONS

from n2n_cli import records
from n2n_cli.errors import N2NError, suggest

PARTS = ("train", "val")
RACY_NS = 2_000_000_000
"""A folder that changed so shortly before it was listed may change again at what its file system calls the same time
(FAT counts in 2 s), and look unchanged: such a folder is not indexed."""


class Listed(NamedTuple):
    """One folder: ``at``: its path below the scanned one; ``times``: `times` before it was listed, None where they tell
    nothing; ``images``: names, sorted; ``hidden``, ``others``: how many files are passed over (these by suffix)."""

    at: str
    times: list[int] | None
    images: list[str]
    hidden: int
    others: dict[str, int]


def times(folder: str | Path) -> list[int]:
    """When a folder was modified and changed, in ns (``cp -a`` and rsync set the first back, nobody the second); links
    are followed. Raises OSError."""
    status = os.stat(folder)
    return [status.st_mtime_ns, status.st_ctime_ns]


def read(folder: Path) -> list[Listed] | None:
    """What `write` was given for this folder, if it still holds."""
    try:
        head, rows = json.loads(gzip.decompress(_file(folder).read_bytes()))
        found = [Listed(*row) for row in rows]
        return found if head == _head(folder) and all(times(folder / row.at) == row.times for row in found) else None
    except (OSError, EOFError, zlib.error, ValueError, TypeError, RecursionError):
        return None


def write(folder: Path, found: Sequence[Listed], start_ns: int) -> None:
    """Keeps what was found, where every folder's times tell of later changes; ``start_ns``: when listing began."""
    if all(row.times and min(row.times) > 0 and max(row.times) < start_ns - RACY_NS for row in found):
        with suppress(OSError):
            _file(folder).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            # Level 1 makes a tenth of it; gzip's own checksum finds what is damaged.
            records.atomic_write(_file(folder), gzip.compress(json.dumps([_head(folder), found]).encode(), 1))


def cache_folder() -> Path:
    """Where n2n keeps what it can make anew. Raises FileNotFoundError where nobody's home is known."""
    cache = os.environ.get("XDG_CACHE_HOME", "")
    cache = cache if os.path.isabs(cache) else os.path.expanduser("~/.cache")
    if not os.path.isabs(cache):  # nobody's home is known
        raise FileNotFoundError(cache)
    return Path(cache, "n2n")


def _file(folder: Path) -> Path:
    return cache_folder() / f"{hashlib.sha256(os.fsencode(os.path.realpath(folder))).hexdigest()[:24]}.index"


def _head(folder: Path) -> list[Any]:
    return ["n2n index 1", os.path.realpath(folder), list(IMG_EXTENSIONS)]


def digest(paths: Sequence[str], root: Path) -> str:
    """Which image files these are: a digest of their paths below ``root``."""
    start = len(str(root / "_")) - 1  # of "." nothing stands in the paths
    below = sorted(f"/{path[start:]}" for path in paths)
    return hashlib.sha256("\n".join(below).encode(errors="surrogateescape")).hexdigest()[:16]


def stamp(paths: Sequence[str], root: Path, *, times: bool) -> str:
    """A digest of the files' paths below ``root``, their bytes, and with ``times`` when they were modified.

    Raises N2NError.
    """
    start, stamped = len(str(root / "_")) - 1, hashlib.sha256()
    for path in paths:
        try:
            status = os.stat(path)
        except OSError as error:
            raise N2NError(f"unreadable image {path}: {error.strerror}") from error
        time_ns = status.st_mtime_ns if times else 0
        stamped.update(f"{path[start:]}\n{status.st_size} {time_ns}\n".encode(errors="surrogateescape"))
    return stamped.hexdigest()[:16]


def layout(root: str | Path | None, parts: Sequence[str]) -> Path:
    """The folder that holds ``parts`` (train/, val/), or one line that says what is wrong and which folder is near."""
    if root is None:
        raise N2NError("imagefolder needs data.root=FOLDER (with train/<class>/ and val/<class>/ in it)")
    folder = Path(root).expanduser()
    if not folder.is_dir():
        beside = [path.name for path in folder.parent.iterdir()] if folder.parent.is_dir() else []
        near = suggest(folder.name, beside)
        problem = "is not a folder" if folder.exists() else "does not exist"
        raise N2NError(f"imagefolder: data.root={folder} {problem}{near}")
    for part in parts:
        if not (folder / part).is_dir():
            inside = [p for p in sorted(folder.iterdir()) if (p / part).is_dir()]
            others = [p for p in [*inside, folder.parent] if (p / "train").is_dir() and (p / "val").is_dir()]
            near = f" (did you mean data.root={others[0]}?)" if others else ""
            raise N2NError(f"imagefolder: no {part}/ in data.root={folder}{near}")
    return folder
