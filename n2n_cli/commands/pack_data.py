"""``n2n data pack``: an image folder, made smaller once, in a few large files."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from n2n_cli.commands import machine
from n2n_cli.data import pack
from n2n_cli.schema import DataPack


def run(cfg: DataPack) -> None:
    """Raises N2NError; KeyboardInterrupt, and the same command goes on from there."""
    to = Path(cfg.to)
    workers = machine.workers(cfg.workers, 1, in_memory=False)
    try:
        about = pack.pack(
            Path(cfg.root),
            to,
            size=cfg.size,
            kind=cfg.format,
            quality=cfg.quality,
            workers=workers,
            watch=_bar(cfg.progress),
        )
    except KeyboardInterrupt:
        raise KeyboardInterrupt("stopped; the same command goes on from there") from None
    size = sum(sum(shards) for shards in about["shards"].values())
    images = about["images"]
    print(
        f"{to}: {images['train']:,} training and {images['val']:,} validation images, {about['kind']}, shorter side "
        f"{about['size']} px, {size / 1e9:.3g} GB ({size / sum(images.values()) / 1e3:.0f} kB an image)"
    )
    print(f"use it by: data=packed data.root={to}", flush=True)


def _bar(progress: bool | None) -> Any:
    """A progress bar in images, on a terminal."""
    if not (progress or (progress is None and sys.stderr.isatty())):
        return lambda counts, n: counts

    def watch(counts: Iterable[int], n: int) -> Iterable[int]:
        from tqdm import tqdm

        with tqdm(total=n, unit="image", dynamic_ncols=True, desc="data pack") as shown:
            for count in counts:
                shown.update(count)
                yield count

    return watch
