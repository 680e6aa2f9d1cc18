"""Exact sizes, path lengths, names and behaviour of the two Inception families."""

import math

import pytest
import torch
from torch import fx, nn

from n2n_cli.errors import N2NError
from n2n_cli.models import OURS, build
from n2n_cli.models.inception import BN_EPS, ConvBNReLU
from n2n_cli.models.tables import TABLES

NARROW, WIDE = math.sqrt(0.3), math.sqrt(2)


def meta(name: str, num_classes: int = 1000, width: float = 1.0, **kwargs) -> nn.Module:
    with torch.device("meta"):
        return build(name, num_classes, width, **kwargs)


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("name", "width", "kwargs", "expected"),
    [
        ("inception_bn", 1.0, {}, 11_285_224),
        ("inception_bn", NARROW, {}, 3_746_834),
        ("inception_bn", WIDE, {}, 21_839_414),
        ("inception_rect", 1.0, {}, 10_151_336),
        ("inception_rect", NARROW, {}, 3_400_649),
        ("inception_rect", WIDE, {}, 19_565_320),
        ("inception_rect", 1.0, {"extra_pairs": 2}, 18_954_664),
        ("inception_rect", 1.0, {"extra_pairs": 4}, 27_757_992),
        ("inception_rect", 1.0, {"extra_pairs": 4, "pairs_at": "concat"}, 141_896_104),
    ],
)
def test_parameters(name: str, width: float, kwargs: dict, expected: int) -> None:
    assert parameters(meta(name, 1000, width, **kwargs)) == expected


@pytest.mark.parametrize("name", ["inception_bn_tiny", "inception_rect_tiny"])
def test_tiny_members_are_tiny(name: str) -> None:
    assert 4_000 <= parameters(meta(name, 16, NARROW, stem="small")) <= 6_000
    assert 10_000 <= parameters(meta(name, 16, stem="small")) <= 15_000


def path_lengths(model: nn.Module) -> tuple[int, int]:
    """Convolutions on the shortest and on the longest path from input to logits, by the traced graph."""
    shortest: dict[fx.Node, int] = {}
    longest: dict[fx.Node, int] = {}
    modules = dict(model.named_modules())
    for node in fx.symbolic_trace(model).graph.nodes:
        sources = node.all_input_nodes
        conv = node.op == "call_module" and isinstance(modules[node.target], nn.Conv2d)
        shortest[node] = min((shortest[source] for source in sources), default=0) + conv
        longest[node] = max((longest[source] for source in sources), default=0) + conv
    return shortest[node], longest[node]


@pytest.mark.parametrize(
    ("kwargs", "expected"),
    [
        ({}, (25, 47)),
        ({"extra_pairs": 2}, (25, 91)),
        ({"extra_pairs": 4}, (25, 135)),
        ({"extra_pairs": 4, "pairs_at": "concat"}, (25 + 11 * 8, 47 + 11 * 8)),
        ({"stem": "small"}, (25, 47)),
    ],
)
def test_paths_of_the_papers_network(kwargs: dict, expected: tuple[int, int]) -> None:
    assert path_lengths(meta("inception_rect", **kwargs)) == expected


def test_inception_bn_paths() -> None:
    # Stem 3, a module 1 to 3, and the pooled pass of 3c and 4e has no convolution at all.
    assert path_lengths(meta("inception_bn")) == (3 + 8, 3 + 30)


@pytest.mark.parametrize(("size", "stem"), [(224, "imagenet"), (32, "small")])
@pytest.mark.parametrize("name", OURS)
def test_shapes_through_the_network(name: str, size: int, stem: str) -> None:
    model = meta(name, 7, stem=stem)
    features = model.inception(model.stem(torch.empty(2, 3, size, size, device="meta")))
    stride2 = sum(row.stride == 2 for row in TABLES[name].modules)
    before = 8 if stem == "small" and name.endswith("tiny") else 32 if stem == "small" else 28
    assert features.shape[2:] == (before >> stride2, before >> stride2)
    assert model(torch.empty(2, 3, size, size, device="meta")).shape == (2, 7)


