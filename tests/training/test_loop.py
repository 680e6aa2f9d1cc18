"""The loop: what it writes, when it is done, what stops it."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import training_worker as worker

from n2n_cli import records
from n2n_cli.errors import Diverged, N2NError
from n2n_cli.records import rows as read_rows
from n2n_cli.training import checkpoint
from n2n_cli.training.evaluate import Normalize
from n2n_cli.training.loop import SIGNALS
from n2n_cli.training.optim import lr_at
from n2n_cli.training.options import check_batch
from n2n_cli.training.ranks import Ranks
from n2n_cli.training.state import Run


def test_the_loop_is_plain_sgd(tmp_path: Path) -> None:
    """Against a hand-written loop: same batches, momentum, schedule, clipping, weight decay by shape."""
    folder = worker.start(tmp_path / "run")
    changes = dict(optimizer=dict(name="sgd", momentum=0.9, weight_decay=0.01), label_smoothing=0.1, clip_grad_norm=0.3)
    worker.run(folder, **changes, channels_last=False)
    torch.manual_seed(3)
    model, loader = worker.Tiny(), worker.MemoryLoader(train=True)
    normalize = Normalize(worker.MEAN, worker.STD, torch.device("cpu"))
    buffers = [torch.zeros_like(p) for p in model.parameters()]
    losses = []
    for step, (images, labels) in enumerate([*loader.batches(0), *loader.batches(1)]):
        loss = F.cross_entropy(model(normalize(images)), labels, label_smoothing=0.1)
        losses.append(loss.item())
        grads = torch.autograd.grad(loss, list(model.parameters()))
        norm = torch.sqrt(sum((g**2).sum() for g in grads))
        lr = lr_at(step, base_lr=0.05, total_steps=10)
        with torch.no_grad():
            for p, g, b in zip(model.parameters(), grads, buffers, strict=True):
                g = g * min(1.0, 0.3 / float(norm)) + (0.01 * p if p.ndim > 1 else 0)
                b.mul_(0.9).add_(g)
                p -= lr * b
    state = checkpoint.load(checkpoint.resolve(folder))
    for key, value in model.state_dict().items():
        torch.testing.assert_close(state["model"][key], value, rtol=1e-4, atol=1e-5, msg=key)
    first = read_rows(folder / "metrics.jsonl")[2]
    assert first["step"] == 3 and first["train/loss"] == pytest.approx(sum(losses[:3]) / 3, rel=1e-5)


def test_what_a_run_leaves(tmp_path: Path) -> None:
    folder = worker.start(tmp_path / "run")
    summary = worker.run(folder, ema_decay=0.9)
    assert records.read(folder / "done.json", records.DONE) == summary
    assert summary["step"] == 10 and summary["images"] == 80 and summary["epochs"] == 2.0
    rows = read_rows(folder / "metrics.jsonl")
    evaluated = [r for r in rows if "val/top1" in r]
    assert [r["step"] for r in evaluated] == [0, 2, 5, 10]
    assert [r["step"] for r in rows if "train/loss" in r] == [3, 6, 9, 10]
    assert summary["start"]["val/top1"] == evaluated[0]["val/top1"]
    assert summary["final"]["val/loss"] == evaluated[-1]["val/loss"]
    assert summary["best"]["val/top1"] == max(r["val/top1"] for r in evaluated)
    measured = {"step", "epoch", "images", "time_s", "lr", "train/top1", "val/top5"}
    assert rows[-1].keys() >= measured | {"perf/images_per_s", "perf/data_wait"}
    state = checkpoint.load(checkpoint.resolve(folder))
    assert state["lineage"] == worker.LINEAGE and state["config"] == "a: 1\n"
    weights = checkpoint.weights(state)
    assert not torch.equal(weights["classifier.weight"], state["model"]["classifier.weight"])
    assert len(list((folder / "checkpoints").glob("step_*"))) == 2


def test_a_finished_run_returns_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = worker.start(tmp_path / "run")
    summary = worker.run(folder)
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*")}
    monkeypatch.setattr(Run, "__init__", lambda *_, **__: pytest.fail("it started again"))
    assert worker.run(folder) == summary
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*")} == before


def test_killed_between_last_checkpoint_and_done(tmp_path: Path) -> None:
    folder = worker.start(tmp_path / "run")
    summary = worker.run(folder)
    (folder / "done.json").unlink()
    again = worker.run(folder)
    assert again == summary and (folder / "done.json").exists()


def test_zero_epochs_only_evaluates(tmp_path: Path) -> None:
    folder = worker.start(tmp_path / "run")
    summary = worker.run(folder, epochs=0)
    assert summary["step"] == 0 and summary["start"] == summary["final"] == summary["best"]
    assert [r["step"] for r in read_rows(folder / "metrics.jsonl")] == [0]


def test_start_accuracy_is_the_checkpoints(tmp_path: Path) -> None:
    """A run starts at the weights of its start checkpoint, not at the model's it is given."""
    a, b = worker.start(tmp_path / "a"), worker.start(tmp_path / "b", seed=9)
    assert worker.run(a, epochs=0)["start"]["val/loss"] != worker.run(b, epochs=0)["start"]["val/loss"]


