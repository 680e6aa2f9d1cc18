"""Ways to start new layers: branches that add nothing, copies of their neighbours, identities that are wider."""

import pytest
import torch
import zoo_checks as zoo
from families import FAMILIES, HEAVY
from nets import check_exact, images, mlp, perturb
from steps import OPTIMIZERS, batch, gap, network, train
from torch import nn
from torchvision.models import resnet
from torchvision.models.vision_transformer import VisionTransformer

from n2n_cli import growth, lineage, models
from n2n_cli.growth import GrowthError, deeper
from n2n_cli.growth.depth.branch import Branch

IDEMPOTENT_OR_NOT = sorted(set(FAMILIES) - HEAVY)


def narrow_resnet(blocks: list[int]) -> nn.Module:
    return resnet.ResNet(resnet.BasicBlock, blocks, num_classes=6)


@pytest.mark.parametrize("family", IDEMPOTENT_OR_NOT)
def test_branches_that_add_nothing_fit_into_every_family(family):
    build, size = FAMILIES[family]
    teacher, x = zoo.teacher_of(build(), size)
    teacher, x = teacher.double(), x.double()
    student = growth.deepen(teacher, x, new="zero").student
    assert any(isinstance(module, Branch) for module in student.modules())
    assert zoo.count(student) > zoo.count(teacher)
    assert growth.function_gap(teacher, student, x) <= 1e-10  # the worse of eval and train mode


def test_branches_stand_before_activations_that_are_not_idempotent():
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.SiLU(), nn.Conv2d(8, 8, 3), nn.GELU(), nn.Flatten())
    teacher, x = nn.Sequential(net, nn.Linear(8 * 36, 5)).double(), images(8).double()
    grown = growth.deepen(teacher, x, new="zero", pairs=2)
    assert [group.layers for group in grown.groups] == [["0.0.1"], ["0.0.2"], ["0.2.1"], ["0.2.2"]]  # not the logits'
    check_exact(teacher, grown.student, x)
    again = deeper.rebuild(teacher, grown.recipe)
    again.load_state_dict(grown.student.state_dict())
    assert growth.function_gap(grown.student, again, x) == 0


def test_a_branch_that_is_not_closed_is_refused(monkeypatch):
    monkeypatch.setattr(deeper, "close", lambda model, path: [])
    with pytest.raises(GrowthError, match=r"'bn1.1' changes what passes through it"):
        growth.deepen(perturb(narrow_resnet([1, 1, 1, 1])), images(32), new="zero")


def test_a_seed_makes_the_same_student_whatever_was_drawn_before():
    teacher, x = network("conv"), batch(torch.Generator().manual_seed(1))[0]
    torch.manual_seed(5)
    states = [growth.deepen(teacher, x, new="zero", seed=seed).student.state_dict() for seed in (3, 3, 4)]
    assert torch.equal(torch.rand(2), torch.rand(2, generator=torch.Generator().manual_seed(5)))
    same = [all(torch.equal(tensor, other[name]) for name, tensor in states[0].items()) for other in states[1:]]
    assert same == [True, False]


def test_a_closed_branch_learns():
    teacher, x = network("dense"), batch(torch.Generator().manual_seed(1))[0]
    student = growth.deepen(teacher, x, new="zero", pairs=2).student
    before = {name: p.clone() for name, p in student.named_parameters()}
    train(student, torch.optim.SGD(student.parameters(), 0.05), 2, seed=1)
    assert all(not torch.equal(before[name], p) for name, p in student.named_parameters())


def test_a_constructors_blocks_start_closed_and_its_other_layers_are_refused():
    teacher, x = perturb(narrow_resnet([1, 1, 1, 1])).double(), images(32).double()
    check_exact(teacher, growth.deepen(teacher, x, narrow_resnet([2, 1, 2, 1]), new="zero").student, x)
    rect = models.build("inception_rect_tiny", 6, stem="small")
    more = models.build("inception_rect_tiny", 6, stem="small", extra_pairs=1)
    with pytest.raises(GrowthError, match=r"new=zero: the new layer '.*extra1_vertical.conv' stands in no residual"):
        growth.deepen(rect, images(32), more, new="zero")


