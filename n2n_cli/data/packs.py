"""Packs that n2n makes for itself in the user's cache folder: ``data.cache=packed``.

A pack is named by what it is made of (a digest over every image's path below the root, its bytes and when it was
modified), by its size, and by how images were made smaller. So a copy of a folder that keeps the times finds the same
pack, a changed folder gets another one, and nothing ever looks whether an old one still holds.

The kind follows from the size alone, and never from the disk: the same command must give the same pixels everywhere.
Photographs are packed as JPEG of quality 90: ImageNet takes 35 GB then, which a home has, against 333 GB raw. Small
images (up to `CIFAR_LIKE_PX`) stay raw: JPEG would harm them, and they take little. Who has room for more types
`n2n data pack ROOT TO --format raw` and takes data=packed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

from n2n_cli import records
from n2n_cli.data import packed
from n2n_cli.data.datasets import CIFAR_LIKE_PX
from n2n_cli.data.index import PARTS, cache_folder, layout, stamp
from n2n_cli.data.pack import pack
from n2n_cli.data.sources import scan
from n2n_cli.data.transforms import Interpolation
from n2n_cli.errors import N2NError
from n2n_cli.processes import locked

QUALITY = 90


def kept(
    root: Path,
    *,
    size: int,
    interpolation: Interpolation = "bilinear",
    make: bool = True,
    workers: int = 1,
    watch: Callable[[Iterable[int], int], Iterable[int]] = lambda counts, n: counts,
    tell: Callable[[str], object] = lambda line: None,
) -> Path | None:
    """The folder of the pack of ``root/train`` and ``root/val``, made now if it is not there; of several processes one
    makes it, and the others wait.

    Args:
        size, interpolation, workers, watch: as for `pack`.
        make: None is returned instead where there is none.
        tell: gets a line before something takes long.

    Raises:
        N2NError: as of `pack`; or there is no cache folder to write to.
    """
    folder = layout(root, PARTS)
    kind = "raw" if size <= CIFAR_LIKE_PX else "jpeg"
    try:
        place = cache_folder() / "packs"
        files = stamp([path for part in PARTS for path in scan(folder / part).paths], folder, times=True)
        to = place / f"{files}-{size}-{kind}{'' if interpolation == 'bilinear' else '-' + interpolation}"
        if whole(to):
            return to
        if not make:
            return None
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
        with locked(to.with_suffix(".lock"), lambda: tell(f"waits for another process, which packs {root}")):
            if whole(to):
                return to
            tell(f"packs {root} into {to}, once for all later runs (XDG_CACHE_HOME= names another place)")
            how = {"size": size, "kind": kind, "quality": QUALITY, "interpolation": interpolation}
            pack(root, to, workers=workers, watch=watch, **how)  # type: ignore[arg-type]
    except OSError as error:
        reason = "no home folder is known; set XDG_CACHE_HOME" if error.strerror is None else error.strerror
        raise N2NError(f"data.cache=packed: {f'{error.filename}: ' if error.filename else ''}{reason}") from error
    except N2NError as error:
        told = str(error).removeprefix("data pack: ")
        told += "; every image is packed, and none skipped: see n2n data check" if "unreadable image" in told else ""
        raise N2NError(f"data.cache=packed: {told}") from error
    return to


def whole(to: Path) -> bool:
    """Whether a pack is there with all its files, each of its size."""
    with suppress(N2NError):
        about = records.manifest(to)
        for part in PARTS:
            packed.check(to, part, about)
        return True
    return False
