"""Equal lengths: sizes in, sizes out."""

import pytest
import torch
import torch.nn.functional as F
from labels import labelled
from nets import inferred, only_group
from torch import nn

from n2n_cli.growth.groups.axes import Group, constant
from n2n_cli.growth.groups.reasons import Reason
from n2n_cli.growth.groups.relations.lengths import EqualLengths, Widths
from n2n_cli.growth.groups.structure import Wish


def fitted(g, h, k, m, sizes):
    """Two axes of as many positions, of units of k and of m."""
    a, b = Group(g), Group(h)
    found = EqualLengths()
    found.found = [([(a, k)], [(b, m)])]
    sizes, _ = found.fit(None, dict(zip((a, b), sizes, strict=True)), Wish({}, "factor"))
    return sizes[a], sizes[b]


@pytest.mark.parametrize(
    ("units", "per_unit", "wished", "got"),
    [
        ((3, 6), (2, 1), (5, 9), (5, 10)),  # 10 and 9 positions: the larger unit decides
        ((6, 3), (1, 2), (9, 5), (10, 5)),
        ((6, 6), (1, 1), (9, 8), (9, 9)),
        ((6, 6), (1, 1), (9, 9), (9, 9)),
        ((3, 2), (2, 3), (5, 3), (5, 3)),  # 10 and 9: ten are no three threes, so it stays to the proof
    ],
)
def test_the_larger_unit_decides(units, per_unit, wished, got):
    assert fitted(*units, *per_unit, wished) == got


def test_a_part_that_cannot_grow_changes_nothing():
    a = Group(4)
    found = EqualLengths()
    found.found = [([(a, 1)], constant(4, Reason("other", "a constant")))]
    assert found.fit(None, {a: 6}, Wish({}, "factor"))[0] == {a: 6}


def test_parts_of_a_chunk_are_equal_and_free():
    found = labelled(lambda x: x.chunk(3, 1), (2, 9))
    assert found.text == "a2 b3+c3+d3 -> a2 b3, a2 c3, a2 d3"
    pairs = [[group.n for group in bond] for bond in found.relation(EqualLengths).bonds()]
    assert pairs == [[3, 3], [3, 3]]


def test_parts_whose_units_differ_share_one_remapping():
    found = labelled(lambda x, y: torch.cat([x.flatten(1), y], 1).chunk(2, 1), (2, 2, 3), (2, 6))
    assert found.text == "a2 b2 !3, a2 b2*3 -> a2 b2*3, a2 b2*3"
    assert not found.relation(EqualLengths).found


class Heads(nn.Module):
    """The last layer of an attention meets 3 heads of 2, and a width of 6: two groups, one length."""

    def __init__(self):
        super().__init__()
        self.qkv, self.proj, self.out = nn.Linear(4, 18), nn.Linear(6, 6), nn.Linear(6, 2)

    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(-1, (3, -1, 2)).permute(2, 0, 3, 1, 4).unbind(0)
        return self.out(self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)))


def test_widths_of_one_module_follow_each_other():
    structure = inferred(Heads(), torch.zeros(2, 5, 4))
    heads, width = only_group(structure, "proj.weight", 1), only_group(structure, "proj.weight", 0)
    assert (heads.n, width.n) == (3, 6)
    sizes = {heads: 5, width: 9}
    fit = Widths().fit
    assert fit(structure, sizes, Wish(sizes, "factor", coupled=True))[0] == {heads: 5, width: 10}
    assert fit(structure, sizes, Wish(sizes, "factor"))[0] == sizes  # only where the plan leaves them free
    named = Wish(sizes, "layers", groups=[width], coupled=True)  # asked for by name: 9 is no whole number of heads
    assert fit(structure, sizes, named)[0] == sizes
