"""What networks of other people taught: each shows a kind of network that growth was once wrong on, or gave up."""

import copy
import random
from collections import deque
from dataclasses import dataclass

import pytest
import torch
from nets import perturb
from torch import nn
from torch.nn import functional as F

from n2n_cli import growth
from n2n_cli.growth import GrowthError
from n2n_cli.growth.survey import survey

X = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))


def normal(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape)))


class Size(nn.Module):
    """A number that is the size of what grows: the student would divide by another."""

    def __init__(self, bias=True):
        super().__init__()
        self.a, self.b = nn.Linear(3, 4, bias=bias), nn.Linear(4, 2, bias=bias)

    def scaled(self, x):
        h = self.a(x).relu()
        return self.b(h) * h.shape[-1] ** -0.5

    def forward(self, x):
        return self.scaled(x)


class Masked(Size):
    """A mask that rounding flips: on zeros the teacher itself jumps."""

    def forward(self, x):
        return self.scaled(x) * (x.abs().sum(-1, keepdim=True) > 0)


class LargeBatch(Size):
    def forward(self, x):
        return self.scaled(x) if x.shape[0] > 4 else self.b(self.a(x).relu())


class OddBatch(Size):
    def forward(self, x):
        return self.scaled(x) if x.shape[0] % 2 else self.b(self.a(x).relu())


class Cached(Size):
    """What a first batch left behind is read again."""

    cache = None

    def forward(self, x):
        h = self.a(x).relu()
        if self.cache is None or len(self.cache) != len(h):
            self.cache = torch.full((len(h), 1), h.shape[-1] ** -0.5).to(h)
        return self.b(h) * self.cache


class ZeroHead(Size):
    def __init__(self):
        super().__init__()
        nn.init.zeros_(self.b.weight), nn.init.zeros_(self.b.bias)


class Wrapped(nn.Module):
    """A forward that closes over the network: a copy of it would run the network itself."""

    def __init__(self):
        super().__init__()
        self.a, self.norm, self.b = nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)
        plain = type(self).forward
        self.forward = lambda x: plain(self, x)

    def forward(self, x):
        return self.b(self.norm(self.a(x)))


class ClosedOver(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 2)
        self.act = lambda x: self.b(x).tanh()

    def forward(self, x):
        return self.act(self.a(x))


WRONG = {  # a student was once given that computes something else
    "a size as a number": (Size, X, "mul at the top module: reads how many these are as a number"),
    "a mask at a jump": (Masked, torch.cat([X, torch.zeros(2, 3)]), "mul"),
    "zeros into a network without biases": (lambda: Size(bias=False), torch.zeros(5, 3), "mul"),
    "a branch for large batches": (LargeBatch, normal(8, 3), "mul"),
    "a branch for odd batches": (OddBatch, normal(8, 3), "mul"),
    "a cache": (Cached, X, "as a number"),
    "a head of zeros": (ZeroHead, X, "function differs"),
    "a wrapped forward": (Wrapped, X, "'a.weight' is read from the network itself"),
    "a closure": (ClosedOver, X, "'b.weight' is read from the network itself"),
    "TorchScript": (lambda: torch.jit.script(nn.Linear(3, 4)), X, "is TorchScript"),
}


@pytest.mark.parametrize("name", WRONG)
def test_no_student_rather_than_a_wrong_one(name):
    make, example, words = WRONG[name]
    teacher = make()
    if name == "a cache":
        teacher(example)
    before = {key: tensor.clone() for key, tensor in teacher.state_dict().items()}
    states = random.getstate(), torch.get_rng_state()
    with pytest.raises(GrowthError, match=words) as caught:
        growth.widen(teacher, example, 2.0)
    assert "\n" not in str(caught.value)
    assert all(torch.equal(before[key], tensor) for key, tensor in teacher.state_dict().items())
    assert random.getstate() == states[0] and torch.equal(torch.get_rng_state(), states[1])


