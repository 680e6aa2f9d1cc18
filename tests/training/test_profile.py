"""``training.profile``: a table and a trace of a few steps, which changes nothing of the run."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
import torch
import training_worker as worker
from test_resume import differences, final_state, rows

from n2n_cli.training import profile
from n2n_cli.training.launch import launch
from n2n_cli.training.profile import StepProfile, table


def test_the_table() -> None:
    times = {"step": 20.0, "backward": 10.0, "forward": 6.0, "data wait": 1.0}
    assert table(times, 15.5, 3) == (
        "a training step, mean of 3:\n"
        "data wait        1.00 ms    5.0%\n"
        "forward          6.00 ms   30.0%\n"
        "backward        10.00 ms   50.0%\n"
        "other            3.00 ms   15.0%\n"
        "together        20.00 ms  100.0%\n"
        "without the profiler: 15.50 ms\n"
    )


def test_what_it_writes(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Steps 9 to 12 of 15: an epoch's end with its evaluation and checkpoint is among them."""
    plain, folder = (worker.start(tmp_path / name, dropout=0.5) for name in ("plain", "profiled"))
    for where, steps in ((plain, 0), (folder, 4)):
        worker.run(where, epochs=3.0, model=dict(dropout=0.5), ema_decay=0.9, profile=steps)
    text = (folder / "profile.txt").read_text()
    out, err = capfd.readouterr()
    assert out == text and err == "" and not list(plain.glob("profile*"))
    found = {line[:11].strip(): float(line[11:21]) for line in text.splitlines()[1:-1]}
    assert list(found) == [*profile.PHASES, "other", "together"]
    assert sum(found.values()) == pytest.approx(2 * found["together"], abs=0.1) and min(found.values()) >= 0
    with gzip.open(folder / "profile.json.gz") as file:
        names = [event["name"] for event in json.load(file)["traceEvents"] if event.get("ph") == "X"]
    assert names.count("forward") == names.count("backward") == names.count("optimizer") == 4
    assert "aten::convolution" in names
    assert differences(final_state(plain), final_state(folder)) == [] and rows(plain) == rows(folder)


def test_a_run_that_is_too_short(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    worker.run(worker.start(tmp_path / "run"), profile=3)  # 10 steps
    out, err = capfd.readouterr()
    assert out == "" and err == "n2n: warning: no profile: it takes 11 steps without a stop\n"
    assert not list((tmp_path / "run").glob("profile*"))


def test_a_profile_that_cannot_be_written(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = worker.start(tmp_path / "run")
    (folder / "profile.txt").mkdir()
    assert worker.run(folder, epochs=3.0, profile=1)["step"] == 15
    assert capfd.readouterr().err.startswith("n2n: warning: cannot write the profile: ")


def test_nothing_is_marked_when_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("record_function", "torch_profile"):
        monkeypatch.setattr(profile, name, lambda *_, **__: pytest.fail("it is off"))
    worker.run(worker.start(tmp_path / "run"))
    with pytest.raises(pytest.fail.Exception):  # negative control
        StepProfile(tmp_path, 1, torch.device("cpu"))


def test_one_rank_alone(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = worker.start(tmp_path / "run")
    launch("training_worker", [json.dumps([dict(folder=str(folder), epochs=3.0, profile=2)])], 2)
    assert capfd.readouterr().out.count("a training step") == 1 and (folder / "profile.json.gz").exists()
