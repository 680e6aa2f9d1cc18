"""Plans by a factor and by layer patterns: which groups get which size."""

import pytest
import torch
from nets import images, inferred, only_group, perturb, resnet18
from torch import nn

from n2n_cli import growth
from n2n_cli.growth import GrowthError
from n2n_cli.growth.sizes.layers import by_factor, by_layer


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


def widths(structure, wish):
    return {name: wish.sizes.get(only_group(structure, f"{name}.weight")) for name in ("0", "2", "4")}


def three():
    net = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 2))
    return inferred(net, torch.randn(2, 3))


@pytest.mark.parametrize(
    ("factor", "first", "second"), [(1, 5, 7), (1.1, 6, 8), (1.5, 8, 11), (1.04, 5, 7), (2.0, 10, 14)]
)
def test_a_factor_rounds_half_up_and_asks_nothing_of_what_is_fixed(factor, first, second):
    structure = three()
    wish = by_factor(structure, factor)
    assert widths(structure, wish) == {"0": first, "2": second, "4": None} and wish.kind == "factor" and wish.coupled


@pytest.mark.parametrize("factor", [0.99, float("inf"), float("nan"), True, "2", None, -1])
def test_what_is_no_factor(factor):
    with pytest.raises(GrowthError, match=r"the factor is .*: expected a finite number of at least 1"):
        by_factor(three(), factor)
    with pytest.raises(GrowthError, match=r"layer '0'(:| is| has 5 channels)"):
        by_layer(three(), {"0": factor})


def test_a_float_is_a_factor_and_a_whole_number_a_width():
    structure = three()
    wish = by_layer(structure, {"0": 2.0, "2": 9})
    assert widths(structure, wish) == {"0": 10, "2": 9, "4": None}
    assert set(wish.groups) == set(wish.sizes) and wish.kind == "layers" and not wish.coupled


def test_the_same_amount_twice_is_no_contradiction():
    structure = three()
    assert widths(structure, by_layer(structure, {"0": 10, "?": 2.0})) == {"0": 10, "2": 14, "4": None}
    with pytest.raises(GrowthError, match=r"contradicts itself: .* asked for 10 and 8"):
        by_layer(structure, {"0": 10, "?": 1.5})


class Pieces(nn.Module):
    """Three groups in one layer, of 5, 4 and 2 units."""

    def __init__(self):
        super().__init__()
        self.layer, self.out = nn.Linear(3, 11), nn.Linear(11, 2)
        self.a, self.b = nn.Linear(5, 2), nn.Linear(4, 2)

    def forward(self, x):
        x = torch.relu(self.layer(x))
        return self.out(x) + self.a(x[:, :5]) + self.b(x[:, 5:9])


@pytest.mark.parametrize("width", range(11, 40))
def test_a_width_is_shared_out_in_proportion_and_reached_exactly(width):
    structure = inferred(Pieces(), torch.randn(2, 3))
    sizes = by_layer(structure, {"layer": width}).sizes
    assert sum(sizes.values()) == width and sorted(group.n for group in sizes) == [2, 4, 5]
    for group, size in sizes.items():
        assert size >= group.n and abs(size - group.n * width / 11) < 2
