"""The identity layer: repeated activations, kernels, and batch norm undone."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import check_exact, images, perturb
from torch import nn

from n2n_cli import growth
from n2n_cli.growth import GrowthError
from n2n_cli.growth.deeper import rebuild
from n2n_cli.growth.depth.identity import (
    Maxout,
    activation_of,
    columns,
    identify,
    make_identity,
    module_of,
    plain,
    set_identity,
)
from n2n_cli.growth.groups.operations import OPERATIONS


def test_undoing_batch_norm_is_what_makes_it_exact():
    """Negative controls: the naive 1/0/0/1, eps forgotten, and a kernel one pixel off."""
    torch.manual_seed(0)
    teacher = perturb(
        nn.Sequential(nn.Conv2d(3, 5, 3, padding=1), nn.BatchNorm2d(5), nn.ReLU(), nn.Conv2d(5, 2, 1))
    ).double()
    x = 0.05 * images(8).double()
    student = growth.deepen(teacher, x, ["0"]).student
    check_exact(teacher, student, x)
    conv, norm = student[1][2], student[1][3]
    torch.testing.assert_close(norm.weight, torch.sqrt(norm.running_var + norm.eps), rtol=0, atol=0)
    assert torch.equal(norm.bias, norm.running_mean)
    naive = copy.deepcopy(student)
    naive[1][3].reset_parameters()
    assert growth.function_gap(teacher, naive, x, training=False) < 1e-4, "in eval mode it looks fine"
    assert growth.function_gap(teacher, naive, x, training=True) > 0.1, "in train mode it is off by a factor"
    no_eps = copy.deepcopy(student)
    with torch.no_grad():
        no_eps[1][3].weight.copy_(norm.running_var.sqrt())
    assert growth.function_gap(teacher, no_eps, x) > 1e-5
    shifted = copy.deepcopy(student)
    with torch.no_grad():
        shifted[1][2].weight.copy_(conv.weight.roll(1, dims=-1))
    assert growth.function_gap(teacher, shifted, x) > 1e-2


def test_several_calibration_batches_are_pooled():
    torch.manual_seed(0)
    teacher = perturb(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten())).double()
    batches = [images(6, 8, seed).double() for seed in range(5)]
    student = growth.deepen(teacher, batches[0], calibration=batches).student
    with torch.no_grad():  # what the identity sees in train mode, over all batches of equal size
        seen = torch.stack([torch.relu(copy.deepcopy(teacher[1]).train()(teacher[0](b))) for b in batches])
    norm = student[1][3]
    torch.testing.assert_close(norm.running_mean, seen.mean(dim=(0, 1, 3, 4)), rtol=1e-12, atol=1e-12)
    var = torch.stack([b.var(dim=(0, 2, 3), correction=0) for b in seen]).mean(0)
    torch.testing.assert_close(norm.running_var, var, rtol=1e-12, atol=1e-12)
    check_exact(teacher, student, images(6, 8, 77).double(), train=False)


def test_dead_channels_are_counted():
    teacher = perturb(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten())).double()
    with torch.no_grad():
        teacher[1].bias[2], teacher[1].weight[2] = -50.0, 0.01
    grown = growth.deepen(teacher, images(6).double())
    assert any("1 channels never vary" in note for note in grown.notes)
    check_exact(teacher, grown.student, images(6).double())


def test_identity_needs_a_shape_that_allows_it():
    for layer in (
        nn.Conv2d(3, 4, 3, padding=1),
        nn.Conv2d(4, 4, 3, padding=0),
        nn.Conv2d(4, 4, 3, 2, 1),
        nn.Linear(3, 4),
    ):
        with pytest.raises(ValueError, match="it "):
            set_identity(layer)
    x = torch.randn(2, 6, 7, 5)
    for layer in (
        nn.Conv2d(6, 6, (3, 1), padding=(1, 0)),
        nn.Conv2d(6, 6, 3, padding=2, dilation=2),
        nn.Conv2d(6, 6, 5, padding=2, groups=3),
    ):
        set_identity(layer)
        assert torch.equal(layer(x), x)


NUMBERS = {
    "hardtanh": st.lists(st.floats(-3, 3), min_size=2, max_size=2, unique=True).map(sorted),
    "clamp_max": st.tuples(st.none(), st.floats(-3, 3)),
    "clamp": st.tuples(st.none() | st.floats(-3, 3), st.floats(-3, 3)),
    "threshold": st.tuples(st.floats(-3, 3), st.floats(-3, 3)),
    "hardshrink": st.tuples(st.floats(0, 3)),
    "maxout": st.just((3, -1, True)),
}


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_every_activation_that_is_allowed_is_idempotent(data):
    name = data.draw(st.sampled_from([*(n for n, row in OPERATIONS if row.idempotent), "maxout"]))
    numbers = data.draw(NUMBERS.get(name.removesuffix("_"), st.just(())))
    values = torch.tensor(data.draw(st.lists(st.floats(-5, 5), min_size=3, max_size=3)), dtype=torch.float64)
    kind = module_of((name,))
    assert kind is not None
    f = kind(*numbers)
    once = f(values)
    assert torch.equal(f(once.repeat_interleave(3) if name == "maxout" else once), once)
    assert activation_of(plain((name, *numbers))) == (name, *numbers)


def maxout(kind, form, norm):
    """(view | unflatten), then (max | amax) over the pieces, which come last or first."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(6, 12) if kind == "linear" else nn.Conv2d(3, 12, 3, padding=1)
            self.norm = ({"linear": nn.BatchNorm1d, "conv": nn.BatchNorm2d}[kind](12)) if norm else nn.Identity()
            self.head = nn.Linear(4, 3)

        def forward(self, x):
            x = self.norm(self.a(x))
            if form == "view max":
                x = x.view(x.shape[0], 4, 3, *x.shape[2:]).max(2)[0]
            elif form == "unflatten amax":
                x = x.unflatten(1, (4, 3)).amax(2)
            else:
                x = x.unflatten(1, (3, 4)).amax(dim=1)
            return self.head(x if kind == "linear" else x.mean((2, 3)))

    return Net()


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("form", ["view max", "unflatten amax", "pieces first"])
@pytest.mark.parametrize("kind", ["linear", "conv"])
def test_maxout_by_replicated_columns(kind, form, norm):
    torch.manual_seed(0)
    teacher = perturb(maxout(kind, form, norm)).double()
    x = torch.randn(8, 6).double() if kind == "linear" else images(8, 5).double()
    grown = growth.deepen(teacher, x, pairs=2)
    check_exact(teacher, grown.student, x)
    check_exact(teacher, grown.student, x.roll(1, -1), train=not norm)
    assert sum(isinstance(m, Maxout) for m in grown.student.modules()) == 2
    twice = growth.deepen(grown.student, x).student
    check_exact(teacher, twice, x)
    assert sum(isinstance(m, Maxout) for m in twice.modules()) > 2
    again = rebuild(maxout(kind, form, norm), grown.recipe).double()
    again.load_state_dict(grown.student.state_dict())
    assert growth.function_gap(grown.student, again, x) == 0
    layer = next(m for n, m in grown.student.named_modules() if n.endswith(("a.2", "norm.2")))
    pieces = layer.weight.flatten(1)[:, : layer.weight[0].numel()]
    with torch.no_grad():
        pieces[0] += 1.0  # negative control: one piece of one unit sees something else
    assert growth.function_gap(teacher, grown.student, x) > 1e-6


