"""Optimizers against hand-written references in fp64, schedules as literal lists."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torchvision import models
from torchvision.models.convnext import CNBlockConfig

from n2n_cli.errors import N2NError
from n2n_cli.training.optim import build_optimizer, load_state, lr_at, parameter_groups
from n2n_cli.training.options import FitOptions
from n2n_cli.training.schedule import evaluation_steps, multiples, step_seed


def small() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(12, 2)).double()


def gradients(model: nn.Module, step: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    return [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in model.parameters()]


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("weight_decay", [0.0, 0.01])
def test_rmsprop_is_tensorflows(momentum: float, weight_decay: float) -> None:
    model, decay, eps = small(), 0.9, 1.0
    optimizer = build_optimizer(
        model, name="rmsprop", lr=0.1, momentum=momentum, weight_decay=weight_decay, decay=decay, eps=eps
    )
    expected = [p.detach().tolist() if p.ndim == 0 else p.detach().clone() for p in model.parameters()]
    square = [torch.ones_like(p) for p in expected]
    buffer = [torch.zeros_like(p) for p in expected]
    for step in range(5):
        lr = 0.1 * 0.5**step
        for group in optimizer.param_groups:
            group["lr"] = lr
        for i, (p, g) in enumerate(zip(model.parameters(), gradients(model, step), strict=True)):
            p.grad = g.clone()
            if p.ndim > 1:
                g = g + weight_decay * expected[i]
            square[i] = decay * square[i] + (1 - decay) * g**2
            buffer[i] = momentum * buffer[i] + lr * g / torch.sqrt(square[i] + eps)
            expected[i] = expected[i] - buffer[i]
        optimizer.step()
    for p, e in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(p.detach(), e, rtol=1e-13, atol=1e-13)


def test_rmsprop_is_not_torchs() -> None:
    """Negative control: with the same numbers torch.optim.RMSprop goes elsewhere."""
    ours, theirs = small(), small()
    a = build_optimizer(ours, name="rmsprop", lr=0.1, momentum=0.9, decay=0.9, eps=1.0)
    b = torch.optim.RMSprop(theirs.parameters(), lr=0.1, momentum=0.9, alpha=0.9, eps=1.0)
    for step in range(3):
        for model, optimizer in ((ours, a), (theirs, b)):
            for p, g in zip(model.parameters(), gradients(model, step), strict=True):
                p.grad = g
            optimizer.step()
    gap = max((p - q).abs().max() for p, q in zip(ours.parameters(), theirs.parameters(), strict=True))
    assert gap > 0.01


def test_sgd_decays_weights_only() -> None:
    model = small()
    before = [p.detach().clone() for p in model.parameters()]
    optimizer = build_optimizer(model, name="sgd", lr=0.5, momentum=0.0, weight_decay=0.1)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    for p, b in zip(model.parameters(), before, strict=True):
        torch.testing.assert_close(p.detach(), b * (0.95 if b.ndim > 1 else 1.0))
    decayed, plain = parameter_groups(model, 0.1)
    assert [p.ndim for p in decayed["params"]] == [4, 2] and all(p.ndim == 1 for p in plain["params"])
    assert len(plain["params"]) == 4


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_adam_by_hand(name: str) -> None:
    model, (b1, b2), eps, lr, wd = small(), (0.8, 0.95), 1e-3, 0.1, 0.02
    optimizer = build_optimizer(model, name=name, lr=lr, betas=(b1, b2), eps=eps, weight_decay=wd)
    assert type(optimizer) is {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[name]
    expected = [p.detach().clone() for p in model.parameters()]
    mean, square = ([torch.zeros_like(p) for p in expected] for _ in range(2))
    for step in range(1, 6):
        for i, (p, g) in enumerate(zip(model.parameters(), gradients(model, step), strict=True)):
            p.grad = g.clone()
            decay = wd if p.ndim > 1 else 0.0
            if name == "adam":
                g = g + decay * expected[i]
            else:
                expected[i] = expected[i] * (1 - lr * decay)
            mean[i] = b1 * mean[i] + (1 - b1) * g
            square[i] = b2 * square[i] + (1 - b2) * g**2
            root = torch.sqrt(square[i] / (1 - b2**step)) + eps
            expected[i] = expected[i] - lr * (mean[i] / (1 - b1**step)) / root
        optimizer.step()
    for p, e in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(p.detach(), e, rtol=1e-12, atol=1e-13)


def adam_steps(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    """With gradients in NCHW, whatever the parameters lie in."""
    for step in steps:
        for p, g in zip(model.parameters(), gradients(model, step), strict=True):
            p.grad = g
        optimizer.step()


def apart(a: nn.Module, b: nn.Module) -> float:
    return max((p - q).abs().max().item() for p, q in zip(a.parameters(), b.parameters(), strict=True))


def test_memory_formats_do_not_mix() -> None:
    """Fused Adam walks through memory: gradients and a loaded state of another format must be laid out anew."""
    plain, nhwc, mixed = (small().to(memory_format=f) for f in (torch.contiguous_format, *2 * (torch.channels_last,)))
    ours = {model: build_optimizer(model, name="adamw", lr=0.1, weight_decay=0.1) for model in (plain, nhwc)}
    adam_steps(plain, ours[plain], range(3))
    adam_steps(nhwc, ours[nhwc], range(3))
    naive = torch.optim.AdamW(parameter_groups(mixed, 0.1), 0.1, fused=True)  # negative control: the gradients
    adam_steps(mixed, naive, range(3))
    assert apart(plain, nhwc) < 1e-12 < 1e-3 < apart(plain, mixed)
    other, control = small().to(memory_format=torch.channels_last), small().to(memory_format=torch.channels_last)
    optimizers = [build_optimizer(model, name="adamw", lr=0.1, weight_decay=0.1) for model in (other, control)]
    for model in (other, control):
        model.load_state_dict(plain.state_dict())
    load_state(optimizers[0], copy.deepcopy(ours[plain].state_dict()))
    optimizers[1].load_state_dict(copy.deepcopy(ours[plain].state_dict()))  # negative control: the state
    for model, optimizer in ((plain, ours[plain]), (other, optimizers[0]), (control, optimizers[1])):
        adam_steps(model, optimizer, range(3, 6))
    assert apart(plain, other) < 1e-12 < 1e-3 < apart(plain, control)


def test_parameters_with_gaps_in_memory() -> None:
    """A view with strides of its own is beyond the fused form: the other one is taken."""
    gappy, plain = small(), small()
    table = torch.zeros(3, 2, 3, 6, dtype=torch.float64)
    table[..., ::2] = gappy[0].weight.detach()
    gappy[0].weight = nn.Parameter(table[..., ::2])
    optimizers = [build_optimizer(model, name="adam", lr=0.1) for model in (gappy, plain)]
    assert [optimizer.defaults["fused"] for optimizer in optimizers] == [False, True]
    for model, optimizer in zip((gappy, plain), optimizers, strict=True):
        adam_steps(model, optimizer, range(3))
    assert apart(gappy, plain) < 1e-12


NAMES = ("sgd", "rmsprop", "adam", "adamw")


@pytest.mark.parametrize("name", NAMES)
def test_a_state_goes_to_its_own_kind(name: str) -> None:
    old = build_optimizer(small(), name=name, lr=0.1)
    adam_steps(small(), old, range(1))  # of another network: no gradients here, no state
    load_state(build_optimizer(small(), name=name, lr=0.1), old.state_dict())
    model = small()
    old = build_optimizer(model, name=name, lr=0.1)
    adam_steps(model, old, range(2))
    new = build_optimizer(small(), name=name, lr=0.2)
    load_state(new, old.state_dict())
    kept = list(new.state.values())
    assert len(kept) == 6 and new.param_groups[0]["lr"] == 0.2
    for theirs, ours in zip(old.state.values(), kept, strict=True):
        assert theirs.keys() == ours.keys() and all(torch.equal(theirs[key], ours[key]) for key in theirs)
    for other in set(NAMES) - {name, {"adam": "adamw", "adamw": "adam"}.get(name)}:
        with pytest.raises(N2NError, match="of another optimizer"):
            load_state(build_optimizer(small(), name=other, lr=0.1), old.state_dict())
    for key in kept[0]:
        state = old.state_dict()
        state["state"] = {i: dict(entries) for i, entries in state["state"].items()} | {0: dict(kept[0])}
        state["state"][0][key] = torch.zeros(2)
        with pytest.raises(N2NError, match="of other shapes"):
            load_state(build_optimizer(small(), name=name, lr=0.1), state)


class Stated(nn.Module):
    """A network that names what is not to decay, as timm's do."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.table, self.scale = (
            nn.Linear(4, 3),
            nn.Parameter(torch.ones(5, 4)),
            nn.Parameter(torch.ones(4, 1)),
        )

    def no_weight_decay(self) -> set[str]:
        return {"table"}


