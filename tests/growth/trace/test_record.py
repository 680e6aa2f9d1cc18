"""One forward pass as a list of operations: what it holds, and what it leaves alone."""

import torch
from nets import (
    double_gap,
)
from torch import nn

from n2n_cli import growth


class Branching(nn.Module):
    """Data-dependent control flow cannot run on meta tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x):
        h = torch.relu(self.a(x))
        return self.b(h if x.sum() > 0 else -h)


def test_data_dependent_branches_are_recorded_on_real_tensors():
    teacher, x = Branching().double(), torch.randn(5, 4, dtype=torch.float64)
    student = growth.widen(teacher, x, 2.0).student
    assert student.a.out_features == 12 and double_gap(teacher, student, x) < 1e-12


def test_modes_dropout_and_random_state_are_left_alone():
    teacher = nn.Sequential(nn.Linear(4, 6), nn.Dropout(0.5), nn.ReLU(), nn.Linear(6, 2))
    teacher[1].eval()
    modes = [m.training for m in teacher.modules()]
    rng = torch.get_rng_state()
    student = growth.widen(teacher, torch.randn(3, 4, generator=torch.Generator().manual_seed(0)), 2.0).student
    assert torch.equal(rng, torch.get_rng_state())
    assert [m.training for m in teacher.modules()] == modes == [m.training for m in student.modules()]
