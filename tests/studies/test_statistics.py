"""Convergence statistics against values worked out by hand."""

import csv
import doctest
import json
import math
import statistics as reference
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from n2n_cli.studies import collect, statistics, table_text
from n2n_cli.studies.costs import Way
from n2n_cli.studies.inference import Ratio, Summary, bootstrap, corrected, holm, paired, ratio, summarize
from n2n_cli.studies.statistics import ArmStatistics, difference, gain, speedup
from n2n_cli.studies.table import count, curves_csv, table_csv, way

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
    assert [one.reached.step for one in wider.runs if one.reached] == [0, 100, 100]
    assert [one.reached.images for one in scratch.runs if one.reached] == [6400, 3200]
    steps = scratch.way()
    assert steps == Way(Summary(3, pytest.approx(500 / 3), pytest.approx(57.735027)), 2)  # the third had 200, and more
    assert steps is not None and steps.cost.values == (200, 200, 100) and steps.censored == 1
    assert [(one.start, one.best, one.final) for one in wider.runs] == [
        (0.9, 0.92, 0.92),
        (0.8995, 0.91, 0.91),
        (0.5, 0.91, 0.85),
    ]
    assert arms["teacher"].teacher is None and arms["teacher"].way() is None
    text = table_text(list(arms.values()))
    assert "> 167 (2/3)" in text and "67 ± 58" in text


def test_an_arm_that_never_reaches_its_teacher_says_so(make_study: Study) -> None:
    arms = arms_of(make_study(seeds=3))
    never = arms["deep_random_init"]
    assert never.way() == Way(Summary(3, 2250, 0), 0)
    text = table_text(list(arms.values()))
    assert "> 2,250 (0/3)" in text.splitlines()[-1]
    assert max(map(len, text.splitlines())) <= 160


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
    failed, tried = doctest.testmod(sys.modules[Summary.__module__])
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
    assert (never["reached_teacher"], never["steps_to_teacher_mean"]) == ("0", "2250.0")
    ends = wider.final.interval
    assert ends is not None and float(rows["wider"]["final_low"]) == pytest.approx(ends.low)
    assert float(rows["wider"]["final_high"]) == pytest.approx(ends.high) and rows["wider"]["final_n"] == "3"
    assert rows["teacher"]["reached_teacher"] == "" and rows["random_init"]["function_gap"] == ""
    assert float(rows["wider"]["function_gap"]) == 3.3e-7 and rows["deeper"]["parameters"] == "14890"


# --- against scipy and by hand --------------------------------------------------------------------------------


def test_bootstrap_intervals_are_scipys_and_always_the_same() -> None:
    from scipy import stats

    values = (0.91, 0.925, 0.905, 0.93, 0.94)
    theirs = stats.bootstrap((values,), np.mean, n_resamples=9_999, method="BCa", random_state=0).confidence_interval
    bootstrap.cache_clear()
    assert bootstrap(values) == (pytest.approx(theirs.low), pytest.approx(theirs.high), "BCa")
    assert bootstrap(values[:3]) == (0.905, 0.925, "percentile")  # of 27 resamples, one is the smallest thrice
    assert bootstrap((1.0,) * 6) == (1.0, 1.0, "percentile")  # BCa has nothing to divide by
    assert bootstrap((1.0,)) is None and Summary(1, 1.0, None, (1.0,)).interval is None


def test_p_is_that_of_the_paired_t_test() -> None:
    from scipy import stats

    a, b = [0.91, 0.925, 0.905, 0.93], [0.90, 0.921, 0.907, 0.915]
    found = paired(dict(enumerate(a)), dict(enumerate(b)))
    assert found is not None and found.p == pytest.approx(stats.ttest_rel(a, b).pvalue)
    assert found.interval == pytest.approx(tuple(stats.ttest_rel(a, b).confidence_interval(0.95)))
    same = paired({0: 1.0, 1: 2.0}, {0: 1.0, 1: 2.0})
    assert same is not None and (same.p, same.settled) == (1.0, False)
    level = paired({0: 0.52, 1: 0.63}, {0: 0.50, 1: 0.61})  # by so many images at either seed: chance, and no spread
    assert level is not None and level.p is None and not level.settled


