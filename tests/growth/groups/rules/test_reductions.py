"""Norms, reductions, pools: labels in, labels out (`labels` explains the notation)."""

import pytest
import torch
import torch.nn.functional as F
from labels import P, labelled, shown

SUM, SHARE, SPATIAL = "a sum over its units", "its entries share one sum", "a spatial axis"

CASES = {
    "batch norm": (
        F.batch_norm,
        [(2, 3, 4), (3,), (3,), P(3), P(3)],
        "a2 b3 c4, b3, b3, b3, b3 -> a2 b3 c4",
    ),
    "instance norm": (
        lambda x, w, b: F.instance_norm(x, weight=w, bias=b),
        [(2, 3, 4), P(3), P(3)],
        "a2 b3 c4, b3, b3 -> a2 b3 c4",
    ),
    "layer norm": (
        lambda x, w, b: F.layer_norm(x, (4,), w, b),
        [(2, 3, 4), P(4), P(4)],
        "a2 b3 ~c4, ~c4, ~c4 -> a2 b3 ~c4",
    ),
    "layer norm over two axes": (lambda x: F.layer_norm(x, (3, 4)), [(2, 3, 4)], "a2 ~b3 ~c4 -> a2 ~b3 ~c4"),
    "rms norm": (lambda x, w: F.rms_norm(x, (4,), w), [(2, 4), P(4)], "a2 ~b4, ~b4 -> a2 ~b4"),
    "group norm": (
        lambda x, w, b: F.group_norm(x, 2, w, b),
        [(2, 6, 4), P(6), P(6)],
        "a2 ~b3+~c3 d4, ~b3+~c3, ~b3+~c3 -> a2 ~b3+~c3 d4",
    ),
    "weight norm": (
        lambda x, v, g: F.linear(x, torch._weight_norm(v, g, 0)),
        [(2, 3), P(4, 3), P(4, 1)],
        "a2 ~b3, c4 /~b3, c4 !1 -> a2 c4",
        "one value for many",
    ),
    "softmax": (lambda x: F.softmax(x, -1), [(2, 3)], "a2 !3 -> a2 !3", SHARE),
    "log softmax": (lambda x: x.log_softmax(0), [(2, 3)], "!2 a3 -> !2 a3", SHARE),
    "mean": (lambda x: x.mean(1), [(2, 3, 4)], "a2 ~b3 c4 -> a2 c4"),
    "mean that keeps its axes": (
        lambda x: x.mean((-1, -2), keepdim=True),
        [(2, 3, 4)],
        "a2 ~b3 ~c4 -> a2 !1 !1",
        "reduced",
    ),
    "mean over everything": (torch.mean, [(2, 3)], "~a2 ~b3 -> ()"),
    "sum": (lambda x: x.sum(1), [(2, 3, 4)], "a2 !3 b4 -> a2 b4", SUM),
    "norm, whose axis is its third argument": (
        lambda x: x.norm(dim=-1, keepdim=True),
        [(2, 3)],
        "a2 !3 -> a2 !1",
        SUM,
        "reduced",
    ),
    "variance": (lambda x: x.var(1), [(2, 3, 4)], "a2 !3 b4 -> a2 b4", SUM),
    "variance without Bessel's correction": (lambda x: x.var(1, False), [(2, 3, 4)], "a2 ~b3 c4 -> a2 c4"),
    "variance over everything": (lambda x: x.var(False), [(2, 3)], "~a2 ~b3 -> ()"),
    "deviation by keyword": (lambda x: x.std(-1, correction=0), [(2, 3)], "a2 ~b3 -> a2"),
    "variance and mean": (
        lambda x: torch.var_mean(x, 1, correction=0, keepdim=True),
        [(2, 3, 4)],
        "a2 ~b3 c4 -> a2 !1 c4, a2 !1 c4",
        "reduced",
    ),
    "largest": (lambda x: x.amax(1), [(2, 3, 4)], "a2 b3 c4 -> a2 c4"),
    "largest and where": (lambda x: x.max(1), [(2, 3, 4)], "a2 b3 c4 -> a2 c4, a2 c4"),
    "where the largest is": (
        lambda x: x.max(1)[1] + 0,
        [(2, 3, 4)],
        "a2 !3 b4 -> a2 b4",
        "reads where on it something stands",
    ),
    "larger of two": (torch.maximum, [(2, 3), (3,)], "a2 b3, b3 -> a2 b3"),
    "max pool": (lambda x: F.max_pool2d(x, 2), [(2, 3, 4, 4)], "a2 b3 !4 !4 -> a2 b3 !2 !2", SPATIAL),
    "average pool without a batch": (lambda x: F.avg_pool1d(x, 2), [(3, 4)], "a3 !4 -> a3 !2", SPATIAL),
    "adaptive pool": (lambda x: F.adaptive_avg_pool2d(x, 1), [(2, 3, 4, 4)], "a2 b3 !4 !4 -> a2 b3 !1 !1", SPATIAL),
    "adaptive max pool and where": (
        lambda x: F.adaptive_max_pool2d(x, 1, return_indices=True),
        [(2, 3, 4, 4)],
        "a2 b3 !4 !4 -> a2 b3 !1 !1, a2 b3 !1 !1",
        SPATIAL,
    ),
    "unpool": (
        lambda x: F.max_unpool2d(*F.max_pool2d(x, 2, return_indices=True), 2),
        [(2, 3, 4, 4)],
        "a2 b3 !4 !4 -> a2 b3 !4 !4",
        SPATIAL,
    ),
    "interpolation": (
        lambda x: F.interpolate(x, size=(8, 8), mode="bilinear"),
        [(2, 3, 4, 4)],
        "a2 b3 !4 !4 -> a2 b3 !8 !8",
        SPATIAL,
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_labels(case):
    call, given, *text_and_reasons = case
    assert shown(call, given) == text_and_reasons


def test_without_ties_a_mean_holds_its_units():
    found = labelled(lambda x: x.mean(1), (2, 3, 4), relations=[])
    assert found.text == "a2 !3 b4 -> a2 b4" and found.reasons == ["a mean over its units"]
