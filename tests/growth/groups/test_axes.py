"""The axis algebra on its own."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from n2n_cli.growth.groups.axes import Group, constant, cut, fix, fresh, length, resolve, scaled, unify
from n2n_cli.growth.groups.reasons import Reason


def shape(axis):
    return [(group.n, k) for group, k in resolve(axis)]


def test_a_concatenation_splits_its_reader():
    a, b, reader = fresh(64), fresh(96), fresh(160)
    unify([*a, *b], reader)
    assert shape(reader) == [(64, 1), (96, 1)]
    assert resolve(reader)[0][0] is resolve(a)[0][0]
    assert resolve(reader)[1][0] is resolve(b)[0][0]


def test_flattened_maps_make_units_coarse():
    channels, features = fresh(8), fresh(8 * 49)
    unify(scaled(channels, 49), features)
    assert shape(features) == [(8, 49)]
    assert shape(channels) == [(8, 1)]


def test_unequal_units_join_by_their_least_common_multiple():
    a, b = scaled(fresh(6), 2), scaled(fresh(4), 3)
    unify(a, b)
    assert shape(a) == shape(b) == [(2, 6)]


def test_a_fixed_run_fixes_only_what_lies_against_it():
    axis = fresh(10)
    unify(axis, [*constant(3, Reason("input", "input")), *fresh(7)])
    assert [(g.n, bool(g.fixed)) for g, _ in resolve(axis)] == [(3, True), (7, False)]


def test_a_boundary_through_a_unit_fixes_that_unit_alone():
    axis = scaled(fresh(5), 4)  # 20 positions in units of 4
    unify(axis, [*fresh(6), *fresh(14)])
    assert [(g.n, k, bool(g.fixed)) for g, k in resolve(axis)] == [(1, 4, False), (1, 4, True), (3, 4, False)]


def test_cut_at_and_inside_units():
    axis = scaled(fresh(4), 3)
    assert length(cut(axis, 3, 9)) == 6
    assert [(g.n, bool(g.fixed)) for g, _ in resolve(axis)] == [(1, False), (2, False), (1, False)]
    inside = scaled(fresh(2), 4)
    part = cut(inside, 0, 2)
    assert length(part) == 2 and resolve(part)[0][0].fixed


def test_an_axis_unified_with_its_own_swap_ties_its_halves():
    axis = fresh(6)
    unify(axis, [*cut(axis, 3, 6), *cut(axis, 0, 3)])
    (a, _), (b, _) = resolve(axis)
    assert a is b and a.n == 3


def test_different_lengths_are_refused():
    with pytest.raises(ValueError, match="4 and 5"):
        unify(fresh(4), fresh(5))


@st.composite
def axes(draw, total):
    runs, left = [], total
    while left:
        k = draw(st.sampled_from([1, 2, 3]))
        n = draw(st.integers(1, max(1, left // k)))
        if n * k > left:
            continue
        run = (Group(n), k)
        if draw(st.integers(0, 5)) == 0:
            fix([run], Reason("other", "fixed"))
        runs.append(run)
        left -= n * k
    return runs


@given(st.data(), st.integers(1, 24))
def test_after_unification_both_sides_read_the_same(data, total):
    """Whatever the runs: lengths stay, open runs coincide, and a position is fixed on both sides or on none."""
    a, b = data.draw(axes(total)), data.draw(axes(total))
    unify(a, b)
    assert length(a) == length(b) == total

    def positions(axis):
        return [
            None if group.fixed else (id(group), k, unit, at)
            for group, k in resolve(axis)
            for unit in range(group.n)
            for at in range(k)
        ]

    for left, right in zip(positions(a), positions(b), strict=True):
        assert left == right


@given(st.data(), st.integers(2, 20))
def test_unification_twice_changes_nothing(data, total):
    a, b = data.draw(axes(total)), data.draw(axes(total))
    unify(a, b)
    before = [(id(g), k) for g, k in resolve(a)]
    unify(a, b)
    assert [(id(g), k) for g, k in resolve(a)] == before
