"""Build, prove, and mend or hold: what a failed student teaches."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from n2n_cli import growth
from n2n_cli.growth import GrowthError
from n2n_cli.growth.build.students import build, shapes_alone
from n2n_cli.growth.groups.infer import trace
from n2n_cli.growth.proof.mend import build_until_proved, check_shapes
from n2n_cli.growth.proof.prove import Unprovable, prove
from n2n_cli.growth.sizes.draw import draw
from n2n_cli.growth.sizes.solve import group_and_size


def test_an_example_of_many_images_narrows_as_well():
    class Literal(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(5, 8), nn.Linear(8, 6), nn.Linear(6, 3)

        def forward(self, x):
            return self.c(torch.relu(self.b(torch.relu(self.a(x)).view(-1, 2, 4).flatten(1))))

    grown = growth.widen(Literal().double(), torch.randn(9, 5).double(), 1.5)
    assert grown.student.a.out_features == 8 and grown.student.b.out_features == 9


def mended(net, x, plan):
    """The loop with the engine's own build and proof; what was tried, as (sizes, attributes)."""
    structure, solution = group_and_size(net, trace(net, x), plan)
    tried = []

    def make(sizes, attributes):
        candidate = build(net, structure, draw(structure, sizes, 0), attributes)
        tried.append((sorted(sizes.values()), candidate.attributes))
        return candidate

    def proof(candidate):
        prove(net, candidate.student, x)

    return build_until_proved(net, structure, solution, plan, make, proof), structure, tried


def plain():
    return nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3)).double()


X = torch.randn(4, 5).double()


def test_a_student_that_holds_is_built_once():
    candidate, _, tried = mended(plain(), X, 1.5)
    assert len(tried) == 1 and candidate.student[0].out_features == 12


class LiteralView(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(5, 8), nn.Linear(8, 6), nn.Linear(6, 3)

    def forward(self, x):
        return self.c(torch.relu(self.b(torch.relu(self.a(x)).view(-1, 2, 4).flatten(1))))


def test_what_a_literal_meets_is_held_by_name_and_the_rest_grows():
    candidate, structure, tried = mended(LiteralView().double(), X, 1.5)
    assert (candidate.student.a.out_features, candidate.student.b.out_features) == (8, 9) and len(tried) == 2
    held = {str(group.fixed) for group in structure.groups() if group.fixed and group.fixed.kind == "failed"}
    assert len(held) == 1 and "view" in held.pop()


def test_what_was_asked_for_by_name_is_refused_and_not_held():
    with pytest.raises(GrowthError, match="; first at view at the top module"):
        mended(LiteralView().double(), X, {"a": 1.5})


class SameNumber(nn.Module):
    """``side`` is the image's and equals ``width``: the first reading lets both follow."""

    def __init__(self):
        super().__init__()
        self.side, self.width = 8, 8
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 2)

    def forward(self, x):
        x = F.interpolate(self.a(x), (self.side, self.side))
        return self.b(x.view(-1, self.width, self.side * self.side).sum(2))


def test_a_number_that_was_read_wrongly_is_read_in_another_way():
    x = torch.randn(2, 3, 4, 4).double()
    candidate, _, tried = mended(SameNumber().double(), x, 1.5)
    assert tried[0][1][""] == {"side": 12, "width": 12}
    assert (candidate.student.side, candidate.student.width) == (8, 12) and tried[-1][0] == tried[0][0]


class AllLiteral(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(5, 8), nn.Linear(8, 3)

    def forward(self, x):
        return self.b(torch.relu(self.a(x)).view(-1, 2, 4).flatten(1))


def test_where_everything_would_be_held_nothing_can_grow():
    with pytest.raises(GrowthError, match=r"nothing of AllLiteral can grow: view at the top module"):
        mended(AllLiteral().double(), X, 2.0)


def test_a_teacher_without_a_function_is_not_mended():
    net = plain()
    net[4].weight.data.fill_(float("nan"))
    with pytest.raises(Unprovable):
        mended(net, X, 1.5)


def test_a_dry_run_compares_shapes():
    for net, holds in ((plain(), True), (AllLiteral(), False)):
        structure, solution = group_and_size(net, trace(net, X.to(next(net.parameters()))), 1.5)
        candidate = shapes_alone(net, structure, draw(structure, solution.sizes, 0))
        if holds:
            check_shapes(candidate)
        else:
            with pytest.raises(GrowthError, match="view at the top module"):
                check_shapes(candidate)
