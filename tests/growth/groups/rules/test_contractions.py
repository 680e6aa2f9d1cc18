"""What sums over channels: labels in, labels out (`labels` explains the notation)."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from labels import I, P, labelled, shown

from n2n_cli.growth.groups.relations.lengths import EqualLengths

TWO = "a sum over two activations or two parameters"
SPATIAL, KERNEL = "a spatial axis", "a kernel axis"
STAY = "its inner channels stay, whole groups grow"
SCORES, KEYS, QUERIES = (
    "a sum over two activations",
    "positions are weighed against each other",
    "sequence positions",
)


def grouped(groups, call=F.conv2d):
    return lambda x, w, b: call(x, w, b, groups=groups)


CASES = {
    "linear": (F.linear, [(2, 3), P(4, 3), P(4)], "a2 b3, c4 /b3, c4 -> a2 c4"),
    "linear of one unit": (F.linear, [(2, 3), P(3)], "a2 b3, /b3 -> a2"),
    "bilinear": (F.bilinear, [(2, 3), (2, 4), P(5, 3, 4), P(5)], "a2 b3, a2 c4, d5 /b3 /c4, d5 -> a2 d5"),
    "linear by an activation": (F.linear, [(2, 3), (4, 3)], "a2 !3, b4 !3 -> a2 b4", TWO),
    "matrix product": (torch.matmul, [(2, 3), P(3, 4)], "a2 b3, /b3 c4 -> a2 c4"),
    "from the left": (torch.matmul, [P(2, 3), (3, 4)], "a2 /b3, b3 c4 -> a2 c4"),
    "of two parameters": (torch.matmul, [P(2, 3), P(3, 4)], "a2 /!3, /!3 b4 -> a2 b4", TWO),
    "of two activations": (torch.bmm, [(5, 2, 3), (5, 3, 4)], "a5 b2 !3, a5 !3 c4 -> a5 b2 c4", TWO),
    "stacks broadcast": (torch.matmul, [(5, 2, 3), P(3, 4)], "a5 b2 c3, /c3 d4 -> a5 b2 d4"),
    "a stack of one": (
        torch.matmul,
        [(1, 2, 3), (5, 3, 4)],
        "!1 a2 !3, b5 !3 c4 -> b5 a2 c4",
        "one value for many",
        TWO,
    ),
    "by a vector": (torch.matmul, [(5, 2, 3), P(3)], "a5 b2 c3, /c3 -> a5 b2"),
    "by a vector from the left": (torch.matmul, [P(3), (5, 3, 4)], "/a3, b5 a3 c4 -> b5 c4"),
    "a matrix by a vector": (torch.mv, [(2, 3), P(3)], "a2 b3, /b3 -> a2"),
    "of two vectors": (torch.dot, [(3,), P(3)], "a3, /a3 -> ()"),
    "of two activations, one a vector": (torch.matmul, [(2, 3), (3,)], "a2 !3, !3 -> a2", TWO),
    "experts": (
        lambda x, w: torch._grouped_mm(x, w, offs=torch.tensor([2, 5], dtype=torch.int32)),
        [(5, 8), P(2, 8, 16)],
        "a5 b8, !2 /b8 c16 -> a5 c16",
        "a matrix for each block of rows",
    ),
    "addmm": (torch.addmm, [P(4), (2, 3), P(3, 4)], "a4, b2 c3, /c3 a4 -> b2 a4"),
    "baddbmm": (torch.baddbmm, [(5, 2, 4), (5, 2, 3), P(5, 3, 4)], "a5 b2 c4, a5 b2 d3, a5 /d3 c4 -> a5 b2 c4"),
    "conv2d": (
        F.conv2d,
        [(2, 3, 5, 5), P(4, 3, 3, 3), P(4)],
        "a2 b3 !5 !5, c4 /b3 !3 !3, c4 -> a2 c4 !3 !3",
        SPATIAL,
        KERNEL,
    ),
    "conv1d without a batch": (F.conv1d, [(3, 5), P(4, 3, 3)], "a3 !5, b4 /a3 !3 -> b4 !3", SPATIAL, KERNEL),
    "transposed": (
        F.conv_transpose2d,
        [(2, 3, 5, 5), P(3, 4, 3, 3), P(4)],
        "a2 b3 !5 !5, /b3 c4 !3 !3, c4 -> a2 c4 !7 !7",
        SPATIAL,
        KERNEL,
    ),
    "depthwise, two filters a channel": (
        grouped(4),
        [(2, 4, 5, 5), P(8, 1, 3, 3), P(8)],
        "a2 b4 !5 !5, b4*2 !1 !3 !3, b4*2 -> a2 b4*2 !3 !3",
        SPATIAL,
        "depthwise",
        KERNEL,
    ),
    "grouped": (
        grouped(2),
        [(2, 4, 5, 5), P(6, 2, 3, 3), P(6)],
        "a2 b2+b2 !5 !5, c3+c3 /b2 !3 !3, c3+c3 -> a2 c3+c3 !3 !3",
        SPATIAL,
        KERNEL,
    ),
    "grouped and transposed": (
        grouped(2, F.conv_transpose2d),
        [(2, 4, 5, 5), P(4, 3, 3, 3), P(6)],
        "a2 b2*2 !5 !5, b2*2 !3 !3 !3, b2*3 -> a2 b2*3 !7 !7",
        SPATIAL,
        STAY,
        KERNEL,
    ),
    "embedding": (F.embedding, [I(2, 5), P(7, 3)], "a2 b5, !7 c3 -> a2 b5 c3", "looked up by index"),
    "bags of embeddings": (
        lambda i, o, w: F.embedding_bag(i, w, o),
        [I(7), I(2), P(7, 3)],
        "a7, b2, !7 c3 -> !2 c3",
        "looked up by index",
        "bags",
    ),
    "attention": (
        F.scaled_dot_product_attention,
        [(2, 3, 5, 4), (2, 3, 6, 4), (2, 3, 6, 7)],
        "a2 b3 !5 !4, a2 b3 !6 !4, a2 b3 !6 c7 -> a2 b3 !5 c7",
        QUERIES,
        SCORES,
        KEYS,
    ),
    "attention, two heads of queries for each of keys": (
        partial(F.scaled_dot_product_attention, enable_gqa=True),
        [(2, 6, 5, 4), (2, 3, 6, 4), (2, 3, 6, 7)],
        "a2 b3*2 !5 !4, a2 b3 !6 !4, a2 b3 !6 c7 -> a2 b3*2 !5 c7",
        QUERIES,
        SCORES,
        KEYS,
    ),
    "attention with a mask": (
        F.scaled_dot_product_attention,
        [(2, 3, 5, 4), (2, 3, 6, 4), (2, 3, 6, 7), P(3, 5, 6)],
        "a2 b3 !5 !4, a2 b3 !6 !4, a2 b3 !6 c7, b3 !5 !6 -> a2 b3 !5 c7",
        QUERIES,
        SCORES,
        KEYS,
    ),
    "attention with a mask of the keys": (
        F.scaled_dot_product_attention,
        [(2, 3, 5, 4), (2, 3, 6, 4), (2, 3, 6, 7), (2, 1, 1, 6)],
        "a2 b3 !5 !4, a2 b3 !6 !4, a2 b3 !6 c7, a2 !1 !1 !6 -> a2 b3 !5 c7",
        QUERIES,
        SCORES,
        KEYS,
        "one value for many",
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_labels(case):
    call, given, *text_and_reasons = case
    assert shown(call, given) == text_and_reasons


def test_the_other_way_of_a_grouped_convolution_replicates_whole_groups():
    given = [(2, 4, 5, 5), P(6, 2, 3, 3), P(6)]
    found = labelled(grouped(2), *given, choices={("", "conv2d", 1, 0): 1})
    assert found.text == "a2 b2*2 !5 !5, b2*3 !2 !3 !3, b2*3 -> a2 b2*3 !3 !3"
    assert found.reasons == [SPATIAL, STAY, KERNEL] and found.ctx.grouped == {"p1": True}
    assert labelled(grouped(2), *given).ctx.grouped == {"p1": False}


def test_outputs_of_a_grouped_convolution_may_have_a_remapping_for_each_group():
    found = labelled(grouped(2), (2, 4, 5, 5), P(6, 2, 3, 3), P(6), choices={("", "conv2d", 1, 1): 1})
    assert found.text == "a2 b2+b2 !5 !5, c3+d3 /b2 !3 !3, c3+d3 -> a2 c3+d3 !3 !3"
    ((c, d),) = found.relation(EqualLengths).bonds()
    assert (c.n, d.n) == (3, 3) and c is not d and not found.ctx.repeated


@pytest.mark.parametrize(
    ("student", "text"),
    [
        ([(2, 8, 5, 5), P(12, 2, 3, 3)], "a2 b2*2 !5 !5, b2*3 !2 !3 !3 -> a2 b2*3 !3 !3"),
        ([(2, 8, 5, 5), P(12, 4, 3, 3)], "a2 b2+b2 !5 !5, c3+c3 /b2 !3 !3 -> a2 c3+c3 !3 !3"),
    ],
    ids=["more groups", "wider groups"],
)
def test_a_student_shows_which_way_a_grouped_convolution_grows(student, text):
    def call(x, w):
        return F.conv2d(x, w, groups=x.shape[1] // w.shape[1])

    assert labelled(call, (2, 4, 5, 5), P(6, 2, 3, 3), student=student).text == text


def test_a_grouped_weight_that_is_no_parameter_keeps_the_channels_that_it_reads():
    found = labelled(lambda x, w: F.conv2d(x, w, groups=2), (2, 4, 5, 5), (6, 2, 3, 3))
    assert found.text == "a2 !4 !5 !5, b3+b3 !2 !3 !3 -> a2 b3+b3 !3 !3"
    assert "its groups stay, their inner channels grow" in found.reasons
