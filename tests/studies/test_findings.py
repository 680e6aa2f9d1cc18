"""The sentences say what the numbers say, whoever wins."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from n2n_cli.studies import collect, statistics
from n2n_cli.studies.findings import findings
from n2n_cli.studies.headline import claim, warnings

Study = Callable[..., Path]


def sentences(study: Path) -> dict[str, str]:
    return {one.topic: " ".join(one.sentences) for one in findings(statistics(collect(study)))}


def warned(study: Path) -> str:
    return " ".join(warnings(statistics(collect(study))))


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


def test_the_same_difference_at_every_seed_has_no_p(make_study: Study) -> None:
    """Nothing says how it spreads: the sentence tells the interval and stops there."""
    finals = {"wider": [0.75, 0.5], "random_init": [0.5, 0.25]}
    found = sentences(make_study(("teacher", "wider", "random_init"), seeds=2, finals=finals))
    assert "(95% interval +25.0 to +25.0; higher in 2 of 2 seeds), which 2 seeds do not settle" in found["End"]


def test_start_and_way(make_study: Study) -> None:
    found = sentences(make_study())
    start = "Net2Wider and Net2Deeper start at exactly their teacher's accuracy, in every seed"
    assert start in found["Start"] and "function gap at most 9.1e-07" in found["Start"]
    assert "Random pad at 31.0" in found["Start"]
    assert "Net2Wider and Net2Deeper have the teacher's accuracy before the first step" in found["Way to the teacher"]
    assert "Never at or above it in the steps given: Deep random init (0 of 3 seeds)" in found["Way to the teacher"]
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
    study = make_study(seeds=1)
    found = sentences(study)
    assert "on one seed" in found["End"] and "interval" not in found["End"]
    assert "no spread is known" in warned(study)


def test_rates_are_compared_and_the_picking_is_owned_up_to(make_study: Study) -> None:
    finals = {"wider": [0.90, 0.90, 0.901], "wider-lr1": [0.93, 0.929, 0.931]}
    study = make_study(("teacher", "wider", "random_init"), variants=(("wider-lr1", "wider", 1.0),), finals=finals)
    rates = sentences(study)["Learning rates"]
    assert "Of 2 settings of one arm, Net2Wider (lr ×1) (93.0 ± 0.1%) ends highest" in rates
    assert "against 1 of the other 1" in rates and "picked on these same validation images" in rates


def test_unfinished_runs_are_named(make_study: Study) -> None:
    told = warned(make_study(seeds=2, unfinished=("random_init-seed1",)))
    assert "Not finished and in no mean: random_init-seed1" in told and "unequal numbers of finished seeds" in told


def test_nothing_to_compare_yet(make_study: Study) -> None:
    assert "Nothing to compare yet" in sentences(make_study(("teacher",), seeds=1))


def test_the_correction_decides_and_is_named(make_study: Study) -> None:
    """Two arms beside one baseline: what is significant alone is not settled."""
    finals = {
        "random_init": [0.900, 0.901, 0.902, 0.900],
        "wider": [0.920, 0.905, 0.926, 0.918],
        "random_pad": [0.940, 0.880, 0.930, 0.890],
    }
    study = make_study(("teacher", *finals), seeds=4, finals=finals)
    both = sentences(study)["End"]
    assert "p = 0.064, Holm over 2), which 4 seeds do not settle" in both
    for seed in range(4):
        shutil.rmtree(study / f"random_pad-seed{seed}")
    alone = sentences(study)["End"]
    assert "p = 0.032)" in alone and "do not settle" not in alone


def test_the_claim_is_one_sentence_with_its_numbers(make_study: Study) -> None:
    finals = {"wider": [0.869, 0.871, 0.873], "random_init": [0.919, 0.921, 0.92]}
    told = claim(statistics(collect(make_study(("teacher", "wider", "random_init"), finals=finals))))
    assert told.startswith("Random init (92.0 ± 0.1%) ends 4.9 points higher than Net2Wider (87.1 ± 0.2%) (95%")
    assert "Net2Wider and its teacher together took 1.9 times the FLOPs of Random init" in told and "<" in told


def test_what_a_reader_should_know_first(make_study: Study) -> None:
    study = make_study(seeds=3)
    assert "3 seeds settle large differences only." in warned(study) and "The data are synthetic" in warned(study)
    for change in ("batch_size: 32", "batch_size: 64"):
        assert "same order" not in warned(study)
        path = study / "wider-seed0/config.yaml"
        path.write_text(path.read_text().replace("batch_size: 32", change))
    assert "do not see the same images in the same order (training.batch_size differ)" in warned(study)
    path = study / "wider-seed0/done.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"images": 10_000}))
    assert "Unequal budgets: 51,333 images: Net2Wider; 72,000 images: " in warned(study)
    (study / "wider-seed1/done.json").unlink()
    (study / "wider-seed1/failed.json").write_text(json.dumps({"reason": "loss is nan", "arm": "wider", "seed": 1}))
    assert "wider-seed1 failed and is in no mean: loss is nan" in warned(study)
