"""Widening on torchvision's classifiers: one small member of every family, and (slow) every builder there is."""

import fcntl
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
import torch
import zoo_checks as zoo
from torch import nn
from torchvision import models
from torchvision.models import convnext, efficientnet, maxvit, resnet, vgg

from n2n_cli import growth


def narrow_vgg(norm: bool) -> nn.Module:
    plan = [8, "M", 16, "M", 16, 16, "M", 16, "M", 16, "M"]
    with torch.device("meta"):  # its own classifier has 120 million weights
        model = models.VGG(vgg.make_layers(plan, norm), num_classes=7, init_weights=False)
    model.classifier = classifier(16 * 49)
    return model.to_empty(device="cpu").apply(reset)


def narrow_alexnet() -> nn.Module:
    with torch.device("meta"):
        model = models.AlexNet(num_classes=7)
    model.classifier = classifier(256 * 36)
    return model.to_empty(device="cpu").apply(reset)


def classifier(features: int) -> nn.Module:
    return nn.Sequential(nn.Linear(features, 32), nn.ReLU(True), nn.Dropout(), nn.Linear(32, 7))


def reset(module: nn.Module) -> None:
    if hasattr(module, "reset_parameters"):
        module.reset_parameters()


def shallow_convnext() -> nn.Module:
    block = convnext.CNBlockConfig
    return models.ConvNeXt([block(16, 32, 1), block(32, 48, 2), block(48, None, 1)], num_classes=7)


def shallow_efficientnet_v2() -> nn.Module:
    fused, inverted = efficientnet.FusedMBConvConfig, efficientnet.MBConvConfig
    settings = [fused(1, 3, 1, 24, 24, 2), fused(4, 3, 2, 24, 32, 1), inverted(4, 3, 2, 32, 40, 2)]
    return models.EfficientNet(settings, dropout=0.2, num_classes=7, last_channel=64)


def shallow_maxvit() -> nn.Module:
    return maxvit.MaxVit(
        input_size=(32, 32), stem_channels=16, partition_size=4, block_channels=[16, 32], block_layers=[1, 2],
        head_dim=8, stochastic_depth_prob=0.2, num_classes=7,
    )  # fmt: skip


def bottlenecks(**options: int) -> nn.Module:
    return models.ResNet(resnet.Bottleneck, [1, 1, 1, 1], num_classes=7, **options)


def swin(kind: str) -> nn.Module:
    parts = models.swin_transformer
    block, merging = parts.SwinTransformerBlock, parts.PatchMerging
    if kind == "v2":
        block, merging = parts.SwinTransformerBlockV2, parts.PatchMergingV2
    return models.SwinTransformer(
        [4, 4], 16, [2, 2], [2, 4], [4, 4], num_classes=7, block=block, downsample_layer=merging
    )  # fmt: skip


FAMILIES: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "alexnet": (narrow_alexnet, 64),
    "convnext": (shallow_convnext, 32),
    "densenet": (partial(models.DenseNet, 8, (2, 3, 2), 16, num_classes=7), 32),
    "efficientnet_b0": (partial(zoo.build, "efficientnet_b0"), 64),
    "efficientnet_v2": (shallow_efficientnet_v2, 32),
    "googlenet": (partial(models.GoogLeNet, num_classes=7, init_weights=False), 64),
    "inception_v3": (partial(models.Inception3, num_classes=7, init_weights=False, aux_logits=False), 128),
    "maxvit": (shallow_maxvit, 32),
    "mnasnet0_5": (partial(zoo.build, "mnasnet0_5"), 64),
    "mobilenet_v2": (partial(zoo.build, "mobilenet_v2"), 64),
    "mobilenet_v3_small": (partial(zoo.build, "mobilenet_v3_small"), 64),
    "regnet_x_400mf": (partial(zoo.build, "regnet_x_400mf"), 64),
    "regnet_y_400mf": (partial(zoo.build, "regnet_y_400mf"), 64),
    "resnet18": (partial(zoo.build, "resnet18"), 64),
    "resnext": (partial(bottlenecks, groups=8, width_per_group=4), 64),
    "shufflenet_v2_x0_5": (partial(zoo.build, "shufflenet_v2_x0_5"), 64),
    "shufflenet_v2_x1_0": (partial(zoo.build, "shufflenet_v2_x1_0"), 64),
    "squeezenet1_0": (partial(models.SqueezeNet, "1_0", num_classes=7), 64),
    "squeezenet1_1": (partial(models.SqueezeNet, "1_1", num_classes=7), 64),
    "swin": (partial(swin, "v1"), 32),
    "swin_v2": (partial(swin, "v2"), 32),
    "vgg": (partial(narrow_vgg, False), 32),
    "vgg_bn": (partial(narrow_vgg, True), 64),
    "vit": (partial(models.VisionTransformer, 32, 8, 2, 4, 64, 128, num_classes=7), 32),
    "wide_resnet": (partial(bottlenecks, width_per_group=128), 48),
}


HEAVY = {"googlenet", "inception_v3", "wide_resnet"}  # by one factor here, by both among the slow
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
