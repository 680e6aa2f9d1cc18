"""Net2WiderNet: exact in fp64, in eval and train mode, on networks prepared by nobody."""

import math

import pytest
import torch
import torchvision
from families import narrow_resnet
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nets import KINDS, RandomNet, double_gap, images, mlp, perturb, resnet18, same_state, state_of, storages
from torch import nn
from torch.nn import functional as F

from n2n_cli import growth, models
from n2n_cli.growth import GrowthError, Operation
from n2n_cli.growth.groups.operations import OPERATIONS
from n2n_cli.growth.wider import rebuild
from n2n_cli.models.describe import count_parameters

SQRT03 = math.sqrt(0.3)


def small_vgg():
    stages = torchvision.models.vgg.make_layers([8, "M", 16, "M", 16, 16, "M", 16, "M", 16, "M"], batch_norm=True)
    with torch.device("meta"):  # its own classifier has 120 million weights
        model = torchvision.models.VGG(stages, num_classes=7, init_weights=False)
    model.classifier = nn.Sequential(nn.Linear(16 * 49, 32), nn.ReLU(True), nn.Dropout(), nn.Linear(32, 7))
    return model


ZOO = {
    "inception_bn": lambda: models.build("inception_bn", 7, width=0.25, stem="small"),
    "inception_rect": lambda: models.build("inception_rect", 7, width=0.25, stem="small", extra_pairs=2),
    "vgg": lambda: small_vgg(),
    "resnet18": lambda: torchvision.models.resnet18(num_classes=7),
    "resnext": lambda: torchvision.models.ResNet(
        torchvision.models.resnet.Bottleneck, [1, 1, 1, 1], num_classes=7, groups=8, width_per_group=4
    ),
    "googlenet": lambda: torchvision.models.googlenet(num_classes=7, init_weights=False),
    "densenet": lambda: torchvision.models.DenseNet(8, (2, 2), 16, num_classes=7),
    "mobilenet_v3_small": lambda: torchvision.models.mobilenet_v3_small(num_classes=7),
}


ONCE = {"inception_rect": 1.5, "inception_bn": 2.0, "mobilenet_v3_small": 2.0, "googlenet": 1.5}  # the other is slow


@pytest.mark.parametrize(
    ("name", "factor"),
    [
        pytest.param(name, factor, marks=[pytest.mark.slow] if ONCE.get(name, factor) != factor else [])
        for name in ZOO
        for factor in (1.5, 2.0)
    ],
)
def test_exact_in_both_modes(name, factor):
    torch.manual_seed(0)
    teacher = perturb(ZOO[name]()).double()
    before, x = state_of(teacher), images(64, 2).double()
    grown = growth.widen(teacher, x, factor, seed=3)
    student = grown.student
    assert growth.function_gap(teacher, student, x, training=False) < 1e-12
    assert growth.function_gap(teacher, student, x, training=True) < 1e-10
    assert type(student) is type(teacher)
    assert list(student.state_dict()) == list(teacher.state_dict())
    assert same_state(state_of(teacher), before)
    assert not storages(teacher) & storages(student)
    ratio = count_parameters(student) / count_parameters(teacher)
    assert ratio > 1.3, "it must have grown"


@pytest.mark.parametrize("widths", [(1.0,), pytest.param((1.0, math.sqrt(2)), marks=pytest.mark.slow)])
def test_to_the_shapes_of_the_standard_inception(widths):
    """The paper's case: sqrt(0.3) -> standard -> sqrt(2), several times in a row, fp64."""
    torch.manual_seed(0)
    teacher = perturb(models.build("inception_bn", 10, width=SQRT03, stem="small")).double()
    x = images(32, 2).double()
    for width in widths:
        target = models.build("inception_bn", 10, width=width, stem="small")
        student = growth.widen(teacher, x, target).student
        assert {n: t.shape for n, t in student.state_dict().items()} == {
            n: t.shape for n, t in target.state_dict().items()
        }
        assert double_gap(teacher, student, x) < 1e-10
        teacher = student


def test_fp32_gap_is_rounding():
    torch.manual_seed(0)
    teacher = perturb(resnet18())
    x = images(64, 2)
    assert growth.function_gap(teacher, growth.widen(teacher, x, 1.5).student, x) < 1e-4


def test_the_mapping_is_the_papers():
    """First n units are the teacher's own; incoming copied, outgoing divided by the replication factor; BN copied."""
    torch.manual_seed(0)
    teacher = nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.ReLU(), nn.Conv2d(5, 4, 1), nn.Flatten()).double()
    perturb(teacher)
    student = growth.widen(teacher, images(4, 2).double(), {"0": 12}, seed=1).student
    a, b = teacher[0].weight.flatten(1), student[0].weight.flatten(1)
    g = [int((row == a).all(1).nonzero()[0]) for row in b]
    assert g[:5] == list(range(5)) and len(g) == 12 and set(g[5:]) <= set(range(5))
    copies = torch.tensor([g.count(unit) for unit in g])
    torch.testing.assert_close(student[3].weight, teacher[3].weight[:, g] / copies.view(1, -1, 1, 1), rtol=0, atol=0)
    for name in ("weight", "bias", "running_mean", "running_var"):
        assert torch.equal(getattr(student[1], name), getattr(teacher[1], name)[g])
    assert torch.equal(student[0].bias, teacher[0].bias[g]) and torch.equal(student[3].bias, teacher[3].bias)
    assert (student[0].out_channels, student[1].num_features, student[3].in_channels) == (12, 12, 12)


