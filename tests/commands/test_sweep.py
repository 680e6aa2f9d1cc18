"""Sweeps: a table of what the jobs came to, their runs under one folder, and the launchers and sweepers of others."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer

import n2n_cli
from n2n_cli import cli
from n2n_cli.commands import sweep
from n2n_cli.commands.sweep import Job

FEW = ["data.train_images=32", "data.val_images=16", "device=cpu", "progress=false", "epochs=1",
       "training.evals_first_epoch=1"]  # fmt: skip


def table(folder: Path) -> list[dict[str, str]]:
    (path,) = folder.glob("sweep-*/summary.csv")
    return list(csv.DictReader(path.open()))


def test_a_sweep_is_told_at_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    line = ["train", "teacher", "-m", *FEW, "optim.lr=0.1,1e30"]
    assert cli.main(line) == 2
    said = capfd.readouterr()
    assert "n2n: error: a job failed: " in said.err
    good, bad = table(tmp_path / "runs")
    assert list(good) == ["optim.lr", "start", "best", "final", "seconds", "state", "folder"]
    assert (good["optim.lr"], good["state"], bad["optim.lr"], bad["final"]) == ("0.1", "done", "1e+30", "")
    assert bad["state"].startswith("failed: ") and "the validation loss of step 1 is nan" in bad["state"]
    told = yaml.safe_load((tmp_path / good["folder"] / "done.json").read_text())
    assert [float(good[word]) for word in ("start", "best", "final")] == [
        told[word]["val/top1"] for word in ("start", "best", "final")
    ]
    (folder,) = tmp_path.glob("runs/sweep-*")
    rows = said.out.split("optim.lr  Start, %")[1].splitlines()
    assert rows[2].split()[0] == "0.1" and rows[2].endswith(good["folder"]) and rows[3].split()[0] == "1e+30"
    assert rows[4:] == [f"summary: runs/{folder.name}/summary.csv", f"tensorboard --logdir runs/{folder.name}",
                        f"n2n compare runs/{folder.name}"]  # fmt: skip
    boards = EventMultiplexer()
    boards.AddRunsFromDirectory(str(folder))
    assert set(boards.Runs()) == {"optim.lr=0.1", "optim.lr=1e+30"}  # each under its own name, in the same charts
    assert cli.main(line) == 2 and len(table(tmp_path / "runs")) == 2  # again: the same folder


def test_a_command_that_writes_no_run_has_no_summary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["inspect", "inception_bn_tiny", "-m", "image_size=32,64"]) == 0
    assert list(tmp_path.rglob("sweep-*")) == []


def test_what_is_told_of_a_job(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folders = [tmp_path / name for name in ("stopped", "damaged", "never", "gone")]
    for folder in folders[:2]:
        folder.mkdir()
    (folders[0] / "metrics.jsonl").write_text('{"step": 0}\n{"step": 1200}\n')
    (folders[1] / "done.json").write_text("{")
    words = [["seed=0", "a=1"], ["seed=1", "a=1"], ["seed=2", "a=1", "+b=/x"], ["seed=3", "a=1"]]
    jobs = [Job(given, folder, tmp_path) for given, folder in zip(words, folders, strict=True)]
    jobs[3].failed = "no memory"
    assert sweep.swept(jobs) == ["seed", "b"] and sweep.swept(jobs[:1]) == ["seed", "a"]
    sweep.tell("grow", jobs, ["seed=0,1,2,3"])
    states = [row["state"] for row in table(tmp_path)]
    assert states[0] == "stopped at step 1,200" and states[1].startswith("damaged: ")
    assert states[2:] == ["not run", "failed: no memory"] and "1,200" in capfd.readouterr().out
    (folder,) = tmp_path.glob("sweep-*")
    assert {path.name for path in folder.iterdir()} == {"summary.csv", "seed=0", "seed=1"}
    sweep.tell("compare", jobs[:1], ["x"])  # of studies: no accuracy of one run
    assert "tensorboard" not in capfd.readouterr().out


# --- launchers and sweepers of others ------------------------------------------------------------------------------


def n2n(place: Path, *words: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(Path(n2n_cli.__file__).parents[1]), *filter(None, sys.path)])
    command = [sys.executable, "-m", "n2n_cli", "train", "teacher", "-m", *FEW, *words]
    return subprocess.run(command, cwd=place, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True)


PLUGINS: dict[str, list[str]] = {
    "hydra_joblib_launcher": ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"],
    "hydra_submitit_launcher": ["hydra/launcher=submitit_local", "hydra.launcher.timeout_min=5"],
}


@pytest.mark.slow
@pytest.mark.parametrize("plugin", PLUGINS)
def test_a_launcher_runs_every_job(plugin: str, tmp_path: Path) -> None:
    pytest.importorskip(f"hydra_plugins.{plugin}")
    done = n2n(tmp_path, "seed=0,1", *PLUGINS[plugin])
    assert done.returncode == 0, done.stderr
    rows = table(tmp_path / "runs")
    assert [(row["seed"], row["state"]) for row in rows] == [("0", "done"), ("1", "done")]
    failed = n2n(tmp_path, "seed=0,1", "optim.lr=1e30", *PLUGINS[plugin])
    assert failed.returncode == 2 and failed.stderr.splitlines()[-1].startswith("n2n: error: "), failed.stderr


@pytest.mark.slow
def test_optuna_maximizes_the_final_accuracy(tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    words = [
        "optim.lr=interval(0.001,0.1)",
        "hydra/sweeper=optuna",
        "hydra.sweeper.n_trials=3",
        "hydra.sweeper.n_jobs=1",
    ]
    wrong = n2n(tmp_path, *words)
    assert (wrong.returncode, wrong.stderr) == (
        2, "n2n: error: hydra.sweeper.direction: jobs give their final accuracy; write "
        "hydra.sweeper.direction=maximize\n",
    )  # fmt: skip
    done = n2n(tmp_path, *words, "hydra.sweeper.direction=maximize")
    assert done.returncode == 0, done.stderr
    rows = table(tmp_path / "runs")
    assert len(rows) == 3 and {row["state"] for row in rows} == {"done"}
    best: dict[str, Any] = yaml.safe_load((tmp_path / "runs" / "optimization_results.yaml").read_text())
    assert best["best_value"] == max(float(row["final"]) for row in rows)


def test_runs_whose_values_look_alike_as_file_names_each_have_a_link(tmp_path: Path) -> None:
    jobs = []
    for number, value in enumerate(("a/b", "a b", "a_b")):
        run = tmp_path / f"run{number}"
        run.mkdir()
        jobs.append(sweep.Job([f"weights={value}"], run, tmp_path))
    (tmp_path / "sweep").mkdir()
    for _ in range(2):  # typed again, the same links
        assert sweep._link(jobs, ["weights"], tmp_path / "sweep")
        assert len({link.resolve() for link in (tmp_path / "sweep").iterdir()}) == 3
