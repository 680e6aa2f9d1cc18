"""Plans by a factor and by layer patterns: which groups get which size."""

import pytest
import torch
from nets import images, perturb, resnet18
from torch import nn

from n2n_cli import growth
from n2n_cli.growth import GrowthError


def test_patterns_widen_what_they_name():
    teacher, x = perturb(resnet18()), images(64, 2)
    student = growth.widen(teacher, x, {"layer1.*.conv1": 96, "layer4.0.conv1": 1.25}).student
    assert student.layer1[0].conv1.out_channels == student.layer1[1].conv1.out_channels == 96
    assert student.layer4[0].conv1.out_channels == 640
    assert student.layer2[0].conv1.out_channels == 128, "the others stay"


def test_tied_layers_grow_together():
    teacher, x = perturb(resnet18()), images(64, 2)
    student = growth.widen(teacher, x, {"conv1": 80}).student
    assert student.layer1[1].conv2.out_channels == 80, "the residual stream is one group"
    with pytest.raises(GrowthError, match=r"layers 'conv1' and 'layer1.1.conv2' share their units \(tied\)"):
        growth.widen(teacher, x, {"conv1": 80, "layer1.1.conv2": 96})


def test_a_width_of_a_grouped_layer_is_reached_or_refused():
    model = nn.Sequential(
        nn.Conv2d(3, 12, 3), nn.ReLU(), nn.Conv2d(12, 12, 3, groups=4), nn.ReLU(), nn.Conv2d(12, 4, 1)
    )
    x = torch.randn(2, 3, 12, 12)
    assert growth.widen(model, x, {"2": 24}).student[2].out_channels == 24
    with pytest.raises(GrowthError, match="'2' cannot have 18 channels: its units cover 4"):
        growth.widen(model, x, {"2": 18})


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True, norm_first=True)
        self.inp, self.out = nn.Linear(12, 16), nn.Linear(16, 3)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, x):
        return self.out(self.layers(self.inp(x)))


@pytest.mark.parametrize("pattern", ["inp", "layers.layers.0.self_attn.out_proj"])
def test_a_pattern_brings_the_heads_along(pattern):
    torch.manual_seed(0)
    model, x = Encoder().double(), torch.randn(2, 5, 12).double()
    grown = growth.widen(model, x, {pattern: 24})
    assert grown.student.layers.layers[1].self_attn.num_heads == 6
    assert growth.function_gap(model, grown.student, x) < 1e-12