@pytest.mark.parametrize(
    ("build", "plain"),
    [
        (lambda: models.VisionTransformer(32, 8, 1, 2, 16, 32), {"class_token", "encoder.pos_embedding"}),
        (lambda: models.ConvNeXt([CNBlockConfig(8, None, 2)]), {f"features.1.{i}.layer_scale" for i in (0, 1)}),
        (
            lambda: models.SwinTransformer([4, 4], 16, [2], [2], [4, 4]),
            {f"features.1.{i}.attn.relative_position_bias_table" for i in (0, 1)},
        ),
        (lambda: nn.Sequential(nn.Conv2d(1, 8, 1), nn.Conv2d(8, 8, 1, groups=8), nn.Linear(8, 1)), set()),
        (Stated, {"table", "scale"}),
    ],
)
def test_what_the_field_does_not_decay(build: Callable[[], nn.Module], plain: set[str]) -> None:
    model = build()
    groups = parameter_groups(model, 0.1)
    none = {id(p) for group in groups if group["weight_decay"] == 0 for p in group["params"]}
    assert {name for name, p in model.named_parameters() if id(p) in none and p.ndim > 1} == plain
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))
    assert all(id(p) in none for p in model.parameters() if p.ndim <= 1)


@pytest.mark.parametrize(
    "arguments, line",
    [
        (dict(name="rmsprob"), r"optim.name='rmsprob': expected one of sgd, rmsprop, adam, adamw \(did you mean 'rm"),
    ],
)
def test_wrong_optimizers(arguments: dict[str, object], line: str) -> None:
    with pytest.raises(N2NError, match=line):
        build_optimizer(small(), lr=0.1, **arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "arguments, factors",
    [
        (dict(name="constant"), [1, 1, 1, 1, 1, 1, 1, 1]),
        (dict(name="constant", warmup_steps=4), [0.25, 0.5, 0.75, 1, 1, 1, 1, 1]),
        (dict(name="step", step_steps=3, factor=0.1), [1, 1, 1, 0.1, 0.1, 0.1, 0.01, 0.01]),
        (dict(name="exponential", step_steps=2, factor=0.25), [1, 0.5, 0.25, 0.125, 1 / 16, 1 / 32, 1 / 64, 1 / 128]),
        (dict(name="cosine"), [1, 0.961940, 0.853553, 0.691342, 0.5, 0.308658, 0.146447, 0.038060]),
        (dict(name="cosine", warmup_steps=4), [0.25, 0.5, 0.75, 1, 1, 0.853553, 0.5, 0.146447]),
    ],
)
def test_schedules(arguments: dict[str, object], factors: list[float]) -> None:
    rates = [lr_at(s, base_lr=2.0, total_steps=8, **arguments) for s in range(8)]  # type: ignore[arg-type]
    assert rates == pytest.approx([2 * f for f in factors], abs=1e-6)


