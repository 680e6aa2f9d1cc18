"""Parameters, MACs and the layer table, against numbers derived by hand and published ones."""

import pytest
import torch
from torch import nn

from n2n_cli.errors import N2NError
from n2n_cli.models import build
from n2n_cli.models.describe import count_parameters, layers, macs


class Net(nn.Module):
    """A convolution used twice, a linear layer, and one that never runs."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(3)
        self.fc = nn.Linear(3, 5)
        self.unused = nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.norm(self.conv(self.conv(x))).mean((2, 3)))


def test_rows_and_totals_by_hand() -> None:
    rows = {row.name: row for row in layers(Net(), 8)}
    assert list(rows) == ["conv", "norm", "fc", "unused"]
    assert rows["conv"].macs == 2 * (3 * 3 * 9) * 64
    assert rows["conv"].weight_shape == (3, 3, 3, 3) and rows["conv"].output_shape == (1, 3, 8, 8)
    assert rows["fc"].macs == 15 and rows["fc"].parameters == 20 and rows["fc"].kind == "Linear"
    assert rows["norm"].parameters == 6 and rows["norm"].macs == 0
    assert rows["unused"].output_shape == () and rows["unused"].macs == 0 and rows["unused"].parameters == 8
    assert count_parameters(Net()) == 81 + 6 + 20 + 8
    assert macs(Net(), 8) == sum(row.macs for row in rows.values())


def test_shared_parameters_count_once() -> None:
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1))
    model[1].weight = model[0].weight
    assert count_parameters(model) == 9 + 3 + 3
    assert [row.parameters for row in layers(model, 4)] == [12, 3]
    assert [row.macs for row in layers(model, 4)] == [9 * 16, 9 * 16]


def test_published_macs() -> None:
    # torchvision's documentation: ResNet-18 1.81, ViT-B/16 17.56 GFLOPS (multiply-adds) at 224 px.
    assert macs(build("resnet18"), 224) == pytest.approx(1.81e9, rel=0.005)
    with torch.device("meta"):
        assert macs(build("vit_b_16"), 224) == pytest.approx(17.56e9, rel=0.005)


def test_layer_with_parameters_around_layers() -> None:
    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(3, 3))
            self.conv = nn.Conv2d(3, 3, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.conv(x).mean((2, 3)) @ self.scale

    rows = {row.name: row for row in layers(nn.Sequential(Outer()), 4)}
    assert rows["0"].macs == 9 and rows["0.conv"].macs == 9 * 16


@pytest.mark.parametrize("name", ["inception_bn_tiny", "googlenet"])
def test_model_is_left_untouched(name: str) -> None:
    model = build(name, 10).train()
    model.get_submodule("fc").eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    rows = layers(model, 96)
    assert sum(row.parameters for row in rows) == count_parameters(model)
    assert sum(row.macs for row in rows) == macs(model, 96)
    assert modes == [module.training for module in model.modules()]
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_wrong_image_size_is_one_line() -> None:
    with torch.device("meta"):
        model = build("vit_b_16", 10)
    with pytest.raises(N2NError, match=r"VisionTransformer does not take images of 32 px: Wrong image height"):
        macs(model, 32)
