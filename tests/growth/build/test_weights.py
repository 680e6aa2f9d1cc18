"""The student's weights: U[o, c] = W[g_out(o), g_in(c)] / r_in(c), and the noise on copies."""

import torch
from nets import Masked
from torch import nn
from torch.nn import functional as F

from n2n_cli import growth


class MaskedProduct(Masked):
    def forward(self, x):
        return F.conv2d(x, self.weight * self.mask, self.bias, padding=1)


def test_noise_is_for_parameters():
    torch.manual_seed(0)
    model = nn.Sequential(MaskedProduct(3, 8, 3), nn.ReLU(), MaskedProduct(8, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 1))
    student = growth.widen(model, torch.randn(2, 3, 8, 8), 1.5, noise=0.1).student
    assert set(student[0].mask.unique().tolist()) == {0.0, 1.0} and student[0].weight.shape[0] == 12
