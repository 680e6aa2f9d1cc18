"""Deeper constructors: new residual blocks add nothing at first, moved layers are found again, the rest is refused."""

import copy

import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import perturb, same_state, state_of, storages
from torch import nn

from n2n_cli import growth, lineage
from n2n_cli.growth import GrowthError
from n2n_cli.growth.depth.blocks import align, new_blocks

M = torchvision.models


def images(size=32, n=4, seed=1):
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(seed))


def speaking(model, seed=0):
    """A head that is not zero (ViT's is), and norms that are not fresh."""
    perturb(model, seed)
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.Linear) and not module.weight.any():
            with torch.no_grad():
                module.weight.normal_(0, 0.1, generator=generator)
    return model


def check(grown, teacher, x):
    """Exact on the example and on other images, in both modes, in fp64."""
    assert grown.gap.worst <= max(1e-10, 1000 * grown.gap.floor) and grown.gap.kind == "float64"
    teacher, student = copy.deepcopy(teacher).double(), copy.deepcopy(grown.student).double()
    if not any("stochastic" in name for name, _ in teacher.named_modules()):
        assert growth.function_gap(teacher, student, x.double().roll(3, -1)) < 1e-10
    assert growth.function_gap(teacher, student, x.double().roll(5, -1), training=False) < 1e-10


def convnext(depths):
    config = [M.convnext.CNBlockConfig(8, 12, depths[0]), M.convnext.CNBlockConfig(12, None, depths[1])]
    return M.ConvNeXt(config, stochastic_depth_prob=0.1 * sum(depths), layer_scale=0.5, num_classes=6)


def swin(depths, version=""):
    block = getattr(M.swin_transformer, f"SwinTransformerBlock{version}")
    merge = getattr(M.swin_transformer, f"PatchMerging{version}")
    return M.SwinTransformer(
        [4, 4],
        16,
        depths,
        [2, 4],
        [4, 4],
        stochastic_depth_prob=0.1,
        num_classes=6,
        block=block,
        downsample_layer=merge,
    )


def efficientnet(depths):
    config = [
        M.efficientnet.MBConvConfig(1, 3, 1, 8, 8, depths[0]),
        M.efficientnet.MBConvConfig(4, 3, 2, 8, 12, depths[1]),
    ]
    return M.EfficientNet(config, dropout=0.2, stochastic_depth_prob=0.05 * sum(depths), num_classes=6, last_channel=16)


BUILD = {
    "bottleneck": lambda d: M.ResNet(M.resnet.Bottleneck, [d[0], 1, 1, d[1]], num_classes=6, width_per_group=8),
    "basic": lambda d: M.ResNet(M.resnet.BasicBlock, [d[0], 1, d[1], 1], num_classes=6),
    "resnext": lambda d: M.ResNet(M.resnet.Bottleneck, [d[0], 1, 1, d[1]], num_classes=6, groups=4, width_per_group=4),
    "convnext": convnext,
    "vit": lambda d: M.VisionTransformer(32, 8, d[1], 2, 16, 32, dropout=0.1, num_classes=6),
    "swin": swin,
    "swin_v2": lambda d: swin(d, "V2"),
    "efficientnet": efficientnet,
}
CLOSED = {  # of one new block
    "bottleneck": {"bn3.weight", "bn3.bias"},
    "basic": {"bn2.weight", "bn2.bias"},
    "resnext": {"bn3.weight", "bn3.bias"},
    "convnext": {"layer_scale"},
    "vit": {"self_attention.out_proj.weight", "self_attention.out_proj.bias", "mlp.3.weight", "mlp.3.bias"},
    "swin": {"attn.proj.weight", "attn.proj.bias", "mlp.3.weight", "mlp.3.bias"},
    "swin_v2": {"norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias"},
    "efficientnet": {"block.3.1.weight", "block.3.1.bias"},
}


@pytest.mark.parametrize("family", BUILD)
def test_new_blocks_add_nothing_at_first_and_can_learn(family):
    torch.manual_seed(0)
    teacher, target, x = speaking(BUILD[family]([1, 2])), speaking(BUILD[family]([2, 4]), 1), images()
    before = state_of(teacher), state_of(target)
    grown = growth.deepen(teacher, x, target)
    check(grown, teacher, x)
    student = grown.student
    assert same_state(state_of(teacher), before[0]) and same_state(state_of(target), before[1])
    assert not storages(student) & (storages(teacher) | storages(target))
    assert {n: t.shape for n, t in student.state_dict().items()} == {n: t.shape for n, t in target.state_dict().items()}
    assert grown.renamed == {}
    zero = set(grown.recipe["new"])
    assert all(not student.get_parameter(name).any() for name in zero)
    # everything else that is new is as its constructor left it, batch norm too
    for name, tensor in target.state_dict().items():
        if name not in teacher.state_dict() and name not in zero:
            assert torch.equal(student.state_dict()[name], tensor), name
    student.eval()(x).pow(2).sum().backward()
    weights = [name for name in zero if not name.endswith("bias")]
    assert weights and all(student.get_parameter(name).grad.abs().max() > 0 for name in weights)
    broken = copy.deepcopy(student)  # negative control: one closing parameter left as it was
    with torch.no_grad():
        broken.get_parameter(sorted(weights)[0]).normal_(0, 0.5)
    assert growth.function_gap(teacher, broken, x, training=False) > 1e-4


