"""Buffers of positions: what they take has units of its own, and their entries follow what they take it from."""

import pytest
import torch
from labels import B, I, P, labelled
from nets import double_gap, perturb
from torch import nn

from n2n_cli import growth
from n2n_cli.growth.groups.axes import fix, resolve
from n2n_cli.growth.groups.reasons import Reason
from n2n_cli.growth.groups.relations.places import PlacesInBuffers
from n2n_cli.growth.groups.remapping import Remapping


def take(x, where):
    return x.index_select(1, where)


@pytest.mark.parametrize("call", [take, lambda x, where: x[:, where], lambda x, where: take(x, where.detach())])
def test_what_a_buffer_takes_has_units_of_its_own(call):
    assert labelled(call, (2, 6, 5), B(4)).text == "a2 b6 c5, d4 -> a2 d4 c5"


@pytest.mark.parametrize(
    ("call", "given", "text"),
    [
        (take, [(2, 6, 5), I(4)], "a2 !6 b5, !4 -> a2 !4 b5"),
        (lambda x, w: w.index_select(0, x), [I(4), P(6, 5)], "!4, !6 a5 -> !4 a5"),
        (lambda w, p: p[w], [B(4), P(6, 5)], "!4, !6 a5 -> !4 a5"),  # a table of parameters
        (lambda x, w: x[:, w], [(2, 6, 5), B(4, 3)], "a2 !6 b5, !4 !3 -> a2 !4 !3 b5"),
        (lambda x, w: x[w, w], [(2, 6, 5), B(4)], "!2 !6 a5, !4 -> !4 a5"),
    ],
    ids=["an activation", "its index", "a table", "two axes", "twice"],
)
def test_other_indices_hold_what_they_look_up(call, given, text):
    assert labelled(call, *given).text == text


def test_without_the_relation_it_is_held():
    assert labelled(take, (2, 6, 5), B(4), relations=[]).text == "a2 !6 b5, !4 -> a2 !4 b5"


def twice(x, y, where):
    return take(x, where), take(y, where)


@pytest.mark.parametrize(
    "call",
    [twice, lambda x, y, where: (take(x, where), y * where.sum()), lambda x, y, where: (where + 1, take(x, where))],
)
def test_a_buffer_that_is_read_in_two_ways_stays(call):
    found = labelled(call, (2, 6), (2, 6), B(4))
    found.relation(PlacesInBuffers).settle(found.ctx)
    assert all(group.fixed for axis in (found.axis(0, 1), found.axis(2, 0)) for group, _ in resolve(axis))


def test_entries_become_the_first_place_that_holds_the_same():
    """Of a concatenation: 3 units of two positions, then 2 of one; the first copy that is not idle."""
    found = labelled(lambda x, y, where: take(torch.cat([x.flatten(1), y], 1), where), (2, 3, 2), (2, 2), B(4))
    fix(found.axis(0, 2), Reason("other", "inner"))
    places = found.relation(PlacesInBuffers)
    (a, k), (b, m) = resolve(places.found[0].source)
    assert (a.n, k, b.n, m) == (3, 2, 2, 1)
    drawn = Remapping.of(torch.tensor([0, 1, 2, 0, 2]), 3)
    idle = Remapping(torch.tensor([0, 1, 0, 1]), torch.ones(4), idle=torch.tensor([True, False, False, False]))
    assert places.places({})["p2"].tolist() == [0, 1, 2, 3, 4, 5, 6, 7]
    assert places.places({a: drawn, b: idle})["p2"].tolist() == [0, 1, 2, 3, 4, 5, 12, 11]


class Taken(nn.Module):
    """CondenseNet: channels of a concatenation in an order of its own, some of them twice, in two groups."""

    def __init__(self, persistent=True):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 3, 1), nn.Conv2d(8, 6, 1, groups=2)
        self.norm, self.d = nn.BatchNorm2d(8), nn.Conv2d(6, 2, 1)
        self.register_buffer("order", torch.tensor([5, 0, 6, 2, 2, 4, 1, 0]), persistent=persistent)

    def forward(self, x):
        x = torch.cat([self.a(x), self.b(x)], 1).relu()
        return self.d(self.c(self.norm(x[:, self.order])).relu())


@pytest.mark.parametrize("factor", [1.5, 2.0, 3.0])
@pytest.mark.parametrize("options", [{}, {"new": "fresh"}, {"new": "paired"}, {"split": "unequal"}])
def test_a_network_that_takes_channels_grows(factor, options):
    torch.manual_seed(0)
    net, x = perturb(Taken()).double(), torch.randn(4, 3, 2, 2, dtype=torch.float64)
    grown = growth.widen(net, x, factor, **options)
    student = grown.student
    assert student.a.out_channels == 4 * factor and student.norm.num_features == len(student.order) == 8 * factor
    assert student.order.dtype == torch.long and net.order.tolist() == [5, 0, 6, 2, 2, 4, 1, 0]
    assert double_gap(net, student, x) < 1e-10 and double_gap(net, student, x.flip(1)) < 1e-10
    again = growth.wider.rebuild(net, grown.recipe)
    again.load_state_dict(student.state_dict())
    assert growth.function_gap(student, again, x) == 0
    assert double_gap(net, growth.widen(student, x, 1.5).student, x) < 1e-10  # once more


def test_padding_takes_the_same_channels():
    torch.manual_seed(0)
    net, x = Taken().double(), torch.randn(4, 3, 2, 2, dtype=torch.float64)
    padded = growth.random_pad(net, x, 2.0).student
    assert padded.order.max() >= 7 and growth.function_gap(net, padded, x) < 10
    for own, theirs in ((padded.a.weight[:4], net.a.weight), (padded.b.weight[:3], net.b.weight)):
        assert torch.equal(own, theirs)
    channels = torch.cat([padded.a(x), padded.b(x)], 1)[:, padded.order]
    assert torch.equal(channels[:, :4], torch.cat([net.a(x), net.b(x)], 1)[:, net.order][:, :4])


def test_a_buffer_that_no_state_dict_holds_stays():
    student = growth.widen(Taken(persistent=False), torch.randn(4, 3, 2, 2), 2.0).student
    assert student.a.out_channels == 4 and student.c.out_channels == 12
