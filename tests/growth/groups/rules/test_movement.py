"""What only moves data: labels in, labels out (`labels` explains the notation)."""

import pytest
import torch
import torch.nn.functional as F
from labels import P, labelled, shown

from n2n_cli.growth.groups.division import NO_FACTOR
from n2n_cli.growth.groups.rules.movement import segments

MERGED, FACTOR = "merged with another axis that grows", "another factor of this view grows"
MANY, NEW, PADDING, SPATIAL = "one value for many", "a new axis", "padding", "a spatial axis"
SIZES, STEPS, GONE = "parts of different size", "taken in steps", "dropped for its size of one"
SHUFFLE = "a channel shuffle"

CASES = {
    # order of axes
    "permute": (lambda x: x.permute(2, 0, 1), [(2, 3, 4)], "a2 b3 c4 -> c4 a2 b3"),
    "transpose": (lambda x: x.transpose(-1, 0), [(2, 3, 4)], "a2 b3 c4 -> c4 b3 a2"),
    "mT": (lambda x: x.mT, [(2, 3, 4)], "a2 b3 c4 -> a2 c4 b3"),
    "a transposed weight": (lambda x, w: F.linear(x, w.t()), [(5, 2), P(2, 3)], "a5 b2, /b2 c3 -> a5 c3"),
    # parts
    "cat": (lambda a, b: torch.cat([a, b], 1), [(2, 3, 4), (2, 5, 4)], "a2 b3 c4, a2 d5 c4 -> a2 b3+d5 c4"),
    "cat with a token": (
        lambda a, b: torch.cat([a, b], -2),
        [(2, 1, 4), (2, 5, 4)],
        "a2 !1 b4, a2 c5 b4 -> a2 !1+c5 b4",
        "a single position beside others",
    ),
    "stack": (lambda a, b: torch.stack([a, b], 1), [(2, 3), (2, 3)], "a2 b3, a2 b3 -> a2 !2 b3", "stacked"),
    "chunk": (lambda x: x.chunk(2, 1), [(2, 6)], "a2 b3+c3 -> a2 b3, a2 c3"),
    "chunk with a rest": (lambda x: x.chunk(3, 1), [(2, 7)], "a2 !3+b3+!1 -> a2 !3, a2 b3, a2 !1", SIZES),
    "split by sizes": (lambda x: x.split([2, 4], 1), [(2, 6)], "a2 b2+c4 -> a2 b2, a2 c4"),
    "split with a rest": (lambda x: x.split(4, 1), [(2, 6)], "a2 !6 -> a2 !4, a2 !2", SIZES),
    "a weight in parts": (
        lambda x, w: [F.linear(x, part) for part in w.chunk(2, 0)],
        [(5, 3), P(4, 3)],
        "a5 b3, c2+d2 /b3 -> a5 c2, a5 d2",
    ),
    "glu": (lambda x: F.glu(x, 1), [(2, 6, 4)], "a2 b3+b3 c4 -> a2 b3 c4"),
    "slice": (lambda x: x[:, 1:3], [(2, 6)], "a2 b1+c2+d3 -> a2 c2"),
    "slice from the end": (lambda x: x[:, -2:], [(2, 6)], "a2 b4+c2 -> a2 c2"),
    "slice of everything": (lambda x, w: F.linear(x, w[:, :]), [(5, 3), P(4, 3)], "a5 b3, c4 /b3 -> a5 c4"),
    "slice in steps": (lambda x: x[:, ::2], [(2, 6)], "a2 b3*2 -> a2 b3"),
    "slice in steps, the others": (lambda x: x[:, 2::3], [(2, 6)], "a2 b2*3 -> a2 b2"),
    "both halves of the pairs": (lambda x: x[:, ::2] * x[:, 1::2], [(2, 6)], "a2 b3*2 -> a2 b3"),
    "slice in steps, not of all": (lambda x: x[:, :4:2], [(2, 6)], "a2 !6 -> a2 !2", STEPS),
    "slice in steps that leave a rest": (lambda x: x[:, ::2], [(2, 5)], "a2 !5 -> a2 !3", STEPS),
    "pad": (lambda x: F.pad(x, (1, 2)), [(2, 6)], "a2 b6 -> a2 c1+b6+d2"),
    "pad by less than nothing": (lambda x: F.pad(x, (0, 0, -1, 2)), [(2, 6, 3)], "a2 b1+c5 d3 -> a2 c5+e2 d3"),
    "pad of pixels": (
        lambda x: F.pad(F.pixel_shuffle(x, 2), (1, 2)),
        [(2, 12, 4, 4)],
        "a2 b3*4 !4 !4 -> a2 b3 !8 !11",
        SPATIAL,
        PADDING,
    ),
    # axes of size one, repeats
    "unsqueeze": (lambda x: x[:, None], [(2, 3)], "a2 b3 -> a2 !1 b3", NEW),
    "squeeze": (torch.squeeze, [(1, 4, 1)], "!1 a4 !1 -> a4", GONE),
    "squeeze of nothing": (lambda x: x.squeeze(1), [(2, 4, 3)], "a2 b4 c3 -> a2 b4 c3"),
    "expand": (lambda x: x.expand(5, -1, -1), [(1, 4, 3)], "!1 a4 b3 -> c5 a4 b3", MANY),
    "expand by an axis": (lambda x: x.expand(5, 4, 3), [(4, 1)], "a4 !1 -> b5 a4 c3", MANY),
    "repeat": (lambda x: x.repeat(2, 1, 3), [(4, 3)], "a4 b3 -> c2 a4 b3+b3+b3"),
    "memory that is given back": (lambda x: (x * 2).set_(), [(2, 3)], "a2 b3 -> 0"),
    # pixels and channels
    "pixel shuffle": (lambda x: F.pixel_shuffle(x, 2), [(2, 12, 4, 4)], "a2 b3*4 !4 !4 -> a2 b3 !8 !8", SPATIAL),
    "pixel unshuffle": (lambda x: F.pixel_unshuffle(x, 2), [(2, 3, 4, 4)], "a2 b3 !4 !4 -> a2 b3*4 !2 !2", SPATIAL),
    "channel shuffle": (lambda x: F.channel_shuffle(x, 2), [(2, 8, 4, 4)], "a2 b8 c4 d4 -> a2 e8 c4 d4"),
    # patches
    "im2col": (lambda x: F.unfold(x, 2), [(2, 3, 4, 4)], "a2 b3 !4 !4 -> a2 b3*4 !9", SPATIAL),
    "col2im": (lambda x: F.fold(x, (4, 4), 2), [(2, 12, 9)], "a2 b3*4 !9 -> a2 b3 !4 !4", SPATIAL),
    "windows": (lambda x: x.unfold(2, 2, 1), [(2, 3, 4)], "a2 b3 !4 -> a2 b3 !3 !2", "windows"),
    # views
    "the same view": (lambda x: x.view(2, 3), [(2, 3)], "a2 b3 -> a2 b3"),
    "flatten": (lambda x: x.flatten(1), [(2, 3, 4, 4)], "a2 b3 !4 !4 -> a2 b3*16", MERGED),
    "flatten of single pixels": (lambda x: x.flatten(1), [(2, 3, 1, 1)], "a2 b3 !1 !1 -> a2 b3", MERGED),
    "rows of a batch": (lambda x: x.view(-1, 4), [(2, 3, 4)], "a2 !3 b4 -> a2*3 b4", MERGED),
    "divide": (lambda x: x.view(2, 3, 4), [(2, 12)], "a2 b4+b4+b4 -> a2 !3 b4", FACTOR),
    "divide into whole units": (lambda x: x.view(2, 6, 4), [(2, 3, 8)], "a2 b3 !8 -> a2 b3*2 !4", MERGED, FACTOR),
    "patches, their positions apart": (
        lambda x: F.unfold(x, 2, stride=2).view(2, 3, 4, 9),
        [(2, 3, 6, 6)],
        "a2 b3 !6 !6 -> a2 b3 !4 !9",
        SPATIAL,
        FACTOR,
    ),
    "a weight as a matrix": (
        lambda x, w: F.linear(x, w.view(6, -1)),
        [(5, 4), P(6, 2, 2)],
        "a5 b2*2, c6 /b2 !2 -> a5 c6",
        MERGED,
    ),
    "boundaries that do not meet": (
        lambda x: x.view(2, 4, 6),
        [(2, 3, 8)],
        "a2 !3 !8 -> a2 !4 !6",
        "two boundaries cut through one unit",
        MERGED,
        FACTOR,
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_labels(case):
    call, given, *text_and_reasons = case
    assert shown(call, given) == text_and_reasons


@pytest.mark.parametrize(
    ("choice", "text"),
    [
        (0, "a2 b4+b4+b4 -> a2 !3 b4"),
        (1, "a2 b3*4 -> a2 b3 !4"),
        (7, "a2 b3*4 -> a2 b3 !4"),  # there is no eighth factor: the last
        (NO_FACTOR, "a2 !12 -> a2 !3 !4"),
    ],
)
def test_one_factor_of_a_divided_axis_takes_the_remapping(choice, text):
    assert labelled(lambda x: x.view(2, 3, 4), (2, 12), choices={("", "view", 1, 1): choice}).text == text


@pytest.mark.parametrize(
    ("student", "text"),
    [
        ((18, 3), "a2 b4+b4+b4 -> a2 !3 b4"),
        ((24, 6), "a2 b3*4 -> a2 b3 !4"),
        ((36, 6), "a2 !12 -> a2 !3 !4"),  # 6 x 6: both grow, and no rule says where a copy of what goes
    ],
)
def test_a_student_shows_which_factor_grows(student, text):
    width, first = student

    def call(x):
        return x.view(2, 3 if x.shape[1] == 12 else first, -1)

    assert labelled(call, (2, 12), student=[(2, width)]).text == text


def test_factors_that_come_back_in_another_order_are_a_shuffle():
    def call(x):
        return x.view(2, 4, 6).transpose(1, 2).reshape(2, 24)

    first = labelled(call, (2, 24))
    assert first.text == "a2 b6+b6+b6+b6 -> a2 b6*4"
    assert first.ctx.wanted == {("", "view", 1, 1): NO_FACTOR}
    again = labelled(call, (2, 24), choices=first.ctx.wanted)
    assert again.text == "a2 b24 -> a2 c24" and not again.ctx.wanted


def test_without_the_relation_a_shuffle_holds_its_channels():
    found = labelled(lambda x: F.channel_shuffle(x, 2), (2, 8, 4, 4), relations=[])
    assert found.text == "a2 !8 b4 c4 -> a2 !8 b4 c4" and found.reasons == [SHUFFLE]


@pytest.mark.parametrize(
    ("ins", "outs", "pairs"),
    [
        ((2, 12, 5), (2, 3, 4, 5), [([0], [0]), ([1], [1, 2]), ([2], [3])]),
        ((2, 3, 4), (6, 4), [([0, 1], [0]), ([2], [1])]),
        ((4, 3), (3, 4), [([0, 1], [0, 1])]),
        ((2, 3, 1), (2, 3), [([0], [0]), ([1], [1]), ([2], [])]),
        ((), (1,), [([], [0])]),
    ],
)
def test_segments(ins, outs, pairs):
    assert segments(ins, outs) == pairs
