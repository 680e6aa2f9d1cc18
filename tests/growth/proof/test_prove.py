"""The proof in fp64: what it lets pass, and what it refuses."""

import copy

import pytest
import torch
from families import narrow_resnet
from nets import images, inferred, perturb
from torch import nn

from n2n_cli import growth
from n2n_cli.growth import GrowthError
from n2n_cli.growth.build.students import build
from n2n_cli.growth.build.weights import grown_weights
from n2n_cli.growth.errors import OutOfMemory
from n2n_cli.growth.proof.gap import outputs
from n2n_cli.growth.proof.prove import (
    Counterexample,
    Unprovable,
    check_in_its_own_precision,
    prove,
    prove_candidate,
    prove_in_double,
)
from n2n_cli.growth.sizes.draw import draw
from n2n_cli.growth.trace.examples import prepared


def test_a_failed_proof_refuses_and_names_the_place(monkeypatch):
    def forgetful(*args, **kwargs):
        state = grown_weights(*args, **kwargs)
        state["layer2.0.conv2.weight"] *= 1.1
        return state

    monkeypatch.setattr("n2n_cli.growth.build.students.grown_weights", forgetful)
    with pytest.raises(GrowthError, match=r"function differs .* in eval mode"):
        growth.widen(perturb(narrow_resnet()), images(64, 2), 1.5)
    with pytest.raises(GrowthError, match=r"function differs .* in eval mode .* first at conv2d at layer2.0.conv2"):
        growth.widen(perturb(narrow_resnet()).double(), images(64, 2).double(), 1.5)


def net(dtype=torch.float64):
    torch.manual_seed(0)
    return perturb(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 2))).to(dtype)


def off_by(teacher, size):
    """A copy whose last bias is ``size`` times the largest output off."""
    student = copy.deepcopy(teacher)
    student[3].bias.data += size * max(
        t.abs().max().item() for t in outputs(teacher, prepared(teacher, X), training=False)
    )
    return student


X = torch.randn(6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def test_the_same_function_passes_and_the_gap_says_how_it_was_compared():
    gap = prove(net(), net(), X)
    assert (gap.eval, gap.train, gap.kind) == (0.0, 0.0, "float64") and 0 < gap.floor < 1e-13


@pytest.mark.parametrize(("size", "passes"), [(1e-12, True), (1e-9, False), (1e-6, False), (float("nan"), False)])
def test_a_difference_beyond_1e_10_is_refused(size, passes):
    if passes:
        assert 0.3 * size < prove(net(), off_by(net(), size), X).worst < 3 * size
    else:
        with pytest.raises(GrowthError, match=r"function differs .* \(float64; the teacher's own rounding"):
            prove(net(), off_by(net(), size), X)


def test_every_batch_and_both_modes_count():
    """The difference is in a unit that the first batch does not wake; then in the statistics of eval mode."""
    teacher = nn.Sequential(nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 1)).double()
    student = copy.deepcopy(teacher)
    with torch.no_grad():
        for model in (teacher, student):
            model[0].weight.fill_(1.0), model[0].bias.zero_()
        student[2].weight.mul_(1.01)
    negative, positive = -torch.ones(3, 1).double(), torch.ones(3, 1).double()
    with pytest.raises(GrowthError, match="function differs from the teacher's: relative"):
        prove(teacher, student, negative, positive)
    with pytest.raises(Counterexample, match="differs from the teacher's on random values") as caught:
        prove(teacher, student, negative)  # nobody gave a batch that wakes the unit: it is found all the same
    assert (caught.value.batch > 0).any()
    other = net()
    other[1].running_var *= 1.1
    with pytest.raises(GrowthError, match=r"in eval and 0\.0e\+00 in train mode"):
        prove(net(), other, X)


def test_a_teacher_that_is_not_finite_has_no_function():
    teacher = net()
    teacher[3].weight.data.fill_(float("inf"))
    with pytest.raises(Unprovable, match="not finite"):
        prove(teacher, copy.deepcopy(teacher), X)


def test_in_its_own_precision_rounding_is_allowed_for():
    teacher = net(torch.float32)
    assert prove(teacher, off_by(teacher, 1e-7), X).kind == "float32"
    with pytest.raises(GrowthError, match="function differs"):
        prove(teacher, off_by(teacher, 1e-3), X)


