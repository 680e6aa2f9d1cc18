"""Networks and helpers that several tests use."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_map

from n2n_cli import growth, models
from n2n_cli.growth.groups.axes import Group, resolve
from n2n_cli.growth.groups.infer import infer, trace
from n2n_cli.growth.groups.operations import OPERATIONS
from n2n_cli.growth.groups.structure import Structure
from n2n_cli.growth.trace.dispatch import WithoutChance


def double_gap(teacher: nn.Module, student: nn.Module, x: Tensor) -> float:
    """The gap of a student grown in fp64 itself: nothing but rounding may remain."""
    return growth.function_gap(teacher, student, x.double())


def inferred(model: nn.Module, example: Any, **options: Any) -> Structure:
    """The groups of a model."""
    return infer(model, trace(model, example), **options)


def only_group(structure: Structure, name: str, dim: int = 0) -> Group:
    """The group that an axis of a parameter consists of."""
    ((group, _),) = resolve(structure.axes[name][dim])
    return group


def perturb(model: nn.Module, seed: int = 0) -> nn.Module:
    """Random batch-norm statistics and affine parameters: a fresh BN (0, 1, 1, 0) hides mistakes."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._NormBase) and module.weight is not None:
            with torch.no_grad():
                module.weight.uniform_(0.5, 1.5, generator=generator)
                module.bias.normal_(0, 0.3, generator=generator)
                if module.running_mean is not None and module.running_var is not None:
                    module.running_mean.normal_(0, 0.3, generator=generator)
                    module.running_var.uniform_(0.5, 2.0, generator=generator)
    return model


