"""Where a run lies. A folder is found by its name, not by the clock: the same config is the same folder.

``OUT/<network>-<data>-<hash>/<arm>[-variant]-seed<seed>``; the hash is of the groups model, data, optim and
training, so the teacher, the grown students and the study of one config lie side by side. No torch in here.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml

from n2n_cli import records
from n2n_cli.arms import find
from n2n_cli.config import FRESH, LATER, conf_dir
from n2n_cli.convert import flat
from n2n_cli.errors import N2NError, RunError
from n2n_cli.ops import OPS, Op
from n2n_cli.schema import MACHINE, NO_MATTER, Compare, Grow, RunConfig, Student, matters

FAILED = "failed.json"
Config = TypeVar("Config", bound=RunConfig)


@dataclass(frozen=True)
class PlannedRun:
    """A run to be made: an arm with its variant and seed.

    ``config``: what its config.yaml says; ``lr_scale``: its rate over ``optim.lr``; ``op`` and ``teacher``: of a run
    that starts from a grown network, ``fresh`` (teacher or student): of one that starts from random weights. ``stage``:
    of a study of ``stages``, which one, from 1; ``before``: the run of the stage before.
    """

    arm: str
    folder: Path
    seed: int
    epochs: float
    config: dict[str, Any]
    lr_scale: float = 1.0
    op: Op | None = None
    teacher: Path | None = None
    fresh: str = ""
    stage: int = 0
    stages: int = 0
    before: PlannedRun | None = None

    @property
    def label(self) -> str:
        return find(self.arm).label

    @property
    def stage_info(self) -> dict[str, Any]:
        """What run.json says of a stage: which one of how many, and the folder of the run before, which lies beside."""
        fraction, before = self.config["data"]["train_fraction"], self.before.folder.name if self.before else None
        told = {"number": self.stage, "of": self.stages, "fraction": fraction, "before": before}
        return {"stage": told} if self.stage else {}

    def with_images(self, cfg: Config) -> Config:
        """A study's config with the images of this run."""
        fraction = self.config["data"]["train_fraction"]
        return dataclasses.replace(cfg, data=dataclasses.replace(cfg.data, train_fraction=fraction))

    @property
    def done(self) -> dict[str, Any] | None:
        """What done.json says, or None as long as the run is not finished."""
        try:
            return records.read(self.folder / "done.json", records.DONE)
        except FileNotFoundError:
            return None
        except records.Damaged as error:
            raise N2NError(f"{error}; without it, the run goes on from its checkpoint") from error

    @property
    def failed(self) -> str | None:
        """Why a study gave this run up; None if it did not."""
        try:
            return str(records.read(self.folder / FAILED, records.FAILED, ["reason"])["reason"])
        except FileNotFoundError:
            return None
        except records.Damaged as error:
            raise N2NError(f"{error}; remove it to try the run again") from error


def fail(planned: PlannedRun, error: RunError) -> None:
    """Notes in the run's folder that it cannot be made, and why; `PlannedRun.failed` reads it."""
    told = {"arm": planned.arm, "label": planned.label, "seed": planned.seed, "lr_scale": planned.lr_scale}
    told |= {
        **planned.stage_info,
        "epochs": planned.epochs,
        "reason": " ".join(str(error).split()).removeprefix(f"{planned.folder}: "),
    }
    records.write(planned.folder / FAILED, told)


def setting(cfg: RunConfig) -> Path:
    """The folder of all runs with these model, data, optim and training."""
    groups = {key: dataclasses.asdict(getattr(cfg, key)) for key in ("model", "data", "optim", "training")}
    # The same images may lie elsewhere, as on a node's own disk: their classes tell them, and run.json all of them.
    if cfg.data.name == "imagefolder":
        groups["data"]["root"] = _classes(Path(str(cfg.data.root)) / "train")
    elif cfg.data.name == "packed":
        groups["data"]["root"] = records.manifest(Path(str(cfg.data.root)))
    else:
        del groups["data"]["root"]
    for key in NO_MATTER:
        group, name = key.split(".")
        if not matters(key, groups[group][name]):
            del groups[group][name]
    for group, values in LATER.items():  # so that runs from before there were these are found
        groups[group] = {k: v for k, v in groups[group].items() if k not in values or v != values[k]}
    if isinstance(cfg, Compare) and cfg.study.stages:
        groups["study"] = {"stages": cfg.study.stages}
    text = json.dumps(groups, sort_keys=True)
    name = cfg.model.name.replace(":", ".")  # a colon in a path reads as a host or as a list of paths
    return Path(cfg.out) / f"{name}-{cfg.data.name}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def _classes(folder: Path) -> list[str]:
    """The names of the class folders. Raises N2NError."""
    try:
        return sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))
    except OSError as error:
        raise N2NError(f"data.root: cannot read {folder}: {error.strerror}") from error


