"""The table of operations: no row stands for an operation that PyTorch does not have."""

import pytest
import torch
from nets import double_gap
from torch import nn

from n2n_cli import growth
from n2n_cli.growth.groups.operations import ROWS


@pytest.mark.parametrize("name", ROWS)
def test_every_row_is_an_operation_of_pytorch(name):
    assert hasattr(torch.ops.aten, name)


@pytest.mark.parametrize("activation", [nn.RReLU(), nn.LogSigmoid(), nn.Softsign(), nn.Softmin(1)], ids=repr)
def test_activations_that_pytorch_takes_apart_or_draws(activation):
    net = nn.Sequential(nn.Linear(3, 4), activation, nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2)).double()
    x = torch.randn(6, 3, dtype=torch.float64)
    grown = growth.widen(net, x, 1.5)
    assert grown.student[2].out_features == 8
    assert grown.student[0].out_features == (4 if isinstance(activation, nn.Softmin) else 6)
    assert double_gap(net, grown.student, x) < 1e-10