@pytest.mark.parametrize("units_first", [True, False])
def test_maxout_is_the_largest_piece_of_each_unit(units_first):
    x = torch.tensor([[1.0, 5.0, 2.0, 3.0, -1.0, 4.0]])
    wanted = [[5.0, 3.0, 4.0]] if units_first else [[3.0, 5.0, 4.0]]
    assert Maxout(2, -1, units_first)(x).tolist() == wanted
    image = x.view(1, 6, 1, 1).expand(1, 6, 2, 3)
    assert Maxout(2, 1, units_first)(image)[0, :, 1, 2].tolist() == wanted[0]


@pytest.mark.parametrize("units_first", [True, False])
def test_columns_make_the_largest_piece_what_the_unit_was(units_first):
    """maxout(W maxout(v)) = maxout(v) where W copies each unit to all its pieces."""
    activation = ("maxout", 3, -1, units_first)
    source, layer, f = columns(activation, 12), nn.Linear(4, 12), Maxout(*activation[1:])
    set_identity(layer, source)
    once = f(torch.randn(5, 12))
    assert torch.equal(f(layer(once)), once)
    set_identity(layer, source.roll(1))
    assert not torch.equal(f(layer(once)), once)
    assert columns(("relu",), 12) is None


@pytest.mark.parametrize(
    ("kernel", "groups", "norm", "shape"),
    [
        ((), 1, None, (6, 6)),
        ((3,), 2, None, (6, 3, 3)),
        ((3, 1), 1, nn.BatchNorm2d(6), (6, 6, 3, 1)),
        ((1, 5), 6, None, (6, 1, 1, 5)),
        ((3, 3, 3), 3, None, (6, 2, 3, 3, 3)),
    ],
)
def test_the_modules_of_one_identity(kernel, groups, norm, shape):
    f, layer, *rest = make_identity(6, kernel, groups, ("hardtanh", -0.5, 2.0), norm)
    assert (type(f), f.min_val, f.max_val) == (nn.Hardtanh, -0.5, 2.0) and layer.weight.shape == shape
    assert rest == ([norm] if norm else []) and (layer.bias is None) == (norm is not None)
    set_identity(layer)
    x = torch.randn(2, 6, *[7] * len(kernel))
    assert torch.equal(layer(x), x)


