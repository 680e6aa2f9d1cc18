"""``n2n export``: the file, its card, and nothing where something is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from n2n_cli import cli
from n2n_cli.training import checkpoint

FEW = ["data.train_images=64", "data.val_images=32", "device=cpu", "progress=false", "epochs=1"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("place")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert cli.main(["train", "teacher", *FEW]) == 0
        assert cli.main(["grow", "--op", "wider", *FEW, "teacher_epochs=1"]) == 0
    return folder


@pytest.fixture(autouse=True)
def _there(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)


def test_the_weights_and_their_card(place: Path, capfd: Any) -> None:
    (run,) = place.glob("runs/*/wider*")
    assert cli.main(["export", str(run), "to=a.safetensors"]) == 0
    assert "a.safetensors (" in (said := capfd.readouterr().out) and "differ by 0.0e+00" in said
    wanted = checkpoint.weights(checkpoint.load(checkpoint.resolve(run)))
    found = safetensors.torch.load_file("a.safetensors")
    assert found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in wanted)
    card = Path("a.safetensors.md").read_text()
    for words in (
        "1. built inception_bn_tiny",
        "2. wider ",
        "on the validation images",
        "solid disc",
    ):
        assert words in card
    assert cli.main(["evaluate", str(run), "device=cpu"]) == 0
    assert capfd.readouterr().out.split("top-1 ")[1].split(" %")[0] in card
    grown = ["grow", "--op", "wider", "--factor", "1.1", "model=inception_bn_tiny", "weights=a.safetensors", "epochs=0"]
    assert cli.main([*grown, "model.teacher_width=1.0", *FEW[:-1]]) == 0  # another tool's file like any other


def test_images_that_were_trained_on_are_told_of(place: Path, capfd: Any) -> None:
    (run,) = place.glob("runs/*/teacher*")
    for holdout, told in ((0, False), (8, True)):
        assert cli.main(["evaluate", str(run), "device=cpu", f"data.holdout={holdout}"]) == 0
        assert ("warning: data.holdout=8 takes training images" in capfd.readouterr().err) is told


def test_the_folder_one_stands_in(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (run,) = place.glob("runs/*/teacher*")
    monkeypatch.chdir(run)
    assert cli.main(["export", ".", "to=../here.safetensors"]) == 0
    assert cli.main(["export", "."]) == 0 and Path(f"{run.name}.safetensors").exists()
    assert f"# {run.name}\n" in Path("../here.safetensors.md").read_text()


def test_a_checkpoint_without_its_run(place: Path, capfd: Any) -> None:
    (run,) = place.glob("runs/*/teacher*")
    Path("alone.pt").write_bytes(checkpoint.resolve(run).read_bytes())
    assert cli.main(["export", "alone.pt", "--format", "torch_export"]) == 0
    assert Path("alone.pt2").exists() and "not recorded" in Path("alone.pt2.md").read_text()


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["to=b.onnx"], "export: format=safetensors makes a .safetensors file, and to=b.onnx is none"),
        (["to=no/b.safetensors"], "export: no such folder: no"),
        (["to=there.safetensors"], "export: there.safetensors exists: remove it, or give another to="),
        (["--format", "onxx"], "format: expected safetensors | torch_export | onnx, got 'onxx' (did you mean 'onnx'?)"),
    ],
)
def test_mistakes(words: list[str], line: str, place: Path, capfd: Any) -> None:
    Path("there.safetensors").write_bytes(b"")
    (run,) = place.glob("runs/*/teacher*")
    before = sorted(place.iterdir())
    assert cli.main(["export", str(run), *words]) == 2
    assert capfd.readouterr().err == f"n2n: error: {line}\n"
    assert sorted(place.iterdir()) == before


def test_nothing_is_left_where_the_card_cannot_be_written(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from n2n_cli import records

    write = records.atomic_write

    def full(path: Path, data: bytes) -> None:
        if path.suffix == ".md":
            raise OSError(28, "No space left on device")
        write(path, data)

    monkeypatch.setattr(records, "atomic_write", full)
    (run,) = place.glob("runs/*/teacher*")
    before = sorted(place.iterdir())
    assert cli.main(["export", str(run), "to=c.safetensors"]) == 2
    assert sorted(place.iterdir()) == before
