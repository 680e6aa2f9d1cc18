"""The student itself: its class, its ties, its types, and what is frozen."""

import torch
from nets import images, perturb, resnet18, same_state, state_of
from torch import nn

from n2n_cli import growth


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 6)
        self.mix = nn.Linear(6, 6)
        self.out = nn.Linear(6, 11, bias=False)
        self.out.weight = self.embed.weight
        self.again = self.mix

    def forward(self, tokens):
        h = self.embed(tokens)
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
