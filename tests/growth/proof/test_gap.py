"""The function gap: what it sees, and that measuring leaves the teacher alone."""

import copy

import pytest
import torch
from nets import Masked, images, perturb, resnet18, same_state, state_of
from torch import nn

from n2n_cli import growth
from n2n_cli.growth import GrowthError
from n2n_cli.growth.proof.gap import measured_gap, outputs, relative, runs_as_it_is


def test_the_gap_sees_a_wrong_student():
    """Negative controls: a copy's division forgotten, BN scales permuted, one bias and one BN buffer wrong."""
    torch.manual_seed(0)
    teacher = perturb(resnet18()).double()
    x = images(64, 2).double()
    student = growth.widen(teacher, x, 1.5).student
    for break_it in (
        lambda s: s.layer2[0].conv2.weight[:, -1].mul_(2),
        lambda s: s.layer1[0].bn1.weight.copy_(s.layer1[0].bn1.weight.roll(1)),
        lambda s: s.layer3[0].bn1.bias[-1].add_(0.1),
    ):
        broken = copy.deepcopy(student)
        with torch.no_grad():
            break_it(broken)
        assert growth.function_gap(teacher, broken, x) > 1e-6
    broken = copy.deepcopy(student)
    broken.bn1.running_var[-1] *= 2  # eval mode alone can see it
    assert growth.function_gap(teacher, broken, x, training=False) > 1e-6
    assert growth.function_gap(teacher, broken, x, training=True) < 1e-10


class MaskedInPlace(Masked):
    def forward(self, x):
        self.weight.data *= self.mask
        return super().forward(x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_forward_pass_that_writes_its_weights_leaves_the_teacher_alone(dtype):
    torch.manual_seed(0)
    model = nn.Sequential(MaskedInPlace(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 1)).to(dtype)
    before = model[0].weight.clone()
    growth.widen(model, torch.randn(4, 3, 8, 8, dtype=dtype), 1.5)
    assert torch.equal(model[0].weight, before)


def test_the_gap_is_the_largest_difference_over_the_largest_output():
    ours, theirs = torch.tensor([[1.0, -4.0], [2.0, 0.5]]).double(), torch.tensor([[1.0, -4.5], [2.0, 0.0]]).double()
    assert relative([ours], [theirs]) == 0.5 / 4.5
    assert relative([ours, theirs], [ours, ours]) == 0.5 / 4.0, "the worst over the outputs"
    zero = torch.zeros(2)
    assert relative([zero + 3], [zero]) == 3.0, "absolute where the teacher is zero"
    assert relative([torch.zeros(0)], [torch.zeros(0)]) == 0.0


def test_what_is_no_number_is_infinitely_far():
    nan, one = torch.tensor([1.0, float("nan")]), torch.ones(2)
    assert relative([nan], [one]) == relative([one], [nan]) == float("inf")
    with pytest.raises(GrowthError, match=r"shapes \[\(3,\)\] instead of \[\(2,\)\]"):
        relative([torch.ones(3)], [one])
    with pytest.raises(GrowthError, match="shapes"):
        relative([one, one], [one])


def test_the_gap_of_a_known_difference():
    """A bias that is 0.25 higher: the gap is 0.25 / max |teacher|, to rounding, in both modes."""
    torch.manual_seed(0)
    teacher, x = nn.Linear(3, 2).double(), torch.randn(7, 3)
    student = copy.deepcopy(teacher)
    student.bias.data[1] += 0.25
    wanted = 0.25 / teacher(x.double()).abs().max().item()
    for training in (False, True, None):
        assert abs(growth.function_gap(teacher, student, x, training=training) - wanted) < 1e-14


def test_one_mode_alone_may_differ():
    teacher, x = perturb(nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))).double(), torch.randn(7, 3)
    student = copy.deepcopy(teacher)
    student[1].running_mean += 1
    found = measured_gap(teacher, student, [x], "a word")
    assert found.train == 0.0 and found.eval > 0.1 and found.worst == found.eval and found.kind == "a word"


