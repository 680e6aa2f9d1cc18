"""The identity layer: repeated activations, kernels, and batch norm undone."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import check_exact, images, perturb
from torch import nn

from n2n_cli import growth
from n2n_cli.growth.deeper import rebuild
from n2n_cli.growth.depth.identity import Maxout, activation_of, module_of, plain, set_identity
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
