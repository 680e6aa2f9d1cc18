"""What picks positions, or puts something at positions: labels in, labels out (`labels` explains the notation)."""

import pytest
import torch
from labels import I, shown

INDEX, AN, APART, OWN = "looked up by index", "an index", "positions are told apart", "a size of its own"
NO_RULE = "no rule for this operation"


def put(x, i, y):
    x[i] = y
    return x


CASES = {
    "select": (lambda x: x[:, 1], [(2, 6, 3)], "a2 !6 b3 -> a2 b3", INDEX),
    "unbind": (torch.unbind, [(2, 6, 3)], "!2 a6 b3 -> a6 b3, a6 b3", INDEX),
    "index": (lambda x, i: x[:, i], [(2, 6, 3), I(4)], "a2 !6 b3, !4 -> a2 !4 b3", INDEX, "an index"),
    "index by two": (
        lambda x, i, j: x[:, i, j],
        [(2, 6, 3), I(4), I(4)],
        "a2 !6 !3, !4, !4 -> a2 !4",
        INDEX,
        "an index",
    ),
    "index by two that are apart": (
        lambda x, i, j: x[i, :, j],
        [(2, 6, 3), I(4), I(4)],
        "!2 !6 !3, !4, !4 -> !4 !6",
        NO_RULE,
    ),
    "flip": (lambda x: x.flip(1), [(2, 6)], "a2 !6 -> a2 !6", APART),
    "roll": (lambda x: x.roll(1, 1), [(2, 6, 3)], "a2 !6 b3 -> a2 !6 b3", APART),
    "cumsum": (lambda x: x.cumsum(1), [(2, 6, 3)], "a2 !6 b3 -> a2 !6 b3", APART),
    "index select": (
        lambda x, i: x.index_select(1, i),
        [(2, 6, 3), I(4)],
        "a2 !6 b3, !4 -> a2 !4 b3",
        APART,
        "an index",
        OWN,
    ),
    # masks
    "a mask": (lambda x, m: x[m], [(5, 4), I(5).bool()], "!5 a4, !5 -> 0 a4", INDEX, AN),
    "a mask of two axes": (lambda x, m: x[m], [(2, 5, 4), I(2, 5).bool()], "!2 !5 a4, !2 !5 -> 0 a4", INDEX, AN),
    "a mask in the middle": (lambda x, m: x[:, m], [(2, 5, 4), I(5).bool()], "a2 !5 b4, !5 -> a2 0 b4", INDEX, AN),
    # assignment
    "put": (put, [(5, 4), I(3), (3, 4)], "!5 a4, !3, !3 a4 -> !5 a4", INDEX, AN),
    "put one row everywhere": (put, [(5, 4), I(3), (4,)], "!5 a4, !3, a4 -> !5 a4", INDEX, AN),
    "put one column": (put, [(5, 4), I(3), (3, 1)], "!5 a4, !3, !3 !1 -> !5 a4", INDEX, AN, "one value for many"),
    # rank
    "sort": (lambda x: x.sort(-1), [(2, 3, 4)], "a2 b3 !4 -> a2 b3 !4, a2 b3 !4", APART),
    "topk": (lambda x: x.topk(2, 1), [(2, 3, 4)], "a2 !3 b4 -> a2 !2 b4, a2 !2 b4", APART, OWN),
    "argmax": (lambda x: x.argmax(1), [(2, 3, 4)], "a2 !3 b4 -> a2 b4", APART),
    "argmax that keeps its axis": (lambda x: x.argmax(1, True), [(2, 3, 4)], "a2 !3 b4 -> a2 !1 b4", APART, OWN),
    "argmax over everything": (torch.argmax, [(2, 3)], "!2 !3 -> ()", APART),
    # by an index of the same rank
    "gather": (lambda x, i: x.gather(1, i), [(2, 3, 4), I(2, 2, 4)], "a2 !3 b4, a2 !2 b4 -> a2 !2 b4", INDEX, AN),
    "gather whole rows": (
        lambda x, i: x.gather(1, i.expand(-1, -1, 4)),
        [(2, 3, 4), I(2, 2, 1)],
        "a2 !3 b4, a2 !2 !1 -> a2 !2 b4",
        INDEX,
        AN,
        "one value for many",
    ),
    "scatter_add": (
        lambda x, i, y: x.scatter_add(1, i, y),
        [(2, 3, 4), I(2, 5, 4), (2, 5, 4)],
        "a2 !3 b4, a2 !5 b4, a2 !5 b4 -> a2 !3 b4",
        INDEX,
        AN,
    ),
    "scatter of a number": (
        lambda x, i: x.scatter(1, i, 1.0),
        [(2, 3, 4), I(2, 1, 4)],
        "a2 !3 b4, a2 !1 b4 -> a2 !3 b4",
        INDEX,
        AN,
    ),
    "index_add": (lambda x, i, y: x.index_add(0, i, y), [(6, 4), I(5), (5, 4)], "!6 a4, !5, !5 a4 -> !6 a4", INDEX, AN),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_labels(case):
    call, given, *text_and_reasons = case
    assert shown(call, given) == text_and_reasons
