"""Where an identity layer fits, of which form, and why not elsewhere."""

import pytest
import torch
import torchvision
from nets import RandomNet, check_exact, images, perturb, rect
from torch import nn
from torch.nn import functional as F

from n2n_cli import growth
from n2n_cli.growth import GrowthError
from n2n_cli.growth.deeper import rebuild
from n2n_cli.growth.depth.sites import find_sites


def test_pairs_are_found_and_doubled_without_a_constructor():
    torch.manual_seed(0)
    teacher, x = perturb(rect()).double(), images().double()
    student = growth.deepen(teacher, x, pairs=2).student
    check_exact(teacher, student, x)
    kernels = [tuple(m.kernel_size) for m in student.modules() if isinstance(m, nn.Conv2d)]
    had = [tuple(m.kernel_size) for m in teacher.modules() if isinstance(m, nn.Conv2d)]
    assert kernels.count((3, 1)) == 3 * had.count((3, 1)) and kernels.count((1, 3)) == 3 * had.count((1, 3))
    assert kernels.count((3, 3)) == had.count((3, 3))


@pytest.mark.parametrize(
    ("activation", "word"),
    [
        (nn.Sigmoid(), "sigmoid"),
        (nn.Tanh(), "tanh"),
        (nn.SiLU(), "silu"),
        (nn.LeakyReLU(), "leaky_relu"),
        (nn.PReLU(), "prelu"),
        (nn.GELU(), "gelu"),
        (nn.Softshrink(), "softshrink"),
    ],
)
def test_activations_that_do_not_allow_it_are_named(activation, word):
    teacher = nn.Sequential(nn.Conv2d(3, 4, 3), activation, nn.Conv2d(4, 2, 1), nn.Flatten())
    for sites in (None, ["0"]):
        with pytest.raises(GrowthError, match=word):
            growth.deepen(teacher, images(8), sites)


def test_relu6_is_idempotent_and_hardtanh_with_its_bounds():
    teacher = perturb(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU6(), nn.Flatten())).double()
    x = 9 * images(8).double()
    check_exact(teacher, growth.deepen(teacher, x).student, x)


@pytest.mark.parametrize(
    "activation",
    [
        lambda x: F.hardtanh(x, -0.4, 0.7),
        lambda x: x.clamp(min=-0.3),
        lambda x: x.clamp(max=0.3),
        lambda x: torch.clamp(x, -0.1, 0.2),
        lambda x: x.clamp_(0),
        lambda x: F.relu6(x),
        lambda x: F.threshold(x, 0.2, -0.5),
        lambda x: F.hardshrink(x, 0.3),
        torch.abs,
    ],
)
def test_activations_are_recognised_with_their_numbers(activation):
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 3)

        def forward(self, x):
            return self.b(activation(self.a(x)))

    torch.manual_seed(0)
    teacher, x = Net().double(), torch.randn(9, 6).double()
    grown = growth.deepen(teacher, x, ["a"], pairs=2)
    check_exact(teacher, grown.student, x)
    again = rebuild(Net(), grown.recipe).double()
    again.load_state_dict(grown.student.state_dict())
    assert growth.function_gap(grown.student, again, x) == 0


def test_an_activation_that_jumps_and_batch_norm_do_not_go_together():
    net = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Threshold(0.3, 0.0))
    with pytest.raises(GrowthError, match=r"it feeds threshold\(0.3, 0.0\), which jumps"):
        growth.deepen(net, torch.randn(8, 4), ["0"])


def test_depthwise_expanded_channels_get_depthwise_identities():
    torch.manual_seed(0)
    teacher = perturb(torchvision.models.mobilenet_v2(num_classes=6, width_mult=0.35)).double()
    x = images(64).double()
    grown = growth.deepen(teacher, x)
    check_exact(teacher, grown.student, x)
    old, new = (sum(p.numel() for p in m.parameters()) for m in (teacher, grown.student))
    places = {insertion["after"]: insertion for insertion in grown.recipe["insert"]}
    inner = {name: plan for name, plan in places.items() if not name.startswith(("features.0.", "features.18."))}
    assert len(inner) == 17 and all(plan["groups"] == plan["channels"] for plan in inner.values())
    assert new - old < 1280**2 + 60_000  # nearly all in the dense last layer
    expansion = growth.deepen(teacher, x, ["features.5.conv.0.0"])
    check_exact(teacher, expansion.student, x)
    (plan,) = expansion.recipe["insert"]
    assert plan["groups"] == plan["channels"] and plan["kernels"] == [[3, 3]]