def test_an_example_whose_outputs_are_constant_is_refused_where_others_are_not():
    net = nn.Sequential(nn.Linear(3, 4, bias=False), nn.ReLU(), nn.Linear(4, 2, bias=False))
    with pytest.raises(GrowthError, match="outputs are the same everywhere, so it can prove nothing"):
        growth.widen(net, torch.zeros(5, 3), 2.0)


# --- what grows, and how much --------------------------------------------------------------------------------


class MinSize(nn.Module):
    """A smallest image side of 16, and 16 labels, beside 16 channels: only look like widths."""

    def __init__(self):
        super().__init__()
        self.num_labels = 16
        self.min_size, self.conv, self.fc = 16, nn.Conv2d(3, 16, 3, padding=1), nn.Linear(16, 2)

    def forward(self, x):
        short = max(0, self.min_size - x.shape[-1])
        return self.fc(self.conv(F.pad(x, (0, short, 0, short))).relu().mean((2, 3)))


class Divided(nn.Module):
    """A size as a number behind everything else: what it is the size of stays, the rest grows."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.d = nn.Linear(3, 4), nn.Linear(4, 6), nn.Linear(6, 8), nn.Linear(8, 2)

    def forward(self, x):
        h = self.b(self.a(x).relu()).relu()
        return self.d(self.c(h).relu()) / h.size(-1)


class PythonDepth(nn.Module):
    """Stochastic depth by Python's generator."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(3, 6), nn.Linear(6, 6), nn.Linear(6, 2)

    def forward(self, x):
        x = self.a(x).relu()
        if not (self.training and random.random() < 0.5):
            x = x + self.b(x).relu()
        return self.c(x)


class Experts(nn.Module):
    """The best of four: four samples would not reach them all."""

    def __init__(self):
        super().__init__()
        self.gate = nn.Linear(3, 4)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(3, 4 + n), nn.ReLU(), nn.Linear(4 + n, 2)) for n in range(4)
        )

    def forward(self, x):
        best, out = self.gate(x).argmax(-1), x.new_zeros(len(x), 2)
        for number, expert in enumerate(self.experts):
            mine = best == number
            if mine.any():
                out[mine] = expert(x[mine])
        return out


class Tasks(nn.Module):
    def __init__(self):
        super().__init__()
        self.trunk, self.inner = nn.Linear(3, 4), nn.Linear(4, 6)
        self.back = nn.Linear(6, 4)
        self.heads = nn.ModuleDict({"a": nn.Linear(4, 2), "b": nn.Linear(4, 5)})

    def forward(self, x, task="a"):
        return self.heads[task](self.back(self.inner(self.trunk(x).relu()).relu()))


class Step(nn.Module):
    """A time step of one entry beside a batch of four."""

    def __init__(self):
        super().__init__()
        self.a, self.t, self.norm, self.b = nn.Linear(3, 4), nn.Linear(1, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)

    def forward(self, x, t):
        return self.b(self.norm(self.a(x) + self.t(t[:, None])).relu())


