"""Numbers that modules hold about their own widths, and what they become in the student."""

from types import SimpleNamespace

import pytest
import torch
from nets import inferred
from torch import nn

from n2n_cli.growth.build.attributes import Seen, documented, follow, numbers, options, set_attributes
from n2n_cli.growth.groups.operations import OPERATIONS
from n2n_cli.growth.groups.structure import Structure
from n2n_cli.growth.sizes.draw import draw


def grouped(follows):
    return Structure({}, set(), {}, {}, {"w": follows}, [], [], [], OPERATIONS)


@pytest.mark.parametrize(
    ("module", "shapes", "follows", "says"),
    [
        (nn.Linear(3, 4), {"weight": [8, 6]}, False, {"in_features": 6, "out_features": 8}),
        (
            nn.Conv2d(4, 6, 3),
            {"weight": [9, 5, 3, 3]},
            False,
            {"in_channels": 5, "out_channels": 9, "groups": 1},
        ),
        (
            nn.Conv2d(4, 6, 3, groups=2),
            {"weight": [12, 3, 3, 3]},
            False,
            {"in_channels": 6, "out_channels": 12, "groups": 2},
        ),
        (
            nn.Conv2d(4, 4, 3, groups=4),
            {"weight": [6, 1, 3, 3]},
            True,
            {"in_channels": 6, "out_channels": 6, "groups": 6},
        ),
        (
            nn.ConvTranspose2d(4, 6, 3, groups=2),
            {"weight": [8, 5, 3, 3]},
            False,
            {"in_channels": 8, "out_channels": 10, "groups": 2},
        ),
        (nn.BatchNorm2d(4), {"weight": [7]}, False, {"num_features": 7}),
        (nn.BatchNorm1d(4, affine=False), {"running_mean": [7]}, False, {"num_features": 7}),
        (nn.LayerNorm([4, 2]), {"weight": [8, 2]}, False, {"normalized_shape": (8, 2)}),
        (nn.RMSNorm(4), {"weight": [8]}, False, {"normalized_shape": (8,)}),
        (nn.GroupNorm(2, 4), {"weight": [8]}, False, {"num_channels": 8}),
        (nn.Embedding(9, 4), {"weight": [9, 8]}, False, {"embedding_dim": 8}),
        (nn.PReLU(4), {"weight": [8]}, False, {"num_parameters": 8}),
        (
            nn.MultiheadAttention(8, 2),
            {"in_proj_weight": [48, 16]},
            False,
            {"embed_dim": 16, "kdim": 16, "vdim": 16, "num_heads": 4},
        ),
        (
            nn.MultiheadAttention(8, 2, kdim=3, vdim=5),
            {"q_proj_weight": [16, 16], "k_proj_weight": [16, 3], "v_proj_weight": [16, 5]},
            False,
            {"embed_dim": 16, "kdim": 3, "vdim": 5, "num_heads": 4},
        ),
        (nn.ReLU(), {}, False, {}),
    ],
    ids=lambda value: type(value).__name__,
)
def test_the_layers_of_torch_say_what_their_numbers_mean(module, shapes, follows, says):
    assert documented(module, shapes, grouped(follows), {"weight": "w"}) == says


def seen(*shapes):
    found = Seen()
    for old, new in shapes:
        found.add(old, new)
    return found


def test_a_number_that_grew_in_one_way_becomes_that_and_else_stays_at_first():
    assert seen(((2, 8), (2, 12))).values(8) == [12, 8]
    assert seen(((2, 8), (2, 12))).values(2) == [2]
    assert seen(((2, 8), (2, 12))).values(5) == [5]
    assert seen(((8,), (12,)), ((8, 8), (16, 8))).values(8) == [8, 12, 16]
    assert seen(((1, 8), (3, 12))).values(1) == [1, 3], "a one is rarely a width"


