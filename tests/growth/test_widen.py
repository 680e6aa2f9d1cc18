"""Net2WiderNet: exact in fp64, in eval and train mode, on networks prepared by nobody."""

import copy
import math
import threading

import pytest
import torch
import torchvision
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nets import KINDS, RandomNet, double_gap, perturb, same_state, state_of, storages
from torch import nn
from torch.nn import functional as F

from n2n_cli import growth, models
from n2n_cli.growth import GrowthError, Operation
from n2n_cli.growth.build.weights import grown_weights
from n2n_cli.growth.groups.operations import OPERATIONS
from n2n_cli.growth.wider import rebuild
from n2n_cli.models.describe import count_parameters

SQRT03 = math.sqrt(0.3)


def images(size=64, n=2):
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(1))


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


@pytest.mark.parametrize("name", ZOO)
@pytest.mark.parametrize("factor", [1.5, 2.0])
def test_exact_in_both_modes(name, factor):
    torch.manual_seed(0)
    teacher = perturb(ZOO[name]()).double()
    before, x = state_of(teacher), images().double()
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


def test_to_the_shapes_of_the_standard_inception():
    """The paper's case: sqrt(0.3) -> standard -> sqrt(2), several times in a row, fp64."""
    torch.manual_seed(0)
    teacher = perturb(models.build("inception_bn", 10, width=SQRT03, stem="small")).double()
    x = images(32).double()
    for width in (1.0, math.sqrt(2)):
        target = models.build("inception_bn", 10, width=width, stem="small")
        student = growth.widen(teacher, x, target).student
        assert {n: t.shape for n, t in student.state_dict().items()} == {
            n: t.shape for n, t in target.state_dict().items()
        }
        assert double_gap(teacher, student, x) < 1e-10
        teacher = student


def test_the_gap_sees_a_wrong_student():
    """Negative controls: a copy's division forgotten, BN scales permuted, one bias and one BN buffer wrong."""
    torch.manual_seed(0)
    teacher = perturb(ZOO["resnet18"]()).double()
    x = images().double()
    student = growth.widen(teacher, x, 1.5).student
    for break_it in (
        lambda s: s.layer2[0].conv2.weight[:, -1].mul_(2),
        lambda s: s.layer1[0].bn1.weight.copy_(s.layer1[0].bn1.weight.roll(1)),
        lambda s: s.layer3[0].bn1.bias[-1].add_(0.1),
    ):
        broken = copy.deepcopy(student)
        with torch.no_grad():
            break_it(broken)
        assert growth.function_gap(teacher, broken, x) > 1e-6
    broken = copy.deepcopy(student)
    broken.bn1.running_var[-1] *= 2  # eval mode alone can see it
    assert growth.function_gap(teacher, broken, x, training=False) > 1e-6
    assert growth.function_gap(teacher, broken, x, training=True) < 1e-10


def test_a_failed_proof_refuses_and_names_the_place(monkeypatch):
    def forgetful(*args, **kwargs):
        state = grown_weights(*args, **kwargs)
        state["layer2.0.conv2.weight"] *= 1.1
        return state

    monkeypatch.setattr("n2n_cli.growth.build.students.grown_weights", forgetful)
    with pytest.raises(GrowthError, match=r"function differs .* in eval mode"):
        growth.widen(perturb(ZOO["resnet18"]()), images(), 1.5)
    with pytest.raises(GrowthError, match=r"function differs .* in eval mode .* first at conv2d at layer2.0.conv2"):
        growth.widen(perturb(ZOO["resnet18"]()).double(), images().double(), 1.5)


def test_fp32_gap_is_rounding():
    torch.manual_seed(0)
    teacher = perturb(ZOO["resnet18"]())
    x = images()
    assert growth.function_gap(teacher, growth.widen(teacher, x, 1.5).student, x) < 1e-4


