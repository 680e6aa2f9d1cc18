"""New residual blocks add nothing at first; layers that moved up are found again."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import check_grown, conv, images, lazy, same_state, speaking, state_of, storages
from torch import nn
from torchvision import models

from n2n_cli import growth
from n2n_cli.growth import GrowthError
from n2n_cli.growth.depth.blocks import align, new_blocks


def convnext(depths):
    config = [models.convnext.CNBlockConfig(8, 12, depths[0]), models.convnext.CNBlockConfig(12, None, depths[1])]
    return models.ConvNeXt(config, stochastic_depth_prob=0.1 * sum(depths), layer_scale=0.5, num_classes=6)


def swin(depths, version=""):
    block = getattr(models.swin_transformer, f"SwinTransformerBlock{version}")
    merge = getattr(models.swin_transformer, f"PatchMerging{version}")
    return models.SwinTransformer(
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
        models.efficientnet.MBConvConfig(1, 3, 1, 8, 8, depths[0]),
        models.efficientnet.MBConvConfig(4, 3, 2, 8, 12, depths[1]),
    ]
    return models.EfficientNet(
        config, dropout=0.2, stochastic_depth_prob=0.05 * sum(depths), num_classes=6, last_channel=16
    )


BUILD = {
    "bottleneck": lambda d: models.ResNet(
        models.resnet.Bottleneck, [d[0], 1, 1, d[1]], num_classes=6, width_per_group=8
    ),
    "basic": lambda d: models.ResNet(models.resnet.BasicBlock, [d[0], 1, d[1], 1], num_classes=6),
    "resnext": lambda d: models.ResNet(
        models.resnet.Bottleneck, [d[0], 1, 1, d[1]], num_classes=6, groups=4, width_per_group=4
    ),
    "convnext": convnext,
    "vit": lambda d: models.VisionTransformer(32, 8, d[1], 2, 16, 32, dropout=0.1, num_classes=6),
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
    check_grown(grown, teacher, x)
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
        check_grown(grown, teacher, images(8))
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
    check_grown(grown, teacher, images(8))
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