def test_outputs_leave_the_model_and_the_random_state_alone():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5)), torch.randn(6, 3)
    before, random = state_of(model), torch.get_rng_state()
    one, two = (outputs(model, x, training=True) for _ in range(2))
    assert same_state(state_of(model), before) and torch.equal(torch.get_rng_state(), random)
    assert torch.equal(one[0], two[0]) and not (one[0] == 0).any(), "no entry was dropped"


def test_arithmetic_in_fp64_on_a_model_of_less():
    """The weights as given by name; the others widened: to the last bits what a copy in fp64 gives."""
    torch.manual_seed(0)
    model, x = perturb(nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 2))), torch.randn(6, 5)
    double = copy.deepcopy(model).double()
    for training in (False, True):
        wanted = outputs(double, x.double(), training=training)
        assert relative(outputs(model, x.double(), training=training, weights={}), wanted) < 1e-15
        other = {"3.bias": lambda: double[3].bias + 1.0, "1.running_mean": lambda: double[1].running_mean}
        (shifted,) = outputs(model, x.double(), training=training, weights=other)
        torch.testing.assert_close(shifted, wanted[0] + 1.0, rtol=1e-14, atol=1e-14)
    assert torch.get_default_dtype() == torch.float32 and model[3].bias.dtype == torch.float32


@pytest.mark.parametrize(
    "view",
    [
        lambda w: w.t().t(),
        lambda w: w[:, :, None].squeeze(2),
        lambda w: w[:, :5],
        lambda w: w.data,
        lambda w: w.detach(),
    ],
)
def test_views_of_weights_are_also_taken_in_fp64(view):
    """Beside code that rounds to fp32, which a copy in fp64 would do as well: Mamba."""

    class Viewed(nn.Linear):
        def forward(self, x):
            return nn.functional.linear(x, view(self.weight).float(), self.bias)

    torch.manual_seed(0)
    model, x = Viewed(5, 4), torch.randn(6, 5).double()
    wanted = x @ model.weight.double().t() + model.bias.double()
    (found,) = outputs(model, x, training=False, weights={})
    torch.testing.assert_close(found, wanted, rtol=1e-14, atol=1e-14)
    twice = {"weight": lambda: 2 * model.weight.detach().double()}
    (found,) = outputs(model, x, training=False, weights=twice)
    torch.testing.assert_close(found, 2 * wanted - model.bias.double(), rtol=1e-14, atol=1e-14)
    assert model.weight.dtype == torch.float32 and not model.weight.is_inference()


def test_what_does_not_run_or_returns_nothing_is_named():
    broken = nn.Sequential(nn.Linear(3, 4), nn.Sequential(nn.Linear(5, 2)))
    with pytest.raises(GrowthError, match=r"Sequential does not run: in 1\.0: mat1 and mat2"):
        outputs(broken, torch.randn(2, 3), training=False)
    silent = nn.Linear(3, 2)
    silent.forward = lambda x: "nothing"
    with pytest.raises(GrowthError, match="Linear returns no tensor of numbers"):
        outputs(silent, torch.randn(2, 3), training=False)


class Spectrum(nn.Module):
    def forward(self, x):
        return torch.fft.rfft(x)


def test_complex_outputs_are_compared_in_both_parts():
    (found,) = outputs(Spectrum(), torch.ones(2, 4), training=False)
    assert not found.is_complex() and found.shape == (2, 3, 2)


class Peeks(nn.Module):
    """Its code reads a weight of the layer inside it."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(3, 2)

    def forward(self, x):
        return x @ self.inner.weight.t()


def test_a_model_that_no_longer_runs_as_a_user_would_run_it():
    model = nn.Sequential(Peeks())
    runs_as_it_is(model, torch.randn(2, 3))
    model[0].inner = nn.Sequential(model[0].inner, nn.ReLU())
    with pytest.raises(GrowthError, match=r"deeper Sequential does not run: in 0: .* read a layer's weights itself"):
        runs_as_it_is(model, torch.randn(2, 3))
