"""The settings of every operator: how a student comes from its teacher. The values live in ``conf/op/``.

Imports neither torch nor Hydra.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from n2n_cli.convert import Rule
from n2n_cli.errors import N2NError, suggest
from n2n_cli.ranges import Chance, Count, NotNegative, OptimizerState, Pairs, Positive


@dataclass
class Op:
    """How a student comes from its teacher; ``lr_scale`` is its rate over the teacher's, which it rises to over
    ``warmup_epochs`` (null: those of the schedule)."""

    name: str
    lr_scale: Positive
    warmup_epochs: NotNegative | None

    @staticmethod
    def choose(tree: Mapping[str, Any], where: str) -> type[Op]:
        """The dataclass of the op that ``tree`` names. Raises N2NError."""
        name = str(tree.get("name"))
        if name not in OPS:
            raise N2NError(f"{where}.name: '{name}' is not one of {', '.join(OPS)}{suggest(name, OPS)}")
        return OPS[name]


NOISE = 0.3  # on copies: the paper (section 2.3) asks for noise and names no size


@dataclass
class ToWider(Op):
    """With neither ``factor`` nor ``layers`` the student is its constructor's, at ``to_width`` (null: model.width)."""

    factor: Annotated[float, Rule("a number, 1 or more", lambda v: v >= 1)] | None
    layers: dict[str, Count | Positive]
    to_width: Positive | None


@dataclass
class Wider(ToWider):
    new: Literal["copy", "fresh", "paired", "gradmax"]
    split: Literal["equal", "unequal"]
    noise: NotNegative | None
    calibration_batches: Count
    optimizer: OptimizerState

    @property
    def noise_on_copies(self) -> float:
        """``noise``, or what parts the copies where nothing else does."""
        if self.noise is not None:
            return self.noise
        return NOISE if self.new == "copy" and self.split == "equal" else 0.0


@dataclass
class ToDeeper(Op):
    pairs: Pairs
    sites: list[str] | None
    activation: bool


@dataclass
class Deeper(ToDeeper):
    new: Literal["identity", "zero", "stack"]
    freeze: bool
    width: Count | Positive | None
    calibration_batches: Count
    optimizer: OptimizerState


@dataclass
class Compose(Op):
    """Two growths in one step; their rates are this op's."""

    wider: Wider
    deeper: Deeper

    @property
    def parts(self) -> tuple[Wider | Deeper, ...]:
        """In the order in which they are made."""
        return (self.deeper, self.wider) if self.name == "deeper_wider" else (self.wider, self.deeper)


@dataclass
class Distill(ToWider):
    """The teacher's softened outputs as further labels (Hinton et al. 2015)."""

    temperature: Positive
    weight: Chance


@dataclass
class FeaturePrediction(ToWider):
    """Extra layers predict the teacher's hidden layers; ``hidden_layers``: of how many of these."""

    weight: Positive
    hidden_layers: Annotated[int, Rule("a whole number from 1 to 64", lambda v: 1 <= v <= 64)]


OPS: dict[str, type[Op]] = {
    "wider": Wider,
    "deeper": Deeper,
    "wider_deeper": Compose,
    "deeper_wider": Compose,
    "random_pad": ToWider,
    "random_init": ToWider,
    "deep_random_init": ToDeeper,
    "wider_deep_random_init": Compose,
    "continue": Op,
    "distill": Distill,
    "feature_prediction": FeaturePrediction,
}
