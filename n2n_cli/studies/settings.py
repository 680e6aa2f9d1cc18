"""The settings of a study's runs, from their config.yaml: what they share, and in what they differ."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import yaml  # type: ignore[import-untyped, unused-ignore]

from n2n_cli.convert import flat
from n2n_cli.schema import MACHINE, matters
from n2n_cli.studies.runs import Run

# What belongs to a run or an arm, and is told elsewhere in the report.
_OF_A_RUN = ("arm", "seed", "teacher", "teacher_epochs", "epochs", "lr_scale", "op")


def config(run: Run) -> dict[str, Any]:
    """The run's config.yaml, flat: ``optim.lr`` -> 0.1. Empty if there is none or it cannot be read."""
    try:
        tree = yaml.safe_load(text(run))
    except yaml.YAMLError:
        return {}
    return flat(tree) if isinstance(tree, dict) else {}


def text(run: Run) -> str:
    """The run's config.yaml; of absolute paths the last name alone, as a report travels. Empty if there is none."""
    path = run.folder / "config.yaml"
    told = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    return re.sub(r"(?m)^(\s*(?:root|teacher|weights|out): )['\"]?/(?:.*/)?([^/\n'\"]+)/?['\"]?$", r"\1\2", told)


def portable(text: str) -> str:
    """A text with the last name alone of every absolute path in it, as a report travels."""
    return re.sub(r"(?<![\w.~:/<])/(?:[^\s/'\",;:()]+/)*([^\s/'\",;:()]+)", r"\1", text)


def shared(runs: Sequence[Run]) -> dict[str, Any]:
    """The settings that are set and equal in all runs, flat; those of a run, an arm or a machine are left out."""
    configs = [config(run) for run in runs]
    return {
        key: value
        for key, value in configs[0].items()
        if value not in (None, {}, []) and not _told_elsewhere(key, value) and all(c.get(key) == value for c in configs)
    }


def differing(runs: Sequence[Run]) -> list[str]:
    """The names of the settings that differ between the runs; those of a run, an arm or a machine are left out."""
    configs = [config(run) for run in runs]
    keys = dict.fromkeys(key for one in configs for key, value in one.items() if not _told_elsewhere(key, value))
    return [key for key in keys if any(one.get(key) != configs[0].get(key) for one in configs)]


def by_arm(runs: Sequence[Run]) -> dict[str, list[Any]]:
    """The settings in which the runs differ, those of an arm too, and each run's value: ``op.noise`` -> [0.3, None]."""
    configs = [config(run) for run in runs]
    keys = dict.fromkeys(key for one in configs for key in one)
    left_out = ("arm", "seed", "teacher", "weights", "op.name", "op.lr_scale")
    return {
        key: [one.get(key) for one in configs]
        for key in keys
        if key not in left_out and key.split(".")[0] not in MACHINE
        if any(matters(key, one.get(key)) for one in configs)
        if any(one.get(key) != configs[0].get(key) for one in configs)
    }


def of_operator(run: Run) -> dict[str, Any]:
    """The growth operator's own settings that are set: ``noise`` -> 0.2."""
    return {
        key.removeprefix("op."): value
        for key, value in config(run).items()
        if key.startswith("op.") and key not in ("op.name", "op.lr_scale") and value not in (None, {}, [], 0)
    }


def _told_elsewhere(key: str, value: Any) -> bool:
    return not matters(key, value) or key.split(".")[0] in (*_OF_A_RUN, *MACHINE)
