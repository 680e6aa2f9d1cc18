"""Optimizer state travels: ten steps of teacher and student agree, to rounding, in fp64.

Found (relative gap after ten steps, growth 1.5 and 2): equivariant 1.5e-16 to 1.2e-13, carry 0.04 to 3.6, a fresh state
0.04 to 90, the exact form without its r_in 0.03 to 13.
"""

from __future__ import annotations

import copy
import doctest
from dataclasses import replace

import pytest
import torch
from nets import mlp
from steps import OPTIMIZERS, Build, batch, gap, network, train
from torch import nn
from torch.nn import functional as F

from n2n_cli import growth
from n2n_cli.growth import GrowthError
from n2n_cli.growth import optimizer as moving


def ten_steps(build: Build, kind: str, factor: float, seed: int, how: str, noise: float = 0.0) -> tuple[float, float]:
    """Five steps of a teacher, growth, ten of both: how far they are apart, and how far the teacher came."""
    teacher = network(kind)
    old = build(teacher.parameters())
    train(teacher, old, 5, 5)
    x, _ = batch(torch.Generator().manual_seed(1))
    grown = growth.widen(teacher, x, factor, seed=seed, noise=noise)
    assert noise or gap(teacher, grown.student) < 1e-12
    new = build(grown.student.parameters())
    if how == "no r_in":
        moving.load_state(new, grown.student, moving.copied(moving.named_state(old, teacher), grown))
        rates = {name: (out, torch.ones_like(into)) for name, (out, into) in moving.rates(grown).items()}
        moving.Equivariant(new, grown.student.named_parameters(), rates)
    elif how != "fresh":
        getattr(growth, how)(old, teacher, new, grown)
    before = copy.deepcopy(teacher)
    train(teacher, old, 10, 7)
    train(grown.student, new, 10, 7)
    return gap(teacher, grown.student), gap(before, teacher)


@pytest.mark.parametrize(("kind", "factor", "seed"), [("conv", 1.5, 0), ("conv", 2.0, 1), ("linear", 1.5, 1)])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_ten_steps_agree(name: str, kind: str, factor: float, seed: int) -> None:
    apart, moved = ten_steps(OPTIMIZERS[name], kind, factor, seed, "equivariant")
    assert apart < 1e-10 < 1e-2 < moved


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_nothing_else_agrees(name: str) -> None:
    """Negative controls: natural maps, a fresh state, and the exact form without its r_in (about 0.1 apart)."""
    for how in ("carry", "fresh", "no r_in"):
        apart, _ = ten_steps(OPTIMIZERS[name], "linear", 1.5, 0, how)
        assert apart > 1e-3, how


@pytest.mark.parametrize("name", ["sgd momentum", "adam"])
def test_carry_is_nearer_than_fresh(name: str) -> None:
    carried, fresh = (ten_steps(OPTIMIZERS[name], "conv", 1.5, 1, how)[0] for how in ("carry", "fresh"))
    assert carried < fresh


def test_noise_breaks_the_copies_and_the_exactness() -> None:
    apart, _ = ten_steps(OPTIMIZERS["adam"], "conv", 1.5, 0, "equivariant", noise=0.1)
    assert apart > 1e-6


def test_gradients_and_natural_maps() -> None:
    """G' = G[idx] / r_out; after many steps of the same gradient a natural state is what the student's own would be."""
    for name in ("sgd momentum", "rmsprop centered", "adam decay"):
        teacher = network()
        x, y = batch(torch.Generator().manual_seed(1))
        grown = growth.widen(teacher, x, 1.7, seed=2)
        old, new, own = (
            OPTIMIZERS[name](m.parameters()) for m in (teacher, grown.student, copy.deepcopy(grown.student))
        )
        for optimizer, model in ((old, teacher), (own, grown.student)):
            for group in optimizer.param_groups:
                group["lr"] = group["weight_decay"] = 0.0
            F.cross_entropy(model(x), y).backward()
        mine = [p for group in own.param_groups for p in group["params"]]
        for p, q in zip(mine, grown.student.parameters(), strict=True):
            p.grad = q.grad
        for _ in range(3):
            old.step()
            own.step()
        growth.carry(old, teacher, new, grown)
        for p, q in zip(mine, grown.student.parameters(), strict=True):
            assert own.state[p].keys() == new.state[q].keys() and new.state[q]
            for key, value in own.state[p].items():
                torch.testing.assert_close(new.state[q][key], value, rtol=1e-9, atol=1e-18)