def test_gradients_obey_the_mapping():
    """G' = G[idx] / r over the produced axis: what makes a student train like its teacher."""
    torch.manual_seed(0)
    teacher = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    x = torch.randn(6, 3, dtype=torch.float64)
    student = growth.widen(teacher, x, {"0": 9}).student
    for net in (teacher, student):
        net(x).square().sum().backward()
    g = [int((row == teacher[0].weight).all(1).nonzero()[0]) for row in student[0].weight]
    r = torch.tensor([g.count(unit) for unit in g], dtype=torch.float64)
    torch.testing.assert_close(student[0].weight.grad, teacher[0].weight.grad[g] / r[:, None], rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(student[2].weight.grad, teacher[2].weight.grad[:, g], rtol=1e-12, atol=1e-13)


def test_seeds():
    teacher, x = perturb(narrow_resnet()), images(64, 2)
    one, same, other = (growth.widen(teacher, x, 1.5, seed=seed).student.state_dict() for seed in (1, 1, 2))
    assert same_state(one, same) and not same_state(one, other)


def test_noise_touches_all_but_the_first_copy():
    torch.manual_seed(0)
    teacher = perturb(narrow_resnet())
    x = images(64, 2)
    plain, noisy = (growth.widen(teacher, x, 2.0, noise=noise) for noise in (0.0, 0.5))
    a, b = plain.student.layer1[0].conv1.weight, noisy.student.layer1[0].conv1.weight
    n = teacher.layer1[0].conv1.out_channels
    assert torch.equal(a[:n], b[:n])
    spread = ((b - a)[n:].std() / a.std()).item()
    assert 0.45 < spread < 0.55
    assert torch.equal(plain.student.fc.weight, noisy.student.fc.weight), "no output class is a copy"
    assert noisy.gap.eval > 1e-4 and "proved without" in noisy.gap.kind


def test_copies_stay_identical_without_noise_and_part_with_it():
    torch.manual_seed(0)
    teacher = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)).double()
    x, y = torch.randn(32, 6, dtype=torch.float64), torch.randint(3, (32,))
    for noise in (0.0, 0.1):
        student = growth.widen(teacher, x, {"0": 10}, noise=noise).student
        plain = growth.widen(teacher, x, {"0": 10}).student
        g = [int((row == teacher[0].weight).all(1).nonzero()[0]) for row in plain[0].weight]
        optimizer = torch.optim.SGD(student.parameters(), lr=0.1, momentum=0.9)
        for _ in range(30):
            optimizer.zero_grad()
            F.cross_entropy(student(x), y).backward()
            optimizer.step()
        distance = max((student[0].weight[j] - student[0].weight[g[j]]).abs().max().item() for j in range(5, 10))
        assert distance < 1e-12 if noise == 0 else distance > 1e-3


@pytest.mark.parametrize(
    ("plan", "words"),
    [
        (0.5, "at least 1"),
        (float("nan"), "at least 1"),
        ({"layer1.0.conv1": 32}, "has 64 channels and cannot shrink to 32"),
        ({"layer1.0.conv1": 2}, r"for a factor write 2\.0"),
        ({"layer1.0.convv1": 96}, "did you mean 'layer1.0.conv1'"),
        ({"fc": 1.5}, "cannot be widened: .*output"),
        ({"layer1.0.conv1": "big"}, "expected a factor"),
        ({"layer1.0.conv1": 0.9}, "at least 1"),
    ],
)
def test_refusals(plan, words):
    teacher = resnet18()
    with pytest.raises(GrowthError, match=words) as caught:
        growth.widen(teacher, images(64, 2), plan)
    assert "\n" not in str(caught.value)


X = torch.randn(2, 10).double()


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: growth.widen(mlp(), X[:0], 1.5), "nothing to compare"),
        (lambda: growth.widen(mlp(), X, {0: 1.5}), "no layer pattern"),
        (lambda: growth.widen(mlp(), X, 1.5, noise="a"), "noise is 'a'"),
        (lambda: growth.widen(mlp(), X, 1.5, seed=1.5), "seed is 1.5"),
        (lambda: growth.widen(lambda x: x, X, 1.5), "expected a torch.nn.Module"),
        (lambda: growth.widen(nn.Linear(10, 3, device="meta"), X, 1.5), "meta device"),
        (lambda: growth.widen(mlp(), X * float("nan"), 1.5), "not finite"),
        (lambda: growth.widen(mlp(), X, 0.9), "at least 1"),
    ],
)
def test_mistakes_cost_one_line(call, words):
    with pytest.raises(GrowthError, match=words) as caught:
        call()
    assert "\n" not in str(caught.value)


