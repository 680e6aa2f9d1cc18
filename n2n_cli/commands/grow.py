"""``n2n grow``: a trained teacher becomes a student; proof comes before saving, then fine-tuning."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Collection
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn

from n2n_cli import data, growth, lineage, models, records
from n2n_cli.arms import ARMS
from n2n_cli.commands import dataset, fitting, folders, networks, prepare, travel
from n2n_cli.commands.folders import PlannedRun
from n2n_cli.config import functions
from n2n_cli.errors import N2NError
from n2n_cli.models import describe
from n2n_cli.ops import Compose, Deeper, Distill, FeaturePrediction, Op, ToDeeper, ToWider, Wider
from n2n_cli.schema import Grow, Model, RunConfig, Student
from n2n_cli.training.evaluate import main_output

ROWS = 16  # of the table of what grew
TO_WIDER = {
    "wider": growth.widen,
    "random_pad": growth.random_pad,
    "random_init": growth.random_init,
    "distill": growth.random_init,
    "feature_prediction": growth.random_init,
}


def run(cfg: Grow) -> dict[str, Any] | None:
    """Grows the teacher that ``cfg`` means; see `from_teacher`. Raises N2NError where there is none, or several."""
    teacher = folders.find_teacher(cfg)
    return from_teacher(folders.plan_grown(cfg, cfg.op, cfg.seed, cfg.lr_scale, teacher), cfg)


def from_teacher(planned: PlannedRun, cfg: Student) -> dict[str, Any] | None:
    """Grows ``planned.teacher`` by ``planned.op`` unless that is done, trains the student; see `fitting.fit_run`."""
    return fitting.fit_run(planned, cfg, lambda: write_grown(planned, cfg))


def write_grown(planned: PlannedRun, cfg: Student) -> None:
    """Grows, proves, shows what grew, and only then writes the run folder.

    Raises:
        N2NError: the teacher does not fit the data, the plan does not fit the teacher, or the proof failed.
    """
    assert planned.op is not None and planned.teacher is not None
    images = dataset.load(cfg.data, progress=cfg.progress)
    had = None if cfg.weights else folders.teacher_file(planned.teacher)
    teacher, steps, seen = networks.teacher(planned, cfg, images)
    images = dataset.in_order(images, steps, str(planned.teacher))
    if planned.teacher.parent == planned.folder.parent:  # of this very setting
        with contextlib.suppress(OSError):
            told = records.read(planned.teacher / "run.json", records.RUN)
            prepare.check_images(planned.teacher, told, images, cfg.accept_images)
    batch = dataset.example(images)
    with torch.no_grad():  # what the teacher keeps of it may be trained with
        classes = main_output(teacher.eval()(batch))[0].shape[1]
    if classes != images.num_classes:
        raise N2NError(f"teacher: {planned.teacher} has {classes} classes, {cfg.data.name} has {images.num_classes}")
    moving = travel.of_teacher(planned, cfg, teacher)
    teacher = moving.model if moving else teacher
    parts = planned.op.parts if isinstance(planned.op, Compose) else (planned.op,)
    network, begun, gaps = teacher, steps, list[dict[str, float]]()
    for op in parts:
        grown, to = grow(network, begun, op, cfg, images, batch, planned.seed)
        if not gaps:  # nothing was refused
            print(f"{ARMS[planned.op.name].label} from {planned.teacher}", flush=True)
        gaps.append(_told(network, grown))
        name = op.name if len(parts) > 1 else planned.op.name
        begun = lineage.grow(begun, {**grown.recipe, "op": name, "function_gap": gaps[-1]}, to)
        network = grown.student
    gap = gaps[0]
    if len(parts) > 1:
        gap = {mode: max(one[mode] for one in gaps) for mode in gaps[0]}
        if planned.op.name == "wider_deep_random_init":
            grown = growth.random_init(teacher, batch, network, seed=planned.seed, reset=True)
            gap = {"eval": grown.gap.eval, "train": grown.gap.train}
        gap["eval"] = growth.function_gap(teacher, grown.student, batch, training=False)
        print(f"{ARMS[planned.op.name].label}: function gap: eval {gap['eval']:.1e}", flush=True)
    going_on: dict[str, Any] = {}
    if moving:
        again = partial(grow, steps=steps, op=planned.op, cfg=cfg, images=images, batch=batch, seed=planned.seed)
        going_on = moving.arrive(grown, again, cfg, cfg.optim.lr * planned.lr_scale)
    frozen = _inherited(teacher, grown) if isinstance(planned.op, Deeper) and planned.op.freeze else []
    asked = describe.macs(teacher, images.image_size) if isinstance(planned.op, Distill | FeaturePrediction) else None
    more = {"frozen": frozen, "teacher_images": seen, "teacher_file": had, "teacher_macs": asked}
    prepare.write_run(planned, cfg, "grow", grown.student, begun, images, gap, going_on, more)


def _told(teacher: nn.Module, grown: growth.Growth) -> dict[str, float]:
    """Prints what grew, the notes and the gaps; returns these."""
    for row in table(teacher, grown.student):
        print(row, flush=True)
    for note in grown.notes:
        print(f"  note: {note}", flush=True)
    for warning in grown.warnings:
        print(f"n2n: warning: {warning}", file=sys.stderr, flush=True)
    proof = grown.gap
    gaps = f"eval {proof.eval:.1e}, train {proof.train:.1e} ({proof.kind}, floor {proof.floor:.1e})"
    print(f"  function gap: {gaps}", flush=True)
    return {"eval": proof.eval, "train": proof.train, "floor": proof.floor}


def _inherited(teacher: nn.Module, grown: growth.Growth) -> list[str]:
    """The student's parameters that were the teacher's."""
    names = (grown.renamed.get(name, name) for name, _ in teacher.named_parameters())
    return sorted({name for name, _ in grown.student.named_parameters()} & set(names))


def grow(
    teacher: nn.Module,
    steps: dict[str, Any],
    op: Op,
    cfg: RunConfig,
    images: data.Dataset,
    batch: torch.Tensor,
    seed: int,
) -> tuple[growth.Growth, dict[str, Any] | None]:
    """The student of one op, and its constructor's arguments if it has one of its own.

    ``steps``: the teacher's lineage; ``batch``: normalised images ``[N, 3, H, W]``.
    """
    if isinstance(op, ToWider):
        model = cfg.model if op.to_width is None else replace(cfg.model, width=op.to_width)
        to = None if op.factor is not None or op.layers else standard(steps, model, images)
        plan = construct(to, seed, functions(cfg)) if to else op.factor if op.factor is not None else dict(op.layers)
        options: dict[str, Any] = {}
        if isinstance(op, Wider):
            options = {"new": op.new, "split": op.split, "noise": op.noise_on_copies}
            if op.new == "gradmax":
                size, count = cfg.training.batch_size, op.calibration_batches
                options["calibration"] = dataset.labelled(images, size, cfg.seed, count)
        return TO_WIDER[op.name](teacher, batch, plan, seed=seed, **options), to
    if not isinstance(op, ToDeeper):  # the control that grows nothing
        return growth.unchanged(teacher, seed=seed), None
    to = deeper_constructor(steps, op, cfg.model, images)
    sites = construct(to, seed, functions(cfg)) if to else op.sites
    places: dict[str, Any] = {"pairs": op.pairs, "activation": op.activation}
    if isinstance(op, Deeper):
        calibration = dataset.calibration(images, cfg.training.batch_size, cfg.seed, op.calibration_batches)
        places |= {"new": op.new, "width": op.width, "seed": seed}
        return growth.deepen(teacher, batch, sites, calibration=calibration, **places), to
    if isinstance(sites, nn.Module):
        return growth.random_init(teacher, batch, sites, seed=seed), to
    deeper = growth.deepen(teacher, batch, sites, **places)
    fresh = growth.random_init(teacher, batch, deeper.student, seed=seed, reset=True)
    fresh.recipe = {**deeper.recipe, "seed": seed}
    return fresh, None


def construct(arguments: dict[str, Any], seed: int, typed: Collection[str] = ()) -> nn.Module:
    """A network as its constructor initializes it from ``seed``: random init, and what random pad pads with.

    ``typed``: as for `lineage.build`.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return lineage.construct(arguments, typed)


