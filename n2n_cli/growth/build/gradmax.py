"""GradMax (Evci et al., ICLR 2022): fresh units whose readers will get large gradients.

A fresh unit is read with weights of 0. How fast these grow depends on what the unit computes. So its own incoming
weights are turned, at their norm, towards a larger gradient of the loss by those zeros, on a few batches, by ascent
through autograd. The student's function does not change: nobody reads these units yet.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_leaves

from n2n_cli.growth.build.students import Candidate
from n2n_cli.growth.errors import GrowthError, first_line
from n2n_cli.growth.trace.calls import call, same_chance
from n2n_cli.growth.trace.copies import deep_copy

Loss = Callable[[nn.Module], Tensor]
"""A network's loss, a scalar."""
STEPS, LENGTH = 20, 0.3  # of the ascent; of one step, relative to the norm of a unit's weights


def loss_of(calibration: Any) -> Loss:
    """The mean cross-entropy over batches ``(inputs, labels)``; a function is taken as it is.

    Raises:
        GrowthError: no batches, or something else.
    """
    if callable(calibration):
        return calibration
    pairs = list(calibration) if isinstance(calibration, Sequence) else []
    if not pairs or not all(isinstance(pair, tuple | list) and len(pair) == 2 for pair in pairs):
        raise GrowthError(
            "new=gradmax needs calibration: a list of batches (inputs, labels), or a function from network to loss"
        )

    def loss(model: nn.Module) -> Tensor:
        total = torch.zeros(())
        for inputs, labels in pairs:
            logits = next(t for t in tree_leaves(call(model, inputs)) if isinstance(t, Tensor))
            total = total + nn.functional.cross_entropy(logits, torch.as_tensor(labels, device=logits.device))
        return total / len(pairs)

    return loss


def gradients_of_readers(student: nn.Module, candidate: Candidate, loss: Loss) -> Tensor:
    """The sum of squares of the loss's gradients by the weights with which the teacher's own units read fresh ones."""
    parameters = {name: p for name, p in student.named_parameters() if name in candidate.random.unread}
    with sdpa_kernel(SDPBackend.MATH):  # the others cannot be differentiated twice
        gradients = torch.autograd.grad(loss(student), list(parameters.values()), create_graph=True, allow_unused=True)
    total = torch.zeros(())
    for name, gradient in zip(parameters, gradients, strict=True):
        if gradient is not None:
            where = candidate.random.unread[name].to(gradient.device)
            total = total + (gradient * where).square().sum()
    return total


def turn_to_large_gradients(candidate: Candidate, loss: Loss) -> None:
    """Turn the incoming weights of the candidate's fresh units, at their norm, to larger `gradients_of_readers`.

    On one thread, in train mode with the same random numbers at every step; the networks keep their statistics.

    Raises:
        GrowthError: the loss cannot be computed or differentiated twice.
    """
    random, student = candidate.random, deep_copy(candidate.student).train()
    turned = {n: p for n, p in student.named_parameters() if n in random.made and p.ndim > 1}
    if not turned:
        return
    for name, parameter in student.named_parameters():
        parameter.requires_grad_(name in turned or name in random.unread)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the order of sums, and so the student, is the same on every machine
    best, best_state = -1.0, {}
    try:
        with torch.enable_grad():
            for step in range(STEPS + 1):
                with same_chance():
                    value = gradients_of_readers(student, candidate, loss)
                if value.item() > best:
                    best, best_state = value.item(), {n: p.detach().clone() for n, p in turned.items()}
                if step == STEPS or not value.requires_grad:
                    break
                ascent = torch.autograd.grad(value, list(turned.values()), allow_unused=True)
                for (name, parameter), direction in zip(turned.items(), ascent, strict=True):
                    if direction is not None:
                        _turn(parameter, direction, random.made[name].to(parameter.device), LENGTH * (1 - step / STEPS))
    except Exception as error:  # whatever a user's loss raises
        raise GrowthError(
            f"new=gradmax: the loss cannot be computed and differentiated twice: {first_line(error)}"
        ) from error
    finally:
        torch.set_num_threads(threads)
    with torch.no_grad():
        for name, parameter in candidate.student.named_parameters():
            if name in best_state:
                random.values[name] = best_state[name]
                parameter.copy_(best_state[name])


@torch.no_grad()
def _turn(weight: Tensor, direction: Tensor, made: Tensor, length: float) -> None:
    """Move each fresh unit's weights along ``direction``, back to their norm."""
    rows = next(d for d, n in enumerate(made.shape) if n > 1) if made.numel() > 1 else 0
    others = [d for d in range(weight.ndim) if d != rows]
    norm = torch.linalg.vector_norm(weight, dim=others, keepdim=True)
    size = torch.linalg.vector_norm(direction, dim=others, keepdim=True)
    moved = weight + length * norm * direction / size.clamp(min=1e-30)
    moved = moved * norm / torch.linalg.vector_norm(moved, dim=others, keepdim=True).clamp(min=1e-30)
    weight.copy_(torch.where(made & (size > 0), moved, weight))
