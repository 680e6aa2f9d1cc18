"""Several runs of a study at once: the numbers of one after the other, and nothing lost when it is stopped."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import n2n_cli
from n2n_cli import cli, records
from n2n_cli.commands import compare
from n2n_cli.training import checkpoint

FEW = ["data.train_images=192", "data.val_images=80", "training.log_every=2", "device=cpu"]
SHORT = [*FEW, "epochs=1", "teacher_epochs=1", "study.arms=[wider,random_pad,random_init]"]
LONG = [*FEW, "epochs=4000", "training.eval_every_epochs=1000", "jobs=2", "study.arms=[wider,random_pad]"]
HERE = ["jobs=1", "progress=false"]  # gone on with in this process: one more start of three takes long


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, undrawn: None) -> Iterator[Path]:
    """A folder with a study trained one run after the other, in ``one``."""
    folder = tmp_path_factory.mktemp("place")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert cli.main(["compare", "fig4", *SHORT, "out=one", "jobs=1"]) == 0
        yield folder


@pytest.fixture(autouse=True)
def _there(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)


class Compare:
    """``n2n compare`` in a session of its own."""

    def __init__(self, *words: str) -> None:
        path = {**os.environ, "PYTHONPATH": str(Path(n2n_cli.__file__).parents[1])}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "n2n_cli", "compare", *words],
            env=path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def others(self) -> list[int]:
        """Living processes of the session but the first."""
        found = []
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                pid, (state, _, _, session) = int(stat.parent.name), stat.read_text().rsplit(")", 1)[1].split()[:4]
            except OSError:
                continue
            if int(session) == self.process.pid and state != "Z" and pid != self.process.pid:
                found.append(pid)
        return found

    def alone(self, patience: float) -> bool:
        """Whether no other process is left (Python's own resource tracker ends a moment after its parent)."""
        deadline = time.monotonic() + patience
        while self.others() and time.monotonic() < deadline:
            time.sleep(0.05)
        return not self.others()

    def until_training(self, out: str, count: int = 2) -> list[Path]:
        """Waits until so many runs in ``out`` have trained some steps; their folders."""
        deadline = time.monotonic() + 90
        while time.monotonic() < deadline and self.process.poll() is None:
            found = [run.parent for run in Path().glob(f"{out}/*/*/metrics.jsonl") if len(rows(run.parent)) > 2]
            if len(found) >= count:
                return found
            time.sleep(0.1)
        self.process.kill()
        raise AssertionError(self.process.communicate())

    def end(self) -> tuple[int, list[str]]:
        """Exit code, and the lines on stderr that are no progress."""
        _, err = self.process.communicate(timeout=60)
        return self.process.returncode, [line for line in err.splitlines() if ": step " not in line]


def rows(folder: Path) -> list[dict[str, Any]]:
    every = records.rows(folder / "metrics.jsonl")
    return [{k: v for k, v in row.items() if k != "time_s" and not k.startswith("perf/")} for row in every]


def test_the_same_as_one_after_the_other_to_the_last_bit(place: Path) -> None:
    assert cli.main(["compare", "fig4", *SHORT, "out=two", "jobs=2"]) == 0
    runs = sorted(path.parent for path in place.glob("one/*/*/done.json"))
    assert [run.name.split("-")[0] for run in runs] == ["random_init", "random_pad", "teacher", "wider"]
    for one in runs:
        two = place / "two" / one.relative_to(place / "one")
        assert rows(one) == rows(two) and rows(one)[-1]["step"] == 6
        a, b = (checkpoint.load(checkpoint.resolve(folder)) for folder in (one, two))
        for part in ("model", "ema"):
            assert a[part].keys() == b[part].keys()
            assert all(torch.equal(a[part][name], b[part][name]) for name in a[part])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_all_and_leaves_no_process(number: signal.Signals, place: Path) -> None:
    out = f"stopped{number}"
    teacher = next(place.glob("one/*/teacher*"))
    study = Compare(*LONG, f"out={out}", f"teacher={teacher}")
    folders = study.until_training(out)
    assert len(study.others()) >= 2
    study.process.send_signal(number)
    assert study.end() == (130, ["n2n: interrupted: every run is stopped; the same command goes on from there"])
    assert study.alone(2)
    before = {}
    for folder in folders:
        before[folder] = checkpoint.load(checkpoint.resolve(folder))["step"]
        assert before[folder] >= rows(folder)[-1]["step"] > 0  # saved where it stopped
    assert len(list(place.glob(f"{out}/*/*"))) == 2  # no further run was begun
    assert cli.main(["compare", *LONG, *HERE, f"out={out}", f"teacher={teacher}", "max_steps=3"]) == 0
    assert {folder: checkpoint.load(checkpoint.resolve(folder))["step"] - 3 for folder in folders} == before


def test_a_killed_process_costs_one_line_and_the_others_save(place: Path) -> None:
    teacher = next(place.glob("one/*/teacher*"))
    study = Compare(*LONG, "out=killed", f"teacher={teacher}")
    study.until_training("killed")
    trainers = [pid for pid in study.others() if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    os.kill(trainers[0], signal.SIGKILL)
    code, lines = study.end()
    assert code == 2 and len(lines) == 1 and "its process was killed" in lines[0], lines
    assert study.alone(2)
    assert cli.main(["compare", *LONG, *HERE, "out=killed", f"teacher={teacher}", "max_steps=1"]) == 0


def test_a_killed_parent_leaves_no_process(place: Path) -> None:
    teacher = next(place.glob("one/*/teacher*"))
    study = Compare(*LONG, "out=orphans", f"teacher={teacher}")
    folders = study.until_training("orphans")
    study.process.kill()
    study.end()
    assert study.alone(20)
    assert all(checkpoint.load(checkpoint.resolve(run))["step"] >= rows(run)[-1]["step"] for run in folders)


def test_a_failing_arm_costs_one_line(place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    teacher = next(place.glob("one/*/teacher*"))
    words = ["study.arms=[random_pad,wider]", "ops.wider.layers={nothing:2}", f"teacher={teacher}", "jobs=2"]
    assert cli.main(["compare", *SHORT, "out=failed", "progress=false", *words]) == 2
    err = capfd.readouterr().err
    warned, told = err.splitlines()
    assert warned.startswith("n2n: warning: wider-layers-") and "'nothing'" in warned
    assert told.startswith("n2n: error: 1 of 2 runs failed: wider-layers-")
    assert [path.name for path in place.glob("failed/*/wider*/*")] == ["failed.json"]
    assert list(place.glob("failed/*/random_pad*/done.json"))


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_run_that_fails_does_not_stop_the_study(place: Path, jobs: int, capfd: pytest.CaptureFixture[str]) -> None:
    out = place / f"failing{jobs}"
    words = [*SHORT, f"out={out}", f"jobs={jobs}", "study.arms=[stack,wider,random_init]", "lr_scale=[0.1,1e30]",
             "model=inception_bn_tiny", "model.teacher_width=0.38"]  # fmt: skip
    assert cli.main(["compare", "depth", *words]) == 2  # Inception-BN has nothing to stack on
    said = capfd.readouterr()
    assert "n2n: error: 4 of 7 runs failed: " in said.err and "and 3 more (the report says why)" in said.err
    (study,) = out.iterdir()
    assert sorted(path.parent.name.split("-epochs")[0] for path in study.glob("*/failed.json")) == [
        "deeper-new-stack", "deeper-new-stack-lr1e+30", "random_init-lr1e+30", "wider-lr1e+30",
    ]  # fmt: skip
    assert len(list(study.glob("*/done.json"))) == 3
    report = (study / "report.html").read_text()
    assert "the validation loss of step 1 is nan" in report and "stands no layer or block like it to copy" in report
    assert "failed: wider-lr1e+30-epochs1-teacher1-seed0, logged to step 0: the validation loss" in said.out
    stamps = [path.stat().st_mtime_ns for path in sorted(study.glob("*/failed.json"))]
    assert cli.main(["compare", "depth", *words]) == 2  # says it again, and tries nothing
    assert "[" not in capfd.readouterr().out
    assert [path.stat().st_mtime_ns for path in sorted(study.glob("*/failed.json"))] == stamps
    assert cli.main(["compare", "depth", *words, "retry=true"]) == 2
    assert [path.stat().st_mtime_ns for path in sorted(study.glob("*/failed.json"))] != stamps


def test_a_teacher_that_fails_is_not_grown(place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = place / "hopeless"
    assert cli.main(["compare", "fig4", *SHORT, f"out={out}", "optim.lr=1e30", "jobs=1"]) == 2
    said = capfd.readouterr()
    assert (
        "1 of 4 runs failed: teacher-epochs1-seed0 (the report says why), and 3 would have grown from one; retry"
        in said.err
    )
    assert len(list(out.glob("*/*/run.json"))) == 1


def test_the_table_fills_on_a_terminal(
    place: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """After every finished run but the last; piped, nothing of it is said."""
    shutil.copytree(place / "one", place / "tty")
    for arm in ("wider", "random_pad"):
        (unfinished,) = place.glob(f"tty/*/{arm}-*")
        (unfinished / "done.json").unlink()
    monkeypatch.setattr(type(sys.stdout), "isatty", lambda self: True)
    assert cli.main(["compare", "fig4", *SHORT, "out=tty", "jobs=1", "progress=false"]) == 0
    out = capfd.readouterr().out
    assert out.count("\nArm ") == 2 and out.count("3 of 4 runs, about ") == 1 and " of 4 runs" in out
    monkeypatch.undo()
    monkeypatch.chdir(place)
    assert cli.main(["compare", "fig4", *SHORT, "out=tty", "jobs=1"]) == 0
    assert " of 4 runs" not in capfd.readouterr().out


def test_the_time_left_is_that_of_the_runs_left(monkeypatch: pytest.MonkeyPatch) -> None:
    cfg: Any = SimpleNamespace(teacher=None, weights=None, seeds=3, study=SimpleNamespace(stages=None, arms=["a"]))
    progress = compare._Progress(cfg, Path(), 9)
    assert progress.left() is None
    progress.number, progress.took, progress.spent = 3, {True: [10.0, 10.0], False: [4.0]}, 24.0
    monkeypatch.setattr(compare.time, "monotonic", lambda: progress.began + 12.0)  # two at once
    assert progress.left() == pytest.approx((1 * 10 + 5 * 4) / 2)
    cfg.study.stages, progress.took, progress.spent = [0.5, 1.0], {1: [4.0, 4.0]}, 8.0
    assert progress.left() == pytest.approx((1 * 4 + 3 * 8) * 12 / 8)
    assert [compare._duration(seconds) for seconds in (5, 300, 9000)] == ["5 s", "5 min", "2.5 h"]
