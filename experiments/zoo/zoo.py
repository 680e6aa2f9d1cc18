"""Every torchvision classifier widened, and each student measured against its teacher in fp64.

    .venv/bin/python experiments/zoo/zoo.py [--factors 1.5 2] [--models PATTERN ...] [--jobs 2] [--memory 16] [--resume]

One process a model and factor; those that run at the same time share ``--memory`` GiB, and a model that needs more is
built with fewer layers (the table says so). Writes zoo.json and README.md into ``--out``. An error is a row.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import resource
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))

import torch
import torchvision
import zoo_checks as zoo
from report import readme

torch.set_num_threads(1)
ROOT = Path(__file__).resolve().parents[2]
SECONDS = 3600  # a model and factor may take


def engine() -> str:
    """What the measured code was: a digest of the growth package and of the checks."""
    digest = hashlib.sha256()
    for path in [*sorted((ROOT / "n2n_cli" / "growth").rglob("*.py")), ROOT / "tests" / "zoo_checks.py"]:
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def machine() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return f"{platform.system()} {platform.machine()}, {model or platform.processor()}, {os.cpu_count()} cores"


def one(name: str, factor: float, memory: float) -> dict[str, Any]:
    """One row, whatever happens."""
    row: dict[str, Any] = {"model": name, "factor": factor, "engine": engine()}
    start = time.perf_counter()
    try:
        row |= zoo.check(name, factor, memory)
        row["faults"] = zoo.faults(row)
    except Exception as error:
        row["error"] = (str(error).strip().splitlines() or [type(error).__name__])[0]
    row["seconds_in_all"] = time.perf_counter() - start
    row["peak_gib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return row


def in_process(name: str, factor: float, memory: float) -> dict[str, Any]:
    """``one`` in a process of its own: what a model leaves behind, or its death, stays there."""
    command = [sys.executable, __file__, "--one", name, "--factors", str(factor), "--memory", str(memory)]
    failed = {"model": name, "factor": factor, "engine": engine()}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
    except subprocess.TimeoutExpired:
        return failed | {"error": f"no result in {SECONDS} seconds"}
    try:
        row: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return row
    except (IndexError, ValueError):
        last = (done.stderr.strip().splitlines() or [""])[-1]
        return failed | {"error": f"the process ended with {done.returncode}: {last}"}


class Room:
    """The memory that running models share: a model waits until there is room for what it is expected to need."""

    def __init__(self, size: float) -> None:
        self.size = self.left = size
        self.changed = threading.Condition()

    def measure(self, name: str, factor: float) -> dict[str, Any]:
        need = min(zoo.expected_peak(name, factor, self.size)[0], self.size)
        with self.changed:
            self.changed.wait_for(lambda: self.left >= need)
            self.left -= need
        try:
            return in_process(name, factor, self.size)
        finally:
            with self.changed:
                self.left += need
                self.changed.notify_all()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--factors", type=float, nargs="+", default=list(zoo.FACTORS))
    parser.add_argument("--models", nargs="+", default=["*"], metavar="PATTERN", help="names, or patterns: 'resnet*'")
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time")
    parser.add_argument("--memory", type=float, default=zoo.MEMORY, help="GiB for all of them")
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent)
    parser.add_argument("--resume", action="store_true", help="keep the rows without errors that this engine made")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(one(args.one, args.factors[0], args.memory)))
        return

    names = [name for name in zoo.NAMES if any(fnmatchcase(name, pattern) for pattern in args.models)]
    if not names:
        parser.error(f"no model matches {' '.join(args.models)}")
    args.out.mkdir(parents=True, exist_ok=True)
    kept = _kept(args.out / "zoo.json") if args.resume else {}
    rows = {key: row for key, row in kept.items() if row["engine"] == engine() and "error" not in row}
    todo = [(name, factor) for name in names for factor in args.factors if (name, factor) not in rows]
    print(f"{len(todo)} to measure, {len(rows)} kept", flush=True)
    room = Room(args.memory)
    with ThreadPoolExecutor(args.jobs) as pool:
        pending = [pool.submit(room.measure, name, factor) for name, factor in todo]
        for done, future in enumerate(as_completed(pending), 1):
            row = future.result()
            rows[row["model"], row["factor"]] = row
            verdict = row.get("error") or "; ".join(row["faults"]) or "exact"
            print(f"{done}/{len(todo)} {row['model']} x{row['factor']:g}: {verdict}", flush=True)
            _write(args.out, rows)
    _write(args.out, rows)


def _kept(path: Path) -> dict[tuple[str, float], dict[str, Any]]:
    if not path.exists():
        return {}
    return {(row["model"], row["factor"]): row for row in json.loads(path.read_text())["rows"]}


def _write(out: Path, rows: dict[tuple[str, float], dict[str, Any]]) -> None:
    data = {
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "python": platform.python_version(),
        "machine": machine(),
        "threads": 1,
        "models": len(zoo.NAMES),
        "rows": [rows[key] for key in sorted(rows)],
    }
    (out / "zoo.json").write_text(json.dumps(data, indent=1) + "\n")
    (out / "README.md").write_text(readme(data))


if __name__ == "__main__":
    main()
