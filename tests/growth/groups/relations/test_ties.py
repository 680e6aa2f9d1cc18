"""Ties: sizes in, sizes out."""

import pytest
import torch
import torch.nn.functional as F
from labels import labelled

from n2n_cli.growth import GrowthError
from n2n_cli.growth.groups.axes import Group, fix, fresh
from n2n_cli.growth.groups.reasons import Reason
from n2n_cli.growth.groups.relations.ties import Tie, Ties
from n2n_cli.growth.groups.structure import Wish

MEAN = Reason("other", "a mean over its units")


def ties(*axes):
    found = Ties()
    found.found = [Tie(axis, MEAN) for axis in axes]
    return found


def test_means_that_share_a_group_are_one_class():
    a, b, c, d = (Group(n) for n in (2, 3, 4, 5))
    found = ties([(a, 1), (b, 1)], [(c, 1)], [(b, 1), (d, 1)])
    assert [set(part.groups) for part in found.classes()] == [{c}, {a, b, d}]
    assert {frozenset(bond) for bond in found.bonds()} == {frozenset({c}), frozenset({a, b, d})}


@pytest.mark.parametrize(
    ("wished", "fitted"),
    [((5, 8), (4, 6)), ((5, 9), (8, 12)), ((6, 9), (8, 12)), ((4, 16), (12, 18)), ((4, 6), (4, 6))],
)
def test_a_factor_becomes_the_nearest_whole_number_of_the_largest_wish(wished, fitted):
    a, b = Group(4), Group(6)
    found = ties([(a, 1), (b, 3)])
    wish = Wish({a: wished[0], b: wished[1]}, "factor")
    sizes, holds = found.fit(None, dict(wish.sizes), wish)
    assert (sizes[a], sizes[b]) == fitted and not holds
    assert found.rounds(sizes, wish) == (wished != fitted)


def test_a_part_that_cannot_grow_keeps_the_others():
    a, b = fresh(4), fresh(6)
    fix(b, Reason("input", "the network's input"))
    found = ties([*a, *b])
    (group, _), (still, _) = *a, *b
    assert found.fit(None, {group: 8}, Wish({group: 8}, "factor"))[0] == {group: 4}
    assert found.tied() == {group: (MEAN, still.fixed)}


class Named:
    def layers(self, groups):
        return ["fc"]


@pytest.mark.parametrize("plan", ["layers", "student"])
def test_a_size_asked_for_by_name_must_be_a_whole_multiple(plan):
    a = Group(4)
    found = ties([(a, 1)])
    assert found.fit(Named(), {a: 8}, Wish({a: 8}, plan))[0] == {a: 8}
    with pytest.raises(GrowthError, match=r"asks for 1.5 times the units of fc, but a mean over its units"):
        found.fit(Named(), {a: 6}, Wish({a: 6}, plan))


def test_every_unit_is_drawn_as_often():
    a, b = Group(3), Group(2)
    found = ties([(a, 1), (b, 1)])
    drawn = found.draw(None, {a: 6, b: 4}, torch.Generator())
    assert drawn[a].index.tolist() == [0, 1, 2, 0, 1, 2] and drawn[a].copies.tolist() == [2] * 6
    assert drawn[b].index.tolist() == [0, 1, 0, 1]
    assert found.draw(None, {a: 3, b: 2}, torch.Generator()) == {}


def test_the_group_norms_of_a_network_tie_both_of_its_halves():
    found = labelled(lambda x: F.group_norm(x, 2), (2, 6, 4))
    assert [[group.n for group in part.groups] for part in found.relation(Ties).classes()] == [[3, 3]]
