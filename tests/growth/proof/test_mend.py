"""Build, prove, and mend or hold: what a failed student teaches."""

import torch
from torch import nn

from n2n_cli import growth


def test_an_example_of_many_images_narrows_as_well():
    class Literal(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(5, 8), nn.Linear(8, 6), nn.Linear(6, 3)

        def forward(self, x):
            return self.c(torch.relu(self.b(torch.relu(self.a(x)).view(-1, 2, 4).flatten(1))))

    grown = growth.widen(Literal().double(), torch.randn(9, 5).double(), 1.5)
    assert grown.student.a.out_features == 8 and grown.student.b.out_features == 9
