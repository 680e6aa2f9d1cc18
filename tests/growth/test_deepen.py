"""Net2DeeperNet: identity layers that change nothing, in eval and train mode, and refusals by name."""

import copy
import math

import pytest
import torch
import torchvision
from nets import RandomNet, perturb, same_state, state_of, storages
from torch import nn

from n2n_cli import growth, lineage, models
from n2n_cli.growth import GrowthError
from n2n_cli.growth.deeper import rebuild
from n2n_cli.growth.sites import find_sites, set_identity


def images(size=32, n=4, seed=1):
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(seed))


def rect(extra_pairs=0, width=0.2):
    return models.build("inception_rect", 6, width=width, stem="small", extra_pairs=extra_pairs)


def check(teacher, student, x, train=True):
    assert growth.function_gap(teacher, student, x, training=False) < 1e-11
    if train:
        assert growth.function_gap(teacher, student, x, training=True) < 1e-10


def test_to_the_constructors_deeper_inception():
    """Two more vertical-horizontal pairs at every pair, under the constructor's own names."""
    torch.manual_seed(0)
    teacher, x = perturb(rect()).double(), images().double()
    before = state_of(teacher)
    target = rect(2)
    student = growth.deepen(teacher, x, target).student
    check(teacher, student, x)
    check(teacher, student, images(seed=9).double(), train=False)  # eval mode: exact on any batch
    assert {n: t.shape for n, t in student.state_dict().items()} == {n: t.shape for n, t in target.state_dict().items()}
    assert same_state(state_of(teacher), before) and not storages(teacher) & storages(student)


def test_pairs_are_found_and_doubled_without_a_constructor():
    torch.manual_seed(0)
    teacher, x = perturb(rect()).double(), images().double()
    student = growth.deepen(teacher, x, pairs=2).student
    check(teacher, student, x)
    kernels = [tuple(m.kernel_size) for m in student.modules() if isinstance(m, nn.Conv2d)]
    had = [tuple(m.kernel_size) for m in teacher.modules() if isinstance(m, nn.Conv2d)]
    assert kernels.count((3, 1)) == 3 * had.count((3, 1)) and kernels.count((1, 3)) == 3 * had.count((1, 3))
    assert kernels.count((3, 3)) == had.count((3, 3))


@pytest.mark.parametrize("name", ["resnet18", "vgg", "mobilenet_v2", "alexnet"])
def test_any_network_at_any_site(name):
    torch.manual_seed(0)
    build = {
        "resnet18": lambda: torchvision.models.resnet18(num_classes=6),
        "vgg": lambda: nn.Sequential(*torchvision.models.vgg.make_layers([8, 8, "M", 16, "M"], True), nn.Flatten()),
        "mobilenet_v2": lambda: torchvision.models.mobilenet_v2(num_classes=6, width_mult=0.25),
        "alexnet": lambda: torchvision.models.AlexNet(6, dropout=0.5),
    }[name]
    teacher = perturb(build()).double()
    x = images(64 if name != "vgg" else 16).double()
    student = growth.deepen(teacher, x).student
    check(teacher, student, x)
    assert len(list(student.modules())) > len(list(teacher.modules()))


def test_named_sites_only():
    torch.manual_seed(0)
    teacher, x = perturb(torchvision.models.resnet18(num_classes=6)).double(), images().double()
    student = growth.deepen(teacher, x, ["layer1.*.conv1"], pairs=2).student
    check(teacher, student, x)
    new = [name for name, _ in student.named_parameters() if name not in dict(teacher.named_parameters())]
    assert {name.split(".")[0] for name in new} == {"layer1"}
    assert (
        sum(isinstance(m, nn.Conv2d) for m in student.modules())
        == sum(isinstance(m, nn.Conv2d) for m in teacher.modules()) + 4
    )


