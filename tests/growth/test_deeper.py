"""Net2DeeperNet: identity layers that change nothing, in eval and train mode, and refusals by name."""

import math

import pytest
import torch
import torchvision
from families import narrow_alexnet, narrow_resnet
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import check_exact, images, mlp, perturb
from torch import nn

from n2n_cli import growth, lineage
from n2n_cli.growth import GrowthError
from n2n_cli.growth.deeper import rebuild


@pytest.mark.parametrize("name", ["resnet18", "vgg", "mobilenet_v2", "alexnet"])
def test_any_network_at_any_site(name):
    torch.manual_seed(0)
    build = {
        "resnet18": narrow_resnet,
        "vgg": lambda: nn.Sequential(*torchvision.models.vgg.make_layers([8, 8, "M", 16, "M"], True), nn.Flatten()),
        "mobilenet_v2": lambda: torchvision.models.mobilenet_v2(num_classes=6, width_mult=0.25),
        "alexnet": narrow_alexnet,
    }[name]
    teacher = perturb(build()).double()
    x = images(64 if name != "vgg" else 16).double()
    student = growth.deepen(teacher, x).student
    check_exact(teacher, student, x)
    assert len(list(student.modules())) > len(list(teacher.modules()))


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


def test_recipes_rebuild_the_architecture():
    teacher = perturb(torchvision.models.resnet18(num_classes=6))
    grown = growth.deepen(teacher, images(), ["layer2.*"])
    again = rebuild(torchvision.models.resnet18(num_classes=6), grown.recipe)
    again.load_state_dict(grown.student.state_dict())
    assert str(again) == str(grown.student)
    assert math.isclose(growth.function_gap(grown.student, again, images()), 0)


def test_wider_and_deeper_compose_in_any_order_through_lineages():
    torch.manual_seed(0)
    x = images().double()
    start = lineage.start("inception_rect_tiny", 6, width=0.3)
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


@settings(max_examples=2, deadline=None)
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


def test_deeper_refuses_where_code_reads_a_layers_weights():
    with pytest.raises(GrowthError, match=r"does not run: .* read a layer's weights itself"):
        growth.deepen(nn.TransformerEncoderLayer(16, 4, 32, batch_first=True), torch.randn(2, 5, 16))


def test_a_deeper_network_that_does_not_run_is_not_taken_for_its_teacher():
    """RepVGG: in eval mode its code reads what its layers hold."""

    class Fused(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 4, 1, bias=False), nn.BatchNorm2d(4)

        def forward(self, x):
            if self.training:
                return self.norm(self.conv(x))
            scale = self.norm.weight * (self.norm.running_var + self.norm.eps).rsqrt()
            bias = self.norm.bias - self.norm.running_mean * scale
            return nn.functional.conv2d(x, self.conv.weight * scale.view(-1, 1, 1, 1), bias)

    net = nn.Sequential(Fused(), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2))
    with pytest.raises(GrowthError, match=r"^the deeper Sequential does not run: in 0: .* read a layer's weights"):
        growth.deepen(net, torch.randn(4, 3, 4, 4), activation=False)


def test_deeper_leaves_the_random_state_alone():
    model, x = mlp(), torch.randn(4, 10).double()
    before = torch.get_rng_state()
    growth.deepen(model, x)
    assert torch.equal(before, torch.get_rng_state())