def test_stacked_blocks_copy_those_beside_them():
    teacher, x = perturb(narrow_resnet([1, 2, 1, 1])).double(), images(32).double()
    grown = growth.deepen(teacher, x, narrow_resnet([3, 4, 1, 1]), new="stack")
    copied = {group.layers[0] for group in grown.groups}
    assert copied == {"layer1.1", "layer1.2", "layer2.2", "layer2.3"}
    for path in copied:
        source = "layer1.0" if path.startswith("layer1") else "layer2.1"
        ours, theirs = grown.student.get_submodule(path).state_dict(), teacher.get_submodule(source).state_dict()
        assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())
    assert growth.function_gap(teacher, grown.student, x) > 1e-3
    assert grown.gap.kind == "stacked, not exact" and "another function" in grown.notes[0]


def test_stacked_pairs_copy_pairs_and_read_the_inputs_in_turn():
    teacher = perturb(models.build("inception_rect_tiny", 6, stem="small"))
    more = models.build("inception_rect_tiny", 6, stem="small", extra_pairs=2)
    student = growth.deepen(teacher, images(32), more, new="stack").student
    pair = student.inception[0].branches.pair
    assert torch.equal(pair.extra2_horizontal.conv.weight, pair.horizontal.conv.weight)
    inputs = torch.arange(pair.extra1_vertical.conv.in_channels) % pair.vertical.conv.in_channels
    assert torch.equal(pair.extra2_vertical.conv.weight, pair.vertical.conv.weight[:, inputs])
    assert torch.equal(pair.extra1_vertical.bn.running_var, pair.vertical.bn.running_var)


def test_stacked_layers_copy_the_one_they_stand_behind():
    teacher = mlp()
    grown = growth.deepen(teacher, torch.randn(4, 10), new="stack", pairs=2)
    layers = [m for m in grown.student.modules() if isinstance(m, nn.Linear)]
    assert torch.equal(layers[1].weight, layers[2].weight) and torch.equal(layers[0].bias, layers[1].bias)
    again = deeper.rebuild(teacher, grown.recipe)
    again.load_state_dict(grown.student.state_dict())
    assert growth.function_gap(grown.student, again, torch.randn(4, 10)) == 0


def test_encoder_layers_are_stacked():
    vit = {n: VisionTransformer(32, 8, n, 2, 16, 32, num_classes=5) for n in (1, 3)}
    student = growth.deepen(vit[1], images(32), vit[3], new="stack").student
    first, *others = student.encoder.layers
    assert all(torch.equal(first.mlp[0].weight, other.mlp[0].weight) for other in others)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"new": "stak"}, r"new is 'stak': expected one of identity, zero, stack \(did you mean 'stack'\?\)"),
        ({"new": "stack", "width": 2.0}, "width is for identity layers, and new=stack makes none"),
        ({"new": "zero", "activation": False}, "activation=false is for identity layers, and new=zero makes none"),
        ({"width": 0.5}, "width is 0.5: expected a factor or a number of units, 1 or more"),
        ({"width": 3}, "width: 3 units are fewer than the 8 of"),
    ],
)
def test_wrong_ways_are_refused(arguments, words):
    with pytest.raises(GrowthError, match=words):
        growth.deepen(models.build("inception_bn_tiny", 6, stem="small"), images(32), **arguments)


def test_a_stack_needs_a_neighbour():
    teacher, more = (models.build("inception_bn_tiny", 6, stem="small", extra_pairs=n) for n in (0, 2))
    with pytest.raises(
        GrowthError, match=r"stack: beside '.*extra1_vertical' stands no layer or block like it to copy"
    ):
        growth.deepen(teacher, images(32), more, new="stack")
    even = nn.Sequential(nn.Conv2d(3, 4, 2), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 49, 2))
    with pytest.raises(GrowthError, match=r"stack: the new layer behind '0' is not like '0'"):
        growth.deepen(even, images(8), new="stack")


