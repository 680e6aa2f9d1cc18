"""The fault matrix: every fault injected for real, one row a fault.

    python experiments/faults/faults.py [--times N] [--only kill,signals] [--out experiments/faults/README.md]

Each fault meets real runs of the command line (the tiny Inception on embedded images, seconds long), in processes of
their own. A row says how often it was injected and how often the expected came true; anything else ends the program.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

ROOT = Path(__file__).parents[2]
HEAD = """# The fault matrix

    make faults                     # or: python experiments/faults/faults.py --times N

| fault | expected | injected | as expected |
|---|---|---|---|
"""
SHORT = [
    "data.train_images=640", "data.val_images=200", "training.batch_size=16", "training.log_every=5", "device=cpu",
    "training.checkpoint_every_epochs=0.2", "training.default_epochs={teacher:4,student:2}",
]  # fmt: skip
STEPS = 160  # of the teacher


@dataclass(frozen=True)
class Row:
    fault: str
    expected: str
    times: int
    held: int


def n2n(*words: str, where: Path) -> subprocess.Popen[bytes]:
    """A command of its own process group, one thread, its output kept."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, "-m", "n2n_cli", *words], cwd=where, env=environment, start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip


def teacher(where: Path, *more: str) -> subprocess.Popen[bytes]:
    return n2n("train", "teacher", *SHORT, *more, where=where)


def finished(process: subprocess.Popen[bytes], expected: int = 0) -> str:
    """Its error output, once it has ended with the exit code that is expected."""
    _, err = process.communicate(timeout=300)
    if process.returncode != expected:
        raise SystemExit(f"exit code {process.returncode}, expected {expected}:\n{err.decode()[-2000:]}")
    return err.decode()


def run_of(where: Path) -> Path:
    return next(where.glob("runs/*/teacher-seed0"))


def weights(run: Path) -> dict[str, torch.Tensor]:
    newest = max((run / "checkpoints").glob("step_*.pt"))
    return torch.load(newest, weights_only=True)["model"]


def same(ours: Path, theirs: Path) -> bool:
    a, b = weights(ours), weights(theirs)
    return all(torch.equal(a[name], b[name]) for name in b)


@contextmanager
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="n2n-faults-") as name:
        yield Path(name)


def until(step: int, run: Callable[[], Path], process: subprocess.Popen[bytes]) -> None:
    """Waits until the run's log has a row of this step."""
    while process.poll() is None:
        try:
            rows = (run() / "metrics.jsonl").read_text().splitlines()
            if rows and json.loads(rows[-1])["step"] >= step:
                return
        except (StopIteration, OSError, ValueError):
            pass
        time.sleep(0.005)


def kill(times: int, whole: Path) -> Row:
    """SIGKILL at a random moment, again and again, until the run is done: the same weights to the bit."""
    injected = 0
    while injected < times:
        with folder() as place:
            while not list(place.glob("runs/*/teacher-seed0/done.json")):
                process = teacher(place)
                steps = random.randint(0, STEPS)
                until(steps, lambda: run_of(place), process)
                time.sleep(random.random() * 0.05)
                if injected < times and process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
                    injected += 1
                process.communicate()
            if not same(run_of(place), whole):
                raise SystemExit("killed and resumed: other weights")
    return Row("SIGKILL at a random time, resumed to the end", "final weights identical to the bit", injected, injected)


