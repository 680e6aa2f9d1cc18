"""A batch norm goes into a convolution only where nothing else sees what lies between them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from n2n_cli import models
from n2n_cli.training.fold import folded

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


class Net(nn.Module):
    """Two convolutions of the same shapes and two batch norms, put together by a function."""

    def __init__(self, join: Callable[[Net, Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b = (nn.Conv2d(3, 3, 3, padding=1, bias=bias) for bias in (False, True))
        self.norm, self.other = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
        self.relu, self.join = nn.ReLU(inplace=True), join

    def forward(self, x: Tensor) -> Tensor:
        return self.join(self, x)


def trained(net: nn.Module, size: int = 9) -> nn.Module:
    """In eval mode, its batch norms no identities."""
    torch.manual_seed(0)
    for module in net.modules():
        if isinstance(module, NORMS):
            for tensor in (module.weight, module.running_var):
                nn.init.uniform_(tensor, 0.5, 2.0)
            for tensor in (module.bias, module.running_mean):
                nn.init.normal_(tensor)
    return net.eval()


def left(net: nn.Module) -> int:
    return sum(isinstance(module, NORMS) for module in net.modules())


def same(net: nn.Module, size: int = 9) -> tuple[int, nn.Module]:
    """How many batch norms are left in the folded copy, which gives the outputs of ``net``; and the copy."""
    images = torch.randn(3, 3, size, size)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    faster = folded(net, images[:2])
    with torch.inference_mode():
        expected, found = net(images), faster(images)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * float(expected.std()))
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for n in (net, faster) for m in n.modules())
    return left(faster), faster


def test_a_chain_is_folded_whole() -> None:
    net = trained(Net(lambda n, x: n.other(n.b(F.relu(n.norm(n.a(x)))))))
    assert same(net)[0] == 0 and left(net) == 2


def read_twice(n: Net, x: Tensor) -> Tensor:
    y = n.a(x)
    return n.norm(y) + y


CASES: dict[str, Callable[[Net, Tensor], Tensor]] = {
    "read twice": read_twice,
    "a view of it read": lambda n, x: (y := n.a(x)) is not None and n.norm(y) + y.flatten(2).mean(2)[..., None, None],
    "another operation between": lambda n, x: n.norm(n.relu(n.a(x))),
    "norm first": lambda n, x: n.a(n.norm(x)),
    "a sum": lambda n, x: n.norm(n.a(x) + n.b(x)),
    "convolution called twice": lambda n, x: n.other(n.a(n.norm(n.a(x)))),
    "code that reads the norm's own numbers": lambda n, x: n.norm(n.a(x)) * n.norm.num_features,
    "norm called twice": lambda n, x: n.norm(n.b(n.norm(n.a(x)))),
}


@pytest.mark.parametrize("join", CASES.values(), ids=CASES.keys())
def test_what_something_else_reads_stays(join: Callable[[Net, Tensor], Tensor]) -> None:
    assert same(trained(Net(join)))[0] == 2


def test_folding_all_the_same_would_be_wrong() -> None:
    """The control: the pair of ``read_twice``, folded by force."""
    net, x = trained(Net(read_twice)), torch.randn(2, 3, 9, 9)
    forced = trained(Net(lambda n, y: n.a(y) + n.a(y)))
    forced.a = fuse_conv_bn_eval(net.a, net.norm)  # type: ignore[arg-type]
    assert not torch.allclose(net(x), forced(x), atol=0.1)


def test_norms_and_convolutions_of_another_kind_stay() -> None:
    def chain() -> Net:
        return trained(Net(lambda n, x: n.norm(n.a(x))))  # type: ignore[return-value]

    training, hooked, renormed, patched = chain(), chain(), chain(), chain()
    training.norm.train()
    hooked.a.register_forward_hook(lambda module, args, out: 2 * out)
    nn.utils.parametrizations.weight_norm(renormed.a)
    patched.norm.forward = lambda x: 2 * x  # type: ignore[method-assign]
    images = torch.randn(2, 3, 9, 9)
    assert [left(folded(net, images)) for net in (chain(), training, hooked, renormed, patched)] == [1, 2, 2, 2, 2]


@pytest.mark.parametrize(
    ("build", "expected"),
    [
        (lambda: models.build("inception_bn_tiny", num_classes=8), 0),
        (lambda: torchvision.models.resnet18(num_classes=8), 0),
        (lambda: torchvision.models.shufflenet_v2_x0_5(num_classes=8), 0),
        (lambda: torchvision.models.DenseNet(4, (2, 2), 8, num_classes=8), 6),  # 4 + 2: norm, ReLU, convolution
    ],
)
def test_networks(build: Callable[[], nn.Module], expected: int) -> None:
    assert same(trained(build()), 64)[0] == expected


def test_a_network_that_keeps_what_has_no_copy_stays() -> None:
    def join(n: Net, x: Tensor) -> Tensor:
        out = n.norm(n.a(x))
        if torch.is_grad_enabled():
            n.loss = out.sum()
        return out

    net = trained(Net(join))
    net(torch.randn(2, 3, 9, 9))
    assert folded(net, torch.randn(2, 3, 9, 9)) is net
    del net.loss
    assert folded(net, torch.randn(2, 3, 9, 9)) is not net


def test_a_norm_called_by_keyword_is_folded() -> None:
    assert same(trained(Net(lambda n, x: n.norm(input=n.a(x)))))[0] == 1


def test_what_a_network_keeps_can_be_trained_with() -> None:
    def join(n: Net, x: Tensor) -> Tensor:
        if not hasattr(n, "table"):
            n.table = torch.linspace(1, 2, 9)
        return n.norm(n.a(x)) * n.table

    net = trained(Net(join))
    assert folded(net, torch.randn(2, 3, 9, 9)) is not net
    net.train()(torch.randn(2, 3, 9, 9)).sum().backward()
