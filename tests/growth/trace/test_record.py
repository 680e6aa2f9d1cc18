"""One forward pass as a list of operations: what it holds, and what it leaves alone."""

import pytest
import torch
from nets import double_gap, same_state, state_of
from torch import nn

from n2n_cli import growth
from n2n_cli.growth import GrowthError
from n2n_cli.growth.groups.operations import OPERATIONS
from n2n_cli.growth.trace.record import record, record_all, run


class Branching(nn.Module):
    """Data-dependent control flow cannot run on meta tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x):
        h = torch.relu(self.a(x))
        return self.b(h if x.sum() > 0 else -h)


def test_data_dependent_branches_are_recorded_on_real_tensors():
    teacher, x = Branching().double(), torch.randn(5, 4, dtype=torch.float64)
    student = growth.widen(teacher, x, 2.0).student
    assert student.a.out_features == 12 and double_gap(teacher, student, x) < 1e-12


def test_modes_dropout_and_random_state_are_left_alone():
    teacher = nn.Sequential(nn.Linear(4, 6), nn.Dropout(0.5), nn.ReLU(), nn.Linear(6, 2))
    teacher[1].eval()
    modes = [m.training for m in teacher.modules()]
    rng = torch.get_rng_state()
    student = growth.widen(teacher, torch.randn(3, 4, generator=torch.Generator().manual_seed(0)), 2.0).student
    assert torch.equal(rng, torch.get_rng_state())
    assert [m.training for m in teacher.modules()] == modes == [m.training for m in student.modules()]


def shown(recording):
    return [(op.name, op.path) for op in recording.ops]


def test_operations_with_their_modules_in_both_modes():
    model = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.Sequential(nn.ReLU()), nn.LayerNorm(4))
    x = torch.randn(2, 3)
    train, still = (record(model, x, OPERATIONS, training=training) for training in (True, False))
    assert shown(train) == shown(still) == [("linear", "0"), ("dropout", "1"), ("relu", "2.0"), ("layer_norm", "3")]
    assert [op.arg(2, "train") for op in (train.ops[1], still.ops[1])] == [True, False]
    assert str(train.ops[2]) == "relu at 2.0" and not train.data and train.training and not still.training
    assert train.tensors[id(train.ops[0].arg(1, "weight"))] == "0.weight"
    assert train.inputs[0] is train.ops[0].args[0] and train.outputs[0] is train.ops[-1].outputs[0]


def test_an_argument_by_position_keyword_or_default():
    recording = record(nn.Sequential(nn.Softmax(1), nn.Flatten(0)), torch.randn(2, 3), OPERATIONS, training=False)
    softmax, flatten = recording.ops
    assert softmax.arg(1, "dim") == 1 and softmax.arg(9, "dtype", "left out") == "left out"
    assert flatten.name == "flatten" and [tuple(t.shape) for t in flatten.tensors()] == [(2, 3)]


def test_no_arithmetic_and_no_trace_of_the_pass():
    """Shapes alone, on meta tensors: no running statistics, no gradients, no values."""
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    before = state_of(model)
    recording = record(model, torch.randn(2, 3), OPERATIONS, training=True)
    assert all(t.is_meta for op in recording.ops for t in op.outputs) and recording.outputs[0].shape == (2, 4)
    assert same_state(state_of(model), before) and all(p.grad is None for p in model.parameters())


def test_a_model_that_does_not_run_is_refused_with_its_module():
    model = nn.Sequential(nn.Linear(3, 4), nn.Sequential(nn.ReLU(), nn.Linear(5, 2)))
    words = r"cannot record Sequential in train mode: RuntimeError in module '1.1' after relu: "
    with pytest.raises(GrowthError, match=words) as caught:
        record(model, torch.randn(2, 3), OPERATIONS, training=True)
    assert "\n" not in str(caught.value)


def test_other_ways_through_the_code_are_recorded_where_it_depends_on_the_data():
    x = torch.ones(5, 4)
    plain = record_all(nn.Sequential(nn.Linear(4, 6), nn.ReLU()), x, OPERATIONS)
    assert [recording.training for recording in plain] == [True, False]
    ways = record_all(Branching(), x, OPERATIONS)
    assert all(recording.data for recording in ways)
    found = [(recording.training, "neg" in [op.name for op in recording.ops]) for recording in ways]
    assert found == [(True, False), (False, False), (True, True)], "a way that is known already is not kept again"


def test_still_runs_on_values_without_chance():
    model, x = nn.Sequential(nn.Dropout(0.5), nn.ReLU()), torch.randn(40, 40)
    for on, same in (("without chance", True), ("real", False)):
        recording = run(model, x, OPERATIONS, lambda op: None, training=True, on=on)
        assert torch.equal(recording.outputs[0], x.relu()) == same