def test_module_outputs_are_the_published_ones() -> None:
    model = meta("inception_bn")
    x = model.stem(torch.empty(1, 3, 224, 224, device="meta"))
    widths = []
    for module in model.inception:
        x = module(x)
        widths.append(x.shape[1])
    assert widths == [256, 320, 576, 576, 576, 608, 608, 1056, 1024, 1024]


@pytest.mark.parametrize("stem", ["imagenet", "small"])
@pytest.mark.parametrize("name", OURS)
def test_width_scales_modules_and_not_the_stem(name: str, stem: str) -> None:
    standard, narrow = meta(name, 10, stem=stem), meta(name, 10, NARROW, stem=stem)
    assert [p.shape for p in standard.stem.parameters()] == [p.shape for p in narrow.stem.parameters()]
    assert sum(isinstance(m, nn.Conv2d) for m in standard.stem.modules()) == 3
    pairs = list(zip(standard.inception.named_modules(), narrow.inception.named_modules(), strict=True))
    convs = [(a, b) for (_, a), (_, b) in pairs if isinstance(a, nn.Conv2d)]
    assert convs and all(b.out_channels == round(NARROW * a.out_channels) for a, b in convs)
    assert narrow.fc.out_features == 10


@pytest.mark.parametrize("pairs_at", ["branch", "concat"])
@pytest.mark.parametrize("name", OURS)
def test_deeper_has_all_names_of_the_shallower(name: str, pairs_at: str) -> None:
    shallow = {k: v.shape for k, v in meta(name, 10).state_dict().items()}
    for pairs in (2, 4):
        deep = {k: v.shape for k, v in meta(name, 10, extra_pairs=pairs, pairs_at=pairs_at).state_dict().items()}
        assert shallow.items() <= deep.items()
        assert len(deep) > len(shallow)
        shallow = deep


@pytest.mark.parametrize("pairs_at", ["branch", "concat"])
@pytest.mark.parametrize("name", ["inception_bn_tiny", "inception_rect_tiny"])
def test_new_layers_read_non_negative_values(name: str, pairs_at: str) -> None:
    """So an identity with a ReLU behind it changes nothing; other layers may read negatives (the image)."""
    model = build(name, 5, stem="small", extra_pairs=2, pairs_at=pairs_at).train()
    lowest: dict[str, float] = {}

    def record(layer: str):
        def hook(module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
            lowest[layer] = args[0].min().item()

        return hook

    for layer, module in model.named_modules():
        if isinstance(module, ConvBNReLU):
            assert isinstance(module[-1], nn.ReLU)
            module.register_forward_pre_hook(record(layer))
    model(torch.randn(4, 3, 32, 32))
    new = [value for layer, value in lowest.items() if "extra" in layer]
    assert len(new) == sum(2 * 2 * (2 if pairs_at == "branch" else 1) for _ in model.inception)
    assert min(new) >= 0
    assert lowest["stem.conv1"] < 0


def test_initialization_is_the_documented_one() -> None:
    model = build("inception_rect", 10)
    conv = model.inception[5].branches.deep.vertical.conv
    fan_out = conv.out_channels * 3
    assert conv.weight.std().item() == pytest.approx(math.sqrt(2 / fan_out), rel=0.02)
    assert model.fc.weight.std().item() == pytest.approx(0.01, rel=0.05)
    assert not model.fc.bias.any()
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert all(m.eps == BN_EPS and m.momentum == 0.1 for m in norms)
    assert all(bool((m.weight == 1).all()) and not m.bias.any() for m in norms)
    assert not any(m.bias is not None for m in model.modules() if isinstance(m, nn.Conv2d))


def test_seed_decides_the_weights() -> None:
    def weights(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return torch.cat([p.flatten() for p in build("inception_bn_tiny", 4).parameters()])

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


def test_dropout_acts_before_the_classifier_in_training_only() -> None:
    model = build("inception_rect_tiny", 4, stem="small", dropout=0.5)
    x = torch.randn(2, 3, 32, 32)
    assert not torch.equal(model(x), model(x))
    model.eval()
    assert torch.equal(model(x), model(x))


def test_width_that_leaves_nothing() -> None:
    with pytest.raises(N2NError, match=r"inception_rect_tiny: width 0.01 leaves 3a.reduce without channels"):
        build("inception_rect_tiny", 10, 0.01)
