"""Identity layers put behind named modules, under all names that these have."""

import pytest
import torch
import torchvision
from nets import check_exact, images, perturb, same_state, state_of, storages
from torch import nn

from n2n_cli import growth
from n2n_cli.growth import GrowthError
from n2n_cli.growth.depth.insert import insert, insertions, moved, sources


def test_named_sites_only():
    torch.manual_seed(0)
    teacher, x = perturb(torchvision.models.resnet18(num_classes=6)).double(), images().double()
    student = growth.deepen(teacher, x, ["layer1.*.conv1"], pairs=2).student
    check_exact(teacher, student, x)
    new = [name for name, _ in student.named_parameters() if name not in dict(teacher.named_parameters())]
    assert {name.split(".")[0] for name in new} == {"layer1"}
    assert (
        sum(isinstance(m, nn.Conv2d) for m in student.modules())
        == sum(isinstance(m, nn.Conv2d) for m in teacher.modules()) + 4
    )


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
    check_exact(teacher, student, x)
    assert (
        isinstance(student, Shared) and isinstance(student.na, nn.Sequential) and isinstance(student.nb, nn.Sequential)
    )


def test_renamed_tells_where_every_tensor_went():
    teacher = perturb(torchvision.models.resnet18(num_classes=6))
    grown = growth.deepen(teacher, images(), ["layer1.*.conv1", "conv1"])
    ours = grown.student.state_dict()
    assert set(grown.renamed) == {
        n for n in teacher.state_dict() if n.startswith(("bn1.", "layer1.0.bn1", "layer1.1.bn1"))
    }
    for name, tensor in teacher.state_dict().items():
        assert torch.equal(ours[grown.renamed.get(name, name)], tensor)


def small():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, (3, 1), padding=(1, 0)), nn.BatchNorm2d(4, eps=1e-3, momentum=0.2), nn.ReLU(),
        nn.Conv2d(4, 4, (1, 3), padding=(0, 1)), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 6, 2), nn.ReLU6(),
        nn.Flatten(),
    )  # fmt: skip


def test_insertions_are_plain_data():
    net, x = small(), images(8)
    pair = {
        "after": "4",
        "behind": [["0", "1"], ["3", "4"]],
        "kernels": [[3, 1], [1, 3]] * 2,
        "channels": 4,
        "groups": 1,
        "activation": "relu",
    }
    assert insertions(net, x, None, 2) == [pair | {"norm": "BatchNorm2d"}]
    (last,) = insertions(net, x, ["6"], 1)
    numbers = last.pop("activation")
    behind = {"after": "6", "behind": [["6", "6"]]}
    assert last == behind | {"kernels": [[3, 3]], "channels": 6, "groups": 1, "norm": None}, "3 for an even kernel"
    assert numbers == "relu6" or numbers[0] == "hardtanh"


def test_patterns_name_layers_or_norms_once_each():
    net, x = small(), images(8)
    assert [plan["after"] for plan in insertions(net, x, ["0", "1", "[06]"], 1)] == ["1", "6"]
    with pytest.raises(GrowthError, match="no layer matches '9'"):
        insertions(net, x, ["0", "9"], 1)
    with pytest.raises(GrowthError, match="Flatten has no place for an identity layer"):
        insertions(nn.Flatten(), x, None, 1)


def test_each_module_becomes_itself_and_the_identities_behind_it():
    net, x = small().eval(), images(8)
    before = state_of(net)
    student, new = insert(net, insertions(net, x, ["0", "6"], 2))
    kinds = [type(module).__name__ for module in student[1]]
    assert kinds == ["BatchNorm2d", *["ReLU", "Conv2d", "BatchNorm2d"] * 2]
    assert new == ["1.2", "1.3", "1.5", "1.6", "6.2", "6.4"] and student.training is False
    assert (student[1][3].eps, student[1][3].momentum) == (1e-3, 0.2) and student[1][2].bias is None
    assert same_state(state_of(net), before) and not storages(net) & storages(student)
    for name, to in moved(net, insertions(net, x, ["0", "6"], 2)).items():
        assert torch.equal(student.state_dict()[to], before[name])


def test_new_layers_are_of_the_teachers_type():
    net = small().double()
    student, _ = insert(net, insertions(net, images(8).double(), ["0"], 1))
    assert {p.dtype for p in student.parameters()} == {torch.float64}


def test_recipes_of_before_say_depthwise_for_groups():
    plan = {"after": "1", "kernels": [[3, 3]], "channels": 4, "activation": "relu", "norm": None}
    for depthwise, groups in ((True, 4), (False, 1)):
        assert insert(small(), [plan | {"depthwise": depthwise}])[0][1][2].groups == groups


def test_sources_are_those_of_maxout_layers_alone():
    linear = {"groups": 1, "norm": None}
    plans = [
        linear | {"after": "0", "kernels": [[], []], "channels": 6, "activation": ["maxout", 2, -1, True]},
        linear | {"after": "1", "kernels": [[]], "channels": 3, "activation": "relu"},
    ]
    student, _ = insert(nn.Sequential(nn.Linear(3, 6), nn.Linear(6, 3)), plans)
    found = sources(student, plans)
    assert list(found) == ["0.2", "0.4"] and found["0.2"].tolist() == [0, 0, 1, 1, 2, 2]
