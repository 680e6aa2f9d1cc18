"""Plans that are a student: sizes from its shapes, or the tensor that cannot be reached."""

import pytest
import torch
import torchvision
from nets import images, inferred, only_group, resnet18
from torch import nn

from n2n_cli import growth, models
from n2n_cli.growth import GrowthError
from n2n_cli.growth.groups.axes import resolve
from n2n_cli.growth.sizes.student import by_student, check_names


def test_unreachable_students_are_named():
    teacher, x = resnet18(), images(64, 2)
    with pytest.raises(GrowthError, match=r"'fc.weight' is \[7, 512\] in the teacher and \[9, 512\] in the student"):
        growth.widen(teacher, x, torchvision.models.resnet18(num_classes=9))
    with pytest.raises(GrowthError, match=r"'layer1.2.conv1.weight' is in the student alone"):
        growth.widen(teacher, x, torchvision.models.resnet34(num_classes=7))
    narrow = models.build("inception_bn", 7, width=0.3, stem="small")
    with pytest.raises(GrowthError, match="cannot be reached"):
        growth.widen(models.build("inception_bn", 7, width=0.5, stem="small"), images(32, 2), narrow)
    with pytest.raises(GrowthError, match="cannot record ResNet"):
        growth.widen(teacher, torch.randn(2, 4, 8, 8), 1.5)


class Joined(nn.Module):
    """Two branches whose concatenation one layer reads."""

    def __init__(self, a=4, b=6, c=5):
        super().__init__()
        self.a, self.b, self.c, self.out = nn.Linear(3, a), nn.Linear(3, b), nn.Linear(a + b, c), nn.Linear(c, 2)

    def forward(self, x):
        return self.out(torch.relu(self.c(torch.cat([self.a(x), self.b(x)], 1))))


@pytest.mark.parametrize("shape", [(4, 6, 5), (5, 6, 5), (9, 7, 8), (4, 20, 11)])
def test_every_groups_size_is_read_from_the_students_shapes(shape):
    structure = inferred(Joined(), torch.randn(2, 3))
    wish = by_student(structure, Joined(*shape))
    assert [wish.sizes[only_group(structure, f"{name}.weight")] for name in "abc"] == list(shape)
    assert wish.kind == "student"


class Only(nn.Module):
    """Nothing but the concatenation tells the two groups' sizes."""

    def __init__(self, n=10):
        super().__init__()
        self.first, self.a, self.b = nn.Linear(3, n), nn.Linear(3, 2), nn.Linear(3, 2)

    def forward(self, x):
        y = self.first(x)
        return y[:, :4].amax(1) + y[:, 4:].amax(1)


def test_an_axis_of_two_unknown_groups_is_spread_in_proportion():
    structure = inferred(Only(), torch.randn(2, 3))
    (a, _), (b, _) = resolve(structure.axes["first.weight"][0])
    assert by_student(structure, Only(15)).sizes == {a: 6, b: 9}
    with pytest.raises(GrowthError, match=r"'first.weight' is \[10, 3\] in the teacher and \[9, 3\] in the student"):
        by_student(structure, Only(9))


class Pooled(nn.Module):
    """Reads its 8 features as four pairs: a unit of its group is four features, one of each pair."""

    def __init__(self, n=8):
        super().__init__()
        self.first = nn.Linear(3, n)

    def forward(self, x):
        return self.first(x).unflatten(1, (-1, 2)).amax(2).amax(1)


def test_positions_that_are_no_whole_units_are_refused():
    structure = inferred(Pooled(), torch.randn(2, 3))
    assert list(by_student(structure, Pooled(12)).sizes.values()) == [3]
    with pytest.raises(GrowthError, match=r"'first.weight' is \[8, 3\] in the teacher and \[11, 3\] in the student"):
        by_student(structure, Pooled(11))


def test_branches_at_odds_with_their_reader_are_named():
    student = Joined(5, 6)
    student.c = nn.Linear(12, 5)
    with pytest.raises(GrowthError, match=r"'c.weight' is \[5, 10\] .* \[5, 12\] .*at odds with a layer"):
        by_student(inferred(Joined(), torch.randn(2, 3)), student)


@pytest.mark.parametrize(
    ("student", "words"),
    [
        (nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)), "'1.weight' is in the student alone"),
        (nn.Sequential(nn.Linear(3, 4, bias=False)), "'0.bias' is in the teacher alone"),
        (nn.Sequential(nn.Conv1d(3, 4, 1)), r"'0.weight' is \[4, 3\] in the teacher and \[4, 3, 1\] in the student"),
    ],
)
def test_names_and_dimensions_are_checked_first(student, words):
    teacher = nn.Sequential(nn.Linear(3, 4))
    with pytest.raises(GrowthError, match=words):
        check_names(teacher, student)
    check_names(teacher, nn.Sequential(nn.Linear(3, 9)))
