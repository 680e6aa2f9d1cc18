"""Relaxed norms: labels in, labels out; what the units of stream and result hold, what weight and eps become."""

import pytest
import torch
import torch.nn.functional as F
from labels import P, labelled
from torch import nn

from n2n_cli.growth.groups.relations import RELATIONS
from n2n_cli.growth.groups.relations.norms import WHOLE_NUMBERS, RelaxedNorms
from n2n_cli.growth.groups.remapping import Remapping

LAYER, RMS = {"": nn.LayerNorm(4)}, {"": nn.RMSNorm(4, eps=1e-5)}
FORK = ("", "layer_norm", 1, 0)


def normed(before=lambda x: x, after=lambda y: y):
    def call(x, w, b, v):
        return F.linear(after(F.layer_norm(before(x), (4,), w, b)), v)

    return call


GIVEN = [(5, 4), P(4), P(4), P(3, 4)]


def relaxed(call, *given, modules=LAYER, **options):
    return labelled(call, *given, relations=RELATIONS, modules=modules, **options)


def test_stream_and_result_are_groups_of_their_own():
    found = relaxed(normed(), *GIVEN)
    assert found.text == "a5 b4, c4, c4, d3 /c4 -> a5 d3"
    assert found.relation(RelaxedNorms).refuse(found.ctx) == {}
    assert [[group.n for group in bond] for bond in found.relation(RelaxedNorms).bonds()] == [[4, 4]]


def test_a_strict_norm_ties_both_to_whole_numbers():
    strict = relaxed(normed(), *GIVEN, choices={FORK: WHOLE_NUMBERS})
    assert strict.text == "a5 ~b4, ~b4, ~b4, c3 /~b4 -> a5 c3"
    assert labelled(normed(), *GIVEN, modules=LAYER).text == strict.text  # and so do relations that are not relaxing


@pytest.mark.parametrize(
    "call",
    [
        normed(before=torch.relu),
        normed(after=torch.relu),  # relu of 0 is 0, but of a unit that holds a mean it is not the mean
        normed(after=lambda y: y.mean(0, keepdim=True).expand(5, 4) + y.softmax(-1)),
    ],
    ids=["the stream meets an activation", "the result meets one", "the result meets a softmax"],
)
def test_refused_where_means_or_zeros_would_show(call):
    found = relaxed(call, *GIVEN)
    assert found.relation(RelaxedNorms).refuse(found.ctx) == {FORK: WHOLE_NUMBERS}


def test_two_streams_may_not_make_one_result():
    def call(x, y, w, b):
        return F.layer_norm(x, (4,), w, b) + F.layer_norm(y, (4,), w, b)

    found = relaxed(call, (5, 4), (5, 4), P(4), P(4))
    assert set(found.relation(RelaxedNorms).refuse(found.ctx)) == {FORK, ("", "layer_norm", 2, 0)}


@pytest.mark.parametrize("eps", [1e-3, 1e-5])
def test_an_eps_that_no_module_holds_cannot_follow(eps):
    found = relaxed(lambda x, w: F.layer_norm(x, (4,), w, None, eps), (5, 4), P(4))
    assert ("~" in found.text) == (eps != LAYER[""].eps)


def drawn(found, index):
    (norm,) = found.relation(RelaxedNorms).found
    remappings = {group: Remapping.of(torch.tensor(index), 4) for group in norm.groups()}
    found.relation(RelaxedNorms).refine(remappings)
    return norm, *(remappings[group] for group in norm.groups())


def test_new_units_of_a_layer_norm_hold_the_mean_and_give_zero():
    found = relaxed(normed(), *GIVEN)
    norm, stream, out = drawn(found, [0, 1, 2, 3, 0, 2])
    assert stream.mean and stream.share.tolist() == [1, 1, 1, 1, 0, 0]
    assert out.holds.tolist() == [1, 1, 1, 1, 0, 0] and out.share.tolist() == [1] * 6
    remappings = dict(zip(norm.groups(), (stream, out), strict=True))
    by = found.relation(RelaxedNorms).multipliers(None, remappings)
    assert by["p1"].tolist() == pytest.approx([(4 / 6) ** 0.5] * 6)
    assert by["p2"].tolist() == [1, 1, 1, 1, 0, 0]
    assert found.relation(RelaxedNorms).attributes(remappings) == {"": {"eps": pytest.approx(1e-5 * 4 / 6)}}


def test_the_arithmetic_of_a_layer_norm():
    """The teacher's result, from a stream of 6 units that hold [x, mean]: to the last bits of fp64."""
    x = torch.randn(7, 4, dtype=torch.float64)
    wide = torch.cat([x, x.mean(-1, keepdim=True).expand(7, 2)], -1)
    weight = torch.randn(4, dtype=torch.float64)
    ours = F.layer_norm(wide, (6,), torch.cat([weight, weight[:2]]) * (4 / 6) ** 0.5, None, 1e-5 * 4 / 6)
    torch.testing.assert_close(ours[:, :4], F.layer_norm(x, (4,), weight, None, 1e-5), rtol=0, atol=1e-12)
    assert ours[:, 4:].abs().max() < 1e-12
    wrong = F.layer_norm(wide, (6,), torch.cat([weight, weight[:2]]) * (4 / 6) ** 0.5, None, 1e-5)
    assert (wrong[:, :4] - F.layer_norm(x, (4,), weight, None, 1e-5)).abs().max() > 1e-7  # eps counts


def test_copies_in_front_of_an_rms_norm_hold_a_share_each():
    found = relaxed(lambda x, w: F.rms_norm(x, (4,), w, 1e-5), (5, 4), P(4), modules=RMS)
    norm, stream, out = drawn(found, [0, 1, 2, 3, 0, 0])
    third = 3**-0.5
    assert stream.holds.tolist() == pytest.approx([third, 1, 1, 1, third, third])
    assert out.plain and out.copies.tolist() == [3, 1, 1, 1, 3, 3]
    remappings = dict(zip(norm.groups(), (stream, out), strict=True))
    by = found.relation(RelaxedNorms).multipliers(None, remappings)
    assert by["p1"].square().tolist() == pytest.approx([c * 4 / 6 for c in (3, 1, 1, 1, 3, 3)])
