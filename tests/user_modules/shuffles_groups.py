"""Channel and pixel shuffles, grouped and depthwise convolutions, shifts of channels."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from user_modules.cases import case, image, pooled


@case(image, grows="stem left.0 right")
class ShuffleUnit(nn.Module):
    """ShuffleNet v2: half of the channels pass, the halves are shuffled into each other."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.left = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3, 1, 1, groups=4))
        self.right, self.fc = nn.Conv2d(8, 10, 1), nn.Linear(10, 5)

    @staticmethod
    def shuffle(x: Tensor, groups: int) -> Tensor:
        n, c, h, w = x.size()
        return x.view(n, groups, c // groups, h, w).transpose(1, 2).contiguous().view(n, -1, h, w)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for _ in range(2):
            a, b = x.chunk(2, dim=1)
            x = self.shuffle(torch.cat((a, self.left(b)), 1), 2)
        return self.fc(pooled(torch.relu(self.right(x))))


@case(image, grows="stem g1 g2 tail")
class ShuffleNetV1(nn.Module):
    """Grouped 1x1 convolutions with a channel shuffle between them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.g1 = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 12, 1, groups=3)
        self.shuffle, self.g2 = nn.ChannelShuffle(3), nn.Conv2d(12, 6, 1, groups=3)
        self.tail, self.fc = nn.Conv2d(6, 10, 1), nn.Linear(10, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.g2(self.shuffle(torch.relu(self.g1(self.stem(x)))))
        return self.fc(pooled(torch.relu(self.tail(x))))


@case(image, grows="up grouped down", factors=(1.5, 2.0))
class GroupedConv(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.grouped = nn.Conv2d(3, 12, 1), nn.Conv2d(12, 24, 3, groups=4)
        self.down, self.fc = nn.Conv2d(24, 7, 1), nn.Linear(7, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(pooled(torch.relu(self.down(torch.relu(self.grouped(self.up(x)))))))


@case(image, grows="expand depth project", factors=(1.25, 1.5, 2.0))
class InvertedResidual(nn.Module):
    def __init__(self, expand_ratio: int = 3) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        hidden = 4 * expand_ratio
        self.expand, self.project = nn.Conv2d(4, hidden, 1), nn.Conv2d(hidden, 4, 1)
        self.depth = nn.Conv2d(hidden, hidden, 5, padding=2, groups=hidden)
        self.fc = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.fc(pooled(x + self.project(F.relu6(self.depth(F.relu6(self.expand(x)))))))


@case(image, grows="a b", factors=(1.5, 2.0))
class DepthwiseMultiplier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 5, 1), nn.Conv2d(5, 10, 3, groups=5)
        self.prelu, self.fc = nn.PReLU(10), nn.Linear(10, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(pooled(self.prelu(self.b(self.a(x)))))


@case(image, grows="body up", factors=(1.5, 2.0))
class SubPixel(nn.Module):
    """ESPCN, and the same by view and permute."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.up = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 16, 3, padding=1)
        self.shuffle, self.mid = nn.PixelShuffle(2), nn.Conv2d(4, 8, 1)
        self.out = nn.Conv2d(2, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.mid(self.shuffle(self.up(torch.tanh(self.body(x))))))
        b, c, h, w = x.shape
        x = x.view(b, c // 4, 2, 2, h, w).permute(0, 1, 4, 2, 5, 3).reshape(b, c // 4, 2 * h, 2 * w)
        return self.out(x)


@case(image, grows="stem tail")
class SpaceToDepth(nn.Module):
    """Four phases, concatenated (YOLO's focus); then pixel unshuffle."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.tail, self.fc = nn.Conv2d(12, 6, 3, padding=1), nn.Conv2d(24, 10, 1), nn.Linear(10, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([x[..., ::2, ::2], x[..., 1::2, ::2], x[..., ::2, 1::2], x[..., 1::2, 1::2]], 1)
        x = F.pixel_unshuffle(torch.relu(self.stem(x)), 2)
        return self.fc(pooled(torch.relu(self.tail(x))))


@case(image, grows="tail", factors=(1.5, 2.0))
class TemporalShift(nn.Module):
    """A fold of the channels is moved one step along the width; the fold is a fraction of the channels."""

    def __init__(self, fold_div: int = 4) -> None:
        super().__init__()
        self.fold_div = fold_div
        self.stem, self.tail, self.fc = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 10, 1), nn.Linear(10, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        fold = x.shape[1] // self.fold_div
        out = torch.zeros_like(x)
        out[:, :fold, :, :-1] = x[:, :fold, :, 1:]
        out[:, fold : 2 * fold, :, 1:] = x[:, fold : 2 * fold, :, :-1]
        out[:, 2 * fold :] = x[:, 2 * fold :]
        return self.fc(pooled(torch.relu(self.tail(out))))
