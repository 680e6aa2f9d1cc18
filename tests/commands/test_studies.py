"""Every study that is shipped, for one step; and what its arms do, typed as a user would."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torchvision.models import VisionTransformer

import n2n_cli
from n2n_cli import cli, models
from n2n_cli.config import conf_dir
from n2n_cli.models import describe
from n2n_cli.training import checkpoint

pytestmark = pytest.mark.usefixtures("undrawn")

STUDIES = sorted(path.stem for path in (conf_dir() / "study").glob("*.yaml"))
FAST = {"neighbours"}  # the others take long, or differ from it by little
SMALL = {  # what makes a recipe fit a test
    "lifelong": ["training.batch_size=16"],  # so many images has its first stage
    "resnet50_wide": ["training.batch_size=32"],
    "vit": ["training.batch_size=32", "model.kwargs={num_layers:2}"],
}
FEW = [
    "data.train_images=64", "data.val_images=40", "training.default_epochs={teacher:2,student:1}", "device=cpu",
    "training.evals_first_epoch=1", "progress=false", "jobs=1",
]  # fmt: skip


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def n2n(*words: str) -> None:
    few = FEW if words[0] == "compare" else FEW[:-1]
    assert cli.main([*words, *few]) == 0


@pytest.fixture(scope="module")
def _taught(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("taught")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        n2n("train", "teacher")
    return folder


@pytest.fixture
def taught(place: Path, _taught: Path) -> Path:
    """A folder with a trained teacher in ``runs``."""
    shutil.copytree(_taught, place, dirs_exist_ok=True)
    return place


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def weights(run: Path) -> dict[str, torch.Tensor]:
    return checkpoint.load(checkpoint.resolve(run))["model"]


def one(place: Path, pattern: str) -> Path:
    (found,) = place.glob(pattern)
    return found


@pytest.mark.parametrize("study", [s if s in FAST else pytest.param(s, marks=pytest.mark.slow) for s in STUDIES])
def test_every_study_runs(study: str, capfd: pytest.CaptureFixture[str]) -> None:
    n2n("compare", study, *SMALL.get(study, []))
    told = OmegaConf.to_container(OmegaConf.load(conf_dir() / "study" / f"{study}.yaml"), resolve=True)
    arms = told.get("study", {}).get("arms", [])
    table = capfd.readouterr().out.split("\n---", 1)[1].split("\n\n")[0]
    rates, at = told.get("lr_scale") or [1], told.get("study", {}).get("teacher_at") or [1]
    rows = [line for line in table.splitlines()[1:] if line and not line.startswith(("report:", "curves:", "tensor"))]
    teachers = 0 if told.get("study", {}).get("stages") else 1
    assert len(rows) == teachers + len(arms) * len(rates) * len(at) or not arms
    assert len(rows) > 2 and all(" 1  " in row for row in rows)


SHAPES = {
    "resnet50_wide": ([], lambda: models.build("wide_resnet50_2")),
    "vit": (
        ["model.kwargs={num_layers:2}"],
        lambda: VisionTransformer(32, 16, 2, 12, 768, 3072),
    ),  # vit_b_16's, but 2 of 12
}


@pytest.mark.slow
@pytest.mark.parametrize("study", SHAPES)
def test_the_students_of_a_recipe_have_the_shapes_it_names(study: str, capfd: pytest.CaptureFixture[str]) -> None:
    words, build = SHAPES[study]
    few = ["data.train_images=64", "data.val_images=40", "device=cpu", "training.batch_size=8"]
    assert cli.main(["compare", study, "--dry-run", "data=fake", "data.image_size=32", *words, *few]) == 0
    rows = [line.split() for line in capfd.readouterr().out.splitlines()[2:6]]
    students = [next(int(word.replace(",", "")) for word in row if "," in word) for row in rows[1:]]
    with torch.device("meta"):
        assert students == [describe.count_parameters(build())] * 3


RECIPES = [
    f"{group}={path.stem}"
    for group in ("model", "optim", "training")
    for path in sorted((conf_dir() / group).glob("*.yaml"))
]


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_takes_a_step(recipe: str, place: Path) -> None:
    """Of the network, the optimizer and the training; of image folders: see `test_images`."""
    more = ["model.name=resnet18"] if recipe == "model=torchvision" else []
    n2n("train", "teacher", recipe, *more, "training.batch_size=16", "max_steps=1")
    assert read(one(place, "runs/*/*/run.json"))["parameters"] > 1000
    assert checkpoint.load(checkpoint.resolve(one(place, "runs/*/teacher-seed0")))["step"] == 1


def test_the_help_names_every_study(capfd: pytest.CaptureFixture[str]) -> None:
    cli.main(["compare", "--help"])
    said = capfd.readouterr().out
    assert [study for study in STUDIES if study not in said] == []


# --- both operators in one step ------------------------------------------------------------------------------


@pytest.mark.parametrize("op", ["wider_deeper", "deeper_wider"])
def test_a_composition_starts_at_its_teacher(op: str, taught: Path, capfd: pytest.CaptureFixture[str]) -> None:
    n2n("grow", "--op", op, "op.wider.noise=0", "epochs=0", "out=runs")
    run = one(taught, f"runs/*/{op}-wider-*-epochs0-seed0")
    info = read(run / "run.json")
    assert [step["op"] for step in info["lineage"]["steps"]] == ["build", *op.split("_")]
    assert max(info["function_gap"].values()) < 1e-5 and info["parameters"] > 20_000
    teacher = read(one(taught, "runs/*/teacher-seed0") / "done.json")["final"]
    assert read(run / "done.json")["final"]["val/top1"] == teacher["val/top1"]
    capfd.readouterr()
    assert cli.main(["evaluate", str(run), "device=cpu"]) == 0  # built again from its lineage
    assert f"top-1 {100 * teacher['val/top1']:.2f} %" in capfd.readouterr().out


# --- frozen ----------------------------------------------------------------------------------------------------


def test_the_new_layers_alone_are_trained(taught: Path) -> None:
    for freeze in ("true", "false"):
        n2n("grow", "--op", "deeper", f"op.freeze={freeze}", "lr_scale=1")
    teacher = checkpoint.weights(checkpoint.load(checkpoint.resolve(one(taught, "runs/*/teacher-seed0"))))
    for name, frozen in (("deeper-freeze1-lr1-seed0", True), ("deeper-lr1-seed0", False)):
        run = one(taught, f"runs/*/{name}")
        after = weights(run)
        old = [key for key in after if key in teacher and key.endswith("weight")]
        assert len(old) > 20 and (read(run / "run.json")["frozen"] != []) is frozen
        same = [key for key in old if torch.equal(after[key], teacher[key])]
        assert same == old if frozen else len(same) < len(old) / 4
        new = [key for key in after if ".extra" in key and key.endswith("conv.weight")]
        identity = [torch.equal(after[key] != 0, torch.diag_embed(torch.ones(len(after[key]))) != 0) for key in new]
        assert new and not any(identity)


# --- a teacher on its way ----------------------------------------------------------------------------------------


def test_a_teacher_stopped_on_its_way(place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    n2n("compare", "when", "study.arms=[continue]", "study.teacher_at=[0.5,1.0]", "training.keep_at=[0.5]", "out=when")
    study = one(place, "when/*")
    half = checkpoint.load(one(study, "teacher-seed0/checkpoints/at0.5-*.pt"))
    assert half["step"] == 2 and half["images"] == 64
    n2n("train", "teacher", "max_steps=2", "out=stopped")
    stopped = checkpoint.load(checkpoint.resolve(one(place, "stopped/*/teacher-seed0")))
    assert all(torch.equal(half["model"][key], value) for key, value in stopped["model"].items())
    info = read(study / "continue-at0.5-seed0" / "run.json")
    assert info["teacher_images"] == 64 and read(study / "continue-seed0" / "run.json")["teacher_images"] == 128
    assert "(teacher at 50 %)" in capfd.readouterr().out
    line = ["compare", "when", "study.teacher_at=[0.25]", "out=when", *FEW]
    assert cli.main(line) == 2
    err = capfd.readouterr().err
    assert err.startswith("n2n: error: ") and "keeps no checkpoint of 25 % of its steps" in err and err.count("\n") == 1


# --- guides --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("op", ["distill", "feature_prediction"])
def test_a_guided_student_is_resumed_to_the_bit(op: str, taught: Path) -> None:
    n2n("grow", "--op", op)
    n2n("grow", "--op", op, "max_steps=1", "out=again", f"teacher={one(taught, 'runs/*/teacher-seed0')}")
    n2n("grow", "--op", op, "out=again", f"teacher={one(taught, 'runs/*/teacher-seed0')}")
    whole, again = weights(one(taught, f"runs/*/{op}-seed0")), weights(one(taught, f"again/*/{op}-*seed0"))
    assert all(torch.equal(value, again[key]) for key, value in whole.items())
    n2n("grow", "--op", "random_init")
    alone = weights(one(taught, "runs/*/random_init-seed0"))
    assert alone.keys() == whole.keys() and not all(torch.equal(value, alone[key]) for key, value in whole.items())


@pytest.mark.slow
@pytest.mark.parametrize("op", ["distill", "feature_prediction"])
def test_two_devices_are_guided_as_one(op: str, taught: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(n2n_cli.__file__).parents[1]))
    n2n("grow", "--op", op)
    n2n("grow", "--op", op, "out=two", "devices=2", f"teacher={one(taught, 'runs/*/teacher-seed0')}")
    a, b = (weights(one(taught, f"{out}/*/{op}-*seed0")) for out in ("runs", "two"))
    assert all(torch.allclose(value.double(), b[key].double(), rtol=1e-3, atol=1e-3) for key, value in a.items())


def test_a_done_json_that_says_no_time_is_no_fault(place: Path) -> None:
    line = ["compare", "baselines", "study.arms=[continue]"]
    n2n(*line)
    for path in place.glob("runs/*/*/done.json"):
        told = {key: value for key, value in read(path).items() if key not in ("time_s", "sha256", "seal")}
        path.write_text(json.dumps(told))
    n2n(*line)
