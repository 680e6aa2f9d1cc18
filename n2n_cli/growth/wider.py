"""Net2WiderNet on any module (paper, section 2.3).

A layer of ``n`` units becomes one of ``n' > n``. A random remapping ``g`` says which unit of the teacher each unit of
the student copies: ``g(j) = j`` for the first ``n``, and a draw from ``1 ... n`` for the others (ties and channel
shuffles draw their own remappings, see ``groups/relations``). What the layer makes is copied, and whoever reads it
divides by the replication factor ``r(c) = |{j : g(j) = c}|``:

    U[o, j] = W[g_out(o), g_in(j)] / r_in(g_in(j))

so that each sum over units is what it was: ``sum_j U[o, j] h[g(j)] = sum_c W[o, c] h[c]``. Copies that nothing tells
apart would get equal gradients for ever; ``noise`` on all but the first copy parts them.

In a network one remapping reaches through norms, activations, concatenations and residual sums. Which axes share one is
inferred from a recorded forward pass, so `widen` walks through the first five rooms of this package: trace, group,
size, build, prove.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from n2n_cli.growth.build.gradmax import Loss, loss_of, turn_to_large_gradients
from n2n_cli.growth.build.starts import COPIES, Start, start_of
from n2n_cli.growth.build.students import Candidate, build, reshape
from n2n_cli.growth.errors import GrowthError, enough_memory
from n2n_cli.growth.groups.infer import trace
from n2n_cli.growth.groups.operations import OPERATIONS
from n2n_cli.growth.groups.structure import Attributes, Remappings, Sizes
from n2n_cli.growth.proof.gap import Gap, measured_gap
from n2n_cli.growth.proof.mend import build_until_proved
from n2n_cli.growth.proof.prove import WEAK, Counterexample, prove_candidate
from n2n_cli.growth.proof.settings import with_settings
from n2n_cli.growth.proof.started import start_until_proved
from n2n_cli.growth.report import (
    Growth,
    copied_units,
    copies_that_never_part,
    group_infos,
    held_units,
    nothing_grew,
    proved_in,
    recipe_of,
    undescribed,
    warnings_of,
)
from n2n_cli.growth.sizes.draw import draw
from n2n_cli.growth.sizes.layers import plain_number
from n2n_cli.growth.sizes.solve import Plan, group_and_size
from n2n_cli.growth.trace.examples import check_model, prepared
from n2n_cli.growth.trace.record import Recording, record_all

MOST_RECORDINGS = 12  # of the example, and of inputs on which students were wrong


def widen(
    model: nn.Module,
    example_input: Any,
    plan: Plan,
    *,
    seed: int = 0,
    new: str = "copy",
    split: str = "equal",
    noise: float = 0.0,
    calibration: Any = None,
) -> Growth:
    """Net2WiderNet: a wider student that computes the teacher's function.

    Args:
        model: the teacher; it is not modified and shares no storage with the student.
        example_input: images ``[N, C, H, W]`` (or a tuple or dict of arguments) that the teacher takes; a list is
            several such examples, each of which is recorded and proved.
        plan: a factor (``1.5``), ``{layer pattern: factor or width}``, or a student built by its own constructor.
        seed: of the random remappings, the noise and whatever else is drawn.
        new: how new units start (`build.starts`): "copy" (the paper's), "fresh", "paired" or "gradmax". Groups that
            cannot take the way get copies with unequal shares; ``notes`` name them.
        split: of copies: "equal" shares (the paper's) or "unequal" ones.
        noise: of copies: standard deviation of the noise on all but the first of each unit, relative to that of the
            weight.
        calibration: for "gradmax": batches ``(inputs, labels)``, or a function from a network to its loss.

    Returns:
        Growth: ``.student`` is of the teacher's class (or is the given student's), with its ``state_dict`` names.

    Raises:
        GrowthError: the plan cannot be met, or the proof failed; nothing was changed.

    >>> net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    >>> widen(net, torch.randn(2, 3), 1.5).student
    Sequential(
      (0): Linear(in_features=3, out_features=6, bias=True)
      (1): ReLU()
      (2): Linear(in_features=6, out_features=2, bias=True)
    )
    """
    if isinstance(noise, bool) or not isinstance(noise, int | float) or not 0 <= noise < float("inf"):
        raise GrowthError(f"noise is {noise!r}: expected a finite number of at least 0")
    start = start_of(new, split, noise, seed)
    loss = loss_of(calibration) if new == "gradmax" else None
    grown, proof = proved_student(model, example_input, plan, seed=seed, noise=noise, start=start, loss=loss)
    structure, remappings, student = grown.structure, grown.remappings, grown.student
    gap, notes = proof, [*proved_in(proof), *held_units(structure), *copied_units(grown, start), *undescribed(grown)]
    if noise:
        gap = measured_gap(model, student, structure.examples(), f"with noise; proved without: {proof.worst:.1e}")
    if proof.floor > WEAK:
        notes.append(
            f"a weak proof: on this batch the teacher itself moves by {proof.floor:.0e} if an input changes by "
            "rounding (batch norm over few values?); more or larger images make it sharp"
        )
    return Growth(
        student,
        gap,
        recipe_of("wider", model, student, plan, seed, grown.attributes) | {"new": new, "split": split, "noise": noise},
        notes,
        group_infos(structure, grown.sizes, grown.copied),
        grown.maps,
        structure.consumed,
        exact_optimizer=grown.exact_optimizer,
        warnings=[
            *warnings_of(model, student, structure, plan),
            *(
                []
                if noise
                else copies_that_never_part(structure, [g for g, r in remappings.items() if r.share is None])
            ),
        ],
    )


@enough_memory()
def proved_student(
    model: nn.Module,
    example_input: Any,
    plan: Plan,
    *,
    seed: int,
    noise: float = 0.0,
    start: Start = COPIES,
    loss: Loss | None = None,
) -> tuple[Candidate, Gap]:
    """The wider student of a plan, and the proof of what it is without noise.

    What makes a student fail is held back, by name, if the plan is a factor.

    Raises:
        GrowthError: the plan cannot be met, or a student that was asked for by name or layer is not exact.
    """
    check_model(model, seed)
    plan = plain_number(plan)
    recordings = trace(model, example_input)
    while True:
        try:
            return _proved_on(model, recordings, plan, seed, noise, start, loss)
        except Counterexample as wrong:  # what the network does there must be known as well
            if len(recordings) > MOST_RECORDINGS:
                raise
            recordings = [*recordings, *record_all(model, prepared(model, wrong.batch), OPERATIONS)]


def _proved_on(
    model: nn.Module, recordings: list[Recording], plan: Plan, seed: int, noise: float, start: Start, loss: Loss | None
) -> tuple[Candidate, Gap]:
    given = plan if isinstance(plan, nn.Module) else None
    gaps: list[Gap] = []
    structure, solution = group_and_size(model, recordings, plan)

    def student(sizes: Sizes, attributes: Attributes | None) -> Candidate:
        remappings = draw(structure, sizes, seed)
        return build(model, structure, remappings, attributes, given=given, noise=noise, seed=seed)

    def prove(candidate: Candidate) -> None:
        gaps.append(prove_candidate(model, candidate, structure.examples(), as_built=noise == 0))

    grown = build_until_proved(model, structure, solution, plan, student, prove)
    if not grown.remappings and plan != 1 and given is None:
        raise nothing_grew(model, structure)
    if not start.plain:

        def with_remappings(remappings: Remappings) -> Candidate:
            made = build(model, structure, remappings, grown.attributes, given=given, noise=noise, seed=seed)
            if loss is not None:
                turn_to_large_gradients(made, loss)
            return made

        grown = start_until_proved(model, grown, start, with_remappings, prove)
    return with_settings(model, grown, prove), gaps[-1]


def rebuild(model: nn.Module, recipe: Mapping[str, Any]) -> nn.Module:
    """The architecture that a wider recipe made from ``model``; its weights are zeros, to be loaded.

    Args:
        model: the network before the step; it is not modified.
        recipe: a ``Growth``'s, of `widen`, `random_pad` or `random_init`.

    >>> net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    >>> rebuild(net, widen(net, torch.randn(2, 3), 1.5).recipe)[0]
    Linear(in_features=3, out_features=6, bias=True)
    """
    return reshape(model, recipe["shapes"], recipe["attributes"])