def test_rmsprops_buffer_is_a_sum_of_updates() -> None:
    teacher = network("linear")
    old = OPTIMIZERS["rmsprop momentum"](teacher.parameters())
    train(teacher, old, 3, 1)
    grown = growth.widen(teacher, batch(torch.Generator())[0], 2.0)
    new = OPTIMIZERS["rmsprop momentum"](grown.student.parameters())
    growth.carry(old, teacher, new, grown)
    (axis,) = (m for m in grown.maps["1.weight"] if m is not None)
    theirs, ours = old.state[teacher[1].weight], new.state[grown.student[1].weight]
    assert torch.equal(ours["momentum_buffer"], theirs["momentum_buffer"][axis.index])
    squares = theirs["square_avg"][axis.index] / axis.copies[:, None] ** 2
    assert torch.equal(ours["square_avg"], squares) and axis.copies.max() > 1


def test_growth_after_growth() -> None:
    """The student of a student: rates multiply, and it still makes the first teacher's steps."""
    teacher = network()
    optimizers = [OPTIMIZERS["adam decay"](teacher.parameters())]
    models = [teacher]
    x, _ = batch(torch.Generator().manual_seed(1))
    for factor in (1.5, 1.4):
        train(teacher, optimizers[0], 3, 5)
        for model, optimizer in zip(models[1:], optimizers[1:], strict=True):
            train(model, optimizer, 3, 5)
        grown = growth.widen(models[-1], x, factor, seed=len(models))
        optimizers.append(OPTIMIZERS["adam decay"](grown.student.parameters()))
        growth.equivariant(optimizers[-2], models[-1], optimizers[-1], grown)
        models.append(grown.student)
    for model, optimizer in zip(models, optimizers, strict=True):
        train(model, optimizer, 10, 7)
    assert gap(models[0], models[1]) < 1e-10 and gap(models[0], models[2]) < 1e-10
    # out of the exact form into the natural one: what the first teacher's state gives by both factors at once
    deep = growth.widen(models[2], x, 1.0)
    natural = OPTIMIZERS["adam decay"](deep.student.parameters())
    growth.carry(optimizers[2], models[2], natural, deep)
    rates = moving.rates_of(optimizers[2])
    assert rates is not None
    for name, p in deep.student.named_parameters():
        exact = optimizers[2].state[dict(models[2].named_parameters())[name]]["exp_avg_sq"]
        r_out = rates[name][0] if name in rates else torch.ones(())
        torch.testing.assert_close(natural.state[p]["exp_avg_sq"], exact / r_out.double() ** 2)


def test_deeper_carries_the_old_layers() -> None:
    teacher = network()
    old = OPTIMIZERS["adam"](teacher.parameters())
    train(teacher, old, 3, 5)
    grown = growth.deepen(teacher, batch(torch.Generator())[0], ["layers.0*"])
    for how in (growth.carry, growth.equivariant):
        new = OPTIMIZERS["adam"](grown.student.parameters())
        how(old, teacher, new, grown)
        ours = dict(grown.student.named_parameters())
        for name, p in teacher.named_parameters():
            state = new.state[ours[grown.renamed.get(name, name)]]
            assert torch.equal(state["exp_avg"], old.state[p]["exp_avg"]) and state["step"] == 3
        assert len(new.state) == len(old.state) < len(ours)
        train(grown.student, new, 2, 5)
        assert len(new.state) == len(ours)


def test_single_precision_stays_at_its_rounding() -> None:
    teacher = network().float()
    old = torch.optim.AdamW(teacher.parameters(), 1e-3)
    x, y = (t.float() if t.is_floating_point() else t for t in batch(torch.Generator().manual_seed(1)))
    grown = growth.widen(teacher, x, 1.5)
    new = torch.optim.AdamW(grown.student.parameters(), 1e-3)
    growth.equivariant(old, teacher, new, grown)
    start = copy.deepcopy(teacher)
    for model, optimizer in ((teacher, old), (grown.student, new)):
        for _ in range(40):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
    moved = growth.function_gap(start, teacher, x, training=True)
    assert growth.function_gap(teacher, grown.student, x, training=True) < 1e-2 * moved


def test_examples() -> None:
    failed, tried = doctest.testmod(moving, extraglobs={"growth": growth})
    assert tried and not failed


class Largest(nn.Module):
    """The largest of four units, with its place (`max`) or without (`amax`)."""

    def __init__(self, place: bool) -> None:
        super().__init__()
        self.a, self.b, self.place = nn.Linear(3, 4), nn.Linear(5, 2), place

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.a(x)
        return self.b(x.max(-1).values if self.place else x.amax(-1))


