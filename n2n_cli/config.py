"""`check`: a config tree -> the dataclass of its command (see `schema`), or one line of error.

Imports neither torch nor Hydra.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from n2n_cli import models, ops, records, schema
from n2n_cli.convert import convert
from n2n_cli.errors import N2NError, suggest
from n2n_cli.models import OURS, custom
from n2n_cli.training.options import PLAIN_STEPS, WARMUP_STEPS, check_batch, check_shard

FRESH = ("teacher", "student")
"""The networks that start from random weights: at model.teacher_width and at model.width."""


def conf_dir() -> Path:
    """The packaged ``conf``: beside the package's modules in a wheel, beside the package in a checkout."""
    here = Path(__file__).resolve().parent
    for folder in (here / "conf", here.parent / "conf"):
        if (folder / "base.yaml").is_file():
            return folder
    raise N2NError(f"the folder conf is missing beside {here}: install n2n-cli again")


def check(command: str, tree: Mapping[str, Any]) -> Any:
    """The dataclass of ``command`` (a key of `SCHEMAS`) from plain data.

    Raises:
        N2NError: a key is unknown or missing, a value has the wrong type or range, or two do not go together.
    """
    cfg = convert(schema.SCHEMAS[command], tree, "")
    if isinstance(cfg, schema.RunConfig):
        check_model(cfg.model)
        check_data(cfg.data)
        optim, training = cfg.optim, cfg.training
        if optim.nesterov and not (optim.name == "sgd" and optim.momentum):
            raise N2NError("optim.nesterov: needs optim.name=sgd and optim.momentum above 0")
        for key in ("mixup_alpha", "cutmix_alpha"):
            if getattr(training, key) and training.batch_size < 2:
                raise N2NError(f"training.{key}: mixes two images, and training.batch_size is {training.batch_size}")
        for key, of in (("momentum", ("sgd", "rmsprop")), ("decay", ("sgd", "rmsprop")), ("betas", ("adam", "adamw"))):
            if (getattr(optim, key) is not None) != (optim.name in of):
                what = "needs a value" if optim.name in of else "has none"
                raise N2NError(f"optim.{key}: {optim.name} {what}; optim={optim.name} sets all that it has")
        if optim.lr_per_256 is not None:
            optim.lr = optim.lr_per_256 * training.batch_size / 256
        check_batch(training.batch_size, training.accumulate, cfg.devices)
        if cfg.launch.shard:
            check_shard(cfg.devices, training.compile)
        need = training.profile and PLAIN_STEPS + WARMUP_STEPS + training.profile
        if cfg.max_steps and need > cfg.max_steps:
            raise N2NError(f"training.profile: {training.profile} steps after a warm-up take max_steps={need} at least")
        if cfg.data.train_images and (least := round(cfg.data.train_images * _least(cfg))) < training.batch_size:
            stage = " at the first stage" if isinstance(cfg, schema.Compare) and cfg.study.stages else ""
            raise N2NError(
                f"data.train_images: {least} images{stage} are fewer than one batch "
                f"(training.batch_size={training.batch_size})"
            )
    weights = cfg.weights if isinstance(cfg, schema.RunConfig | schema.Inspect) else None
    if weights is not None and not Path(weights).is_file():
        what = "this is a folder, expected a file" if Path(weights).exists() else "no such file"
        raise N2NError(f"weights: {what}: {weights}{_near_path(weights)}")
    if isinstance(cfg, schema.RunConfig | schema.Inspect) and cfg.weights_key is not None and weights is None:
        raise N2NError("weights_key: goes with weights=FILE")
    if isinstance(cfg, schema.Student):
        _check_teacher(cfg)
    if isinstance(cfg, schema.Grow):
        _check_op(cfg.op, "op", cfg)
    if isinstance(cfg, schema.Compare):
        if len(set(cfg.study.teacher_at)) < len(cfg.study.teacher_at):
            raise N2NError(f"study.teacher_at: a share stands there twice: {cfg.study.teacher_at}")
        if not cfg.study.arms:
            raise N2NError(f"study.arms: expected at least one of {', '.join(cfg.ops)}")
        if cfg.study.stages and not cfg.study.strategies:
            raise N2NError("study.stages: goes with study.strategies, as in the study lifelong")
        known: Mapping[str, Any] = cfg.study.strategies if cfg.study.stages else cfg.ops
        for arm in cfg.study.arms:
            if arm not in known:
                raise N2NError(f"study.arms: '{arm}' is not one of {', '.join(known)}{suggest(arm, known)}")
            if not cfg.study.stages:
                _check_op(cfg.ops[arm], f"ops.{arm}", cfg)
        if cfg.study.stages:
            _check_stages(cfg, cfg.study.stages)
        if len(set(cfg.study.arms)) < len(cfg.study.arms):
            raise N2NError(f"study.arms: an arm stands there twice: {', '.join(cfg.study.arms)}")
        scales = [f"{scale:g}" for scale in cfg.lr_scale] if isinstance(cfg.lr_scale, list) else []
        if len(set(scales)) < len(scales):
            raise N2NError(f"lr_scale: a rate stands there twice: {', '.join(scales)}")
    if isinstance(cfg, schema.Compare | schema.CompareRuns) and len(set(cfg.thresholds)) < len(cfg.thresholds):
        raise N2NError(f"thresholds: one stands there twice: {', '.join(f'{share:g}' for share in cfg.thresholds)}")
    if isinstance(cfg, schema.CompareRuns):
        places = [os.path.realpath(run) for run in cfg.runs]
        if twice := [run for run, place in zip(cfg.runs, places, strict=True) if places.count(place) > 1]:
            raise N2NError(f"compare: {twice[0]} stands there twice")
        if cfg.out is not None and Path(cfg.out).is_file():
            raise N2NError(f"out: {cfg.out} is a file, expected a folder")
    if isinstance(cfg, schema.Evaluate) and not Path(cfg.checkpoint).exists():
        raise N2NError(f"no such run folder or checkpoint: {cfg.checkpoint}{_near_path(cfg.checkpoint)}")
    if isinstance(cfg, schema.Inspect):
        _check_inspect(cfg)
    for key in ("root", "src") if isinstance(cfg, schema.DataTool) else ():
        path = getattr(cfg, key, ".")
        if not Path(path).is_dir():
            what = "this is a file, expected a folder" if Path(path).exists() else "no such folder"
            raise N2NError(f"{key}: {what}: {path}{_near_path(path)}")
    return cfg