class Graph(nn.Module):
    """Nodes and their adjacency matrix: four nodes would be another graph."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x, adjacency):
        return self.b(adjacency @ self.a(x).relu())


class Edges(Graph):
    def forward(self, x, edges):
        h = self.a(x)
        return self.b(torch.zeros_like(h).index_add(0, edges[1], h[edges[0]]).relu())


class Eight(Graph):
    def forward(self, x):
        return self.b(self.a(x.view(8, 3)).relu())


class Padded(nn.Module):
    def __init__(self):
        super().__init__()
        self.i, self.o = nn.Linear(3, 8), nn.Linear(8, 3)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x, mask):
        h = self.i(x)
        return self.o(h + self.attention(h, h, h, key_padding_mask=mask, need_weights=False)[0])


class Translator(nn.Module):
    def __init__(self):
        super().__init__()
        self.i, self.o = nn.Linear(3, 8), nn.Linear(8, 3)
        self.inner = nn.Transformer(8, 2, 1, 1, 16, dropout=0.0, batch_first=True)

    def forward(self, x, y):
        return self.o(self.inner(self.i(x), self.i(y)))


class NormByHand(nn.Module):
    """CvT, NesT, Twins: a layer norm over channels, written out."""

    def __init__(self):
        super().__init__()
        self.scale, self.shift = nn.Parameter(torch.ones(1, 8, 1, 1)), nn.Parameter(torch.zeros(1, 8, 1, 1))
        self.a, self.b, self.fc = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Linear(8, 2)

    def forward(self, x):
        x = self.a(x)
        variance, mean = torch.var_mean(x, 1, unbiased=False, keepdim=True)
        return self.fc(self.b((x - mean) / (variance + 1e-5).sqrt() * self.scale + self.shift).relu().amax((2, 3)))


class TwoPools(nn.Module):
    """The head of fastai."""

    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 8, 3), nn.Linear(16, 2)

    def forward(self, x):
        x = self.conv(x).relu()
        return self.fc(torch.cat([F.adaptive_max_pool2d(x, 1), F.adaptive_avg_pool2d(x, 1)], 1).flatten(1))


class Unpool(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 2, 3)

    def forward(self, x):
        x, where = F.max_pool2d(self.a(x), 2, return_indices=True)
        return self.b(F.max_unpool2d(x, where, 2))


class Bags(nn.Module):
    def __init__(self):
        super().__init__()
        self.bag, self.fc = nn.EmbeddingBag(9, 4), nn.Linear(4, 2)

    def forward(self, words):
        return self.fc(self.bag(words))


class Squeezed(nn.Module):
    """Shapes that change in place."""

    def __init__(self):
        super().__init__()
        self.conv, self.a, self.b = nn.Conv2d(3, 8, 4), nn.Linear(8, 6), nn.Linear(6, 2)

    def forward(self, x):
        x = self.conv(x).relu().squeeze_(-1).squeeze_(-1)
        return self.b(self.a(x.t_().t_()).relu())


class OnlySingle(Graph):
    """A kernel that fp64 does not have."""

    def forward(self, x):
        h = self.a(x).relu()
        if h.dtype == torch.float64:
            raise RuntimeError("not implemented for Double")
        return self.b(h)


class Flat(nn.Module):
    """Channels last, then flattened: one group at a thousand places."""

    def __init__(self, side):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 4, 1), nn.Linear(4 * side * side, 2)

    def forward(self, x):
        return self.fc(self.conv(x).permute(0, 2, 3, 1).flatten(1))


class Mamba(nn.Module):
    """A state space block: what it remembers decays as the input says; in fp32, whatever the network's precision."""

    def __init__(self, width=24, inner=48, state=4, rank=3):
        super().__init__()
        self.state, self.rank = state, rank
        self.embed, self.head = nn.Embedding(9, width), nn.Linear(width, 2)
        self.enter, self.leave = nn.Linear(width, 2 * inner, bias=False), nn.Linear(inner, width, bias=False)
        self.conv = nn.Conv1d(inner, inner, 3, groups=inner, padding=2)
        self.select, self.step = nn.Linear(inner, rank + 2 * state, bias=False), nn.Linear(rank, inner)
        self.decay = nn.Parameter(torch.arange(1.0, state + 1).repeat(inner, 1).log())
        self.skip = nn.Parameter(torch.ones(inner))

    def forward(self, x):
        x = self.embed(x)
        normed = x.float() * (x.float().pow(2).mean(-1, keepdim=True) + 1e-5).rsqrt()
        h, gate = self.enter(normed.to(x.dtype)).chunk(2, -1)
        weight = self.conv.weight.squeeze(1).unsqueeze(1)
        h = F.conv1d(h.transpose(1, 2), weight, self.conv.bias, padding=2, groups=len(weight))
        h = F.silu(h[..., : x.shape[1]]).transpose(1, 2)
        step, write, read = self.select(h).split([self.rank, self.state, self.state], -1)
        step = F.softplus(self.step(step))[..., None].float()
        kept, new = (step * -self.decay.float().exp()).exp(), step * write[:, :, None].float() * h[..., None].float()
        memory, out = torch.zeros_like(new[:, 0]), []
        for t in range(x.shape[1]):
            memory = kept[:, t] * memory + new[:, t]
            out.append((memory.to(read.dtype) @ read[:, t, :, None])[..., 0])
        h = (torch.stack(out, 1) + h * self.skip) * F.silu(gate)
        return self.head((x + self.leave(h)).mean(1))


