"""The guide's examples, as they stand in ``experiments/README.md``."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from n2n_cli import cli

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "experiments" / "README.md").read_text()
FEW = ["data.train_images=64", "data.val_images=32", "device=cpu", "progress=false"]
SHORT = ["training.default_epochs={teacher:1,student:1}", "training.evals_first_epoch=0"]


def block(title: str, kind: str) -> str:
    """The first block of ``kind`` under the heading."""
    part = re.split(r"^## ", GUIDE, flags=re.M)
    (text,) = [section for section in part if section.startswith(title)]
    return re.search(rf"```{kind}\n(.*?)```", text, re.S)[1]  # type: ignore[index]


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


@pytest.mark.usefixtures("undrawn")
def test_a_study(place: Path, capfd: Any) -> None:
    (place / "mine" / "study").mkdir(parents=True)
    (place / "mine" / "study" / "mine.yaml").write_text(block("Add a study", "yaml"))
    assert cli.main(["compare", "mine", "--config-dir", "mine", *FEW, *SHORT, "jobs=1"]) == 0
    rows = [line.split("  ")[0] for line in capfd.readouterr().out.split("\n---", 1)[1].splitlines()]
    assert {"Net2Wider (fresh units, lr ×0.3)", "Net2Wider (warm-up 1 epoch, fresh units, lr ×0.3)"} <= set(rows)
    assert next(place.glob("runs/*/report.html")).exists()


def test_a_model(place: Path, capfd: Any) -> None:
    (place / "my_nets.py").write_text(block("Add a model", "python"))
    model = "model=my_nets:wide_lenet"
    assert cli.main(["train", "teacher", model, *FEW, "epochs=1", "max_steps=1"]) == 0
    grow = ["grow", "--op", "wider", "--factor", "1.5", model, *FEW, "epochs=0", "op.noise=0", "teacher_epochs=1"]
    assert cli.main([*grow, f"teacher={next(place.glob('runs/*/teacher*'))}"]) == 0
    assert "function gap" in capfd.readouterr().out


def test_a_data_set(place: Path) -> None:
    for name in ("n2n_cli", "conf"):
        shutil.copytree(ROOT / name, place / name, ignore=shutil.ignore_patterns("__pycache__"))
    done = subprocess.run(["git", "apply", "-"], input=block("Add a data set", "diff"), text=True, capture_output=True)
    assert done.returncode == 0, done.stderr
    random = np.random.default_rng(0)
    for part, count in (("train", 64), ("val", 32)):
        images = random.integers(0, 256, (count, 32, 32, 3), np.uint8)
        np.savez(place / f"{part}.npz", images=images, labels=np.arange(count) % 4)
    words = ["train", "teacher", "data=npz", "data.root=.", "max_steps=1", "device=cpu"]
    path = {**os.environ, "PYTHONPATH": str(place)}
    done = subprocess.run([sys.executable, "-m", "n2n_cli", *words], env=path, text=True, capture_output=True)
    assert done.returncode == 0 and "stopped after max_steps=1" in done.stdout, done.stderr


def test_every_link_of_the_guide_leads_somewhere() -> None:
    for page in (
        ROOT / "README.md",
        *(ROOT / "experiments").glob("**/*.md"),
        ROOT / "n2n_cli" / "growth" / "README.md",
    ):
        for link in re.findall(r"\]\((?!https?:|#)([^)#]+)\)", page.read_text()):
            assert (page.parent / link).exists(), f"{page}: {link}"
