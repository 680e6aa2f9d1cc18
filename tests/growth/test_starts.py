"""Ways to start new units: every exact one is exact on any network, and a wrong one is refused by the proof."""

from __future__ import annotations

import copy
import random

import pytest
import torch
import zoo_checks as zoo
from families import FAMILIES, HEAVY
from hypothesis import HealthCheck, Phase, given, seed, settings
from nets import allowed, measured, perturb
from random_nets import Spec, specs
from steps import OPTIMIZERS, batch, gap, network, train
from torch import Tensor, nn
from torch.nn import functional as F

from n2n_cli import growth
from n2n_cli.growth import GrowthError
from n2n_cli.growth.build import gradmax, starts
from n2n_cli.growth.groups.remapping import Remapping

QUIET: dict = {
    "deadline": None,
    "suppress_health_check": list(HealthCheck),
    "database": None,
    "phases": (Phase.generate,),
}
EXACT = {"unequal": {"split": "unequal"}, "fresh": {"new": "fresh"}, "paired": {"new": "paired"}}
NAMES = sorted(FAMILIES)
HEAVIER = {
    *HEAVY,
    "efficientnet_b0",
    "mobilenet_v2",
    "regnet_x_400mf",
    "regnet_y_400mf",
    "mobilenet_v3_small",
    "swin_v2",
}
FAST = [  # one way a family
    (f, list(EXACT)[i % 3], (1.5, 2.0)[i % 2]) for i, f in enumerate(NAMES) if f not in HEAVIER
]
SLOW = [(f, way, factor) for f in NAMES for way in EXACT for factor in (1.5, 2.0) if (f, way, factor) not in FAST]


def exact_family(family: str, way: str, factor: float) -> None:
    build, size = FAMILIES[family]
    teacher, x = zoo.teacher_of(build(), size)
    teacher, x = teacher.double(), x.double()
    grown = growth.widen(teacher, x, factor, **EXACT[way])
    assert zoo.count(grown.student) > 1.25 * zoo.count(teacher)
    for training in (False, True):
        theirs = zoo.forward(copy.deepcopy(teacher), x, training=training)
        ours = zoo.forward(copy.deepcopy(grown.student), x, training=training)
        nudged = zoo.forward(copy.deepcopy(teacher), torch.nextafter(x, x + 1), training=training)
        scale = max(t.abs().max().item() for t in theirs)
        floor = max((a - b).abs().max().item() for a, b in zip(nudged, theirs, strict=True)) / scale
        off = max((a - b).abs().max().item() for a, b in zip(ours, theirs, strict=True)) / scale
        assert off <= max(1e-10, 100 * floor), f"training={training}"


@pytest.mark.parametrize(("family", "way", "factor"), FAST)
def test_every_family_is_exact(family, way, factor):
    exact_family(family, way, factor)


@pytest.mark.slow
@pytest.mark.parametrize(("family", "way", "factor"), SLOW)
def test_every_family_is_exact_in_every_way(family, way, factor):
    exact_family(family, way, factor)


def check_random(spec: Spec, way: str) -> None:
    teacher, example, other = spec.build(), spec.example(0), spec.example(1)
    try:
        student = growth.widen(teacher, example, random.Random(spec.seed).choice((1.5, 2.0)), **EXACT[way]).student
    except GrowthError as error:
        assert "\n" not in str(error)
        return
    assert measured(teacher, student, example, other) <= allowed(teacher, example, other), way


@pytest.mark.parametrize("way", EXACT)
@settings(max_examples=4, **QUIET)
@seed(0)
@given(spec=specs())
def test_random_networks_are_exact_or_refused(way, spec):
    check_random(spec, way)


@pytest.mark.slow
@pytest.mark.parametrize("way", EXACT)
@settings(max_examples=200, **QUIET)
@seed(1)
@given(spec=specs())
def test_many_random_networks_are_exact_or_refused(way, spec):
    check_random(spec, way)


def convnet() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6)]
    return perturb(nn.Sequential(*layers, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3)))


IMAGES = torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(3))


