"""Sizes written as literals, attributes, configurations and shapes; einsum and views."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from user_modules.cases import case, image, pooled


@case(image, grows="w1 w2", factors=(1.5, 2.0))
class EinsumNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w1, self.w2 = nn.Parameter(torch.randn(8, 3) * 0.5), nn.Parameter(torch.randn(10, 8) * 0.3)
        self.fc = nn.Parameter(torch.randn(10, 5))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(torch.einsum("nchw,oc->nohw", x, self.w1))
        x = torch.relu(torch.einsum("...chw,oc->...ohw", x, self.w2))
        return torch.einsum("nchw,cd->nd", x, self.fc)


@case(image, grows="stem mix token.0", factors=(1.5, 2.0))
class Mixer(nn.Module):
    """MLP-Mixer: linear layers over positions (fixed) and over channels (grow)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 4, stride=4)
        self.token = nn.Sequential(nn.Linear(4, 7), nn.GELU(), nn.Linear(7, 4))
        self.mix, self.back, self.head = nn.Linear(6, 9), nn.Linear(9, 6), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).flatten(2).transpose(1, 2)
        x = x + self.token(x.transpose(1, 2)).transpose(1, 2)
        x = x + self.back(F.gelu(self.mix(x)))
        return self.head(x.mean(dim=1))


@case(image, grows="conv fc1", factors=(1.5, 2.0))
class LeNet(nn.Module):
    """``x.view(-1, 6 * 4 * 4)`` with the width from an attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.flat = nn.Conv2d(3, 6, 3, padding=1), 6 * 4 * 4
        self.fc1, self.fc2 = nn.Linear(self.flat, 10), nn.Linear(10, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(torch.relu(self.conv(x)), 2)
        return self.fc2(torch.relu(self.fc1(x.view(-1, self.flat))))


@case(image, grows="conv conv2 fc1", fixed={"conv3": "view"}, factors=(1.5, 2.0))
class LeNetLiteral(nn.Module):
    """``x.view(-1, 6 * 4 * 4)``: the channels that meet the literal stay, the hidden layers grow."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.conv2 = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 8, 3, padding=1)
        self.conv3 = nn.Conv2d(8, 6, 3, padding=1)
        self.fc1, self.fc2 = nn.Linear(96, 10), nn.Linear(10, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.conv2(torch.relu(self.conv(x))))
        x = F.max_pool2d(torch.relu(self.conv3(x)), 2)
        return self.fc2(torch.relu(self.fc1(x.view(-1, 6 * 4 * 4))))