def test_the_names_of_what_is_zero():
    torch.manual_seed(0)
    for family, names in CLOSED.items():
        grown = growth.deepen(speaking(BUILD[family]([1, 2])), images(), BUILD[family]([1, 3]))
        found = grown.recipe["new"]
        (block,) = {name[: -len(end) - 1] for name in found for end in names if name.endswith(f".{end}")}
        assert {name[len(block) + 1 :] for name in found} == names
        assert [info.layers for info in grown.groups] == [[block]]
        assert any(note.startswith("1 new blocks add nothing at first; zero are ") for note in grown.notes)


def features(*widths):
    return nn.Sequential(M.vgg.make_layers(list(widths), True), nn.Flatten(), nn.LazyLinear(5))


def lazy(model, x):
    model.eval()(x)
    return model


def test_numbered_layers_that_moved_up():
    """VGG-11 to VGG-13 in small: identity layers between, all later indices move."""
    torch.manual_seed(0)
    x = images()
    teacher = perturb(lazy(features(8, "M", 16, "M", 16, 16, "M"), x))
    target = lazy(features(8, 8, "M", 16, 16, "M", 16, 16, 16, "M"), x)
    grown = growth.deepen(teacher, x, target)
    assert grown.gap.worst < 1e-12
    assert growth.function_gap(teacher.double(), grown.student.double(), images(seed=5).double(), training=False) < 1e-6
    assert grown.recipe["new"] == ["0.3", "0.4", "0.10", "0.11", "0.20", "0.21"]
    ours, theirs = grown.student.state_dict(), teacher.state_dict()
    assert grown.renamed["0.4.weight"] == "0.7.weight" and "0.0.weight" not in grown.renamed
    for name, tensor in theirs.items():
        assert torch.equal(ours[grown.renamed.get(name, name)], tensor)


class Adds(nn.Module):
    """``blocks`` numbered layers whose sum stands here; ``turn`` is called on what is added."""

    def __init__(self, blocks, make, turn=lambda v: v, end=lambda v: v):
        super().__init__()
        self.stem, self.blocks = nn.Conv2d(3, 4, 3, padding=1), nn.ModuleList(make(4) for _ in range(blocks))
        self.turn, self.end = turn, end
        self.head = nn.Linear(4, 5)

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = self.end(x + self.turn(block(x)))
        return self.head(x.mean((2, 3)))


def conv(c):
    return nn.Conv2d(c, c, 3, padding=1)


def test_a_sum_behind_the_block():
    torch.manual_seed(0)
    for turn, make in [
        (lambda v: v, conv),
        (nn.functional.gelu, conv),
        (lambda v: nn.functional.dropout(v, 0.5), lambda c: nn.Sequential(conv(c), nn.ReLU(), conv(c))),
        (lambda v: v.flip(2) * 0.5, lambda c: nn.Sequential(nn.ReLU(inplace=False), conv(c))),
    ]:
        teacher = Adds(2, make, turn)
        grown = growth.deepen(teacher, images(8), Adds(4, make, turn))
        check(grown, teacher, images(8))
        assert {name.split(".")[1] for name in grown.recipe["new"]} == {"2", "3"}


