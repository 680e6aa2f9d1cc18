"""A network for other programs: its weights alone, or the whole computation; read back and compared before it
counts."""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import re
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from n2n_cli.errors import N2NError

SUFFIXES = {"safetensors": ".safetensors", "torch_export": ".pt2", "onnx": ".onnx"}
TOLERANCE = 1e-4
"""Largest difference of outputs, as a share of the largest output: another program adds in another order."""

Run = Callable[[Tensor], list[Tensor]]


@dataclass(frozen=True)
class Exported:
    """``data``: the file; ``difference``: of its outputs from the network's, as a share of the largest output;
    ``any_batch``: whether it takes any number of images, or one alone."""

    data: bytes
    difference: float
    any_batch: bool


def export(model: nn.Module, images: Tensor, kind: str, metadata: Mapping[str, str] | None = None) -> Exported:
    """The network in eval mode as a file of ``kind``: a key of `SUFFIXES`. The network itself is left alone.

    Args:
        images: float32 ``[3 or more, 3, H, W]``, to trace the network with, and to compare on.
        metadata: texts that a safetensors file takes along.

    Raises:
        N2NError: the format cannot hold the network (names the operation), its packages are not installed, or the file
            computes something else.
    """
    model = copy.deepcopy(model).cpu().eval()
    with torch.no_grad(), _quiet(), tempfile.TemporaryDirectory(prefix="n2n-export-") as folder:
        path = Path(folder) / f"model{SUFFIXES[kind]}"
        if kind == "safetensors":
            return _compared(model, images, path, _safetensors(model, path, dict(metadata or {})), any_batch=True)
        write = {"torch_export": _torch_export, "onnx": _onnx}[kind]
        try:
            run, any_batch = write(model, images[:2], path), True
            run(images)
        except N2NError:
            raise
        except Exception:  # a network that counts its images: one at a time then
            try:
                run, any_batch = write(model, images[:1], path), False
            except N2NError:
                raise
            except Exception as error:
                raise N2NError(f"export: {kind} cannot hold {type(model).__name__}: {_reason(error)}") from error
        return _compared(model, images, path, run, any_batch)


def _compared(model: nn.Module, images: Tensor, path: Path, run: Run, any_batch: bool) -> Exported:
    worst = 0.0
    for batch in (images, images[:1]) if any_batch else [images[i : i + 1] for i in range(len(images))]:
        theirs, ours = run(batch), _tensors(model(batch))
        if [t.shape for t in theirs] != [t.shape for t in ours]:
            worst = float("inf")
            break
        for a, b in zip(theirs, ours, strict=True):
            off = (a.double() - b.double()).abs().max().item() / max(b.double().abs().max().item(), 1e-30)
            worst = max(worst, off if off == off else float("inf"))  # not a number compares false
    if not worst <= TOLERANCE:
        raise N2NError(f"export: what was read back differs from the network by {worst:.1e} of its largest output")
    return Exported(path.read_bytes(), worst, any_batch)


def _tensors(output: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]


def _safetensors(model: nn.Module, path: Path, metadata: dict[str, str]) -> Run:
    # Clones: tied weights are written once for each of their names.
    state = {name: tensor.detach().clone().contiguous() for name, tensor in model.state_dict().items()}
    safetensors.torch.save_file(state, path, metadata)
    again = copy.deepcopy(model)
    for tensor in again.state_dict().values():
        tensor.zero_()
    again.load_state_dict(safetensors.torch.load_file(path))
    return lambda images: _tensors(again(images))


def _torch_export(model: nn.Module, images: Tensor, path: Path) -> Run:
    program = _traced(model, images)
    torch.export.save(program, path)
    again = torch.export.load(path).module()
    return lambda images: _tensors(again(images))


def _traced(model: nn.Module, images: Tensor) -> torch.export.ExportedProgram:
    sizes = ({0: torch.export.Dim.AUTO},) if len(images) > 1 else None
    return torch.export.export(model, (images,), dynamic_shapes=sizes)


def _onnx(model: nn.Module, images: Tensor, path: Path) -> Run:
    try:
        import onnxruntime
        import onnxscript  # noqa: F401  (torch.onnx writes with it)
    except ImportError as error:
        raise N2NError(f"export: onnx needs {error.name}: pip install 'n2n-cli[onnx]'") from error
    program = torch.onnx.export(_traced(model, images), dynamo=True)
    assert program is not None
    program.save(path)
    session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda images: [torch.as_tensor(output) for output in session.run(None, {name: images.numpy()})]


def _reason(error: BaseException) -> str:
    """What stood in the way, as the innermost cause says; and the operation, where any cause names one."""
    lines, told = list[str](), error
    while True:
        lines.append(re.sub(r"\x1b\[\d*m", "", str(told)).strip() or type(told).__name__)
        inner = told.__cause__ or told.__context__
        if inner is None:
            break
        told = inner
    named = (re.search(r"\b(?:aten|torchvision|prims)[.:]+\w+", line) for line in reversed(lines))
    operation = next((found[0] for found in named if found), "")
    first = lines[-1].splitlines()[0][:200]
    return first if not operation or operation in first else f"{operation}: {first}"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Exporters print and log their progress, and warn of each other's changes."""
    nowhere, before = io.StringIO(), logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
