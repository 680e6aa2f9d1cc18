"""Run folders read back."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from n2n_cli.errors import N2NError
from n2n_cli.studies import collect, statistics

Study = Callable[..., Path]


def test_runs_come_in_the_order_of_arms_and_seeds(make_study: Study) -> None:
    runs = collect(make_study(seeds=2))
    arms = ["teacher", "wider", "random_pad", "random_init", "deeper", "deep_random_init"]
    assert [(run.arm, run.seed) for run in runs] == [(arm, seed) for arm in arms for seed in (0, 1)]
    assert all(run.finished for run in runs)
    assert [at.step for at in runs[0].evaluations][:3] == [0, 47, 94]
    assert runs[0].evaluations[-1].images == 4500 * 32


def test_every_student_has_the_teacher_of_its_seed_even_when_the_study_was_moved(make_study: Study) -> None:
    study = make_study(("teacher", "wider"), seeds=2)
    moved = study.rename(study.with_name("elsewhere"))
    for run in collect(moved):
        assert (run.teacher is None) == (run.arm == "teacher")
        if run.teacher is not None:
            assert run.teacher.folder == moved / f"teacher-seed{run.seed}"


def test_a_teacher_may_be_a_checkpoint_of_another_folder(make_study: Study, tmp_path: Path) -> None:
    study = make_study(("teacher", "wider"), seeds=1)
    other = shutil.copytree(study / "teacher-seed0", tmp_path / "other" / "teacher-seed0")
    info = json.loads((study / "wider-seed0/run.json").read_text())
    info["teacher"] = str(other / "checkpoints" / "best-0123.pt")
    (study / "wider-seed0/run.json").write_text(json.dumps(info))
    wider = collect(study)[1]
    assert wider.teacher is not None and wider.teacher.folder == other


def test_a_random_start_without_a_path_is_measured_against_its_seeds_only_teacher(make_study: Study) -> None:
    study = make_study(("teacher", "random_init"), seeds=2)
    path = study / "random_init-seed1/run.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"teacher": None}))
    assert collect(study)[-1].teacher is not None
    shutil.rmtree(study / "teacher-seed1")
    assert collect(study)[-1].teacher is None


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("wider-seed0", "Net2Wider"),
        ("wider-noise0.2-lr0.3-seed0", "Net2Wider (noise 0.2, lr ×0.3)"),
        ("wider-lr1e-05-epochs12-seed7", "Net2Wider (lr ×1e-05, 12 epochs)"),
        ("wider-layers-a1b2c3-seed0", "Net2Wider (layers a1b2c3)"),
        ("wider-from-12ab34-seed0", "Net2Wider (teacher 12ab34)"),
        ("wider-noise0.2-carry-seed0", "Net2Wider (noise 0.2, optimizer carry)"),
        ("wider-teacher6-seed0", "Net2Wider (teacher of 6 epochs)"),
    ],
)
def test_labels_tell_the_variant(make_study: Study, name: str, label: str) -> None:
    study = make_study(("wider",), seeds=1)
    (study / "wider-seed0").rename(study / name)
    (run,) = collect(study)
    (arm,) = statistics([run])
    assert arm.label == label
    assert run.key == name.rsplit("-", 1)[0]


def test_what_all_students_share_is_not_in_their_labels(make_study: Study) -> None:
    study = make_study(("teacher", "wider", "random_init"), seeds=1)
    names = ("teacher-epochs2", "wider-noise0.2-epochs1-teacher2", "random_init-epochs1-teacher2")
    for name in names:
        (study / f"{name.split('-')[0]}-seed0").rename(study / f"{name}-seed0")
    assert [arm.label for arm in statistics(collect(study))] == ["Teacher", "Net2Wider (noise 0.2)", "Random init"]


def test_a_line_that_is_no_row_is_left_out_and_told(make_study: Study, capsys: pytest.CaptureFixture[str]) -> None:
    study = make_study(("teacher",), seeds=1)
    path = study / "teacher-seed0/metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines) + '{"step": 45')
    assert len(collect(study)[0].rows) == len(lines)
    assert capsys.readouterr().err == ""  # cut off by a kill
    path.write_text("".join([lines[0], '{"step": 4\n', *lines[1:]]))
    assert len(collect(study)[0].rows) == len(lines)
    assert "metrics.jsonl: left out line 2, not as it was written" in capsys.readouterr().err


def test_folders_that_are_no_study_are_named_in_one_line(make_study: Study, tmp_path: Path) -> None:
    with pytest.raises(N2NError, match=r"study folder not found: .*nowhere$"):
        collect(tmp_path / "nowhere")
    study = make_study(("teacher",), seeds=1)
    with pytest.raises(N2NError, match=f"no run in {tmp_path}: .*studies below it: {study}$"):
        collect(tmp_path)
    (study / "teacher-seed0/run.json").write_text("{")
    with pytest.raises(N2NError, match=r"cannot read .*teacher-seed0/run\.json"):
        collect(study)
    (study / "teacher-seed0/run.json").write_text('{"seed": 0}')
    with pytest.raises(N2NError, match=r"run\.json: no 'arm'"):
        collect(study)
