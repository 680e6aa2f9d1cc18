"""Plans that are a student: sizes from its shapes, or the tensor that cannot be reached."""

import pytest
import torch
import torchvision
from nets import images, resnet18

from n2n_cli import growth, models
from n2n_cli.growth import GrowthError


def test_unreachable_students_are_named():
    teacher, x = resnet18(), images(64, 2)
    with pytest.raises(GrowthError, match=r"'fc.weight' is \[7, 512\] in the teacher and \[9, 512\] in the student"):
        growth.widen(teacher, x, torchvision.models.resnet18(num_classes=9))
    with pytest.raises(GrowthError, match=r"'layer1.2.conv1.weight' is in the student alone"):
        growth.widen(teacher, x, torchvision.models.resnet34(num_classes=7))
    narrow = models.build("inception_bn", 7, width=0.3, stem="small")
    with pytest.raises(GrowthError, match="cannot be reached"):
        growth.widen(models.build("inception_bn", 7, width=0.5, stem="small"), images(32, 2), narrow)
    with pytest.raises(GrowthError, match="cannot record ResNet"):
        growth.widen(teacher, torch.randn(2, 4, 8, 8), 1.5)