def names_runs(words: Sequence[str]) -> bool:
    """Whether the words after ``n2n compare`` name folders of runs, and not a study.

    Raises:
        N2NError: they name both, or only folders that are not there.
    """
    places = [conf_dir(), *(Path(b) for a, b in itertools.pairwise(words) if a in ("--config-dir", "-cd"))]
    studies = {path.stem for place in places for path in (place / "study").glob("*.yaml")}
    before = ["", *words]  # the value of a flag is no name
    plain = [word for last, word in zip(before, words, strict=False) if not last.startswith("-") or "=" in last]
    plain = [word for word in plain if not word.startswith("-") and "=" not in word]
    folders = [word for word in plain if word not in studies and Path(word).is_dir()]
    if not folders:
        if missing := [word for word in plain if word not in studies and os.sep in word]:
            raise N2NError(f"compare: no such folder: {missing[0]}{_near_path(missing[0])}")
        return False
    if named := [word for word in plain if word in studies]:
        raise N2NError(
            f"compare: '{named[0]}' is a study and {folders[0]} a folder of runs; give one or the other "
            f"(a folder called so is ./{named[0]})"
        )
    return True


def functions(cfg: Any) -> tuple[str, ...]:
    """Every ``package.module:function`` that a command's config names: the only ones that it may import.

    ``cfg`` must be the config of the command line, where ``app`` has checked that each of them was typed. Never ask for
    those of a config from a run folder or a checkpoint: names in there are information, and allow nothing.
    """
    if isinstance(cfg, schema.DataTool | schema.CompareRuns):
        return ()
    names = [cfg.model.name if isinstance(cfg, schema.RunConfig) else cfg.model]
    if isinstance(cfg, schema.Student):
        names.append(cfg.teacher_model)
    if isinstance(cfg, schema.Inspect) and not Path(cfg.target).exists():  # a file's name allows nothing
        names.append(cfg.target)
    return tuple(name for name in names if custom.is_spec(name))


