"""Guides by hand: their losses to the arithmetic, and what they leave alone."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from n2n_cli.errors import N2NError
from n2n_cli.training.guides import Distillation, FeaturePrediction, Guided
from n2n_cli.training.optim import load_state
from n2n_cli.training.options import FitOptions
from n2n_cli.training.ranks import Ranks
from n2n_cli.training.step import Learner


class Net(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.b = nn.Conv2d(width, width, 3, stride=2, padding=1)
        self.head = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.b(self.norm(self.a(x)).relu()).relu().mean((2, 3)))


@pytest.fixture
def nets() -> tuple[Net, Net, Tensor, Tensor]:
    torch.manual_seed(0)
    return Net(4).double(), Net(6).double(), torch.randn(7, 3, 8, 8).double(), torch.randint(5, (7,))


def test_distillation_by_hand(nets: tuple[Net, Net, Tensor, Tensor]) -> None:
    teacher, student, x, labels = nets
    logits, plain = student(x), nn.functional.cross_entropy(student(x), labels)
    guide = Distillation(copy.deepcopy(teacher), temperature=3.0, weight=0.7)
    before = {key: value.clone() for key, value in guide.teacher.state_dict().items()}
    found = guide.loss(plain, x, logits, guide.read())
    p = torch.softmax(teacher.eval()(x) / 3, 1)
    divergence = (p * (p.log() - torch.log_softmax(logits / 3, 1))).sum(1).mean()
    torch.testing.assert_close(found, 0.3 * plain + 0.7 * 9 * divergence, rtol=1e-5, atol=1e-6)  # logits in fp32
    found.backward()
    assert all(p.grad is None for p in guide.teacher.parameters())
    assert all(torch.equal(value, before[key]) for key, value in guide.teacher.state_dict().items())
    free = Distillation(teacher, temperature=3.0, weight=0.0)
    assert torch.equal(free.loss(plain, x, logits, []), plain)
    same = Distillation(teacher, temperature=3.0, weight=1.0)
    assert same.loss(plain, x, teacher.eval()(x), []).abs() < 1e-6


def test_feature_prediction_by_hand(nets: tuple[Net, Net, Tensor, Tensor]) -> None:
    teacher, student, x, labels = nets
    guide = FeaturePrediction(teacher, student, x, hidden_layers=2, weight=0.5, seed=3)
    assert guide.names == ["a", "b"] and [head.weight.shape for head in guide.heads] == [(4, 6, 1, 1)] * 2
    guide.heads.double()
    out, read = Guided(student.train(), guide)(x)
    plain = nn.functional.cross_entropy(out, labels)
    found = guide.loss(plain, x, out, read)
    expected = plain
    twins = copy.deepcopy(teacher).eval(), copy.deepcopy(student).train()
    for net in twins:
        for module in net.modules():
            module._forward_hooks.clear()
    for head, name in zip(guide.heads, ("a", "b"), strict=True):
        wanted, ours = ((n.a(x) if name == "a" else n.b(n.norm(n.a(x)).relu())) for n in twins)
        expected = expected + 0.25 * (head(ours) - wanted).square().mean() / wanted.square().mean()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    found.backward()
    assert all(p.grad is not None for p in [*guide.heads.parameters(), student.a.weight, student.b.weight])
    assert all(p.grad is None for p in guide.teacher.parameters())
    student.eval()(x)  # an evaluation in between leaves nothing behind
    assert guide._seen == {}


def test_heads_are_drawn_from_their_seed(nets: tuple[Net, Net, Tensor, Tensor]) -> None:
    teacher, student, x, _ = nets
    state = torch.get_rng_state()
    heads = [FeaturePrediction(teacher, student, x, hidden_layers=1, weight=1, seed=s).heads for s in (1, 1, 2)]
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(heads[0][0].weight, heads[1][0].weight)
    assert not torch.equal(heads[0][0].weight, heads[2][0].weight)


def test_too_few_layers_are_one_line(nets: tuple[Net, Net, Tensor, Tensor]) -> None:
    teacher, student, x, _ = nets
    with pytest.raises(N2NError, match=r"op.hidden_layers: 4 are asked for, and teacher and student have 3 hidden lay"):
        FeaturePrediction(teacher, student, x, hidden_layers=4, weight=1, seed=0)


def test_heads_decay_as_other_weights_do(nets: tuple[Net, Net, Tensor, Tensor], tmp_path: Path) -> None:
    teacher, student, x, _ = nets
    guide = FeaturePrediction(teacher, student, x, hidden_layers=2, weight=1, seed=0)
    options = FitOptions(1.0, 8, 0.1, optimizer={"name": "adamw", "weight_decay": 0.3})
    run = Learner(tmp_path, student, options, ranks=Ranks(), steps_per_epoch=1, mean=(0,), std=(1,), guide=guide)
    decay = {id(p): group["weight_decay"] for group in run.optimizer.param_groups for p in group["params"]}
    assert [decay[id(p)] for p in guide.heads.parameters()] == [0.3, 0.0] * 2
    # Checkpoints of runs in which the heads were one group go on.
    state = run.optimizer.state_dict()
    first, second, *heads = state["param_groups"]
    heads[0]["params"] = [number for group in heads for number in group["params"]]
    load_state(run.optimizer, {**state, "param_groups": [first, second, heads[0]]})
    with pytest.raises(N2NError, match="of other parameters"):
        load_state(run.optimizer, {**state, "param_groups": [first, second]})
