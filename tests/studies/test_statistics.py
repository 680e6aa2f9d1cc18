"""Convergence statistics against values worked out by hand."""

import csv
import doctest
import json
import statistics as reference
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from n2n_cli.studies import collect, statistics, table_text
from n2n_cli.studies.statistics import ArmStatistics, Summary, difference, gain, summarize
from n2n_cli.studies.table import table_csv

Study = Callable[..., Path]


def arms_of(study: Path) -> dict[str, ArmStatistics]:
    return {arm.key: arm for arm in statistics(collect(study))}


def set_curve(run: Path, tops: list[float]) -> None:
    """Evaluations at steps 0, 100, 200, ... and nothing else."""
    rows = [
        {"step": 100 * i, "epoch": i / 2, "images": 3200 * i, "time_s": float(i), "val/top1": top}
        for i, top in enumerate(tops)
    ]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_mean_and_sample_standard_deviation() -> None:
    values = [0.91, 0.925, 0.905]
    found = summarize(values)
    assert found is not None and found.n == 3
    assert found.mean == pytest.approx(reference.mean(values))
    assert found.sd == pytest.approx(reference.stdev(values))  # ddof 1, not pstdev
    assert summarize([0.5, None]) == Summary(1, 0.5, None)
    assert summarize([None]) is None


def test_the_way_to_the_teacher_is_the_first_evaluation_at_or_above_its_final(make_study: Study) -> None:
    study = make_study(("teacher", "wider", "random_init"), seeds=3)
    for seed in range(3):
        set_curve(study / f"teacher-seed{seed}", [0.1, 0.95, 0.9])  # its best is higher than its final
    set_curve(study / "wider-seed0", [0.9, 0.89, 0.92])  # equal at step 0
    set_curve(study / "wider-seed1", [0.8995, 0.9, 0.91])  # one image short at step 0
    set_curve(study / "wider-seed2", [0.5, 0.91, 0.85])  # reaches it, and falls below it again
    for seed, tops in enumerate([[0.1, 0.5, 0.9], [0.1, 0.5, 0.8995], [0.1, 0.9, 0.91]]):
        set_curve(study / f"random_init-seed{seed}", tops)
    arms = arms_of(study)
    wider, scratch = arms["wider"], arms["random_init"]
    assert [at.step for at in wider.reached] == [0, 100, 100]
    assert [at.images for at in scratch.reached] == [6400, 3200]
    assert scratch.steps_to_teacher == Summary(2, 150.0, pytest.approx(70.710678))
    assert [(one.start, one.best, one.final) for one in wider.runs] == [
        (0.9, 0.92, 0.92),
        (0.8995, 0.91, 0.91),
        (0.5, 0.91, 0.85),
    ]
    assert arms["teacher"].teacher is None and arms["teacher"].reached == []
    text = table_text(list(arms.values()))
    assert "150 ± 71 (2/3)" in text and "67 ± 58" in text


def test_an_arm_that_never_reaches_its_teacher_says_so(make_study: Study) -> None:
    arms = arms_of(make_study(seeds=3))
    never = arms["deep_random_init"]
    assert never.steps_to_teacher is None and never.reached == []
    text = table_text(list(arms.values()))
    assert "never (0/3)" in text.splitlines()[-1]
    assert "never" not in text.splitlines()[2]  # the teacher itself


def test_unfinished_runs_are_in_no_mean(make_study: Study) -> None:
    study = make_study(seeds=2, unfinished=("wider-seed1", "deeper-seed0", "deeper-seed1"))
    arms = arms_of(study)
    assert (arms["wider"].n, len(arms["wider"].unfinished)) == (1, 1)
    assert arms["wider"].final is not None and arms["wider"].final.sd is None
    assert (arms["deeper"].n, arms["deeper"].final) == (0, None)
    assert arms["deeper"].parameters == 14890


