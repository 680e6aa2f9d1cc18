"""Net2DeeperNet: identity layers that change nothing, in eval and train mode, and refusals by name."""

import copy
import math

import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import RandomNet, perturb, same_state, state_of, storages
from torch import nn
from torch.nn import functional as F

from n2n_cli import growth, lineage, models
from n2n_cli.growth import GrowthError
from n2n_cli.growth.deeper import rebuild
from n2n_cli.growth.depth.identity import Maxout, activation_of, module_of, plain, set_identity
from n2n_cli.growth.depth.sites import find_sites
from n2n_cli.growth.groups.operations import OPERATIONS


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


NUMBERS = {
    "hardtanh": st.lists(st.floats(-3, 3), min_size=2, max_size=2, unique=True).map(sorted),
    "clamp_max": st.tuples(st.none(), st.floats(-3, 3)),
    "clamp": st.tuples(st.none() | st.floats(-3, 3), st.floats(-3, 3)),
    "threshold": st.tuples(st.floats(-3, 3), st.floats(-3, 3)),
    "hardshrink": st.tuples(st.floats(0, 3)),
    "maxout": st.just((3, -1, True)),
}


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_every_activation_that_is_allowed_is_idempotent(data):
    name = data.draw(st.sampled_from([*(n for n, row in OPERATIONS if row.idempotent), "maxout"]))
    numbers = data.draw(NUMBERS.get(name.removesuffix("_"), st.just(())))
    values = torch.tensor(data.draw(st.lists(st.floats(-5, 5), min_size=3, max_size=3)), dtype=torch.float64)
    kind = module_of((name,))
    assert kind is not None
    f = kind(*numbers)
    once = f(values)
    assert torch.equal(f(once.repeat_interleave(3) if name == "maxout" else once), once)
    assert activation_of(plain((name, *numbers))) == (name, *numbers)


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
    check(teacher, grown.student, x)
    again = rebuild(Net(), grown.recipe).double()
    again.load_state_dict(grown.student.state_dict())
    assert growth.function_gap(grown.student, again, x) == 0


def test_an_activation_that_jumps_and_batch_norm_do_not_go_together():
    net = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Threshold(0.3, 0.0))
    with pytest.raises(GrowthError, match=r"it feeds threshold\(0.3, 0.0\), which jumps"):
        growth.deepen(net, torch.randn(8, 4), ["0"])