def test_what_new_units_hold_and_how_they_are_read():
    teacher = convnet()
    unequal = growth.widen(teacher, IMAGES, 2.0, split="unequal").student
    index = growth.widen(teacher, IMAGES, 2.0, split="unequal").maps["0.weight"][0].index
    for unit in range(4):
        copies = (index == unit).nonzero().flatten().tolist()
        assert all(torch.equal(unequal[0].weight[c], teacher[0].weight[unit]) for c in copies)
        read = unequal[3].weight[:6, copies].sum(1)
        torch.testing.assert_close(read, teacher[3].weight[:, unit], rtol=1e-5, atol=1e-6)
        shares = unequal[3].weight[0, copies].flatten(1)[:, 0]
        assert len(copies) == 1 or len(set(shares.tolist())) == len(copies), "no two shares are equal"
    fresh = growth.widen(teacher, IMAGES, 2.0, new="fresh").student
    assert torch.equal(fresh[0].weight[:4], teacher[0].weight) and (fresh[3].weight[:6, 4:] == 0).all()
    assert (
        (fresh[3].weight[6:] != 0).all() and (fresh[1].weight[4:] == 1).all() and (fresh[1].running_mean[4:] == 0).all()
    )
    paired = growth.widen(teacher, IMAGES, {"0": 9}, new="paired").student  # two pairs and an odd one
    assert torch.equal(paired[0].weight[4], paired[0].weight[5]) and torch.equal(
        paired[0].weight[6], paired[0].weight[7]
    )
    assert torch.equal(paired[3].weight[:, 4], -paired[3].weight[:, 5]) and (paired[3].weight[:, 4:8] != 0).all()
    assert (paired[3].weight[:, 8] == 0).all() and not torch.equal(paired[0].weight[4], paired[0].weight[6])


def wrong_share(drawn: Remapping, units: int, generator: torch.Generator) -> Remapping:
    out = starts.unequal(drawn, units, generator)
    out.share = out.share * 1.01
    return out


def read_fresh(drawn: Remapping, units: int, generator: torch.Generator) -> Remapping:
    out = starts.fresh(drawn, units, generator)
    out.share = torch.ones_like(out.share)
    return out


def one_sign_wrong(drawn: Remapping, units: int, generator: torch.Generator) -> Remapping:
    out = starts.paired(drawn, units, generator)
    out.reads = out.reads.abs()
    return out


@pytest.mark.parametrize(
    ("table", "key", "way", "options"),
    [
        ("SPLITS", "unequal", wrong_share, {"split": "unequal"}),
        ("WAYS", "fresh", read_fresh, {"new": "fresh"}),
        ("WAYS", "paired", one_sign_wrong, {"new": "paired"}),
    ],
)
def test_the_proof_refuses_a_wrong_way(monkeypatch, table, key, way, options):
    monkeypatch.setattr(starts, table, {**getattr(starts, table), key: way})
    grown_wrong = []
    try:
        grown = growth.widen(convnet(), IMAGES, 2.0, **options)
        grown_wrong = [info for info in grown.groups if info.copied is None and info.grown > info.units]
        assert growth.function_gap(convnet(), grown.student, IMAGES) < 1e-5
    except GrowthError as error:
        assert "differs from the teacher's" in str(error)
    assert not grown_wrong, "no group may start in a way that changes the function"


class LargestOf(nn.Module):
    """A maximum over units would see a fresh one; but small ones may not exceed it on a few inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        return self.c(self.b(x) * x.amax(-1, keepdim=True))


@pytest.mark.parametrize("way", ["fresh", "paired", "gradmax"])
def test_a_group_whose_units_meet_is_copied_and_named(way):
    for key in range(4):
        torch.manual_seed(key)
        net, x, others = LargestOf(), torch.randn(5, 6), torch.randn(256, 6)
        grown = growth.widen(net, x, 1.5, new=way, calibration=lambda model, x=x: model(x).square().mean())
        assert growth.function_gap(net, grown.student, others) < 1e-5
        why = {tuple(info.layers): info.copied for info in grown.groups}
        assert why["a",].operation == "amax" and why["b",] is None
        assert any(f"copies, not new={way}: amax" in note for note in grown.notes)


class Resets(nn.Module):
    """``how``: what its own reset does that no wider layer survives."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.weight = how, nn.Parameter(torch.randn(8, 6))

    def reset_parameters(self, *std: float) -> None:
        random.random(), torch.rand(1)
        if self.how == "wants an argument":
            self.weight.data.normal_(0, *(std or [None]))
        if self.how == "counts on its shape":
            self.weight.data.copy_(torch.randn(8, 6))
        if self.how == "makes another":
            self.weight = nn.Parameter(torch.randn(8, 6))
        if self.how == "fails":
            raise OSError

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight.t()


