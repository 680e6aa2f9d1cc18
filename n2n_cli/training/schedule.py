"""At which steps a run evaluates and saves: pure functions, the same however often it is stopped."""

from __future__ import annotations

import hashlib


def multiples(every_epochs: float, steps_per_epoch: int, total_steps: int) -> set[int]:
    """Steps nearest to the multiples of ``every_epochs`` up to ``total_steps``; 0 epochs: none."""
    if every_epochs <= 0:
        return set()
    every = every_epochs * steps_per_epoch
    if every <= 1:
        return set(range(1, total_steps + 1))
    return {round(k * every) for k in range(1, int(total_steps / every) + 2)} & set(range(1, total_steps + 1))


def evaluation_steps(
    total_steps: int, steps_per_epoch: int, *, evals_first_epoch: int, eval_every_epochs: float
) -> set[int]:
    """Steps after which the network is evaluated; 0 is before the first step.

    0, ``evals_first_epoch`` times evenly within the first epoch (growth shows there), every
    ``eval_every_epochs`` epochs, and the end.
    """
    dense = {max(1, round(k * steps_per_epoch / evals_first_epoch)) for k in range(1, evals_first_epoch + 1)}
    steps = dense | multiples(eval_every_epochs, steps_per_epoch, total_steps) | {0, total_steps}
    return {s for s in steps if s <= total_steps}


def step_seed(seed: int, step: int, rank: int) -> int:
    """Seed of torch's and Python's global generators in one step of one rank, from which dropout draws.

    Set anew before every step, so the draws are the same whether a run was stopped, resumed or evaluated before, or
    its loader drew numbers too; and no generator need be saved.
    """
    digest = hashlib.blake2b(f"{seed}/{step}/{rank}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
