"""Every relation costs its own feature when it is taken away, and nothing else."""

import pytest
import torch
from nets import double_gap, perturb
from torch import Tensor, nn

from n2n_cli import growth
from n2n_cli.growth.groups import infer as room
from n2n_cli.growth.groups.relations import RELATIONS
from n2n_cli.growth.groups.relations.heads import HeadWidths
from n2n_cli.growth.groups.relations.lengths import EqualLengths, Widths
from n2n_cli.growth.groups.relations.norms import RelaxedNorms
from n2n_cli.growth.groups.relations.shuffles import Shuffles
from n2n_cli.growth.groups.relations.ties import Ties


class Normed(nn.Module):
    """Layer norms over a stream, and a hidden layer that no relation has to do with."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm = nn.Linear(4, 8), nn.LayerNorm(8)
        self.hidden, self.back, self.out = nn.Linear(8, 6), nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        return self.out(x + self.back(self.hidden(self.norm(x)).relu()))


class Halves(nn.Module):
    """A gate: two halves of one layer, each with units of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.a, self.b = nn.Linear(4, 12), nn.Linear(6, 5), nn.Linear(6, 5)
        self.out = nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.first(x).chunk(2, -1)
        return self.out(self.a(a) + self.b(b.relu()))


class Attention(nn.Module):
    def __init__(self, width: int = 6, head: int = 2) -> None:
        super().__init__()
        self.head = head
        self.qkv, self.out = nn.Linear(4, 3 * width), nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, -1, self.head)).permute(2, 0, 3, 1, 4).unbind(0)
        x = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.out(x.transpose(1, 2).flatten(2))


def shuffled() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 1), nn.ChannelShuffle(2), nn.ReLU(), nn.Conv2d(8, 6, 1), nn.Conv2d(6, 2, 1))


NETS = {
    "normed": (Normed, (5, 4), 1.5),
    "halves": (Halves, (5, 4), 1.5),
    "attention": (Attention, (2, 5, 4), 2.0),
    "shuffled": (shuffled, (2, 3, 4, 4), 1.5),
}
NEEDS = {  # relation -> the network and factor that need it: held without it, or rounded to whole numbers
    Ties: ("normed", 2.0),
    RelaxedNorms: ("normed", 1.5),
    Shuffles: ("shuffled", 1.5),
}


def grown_parameters(name: str, factor: float) -> int:
    make, shape, _ = NETS[name]
    torch.manual_seed(0)
    net, x = perturb(make()).double(), torch.randn(shape, dtype=torch.float64)
    found = growth.widen(net, x, factor)
    assert double_gap(net, found.student, x) < 1e-10
    return sum(p.numel() for p in found.student.parameters())


@pytest.mark.parametrize("kind", RELATIONS, ids=lambda kind: kind.__name__)
def test_without_a_relation_everything_else_still_grows_exactly(kind, monkeypatch):
    needs = NEEDS.get(kind)
    before = grown_parameters(*needs) if needs else 0
    monkeypatch.setattr(room, "RELATIONS", [other for other in RELATIONS if other is not kind])
    for name, (_, _, factor) in NETS.items():
        grown_parameters(name, factor)
    if needs:
        assert grown_parameters(*needs) != before


def test_a_stream_without_ties_is_held_and_named(monkeypatch):
    monkeypatch.setattr(room, "RELATIONS", [kind for kind in RELATIONS if kind not in (Ties, RelaxedNorms)])
    grown = growth.widen(Normed().double(), torch.randn(5, 4).double(), 2.0)
    assert grown.student.hidden.out_features == 12 and grown.student.embed.out_features == 8
    assert any("layer_norm at norm: a mean over its units" in note for note in grown.notes)


def test_head_widths_need_their_relation(monkeypatch):
    net, x = Attention().double(), torch.randn(2, 5, 4, dtype=torch.float64)
    student = Attention(12, 4).double()
    grown = growth.widen(net, x, student)
    assert double_gap(net, grown.student, x) < 1e-10 and grown.student.qkv.out_features == 36
    monkeypatch.setattr(room, "RELATIONS", [kind for kind in RELATIONS if kind is not HeadWidths])
    with pytest.raises(growth.GrowthError, match="cannot be reached"):
        growth.widen(net, x, student)


def test_halves_have_remappings_of_their_own_only_by_their_relation(monkeypatch):
    torch.manual_seed(0)
    net, x = Halves().double(), torch.randn(5, 4, dtype=torch.float64)

    def alike() -> bool:
        first = growth.widen(net, x, 2.0).maps["first.weight"][0]
        assert first is not None
        a, b = first.index.chunk(2)
        return torch.equal(a, b - 6)

    assert not alike()
    monkeypatch.setattr(room, "RELATIONS", [kind for kind in RELATIONS if kind not in (EqualLengths, Widths)])
    assert alike()
