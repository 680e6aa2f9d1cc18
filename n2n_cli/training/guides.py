"""What a student learns from its teacher beside the labels: the neighbours of Net2Net that the paper names."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from n2n_cli.errors import N2NError
from n2n_cli.training.evaluate import main_output


class Guide(ABC):
    """A teacher, in eval mode and never trained; ``heads``: layers that are trained beside the student and then
    forgotten."""

    def __init__(self, teacher: nn.Module) -> None:
        self.teacher = teacher.eval().requires_grad_(False)
        self.heads = nn.ModuleList()

    def to(self, device: torch.device, memory_format: torch.memory_format) -> None:
        self.teacher.to(device).to(memory_format=memory_format)
        self.heads.to(device)

    def read(self) -> list[Tensor]:
        """What the heads make of the student's forward pass that has just been."""
        return []

    @abstractmethod
    def loss(self, loss: Tensor, images: Tensor, logits: Tensor, read: list[Tensor]) -> Tensor:
        """The loss of a batch: that of its labels, and the guide's. ``images``: normalised, as the student sees them;
        ``logits`` ``[N, classes]``; ``read``: see `read`."""


class Guided(nn.Module):
    """A network together with its guide's heads, so that the gradients of both are averaged over ranks."""

    def __init__(self, model: nn.Module, guide: Guide) -> None:
        super().__init__()
        self.model, self.heads, self._read = model, guide.heads, guide.read

    def forward(self, images: Tensor) -> tuple[Any, list[Tensor]]:
        return self.model(images), self._read()


class Distillation(Guide):
    """Softened outputs as further labels (Hinton, Vinyals & Dean 2015): ``weight`` of the loss is T^2 times the
    divergence of the student's outputs from the teacher's, both at ``temperature`` T; the rest is the labels'."""

    def __init__(self, teacher: nn.Module, *, temperature: float, weight: float) -> None:
        super().__init__(teacher)
        self.temperature, self.weight = temperature, weight

    def loss(self, loss: Tensor, images: Tensor, logits: Tensor, read: list[Tensor]) -> Tensor:
        with torch.no_grad():
            theirs = main_output(self.teacher(images))[0].float() / self.temperature
        ours = F.log_softmax(logits.float() / self.temperature, 1)
        soft = F.kl_div(ours, theirs.log_softmax(1), reduction="batchmean", log_target=True)
        return (1 - self.weight) * loss + self.weight * self.temperature**2 * soft


class FeaturePrediction(Guide):
    """Extra 1 x 1 convolutions predict hidden layers of the teacher from the student's of the same names (paper,
    section 2.1, after FitNets): ``weight`` times the squared error, over the layer's mean square on ``example``, is
    added to the loss.

    Args:
        teacher, student: networks of one kind.
        example: normalised images ``[N, 3, H, W]``, to find and to measure the layers with.
        hidden_layers: how many of those that both have, evenly spaced from the input to the output.
        weight: of the added loss.
        seed: of the heads.

    Raises:
        N2NError: too few layers of the same name and image size.
    """

    def __init__(
        self,
        teacher: nn.Module,
        student: nn.Module,
        example: Tensor,
        *,
        hidden_layers: int,
        weight: float,
        seed: int,
    ) -> None:
        super().__init__(teacher)
        self.weight = weight
        looked = [_looked(net, example) for net in (self.teacher, student)]
        shapes = [{name: shape for name, (shape, _) in found.items()} for found in looked]
        common = [name for name, shape in shapes[0].items() if name in shapes[1] and shapes[1][name][2:] == shape[2:]]
        if len(common) < hidden_layers:
            raise N2NError(
                f"op.hidden_layers: {hidden_layers} are asked for, and teacher and student have {len(common)} hidden "
                "layers of the same name and image size"
            )
        self.names = [common[(2 * i + 1) * len(common) // (2 * hidden_layers)] for i in range(hidden_layers)]
        # Not that of each batch: ranks see parts of it.
        self._squares = {name: max(looked[0][name][1], 1e-12) for name in self.names}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.heads = nn.ModuleList(nn.Conv2d(shapes[1][name][1], shapes[0][name][1], 1) for name in self.names)
        self._seen: dict[tuple[str, str], Tensor] = {}
        for who, net in (("teacher", self.teacher), ("student", student)):
            for name in self.names:
                net.get_submodule(name).register_forward_hook(self._look(who, name))

    def _look(self, who: str, name: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
            if who == "teacher" or module.training:  # not in an evaluation
                self._seen[who, name] = output

        return hook

    def read(self) -> list[Tensor]:
        return [head(self._seen.pop(("student", name))) for name, head in zip(self.names, self.heads, strict=True)]

    def loss(self, loss: Tensor, images: Tensor, logits: Tensor, read: list[Tensor]) -> Tensor:
        with torch.no_grad():
            self.teacher(images)
        for name, told in zip(self.names, read, strict=True):
            wanted = self._seen.pop(("teacher", name)).float()
            error = F.mse_loss(told.float(), wanted) / self._squares[name]
            loss = loss + self.weight / len(read) * error
        return loss


def _looked(net: nn.Module, example: Tensor) -> dict[str, tuple[torch.Size, float]]:
    """Shape and mean square of the layers' results that are images of features, in the order in which they are made."""
    found: dict[str, tuple[torch.Size, float]] = {}
    hooks = []
    for name, module in net.named_modules():
        if name and not list(module.children()):

            def note(module: nn.Module, inputs: Any, output: Any, name: str = name) -> None:
                if isinstance(output, Tensor) and output.ndim == 4:
                    found.setdefault(name, (output.shape, float(output.square().mean())))

            hooks.append(module.register_forward_hook(note))
    training = [module for module in net.modules() if module.training]
    try:
        with torch.no_grad():  # no inference mode: see `evaluate`
            net.eval()(example)
    finally:
        for module in training:
            module.training = True
        for hook in hooks:
            hook.remove()
    return found
