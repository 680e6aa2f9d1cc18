"""What an audit by strange networks found: each was wrong, silent or a traceback once."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from n2n_cli import growth
from n2n_cli.growth import GrowthError


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(10, 8), nn.ReLU(), nn.Linear(8, 3)).double()


class Positions(nn.Module):
    """Right-aligned positions: the example reaches 7 of 10."""

    def __init__(self):
        super().__init__()
        self.inp, self.out = nn.Linear(12, 8), nn.Linear(8, 3)
        self.pos = nn.Parameter(torch.randn(1, 10, 8))

    def forward(self, x):
        return self.out(F.relu(self.inp(x) + self.pos[:, -x.shape[1] :]))


def test_rows_that_the_example_does_not_reach_stay():
    torch.manual_seed(0)
    model = Positions().double()
    grown = growth.widen(model, torch.randn(3, 7, 12).double(), 1.5)
    assert grown.student.pos.shape == (1, 10, 12)
    assert growth.function_gap(model, grown.student, torch.randn(3, 10, 12).double()) < 1e-12
    assert any("pos" in note and "does not reach" in note for note in grown.notes)


class Masked(nn.Conv2d):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.register_buffer("mask", (torch.arange(9).view(3, 3) < 5).to(torch.float32).expand_as(self.weight).clone())


class MaskedInPlace(Masked):
    def forward(self, x):
        self.weight.data *= self.mask
        return super().forward(x)


class MaskedProduct(Masked):
    def forward(self, x):
        return F.conv2d(x, self.weight * self.mask, self.bias, padding=1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_forward_pass_that_writes_its_weights_leaves_the_teacher_alone(dtype):
    torch.manual_seed(0)
    model = nn.Sequential(MaskedInPlace(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 1)).to(dtype)
    before = model[0].weight.clone()
    growth.widen(model, torch.randn(4, 3, 8, 8, dtype=dtype), 1.5)
    assert torch.equal(model[0].weight, before)


def test_noise_is_for_parameters():
    torch.manual_seed(0)
    model = nn.Sequential(MaskedProduct(3, 8, 3), nn.ReLU(), MaskedProduct(8, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 1))
    student = growth.widen(model, torch.randn(2, 3, 8, 8), 1.5, noise=0.1).student
    assert set(student[0].mask.unique().tolist()) == {0.0, 1.0} and student[0].weight.shape[0] == 12


def test_an_example_of_many_images_narrows_as_well():
    class Literal(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(5, 8), nn.Linear(8, 6), nn.Linear(6, 3)

        def forward(self, x):
            return self.c(torch.relu(self.b(torch.relu(self.a(x)).view(-1, 2, 4).flatten(1))))

    grown = growth.widen(Literal().double(), torch.randn(9, 5).double(), 1.5)
    assert grown.student.a.out_features == 8 and grown.student.b.out_features == 9


def test_a_width_of_a_grouped_layer_is_reached_or_refused():
    model = nn.Sequential(
        nn.Conv2d(3, 12, 3), nn.ReLU(), nn.Conv2d(12, 12, 3, groups=4), nn.ReLU(), nn.Conv2d(12, 4, 1)
    )
    x = torch.randn(2, 3, 12, 12)
    assert growth.widen(model, x, {"2": 24}).student[2].out_channels == 24
    with pytest.raises(GrowthError, match="'2' cannot have 18 channels: its units cover 4"):
        growth.widen(model, x, {"2": 18})


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True, norm_first=True)
        self.inp, self.out = nn.Linear(12, 16), nn.Linear(16, 3)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, x):
        return self.out(self.layers(self.inp(x)))


@pytest.mark.parametrize("pattern", ["inp", "layers.layers.0.self_attn.out_proj"])
def test_a_pattern_brings_the_heads_along(pattern):
    torch.manual_seed(0)
    model, x = Encoder().double(), torch.randn(2, 5, 12).double()
    grown = growth.widen(model, x, {pattern: 24})
    assert grown.student.layers.layers[1].self_attn.num_heads == 6
    assert growth.function_gap(model, grown.student, x) < 1e-12


def test_deeper_refuses_where_code_reads_a_layers_weights():
    with pytest.raises(GrowthError, match=r"does not run: .* read a layer's weights itself"):
        growth.deepen(nn.TransformerEncoderLayer(16, 4, 32, batch_first=True), torch.randn(2, 5, 16))


def test_deeper_leaves_the_random_state_alone():
    model, x = net(), torch.randn(4, 10).double()
    before = torch.get_rng_state()
    growth.deepen(model, x)
    assert torch.equal(before, torch.get_rng_state())


X = torch.randn(2, 10).double()


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: growth.widen(net(), X[:0], 1.5), "nothing to compare"),
        (lambda: growth.widen(net(), X, {0: 1.5}), "no layer pattern"),
        (lambda: growth.widen(net(), X, 1.5, noise="a"), "noise is 'a'"),
        (lambda: growth.widen(net(), X, 1.5, seed=1.5), "seed is 1.5"),
        (lambda: growth.widen(lambda x: x, X, 1.5), "expected a torch.nn.Module"),
        (lambda: growth.widen(nn.Linear(10, 3, device="meta"), X, 1.5), "meta device"),
        (lambda: growth.widen(net(), X * float("nan"), 1.5), "not finite"),
        (lambda: growth.widen(net(), X, 0.9), "at least 1"),
    ],
)
def test_mistakes_cost_one_line(call, words):
    with pytest.raises(GrowthError, match=words) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_optimizer_state_goes_to_its_own_kind():
    teacher = net()
    grown, padded = growth.widen(teacher, X, 1.5), growth.random_pad(teacher, X, 1.5)
    adam, sgd = torch.optim.Adam(teacher.parameters()), torch.optim.SGD(grown.student.parameters(), 0.1)
    with pytest.raises(GrowthError, match="teacher's optimizer is Adam, the student's SGD"):
        growth.carry(adam, teacher, sgd, grown)
    with pytest.raises(GrowthError, match="random_pad"):
        growth.carry(adam, teacher, torch.optim.Adam(padded.student.parameters()), padded)


class Remembers(nn.Module):
    """An activation kept for later, a mark on a parameter, and a weight that a hook computes anew."""

    def __init__(self):
        super().__init__()
        self.stem, self.mid = nn.Linear(10, 8), nn.Linear(8, 9)
        self.head = nn.Linear(9, 3)
        self.mid.weight._no_weight_decay = True
        nn.utils.weight_norm(self.stem)

    def forward(self, x):
        self.seen = torch.relu(self.stem(x))
        return self.head(torch.relu(self.mid(self.seen)))


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_what_modules_remember_is_copied():
    torch.manual_seed(0)
    model = Remembers().double()
    model(X)
    grown = growth.widen(model, X, 1.5)
    assert grown.student.mid.out_features == 14 and grown.student.mid.weight._no_weight_decay
    assert grown.student.stem.out_features == 8 and any("weight_norm" in note for note in grown.notes)
    assert growth.function_gap(model, grown.student, X) < 1e-12