class Unknown(nn.Module):
    """cummax has no rule: what it touches must stay, the rest must grow."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 6), nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x):
        return self.c(torch.relu(self.b(torch.cummax(self.a(x), dim=1).values)))


def test_the_unknown_is_fixed_and_named():
    teacher, x = Unknown().double(), torch.randn(5, 4, dtype=torch.float64)
    grown = growth.widen(teacher, x, 2.0)
    assert grown.student.a.out_features == 6 and grown.student.b.out_features == 16
    assert double_gap(teacher, grown.student, x) < 1e-12
    assert any("cummax" in note and "no rule" in note for note in grown.notes)


def test_a_call_that_its_rule_does_not_foresee_is_fixed_and_named(monkeypatch):
    def broken(ctx, op):
        raise IndexError("an axis too many")

    monkeypatch.setitem(OPERATIONS.rows, "tanh", Operation(broken))
    monkeypatch.setattr("n2n_cli.growth.groups.infer.RAISE_RULE_ERRORS", False)
    teacher = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).double()
    x = torch.randn(5, 4, dtype=torch.float64)
    grown = growth.widen(teacher, x, 2.0)
    assert grown.student[0].out_features == 6 and grown.student[2].out_features == 16
    assert any("its rule fails" in note for note in grown.notes)
    assert double_gap(teacher, grown.student, x) < 1e-12


class Positions(nn.Module):
    """Right-aligned positions: the example reaches 7 of 10."""

    def __init__(self):
        super().__init__()
        self.inp, self.out = nn.Linear(12, 8), nn.Linear(8, 3)
        self.pos = nn.Parameter(torch.randn(1, 10, 8))

    def forward(self, x):
        return self.out(F.relu(self.inp(x) + self.pos[:, -x.shape[1] :]))


def test_rows_that_the_example_does_not_reach_stay():
    torch.manual_seed(0)
    model = Positions().double()
    grown = growth.widen(model, torch.randn(3, 7, 12).double(), 1.5)
    assert grown.student.pos.shape == (1, 10, 12)
    assert growth.function_gap(model, grown.student, torch.randn(3, 10, 12).double()) < 1e-12
    assert any("pos" in note and "does not reach" in note for note in grown.notes)


def test_attention_heads_and_layer_norm_by_a_whole_number():
    torch.manual_seed(0)
    teacher = torchvision.models.VisionTransformer(32, 8, 2, 4, 64, 128, num_classes=7).double()
    nn.init.normal_(teacher.heads.head.weight, std=0.1)  # torchvision starts it at zero: any student would pass
    x = images(32, 3).double()
    student = growth.widen(teacher, x, 2.0).student
    assert teacher(x).abs().max() > 0.1 and student.hidden_dim == 128
    assert growth.function_gap(teacher, student, x) < 1e-12


def test_one_training_step_keeps_running_statistics_in_step():
    torch.manual_seed(0)
    teacher = perturb(resnet18()).double().train()
    x = images(64, 2).double()
    student = growth.widen(teacher, x, {"layer1.0.conv1": 100}, seed=5).student
    conv = growth.widen(teacher, x, {"layer1.0.conv1": 100}, seed=5).student.layer1[0].conv1.weight.flatten(1)
    g = [int((row == teacher.layer1[0].conv1.weight.flatten(1)).all(1).nonzero()[0]) for row in conv]
    teacher(x), student(x)
    ours, theirs = student.layer1[0].bn1, teacher.layer1[0].bn1
    torch.testing.assert_close(ours.running_mean, theirs.running_mean[g], rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(ours.running_var, theirs.running_var[g], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", ["resnet18", "resnext", "mobilenet_v3_small"])
def test_recipes_rebuild_the_architecture(name):
    teacher = perturb(ZOO[name]())
    grown = growth.widen(teacher, images(64, 2), 1.5)
    again = rebuild(ZOO[name](), grown.recipe)
    again.load_state_dict(grown.student.state_dict())
    assert growth.function_gap(grown.student, again, images(64, 2)) == 0
    assert str(again) == str(grown.student)


blocks = st.lists(st.tuples(st.sampled_from(KINDS), st.integers(2, 5)), min_size=1, max_size=5)


def check_random_network(spec, factor, seed):
    teacher = perturb(RandomNet(spec, seed).double(), seed)
    x = torch.randn(3, 3, 8, 8, dtype=torch.float64)
    before = state_of(teacher)
    try:
        student = growth.widen(teacher, x, factor, seed=seed).student
    except GrowthError as error:
        assert "nothing of RandomNet can grow: " in str(error) and "whole-number factors" in str(error)
        return
    assert growth.function_gap(teacher, student, x) < 1e-9
    assert same_state(state_of(teacher), before)
    if spec != [("gate", spec[0][1])] * len(spec):
        assert count_parameters(student) >= count_parameters(teacher)


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(blocks, st.sampled_from([1.3, 1.5, 2.0, 3.0]), st.integers(0, 99))
def test_random_networks(spec, factor, seed):
    check_random_network(spec, factor, seed)


@pytest.mark.slow
@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
@given(blocks, st.sampled_from([1.3, 1.5, 2.0, 3.0]), st.integers(0, 9999))
def test_many_random_networks(spec, factor, seed):
    check_random_network(spec, factor, seed)
