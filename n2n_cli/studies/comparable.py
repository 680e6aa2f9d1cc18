"""Which runs of several folders can stand in one report, and as which arms."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from n2n_cli.errors import N2NError
from n2n_cli.studies import settings
from n2n_cli.studies.runs import Run, read_run

MANY, FEW = 4, 3  # settings in an arm's name: of more than so many, so many
_MADE = ("data.seed", "data.difficulty", "data.image_size")  # what makes generated images others


def gather(places: Sequence[Path]) -> tuple[list[Run], dict[str, str]]:
    """The runs that lie in these folders, and why others that were named do not count, by folder."""
    found: dict[Path, Run] = {}
    left_out: dict[str, str] = {}
    for place in places:
        inside = sorted(path.parent for path in place.glob("*/run.json"))
        whole = [place] if any((place / name).exists() for name in ("run.json", "failed.json")) else inside
        if not whole:
            left_out[str(place)] = "no run.json in it: no run, or half written" if place.is_dir() else "no such folder"
        for folder in whole:
            try:
                found.setdefault(folder.resolve(), read_run(folder))
            except N2NError as error:
                left_out[str(folder)] = str(error)
    return list(found.values()), left_out


def comparable(runs: Sequence[Run]) -> tuple[list[Run], dict[str, str]]:
    """The runs on the same images, and by folder why others are left out.

    What most runs have counts; of as many, what the first has. Runs of one name and other settings become arms of their
    own; a run with arm, settings and seed of another one is left out.
    """
    told = [_images(run) for run in runs]
    counted: dict[str, Counter[Any]] = {}
    for one in told:
        for key, value in one.items():
            counted.setdefault(key, Counter()).update([value] if value is not None else [])
    usual = {key: found.most_common(1)[0][0] if found else None for key, found in counted.items()}
    kept: list[Run] = []
    left_out: dict[str, str] = {}
    for run, one in zip(runs, told, strict=True):
        others = [key for key, value in one.items() if value is not None and value != usual[key]]
        if others:
            key = others[0]
            left_out[str(run.folder)] = f"{key}: {one[key]}, where the others have {usual[key]}"
        else:
            kept.append(run)
    named = _told_apart(kept)
    seen: dict[tuple[str, int], Run] = {}
    for run in named:
        if (first := seen.setdefault((run.key, run.seed), run)) is not run:
            left_out[str(run.folder)] = f"arm, settings and seed are those of {first.folder}"
    return list(seen.values()), left_out


def _images(run: Run) -> dict[str, Any]:
    """What must be the same, in words -> of this run, None where it is not known."""
    images, lineage, config = run.info.get("images") or {}, run.info.get("lineage") or {}, settings.config(run)
    steps = lineage.get("steps") or [{}]
    classes = len(lineage["classes"]) if lineage.get("classes") else steps[0].get("num_classes")
    made = tuple(config.get(key) for key in _MADE) if run.info.get("synthetic") else None
    drawn = config.get("data.holdout") or config.get("data.val_images")
    found = {"other data": run.info.get("data"), "another number of classes": classes}
    found |= {"another number of validation images": images.get("val")}
    found |= {"another number of images held out for validation": config.get("data.holdout")}
    found |= {"another number of training images": images.get("train")}
    return found | {
        "other images (digest of their names)": images.get("files"),
        f"other images ({', '.join(_MADE)})": made,
        "other validation images (data.seed)": config.get("data.seed") if drawn and made is None else None,
    }


def _short(key: str) -> str:
    return key if key == "data.seed" else key.rpartition(".")[2]


def _told_apart(runs: Sequence[Run]) -> list[Run]:
    """The runs, those of one name and different settings with these in their names; the name of a folder that the user
    called otherwise is its arm."""
    groups: dict[str, list[Run]] = {}
    named = [run.folder.name == run.arm or run.folder.name.startswith(f"{run.arm}-") for run in runs]
    runs = [run if own else replace(run, alias=run.arm) for run, own in zip(runs, named, strict=True)]
    for run in runs:
        groups.setdefault(run.key, []).append(run)
    words: dict[Path, tuple[str, ...]] = {}
    for group in groups.values():
        found = {key: values for key, values in settings.by_arm(group).items() if key != "data.root"}
        for place, run in enumerate(group):
            told = [f"{_short(key)} {values[place]}" for key, values in found.items()]
            if len(told) > MANY:  # the table of settings has them all
                rest = hashlib.sha256("\n".join(told[FEW:]).encode()).hexdigest()[:6]
                told = [*told[:FEW], f"{len(told) - FEW} more settings {rest}"]
            words[run.folder] = tuple(told)
    return [replace(run, more=words[run.folder]) for run in runs]
