"""Studies of stages: the trainings of a strategy as one run, and what it had and had cost after every stage."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from n2n_cli.studies.runs import Run

_SUMS = ("step", "images", "epoch", "time_s")  # of a row of the log
_ENDS = ("step", "images", "epochs", "time_s")  # of done.json


def joined(runs: Iterable[Run]) -> list[Run]:
    """The runs, those of a study's stages joined: each strategy's of one seed are one run, from its first image on.

    Steps, images, FLOPs and wall time go on over the stages, so that whatever is told of the run counts all of them; a
    network that starts again at a stage has its earlier ones counted too. Of a later stage the evaluation before its
    first step is left out: at this step stands the end of the stage before.
    """
    runs = list(runs)
    found = {run.folder.resolve(): run for run in runs if _staged(run)}
    followed = {_before(run) for run in runs} - {None}
    kept = [run for run in runs if not _staged(run)]
    whole = [_join(_chain(run, found)) for run in runs if _staged(run) and run.folder.resolve() not in followed]
    names = Counter((run.key, run.seed) for run in whole)
    for run in whole:
        made = re.search(r"-stage\d+-([0-9a-f]{6})", run.folder.name)
        twice = names[run.key, run.seed] > 1 and made is not None
        kept.append(replace(run, alias=f"{run.alias}-chain-{made[1]}") if twice and made else run)
    return kept


def _staged(run: Run) -> bool:
    told = run.info.get("stage") or {}
    return None not in (told.get("of"), told.get("fraction"))


def _before(run: Run) -> Path | None:
    name = (run.info.get("stage") or {}).get("before")
    return None if name is None else (run.folder.parent / str(name)).resolve()


def _chain(run: Run, found: dict[Path, Run]) -> list[Run]:
    """The stages up to this run, the first of them first. A folder that was tampered with may follow itself."""
    chain = [run]
    while (before := found.get(_before(chain[0]) or Path())) is not None and before not in chain:
        chain.insert(0, before)
    return chain


def _join(stages: Sequence[Run]) -> Run:
    last, of = stages[-1], int(stages[-1].info["stage"]["of"])
    rows: list[dict[str, Any]] = []
    sums, ends, flops = dict.fromkeys(_SUMS, 0), dict.fromkeys(_ENDS, 0), 0.0
    known = all(stage.flops_per_image is not None for stage in stages)
    for place, stage in enumerate(stages):
        for row in stage.rows:
            if place and not row.get("step"):
                continue
            more = {key: sums[key] + row[key] for key in _SUMS if key in row}
            rows.append({**row, **more} | ({"flops": flops + (stage.flops(row) or 0.0)} if known else {}))
        told = stage.done or stage.last
        flops += stage.flops(told) or 0.0
        sums = {key: sums[key] + (told.get(key, told.get(f"{key}s")) or 0) for key in _SUMS}
        ends = {key: ends[key] + (told.get(key) or 0) for key in _ENDS}
    done = None
    if last.done is not None and len(stages) == of:
        done = {**last.done, **ends, "start": (stages[0].done or {}).get("start")} | ({"flops": flops} if known else {})
    gaps = [stage.info["function_gap"] for stage in stages if stage.info.get("function_gap")]
    info = {**last.info, "teacher": None, "epochs": sum(float(stage.info.get("epochs") or 0.0) for stage in stages)}
    info["function_gap"] = (
        {mode: max(gap.get(mode) or 0.0 for gap in gaps) for mode in ("eval", "train")} if gaps else None
    )
    name = re.sub(r"-stage\d+-[0-9a-f]{6}|-seed\d+$", "", last.folder.name)
    return replace(last, info=info, rows=rows, done=done, teacher=None, alias=name, stages=tuple(stages))
