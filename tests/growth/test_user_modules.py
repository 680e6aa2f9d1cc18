"""Growth on modules as researchers write them: exact, or partly fixed with the reason, or refused in one line."""

import pytest
import torch
from nets import allowed, call, leaves, measured, perturb, same_state, state_of, storages
from torch import Tensor, nn
from user_modules import CASES

from n2n_cli import growth
from n2n_cli.growth import GrowthError
from n2n_cli.growth.trace.copies import plain_tensors


def width(model: nn.Module, place: str) -> int:
    """Axis 0 of a layer's weight (or of a bare parameter); "name@1" is axis 1."""
    name, _, axis = place.partition("@")
    found = dict(model.named_parameters(remove_duplicate=False))
    parameter = found.get(f"{name}.weight", found.get(name))
    assert parameter is not None, f"no layer {name}"
    return parameter.shape[int(axis or 0)]


def trains(model: nn.Module, example: object) -> None:
    results = leaves(call(model.train(), example))
    loss = sum((t.sum() for t in results if t.is_floating_point()), torch.zeros(()))
    assert isinstance(loss, Tensor)
    loss.backward()
    model.zero_grad()


@pytest.mark.parametrize(("name", "factor"), [(name, f) for name, case in CASES.items() for f in case.factors])
def test_module(name, factor):
    case = CASES[name]
    torch.manual_seed(0)
    teacher = perturb(case.build()).double()
    example, others = case.example(0), [case.example(seed) for seed in (6, 7)]
    before, modes = state_of(teacher), [module.training for module in teacher.modules()]
    if case.refused is not None:
        with pytest.raises(GrowthError, match=case.refused) as caught:
            growth.widen(teacher, example, factor, seed=1)
        assert "\n" not in str(caught.value)
        assert same_state(state_of(teacher), before)
        return

    grown = growth.widen(teacher, example, factor, seed=1)
    student = grown.student

    assert same_state(state_of(teacher), before)
    assert [module.training for module in teacher.modules()] == modes
    names, plain = list(student.state_dict()), {name for name, _ in plain_tensors(teacher)}
    assert [name for name in names if name not in plain] == list(before) and type(student) is type(teacher)
    assert not storages(teacher) & storages(student)
    if not any("branch" in note for note in grown.notes):
        assert measured(teacher, student, example, *others) <= allowed(teacher, example, *others)
    for place in case.grows:
        assert width(student, place) > width(teacher, place), f"{place} stays: {grown.notes}"
    for place, words in case.fixed.items():
        assert width(student, place) == width(teacher, place), f"{place} grew"
        layer = place.partition("@")[0]
        assert any(words in note and (layer in note or "..." in note) for note in grown.notes), grown.notes
    trains(teacher, example)
    trains(student, example)


def test_the_collection_is_broad():
    assert len(CASES) > 80
    assert sum(case.refused is None for case in CASES.values()) > 75
