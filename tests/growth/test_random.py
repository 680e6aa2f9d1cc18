"""Random networks of every block and writing in ``random_nets``: exact or refused in one line, never silently wrong."""

import math
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, currently_in_test_context, given, note, seed, settings
from hypothesis import strategies as st
from nets import allowed, measured, plain_gap, same_state, state_of, storages
from random_nets import Spec, every_writing, specs
from torch import nn

from n2n_cli import growth
from n2n_cli.growth import GrowthError

FACTORS = (1.25, 1.5, 2.0, 3.0)
QUIET: dict[str, Any] = {"deadline": None, "suppress_health_check": list(HealthCheck), "database": None}
QUIET["phases"] = (Phase.generate,)  # a Spec prints whole and is small: shrinking would take minutes


def size(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


class Tally:
    """What became of the networks: how many grew by more than 5 %, stayed as they were, were refused."""

    def __init__(self) -> None:
        self.grew = self.stayed = 0
        self.refused: list[str] = []

    @property
    def total(self) -> int:
        return self.grew + self.stayed + len(self.refused)

    def __str__(self) -> str:
        return f"{self.grew} grew, {self.stayed} stayed, refused: {self.refused}"

    def holds(self, grew: float, refused: float) -> bool:
        return self.grew >= grew * self.total and len(self.refused) <= refused * self.total


def check(spec: Spec, factor: float, tally: Tally, key: int = 0) -> None:
    """The property, for one network."""
    if currently_in_test_context():
        note(f"writings: {spec.writings}")
    teacher = spec.build()
    example, other = spec.example(0), spec.example(1)
    before = state_of(teacher)
    try:
        student = growth.widen(teacher, example, factor, seed=key).student
    except GrowthError as error:
        assert "\n" not in str(error) and str(error)
        if "can grow: " in str(error):
            tally.stayed += 1
        else:
            tally.refused.append(f"{spec.writings}: {error}")
        assert same_state(state_of(teacher), before)
        return
    assert same_state(state_of(teacher), before), "the teacher changed"
    assert list(student.state_dict()) == list(before)
    assert not storages(teacher) & storages(student)
    others = [] if spec.branches else [other]
    gap = measured(teacher, student, example, *others)
    assert gap <= 1e-10 or gap <= allowed(teacher, example, *others)
    assert size(student) >= size(teacher)
    if size(student) > 1.05 * size(teacher):
        tally.grew += 1
    else:
        tally.stayed += 1


def run(examples: int, key: int | None) -> Tally:
    tally = Tally()

    @settings(max_examples=examples, derandomize=key is None, **QUIET)
    @given(specs(), st.sampled_from(FACTORS), st.integers(0, 99))
    def every(spec: Spec, factor: float, draw: int) -> None:
        check(spec, factor, tally, draw)

    (every if key is None else seed(key)(every))()
    print(tally)
    return tally


def test_random_networks():
    tally = run(50, None)
    assert tally.total >= 50 and tally.holds(grew=0.4, refused=0.1), str(tally)


@pytest.mark.slow
@pytest.mark.parametrize("key", range(4))
def test_a_thousand_random_networks(key):
    tally = run(250, key)
    assert tally.total >= 250 and tally.holds(grew=0.5, refused=0.1), str(tally)


@pytest.mark.slow
@pytest.mark.parametrize("factor", [1.5, 2.0])
def test_every_writing(factor):
    """One network for every block in every writing: none is refused."""
    tally = Tally()
    for spec in every_writing():
        check(spec, factor, tally)
    print(tally)
    assert tally.holds(grew=0.95, refused=0.02), str(tally)


@pytest.mark.parametrize("kind", ["image", "token"])
def test_the_measure_catches_a_sabotaged_student(kind):
    """One consuming column not divided by its copies, one running mean off by a little: both far above the limit."""
    block = ("ConvNormAct", 7) if kind == "image" else ("Project", 3)
    spec = Spec(kind, (block, block), seed=4)
    teacher, example = spec.build(), spec.example()
    grown = growth.widen(teacher, example, 2.0)
    limit = allowed(teacher, example)
    assert measured(teacher, grown.student, example) <= limit
    assert limit < 1e-9
    name, axis = next(
        (name, axis)
        for name, axis in sorted(grown.consumed)
        if name.startswith("fc") and grown.maps[name][axis] is not None
    )
    weight = dict(grown.student.named_parameters())[name]
    with torch.no_grad():
        weight.select(axis, 0).mul_(2)
    assert measured(teacher, grown.student, example) > 1000 * limit
    with torch.no_grad():
        weight.select(axis, 0).div_(2)
    assert measured(teacher, grown.student, example) <= limit
    buffer = next((b for n, b in grown.student.named_buffers() if n.endswith("running_mean") and "blocks" in n), None)
    if buffer is not None:
        buffer[0] += 1e-6
        assert measured(teacher, grown.student, example) > limit


def test_the_measure_catches_what_it_cannot_see():
    """Another shape, no output at all, or not a number: an infinite gap, not a small one."""
    spec = Spec("image", (("ConvNormAct", 1),), output="dataclass")
    teacher, example = spec.build(), spec.example()
    wider, silent, broken = spec.build(), spec.build(), spec.build()
    wider.fc = nn.Linear(wider.fc.in_features, 5).double()
    silent.forward = lambda x: None
    broken.fc.weight.data.fill_(float("nan"))
    assert [plain_gap(teacher, student, example) for student in (wider, silent, broken)] == [math.inf] * 3


def test_networks_are_drawn_alike():
    spec = Spec("token", (("SelfAttention", 3), ("MLP", 5)), head="mlp", seed=11)
    torch.manual_seed(99)
    one, two = spec.build(), spec.build()
    assert same_state(state_of(one), state_of(two)) and torch.equal(spec.example(), spec.example())
