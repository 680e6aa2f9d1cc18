"""The commands, typed one after the other in an empty folder, on a few images."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import n2n_cli
from n2n_cli import cli, lineage
from n2n_cli.commands import machine
from n2n_cli.errors import N2NError
from n2n_cli.training import checkpoint

FEW = [
    "data.train_images=192",
    "data.val_images=80",
    "training.default_epochs={teacher:1,student:1}",
    "training.evals_first_epoch=2",
    "training.log_every=2",
    "device=cpu",
]


def n2n(*words: str) -> None:
    assert cli.main([*words, *FEW]) == 0


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An empty folder in which the three commands were typed with no argument but the size."""
    folder = tmp_path_factory.mktemp("place")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        n2n("train", "teacher")
        n2n("grow", "--op", "wider")
        patch.setenv("N2N_TEST_DONE", str([p.stat().st_mtime_ns for p in sorted(folder.rglob("done.json"))]))
        n2n("compare", "baselines")
        yield folder


@pytest.fixture(autouse=True)
def _there(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)


def setting(place: Path) -> Path:
    (folder,) = (path.parent.parent for path in place.glob("runs/inception_bn_tiny-shapes-*/teacher-seed0/run.json"))
    return folder


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_compare_reuses_teacher_and_student(place: Path) -> None:
    study = setting(place)
    arms = ["teacher", "wider", "random_pad", "random_init", "deeper", "deep_random_init", "continue"]
    for arm in arms:
        assert read(study / f"{arm}-seed0" / "done.json")["step"] == 6
        assert read(study / f"{arm}-seed0" / "run.json")["arm"] == arm
    first_two = [(study / f"{arm}-seed0" / "done.json").stat().st_mtime_ns for arm in ("teacher", "wider")]
    assert str(first_two) == os.environ["N2N_TEST_DONE"]
    for name in ("report.html", "curves.png", "table.csv"):
        assert (study / name).stat().st_size > 100


def test_a_run_folder_holds_what_it_should(place: Path) -> None:
    run = setting(place) / "wider-seed0"
    names = {path.name for path in run.iterdir()}
    assert {"config.yaml", "metrics.jsonl", "run.json", "done.json", "checkpoints"} <= names
    assert any(name.startswith("events.out.tfevents") for name in names)
    assert not list(place.rglob(".hydra")) and not list(place.rglob("*.log"))
    info, config = read(run / "run.json"), yaml.safe_load((run / "config.yaml").read_text())
    assert info["lr"] == pytest.approx(0.1 * config["optim"]["lr"]) and info["synthetic"] is True
    assert [step["op"] for step in info["lineage"]["steps"]] == ["build", "wider"]
    assert rows(run)[0].keys() >= {"step", "epoch", "images", "time_s", "val/top1", "val/top5", "val/loss"}


def only_grow(place: Path, *words: str) -> None:
    n2n("grow", "--op", "wider", "--epochs", "0", "--teacher", str(setting(place) / "teacher-seed0"), *words)


def test_a_grown_student_starts_at_its_teachers_accuracy(place: Path) -> None:
    only_grow(place, "out=exact", "op.noise=0")
    teacher = rows(setting(place) / "teacher-seed0")[-1]
    (exact,) = place.glob("exact/*/wider-noise0-*")
    for run in (exact, setting(place) / "deeper-seed0"):
        start = rows(run)[0]
        assert start["step"] == 0
        assert (start["val/top1"], start["val/top5"]) == (teacher["val/top1"], teacher["val/top5"])
        gap = read(run / "run.json")["function_gap"]
        assert max(gap.values()) < 1e-10
    for arm in ("random_init", "wider"):  # the control; and noise on the copies by default
        assert read(setting(place) / f"{arm}-seed0" / "run.json")["function_gap"]["eval"] > 1e-2


