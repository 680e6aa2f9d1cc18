"""Studies of stages: the runs of a strategy as one, its total cost, and what stands in table, curves and report."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from n2n_cli import studies
from n2n_cli.studies import by_stage, costs

STAGES = (0.25, 0.5, 1.0)
STEPS = (10, 20, 40)  # of a stage; a step is 4 images
MACS = {"small": (100, 100, 100), "growing": (100, 200, 400), "retrained": (400, 400, 400)}
ENDS = {"small": (0.3, 0.35, 0.4), "growing": (0.3, 0.4, 0.6), "retrained": (0.35, 0.45, 0.6)}


def write(study: Path, arm: str, seed: int = 0, chain: str = "aaaaaa", stages: int = 3, lr: float = 0.1) -> None:
    """The runs of a strategy, exactly as the commands write them; the first stage is shared by other ``chain``s."""
    for place in range(stages):
        made = "111111" if place == 0 else chain
        name = f"{arm}-stage{place + 1}-{made}-seed{seed}"
        before = None if place == 0 else f"{arm}-stage{place}-{'111111' if place == 1 else chain}-seed{seed}"
        run = study / name
        if run.exists():
            continue
        run.mkdir(parents=True)
        end, steps = ENDS[arm][place] + 0.01 * seed, STEPS[place]
        start = 0.1 if place == 0 or arm == "retrained" else ENDS[arm][place - 1]
        info: dict[str, Any] = {
            "arm": arm, "label": arm, "seed": seed, "macs": MACS[arm][place], "parameters": MACS[arm][place],
            "epochs": 1.0, "lr": lr, "lr_scale": lr, "images": {"train": 160, "val": 20, "files": None},
            "data": "shapes", "teacher": None if place == 0 or arm == "retrained" else str(study / str(before)),
            "synthetic": True,
            "lineage": {"steps": [{"op": "build", "name": "inception_bn_tiny", "num_classes": 16, "kwargs": {}}]},
            "function_gap": {"eval": 0.01 * place, "train": 0.0} if arm == "growing" and place else None,
            "stage": {"number": place + 1, "of": 3, "fraction": STAGES[place], "before": before},
        }  # fmt: skip
        rows = [
            {"step": s, "images": 4 * s, "epoch": s / steps, "time_s": 0.5 * s, "val/top1": top, "train/loss": 1 - top}
            for s, top in ((0, start), (steps // 2, (start + end) / 2), (steps, end))
        ]
        done = {"step": steps, "images": 4 * steps, "epochs": 1.0, "time_s": 0.5 * steps, "final": {"val/top1": end}}
        (run / "run.json").write_text(json.dumps(info))
        (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (run / "done.json").write_text(json.dumps(done | {"start": {"val/top1": start}}))


@pytest.fixture
def study(tmp_path: Path) -> Path:
    for arm in MACS:
        for seed in (0, 1):
            write(tmp_path / "study", arm, seed)
    return tmp_path / "study"


def test_the_stages_of_a_strategy_are_one_run(study: Path) -> None:
    runs = studies.collect(study)
    assert [(run.key, run.seed) for run in runs] == [(arm, seed) for arm in MACS for seed in (0, 1)]
    growing = runs[2]
    assert [at.step for at in growing.evaluations] == [0, 5, 10, 20, 30, 50, 70]
    assert [round(at.accuracy, 3) for at in growing.evaluations] == [0.1, 0.2, 0.3, 0.35, 0.4, 0.5, 0.6]
    assert [at.images for at in growing.evaluations] == [0, 20, 40, 80, 120, 200, 280]
    assert [at.time_s for at in growing.evaluations] == [0.5 * at.step for at in growing.evaluations]
    each = 6 * 4  # a forward pass and twice as much backward, two operations a multiply-accumulate, four images
    flops = [0, 5 * 100, 10 * 100, 1000 + 10 * 200, 1000 + 20 * 200, 5000 + 20 * 400, 5000 + 40 * 400]
    assert [at.flops for at in growing.evaluations] == [each * value for value in flops]
    assert growing.info["function_gap"] == {"eval": 0.02, "train": 0.0} and growing.info["epochs"] == 3.0


def test_the_total_counts_the_earlier_stages(study: Path) -> None:
    """Also those of a strategy that starts again at each, whose weights come from none of them."""
    arms = {arm.key: arm for arm in studies.statistics(studies.collect(study))}
    for arm in MACS:
        flops = sum(6 * 4 * steps * macs for steps, macs in zip(STEPS, MACS[arm], strict=True))
        assert arms[arm].runs[0].total == costs.Cost(280, flops, 35.0) == arms[arm].runs[0].own
    found = {(at.arm.key, at.number): at for at in by_stage.after_stages(list(arms.values()))}
    assert [found["retrained", stage].flops.mean for stage in (1, 2, 3)] == [  # type: ignore[union-attr]
        6 * 4 * 400 * steps for steps in (10, 30, 70)
    ]
    assert [found["growing", stage].there for stage in (1, 2, 3)] == [40, 80, 160]
    assert found["small", 2].final.mean == pytest.approx(0.355)  # type: ignore[union-attr]
    assert found["retrained", 3].start.mean == pytest.approx(0.1)  # type: ignore[union-attr]


def test_what_is_not_finished_is_in_no_mean(study: Path) -> None:
    (study / "growing-stage3-aaaaaa-seed1" / "done.json").unlink()
    write(study, "growing", 2, stages=2)  # stopped between two stages
    (growing,) = [arm for arm in studies.statistics(studies.collect(study)) if arm.key == "growing"]
    assert (growing.n, len(growing.unfinished)) == (1, 2)
    assert [at.final.n for at in by_stage.after_stages([growing]) if at.final] == [3, 3, 1]


def test_two_settings_of_one_strategy_are_told_apart_and_share_their_first_stage(study: Path) -> None:
    write(study, "growing", chain="bbbbbb", lr=0.3)
    runs = [run for run in studies.collect(study) if run.arm == "growing"]
    assert sorted((run.key, run.seed) for run in runs) == [
        ("growing", 1), ("growing-chain-aaaaaa", 0), ("growing-chain-bbbbbb", 0),
    ]  # fmt: skip
    assert len({run.stages[0].folder for run in runs if run.seed == 0}) == 1


def test_a_run_that_follows_itself_is_read(study: Path) -> None:
    path = study / "small-stage1-111111-seed0" / "run.json"
    info = json.loads(path.read_text())
    info["stage"]["before"] = "small-stage3-aaaaaa-seed0"
    path.write_text(json.dumps(info))
    assert [run.key for run in studies.collect(study)].count("small") == 1  # of the other seed


@pytest.mark.parametrize("stage", [None, {}, {"of": 3}, {"fraction": 0.5}])
def test_a_stage_that_says_nothing_is_no_fault(study: Path, stage: Any) -> None:
    path = study / "growing-stage2-aaaaaa-seed0" / "run.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"stage": stage}))
    arms = studies.statistics(studies.collect(study))
    assert {"small", "retrained"} <= {arm.key for arm in arms} and by_stage.after_stages(arms)


def test_the_report_has_every_stage(study: Path) -> None:
    moved = study.rename(study.with_name("elsewhere"))
    page = studies.write(moved, title="Lifelong", command="n2n compare lifelong").report.read_text()
    assert "After every stage, over the n seeds" in page and page.count("Figure S.") == 1 and "table-S" in page
    assert "With 50 % of the training images, all stages so far counted: " in page
    assert "together took" in page and "and its teacher together" not in page
    rows = list(csv.DictReader((moved / "stages.csv").open()))
    assert [(row["arm"], row["stage"], row["images_there"], row["n"]) for row in rows][3:6] == [
        ("growing", "1", "40", "2"), ("growing", "2", "80", "2"), ("growing", "3", "160", "2"),
    ]  # fmt: skip
    assert float(rows[5]["flops_mean"]) == 6 * 4 * 21_000 and float(rows[5]["final_mean"]) == pytest.approx(0.605)
    assert (moved / "stages.png").stat().st_size > 10_000 and (moved / "stages.svg").exists()


def test_a_study_without_stages_has_no_such_table(make_study: Any) -> None:
    arms = studies.statistics(studies.collect(make_study(("teacher", "wider"), seeds=1)))
    assert studies.stage_text(arms) == "" and by_stage.sentences(arms) == [] and by_stage.rows(arms) == []