class Two(nn.Module):
    """Sums of several branches, in place, with a gate, and a subtraction."""

    def __init__(self, c):
        super().__init__()
        self.a, self.b, self.c, self.gate = conv(c), conv(c), conv(c), nn.Conv2d(c, c, 1)
        self.d = nn.Linear(c, c, bias=False)
        self.bias = nn.Parameter(torch.randn(c, 1, 1))

    def forward(self, x):
        y = self.a(x)
        y += self.b(torch.tanh(x))
        x = x + (y + self.bias)
        z = self.c(x)
        z *= torch.sigmoid(self.gate(x.mean((2, 3), keepdim=True)))
        z += x
        return z - self.d(z.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def test_branches_of_every_form():
    torch.manual_seed(0)
    build = lambda n: nn.Sequential(conv(3), nn.Sequential(*(Two(3) for _ in range(n))), nn.Flatten(), nn.LazyLinear(4))  # noqa: E731
    teacher, target = (lazy(build(n), images(8)) for n in (1, 3))
    grown = growth.deepen(teacher, images(8), target)
    check(grown, teacher, images(8))
    assert set(grown.recipe["new"]) == {
        f"1.{n}.{name}"
        for n in (1, 2)
        for name in ("a.weight", "a.bias", "b.weight", "b.bias", "bias", "c.weight", "c.bias", "d.weight")
    }


class Dead(nn.Module):
    def __init__(self, c, activation):
        super().__init__()
        self.conv, self.activation = conv(c), activation

    def forward(self, x):
        return x + self.activation(self.conv(x))


@pytest.mark.parametrize(
    ("make", "end", "words"),
    [
        (
            lambda c: Dead(c, nn.ReLU()),
            None,
            r"'blocks.2' cannot start as nothing: relu at .* a zero would never learn",
        ),
        (lambda c: Dead(c, nn.Sigmoid()), None, r"'blocks.2' cannot start as nothing: sigmoid at blocks.2.activation"),
        (lambda c: Dead(c, nn.BatchNorm2d(c, affine=False)), None, "batch_norm at .* has no scale"),
        (conv, torch.sigmoid, r"the student's function differs"),
    ],
)
def test_blocks_that_cannot_start_as_nothing_are_named(make, end, words):
    class Net(Adds):
        def forward(self, x):
            x = self.stem(x)
            for block in self.blocks:
                x = block(x) if end is None else end(x + block(x))
            return self.head(x.mean((2, 3)))

    with pytest.raises(GrowthError, match=words) as caught:
        growth.deepen(Net(2, make) if end is None else Net(0, make), images(8), Net(3, make))
    assert "\n" not in str(caught.value)


class Rectified(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.conv = conv(c)

    def forward(self, x):
        return torch.relu(x + self.conv(x))


def test_a_block_that_changes_the_stream_itself_is_named():
    def net(n):
        blocks = nn.Sequential(*(Rectified(3) for _ in range(n)))
        return nn.Sequential(conv(3), blocks, conv(3), nn.Flatten())

    torch.manual_seed(0)
    teacher = net(1)
    check(growth.deepen(teacher, images(8), net(3)), teacher, images(8))  # behind a ReLU it is exact
    with pytest.raises(GrowthError, match=r"the new block '1' changes what passes through it beside its branch"):
        growth.deepen(nn.Sequential(conv(3), nn.Sequential(), conv(3), nn.Flatten()), images(8), net(1))


def stage(activation, extra=0, bias=False, wide=0):
    layers = [nn.Conv2d(3, 4, 3, padding=1, bias=bias), nn.BatchNorm2d(4), activation()]
    for _ in range(extra):
        layers += [nn.Conv2d(4, 4, 3, padding=1, bias=bias), nn.BatchNorm2d(4), activation()]
    if wide:
        layers += [nn.Conv2d(4, wide, 3, padding=1, stride=2, bias=bias), nn.BatchNorm2d(wide), activation()]
    return nn.Sequential(nn.Sequential(*layers), nn.AdaptiveAvgPool2d(1), nn.Flatten())


@pytest.mark.parametrize(
    ("teacher", "student", "words"),
    [
        (stage(nn.SiLU), stage(nn.SiLU, 1), "the new layer '0.3' cannot be an identity: it feeds silu"),
        (stage(nn.ReLU), stage(nn.ReLU, 0, wide=8), "the new layer '0.3' cannot be an identity: it .*"),
        (
            stage(nn.ReLU),
            stage(nn.ReLU, 0, bias=True),
            "the student's '0.0.bias' is new in a layer that the teacher has",
        ),
        (stage(nn.ReLU, 1), stage(nn.ReLU), "the student lacks the teacher's '0.3.weight'"),
        (stage(nn.ReLU), stage(nn.ReLU), "no layer that the teacher lacks"),
    ],
)
def test_students_that_are_refused(teacher, student, words):
    with pytest.raises(GrowthError, match=words) as caught:
        growth.deepen(teacher, images(8), student)
    assert "\n" not in str(caught.value)


def test_identity_layers_of_a_constructor():
    torch.manual_seed(0)
    teacher = perturb(stage(nn.ReLU, 1))
    grown = growth.deepen(teacher, images(8), stage(nn.ReLU, 3))
    assert grown.gap.worst < 1e-12 and grown.recipe["new"] == ["0.6", "0.7", "0.9", "0.10"]


def test_a_deeper_maxout_constructor():
    class Maxout(nn.Module):
        def __init__(self, layers):
            super().__init__()
            self.layers = nn.ModuleList([nn.Linear(12, 15), *(nn.Linear(5, 15) for _ in range(layers - 1))])
            self.head = nn.Linear(5, 2)

        def forward(self, x):
            for layer in self.layers:
                x = layer(x).view(-1, 5, 3).amax(2)
            return self.head(x)

    torch.manual_seed(0)
    teacher, x = Maxout(1), torch.randn(6, 12)
    grown = growth.deepen(teacher, x, Maxout(3))
    check(grown, teacher, x)
    assert torch.equal(grown.student.layers[2].weight, torch.eye(5).repeat_interleave(3, 0))


LAYERS = {
    "conv": lambda: nn.Conv2d(4, 4, 3, padding=1),
    "point": lambda: nn.Conv2d(4, 4, 1),
    "norm": lambda: nn.BatchNorm2d(4),
    "relu": nn.ReLU,
    "pool": lambda: nn.MaxPool2d(2),
    "block": lambda: Two(4),
}


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(sorted(LAYERS)), st.booleans()), min_size=1, max_size=10))
def test_layers_put_in_between_are_found(drawn):
    """Any subsequence is aligned in order, to layers of its class and shapes; what is left is new."""
    student = nn.Sequential(*(LAYERS[kind]() for kind, _ in drawn))
    teacher = nn.Sequential(*(LAYERS[kind]() for kind, kept in drawn if kept))
    names = align(teacher, student)
    theirs, ours = teacher.state_dict(), student.state_dict()
    assert names.keys() == theirs.keys() and len(set(names.values())) == len(names)
    assert all(ours[to].shape == theirs[name].shape for name, to in names.items())
    places = [int(to.split(".")[0]) for to in names.values()]
    assert places == sorted(places)
    new = [name for name in ours if name not in names.values()]
    assert {int(block) for block in new_blocks(student, new, set(names.values()))} == {
        int(n.split(".")[0]) for n in ours
    } - set(places)


