"""``n2n data pack``: an image folder, made smaller once, in a few large files."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from pathlib import Path

from n2n_cli.commands import machine
from n2n_cli.commands.check_data import counted
from n2n_cli.data import pack
from n2n_cli.schema import DataPack


def run(cfg: DataPack) -> None:
    """Raises N2NError; KeyboardInterrupt, and the same command goes on from there."""

    def watch(counts: Iterable[int], n: int) -> Iterable[int]:
        return counted(counts, cfg.progress, total=n, unit="image", desc="data pack")

    to, workers = Path(cfg.to), machine.workers(cfg.workers, 1, in_memory=False)
    how = partial(pack.pack, size=cfg.size, kind=cfg.format, quality=cfg.quality, workers=workers)
    try:
        about = how(Path(cfg.root), to, watch=watch)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("stopped; the same command goes on from there") from None
    size = sum(sum(shards) for shards in about["shards"].values())
    images = about["images"]
    print(
        f"{to}: {images['train']:,} training and {images['val']:,} validation images, {about['kind']}, shorter side "
        f"{about['size']} px, {size / 1e9:.3g} GB ({size / sum(images.values()) / 1e3:.0f} kB an image)"
    )
    print(f"use it by: data=packed data.root={to}", flush=True)
