"""Weights files of somebody else's: every usual make is read, no code of theirs runs, and one line for the rest."""

from __future__ import annotations

import argparse
import json
import os
import struct
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from n2n_cli.errors import N2NError
from n2n_cli.models import weights


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def net(classes: int = 4, width: int = 3) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, width, 1), nn.BatchNorm2d(width), nn.Flatten(), nn.Linear(width, classes))


def save_safetensors(path: Path, state: dict[str, Tensor], change: Any = None) -> None:
    """``change`` damages the header: 8 bytes of length, JSON, then the tensors' bytes."""
    data = safetensors.torch.save(state, metadata={"format": "pt"})
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    if change:
        change(header)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[end:])


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) and a[key].dtype == b[key].dtype for key in a)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"state_dict": state, "epoch": 3, "args": argparse.Namespace(lr=0.1)},
        lambda state: {"model": state, "optimizer": {"state": {}}},
        lambda state: {"model": {f"module.{key}": value for key, value in state.items()}},
        lambda state: {f"module._orig_mod.{key}": value for key, value in state.items()},
        lambda state: {"lineage": {}, "model": {}, "ema": state},
        lambda state: {key: value for key, value in state.items() if "num_batches" not in key},
    ],
)
def test_pt_files_of_training_scripts(wrap: Any, place: Path) -> None:
    torch.manual_seed(1)
    theirs, ours = net().state_dict(), net()
    torch.save(wrap(theirs), "w.pt")
    digest, said = weights.load(ours, place / "w.pt", "mine", 4, "")
    assert len(digest) == 64 and said is None
    assert same(ours.state_dict(), theirs)


def _under(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}{key}": value for key, value in state.items()}


@pytest.mark.parametrize(
    ("wrap", "said"),
    [
        (lambda state: {"net": state, "epoch": 3}, "'net' taken"),
        (lambda state: {"state_dict": _under("model.", state), "epoch": 3}, "'state_dict' taken, 'model.' stripped"),
        (
            lambda state: {"state_dict": _under("model.", state) | {"loss.weight": torch.ones(2)}},
            "'state_dict' taken, 'model.' stripped, left out: loss.weight",
        ),
        (
            lambda state: _under("module.", state) | {"n_averaged": torch.tensor(3)},
            "'module.' stripped, left out: n_averaged",
        ),
        (lambda state: {"nets": {"student": _under("ema.", state)}}, "'nets.student' taken, 'ema.' stripped"),
    ],
)
def test_a_state_dict_is_found_where_only_one_fits(wrap: Any, said: str, place: Path) -> None:
    torch.manual_seed(1)
    theirs, ours = net().state_dict(), net()
    torch.save(wrap(theirs), "w.pt")
    assert weights.load(ours, place / "w.pt", "mine", 4, "")[1] == f"weights: w.pt: {said}"
    assert same(ours.state_dict(), theirs)


@pytest.mark.parametrize(
    ("wrap", "named"),
    [
        (lambda state: {"net": state, "best": state}, "'net', 'best'"),
        (lambda state: {"model_ema": state, "swa": state}, "'model_ema', 'swa'"),
    ],
)
def test_several_that_fit_are_refused(wrap: Any, named: str, place: Path) -> None:
    torch.save(wrap(net().state_dict()), "w.pt")
    with pytest.raises(
        N2NError, match=rf"^weights: w.pt holds 2 networks that fit: {named}; choose with weights_key=$"
    ):
        weights.load(net(), place / "w.pt", "mine", 4, "")


AVERAGED = {
    "timm": (lambda raw, mean: {"state_dict": raw, "state_dict_ema": mean}, "state_dict", "state_dict_ema"),
    "torchvision": (
        lambda raw, mean: {"model": raw, "model_ema": _under("module.", mean) | {"n_averaged": torch.tensor(3)}},
        "model",
        "model_ema.module",
    ),
    "a network named semantic": (lambda raw, mean: {"semantic": raw, "swa": mean}, "semantic", "swa"),
    "one dictionary": (lambda raw, mean: _under("model.", raw) | _under("ema.", mean), "model", "ema"),
}


