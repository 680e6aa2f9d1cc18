"""Identity layers put behind named modules, under all names that these have."""

import torch
import torchvision
from nets import check_exact, images, perturb
from torch import nn

from n2n_cli import growth


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
