"""Channel shuffles: where units go, which sizes lose none, and which units may be copied where."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from labels import P, labelled
from nets import double_gap, inferred, only_group, perturb
from torch import nn

from n2n_cli import growth
from n2n_cli.growth import GrowthError
from n2n_cli.growth.groups.division import NO_FACTOR
from n2n_cli.growth.groups.relations.shuffles import Shuffles
from n2n_cli.growth.groups.structure import Wish


class Halves(nn.Module):
    """A enters a shuffle in two groups, and the result is cut into B and C: the example of ``_Fates``."""

    def __init__(self, n=4):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, n, 1), nn.Conv2d(n // 2, 2, 1), nn.Conv2d(n // 2, 2, 1)

    def forward(self, x):
        b, c = F.channel_shuffle(self.a(x), 2).chunk(2, 1)
        return self.b(b) + self.c(c)


@pytest.fixture
def halves():
    structure = inferred(Halves(), torch.zeros(2, 3, 1, 1))
    shuffles = next(r for r in structure.relations if isinstance(r, Shuffles))
    groups = [only_group(structure, name, dim) for name, dim in (("a.weight", 0), ("b.weight", 1), ("c.weight", 1))]
    return structure, shuffles, groups


def test_the_shuffle_is_one_chain(halves):
    _, shuffles, groups = halves
    assert [set(part) for part in shuffles.bonds()] == [set(groups)]
    source, out, reason = shuffles.passages()[0]
    assert source == groups[:1] and out == groups[1:] and reason.text == "a channel shuffle"


def test_units_move_as_the_network_moves_them(halves):
    _, shuffles, _ = halves
    training, evaluation = shuffles.found
    assert training.division.sizes == evaluation.division.sizes == (2, 2)
    for shuffle, n in itertools.product(shuffles.found, (4, 6, 10)):
        moved = F.channel_shuffle(torch.arange(float(n)).view(1, n, 1, 1), 2).flatten().long().tolist()
        assert shuffle.move(list(range(n))) == moved
    assert training.move(list(range(5))) is None


def test_only_units_of_the_same_fate_are_copied(halves):
    structure, shuffles, (a, b, c) = halves
    for seed in range(20):
        drawn = shuffles.draw(structure, {a: 6, b: 3, c: 3}, torch.Generator().manual_seed(seed))
        index = drawn[a].index.tolist()
        assert {index[place] for place in (0, 1, 3)} == {0, 2}
        assert {index[place] for place in (2, 4, 5)} == {1, 3}
        teacher = {0: 0, 2: 1}  # B's units in the teacher
        assert drawn[b].index.tolist() == [teacher[index[place]] for place in (0, 3, 1)]


@pytest.mark.parametrize(("wished", "got"), [((6, 3, 3), (6, 3, 3)), ((8, 4, 4), (8, 4, 4)), ((7, 3, 3), (6, 3, 3))])
def test_sizes_become_the_nearest_that_lose_no_unit(halves, wished, got):
    structure, shuffles, groups = halves
    sizes = dict(zip(groups, wished, strict=True))
    fitted, holds = shuffles.fit(structure, sizes, Wish(sizes, "factor"))
    assert tuple(fitted[group] for group in groups) == got and not holds


def test_a_student_that_would_lose_a_unit_is_refused(halves):
    structure, shuffles, (a, b, c) = halves
    sizes = {a: 6, b: 3, c: 2}
    assert shuffles.fit(structure, sizes, Wish(sizes, "student"))[0] == sizes
    with pytest.raises(GrowthError, match="would lose a unit"):
        shuffles.draw(structure, sizes, torch.Generator())


def shuffled(between=lambda x: x):
    return lambda x: between(x.view(2, 4, 6).transpose(1, 2)).reshape(2, 24)


VIEW = ("", "view", 1, 1)


def test_two_views_are_found_to_be_one():
    first = labelled(shuffled(), (2, 24))
    assert first.ctx.wanted == {VIEW: NO_FACTOR} and not first.relation(Shuffles).found
    again = labelled(shuffled(), (2, 24), choices={VIEW: NO_FACTOR})
    (shuffle,) = again.relation(Shuffles).found
    assert again.text == "a2 b24 -> a2 c24"
    assert (shuffle.division.sizes, shuffle.division.grows, shuffle.order) == ((4, 6), 1, (1, 0))


@pytest.mark.parametrize(
    ("divide", "sizes", "grows"),
    [
        (lambda x: x.view(2, 4, 6), (4, 6), 1),
        (lambda x: x.view(2, 6, 4), (6, 4), 0),
        (lambda x: x.view(2, -1, 4), (6, 4), 0),
        (lambda x: x.view(2, -1, 6), (4, 6), 0),  # written as -1, though it is the shorter one
        (lambda x: x.unflatten(1, (6, -1)), (6, 4), 1),
        (lambda x: x.unflatten(-1, (-1, 6)), (4, 6), 0),
    ],
)
def test_which_factor_the_code_makes_longer(divide, sizes, grows):
    first = labelled(lambda x: divide(x).transpose(1, 2).reshape(2, 24), (2, 24))
    again = labelled(lambda x: divide(x).transpose(1, 2).reshape(2, 24), (2, 24), choices=first.ctx.wanted)
    (shuffle,) = again.relation(Shuffles).found
    assert (shuffle.division.sizes, shuffle.division.grows) == (sizes, grows)


class Shuffled(nn.Module):
    def __init__(self, channels, groups, view):
        super().__init__()
        self.a, self.b, self.groups, self.view = nn.Conv2d(3, channels, 1), nn.Conv2d(channels, 2, 1), groups, view

    def forward(self, x):
        x = self.a(x)
        if not self.view:
            return self.b(F.channel_shuffle(x, self.groups))
        n, c, h, w = x.shape
        return self.b(x.view(n, self.groups, c // self.groups, h, w).transpose(1, 2).reshape(n, c, h, w))


@pytest.mark.parametrize(
    ("channels", "groups", "view"), [(4, 2, False), (8, 4, False), (16, 8, False), (4, 2, True), (8, 2, True)]
)
def test_few_channels_a_group_grow_too(channels, groups, view):
    net, x = Shuffled(channels, groups, view).double(), torch.randn(2, 3, 2, 2, dtype=torch.float64)
    grown = growth.widen(net, x, 2.0)
    assert grown.student.a.out_channels == 2 * channels
    assert double_gap(net, grown.student, x) < 1e-10


def test_a_view_back_in_the_same_order_is_none():
    found = labelled(lambda x: x.view(2, 4, 6).reshape(2, 24), (2, 24))
    assert not found.ctx.wanted and found.text == "a2 b6+b6+b6+b6 -> a2 b6+b6+b6+b6"


def test_what_lies_between_the_two_views_may_be_read_by_nobody():
    found = labelled(shuffled(lambda x: x + x.mean(1, keepdim=True)), (2, 24), choices={VIEW: NO_FACTOR})
    assert found.text.startswith("a2 !24 ->")
    assert "reads a channel shuffle half-way" in found.reasons


def test_a_shuffle_whose_result_is_fixed_fixes_its_source():
    found = labelled(lambda x: F.channel_shuffle(x, 2).softmax(1), (2, 8, 4, 4))
    assert found.text.startswith("a2 b8")
    found.relation(Shuffles).settle(found.ctx)
    assert found.axis(0, 1)[0][0].fixed.text == "its entries share one sum"


class Grouped(nn.Module):
    """ShuffleNet v1: a shuffle between two grouped convolutions."""

    def __init__(self, each, groups, op=True):
        super().__init__()
        self.a, self.norm = nn.Conv2d(3 * groups, each * groups, 1, groups=groups), nn.BatchNorm2d(each * groups)
        self.b, self.c = nn.Conv2d(each * groups, 4 * groups, 1, groups=groups), nn.Conv2d(4 * groups, 2, 1)
        self.groups, self.op = groups, op

    def forward(self, x):
        x = self.norm(self.a(x)).relu()
        if self.op:
            return self.c(self.b(F.channel_shuffle(x, self.groups)).relu())
        n, _, h, w = x.shape
        return self.c(self.b(x.view(n, self.groups, -1, h, w).transpose(1, 2).reshape(n, -1, h, w)).relu())


def two_grouped(x, v, w):
    return F.conv2d(F.channel_shuffle(F.conv2d(x, v, groups=2), 2), w, groups=2)


def test_a_result_that_repeats_a_group_asks_for_a_source_that_does_not():
    given = (2, 4, 5, 5), P(6, 2, 1, 1), P(2, 3, 1, 1)
    first = labelled(two_grouped, *given)
    assert first.text == "a2 b2+b2 !5 !5, c3+c3 /b2 !1 !1, d1+d1 /e3 !1 !1 -> a2 d1+d1 !5 !5"
    first.relation(Shuffles).settle(first.ctx)
    assert first.ctx.wanted == {("", "conv2d", 1, 1): 1}
    again = labelled(two_grouped, *given, choices=first.ctx.wanted)
    assert again.text == "a2 b2+b2 !5 !5, c3+d3 /b2 !1 !1, e1+e1 /f3 !1 !1 -> a2 e1+e1 !5 !5"
    shuffles = again.relation(Shuffles)
    shuffles.settle(again.ctx)
    assert all(not group.fixed for group in shuffles.live()[0].groups())


def test_units_of_a_repeated_result_are_copied_where_all_repeats_read_the_same_groups():
    """The example of ``drawn_from_its_end``."""
    structure = inferred(Grouped(3, 2), torch.zeros(2, 6, 1, 1))
    shuffles = next(r for r in structure.relations if isinstance(r, Shuffles))
    a, b, c = dict.fromkeys(shuffles.found[0].groups())
    for n, ours in ((4, None), (5, 5), (6, 5)):
        sizes = dict.fromkeys((a, b, c), n)
        fitted, holds = shuffles.fit(structure, sizes, Wish(sizes, "factor"))
        assert not holds and set(fitted.values()) == {ours or 5}
    for seed in range(20):
        drawn = shuffles.draw(structure, dict.fromkeys((a, b, c), 5), torch.Generator().manual_seed(seed))
        index = {group: found.index.tolist() for group, found in drawn.items()}
        assert index[c][:3:2] == [0, 2] and index[c][4] in (0, 2) and index[c][1] == index[c][3] == 1
        first, second = [(a, 0), (b, 0), (a, 1)], [(b, 1), (a, 2), (b, 2)]
        for place, (group, unit) in enumerate([(a, 0), (b, 0), (a, 1), (b, 1), (a, 2)]):
            assert (group, index[group][unit]) == first[index[c][place]]
        for place, (group, unit) in enumerate([(b, 2), (a, 3), (b, 3), (a, 4), (b, 4)]):
            assert (group, index[group][unit]) == second[index[c][place]]


@pytest.mark.parametrize(("each", "groups"), [(3, 2), (4, 2), (5, 3), (2, 4), (20, 3)])
@pytest.mark.parametrize("op", [True, False])
def test_a_shuffle_between_two_grouped_convolutions(each, groups, op):
    torch.manual_seed(0)
    net, x = perturb(Grouped(each, groups, op)).double(), torch.randn(3, 3 * groups, 2, 2, dtype=torch.float64)
    for factor in (1.5, 2.0):
        student = growth.widen(net, x, factor).student
        assert student.a.out_channels > each * groups and student.a.groups == student.b.groups == groups
        assert double_gap(net, student, x) < 1e-10 and double_gap(net, student, x[:2].flip(1)) < 1e-10


def test_a_shuffle_from_and_to_repeats_that_others_share_stays():
    """The result is added to its source: no remapping serves both."""

    class Added(Grouped):
        def forward(self, x):
            x = self.a(x).relu()
            return self.c(self.b(x + F.channel_shuffle(x, self.groups)).relu())

    student = growth.widen(Added(4, 2), torch.randn(2, 6, 2, 2), 2.0).student
    assert student.a.out_channels == 8 and student.b.out_channels == 16
