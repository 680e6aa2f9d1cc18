"""A run whose weights, optimizer state and average are split over its ranks computes what one does that has them whole.

Two gloo ranks. In the fast suite one launch does all runs.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
import training_worker as worker
from test_resume import SETTINGS, best, final_state, furthest, rows
from torch import Tensor, nn

from n2n_cli import records
from n2n_cli.errors import N2NError
from n2n_cli.training.launch import launch
from n2n_cli.training.options import FitOptions
from n2n_cli.training.ranks import Ranks
from n2n_cli.training.shard import gathered, scattered, shard
from n2n_cli.training.step import Learner

FAST = {"sgd": ("ddp", "shard", "ddp-first"), "adamw": ("ddp", "shard", "shard-first", "half")}
PAIRS: dict[str, dict[str, Any]] = {
    **{name: SETTINGS[name] for name in ("sgd", "adamw", "rmsprop", "mixed", "fp16", "fp16 adam")},
    "local": dict(sync_bn=False, ema_decay=0.9),
    "bf16": dict(accumulate=2, ema_decay=0.9, compress_gradients=True),
}


def launched(base: Path, names: Mapping[str, Sequence[str]]) -> Path:
    """Of each setting, runs of these kinds: DDP, sharded, begun as one of them and ended as the other, not ended."""
    jobs: list[dict[str, Any]] = []
    for name, ends in names.items():
        for end in ends:
            folder = worker.start(base / f"{name}-{end}", **PAIRS[name].get("model", {}))
            job = dict(folder=str(folder), check=True, **PAIRS[name])
            if end in ("ddp", "shard"):
                jobs.append(job | dict(shard=end == "shard"))
                continue
            jobs.append(job | dict(shard=end != "ddp-first", stop_after=4))
            if end != "half":
                jobs.append(job | dict(shard=end == "ddp-first"))
    launch("training_worker", [json.dumps(jobs)], 2)
    return base


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return launched(tmp_path_factory.mktemp("shard"), FAST)


def assert_alike(base: Path, name: str, end: str, tolerance: float = 1e-5) -> None:
    """Weights, average, optimizer state, best checkpoint, rows and done.json are those of DDP, to rounding."""
    a, b = base / f"{name}-ddp", base / f"{name}-{end}"
    close = dict(rtol=tolerance, atol=tolerance / 10)
    one, other, untrained = final_state(a), final_state(b), worker.Tiny(**PAIRS[name].get("model", {})).state_dict()
    assert one.keys() == other.keys() and furthest(one["model"], untrained) > 1e-2
    for state, same in ((one, other), (best(a), best(b))):
        for part in ("model", "ema") if state["ema"] else ("model",):
            torch.testing.assert_close(same[part], state[part], **close)
    groups = [[group["params"] for group in state["optimizer"]["param_groups"]] for state in (one, other)]
    assert groups[0] == groups[1]
    torch.testing.assert_close(other["optimizer"]["state"], one["optimizer"]["state"], **close)
    for x, y in zip(rows(a), rows(b), strict=True):
        assert x.keys() == y.keys() and all(y[k] == pytest.approx(v, rel=10 * tolerance) for k, v in x.items())
    assert [records.read(folder / "done.json", records.DONE)["ordinary"] for folder in (a, b)] == [1, 1]


@pytest.mark.parametrize(("name", "end"), [(name, end) for name, ends in FAST.items() for end in ends[1:3]])
def test_sharded_is_ddp_to_rounding(two_ranks: Path, name: str, end: str) -> None:
    assert_alike(two_ranks, name, end)


def test_each_rank_holds_its_part(two_ranks: Path) -> None:
    size = sum(p.numel() for p in worker.Tiny().parameters())
    held = {
        end: [int((two_ranks / f"sgd-{end}/held.{rank}").read_text()) for rank in (0, 1)] for end in ("ddp", "shard")
    }
    assert held["ddp"] == [size, size]
    assert sum(held["shard"]) == size and max(held["shard"]) < 0.6 * size


def test_one_process_goes_on_from_a_sharded_checkpoint(two_ranks: Path) -> None:
    folder = two_ranks / "adamw-half"
    state = final_state(folder)
    assert state["step"] == 4 and {type(v) for v in state["model"].values()} == {Tensor}
    assert worker.run(folder, **PAIRS["adamw"])["step"] == 10


@pytest.mark.slow
def test_so_it_is_with_every_optimizer_and_format(tmp_path: Path) -> None:
    names = [name for name in PAIRS if name not in FAST]
    launched(tmp_path, dict.fromkeys(names, ("ddp", "shard", "shard-first")))
    for name in names:
        for end in ("shard", "shard-first"):
            assert_alike(tmp_path, name, end, 0.1 if name == "bf16" else 1e-5)


@pytest.mark.slow
def test_an_image_that_one_rank_cannot_read(tmp_path: Path) -> None:
    folder = worker.start(tmp_path / "run")
    bad = dict(action="bad_image_during_run", rank=1, step=7, folder=str(folder), shard=True)
    with pytest.raises(N2NError, match=r"^unreadable image cat.jpg: truncated; saved after step 7, the same"):
        launch("training_worker", [json.dumps([bad])], 2)
    assert final_state(folder)["step"] == 7


class Block(nn.Module):
    """Two layers; what it returns is a view."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.two(F.relu(self.one(x))).view(x.shape)


