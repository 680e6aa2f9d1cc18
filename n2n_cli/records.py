"""What runs and packing write beside tensors and images (run.json, metrics.jsonl, ...): plain JSON under a seal.

The seal is a hash over the other values, so that a flipped bit is found even where the text is still JSON. A file
without one, such as of an older n2n, is taken as it is. No torch in here.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from n2n_cli.errors import N2NError

SEAL = "seal"
TEMPORARY = ".tmp-"
Number = (int, float)  # finite
PACKED = ("jpeg", "raw")
RUN: dict[str, Any] = {
    "arm": str,
    "label": str,
    "seed": int,
    "parameters": int,
    "macs": int,
    "lr": Number,
    "lr_scale": Number,
    "warmup_epochs": Number,
    "epochs": Number,
    "lineage": {"steps": list, "classes": list},
    "function_gap": {"*": (float, int)},
    "frozen": list,
    "teacher_images": int,
    "teacher_file": str,
    "teacher_macs": int,
    "teacher": str,
    "data": str,
    "images": {"train": int, "val": int, "files": str},
    "machine": {"*": (str, int)},
    "command": str,
    "stage": {"number": int, "of": int, "fraction": Number, "before": str},
}
"""What run.json holds: types of the values that are there and not null; ``*``: of every other key."""
DONE: dict[str, Any] = {
    "step": int,
    "images": int,
    "epochs": Number,
    "time_s": Number,
    "start": {"*": Number},
    "best": {"*": Number},
    "final": {"*": Number},
    **dict.fromkeys(("units", "units/copies", "units/near_copies"), int),
}
"""The same of done.json."""
MANIFEST: dict[str, Any] = {
    "format": int,
    "size": int,
    "kind": str,
    "quality": int,
    "classes": list,
    "files": str,
    "source": str,
    "images": {"train": int, "val": int},
    "shards": {"train": list, "val": list},
    "index": {"train": str, "val": str},
}
"""The same of the manifest.json of packed images. ``size``: the shorter side in pixels at most; ``files``: a digest of
the source's paths, ``source`` of their bytes' numbers too; ``shards``: bytes of each; ``index``: SHA-256 of the
tables."""
FAILED: dict[str, Any] = {"reason": str, "arm": str, "label": str, "seed": int, "lr_scale": Number, "epochs": Number}
"""The same of failed.json."""


class Damaged(N2NError):
    """A record that is not what was written."""


def write(path: Path, values: Mapping[str, Any]) -> None:
    """Write ``values`` to ``path``, whole or not at all. Raises N2NError where the file system refuses."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(path, (json.dumps({**values, SEAL: _seal(values)}, indent=1) + "\n").encode())
    except OSError as error:
        raise N2NError(f"cannot write {path}: {error.strerror}") from error


def read(path: Path, kinds: Mapping[str, Any], needed: Iterable[str] = ()) -> dict[str, Any]:
    """The values that `write` wrote to ``path``.

    Args:
        kinds: `RUN`, `DONE`, `FAILED` or `MANIFEST`.
        needed: keys that must be there.

    Raises:
        FileNotFoundError: there is no such file.
        Damaged: it cannot be read, or holds other values.
    """
    try:
        values = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise Damaged(f"cannot read {path}: {error}") from error
    if not isinstance(values, dict):
        raise Damaged(f"cannot read {path}: expected a JSON object")
    if not _whole(values):
        raise Damaged(f"cannot read {path}: its values are not those that were written (damaged, or changed by hand)")
    if problem := misfit(values, kinds, needed):
        raise Damaged(f"cannot read {path}: {problem}")
    return values


def misfit(values: Mapping[str, Any], kinds: Mapping[str, Any], needed: Iterable[str] = ()) -> str:
    """The first thing wrong with ``values``: a needed one that is not there, or one of another type; or nothing."""
    for key in needed:
        if values.get(key) is None:
            return f"no '{key}' in it"
    wrong = next((key for key, value in values.items() if not _fits(value, kinds.get(key))), None)
    return "" if wrong is None else f"its '{wrong}' is {str(values[wrong])[:40]!r}"


def manifest(root: Path) -> dict[str, Any]:
    """What is packed in a folder.

    Raises:
        N2NError: nothing is, or not all of it, or it was written by a newer n2n.
    """
    try:
        found = read(root / "manifest.json", MANIFEST, MANIFEST.keys() - {"quality", "source"})
    except FileNotFoundError:
        begun = (root / "plan.json").exists()
        what = (
            "is not packed to its end: type `n2n data pack` again"
            if begun
            else "holds no packed images (see n2n data pack)"
        )
        raise N2NError(f"data.root: {root} {what}") from None
    if found["format"] != 1 or found["kind"] not in PACKED:
        raise N2NError(f"data.root: {root} is packed in a format that this n2n does not know")
    return found


def line(row: Mapping[str, Any]) -> bytes:
    """One line of a metrics.jsonl."""
    return (json.dumps({**row, SEAL: _seal(row)}) + "\n").encode()


def rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics.jsonl: ``step`` and other numbers by name; none where there is no file.

    A last line that a kill has cut short is left out; any other line that is no row is left out with a warning.

    Raises:
        Damaged: the file cannot be read.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    except OSError as error:
        raise Damaged(f"cannot read {path}: {error.strerror}") from error
    found = [_row(text) for text in lines]
    bad = [number for number, row in enumerate(found[:-1], 1) if row is None and lines[number - 1]]
    if bad:
        told = ", ".join(map(str, bad[:5])) + (f" and {len(bad) - 5} more" if bad[5:] else "")
        print(f"n2n: warning: {path}: left out line {told}, not as it was written", file=sys.stderr, flush=True)
    return [row for row in found if row is not None]


def atomic_write(path: Path, data: bytes | memoryview) -> None:
    """Write ``path`` so that a crash leaves either the old file or the new one, whole.

    Raises:
        OSError: as the file system says; the temporary file is gone.
    """
    temporary = path.with_name(f"{TEMPORARY}{os.getpid()}-{path.name}")
    try:
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(handle, view) :]
            os.fsync(handle)
        finally:
            os.close(handle)
        os.replace(temporary, path)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _seal(values: Mapping[str, Any]) -> str:
    plain = json.loads(json.dumps(values))  # as it will be read: with keys of text, in their order
    text = json.dumps(plain, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _whole(values: dict[str, Any]) -> bool:
    """Whether the values are those of their seal, which is taken out."""
    seal = values.pop(SEAL, None)
    return seal is None or seal == _seal(values)


def _fits(value: Any, kind: Any) -> bool:
    if value is None or kind is None:
        return True
    if isinstance(kind, dict):
        return isinstance(value, dict) and all(_fits(v, kind.get(k, kind.get("*"))) for k, v in value.items())
    return isinstance(value, kind) and not isinstance(value, bool) and (kind is not Number or math.isfinite(value))


def _row(text: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(row, dict) or not _whole(row) or type(row.get("step")) is not int or row["step"] < 0:
        return None
    return row if all(value is None or type(value) in (int, float) for value in row.values()) else None
