"""Residual and dense blocks, pyramids, gates, and convolutions of other forms."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from user_modules.cases import case, image, pooled


@case(image, grows="stem c1 c2 c3 down", factors=(1.25, 1.5, 2.0))
class Bottleneck(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.c1, self.b1 = nn.Conv2d(8, 4, 1, bias=False), nn.BatchNorm2d(4)
        self.c2, self.b2 = nn.Conv2d(4, 4, 3, padding=1, stride=2, bias=False), nn.BatchNorm2d(4)
        self.c3, self.b3 = nn.Conv2d(4, 16, 1, bias=False), nn.BatchNorm2d(16)
        self.down = nn.Conv2d(8, 16, 1, stride=2)
        self.relu, self.fc = nn.ReLU(inplace=True), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        identity = self.down(x)
        out = self.relu(self.b1(self.c1(x)))
        out = self.relu(self.b2(self.c2(out)))
        out = self.b3(self.c3(out))
        out += identity
        return self.fc(torch.flatten(F.adaptive_avg_pool2d(self.relu(out), (1, 1)), 1))


@case(image, grows="stem layers.0 layers.1 layers.2", factors=(1.25, 1.5, 2.0))
class DenseBlock(nn.Module):
    def __init__(self, growth_rate: int = 4) -> None:
        super().__init__()
        self.growth_rate = growth_rate
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.layers = nn.ModuleList(nn.Conv2d(6 + i * growth_rate, growth_rate, 3, padding=1) for i in range(3))
        self.norm, self.fc = nn.BatchNorm2d(6 + 3 * growth_rate), nn.Linear(6 + 3 * growth_rate, 5)

    def forward(self, x: Tensor) -> Tensor:
        features = [self.stem(x)]
        for layer in self.layers:
            features.append(layer(F.relu(torch.cat(features, 1))))
        return self.fc(pooled(F.relu(self.norm(torch.cat(features, dim=1)))))


@case(image, grows="primary tail", factors=(1.5, 2.0))
class Ghost(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.primary, self.cheap = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 6, 3, padding=1, groups=6)
        self.tail, self.fc = nn.Conv2d(12, 10, 1), nn.Linear(10, 5)

    def forward(self, x: Tensor) -> Tensor:
        x1 = torch.relu(self.primary(x))
        x2 = torch.relu(self.cheap(x1))
        return self.fc(pooled(torch.relu(self.tail(torch.cat([x1, x2], dim=1)))))


@case(image, grows="down mid", factors=(1.5, 2.0))
class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down, self.mid = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 8, 3, stride=2, padding=1)
        self.up = nn.ConvTranspose2d(8, 6, 2, stride=2)
        self.up2 = nn.ConvTranspose2d(12, 8, 3, padding=1, groups=2)
        self.out = nn.Conv2d(16 // 2, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = torch.relu(self.down(x))
        b = torch.relu(self.up(torch.relu(self.mid(a))))
        return self.out(torch.relu(self.up2(torch.cat((a, b), 1))))


@case(image, grows="stem branches.0 branches.1 global_ tail", factors=(1.5, 2.0))
class MultiScale(nn.Module):
    """ASPP with pools, dilation, interpolation and pads of every kind."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1, padding_mode="reflect")
        self.branches = nn.ModuleList(nn.Conv2d(6, 4, 3, padding=d, dilation=d) for d in (1, 2))
        self.global_, self.tail, self.fc = nn.Conv2d(6, 4, 1), nn.Conv2d(18, 8, 1), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        size = x.shape[-2:]
        out = [branch(x) for branch in self.branches]
        out.append(F.interpolate(self.global_(F.adaptive_avg_pool2d(x, 1)), size, mode="bilinear", align_corners=False))
        y = F.interpolate(F.max_pool2d(F.pad(x, (1, 1, 0, 2)), 2), size=size, mode="nearest")
        return self.fc(pooled(torch.relu(self.tail(torch.cat([*out, y], 1)))))


@case(image, grows="stem reduce expand tail", factors=(1.5, 2.0))
class SqueezeExcite(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.tail = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 10, 3)
        self.reduce, self.expand = nn.Linear(8, 4), nn.Linear(4, 8)
        self.fc = nn.Linear(10, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        n, c, _, _ = x.size()
        gate = F.adaptive_avg_pool2d(x, 1).view(n, c)
        gate = torch.sigmoid(self.expand(F.relu(self.reduce(gate)))).view(n, c, 1, 1)
        return self.fc(pooled(F.hardswish(self.tail(x * gate.expand_as(x)))))


@case(image, grows="stem mlp.0 tail", factors=(1.5, 2.0))
class CBAM(nn.Module):
    """Channel attention by two pools, then spatial attention by the maximum over channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.tail, self.fc = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 10, 3), nn.Linear(10, 5)
        self.mlp = nn.Sequential(nn.Conv2d(8, 4, 1), nn.ReLU(), nn.Conv2d(4, 8, 1))
        self.spatial = nn.Conv2d(1, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        x = x * torch.sigmoid(self.mlp(x.mean((2, 3), keepdim=True)) + self.mlp(x.amax((2, 3), keepdim=True)))
        x = x * torch.sigmoid(self.spatial(x.amax(1, keepdim=True)))
        return self.fc(pooled(torch.relu(self.tail(x))))


@case(image, grows="tail", fixed={"stem": "conv1d"})
class ECA(nn.Module):
    """A convolution over channels: neighbours are told apart, so these channels stay."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.tail, self.fc = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 10, 3), nn.Linear(10, 5)
        self.eca = nn.Conv1d(1, 1, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.eca(pooled(x).unsqueeze(1)).squeeze(1)
        return self.fc(pooled(torch.relu(self.tail(x * torch.sigmoid(y)[:, :, None, None]))))


@case(image, grows="mid tail", factors=(1.5, 2.0))
class ConditionalConv(nn.Module):
    """CondConv: kernels mixed by the input, applied as one grouped convolution over the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.route = nn.Conv2d(3, 6, 3), nn.Linear(6, 3)
        self.experts = nn.Parameter(torch.randn(3, 8, 6, 3, 3) * 0.2)
        self.mid, self.tail, self.fc = nn.Conv2d(8, 9, 1), nn.Conv2d(9, 10, 1), nn.Linear(10, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        n, c, h, w = x.shape
        mix = torch.sigmoid(self.route(pooled(x)))
        kernels = torch.einsum("ne,eoikl->noikl", mix, self.experts)
        y = F.conv2d(x.reshape(1, n * c, h, w), kernels.reshape(-1, c, 3, 3), padding=1, groups=n)
        y = y.view(n, -1, h, w)
        return self.fc(pooled(torch.relu(self.tail(torch.relu(self.mid(y))))))


@case(image, grows="b c", factors=(1.5, 2.0))
class Unfolded(nn.Module):
    """A convolution by im2col and a matrix product."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.weight = nn.Conv2d(3, 6, 3), nn.Parameter(torch.randn(8, 54) * 0.2)
        self.b, self.c, self.fc = nn.Conv2d(8, 9, 1), nn.Conv2d(9, 10, 1), nn.Linear(10, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.a(x))
        columns = F.unfold(x, 3, padding=1)
        x = (self.weight @ columns).view(x.shape[0], -1, *x.shape[2:])
        return self.fc(pooled(torch.relu(self.c(torch.relu(self.b(x))))))