LATER: Mapping[str, Mapping[str, Any]] = {
    "data": {
        "train_fraction": 1.0,
        "holdout": 0,
        "cache": "auto",
        "decoder": "auto",
        "on_error": "raise",
        "ra_magnitude": 9,
        "random_erase": 0.0,
        "crop_scale": [0.08, 1.0],
        "crop_ratio": [0.75, 4 / 3],
        "interpolation": "bilinear",
    },
    "optim": {"betas": None, "lr_per_256": None},
    "training": {
        "checkpoint_every_minutes": 15.0,
        "keep_at": None,
        "profile": 0,
        "mixup_alpha": 0.0,
        "cutmix_alpha": 0.0,
        "compress_gradients": False,
        "eval_precision": "fp32",
    },
}
"""Keys that the runs of an older n2n lack, and the values that they were made with."""


def read_run(tree: Mapping[str, Any], check: bool = True) -> schema.RunConfig:
    """The config of a run from what its config.yaml holds. Raises N2NError; with ``check`` also if data is missing."""
    # Runs of an older n2n have none of these, nor of the ones below.
    older = {"weights": None, "weights_key": None, "accept_images": False, "accept_versions": False}
    tree = {**older, "launch": {}, **tree}
    for group, values in {**LATER, "launch": {"max_restarts": 0, "shard": False}}.items():
        if isinstance(tree.get(group), Mapping):
            tree[group] = {**values, **tree[group]}
    fields = {field.name: tree[field.name] for field in dataclasses.fields(schema.RunConfig) if field.name in tree}
    cfg: schema.RunConfig = convert(schema.RunConfig, fields, "")
    if check:
        check_data(cfg.data)
    return cfg


def check_model(model: schema.Model) -> None:
    """Raises N2NError for a name that nothing here builds, and for options that only our families have."""
    if taken := [key for key in ("name", "num_classes") if key in model.kwargs]:
        raise N2NError(f"model.kwargs.{taken[0]}: comes from {'the images' if taken == ['num_classes'] else 'model='}")
    if model.name in OURS:
        return
    check_name(model.name, "model.name: unknown network")
    for key, default in (("extra_pairs", 0), ("pairs_at", "branch"), ("stem", "auto"), ("dropout", 0.0)):
        if getattr(model, key) != default:
            raise N2NError(f"model.{key}: only {', '.join(OURS)} have it; for {model.name} use model.kwargs.NAME=VALUE")


def check_name(name: str, what: str) -> None:
    """Raises N2NError, which ``what`` begins, for a name that is no network of ours, of torchvision or of the user."""
    if ":" in name:
        custom.check_spec(name)
    if name not in OURS and not custom.is_spec(name):
        known = models.names()
        if name not in known:
            raise N2NError(f"{what}: '{name}'{suggest(name, known)}; ours are {', '.join(OURS)}")