@pytest.mark.parametrize("make", AVERAGED)
def test_the_average_is_taken_and_said_unless_another_is_chosen(make: str, place: Path) -> None:
    wrap, raw, mean = AVERAGED[make]
    torch.manual_seed(1)
    first, ours = net().state_dict(), net()
    second = {key: value + 1 for key, value in first.items()}
    torch.save(wrap(first, second), "w.pt")
    said = weights.load(ours, place / "w.pt", "mine", 4, "")[1]
    assert same(ours.state_dict(), second)
    assert said == f"weights: w.pt: '{mean}' taken, not '{raw}' (weights_key= chooses)"
    said = weights.load(ours, place / "w.pt", "mine", 4, "", key=raw)[1]
    assert same(ours.state_dict(), first) and said == f"weights: w.pt: '{raw}' taken, not '{mean}'"
    with pytest.raises(N2NError, match=r"weights_key: 'modle' is no network that fits in w.pt.*; there is '"):
        weights.load(ours, place / "w.pt", "mine", 4, "", key="modle")


def test_an_average_that_does_not_fit_is_told(place: Path) -> None:
    state = net().state_dict()
    torch.save({"model": state, "model_ema": {**state, "extra": torch.ones(1)}}, "w.pt")
    said = weights.load(net(), place / "w.pt", "mine", 4, "")[1]
    assert said == "weights: w.pt: 'model' taken; 'model_ema', which seems an average, does not fit"


def test_safetensors_come_back(place: Path) -> None:
    dtypes = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int8, torch.bool)
    every = {str(dtype): torch.arange(6).reshape(2, 3).to(dtype) for dtype in dtypes}
    every |= {"scalar": torch.tensor(2.5), "empty": torch.zeros(0, 3)}
    save_safetensors(place / "w.safetensors", every)
    assert same(weights.read(place / "w.safetensors"), every)
    theirs, ours = net().state_dict(), net()
    save_safetensors(place / "w.safetensors", theirs)
    weights.load(ours, place / "w.safetensors", "mine", 4, "")
    assert same(ours.state_dict(), theirs)


def _without(state: dict[str, Tensor], key: str) -> dict[str, Tensor]:
    return {name: value for name, value in state.items() if name != key}


@pytest.mark.parametrize(
    ("state", "line"),
    [
        (net(width=5).state_dict(), r"0.weight is \[5, 3, 1, 1\] in w.pt and \[3, 3, 1, 1\] in mine$"),
        (net(classes=7).state_dict(), r"3.weight is \[7, 3\] in w.pt and \[4, 3\] in mine; ask the images$"),
        (_without(net().state_dict(), "1.running_var"), r"'1.running_var' of mine is not in w.pt$"),
        (net().state_dict() | {"4.bias": torch.zeros(1)}, r"'4.bias' in w.pt is not in mine$"),
        (
            _without(net().state_dict(), "0.weight") | {"0.weights": torch.zeros(1)},
            r"'0.weight' of mine is not in w.pt \(did you mean '0.weights'\?\)$",
        ),
        (net().state_dict() | {"0.bias": torch.zeros(3, dtype=torch.int64)}, "0.bias is torch.int64 in w.pt"),
        ({"epoch": 3}, r"w.pt is not a state_dict: 'epoch' is a int, expected a tensor$"),
        ({"state_dict": {"a": "b"}}, r"w.pt is not a state_dict: 'a' is a str"),
        ({3: torch.zeros(1)}, r"w.pt is not a state_dict: 3 is a Tensor"),
        ([torch.zeros(1)], r"w.pt holds a list, expected a state_dict"),
        ({}, "w.pt is empty"),
        (net(), r"w.pt does not load safely: it names code, torch.nn.modules.container.Sequential"),
    ],
)
def test_one_line_for_wrong_weights(state: Any, line: str, place: Path) -> None:
    torch.save(state, "w.pt")
    ours = net()
    before = {name: value.clone() for name, value in ours.state_dict().items()}
    with pytest.raises(N2NError, match=rf"^weights: .*{line}") as error:
        weights.load(ours, place / "w.pt", "mine", 4, "ask the images")
    assert "\n" not in str(error.value) and same(ours.state_dict(), before)