@pytest.mark.parametrize("width", [1.5, 24])
def test_wider_new_layers_are_exact_and_alone(width):
    teacher = perturb(models.build("inception_rect_tiny", 6, stem="small")).double()
    x = images(32).double()
    grown = growth.deepen(teacher, x, width=width)
    check_exact(teacher, grown.student, x)
    new = {name: p for name, p in grown.student.named_parameters() if name in grown.recipe["wider"]["shapes"]}
    old = set(grown.renamed.values()) | {name for name, _ in teacher.named_parameters()}
    made = [p.shape[0] for name, p in new.items() if name not in old and p.ndim == 4]
    assert made and all(n == 24 or n in (24, 30) for n in made)  # of 16 and of 20 units
    grew = [name for name in new if name in old]
    for name in grew:  # the teacher's layers read more, and make what they made
        before = next(o for o in [k for k, v in grown.renamed.items() if v == name] or [name])
        assert new[name].shape[0] == teacher.get_parameter(before).shape[0]
    assert growth.duplicates(grown.student, x).equal > 0  # so far: unequal shares will part them
    again = deeper.rebuild(teacher, grown.recipe)
    again.load_state_dict(grown.student.state_dict())
    assert growth.function_gap(grown.student, again, x) == 0
    steps = lineage.grow(lineage.start("inception_rect_tiny", 6, stem="small"), grown.recipe)
    lineage.build(steps).load_state_dict(grown.student.state_dict())
    assert "new layers behind 4 layers, of width" in lineage.describe(steps)[-1]


def test_copies_in_wider_new_layers_part():
    teacher, x = network("dense"), batch(torch.Generator().manual_seed(1))[0]
    student = growth.deepen(teacher, x, width=2.0).student
    assert growth.duplicates(student, x).equal == 6
    train(student, torch.optim.SGD(student.parameters(), 0.05), 3, seed=1)
    assert growth.duplicates(student, x).equal == 0


def test_new_layers_in_a_stream_of_sums_stay_as_they_are():
    teacher = perturb(narrow_resnet([1, 1, 1, 1]))
    grown = growth.deepen(teacher, images(32), width=1.5)
    assert any(note.startswith("width: 'bn1.2' grows only with 'layer1.0.") for note in grown.notes)
    with pytest.raises(GrowthError, match=r"no new layer can be wider by itself: 'bn1.2' grows only with 'layer1.0."):
        growth.deepen(teacher, images(32), ["conv1"], width=1.5)


@pytest.mark.parametrize("name", ["sgd momentum", "rmsprop tensorflow", "adamw"])
def test_the_optimizer_goes_on_exactly_under_wider_new_layers(name):
    teacher, x = network("dense"), batch(torch.Generator().manual_seed(1))[0]
    old = OPTIMIZERS[name](teacher.parameters())
    train(teacher, old, 3, seed=2)
    deep, wide = (growth.deepen(teacher, x, width=width) for width in (None, 2.0))
    for grown in (deep, wide):
        optimizer = OPTIMIZERS[name](grown.student.parameters())
        growth.equivariant(old, teacher, optimizer, grown)
        train(grown.student, optimizer, 10, seed=3)
    assert gap(deep.student, wide.student) <= 1e-10


def test_stacked_layers_have_no_exact_optimizer():
    teacher, x = network("dense"), batch(torch.Generator().manual_seed(1))[0]
    grown = growth.deepen(teacher, x, new="stack")
    old, new = (torch.optim.SGD(model.parameters(), 0.1, momentum=0.9) for model in (teacher, grown.student))
    train(teacher, old, 2, seed=2)
    growth.carry(old, teacher, new, grown)
    with pytest.raises(GrowthError, match="equivariant: some units of the student are no copies"):
        growth.equivariant(old, teacher, new, grown)


