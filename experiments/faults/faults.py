"""The fault matrix: every fault injected for real, one row of the table a kind.

    python experiments/faults/faults.py [--times N] [--only kill,signals] [--out experiments/faults]

A row says how often a fault was injected; every time the expected came true, or the row says when it did not and the
program ends with exit code 1. "Without" is what the fault does where nothing protects from it, seen in the same run.
Results go to ``rows.json`` and README.md of ``--out`` after every row, so that ``--only`` renews some rows of a table.
The rows about disks mount small file systems: root alone may.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import subprocess
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import files
import hostile
import stops
import torch
import world
from bench import Failed, Row, finished, folder, run_of, teacher

HEAD = """# The fault matrix

    make faults                     # or: python experiments/faults/faults.py --times N --only kill,signals

Each fault meets real runs of the command line: the tiny Inception on embedded images, seconds long. {machine}.
The last column is the commit that a row was injected at.

| | fault | expected | without a protection | injected | as expected | at |
|---|---|---|---|---|---|---|
"""
FAULTS: dict[str, tuple[Callable[[int, Path], Row], int]] = {
    "kill": (stops.kill, 200),
    "kill_in_a_write": (stops.kill_in_a_write, 30),
    "kill_ranks": (stops.kill_ranks, 30),
    "kill_workers": (stops.kill_workers, 30),
    "kill_grow": (stops.kill_grow, 30),
    "kill_compare": (stops.kill_compare, 30),
    "order_of_writes": (files.order_of_writes, 1),
    "signals": (stops.signals, 50),
    "one_rank_signalled": (stops.one_rank_signalled, 10),
    "sweep_stopped": (stops.sweep_stopped, 6),
    "rank_dies": (stops.rank_dies, 10),
    "parent_dies": (stops.parent_dies, 10),
    "restarts": (stops.restarts, 20),
    "other_settings": (world.other_settings, 1),
    "damage": (files.damage, 1000),
    "done_damaged": (files.done_damaged, 200),
    "every_damaged": (files.every_damaged, 20),
    "malicious": (hostile.malicious, 1),
    "fuzz_checkpoints": (files.fuzz_checkpoints, 1000),
    "fuzz_lineages": (files.fuzz_lineages, 1000),
    "fuzz_records": (files.fuzz_records, 300),
    "fuzzed_lines": (world.fuzzed_lines, 1000),
    "fuzzed_yaml": (world.fuzzed_yaml, 1000),
    "full_disk": (world.full_disk, 5),
    "full_disk_at_logs": (world.full_disk_at_logs, 3),
    "full_disk_at_report": (world.full_disk_at_report, 3),
    "read_only": (world.read_only, 3),
    "no_numbers": (world.no_numbers, 9),
    "overflow": (world.overflow, 3),
    "workers": (world.workers, 4),
    "images": (world.images, 200),
    "doubled": (stops.doubled, 20),
    "memory": (world.memory, 1),
    "soak": (world.soak, 30),
}
"""How a fault is injected, and how often (``soak``: minutes); first those in forks of this process, see `bench.Forked`.
"""


def inject(name: str, times: int, whole: Path) -> tuple[Row, str]:
    """One row, and why it failed, or nothing. ``whole``: the finished run of the teacher that nothing ever stopped."""
    random.seed(name)
    try:
        return FAULTS[name][0](times, whole), ""
    except Failed as failure:
        return Row("", name, "", "", times), str(failure)
    except Exception:  # of the matrix itself
        return Row("", name, "", "", times), traceback.format_exc()


def commit() -> str:
    """The commit of this checkout, and whether the program differs from it."""
    git = ["git", "-C", str(Path(__file__).parent)]
    told = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    changed = subprocess.run([*git, "diff", "--quiet", "HEAD", "--", ":/n2n_cli", ":/conf"]).returncode
    return f"{told}, changed" if changed and told else told


def table(rows: dict[str, dict[str, str]], machine: str) -> str:
    """The README."""
    lines = [HEAD.format(machine=machine)]
    for row in (rows[name] for name in FAULTS if name in rows):
        cells = (row["number"], row["fault"], row["expected"], row["harm"], row["times"], row["held"], row["at"])
        lines.append("| " + " | ".join(map(str, cells)) + " |\n")
    return "".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--times", type=int, help="of each fault; default: each one's own")
    parser.add_argument("--only", help="names, comma separated")
    parser.add_argument("--out", type=Path, help="the folder of the table")
    given = parser.parse_args()
    torch.set_num_threads(1)
    kept = given.out / "rows.json" if given.out else None
    rows = json.loads(kept.read_text()) if kept and kept.exists() else {}
    machine = f"{len(os.sched_getaffinity(0))} cores, Python {platform.python_version()}, torch {torch.__version__}"
    failed = 0
    with folder() as place:
        finished(teacher(place))
        for name in given.only.split(",") if given.only else list(FAULTS):
            began = time.monotonic()
            row, why = inject(name, given.times or FAULTS[name][1], run_of(place))
            failed += bool(why)
            held = "no: " + " ".join(why.split())[-300:].replace("|", "/") if why else f"{row.times} of {row.times}"
            rows[name] = asdict(row) | {"held": held, "at": commit()}
            print(f"{name}: {held}, {time.monotonic() - began:.0f} s {why}", flush=True)
            if kept:
                kept.write_text(json.dumps(rows, indent=1) + "\n")
                (given.out / "README.md").write_text(table(rows, machine))
    return int(failed > 0)


if __name__ == "__main__":
    raise SystemExit(main())
