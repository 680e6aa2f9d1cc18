"""Remappings of units as maps of the positions of axes."""

import pytest
import torch
from nets import inferred
from torch import nn

from n2n_cli.growth.build.maps import AxisMap, all_maps, axis_map, axis_mapper, grown_length
from n2n_cli.growth.groups.axes import Group
from n2n_cli.growth.groups.remapping import Remapping
from n2n_cli.growth.sizes.draw import draw

A, B, C = Group(3), Group(2), Group(4)
GROWN = {A: Remapping.of(torch.tensor([0, 1, 2, 1, 1]), 3), B: Remapping.of(torch.tensor([0, 1, 0]), 2)}


def test_one_group_of_single_positions_is_its_remapping():
    found = axis_map([(A, 1)], GROWN)
    assert isinstance(found, AxisMap) and found.exact
    assert found.index.tolist() == [0, 1, 2, 1, 1] and found.copies.tolist() == [1, 3, 1, 3, 3]
    assert found.first.tolist() == [True, True, True, False, False] and found.own == 3


def test_spans_follow_each_other_and_units_cover_neighbouring_positions():
    """A stands there with two positions a unit, C does not grow, then B: teacher positions 0-5, 6-9, 10-11."""
    axis = [(A, 2), (C, 1), (B, 1)]
    found = axis_map(axis, GROWN)
    assert found.index.tolist() == [0, 1, 2, 3, 4, 5, 2, 3, 2, 3, 6, 7, 8, 9, 10, 11, 10]
    assert found.copies.tolist() == [1, 1, 3, 3, 1, 1, 3, 3, 3, 3, 1, 1, 1, 1, 2, 1, 2]
    assert found.first.tolist() == [True] * 6 + [False] * 4 + [True] * 6 + [False]
    assert found.own == 6 and grown_length(axis, GROWN) == len(found.index) == 17


def test_an_axis_without_a_group_that_grows_has_no_map():
    assert axis_map([(C, 3)], GROWN) is None and axis_map([], GROWN) is None
    assert grown_length([(C, 3)], GROWN) == 12


def test_a_group_that_was_joined_or_split_is_looked_up_as_what_stands_for_it():
    whole = Group(5)
    whole.forward = [(A, 1), (B, 1)]
    assert axis_map([(whole, 1)], GROWN).index.tolist() == [0, 1, 2, 1, 1, 3, 4, 3]


def test_units_that_hold_a_multiple_are_shared_otherwise():
    holds, share = torch.tensor([1.0, 2.0, 0.5]).double(), torch.tensor([0.5, 1.0, 1.0]).double()
    idle = torch.tensor([False, False, True])
    special = Remapping(torch.tensor([0, 1, 0]), torch.tensor([2, 1, 2]), holds, share, idle=idle)
    found = axis_map([(A, 1), (B, 2)], {**GROWN, B: special})
    assert not found.exact
    third = torch.tensor([1, 1 / 3, 1, 1 / 3, 1 / 3], dtype=torch.float64)
    assert torch.equal(found.share, torch.cat([third, share.repeat_interleave(2)]))
    assert torch.equal(found.holds, torch.cat([torch.ones(5).double(), holds.repeat_interleave(2)]))
    assert found.idle.tolist() == [False] * 9 + [True] * 2


def test_means_say_where_they_stand_and_of_what():
    special = Remapping(torch.tensor([0, 1, 0, 0]), torch.tensor([1, 1, 1, 1]), mean=True)
    assert axis_map([(A, 1), (B, 3)], {**GROWN, B: special}).means == [(5 + 6, 5 + 12, 3, 2, 3)]


def test_own_counts_the_front_alone():
    shifted = {A: Remapping.of(torch.tensor([0, 2, 1, 0]), 3)}
    assert axis_map([(A, 1)], shifted).own == 1
    assert axis_map([(B, 1), (A, 1)], shifted).own == 3


def test_axes_of_the_same_spans_share_one_map():
    one = axis_mapper(GROWN)
    assert one([(A, 1)]) is one([(A, 1)]) and one([(A, 1)]) is not one([(A, 2)]) and one([(C, 1)]) is None


@pytest.mark.parametrize("size", [5, 9])
def test_all_parameters_and_buffers_have_the_maps_of_their_groups(size):
    net = nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.Flatten(), nn.Linear(20, 2))
    structure = inferred(net, torch.randn(2, 3, 4, 4))
    (group,) = [group for group in structure.groups() if not group.fixed]
    maps = all_maps(structure, draw(structure, {group: size}, 0))
    assert maps.keys() == structure.axes.keys()
    shapes = {name: [len(m.index) if m else None for m in axes] for name, axes in maps.items()}
    n, wide = (size, 4 * size) if size > 5 else (None, None)
    assert shapes["0.weight"] == [n, None, None, None] and shapes["1.running_var"] == [n]
    assert shapes["3.weight"] == [None, wide] and shapes["3.bias"] == [None] and shapes["1.num_batches_tracked"] == []


def test_twins_of_two_spans_are_not_twins_of_each_other() -> None:
    """Each span of a concatenation counts its twins from where it begins on the student's axis."""
    fresh = Remapping(
        torch.tensor([0, 0, 0]),
        torch.ones(3, dtype=torch.int64),
        fresh=torch.tensor([False, True, True]),
        twin=torch.tensor([0, 1, 1]),
    )
    a, b = Group(1), Group(1)
    mapped = axis_map([(a, 2), (b, 1)], {a: fresh, b: fresh})
    assert mapped is not None and mapped.twin is not None
    assert mapped.twin.tolist() == [0, 1, 2, 3, 2, 3, 6, 7, 7]
    assert mapped.index.tolist() == [0, 1, 0, 1, 0, 1, 2, 2, 2]
