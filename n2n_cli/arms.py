"""The arms of a study, one row each: how tables, charts and sentences call, explain and draw them."""

from __future__ import annotations

from typing import NamedTuple


class Arm(NamedTuple):
    """``colours``: of its curve on a white and on a dark ground; ``marker``: matplotlib's; ``rivals``: the arms that a
    report measures it against."""

    label: str
    meaning: str
    colours: tuple[str, str]
    marker: str
    rivals: tuple[str, ...] = ()


ARMS = {
    "teacher": Arm("teacher", "the network to grow from, all weights random", ("#555555", "#B0B0AA"), "o"),
    "wider": Arm(
        "Net2Wider",
        "Net2WiderNet: the teacher's units and new ones beside them, of the kind named, so that the function stays",
        ("#0072B2", "#56A8E0"),
        "o",
        ("random_init", "random_pad", "continue"),
    ),
    "random_pad": Arm(
        "random pad",
        "the teacher's weights, padded with random values to the student's shapes",
        ("#E69F00", "#F0B840"),
        "^",
        ("random_init",),
    ),
    "random_init": Arm("random init", "the student's shapes, all weights random", ("#D55E00", "#F08040"), "s"),
    "deeper": Arm(
        "Net2Deeper",
        "Net2DeeperNet: identity layers inserted, their batch norm set to undo itself",
        ("#009E73", "#30C090"),
        "D",
        ("deep_random_init", "continue"),
    ),
    "deep_random_init": Arm(
        "deep random init", "the deeper student's shapes, all weights random", ("#CC79A7", "#E09CC4"), "v"
    ),
    "wider_deeper": Arm(
        "Net2Wider, then Net2Deeper",
        "both operators in one step, the second on what the first made",
        ("#5A3FA0", "#9C86E0"),
        "p",
        ("wider_deep_random_init", "continue"),
    ),
    "deeper_wider": Arm(
        "Net2Deeper, then Net2Wider",
        "both operators in one step, the other way about",
        ("#8A2F6B", "#D07AB8"),
        "h",
        ("wider_deep_random_init", "continue"),
    ),
    "wider_deep_random_init": Arm(
        "wider deep random init",
        "the shapes of the wider and deeper student, all weights random",
        ("#A0522D", "#D89A78"),
        "<",
    ),
    "distill": Arm(
        "distillation",
        "the wider student from random weights, with the teacher's softened outputs as further labels",
        ("#1B7F7F", "#5CC4C4"),
        ">",
        ("random_init",),
    ),
    "feature_prediction": Arm(
        "feature prediction",
        "the wider student from random weights, with extra layers that predict the teacher's hidden layers",
        ("#6B8E23", "#A9CC5C"),
        "d",
        ("random_init",),
    ),
    "continue": Arm(
        "teacher, trained on", "the teacher itself, at the student's rate and budget", ("#333333", "#E8E8E0"), "*"
    ),
    "small": Arm("one small network", "the narrow network, trained on at every stage", ("#555555", "#B0B0AA"), "o"),
    "large": Arm("one large network", "the standard network, trained on at every stage", ("#D55E00", "#F08040"), "s"),
    "growing": Arm(
        "grown at every stage",
        "the narrow network, grown whenever images arrive, and trained on",
        ("#0072B2", "#56A8E0"),
        "D",
        ("retrained", "large", "small"),
    ),
    "retrained": Arm(
        "retrained at every stage",
        "the standard network, from random weights again at every stage",
        ("#E69F00", "#F0B840"),
        "^",
    ),
    "student": Arm("student from random init", "the standard network, all weights random", ("#7A6A00", "#D8CC60"), "P"),
}
"""In the order of tables and legends."""


STRATEGIES = ("small", "large", "growing", "retrained")
"""The arms of a study of stages, which each have a network at every stage."""
OPS = tuple(name for name in ARMS if name not in ("teacher", "student", *STRATEGIES))
"""The arms that an operator makes: what ``--op`` takes."""


def find(name: str) -> Arm:
    """The row of an arm; of one that this version does not know, a grey one under its name."""
    return ARMS.get(name) or Arm(name, name, ARMS["teacher"].colours, "X")
