"""The sentences say what the numbers say, whoever wins."""

import json
from collections.abc import Callable
from pathlib import Path

from n2n_cli.studies import collect, statistics
from n2n_cli.studies.findings import findings

Study = Callable[..., Path]


def sentences(study: Path) -> dict[str, str]:
    return {one.topic: " ".join(one.sentences) for one in findings(statistics(collect(study)))}


def test_random_init_is_named_when_it_ends_higher(make_study: Study) -> None:
    finals = {"teacher": [0.86, 0.87, 0.865], "wider": [0.869, 0.871, 0.873], "random_init": [0.919, 0.921, 0.92]}
    found = sentences(make_study(("teacher", "wider", "random_init"), finals=finals))
    assert "Random init (92.0 ± 0.1%) ends 4.9 points higher than Net2Wider (87.1 ± 0.2%)" in found["End"]
    assert "higher in 3 of 3 seeds" in found["End"] and "tie" not in found["End"]
    assert "never reaches the accuracy that Random init ends with" in found["Way to the baseline"]


def test_the_grown_student_is_named_when_it_ends_higher(make_study: Study) -> None:
    finals = {"wider": [0.919, 0.921, 0.92], "random_init": [0.869, 0.871, 0.873]}
    found = sentences(make_study(("teacher", "wider", "random_init"), finals=finals))
    assert "Net2Wider (92.0 ± 0.1%) ends 4.9 points higher than Random init (87.1 ± 0.2%)" in found["End"]
    assert "95% interval +4." in found["End"]


def test_within_the_spread_is_a_tie(make_study: Study) -> None:
    finals = {"wider": [0.91, 0.92, 0.915], "random_init": [0.92, 0.913, 0.915]}
    found = sentences(make_study(("teacher", "wider", "random_init"), finals=finals))
    assert "Net2Wider (91.5 ± 0.5%) and Random init (91.6 ± 0.4%) tie" in found["End"]
    assert "ends" not in found["End"]


def test_beyond_the_spread_but_not_settled_says_both(make_study: Study) -> None:
    finals = {"wider": [0.90, 0.91], "random_init": [0.915, 0.935]}
    found = sentences(make_study(("teacher", "wider", "random_init"), seeds=2, finals=finals))
    assert "Random init (92.5 ± 1.4%) ends 2.0 points higher than Net2Wider (90.5 ± 0.7%)" in found["End"]
    assert "which 2 seeds do not settle" in found["End"]


def test_start_and_way(make_study: Study) -> None:
    found = sentences(make_study())
    start = "Net2Wider and Net2Deeper start at exactly their teacher's final accuracy, in every seed"
    assert start in found["Start"] and "function gap at most 9.1e-07" in found["Start"]
    assert "Random pad at 31.0" in found["Start"]
    assert (
        "Net2Wider and Net2Deeper have the teacher's final accuracy before the first step"
        in found["Way to the teacher"]
    )
    assert "Never at or above it in the steps given: Deep random init (0 of 3 seeds)" in found["Way to the teacher"]
    assert "synthetic" in found["How far this carries"]
    assert "its teacher had 4,500 before" in found["How far this carries"]


def test_a_grown_start_that_is_not_exact_is_not_called_exact(make_study: Study) -> None:
    study = make_study(("teacher", "wider"), seeds=1)
    path = study / "wider-seed0/metrics.jsonl"
    first, *rest = path.read_text().splitlines(keepends=True)
    data = json.loads(first)
    data["val/top1"] -= 0.0005  # one image of 2,000
    path.write_text(json.dumps(data) + "\n" + "".join(rest))
    found = sentences(study)["Start"]
    assert "exactly" not in found and "0.05 points below its teacher" in found


def test_one_seed_claims_no_spread(make_study: Study) -> None:
    found = sentences(make_study(seeds=1))
    assert "on one seed" in found["End"] and "interval" not in found["End"]
    assert "no spread is known" in found["How far this carries"]


def test_rates_are_compared_and_the_picking_is_owned_up_to(make_study: Study) -> None:
    finals = {"wider": [0.90, 0.90, 0.901], "wider-lr1": [0.93, 0.93, 0.931]}
    study = make_study(("teacher", "wider", "random_init"), variants=(("wider-lr1", "wider", 1.0),), finals=finals)
    rates = sentences(study)["Learning rates"]
    assert "Of 2 settings of one arm, Net2Wider (lr ×1) (93.0 ± 0.1%) ends highest" in rates
    assert "against 1 of the other 1" in rates and "picked on these same validation images" in rates


def test_unfinished_runs_are_named(make_study: Study) -> None:
    found = sentences(make_study(seeds=2, unfinished=("random_init-seed1",)))
    assert "Not finished and in no mean: random_init-seed1" in found["How far this carries"]


def test_nothing_to_compare_yet(make_study: Study) -> None:
    assert "Nothing to compare yet" in sentences(make_study(("teacher",), seeds=1))
