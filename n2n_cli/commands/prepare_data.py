"""``n2n data prepare``: official archives, verified and unpacked to an image folder."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from n2n_cli.commands.check_data import counted
from n2n_cli.data import prepare
from n2n_cli.schema import DataPrepare


def run(cfg: DataPrepare) -> None:
    """Raises N2NError; KeyboardInterrupt, and the same command goes on from there."""

    def watch(counts: Iterable[int], n: int, unit: str, what: str) -> Iterable[int]:
        words = {"unit": unit, "unit_scale": unit == "B", "desc": f"data prepare: {what}"}
        return counted(counts, cfg.progress, total=n, **words)

    try:
        made = prepare.imagenet(Path(cfg.src), Path(cfg.dst), verify=cfg.verify, watch=watch)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("stopped; the same command goes on from there") from None
    print(
        f"{cfg.dst}: {made['train']:,} training and {made['val']:,} validation images of {made['classes']:,} classes\n"
        f"use it by: data=imagefolder data.root={cfg.dst}",
        flush=True,
    )
