"""A run that is stopped after any step and resumed ends bit-identical to one that was never stopped."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import training_worker as worker

from n2n_cli import records
from n2n_cli.records import rows as read_rows
from n2n_cli.training import checkpoint
from n2n_cli.training.launch import launch
from n2n_cli.training.state import Run

SETTINGS: dict[str, dict[str, Any]] = {
    "sgd": dict(ema_decay=0.9, accumulate=2, clip_grad_norm=1.0, model=dict(dropout=0.5)),
    "rmsprop": dict(
        optimizer=dict(name="rmsprop", weight_decay=1e-3),
        schedule=dict(name="exponential", step_epochs=1.0, factor=0.16, warmup_epochs=0.4),
        ema_decay=0.99,
        label_smoothing=0.1,
        model=dict(dropout=0.3, aux=True),
    ),
    "mixed": dict(mixup_alpha=0.2, cutmix_alpha=1.0, accumulate=2, label_smoothing=0.1, model=dict(aux=True)),
    "adamw": dict(
        optimizer=dict(name="adamw", weight_decay=0.05, eps=1e-8),
        lr=1e-2,
        ema_decay=0.9,
        accumulate=2,
        clip_grad_norm=1.0,
        model=dict(dropout=0.5),
    ),
    "fp16": dict(precision="fp16", optimizer=dict(name="sgd", nesterov=True), model=dict(dropout=0.5)),
    "fp16 adam": dict(precision="fp16", optimizer=dict(name="adam", eps=1e-8), lr=1e-2, model=dict(dropout=0.5)),
}
SGD_ARGS = {k: v for k, v in SETTINGS["sgd"].items()}


def final_state(folder: Path) -> dict[str, Any]:
    path, _ = checkpoint.newest(folder / "checkpoints")
    assert path is not None
    state = checkpoint.load(path)
    del state["time_s"]
    return state


def rows(folder: Path) -> list[dict[str, Any]]:
    return [
        {k: v for k, v in row.items() if k != "time_s" and not k.startswith("perf/")}
        for row in read_rows(folder / "metrics.jsonl")
    ]


def best(folder: Path) -> dict[str, Any]:
    (path,) = (folder / "checkpoints").glob("best-*.pt")
    return checkpoint.load(path)


def differences(a: Any, b: Any, where: str = "") -> list[str]:
    """Where two trees of plain data and tensors differ in any bit."""
    if type(a) is not type(b):
        return [f"{where}: {type(a)} {type(b)}"]
    if isinstance(a, torch.Tensor):
        return [] if a.dtype == b.dtype and torch.equal(a, b) else [where]
    if isinstance(a, dict):
        if a.keys() != b.keys():
            return [f"{where}: keys {a.keys() ^ b.keys()}"]
        return [d for k in a for d in differences(a[k], b[k], f"{where}.{k}")]
    if isinstance(a, (list, tuple)):
        same = [] if len(a) == len(b) else [f"{where}: length"]
        return same + [
            d for i, (x, y) in enumerate(zip(a, b, strict=False)) for d in differences(x, y, f"{where}[{i}]")
        ]
    return [] if a == b else [f"{where}: {a} {b}"]


def assert_same_run(a: Path, b: Path) -> None:
    assert differences(final_state(a), final_state(b)) == []
    assert differences(best(a), best(b)) == []
    assert rows(a) == rows(b)
    done = [records.read(f / "done.json", records.DONE) for f in (a, b)]
    for summary in done:
        del summary["time_s"]
    assert done[0] == done[1]


@pytest.mark.parametrize("name", SETTINGS)
def test_stopped_after_any_step_is_bit_identical(tmp_path: Path, name: str) -> None:
    setting = SETTINGS[name]
    whole = worker.start(tmp_path / "whole", **setting["model"])
    worker.run(whole, **setting)
    for stop in range(1, 10):
        folder = worker.start(tmp_path / f"stop{stop}", **setting["model"])
        first = worker.run(folder, **setting, stop_after=stop)
        assert first["stopped"] and first["step"] == stop and not (folder / "done.json").exists()
        torch.rand(stop)  # the global generator stands elsewhere
        worker.run(folder, **setting)
        assert_same_run(whole, folder)


def test_stopped_after_every_step(tmp_path: Path) -> None:
    whole, folder = (
        worker.start(tmp_path / "whole", dropout=0.5),
        worker.start(tmp_path / "often", dropout=0.5),
    )
    worker.run(whole, **SGD_ARGS)
    for stop in range(0, 10):
        assert worker.run(folder, **SGD_ARGS, stop_after=stop)["step"] == stop
    worker.run(folder, **SGD_ARGS)
    assert_same_run(whole, folder)


class Killed(BaseException):
    """Nothing is saved on its account, as on SIGKILL's."""


