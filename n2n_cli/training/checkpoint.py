"""Checkpoints: plain data, written atomically, verified before they are parsed.

A checkpoint is an ordinary ``torch.save`` file whose name carries the first 16 hex digits of its SHA-256:
``step_00000123-<sha>.pt``, ``best-<sha>.pt``. Neither ``torch.load`` nor safetensors notices a flipped bit,
so the name is checked first; a renamed file is checked through the CRCs of the zip that ``torch.save``
writes. Loading says ``weights_only=True``: a checkpoint can name no code.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import re
import socket
import sys
import time
import zipfile
from collections.abc import Iterable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import torch

from n2n_cli.errors import N2NError
from n2n_cli.records import TEMPORARY, Number, atomic_write, misfit

FORMAT = 1
_NAME = re.compile(r"(?:step_(?P<step>\d{8,})|best|at[\d.]+)-(?P<sha>[0-9a-f]{16})\.pt")
HOLDER = ".training"


_TENSORS = {"*": torch.Tensor}
STATE: dict[str, Any] = {
    "lineage": {"steps": list, "classes": list},
    "config": str,
    "model": _TENSORS,
    "ema": _TENSORS,
    "step": int,
    "epoch": Number,
    "images": int,
    "optimizer": {"state": dict, "param_groups": list},
    "scaler": dict,
    "rates": dict,
    "heads": _TENSORS,
    "ema_age": int,
    "start": {"*": Number},
    "best": {"*": Number},
    "last": {"*": Number},
    "steps_since_row": torch.Tensor,
    "time_s": Number,
}
"""What a checkpoint holds: types of the values that are there and not None; ``*``: of every other key."""


class CheckpointError(N2NError):
    """A checkpoint that is missing, damaged, foreign or cannot be written."""


def save(folder: Path, state: dict[str, Any], *, step: int, keep: int = 2) -> Path:
    """Write ``state`` as the checkpoint of ``step`` (optimizer steps); the last ``keep`` step files stay.

    Raises:
        CheckpointError: the disk is full or the folder cannot be written; what was there stays intact.
    """
    path = _write(folder, state, f"step_{step:08d}")
    for old in _steps(folder)[keep:]:
        if old != path:
            old.unlink(missing_ok=True)
    return path


def keep_at(folder: Path, at: float, path: Path) -> None:
    """A second name for the checkpoint ``path``, which stays: that of the share ``at`` of its run."""
    name = Path(folder) / f"at{at:g}-{path.name.rpartition('-')[2]}"
    if name.exists():
        return
    try:
        os.link(path, name)
    except OSError:  # a file system without links
        try:
            atomic_write(name, path.read_bytes())
        except OSError as error:
            raise CheckpointError(f"cannot write checkpoint {name}: {error.strerror}") from error


def kept_at(run: Path, at: float) -> Path:
    """The checkpoint of the share ``at`` (0 to below 1) of the steps of a run folder.

    Raises:
        CheckpointError: none was kept there.
    """
    found = sorted((run / "checkpoints").glob(f"at{at:g}-*.pt"))
    if not found:
        raise CheckpointError(
            f"{run} keeps no checkpoint of {100 * at:g} % of its steps: it was trained without "
            f"training.keep_at=[{at:g}]; remove it, or take another out="
        )
    return found[0]


def save_best(folder: Path, state: dict[str, Any]) -> Path:
    """Write ``state`` as the best checkpoint; the former best goes once the new one is safe."""
    path = _write(folder, state, "best")
    for old in folder.glob("best-*.pt"):
        if old != path:
            old.unlink(missing_ok=True)
    return path


def load(path: Path, needed: Iterable[str] = ()) -> dict[str, Any]:
    """The state in ``path``, tensors on the CPU; the file's hash is verified before anything is parsed.

    ``needed``: keys that must be there, beside ``format`` and ``model``.

    Raises:
        CheckpointError: no such file; damaged; not one of our checkpoints; written by a newer n2n.
    """
    path = Path(path)
    data = _verified(path)
    try:
        state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # unpickling fails in many ways, all of them the file's fault
        raise CheckpointError(f"{path} is not an n2n checkpoint ({type(error).__name__} while loading)") from error
    if not isinstance(state, dict) or "format" not in state or state.get("model") is None:
        raise CheckpointError(f"{path} is not an n2n checkpoint (no 'format' and 'model' in it)")
    if state["format"] != FORMAT:
        raise CheckpointError(f"{path} has checkpoint format {state['format']!r}; this n2n reads format {FORMAT}")
    if problem := misfit(state, STATE, needed):
        raise CheckpointError(f"{path} is not an n2n checkpoint ({problem})")
    return state


def weights(state: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The state dict to evaluate and to grow: the averaged weights when the run averages, else the model's."""
    return state["model"] if state.get("ema") is None else state["ema"]


def newest(folder: Path) -> tuple[Path | None, list[CheckpointError]]:
    """The checkpoint of the highest step that verifies, or None; and what is wrong with those of higher steps."""
    damaged = []
    for path in _steps(Path(folder)):
        try:
            _verified(path)
        except CheckpointError as error:
            damaged.append(error)
        else:
            return path, damaged
    return None, damaged


