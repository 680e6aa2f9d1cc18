"""Weight norms: a gain divided by the root of the copies, and only by whole numbers."""

import pytest
import torch
import torch.nn.functional as F
import torch.nn.utils as U
from labels import P, labelled
from nets import double_gap, perturb
from torch import nn

from n2n_cli import growth
from n2n_cli.growth.groups.axes import resolve
from n2n_cli.growth.groups.relations.ties import Ties
from n2n_cli.growth.groups.relations.weight_norms import WeightNorms
from n2n_cli.growth.groups.remapping import Remapping


def call(x, v, g):
    return F.linear(x, torch._weight_norm(v, g, 0))


GIVEN = [(2, 3), P(4, 3), P(4, 1)]


def test_the_gain_is_divided_by_the_root_of_the_copies():
    found = labelled(call, *GIVEN)
    ((group, _),) = resolve(found.ctx.parameters["p1"][1])
    copied = {group: Remapping.of(torch.arange(3).repeat(4), 3)}
    by = found.relation(WeightNorms).multipliers(type("S", (), {"axes": found.ctx.parameters}), copied)
    assert by["p2"].tolist() == [0.5] * 4 and list(by) == ["p2"]
    assert found.relation(WeightNorms).multipliers(None, {}) == {}


@pytest.mark.parametrize("without", [WeightNorms, Ties])
def test_without_it_what_is_read_is_held(without):
    kinds = [kind for kind in (Ties, WeightNorms) if kind is not without]
    found = labelled(call, *GIVEN, relations=kinds)
    assert found.text.startswith("a2 !3, b4 ") and "a norm over its units" in found.reasons


def test_the_arithmetic():
    v, g, x = (torch.randn(s, dtype=torch.float64) for s in ((4, 3), (4, 1), (5, 3)))
    wanted = call(x, v, g)
    wide = call(x.repeat(1, 4), v.repeat(1, 4) / 4, g / 2)
    torch.testing.assert_close(wide, wanted, rtol=0, atol=1e-13)
    assert (call(x.repeat(1, 4), v.repeat(1, 4) / 4, g) - wanted).abs().max() > 0.1


@pytest.mark.parametrize("norm", [U.weight_norm, U.parametrizations.weight_norm], ids=["hook", "parametrization"])
@pytest.mark.parametrize("factor", [2.0, 3.0])
@pytest.mark.filterwarnings("ignore")
def test_a_network_of_weight_norms(norm, factor):
    net = nn.Sequential(
        norm(nn.Conv2d(3, 4, 3)), nn.ReLU(), norm(nn.Conv2d(4, 6, 3)), nn.ReLU(), nn.Flatten(), norm(nn.Linear(24, 2))
    )
    net, x = perturb(net).double(), torch.randn(2, 3, 6, 6, dtype=torch.float64)
    grown = growth.widen(net, x, factor)
    shapes = [tuple(p.shape) for p in grown.student.parameters() if p.ndim == 4 and p.shape[1] > 1]
    assert shapes == [(4 * factor, 3, 3, 3), (6 * factor, 4 * factor, 3, 3)]
    assert (grown.student[2].in_channels, grown.student[2].out_channels) == (4 * factor, 6 * factor)
    assert double_gap(net, grown.student, x) < 1e-12
