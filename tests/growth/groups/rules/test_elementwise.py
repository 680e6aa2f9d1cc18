"""Pointwise operations, constants, broadcasting: labels in, labels out (`labels` explains the notation)."""

import pytest
import torch
import torch.nn.functional as F
from labels import I, P, shown

CASES = {
    # pointwise: every entry from one entry of each argument
    "gelu": (F.gelu, [(2, 3)], "a2 b3 -> a2 b3"),
    "where": (torch.where, [I(3).bool(), (2, 3), (2, 3)], "a3, b2 a3, b2 a3 -> b2 a3"),
    "three arguments": (torch.addcmul, [(2, 3), (2, 3), (3,)], "a2 b3, a2 b3, b3 -> a2 b3"),
    "in place": (lambda a, b: a.add_(b), [(2, 3), (3,)], "a2 b3, b3 -> a2 b3"),
    # broadcasting: what stretches from one position stays one
    "equal axes": (torch.add, [(2, 3), (2, 3)], "a2 b3, a2 b3 -> a2 b3"),
    "fewer axes": (torch.add, [(2, 3), P(3)], "a2 b3, b3 -> a2 b3"),
    "one value for many": (torch.mul, [(2, 3, 4), (3, 1)], "a2 b3 c4, b3 !1 -> a2 b3 c4", "one value for many"),
    "both ways": (torch.add, [(2, 1), (1, 3)], "a2 !1, !1 b3 -> a2 b3", "one value for many"),
    # a weight times a number or a mask of its shape is still the weight, and divides among copies
    "a scaled weight": (lambda x, w: F.linear(x, w * 2), [(5, 3), P(2, 3)], "a5 b3, c2 /b3 -> a5 c2"),
    "a masked weight": (
        lambda x, w, m: F.linear(x, w * m),
        [(5, 3), P(2, 3), (2, 3)],
        "a5 b3, c2 /b3, c2 b3 -> a5 c2",
    ),
    "a weight that divides": (
        lambda x, w, m: F.linear(x, m / w),
        [(5, 3), P(2, 3), (2, 3)],
        "a5 !3, b2 !3, b2 !3 -> a5 b2",
        "a sum over two activations or two parameters",
    ),
    "a mask of another shape": (
        lambda x, w, m: F.linear(x, w * m),
        [(5, 3), P(2, 3), (2, 1)],
        "a5 !3, b2 !3, b2 !1 -> a5 b2",
        "a sum over two activations or two parameters",
        "one value for many",
    ),
    # the same entries
    "dropout": (lambda x, w: F.linear(x, F.dropout(w)), [(5, 3), P(2, 3)], "a5 b3, c2 /b3 -> a5 c2"),
    "clone": (lambda x, w: F.linear(x, w.clone()), [(5, 3), P(2, 3)], "a5 b3, c2 /b3 -> a5 c2"),
    "cast": (lambda x: x.contiguous().to(torch.float64), [(2, 3)], "a2 b3 -> a2 b3"),
    # constants
    "like": (torch.ones_like, [(2, 3)], "a2 b3 -> a2 b3"),
    "zeros": (lambda x: x + torch.zeros(2, 3), [(2, 3)], "a2 b3 -> a2 b3"),
    "new zeros": (lambda x: torch.cat([x.new_zeros(4), x]), [(3,)], "a3 -> b4+a3"),
    "counted": (lambda x: x + torch.arange(3), [(2, 3)], "a2 !3 -> a2 !3", "numbers that the code counts out"),
    "one and zeros": (lambda x: x * torch.eye(3), [(3, 3)], "!3 !3 -> !3 !3", "numbers that the code counts out"),
    # slopes
    "prelu": (F.prelu, [(2, 3, 4), P(3)], "a2 b3 c4, b3 -> a2 b3 c4"),
    "one slope": (F.prelu, [(2, 3, 4), P(1)], "a2 b3 c4, !1 -> a2 b3 c4", "one value for many"),
    # no rule
    "unknown": (torch.linalg.svdvals, [(2, 3)], "!2 !3 -> !2", "no rule for this operation"),
    "recurrent": (
        lambda x, h, w, v: torch.rnn_tanh(x, h, (w, v), False, 1, 0.0, True, False, False),
        [(2, 5, 3), (1, 5, 4), P(4, 3), P(4, 4)],
        "!2 !5 !3, !1 !5 !4, !4 !3, !4 !4 -> !2 !5 !4, !1 !5 !4",
        "a recurrent layer",
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_labels(case):
    call, given, *text_and_reasons = case
    assert shown(call, given) == text_and_reasons