def test_holm_by_hand() -> None:
    # p 0.01, 0.02, 0.03, 0.04 of four: 4 x 0.01, 3 x 0.02, 2 x 0.03, 0.04, and never below the one before
    assert holm([0.01, 0.02, 0.03, 0.04]) == pytest.approx([0.04, 0.06, 0.06, 0.06])
    assert holm([0.005, 0.9, 0.011]) == pytest.approx([0.015, 0.9, 0.022])
    assert holm([0.5, 0.6]) == [1.0, 1.0] and holm([]) == []


def test_a_difference_that_counts_alone_may_not_count_among_many() -> None:
    seeds = range(4)
    near = paired({s: 0.50 + 0.01 * s + 0.004 * (s % 2) for s in seeds}, {s: 0.496 + 0.01 * s for s in seeds})
    assert near is not None and near.p is not None and 0.0125 < near.p < 0.05 and near.settled
    fixed = corrected([near] * 4)
    assert [one.settled for one in fixed] == [False] * 4 and fixed[0].adjusted == pytest.approx(4 * near.p)
    assert fixed[0].family == 4


def test_ratios_by_hand() -> None:
    found = ratio([(200, 100, False, False), (800, 100, False, False)])  # 2 and 8: geometric mean 4
    assert found is not None and found.mean == pytest.approx(4) and found.interval is not None
    assert found.interval[0] * found.interval[1] == pytest.approx(16)  # symmetric on the log scale
    assert math.log(found.interval[1] / 4) == pytest.approx(12.706 * math.log(2), rel=1e-3)  # t(1) sd / sqrt(2)
    assert ratio([(200, 100, True, False), (800, 100, False, False)]) == Ratio(2, 2, pytest.approx(4), None, ">")
    assert ratio([(200, 100, False, True), (800, 100, False, False)]) == Ratio(2, 2, pytest.approx(4), None, "<")
    assert ratio([(200, 100, True, False), (800, 100, False, True)]) is None  # bounds on both sides
    assert ratio([(200, 100, True, True), (400, 100, False, False)]) == Ratio(1, 2, pytest.approx(4))
    assert ratio([(200, 0, False, False)]) == Ratio(1, 1, math.inf, at_once=1)
    assert ratio([(0, 0, False, False), (0, 0, False, False)]) == Ratio(2, 2, 1.0, (1.0, 1.0))
    assert ratio([]) is None and ratio([(1, 1, True, True)]) is None


def test_area_thresholds_and_costs_by_hand(make_study: Study) -> None:
    study = make_study(("teacher", "wider", "random_init"), seeds=1)
    set_curve(study / "teacher-seed0", [0.1, 0.5, 0.6])
    set_curve(study / "wider-seed0", [0.6, 0.7, 0.8])
    set_curve(study / "random_init-seed0", [0.1, 0.3, 0.75])
    arms = {arm.key: arm for arm in statistics(collect(study), [0.9])}
    wider, scratch = arms["wider"], arms["random_init"]
    assert wider.area is not None and wider.area.mean == pytest.approx(0.7)
    assert scratch.area is not None and scratch.area.mean == pytest.approx((0.2 * 100 + 0.525 * 100) / 200)
    assert wider.thresholds == ["teacher", "90"] and wider.runs[0].targets["90"] == pytest.approx(0.72)
    each = 6 * 10123 * 70  # three times two times the multiply-accumulates of a forward pass
    for unit, value in {"step": 200, "images": 6400, "flops": 6400 * each, "time_s": 2.0}.items():
        found = wider.way("90", unit)
        assert found is not None and found.reached == 1 and found.cost.mean == pytest.approx(value), unit
    assert way(arms["teacher"].way("90")) == "> 200 (0/1)"
    fast = speedup(wider, scratch, "teacher", "flops", with_teacher=True)  # rival: 6400 images; arm: its teacher's run
    teacher = 6 * 4512 * 70 * 144_000
    assert fast is not None and fast.mean == pytest.approx(6400 * each / teacher)
    assert wider.total("flops") is not None and wider.total("flops").mean == pytest.approx(72_000 * each + teacher)
    assert scratch.total("flops") == scratch.own("flops")  # a random start takes nothing of its teacher


