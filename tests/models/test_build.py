"""Names, torchvision's networks, and what a wrong argument gets."""

import subprocess
import sys

import pytest
import torch
import torchvision

from n2n_cli.errors import N2NError
from n2n_cli.models import OURS, build, names
from n2n_cli.models.describe import count_parameters
from n2n_cli.models.names import WIDTH_MULT


def test_names_are_ours_then_torchvisions() -> None:
    assert tuple(names()[: len(OURS)]) == OURS
    assert {"resnet18", "vit_b_16", "googlenet"} <= set(names())
    assert not any("quantized" in name for name in names())


def test_package_does_not_import_torch() -> None:
    code = "import sys, n2n_cli.models as m; assert m.OURS; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"


@pytest.mark.parametrize("name", ["resnet18", "squeezenet1_0", "mobilenet_v2", "googlenet"])
def test_torchvision_network_is_the_builders_own(name: str) -> None:
    torch.manual_seed(0)
    ours = build(name, num_classes=10)
    kwargs = {"init_weights": True} if name == "googlenet" else {}
    torch.manual_seed(0)
    theirs = torchvision.models.get_model(name, weights=None, num_classes=10, **kwargs)
    a, b = ours.state_dict(), theirs.state_dict()
    assert type(ours) is type(theirs) and list(a) == list(b)
    assert all(torch.equal(a[key], b[key]) for key in a)


def test_arguments_reach_the_builder() -> None:
    with torch.device("meta"):
        wide = build("resnet50", num_classes=10, width_per_group=128)
        expected = build("wide_resnet50_2", num_classes=10)
    assert count_parameters(wide) == count_parameters(expected)


@pytest.mark.parametrize(("name", "factor"), [("vit_ti_16", 4), ("vit_s_16", 2)])
def test_small_vits_are_a_fraction_of_vit_b(name: str, factor: int) -> None:
    with torch.device("meta"):
        small, base = build(name, num_classes=10), build("vit_b_16", num_classes=10)
        assert len(build(name, num_layers=2, image_size=32).encoder.layers) == 2
    assert type(small) is type(base)
    wide = [key for key in small.state_dict() if key.endswith("mlp.0.weight")]
    for key in wide:
        assert [factor * size for size in small.state_dict()[key].shape] == list(base.state_dict()[key].shape)
    assert len(wide) == 12 and small.encoder.layers[0].num_heads * factor == base.encoder.layers[0].num_heads


@pytest.mark.parametrize("name", WIDTH_MULT)
def test_width_multiplier_of_torchvision(name: str) -> None:
    with torch.device("meta"):
        double = count_parameters(build(name, 10, 2.0))
        assert 3 < double / count_parameters(build(name, 10)) < 4.2


@pytest.mark.parametrize(
    ("args", "kwargs", "message"),
    [
        (("resnet81",), {}, r"unknown model 'resnet81' \(did you mean 'resnet(18|101)'\?\)"),
        (("inception_bm",), {}, r"unknown model 'inception_bm' \(did you mean 'inception_bn'\?\)"),
        (("inception_bn",), {"extra_pair": 2}, r"no argument 'extra_pair' \(did you mean 'extra_pairs'\?\)"),
        (("inception_bn",), {"stem": "smal"}, r"stem must be imagenet or small, not 'smal'.*'small'"),
        (("inception_bn",), {"stem": ["small"]}, r"stem must be imagenet or small"),
        (("inception_rect",), {"pairs_at": "module"}, "pairs_at must be branch or concat"),
        (("inception_rect",), {"extra_pairs": -1}, "extra_pairs must be a whole number >= 0, not -1"),
        (("inception_rect",), {"extra_pairs": 1.5}, "extra_pairs must be a whole number"),
        (("inception_rect",), {"dropout": 1.0}, r"dropout must be in \[0, 1\), not 1.0"),
        (("inception_rect",), {"dropout": "a"}, r"dropout must be in \[0, 1\)"),
        (("inception_rect", 0), {}, "num_classes must be a whole number >= 1, not 0"),
        (("resnet18", 10, 0.5), {}, "resnet18 has no width multiplier"),
        (("resnet18", 10, 0), {}, "width must be a positive number, not 0"),
        (("resnet18", 10, float("nan")), {}, "width must be a positive number, not nan"),
        (("resnet18",), {"bogus": 1}, "resnet18 does not build with bogus=1: .*unexpected keyword"),
        (("resnet18",), {"width_per_group": 128}, "width_per_group=128: BasicBlock only supports"),
        (("convnext_tiny",), {"layer_scal": 1}, r"no argument 'layer_scal' \(did you mean 'layer_scale'\?\)"),
        (("mobilenet_v3_small",), {"bogus": 1}, "mobilenet_v3_small has no argument 'bogus'"),
        (("resnet18",), {"weights": "DEFAULT"}, "takes no 'weights' here"),
        (("resnet18",), {"pretrained": True}, "takes no 'pretrained' here"),
    ],
)
def test_wrong_arguments_get_one_line(args: tuple, kwargs: dict, message: str) -> None:
    with pytest.raises(N2NError, match=message) as error:
        build(*args, **kwargs)
    assert "\n" not in str(error.value)


@pytest.mark.slow
def test_every_torchvision_builder_builds() -> None:
    for name in names()[len(OURS) :]:
        assert count_parameters(build(name, num_classes=10)) > 100_000, name
