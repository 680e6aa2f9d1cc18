"""Layer and RMS norms without whole-number factors: streams that grow by mean units or by scaled copies.

A norm over a stream of n units keeps its statistics if every unit is copied the same whole number of times. Where
everything that writes the stream is linear there is more freedom, for any n' >= n:

* layer norm: the new units hold the *mean* of the stream, so the mean stays and the variance becomes n / n' of what
  it was. With weight x sqrt(n / n') and eps x n / n' the first n results are the teacher's, and the new ones are 0.
* RMS norm: r copies of a unit hold it divided by sqrt(r), so the sum of squares stays. With weight x sqrt(r n / n')
  and eps x n / n' every copy's result is the teacher's.

Here is decided where that is allowed. The stream and the norm's result are groups of their own then.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import sqrt
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from n2n_cli.growth.axes import Axis, Group, Site, resolve

if TYPE_CHECKING:
    from n2n_cli.growth.infer import Inference
    from n2n_cli.growth.plan import Remapping

STRICT = 1  # the choice of a norm's site: only whole-number factors

# Operations whose results are linear in each unit of an axis that they pass on, the same for every unit
LINEAR = {
    *("linear", "matmul", "mm", "bmm", "addmm", "baddbmm", "embedding", "scaled_dot_product_attention", "mean", "sum"),
    *("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "dropout", "dropout_"),
    *("feature_dropout", "feature_dropout_", "contiguous", "clone", "detach", "alias", "to", "_to_copy", "lift_fresh"),
    *("type_as", "add", "add_", "sub", "sub_", "rsub", "neg", "permute", "transpose", "swapaxes", "swapdims", "t"),
    *("numpy_T", "mT", "cat", "concat", "concatenate", "stack", "chunk", "split", "split_with_sizes", "slice"),
    *("select", "unbind", "index", "roll", "flip", "constant_pad_nd", "unsqueeze", "squeeze", "expand", "repeat"),
    *("view", "reshape", "flatten", "unflatten", "_unsafe_view", "avg_pool1d", "avg_pool2d", "avg_pool3d", "copy_"),
    *("adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d", "expand_as", "view_as", "zeros", "ones"),
    *("full", "empty", "zeros_like", "ones_like", "new_zeros", "new_ones", "new_full"),
}
BY_A_NUMBER = {"mul", "mul_", "div", "div_"}


@dataclass(eq=False)
class Norm:
    """One norm whose stream and result may grow by different mappings."""

    kind: Literal["layer", "rms"]
    site: Site
    path: str  # of the module that holds eps
    eps: float
    weight: str
    bias: str | None
    stream: Axis
    out: Axis

    def groups(self) -> tuple[Group, Group]:
        """The stream's group and the result's (`allowed` made sure that there is one each)."""
        return resolve(self.stream)[0][0], resolve(self.out)[0][0]

    def growth(self, mappings: Mapping[Group, Remapping]) -> float:
        """n' / n of the stream, if it grew by this norm's leave."""
        stream, _ = self.groups()
        mapping = mappings.get(stream)
        return len(mapping.index) / stream.n if mapping and mapping.kind in ("mean", "scaled") else 1.0


def bends(name: str, tensors: int) -> bool:
    """Whether an operation (with so many tensor arguments) may treat a unit in a way that is not linear."""
    return name not in LINEAR and not (name in BY_A_NUMBER and tensors == 1)


def refused(ctx: Inference) -> set[Site]:
    """Sites of norms that must keep to whole numbers, given what else meets their streams."""
    bent = {group for axis in ctx.bent for group, _ in resolve(axis)}
    tied = {group for tie in ctx.ties for group, _ in resolve(tie.axis)}
    affine = {name for norm in ctx.norms for name in (norm.weight, norm.bias) if name}
    written: dict[Group, set[str]] = {}
    for (name, dim), roles in ctx.roles.items():
        if "copy" in roles:
            for group, _ in resolve(ctx.parameters[name][dim]):
                written.setdefault(group, set()).add(name)
    results = {group for norm in ctx.norms for group, _ in resolve(norm.out)}
    streams: dict[Group, set[Group]] = {}
    no: set[Site] = set()
    for norm in ctx.norms:
        stream, out = resolve(norm.stream), resolve(norm.out)
        (s, _), (o, _) = stream[0], out[0]
        streams.setdefault(o, set()).add(s)
        single = len(stream) == len(out) == 1 and stream[0][1] == out[0][1] == 1
        free = not s.fixed and not o.fixed and s is not o and not {s, o} & tied and s not in bent and s not in results
        if norm.kind == "layer":  # its new results are 0, and must stay so until something linear reads them
            free = free and o not in bent and written.get(o, set()) <= affine
        if not single or not free or len(streams[o]) > 1:
            no.add(norm.site)
    if no:  # whoever shares a stream with a strict norm is strict as well
        near = {norm.site: {g for g, _ in [*resolve(norm.stream), *resolve(norm.out)]} for norm in ctx.norms}
        strict = {group for site in no for group in near[site]}
        no |= {site for site, groups in near.items() if groups & strict}
    return no


def kinds(norms: Iterable[Norm]) -> dict[Group, str]:
    """How each group of a relaxed norm is written in the student: see `plan.Remapping`."""
    found: dict[Group, str] = {}
    for norm in norms:
        stream, out = norm.groups()
        found[stream] = "mean" if norm.kind == "layer" else "scaled"
        found[out] = "zero" if norm.kind == "layer" else "copy"
    return found


def multipliers(norms: Iterable[Norm], mappings: Mapping[Group, Remapping]) -> dict[str, Tensor]:
    """What the entries of each norm's weight and bias are multiplied by, [n'] each, in fp64."""
    found: dict[str, Tensor] = {}
    for norm in norms:
        grow = norm.growth(mappings)
        stream, _ = norm.groups()
        if stream not in mappings or mappings[stream].kind not in ("mean", "scaled"):
            continue
        mapping = mappings[stream]
        size, old = len(mapping.index), stream.n
        if norm.kind == "rms":
            found[norm.weight] = (mapping.copies.double() / grow).sqrt()
        else:
            found[norm.weight] = torch.full((size,), sqrt(1 / grow), dtype=torch.float64)
            if norm.bias:
                found[norm.bias] = (torch.arange(size) < old).double()
    return found
