"""The ranges that values of a config lie in, each with how it reads in an error. Imports neither torch nor Hydra."""

from __future__ import annotations

from typing import Annotated, Literal

from n2n_cli.convert import Rule

Positive = Annotated[float, Rule("a number above 0", lambda v: v > 0)]
NotNegative = Annotated[float, Rule("a number, 0 or more", lambda v: v >= 0)]
Share = Annotated[float, Rule("a number from 0 to below 1", lambda v: 0 <= v < 1)]
Chance = Annotated[float, Rule("a number from 0 to 1", lambda v: 0 <= v <= 1)]
Betas = Annotated[list[Share], Rule("two numbers from 0 to below 1, such as [0.9, 0.999]", lambda v: len(v) == 2)]
Count = Annotated[int, Rule("a whole number, 1 or more", lambda v: v >= 1)]
Epochs = Annotated[float, Rule("a number from 0 to a million", lambda v: 0 <= v <= 1e6)]
Pairs = Annotated[int, Rule("a whole number from 1 to 64", lambda v: 1 <= v <= 64)]
Whole = Annotated[int, Rule("a whole number, 0 or more", lambda v: v >= 0)]
Seed = Annotated[int, Rule("a whole number from 0 to 2^31 - 1", lambda v: 0 <= v < 2**31)]
Pixels = Annotated[int, Rule("a whole number of pixels, 8 or more", lambda v: v >= 8)]
Target = Annotated[float, Rule("a number above 0, at most 1", lambda v: 0 < v <= 1)]
Metric = Literal["top1", "top5"]
Difficulty = Annotated[float, Rule("a number from 0 to 4", lambda v: 0 <= v <= 4)]
Magnitude = Annotated[int, Rule("a whole number from 0 to 30", lambda v: 0 <= v <= 30)]
Device = Literal["auto", "cpu", "cuda"]
OptimizerState = Literal["fresh", "carry", "equivariant"]