def test_costs_that_are_not_known_are_not_guessed(make_study: Study) -> None:
    study = make_study(("teacher", "wider"), seeds=1)
    for name, change in (("teacher", {"macs": None}), ("wider", {})):
        path = study / f"{name}-seed0/run.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | change))
    wider = arms_of(study)["wider"]
    assert wider.own("flops") is not None and wider.total("flops") is None and wider.total("images") is not None
    steps = json.loads(path.read_text())["lineage"]["steps"]
    steps[0]["weights"] = {"file": "r50.pt", "sha256": ""}  # trained elsewhere, at a price that nobody noted
    path.write_text(json.dumps(json.loads(path.read_text()) | {"lineage": {"steps": steps}}))
    assert arms_of(study)["wider"].total("images") is None


def test_of_a_teacher_stopped_on_its_way_only_a_part_counts(make_study: Study) -> None:
    study = make_study(("teacher", "wider"), seeds=1)
    whole = arms_of(study)["wider"]
    path = study / "wider-seed0/run.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"teacher_images": 36_000}))  # a quarter of its 144,000
    part = arms_of(study)["wider"]
    for unit in ("images", "flops", "time_s"):
        own, total, before = part.own(unit), part.total(unit), whole.total(unit)
        assert own is not None and total is not None and before is not None
        assert total.mean - own.mean == pytest.approx((before.mean - own.mean) / 4)
    rows = [json.loads(line) for line in (study / "teacher-seed0/metrics.jsonl").read_text().splitlines()]
    there = [row["val/top1"] for row in rows if "val/top1" in row and row["images"] == 36_000]
    assert [part.runs[0].teacher] == there and part.runs[0].teacher != whole.runs[0].teacher


def test_a_teacher_that_is_asked_at_every_step_costs_a_forward_pass(make_study: Study) -> None:
    study = make_study(("teacher", "random_init"), seeds=1)
    path = study / "random_init-seed0/run.json"
    info = json.loads(path.read_text())
    alone = arms_of(study)["random_init"].own("flops")
    path.write_text(json.dumps(info | {"arm": "distill"}))
    (study / "random_init-seed0").rename(study / "distill-seed0")
    guided = arms_of(study)["distill"].own("flops")
    assert alone is not None and guided is not None
    path = study / "distill-seed0/run.json"
    path.write_text(json.dumps(info | {"arm": "taught", "teacher": None, "teacher_macs": 70 * 4512}))  # as runs tell it
    (study / "distill-seed0").rename(study / "taught-seed0")
    assert arms_of(study)["taught"].own("flops") == guided
    assert guided.mean - alone.mean == pytest.approx(2 * 70 * 4512 * 6 * 375 * 32)  # its MACs, epochs, images


def test_curves_as_csv(make_study: Study) -> None:
    study = make_study(("teacher", "wider"), seeds=1)
    set_curve(study / "wider-seed0", [0.6, 0.7])
    rows = [row for row in csv.DictReader(curves_csv(list(arms_of(study).values())).splitlines())]
    assert [(row["step"], row["images"], row["accuracy"]) for row in rows if row["arm"] == "wider"] == [
        ("0", "0", "0.6"), ("100", "3200", "0.7"),
    ]  # fmt: skip


def test_numbers_for_people() -> None:
    assert count(summarize([1240, 1240])) == "1,240 ± 0" and count(summarize([2.5e15])) == "2.50e+15"
    assert count(summarize([0, 0])) == "0" and count(None) == "-"
    assert way(Way(Summary(5, 1240.4, 80.0), 3)) == "> 1,240 (3/5)"