def check_data(data: schema.Data, parts: Sequence[str] = ("train", "val")) -> None:
    """Raises N2NError where the folders that ``data`` needs are missing; ``parts``: those of an image folder."""
    if data.name == "imagefolder":
        if data.root is None:
            raise N2NError("data.root: data=imagefolder needs data.root=FOLDER with train/ and val/ in it")
        root = Path(data.root)
        if not root.is_dir():
            what = "this is a file, expected a folder" if root.exists() else "no such folder"
            raise N2NError(f"data.root: {what}: {data.root}{_near_path(data.root)}")
        for part in parts:
            if not (root / part).is_dir():
                raise N2NError(f"data.root: no folder {part}/ in {data.root} (expected train/CLASS/, val/CLASS/)")
    if data.name == "packed":
        if data.root is None:
            raise N2NError("data.root: data=packed needs data.root=FOLDER, made by `n2n data pack`")
        if not Path(data.root).is_dir():
            raise N2NError(f"data.root: no such folder: {data.root}{_near_path(data.root)}")
        records.manifest(Path(data.root))
    if data.cache == "packed" and data.name != "imagefolder":
        raise N2NError(f"data.cache=packed: packs an image folder, and data={data.name} is none")
    if data.root is not None and data.name in ("shapes", "fake"):
        raise N2NError(
            f"data.root: data={data.name} reads no files; did you mean data=imagefolder data.root={data.root}"
        )
    if data.name == "cifar10" and Path(data.root or "data").is_file():
        raise N2NError(f"data.root: this is a file, expected a folder: {data.root}")
    if data.name in ("shapes", "fake"):
        labels = (data.train_images or 0) + (data.val_images or 0)
        need = 8 * labels + (256 if data.name == "fake" else labels) * 3 * (data.image_size or 0) ** 2
        if need > os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"):
            raise N2NError(f"data: {need / 1e9:,.0f} GB of images are more than the memory of this machine")
    for key, most, value in (("crop_scale", 1.0, data.crop_scale), ("crop_ratio", math.inf, data.crop_ratio)):
        if value is not None and not (len(value) == 2 and value[0] <= value[1] <= most):
            limit = "" if most == math.inf else f", the larger at most {most:g}"
            raise N2NError(f"data.{key}: expected [smaller, larger]{limit}, not {value}")
    size = data.image_size or (224 if data.name in ("imagefolder", "packed") else 0)  # null: what `data.load` takes
    if data.resize_size and data.resize_size < size:
        raise N2NError(f"data.resize_size: {data.resize_size} px are fewer than data.image_size={size}")


def _check_teacher(cfg: schema.Student) -> None:
    if cfg.teacher is not None and not Path(cfg.teacher).exists():
        raise N2NError(f"teacher: no such run folder or checkpoint: {cfg.teacher}{_near_path(cfg.teacher)}")
    if cfg.teacher is not None and cfg.weights is not None:
        raise N2NError("teacher and weights: give one of them")
    if cfg.teacher_model is not None:
        if cfg.teacher is None and cfg.weights is None:
            raise N2NError("teacher_model: goes with teacher=PATH or weights=FILE")
        check_name(cfg.teacher_model, "teacher_model: unknown network")


def _least(cfg: schema.RunConfig) -> float:
    """The smallest fraction of the training images that a run of the command sees."""
    stages = cfg.study.stages if isinstance(cfg, schema.Compare) else None
    return cfg.data.train_fraction * min(stages or [1.0])


def _check_stages(cfg: schema.Compare, stages: Sequence[float]) -> None:
    """Raises N2NError where a study's stages and strategies do not go together, or not with the rest."""
    study = cfg.study
    if any(b <= a for a, b in itertools.pairwise(stages)):
        raise N2NError(f"study.stages: every stage has more images than the one before, not {stages}")
    for key, given in (("teacher", cfg.teacher), ("weights", cfg.weights)):
        if given is not None:
            raise N2NError(f"{key}: a study of stages begins with random weights")
    if isinstance(cfg.lr_scale, list):
        raise N2NError("lr_scale: expected one rate in a study of stages; each strategy's own are ops.NAME.lr_scale")
    if study.teacher_at != [1.0]:
        raise N2NError("study.teacher_at: in a study of stages the networks go on from the whole stage before: [1.0]")
    for arm in study.arms:
        where, words = f"study.strategies.{arm}", study.strategies[arm]
        if arm in (*cfg.ops, *FRESH) or not re.fullmatch("[a-z_]+", arm):
            raise N2NError(f"{where}: expected a name of letters and _ that no operator has")
        if len(words) != len(stages):
            raise N2NError(f"{where}: {len(words)} words for {len(stages)} stages (study.stages={stages})")
        for place, word in enumerate(words):
            choices = (*FRESH, *cfg.ops) if place else FRESH
            if word not in choices:
                raise N2NError(f"{where}[{place}]: '{word}' is not one of {', '.join(choices)}{suggest(word, choices)}")
            if word in cfg.ops:
                _check_op(cfg.ops[word], f"ops.{word}", cfg)
    if any("student" in study.strategies[arm] for arm in study.arms) and cfg.model.width == cfg.model.teacher_width:
        raise N2NError(
            "study.strategies: teacher and student are the same network (model.teacher_width = model.width = "
            f"{cfg.model.width:g})"
        )


