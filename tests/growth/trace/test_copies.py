"""Copies of a model: what cannot be copied is refused, and what modules remember comes along."""

import copy
import threading

import pytest
import torch
from nets import storages
from torch import nn

from n2n_cli import growth
from n2n_cli.growth import GrowthError
from n2n_cli.growth.trace.copies import deep_copy, in_double, named_buffers, slots, twin


class Uncopyable(nn.Module):
    """It holds a lock, and an open file would be the same."""

    def __init__(self):
        super().__init__()
        self.layer, self.out = nn.Linear(4, 6), nn.Linear(6, 3)
        self.lock = threading.Lock()

    def forward(self, x):
        return self.out(torch.relu(self.layer(x)))


def test_a_model_that_cannot_be_copied_is_refused_in_one_line():
    for grow in (lambda m, x: growth.widen(m, x, 2.0), growth.deepen):
        with pytest.raises(GrowthError, match="Uncopyable cannot be copied") as caught:
            grow(Uncopyable(), torch.randn(5, 4))
        assert "\n" not in str(caught.value)


class Remembers(nn.Module):
    """An activation kept for later, a mark on a parameter, and a weight that a hook computes anew."""

    def __init__(self):
        super().__init__()
        self.stem, self.mid = nn.Linear(10, 8), nn.Linear(8, 9)
        self.head = nn.Linear(9, 3)
        self.mid.weight._no_weight_decay = True
        nn.utils.weight_norm(self.stem)

    def forward(self, x):
        self.seen = torch.relu(self.stem(x))
        return self.head(torch.relu(self.mid(self.seen)))


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_what_modules_remember_is_copied():
    torch.manual_seed(0)
    model, x = Remembers().double(), torch.randn(2, 10).double()
    model(x)
    grown = growth.widen(model, x, 1.5)
    assert grown.student.mid.out_features == 14 and grown.student.mid.weight._no_weight_decay
    assert grown.student.stem.out_features == grown.student.stem.weight_v.shape[0] == 12
    assert growth.function_gap(model, grown.student, x) < 1e-12


class Shares(nn.Module):
    """A module under two names, a tied weight, a buffer, a frozen parameter."""

    def __init__(self):
        super().__init__()
        self.a = nn.Linear(3, 3)
        self.again = self.a
        self.b = nn.Linear(3, 3, bias=False)
        self.b.weight = self.a.weight
        self.register_buffer("count", torch.zeros(2))
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        self.cache = x
        self.count += 1
        return self.b(self.again(self.a(x)))


def test_slots_are_places_and_a_shared_module_is_one():
    model = Shares()
    assert [name for name, _ in slots(model)] == ["count", "a.weight", "a.bias", "b.weight"]
    assert [name for name, _ in named_buffers(model)] == ["count"]


def test_a_twin_holds_what_it_was_given_tied_as_the_model_is():
    model, made = Shares().double(), []

    def double(name, tensor):
        made.append(name)
        return 2 * tensor.detach()

    other, state = twin(model, double)
    assert made == ["count", "a.weight", "a.bias"], "a tied tensor is made once"
    assert other.b.weight is other.a.weight is state["b.weight"] and other.again is other.a
    assert isinstance(other.a.weight, nn.Parameter) and not other.a.weight.requires_grad
    assert torch.equal(other.a.weight, 2 * model.a.weight) and torch.equal(other.a.bias, 2 * model.a.bias)


def test_what_a_twins_forward_leaves_behind_the_model_never_sees():
    model = Shares()
    other, _ = twin(model, lambda _, tensor: tensor.detach().clone())
    other(torch.zeros(2, 3))
    assert (other.calls, model.calls) == (1, 0) and not hasattr(model, "cache") and not model.count.any()


def test_a_copy_in_fp64_leaves_the_model_as_it_is():
    model = Shares()
    double = in_double(model)
    assert {p.dtype for p in double.parameters()} == {torch.float64} and double.count.dtype == torch.float64
    assert {p.dtype for p in model.parameters()} == {torch.float32} and double.b.weight is double.a.weight
    assert torch.equal(double.a.weight.float(), model.a.weight) and not storages(double) & storages(model)


def test_a_remembered_activation_is_copied_without_its_history():
    model = nn.Linear(3, 2)
    model.seen = model(torch.zeros(1, 3))
    with pytest.raises(RuntimeError, match="graph leaves"):
        copy.deepcopy(model)
    other = deep_copy(model)
    assert torch.equal(other.seen, model.seen) and other.seen.grad_fn is None and model.seen.grad_fn is not None
