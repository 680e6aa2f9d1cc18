"""One small member of every family of torchvision's classifiers: ``FAMILIES[name]`` is (build, image side)."""

from collections.abc import Callable
from functools import partial

import torch
import zoo_checks as zoo
from torch import nn
from torchvision import models
from torchvision.models import convnext, efficientnet, maxvit, resnet, vgg


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


class NarrowResNet(models.ResNet):
    """A quarter of its units in every stage."""

    def _make_layer(self, block, planes, *args, **kwargs):
        return super()._make_layer(block, planes // 4, *args, **kwargs)


def narrow_resnet(blocks: tuple[int, ...] = (2, 2, 2, 2), num_classes: int = 7) -> nn.Module:
    model = NarrowResNet(resnet.BasicBlock, list(blocks))
    model.fc = nn.Linear(128, num_classes)
    return model


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
    "resnet18": (narrow_resnet, 64),
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


HEAVY = {
    *("efficientnet_b0", "googlenet", "inception_v3", "mobilenet_v2", "mobilenet_v3_small"),
    *("regnet_x_400mf", "regnet_y_400mf", "shufflenet_v2_x1_0", "wide_resnet"),
}  # by one factor here, by both among the slow