def _check_op(op: ops.Op | None, where: str, cfg: schema.RunConfig | schema.Inspect) -> None:
    if isinstance(op, ops.ToWider) and op.factor is not None and op.layers:
        raise N2NError(f"{where}.factor and {where}.layers: give one of them")
    if isinstance(op, ops.ToWider) and op.to_width is not None and (op.factor is not None or op.layers):
        raise N2NError(f"{where}.to_width: goes with neither {where}.factor nor {where}.layers")
    if isinstance(op, ops.Wider) and op.new != "copy" and (op.noise or op.split != "equal"):
        key = f"noise={op.noise:g}" if op.noise else f"split={op.split}"
        raise N2NError(f"{where}.{key}: is for copies, and {where}.new={op.new} makes none")
    if isinstance(op, ops.Deeper):
        if op.width is not None and op.width < 1:
            raise N2NError(f"{where}.width: {op.width:g} is below 1: a new layer is at least as wide as the one below")
        for key, given in (("width", op.width is not None), ("activation=false", not op.activation)):
            if given and op.new != "identity":
                raise N2NError(f"{where}.{key}: is for identity layers, and {where}.new={op.new} makes none")
    if isinstance(cfg, schema.Inspect):
        return
    if isinstance(op, ops.Distill | ops.FeaturePrediction) and isinstance(cfg, schema.Student) and cfg.weights:
        raise N2NError(f"weights: not with {where}={op.name}, whose teacher is asked at every step: give teacher=")
    to_constructor = isinstance(op, ops.ToWider) and op.factor is None and not op.layers
    to_width = op.to_width if isinstance(op, ops.ToWider) else None
    key, width = ("model.width", cfg.model.width) if to_width is None else (f"{where}.to_width", to_width)
    if to_constructor and cfg.model.name in OURS and width < cfg.model.teacher_width:
        raise N2NError(
            f"{key}: the student ({width:g}) is narrower than its teacher "
            f"(model.teacher_width={cfg.model.teacher_width:g})"
        )
    if isinstance(op, ops.Compose):
        for part in op.parts:
            _check_op(part, f"{where}.{part.name}", cfg)
            if part.optimizer != "fresh" or getattr(part, "freeze", False):
                key = "optimizer" if part.optimizer != "fresh" else "freeze"
                raise N2NError(f"{where}.{part.name}.{key}: not in {op.name}: grow twice, by one operator each time")
    equivariant = isinstance(op, ops.Wider | ops.Deeper) and op.optimizer == "equivariant"
    if equivariant and isinstance(op, ops.Deeper) and op.new == "stack":
        raise N2NError(f"{where}.optimizer=equivariant: not with {where}.new=stack, which is not exact; take carry")
    if equivariant and isinstance(op, ops.Wider) and op.new != "copy":
        raise N2NError(
            f"{where}.optimizer=equivariant: not with {where}.new={op.new}, whose units have no teacher; take "
            f"{where}.optimizer=carry"
        )
    if equivariant and cfg.launch.shard:
        raise N2NError(f"{where}.optimizer=equivariant: not with launch.shard; take {where}.optimizer=carry")
    if equivariant and cfg.training.clip_grad_norm is not None:
        raise N2NError(
            f"{where}.optimizer=equivariant: not with training.clip_grad_norm, as the norm of a student's gradients "
            "counts copies"
        )


def _check_inspect(cfg: schema.Inspect) -> None:
    _check_op(cfg.op, "op", cfg)
    if Path(cfg.target).exists():
        if cfg.weights is not None:
            raise N2NError(f"weights: goes with the name of a network, not with {cfg.target}")
        return
    check_name(cfg.target, "no such run folder, checkpoint or network")
    if cfg.model not in (None, cfg.target):
        raise N2NError(f"model={cfg.model}: goes with a checkpoint, not with the network {cfg.target}")


def _near_path(path: str) -> str:
    parent = Path(path).parent
    names = [entry.name for entry in parent.iterdir()] if parent.is_dir() else []
    return suggest(Path(path).name, names) if Path(path).name not in names else ""
