"""Random networks: blocks of every kind and every way of writing them, drawn from a seed.

A network is a list of ``(name, seed)``: every block is built from its name, the width it finds and its own small
generator, which draws widths, and which of several writings of the same thing is used. ``ImageNet`` blocks read and
return feature maps [N, C, H, W] of unchanged size, ``TokenNet`` blocks sequences [N, L, D].
"""

# Blocks are registered, and so drawn from a seed, in the order of these imports.
# isort: off
from random_nets import convolutions, residual, shuffles, gates_norms, space, maps, tokens, attention, recurrent

# isort: on
from random_nets.blocks import IMAGE, TOKEN, Block
from random_nets.networks import RandomNetwork, Spec, every_writing, specs

__all__ = [
    "IMAGE",
    "TOKEN",
    "Block",
    "RandomNetwork",
    "Spec",
    "attention",
    "convolutions",
    "every_writing",
    "gates_norms",
    "maps",
    "recurrent",
    "residual",
    "shuffles",
    "space",
    "specs",
    "tokens",
]
