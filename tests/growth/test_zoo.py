"""Widening on torchvision's classifiers: one small member of every family, and (slow) every builder there is."""

import fcntl
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import zoo_checks as zoo
from families import FAMILIES, HEAVY
from torch import nn
from torchvision import models
from torchvision.models import resnet

from n2n_cli import growth

PAIRS = [(family, factor) for family in FAMILIES for factor in zoo.FACTORS if factor < 2 or family not in HEAVY]


@pytest.mark.parametrize(("family", "factor"), PAIRS)
def test_one_of_every_family(family, factor):
    build, size = FAMILIES[family]
    row = zoo.measure(*zoo.teacher_of(build(), size), factor)
    assert not zoo.faults(row)
    assert row["parameter_factor"] > 1.25, row["fixed"] | row["kept"]


def test_the_teacher_is_left_as_it_was():
    teacher, x = zoo.teacher_of(models.mobilenet_v3_small(num_classes=7), 64)
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items() if "num_batches" not in name}
    zoo.measure(teacher, x, 1.5)
    assert all(torch.equal(teacher.state_dict()[name], tensor) for name, tensor in before.items())
    assert any(module.p for module in teacher.modules() if isinstance(module, nn.Dropout)), "dropout is back"


BREAKS: dict[str, Callable[[nn.Module], object]] = {
    "eval gap": lambda s: s.layer2[0].conv2.weight[:, -1].mul_(2),
    "train gap": lambda s: s.layer1[0].bn1.weight.copy_(s.layer1[0].bn1.weight.roll(1)),
    "statistics gap": lambda s: s.bn1.running_var[-1].mul_(2),
    "parameters predicted": lambda s: s.register_parameter("more", nn.Parameter(torch.zeros(1))),
    "other state_dict keys": lambda s: s.register_buffer("running_mean", torch.zeros(1)),
}


@pytest.mark.parametrize("words", BREAKS)
def test_the_checks_see_a_wrong_student(words, monkeypatch):
    def broken(*args, **kwargs):
        grown = widen(*args, **kwargs)
        with torch.no_grad():
            BREAKS[words](grown.student)
        return grown

    widen = growth.widen
    monkeypatch.setattr(growth, "widen", broken)
    row = zoo.measure(*zoo.teacher_of(resnet.ResNet(resnet.BasicBlock, [1, 1, 1, 1], num_classes=7), 32), 1.5)
    assert any(words in fault for fault in zoo.faults(row))


def test_every_model_has_an_image_and_room():
    assert len(zoo.NAMES) >= 80
    for name in zoo.NAMES:
        for factor in zoo.FACTORS:
            assert zoo.expected_peak(name, factor)[0] <= zoo.MEMORY


@contextmanager
def alone(need: float) -> Iterator[None]:
    """Big models one at a time, in however many processes the tests run."""
    with (Path(tempfile.gettempdir()) / "n2n-zoo.lock").open("w") as lock:
        if need > 4:
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@pytest.mark.slow
@pytest.mark.parametrize("factor", zoo.FACTORS)
@pytest.mark.parametrize("name", zoo.NAMES)
def test_every_classifier(name, factor):
    with alone(zoo.expected_peak(name, factor)[0]):
        assert not zoo.faults(zoo.check(name, factor))
