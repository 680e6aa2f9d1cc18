"""Networks that are built from a config: the student's config builds the student, or a note says that none does."""

from __future__ import annotations

import random
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from n2n_cli import growth
from n2n_cli.growth.wider import rebuild

torch.set_num_threads(1)


class Attention(nn.Module):
    """Heads are counted by the view alone, so no shape shows their number; ``inner`` widths come from a list."""

    def __init__(self, config: SimpleNamespace) -> None:
        super().__init__()
        self.config, self.head_dim = config, config.hidden_size // config.heads
        self.embed = nn.Linear(6, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.norm_eps)
        self.q, self.k, self.v, self.o = (nn.Linear(config.hidden_size, config.hidden_size) for _ in range(4))
        self.inner = nn.ModuleList(nn.Linear(config.hidden_size, n) for n in config.inner)
        self.back = nn.ModuleList(nn.Linear(n, config.hidden_size) for n in config.inner)
        self.head = nn.Linear(config.hidden_size, config.classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        y = self.norm(x)
        q, k, v = (f(y).unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for f in (self.q, self.k, self.v))
        x = x + self.o(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        for up, down in zip(self.inner, self.back, strict=True):
            x = x + down(up(x).relu())
        return self.head(x.mean(1))


def config(**changed: object) -> SimpleNamespace:
    known = {"hidden_size": 8, "heads": 2, "inner": [12, 20], "classes": 8, "norm_eps": 1e-3, "vocab": 12}
    return SimpleNamespace(**known | changed)


@pytest.mark.parametrize("factor", [1.5, 2.0])
def test_the_students_config_builds_the_student(factor: float) -> None:
    torch.manual_seed(0)
    teacher, x = Attention(config()).double(), torch.randn(3, 5, 6, dtype=torch.float64)
    grown = growth.widen(teacher, x, factor)
    said = grown.student.config
    assert (said.hidden_size, said.heads, said.inner) == ((12, 3, [18, 30]) if factor == 1.5 else (16, 4, [24, 40]))
    assert said.classes == 8 and said.vocab == 12, "numbers that only look like widths stay"
    built = Attention(said).double()
    built.load_state_dict(grown.student.state_dict())
    assert growth.function_gap(teacher, built, x) < 1e-12
    assert vars(teacher.config) == vars(config())
    assert not [note for note in grown.notes if "settings" in note]


def test_a_lineage_carries_the_settings() -> None:
    teacher, x = Attention(config()), torch.randn(3, 5, 6)
    grown = growth.widen(teacher, x, 2)
    assert vars(rebuild(teacher, grown.recipe).config) == vars(grown.student.config)


def test_where_no_settings_build_the_student_a_note_says_so() -> None:
    teacher, x = Attention(config(inner=[12, 12])), torch.randn(3, 5, 6)
    grown = growth.widen(teacher, x, {"inner.0": 24})  # one of two layers that the config gives one list for
    assert any("no settings of its config build this Attention" in note for note in grown.notes)
    assert vars(grown.student.config) == vars(config(inner=[12, 12]))


def test_a_class_that_takes_no_config_is_left_alone() -> None:
    teacher = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    teacher.config = {"width": 4}
    grown = growth.widen(teacher, torch.randn(2, 3), 2)
    assert grown.student.config == {"width": 4} and not grown.notes


class Shared:
    """A config that is a class, which every network of it shares."""

    hidden = 8


class Built(nn.Module):
    def __init__(self, config: type[Shared]) -> None:
        super().__init__()
        random.random()
        self.config, self.a, self.c = config, nn.Linear(6, config.hidden), nn.Linear(config.hidden, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.a(x).relu())


def test_a_config_that_others_share_is_not_written() -> None:
    net, state = Built(Shared), random.getstate()
    assert growth.widen(net, torch.randn(2, 6), 1.5).student.a.out_features == 12
    assert Shared.hidden == 8 and random.getstate() == state


def test_generators_stay_though_the_network_is_built_again() -> None:
    class Own(Attention):
        def __init__(self, config: SimpleNamespace) -> None:
            random.random()
            super().__init__(config)

    net, state = Own(config()), random.getstate()
    assert growth.widen(net, torch.randn(3, 5, 6), 2).student.config.hidden_size == 16
    assert random.getstate() == state