@pytest.mark.parametrize("how", ["wants an argument", "counts on its shape", "makes another", "fails"])
def test_a_users_reset_may_do_what_it_likes(how):
    torch.manual_seed(0)
    net, x, state = nn.Sequential(Resets(how), nn.ReLU(), nn.Linear(8, 3)), torch.randn(5, 6), random.getstate()
    student = growth.widen(net, x, 1.5, new="fresh").student
    assert student[0].weight.shape == (12, 6) and growth.function_gap(net, student, x) < 1e-5
    assert student[0].weight[8:].std() > 0.3 and random.getstate() == state


def test_ties_are_copied_with_unequal_shares():
    build, size = FAMILIES["convnext"]
    teacher, x = zoo.teacher_of(build(), size)
    grown = growth.widen(teacher, x, 2.0, new="fresh")
    copied = [info for info in grown.groups if info.copied is not None]
    assert copied and all("mean" in str(info.copied) for info in copied)
    assert not any("never part" in warning for warning in grown.warnings)


# --- optimizer state --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sgd momentum", "rmsprop tensorflow", "adam decay", "adamw"])
@pytest.mark.parametrize("kind", ["conv", "linear"])
def test_unequal_shares_take_the_teachers_steps(name, kind):
    teacher = network(kind)
    old = OPTIMIZERS[name](teacher.parameters())
    train(teacher, old, 3, 1)
    grown = growth.widen(teacher, batch(torch.Generator())[0], 1.5, split="unequal")
    new = OPTIMIZERS[name](grown.student.parameters())
    growth.equivariant(old, teacher, new, grown)
    for model, optimizer in ((teacher, old), (grown.student, new)):
        train(model, optimizer, 10, 7)
    assert gap(teacher, grown.student) < 1e-10


@pytest.mark.parametrize("way", ["fresh", "paired"])
def test_fresh_units_start_with_empty_state(way):
    teacher = network("linear")
    old = OPTIMIZERS["adam"](teacher.parameters())
    train(teacher, old, 3, 1)
    grown = growth.widen(teacher, batch(torch.Generator())[0], 2.0, new=way)
    new = OPTIMIZERS["adam"](grown.student.parameters())
    growth.carry(old, teacher, new, grown)
    theirs, ours = old.state[teacher[3].weight]["exp_avg"], new.state[grown.student[3].weight]["exp_avg"]
    assert torch.equal(ours[:6, :7], theirs) and (ours[6:] == 0).all() and (ours[:, 7:] == 0).all()
    with pytest.raises(GrowthError, match="are no copies of its teacher's"):
        growth.equivariant(old, teacher, OPTIMIZERS["adam"](grown.student.parameters()), grown)


# --- gradmax ----------------------------------------------------------------------------------------------


