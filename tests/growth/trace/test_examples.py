"""The inputs that a network is recorded and proved on."""

import pytest
import torch
from torch import nn

from n2n_cli.growth import GrowthError
from n2n_cli.growth.groups.infer import trace
from n2n_cli.growth.trace.examples import (
    PROOF_SAMPLES,
    check_model,
    examples_of,
    first_samples,
    paired,
    prepared,
    that_runs,
)


def test_first_samples_cut_what_has_the_batch_size_and_nothing_else():
    batch = {"x": torch.randn(9, 3), "y": (torch.randn(9), torch.randn(1, 5)), "scale": 2.0, "number": torch.tensor(1)}
    first = first_samples(batch)
    assert first["x"].shape == (PROOF_SAMPLES, 3) and first["y"][0].shape == (PROOF_SAMPLES,)
    assert first["y"][1].shape == (1, 5) and first["scale"] == 2.0 and first["number"] is batch["number"]
    assert torch.equal(first["x"], batch["x"][:PROOF_SAMPLES])
    assert first_samples(batch, 2)["x"].shape == (2, 3)
    assert first_samples(batch, 9) is batch
    graph = (torch.randn(9, 3), torch.zeros(2, 20, dtype=torch.int64))
    assert first_samples(graph) is graph, "nodes and edges"


def test_inputs_are_prepared_in_the_models_type():
    x, ids = prepared(nn.Linear(3, 2).double(), (torch.randn(1, 3), torch.zeros(1, 3, dtype=torch.int64)))
    assert (x.dtype, x.shape, ids.dtype, ids.shape) == (torch.float64, (1, 3), torch.int64, (1, 3))


def test_a_list_is_several_examples():
    net = nn.Linear(3, 2)
    assert [one.shape[0] for one in examples_of(net, [torch.ones(2, 3), torch.ones(5, 3)])] == [2, 5]
    assert len(trace(net, [torch.ones(2, 3), torch.ones(5, 3)])) == 4


@pytest.mark.parametrize(
    ("example", "said"),
    [
        ([], "empty list"),
        (torch.eye(3).to_sparse(), "holds a sparse_coo tensor"),
        (torch.empty(2, 3, device="meta"), "on the meta device"),
    ],
)
def test_examples_that_serve_no_network(example, said):
    with pytest.raises(GrowthError, match=said):
        examples_of(nn.Linear(3, 2), example)


def test_a_single_sample_becomes_two_that_differ_and_others_are_repeated():
    images, step, table = torch.randn(1, 3, 4), torch.tensor([5]), torch.randn(7, 7)
    both, alone = paired((images, step, table))
    assert torch.equal(both[0], torch.cat([images, images.flip(-1)])) and both[1].tolist() == [5, 5]
    assert both[2] is table and alone[1] is step and alone[0].shape[0] == 2
    assert list(paired(torch.randn(2, 3))) == list(paired(torch.tensor(1.0))) == []


@pytest.mark.parametrize(("refused", "got"), [(0, 1), (1, 2), (2, 2)])
def test_a_single_sample_stays_single_where_it_serves(refused, got):
    seen = []

    def run(batch):
        seen.append(batch)
        if len(seen) <= refused:
            raise GrowthError(f"no {len(seen)}")
        return batch.shape[0]

    assert that_runs(run, torch.randn(1, 3)) == got
    refused = 9
    seen.clear()
    with pytest.raises(GrowthError, match="no 1"):
        that_runs(run, torch.randn(1, 3))


class Route(nn.Module):
    """What it does depends on the number of samples, in several ways."""

    def __init__(self, kind):
        super().__init__()
        self.a, self.kind = nn.Linear(3, 4), kind

    def forward(self, x):
        h = self.a(x)
        if self.kind == "another way":
            return h.relu() if len(x) > 4 else h
        if self.kind == "a number of its own":
            return h.view(6, -1).sum() + h.sum()
        return h


@pytest.mark.parametrize(("kind", "samples"), [("alike", 4), ("another way", 6), ("a number of its own", 6)])
def test_a_batch_is_cut_only_where_that_changes_nothing(kind, samples):
    recordings = trace(Route(kind), torch.randn(6, 3))
    assert [recording.example.shape[0] for recording in recordings] == [samples, samples]


class NoInit(nn.Module):
    def __init__(self):
        pass


@pytest.mark.parametrize(
    ("model", "seed", "said"),
    [
        ("resnet18", 0, "of type str: expected a torch.nn.Module"),
        (NoInit(), 0, r"NoInit.__init__ does not call super\(\).__init__"),
        (nn.LazyLinear(3), 0, "'weight' is lazy"),
        (nn.Linear(3, 2, device="meta"), 0, "'weight' is on the meta device"),
        (nn.Linear(3, 2), -1, "seed is -1"),
        (nn.Linear(3, 2), True, "seed is True"),
        (torch.jit.script(nn.Linear(3, 2)), 0, "is TorchScript, which hides its operations"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_no_operator_can_start_from(model, seed, said):
    with pytest.raises(GrowthError, match=said):
        check_model(model, seed)
