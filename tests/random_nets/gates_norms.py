"""Gates, and norms over channels."""

from __future__ import annotations

import random

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from random_nets.blocks import Block, image, vector


@image
class SqueezeExcite(Block):
    writings = ("conv", "linear", "mean", "hard", "cbam", "softmax", "eca", "global_context")

    def make(self, c: int, rng: random.Random) -> None:
        n = rng.randint(1, 4)
        if self.how in {"linear", "mean"}:
            self.a, self.b = nn.Linear(c, n), nn.Linear(n, c)
        else:
            self.a, self.b = nn.Conv2d(c, n, 1), nn.Conv2d(n, c, 1)
        self.pool, self.spatial = nn.AdaptiveAvgPool2d(1), nn.Conv2d(2, 1, 3, padding=1)
        self.eca, self.key = nn.Conv1d(1, 1, 3, padding=1, bias=False), nn.Conv2d(c, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        if self.how == "linear":
            y = self.pool(x).view(n, c)
            return x * torch.sigmoid(self.b(torch.relu(self.a(y)))).view(n, c, 1, 1)
        if self.how == "mean":
            return x * torch.sigmoid(self.b(torch.relu(self.a(x.mean((2, 3))))))[..., None, None].expand_as(x)
        if self.how == "hard":
            return F.hardsigmoid(self.b(F.relu(self.a(x.mean([2, 3], keepdim=True))))).mul(x)
        if self.how == "cbam":
            gate = torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)
            return x * torch.sigmoid(self.spatial(gate))
        if self.how == "softmax":
            return x * self.b(torch.relu(self.a(self.pool(x)))).softmax(1)
        if self.how == "eca":
            y = self.eca(self.pool(x).squeeze(-1).transpose(-1, -2)).transpose(-1, -2).unsqueeze(-1)
            return x * torch.sigmoid(y)
        if self.how == "global_context":
            weight = self.key(x).view(n, 1, h * w).softmax(2)
            context = torch.matmul(x.view(n, c, h * w), weight.transpose(1, 2)).view(n, c, 1, 1)
            return x + self.b(torch.relu(self.a(context)))
        return x * torch.sigmoid(self.b(torch.relu(self.a(self.pool(x)))))


@image
class SelectiveKernel(Block):
    """Two branches weighed by a softmax over the branches."""

    def make(self, c: int, rng: random.Random) -> None:
        self.a, self.b = nn.Conv2d(c, c, 1), nn.Conv2d(c, c, 3, padding=1)
        self.squeeze, self.weigh = nn.Linear(c, 3), nn.Linear(3, 2 * c)

    def forward(self, x: Tensor) -> Tensor:
        u = torch.stack([torch.relu(self.a(x)), torch.relu(self.b(x))], 1)
        z = torch.relu(self.squeeze(u.sum(1).mean((-1, -2))))
        gate = self.weigh(z).view(x.shape[0], 2, -1).softmax(1)
        return (u * gate[..., None, None]).sum(1)


@image
class ChannelNorm(Block):
    writings = (
        "layer_last", "layer_first", "functional", "literal", "rms", "rms_module", "l2", "group", "group_function",
        "group_hand", "instance", "group_one", "lrn", "batch_hand", "grn", "layer_spatial",
    )  # fmt: skip

    def make(self, c: int, rng: random.Random) -> int:
        n = 2 * rng.randint(1, 4) if self.how != "literal" else 6
        self.conv = nn.Conv2d(c, n, 1)
        self.g, self.b = vector(n), nn.Parameter(torch.randn(n) * 0.2)
        self.layer, self.rms = nn.LayerNorm(n), nn.RMSNorm(n, eps=1e-6)
        self.group = nn.GroupNorm(1 if self.how == "group_one" else 2, n)
        self.groups = 2
        self.register_buffer("mean", torch.randn(n) * 0.1)
        self.register_buffer("var", torch.rand(n) + 0.5)
        for norm in (self.layer, self.rms, self.group):
            nn.init.uniform_(norm.weight, 0.5, 1.5)
        return n

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        n, c, h, w = x.shape
        g, b = self.g[:, None, None], self.b[:, None, None]
        if self.how == "layer_last":
            return self.layer(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        if self.how == "layer_first":
            mean = x.mean(1, keepdim=True)
            var = (x - mean).pow(2).mean(1, keepdim=True)
            return g * ((x - mean) / torch.sqrt(var + 1e-6)) + b
        if self.how == "functional":
            return F.layer_norm(x.movedim(1, -1), (c,), self.g, self.b, 1e-6).movedim(-1, 1)
        if self.how == "literal":
            return F.layer_norm(x.movedim(1, -1), (6,)).movedim(-1, 1)
        if self.how == "rms":
            return x * torch.rsqrt(x.square().mean(dim=1, keepdim=True) + 1e-6) * g
        if self.how == "rms_module":
            return self.rms(x.transpose(1, -1)).transpose(1, -1)
        if self.how == "l2":
            return F.normalize(x, dim=1, eps=1e-3) * g
        if self.how in {"group", "group_one"}:
            return self.group(x)
        if self.how == "group_function":
            return F.group_norm(x, self.groups, self.g, self.b)
        if self.how == "group_hand":
            y = x.view(n, self.groups, -1)
            y = (y - y.mean(2, keepdim=True)) / torch.sqrt(y.var(2, keepdim=True) + 1e-5)
            return y.view(n, c, h, w) * g
        if self.how == "instance":
            return F.instance_norm(x) + b
        if self.how == "lrn":
            return F.local_response_norm(x, 3)
        if self.how == "grn":
            gx = x.norm(p=2, dim=(2, 3), keepdim=True)
            return x + g * x * (gx / (gx.mean(dim=1, keepdim=True) + 1e-6)) + b
        if self.how == "layer_spatial":
            return F.layer_norm(x, x.shape[1:])
        if self.training:
            mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3))
            with torch.no_grad():
                self.mean.lerp_(mean, 0.1)
                self.var += 0.1 * (var - self.var)
        else:
            mean, var = self.mean, self.var
        return (x - mean.view(1, -1, 1, 1)) / (var + 1e-5).sqrt()[None, :, None, None] * g + b
