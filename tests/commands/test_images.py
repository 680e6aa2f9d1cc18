"""Runs on image files: which images they are, wherever they lie; and what a command meets around them."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import n2n_cli
from n2n_cli import cli, data
from n2n_cli.commands import dataset, worker
from n2n_cli.config import conf_dir
from n2n_cli.convert import convert
from n2n_cli.errors import N2NError
from n2n_cli.schema import Data
from n2n_cli.training import checkpoint
from n2n_cli.training.ranks import Ranks

COLOURS = {"ant": (200, 30, 30), "bee": (30, 200, 30), "cat": (30, 30, 200)}


def draw(root: Path, names: dict[str, str] | None = None) -> Path:
    """Eight images a class to train on, four to validate on; ``names``: what a class is called instead."""
    for part, count in (("train", 8), ("val", 4)):
        for label, (name, colour) in enumerate(COLOURS.items()):
            folder = root / part / (names or {}).get(name, name)
            folder.mkdir(parents=True)
            for i in range(count):
                shade = tuple(min(255, c + 5 * i + label) for c in colour)
                Image.new("RGB", (32, 32), shade).save(folder / f"{i}.png")
    return root


def words(root: Path) -> list[str]:
    return [
        "data=imagefolder", f"data.root={root}", "data.image_size=32", "model=inception_bn_tiny", "optim=sgd",
        "training=default", "training.batch_size=8", "training.default_epochs={teacher:4,student:1}", "device=cpu",
        "progress=false",
    ]  # fmt: skip


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def final(run: Path) -> dict[str, torch.Tensor]:
    return checkpoint.load(checkpoint.resolve(run))["model"]


def test_the_same_images_elsewhere_are_the_same_run(place: Path) -> None:
    first = draw(place / "disk")
    assert cli.main(["train", "teacher", *words(first), "out=whole"]) == 0
    assert cli.main(["train", "teacher", *words(first), "max_steps=5"]) == 0
    scratch = shutil.copytree(first, place / "scratch")
    shutil.rmtree(first)
    assert cli.main(["train", "teacher", *words(scratch)]) == 0
    (run,), (whole,) = place.glob("runs/*/teacher-seed0"), place.glob("whole/*/teacher-seed0")
    assert run.parent.name == whole.parent.name
    assert all(torch.equal(tensor, final(whole)[name]) for name, tensor in final(run).items())


@pytest.mark.parametrize("change", ["added", "removed", "renamed"])
def test_other_images_under_a_stopped_run(place: Path, change: str, capfd: pytest.CaptureFixture[str]) -> None:
    root = draw(place / "images")
    assert cli.main(["train", "teacher", *words(root), "max_steps=5"]) == 0
    one = root / "train" / "bee" / "3.png"
    if change == "removed":
        one.unlink()
    else:
        (shutil.copy if change == "added" else os.replace)(one, one.with_name("new.png"))
    dataset._load.cache_clear()  # as in another process
    capfd.readouterr()
    assert cli.main(["train", "teacher", *words(root)]) == 2
    (run,) = place.glob("runs/*/teacher-seed0")
    said = {"added": "24 -> 25 train", "removed": "24 -> 23 train", "renamed": "as many as before, with other names"}
    line = capfd.readouterr().err.splitlines()[-1]
    assert line.startswith(f"n2n: error: {run.relative_to(place)}: the images are not those that the run began with")
    assert said[change] in line and line.endswith("or go on all the same with accept_images=true")
    before = json.loads((run / "run.json").read_text())["images"]
    assert cli.main(["train", "teacher", *words(root), "accept_images=true"]) == 0
    told = json.loads((run / "run.json").read_text())
    assert told["images_before"] == [before] and told["images"] != before
    assert cli.main(["train", "teacher", *words(root)]) == 0  # it is done, and needs no leave any more


def test_a_class_added_under_a_stopped_run(place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    root = draw(place / "images")
    assert cli.main(["train", "teacher", *words(root), "max_steps=5"]) == 0
    for part in ("train", "val"):
        shutil.copytree(root / part / "bee", root / part / "wasp")
    dataset._load.cache_clear()
    capfd.readouterr()
    assert cli.main(["train", "teacher", *words(root), "max_steps=1"]) == 0
    said = capfd.readouterr().out
    assert f"teacher-seed0 was begun when {root} held 3 classes: with others, this is another run" in said
    assert len(list(place.glob("runs/*/teacher-seed0"))) == 2


def test_a_finished_run_is_not_one_of_other_images(place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    first, second = draw(place / "first"), draw(place / "second")
    (second / "train" / "bee" / "7.png").unlink()
    assert cli.main(["train", "teacher", *words(first)]) == 0
    for line in (["train", "teacher"], ["grow"], ["compare"]):
        dataset._load.cache_clear()
        capfd.readouterr()
        assert cli.main([*line, *words(second)]) == 2
        said = capfd.readouterr().err.splitlines()[-1]
        assert "the images are not those that the run began with (24 -> 23 train)" in said
    assert len(list(place.glob("runs/*/*/run.json"))) == 1


def test_other_class_names_are_refused(place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    root = draw(place / "images")
    assert cli.main(["train", "teacher", *words(root)]) == 0
    (run,) = place.glob("runs/*/teacher-seed0")
    other = draw(place / "other", {"ant": "10", "bee": "9", "cat": "100"})
    capfd.readouterr()
    for line in (["evaluate", str(run)], ["grow", f"teacher={run}", *words(other)[2:]]):
        grow = line[0] == "grow"
        given = [*line, "data=imagefolder", f"data.root={other}"] if grow else [*line, f"data.root={other}"]
        assert cli.main(given) == 2
        said = capfd.readouterr().err.splitlines()[-1]
        assert "its classes are ant, bee, cat, and the imagefolder data's are 10, 100, 9: it knows no '10'" in said
    assert not list(place.glob("runs/*/wider*"))


def test_classes_in_another_order_are_mapped_by_name(place: Path) -> None:
    images = data.load("imagefolder", root=draw(place / "images"), image_size=32)
    names = ["cat", "ant", "bee"]
    mapped = images.with_classes(names)
    for ours, theirs in ((images.train, mapped.train), (images.val, mapped.val)):
        assert [images.class_names[i] for i in ours.labels] == [names[i] for i in theirs.labels]
    assert mapped.class_names == names and images.class_names == ["ant", "bee", "cat"]
    with pytest.raises(N2NError, match=r"it knows no 'ant' \(did you mean 'aunt'\?\)"):
        images.with_classes(["aunt", "bee", "cat"])


def test_names_travel_with_every_checkpoint(place: Path) -> None:
    root = draw(place / "images")
    assert cli.main(["train", "teacher", *words(root)]) == 0
    assert cli.main(["grow", "--op", "deeper", *words(root)]) == 0
    runs = sorted(place.glob("runs/*/*/run.json"))
    assert len(runs) == 2
    for run in runs:
        assert json.loads(run.read_text())["lineage"]["classes"] == ["ant", "bee", "cat"]
        state = checkpoint.load(checkpoint.resolve(run.parent))
        assert state["lineage"]["classes"] == ["ant", "bee", "cat"]


def test_a_cluster_jobs_variables_do_not_make_a_command_wait(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"WORLD_SIZE": "2", "RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    assert cli.main(["train", "teacher", *words(draw(place / "images")), "epochs=1"]) == 0


def test_another_number_of_epochs_is_told_from_a_longer_run(place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    root = draw(place / "images")
    assert cli.main(["train", "teacher", *words(root), "epochs=1"]) == 0
    capfd.readouterr()
    assert cli.main(["train", "teacher", *words(root), "epochs=2"]) == 0
    said = capfd.readouterr().out
    (run,) = (path.relative_to(place) for path in place.glob("runs/*/teacher-epochs1-seed0"))
    assert f"{run} is finished, for 1 epochs: 2 are another run, from step 0 (n2n grow --op continue" in said


def test_no_hits_at_all_are_told(
    place: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = draw(place / "images")
    monkeypatch.setattr("n2n_cli.training.state.evaluate", lambda *a, **k: {"val/top1": 0.0, "val/loss": 1.0})
    assert cli.main(["train", "teacher", *words(root), "epochs=1"]) == 0
    assert "top-1 start 0.00 %, final 0.00 %, best 0.00 %" in capfd.readouterr().out


def test_home_is_expanded_and_a_closed_output_is_no_error(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = draw(place / "images")
    environment = {**os.environ, "HOME": str(place)}
    typed = [*words(Path("~/images")), "--out=~/mine", "epochs=1"]
    command = f"{sys.executable} -m n2n_cli train teacher {' '.join(map(shlex.quote, typed))} >&- 2>&-"
    done = subprocess.run(command, shell=True, env=environment, cwd=Path(n2n_cli.__file__).parents[1], timeout=200)
    assert done.returncode == 0 and root.is_dir()
    assert len(list(place.glob("mine/*/teacher-epochs1-seed0/done.json"))) == 1


def test_every_failed_job_of_a_sweep_is_told(place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    root = draw(place / "images")
    assert cli.main(["train", "teacher", "-m", *words(root), "epochs=1", "optim.lr=1e30,1e31,0.1"]) == 2
    lines = capfd.readouterr().err.splitlines()
    told = [line for line in lines if line.startswith("n2n: error: a job failed: ")]
    assert len(told) == 2 and lines[-1].startswith("n2n: error: 2 jobs failed: ")
    assert "lr 1e+30" in lines[-1] and "lr 1e+31" in lines[-1]


def test_evaluation_needs_no_training_images(place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    root = draw(place / "images")
    assert cli.main(["train", "teacher", *words(root)]) == 0
    (run,) = place.glob("runs/*/teacher-seed0")
    shutil.rmtree(root / "train")
    dataset._load.cache_clear()
    capfd.readouterr()
    assert cli.main(["evaluate", str(run), "device=cpu"]) == 0
    final = json.loads((run / "done.json").read_text())["final"]["val/top1"]
    assert f"top-1 {100 * final:.2f} %" in capfd.readouterr().out
    assert cli.main(["evaluate", str(run), "device=cpu", "data.holdout=4"]) == 2
    assert "no folder train/ in" in capfd.readouterr().err


def test_a_loss_that_is_no_number_is_null_in_json(
    place: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cli.main(["train", "teacher", *words(draw(place / "images")), "epochs=0"]) == 0
    (run,) = place.glob("runs/*/teacher*-seed0")
    nothing = {"val/top1": 0.0, "val/top5": 0.0, "val/loss": float("nan")}
    monkeypatch.setattr("n2n_cli.commands.evaluate.evaluate", lambda *a, **k: nothing)
    capfd.readouterr()
    assert cli.main(["evaluate", str(run), "--json"]) == 0
    told = json.loads(capfd.readouterr().out, parse_constant=lambda word: pytest.fail(word))
    assert told["val/loss"] is None


def test_every_file_is_looked_at(place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    root = draw(place / "images")
    assert cli.main(["data", "check", str(root), "workers=1"]) == 0
    said = capfd.readouterr().out.splitlines()
    assert said == [
        "train/: 24 images of 3 classes, 8 a class", "val/: 12 images of 3 classes, 4 a class",
        "the same image in train/ and val/: 12 times, such as train/ant/0.png = val/ant/0.png",
    ]  # fmt: skip
    ant = root / "train" / "ant"
    Image.new("CMYK", (32, 32), 7).save(ant / "cmyk.jpg")
    Image.new("RGB", (32, 32), 9).save(ant / "really.jpg", "PNG")
    Image.fromarray(np.full((32, 32), 40_000, np.uint16)).save(ant / "deep.png")
    shutil.copy(ant / "0.png", ant / "again.png")
    (ant / "cut.png").write_bytes((ant / "1.png").read_bytes()[:60])
    (ant / ".hidden.png").touch()
    (ant / "notes.txt").touch()
    shutil.rmtree(root / "val" / "bee")
    assert cli.main(["data", "check", str(root), "--workers", "2", "--json"]) == 2
    out, err = capfd.readouterr()
    assert err == f"n2n: error: data check: {root}: 1 files cannot be read, val/ lacks 1 classes\n"
    found = json.loads(out)
    assert found["unreadable"].keys() == {"train/ant/cut.png"} and found["missing"] == {"train": [], "val": ["bee"]}
    assert found["odd"] == {
        "CMYK": ["train/ant/cmyk.jpg"], "PNG, named .jpg": ["train/ant/really.jpg"],
        "16 bits, scaled to 8": ["train/ant/deep.png"],
    }  # fmt: skip
    assert ["train/ant/0.png", "train/ant/again.png", "val/ant/0.png"] in found["leaks"]
    assert found["hidden"] == {"train": 1, "val": 0} and found["others"]["train"] == {".txt": 1}
    assert found["classes"]["val"] == {"ant": 4, "cat": 4} and found["images"] == {"train": 29, "val": 8}


def test_the_workers_of_a_run_that_fails_end_with_it(place: Path) -> None:
    root = draw(place / "images")
    (root / "train" / "bee" / "3.png").write_bytes(b"no image")
    assert cli.main(["train", "teacher", *words(root), "data.cache=none", "workers=1", "prepare_only=true"]) == 0
    (run,) = place.glob("runs/*/teacher-seed0")
    with pytest.raises(N2NError, match=r"3\.png") as caught:
        worker.fit_folder(run, alone=True)
    assert caught and multiprocessing.active_children() == []  # though the error holds on to the frames of the loop
    with checkpoint.exclusive(run, patience=0):
        pass


def test_what_training_passes_over_growth_does_too(place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    root = draw(place / "images")
    (root / "train" / "bee" / "3.png").write_bytes(b"no image")
    tree = yaml.safe_load((conf_dir() / "data" / "imagefolder.yaml").read_text())
    tree |= {"root": str(root), "image_size": 32, "cache": "none", "on_error": "skip"}
    del tree["defaults"]
    cfg: Any = convert(Data, tree, "data")
    assert [len(batch) for batch in dataset.calibration(dataset.load(cfg), 24, 0, 1)] == [24]
    assert capfd.readouterr().err.count("n2n: warning: skipped unreadable image") == 1
    with pytest.raises(N2NError, match=r"3\.png"):
        dataset.calibration(dataset.load(replace(cfg, on_error="raise")), 24, 0, 1)


def test_a_rank_shares_the_cores_with_those_of_its_machine(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cli.main(["train", "teacher", *words(draw(place / "images")), "data.cache=none", "prepare_only=true"]) == 0
    (run,) = place.glob("runs/*/teacher-seed0")
    asked: list[Any] = []

    @contextmanager
    def ranks(device: str, *, alone: bool) -> Iterator[Ranks]:
        yield Ranks(local_size=3)

    def loader(*args: Any, beside: int, **kwargs: Any) -> None:
        asked.append(beside)
        raise N2NError("seen")

    monkeypatch.setattr(worker, "ranks", ranks)
    monkeypatch.setattr(data, "TrainLoader", loader)
    monkeypatch.setattr(worker.machine, "limit_threads", lambda model, processes: asked.append(processes))
    monkeypatch.setattr(worker.machine, "workers", lambda choice, devices, in_memory: asked.append(devices))
    with pytest.raises(N2NError, match="seen"):
        worker.fit_folder(run)
    assert asked == [3, 3, 3]


def test_what_the_cache_chose_is_said(place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    root = draw(place / "photographs")
    for more, said in (
        ((), r"data.cache=auto: images are decoded once and kept in memory \(\d+\.\d MB\)"),
        (("data.augment=imagenet", "workers=0"), "data.cache=auto: images are read from their files each time, by no"),
        (("data.cache=none",), None),
    ):
        capfd.readouterr()
        assert cli.main(["train", "teacher", *words(root), *more, "max_steps=1"]) == 0
        out = capfd.readouterr().out
        assert re.search(said, out) if said else "data.cache" not in out
