"""What a student takes over of its teacher's training (``op.optimizer``): optimizer state, weights, their average."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import yaml
from torch import nn

from n2n_cli.commands import networks
from n2n_cli.commands.folders import PlannedRun
from n2n_cli.errors import N2NError
from n2n_cli.growth import Growth
from n2n_cli.ops import Deeper, Wider
from n2n_cli.schema import RunConfig, Student
from n2n_cli.training import checkpoint, optim


@dataclass
class Travel:
    """A teacher in the middle of its training.

    ``model``: with the weights that its optimizer left. ``average``: with their average over ``age`` updates; None
    unless both teacher and student keep one.
    """

    how: str
    model: nn.Module
    optimizer: torch.optim.Optimizer
    average: nn.Module | None
    age: int

    def arrive(
        self, grown: Growth, grow: Callable[[nn.Module], tuple[Growth, Any]], cfg: RunConfig, lr: float
    ) -> dict[str, Any]:
        """What the student's start checkpoint holds beside its weights; ``grown`` is what ``grow`` made of `model`."""
        state, rates = optim.travelled(self.how, self.optimizer, self.model, grown, lr=lr, **cfg.optim.arguments)
        out: dict[str, Any] = {"optimizer": state, "rates": rates}
        have = len(state["state"]), sum(len(group["params"]) for group in state["param_groups"])
        print(f"  optimizer: {self.how}, the state of {have[0]} of {have[1]} parameters", flush=True)
        if self.average is not None:
            average, _ = grow(self.average)
            print(f"  average: function gap eval {average.gap.eval:.1e}, train {average.gap.train:.1e}", flush=True)
            out |= {"ema": average.student.state_dict(), "ema_age": self.age}
        return out


def of_teacher(planned: PlannedRun, cfg: Student, network: nn.Module) -> Travel | None:
    """The training that ``planned`` takes over from its teacher; None where it starts fresh.

    ``network``: the teacher with the weights to grow, which are the averaged ones if it keeps an average.

    Raises:
        N2NError: the teacher has no optimizer state, or another optimizer's.
    """
    if not isinstance(planned.op, Wider | Deeper) or planned.op.optimizer == "fresh":
        return None
    how = planned.op.optimizer
    if cfg.weights is not None:
        raise N2NError(f"op.optimizer={how}: {cfg.weights} holds weights alone; take op.optimizer=fresh")
    assert planned.teacher is not None
    path = checkpoint.resolve(planned.teacher)
    state = checkpoint.load(path)
    if "optimizer" not in state:
        raise N2NError(
            f"op.optimizer={how}: {path} holds no optimizer state (start and best checkpoints have none); "
            "give teacher=RUN_FOLDER, or take op.optimizer=fresh"
        )
    try:
        theirs = str(yaml.safe_load(state["config"])["optim"]["name"])
    except (yaml.YAMLError, KeyError, TypeError, AttributeError) as error:
        raise N2NError(f"{path}: its config does not say optim.name") from error
    if theirs != cfg.optim.name:
        raise N2NError(
            f"op.optimizer={how}: the teacher's optimizer is {theirs}, the student's {cfg.optim.name}; "
            f"take optim={theirs} or op.optimizer=fresh"
        )
    model, average = network, None
    if state.get("ema") is not None:
        model = copy.deepcopy(network)
        networks.fill(model, state["model"], path)
        average = network if cfg.training.ema_decay else None
    optimizer = optim.restored(model, state["optimizer"], state.get("rates"), lr=cfg.optim.lr, **cfg.optim.arguments)
    return Travel(how, model, optimizer, average, int(state.get("ema_age", 0)) + int(state["step"]))