def test_a_list_follows_as_a_whole_where_a_shape_spells_it_out():
    found = seen(((2, 4, 8), (2, 6, 8)), ((3, 5), (3, 5)))
    assert found.values((4, 8)) == [(6, 8), (4, 8)] and found.values([4, 8]) == [[6, 8], [4, 8]]
    assert found.values((8, 4)) == [(8, 4), (8, 6)], "number by number, where no shape does"
    assert found.values((3, 5)) == [(3, 5)]


class Holds(nn.Module):
    def __init__(self):
        super().__init__()
        self.width, self.pair, self.sizes = 8, (2, 4), [4, 4]
        self.config, self.table = SimpleNamespace(dim=8, name="x", _own=8, rate=0.5), {"hidden": 12, 3: 5}
        self.flag, self.rate, self.empty, self._own, self.kind = True, 0.5, (), 8, int


def test_numbers_of_a_module_and_one_level_down():
    module = Holds()
    found = [(holder is module, name) for holder, name in numbers(module)]
    assert found == [
        (True, "width"),
        (True, "pair"),
        (True, "sizes"),
        (False, "config.dim"),
        (False, "table.hidden"),
    ]


def test_numbers_are_written_where_they_stand_and_lists_become_tuples_again():
    module = nn.Sequential(Holds())
    set_attributes(module, {"0": {"width": 9, "pair": [3, 4], "sizes": [5, 4], "config.dim": 10, "table.hidden": 13}})
    held = module[0]
    assert (held.width, held.pair, held.sizes) == (9, (3, 4), [5, 4])
    assert held.config.dim == 10 and held.table == {"hidden": 13, 3: 5} and held.config.rate == 0.5


class Views(nn.Module):
    """Its width, its image's size that happens to be equal, and a configuration that two modules share."""

    def __init__(self, config=None):
        super().__init__()
        self.width, self.other = 8, 7
        self.config = config or SimpleNamespace(dim=8)
        self.layer = nn.Linear(8, 8)

    def forward(self, x):
        return self.layer(x.view(-1, self.width)).view(-1, self.config.dim).relu()


def grown(net, x, size):
    structure = inferred(net, x)
    return structure, draw(structure, {group: size for group in structure.groups() if not group.fixed}, 0)


def test_what_equals_a_size_that_the_module_saw_change_follows():
    net = nn.Sequential(nn.Linear(3, 8), Views(), nn.Linear(8, 2))
    structure, remappings = grown(net, torch.randn(5, 3), 12)
    assert follow(net, structure, remappings) == {
        "0": {"out_features": 12},
        "1": {"width": 12, "config.dim": 12},
        "1.layer": {"in_features": 12, "out_features": 12},
        "2": {"in_features": 12},
    }
    assert net[1].width == 8, "nothing is written"


def test_nothing_follows_where_nothing_grows():
    net = nn.Sequential(nn.Linear(3, 8), Views(), nn.Linear(8, 2))
    structure = inferred(net, torch.randn(5, 3))
    assert follow(net, structure, {}) == {} and options(net, structure, {}) == []


def test_a_shared_configuration_is_one_option():
    config = SimpleNamespace(dim=8)
    net = nn.Sequential(nn.Linear(3, 8), Views(config), Views(config), nn.Linear(8, 2))
    found = options(net, *grown(net, torch.randn(5, 3), 12))
    assert [(option.path, option.attribute, option.own, option.values) for option in found] == [
        ("1", "width", 8, [12, 8]),
        ("1", "config.dim", 8, [12, 8]),
        ("2", "width", 8, [12, 8]),
    ]


def test_sizes_seen_inside_or_around_a_module_are_asked_for():
    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.dim, self.inner = 8, nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))

        def forward(self, x):
            return self.inner(x)

    net = Outer()
    structure, remappings = grown(net, torch.randn(5, 3), 12)
    assert options(net, structure, remappings) == []
    ((option),) = options(net, structure, remappings, below=True)
    assert (option.path, option.attribute, option.values) == ("", "dim", [12, 8])