def job_folder(command: str, cfg: Any) -> Path:
    """The folder that a job writes to: a run's, a study's, or the current one for commands that only look."""
    if command in ("train_teacher", "train_student"):
        return plan_fresh(cfg, command.removeprefix("train_")).folder
    if isinstance(cfg, Grow):
        return plan_grown(cfg, cfg.op, cfg.seed, cfg.lr_scale, find_teacher(cfg)).folder
    return setting(cfg) if isinstance(cfg, Compare) and not cfg.dry_run else Path()


def plan_fresh(cfg: RunConfig, arm: str, *, seed: int | None = None, epochs: float | None = None) -> PlannedRun:
    """The run of a network that starts from random initialization: ``arm`` is teacher or student."""
    seed = cfg.seed if seed is None else seed
    epochs = cfg.epochs if epochs is None else epochs
    given = str(Path(cfg.weights).resolve()) if cfg.weights else None
    variants = [f"weights-{_hash([given, cfg.weights_key] if cfg.weights_key else given)}"] if given else []
    variants += _epochs(epochs, getattr(cfg.training.default_epochs, arm))
    return _planned(cfg, arm, variants, seed, epochs, fresh=arm)


def plan_stage(cfg: Compare, arm: str, seed: int, before: PlannedRun | None) -> PlannedRun:
    """The run of a strategy's first stage, or of the one after ``before``."""
    stages, words = cfg.study.stages or [], cfg.study.strategies[arm]
    stage = before.stage + 1 if before else 1
    ways = [(word, cfg.ops.get(word)) for word in words[:stage]]
    word, op = ways[-1]
    at = dataclasses.replace(cfg.data, train_fraction=cfg.data.train_fraction * stages[stage - 1])
    scales = [1.0 if one is None else one.lr_scale if cfg.lr_scale is None else cfg.lr_scale for _, one in ways]
    # Whatever the stages up to here are made of: others are other runs.
    made = _hash([[word, dataclasses.asdict(one) if one else None] for word, one in ways] + [scales, cfg.epochs])
    scale = scales[-1]
    assert isinstance(scale, float)  # `config.check` refuses a list
    variants = [f"stage{stage}", made]
    variants += [f"lr{scale:g}"] if op is not None and cfg.lr_scale is not None else []
    variants += _epochs(cfg.epochs, cfg.training.default_epochs.student)
    teacher = before.folder if before and op is not None else None
    fresh = word if word in FRESH else ""
    planned = _planned(dataclasses.replace(cfg, data=at), arm, variants, seed, cfg.epochs, scale, op, teacher, fresh)
    folder = setting(cfg) / planned.folder.name  # all stages lie side by side
    return dataclasses.replace(planned, folder=folder, stage=stage, stages=len(stages), before=before)


def plan_grown(cfg: Student, op: Op, seed: int, lr_scale: float | None, teacher: Path) -> PlannedRun:
    """The run of a student that ``op`` makes of ``teacher``; ``lr_scale`` None: the op's own."""
    default = _default_op(op.name)
    variants = []
    for key, value in dataclasses.asdict(op).items():
        usual = _default_op(key) if key in OPS else default.get(key, value)
        if key not in ("name", "lr_scale") and value != usual:
            variants.append(_variant(key, value))
    scale = op.lr_scale if lr_scale is None else lr_scale
    if scale != default.get("lr_scale", op.lr_scale):
        variants.append(f"lr{scale:g}")
    variants += _epochs(cfg.epochs, cfg.training.default_epochs.student)
    variants += _of_teacher(cfg, seed, teacher)
    return _planned(cfg, op.name, variants, seed, cfg.epochs, scale, op, teacher)


def find_teacher(cfg: Grow) -> Path:
    """What to grow: ``teacher=PATH``, ``weights=FILE``, or the folder of the finished teacher of this config and seed.

    Raises:
        N2NError: there is none, or there are several and none of ``teacher_epochs``; and what to type.
    """
    if given := cfg.teacher or cfg.weights:
        return Path(given)
    planned = plan_fresh(cfg, "teacher", epochs=cfg.teacher_epochs)
    if planned.done:
        return planned.folder
    others = sorted(path.parent for path in setting(cfg).glob(f"teacher*-seed{cfg.seed}/done.json"))
    if len(others) == 1:
        return others[0]
    if others:
        names = ", ".join(path.name for path in others)
        raise N2NError(f"teacher: several in {setting(cfg)}, choose by teacher_epochs= or teacher=PATH: {names}")
    state = "not finished (train it to its end)" if (planned.folder / "run.json").exists() else "not there"
    raise N2NError(
        f"teacher: {planned.folder} is {state}: type `n2n train teacher` with the same settings first, "
        "or give teacher=PATH"
    )