def test_killed_behind_its_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGKILL between checkpoints: rows and a best file of the lost steps lie there, and come again."""
    whole, folder = worker.start(tmp_path / "whole"), worker.start(tmp_path / "killed")
    worker.run(whole, checkpoint_every_epochs=0.8)
    stop = {"after": 0}
    original = worker.MemoryLoader.batches

    def dying(self: Any, epoch: int, start_step: int = 0) -> Any:
        for i, batch in enumerate(original(self, epoch, start_step)):
            if self.train and epoch == 1 and i == 2 and not stop["after"]:
                stop["after"] = 1
                raise Killed
            yield batch

    monkeypatch.setattr(worker.MemoryLoader, "batches", dying)
    with pytest.raises(Killed):
        worker.run(folder, checkpoint_every_epochs=0.8)
    with open(folder / "metrics.jsonl", "a") as file:
        file.write('{"step": 9, "epo')  # the row it was writing
    (folder / "checkpoints" / ".tmp-1-step_00000009-0123456789abcdef.pt").write_bytes(b"half")
    assert rows(folder)[-1]["step"] == 6  # behind the checkpoint of step 4
    worker.run(folder, checkpoint_every_epochs=0.8)
    assert_same_run(whole, folder)
    assert not list((folder / "checkpoints").glob(".tmp*"))


def test_a_different_seed_or_a_lost_momentum_is_seen(tmp_path: Path) -> None:
    """Negative control: the comparison above notices what it is there to notice."""
    setting = SETTINGS["sgd"]
    whole, other = (worker.start(tmp_path / n, **setting["model"]) for n in ("whole", "other"))
    worker.run(whole, **setting)
    worker.run(other, **setting, seed=1)  # only dropout draws from it here
    assert any("model" in d for d in differences(final_state(whole), final_state(other)))
    lost = worker.start(tmp_path / "lost", **setting["model"])
    worker.run(lost, **setting, stop_after=5)
    path = checkpoint.resolve(lost)
    state = checkpoint.load(path)
    del state["optimizer"]
    path.unlink()
    checkpoint.save(lost / "checkpoints", state, step=5)
    worker.run(lost, **setting)
    assert any("model" in d for d in differences(final_state(whole), final_state(lost)))


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_torchrun_restarts_a_killed_rank_bit_identically(tmp_path: Path, rank: int) -> None:
    setting = SETTINGS["sgd"] | dict(epochs=20.0)
    whole, folder = (worker.start(tmp_path / name, **setting["model"]) for name in ("whole", "killed"))
    jobs = [
        dict(folder=str(whole), **setting),
        dict(action="killed_once_during_run", rank=rank, folder=str(folder), **setting),
    ]
    command = "-m torch.distributed.run --standalone --nproc-per-node=2 --max-restarts=2 -m training_worker"
    done = subprocess.run([sys.executable, *command.split(), json.dumps(jobs)], capture_output=True, timeout=200)
    assert done.returncode == 0, done.stderr.decode()[-3000:]
    assert (folder / "attempt1").exists()
    assert_same_run(whole, folder)


STOPS = (1, 3, 5, 8)


FP64: dict[str, dict[str, Any]] = {
    name: dict(optimizer=dict(name=name, weight_decay=0.05, **more), epochs=2.0, model=dict(double=True), lr=lr)
    for name, lr, more in (
        ("sgd", 0.1, dict(nesterov=True)),
        ("rmsprop", 0.05, dict(eps=1e-3)),
        ("adam", 0.01, dict(eps=1e-8)),
        ("adamw", 0.01, dict(eps=1e-8)),
    )
}
"""Without batch norm, whose statistics are of a micro-batch."""


def furthest(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    return max((a[key] - b[key]).abs().max().item() for key in a)


@pytest.mark.parametrize("name", FP64)
@pytest.mark.parametrize("clip", [None, 0.05])
def test_accumulated_steps_are_those_of_the_whole_batch(
    two_ranks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, clip: float | None
) -> None:
    """Ten steps in fp64, ragged micro-batches and two ranks too. Found: 7e-17 apart at most."""

    def end(where: str, accumulate: int) -> dict[str, torch.Tensor]:
        folder = worker.start(tmp_path / where, double=True)
        worker.run(folder, **FP64[name], accumulate=accumulate, clip_grad_norm=clip)
        return final_state(folder)["model"]

    whole = end("whole", 1)
    assert all(value.dtype == torch.float64 for value in whole.values())
    ends = {str(n): end(str(n), n) for n in (2, 3, 8)}
    if clip is None:
        ends["two ranks"] = final_state(two_ranks / f"fp64-{name}")["model"]
    assert max(furthest(whole, other) for other in ends.values()) < 1e-14, {
        k: furthest(whole, v) for k, v in ends.items()
    }
    assert furthest(whole, worker.Tiny(double=True).state_dict()) > 1e-2
    original = Run._forward

    def equal(self: Run, images: torch.Tensor, labels: torch.Tensor, *more: Any) -> tuple[torch.Tensor, torch.Tensor]:
        logits, loss = original(self, images, labels, *more)
        return logits, loss * 3 / len(labels)

    monkeypatch.setattr(Run, "_forward", equal)  # negative control: 3, 3 and 2 images, weighed alike
    assert furthest(whole, end("control", 3)) > 1e-4


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs on two gloo ranks: a whole one, some stopped and resumed, one of them by fresh processes."""
    base = tmp_path_factory.mktemp("two")
    setting = SETTINGS["sgd"]
    jobs: list[dict[str, Any]] = []
    for name in ("whole", "fresh", *(f"stop{s}" for s in STOPS)):
        worker.start(base / name, **setting["model"])
    worker.start(base / "rms", **SETTINGS["rmsprop"]["model"])
    worker.start(base / "plain")
    worker.start(base / "local_bn")
    worker.start(base / "bf16")
    jobs.append(dict(folder=str(base / "whole"), **setting))
    jobs.append(dict(folder=str(base / "fresh"), **setting, stop_after=4))
    for stop in STOPS:
        jobs.append(dict(folder=str(base / f"stop{stop}"), **setting, stop_after=stop))
        jobs.append(dict(folder=str(base / f"stop{stop}"), **setting))
    for name, fp64 in FP64.items():
        jobs.append(dict(folder=str(worker.start(base / f"fp64-{name}", double=True)), **fp64, accumulate=2))
    jobs.append(dict(folder=str(base / "plain"), accumulate=2, ema_decay=0.9))
    jobs.append(dict(folder=str(base / "local_bn"), accumulate=2, ema_decay=0.9, sync_bn=False))
    jobs.append(dict(folder=str(base / "bf16"), accumulate=2, ema_decay=0.9, compress_gradients=True))
    launch("training_worker", [json.dumps(jobs)], 2)
    launch("training_worker", [json.dumps([dict(folder=str(base / "fresh"), **setting)])], 2)
    return base