def standard(steps: dict[str, Any], cfg: Model, images: data.Dataset) -> dict[str, Any]:
    """Constructor's arguments of the student: the teacher's own network at ``model.width``, or the config's."""
    theirs = lineage.constructor(steps)
    wanted = networks.arguments(cfg, cfg.width, images)
    if theirs is not None and theirs["name"] == cfg.name:
        if cfg.name in models.OURS:
            wanted = {**wanted, **theirs, "width": cfg.width}
        if wanted == theirs:
            raise N2NError(
                f"op: teacher and student are the same network ({cfg.name}, width {cfg.width:g}); "
                "give op.factor=1.5, op.layers={PATTERN: FACTOR} or another model.width"
            )
    return wanted


def deeper_constructor(
    steps: dict[str, Any], op: ToDeeper, cfg: Model | None = None, images: data.Dataset | None = None
) -> dict[str, Any] | None:
    """The constructor's arguments of a deeper student; None where new layers go into the teacher instead.

    The student is the config's network if that is neither ours nor the teacher's own. Else a teacher of our families
    becomes the same network with ``op.pairs`` more pairs, unless these are to be residual branches, or wider.
    """
    if op.sites is not None or not op.activation or (isinstance(op, Deeper) and op.width is not None):
        return None
    theirs = lineage.constructor(steps)
    if cfg is not None and images is not None and cfg.name not in models.OURS:
        every = (lineage.constructor({"steps": steps["steps"][:n]}) for n in range(len(steps["steps"]), 0, -1))
        last: dict[str, Any] = next((found for found in every if found is not None), {})
        if any(last.get(key) != value for key, value in {**cfg.kwargs, "name": cfg.name}.items()):
            return networks.arguments(cfg, last.get("width", 1.0), images)
    branches = isinstance(op, Deeper) and op.new == "zero"
    if theirs is None or theirs["name"] not in models.OURS or branches:
        return None
    return {**theirs, "extra_pairs": theirs.get("extra_pairs", 0) + op.pairs}


def table(teacher: nn.Module, student: nn.Module) -> list[str]:
    """What grew, weight by weight, and the totals."""
    before = {name: list(value.shape) for name, value in teacher.named_parameters() if value.ndim > 1}
    after = {name: list(value.shape) for name, value in student.named_parameters() if value.ndim > 1}
    changed = [(name, str(before.get(name, "new")), str(shape)) for name, shape in after.items()]
    changed = [row for row in changed if row[1] != row[2]]
    shown = changed[:ROWS]
    wide = [max((len(row[column]) for row in shown), default=0) for column in (0, 1)]
    rows = [f"  {name:<{wide[0]}}  {old:>{wide[1]}} -> {new}" for name, old, new in shown]
    if len(changed) > ROWS:
        rows.append(f"  ... and {len(changed) - ROWS} more of {len(after)} weights (n2n inspect shows all)")
    old, new = describe.count_parameters(teacher), describe.count_parameters(student)
    return [*rows, f"  parameters: {old:,} -> {new:,}"]