class Net(nn.Module):
    """``how`` its blocks are called, or what is odd about them."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.blocks = nn.Sequential(Block(), Block()) if how == "listed" else nn.ModuleList([Block(), Block()])
        self.out = nn.Linear(8, 3)
        if how == "tied":
            self.blocks[1].one.weight = self.blocks[0].one.weight
        elif how == "frozen":
            self.blocks[1].requires_grad_(False)
        elif how == "number":
            self.scale = nn.Parameter(torch.tensor(1.0))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            if self.how == "in place":
                y = block(x)
                y += x
                x = y.relu_()
            elif self.how == "twice":
                x = block(block(x))
            elif self.how == "reads":
                x = F.linear(x, block.one.weight)
            else:
                x = block(x)
            if self.how == "unused":
                break
        return self.out(x)


@pytest.fixture
def group() -> Iterator[Ranks]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield Ranks()
    dist.destroy_process_group()


@pytest.mark.parametrize("how", ["called", "listed", "in place", "twice", "tied", "frozen", "unused"])
def test_networks_of_any_shape_have_the_gradients_of_their_copies(group: Ranks, how: str) -> None:
    """One rank, which FSDP2 treats as any: the parts, and not the sums, are what is tested."""
    torch.manual_seed(0)
    net = Net(how)
    whole, x = copy.deepcopy(net), torch.randn(5, 8)
    shard(net, group)
    assert sum(isinstance(m, Block) and type(m) is not Block for m in net.modules()) == (0 if how == "tied" else 2)
    for _ in range(2):
        for model in (net, whole):
            model(x).square().sum().backward()
    assert net.state_dict().keys() == whole.state_dict().keys()
    for ours, theirs in zip(net.parameters(), whole.parameters(), strict=True):
        assert type(ours) is not nn.Parameter and (ours.grad is None) == (theirs.grad is None)
        assert theirs.grad is None or torch.equal(gathered(ours.grad), theirs.grad)
    state = {name: torch.full_like(value, 0.5) for name, value in whole.state_dict().items()}
    net.load_state_dict(scattered(state, net.state_dict()))
    assert all(torch.equal(value, state[name]) for name, value in gathered(net.state_dict()).items())


def test_networks_that_cannot_be_split(group: Ranks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        N2NError, match=r"^launch\.shard: the parameter scale is a single number, which cannot be split$"
    ):
        shard(Net("number"), group)
    monkeypatch.setattr("n2n_cli.training.step.check_shard", lambda *arguments: None)  # which asks for two ranks
    options = FitOptions(1.0, 4, 0.1, shard=True)
    learner = Learner(tmp_path, Net("reads"), options, ranks=group, steps_per_epoch=1, mean=[0.5] * 3, std=[1.0] * 3)
    with pytest.raises(N2NError, match=r"^launch\.shard: Net reads weights of a layer that it does not call: "):
        learner.optimizer_step(torch.zeros(4, 3, 2, 8, dtype=torch.uint8), torch.zeros(4, dtype=torch.long))
