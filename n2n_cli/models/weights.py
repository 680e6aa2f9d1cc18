"""Weights from a file of somebody else's: a ``state_dict`` in .pt or .safetensors, read without running any code.

A .pt file is unpickled with ``weights_only=True``; a .safetensors file holds no code, and its library checks what the
header claims against the bytes that are there.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import pickle
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from n2n_cli.errors import N2NError, suggest

AVERAGED = re.compile(r"(?:^|[._])(?:ema|swa|avg|averaged?)(?:[._]|$)", re.IGNORECASE)
"""What is in the name of an average of the weights (timm's state_dict_ema, torchvision's model_ema)."""
INSIDE = ("state_dict", "model", "model_state_dict")
"""Keys under which training scripts keep a state_dict (timm's, torchvision's, PyTorch's tutorials')."""
PREFIXES = ("module.", "_orig_mod.")
"""What DistributedDataParallel and torch.compile put before every name."""


def load(
    model: nn.Module, path: Path, name: str, num_classes: int, advice: str, key: str | None = None
) -> tuple[str, str | None]:
    """Puts the weights in ``path`` into ``model``.

    The state_dict may be the file itself or stand inside it, under any name and with anything before the names of its
    tensors (``{"net": {"ema.conv.weight": ...}}``): whatever has all the network's names, and no others.

    Args:
        model: the network.
        path: the file.
        name, num_classes: the network's, for errors.
        advice: ends the error where only the number of classes differs.
        key: where in the file the state_dict stands, as ``model_ema``; None: the averaged weights, if it holds others
            too.

    Returns:
        tuple[str, str | None]: the file's SHA-256; and what was taken, stripped or left out, in one line, if there was
        a choice.

    Raises:
        N2NError: no readable file, no state_dict in it, several that fit, or another network's: its first tensor that
            does not fit. The model keeps the weights it has.
    """
    data = _bytes(path)
    found = _parsed(path, data)
    fits = _fitting(found, model.state_dict().keys()) if isinstance(found, Mapping) and "lineage" not in found else []
    chosen = _chosen(fits, path.name, key)
    state = chosen[0].state if chosen else _unwrapped(path, found)
    _check(state, model, path.name, name, num_classes, advice)
    try:
        model.load_state_dict(state, strict=False)  # checked above; old files have no num_batches_tracked
    except (RuntimeError, TypeError, ValueError) as error:
        raise N2NError(f"weights: {path.name} does not fit {name}: {' '.join(str(error).split())[:200]}") from error
    said = chosen[0].told(path.name, fits, key) if chosen else None
    if chosen and said is None and isinstance(found, Mapping):
        other = [name for name, value in found.items() if isinstance(value, Mapping) and AVERAGED.search(str(name))]
        if other and str(other[0]) != chosen[0].where:
            said = (
                f"weights: {path.name}: {chosen[0].named()} taken; '{other[0]}', which seems an average, does not fit"
            )
    return hashlib.sha256(data).hexdigest(), said


def _chosen(fits: list[_Fit], file: str, key: str | None) -> list[_Fit]:
    """The one of the state_dicts that fit which is meant, or none. Raises N2NError."""
    names = ", ".join(fit.named() for fit in fits)
    if key is not None:
        meant = [fit for fit in fits if key in (fit.where, fit.named().strip("'"))]
        if len(meant) != 1:
            near = suggest(key, [fit.named().strip("'") for fit in fits])
            raise N2NError(f"weights_key: '{key}' is no network that fits in {file}{near}; there is {names or 'none'}")
        return meant
    averaged = [fit for fit in fits if AVERAGED.search(f"{fit.where}.{fit.prefix}")]
    usual = [fit for fit in fits if fit.where in ("", *INSIDE)]
    chosen = next((some for some in (averaged, usual) if len(some) == 1), fits)
    if len(chosen) > 1:
        raise N2NError(f"weights: {file} holds {len(chosen)} networks that fit: {names}; choose with weights_key=")
    return chosen


def sha256(path: Path) -> str:
    """Raises N2NError where the file cannot be read."""
    return hashlib.sha256(_bytes(path)).hexdigest()


def read(path: Path) -> dict[str, Tensor]:
    """The state_dict in ``path``, tensors on the CPU, without the wrappers of training scripts. Raises N2NError."""
    return _unwrapped(path, _parsed(path, _bytes(path)))


def _parsed(path: Path, data: bytes) -> Any:
    return _safetensors(path, data) if path.suffix == ".safetensors" else _torch(path, data)


@dataclass(frozen=True)
class _Fit:
    """A state_dict that has all the names of a network: under the keys ``where`` of the file, with ``prefix`` before
    each name; ``left``: what stands beside it."""

    where: str
    prefix: str
    state: dict[str, Tensor]
    left: list[str]

    def named(self) -> str:
        return f"'{'.'.join(filter(None, (self.where, self.prefix.rstrip('.'))))}'"

    def told(self, file: str, fits: list[_Fit], key: str | None) -> str | None:
        others = ", ".join(fit.named() for fit in fits if fit is not self)
        if others:
            return f"weights: {file}: {self.named()} taken, not {others}" + ("" if key else " (weights_key= chooses)")
        rest = self.prefix
        for known in PREFIXES:
            rest = rest.replace(known, "")
        if self.where in ("", *INSIDE) and not rest and not self.left:
            return None
        said = [f"'{self.where}' taken" if self.where else "", f"'{self.prefix}' stripped" if self.prefix else ""]
        said.append(f"left out: {', '.join(self.left[:3])}{' ...' if len(self.left) > 3 else ''}" if self.left else "")
        return f"weights: {file}: {', '.join(filter(None, said))}"


def _fitting(found: Mapping[Any, Any], names: Collection[str]) -> list[_Fit]:
    """Every state_dict in a file, two levels deep, that has all ``names`` (batch norm's counters may be missing)."""
    needed = {name for name in names if not name.endswith("num_batches_tracked")}
    inner = [(str(key), value) for key, value in found.items() if isinstance(value, Mapping)]
    inner += [(f"{at}.{key}", value) for at, part in inner for key, value in part.items() if isinstance(value, Mapping)]
    fits = []
    first = min(needed, default="")
    for where, part in [("", found), *inner] if first else []:
        keys = [key for key in part if isinstance(key, str)]
        for prefix in {key.removesuffix(first) for key in keys if key == first or key.endswith(f".{first}")}:
            state = {key.removeprefix(prefix): part[key] for key in keys if key.startswith(prefix)}
            if needed <= state.keys() <= set(names) and all(isinstance(value, Tensor) for value in state.values()):
                fits.append(_Fit(where, prefix, state, [key for key in keys if not key.startswith(prefix)]))
    return fits


def _unwrapped(path: Path, found: Any) -> dict[str, Tensor]:
    """What is most likely meant in a file that holds no state_dict that fits; to say what is wrong with it."""
    if isinstance(found, Mapping):
        if "lineage" in found and isinstance(found.get("ema"), Mapping):  # n2n's own: the weights it evaluates
            found = found["ema"]
        else:
            found = next((found[key] for key in INSIDE if isinstance(found.get(key), Mapping)), found)
    if not isinstance(found, Mapping):
        raise N2NError(f"weights: {path} holds a {type(found).__name__}, expected a state_dict (names and tensors)")
    for key, value in found.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise N2NError(
                f"weights: {path} is not a state_dict: {key!r} is a {type(value).__name__}, expected a tensor"
            )
    if not found:
        raise N2NError(f"weights: {path} is empty: no tensor in it")
    state = dict(found)
    for prefix in PREFIXES:
        if all(key.startswith(prefix) for key in state):
            state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise N2NError(f"weights: cannot read {path}: {error.strerror}") from error


def _torch(path: Path, data: bytes) -> Any:
    try:
        # timm's and torchvision's scripts keep their command line beside the weights: a Namespace only holds values.
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        named = re.search(r"(?:GLOBAL|global:?) ([\w.]+\.[\w.]+)", str(error))
        what = f"it names code, {named[1]}" if named else "it is no file of torch.save, or holds more than tensors"
        raise N2NError(f"weights: {path} does not load safely: {what}; expected a saved state_dict") from error
    except Exception as error:  # a damaged file fails in many ways
        raise N2NError(f"weights: {path} is damaged, or no file of torch.save ({type(error).__name__})") from error


def _safetensors(path: Path, data: bytes) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load(data)
    except Exception as error:  # the library's own, but also KeyError (a type without a torch.dtype) or TypeError
        told = str(error).removeprefix("Error while deserializing: ")
        reason = " ".join(f"{'' if isinstance(error, SafetensorError) else type(error).__name__ + ' '}{told}".split())
        raise N2NError(f"weights: {path} is not a safetensors file, or a damaged one ({reason[:100]})") from error


def _check(state: dict[str, Tensor], model: nn.Module, file: str, name: str, num_classes: int, advice: str) -> None:
    """Raises N2NError for the first tensor, in the network's order, that is missing or has another shape."""
    wanted = model.state_dict()
    for key, tensor in wanted.items():
        if key.endswith("num_batches_tracked") and key not in state:
            continue
        if key not in state:
            near = suggest(key, state.keys() - wanted.keys())
            raise N2NError(f"weights: '{key}' of {name} is not in {file}{near}")
        if not isinstance(tensor, Tensor):
            continue
        theirs, ours = list(state[key].shape), list(tensor.shape)
        if theirs != ours:
            head = theirs[:1] != ours[:1] == [num_classes] and theirs[1:] == ours[1:]
            hint = f"; {advice}" if head else ""
            raise N2NError(f"weights: {key} is {theirs} in {file} and {ours} in {name}{hint}")
        if state[key].is_floating_point() != tensor.is_floating_point():
            raise N2NError(f"weights: {key} is {state[key].dtype} in {file} and {tensor.dtype} in {name}")
    for key in state:
        if key not in wanted:
            near = suggest(key, wanted.keys() - state.keys())
            raise N2NError(f"weights: '{key}' in {file} is not in {name}{near}")