@pytest.mark.parametrize("name", ["fresh", *(f"stop{s}" for s in STOPS)])
def test_two_ranks_stopped_and_resumed_are_bit_identical(two_ranks: Path, name: str) -> None:
    assert_same_run(two_ranks / "whole", two_ranks / name)


def test_two_ranks_equal_one_with_the_same_global_batch(two_ranks: Path, tmp_path: Path) -> None:
    one = worker.start(tmp_path / "one")
    worker.run(one, accumulate=2, ema_decay=0.9)
    a, b = final_state(one), final_state(two_ranks / "plain")
    for part in ("model", "ema"):
        for key, value in a[part].items():
            torch.testing.assert_close(b[part][key], value, rtol=1e-4, atol=1e-5, msg=lambda m, k=key: f"{k}: {m}")
    for x, y in zip(rows(one), rows(two_ranks / "plain"), strict=True):
        assert x.keys() == y.keys() and x["step"] == y["step"]
        assert all(y[k] == pytest.approx(v, rel=1e-4) for k, v in x.items())
        assert all(y[k] == x[k] for k in x if "top" in k)
    # Negative control: with each rank's own batch statistics the numbers are others.
    local = final_state(two_ranks / "local_bn")["model"]
    assert max((local[k] - v).abs().max() for k, v in a["model"].items() if v.is_floating_point()) > 1e-2


def test_gradients_travel_in_bf16_where_asked(two_ranks: Path) -> None:
    """Rounded to 8 bits between the ranks: near the others, and not the same."""
    plain, rounded = (final_state(two_ranks / name)["model"] for name in ("plain", "bf16"))
    apart = furthest(plain, rounded)
    assert 1e-5 < apart < 5e-2