def test_the_mapping_is_the_papers():
    """First n units are the teacher's own; incoming copied, outgoing divided by the replication factor; BN copied."""
    torch.manual_seed(0)
    teacher = nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.ReLU(), nn.Conv2d(5, 4, 1), nn.Flatten()).double()
    perturb(teacher)
    student = growth.widen(teacher, images(4).double(), {"0": 12}, seed=1).student
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
    teacher, x = perturb(ZOO["resnet18"]()), images()
    one, same, other = (growth.widen(teacher, x, 1.5, seed=seed).student.state_dict() for seed in (1, 1, 2))
    assert same_state(one, same) and not same_state(one, other)


def test_noise_touches_all_but_the_first_copy():
    torch.manual_seed(0)
    teacher = perturb(ZOO["resnet18"]())
    x = images()
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


def test_patterns_widen_what_they_name():
    teacher, x = perturb(ZOO["resnet18"]()), images()
    student = growth.widen(teacher, x, {"layer1.*.conv1": 96, "layer4.0.conv1": 1.25}).student
    assert student.layer1[0].conv1.out_channels == student.layer1[1].conv1.out_channels == 96
    assert student.layer4[0].conv1.out_channels == 640
    assert student.layer2[0].conv1.out_channels == 128, "the others stay"


def test_tied_layers_grow_together():
    teacher, x = perturb(ZOO["resnet18"]()), images()
    student = growth.widen(teacher, x, {"conv1": 80}).student
    assert student.layer1[1].conv2.out_channels == 80, "the residual stream is one group"
    with pytest.raises(GrowthError, match=r"layers 'conv1' and 'layer1.1.conv2' share their units \(tied\)"):
        growth.widen(teacher, x, {"conv1": 80, "layer1.1.conv2": 96})


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
    teacher = ZOO["resnet18"]()
    with pytest.raises(GrowthError, match=words) as caught:
        growth.widen(teacher, images(), plan)
    assert "\n" not in str(caught.value)


def test_unreachable_students_are_named():
    teacher, x = ZOO["resnet18"](), images()
    with pytest.raises(GrowthError, match=r"'fc.weight' is \[7, 512\] in the teacher and \[9, 512\] in the student"):
        growth.widen(teacher, x, torchvision.models.resnet18(num_classes=9))
    with pytest.raises(GrowthError, match=r"'layer1.2.conv1.weight' is in the student alone"):
        growth.widen(teacher, x, torchvision.models.resnet34(num_classes=7))
    narrow = models.build("inception_bn", 7, width=0.3, stem="small")
    with pytest.raises(GrowthError, match="cannot be reached"):
        growth.widen(models.build("inception_bn", 7, width=0.5, stem="small"), images(32), narrow)
    with pytest.raises(GrowthError, match="cannot record ResNet"):
        growth.widen(teacher, torch.randn(2, 4, 8, 8), 1.5)


class Unknown(nn.Module):
    """sort has no rule: what it touches must stay, the rest must grow."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 6), nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x):
        return self.c(torch.relu(self.b(torch.sort(self.a(x), dim=1).values)))


def test_the_unknown_is_fixed_and_named():
    teacher, x = Unknown().double(), torch.randn(5, 4, dtype=torch.float64)
    grown = growth.widen(teacher, x, 2.0)
    assert grown.student.a.out_features == 6 and grown.student.b.out_features == 16
    assert double_gap(teacher, grown.student, x) < 1e-12
    assert any("sort" in note and "no rule" in note for note in grown.notes)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 6)
        self.mix = nn.Linear(6, 6)
        self.out = nn.Linear(6, 11, bias=False)
        self.out.weight = self.embed.weight
        self.again = self.mix

    def forward(self, tokens):
        h = self.embed(tokens)
        return self.out(torch.tanh(self.again(torch.tanh(self.mix(h)))))


def test_tied_weights_stay_tied():
    teacher = Tied().double()
    tokens = torch.randint(11, (3, 5))
    before = state_of(teacher)
    student = growth.widen(teacher, tokens, 1.5).student
    assert student.out.weight is student.embed.weight and student.again is student.mix
    assert growth.function_gap(teacher, student, tokens) < 1e-12
    assert same_state(state_of(teacher), before) and teacher.again is teacher.mix


class Branching(nn.Module):
    """Data-dependent control flow cannot run on meta tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x):
        h = torch.relu(self.a(x))
        return self.b(h if x.sum() > 0 else -h)