def test_to_a_constructor_then_wider_then_deeper_through_lineages():
    torch.manual_seed(0)
    x = images(32, 3).double()
    steps = lineage.start("resnet18", 6)
    teacher = perturb(lineage.build(steps)).double()
    to = {"name": "resnet34", "num_classes": 6}
    grown = growth.deepen(teacher, x, lineage.build(lineage.start(**to)))
    steps, student = lineage.grow(steps, grown.recipe, to), grown.student
    for operate in (
        lambda m: growth.widen(m, x, {"layer1*": 1.25}),
        lambda m: growth.deepen(m, x, ["layer1.2.conv1", "layer2.3.conv1"]),
    ):
        grown = operate(student)
        steps, student = lineage.grow(steps, grown.recipe), grown.student
        assert growth.function_gap(teacher, student, x) < 1e-9
    again = lineage.build(steps).double()
    again.load_state_dict(student.state_dict())
    assert growth.function_gap(student, again, x) == 0
    assert lineage.describe(steps)[1] == "deeper to resnet34(6 classes)"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("names", "size"),
    [
        (["resnet50", "resnet101", "resnet152"], 64),
        (["resnet50", "wide_resnet50_2", "wide_resnet101_2"], 64),
        (["convnext_tiny", "convnext_small"], 64),
        (["swin_t", "swin_s"], 64),
        (["swin_v2_t", "swin_v2_s"], 64),
        (["efficientnet_b0", "efficientnet_b1"], 64),
        (["vgg11_bn", "vgg13_bn", "vgg16_bn", "vgg19_bn"], 32),
        (["vgg11", "vgg19"], 32),
    ],
)
def test_torchvisions_families(names, size):
    torch.manual_seed(0)
    x = images(size)
    teacher = student = speaking(M.get_model(names[0], num_classes=6))
    for name in names[1:]:
        target = M.get_model(name, num_classes=6)
        wider = name == "wide_resnet50_2"
        grown = growth.widen(student, x, target) if wider else growth.deepen(student, x, target)
        student = grown.student
        assert grown.gap.worst <= max(1e-10, 1000 * grown.gap.floor)
        assert type(student) is type(target) and len(student.state_dict()) == len(target.state_dict())
    assert growth.function_gap(teacher.double(), student.double(), x.double(), training=False) < 1e-6


@pytest.mark.slow
def test_a_deeper_vit():
    torch.manual_seed(0)
    build = lambda layers: M.VisionTransformer(64, 16, layers, 12, 768, 3072, num_classes=6)  # noqa: E731
    teacher = speaking(build(12))
    check(growth.deepen(teacher, images(64, 2), build(24)), teacher, images(64, 2))
