"""Net2Net as a library: plain functions on any ``nn.Module``, usable in anyone's training loop.

``widen`` and ``deepen`` return students that compute their teacher's function (proved before they are returned);
``random_pad`` and ``random_init`` are the baselines of the paper with the same shapes.
``carry`` and ``equivariant`` take an optimizer's state along.
"""

from n2n_cli.growth.deeper import deepen
from n2n_cli.growth.errors import GrowthError
from n2n_cli.growth.optimizer import carry, equivariant
from n2n_cli.growth.prove import Gap, function_gap
from n2n_cli.growth.wider import GroupInfo, Growth, random_init, random_pad, widen

__all__ = [
    "Gap",
    "GroupInfo",
    "Growth",
    "GrowthError",
    "carry",
    "deepen",
    "equivariant",
    "function_gap",
    "random_init",
    "random_pad",
    "widen",
]
