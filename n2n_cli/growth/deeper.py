"""Net2DeeperNet on any module (paper, section 2.4).

A layer of weights and its activation, ``f(W v)``, become two: ``f(I f(W v))``. The new layer starts as the identity,

    linear       I[o, i] = 1 if o = i, else 0
    convolution  I[o, i, the kernel's centre] = 1 if o = i, else 0

and bias 0. The activation is repeated, so it must be one with ``f(f(v)) = f(v)``, as ReLU is.

Where a batch norm follows ``W``, one follows ``I``. It maps ``v`` to ``weight * (v - mean) / sqrt(var + eps) + bias``,
and ``weight = sqrt(var + eps)``, ``bias = mean`` undo it. Mean and variance are those of what enters it, over the
calibration batches in train mode. They become its running statistics as well: eval mode is exact on any batch, train
mode on a batch that has these statistics.

Two other published ways to start new layers (`WAYS`) share sites, lineage and comparison with it:

========  ==================================================  =====  ==================================
way       a new layer or block                                exact  source
========  ==================================================  =====  ==================================
identity  copies what enters it; a constructor's residual     yes    Net2Net
          block is closed, as under zero
zero      is a residual branch ``v + B(v)`` whose last        yes    R2R's R2DeeperR
          factor is zero
stack     is a copy of the like one beside it                 no     progressive stacking (2019)
========  ==================================================  =====  ==================================

A new layer may be wider than the one below it: it is an identity first, and its units are then copied (section 2.4).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from n2n_cli.errors import suggest
from n2n_cli.growth.depth.branch import close
from n2n_cli.growth.depth.constructors import (
    Change,
    check_reached,
    explained,
    same_survival_rates,
    to_stacked,
    to_student,
)
from n2n_cli.growth.depth.identity import BatchNorm, identify
from n2n_cli.growth.depth.insert import Insertion, insert, insertions, moved, sources
from n2n_cli.growth.depth.stack import stack_insertions
from n2n_cli.growth.depth.width import free_layers
from n2n_cli.growth.errors import GrowthError, OutOfMemory, enough_memory
from n2n_cli.growth.groups.operations import OPERATIONS
from n2n_cli.growth.proof.gap import Gap, function_gap, measured_gap, runs, runs_as_it_is, worst
from n2n_cli.growth.proof.prove import Unprovable, check_in_its_own_precision, prove
from n2n_cli.growth.report import GroupInfo, Growth, proved_in
from n2n_cli.growth.trace.copies import in_double
from n2n_cli.growth.trace.examples import check_model, examples_of
from n2n_cli.growth.trace.record import record_all
from n2n_cli.growth.wider import rebuild as wider_rebuild
from n2n_cli.growth.wider import widen

WAYS = ("identity", "zero", "stack")


def deepen(
    model: nn.Module,
    example_input: Any,
    sites: Sequence[str] | nn.Module | None = None,
    *,
    pairs: int = 1,
    calibration: Iterable[Any] | None = None,
    activation: bool = True,
    new: str = "identity",
    width: float | None = None,
    seed: int = 0,
) -> Growth:
    """Net2DeeperNet: a deeper student that computes the teacher's function (``new="stack"``: one that does not).

    Args:
        model: the teacher; it is not modified and shares no storage with the student.
        example_input: images ``[N, C, H, W]`` (or a tuple or dict of arguments) that the teacher takes; a list is
            several such examples, each of which is recorded and proved.
        sites: patterns of layer names, behind whose activation identity layers are put; or a deeper student built by
            its own constructor, that holds the teacher's layers in their order: its new residual blocks get a last
            norm, scale or projection of zero, its other new layers become the identity; None: behind every
            vertical-horizontal pair, or, in a network that has none, behind every layer that allows it (where
            depthwise layers alone read a layer's channels, behind the depthwise ones).
        pairs: vertical-horizontal pairs at each site, where a pair stands; elsewhere single identity layers.
        calibration: batches of training data for the statistics that batch norm undoes; None: the example alone.
            Exact on any batch in eval mode; in train mode exact on a single calibration batch, and as close as batch
            statistics are to the mean over several.
        activation: False: new layers are linear, without the activation that is repeated else. These are exact behind
            any layer (before SiLU or GELU, at the end of a residual branch), and can be multiplied into it again.
        new: how new layers start, one of `WAYS`.
        width: of new identity layers: a factor (``1.5``) or a number of units (``96``) of at least those below them.
            Copies get unequal shares, so that they part.
        seed: of the copies that ``width`` asks for, and of what stands in a closed branch.

    Returns:
        Growth: ``.gap`` is the proof in fp64, in both modes, with statistics of the proof's own batch; ``.renamed``
        the teacher's tensors that have another name in the student.

    Raises:
        GrowthError: an activation is not idempotent or a block cannot start as nothing (it is named), no layer
            matches, or the proof failed.

    >>> net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten())
    >>> [name for name, _ in deepen(net, torch.randn(4, 3, 8, 8)).student.named_parameters()][4:]
    ['1.2.weight', '1.3.weight', '1.3.bias']
    """
    check_model(model)
    check_way(new, width, activation)
    if isinstance(pairs, bool) or not isinstance(pairs, int) or pairs < 1:
        raise GrowthError(f"pairs is {pairs!r}: expected a whole number of at least 1")
    _check_sites(sites)
    examples = examples_of(model, example_input)
    batches = _calibration(calibration, examples[0])
    recordings = [record_all(model, example, OPERATIONS, samples=8)[0] for example in examples]
    proof = [recording.example for recording in recordings]

    if new == "stack":
        return _stacked(model, sites, examples, proof, pairs)
    if isinstance(sites, nn.Module):
        check_model(sites)
        if width is not None:
            raise GrowthError("width: the given student says how wide its new layers are")
        student, change = to_student(model, sites, examples[0])
        if new == "zero" and change.layers:
            raise GrowthError(f"new=zero: the new layer '{change.layers[0]}' stands in no residual branch")
        recipe: dict[str, Any] = {"op": "deeper", "new": [*change.layers, *change.zeros]}
    else:
        places = insertions(model, examples[0], sites, pairs, linear=not activation, branches=new == "zero")
        student, change = _with_new_layers(model, places, seed)
        recipe = {"op": "deeper", "insert": places, **({"seed": seed} if new == "zero" else {})}

    runs_as_it_is(student, proof[0])
    check_reached(student, change.blocks, proof[0])
    gap = _proved(model, student, change, proof)
    never_vary = identify(student, change.layers, change.sources, batches)
    _check_in_its_own_precision(model, student, proof[0], gap)

    linear = [] if activation else ["the new layers are linear: no activation stands between them and the old ones"]
    notes = [*proved_in(gap), *linear, *_notes(model, student, change, batches, never_vary)]
    groups = [GroupInfo([name], 0, 1, None, None) for name in [*change.layers, *change.blocks]]
    grown = Growth(student, gap, recipe, notes, groups, renamed=change.renamed)
    return grown if width is None else _widened(grown, example_input, change.layers, width, seed)


def check_way(new: Any, width: Any = None, activation: bool = True) -> None:
    """Raises GrowthError for a way to start that is unknown (the nearest is named), or that takes no such option."""
    if not isinstance(new, str) or new not in WAYS:
        raise GrowthError(f"new is {new!r}: expected one of {', '.join(WAYS)}{suggest(str(new), WAYS)}")
    if width is not None and (isinstance(width, bool) or not isinstance(width, int | float) or not 1 <= width < 1e6):
        raise GrowthError(f"width is {width!r}: expected a factor or a number of units, 1 or more")
    for key, given in (("width", width is not None), ("activation=false", not activation)):
        if given and new != "identity":
            raise GrowthError(f"{key} is for identity layers, and new={new} makes none")


@enough_memory()
def _with_new_layers(model: nn.Module, places: Sequence[Insertion], seed: int) -> tuple[nn.Module, Change]:
    """The teacher with new layers in between, whose weights are still random, and their names; branches are closed."""
    with torch.random.fork_rng(devices=[]):  # the user's random state stays
        torch.manual_seed(seed)
        student, new = insert(model, places)
    renamed = moved(model, places)
    if not any(place.get("branch") for place in places):
        return student, Change(new, sources(student, places), renamed=renamed)
    branches = dict.fromkeys(layer.rpartition(".")[0] for layer in new)
    zeros = [zero for name in branches for zero in close(student, name)]
    return student, Change([], zeros=zeros, blocks=list(branches), renamed=renamed)


def _stacked(model: nn.Module, sites: Any, examples: list[Any], proof: list[Any], pairs: int) -> Growth:
    """The deeper student whose new layers and blocks are copies; there is nothing to prove."""
    if isinstance(sites, nn.Module):
        check_model(sites)
        student, change, copied = to_stacked(model, sites)
        recipe: dict[str, Any] = {"op": "deeper", "new": change.blocks}
    else:
        places = insertions(model, examples[0], sites, pairs)
        student, change = _with_new_layers(model, places, 0)
        copied = stack_insertions(model, student, places)
        recipe = {"op": "deeper", "insert": places}
    runs_as_it_is(student, proof[0])
    check_reached(student, copied, proof[0])
    gap = measured_gap(model, student, proof, "stacked, not exact")
    first, source = next(iter(copied.items()))
    more = f" and {len(copied) - 1} more" if len(copied) > 1 else ""
    notes = [f"stacked: the student is another function than its teacher; '{first}' is a copy of '{source}'{more}"]
    groups = [GroupInfo([name], 0, 1, None, None) for name in copied]
    return Growth(student, gap, recipe, notes, groups, renamed=change.renamed, exact_optimizer=False)


def _widened(deeper: Growth, example: Any, layers: Sequence[str], width: float, seed: int) -> Growth:
    """The deeper student with its new layers wider; both steps as one.

    Raises:
        GrowthError: ``width`` is fewer units than a layer has, or no new layer can be wider by itself.
    """
    plan, held = free_layers(deeper.student, example, layers, width)
    if not plan and held:
        raise GrowthError(f"width: no new layer can be wider by itself: {held}")
    if not plan:  # as wide as the layers below
        return deeper
    wider = widen(deeper.student, example, plan, seed=seed, split="unequal")
    back = {new: old for old, new in deeper.renamed.items()}
    return Growth(
        wider.student,
        worst([deeper.gap, wider.gap]),
        {**deeper.recipe, "wider": wider.recipe, "seed": seed},
        [*deeper.notes, *([f"width: {held}"] if held else []), *wider.notes],
        [*deeper.groups, *(group for group in wider.groups if group.grown > group.units)],
        {back.get(name, name): maps for name, maps in wider.maps.items()},
        {(back.get(name, name), dim) for name, dim in wider.consumed},
        renamed=deeper.renamed,
        exact_optimizer=wider.exact_optimizer,
        warnings=wider.warnings,
    )


def _check_sites(sites: Any) -> None:
    """What ``sites`` may be.

    Raises:
        GrowthError: it is something else.
    """
    if sites is None or isinstance(sites, str | nn.Module):
        return
    if not isinstance(sites, list | tuple) or not sites or not all(isinstance(site, str) for site in sites):
        raise GrowthError(
            f"sites is {sites!r}: expected patterns of layer names, for example ['layer1.*'], or a network"
        )


def _calibration(batches: Iterable[Any] | None, example: Any) -> list[Any]:
    if batches is None:
        return [example]
    if isinstance(batches, Tensor | Mapping) or not isinstance(batches, Iterable):
        raise GrowthError(f"calibration is of type {type(batches).__name__}: expected a list of batches")
    found = list(batches)
    if not found:
        raise GrowthError("calibration holds no batch")
    return found


@enough_memory()
def _proved(model: nn.Module, student: nn.Module, change: Change, batches: list[Any]) -> Gap:
    """The proof in fp64 and in both modes, on copies; new batch norms undo the statistics of each very batch.

    Raises:
        GrowthError: the function changed; names the new layer or block where it did, if it can be told.
    """
    teacher, student = in_double(model), in_double(student)
    if not runs(teacher, batches[0]):  # in fp64
        teacher, student = model, student.to(next(model.parameters()).dtype)
    same_survival_rates(teacher, student)
    gaps = []
    for batch in batches:
        identify(student, change.layers, change.sources, [batch])
        try:
            gaps.append(prove(teacher, student, batch))
        except (Unprovable, OutOfMemory):
            raise
        except GrowthError as error:
            raise GrowthError(explained(str(error), student, change, batch)) from error
    return worst(gaps)


def _check_in_its_own_precision(model: nn.Module, student: nn.Module, batch: Any, gap: Gap) -> None:
    """In eval mode a student is exact whichever batches its batch norms were calibrated on."""
    half = any(p.dtype in (torch.float16, torch.bfloat16) for p in model.parameters())
    check_in_its_own_precision(model, student, batch, max(1e-2 if half else 1e-3, 1000 * gap.eval))


def _notes(model: nn.Module, student: nn.Module, change: Change, batches: list[Any], never_vary: int) -> list[str]:
    """What a user should know of the student: how exact it is in train mode, what is zero, which channels are dead."""
    notes = []
    if any(isinstance(student.get_submodule(name), BatchNorm) for name in change.layers):
        drift = function_gap(model, student, batches[0], training=True)
        many = f"{len(batches)} calibration batch{'es' if len(batches) > 1 else ''}"
        notes.append(
            f"new batch norms undo the mean statistics of {many}: exact in eval mode; in train mode the first batch "
            f"alone is {drift:.1e} off"
        )
    if change.zeros:
        named = f"{', '.join(change.zeros[:2])}{' ...' if len(change.zeros) > 2 else ''}"
        notes.append(f"{len(change.blocks)} new blocks add nothing at first; zero are {named}")
    if never_vary:
        notes.append(f"{never_vary} channels never vary on the calibration data (their scale is sqrt(eps))")
    return notes


def rebuild(model: nn.Module, recipe: Mapping[str, Any]) -> nn.Module:
    """The architecture that a deeper recipe made from ``model``.

    Args:
        model: the network before the step; it is not modified.
        recipe: a ``Growth``'s, of `deepen` with sites that were found or named.

    Returns:
        nn.Module: with the names and shapes of the student's tensors; the weights of its new layers are random, and
        are to be loaded.

    Raises:
        GrowthError: the step went to another constructor's network, which its recipe does not hold.

    >>> net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    >>> rebuild(net, deepen(net, torch.randn(8, 3)).recipe)[0]
    Sequential(
      (0): Linear(in_features=3, out_features=4, bias=True)
      (1): ReLU()
      (2): Linear(in_features=4, out_features=4, bias=True)
    )
    """
    if "insert" not in recipe:
        raise GrowthError(
            "this step went to a network from another constructor, which its recipe does not hold: build that one"
        )
    student = insert(model, recipe["insert"])[0]
    return wider_rebuild(student, recipe["wider"]) if "wider" in recipe else student