def test_schedule_ends_at_zero_and_stays() -> None:
    assert lr_at(8, base_lr=1.0, total_steps=8) == pytest.approx(0.0, abs=1e-12)
    assert lr_at(99, base_lr=1.0, total_steps=8) == pytest.approx(0.0, abs=1e-12)
    assert math.isfinite(lr_at(0, base_lr=1.0, total_steps=0))


def test_wrong_schedules() -> None:
    with pytest.raises(N2NError, match=r"did you mean 'cosine'"):
        lr_at(0, base_lr=1.0, total_steps=8, name="cosin")
    with pytest.raises(N2NError, match="step_epochs above 0"):
        lr_at(0, base_lr=1.0, total_steps=8, name="step")
    with pytest.raises(N2NError, match=r"optim\.schedule\.warm"):
        FitOptions(1, 1, 1, schedule={"name": "step", "warm": 1}).schedule_at(10)


def test_schedule_epochs_become_steps() -> None:
    options = FitOptions(1, 1, 1, schedule=dict(name="step", warmup_epochs=0.5, step_epochs=30, factor=0.16))
    assert options.schedule_at(11) == {"name": "step", "factor": 0.16, "warmup_steps": 6, "step_steps": 330}


def test_when_to_evaluate() -> None:
    steps = evaluation_steps(30, 10, evals_first_epoch=4, eval_every_epochs=1.0)
    assert sorted(steps) == [0, 2, 5, 8, 10, 20, 30]
    assert sorted(evaluation_steps(25, 10, evals_first_epoch=0, eval_every_epochs=0.75)) == [0, 8, 15, 22, 25]
    assert sorted(evaluation_steps(3, 10, evals_first_epoch=20, eval_every_epochs=0)) == [0, 1, 2, 3]
    assert evaluation_steps(0, 10, evals_first_epoch=4, eval_every_epochs=1.0) == {0}
    assert multiples(0.01, 10, 4) == {1, 2, 3, 4}
    assert multiples(0.0, 10, 4) == set()


def test_step_seeds_differ() -> None:
    seeds = {step_seed(s, t, r) for s in range(3) for t in range(50) for r in range(4)}
    assert len(seeds) == 600 and all(0 <= s < 2**63 for s in seeds)