class Runs:
    """What a pickle can do."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, ("executed",)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_pickle_runs_no_code(legacy: bool, place: Path) -> None:
    torch.save({"a": Runs()}, "w.pt", _use_new_zipfile_serialization=not legacy)
    with pytest.raises(N2NError, match=r"does not load safely: it names code, (posix|nt).mkdir"):
        weights.read(place / "w.pt")
    assert not Path("executed").exists()


@pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
def test_every_cut_of_a_file_is_refused(name: str, place: Path) -> None:
    path = place / name
    state = {"a": torch.arange(3.0), "b": torch.ones(2, dtype=torch.int64)}
    save_safetensors(path, state) if path.suffix == ".safetensors" else torch.save(state, path)
    whole = path.read_bytes()
    for length in [*range(0, 20), *range(20, len(whole), 7)]:
        path.write_bytes(whole[:length])
        with pytest.raises(N2NError, match=r"^weights: "):
            weights.read(path)


def _set(name: str, key: str, value: Any) -> Any:
    def change(header: dict[str, Any]) -> None:
        header[name][key] = value

    return change


@pytest.mark.parametrize(
    "change",
    [
        _set("a", "data_offsets", [0, 1 << 40]),
        _set("a", "data_offsets", [-12, 0]),
        _set("a", "data_offsets", [8, 20]),
        _set("a", "data_offsets", [0, 12, 3]),
        _set("a", "data_offsets", ["0", "12"]),
        _set("a", "data_offsets", [False, 12]),
        _set("a", "data_offsets", None),
        _set("a", "shape", [4]),
        _set("a", "shape", [-3]),
        _set("a", "shape", [-1, -3]),
        _set("a", "shape", [3.0]),
        _set("a", "shape", "3"),
        _set("a", "shape", [1 << 70]),
        _set("a", "dtype", "F8"),
        _set("a", "dtype", ["F32"]),
        lambda header: header.pop("b"),
        lambda header: header.update(c=3),
        lambda header: header.update(c={**header["b"]}),
        lambda header: header.update(a="x" * 10_000),
    ],
)
def test_a_lying_header_is_refused(change: Any, place: Path) -> None:
    save_safetensors(place / "w.safetensors", {"a": torch.arange(3.0), "b": torch.ones(2, dtype=torch.int64)}, change)
    with pytest.raises(N2NError, match=r"^weights: ") as error:
        weights.read(place / "w.safetensors")
    assert len(str(error.value)) < 400 and "\n" not in str(error.value)


@pytest.mark.parametrize("header", [b"[" * 100_000, b"[]", b"3", b"\xff\xfe", b'{"a": NaN}', b""])
def test_a_header_that_is_none(header: bytes, place: Path) -> None:
    (place / "w.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    with pytest.raises(N2NError, match=r"^weights: "):
        weights.read(place / "w.safetensors")


@pytest.mark.parametrize("dtype", ["F8_E8M0", "F4", "F6_E2M3"])
def test_a_type_that_the_library_knows_and_torch_does_not(dtype: str, place: Path) -> None:
    entry = {"dtype": dtype, "shape": [4], "data_offsets": [0, {"F4": 2, "F6_E2M3": 3}.get(dtype, 4)]}
    header = json.dumps({"a": entry}).encode()
    (place / "w.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(entry["data_offsets"][1]))
    with pytest.raises(N2NError, match=rf"^weights: .*damaged one \(.*{dtype}"):
        weights.read(place / "w.safetensors")


def test_flipped_bits_are_one_line_or_a_value(place: Path) -> None:
    """A bit of a header is refused or names other tensors; one of a tensor cannot be noticed. Nothing else happens."""
    path = place / "w.safetensors"
    save_safetensors(path, {"a": torch.arange(3.0), "b": torch.ones(2, dtype=torch.int64), "c": torch.zeros(0, 3)})
    whole = path.read_bytes()
    refused = 0
    for bit in range(8 * len(whole)):
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        try:
            assert len(weights.read(path)) == 3
        except N2NError as error:
            refused += 1
            assert str(error).startswith("weights: ") and "\n" not in str(error) and len(str(error)) < 400
    assert refused > 4 * (len(whole) - 28)  # 28 bytes of tensors; most bits of the header
