"""What an operator returns, and what it says about the groups."""

import pytest
import torch
from torch import nn

from n2n_cli import growth


@pytest.mark.parametrize(
    ("dropout", "noise", "alike"),
    [(nn.Identity(), 0.0, 2), (nn.Dropout(0.5), 0.0, 1), (nn.Dropout(0.0), 0.0, 2), (nn.Identity(), 0.1, None)],
)
def test_copies_that_nothing_parts_are_counted(dropout, noise, alike):
    """Dropout parts the copies of the group that it stands on, and of no other."""
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 5), nn.ReLU(), dropout, nn.Linear(5, 2))
    warnings = growth.widen(net, torch.randn(4, 3), 2.0, noise=noise).warnings
    assert [warning[: len("copies in N of 2")] for warning in warnings] == (
        [f"copies in {alike} of 2"] if alike else []
    )
    assert not growth.widen(net, torch.randn(4, 3), 1.0).warnings
