"""A size for every group: the plan's wish, made to fit by the relations."""

import pytest
import torch
from nets import inferred, mlp, only_group
from torch import nn

from n2n_cli.growth import GrowthError
from n2n_cli.growth.groups.infer import trace
from n2n_cli.growth.groups.reasons import Reason
from n2n_cli.growth.groups.structure import Hold
from n2n_cli.growth.sizes.solve import Solution, group_and_size, relax, solve


def normed():
    return nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))


X = torch.randn(2, 3)


def sizes_of(structure, solution):
    return [
        solution.sizes.get(group, group.n) for name in ("0", "2") for group in [only_group(structure, name + ".weight")]
    ]


def test_every_form_of_plan_asks_for_the_same():
    student = nn.Sequential(nn.Linear(10, 12), nn.ReLU(), nn.Linear(12, 3))
    for plan in (1.5, {"0": 1.5}, {"0": 12}, student):
        structure = inferred(mlp(), torch.randn(2, 10).double())
        solution = solve(structure, plan)
        assert solution.sizes == {only_group(structure, "0.weight"): 12}
        assert not solution.holds and not solution.rounded


def test_ties_round_a_factor_and_say_so():
    structure = inferred(normed(), X)
    solution = solve(structure, 1.5)
    first, hidden = sizes_of(structure, solution)
    assert first in (4, 8) and hidden == 9 and solution.rounded
    assert not solve(structure, 2.0).rounded and sizes_of(structure, solve(structure, 2.0)) == [8, 12]


def test_what_a_layer_was_asked_for_is_not_rounded_but_refused():
    with pytest.raises(GrowthError, match=r"asks for 1.5 times the units of 0, 1, 2, .*the same whole number of times"):
        solve(inferred(normed(), X), {"0": 6})


def test_solving_leaves_the_structure_as_it_is():
    structure = inferred(normed(), X)
    before = [(group, group.n, group.fixed) for group in structure.groups()]
    solve(structure, 1.5)
    assert [(group, group.n, group.fixed) for group in structure.groups()] == before


def test_holding_is_a_step_of_its_own():
    structure = inferred(mlp(), torch.randn(2, 10).double())
    group, reason = only_group(structure, "0.weight"), Reason("other", "for a test")
    solution = Solution({}, [Hold([group], reason)])
    assert group.fixed is None
    assert solution.apply_holds(structure) is solution and group.fixed == reason


def test_where_whole_numbers_do_not_serve_the_relaxed_relations_do():
    structure, solution = group_and_size(normed(), trace(normed(), X), 1.5)
    assert sizes_of(structure, solution) == [6, 9]
    structure, solution = group_and_size(normed(), trace(normed(), X), 2.0)
    assert sizes_of(structure, solution) == [8, 12] and not any(r.relaxing and r.bonds() for r in structure.relations)


def test_nothing_is_relaxed_where_nothing_is_tied():
    net, x = mlp(), torch.randn(2, 10).double()
    structure = inferred(net, x)
    assert relax(net, trace(net, x), structure) is structure
    tied = inferred(normed(), X)
    assert relax(normed(), trace(normed(), X), tied) is not tied