class ShuffleUnit(nn.Module):
    """ShuffleNet v1: a channel shuffle between two grouped convolutions, beside a shortcut."""

    def __init__(self, ins, outs, groups, stride):
        super().__init__()
        mid, made = outs // 4, outs - ins * (stride == 2)
        self.a, self.a_norm = nn.Conv2d(ins, mid, 1, groups=groups, bias=False), nn.BatchNorm2d(mid)
        self.b, self.b_norm = nn.Conv2d(mid, mid, 3, stride, 1, groups=mid, bias=False), nn.BatchNorm2d(mid)
        self.c, self.c_norm = nn.Conv2d(mid, made, 1, groups=groups, bias=False), nn.BatchNorm2d(made)
        self.groups, self.stride = groups, stride

    def forward(self, x):
        n, _, h, w = x.shape
        y = self.a_norm(self.a(x)).relu()
        y = y.view(n, self.groups, -1, h, w).transpose(1, 2).contiguous().view(n, -1, h, w)
        y = self.c_norm(self.c(self.b_norm(self.b(y))))
        return (torch.cat([F.avg_pool2d(x, 3, 2, 1), y], 1) if self.stride == 2 else x + y).relu()


def shuffle_net(groups=3):
    units = [ShuffleUnit(12, 60, groups, 2), ShuffleUnit(60, 60, groups, 1), ShuffleUnit(60, 60, groups, 1)]
    return nn.Sequential(nn.Conv2d(3, 12, 3), *units, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(60, 5))


class Condensed(nn.Module):
    """CondenseNet: a layer of a dense network takes channels in the order that a buffer says, and shuffles."""

    def __init__(self, ins, each=8, groups=4):
        super().__init__()
        self.register_buffer("order", torch.randint(ins, (4 * groups * 2,)))
        self.groups, width = groups, len(self.order)
        self.norm, self.a = nn.BatchNorm2d(width), nn.Conv2d(width, 4 * each, 1, groups=groups, bias=False)
        self.inner, self.b = nn.BatchNorm2d(4 * each), nn.Conv2d(4 * each, each, 3, padding=1, groups=groups)

    def forward(self, x):
        y = F.channel_shuffle(self.a(self.norm(x.index_select(1, self.order)).relu()), self.groups)
        return torch.cat([x, self.b(self.inner(y).relu())], 1)


def condense_net():
    layers = [Condensed(10 + 8 * n) for n in range(3)]
    return nn.Sequential(nn.Conv2d(3, 10, 3), *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(34, 5))


