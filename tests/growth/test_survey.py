"""What a network is told to be before it grows, and that growing then does just this."""

from __future__ import annotations

import doctest

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from n2n_cli import growth, models
from n2n_cli.growth import survey as module
from n2n_cli.growth.groups.reasons import Reason
from n2n_cli.growth.survey import deepened, survey
from n2n_cli.models import describe

IMAGE = torch.zeros(1, 3, 8, 8)


class Tiny(nn.Module):
    """A stem and a block's end that are added, a block's inside, a gate, a concatenation, a norm before the head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.inner = nn.Conv2d(8, 6, 1)
        self.outer = nn.Conv2d(6, 8, 3, padding=1)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.norm = nn.LayerNorm(14)
        self.head = nn.Linear(14, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        y = F.relu(self.inner(x))
        x = self.depthwise(F.gelu(x + self.outer(y)))
        x = torch.cat([x, y], 1).mean((2, 3)).relu()
        return self.head(self.norm(x))


def test_examples() -> None:
    failed, tried = doctest.testmod(module, extraglobs={"torch": torch})
    assert tried and not failed


def test_groups_of_a_network_by_hand() -> None:
    found = survey(Tiny(), IMAGE)
    assert [(g.number, g.units, g.positions, g.produced_by, g.read_by) for g in found.groups] == [
        (1, 8, 1, ["stem", "outer", "depthwise"], ["inner", "head"]),
        (2, 6, 1, ["inner"], ["outer", "head"]),
        (3, 5, 1, ["head"], []),
    ]
    stream, inner, out = found.groups
    assert stream.growing == inner.growing == "whole numbers" and out.growing == "fixed"
    assert stream.tied == Reason("other", "a mean over its units", "layer_norm", "norm") and stream.together == [2]
    assert str(stream.tied) == "layer_norm at norm: a mean over its units"
    assert out.fixed == Reason("output", "the network's output") and out.tied is None
    assert {("stem.weight", 0), ("stem.bias", 0), ("inner.weight", 1), ("head.weight", 1)} <= set(stream.axes)
    assert all(group.grown == group.units for group in found.groups)
    assert found.student is None and found.parameters == found.parameters_grown


def test_layers_in_forward_order_with_their_runs() -> None:
    found = survey(Tiny(), IMAGE, 2)
    assert [layer.name for layer in found.layers] == ["stem", "inner", "outer", "depthwise", "head"]
    head = found.layers[-1]
    assert head.reads == [1, 2] and head.makes == [(3, 5, 5)] and head.shape == (5, 14)
    assert found.layers[0].reads == [] and found.layers[0].makes == [(1, 8, 16)]


def test_sites_tell_why_not() -> None:
    sites = {site.layer: site.refusal for site in survey(Tiny(), IMAGE).sites}
    assert sites["stem"] is None and sites["inner"] is None
    assert "add" in str(sites["outer"]) and sites["head"] is not None


def test_a_reason_without_an_operation() -> None:
    assert str(Reason("broadcast", "one value", "add")) == "add at the top module: one value"
    assert str(Reason("other", "two boundaries")) == "two boundaries"


@pytest.mark.parametrize("plan", [1.5, {"conv1": 96, "layer4.1.conv1": 1.25}])
def test_a_dry_run_is_what_growing_does(plan: float | dict[str, float]) -> None:
    net = models.build("resnet18", num_classes=10)
    found = survey(net, torch.zeros(1, 3, 32, 32), plan)
    grown = growth.widen(net, torch.randn(2, 3, 32, 32), plan)
    assert found.student is not None and all(p.is_meta for p in found.student.parameters())
    shapes = {name: p.shape for name, p in found.student.named_parameters()}
    assert shapes == {name: p.shape for name, p in grown.student.named_parameters()}
    assert found.parameters_grown == describe.count_parameters(grown.student)
    assert describe.macs(found.student, 32) == describe.macs(grown.student, 32)
    assert found.parameters == describe.count_parameters(net)


@pytest.mark.parametrize("name", ["inception_bn_tiny", "inception_rect_tiny"])
def test_a_deeper_dry_run_is_what_growing_does(name: str) -> None:
    net = models.build(name, num_classes=4, stem="small")
    student, behind = deepened(net, torch.zeros(1, 3, 32, 32), pairs=2)
    grown = growth.deepen(net, torch.randn(4, 3, 32, 32), pairs=2).student
    assert [tuple(p.shape) for p in student.parameters()] == [tuple(p.shape) for p in grown.parameters()]
    assert describe.macs(student, 32) == describe.macs(grown, 32)
    assert behind and all(place in dict(net.named_modules()) for place in behind)


def test_nothing_is_touched_and_nothing_made() -> None:
    with torch.device("meta"):
        huge = nn.Sequential(nn.Linear(3, 200_000), nn.ReLU(), nn.Linear(200_000, 200_000), nn.ReLU())
    found = survey(huge, torch.zeros(1, 3), 2.0)  # 160 GB, were there weights
    assert (found.groups[0].units, found.groups[0].grown) == (200_000, 400_000)
    assert deepened(huge, torch.zeros(1, 3), ["0"])[1] == ["0"]
    net = Tiny()
    before = {name: t.clone() for name, t in net.state_dict().items()}
    survey(net, IMAGE, 2)
    assert net.training and all(torch.equal(t, before[name]) for name, t in net.state_dict().items())


@pytest.mark.parametrize(
    ("plan", "text"),
    [
        (0.5, "never shrinks"),
        ({"stm": 2.0}, "did you mean 'stem'"),
        ({"head": 2.0}, "the network's output"),
    ],
)
def test_refusals(plan: float | dict[str, float], text: str) -> None:
    with pytest.raises(growth.GrowthError, match=text):
        survey(Tiny(), IMAGE, plan)
    with pytest.raises(growth.GrowthError, match="did you mean 'stem'"):
        deepened(Tiny(), IMAGE, ["stm"])
