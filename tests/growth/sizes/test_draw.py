"""The remapping of every group: the teacher's own units first, then copies drawn uniformly."""

import pytest
import torch
from nets import inferred, mlp, only_group
from torch import nn

from n2n_cli.growth.sizes.draw import draw


def drawn(size, seed=0):
    structure = inferred(mlp(), torch.randn(2, 10).double())
    group = only_group(structure, "0.weight")
    return draw(structure, {group: size}, seed), group


@pytest.mark.parametrize("size", [9, 16, 100])
def test_own_units_first_then_copies_with_their_replication_factors(size):
    remappings, group = drawn(size)
    assert list(remappings) == [group], "input and output are fixed"
    found = remappings[group]
    assert found.plain and found.index.shape == found.copies.shape == (size,)
    assert torch.equal(found.index[:8], torch.arange(8)) and set(found.index.tolist()) == set(range(8))
    assert found.copies.tolist() == [found.index.tolist().count(unit) for unit in found.index.tolist()]
    torch.testing.assert_close((1 / found.copies.double()).sum(), torch.tensor(8.0).double(), rtol=0, atol=1e-12)


def test_what_keeps_its_size_and_what_is_fixed_is_not_drawn():
    assert drawn(8)[0] == {}
    structure = inferred(mlp(), torch.randn(2, 10).double())
    assert draw(structure, {only_group(structure, "2.weight"): 6}, 0) == {}


def test_a_seed_decides():
    one, same, other = (next(iter(drawn(40, seed)[0].values())).index for seed in (3, 3, 4))
    assert torch.equal(one, same) and not torch.equal(one, other)


def test_the_users_random_state_neither_matters_nor_moves():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    one = next(iter(drawn(40)[0].values())).index
    torch.set_rng_state(before)
    torch.rand(7)
    assert torch.equal(one, next(iter(drawn(40)[0].values())).index)


def test_copies_are_uniform_over_the_teachers_units():
    """Chi-square of 8 cells over 40000 draws: 24.3 is the 0.1 % point."""
    remappings, group = drawn(40_008)
    counts = torch.bincount(remappings[group].index[8:], minlength=8).double()
    assert ((counts - 5000) ** 2 / 5000).sum() < 24.3


def test_tied_units_are_copied_equally_often():
    net = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2))
    structure = inferred(net, torch.randn(2, 3))
    group = only_group(structure, "0.weight")
    assert draw(structure, {group: 12}, 0)[group].copies.tolist() == [3] * 12