def test_the_largest_of_copies() -> None:
    torch.manual_seed(0)
    x = torch.randn(6, 5, 3, dtype=torch.float64)
    for place in (False, True):
        teacher = Largest(place).double()
        grown = growth.widen(teacher, x, 2.0)
        assert any("never part" in warning for warning in grown.warnings) is not place
        old, new = (torch.optim.SGD(m.parameters(), 0.1) for m in (teacher, grown.student))
        if place:  # its gradient goes to one of the copies
            with pytest.raises(growth.GrowthError, match="or `max` gives only one copy"):
                growth.equivariant(old, teacher, new, grown)
            continue
        growth.equivariant(old, teacher, new, grown)
        for model, optimizer in ((teacher, old), (grown.student, new)):
            model(x).square().sum().backward()
            optimizer.step()
        assert growth.function_gap(teacher, grown.student, x, training=True) < 1e-12


def test_refusals() -> None:
    teacher = network("linear")
    x, _ = batch(torch.Generator())
    grown = growth.widen(teacher, x, 1.5)
    new = torch.optim.SGD(grown.student.parameters(), 0.1)
    hooks = growth.equivariant(None, teacher, new, grown)
    with pytest.raises(growth.GrowthError, match="already"):
        growth.equivariant(None, teacher, new, grown)
    with pytest.raises(growth.GrowthError, match="closure"):
        new.step(lambda: 0.0)
    hooks.remove()
    assert moving.rates_of(new) is None
    with pytest.raises(growth.GrowthError, match="none of the student's parameters"):
        growth.equivariant(None, teacher, torch.optim.SGD(teacher.parameters(), 0.1), grown)
    with pytest.raises(growth.GrowthError, match=r"no parameter '1\.weight' .*unwrapped"):
        moving.Equivariant(new, nn.Sequential(grown.student).named_parameters(), hooks.rates)
    with pytest.raises(growth.GrowthError, match="LBFGS mixes"):
        growth.equivariant(None, teacher, torch.optim.LBFGS(grown.student.parameters()), grown)
    old = torch.optim.Rprop(teacher.parameters(), 1e-3)
    train(teacher, old, 1, 0)
    with pytest.raises(growth.GrowthError, match="'prev' scales: use `equivariant`"):
        growth.carry(old, teacher, torch.optim.Rprop(grown.student.parameters(), 1e-3), grown)
    old.state[teacher[1].weight]["prev"] = torch.zeros(3)
    with pytest.raises(growth.GrowthError, match=r"'prev' of '1\.weight' is not one number for each"):
        growth.equivariant(old, teacher, torch.optim.Rprop(grown.student.parameters(), 1e-3), grown)


def test_units_that_are_no_copies() -> None:
    """Where a unit is not a plain copy: the exact form refuses, the natural one starts these tensors fresh."""
    teacher = network("linear")
    old = OPTIMIZERS["adam"](teacher.parameters())
    train(teacher, old, 2, 0)
    grown = growth.widen(teacher, batch(torch.Generator())[0], 1.5)
    for name in ("1.weight", "1.bias", "3.weight"):
        grown.maps[name] = [axis and replace(axis, holds=torch.ones(len(axis.index))) for axis in grown.maps[name]]
    grown.exact_optimizer = False
    new = OPTIMIZERS["adam"](grown.student.parameters())
    with pytest.raises(growth.GrowthError, match="no copies of its teacher"):
        growth.equivariant(old, teacher, new, grown)
    growth.carry(old, teacher, new, grown)
    have = {name for name, p in grown.student.named_parameters() if new.state.get(p)}
    assert have == {"3.bias", "5.weight", "5.bias"}
    train(grown.student, new, 1, 0)


def test_optimizer_state_goes_to_its_own_kind() -> None:
    teacher, x = mlp(), torch.randn(2, 10).double()
    grown, padded = growth.widen(teacher, x, 1.5), growth.random_pad(teacher, x, 1.5)
    adam, sgd = torch.optim.Adam(teacher.parameters()), torch.optim.SGD(grown.student.parameters(), 0.1)
    with pytest.raises(GrowthError, match="teacher's optimizer is Adam, the student's SGD"):
        growth.carry(adam, teacher, sgd, grown)
    with pytest.raises(GrowthError, match="random_pad"):
        growth.carry(adam, teacher, torch.optim.Adam(padded.student.parameters()), padded)
