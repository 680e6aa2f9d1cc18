"""A user's own operation: held and named before growth knows of it, widened exactly after."""

import pytest
import torch
from nets import double_gap
from torch import Tensor, nn

from n2n_cli import growth
from n2n_cli.growth import GrowthError, Operation
from n2n_cli.growth.groups.operations import OPERATIONS
from n2n_cli.growth.groups.rules import elementwise


@torch.library.custom_op("n2n_tests::cube", mutates_args=())
def cube(x: Tensor) -> Tensor:
    return x**3


@cube.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


class Cubed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.ops.n2n_tests.cube(self.first(x)))


@pytest.fixture(autouse=True)
def _forgotten(monkeypatch):
    monkeypatch.setattr(OPERATIONS, "rows", dict(OPERATIONS.rows))


@pytest.mark.parametrize("operation", [cube, torch.ops.n2n_tests.cube, "n2n_tests::cube"])
@pytest.mark.parametrize("row", ["tanh", Operation(elementwise.pointwise)])
def test_a_registered_operation_is_widened_exactly(operation, row):
    net, x = Cubed().double(), torch.randn(5, 4, dtype=torch.float64)
    with pytest.raises(GrowthError, match=r"nothing of Cubed .* cube at the top module: no rule for this operation"):
        growth.widen(net, x, 1.5)
    growth.register(operation, row)
    grown = growth.widen(net, x, 1.5)
    assert grown.student.first.out_features == 9 and not grown.notes
    assert double_gap(net, grown.student, x) < 1e-10


def test_a_wrong_row_is_held_back_by_the_proof():
    """A row that promises too much is no way to a wrong student: a softmax that calls itself pointwise."""

    @torch.library.custom_op("n2n_tests::share", mutates_args=())
    def share(x: Tensor) -> Tensor:
        return x.softmax(-1)

    share.register_fake(lambda x: torch.empty_like(x))

    class Shared(Cubed):
        def forward(self, x: Tensor) -> Tensor:
            return self.second(torch.ops.n2n_tests.share(self.first(x)))

    growth.register("n2n_tests::share", "tanh")
    with pytest.raises(GrowthError, match="nothing of Shared can grow"):
        growth.widen(Shared().double(), torch.randn(5, 4).double(), 2.0)


@pytest.mark.parametrize(
    ("operation", "row", "said"),
    [
        ("cube", "tanh", "expected 'my_library::name'"),
        ("aten::tanh", "tanh", "no operation of a library of yours"),
        (torch.tanh, "tanh", "is no operation"),
        ("n2n_tests::cube", "tahn", "did you mean 'tanh'"),
        ("n2n_tests::cube", 3, "expected an Operation or a name"),
        ("n2n_tests::cube::x", "tanh", "expected 'my_library::name'"),
        ("n2n_tests ::cube", "tanh", "expected 'my_library::name'"),
        ("n2n_tests::cube", Operation("tanh"), "rule is 'tanh': expected a function"),
        ("n2n_tests::cube", Operation(elementwise.same, zero="nope"), "zero is 'nope': expected \"first\""),
        ("n2n_tests::cube", Operation(elementwise.same, weight="1"), "weight is '1': expected the number"),
        ("n2n_tests::cube", Operation(elementwise.same, idempotent=nn.ReLU()), "expected a module class"),
    ],
)
def test_what_cannot_be_registered_is_refused(operation, row, said):
    with pytest.raises(GrowthError, match=said) as caught:
        growth.register(operation, row)
    assert "\n" not in str(caught.value)