def test_one_seed_has_no_spread(make_study: Study) -> None:
    arms = arms_of(make_study(seeds=1))
    assert "±" not in table_text(list(arms.values()))
    diff = difference(arms["deeper"], arms["deep_random_init"])
    assert diff is not None and diff.interval is None and diff.tie is None and not diff.settled


def test_the_paired_interval_and_the_tie(make_study: Study) -> None:
    finals = {"wider": [0.90, 0.92, 0.94], "random_init": [0.91, 0.925, 0.955], "random_pad": [0.80, 0.83, 0.84]}
    arms = arms_of(make_study(("teacher", *finals), seeds=3, finals=finals))
    close = difference(arms["wider"], arms["random_init"])
    # differences -0.01, -0.005, -0.015: mean -0.01, sd 0.005; t(2) = 4.303
    assert close is not None and close.mean == pytest.approx(-0.01)
    half = 4.303 * 0.005 / 3**0.5
    assert close.interval == pytest.approx((-0.01 - half, -0.01 + half), rel=1e-3)
    assert close.tie and (close.higher, close.lower) == (0, 3)  # within the arms' own spread of 0.02
    far = difference(arms["wider"], arms["random_pad"])
    assert far is not None and not far.tie and far.settled and far.higher == 3
    back = difference(arms["random_pad"], arms["wider"])
    assert back is not None and back.mean == pytest.approx(-far.mean) and back.lower == 3
    over = gain(arms["wider"])
    assert over is not None and over.n == 3
    assert gain(arms["teacher"]) is None


def test_the_interval_of_many_seeds_is_students_and_not_the_normals(make_study: Study) -> None:
    finals = {"wider": [0.90 + 0.001 * (seed % 2) for seed in range(17)], "random_init": [0.90] * 17}
    arms = arms_of(make_study(("wider", "random_init"), seeds=17, finals=finals))
    diff = difference(arms["wider"], arms["random_init"])
    assert diff is not None and diff.interval is not None
    sd = 0.001 * (8 * 9 / 17 / 16) ** 0.5  # eight of seventeen differ by 0.001
    assert (diff.interval[1] - diff.interval[0]) / 2 == pytest.approx(2.120 * sd / 17**0.5, rel=1e-4)


def test_examples() -> None:
    failed, tried = doctest.testmod(sys.modules[ArmStatistics.__module__])
    assert tried and not failed


def test_variants_are_arms_of_their_own(make_study: Study) -> None:
    variants = (("wider-lr0.3", "wider", 0.3), ("wider-lr1", "wider", 1.0))
    arms = arms_of(make_study(("teacher", "wider", "random_init"), seeds=2, variants=variants))
    assert list(arms) == ["teacher", "wider", "wider-lr0.3", "wider-lr1", "random_init"]
    labels = [arm.label for arm in arms.values()]
    assert labels == ["Teacher", "Net2Wider (lr ×0.1)", "Net2Wider (lr ×0.3)", "Net2Wider (lr ×1)", "Random init"]
    assert arms["wider"].start == arms["wider-lr1"].start


def test_csv_holds_fractions_and_leaves_the_unknown_empty(make_study: Study) -> None:
    arms = arms_of(make_study(seeds=3))
    rows = {row["arm"]: row for row in csv.DictReader(table_csv(list(arms.values())).splitlines())}
    wider, never = arms["wider"], rows["deep_random_init"]
    assert wider.final is not None
    assert float(rows["wider"]["final_mean"]) == pytest.approx(wider.final.mean)
    assert float(rows["wider"]["final_sd"]) == pytest.approx(wider.final.sd, rel=1e-6)
    assert (never["reached_teacher"], never["steps_to_teacher_mean"]) == ("0", "")
    assert rows["teacher"]["reached_teacher"] == "" and rows["random_init"]["function_gap"] == ""
    assert float(rows["wider"]["function_gap"]) == 3.3e-7 and rows["deeper"]["parameters"] == "14890"