class Gated(nn.Module):
    """Hyper-connections: a gate from a product with a vector."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.head = nn.Linear(3, 8), nn.Linear(8, 8), nn.Linear(8, 2)
        self.gate = nn.Parameter(torch.randn(8))

    def forward(self, x):
        h = self.a(x)
        return self.head(h * (h.relu() @ self.gate).tanh()[:, None] + self.b(h.relu()))


class Pyramid(nn.Module):
    """PyramidNet: each block has more channels than the one before, and zeros beside its shortcut.

    ``more``: how many zeros, as the module keeps it; None: it stands in the code, and they stay as many.
    """

    def __init__(self, more):
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(3, 16, 1), nn.Conv2d(16, 21, 3, padding=1), nn.Linear(21, 2)
        self.more = more

    def forward(self, x):
        h = self.a(x).relu()
        more = self.more if isinstance(self.more, tuple) else (0, 0, 0, 0, 0, self.more or 5)
        return self.head((self.b(h) + F.pad(h, more)).relu().mean((2, 3)))


@pytest.mark.parametrize(
    ("more", "grown"), [(5, 10), ((0, 0, 0, 0, 0, 5), (0, 0, 0, 0, 0, 10)), ((0, 0, 0, 0, 2, 3), (0, 0, 0, 0, 4, 6))]
)
def test_zeros_beside_a_shortcut_grow_as_the_module_says_how_many(more, grown):
    torch.manual_seed(0)
    teacher, x = perturb(Pyramid(more)).double(), normal(2, 3, 8, 8).double()
    student = growth.widen(teacher, x, 2.0).student
    assert (student.a.out_channels, student.b.out_channels, student.more) == (32, 42, grown)
    assert growth.function_gap(teacher, student, normal(3, 3, 9, 9).double()) < 1e-12


def test_zeros_whose_number_stands_in_the_code_stay_and_the_rest_grows():
    torch.manual_seed(0)
    teacher, x = perturb(Pyramid(None)).double(), normal(2, 3, 8, 8).double()
    student = growth.widen(teacher, x, 2.0).student
    assert (student.a.out_channels, student.b.out_channels) == (32, 37)
    assert growth.function_gap(teacher, student, normal(3, 3, 9, 9).double()) < 1e-12


class Reversible(nn.Module):
    """RevNet: what can be computed again is given back at once."""

    def __init__(self):
        super().__init__()
        self.a, self.f, self.g, self.head = nn.Linear(3, 8), nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(8, 2)

    def forward(self, x):
        h = self.a(x)
        first, second = (part.contiguous() for part in h.chunk(2, 1))
        left = first + self.f(second).relu()
        both = torch.cat([left, second + self.g(left).relu()], 1)
        for gone in (first, second, left, h):
            gone.set_()
        return self.head(both)


class Compiled(nn.Module):
    """A part that compiles itself when it is called, as attention with masks from functions does."""

    def __init__(self):
        super().__init__()
        self.inner, self.head = nn.Linear(3, 8), nn.Linear(8, 2)

    def forward(self, x):
        return self.head(torch.compile(lambda h: h.relu() * 2, fullgraph=True, backend="eager")(self.inner(x)))


GROWS = {  # network, example, how much larger at a factor of 2
    "a number that looks like a width": (MinSize, normal(2, 3, 32, 32), 1.9),
    "a size as a number": (Divided, X, 1.4),
    "chance that is Python's": (PythonDepth, X, 2.0),
    "experts": (Experts, normal(64, 3), 1.8),
    "tasks, one of them seen": (Tasks, X, 1.3),
    "tasks, both seen": (Tasks, [X, {"x": X, "task": "b"}], 2.0),
    "a single sample and a step": (Step, (normal(1, 3), torch.tensor([3.0])), 1.9),
    "a batch and one step": (Step, (normal(4, 3), torch.tensor([3.0])), 1.9),
    "a graph": (Graph, (normal(10, 3), normal(10, 10)), 1.9),
    "a graph of edges": (Edges, (normal(10, 3), torch.arange(20).view(2, 10) % 10), 1.9),
    "a fixed number of samples": (Eight, normal(8, 3), 1.9),
    "a padding mask": (Padded, (normal(2, 5, 3), torch.zeros(2, 5).bool()), 3.0),
    "nn.Transformer": (Translator, (normal(2, 5, 3), normal(2, 4, 3)), 3.0),
    "a norm by hand": (NormByHand, normal(2, 3, 8, 8), 3.0),
    "two pools": (TwoPools, normal(2, 3, 8, 8), 1.9),
    "unpooling": (Unpool, normal(2, 3, 8, 8), 1.9),
    "bags of words": (Bags, torch.arange(12).view(4, 3) % 9, 1.8),
    "shapes in place": (Squeezed, normal(2, 3, 4, 4), 2.0),
    "a state space": (Mamba, torch.arange(88).view(8, 11) % 9, 2.5),
    "shuffles between grouped convolutions": (shuffle_net, normal(2, 3, 8, 8), 3.0),
    "channels that a buffer takes": (condense_net, normal(2, 3, 8, 8), 3.0),
    "a product with a vector": (Gated, X, 2.5),
    "memory that is given back": (Reversible, X, 2.6),
    "a part that compiles itself": (Compiled, X, 1.9),
    "no fp64": (OnlySingle, X, 1.9),
    "a thousand places": (lambda: Flat(32), normal(2, 3, 32, 32), 1.9),
}


@pytest.mark.parametrize("name", GROWS)
def test_what_grows(name):
    make, example, wanted = GROWS[name]
    torch.manual_seed(0)
    teacher = perturb(make())
    grown = growth.widen(teacher, example, 2.0)
    before, after = (sum(p.numel() for p in net.parameters()) for net in (teacher, grown.student))
    assert after >= wanted * before, grown.notes
    for one in example if isinstance(example, list) else [example]:
        assert growth.function_gap(teacher, grown.student, one) < 1e-5
    assert all(getattr(grown.student, attribute, 16) == 16 for attribute in ("min_size", "num_labels"))
    assert any("proved in float32" in note for note in grown.notes) == (name == "no fp64")


def test_a_head_that_no_example_reaches_still_runs_and_is_told():
    torch.manual_seed(0)
    teacher = Tasks()
    grown = growth.widen(teacher, X, 2.0)
    assert torch.allclose(grown.student(X, "b"), teacher(X, "b"), atol=1e-6)
    assert any("does not reach heads.b" in warning for warning in grown.warnings)


@dataclass(slots=True)
class Slotted:
    first: torch.Tensor


@pytest.mark.parametrize("wrap", [Slotted, lambda h: deque([h])], ids=["slots", "deque"])
def test_outputs_behind_slots_and_in_queues_stay_as_they_are(wrap):
    class Net(Size):
        def forward(self, x):
            h = self.a(x).relu()
            return self.b(h), wrap(h)

    with pytest.raises(GrowthError, match="nothing of Net can grow: a, b: the network's output"):
        growth.widen(Net(), X, 2.0)


def test_a_vision_transformer_reaches_one_of_its_constructor():
    from torchvision.models import VisionTransformer

    def build(heads, width):
        return VisionTransformer(32, 8, 2, heads, width, 2 * width, num_classes=10)

    torch.manual_seed(0)
    teacher = perturb(build(4, 24)).double()
    for heads, width in ((8, 48), (6, 36)):
        grown = growth.widen(teacher, normal(4, 3, 32, 32).double(), build(heads, width).double())
        assert growth.function_gap(teacher, grown.student, normal(3, 3, 32, 32).double()) < 1e-12


def test_a_deeper_network_without_running_statistics_is_exact_on_other_batches():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False), nn.ReLU(), nn.Conv2d(4, 2, 3))
    grown = growth.deepen(perturb(net).double(), normal(4, 3, 8, 8).double(), ["0"])
    assert growth.function_gap(net, grown.student, normal(6, 3, 9, 9).double(), training=False) < 1e-12


def test_a_student_that_hardly_grew_is_a_warning():
    class Mostly(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(20, 50), nn.Linear(50, 4), nn.Linear(4, 2)

        def forward(self, x):
            return self.c(self.b(self.a(x).cummax(-1)[0]).relu())

    grown = growth.widen(Mostly(), normal(5, 20), 1.5)
    assert any("times as many parameters: a, b: cummax" in warning for warning in grown.warnings)


class Smooth(nn.Module):
    """Activations that are not idempotent, and a residual end."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 2, 1)
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x):
        x = F.silu(self.norm(self.a(x)))
        return self.c(F.gelu(x + self.b(x)))