def test_undoing_batch_norm_is_what_makes_it_exact():
    """Negative controls: the naive 1/0/0/1, eps forgotten, and a kernel one pixel off."""
    torch.manual_seed(0)
    teacher = perturb(
        nn.Sequential(nn.Conv2d(3, 5, 3, padding=1), nn.BatchNorm2d(5), nn.ReLU(), nn.Conv2d(5, 2, 1))
    ).double()
    x = 0.05 * images(8).double()
    student = growth.deepen(teacher, x, ["0"]).student
    check(teacher, student, x)
    conv, norm = student[1][2], student[1][3]
    torch.testing.assert_close(norm.weight, torch.sqrt(norm.running_var + norm.eps), rtol=0, atol=0)
    assert torch.equal(norm.bias, norm.running_mean)
    naive = copy.deepcopy(student)
    naive[1][3].reset_parameters()
    assert growth.function_gap(teacher, naive, x, training=False) < 1e-4, "in eval mode it looks fine"
    assert growth.function_gap(teacher, naive, x, training=True) > 0.1, "in train mode it is off by a factor"
    no_eps = copy.deepcopy(student)
    with torch.no_grad():
        no_eps[1][3].weight.copy_(norm.running_var.sqrt())
    assert growth.function_gap(teacher, no_eps, x) > 1e-5
    shifted = copy.deepcopy(student)
    with torch.no_grad():
        shifted[1][2].weight.copy_(conv.weight.roll(1, dims=-1))
    assert growth.function_gap(teacher, shifted, x) > 1e-2


def test_several_calibration_batches_are_pooled():
    torch.manual_seed(0)
    teacher = perturb(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten())).double()
    batches = [images(6, 8, seed).double() for seed in range(5)]
    student = growth.deepen(teacher, batches[0], calibration=batches).student
    with torch.no_grad():  # what the identity sees in train mode, over all batches of equal size
        seen = torch.stack([torch.relu(copy.deepcopy(teacher[1]).train()(teacher[0](b))) for b in batches])
    norm = student[1][3]
    torch.testing.assert_close(norm.running_mean, seen.mean(dim=(0, 1, 3, 4)), rtol=1e-12, atol=1e-12)
    var = torch.stack([b.var(dim=(0, 2, 3), correction=0) for b in seen]).mean(0)
    torch.testing.assert_close(norm.running_var, var, rtol=1e-12, atol=1e-12)
    check(teacher, student, images(6, 8, 77).double(), train=False)


def test_dead_channels_are_counted():
    teacher = perturb(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten())).double()
    with torch.no_grad():
        teacher[1].bias[2], teacher[1].weight[2] = -50.0, 0.01
    grown = growth.deepen(teacher, images(6).double())
    assert any("1 channels never vary" in note for note in grown.notes)
    check(teacher, grown.student, images(6).double())