def test_a_finished_run_tells_how_many_units_are_copies(place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The shipped default leaves none, equal copies without noise leave all."""
    default = read(setting(place) / "wider-seed0" / "done.json")
    assert default["units"] > 50 and default["units/copies"] == 0
    assert read(setting(place) / "continue-seed0" / "done.json")["units/copies"] == 0
    assert "units" not in read(setting(place) / "teacher-seed0" / "done.json")
    n2n("grow", "--op", "wider", "--teacher", str(setting(place) / "teacher-seed0"), "op.noise=0", "out=equal")
    (run,) = place.glob("equal/*/wider-noise0-*")
    done = read(run / "done.json")
    teacher, student = (read(path / "run.json") for path in (setting(place) / "teacher-seed0", run))
    assert student["parameters"] > teacher["parameters"] and done["units"] == default["units"]
    own = read(setting(place) / "continue-seed0" / "done.json")["units"]
    assert done["units/copies"] == done["units/near_copies"] == done["units"] - own
    told = f"{done['units/near_copies']} of {done['units']} units are copies of others (to 1 %)"
    assert told in capfd.readouterr().out
    assert rows(run)[-1]["units/copies"] == done["units/copies"]


@pytest.mark.parametrize("words", ["op.new=fresh", "op.new=paired", "op.new=gradmax", "op.split=unequal"])
def test_other_ways_to_start_are_exact_and_named(place: Path, words: str) -> None:
    only_grow(place, "out=ways", words)
    key, _, way = words.removeprefix("op.").partition("=")
    (run,) = place.glob(f"ways/*/wider-{key}-{way}-*")
    assert rows(run)[0]["val/top1"] == rows(setting(place) / "teacher-seed0")[-1]["val/top1"]
    step = read(run / "run.json")["lineage"]["steps"][-1]
    assert step[key] == way and max(step["function_gap"].values()) < 1e-10
    assert way in lineage.describe({"steps": [step]})[0]


def test_the_teacher_trained_on_starts_as_the_teacher(place: Path) -> None:
    run = setting(place) / "continue-seed0"
    assert rows(run)[0]["val/top1"] == rows(setting(place) / "teacher-seed0")[-1]["val/top1"]
    assert read(run / "run.json")["function_gap"]["eval"] == 0 and read(run / "done.json")["step"] == 6
    assert lineage.describe(read(run / "run.json")["lineage"])[-1] == "trained on"


@pytest.mark.parametrize(("words", "warns"), [("op.noise=0", True), ("", False)])
def test_copies_that_never_part_are_a_warning(
    place: Path, words: str, warns: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    only_grow(place, "out=part", *words.split())
    warned = [line for line in capfd.readouterr().err.splitlines() if line.startswith("n2n: warning: ")]
    assert len(warned) == warns and all("widened groups never part" in line for line in warned)


def test_arms_have_the_shapes_of_their_student(place: Path) -> None:
    count = {p.parent.name: read(p)["parameters"] for p in setting(place).glob("*/run.json")}
    assert count["wider-seed0"] == count["random_pad-seed0"] == count["random_init-seed0"] > count["teacher-seed0"]
    assert count["deeper-seed0"] == count["deep_random_init-seed0"] > count["teacher-seed0"]


def test_again_says_that_it_is_done(place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in place.rglob("*") if path.is_file()}
    for words in (["train", "teacher"], ["grow", "--op", "wider"], ["compare"]):
        n2n(*words)
    assert {path: path.stat().st_mtime_ns for path in place.rglob("*") if path.is_file()} == before
    out = capfd.readouterr().out
    study = setting(place).relative_to(place)
    assert f"{study}/teacher-seed0 is done" in out and f"{study}/wider-seed0 is done" in out
    assert out.endswith(
        f"all 7 runs were done already\nreport: {study}/report.html\ncurves: {study}/curves.png\n"
        f"tensorboard --logdir {study}\n"
    )


def test_stopped_and_resumed_is_the_same_run(place: Path) -> None:
    n2n("train", "student")
    n2n("train", "student", "out=stopped", "max_steps=2")
    (there,) = place.glob("stopped/*/student-seed0")
    assert not (there / "done.json").exists()
    n2n("train", "student", "out=stopped", "max_steps=1")
    assert [row["step"] for row in rows(there) if row["step"]][-1] == 3
    n2n("train", "student", "out=stopped")
    whole = setting(place) / "student-seed0"
    ends = [checkpoint.load(checkpoint.resolve(folder)) for folder in (whole, there)]
    assert ends[0]["step"] == ends[1]["step"] == 6
    for part in ("model", "ema"):
        assert all(torch.equal(ends[0][part][name], ends[1][part][name]) for name in ends[0][part])


def test_a_sweep_puts_every_job_in_its_own_named_folder(place: Path) -> None:
    n2n("grow", "-m", "--op", "wider,random_pad", "--epochs", "0", "lr_scale=0.1,0.3")
    names = {path.parent.name for path in setting(place).glob("*epochs0*/done.json")}
    assert names == {f"{op}{lr}-epochs0-seed0" for op in ("wider", "random_pad") for lr in ("", "-lr0.3")}


def test_a_student_rises_to_its_rate(place: Path) -> None:
    n2n("grow", "op.new=fresh", "lr_scale=1", "op.warmup_epochs=0.67", "optim.schedule.name=constant",
        f"teacher={setting(place) / 'teacher-seed0'}")  # fmt: skip
    (there,) = place.glob("runs/*/wider-warmup_epochs0.67-new-fresh-lr1-*")
    assert [row["lr"] for row in rows(there) if "lr" in row] == [0.05, 0.1, 0.1]  # after 2, 4 and 6 steps, 4 to rise
    assert read(there / "run.json")["warmup_epochs"] == 0.67


def test_a_grown_student_grows_again(place: Path) -> None:
    for op in ("deeper", "wider"):
        more = ["--factor", "1.5", "op.noise=0"] if op == "wider" else []
        n2n("grow", "--op", op, "--epochs", "0", "--teacher", str(setting(place) / "wider-seed0"), *more)
    found = sorted(setting(place).glob("*-from-*/run.json"))
    lineages = [[step["op"] for step in read(path)["lineage"]["steps"]] for path in found]
    assert sorted(lineages) == [["build", "wider", "deeper"], ["build", "wider", "wider"]]
    assert all(max(read(path)["function_gap"].values()) < 1e-10 for path in found)


def test_evaluate(place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run = setting(place) / "deeper-seed0"
    final = read(run / "done.json")["final"]["val/top1"]
    assert cli.main(["evaluate", str(run), "device=cpu"]) == 0
    assert f"top-1 {100 * final:.2f} %" in capfd.readouterr().out
    assert cli.main(["evaluate", str(checkpoint.resolve(run)), "--json", "data.val_images=20", "device=cpu"]) == 0
    told = json.loads(capfd.readouterr().out)
    assert told["step"] == 6 and (20 * told["val/top1"]) % 1 == 0
    assert cli.main(["evaluate", str(run), "data=fake", "device=cpu"]) == 2
    assert "has 16 classes, the data fake has 1000" in capfd.readouterr().err


def test_inspect(place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run = setting(place) / "wider-seed0"
    assert cli.main(["inspect", str(run), "--json"]) == 0
    told = json.loads(capfd.readouterr().out)
    assert (
        told["parameters"] == read(run / "run.json")["parameters"] == sum(row["parameters"] for row in told["layers"])
    )
    assert told["macs"] == read(run / "run.json")["macs"] and len(told["lineage"]["steps"]) == 2
    assert cli.main(["inspect", "inception_bn", "--width", "0.5477225575"]) == 0
    out = capfd.readouterr().out
    assert "3,746,834 parameters" in out and "lineage: built inception_bn(1000 classes" in out


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("grow --teacher RUN data=fake data.image_size=32", "teacher: RUN has 16 classes, fake has 1000"),
        (
            "grow --teacher RUN model=resnet18",
            "the student cannot be reached: 'conv1.weight' is in the student alone, [64, 3, 7, 7]",
        ),
        ("grow --teacher RUN ++op.layers={nothing:2}", "'nothing'"),
        ("grow --teacher RUN --op deeper --sites nothing", "'nothing'"),
        ("grow --teacher damaged.pt", "damaged.pt"),
        ("evaluate damaged.pt", "damaged.pt"),
        ("inspect runs", "no checkpoint in runs"),
    ],
)
def test_mistakes_that_only_the_job_can_find(
    words: str, line: str, place: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = str(setting(place) / "teacher-seed0")
    (place / "damaged.pt").write_bytes(checkpoint.resolve(Path(run)).read_bytes()[:-1000])
    before = sorted(place.rglob("*"))
    assert cli.main([*words.replace("RUN", run).split(), *(["out=new"] if words.startswith("grow") else [])]) == 2
    err = capfd.readouterr().err
    assert err.startswith("n2n: error: ") and err.count("\n") == 1 and line.replace("RUN", run) in err
    assert sorted(place.rglob("*")) == before


class Runs:
    """What a pickle can do."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, ("executed",)


def change(state: dict[str, Any], kind: str) -> Any:
    """A checkpoint's state made wrong in one way."""
    name = next(iter(state["model"]))
    if kind == "a plain state_dict":
        return state["model"]
    if kind == "code":
        return {**state, "model": Runs()}
    if kind.startswith("no "):
        return {key: value for key, value in state.items() if key != kind.removeprefix("no ")}
    if kind == "a missing weight":
        return {**state, "ema": {key: value for key, value in state["ema"].items() if key != name}}
    if kind == "another shape":
        return {**state, "ema": {**state["ema"], name: torch.zeros(3)}}
    return {**state, "ema": "x"}


@pytest.mark.parametrize(
    ("kind", "line"),
    [
        ("a plain state_dict", "is not an n2n checkpoint"),
        ("code", "is not an n2n checkpoint"),
        ("no lineage", "no 'lineage' in it"),
        ("no step", "no 'step' in it"),
        ("no config", "no 'config' in it"),
        ("a missing weight", "its weights do not fit its lineage"),
        ("another shape", "its weights do not fit its lineage"),
        ("a text for weights", "is not an n2n checkpoint (its 'ema' is 'x')"),
    ],
)
def test_a_foreign_checkpoint_is_refused(
    kind: str,
    line: str,
    place: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    state = checkpoint.load(checkpoint.resolve(setting(place) / "teacher-seed0"))
    torch.save(change(state, kind), "wrong.pt")
    for words in ("evaluate wrong.pt device=cpu", "inspect wrong.pt", "grow --teacher wrong.pt data.train_images=64"):
        assert cli.main(words.split()) == 2
        err = capfd.readouterr().err
        assert err.startswith("n2n: error: wrong.pt") and err.count("\n") == 1 and line in err
        assert [path.name for path in tmp_path.iterdir()] == ["wrong.pt"]


def damage(*paths: Path) -> None:
    for path in paths:
        path.write_bytes(path.read_bytes()[:-1])


def test_damaged_checkpoints_never_start_a_run_anew(place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    n2n("train", "teacher", "out=hurt", "max_steps=4")
    (run,) = place.glob("hurt/*/teacher-seed0")
    damage(checkpoint.resolve(run))
    capfd.readouterr()
    n2n("train", "teacher", "out=hurt", "max_steps=1")  # from the one before
    assert capfd.readouterr().err.count("skipped damaged checkpoint") == 1
    damage(*(path for path in run.glob("checkpoints/step*") if path != checkpoint.newest(run / "checkpoints")[0]))
    damage(checkpoint.resolve(run))
    capfd.readouterr()
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    for words, line in (
        ([f"train teacher {' '.join(FEW)} out=hurt"], "every checkpoint in hurt/"),
        ([f"inspect {run}"], f"no good checkpoint in {run}: "),
    ):
        assert cli.main(words[0].split()) == 2
        err = capfd.readouterr().err
        assert err.startswith(f"n2n: error: {line}") and err.count("\n") == 1, err
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_a_damaged_done_json_costs_one_line(place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    n2n("train", "teacher", "out=cut", "epochs=0")
    (path,) = place.glob("cut/*/teacher-epochs0-seed0/done.json")
    whole = path.read_text()
    path.write_text(whole[:20])
    capfd.readouterr()
    for words in ("train teacher epochs=0", "grow teacher_epochs=0", "compare teacher_epochs=0"):
        assert cli.main([*words.split(), *FEW, "out=cut"]) == 2
        err = capfd.readouterr().err
        assert err.startswith(f"n2n: error: cannot read {path.relative_to(place)}: ") and err.count("\n") == 1
    path.unlink()
    n2n("train", "teacher", "out=cut", "epochs=0")
    assert json.loads(path.read_text())["final"] == json.loads(whole)["final"]


@pytest.mark.parametrize("words", ["model=vit_b_16", "data=cifar10 data.image_size=64"])
def test_a_run_that_cannot_begin_leaves_nothing(words: str, place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "teacher", *FEW, "out=never", *words.split()]) == 2
    assert capfd.readouterr().err.count("\n") == 1
    assert not (place / "never").exists()


def test_a_full_disk_costs_one_line(
    place: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def full(handle: int, data: object) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        assert cli.main(["train", "teacher", *FEW, "out=full"]) == 2
    err = capfd.readouterr().err
    assert err.startswith("n2n: error: cannot write full/") and err.endswith("No space left on device\n")
    assert err.count("\n") == 1
    n2n("train", "teacher", "out=full")  # with space again


def test_too_little_memory_costs_one_line() -> None:
    with pytest.raises(N2NError, match="not enough memory"), machine.enough_memory():
        torch.empty(1 << 50)
    with pytest.raises(RuntimeError, match="must match the size"), machine.enough_memory():
        torch.zeros(2) + torch.zeros(3)  # the control: other errors of PyTorch stay what they are


def test_a_users_own_conf(place: Path, tmp_path: Path) -> None:
    (tmp_path / "op").mkdir()
    (tmp_path / "op" / "mine.yaml").write_text("defaults: [wider]\nfactor: 2.0\n")
    n2n("grow", "--config-dir", str(tmp_path), "--op", "mine", "--epochs", "0")
    assert (setting(place) / "wider-factor2-epochs0-seed0" / "done.json").exists()


def worker(folder: Path) -> subprocess.CompletedProcess[str]:
    path = {**os.environ, "PYTHONPATH": str(Path(n2n_cli.__file__).parents[1])}
    command = [sys.executable, "-m", "n2n_cli.commands.worker", str(folder)]
    return subprocess.run(command, env=path, capture_output=True, text=True, timeout=120)


def test_prepared_and_trained_by_the_worker(place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    n2n("train", "teacher", "seed=7", "prepare_only=true")
    run = setting(place) / "teacher-seed7"
    assert f"torchrun --nproc-per-node 1 -m n2n_cli.commands.worker {run.relative_to(place)}" in capfd.readouterr().out
    assert not (run / "done.json").exists()
    assert worker(run).returncode == 0 and read(run / "done.json")["step"] == 6
    wrong = worker(place / "nowhere")
    assert wrong.returncode == 2 and wrong.stderr.startswith("n2n: error: no run in ") and wrong.stderr.count("\n") == 1


def test_two_devices_give_the_numbers_of_one(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(n2n_cli.__file__).parents[1]))
    n2n("train", "teacher", "seed=1")
    n2n("train", "teacher", "seed=1", "out=two", "--devices", "2")
    (two,) = place.glob("two/*/teacher-seed1")
    one = setting(place) / "teacher-seed1"
    pairs = list(zip(rows(one), rows(two), strict=True))
    assert len(pairs) > 2
    for a, b in pairs:
        assert a["step"] == b["step"] and a["images"] == b["images"]
        assert a.get("train/loss", 0) == pytest.approx(b.get("train/loss", 0), rel=1e-4)
        assert a.get("val/loss", 0) == pytest.approx(b.get("val/loss", 0), rel=1e-4)


@pytest.mark.slow
def test_a_torchvision_network(place: Path) -> None:
    n2n("train", "teacher", "model=resnet18")
    n2n("grow", "model=resnet18", "--factor", "1.25", "--epochs", "0", "op.noise=0")
    (info,) = (read(path) for path in place.glob("runs/resnet18-*/wider-*-seed0/run.json"))
    assert max(info["function_gap"].values()) < 1e-10
