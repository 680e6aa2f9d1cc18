"""Head widths: which rows make the queries, and what they are multiplied by."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from labels import P, labelled

from n2n_cli.growth.groups.relations.heads import HeadWidths
from n2n_cli.growth.groups.remapping import Remapping


def attention(scale=None, touch=lambda q: q):
    """Two heads; queries, keys and values from one weight, one after the other."""

    def call(x, w, b):
        q, k, v = F.linear(x, w, b).unflatten(-1, (3, 2, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        scale_ = None if scale is None else scale[q.shape[-1]]
        return F.scaled_dot_product_attention(touch(q), k, v, scale=scale_).transpose(1, 2).flatten(2)

    return call


WIDTH, WIDER = [(1, 5, 4), P(12, 4), P(12)], [(1, 5, 4), P(24, 4), P(24)]  # 2 units a head, and 4


def test_the_queries_are_the_first_third_of_the_rows():
    found = labelled(attention(), *WIDTH, student=WIDER)
    (width,) = found.relation(HeadWidths).found
    assert (width.weight, width.bias) == ("p1", "p2")
    assert width.rows.tolist() == [0, 1, 2, 3]
    assert width.scale == pytest.approx(2**0.5)  # 1 / sqrt(2) over 1 / sqrt(4)
    six = "+".join(["c2"] * 6)  # every head of queries, keys and values
    assert found.text == f"a1 !5 b4, {six} /b4, {six} -> a1 !5 c2+c2"


def test_a_scale_that_is_given_counts():
    found = labelled(attention({2: 0.5, 4: 0.25}), *WIDTH, student=WIDER)
    assert found.relation(HeadWidths).found[0].scale == 2.0


def test_the_rows_of_queries_are_divided_by_their_copies_and_scaled():
    found = labelled(attention(), *WIDTH, student=WIDER)
    heads = found.relation(HeadWidths)
    group = heads.found[0].group()
    remapping = Remapping.of(torch.tensor([0, 1, 1]), 2)

    by = heads.multipliers(SimpleNamespace(axes=found.ctx.parameters), {group: remapping})
    assert set(by) == {"p1", "p2"}
    root = 2**0.5
    queries = [root, root / 2, root / 2] * 2
    assert by["p1"].tolist() == pytest.approx([*queries, *[1.0] * 12])
    assert torch.equal(by["p1"], by["p2"])


@pytest.mark.parametrize(
    ("touch", "student"),
    [(torch.relu, WIDER), (lambda q: q * 2, WIDER), (lambda q: q, None)],
    ids=["an activation", "a product", "no student"],
)
def test_where_the_rows_cannot_be_told_the_width_is_fixed(touch, student):
    found = labelled(attention(touch=touch), *WIDTH, student=student)
    assert not found.relation(HeadWidths).found
    assert "a sum over two activations" in found.reasons


def test_without_the_relation_the_width_is_fixed():
    found = labelled(attention(), *WIDTH, student=WIDER, relations=[])
    assert "a sum over two activations" in found.reasons
