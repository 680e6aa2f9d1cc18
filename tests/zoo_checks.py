"""What widening is held to on any image classifier: measured by plain forward passes, not by the engine's own proof.

``experiments/zoo/zoo.py`` runs it on every torchvision classifier, ``tests/growth/test_zoo.py`` asserts it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torchvision
from nets import perturb
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torchvision.models.regnet import BlockParams
from torchvision.models.vision_transformer import VisionTransformer

from n2n_cli import growth
from n2n_cli.growth.groups.infer import infer, trace
from n2n_cli.growth.proof.gap import relative

FACTORS = (1.5, 2.0)
NAMES: list[str] = torchvision.models.list_models(module=torchvision.models)
GIB = 2**30
MEMORY = 16.0  # GiB: a model whose widening is expected to need more is built with fewer layers
Row = dict[str, Any]


def pixels(name: str) -> int:
    """The smallest image: the builder's own limit, or one whose last maps are not 1x1 (batch norm on two images)."""
    if name == "inception_v3":
        return 299  # its auxiliary head pools 17x17 maps
    if name == "maxvit_t":
        return 224  # windows of 7 at strides of up to 32
    if name.startswith("vit_"):
        return 2 * int(name.rpartition("_")[2])  # 2x2 patches
    return 64


def _vit(name: str, layers: int, heads: int, width: int) -> nn.Module:
    size = pixels(name)
    return VisionTransformer(size, size // 2, layers, heads, width, 4 * width)


def _regnet_y_128gf() -> nn.Module:
    params = BlockParams.from_init_params(depth=27, w_0=456, w_a=160.83, w_m=2.52, group_width=264, se_ratio=0.25)
    params.depths = [1] * len(params.depths)
    return torchvision.models.RegNet(params, norm_layer=None)


SHALLOW: dict[str, tuple[str, int, Callable[[], nn.Module]]] = {  # what is left, its parameters in millions
    "vit_l_16": ("8 of 24 layers", 103, lambda: _vit("vit_l_16", 8, 16, 1024)),
    "vit_l_32": ("8 of 24 layers", 103, lambda: _vit("vit_l_32", 8, 16, 1024)),
    "vit_h_14": ("6 of 32 layers", 121, lambda: _vit("vit_h_14", 6, 16, 1280)),
    "regnet_y_128gf": ("1, 1, 1, 1 of 2, 7, 17, 1 blocks", 200, _regnet_y_128gf),
}


def build(name: str) -> nn.Module:
    """torchvision's own builder, without weights."""
    options: dict[str, Any] = {}
    if name.startswith("vit_"):
        options["image_size"] = pixels(name)
    if name in {"googlenet", "inception_v3"}:
        options["init_weights"] = True  # said, so that torchvision does not warn
    model: nn.Module = torchvision.models.get_model(name, weights=None, **options)
    return model


def count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def peak(parameters: int, factor: float) -> float:
    """GiB that a widening in fp64 is expected to need: teacher and student, and both again in the engine's proof."""
    return 2 * 8 * parameters * (1 + factor**2) / GIB + 0.7


def expected_peak(name: str, factor: float, memory: float = MEMORY) -> tuple[float, str | None]:
    """The GiB to expect, and what was left out of the model to stay below ``memory`` (None: nothing)."""
    need = peak(torchvision.models.get_model_weights(name).DEFAULT.meta["num_params"], factor)
    if need <= memory or name not in SHALLOW:
        return need, None
    left_out, millions, _ = SHALLOW[name]
    return peak(millions * 10**6, factor), left_out


@torch.no_grad()
def unsettle(model: nn.Module, x: Tensor, seed: int = 0) -> nn.Module:
    """Random values for all that is constant at the start (a fresh network hides mistakes).

    Biases, affines, class tokens, layer scales, a head of zeros; and batch-norm statistics near the network's own, so
    that activations keep their size through any depth.
    """
    perturb(model, seed)
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        low, high = parameter.min().item(), parameter.max().item()
        if low != high:
            continue
        if abs(low) > 1e-3:  # weights of norms, logit scales
            parameter.mul_(torch.empty(parameter.shape).uniform_(0.5, 1.5, generator=generator))
        elif low:  # layer scales of 1e-6
            parameter.uniform_(0.1, 0.5, generator=generator)
        elif parameter.ndim == 2:  # the heads of vision transformers
            parameter.normal_(0, parameter.shape[1] ** -0.5, generator=generator)
        else:
            parameter.normal_(0, 0.2, generator=generator)

    def settle(norm: nn.Module, args: tuple[Tensor, ...]) -> None:
        dims = [d for d in range(args[0].ndim) if d != 1]
        var, mean = torch.var_mean(args[0], dims)
        var = var.clamp(min=1e-2 * var.mean().item() + 1e-12)
        shift = torch.randn(mean.shape, generator=generator).to(mean)
        stretch = torch.empty(var.shape).uniform_(0.7, 1.5, generator=generator).to(var)
        norm.get_buffer("running_mean").copy_(mean + 0.3 * var.sqrt() * shift)
        norm.get_buffer("running_var").copy_(var * stretch)

    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    hooks = [norm.register_forward_pre_hook(settle) for norm in norms]
    forward(model, x, training=False)  # in eval mode: what a norm reads was made with the statistics set before it
    for hook in hooks:
        hook.remove()
    return model


@contextmanager
def quiet(model: nn.Module) -> Iterator[None]:
    """Dropout and stochastic depth with probability 0: they draw other numbers in a wider network."""
    changed: list[tuple[nn.Module, str, float]] = []
    for module in model.modules():
        for name in ("p", "dropout", "attention_dropout", "drop_rate"):
            value = getattr(module, name, None)
            if isinstance(value, float):
                changed.append((module, name, value))
                setattr(module, name, 0.0)
    try:
        yield
    finally:
        for module, name, value in changed:
            setattr(module, name, value)


@torch.no_grad()
def forward(model: nn.Module, x: Tensor, *, training: bool) -> list[Tensor]:
    """Every output, auxiliary ones included; a plain call, so train mode moves the running statistics."""
    was = model.training
    model.train(training)
    try:
        with quiet(model):
            return [leaf.clone() for leaf in tree_leaves(model(x)) if isinstance(leaf, Tensor)]
    finally:
        model.train(was)


def statistics(model: nn.Module) -> dict[str, Tensor]:
    """Running means and variances."""
    return {n: b.clone() for n, b in model.named_buffers() if n.endswith(("running_mean", "running_var"))}


def measure(teacher: nn.Module, x: Tensor, factor: float, seed: int = 0) -> Row:
    """Widen a teacher (fp64) and measure all that is asked of the student; the teacher is left as it was."""
    start = time.perf_counter()
    infer(teacher, trace(teacher, x))
    inferred = time.perf_counter()
    grown = growth.widen(teacher, x, factor, seed=seed)
    widened = time.perf_counter()
    student = grown.student
    stayed = [g for g in grown.groups if not g.fixed and g.grown == g.units]
    row: Row = {
        "groups": {
            "free": sum(not g.fixed and not g.tied for g in grown.groups),
            "tied": sum(bool(g.tied) and not g.fixed for g in grown.groups),
            "fixed": sum(bool(g.fixed) for g in grown.groups),
            "grown": sum(g.grown > g.units for g in grown.groups),
        },
        "fixed": _reasons([(g.fixed, len(g.layers)) for g in grown.groups if g.fixed]),
        "kept": _reasons([(g.tied or "free to grow, kept without a reason given", len(g.layers)) for g in stayed]),
        "parameters": count(teacher),
        "grown": count(student),
        "predicted": _predicted(teacher, grown),
        "same_keys": list(student.state_dict()) == list(teacher.state_dict()),
        "claimed": {"eval": grown.gap.eval, "train": grown.gap.train, "floor": grown.gap.floor},
        "seconds": {"infer": inferred - start, "widen": widened - inferred},
    }
    row["parameter_factor"] = row["grown"] / row["parameters"]
    return row | _gaps(teacher, student, x, grown)


def _predicted(teacher: nn.Module, grown: growth.Growth) -> int:
    """The student's parameters as its maps say."""
    total = 0
    for name, parameter in teacher.named_parameters():
        axes = grown.maps.get(name) or [None] * parameter.ndim
        total += math.prod(
            n if axis is None else len(axis.index) for n, axis in zip(parameter.shape, axes, strict=True)
        )
    return total


def _gaps(teacher: nn.Module, student: nn.Module, x: Tensor, grown: growth.Growth) -> Row:
    """Gaps and rounding floors of the outputs in both modes, and of the running statistics after one train pass."""
    gap: dict[str, float] = {}
    floor: dict[str, float] = {}
    nudged = torch.nextafter(x, torch.full_like(x, math.inf))
    before = statistics(teacher)
    row: Row = {}
    for training in (False, True):
        mode = "train" if training else "eval"
        theirs = forward(teacher, x, training=training)
        moved = statistics(teacher)
        _set(teacher, before)
        gap[mode] = relative(forward(student, x, training=training), theirs)
        floor[mode] = relative(forward(teacher, nudged, training=training), theirs)
        floors = statistics(teacher)
        _set(teacher, before)
        row[f"outputs_{mode}"] = len(theirs)
        if not training:
            row["finite"] = all(bool(t.isfinite().all()) for t in theirs)
            row["varies"] = max(relative([t[:1]], [t[1:2]]) for t in theirs)
    ours = statistics(student)
    gap["statistics"] = max(
        [
            0.0,
            *(
                relative([_read(ours[n], grown.maps[n])], [_read(_follow(t, grown.maps[n]), grown.maps[n])])
                for n, t in moved.items()
            ),
        ]
    )
    floor["statistics"] = max([0.0, *(relative([floors[n]], [t]) for n, t in moved.items())])
    return row | {"gap": gap, "floor": floor, "statistics": len(moved), "same_statistics": ours.keys() == moved.keys()}


def _read(tensor: Tensor, axes: list[Any]) -> Tensor:
    """Without the idle units of a channel shuffle, which copy nothing and which nobody reads."""
    return tensor if not axes or axes[0] is None or axes[0].idle is None else tensor[~axes[0].idle]


def _follow(tensor: Tensor, axes: list[Any]) -> Tensor:
    for dim, axis in enumerate(axes):
        tensor = tensor if axis is None else tensor.index_select(dim, axis.index)
    return tensor


@torch.no_grad()
def _set(model: nn.Module, values: dict[str, Tensor]) -> None:
    buffers = dict(model.named_buffers())
    for name, value in values.items():
        buffers[name].copy_(value)


def _reasons(found: list[tuple[str, int]]) -> dict[str, int]:
    """Reasons without the places ("softmax at encoder.0: why" -> "softmax: why"), and the layers each holds back."""
    out: dict[str, int] = {}
    for reason, layers in found:
        head, colon, why = str(reason).partition(": ")
        short = f"{head.partition(' at ')[0]}{colon}{why}"
        out[short] = out.get(short, 0) + layers
    return out


def tolerance(floor: float) -> float:
    """What rounding may explain: a wider sum has other roundings than the teacher's."""
    return max(1e-12, 100 * floor)


def faults(row: Row) -> list[str]:
    """What is wrong with a measured row, in words; an empty list for an exact student."""
    found = []
    for what in ("eval", "train", "statistics"):
        gap, floor = row["gap"][what], row["floor"][what]
        if not gap <= tolerance(floor):
            found.append(f"{what} gap {gap:.1e}, floor {floor:.0e}")
        if not floor < 1e-10:
            found.append(f"{what} floor {floor:.0e}: nothing can be told")
    if row["predicted"] != row["grown"]:
        found.append(f"{row['predicted']} parameters predicted, {row['grown']} made")
    if not row["same_keys"] or not row["same_statistics"]:
        found.append("other state_dict keys")
    if not row["finite"] or not row["varies"] > 1e-3:
        found.append("the teacher's outputs are not finite, or the same for both images")
    if not row["parameter_factor"] > 1:
        found.append("it did not grow")
    return found


def teacher_of(model: nn.Module, size: int, seed: int = 0) -> tuple[nn.Module, Tensor]:
    """The model in fp64 with nothing constant left in it, and two images."""
    x = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(seed + 1), dtype=torch.float64)
    return unsettle(model.double().requires_grad_(False), x, seed), x


def check(name: str, factor: float, memory: float = MEMORY) -> Row:
    """One torchvision classifier, widened by one factor."""
    torch.manual_seed(0)
    _, left_out = expected_peak(name, factor, memory)
    model = SHALLOW[name][2]() if left_out else build(name)
    teacher, x = teacher_of(model, pixels(name))
    return {"model": name, "factor": factor, "image": pixels(name), "left_out": left_out} | measure(teacher, x, factor)