@case(image, grows="left right tail", factors=(1.5, 2.0))
class SliceLiteral(nn.Module):
    """``x[:, :8]`` and ``x[:, 8:]``: where the halves meet is written into forward."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.left, self.right = nn.Conv2d(3, 16, 3), nn.Conv2d(8, 6, 1), nn.Conv2d(8, 6, 1)
        self.tail, self.fc = nn.Conv2d(6, 10, 1), nn.Linear(10, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        x = torch.relu(self.left(x[:, :8]) * self.right(x[:, 8:]))
        return self.fc(pooled(torch.relu(self.tail(x))))


@case(image, grows="stem tail", factors=(1.5, 2.0))
class SplitSizesList(nn.Module):
    """Split sizes in a list of the module: they follow."""

    def __init__(self) -> None:
        super().__init__()
        self.splits = [4, 6, 2]
        self.stem, self.tail, self.fc = nn.Conv2d(3, 12, 3), nn.Conv2d(12, 10, 1), nn.Linear(10, 5)
        self.convs = nn.ModuleList(nn.Conv2d(n, n, 3, padding=1) for n in self.splits)

    def forward(self, x: Tensor) -> Tensor:
        parts = torch.split(torch.relu(self.stem(x)), self.splits, dim=1)
        x = torch.cat([conv(part) for conv, part in zip(self.convs, parts, strict=True)], dim=1)
        return self.fc(pooled(torch.relu(self.tail(x))))


@case(image, grows="before tail", fixed={"stem": ""}, factors=(1.5, 2.0))
class SplitSizesLiteral(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.before, self.stem = nn.Conv2d(3, 7, 3), nn.Conv2d(7, 12, 3)
        self.tail, self.fc = nn.Conv2d(12, 10, 1), nn.Linear(10, 5)

    def forward(self, x: Tensor) -> Tensor:
        a, b, c = torch.split(self.stem(torch.relu(self.before(x))), [4, 6, 2], dim=1)
        x = torch.cat([torch.relu(a), torch.tanh(b), torch.sigmoid(c)], dim=1)
        return self.fc(pooled(torch.relu(self.tail(x))))


@case(image, grows="before tail", fixed={"stem": ""}, factors=(1.5, 2.0))
class ViewLiteral(nn.Module):
    """Maxout with its sizes written into forward: ``x.view(n, 4, 3, h, w)``."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.stem = nn.Conv2d(3, 7, 3), nn.Conv2d(7, 12, 3)
        self.tail, self.fc = nn.Conv2d(4, 10, 1), nn.Linear(10, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(torch.relu(self.before(x)))
        n, _, h, w = x.shape
        x = x.view(n, 4, 3, h, w).amax(dim=2)
        return self.fc(pooled(torch.relu(self.tail(x))))


@case(image, grows="stem tail", factors=(1.5, 2.0))
class MaxoutAttributes(nn.Module):
    def __init__(self, out: int = 4, pieces: int = 3) -> None:
        super().__init__()
        self.out, self.pieces = out, pieces
        self.stem = nn.Conv2d(3, out * pieces, 3)
        self.tail, self.fc = nn.Conv2d(out, 10, 1), nn.Linear(10, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x.view(x.size(0), self.out, self.pieces, *x.shape[2:]).max(dim=2)[0]
        return self.fc(pooled(torch.relu(self.tail(x))))


@case(image, grows="before tail", fixed={"stem": ""}, factors=(1.5, 2.0))
class ShapeInArithmetic(nn.Module):
    """``x.shape[1] ** -0.5`` as a factor: growing these channels would change the number."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.stem = nn.Conv2d(3, 7, 3), nn.Conv2d(7, 12, 3)
        self.tail, self.fc = nn.Conv2d(12, 10, 1), nn.Linear(10, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(torch.relu(self.before(x)))
        x = torch.tanh(x * x.shape[1] ** -0.5)
        return self.fc(pooled(torch.relu(self.tail(x))))


@case(image, grows="before tail", fixed={"stem": ""}, factors=(1.5, 2.0))
class ZerosLiteral(nn.Module):
    """A canvas of a literal size, filled in place."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.stem = nn.Conv2d(3, 7, 3), nn.Conv2d(7, 6, 3)
        self.tail, self.fc = nn.Conv2d(8, 10, 1), nn.Linear(10, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(torch.relu(self.before(x)))
        canvas = torch.zeros(x.shape[0], 8, x.shape[2], x.shape[3], dtype=x.dtype, device=x.device)
        canvas[:, 1:7] = x
        return self.fc(pooled(torch.relu(self.tail(canvas))))


@case(image, grows="before stem", factors=(1.5, 2.0))
class CanvasByShape(nn.Module):
    """The same with sizes taken from tensors: everything follows."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.stem = nn.Conv2d(3, 7, 3, padding=1), nn.Conv2d(7, 6, 3, padding=1)
        self.tail, self.fc = nn.Conv2d(13, 10, 1), nn.Linear(10, 5)

    def forward(self, x: Tensor) -> Tensor:
        a = torch.relu(self.before(x))
        b = self.stem(a)
        canvas = x.new_empty(x.shape[0], a.shape[1] + b.shape[1], *x.shape[2:])
        canvas[:, : a.shape[1]] = a
        canvas[:, a.shape[1] :] = b
        return self.fc(pooled(torch.relu(self.tail(canvas))))


@case(image, grows="tail", factors=(1.5, 2.0))
class NestedConfig(nn.Module):
    """Widths in a config object and in a dict: they follow, or what meets them stays by name."""

    def __init__(self) -> None:
        super().__init__()
        self.cfg = SimpleNamespace(dim=8, sub={"hidden": 12})
        self.stem, self.mid = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 12, 1)
        self.tail, self.fc = nn.Conv2d(12, 10, 1), nn.Linear(10, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x.reshape(-1, self.cfg.dim, x.shape[-2], x.shape[-1])
        x = torch.relu(self.mid(x))
        x = x.view(x.shape[0], self.cfg.sub["hidden"], *x.shape[2:])
        return self.fc(pooled(torch.relu(self.tail(x))))


@case(image, grows="stem tail", factors=(1.5, 2.0))
class CoincidentNumber(nn.Module):
    """``size`` is the image's, and happens to equal the width: it must not follow."""

    def __init__(self) -> None:
        super().__init__()
        self.size, self.width, self.window = 8, 8, (8, 8)
        self.stem, self.tail, self.fc = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 10, 1), nn.Linear(10, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.interpolate(self.stem(x), (self.size, self.size), mode="nearest")
        x = F.adaptive_avg_pool2d(x, self.window)
        return self.fc(pooled(torch.relu(self.tail(x))))


@case(image, grows="stem tail", factors=(1.5, 2.0))
class GuardedForward(nn.Module):
    """Assertions on the width, held as an attribute."""

    def __init__(self, channels: int = 8) -> None:
        super().__init__()
        self.channels = channels
        self.stem, self.tail, self.fc = nn.Conv2d(3, channels, 3), nn.Conv2d(channels, 10, 1), nn.Linear(10, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        if x.shape[1] != self.channels:
            raise ValueError(f"expected {self.channels} channels")
        return self.fc(pooled(torch.relu(self.tail(x))))


@case(image, grows="tail", fixed={"stem": ""}, factors=(1.5, 2.0))
class GuardedLiteral(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.tail, self.fc = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 10, 1), nn.Linear(10, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        assert x.shape[1] == 8, "a width of 8"
        return self.fc(pooled(torch.relu(self.tail(x))))
