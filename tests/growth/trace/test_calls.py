"""Calling models: inputs and outputs of any form, the mode, and the module that is running."""

import random
from collections import deque
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from n2n_cli.growth.errors import first_line
from n2n_cli.growth.trace.calls import (
    call,
    in_mode,
    leaves,
    module_path,
    same_chance,
)


def test_a_tuple_is_several_arguments_and_a_dict_keyword_arguments():
    def model(a, b=0):
        return a - b

    assert call(model, 5) == 5
    assert call(model, (5, 2)) == call(model, {"b": 2, "a": 5}) == 3


@dataclass
class Result:
    logits: torch.Tensor
    aux: dict


def test_leaves_are_found_in_results_of_every_form_in_order():
    a, b, c, d = (torch.full((1,), float(n)) for n in range(4))
    result = Result(a, {"x": [b, (c,)], "y": SimpleNamespace(z=d, name="text", number=3)})
    assert [float(t) for t in leaves(result)] == [0, 1, 2, 3]
    assert leaves([None, "text", 1.5, nn.Linear(2, 2)]) == [], "a module is no result"


def test_leaves_of_a_result_that_holds_itself():
    result = {"a": torch.zeros(1)}
    result["self"] = result
    assert len(leaves(result)) == 1


@dataclass(slots=True)
class Slotted:
    logits: torch.Tensor
    rest: deque


def test_leaves_are_found_behind_slots_in_queues_and_in_arrays():
    result = Slotted(torch.zeros(1), deque([torch.ones(1), np.full((1,), 2.0)]))
    assert [float(t) for t in leaves(result)] == [0, 1, 2]


def test_whatever_draws_draws_alike_and_goes_on_afterwards_as_if_nothing_had_been():
    def draws():
        return random.random(), float(np.random.rand()), float(torch.rand(()))

    for generator in (random.seed, np.random.seed, torch.manual_seed):
        generator(7)
    undisturbed = draws()
    for generator in (random.seed, np.random.seed, torch.manual_seed):
        generator(7)
    with same_chance():
        first = draws()
    with same_chance(1):
        other = draws()
    with same_chance():
        assert draws() == first
    assert all(a != b for a, b in zip(first, other, strict=True)), "each is seeded"
    assert draws() == undisturbed


def test_modules_are_back_in_their_own_mode_also_after_an_error():
    model = nn.Sequential(nn.Dropout(), nn.Sequential(nn.Dropout(), nn.ReLU()))
    model[1][0].eval()
    before, fast = [m.training for m in model.modules()], torch.backends.mha.get_fastpath_enabled()
    with pytest.raises(KeyError), in_mode(model, False):
        assert not any(m.training for m in model.modules()) and not torch.backends.mha.get_fastpath_enabled()
        raise KeyError
    assert [m.training for m in model.modules()] == before and torch.backends.mha.get_fastpath_enabled() == fast


class Tells(nn.Module):
    """Writes down which module is running, before and behind a module inside it."""

    def __init__(self, inner, told):
        super().__init__()
        self.inner, self.told, self.where = inner, told, None

    def forward(self, x):
        self.told.append(self.where())
        x = self.inner(x)
        self.told.append(self.where())
        return x


def test_the_innermost_module_that_runs_is_named():
    told = []
    model = nn.Sequential(nn.ReLU(), Tells(Tells(nn.ReLU(), told), told))
    with module_path(model) as where:
        model[1].where = model[1].inner.where = where
        model(torch.zeros(2))
        assert where() == ""
    assert told == ["1", "1.inner", "1.inner", "1"]


def test_the_module_that_raised_is_named_on_the_way_out():
    model = nn.Sequential(nn.ReLU(), nn.Sequential(nn.Linear(3, 2)))
    with module_path(model) as where:
        with pytest.raises(RuntimeError):
            model(torch.zeros(2, 5))
        assert where() == "1.0"


def test_an_error_in_one_line():
    assert first_line(ValueError("first\nsecond")) == "first" and first_line(KeyError()) == "KeyError"
