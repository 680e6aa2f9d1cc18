"""Networks by functions of the user's and weights of the user's, from the shell; and what may never be imported."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import n2n_cli
from n2n_cli import cli, records
from n2n_cli.commands import worker
from n2n_cli.training import checkpoint
from n2n_cli.training.launch import run_rank

FEW = [
    "data.train_images=64",
    "data.val_images=40",
    "training.default_epochs={teacher:1,student:1}",
    "training.evals_first_epoch=0",
    "device=cpu",
]
NETS = """
from torch import nn

def my_net(num_classes, width=8):
    layers = []
    for before, after in ((3, width), (width, width)):
        layers += [nn.Conv2d(before, after, 3, 2, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, num_classes))

def wide(num_classes):
    return my_net(num_classes, 12)

def narrow(num_classes):
    return my_net(num_classes, 6)

def scaled(num_classes, width=1.0):
    return my_net(num_classes, round(8 * width))

def few_classes():
    return my_net(5)

class Pair(nn.Sequential):
    def forward(self, x):
        logits = super().forward(x)
        return logits, 2 * logits

def pair(num_classes):
    return Pair(*my_net(num_classes))

class Stops(nn.Linear):
    def forward(self, x):
        return x.no_such_thing

def stops(num_classes):
    return Stops(3, num_classes)
"""
EVIL = "from pathlib import Path\nPath('imported').touch()\ndef net(num_classes): Path('called').touch()\n"
MINE, WIDE = "model=my_package.nets:my_net", "model=my_package.nets:wide"


def n2n(*words: str) -> None:
    assert cli.main([*words, *FEW]) == 0


def told(words: str, capfd: pytest.CaptureFixture[str], few: bool = True) -> str:
    """The one line that a wrong command gets; it writes nothing."""
    before = {path: path.stat().st_mtime_ns for path in Path().rglob("*")}
    capfd.readouterr()
    code = cli.main([*shlex.split(words), *(FEW if few else [])])
    out, err = capfd.readouterr()
    assert code == 2 and out == "" and err.startswith("n2n: error: ") and err.count("\n") == 1, (out, err)
    assert {path: path.stat().st_mtime_ns for path in Path().rglob("*")} == before
    return err.removeprefix("n2n: error: ").rstrip("\n")


def forget() -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] in ("my_package", "evil")]:
        del sys.modules[name]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with the user's package, a teacher and a student of it."""
    folder = tmp_path_factory.mktemp("place")
    (folder / "my_package").mkdir()
    (folder / "my_package" / "__init__.py").touch()
    (folder / "my_package" / "nets.py").write_text(NETS)
    (folder / "evil.py").write_text(EVIL)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "path", list(sys.path))
        patch.setattr(sys, "dont_write_bytecode", True)
        n2n("train", "teacher", MINE)
        n2n("grow", "--op", "wider", MINE, "--factor", "1.5", "op.noise=0")
        yield folder
    forget()


@pytest.fixture(autouse=True)
def _there(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path != str(place)])
    forget()


def run_of(arm: str, setting: str = "my_package.nets.my_net", out: str = "runs") -> Path:
    (found,) = Path(out).glob(f"{setting}-shapes-*/{arm}-seed0")
    return found


def read(folder: Path) -> Any:
    return json.loads((folder / "run.json").read_text())