def test_networks_of_less_precision_are_proved_in_fp64_by_the_weights_given():
    teacher = net(torch.float32)
    double = copy.deepcopy(teacher).double()
    weights = {
        name: (lambda t=t: t.detach().clone()) for name, t in [*double.named_parameters(), *double.named_buffers()]
    }
    gap = prove_in_double(teacher, copy.deepcopy(teacher), weights, X)
    assert gap.worst < 1e-15 and gap.kind == "float64"
    wrong = weights | {"0.bias": lambda: double[0].bias.detach() + 1e-7}
    with pytest.raises(GrowthError, match="float64"):
        prove_in_double(teacher, copy.deepcopy(teacher), wrong, X)


def candidate_of(teacher):
    structure = inferred(teacher, X.to(teacher[0].weight.dtype))
    sizes = {group: 7 for group in structure.groups() if not group.fixed}
    return build(teacher, structure, draw(structure, sizes, 0))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_candidate_is_proved_in_fp64_and_as_it_was_built(dtype):
    teacher = net(dtype)
    candidate = candidate_of(teacher)
    gap = prove_candidate(teacher, candidate, [X.to(dtype)], as_built=True)
    assert gap.worst < 1e-14 and gap.kind == "float64"
    with torch.no_grad():
        candidate.student[0].weight += 1  # what was built is not what the remappings say
    if dtype != torch.float64:  # in fp64 what was built is compared itself, and then what it should have been
        assert prove_candidate(teacher, candidate, [X.to(dtype)], as_built=False).worst < 1e-14
    with pytest.raises(GrowthError, match=r"in eval mode \(torch"):
        prove_candidate(teacher, candidate, [X.to(dtype)], as_built=True)
    candidate.maps["3.weight"][1].copies.fill_(1)  # and now the division is forgotten
    with pytest.raises(GrowthError, match=r"function differs from the teacher's: .*in train mode \(float64"):
        prove_candidate(teacher, candidate, [X.to(dtype)], as_built=False)


class Cancelling(nn.Module):
    """Large numbers whose sum is small: in fp32 little of it is right."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 2)
        self.b.weight.data -= self.b.weight.mean(1, keepdim=True)

    def forward(self, x):
        return self.b(self.a(x).relu() + 1e5)


def test_as_it_was_built_a_student_may_differ_by_what_its_teacher_rounds():
    torch.manual_seed(0)
    teacher = Cancelling()
    grown = growth.widen(teacher, X.float(), 1.75)
    assert grown.student.a.out_features == 7 and grown.gap.kind == "float64" and grown.gap.worst < 1e-9
    assert growth.function_gap(teacher, grown.student, X.float(), training=False) > 1e-3
    wrong = copy.deepcopy(grown.student)
    wrong.b.bias.data += 1
    check_in_its_own_precision(teacher, grown.student, X.float(), 1e-3)
    with pytest.raises(GrowthError, match=r"in eval mode \(torch.float32\)"):
        check_in_its_own_precision(teacher, wrong, X.float(), 1e-3)
    teacher.b.bias.data[0] = float("inf")
    with pytest.raises(Unprovable, match="the teacher's own output is not finite"):
        check_in_its_own_precision(teacher, teacher, X.float(), 1e-3)


def test_what_lacks_memory_is_said_in_one_line_and_nothing_is_held_for_it(monkeypatch):
    def without(*args, **kwargs):
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes\n")

    teacher, tried = net(torch.float32), []
    monkeypatch.setattr("n2n_cli.growth.build.weights._select", without)
    with pytest.raises(OutOfMemory, match=r"^not enough memory to grow this network \(.* 9 bytes\)$"):
        growth.widen(teacher, X.float(), 2.0)
    monkeypatch.undo()

    class Late(nn.Linear):
        def forward(self, x):
            tried.append(self.in_features)
            return super().forward(x) if self.in_features == 4 else without()

    teacher[3].__class__ = Late
    with pytest.raises(OutOfMemory, match=r"does not run: in 3: \[enforce fail\] .* allocate 9 bytes$"):
        growth.widen(teacher, X.float(), 2.0)
    assert set(tried) == {4, 8}