def test_linear_identity_layers_fit_where_no_idempotent_activation_stands():
    torch.manual_seed(0)
    net, x = perturb(Smooth()).double(), normal(4, 3, 8, 8).double()
    with pytest.raises(GrowthError, match="has no place for an identity layer"):
        growth.deepen(net, x)
    grown = growth.deepen(net, x, activation=False)
    assert [info.layers[0] for info in grown.groups] == ["norm.1", "norm.2", "b.1", "c.1"]
    assert grown.gap.worst < 1e-12 and any("the new layers are linear" in note for note in grown.notes)
    assert growth.function_gap(net, grown.student, normal(3, 3, 9, 9).double(), training=False) < 1e-12
    again = growth.deeper.rebuild(net, grown.recipe)
    again.load_state_dict(grown.student.state_dict())
    assert growth.function_gap(grown.student, again, x) == 0


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("norm", [nn.utils.weight_norm, nn.utils.parametrizations.weight_norm])
def test_random_initialization_reaches_what_reset_parameters_does_not_know(norm):
    torch.manual_seed(0)
    net = nn.Sequential(norm(nn.Linear(3, 4)), nn.ReLU(), nn.Linear(4, 2))
    net.register_parameter("table", nn.Parameter(torch.zeros(4, dtype=torch.int8), requires_grad=False))
    fresh = growth.random_init(net, X, 2.0, seed=5).student
    old = {name: p for name, p in net.named_parameters() if p.ndim == 2 and min(p.shape) > 1}
    assert all(
        not torch.equal(dict(fresh.named_parameters())[name][: p.shape[0], : p.shape[1]], p) for name, p in old.items()
    )


