"""Random pad and random init: the shapes of the grown student, and the paper's weights in their places."""

import pytest
import torch
from families import narrow_resnet
from nets import perturb, same_state, state_of, storages

from n2n_cli import growth, models


def images(size=32, n=4):
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(1))


def shapes(model):
    return {name: tensor.shape for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("plan", ["factor", "student"])
def test_random_pad_keeps_the_teachers_weights_and_pads_with_the_initialization(plan):
    torch.manual_seed(0)
    teacher = perturb(models.build("inception_bn_tiny", 6, width=0.3))
    before, x = state_of(teacher), images()
    target = models.build("inception_bn_tiny", 6, width=0.45) if plan == "student" else 1.5
    padded = growth.random_pad(teacher, x, target, seed=4)
    wide = growth.widen(teacher, x, target, seed=4).student
    fresh = growth.random_init(teacher, x, target, seed=4).student
    assert shapes(padded.student) == shapes(wide) == shapes(fresh)
    assert same_state(state_of(teacher), before) and not storages(teacher) & storages(padded.student)
    assert padded.gap.eval > 1e-3, "it does not preserve the function"
    changed = 0
    for name, weight in padded.student.state_dict().items():
        old = before[name]
        if weight.shape == old.shape:
            assert torch.equal(weight, old)
            continue
        changed += 1
        kept = torch.isclose(weight, fresh.state_dict()[name], rtol=0, atol=0)
        assert (~kept).sum() <= old.numel(), f"{name}: all else is the initialization's"
        assert all((weight == value).any() for value in old.flatten()[:20])
    assert changed > 20


def test_padding_sits_behind_each_part_of_a_concatenation():
    class Two(torch.nn.Module):
        def __init__(self, a=2, b=3):
            super().__init__()
            self.a, self.b, self.c = torch.nn.Linear(4, a), torch.nn.Linear(4, b), torch.nn.Linear(a + b, 2)

        def forward(self, x):
            return self.c(torch.cat([self.a(x), self.b(x)], 1))

    teacher = Two()
    student = growth.random_pad(teacher, torch.randn(3, 4), Two(4, 5)).student
    assert torch.equal(student.c.weight[:, :2], teacher.c.weight[:, :2])
    assert torch.equal(student.c.weight[:, 4:7], teacher.c.weight[:, 2:])
    assert torch.equal(student.a.weight[:2], teacher.a.weight)


def test_random_init_is_drawn_from_the_seed():
    teacher, x = perturb(narrow_resnet()), images(64)
    one, same, other = (growth.random_init(teacher, x, 1.5, seed=s).student.state_dict() for s in (1, 1, 2))
    assert same_state(one, same) and not same_state(one, other)
    assert torch.equal(one["bn1.running_mean"], torch.zeros(96)), "statistics are fresh, not the teacher's"
    kept = torch.isin(one["conv1.weight"], teacher.conv1.weight).float().mean()
    assert kept < 0.01, "no weight is the teacher's, but by chance"


def test_a_constructors_student_is_taken_as_it_was_initialized_unless_reset():
    teacher = models.build("inception_rect", 6, width=0.3, stem="small")
    target = models.build("inception_rect", 6, width=0.3, stem="small", extra_pairs=2)
    x = images()
    assert same_state(growth.random_init(teacher, x, target).student.state_dict(), target.state_dict())
    reset = growth.random_init(teacher, x, target, seed=3, reset=True).student
    assert not same_state(reset.state_dict(), target.state_dict())