class Shared(nn.Module):
    """One ReLU module for all, and a functional one: the model's own activation follows the new layers."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.na = nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.b, self.nb = nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.relu, self.head = nn.ReLU(inplace=True), nn.Linear(4, 3)

    def forward(self, x):
        x = self.relu(self.na(self.a(x)))
        x = torch.relu(self.nb(self.b(x)))
        return self.head(x.mean((2, 3)))


def test_shared_and_functional_activations():
    teacher, x = perturb(Shared()).double(), images(8).double()
    student = growth.deepen(teacher, x).student
    check(teacher, student, x)
    assert (
        isinstance(student, Shared) and isinstance(student.na, nn.Sequential) and isinstance(student.nb, nn.Sequential)
    )


@pytest.mark.parametrize(
    ("activation", "word"),
    [(nn.Sigmoid(), "sigmoid"), (nn.Tanh(), "tanh"), (nn.SiLU(), "silu"), (nn.LeakyReLU(), "leaky_relu")],
)
def test_activations_that_do_not_allow_it_are_named(activation, word):
    teacher = nn.Sequential(nn.Conv2d(3, 4, 3), activation, nn.Conv2d(4, 2, 1), nn.Flatten())
    for sites in (None, ["0"]):
        with pytest.raises(GrowthError, match=word):
            growth.deepen(teacher, images(8), sites)


def test_relu6_is_idempotent_and_hardtanh_with_its_bounds():
    teacher = perturb(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU6(), nn.Flatten())).double()
    x = 9 * images(8).double()
    check(teacher, growth.deepen(teacher, x).student, x)


@pytest.mark.parametrize(
    ("sites", "pairs", "words"),
    [
        (["layer9.*"], 1, "no layer matches 'layer9"),
        (["layer1.0.conv3"], 1, "did you mean 'layer1.0.conv"),
        (["fc"], 1, "no identity layer fits behind 'fc'"),
        (["layer1.0.conv2"], 1, "feeds add"),
        (None, 0, "pairs is 0"),
    ],
)
def test_refusals(sites, pairs, words):
    with pytest.raises(GrowthError, match=words) as caught:
        growth.deepen(torchvision.models.resnet18(num_classes=6), images(), sites, pairs=pairs)
    assert "\n" not in str(caught.value)


def test_students_that_do_not_fit_are_named():
    teacher, x = rect(), images()
    with pytest.raises(GrowthError, match="widen them first"):
        growth.deepen(teacher, x, rect(2, width=0.4))
    with pytest.raises(GrowthError, match="no layer that the teacher lacks"):
        growth.deepen(teacher, x, rect())
    with pytest.raises(GrowthError, match="lacks the teacher's"):
        growth.deepen(teacher, x, models.build("inception_bn", 6, stem="small"))


def test_identity_needs_a_shape_that_allows_it():
    for layer in (
        nn.Conv2d(3, 4, 3, padding=1),
        nn.Conv2d(4, 4, 3, padding=0),
        nn.Conv2d(4, 4, 3, 2, 1),
        nn.Linear(3, 4),
    ):
        with pytest.raises(ValueError, match="it "):
            set_identity(layer)
    x = torch.randn(2, 6, 7, 5)
    for layer in (
        nn.Conv2d(6, 6, (3, 1), padding=(1, 0)),
        nn.Conv2d(6, 6, 3, padding=2, dilation=2),
        nn.Conv2d(6, 6, 5, padding=2, groups=3),
    ):
        set_identity(layer)
        assert torch.equal(layer(x), x)


def test_wider_and_deeper_compose_in_any_order_through_lineages():
    torch.manual_seed(0)
    x = images().double()
    start = lineage.start("inception_rect", 6, width=0.2, stem="small")
    teacher = perturb(lineage.build(start)).double()
    steps, student = start, teacher
    for operate in (
        lambda m: growth.widen(m, x, 1.25, seed=2),
        lambda m: growth.deepen(m, x),
        lambda m: growth.widen(m, x, 1.2),
    ):
        grown = operate(student)
        steps, student = lineage.grow(steps, grown.recipe), grown.student
        assert growth.function_gap(teacher, student, x) < 1e-9
    again = lineage.build(steps).double()
    again.load_state_dict(student.state_dict())
    assert growth.function_gap(student, again, x) == 0
    assert len(lineage.describe(steps)) == 4


def test_sites_of_a_random_network_hold():
    for seed, kinds in enumerate(
        (["conv", "rect", "residual"], ["concat", "grouped", "gate"], ["depthwise", "chunk", "conv"])
    ):
        teacher = perturb(RandomNet([(kind, 4) for kind in kinds], seed)).double()
        x = torch.randn(6, 3, 8, 8, dtype=torch.float64)
        student = growth.deepen(teacher, x).student
        check(teacher, student, x)
        assert any(site.refusal is None for site in find_sites(teacher, x))


def test_recipes_rebuild_the_architecture():
    teacher = perturb(torchvision.models.resnet18(num_classes=6))
    grown = growth.deepen(teacher, images(), ["layer2.*"])
    again = rebuild(torchvision.models.resnet18(num_classes=6), grown.recipe)
    again.load_state_dict(grown.student.state_dict())
    assert str(again) == str(grown.student)
    assert math.isclose(growth.function_gap(grown.student, again, images()), 0)
