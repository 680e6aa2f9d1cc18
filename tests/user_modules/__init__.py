"""Modules as researchers write them, each with what growth should make of it.

``CASES[name]`` holds a module's builder, its example input, the layers that must grow, those that must stay (with the
words that the report must say about them), or the words of the refusal. "layer" stands for axis 0 of ``layer.weight``
(or of the parameter ``layer``), "layer@1" for axis 1. Layers in neither list may do either: what counts is exactness.
"""

from user_modules import (
    attention,
    control,
    convolutions,
    inputs_outputs,
    normalizations,
    order,
    recurrent,
    sharing,
    shuffles_groups,
    writings,
)
from user_modules.cases import CASES, Case, case

__all__ = [
    "CASES",
    "Case",
    "attention",
    "case",
    "control",
    "convolutions",
    "inputs_outputs",
    "normalizations",
    "order",
    "recurrent",
    "sharing",
    "shuffles_groups",
    "writings",
]