def maxout(kind, form, norm):
    """(view | unflatten), then (max | amax) over the pieces, which come last or first."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(6, 12) if kind == "linear" else nn.Conv2d(3, 12, 3, padding=1)
            self.norm = ({"linear": nn.BatchNorm1d, "conv": nn.BatchNorm2d}[kind](12)) if norm else nn.Identity()
            self.head = nn.Linear(4, 3)

        def forward(self, x):
            x = self.norm(self.a(x))
            if form == "view max":
                x = x.view(x.shape[0], 4, 3, *x.shape[2:]).max(2)[0]
            elif form == "unflatten amax":
                x = x.unflatten(1, (4, 3)).amax(2)
            else:
                x = x.unflatten(1, (3, 4)).amax(dim=1)
            return self.head(x if kind == "linear" else x.mean((2, 3)))

    return Net()


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("form", ["view max", "unflatten amax", "pieces first"])
@pytest.mark.parametrize("kind", ["linear", "conv"])
def test_maxout_by_replicated_columns(kind, form, norm):
    torch.manual_seed(0)
    teacher = perturb(maxout(kind, form, norm)).double()
    x = torch.randn(8, 6).double() if kind == "linear" else images(8, 5).double()
    grown = growth.deepen(teacher, x, pairs=2)
    check(teacher, grown.student, x)
    check(teacher, grown.student, x.roll(1, -1), train=not norm)
    assert sum(isinstance(m, Maxout) for m in grown.student.modules()) == 2
    twice = growth.deepen(grown.student, x).student
    check(teacher, twice, x)
    assert sum(isinstance(m, Maxout) for m in twice.modules()) > 2
    again = rebuild(maxout(kind, form, norm), grown.recipe).double()
    again.load_state_dict(grown.student.state_dict())
    assert growth.function_gap(grown.student, again, x) == 0
    layer = next(m for n, m in grown.student.named_modules() if n.endswith(("a.2", "norm.2")))
    pieces = layer.weight.flatten(1)[:, : layer.weight[0].numel()]
    with torch.no_grad():
        pieces[0] += 1.0  # negative control: one piece of one unit sees something else
    assert growth.function_gap(teacher, grown.student, x) > 1e-6


def test_depthwise_expanded_channels_get_depthwise_identities():
    torch.manual_seed(0)
    teacher = perturb(torchvision.models.mobilenet_v2(num_classes=6, width_mult=0.35)).double()
    x = images(64).double()
    grown = growth.deepen(teacher, x)
    check(teacher, grown.student, x)
    old, new = (sum(p.numel() for p in m.parameters()) for m in (teacher, grown.student))
    places = {insertion["after"]: insertion for insertion in grown.recipe["insert"]}
    inner = {name: plan for name, plan in places.items() if not name.startswith(("features.0.", "features.18."))}
    assert len(inner) == 17 and all(plan["groups"] == plan["channels"] for plan in inner.values())
    assert new - old < 1280**2 + 60_000  # nearly all in the dense last layer
    expansion = growth.deepen(teacher, x, ["features.5.conv.0.0"])
    check(teacher, expansion.student, x)
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
        check(teacher, grown.student, x)
        assert [plan["groups"] for plan in grown.recipe["insert"]] == [1, 2, 1]


def test_dropout_in_front_of_the_activation_drops_the_same():
    torch.manual_seed(0)
    teacher = nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.5), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 3)).double()
    x = torch.randn(9, 6).double()
    student = growth.deepen(teacher, x).student
    check(teacher, student, x)
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
    check(teacher, grown.student, x)
    assert grown.student.b is grown.student.again and isinstance(grown.student.b, nn.Sequential)
    assert grown.renamed == {f"{n}.{k}": f"{n}.0.{k}" for n in ("b", "again") for k in ("weight", "bias")}


def test_renamed_tells_where_every_tensor_went():
    teacher = perturb(torchvision.models.resnet18(num_classes=6))
    grown = growth.deepen(teacher, images(), ["layer1.*.conv1", "conv1"])
    ours = grown.student.state_dict()
    assert set(grown.renamed) == {
        n for n in teacher.state_dict() if n.startswith(("bn1.", "layer1.0.bn1", "layer1.1.bn1"))
    }
    for name, tensor in teacher.state_dict().items():
        assert torch.equal(ours[grown.renamed.get(name, name)], tensor)


@settings(max_examples=4, deadline=None)
@given(st.lists(st.sampled_from(["wider", "deeper", "named"]), min_size=2, max_size=4))
def test_any_order_and_number_through_checkpoints(tmp_path_factory, order):
    torch.manual_seed(0)
    x = images(32, 3).double()
    steps = lineage.start("inception_bn_tiny", 5, width=0.2)
    teacher = student = perturb(lineage.build(steps)).double()
    for at, name in enumerate(order):
        if name == "wider":
            grown = growth.widen(student, x, 1.2, seed=at)
        else:
            grown = growth.deepen(student, x, None if name == "deeper" else ["*conv*"])
        steps = lineage.grow(steps, grown.recipe)
        path = tmp_path_factory.mktemp("steps") / "a.pt"
        torch.save({"lineage": steps, "model": grown.student.state_dict()}, path)
        saved = torch.load(path, weights_only=True)
        steps, student = saved["lineage"], lineage.build(saved["lineage"]).double()
        student.load_state_dict(saved["model"])
        assert growth.function_gap(teacher, student, x) < 1e-9
