"""What a sweep's jobs came to, one line a job: told at its end, and written to OUT/sweep-HASH beside links to its runs.

TensorBoard and ``n2n compare`` take that folder as they take any other with runs in it.
"""

from __future__ import annotations

import csv
import hashlib
import os
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from n2n_cli import records
from n2n_cli.errors import N2NError

RUNS = ("train_teacher", "train_student", "grow")
"""The commands whose jobs are a run each."""


@dataclass
class Job:
    """One job: its ``overrides`` (``optim.lr=0.1``), the folder that it writes to and ``out``, and why it failed, if
    known."""

    overrides: Sequence[str]
    folder: Path
    out: Path
    failed: str | None = None


def tell(command: str, jobs: Sequence[Job], words: Sequence[str]) -> None:
    """Prints the table of a sweep of ``command``, and where its runs are overlaid.

    Writes OUT/sweep-HASH, of the command line's ``words``: summary.csv and, of commands that make runs, a link to every
    run that is there, called as what its job has of its own: ``optim.lr=0.1,seed=0``. Nothing for commands that write
    no folder, or wrote nothing. Raises N2NError for a folder that cannot be written.
    """
    wrote = [job for job in jobs if job.folder.name and job.folder.is_dir() and any(job.folder.iterdir())]
    if command not in (*RUNS, "compare") or not wrote:
        return
    folder = jobs[0].out / f"sweep-{hashlib.sha256(' '.join([command, *words]).encode()).hexdigest()[:6]}"
    from n2n_cli.studies.table import aligned, percent  # brings matplotlib, which a sweep's jobs do not wait for

    keys, rows = swept(jobs), []
    for job in jobs:
        values = dict(_parts(job.overrides))
        told = _told(job) if command in RUNS else {"state": f"failed: {job.failed}" if job.failed else "done"}
        rows.append({**{key: values.get(key, "") for key in keys}, **told, "folder": str(job.folder)})
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "summary.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
        linked = command in RUNS and _link(jobs, keys, folder)
    except OSError as error:
        raise N2NError(f"cannot write {folder}: {error.strerror}") from error
    accuracies = [word for word in ("start", "best", "final") if word in rows[0]]
    head = [*keys, *(f"{word.capitalize()}, %" for word in accuracies), "State", "Folder"]
    shown = [
        [*(row[key] for key in keys), *(percent(row[word]) for word in accuracies), row["state"], row["folder"]]
        for row in rows
    ]
    print(f"\n{aligned([head, *shown])}\nsummary: {folder / 'summary.csv'}")
    if linked:
        typed = shlex.quote(str(folder))
        print(f"tensorboard --logdir {typed}\nn2n compare {typed}", flush=True)


def swept(jobs: Sequence[Job]) -> list[str]:
    """The keys that differ between the jobs; of a single job, all that it was given."""
    every = [dict(_parts(job.overrides)) for job in jobs]
    keys = list(dict.fromkeys(key for one in every for key in one))
    return [key for key in keys if len(every) == 1 or any(one.get(key) != every[0].get(key) for one in every)]


def _parts(overrides: Sequence[str]) -> list[tuple[str, str]]:
    return [(key.lstrip("+"), value) for key, _, value in (word.partition("=") for word in overrides)]


def _told(job: Job) -> dict[str, Any]:
    """Accuracies before the first step, at best and at the end, seconds, and how far the run is."""
    found: dict[str, Any] = dict.fromkeys(("start", "best", "final", "seconds"))
    try:
        done = records.read(job.folder / "done.json", records.DONE)
    except N2NError as error:
        return {**found, "state": f"damaged: {error}"}
    except FileNotFoundError:
        if job.failed:
            return {**found, "state": f"failed: {job.failed}"}
        rows = records.rows(job.folder / "metrics.jsonl")
        return {**found, "state": f"stopped at step {rows[-1].get('step', 0):,}" if rows else "not run"}
    found |= {word: (done.get(word) or {}).get("val/top1") for word in ("start", "best", "final")}
    return {**found, "seconds": done.get("time_s"), "state": f"failed: {job.failed}" if job.failed else "done"}


def _link(jobs: Sequence[Job], keys: Sequence[str], folder: Path) -> bool:
    """Links to the runs that are there, those of an earlier time removed; whether there are any."""
    for old in folder.iterdir():
        if old.is_symlink():
            old.unlink()
    for job in jobs:
        name = ",".join(f"{key}={value}" for key, value in _parts(job.overrides) if key in keys) or job.folder.name
        link = folder / re.sub(r"[^\w.,=+-]", "_", name)[:150]
        target = os.path.relpath(job.folder, folder)
        if link.is_symlink() and os.readlink(link) != target:  # other values, alike once cut and replaced
            link = link.with_name(f"{link.name},{hashlib.sha256(name.encode()).hexdigest()[:6]}")
        if job.folder.is_dir() and not link.is_symlink():
            link.symlink_to(target)
    return any(path.is_symlink() for path in folder.iterdir())