def teacher_file(teacher: Path) -> str | None:
    """Which checkpoint a teacher's path means now: its step, in a run, which would come out the same again; or the hash
    of another file; None where there is none."""
    path = Path(teacher)
    if path.is_dir():
        folder = path / "checkpoints" if (path / "checkpoints").is_dir() else path
        path = max(folder.glob("step_*-*.pt"), key=lambda file: file.name, default=path)
    if named := re.fullmatch(r"(.+)-[0-9a-f]{16}\.pt", path.name):
        return named[1]
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16] if path.is_file() else None


def _check_teacher(planned: PlannedRun) -> None:
    """Raises N2NError where the folder's run was grown from what its teacher no longer is."""
    if planned.teacher is None:
        return
    try:
        was = records.read(planned.folder / "run.json", records.RUN).get("teacher_file")
        now = teacher_file(planned.teacher)
    except (N2NError, OSError):
        return  # a damaged run says so itself
    if was and now and was != now:
        raise N2NError(
            f"teacher: {planned.folder} was grown from another state of {planned.teacher}: remove it, or change out="
        )


def check_same(planned: PlannedRun) -> None:
    """Raises N2NError where the folder holds a run with other settings, or of a teacher that was trained on since: its
    name does not tell all of them."""
    path = planned.folder / "config.yaml"
    if not path.is_file():
        return
    try:
        there = yaml.safe_load(path.read_text()) or {}
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise N2NError(f"cannot read {path}: {' '.join(str(error).split())}") from error
    old, new = flat(there), flat(planned.config)
    for key in sorted(old.keys() & new.keys()):
        if (
            key.split(".")[0] not in (*MACHINE, "teacher", "weights")
            and key != "data.root"
            and old[key] != new[key]
            and (matters(key, old[key]) or matters(key, new[key]))
        ):
            raise N2NError(
                f"{planned.folder} holds a run with {key}={old[key]}, not {new[key]}: remove it, or change out="
            )
    _check_teacher(planned)


def _planned(
    cfg: RunConfig,
    arm: str,
    variants: list[str],
    seed: int,
    epochs: float,
    lr_scale: float = 1.0,
    op: Op | None = None,
    teacher: Path | None = None,
    fresh: str = "",
) -> PlannedRun:
    every = dataclasses.asdict(cfg)
    config = {"arm": arm, **{field.name: every[field.name] for field in dataclasses.fields(RunConfig)}}
    config |= {"seed": seed, "epochs": epochs, "lr_scale": lr_scale, "op": dataclasses.asdict(op) if op else None}
    config["teacher"] = os.path.abspath(teacher) if teacher else None
    folder = setting(cfg) / "-".join([arm, *variants, f"seed{seed}"])
    return PlannedRun(arm, folder, seed, epochs, config, lr_scale, op, teacher, fresh)


def _variant(key: str, value: Any) -> str:
    """How a setting of an op stands in a folder's name: ``noise0.2``, ``new-fresh``, ``carry``, ``sites-none``."""
    if isinstance(value, str):
        return value if key == "optimizer" else f"{key}-{value}"
    if isinstance(value, int | float):
        return f"{key}{value:g}"
    return f"{key}-{_hash(value)}" if value else f"{key}-none"


def _epochs(epochs: float, default: float) -> list[str]:
    return [] if epochs == default else [f"epochs{epochs:g}"]


def _of_teacher(cfg: Student, seed: int, teacher: Path) -> list[str]:
    """Nothing for this setting's own teacher of the seed; its epochs if not the default, and the share of its steps if
    not all; else a hash of its path."""
    run, at = teacher.resolve(), ""
    if kept := re.fullmatch(r"at([\d.]+)-[0-9a-f]+\.pt", run.name):
        run, at = run.parent.parent, kept[1]
    shared = isinstance(cfg, Compare) and cfg.teacher and cfg.seeds > 1  # by all seeds, which are one arm
    if run.parent == setting(cfg).resolve() and not shared:
        own = re.fullmatch(rf"teacher(?:-epochs([\d.e+-]+))?-seed{seed}", run.name)
        if own:
            return ([f"teacher{own[1]}"] if own[1] else []) + ([f"at{at}"] if at else [])
    path = str(teacher.resolve())
    more = [word for word in (cfg.teacher_model, cfg.weights_key) if cfg.weights and word]
    return [f"from-{_hash([path, *more] if more else path)}"]


def _default_op(name: str) -> dict[str, Any]:
    path = conf_dir() / "op" / f"{name}.yaml"
    return yaml.safe_load(path.read_text()) if path.is_file() else {}


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:6]