MLP = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
LAZY = nn.Sequential(nn.LazyLinear(8), nn.ReLU(), nn.LazyLinear(2))
CALLS = {
    "a name for a network": (lambda: growth.deepen("net", X), "of type str: expected a torch.nn.Module"),
    "nothing to survey": (lambda: survey(None, X), "of type NoneType"),
    "nothing to compare": (lambda: growth.function_gap(None, MLP, X), "of type NoneType"),
    "a word for a mode": (lambda: growth.function_gap(MLP, MLP, X, training="yes"), "training is 'yes'"),
    "a seed that is none": (lambda: growth.random_init(MLP, X, MLP, seed=None), "seed is None"),
    "a lazy student": (lambda: growth.widen(MLP, X, LAZY), "'0.weight' is lazy"),
    "a lazy baseline": (lambda: growth.random_init(MLP, X, LAZY), "'0.weight' is lazy"),
    "a lazy deeper one": (lambda: growth.deepen(MLP, X, LAZY), "'0.weight' is lazy"),
    "too wide": (lambda: growth.widen(MLP, X, 1e300), "asks for 4e\\+300 units of 0: expected at most"),
    "too wide a layer": (lambda: growth.widen(MLP, X, {"0": 10**30}), "asks for 1e\\+30 units of 0"),
    "no width": (lambda: growth.widen(MLP, X, {"0": 0}), "cannot shrink to 0$"),
    "whole numbers as inputs": (lambda: growth.widen(MLP, torch.ones(5, 3, dtype=torch.long), 2.0), "does not run"),
    "a number as site": (lambda: growth.deepen(MLP, X, [0]), "sites is \\[0\\]: expected patterns"),
    "no site": (lambda: growth.deepen(MLP, X, []), "sites is \\[\\]"),
    "one batch for several": (lambda: growth.deepen(MLP, X, calibration=X), "type Tensor: expected a list of batches"),
    "no growth to carry": (lambda: growth.carry(None, MLP, None, MLP), "of type Sequential: expected what `widen`"),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_mistake_of_the_caller_is_one_line(name):
    call, words = CALLS[name]
    with pytest.raises(GrowthError, match=words) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_numbers_of_numpy_are_numbers():
    import numpy as np

    for plan in (np.float32(2), np.int64(2), {"0": np.int64(8)}):
        assert growth.widen(MLP, X, plan).student[0].out_features == 8


class PlainTensors(nn.Module):
    """Positions that are no buffer, another tensor that nobody reads, and one that may not grow."""

    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Linear(3, 8), nn.Linear(8, 2)
        self.positions, self.unread, self.scale = torch.randn(5, 8), torch.randn(8), torch.tensor([1.0, 2.0])

    def forward(self, x):
        self.seen = self.embed(x) + self.positions.to(x.dtype)
        return self.head(self.seen.relu()) * self.scale.to(x.dtype)


def test_plain_tensors_grow_and_become_buffers():
    torch.manual_seed(0)
    net, x = PlainTensors(), normal(4, 5, 3)
    net(x)  # leaves an activation behind
    before = {name: value.clone() for name, value in vars(net).items() if isinstance(value, torch.Tensor)}
    grown = growth.widen(net, x, 1.5)
    student = grown.student
    assert student.embed.out_features == 12 and grown.gap.worst < 1e-12
    assert [name for name, _ in student.named_buffers()] == ["positions"] and student.unread.shape == (8,)
    assert all(torch.equal(getattr(net, name), value) for name, value in before.items()) and not list(net.buffers())
    again = growth.wider.rebuild(net, grown.recipe)
    again.load_state_dict(student.state_dict())
    assert growth.function_gap(student, again, x) == 0 and torch.equal(again.scale, net.scale)
    assert growth.function_gap(net, growth.widen(student, x, 2.0).student, x) < 1e-5  # once more
    moved = copy.deepcopy(student)
    moved.positions += 1.0  # the proof reads them
    assert growth.function_gap(net, moved, x) > 1e-3


class Experts(nn.Module):
    """Rows go through one of two matrices each, by an operation that has no fp64 kernel; ``factor`` spoils the rest."""

    def __init__(self, factor=1.0):
        super().__init__()
        self.embed, self.factor = nn.Linear(4, 16), factor
        self.up, self.down = nn.Parameter(torch.randn(2, 16, 32) / 4), nn.Parameter(torch.randn(2, 32, 16) / 6)
        self.mid, self.head = nn.Linear(16, 8), nn.Linear(8, 3)

    def forward(self, x):
        ends = torch.tensor([x.shape[0] // 2, x.shape[0]], dtype=torch.int32, device=x.device)
        x = torch._grouped_mm(torch._grouped_mm(self.embed(x), self.up, offs=ends).relu(), self.down, offs=ends)
        x = self.mid(x)
        return self.head(x / (x.shape[-1] if self.factor is None else self.factor))


@pytest.mark.parametrize("factor", [1.0, None])
def test_an_operation_without_an_fp64_kernel_is_proved_and_located_in_fp32(factor):
    torch.manual_seed(0)
    net = Experts(factor)
    grown = growth.widen(net, normal(8, 4), 2.0)
    assert "proved in float32: the network does not run in fp64" in grown.notes
    assert grown.student.up.shape == (2, 32, 64) and grown.student.down.shape == (2, 64, 32)
    assert grown.student.mid.out_features == (16 if factor else 8)
    assert growth.function_gap(net, grown.student, normal(6, 4)) < 1e-4


class Twice(nn.Module):
    """A plain tensor in two places, and one that is a buffer as well: they stay together, as they are."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.register_buffer("table", torch.randn(8))
        self.same, self.first = self.table, torch.randn(8)
        self.second = self.first

    def forward(self, x):
        return self.c(self.b(((self.a(x) * self.same + self.table) * self.first + self.second).relu()).relu())


def test_plain_tensors_in_several_places_stay():
    torch.manual_seed(0)
    net, x = Twice(), normal(4, 6)
    student = growth.widen(net, x, 1.5).student
    assert student.b.out_features == 12 and student.same is student.table and student.first is student.second
    assert growth.function_gap(net, growth.widen(student, x, 2.0).student, x) < 1e-5
    assert growth.duplicates(student, x).equal == 4


def test_a_rebuilt_network_keeps_buffers_that_no_state_dict_holds():
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    net[0].register_buffer("frequencies", torch.randn(6), persistent=False)
    again = growth.wider.rebuild(net, growth.widen(net, normal(4, 6), 1.5).recipe)
    assert torch.equal(again[0].frequencies, net[0].frequencies)
