"""Where a failed student goes astray: its first operation whose result is not what the teacher's says."""

import pytest
import torch
from nets import inferred, only_group, perturb
from torch import nn

from n2n_cli.growth.build.students import build
from n2n_cli.growth.groups.axes import resolve
from n2n_cli.growth.proof.locate import find
from n2n_cli.growth.sizes.draw import draw


def grown(net, x, factor=2):
    structure = inferred(net, x)
    remappings = draw(structure, {g: g.n * factor for g in structure.groups() if not g.fixed}, 0)
    return structure, remappings, build(net, structure, remappings).student


def deep():
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 5, 1), nn.Flatten(), nn.Linear(80, 2)]
    return perturb(nn.Sequential(*layers)).double()


IMAGES = torch.randn(3, 3, 6, 6).double()


def test_a_right_student_has_no_fault():
    net = deep()
    structure, remappings, student = grown(net, IMAGES)
    assert find(structure, remappings, student) is None
    assert find(structure, remappings, student, net) is None


@pytest.mark.parametrize(
    ("name", "where"), [("0.bias", "0"), ("1.running_mean", "1"), ("1.weight", "1"), ("3.weight", "3"), ("5.bias", "5")]
)
def test_the_first_wrong_value_is_found_at_its_operation(name, where):
    net = deep()
    structure, remappings, student = grown(net, IMAGES)
    with torch.no_grad():
        student.state_dict(keep_vars=True)[name].add_(0.1)
    assert find(structure, remappings, student) is None, "shapes alone cannot see it"
    fault = find(structure, remappings, student, net)
    assert fault.op.path == where and fault.text == "gives other values"
    assert fault.recording == (1 if "running" in name else 0), "train mode comes first, and does not read it"


class Transposed(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.weight = nn.Linear(3, 4), nn.Parameter(torch.randn(2, 4))

    def forward(self, x):
        return self.first(x).relu() @ self.weight.t()


def test_a_weight_that_is_divided_among_copies_is_no_fault():
    net = Transposed().double()
    structure, remappings, student = grown(net, torch.randn(5, 3).double(), 3)
    assert student.weight.shape == (2, 12) and find(structure, remappings, student, net) is None


def test_a_later_fault_is_deeper():
    net = deep()
    depths = []
    for name in ("0.bias", "3.bias", "5.bias"):
        structure, remappings, student = grown(net, IMAGES)
        with torch.no_grad():
            student.state_dict(keep_vars=True)[name].add_(0.1)
        depths.append(find(structure, remappings, student, net).depth)
    assert depths == sorted(set(depths))


class Literal(nn.Module):
    """``form`` says how its width of 8 is written into ``forward``."""

    def __init__(self, form):
        super().__init__()
        self.before, self.a, self.b = nn.Linear(5, 7), nn.Linear(7, 8), nn.Linear(8, 3)
        self.form = form

    def forward(self, x):
        x = self.a(torch.relu(self.before(x)))
        if self.form == "view":
            x = x.view(-1, 2, 4).flatten(1)
        elif self.form == "raise" and x.shape[1] != 8:
            raise ValueError("a width of 8\nis wanted")
        elif self.form == "other" and x.shape[1] != 8:
            x = torch.sigmoid(x)
        return self.b(torch.relu(x))


X = torch.randn(4, 5).double()


@pytest.mark.parametrize(
    ("form", "name", "text"),
    [
        ("view", "view", "gives [8, 2, 4] instead of"),
        ("raise", "relu", "a width of 8"),
        ("other", "relu", "the student performs sigmoid at the top module instead"),
    ],
)
def test_code_that_counts_on_a_width_is_named_with_the_group_that_meets_it(form, name, text):
    net = Literal(form).double()
    structure, remappings, student = grown(net, X)
    for teacher in (None, net):
        fault = find(structure, remappings, student, teacher)
        assert fault.op.name == name and fault.text.startswith(text) and "\n" not in fault.text
        assert set(fault.groups) & {group for group, _ in resolve(structure.axes["a.weight"][0])}


def test_only_groups_that_grow_are_named():
    net = Literal("view").double()
    structure = inferred(net, X)
    group = only_group(structure, "before.weight")
    remappings = draw(structure, {group: 14}, 0)
    student = build(net, structure, remappings).student
    assert find(structure, remappings, student, net) is None
    with torch.no_grad():
        student.a.bias.add_(1)
    fault = find(structure, remappings, student, net)
    assert fault.groups == [group] and fault.op.path == "a"