@pytest.mark.parametrize("accumulate", [2, 3, 8])
def test_accumulated_gradients_are_the_batchs(tmp_path: Path, accumulate: int) -> None:
    """Without batch norm a step does not depend on its micro-batches, even ones of different sizes."""
    states = []
    for n in (1, accumulate):
        torch.manual_seed(0)
        model = torch.nn.Sequential(
            torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(196, 4)
        )
        folder = tmp_path / str(n)
        checkpoint.save(folder / "checkpoints", {"format": 1, "model": model.state_dict(), "step": 0}, step=0)
        run = Run(
            folder, model, worker.options(accumulate=n), ranks=Ranks(), steps_per_epoch=5,
            lineage={}, config="", mean=worker.MEAN, std=worker.STD,
        )  # fmt: skip
        for images, labels in worker.MemoryLoader(train=True).batches(0):
            run.optimizer_step(images, labels)
        states.append((model.state_dict(), run.training_means()))
    for key, value in states[0][0].items():
        torch.testing.assert_close(states[1][0][key], value, rtol=1e-4, atol=1e-5)
    assert states[1][1] == pytest.approx(states[0][1], rel=1e-4)


def test_a_network_that_keeps_a_tensor_of_its_evaluation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = worker.Tiny.forward

    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        if not hasattr(self, "table"):
            self.table = torch.linspace(1, 2, worker.CLASSES)
        return original(self, x) * self.table

    monkeypatch.setattr(worker.Tiny, "forward", forward)
    assert worker.run(worker.start(tmp_path / "run"), epochs=0.2)["step"] == 1


def test_shares_of_a_run_that_are_the_same_step(tmp_path: Path) -> None:
    folder = worker.start(tmp_path / "run")
    worker.run(folder, keep_at=(0.31, 0.32, 0.5))
    steps = [checkpoint.load(checkpoint.kept_at(folder, at))["step"] for at in (0.31, 0.32, 0.5)]
    assert steps == [3, 3, 5]


def test_auxiliary_heads_are_trained_by_their_weight(tmp_path: Path) -> None:
    losses = []
    for weight in (0.0, 1.0):
        folder = worker.start(tmp_path / str(weight), aux=True)
        worker.run(folder, model=dict(aux=True), aux_weight=weight)
        state = checkpoint.load(checkpoint.resolve(folder))["model"]
        torch.manual_seed(3)
        moved = (state["aux.weight"] - worker.Tiny(aux=True).aux.weight).abs().max().item()  # type: ignore[union-attr]
        losses.append((moved, read_rows(folder / "metrics.jsonl")[2]["train/loss"]))
    assert losses[0][0] == 0 and losses[1][0] > 1e-3
    assert losses[1][1] > losses[0][1] + 1


