"""``n2n compare lifelong``: the images arrive in stages; every stage is a run in its own folder, gone on with."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from n2n_cli import cli
from n2n_cli.training import checkpoint

FEW = ["data.train_images=128", "data.val_images=16", "epochs=1", "device=cpu", "training.evals_first_epoch=1",
       "progress=false", "jobs=1", "study.arms=[small,growing,retrained]"]  # fmt: skip
STAGES = {
    "small": [1, 2, 3],
    "growing": [1, 2, 3],
    "retrained": [1, 2, 3],
}  # large: test_studies


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, undrawn: None) -> Iterator[Path]:
    """A folder with the whole study at its smallest in ``runs``: 1, 2 and 4 steps; stopped once after a stage."""
    folder = tmp_path_factory.mktemp("place")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert cli.main(["compare", "lifelong", *FEW, "study.arms=[small]", "max_steps=1"]) == 0
        assert cli.main(["compare", "lifelong", *FEW]) == 0
        yield folder


def runs(place: Path) -> dict[tuple[str, int], Path]:
    found = {}
    for path in place.glob("runs/*/*/done.json"):
        arm, stage = path.parent.name.split("-")[:2]
        found[arm, int(stage.removeprefix("stage"))] = path.parent
    return found


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def test_every_stage_of_every_strategy_is_a_run(place: Path) -> None:
    found = runs(place)
    assert sorted(found) == sorted((arm, stage) for arm, stages in STAGES.items() for stage in stages)
    assert len({path.parent for path in found.values()}) == 1 == len(list(place.glob("runs/*")))
    for (arm, stage), run in found.items():
        info, done = read(run / "run.json"), read(run / "done.json")
        assert done["images"] == 32 * 2 ** (stage - 1) == 32 * done["step"]
        assert info["stage"]["fraction"] == (0.25, 0.5, 1.0)[stage - 1] and info["stage"]["of"] == 3
        before = found[arm, stage - 1].name if stage > 1 else None
        assert info["stage"]["before"] == before and info["images"] == {"train": 128, "val": 16, "files": None}
        ops = [step["op"] for step in info["lineage"]["steps"]]
        later = {"growing": ["wider"], "retrained": []}.get(arm, ["continue"])
        assert ops == ["build", *later * (stage - 1)]


def test_the_grown_network_ends_as_the_large_one_is(place: Path) -> None:
    shapes = {
        arm: {name: value.shape for name, value in checkpoint.load(checkpoint.resolve(run))["model"].items()}
        for (arm, stage), run in runs(place).items()
        if stage == 3
    }
    assert shapes["growing"] == shapes["retrained"] != shapes["small"]
    sizes = [read(runs(place)["growing", stage] / "run.json")["parameters"] for stage in (1, 2, 3)]
    assert sizes == sorted(set(sizes))


def test_what_goes_on_starts_where_the_stage_before_ended(place: Path) -> None:
    done = {key: read(run / "done.json") for key, run in runs(place).items()}
    for (arm, stage), told in done.items():
        if stage > 1:
            same = told["start"]["val/loss"] == done[arm, stage - 1]["final"]["val/loss"]
            assert same is (arm == "small"), (arm, stage)  # noise parts a grown network from its teacher
    assert len({done["retrained", stage]["start"]["val/loss"] for stage in (1, 2, 3)}) == 1


def test_it_is_done_and_says_so(
    place: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    assert cli.main(["compare", "lifelong", *FEW]) == 0
    out = capfd.readouterr().out
    assert "all 9 runs were done already" in out and "after every stage" in out
    assert "Figure S." in next(place.glob("runs/*/report.html")).read_text()
    rows = [line.split("  ") for line in out.splitlines() if line.startswith("Grown at every stage  ")]
    assert len(rows) == 4  # all stages together, and each


def test_a_stage_that_fails_takes_the_later_ones_with_it(
    place: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    words = ["study.arms=[growing]", "ops.wider_between.lr_scale=1e30", "out=failing"]
    assert cli.main(["compare", "lifelong", *FEW, *words]) == 2
    said = capfd.readouterr()
    assert "1 of 3 runs failed: growing-stage2-" in said.err and "and 1 would have followed one; retry" in said.err
    assert said.out.count("failed: growing-stage2-") == 1


def test_the_dry_run_counts_every_stage(
    place: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    mine = "study.strategies.mine=[student,continue,student]"  # a strategy of the user's own
    assert cli.main(["compare", "lifelong", *FEW, "--dry-run", "study.arms=[growing,mine]", "seeds=2", mine]) == 0
    lines = capfd.readouterr().out.splitlines()
    rows = [line.split() for line in lines if "every stage, " in line]
    assert sum(line.startswith("mine, ") for line in lines) == 3
    assert [(row[4], row[6]) for row in rows] == [(of, "2") for of in ("25", "50", "100")]
    sizes = [int(row[7].replace(",", "")) for row in rows]
    assert sizes == sorted(set(sizes)) and [row[9] for row in rows] == ["1", "2", "4"]
