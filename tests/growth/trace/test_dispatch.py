"""What stands between a model and PyTorch's operations: recording, running without chance, running in fp64."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from n2n_cli.growth.groups.operations import OPERATIONS
from n2n_cli.growth.trace.dispatch import InDouble, Recorder, WithoutChance, WritesWeights, storages


class Table:
    """A table of a test's own: names of operations that stay whole, shortcuts on meta tensors, stand-ins for chance."""

    def __init__(self, whole=(), meta=None, chance=None):
        self.whole, self.meta, self.chance = whole, meta or {}, chance or {}

    def stays_whole(self, func):
        return func.overloadpacket.__name__ in self.whole

    def on_meta(self, func):
        return self.meta.get(func.overloadpacket.__name__)

    def without_chance(self, func):
        return self.chance.get(func.overloadpacket.__name__)

    def writes(self, func):
        return OPERATIONS.writes(func)


def recorded(table, call):
    seen = []
    with (
        torch.inference_mode(),
        Recorder(
            table,
            lambda func, args, kwargs, out: seen.append((func, args, kwargs, out)),
            {},
            lambda tensor, before: None,
        ),
    ):
        call()
    return seen


def names(seen):
    return [func.overloadpacket.__name__ for func, *_ in seen]


def test_what_is_known_is_recorded_whole_and_the_rest_taken_apart():
    x, layer = torch.randn(2, 3), nn.Linear(3, 4)
    assert names(recorded(Table(["linear"]), lambda: layer(x))) == ["linear"]
    apart = names(recorded(Table(), lambda: layer(x)))
    assert "linear" not in apart and "addmm" in apart


def test_a_recorded_operation_has_its_arguments_and_results():
    x, made = torch.randn(4, 3), []
    ((func, args, kwargs, out),) = recorded(Table(["max"]), lambda: made.append(torch.max(x, 1, keepdim=True)))
    assert func is torch.ops.aten.max.dim and args[0] is x and args[1:] == (1, True) and kwargs == {}
    assert out[0] is made[0].values and out[1] is made[0].indices


def test_a_shortcut_is_taken_on_meta_tensors_alone():
    table = Table(["mm"], meta={"mm": lambda a, b: a.new_empty(7, 7)})
    made = []
    for device in ("cpu", "meta"):
        a = torch.ones(2, 3, device=device)
        recorded(table, lambda a=a: made.append(a @ a.t()))
    assert [tuple(t.shape) for t in made] == [(2, 2), (7, 7)]


def test_without_chance_dropout_passes_everything():
    x = torch.randn(50, 50)
    for drop in (nn.Dropout(0.5), nn.AlphaDropout(0.3), nn.Dropout1d(0.5)):
        assert not torch.equal(drop(x), x)
        with torch.inference_mode(), WithoutChance(OPERATIONS):
            assert torch.equal(drop(x), x), drop


def test_what_stands_for_chance_gets_the_call_as_it_was_made():
    def instead(func, args, kwargs):
        assert func is torch.ops.aten.bernoulli.p and kwargs == {}
        return args[0] * args[1]

    x = torch.randn(3)
    with torch.inference_mode(), WithoutChance(Table(chance={"bernoulli": instead})):
        assert torch.equal(torch.bernoulli(x, p=0.25), x * 0.25)
        assert torch.equal(x * 2, x + x), "all else runs as it is"


WRITES = [
    lambda weight, other: weight.mul_(2),
    lambda weight, other: weight.copy_(other),
    lambda weight, other: weight[1].add_(1),
    lambda weight, other: weight.t().copy_(other.t()),
    lambda weight, other: F.batch_norm(other, weight[0], torch.ones(3), training=True),
    lambda weight, other: F.instance_norm(other[None], torch.zeros(4), weight[:, 0], use_input_stats=True),
]


@pytest.mark.parametrize(
    ("mode", "writes"),
    [(lambda guarded: WithoutChance(Table(), guarded), WRITES), (lambda guarded: InDouble({}, guarded), WRITES[:2])],
    ids=["without chance", "in double"],
)
def test_a_write_into_guarded_memory_is_stopped_before_it_happens(mode, writes):
    weight, other = torch.ones(4, 3), torch.full((4, 3), 2.0)
    with torch.inference_mode(), mode(storages([weight])):
        other + weight  # reading is free
        for write in writes:
            with pytest.raises(WritesWeights):
                write(weight, other)
    assert torch.equal(weight, torch.ones(4, 3))


def test_writes_elsewhere_happen():
    weight, other = torch.ones(4, 3), torch.ones(4, 3)
    with torch.inference_mode(), WithoutChance(Table(), storages([weight])):
        other[1].add_(weight[1])
    assert torch.equal(other[1], torch.full((3,), 2.0))


def test_storages_are_those_of_views_too_and_empty_and_meta_tensors_have_none():
    a, b = torch.ones(4, 3), torch.ones(4)
    assert storages([a]) == storages([a[1:], a.t()]) and len(storages([a, b])) == 2
    assert storages([torch.empty(0), torch.empty(3, device="meta")]) == set()


def test_arithmetic_is_fp64_whatever_the_code_asks_for():
    torch.manual_seed(0)
    layer, x = nn.Linear(5, 4), torch.randn(3, 5)
    wanted = torch.tanh(F.linear(x.double(), layer.weight.double(), layer.bias.double()))
    with torch.inference_mode(), InDouble({}, set()):
        found = torch.tanh(layer(x)).float().to(torch.float16)
        assert torch.arange(3).dtype == torch.int64
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, wanted, rtol=1e-15, atol=1e-15)
    assert (torch.tanh(layer(x)).double() - wanted).abs().max() > 1e-9, "fp32 itself is not as close"


def test_weights_are_made_anew_at_each_reading():
    layer, x = nn.Linear(2, 2, bias=False), torch.eye(2, dtype=torch.float64)
    calls = []

    def make():
        calls.append(1)
        return torch.full((2, 2), 3.0, dtype=torch.float64)

    with torch.inference_mode(), InDouble({id(layer.weight): make}, set()):
        first, second = layer(x), layer(2 * x)
    assert torch.equal(first, torch.full_like(first, 3.0)) and torch.equal(second, 2 * first) and len(calls) == 2