def test_maxout_shrinks_what_enters_the_layer_and_unknown_activations_are_refused():
    layer = make_identity(6, (3, 3), 1, ("maxout", 2, 1, True), None)[1]
    assert (layer.in_channels, layer.out_channels) == (3, 6)
    with pytest.raises(GrowthError, match="no activation 'gelu'"):
        make_identity(6, (), 1, ("gelu",), None)


class Stack(nn.Module):
    """A new layer with a norm behind it, and one that no pass reaches."""

    def __init__(self, affine=True):
        super().__init__()
        self.new, self.norm, self.idle = nn.Linear(4, 4, bias=False), nn.BatchNorm1d(4, affine=affine), nn.Linear(4, 4)

    def forward(self, x):
        return self.norm(self.new(x))


def test_identify_undoes_the_mean_moments_of_all_batches():
    torch.manual_seed(0)
    net, batches = Stack().double(), [torch.randn(9, 4).double() + n for n in range(3)]
    batches[1][:, 2] = batches[0][:, 2] = batches[2][:, 2] = 5.0
    assert identify(net, ["new", "norm"], {}, batches) == 1, "one channel never varies"
    mean = torch.stack([b.mean(0) for b in batches]).mean(0)
    var = torch.stack([b.var(0, correction=0) for b in batches]).mean(0)
    for found, wanted in ((net.norm.bias, mean), (net.norm.running_mean, mean), (net.norm.running_var, var)):
        torch.testing.assert_close(found.detach(), wanted, rtol=1e-13, atol=1e-14)
    assert torch.equal(net.norm.weight, torch.sqrt(net.norm.running_var + net.norm.eps))
    x = torch.randn(5, 4).double()
    torch.testing.assert_close(net.eval()(x), x, rtol=1e-13, atol=1e-13)
    identify(net, ["new", "norm"], {}, batches[:1])
    torch.testing.assert_close(net.train()(batches[0]), batches[0], rtol=1e-13, atol=1e-13)
    assert not torch.allclose(net(batches[2]), batches[2]), "a batch of other statistics"


def test_what_cannot_be_identified_is_named():
    x = torch.randn(5, 4)
    with pytest.raises(GrowthError, match="'idle' was not reached"):
        identify(Stack(), ["new", "idle"], {}, [x])
    with pytest.raises(GrowthError, match="batch norm 'norm' has no scale and bias"):
        identify(Stack(affine=False), ["norm"], {}, [x])
    net = nn.Sequential(nn.Linear(4, 5))
    with pytest.raises(GrowthError, match="new layer '0' cannot be an identity: it maps 4 to 5 features"):
        identify(net, ["0"], {}, [x])
    assert identify(net, [], {}, [x]) == 0
