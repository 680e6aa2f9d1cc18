"""Deeper students of a constructor: the teacher's weights in their places, the rest named."""

import pytest
import torch
import torchvision
from nets import check_exact, check_grown, conv, images, lazy, perturb, rect, same_state, speaking, state_of, storages
from torch import nn

from n2n_cli import growth, lineage, models
from n2n_cli.growth import GrowthError
from n2n_cli.growth.depth.constructors import Change, explained, same_survival_rates, to_student


def features(*widths):
    return nn.Sequential(torchvision.models.vgg.make_layers(list(widths), True), nn.Flatten(), nn.LazyLinear(5))


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
    check_grown(growth.deepen(teacher, images(8), net(3)), teacher, images(8))  # behind a ReLU it is exact
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
    check_grown(grown, teacher, x)
    assert torch.equal(grown.student.layers[2].weight, torch.eye(5).repeat_interleave(3, 0))


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
    teacher = student = speaking(torchvision.models.get_model(names[0], num_classes=6))
    for name in names[1:]:
        target = torchvision.models.get_model(name, num_classes=6)
        wider = name == "wide_resnet50_2"
        grown = growth.widen(student, x, target) if wider else growth.deepen(student, x, target)
        student = grown.student
        assert grown.gap.worst <= max(1e-10, 1000 * grown.gap.floor)
        assert type(student) is type(target) and len(student.state_dict()) == len(target.state_dict())
    assert growth.function_gap(teacher.double(), student.double(), x.double(), training=False) < 1e-6


@pytest.mark.slow
def test_a_deeper_vit():
    torch.manual_seed(0)
    build = lambda layers: torchvision.models.VisionTransformer(64, 16, layers, 12, 768, 3072, num_classes=6)  # noqa: E731
    teacher = speaking(build(12))
    check_grown(growth.deepen(teacher, images(64, 2), build(24)), teacher, images(64, 2))


def test_to_the_constructors_deeper_inception():
    """Two more vertical-horizontal pairs at every pair, under the constructor's own names."""
    torch.manual_seed(0)
    teacher, x = perturb(rect()).double(), images().double()
    before = state_of(teacher)
    target = rect(2)
    student = growth.deepen(teacher, x, target).student
    check_exact(teacher, student, x)
    check_exact(teacher, student, images(seed=9).double(), train=False)  # eval mode: exact on any batch
    assert {n: t.shape for n, t in student.state_dict().items()} == {n: t.shape for n, t in target.state_dict().items()}
    assert same_state(state_of(teacher), before) and not storages(teacher) & storages(student)


def test_students_that_do_not_fit_are_named():
    teacher, x = rect(), images()
    with pytest.raises(GrowthError, match="widen them first"):
        growth.deepen(teacher, x, rect(2, width=0.4))
    with pytest.raises(GrowthError, match="no layer that the teacher lacks"):
        growth.deepen(teacher, x, rect())
    with pytest.raises(GrowthError, match="lacks the teacher's"):
        growth.deepen(teacher, x, models.build("inception_bn", 6, stem="small"))


class Adds(nn.Module):
    """Residual blocks in a row, behind a stem."""

    def __init__(self, n):
        super().__init__()
        self.stem, self.blocks, self.out = (
            nn.Linear(3, 4),
            nn.ModuleList(nn.Linear(4, 4) for _ in range(n)),
            nn.Linear(4, 2),
        )

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = x + torch.tanh(block(x))
        return self.out(x)


def test_a_constructors_student_gets_the_teachers_weights_type_mode_and_what_is_frozen():
    torch.manual_seed(0)
    teacher, given = Adds(1).double().eval(), Adds(3)
    teacher.stem.weight.requires_grad_(False)
    before, x = (state_of(teacher), state_of(given)), torch.randn(5, 3).double()
    student, change = to_student(teacher, given, x)
    assert same_state(state_of(teacher), before[0]) and same_state(state_of(given), before[1])
    assert {p.dtype for p in student.parameters()} == {torch.float64} and not student.training
    assert not student.stem.weight.requires_grad and student.blocks[1].weight.requires_grad
    assert (change.layers, change.blocks, change.renamed) == ([], ["blocks.1", "blocks.2"], {})
    assert change.zeros == [f"blocks.{n}.{kind}" for n in (1, 2) for kind in ("weight", "bias")]
    assert torch.equal(student.blocks[0].weight, teacher.blocks[0].weight) and not student.blocks[2].weight.any()
    torch.testing.assert_close(student(x), teacher(x), rtol=0, atol=0)


def test_new_layers_that_are_no_branch_are_named_and_left_for_the_identity():
    torch.manual_seed(0)
    teacher, given = perturb(stage(nn.ReLU)), stage(nn.ReLU, 1)
    student, change = to_student(teacher, given, images(8))
    assert change.layers == ["0.3", "0.4"] and not change.zeros and not change.blocks and not change.sources
    assert torch.equal(student[0][3].weight, given[0][3].weight), "as the constructor made it"


def test_numbers_of_modules_without_weights_become_the_teachers():
    teacher = nn.Sequential(nn.Dropout(0.1), nn.LeakyReLU(0.2), nn.BatchNorm1d(2, eps=0.5), nn.Dropout(0.3))
    student = nn.Sequential(nn.Dropout(0.5), nn.LeakyReLU(0.5), nn.BatchNorm1d(2, eps=0.1), nn.ReLU(), nn.Dropout(0.9))
    same_survival_rates(teacher, student)
    assert (student[0].p, student[1].negative_slope, student[2].eps, student[4].p) == (0.1, 0.2, 0.1, 0.9)


def test_a_failure_is_explained_where_there_is_more_to_say():
    x = torch.randn(5, 3)
    assert explained("it failed", Adds(2), Change([]), x) == "it failed"
    net = nn.Sequential(nn.Linear(3, 4), nn.GELU(), nn.Linear(4, 4), nn.GELU(), nn.Linear(4, 2))
    assert explained("it failed", net, Change(["2"]), x).startswith(
        "the new layer '2' cannot be an identity: it feeds gelu"
    )
    moved = nn.Sequential(nn.Identity(), nn.Linear(3, 3))
    words = "the new block '1' changes what passes through it beside its branch: it failed"
    assert explained("it failed", moved, Change([], blocks=["0", "1"]), x) == words
    torch.nn.init.eye_(moved[1].weight), torch.nn.init.zeros_(moved[1].bias)
    assert explained("it failed", moved, Change([], blocks=["0", "1"]), x) == "it failed"


class PostNorm(nn.Module):
    def __init__(self, depth):
        super().__init__()
        self.blocks = nn.ModuleList(nn.TransformerEncoderLayer(8, 2, 12, batch_first=True) for _ in range(depth))

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return x


def test_a_block_that_ends_in_a_norm_has_no_zero_form():
    torch.manual_seed(0)
    words = r"the new block 'blocks.1' has no zero form: it ends in a norm behind the addition \('blocks.1.norm2'\)"
    with pytest.raises(GrowthError, match=words):
        growth.deepen(PostNorm(1), torch.randn(2, 5, 8), PostNorm(2))
