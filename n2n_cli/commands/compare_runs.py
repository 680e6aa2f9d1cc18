"""``n2n compare RUN...``: one report on runs that are there already, however they were started."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

from n2n_cli.errors import N2NError
from n2n_cli.schema import CompareRuns


def run(cfg: CompareRuns) -> None:
    """Writes the report; what cannot be compared is named and left out.

    Raises:
        N2NError: nothing is left, or the folder of the report holds something else.
    """
    from n2n_cli import studies

    given = [Path(word) for word in cfg.runs]
    folder = Path(cfg.out) if cfg.out is not None else Path(f"report-{_names(given)}")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / "report.html").exists():
        raise N2NError(f"out: {folder} holds other files; take a new folder")
    found, damaged = studies.gather(given)
    runs, others = studies.comparable(found)
    left_out = {**damaged, **others}
    for name, reason in left_out.items():
        print(f"n2n: warning: left out {name}: {reason}", file=sys.stderr, flush=True)
    if not runs:
        raise N2NError(f"compare: none of the {len(left_out)} runs can be reported")
    runs = studies.ordered(runs, cfg.metric)
    command = shlex.join(["n2n", "compare", *cfg.runs, *([f"out={cfg.out}"] if cfg.out else [])])
    paths = studies.write(
        folder,
        title=f"Comparison of {len(runs)} runs",
        command=command,
        runs=runs,
        metric=cfg.metric,
        thresholds=cfg.thresholds,
        left_out=[f"Left out: {Path(name).name}: {reason}." for name, reason in left_out.items()],
    )
    arms = studies.statistics(runs, cfg.thresholds)
    told = [studies.table_text(arms), studies.stage_text(arms), *studies.failures(arms), f"report: {paths.report}"]
    print("\n".join(text for text in told if text), flush=True)


def _names(given: list[Path]) -> str:
    """The first two folders' names, or the first and how many more there are."""
    names = [path.resolve().name for path in given]
    return "-".join(names) if len(names) < 3 else f"{names[0]}-and-{len(names) - 1}-more"
