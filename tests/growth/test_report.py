"""What an operator returns, and what it says about the groups."""

import json

import pytest
import torch
from nets import inferred, mlp, only_group
from torch import nn

from n2n_cli import growth
from n2n_cli.growth.report import copies_that_never_part, group_infos, held_units, recipe_of


@pytest.mark.parametrize(
    ("dropout", "noise", "alike"),
    [(nn.Identity(), 0.0, 2), (nn.Dropout(0.5), 0.0, 1), (nn.Dropout(0.0), 0.0, 2), (nn.Identity(), 0.1, None)],
)
def test_copies_that_nothing_parts_are_counted(dropout, noise, alike):
    """Dropout parts the copies of the group that it stands on, and of no other."""
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 5), nn.ReLU(), dropout, nn.Linear(5, 2))
    warnings = growth.widen(net, torch.randn(4, 3), 2.0, noise=noise).warnings
    assert [warning[: len("copies in N of 2")] for warning in warnings] == (
        [f"copies in {alike} of 2"] if alike else []
    )
    assert not growth.widen(net, torch.randn(4, 3), 1.0).warnings


class Mixed(nn.Module):
    """A layer that a sort holds, one that grows, a norm that ties, and a parameter that nothing reads."""

    def __init__(self):
        super().__init__()
        self.held, self.free, self.tied = nn.Linear(3, 4), nn.Linear(4, 5), nn.Linear(5, 6)
        self.norm, self.out = nn.LayerNorm(6), nn.Linear(6, 2)
        self.idle = nn.Parameter(torch.zeros(7, 7))

    def forward(self, x):
        x = torch.sort(self.held(x), dim=1).values
        return self.out(self.norm(self.tied(torch.relu(self.free(x)))))


def test_every_group_with_its_layers_sizes_and_reasons():
    structure = inferred(Mixed(), torch.randn(2, 3))
    sizes = {group: 2 * group.n for group in structure.groups() if not group.fixed}
    infos = {tuple(info.layers): info for info in group_infos(structure, sizes)}
    free, tied, held = infos[("free",)], infos[("tied",)], infos[("held",)]
    assert (free.units, free.grown, free.tied, free.fixed) == (5, 10, None, None)
    assert (tied.units, tied.grown, tied.fixed) == (6, 12, None) and "layer_norm at norm" in str(tied.tied)
    assert (held.units, held.grown) == (4, 4) and "sort" in str(held.fixed)
    assert ("out",) not in infos, "the classifier stays, as everybody expects"


def test_notes_name_what_is_held_and_by_what():
    notes = held_units(inferred(Mixed(), torch.randn(2, 3)))
    assert any(note.startswith("held, free: sort at the top module: ") for note in notes)
    assert not any("idle" in note for note in notes), "a parameter that nothing reads is a warning"
    assert not any("out" in note.split(":")[0] for note in notes), "the network's only output is no news"
    assert held_units(inferred(mlp(), torch.randn(2, 10).double())) == []


def test_an_output_is_told_where_nothing_can_grow():
    assert held_units(inferred(nn.Sequential(nn.Linear(3, 2)), torch.randn(2, 3))) == ["0: the network's output"]


def test_many_layers_of_one_reason_are_shortened():
    class Sorted(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers, self.out = nn.ModuleList(nn.Linear(3, 4) for _ in range(5)), nn.Linear(4, 2)

        def forward(self, x):
            return self.out(torch.sort(sum(layer(x) for layer in self.layers), dim=1).values)

    note, output = held_units(inferred(Sorted(), torch.randn(2, 3)))
    assert note.startswith("layers.0, layers.1, layers.2 ...: sort") and output == "out: the network's output"


class Branches(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x):
        return self.b(self.a(x) if x.sum() > 0 else -self.a(x))


def test_notes_count_the_inputs_where_code_depends_on_the_data():
    assert any("on the branches of 2 inputs" in note for note in held_units(inferred(Branches(), torch.ones(2, 3))))


@pytest.mark.parametrize(
    ("plan", "shown"), [(2, 2.0), ({"0": 12}, {"0": 12}), (nn.Sequential(nn.Linear(10, 12)), "student")]
)
def test_a_recipe_is_plain_data_and_holds_the_shapes_that_changed(plan, shown):
    student = nn.Sequential(nn.Linear(10, 12), nn.ReLU(), nn.Linear(12, 3))
    recipe = recipe_of("wider", mlp(), student, plan, 7, {"0": {"out_features": 12}})
    assert recipe == {
        "op": "wider",
        "plan": shown,
        "seed": 7,
        "shapes": {"0.weight": [12, 10], "0.bias": [12], "2.weight": [3, 12]},
        "attributes": {"0": {"out_features": 12}},
    }
    assert json.loads(json.dumps(recipe)) == recipe


def test_a_warning_counts_groups_that_grew_and_that_no_dropout_reaches():
    net = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.2), nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2))
    structure = inferred(net, torch.randn(2, 3))
    dropped, other = (only_group(structure, f"{n}.weight") for n in (0, 2))
    assert copies_that_never_part(structure, [dropped]) == copies_that_never_part(structure, []) == []
    (warning,) = copies_that_never_part(structure, [dropped, other])
    assert warning.startswith("copies in 1 of 2 widened groups never part")
    assert copies_that_never_part(structure, [other])[0].startswith("copies in 1 of 1 ")