class Attends(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.attention, self.head = (
            nn.Linear(3, 8),
            nn.MultiheadAttention(8, 2, batch_first=True),
            nn.Linear(8, 3),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x.flatten(2).transpose(1, 2))
        return self.head((x + self.attention(x, x, x, need_weights=False)[0]).mean(1))


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b, self.head = (nn.Conv2d(*s, 3, padding=1) for s in ((3, 4), (4, 6), (6, 4), (4, 3)))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(x + self.b(self.a(x.relu()).relu())).mean((2, 3))


NETWORKS = {
    "convolutions": convnet,
    "linear": lambda: nn.Sequential(
        nn.Flatten(), nn.Linear(192, 7), nn.Tanh(), nn.Linear(7, 6), nn.ReLU(), nn.Linear(6, 3)
    ),
    "residual": Residual,
    "attention": Attends,
    "random": lambda: perturb(network("conv").float()),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_gradmax_makes_the_gradients_of_readers_larger_at_equal_norms(name):
    torch.manual_seed(1)
    teacher, labels = NETWORKS[name](), torch.arange(8) % 3
    fresh, turned = (
        growth.widen(teacher, IMAGES, 2.0, new=way, calibration=[(IMAGES, labels)]) for way in ("fresh", "gradmax")
    )
    size = []
    for grown in (fresh, turned):
        student = copy.deepcopy(grown.student).train()
        F.cross_entropy(student(IMAGES), labels).backward()
        total = 0.0
        for (key, p), (_, before) in zip(student.named_parameters(), fresh.student.named_parameters(), strict=True):
            for dim, axis in enumerate(grown.maps[key]):
                if axis is not None and axis.fresh is not None and (key, dim) in grown.consumed:
                    new = p.grad.index_select(dim, axis.fresh.nonzero().flatten())
                    total += new.square().sum().item()
            assert p.detach().norm().item() == pytest.approx(before.detach().norm().item(), rel=1e-4)
        size.append(total)
    assert size[1] > 1.3 * size[0]
    assert growth.function_gap(teacher, turned.student, IMAGES) < 1e-5


def test_gradmax_is_the_same_on_any_number_of_threads():
    labels, found = torch.arange(8) % 3, []
    threads = torch.get_num_threads()
    try:
        for number in (1, 2):
            torch.set_num_threads(number)
            grown = growth.widen(convnet(), IMAGES, 2.0, new="gradmax", calibration=[(IMAGES, labels)])
            found.append(grown.student.state_dict())
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(found[0][key], found[1][key]) for key in found[0])


def test_a_loss_that_cannot_be_differentiated_twice_is_one_line():
    with pytest.raises(GrowthError, match="the loss cannot be computed and differentiated twice") as caught:
        growth.widen(convnet(), IMAGES, 2.0, new="gradmax", calibration=[(IMAGES, torch.arange(8))])
    assert "\n" not in str(caught.value)
    assert gradmax.loss_of(len) is len
    with pytest.raises(GrowthError, match="the loss cannot be computed and differentiated twice: division by zero"):
        growth.widen(convnet(), IMAGES, 2.0, new="gradmax", calibration=lambda model: 1 / 0)
    with torch.no_grad():
        growth.widen(convnet(), IMAGES, 2.0, new="gradmax", calibration=[(IMAGES, [0, 1, 2, 0, 1, 2, 0, 1])])


# --- composition and mistakes -----------------------------------------------------------------------------


def test_ways_compose():
    teacher = convnet().double()
    x = IMAGES.double()
    model = teacher
    for options in ({"new": "fresh"}, {"split": "unequal"}, {"new": "paired"}, {}):
        grown = growth.widen(model, x, 1.5, seed=3, **options)
        again = growth.wider.rebuild(model, grown.recipe)
        again.load_state_dict(grown.student.state_dict())
        assert growth.function_gap(again, grown.student, x) == 0
        model = grown.student
    model = growth.deepen(model, x).student
    assert growth.function_gap(teacher, model, x) < 1e-12


def test_one_seed_makes_one_student():
    for options in EXACT.values():
        same, again, other = (
            growth.widen(convnet(), IMAGES, 1.5, seed=s, **options).student.state_dict() for s in (4, 4, 5)
        )
        assert all(torch.equal(same[key], again[key]) for key in same)
        assert not all(torch.equal(same[key], other[key]) for key in same)


MISTAKES = {
    "new is \\['copy'\\]: expected one of copy": {"new": ["copy"]},
    "new is 'frsh': expected one of copy, fresh, paired, gradmax \\(did you mean 'fresh'\\?\\)": {"new": "frsh"},
    "split is 'odd': expected one of equal, unequal": {"split": "odd"},
    "split=unequal is for copies, and new=fresh makes none": {"new": "fresh", "split": "unequal"},
    "noise=0.1 is for copies, and new=paired makes none": {"new": "paired", "noise": 0.1},
    "new=gradmax needs calibration": {"new": "gradmax"},
    "new=gradmax needs calibration: a list": {"new": "gradmax", "calibration": [IMAGES]},
}


@pytest.mark.parametrize("words", MISTAKES)
def test_mistakes_are_one_line(words):
    with pytest.raises(GrowthError, match=words) as caught:
        growth.widen(convnet(), IMAGES, 1.5, **MISTAKES[words])
    assert "\n" not in str(caught.value)