def test_a_loss_that_is_not_finite(tmp_path: Path) -> None:
    folder = worker.start(tmp_path / "run")
    with pytest.raises(N2NError, match=r"training loss of step \d+ is (nan|inf) \(lr 1e\+25\)") as caught:
        worker.run(folder, lr=1e25, schedule=dict(name="constant"), log_every=100, epochs=4.0)
    assert "\n" not in str(caught.value)
    state = checkpoint.load(checkpoint.resolve(folder))
    assert state["step"] == 0  # what is not finite is never saved


@pytest.mark.parametrize(
    "changes, line",
    [
        (dict(accumulate=9), "training.accumulate: 9 micro-batches are more than the 8 images"),
        (dict(precision="fp8"), "training.precision='fp8'"),
        (dict(optimizer=dict(name="adamax")), "optim.name='adamax'"),
        (dict(schedule=dict(name="step")), "step_epochs above 0"),
        (dict(model=dict(aux=True)), "holds another network"),
    ],
)
def test_what_does_not_fit_is_one_line(tmp_path: Path, changes: dict[str, object], line: str) -> None:
    folder = worker.start(tmp_path / "run")
    with pytest.raises(N2NError, match=line) as caught:
        worker.run(folder, **changes)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_more_ranks_than_the_config_knew_of(tmp_path: Path) -> None:
    """``torchrun`` may start any number: the batch must divide over those that run."""
    ranks = Ranks(0, 3)
    with pytest.raises(N2NError, match=r"training\.batch_size: 8 images do not divide over devices=3"):
        Run(
            tmp_path, worker.Tiny(), worker.options(), ranks=ranks, steps_per_epoch=5,
            lineage={}, config="", mean=worker.MEAN, std=worker.STD,
        )  # fmt: skip


def test_micro_batches_are_those_of_one_device(tmp_path: Path) -> None:
    """Every third of four images a rank are other ones than every third of eight."""
    line = r"training\.accumulate: 3 micro-batches do not divide the 4 images of a device's batch"
    with pytest.raises(N2NError, match=line):
        check_batch(8, 3, 2)
    check_batch(8, 3, 1)
    check_batch(8, 4, 2)


