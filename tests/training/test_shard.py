"""A run whose weights, optimizer state and average are split over its ranks computes what one does that has them whole.

Two gloo ranks, in one launch for all tests of the fast suite.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import training_worker as worker
from test_resume import SETTINGS, best, differences, final_state, furthest, rows
from torch import nn

from n2n_cli.errors import N2NError
from n2n_cli.training.launch import launch
from n2n_cli.training.shard import _divide

PAIRS: dict[str, dict[str, Any]] = {
    "sgd": SETTINGS["sgd"],
    "rmsprop": SETTINGS["rmsprop"],
    "adamw": SETTINGS["adamw"],
    "fp16": SETTINGS["fp16"],
    "local": dict(sync_bn=False, ema_decay=0.9),
    "bf16": dict(accumulate=2, ema_decay=0.9, compress_gradients=True),
}
STOPPED = ("sgd", "adamw")


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every setting of `PAIRS` as DDP and sharded; those of `STOPPED` also begun as the one and ended as the other."""
    base = tmp_path_factory.mktemp("shard")
    jobs: list[dict[str, Any]] = []

    def job(name: str, setting: dict[str, Any], **more: Any) -> None:
        folder = base / name
        if not folder.exists():
            worker.start(folder, **setting.get("model", {}))
        jobs.append(dict(folder=str(folder), **setting, **more))

    for name, setting in PAIRS.items():
        job(f"{name}-ddp", setting)
        job(f"{name}-shard", setting, shard=True)
    for name in STOPPED:
        for first in (False, True):
            where = f"{name}-{'shard' if first else 'ddp'}-first"
            job(where, PAIRS[name], shard=first, stop_after=4)
            job(where, PAIRS[name], shard=not first)
        job(f"{name}-stopped", PAIRS[name], shard=True, stop_after=4)
        job(f"{name}-half", PAIRS[name], shard=True, stop_after=4)
        job(f"{name}-stopped", PAIRS[name], shard=True)
    launch("training_worker", [json.dumps(jobs)], 2)
    return base


def assert_alike(a: Path, b: Path, rtol: float = 1e-5, atol: float = 1e-6) -> None:
    """Weights, average, optimizer state, best checkpoint and rows, to rounding."""
    one, other = final_state(a), final_state(b)
    assert one.keys() == other.keys()
    for state, same in ((one, other), (best(a), best(b))):
        for part in ("model", "ema"):
            torch.testing.assert_close(same[part], state[part], rtol=rtol, atol=atol)
    groups = [[group["params"] for group in state["optimizer"]["param_groups"]] for state in (one, other)]
    assert groups[0] == groups[1]
    torch.testing.assert_close(other["optimizer"]["state"], one["optimizer"]["state"], rtol=rtol, atol=atol)
    for x, y in zip(rows(a), rows(b), strict=True):
        assert x.keys() == y.keys() and all(y[k] == pytest.approx(v, rel=1e-4) for k, v in x.items())


@pytest.mark.parametrize("name", PAIRS)
def test_sharded_is_ddp_to_rounding(two_ranks: Path, name: str) -> None:
    assert_alike(
        two_ranks / f"{name}-ddp", two_ranks / f"{name}-shard", **(dict(rtol=1e-2, atol=1e-2) if name == "bf16" else {})
    )
    moved = furthest(
        final_state(two_ranks / f"{name}-shard")["model"], worker.Tiny(**PAIRS[name].get("model", {})).state_dict()
    )
    assert moved > 1e-2


@pytest.mark.parametrize("name", STOPPED)
@pytest.mark.parametrize("first", ["ddp", "shard"])
def test_begun_as_the_one_it_goes_on_as_the_other(two_ranks: Path, name: str, first: str) -> None:
    assert_alike(two_ranks / f"{name}-ddp", two_ranks / f"{name}-{first}-first")


@pytest.mark.parametrize("name", STOPPED)
def test_sharded_stopped_and_resumed_is_bit_identical(two_ranks: Path, name: str) -> None:
    assert differences(final_state(two_ranks / f"{name}-shard"), final_state(two_ranks / f"{name}-stopped")) == []


def test_one_process_goes_on_from_a_sharded_checkpoint(two_ranks: Path) -> None:
    state = final_state(two_ranks / "adamw-half")
    assert state["step"] == 4 and {type(v) for v in state["model"].values()} == {torch.Tensor}
    assert state["model"].keys() == worker.Tiny(dropout=0.5).state_dict().keys()
    assert worker.run(two_ranks / "adamw-half", **PAIRS["adamw"])["step"] == 10
