"""Whether copies part: the count of equal and nearly equal units, and what becomes of it in training."""

from __future__ import annotations

import pytest
import torch
from families import FAMILIES
from nets import perturb
from torch import nn
from torch.nn import functional as F

from n2n_cli import growth
from n2n_cli.growth import Duplicates


def convnet() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6)]
    return perturb(nn.Sequential(*layers, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3)))


IMAGES = torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(3))


def trained(model: nn.Module, steps: int) -> nn.Module:
    optimizer = torch.optim.SGD(model.train().parameters(), 0.05, momentum=0.9)
    for step in range(steps):
        x = torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        F.cross_entropy(model(x), x.mean((2, 3)).argmax(1)).backward()
        optimizer.step()
    return model


def test_copies_are_counted_to_the_bit_and_nearly():
    student = growth.widen(convnet(), IMAGES, 2.0).student
    assert growth.duplicates(student, IMAGES) == Duplicates(20, 10, 10)
    with torch.no_grad():
        student[0].weight[5] *= 1.001
        student[0].bias[6] += 1.0
        student[4].weight[7] *= 1.5  # a scale of a norm makes a unit as well
    assert growth.duplicates(student, IMAGES) == Duplicates(20, 7, 8)
    assert growth.duplicates(convnet(), IMAGES) == Duplicates(10, 0, 0)
    unequal = growth.widen(convnet(), IMAGES, 2.0, split="unequal").student  # how units are read makes no difference
    assert growth.duplicates(unequal, IMAGES) == Duplicates(20, 10, 10)


@pytest.mark.parametrize("steps", [10, 100])
def test_equal_shares_without_noise_never_part(steps):
    assert growth.duplicates(trained(growth.widen(convnet(), IMAGES, 2.0).student, steps), IMAGES).equal == 10


WAYS = {
    "noise": {"noise": 0.3},
    "unequal": {"split": "unequal"},
    "fresh": {"new": "fresh"},
    "paired": {"new": "paired"},
    "gradmax": {"new": "gradmax", "calibration": [(IMAGES, torch.arange(8) % 3)]},
}


@pytest.mark.parametrize("way", WAYS)
def test_every_other_way_parts_them(way):
    student = growth.widen(convnet(), IMAGES, 2.0, **WAYS[way]).student
    found = [growth.duplicates(trained(student, steps), IMAGES) for steps in (10, 90)]
    assert [one.equal for one in found] == [0, 0] and found[1].near <= found[0].near
    assert found[1].near == 0, "after 100 steps they are more than 1 % apart"


@pytest.mark.parametrize(
    "family", [pytest.param("resnet18", marks=pytest.mark.slow), "vit", "densenet", "shufflenet_v2_x0_5"]
)
def test_families(family):
    build, size = FAMILIES[family]
    torch.manual_seed(0)
    teacher, x = build(), torch.randn(2, 3, size, size)
    own = growth.duplicates(teacher, x)
    grown = growth.widen(teacher, x, 2.0)
    found = growth.duplicates(grown.student, x)
    added = found.units - own.units
    assert own.units and added > 0 and found.equal >= added, "of random units none is a copy but what was constant"