def state_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same_state(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def storages(model: nn.Module) -> set[int]:
    return {t.untyped_storage().data_ptr() for t in model.state_dict(keep_vars=True).values() if t.numel()}


KINDS = "conv rect bias residual concat depthwise grouped gate groupnorm transposed shuffle chunk".split()  # noqa: SIM905


class RandomNet(nn.Module):
    """A network drawn from a list of block names; every block reads and returns a feature map [N, C, H, W]."""

    def __init__(self, blocks: list[tuple[str, int]], seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.kinds = [kind for kind, _ in blocks]
        self.layers = nn.ModuleList()
        channels = 3
        for kind, width in blocks:
            block, channels = self._block(kind, channels, width)
            self.layers.append(block)
        self.head = nn.Linear(channels * 4, 5)

    @staticmethod
    def _cbr(i: int, o: int, k: int | tuple[int, int] = 3, groups: int = 1) -> nn.Sequential:
        padding = (k // 2, k // 2) if isinstance(k, int) else (k[0] // 2, k[1] // 2)
        return nn.Sequential(
            nn.Conv2d(i, o, k, padding=padding, groups=groups, bias=False), nn.BatchNorm2d(o), nn.ReLU()
        )

    def _block(self, kind: str, c: int, w: int) -> tuple[nn.Module, int]:
        cbr = self._cbr
        if kind == "conv":
            return cbr(c, w), w
        if kind == "rect":
            return nn.Sequential(cbr(c, w, (3, 1)), cbr(w, w, (1, 3))), w
        if kind == "bias":
            return nn.Sequential(nn.Conv2d(c, w, 1), nn.LeakyReLU(0.1)), w
        if kind == "residual":
            return nn.ModuleList([cbr(c, w), nn.Conv2d(w, c, 1)]), c
        if kind == "concat":
            return nn.ModuleList([cbr(c, w, 1), cbr(c, w + 1)]), c + 2 * w + 1
        if kind == "depthwise":
            return nn.Sequential(cbr(c, c, 3, groups=c), nn.Conv2d(c, w, 1)), w
        if kind == "grouped":
            return nn.Sequential(nn.Conv2d(c, 2 * w, 1), cbr(2 * w, 4 * w, 3, groups=2)), 4 * w
        if kind == "gate":
            return nn.ModuleList([nn.Conv2d(c, w, 1), nn.Conv2d(w, c, 1)]), c
        if kind == "groupnorm":
            return nn.Sequential(nn.Conv2d(c, 2 * w, 1), nn.GroupNorm(2, 2 * w), nn.SiLU()), 2 * w
        if kind == "transposed":
            return nn.Sequential(nn.ConvTranspose2d(c, w, 3, padding=1), nn.ReLU()), w
        if kind == "shuffle":
            return nn.Sequential(nn.Conv2d(c, 4 * w, 1), nn.PixelShuffle(2), nn.AvgPool2d(2)), w
        if kind == "chunk":
            return nn.Conv2d(c, 2 * w, 1), w
        raise KeyError(kind)

    def forward(self, x: Tensor) -> Tensor:
        for kind, block in zip(self.kinds, self.layers, strict=True):
            if kind == "residual":
                x = F.relu(x + block[1](block[0](x)))
            elif kind == "concat":
                x = torch.cat([block[0](x), x, block[1](x)], 1)
            elif kind == "gate":
                x = x * torch.sigmoid(block[1](F.relu(block[0](F.adaptive_avg_pool2d(x, 1)))))
            elif kind == "chunk":
                a, b = block(x).chunk(2, dim=1)
                x = a * torch.tanh(b)
            else:
                x = block(x)
        return self.head(F.adaptive_avg_pool2d(x, 2).flatten(1))


def leaves(output: Any) -> list[Tensor]:
    """Every tensor in whatever a model returned; unlike PyTorch's own pytrees, also in dataclasses and objects."""
    if isinstance(output, Tensor):
        return [output]
    if isinstance(output, Mapping):
        return [t for value in output.values() for t in leaves(value)]
    if isinstance(output, list | tuple | set):
        return [t for value in output for t in leaves(value)]
    return [t for value in getattr(output, "__dict__", {}).values() for t in leaves(value)]


def call(model: nn.Module, example: Any) -> Any:
    if isinstance(example, dict):
        return model(**example)
    return model(*example) if isinstance(example, tuple) else model(example)


def worst(ours: list[Tensor], theirs: list[Tensor]) -> float:
    """max |ours - theirs| / max |theirs|; infinite where there is nothing to compare or the shapes differ."""
    if not theirs or [t.shape for t in ours] != [t.shape for t in theirs]:
        return math.inf
    gap = 0.0
    for a, b in zip(ours, theirs, strict=True):
        difference = (a.double() - b.double()).abs().max().item() if a.numel() else 0.0
        scale = b.double().abs().max().item() if b.numel() else 0.0
        gap = max(gap, difference / scale if scale else difference)
        if not math.isfinite(difference):
            return math.inf
    return gap


@torch.no_grad()
def plain_gap(teacher: nn.Module, student: nn.Module, example: Any) -> float:
    """The gap in eval mode by two plain calls: none of the engine's own means of measuring."""
    ours, theirs = (leaves(call(copy.deepcopy(model).eval(), example)) for model in (student, teacher))
    return worst(ours, theirs)


def _up(leaf: Any) -> Any:
    if isinstance(leaf, Tensor) and leaf.is_floating_point():
        return torch.nextafter(leaf, torch.full_like(leaf, math.inf))
    return leaf


@torch.no_grad()
def later_gap(teacher: nn.Module, student: nn.Module, example: Any) -> float:
    """The gap in eval mode after one forward pass in train mode: running statistics must stay in step."""
    after = []
    for model in (student, teacher):
        model = copy.deepcopy(model).train()
        with WithoutChance(OPERATIONS):
            call(model, example)
        after.append(leaves(call(model.eval(), example)))
    return worst(*after)


def nudged(example: Any) -> Any:
    """The input changed by one unit in the last place."""
    return tree_map(_up, example)


@torch.no_grad()
def rounding_floor(teacher: nn.Module, example: Any) -> float:
    """The teacher's response to an input changed by one unit in the last place, in eval and in train mode."""
    floors = []
    for training in (False, True):
        results = []
        for given in (example, nudged(example)):
            torch.manual_seed(0)
            model = copy.deepcopy(teacher).train(training)
            results.append(leaves(call(model, given)))
        floors.append(worst(results[1], results[0]))
    return max(f for f in floors if math.isfinite(f))


def measured(teacher: nn.Module, student: nn.Module, example: Any, *others: Any) -> float:
    """How far a student is from its teacher: the engine's measure in both modes, plain calls, running statistics."""
    gaps = [growth.function_gap(teacher, student, example)]
    gaps += [plain_gap(teacher, student, given) for given in (example, *others)]
    gaps += [later_gap(teacher, student, example)]
    return max(gaps)


def allowed(teacher: nn.Module, example: Any, *others: Any) -> float:
    """What rounding explains."""
    return max(1e-10, *(1000 * rounding_floor(teacher, given) for given in (example, *others)))


def images(size: int = 32, n: int = 4, seed: int = 1) -> Tensor:
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(seed))


def resnet18() -> nn.Module:
    return torchvision.models.resnet18(num_classes=7)


def rect(extra_pairs: int = 0, width: float = 0.2) -> nn.Module:
    return models.build("inception_rect", 6, width=width, stem="small", extra_pairs=extra_pairs)


def mlp() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(10, 8), nn.ReLU(), nn.Linear(8, 3)).double()


def conv(c: int) -> nn.Conv2d:
    return nn.Conv2d(c, c, 3, padding=1)


class Masked(nn.Conv2d):
    """A convolution with a mask of its weight's shape in a buffer."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.register_buffer("mask", (torch.arange(9).view(3, 3) < 5).to(torch.float32).expand_as(self.weight).clone())


def lazy(model: nn.Module, x: Tensor) -> nn.Module:
    """The model with its lazy layers made."""
    model.eval()(x)
    return model


def speaking(model: nn.Module, seed: int = 0) -> nn.Module:
    """A head that is not zero (ViT's is), and norms that are not fresh."""
    perturb(model, seed)
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.Linear) and not module.weight.any():
            with torch.no_grad():
                module.weight.normal_(0, 0.1, generator=generator)
    return model


def check_exact(teacher: nn.Module, student: nn.Module, x: Tensor, train: bool = True) -> None:
    """Exact on the example in fp64, in both modes or in eval mode alone."""
    assert growth.function_gap(teacher, student, x, training=False) < 1e-11
    if train:
        assert growth.function_gap(teacher, student, x, training=True) < 1e-10


def check_grown(grown: growth.Growth, teacher: nn.Module, x: Tensor) -> None:
    """Exact on the example and on other images, in both modes, in fp64."""
    assert grown.gap.worst <= max(1e-10, 1000 * grown.gap.floor) and grown.gap.kind == "float64"
    teacher, student = copy.deepcopy(teacher).double(), copy.deepcopy(grown.student).double()
    if not any("stochastic" in name for name, _ in teacher.named_modules()):
        assert growth.function_gap(teacher, student, x.double().roll(3, -1)) < 1e-10
    assert growth.function_gap(teacher, student, x.double().roll(5, -1), training=False) < 1e-10
