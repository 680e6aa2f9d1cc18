"""Net2Net as a library: plain functions on any ``nn.Module``, usable in anyone's training loop.

``widen`` and ``deepen`` return students that compute their teacher's function (proved before they are returned);
``random_pad`` and ``random_init`` are the baselines of the paper with the same shapes.
``carry`` and ``equivariant`` take an optimizer's state along. ``register`` tells growth of an operation of your own.
"""

from n2n_cli.growth.baselines import random_init, random_pad, unchanged
from n2n_cli.growth.deeper import deepen
from n2n_cli.growth.duplicates import Duplicates, duplicates
from n2n_cli.growth.errors import GrowthError
from n2n_cli.growth.groups.operations import register
from n2n_cli.growth.groups.reasons import Reason
from n2n_cli.growth.groups.table import Operation
from n2n_cli.growth.optimizer import carry, equivariant
from n2n_cli.growth.proof.gap import Gap, function_gap
from n2n_cli.growth.report import GroupInfo, Growth
from n2n_cli.growth.wider import widen

__all__ = [
    "Duplicates",
    "Gap",
    "GroupInfo",
    "Growth",
    "GrowthError",
    "Operation",
    "Reason",
    "carry",
    "deepen",
    "duplicates",
    "equivariant",
    "function_gap",
    "random_init",
    "random_pad",
    "register",
    "unchanged",
    "widen",
]
