"""The student itself: its class, its ties, its types, and what is frozen."""

import torch
from nets import images, inferred, perturb, resnet18, same_state, state_of
from torch import nn

from n2n_cli import growth
from n2n_cli.growth.build.students import build, reshape, shapes_alone, student_of
from n2n_cli.growth.proof.gap import function_gap
from n2n_cli.growth.sizes.draw import draw
from n2n_cli.growth.trace.copies import in_double


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 6)
        self.mix = nn.Linear(6, 6)
        self.wide, self.back = nn.Linear(6, 4), nn.Linear(4, 6)
        self.out = nn.Linear(6, 11, bias=False)
        self.out.weight = self.embed.weight
        self.again = self.mix

    def forward(self, tokens):
        h = self.back(torch.tanh(self.wide(self.embed(tokens))))
        return self.out(torch.tanh(self.again(torch.tanh(self.mix(h)))))


def test_tied_weights_stay_tied():
    teacher = Tied().double()
    tokens = torch.randint(11, (3, 5))
    before = state_of(teacher)
    student = growth.widen(teacher, tokens, 1.5).student
    assert student.out.weight is student.embed.weight and student.again is student.mix
    assert growth.function_gap(teacher, student, tokens) < 1e-12
    assert same_state(state_of(teacher), before) and teacher.again is teacher.mix


def test_frozen_parameters_types_and_buffers_follow():
    teacher = perturb(resnet18()).to(torch.float64)
    teacher.conv1.weight.requires_grad_(False)
    student = growth.widen(teacher, images(64, 2), 1.5).student
    assert student.conv1.weight.dtype == torch.float64 and not student.conv1.weight.requires_grad
    assert student.bn1.num_batches_tracked.dtype == torch.int64


def made(net, x, factor, **options):
    structure = inferred(net, x)
    sizes = {group: int(group.n * factor) for group in structure.groups() if not group.fixed}
    return build(net, structure, draw(structure, sizes, 0), **options)


def small(n=4):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, n), nn.BatchNorm1d(n), nn.ReLU(), nn.Linear(n, 2))
    net[0].weight._no_weight_decay = True
    net[3].bias.requires_grad_(False)
    return perturb(net)


X = torch.randn(5, 3)


def test_a_candidate_knows_what_it_was_made_of():
    net = small().double()
    candidate = made(net, X.double(), 2.0)
    student = candidate.student
    assert [(group.n, size) for group, size in candidate.sizes.items()] == [(4, 8)] and candidate.exact_optimizer
    assert (student[0].out_features, student[1].num_features, student[3].in_features) == (8, 8, 8)
    assert function_gap(net, student, X) < 1e-14
    assert student[0].weight._no_weight_decay and not student[3].bias.requires_grad and student[0].bias.requires_grad


def test_a_student_of_a_copy_in_another_precision():
    net = small()
    candidate = made(net, X, 2.0)
    double = student_of(in_double(net), candidate)
    assert {p.dtype for p in double.parameters()} == {torch.float64} and double[0].out_features == 8
    assert torch.equal(double[0].weight.float(), candidate.student[0].weight)


def test_the_student_that_was_given_lends_its_modules_and_the_teacher_all_else():
    net, given = small().double().eval(), small(8).double()
    given.of_my_own = "kept"
    given[3].bias.requires_grad_(True)
    before = state_of(given)
    student = made(net, X.double(), 2.0, given=given).student
    assert student.of_my_own == "kept" and student is not given and same_state(state_of(given), before)
    assert not student.training and not student[3].bias.requires_grad and given[3].bias.requires_grad
    assert function_gap(net, student, X) < 1e-14


def test_shapes_alone_make_no_weight():
    net = small()
    structure = inferred(net, X)
    (group,) = [group for group in structure.groups() if not group.fixed]
    remappings = draw(structure, {group: 7}, 0)
    alone, real = shapes_alone(net, structure, remappings).student, build(net, structure, remappings).student
    assert all(t.is_meta for t in alone.state_dict().values()) and str(alone) == str(real)
    shapes = [{name: (t.shape, t.dtype) for name, t in model.state_dict().items()} for model in (alone, real)]
    assert shapes[0] == shapes[1]


def test_a_network_replayed_has_zeros_of_the_shapes_that_are_named():
    net = Tied()
    again = reshape(net, {"embed.weight": [11, 9]}, {"mix": {"in_features": 9}})
    assert again.embed.weight.shape == (11, 9) and again.out.weight is again.embed.weight and again.again is again.mix
    assert again.mix.in_features == 9 and net.mix.in_features == 6 and not again.mix.weight.any()
    assert again.mix.weight.shape == (6, 6), "what is not named keeps its shape"