def test_data_dependent_branches_are_recorded_on_real_tensors():
    teacher, x = Branching().double(), torch.randn(5, 4, dtype=torch.float64)
    student = growth.widen(teacher, x, 2.0).student
    assert student.a.out_features == 12 and double_gap(teacher, student, x) < 1e-12


def test_modes_dropout_and_random_state_are_left_alone():
    teacher = nn.Sequential(nn.Linear(4, 6), nn.Dropout(0.5), nn.ReLU(), nn.Linear(6, 2))
    teacher[1].eval()
    modes = [m.training for m in teacher.modules()]
    rng = torch.get_rng_state()
    student = growth.widen(teacher, torch.randn(3, 4, generator=torch.Generator().manual_seed(0)), 2.0).student
    assert torch.equal(rng, torch.get_rng_state())
    assert [m.training for m in teacher.modules()] == modes == [m.training for m in student.modules()]


def test_frozen_parameters_types_and_buffers_follow():
    teacher = perturb(ZOO["resnet18"]()).to(torch.float64)
    teacher.conv1.weight.requires_grad_(False)
    student = growth.widen(teacher, images(), 1.5).student
    assert student.conv1.weight.dtype == torch.float64 and not student.conv1.weight.requires_grad
    assert student.bn1.num_batches_tracked.dtype == torch.int64


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
    teacher = perturb(ZOO["resnet18"]()).double().train()
    x = images().double()
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
    grown = growth.widen(teacher, images(), 1.5)
    again = rebuild(ZOO[name](), grown.recipe)
    again.load_state_dict(grown.student.state_dict())
    assert growth.function_gap(grown.student, again, images()) == 0
    assert str(again) == str(grown.student)


blocks = st.lists(st.tuples(st.sampled_from(KINDS), st.integers(2, 5)), min_size=1, max_size=5)


def check_random_network(spec, factor, seed):
    teacher = perturb(RandomNet(spec, seed).double(), seed)
    x = torch.randn(3, 3, 8, 8, dtype=torch.float64)
    before = state_of(teacher)
    student = growth.widen(teacher, x, factor, seed=seed).student
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


class Uncopyable(nn.Module):
    """It holds a lock, and an open file would be the same."""

    def __init__(self):
        super().__init__()
        self.layer, self.out = nn.Linear(4, 6), nn.Linear(6, 3)
        self.lock = threading.Lock()

    def forward(self, x):
        return self.out(torch.relu(self.layer(x)))


def test_a_model_that_cannot_be_copied_is_refused_in_one_line():
    for grow in (lambda m, x: growth.widen(m, x, 2.0), growth.deepen):
        with pytest.raises(GrowthError, match="Uncopyable cannot be copied") as caught:
            grow(Uncopyable(), torch.randn(5, 4))
        assert "\n" not in str(caught.value)


def test_a_call_that_its_rule_does_not_foresee_is_fixed_and_named(monkeypatch):
    def broken(ctx, op):
        raise IndexError("an axis too many")

    monkeypatch.setitem(OPERATIONS.rows, "tanh", Operation(broken))
    monkeypatch.setattr("n2n_cli.growth.groups.infer.STRICT", False)
    teacher = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).double()
    x = torch.randn(5, 4, dtype=torch.float64)
    grown = growth.widen(teacher, x, 2.0)
    assert grown.student[0].out_features == 6 and grown.student[2].out_features == 16
    assert any("its rule fails" in note for note in grown.notes)
    assert double_gap(teacher, grown.student, x) < 1e-12


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
