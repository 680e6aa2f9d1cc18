"""The function gap: what it sees, and that measuring leaves the teacher alone."""

import copy

import pytest
import torch
from nets import Masked, images, perturb, resnet18
from torch import nn

from n2n_cli import growth


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
