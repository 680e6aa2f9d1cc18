"""Copies of a model: what cannot be copied is refused, and what modules remember comes along."""

import threading

import pytest
import torch
from torch import nn

from n2n_cli import growth
from n2n_cli.growth import GrowthError


class Uncopyable(nn.Module):
    """It holds a lock, and an open file would be the same."""

    def __init__(self):
        super().__init__()
        self.layer, self.out = nn.Linear(4, 6), nn.Linear(6, 3)
        self.lock = threading.Lock()

    def forward(self, x):
        return self.out(torch.relu(self.layer(x)))


def test_a_model_that_cannot_be_copied_is_refused_in_one_line():
    for grow in (lambda m, x: growth.widen(m, x, 2.0), growth.deepen):
        with pytest.raises(GrowthError, match="Uncopyable cannot be copied") as caught:
            grow(Uncopyable(), torch.randn(5, 4))
        assert "\n" not in str(caught.value)


class Remembers(nn.Module):
    """An activation kept for later, a mark on a parameter, and a weight that a hook computes anew."""

    def __init__(self):
        super().__init__()
        self.stem, self.mid = nn.Linear(10, 8), nn.Linear(8, 9)
        self.head = nn.Linear(9, 3)
        self.mid.weight._no_weight_decay = True
        nn.utils.weight_norm(self.stem)

    def forward(self, x):
        self.seen = torch.relu(self.stem(x))
        return self.head(torch.relu(self.mid(self.seen)))


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_what_modules_remember_is_copied():
    torch.manual_seed(0)
    model, x = Remembers().double(), torch.randn(2, 10).double()
    model(x)
    grown = growth.widen(model, x, 1.5)
    assert grown.student.mid.out_features == 14 and grown.student.mid.weight._no_weight_decay
    assert grown.student.stem.out_features == 8 and any("weight_norm" in note for note in grown.notes)
    assert growth.function_gap(model, grown.student, x) < 1e-12