def signals(times: int, whole: Path) -> Row:
    """SIGTERM, SIGUSR1, SIGHUP, Ctrl-C: saved at the step, exit code 130, resumed to the same bits."""
    kinds = [signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP, signal.SIGINT]
    for number in range(times):
        with folder() as place:
            process = teacher(place)
            until(random.randint(5, STEPS // 2), lambda: run_of(place), process)
            process.send_signal(kinds[number % 4])
            if "stopped after step" not in finished(process, 130):
                raise SystemExit("a signal was not told")
            finished(teacher(place))
            if not same(run_of(place), whole):
                raise SystemExit("stopped by a signal and resumed: other weights")
    return Row("SIGTERM, SIGUSR1, SIGHUP, Ctrl-C", "saved, exit code 130, resumed to the same bits", times, times)


def damage(times: int, whole: Path) -> Row:
    """Bit flips, cuts and empty files in the newest checkpoint of a stopped run: the older one is used, and said."""
    for number in range(times):
        with folder() as place:
            finished(teacher(place, "max_steps=100"))
            newest = max((run_of(place) / "checkpoints").glob("step_*.pt"))
            data = bytearray(newest.read_bytes())
            if number % 3 == 0:
                data[random.randrange(len(data))] ^= 1 << random.randrange(8)
            elif number % 3 == 1:
                del data[random.randrange(len(data)) :]
            else:
                data.clear()
            newest.write_bytes(data)
            if "n2n: warning: skipped damaged checkpoint" not in finished(teacher(place)):
                raise SystemExit("a damaged checkpoint was not told")
            if not same(run_of(place), whole):
                raise SystemExit("a damaged checkpoint: other weights")
    return Row(
        "the newest checkpoint flipped, cut or emptied", "told; the older one is used; the same bits", times, times
    )


def every_damaged(times: int, whole: Path) -> Row:
    """All checkpoints of a stopped run damaged: an error, never a silent restart."""
    for _ in range(times):
        with folder() as place:
            finished(teacher(place, "max_steps=100"))
            for path in (run_of(place) / "checkpoints").glob("step_*.pt"):
                path.write_bytes(path.read_bytes()[: random.randrange(1000)])
            if "every checkpoint in" not in finished(teacher(place), 2):
                raise SystemExit("only damaged checkpoints: not told")
    return Row("every checkpoint damaged", "one line, exit code 2, nothing restarted", times, times)


def full_disk(times: int, whole: Path) -> Row:
    """A small tmpfs fills up during the run: one line, the last checkpoint intact; with room again, the same bits."""
    held = 0
    with folder() as place:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", place], check=True)
        try:
            for _ in range(times):
                process = teacher(place)
                until(random.randint(10, STEPS // 2), lambda: run_of(place), process)
                filler = place / "filler"
                with open(filler, "wb") as file:
                    try:
                        while True:
                            file.write(b"0" * 65536)
                    except OSError:
                        pass
                if "No space left" not in finished(process, 2):
                    raise SystemExit("a full disk was not told")
                filler.unlink()
                finished(teacher(place))
                if not same(run_of(place), whole):
                    raise SystemExit("after a full disk: other weights")
                shutil.rmtree(place / "runs")
                held += 1
        finally:
            subprocess.run(["umount", place], check=True)
    return Row("disk full during the run", "one line, exit code 2; with room again the same bits", times, held)


def fuzzed_lines(times: int, whole: Path) -> Row:
    """Random command lines: exit code 0 or 2 and at most one line, no traceback, no folder left."""
    words = [
        "train", "teacher", "student", "grow", "compare", "evaluate", "inspect", "data", "check", "--op",
        "wider", "seed=", "seed=-1", "optim.lr=abc", "model=resnet1", "data.root=/x", "=", "--", "-m",
        "epochs=1e99", "op.new=", "{", "'", "training.batch_size=[1,2]", "op.layers={a:b", "~model", "+x=1",
        "--help", "out=/proc/x", "ü=ß", "a b", "model.width=nan", "data=imagefolder", "weights=/dev/null",
        "teacher=..", "--lr", "study.arms=[]", "max_steps=0",
    ]  # fmt: skip
    for _ in range(times):
        with folder() as place:
            line = [random.choice(words) for _ in range(random.randint(1, 5))]
            process = n2n(*line, "max_steps=1", where=place)
            _, err = process.communicate(timeout=300)
            told = [text for text in err.decode().splitlines() if text]
            if process.returncode not in (0, 2) or "Traceback" in err.decode():
                raise SystemExit(f"{line}: exit code {process.returncode}:\n{err.decode()[-2000:]}")
            if process.returncode == 2 and (len(told) != 1 or list(place.iterdir())):
                raise SystemExit(f"{line}: {told}, left {list(place.iterdir())}")
    return Row("random command lines", "exit code 0 or 2, one line, nothing left behind", times, times)


FAULTS: dict[str, tuple[Callable[[int, Path], Row], int]] = {
    "kill": (kill, 200),
    "signals": (signals, 50),
    "damage": (damage, 60),
    "every_damaged": (every_damaged, 10),
    "full_disk": (full_disk, 5),
    "fuzzed_lines": (fuzzed_lines, 300),
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--times", type=int, help="of each fault; default: each one's own")
    parser.add_argument("--only", help="names, comma separated")
    parser.add_argument("--out", type=Path, help="where to write the table")
    given = parser.parse_args()
    random.seed(0)
    names = given.only.split(",") if given.only else list(FAULTS)
    rows = []
    with folder() as place:
        finished(teacher(place))
        for name in names:
            inject, times = FAULTS[name]
            began = time.monotonic()
            rows.append(inject(given.times or times, run_of(place)))
            print(f"{name}: {rows[-1].held} of {rows[-1].times}, {time.monotonic() - began:.0f} s", flush=True)
    table = HEAD + "".join(f"| {r.fault} | {r.expected} | {r.times} | {r.held} |\n" for r in rows)
    print(table)
    if given.out:
        given.out.write_text(table)


if __name__ == "__main__":
    main()