def test_fp16_ends_where_every_gradient_overflows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The scaler would leave out every step, and the run would end with the weights that it began with."""
    original = worker.Tiny.forward

    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        logits = original(self, x)
        if logits.requires_grad:
            logits.register_hook(lambda gradient: gradient * math.inf)
        return logits

    monkeypatch.setattr(worker.Tiny, "forward", forward)
    with pytest.raises(Diverged, match=r"the gradient of step 28 is inf"):
        worker.run(worker.start(tmp_path / "run"), precision="fp16", epochs=8.0)


def test_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(N2NError, match="no good checkpoint"):
        (tmp_path / "empty").mkdir()
        worker.run(tmp_path / "empty")
    with pytest.raises(N2NError, match="no run folder"):
        worker.run(tmp_path / "missing")


def test_a_loader_that_ends_early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        worker.MemoryLoader, "batches", lambda self, epoch, start_step=0: iter(()) if self.train else self_val(self)
    )

    def self_val(loader: worker.MemoryLoader) -> object:
        return iter([(loader.images, loader.labels)])

    with pytest.raises(N2NError, match="training data ended at step 0, short of 5 steps an epoch"):
        worker.run(worker.start(tmp_path / "run"))


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1"])
def test_a_signal_saves_the_step_and_the_run_resumes(tmp_path: Path, name: str) -> None:
    whole, folder = worker.start(tmp_path / "whole"), worker.start(tmp_path / "run")
    worker.run(whole, epochs=3.0)
    original = worker.MemoryLoader.batches

    def interrupting(self: worker.MemoryLoader, epoch: int, start_step: int = 0) -> object:
        for i, batch in enumerate(original(self, epoch, start_step)):
            if self.train and epoch == 1 and i == 1:
                os.kill(os.getpid(), getattr(signal, name))
            yield batch

    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests may run under nohup
    handlers = [signal.getsignal(number) for number in SIGNALS]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(worker.MemoryLoader, "batches", interrupting)
        with pytest.raises(KeyboardInterrupt, match="stopped after step 6 and saved"):
            worker.run(folder, epochs=3.0)
    assert [signal.getsignal(number) for number in SIGNALS] == handlers
    signal.signal(signal.SIGHUP, before)
    assert checkpoint.load(checkpoint.resolve(folder))["step"] == 6
    worker.run(folder, epochs=3.0)
    a, b = (checkpoint.load(checkpoint.resolve(f))["model"] for f in (whole, folder))
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_a_signal_in_the_last_evaluation_stops_what_would_come_after(tmp_path: Path) -> None:
    folder = worker.start(tmp_path / "run")
    original, calls = worker.MemoryLoader.batches, []

    def batches(self: worker.MemoryLoader, epoch: int, start_step: int = 0) -> object:
        calls.append(self.train)
        if calls.count(False) == 4:
            os.kill(os.getpid(), signal.SIGUSR1)
        return original(self, epoch, start_step)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(worker.MemoryLoader, "batches", batches)
        with pytest.raises(KeyboardInterrupt, match="had come to its end"):
            worker.run(folder)
    assert json.loads((folder / "done.json").read_text())["step"] == 10


def test_under_nohup_a_hangup_is_not_heard(tmp_path: Path) -> None:
    folder = worker.start(tmp_path / "run")
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    original = worker.MemoryLoader.batches

    def hanging_up(self: worker.MemoryLoader, epoch: int, start_step: int = 0) -> object:
        os.kill(os.getpid(), signal.SIGHUP)
        yield from original(self, epoch, start_step)

    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(worker.MemoryLoader, "batches", hanging_up)
            assert worker.run(folder)["step"] == 10
    finally:
        signal.signal(signal.SIGHUP, before)


def failing(step: int, error: Exception) -> Callable[..., object]:
    original = worker.MemoryLoader.batches

    def batches(self: worker.MemoryLoader, epoch: int, start_step: int = 0) -> object:
        for i, batch in enumerate(original(self, epoch, start_step), start_step):
            if self.train and epoch * self.steps_per_epoch + i == step:
                raise error
            yield batch

    return batches


@pytest.mark.parametrize("error", [N2NError("unreadable image cat.jpg: truncated"), OSError(5, "Input/output error")])
def test_the_steps_before_an_error_are_kept(tmp_path: Path, error: Exception) -> None:
    whole, folder = worker.start(tmp_path / "whole"), worker.start(tmp_path / "run")
    worker.run(whole)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(worker.MemoryLoader, "batches", failing(8, error))
        with pytest.raises(type(error)) as caught:
            worker.run(folder, checkpoint_every_epochs=0)
    if isinstance(error, N2NError):
        assert str(caught.value) == f"{error}; saved after step 8, the same command goes on from there"
    assert checkpoint.load(checkpoint.resolve(folder))["step"] == 8
    worker.run(folder)
    a, b = (checkpoint.load(checkpoint.resolve(f))["model"] for f in (whole, folder))
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_a_failed_evaluation_is_made_when_the_run_goes_on(tmp_path: Path) -> None:
    whole, folder = worker.start(tmp_path / "whole"), worker.start(tmp_path / "run")
    worker.run(whole, log_every=5)
    original, calls = worker.MemoryLoader.batches, []

    def batches(self: worker.MemoryLoader, epoch: int, start_step: int = 0) -> object:
        if not self.train:
            calls.append(epoch)
            if len(calls) == 4:  # of step 5, after those of 0, 2 and 3 or so
                raise N2NError("unreadable image dog.jpg: truncated")
        return original(self, epoch, start_step)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(worker.MemoryLoader, "batches", batches)
        with pytest.raises(N2NError, match=r"dog.jpg: truncated; saved after step"):
            worker.run(folder, log_every=5)
    worker.run(folder, log_every=5)
    timing = ("time_s", "perf/images_per_s", "perf/data_wait")
    ours, theirs = (
        [{k: v for k, v in row.items() if k not in timing} for row in read_rows(f / "metrics.jsonl")]
        for f in (folder, whole)
    )
    assert ours == theirs


def test_an_error_within_a_step_saves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = worker.start(tmp_path / "run")
    calls: list[int] = []

    def backward(*args: object, **kwargs: object) -> None:
        calls.append(1)
        if len(calls) == 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        original(*args, **kwargs)

    original = torch.Tensor.backward
    monkeypatch.setattr(torch.Tensor, "backward", backward)
    with pytest.raises(torch.OutOfMemoryError):
        worker.run(folder, checkpoint_every_epochs=0)
    assert checkpoint.load(checkpoint.resolve(folder))["step"] == 0


def test_checkpoints_by_the_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved: list[int] = []
    original = checkpoint.save
    monkeypatch.setattr(checkpoint, "save", lambda *a, step, **k: (saved.append(step), original(*a, step=step, **k))[1])
    for minutes, steps in ((0, [10]), (60, [10]), (1e-9, [*range(1, 11)])):
        saved.clear()
        folder = worker.start(tmp_path / str(minutes))
        saved.clear()
        worker.run(folder, checkpoint_every_epochs=0, checkpoint_every_minutes=minutes)
        assert saved == steps


def test_what_is_not_finite_is_never_the_best(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = worker.start(tmp_path / "run")
    original = worker.Tiny.forward

    def forward(self: worker.Tiny, x: torch.Tensor) -> object:
        out = original(self, x)
        late = (folder / "metrics.jsonl").read_text().count("val/top1") > 2
        return out if self.training or not late else out * math.nan  # class 0 would be right for many images

    monkeypatch.setattr(worker.Tiny, "forward", forward)
    with pytest.raises(Diverged, match=r"the validation loss of step 10 is nan \(lr .*\); the last checkpoint stays"):
        worker.run(folder)
    best = next((folder / "checkpoints").glob("best-*.pt"))
    assert checkpoint.load(best)["step"] < 10 and not (folder / "done.json").exists()


def test_nothing_is_updated_by_a_gradient_that_is_not_finite(tmp_path: Path) -> None:
    folder = worker.start(tmp_path / "run")
    run = Run(folder, worker.Tiny(), worker.options(), ranks=Ranks(), steps_per_epoch=5, lineage=worker.LINEAGE,
              config="", mean=worker.MEAN, std=worker.STD)  # fmt: skip
    images, labels = next(worker.MemoryLoader(train=True).batches(0))
    run.optimizer_step(images, labels)
    before = {name: p.detach().clone() for name, p in run.model.named_parameters()}
    hook = run.model.classifier.weight.register_hook(lambda gradient: gradient * math.inf)  # type: ignore[union-attr]
    with pytest.raises(Diverged, match=r"the gradient of step 2 is (nan|inf) \(lr "):
        run.optimizer_step(images, labels)
    hook.remove()
    assert all(torch.equal(before[name], p) for name, p in run.model.named_parameters())
    assert run.step == 1 and not run.whole


def test_in_fp16_the_loss_of_another_rank_is_told_as_the_gradient(tmp_path: Path) -> None:
    """A rank with a finite loss of its own may be the first to be heard."""

    class BesideNaN(Ranks):
        def any(self, *flags: bool) -> list[bool]:
            return [True, False]

    run = Run(worker.start(tmp_path / "run"), worker.Tiny(), worker.options(precision="fp16"), ranks=BesideNaN(),
              steps_per_epoch=5, lineage=worker.LINEAGE, config="", mean=worker.MEAN, std=worker.STD)  # fmt: skip
    with pytest.raises(Diverged, match=r"the gradient of step 1 is inf \(lr "):
        run.optimizer_step(*next(worker.MemoryLoader(train=True).batches(0)))


@pytest.mark.parametrize("log_every", [1, 4, 100])
def test_a_gpu_that_is_never_waited_for_saves_nothing_that_is_not_finite(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log_every: int
) -> None:
    """There, a step is told of a step later: as if this CPU were one."""
    made = Run.__init__

    def late(self: Run, *args: Any, **given: Any) -> None:
        made(self, *args, **given)
        self._late = True
        update = self._update
        self._update = lambda loss: update(loss * math.nan if self.step == 6 else loss)  # type: ignore[method-assign]

    monkeypatch.setattr(Run, "__init__", late)
    folder = worker.start(tmp_path / "run")
    with pytest.raises(Diverged, match=r"the training loss of step 7 is nan \(lr "):
        worker.run(folder, log_every=log_every, checkpoint_every_minutes=1e-9)
    state = checkpoint.load(checkpoint.resolve(folder))
    assert state["step"] == 6 and all(t.isfinite().all() for t in state["model"].values())
    assert "NaN" not in (folder / "metrics.jsonl").read_text()


SIGTERM = """
import sys
import training_worker as worker
print("up", flush=True)
worker.run(sys.argv[1], epochs=1e6, checkpoint_every_epochs=0)
"""


def test_sigterm_from_outside(tmp_path: Path) -> None:
    folder = worker.start(tmp_path / "run")
    process = subprocess.Popen([sys.executable, "-c", SIGTERM, str(folder)], stderr=subprocess.PIPE)
    metrics, deadline = folder / "metrics.jsonl", time.monotonic() + 60
    while not (metrics.exists() and metrics.stat().st_size > 1000) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert b"KeyboardInterrupt: stopped after step" in err
    assert checkpoint.load(checkpoint.resolve(folder))["step"] > 0


def test_bf16_and_channels_last_train(tmp_path: Path) -> None:
    full, half = worker.start(tmp_path / "fp32"), worker.start(tmp_path / "bf16")
    a = worker.run(full, channels_last=False)["final"]["val/loss"]
    b = worker.run(half, precision="bf16", channels_last=True)["final"]["val/loss"]
    assert a != b and b == pytest.approx(a, rel=0.05)
    assert all(v.dtype != torch.bfloat16 for v in checkpoint.load(checkpoint.resolve(half))["model"].values())


@pytest.mark.slow
def test_compiled(tmp_path: Path) -> None:
    plain, compiled = worker.start(tmp_path / "plain"), worker.start(tmp_path / "compiled")
    a = worker.run(plain)["final"]["val/loss"]
    assert worker.run(compiled, compile=True)["final"]["val/loss"] == pytest.approx(a, rel=1e-3)


@pytest.mark.parametrize("slow", [True, False])
def test_waiting_for_images_is_measured_and_told_once(
    tmp_path: Path, slow: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    batches = worker.MemoryLoader.batches

    def late(self: Any, *words: Any, **more: Any) -> Any:
        for batch in batches(self, *words, **more):
            time.sleep(0.05 if slow and self.train else 0)
            yield batch

    monkeypatch.setattr(worker.MemoryLoader, "batches", late)
    monkeypatch.setattr(worker.MemoryLoader, "remedy", "buy a disk", raising=False)
    folder = worker.start(tmp_path / "run")
    worker.run(folder, log_every=1, epochs=4.0)
    waits = [row["perf/data_wait"] for row in read_rows(folder / "metrics.jsonl") if "perf/data_wait" in row]
    assert len(waits) == 20 and all(0 <= wait <= 1 for wait in waits)
    assert sorted(waits)[10] > 0.5 if slow else min(waits) < 0.5
    told = [line for line in capsys.readouterr().err.splitlines() if "is spent waiting for images; buy a disk" in line]
    assert len(told) == 1 if slow else len(told) <= 1
