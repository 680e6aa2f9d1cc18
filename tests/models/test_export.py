"""What other programs read back is what the network computes, or nothing is exported."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from families import FAMILIES
from torch import Tensor, nn

from n2n_cli.errors import N2NError
from n2n_cli.models.export import SUFFIXES, export

KINDS = [kind if kind != "onnx" else pytest.param(kind, marks=pytest.mark.slow) for kind in SUFFIXES]


def needs(kind: str) -> None:
    if kind == "onnx":
        pytest.importorskip("onnxruntime")


class Net(nn.Module):
    """A layer, and ``then`` on its output."""

    def __init__(self, then: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.layer, self.then = nn.Linear(12, 3), then

    def forward(self, x: Tensor) -> Tensor:
        return self.then(self.layer(x.flatten(1)))


def images(size: int = 2) -> Tensor:
    return torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", ["densenet", "vit"])
def test_read_back_it_is_the_network(family: str, kind: str) -> None:
    needs(kind)
    build, size = FAMILIES[family]
    model = build().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    made = export(model, images(size), kind)
    assert made.any_batch and made.difference <= (0 if kind == "safetensors" else 1e-5) and len(made.data) > 1000
    assert model.training and all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_file_of_the_whole_computation_needs_no_code_of_ours(tmp_path: Path) -> None:
    model = Net(torch.tanh).eval()
    (tmp_path / "net.pt2").write_bytes(export(model, images(), "torch_export").data)
    again = torch.export.load(tmp_path / "net.pt2").module()
    assert torch.equal(again(images()[:1]), model(images()[:1]))


def test_tied_weights_are_written_under_both_names() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 12), nn.Linear(12, 12))
    model[2].weight = model[1].weight
    assert export(model, images(), "safetensors").difference == 0


def test_a_network_that_counts_its_images_takes_one() -> None:
    model = Net(lambda x: x * (2 if len(x) == 1 else len(x) if len(x) % 2 else 1))
    assert not export(model, images(), "torch_export").any_batch


@pytest.mark.parametrize("kind", KINDS)
def test_other_logits_are_refused(kind: str) -> None:
    needs(kind)
    with pytest.raises(N2NError, match=r"^export: what was read back differs from the network by \S+ of its largest"):
        export(Net(lambda x: x + torch.rand(3)), images(), kind)
    with pytest.raises(N2NError, match="differs from the network by inf"):
        export(Net(lambda x: x * float("nan")), images(), kind)


def test_what_a_format_cannot_hold_is_named() -> None:
    with pytest.raises(N2NError, match=r"^export: torch_export cannot hold Net: .*data-dependent") as error:
        export(Net(lambda x: x if x.sum() > 0 else 2 * x), images(), "torch_export")
    assert "\n" not in str(error.value)


@pytest.mark.slow
def test_an_operation_that_onnx_has_not_is_named() -> None:
    pytest.importorskip("onnxruntime")
    with pytest.raises(N2NError, match=r"^export: onnx cannot hold Net: .*bessel_j0") as error:
        export(Net(torch.special.bessel_j0), images(), "onnx")
    assert "\n" not in str(error.value)
