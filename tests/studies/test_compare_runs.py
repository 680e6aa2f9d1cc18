"""``n2n compare RUN...``: runs that are there, however they came, in one report; what does not fit is named."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from n2n_cli import cli
from n2n_cli.config import names_runs
from n2n_cli.errors import N2NError
from n2n_cli.studies import comparable, gather

Study = Callable[..., Path]


def change(run: Path, **values: object) -> None:
    path = run / "run.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_one_report_on_runs_of_several_folders(
    make_study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    study = make_study(("teacher", "wider", "random_init"), seeds=2, unfinished=("random_init-seed1",))
    monkeypatch.chdir(tmp_path)
    elsewhere = shutil.copytree(study / "wider-seed0", tmp_path / "mine")
    config = elsewhere / "config.yaml"
    config.write_text(config.read_text().replace("momentum: 0.9", "momentum: 0.5"))
    (tmp_path / "empty").mkdir()
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn/run.json").write_text('{"arm": "wid')
    copy = shutil.copytree(study / "wider-seed1", tmp_path / "copy" / "wider-seed1")
    assert cli.main(["compare", "study", "mine", "empty", "torn", "gone", str(copy)]) == 0
    said = capfd.readouterr()
    assert [line.partition(": ")[2] for line in said.err.splitlines()] == [
        "warning: left out empty: no run.json in it: no run, or half written",
        "warning: left out torn: cannot read torn/run.json: Unterminated string starting at: line 1 column 9 (char 8)",
        "warning: left out gone: no such folder",
        f"warning: left out {copy}: arm, settings and seed are those of study/wider-seed1",
    ]
    assert "report: report-study-and-5-more/report.html" in said.out
    page = (tmp_path / "report-study-and-5-more/report.html").read_text()
    assert "Comparison of 7 runs" in page and "Left out: gone: no such folder." in page
    assert "momentum 0.5" in page and "Not finished and in no mean: random_init-seed1" in page
    assert str(tmp_path) not in page
    assert cli.main(["compare", "study", "mine", "empty", "torn", "gone", str(copy)]) == 0  # written anew


def test_runs_on_other_images_are_left_out(make_study: Study) -> None:
    study = make_study(("teacher", "wider", "random_init"), seeds=2)
    images = {"train": 12000, "val": 2000, "files": "aaaa"}
    for run in study.iterdir():
        change(run, images=images)
    change(study / "wider-seed0", images=images | {"files": "bbbb"})
    change(study / "wider-seed1", images=images | {"val": 500})
    change(study / "random_init-seed0", lineage={"steps": [{"op": "build", "num_classes": 10}]})
    change(study / "random_init-seed1", data="cifar10")
    runs, damaged = gather([study])
    assert len(runs) == 6 and damaged == {}
    kept, left_out = comparable(runs)
    assert [run.folder.name for run in kept] == ["teacher-seed0", "teacher-seed1"]
    assert {Path(folder).name: reason for folder, reason in left_out.items()} == {
        "wider-seed0": "other images (digest of their names): bbbb, where the others have aaaa",
        "wider-seed1": "another number of validation images: 500, where the others have 2000",
        "random_init-seed0": "another number of classes: 10, where the others have 16",
        "random_init-seed1": "other data: cifar10, where the others have shapes",
    }


def test_generated_images_are_told_by_their_settings(make_study: Study) -> None:
    study = make_study(("teacher", "wider"), seeds=2)
    path = study / "wider-seed1/config.yaml"
    path.write_text(path.read_text().replace("image_size: 32", "image_size: 48"))
    kept, left_out = comparable(gather([study])[0])
    assert len(kept) == 3 and list(map(lambda folder: Path(folder).name, left_out)) == ["wider-seed1"]


def test_runs_of_one_name_and_other_settings_are_arms_of_their_own(make_study: Study, tmp_path: Path) -> None:
    study = make_study(("wider",), seeds=2)
    other = shutil.copytree(study, tmp_path / "other")
    for path in other.glob("*/config.yaml"):
        path.write_text(path.read_text().replace("weight_decay: 0.005", "weight_decay: 0.1"))
    runs, _ = comparable(gather([study, other])[0])
    assert sorted({run.key for run in runs}) == ["wider-weight_decay0.005", "wider-weight_decay0.1"]
    assert {tuple(run.variant) for run in runs} == {("weight_decay 0.005",), ("weight_decay 0.1",)}


def test_arms_of_many_settings_have_names_that_a_file_system_takes(make_study: Study, tmp_path: Path) -> None:
    study = make_study(("wider",), seeds=2)
    other = shutil.copytree(study, tmp_path / "other")
    for path in other.glob("*/config.yaml"):
        text = path.read_text()
        for was, now in (("0.005", "0.1"), ("0.9\n", "0.5\n"), ("cosine", "step"), ("0.99", "0.9"), ("auto", "bf16")):
            assert was in text
            text = text.replace(was, now)
        path.write_text(text)
    runs, _ = comparable(gather([study, other])[0])
    assert [len(run.variant) for run in runs] == [4] * 4 and all("2 more settings" in run.variant[3] for run in runs)
    assert len({run.key for run in runs}) == 2


def test_validation_images_that_the_seed_drew_are_the_same_ones(make_study: Study) -> None:
    study = make_study(("teacher",), seeds=3, synthetic=False)
    for number, folder in enumerate(sorted(study.iterdir())):
        path = folder / "config.yaml"
        path.write_text(path.read_text().replace("data:\n", f"data:\n  seed: {number // 2}\n  holdout: 50\n"))
    _, left_out = comparable(gather([study])[0])
    assert list(left_out.values()) == ["other validation images (data.seed): 1, where the others have 0"]


def test_words_are_runs_or_a_study(make_study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_study(("teacher",), seeds=1)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "baselines").mkdir()
    assert names_runs(["study"]) and names_runs(["./baselines", "--metric", "top5"]) and names_runs(["study", "gone"])
    assert not names_runs(["baselines"]) and not names_runs(["--seeds", "3"]) and not names_runs(["fig4", "seeds=2"])
    assert not names_runs(["nosuch"])  # an unknown study, as Hydra says
    for words in (["study", "fig4"], ["fig4", "study"], ["no/such/run"]):
        with pytest.raises(N2NError, match="compare: "):
            names_runs(words)


def test_nothing_is_written_over(
    make_study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    make_study(("teacher",), seeds=1)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full/mean").mkdir(parents=True)
    assert cli.main(["compare", "study", "out=full"]) == 2
    assert "out: full holds other files; take a new folder" in capfd.readouterr().err
    (tmp_path / "empty").mkdir()
    assert cli.main(["compare", "empty"]) == 2
    assert "n2n: error: compare: none of the 1 runs can be reported" in capfd.readouterr().err
    assert not (tmp_path / "report-empty").exists()


def test_the_metric_and_the_thresholds_are_the_reports(
    make_study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_study(("teacher", "wider", "random_init"), seeds=2)
    monkeypatch.chdir(tmp_path)
    assert cli.main(["compare", "study", "--metric", "top5", "--thresholds", "0.8", "--out", "r"]) == 0
    page, head = (tmp_path / "r/report.html").read_text(), (tmp_path / "r/table.csv").read_text().splitlines()[0]
    assert "Validation top-5" in page and "Validation top-1" not in page
    assert "steps_to_80_mean" in head and "steps_to_90" not in head