def test_ways_compose_through_checkpoints():
    torch.manual_seed(0)
    model, x = models.build("inception_rect_tiny", 6, stem="small").double(), images(32).double()
    steps = lineage.start("inception_rect_tiny", 6, stem="small")
    first = model
    for grow in (
        lambda net: growth.widen(net, x, 1.5, new="fresh"),
        lambda net: growth.deepen(net, x, new="zero"),
        lambda net: growth.widen(net, x, 1.5, split="unequal"),
        lambda net: growth.deepen(net, x, ["*3a*pair.horizontal*"], width=1.5),
    ):
        grown = grow(model)
        steps = lineage.grow(steps, grown.recipe)
        loaded = lineage.build(steps).double()
        loaded.load_state_dict(grown.student.state_dict())
        model = loaded
    assert growth.function_gap(first, model, x, training=False) <= 1e-10


class Hidden(nn.Module):
    """A layer that is called past its name: what is put in its place is never run."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.c = nn.Linear(4, 6), nn.Linear(6, 3)
        self.layers = [self.a]

    def forward(self, x):
        return self.c(self.layers[0](x).relu())


class Low(nn.Linear):
    """A layer of weights that holds others."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.down, self.up = nn.Linear(inputs, 2, bias=False), nn.Linear(2, outputs, bias=False)

    def forward(self, x):
        return super().forward(x) + self.up(self.down(x))


class OwnNorm(nn.BatchNorm1d):
    def __init__(self, features: int) -> None:
        super().__init__(features)


FEATURES = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("new", ["identity", "zero", "stack"])
def test_new_layers_that_are_never_run_are_refused(new):
    with pytest.raises(GrowthError, match=r"the new layer 'a.*' was not reached in the forward pass"):
        growth.deepen(Hidden(), FEATURES, new=new)


@pytest.mark.parametrize("arguments", [{}, {"new": "zero"}, {"activation": False}, {"width": 1.5}])
def test_layers_within_layers_and_norms_of_a_users_own(arguments):
    torch.manual_seed(0)
    net = nn.Sequential(Low(4, 6), nn.ReLU(), nn.Linear(6, 6), OwnNorm(6), nn.ReLU(), nn.Linear(6, 3)).double()
    x = FEATURES.double()
    grown = growth.deepen(net, x, **arguments)
    assert growth.function_gap(net, grown.student, x) < 1e-10
    again = deeper.rebuild(net, grown.recipe)
    again.load_state_dict(grown.student.state_dict())
    assert growth.function_gap(grown.student, again, x) == 0


def test_copies_are_copies_behind_norms_without_weights_too():
    net = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4, elementwise_affine=False), nn.ReLU(), nn.Linear(4, 3))
    student = growth.deepen(net, FEATURES, new="stack").student
    assert torch.equal(student[1][2].weight, net[0].weight)
    for other in (nn.Conv1d(4, 4, 3, padding=2, dilation=2), nn.ConvTranspose1d(4, 4, 3, padding=1)):
        net = nn.Sequential(other, nn.ReLU(), nn.Flatten(), nn.Linear(32, 2))
        with pytest.raises(GrowthError, match="is not like '0'"):
            growth.deepen(net, torch.randn(2, 4, 8), ["0"], new="stack")


@pytest.mark.parametrize("width", [1.0, 1.01, 4])
def test_as_wide_as_below_is_no_growth(width):
    net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3))
    assert growth.deepen(net, FEATURES, width=width).student[0][2].out_features == 4


def test_half_a_unit_more_is_one_as_in_widen():
    net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3))
    assert growth.deepen(net, FEATURES, width=1.125).student[0][2].out_features == 5
    assert growth.widen(net, FEATURES, {"0": 1.125}).student[0].out_features == 5


def test_one_bare_layer_is_told_so():
    with pytest.raises(GrowthError, match=r"Linear is one layer: a new one stands behind it in nn.Sequential"):
        growth.deepen(nn.Linear(4, 4), FEATURES, activation=False)


def test_modes_of_modules_stay():
    net = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 3)).train()
    net[1].eval()
    for arguments in ({}, {"new": "zero"}):
        student = growth.deepen(net, FEATURES, **arguments).student
        frozen, rest = student[1][0], [m for m in student.modules() if m is not student[1][0]]
        assert not frozen.training and all(m.training for m in rest)