def test_train_grow_evaluate_inspect(place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run = run_of("wider-factor1.5-noise0")
    steps = read(run)["lineage"]["steps"]
    assert [step["op"] for step in steps] == ["build", "wider"]
    assert steps[0]["name"] == "my_package.nets:my_net" and steps[0]["kwargs"] == {}
    assert max(read(run)["function_gap"].values()) < 1e-10
    assert cli.main(["evaluate", str(run), MINE, "--json", "device=cpu"]) == 0
    final = json.loads((run / "done.json").read_text())["final"]
    assert json.loads(capfd.readouterr().out.splitlines()[-1])["val/top1"] == final["val/top1"]
    assert cli.main(["inspect", str(run), MINE, "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["parameters"] == read(run)["parameters"]
    for words in (["my_package.nets:my_net"], [MINE], ["my_package.nets:my_net", MINE]):
        forget()
        assert cli.main(["inspect", *words, "kwargs.width=5", "num_classes=7", "image_size=32", "--json"]) == 0
        rows = json.loads(capfd.readouterr().out)["layers"]
        assert rows[0]["weight_shape"] == [5, 3, 3, 3] and rows[-1]["weight_shape"] == [7, 5]


def test_a_student_of_another_function_and_of_other_arguments(place: Path) -> None:
    teacher = str(run_of("teacher"))
    n2n("grow", WIDE, "--teacher", teacher, "teacher_model=my_package.nets:my_net", "--epochs", "0")
    (run,) = place.glob("runs/my_package.nets.wide-*/wider-epochs0-from-*")
    assert read(run)["lineage"]["steps"][-1]["to"] == {"name": "my_package.nets:wide", "num_classes": 16}
    n2n("grow", MINE, "model.kwargs.width=10", "--teacher", teacher, "--epochs", "0", "out=arguments")
    (run,) = place.glob("arguments/*/wider-epochs0-from-*")
    assert read(run)["lineage"]["steps"][-1]["to"]["width"] == 10
    n2n("train", "teacher", "model=my_package.nets:scaled", "model.teacher_width=0.5", "--epochs", "0", "out=arguments")
    (run,) = place.glob("arguments/*/teacher-epochs0-seed0")
    assert read(run)["lineage"]["steps"][0]["kwargs"] == {"width": 0.5}
    n2n("grow", "model=my_package.nets:scaled", "model.teacher_width=0.5", "--epochs", "0", "out=arguments")
    assert (
        read(run.parent / "wider-epochs0-teacher0-seed0")["lineage"]["steps"][-1]["to"]["name"]
        == "my_package.nets:scaled"
    )


def test_a_network_with_auxiliary_logits_in_eval_mode_too(place: Path) -> None:
    for words in (("train", "teacher"), ("grow", "--op", "wider", "--factor", "1.5", "--epochs", "0")):
        n2n(*words, "model=my_package.nets:pair", "out=pairs")
    assert len(list(place.glob("pairs/*/wider-*/done.json"))) == 1


def test_a_stopped_run_goes_on(place: Path) -> None:
    for more in (["max_steps=1"], []):
        forget()
        n2n("train", "teacher", MINE, "out=stopped", *more)
    ends = [checkpoint.load(checkpoint.resolve(run_of("teacher", out=out)))["model"] for out in ("runs", "stopped")]
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


# --- nothing is imported but what was typed -----------------------------------------------------------------


@pytest.mark.parametrize("command", ["evaluate RUN", "inspect RUN", "grow --teacher RUN --factor 2 out=new"])
@pytest.mark.parametrize("arm", ["teacher", "wider-factor1.5-noise0"])
def test_a_checkpoint_allows_nothing(command: str, arm: str, capfd: pytest.CaptureFixture[str]) -> None:
    words = command.replace("RUN", str(run_of(arm)))
    line = "this checkpoint was built by my_package.nets:my_net; type {}=my_package.nets:my_net to allow importing it"
    assert told(words, capfd, few="grow" in words) == line.format("model")
    assert "my_package" not in sys.modules
    other = "teacher_model" if "grow" in words else "model"
    assert told(f"{words} {WIDE}", capfd, few="grow" in words) == line.format(other)


def poisoned(place: Path, spot: str) -> Path:
    """A checkpoint in which everything that can name a network names evil:net, or only its last step does."""
    state = checkpoint.load(checkpoint.resolve(run_of("wider-factor1.5-noise0")))
    if spot == "first":
        state["lineage"]["steps"][0]["name"] = "evil:net"
    else:
        state["lineage"]["steps"][-1]["to"] = {"name": "evil:net", "num_classes": 16}
    state["config"] = state["config"].replace("my_package.nets:my_net", "evil:net")
    assert "name: evil:net" in state["config"]
    path = place / f"{spot}.pt"
    torch.save(state, path)
    return path


@pytest.mark.parametrize("spot", ["first", "last"])
def test_a_poisoned_checkpoint_imports_nothing(spot: str, place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = poisoned(place, spot)
    for words in (f"evaluate {path}", f"inspect {path}", f"grow --teacher {path} out=new"):
        for more in ("", MINE):
            assert told(f"{words} {more}", capfd, few="grow" in words).startswith(
                "this checkpoint was built by evil:net; type "
            )
            assert "evil" not in sys.modules and not Path("imported").exists()
    path = path.rename("evil:net")  # a file of that name is no word on its code
    assert "this checkpoint was built by evil:net" in told(f"inspect {path}", capfd, few=False)
    assert "evil" not in sys.modules and not Path("imported").exists()
    assert cli.main(["evaluate", str(path), "model=evil:net"]) == 2  # the control: it was typed
    assert "evil:net: it returned NoneType" in capfd.readouterr().err
    for name in ("imported", "called", "evil:net"):
        Path(name).unlink()


def test_a_poisoned_run_folder_imports_nothing(
    place: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The worker reads all from the run folder; a command that finds the folder reads it, too."""
    n2n("train", "teacher", MINE, "out=folder", "max_steps=1")
    run = run_of("teacher", out="folder")
    for name in ("config.yaml", "run.json"):
        path = run / name
        path.write_text(path.read_text().replace("my_package.nets:my_net", "evil:net"))
    poisoned = json.loads((run / "run.json").read_text())
    del poisoned[records.SEAL]
    records.write(run / "run.json", poisoned)  # whoever can write there can seal, too
    capfd.readouterr()
    for words, line in (
        ([], "this checkpoint was built by evil:net; type model=evil:net to allow importing it"),
        (["model=my_package.nets:my_net"], "this checkpoint was built by evil:net; type model=evil:net to allow"),
        (["model=resnet18"], "model=resnet18: expected model=package.module:function"),
        ([str(run)], "expected one run folder"),
    ):
        monkeypatch.setattr(sys, "argv", ["worker", str(run), *words])
        assert run_rank(worker.main) == 2
        err = capfd.readouterr().err
        assert err.startswith(f"n2n: error: {line}") and err.count("\n") == 1
    assert "holds a run with model.name=evil:net" in told(f"train teacher {MINE} out=folder", capfd)
    assert not Path("imported").exists() and "evil" not in sys.modules


def test_a_conf_folder_allows_nothing(place: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "model").mkdir()
    base = yaml.safe_load((Path(n2n_cli.__file__).parents[1] / "conf" / "model" / "torchvision.yaml").read_text())
    (tmp_path / "model" / "theirs.yaml").write_text(yaml.safe_dump({**base, "name": "evil:net"}))
    line = "model: evil:net comes from a file; type model=evil:net to allow importing it"
    assert told(f"train teacher model=theirs --config-dir {tmp_path}", capfd) == line
    assert told(f"evaluate {run_of('teacher')} --config-dir {tmp_path} +model=theirs:x", capfd, few=False)
    assert not Path("imported").exists() and "evil" not in sys.modules


def test_looking_at_a_config_imports_nothing(place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "teacher", "model=evil:net", "--cfg", "job"]) == 0
    assert "name: evil:net" in capfd.readouterr().out and not Path("imported").exists()


def test_the_worker_takes_what_prepare_only_prints(place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    n2n("train", "teacher", MINE, "prepare_only=true", "out=prepared")
    run = run_of("teacher", out="prepared")
    words = re.search(r"-m (n2n_cli\.commands\.worker .*)", capfd.readouterr().out)
    assert words is not None and words[1] == f"n2n_cli.commands.worker {run} {MINE}"
    path = {**os.environ, "PYTHONPATH": str(Path(n2n_cli.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-m", *words[1].split()], env=path, capture_output=True, timeout=120)
    assert done.returncode == 0 and (run / "done.json").exists(), done.stderr


@pytest.mark.slow
def test_several_devices_and_several_jobs(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(n2n_cli.__file__).parents[1]))
    n2n("train", "teacher", MINE, "out=two", "--devices", "2")
    assert (run_of("teacher", out="two") / "done.json").exists()
    n2n("compare", "fig4", MINE, "jobs=2", "study.arms=[wider,random_pad]", "out=jobs", *(
        f"++ops.{op}.factor=1.5" for op in ("wider", "random_pad")
    ))  # fmt: skip
    assert len(list(place.glob("jobs/*/*/done.json"))) == 3


# --- mistakes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("model=my_package.nets:my_nett", "no function 'my_nett' in my_package.nets (did you mean 'my_net'?)"),
        ("model=my_package.netz:my_net", "no module 'my_package.netz' (did you mean 'my_package.nets'?)"),
        ("-m model=my_package.nets:my_net,resnet18,my_package.nets:x", "no function 'x' in my_package.nets"),
        (f"{MINE} model.kwargs.widht=3", "no argument 'widht' (did you mean 'width'?)"),
        (f"{WIDE} model.teacher_width=0.5", "no argument 'width'; it takes num_classes"),
        (f"{MINE} model.kwargs.width=x", "called with (num_classes=16, width='x'), it raised TypeError"),
        ("model=my_package.nets:few_classes", "its output for shapes is [2, 5], expected [2, 16]"),
        ("model=my_package.nets:stops", "on images [2, 3, 32, 32], it raised AttributeError"),
        (f"{MINE} model.dropout=0.5", "model.dropout: only inception_bn"),
    ],
)
def test_wrong_networks(words: str, line: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert line in told(f"train teacher {words} out=wrong", capfd)


def test_a_student_that_cannot_be_reached(place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    line = told(f"grow model=my_package.nets:narrow teacher_model=my_package.nets:my_net "
                f"--teacher {run_of('teacher')} out=wrong", capfd)  # fmt: skip
    assert line.startswith("the student cannot be reached: ") and "'0.weight'" in line and "8" in line and "6" in line


# --- weights ------------------------------------------------------------------------------------------------


@pytest.fixture
def files(place: Path) -> Iterator[dict[str, torch.Tensor]]:
    """The teacher's averaged weights in files of several makes."""
    state = checkpoint.weights(checkpoint.load(checkpoint.resolve(run_of("teacher"))))
    torch.save(state, "w.pt")
    torch.save({"state_dict": {f"module.{name}": value for name, value in state.items()}}, "wrapped.pth")
    torch.save({**state, "8.weight": torch.zeros(10, 8), "8.bias": torch.zeros(10)}, "ten.pt")
    torch.save({**state, "3.weight": torch.zeros(8, 8, 1, 1)}, "other.pt")
    yield state
    for name in ("w.pt", "wrapped.pth", "ten.pt", "other.pt"):
        Path(name).unlink()


def test_a_teacher_starts_from_weights(files: dict[str, torch.Tensor], capfd: pytest.CaptureFixture[str]) -> None:
    n2n("train", "teacher", MINE, "weights=w.pt", "out=weights")
    (run,) = Path("weights").glob("*/teacher-weights-*-seed0")
    step = read(run)["lineage"]["steps"][0]
    assert step["weights"]["file"] == "w.pt" and re.fullmatch("[0-9a-f]{64}", step["weights"]["sha256"])
    start = json.loads((run / "metrics.jsonl").read_text().splitlines()[0])
    end = json.loads((run_of("teacher") / "done.json").read_text())["final"]
    assert start["step"] == 0 and start["val/loss"] == end["val/loss"]
    n2n("train", "teacher", MINE, f"weights={Path('w.pt').resolve()}", "out=weights")
    assert f"{run} is done" in capfd.readouterr().out
    torch.save({name: value * 2 for name, value in files.items()}, "w.pt")
    assert "began from other weights in w.pt" in told(f"train teacher {MINE} weights=w.pt out=weights", capfd)


@pytest.mark.parametrize("file", ["w.pt", "wrapped.pth"])
def test_weights_are_the_teacher(file: str, files: dict[str, torch.Tensor], capfd: pytest.CaptureFixture[str]) -> None:
    n2n("grow", MINE, "--factor", "1.5", f"weights={file}", "--epochs", "0", f"out=grown_{file}", "op.noise=0")
    (run,) = Path(f"grown_{file}").glob("*/wider-*")
    steps = read(run)["lineage"]["steps"]
    assert [step["op"] for step in steps] == ["build", "wider"] and steps[0]["weights"]["file"] == file
    assert max(read(run)["function_gap"].values()) < 1e-10
    grown = checkpoint.load(checkpoint.resolve(run))["model"]
    assert torch.equal(grown["0.weight"][:8], files["0.weight"])
    assert cli.main(["inspect", str(run), MINE]) == 0
    assert f"weights of {file}" in capfd.readouterr().out


def test_weights_of_another_constructor(files: dict[str, torch.Tensor]) -> None:
    n2n(
        "grow",
        WIDE,
        "teacher_model=my_package.nets:my_net",
        "weights=w.pt",
        "--epochs",
        "0",
        "out=constructor",
        "op.noise=0",
    )
    (run,) = Path("constructor").glob("my_package.nets.wide-*/wider-*")
    assert max(read(run)["function_gap"].values()) < 1e-10
    assert read(run)["lineage"]["steps"][-1]["to"]["name"] == "my_package.nets:wide"


def test_a_study_of_weights(files: dict[str, torch.Tensor]) -> None:
    n2n("compare", "fig4", MINE, "weights=w.pt", "jobs=1", "--epochs", "0", "out=study", *(
        f"++ops.{op}.factor=1.5" for op in ("wider", "random_pad")
    ), "study.arms=[wider,random_pad]")  # fmt: skip
    assert len(list(Path("study").glob("*/*/done.json"))) == 2 and list(Path("study").glob("*/report.html"))


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (f"train teacher {MINE} weights=other.pt", "3.weight is [8, 8, 1, 1] in other.pt and [8, 8, 3, 3] in my_pac"),
        (f"train student {MINE} weights=ten.pt", "8.weight is [10, 8] in ten.pt and [16, 8] in my_package.nets:my_net; "
         "shapes has 16 classes, and so must the file's classifier"),
        (f"grow {MINE} --factor 2 weights=other.pt", "3.weight is [8, 8, 1, 1] in other.pt and [8, 8, 3, 3] in"),
        (f"grow {MINE} model.kwargs.width=9 --factor 2 weights=w.pt", "0.weight is [8, 3, 3, 3] in w.pt and [9, 3"),
        (f"grow {MINE} weights=w.pt", "op: teacher and student are the same network"),
        ("grow model=resnet18 --factor 2 weights=w.pt", "'conv1.weight' of resnet18 is not in w.pt"),
        (f"train teacher {MINE} weights=my_package/nets.py", "does not load safely"),
        (f"train teacher {MINE} weights=w.pth", "no such file: w.pth (did you mean 'w.pt'?)"),
        (f"grow {MINE} --factor 2 weights=w.pt teacher=my_package", "teacher and weights: give one of them"),
    ],
)  # fmt: skip
def test_wrong_weights(words: str, line: str, files: Any, capfd: pytest.CaptureFixture[str]) -> None:
    assert line in told(f"{words} out=wrong", capfd)


def test_inspect_with_weights(files: Any, capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["inspect", MINE, "weights=ten.pt", "num_classes=10", "image_size=32"]) == 0
    assert "weights of ten.pt" in capfd.readouterr().out
    line = "weights: 8.weight is [10, 8] in ten.pt and [1000, 8] in my_package.nets:my_net; give num_classes="
    assert told(f"inspect {MINE} weights=ten.pt image_size=32", capfd, few=False).startswith(line)
    line = "weights: goes with the name of a network"
    assert told(f"inspect {run_of('teacher')} weights=ten.pt", capfd, few=False).startswith(line)