def test_grouped_transposed_and_other_dimensions():
    for n, conv, transposed, norm in (
        (1, nn.Conv1d, nn.ConvTranspose1d, nn.BatchNorm1d),
        (2, nn.Conv2d, nn.ConvTranspose2d, nn.InstanceNorm2d),
        (3, nn.Conv3d, nn.ConvTranspose3d, nn.BatchNorm3d),
    ):
        torch.manual_seed(0)
        teacher = nn.Sequential(
            conv(2, 8, 3), norm(8), nn.ReLU(), conv(8, 8, 3, groups=2), nn.GroupNorm(2, 8), nn.ReLU()
        )
        teacher = perturb(teacher.extend([transposed(8, 4, 4, 2), nn.ReLU(), nn.Flatten()])).double()
        x = torch.randn(3, 2, *[8] * n).double()
        grown = growth.deepen(teacher, x)
        check_exact(teacher, grown.student, x)
        assert [plan["groups"] for plan in grown.recipe["insert"]] == [1, 2, 1]


def test_dropout_in_front_of_the_activation_drops_the_same():
    torch.manual_seed(0)
    teacher = nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.5), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 3)).double()
    x = torch.randn(9, 6).double()
    student = growth.deepen(teacher, x).student
    check_exact(teacher, student, x)
    torch.manual_seed(1)
    wanted = teacher.train()(x)
    torch.manual_seed(1)
    torch.testing.assert_close(student.train()(x), wanted, rtol=1e-12, atol=1e-12)
    with pytest.raises(GrowthError, match="dropout and then relu6"):
        growth.deepen(nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.5), nn.ReLU6()), x, ["0"])


class Reused(nn.Module):
    """``a`` is called twice, ``b`` has two names, ``c`` is an output, ``d`` is read twice."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Linear(4, 4) for _ in range(4))
        self.again = self.b

    def forward(self, x):
        x = torch.relu(self.a(torch.relu(self.a(x))))
        c = self.c(torch.relu(self.again(x)))
        d = self.d(torch.relu(c))
        return c, d * torch.sigmoid(d)


@pytest.mark.parametrize(
    ("site", "words"),
    [
        ("a", "behind 'a': it is called more than once"),
        ("c", "behind 'c': its output is an output of the network"),
        ("d", "behind 'd': its output is read 2 times, by sigmoid and mul"),
    ],
)
def test_layers_that_are_shared_or_read_elsewhere_are_named(site, words):
    with pytest.raises(GrowthError, match=words):
        growth.deepen(Reused(), torch.randn(3, 4), [site])


def test_a_layer_with_two_names_is_replaced_under_both():
    teacher, x = Reused().double(), torch.randn(3, 4).double()
    grown = growth.deepen(teacher, x)
    check_exact(teacher, grown.student, x)
    assert grown.student.b is grown.student.again and isinstance(grown.student.b, nn.Sequential)
    assert grown.renamed == {f"{n}.{k}": f"{n}.0.{k}" for n in ("b", "again") for k in ("weight", "bias")}


def test_sites_of_a_random_network_hold():
    for seed, kinds in enumerate(
        (["conv", "rect", "residual"], ["concat", "grouped", "gate"], ["depthwise", "chunk", "conv"])
    ):
        teacher = perturb(RandomNet([(kind, 4) for kind in kinds], seed)).double()
        x = torch.randn(6, 3, 8, 8, dtype=torch.float64)
        student = growth.deepen(teacher, x).student
        check_exact(teacher, student, x)
        assert any(site.refusal is None for site in find_sites(teacher, x))
