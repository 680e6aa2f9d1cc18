"""What a study takes, told beforehand: the numbers are those of the runs, and nothing is written."""

from __future__ import annotations

import json
import re
import shutil
from collections import namedtuple
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from torch import nn

from n2n_cli import cli
from n2n_cli.commands import dry_run

FEW = ["data.train_images=192", "data.val_images=80", "training.default_epochs={teacher:2,student:1}", "device=cpu"]
LINE = ["compare", "compose", "study.arms=[wider,wider_deeper,random_init]", *FEW]
Usage = namedtuple("Usage", "total used free")


def test_the_table_is_that_of_the_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main([*LINE, "--dry-run", "seeds=2"]) == 0
    out = capfd.readouterr().out
    assert list(tmp_path.iterdir()) == []
    rows = {re.split(r"  +", line)[0]: re.split(r"  +", line)[1:] for line in out.splitlines()[2:6]}
    assert list(rows) == ["teacher", "Net2Wider", "Net2Wider, then Net2Deeper", "random init"]
    assert re.search(r"^8 runs, \d+\.\d (s|min|h) one after the other", out, re.M)
    assert cli.main([*LINE, "progress=false", "jobs=1"]) == 0
    capfd.readouterr()
    for arm, label in (("teacher", "teacher"), ("wider", "Net2Wider"), ("random_init", "random init")):
        (run,) = tmp_path.glob(f"runs/*/{arm}-seed0")
        info, done = (json.loads((run / name).read_text()) for name in ("run.json", "done.json"))
        runs, parameters, macs, steps, _, _, disk = rows[label]
        assert (runs, parameters, macs, steps) == (
            "2",
            f"{info['parameters']:,}",
            f"{info['macs']:,}",
            f"{done['step']:,}",
        )
        written = sum(path.stat().st_size for path in run.glob("checkpoints/*.pt"))
        assert float(disk.split()[0]) * 1e6 == pytest.approx(written, rel=1.0)  # small files: names and heads count


def test_a_small_disk_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**6, 0, 10**5))
    assert cli.main([*LINE, "dry_run=true"]) == 2
    err = capfd.readouterr().err
    assert re.search(r"^n2n: error: out: the study takes \d\.\d MB, and runs has 0.1 MB\n\Z", err, re.M)


def test_several_devices_are_measured_as_they_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rank reads its part of the batch, with its share of the cores."""
    seen: list[Any] = []
    images = SimpleNamespace(train=SimpleNamespace(decodes=True), val=range(8), image_size=8, skip=True)
    training = SimpleNamespace(batch_size=8, evals_first_epoch=1, eval_every_epochs=1.0, ema_decay=None)
    cfg: Any = SimpleNamespace(training=training, optim=SimpleNamespace(name="sgd"), workers=1, devices=2, seed=0)

    def loader(source: Any, **options: Any) -> Any:
        seen.append(options)
        return SimpleNamespace(batches=lambda epoch: iter(range(3)), close=lambda: None)

    monkeypatch.setattr(dry_run.data, "TrainLoader", loader)
    dry_run._reading(images, cfg)  # type: ignore[arg-type]
    assert seen == [{"batch_size": 8, "seed": 0, "world_size": 2, "workers": 1, "skip": True}]
    monkeypatch.setattr(dry_run.machine, "limit_threads", lambda model, processes: seen.append(processes))
    monkeypatch.setattr(dry_run, "_step", lambda *given: 1.0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, 2))
    dry_run._cost("net", 1, 1.0, net, 8, cfg, images, 0.0, {})  # type: ignore[arg-type]
    assert seen[1:] == [2]