def newest_step(folder: Path) -> int:
    """The step of the `newest` checkpoint; 0 where there is none."""
    path, _ = newest(folder)
    name = _NAME.fullmatch(path.name) if path else None
    return int(name["step"]) if name else 0


def warn(damaged: list[CheckpointError]) -> None:
    """Tells people of the checkpoints that `newest` skipped, one line each."""
    for error in damaged:
        print(f"n2n: warning: skipped {error}", file=sys.stderr, flush=True)


def resolve(path: Path | str) -> Path:
    """The checkpoint file meant by ``path``: a file, a ``checkpoints`` folder or a run folder (its newest).

    Warns of damaged checkpoints that are newer.

    Raises:
        CheckpointError: nothing there (the line says what is), or only damaged ones.
    """
    path = Path(path)
    if path.is_file():
        return path
    if not path.exists():
        raise CheckpointError(f"no checkpoint at {path}: no such file or folder{_nearby(path.parent)}")
    folder = path / "checkpoints" if (path / "checkpoints").is_dir() else path
    found, damaged = newest(folder)
    if found is None and damaged:
        raise CheckpointError(f"no good checkpoint in {path}: {len(damaged)} are damaged")
    if found is None:
        raise CheckpointError(f"no checkpoint in {folder}: expected step_*.pt{_nearby(folder)}")
    warn(damaged)
    return found


def clean(folder: Path) -> None:
    """Remove temporary files that a killed run left behind."""
    for stale in Path(folder).glob(TEMPORARY + "*"):
        stale.unlink(missing_ok=True)


@contextlib.contextmanager
def exclusive(folder: Path, patience: float = 8.0) -> Iterator[None]:
    """Hold ``folder`` for this process, so that no two runs write into it; freed when the process ends.

    Raises:
        CheckpointError: no such folder, or another process still holds it after ``patience`` seconds.
    """
    import fcntl

    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise CheckpointError(f"no run folder {folder}: {error.strerror}") from error
    try:
        # A killed run's data workers, which hold its lock, notice after some seconds.
        deadline = time.monotonic() + patience
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise CheckpointError(f"{folder} is being trained by another process{_holder(folder)}") from None
                time.sleep(0.1)
            except OSError:
                break  # a file system without locks
        mark = Path(folder) / HOLDER
        with contextlib.suppress(OSError):  # a full disk: nobody will know who
            mark.write_text(
                f"process {os.getpid()} on {socket.gethostname()}, since {datetime.now():%Y-%m-%d %H:%M:%S}"
            )
        try:
            yield
        finally:
            mark.unlink(missing_ok=True)
    finally:
        os.close(handle)


def _holder(folder: Path) -> str:
    """Who holds a run folder, as far as is known: `` (process 17 on node3, since 2026-11-29 12:00:00)``."""
    with contextlib.suppress(OSError, UnicodeDecodeError):
        return f" ({(Path(folder) / HOLDER).read_text()[:200]})"
    return ""


def _write(folder: Path, state: dict[str, Any], stem: str) -> Path:
    folder = Path(folder)
    # Serialised in memory: torch.save on a full disk leaves a stub and an opaque RuntimeError.
    buffer = io.BytesIO()
    torch.save(state, buffer)
    data = buffer.getbuffer()
    path = folder / f"{stem}-{hashlib.sha256(data).hexdigest()[:16]}.pt"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        atomic_write(path, data)
    except OSError as error:
        raise CheckpointError(f"cannot write checkpoint {path}: {error.strerror}") from error
    return path


def _verified(path: Path) -> bytes:
    """The bytes of ``path``, once they match the hash in its name (or, renamed, the CRCs inside)."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"cannot read checkpoint {path}: {error.strerror}") from error
    name = _NAME.fullmatch(path.name)
    if name:
        if hashlib.sha256(data).hexdigest()[:16] != name["sha"]:
            raise CheckpointError(f"damaged checkpoint {path}: its bytes do not match the hash in its name")
        return data
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            bad = archive.testzip()
    except (zipfile.BadZipFile, EOFError, ValueError, NotImplementedError, OSError) as error:
        raise CheckpointError(f"{path} is not an n2n checkpoint, or a damaged one ({error})") from error
    if bad is not None:
        raise CheckpointError(f"damaged checkpoint {path}: {bad} in it fails its CRC")
    return data


def _steps(folder: Path) -> list[Path]:
    """Step checkpoints, the highest step first; of one step, the one written last first."""
    found = []
    for path in folder.glob("step_*.pt"):
        if name := _NAME.fullmatch(path.name):
            with contextlib.suppress(FileNotFoundError):  # its run has just removed it
                found.append((int(name["step"]), path.stat().st_mtime_ns, path))
    return [path for *_, path in sorted(found, reverse=True)]


def _nearby(folder: Path) -> str:
    """What a folder holds, for an error line."""
    if not folder.is_dir():
        return ""
    names = sorted(p.name for p in folder.iterdir() if not p.name.startswith("."))
    shown = ", ".join(names[:6]) + (", ..." if len(names) > 6 else "")
    return f"; {folder} holds {shown or 'nothing'}"
