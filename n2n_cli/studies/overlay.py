"""TensorBoard's side of a study: the arms overlaid, and mean and spread over seeds, which TensorBoard lacks.

The run folders have identical tags and so share their charts by themselves. Beside them lie ``mean/<arm>``:
runs with the mean over an arm's finished seeds under the same tags, and its spread under
``spread/<tag>/mean|lower|upper`` (tags that only these runs have, for the charts with bands).
A custom-scalars layout puts the charts that matter on a page of their own.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from n2n_cli.studies.plots import mean_and_spread
from n2n_cli.studies.statistics import ArmStatistics

FOLDER = "mean"
TAGS = ("val/top1", "val/top5", "val/loss", "train/loss", "train/top1")
LONGEST = 200  # bytes of a folder's name
_SPREAD = ("val/top1", "train/loss")


def write(folder: Path, arms: Sequence[ArmStatistics]) -> Path:
    """Writes ``folder/mean`` anew: a run for each arm with two finished seeds or more, and the layout."""
    from torch.utils.tensorboard import SummaryWriter  # brings torch, which a finished study does not wait for

    target = folder / FOLDER
    shutil.rmtree(target, ignore_errors=True)
    averaged = [arm for arm in arms if arm.n > 1]
    layout = _layout(bool(averaged))  # written to one run: TensorBoard merges the layouts of all
    if not averaged:
        with SummaryWriter(str(target)) as board:
            board.add_custom_scalars(layout)
    for arm in averaged:
        with SummaryWriter(str(target / _folder(arm.key))) as board:
            if arm is averaged[0]:
                board.add_custom_scalars(layout)
            _average(board, arm)
    return target


def _folder(key: str) -> str:
    """A name that file systems take (255 bytes at most)."""
    data = key.encode()
    if len(data) <= LONGEST:
        return key
    return f"{data[: LONGEST - 7].decode(errors='ignore')}-{hashlib.sha256(data).hexdigest()[:6]}"


def _average(board: Any, arm: ArmStatistics) -> None:
    """Mean and spread at the steps that all finished seeds have; wall time is the first seed's."""
    run = arm.runs[0].run
    start = (run.folder / "run.json").stat().st_mtime
    times = {int(row["step"]): float(row.get("time_s", 0.0)) for row in run.rows}
    for tag in TAGS:
        for step, mean, sd in zip(*mean_and_spread([one.run.series(tag) for one in arm.runs]), strict=True):
            band = dict(zip(_band(tag), (mean, mean - sd, mean + sd), strict=True)) if tag in _SPREAD else {}
            for name, value in {tag: mean, **band}.items():
                board.add_scalar(name, value, step, start + times.get(step, 0.0))


def _band(tag: str) -> list[str]:
    return [f"spread/{tag}/{part}" for part in ("mean", "lower", "upper")]


def _layout(averaged: bool) -> dict[str, dict[str, list[Any]]]:
    """All arms on one chart a tag; where there are several seeds, mean and standard deviation first."""
    bands = {f"{tag}: mean and standard deviation": ["Margin", _band(tag)] for tag in _SPREAD}
    lines = {tag: ["Multiline", [f"^{tag}$"]] for tag in (*TAGS, "lr")}
    return ({"Arms over seeds": bands} if averaged else {}) | {"Arms, every run": lines}
