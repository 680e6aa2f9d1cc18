"""EMA, evaluation, precision and the run log, each by itself."""

from __future__ import annotations

import errno
import importlib
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import training_worker as worker
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn

from n2n_cli.errors import N2NError
from n2n_cli.records import rows as read_rows
from n2n_cli.training.ema import EMA
from n2n_cli.training.evaluate import FOLDED_FROM, Normalize, evaluate, main_output
from n2n_cli.training.precision import autocast_dtype, use_channels_last
from n2n_cli.training.runlog import RunLog

CPU = torch.device("cpu")


def test_ema_follows_its_rule_in_weights_and_buffers() -> None:
    model = worker.Tiny().double()
    ema = EMA(model, 0.8)
    assert all(torch.equal(a, b) for a, b in zip(ema.state_dict().values(), model.state_dict().values(), strict=True))
    expected = {k: v.clone() for k, v in model.state_dict().items()}
    for step in range(1, 60):
        for key, value in model.state_dict().items():
            value.copy_(torch.randn(value.shape) if value.is_floating_point() else torch.tensor(step))
            d = min(0.8, (1 + step) / (10 + step))
            floating = value.is_floating_point()
            expected[key] = d * expected[key] + (1 - d) * value if floating else value.clone()
        ema.update(step)
    assert ema.state_dict().keys() == model.state_dict().keys()
    for key, value in ema.state_dict().items():
        torch.testing.assert_close(value, expected[key], rtol=1e-12, atol=1e-12)
    assert int(ema.state_dict()["features.1.num_batches_tracked"]) == 59
    assert not any(p.requires_grad for p in ema.module.parameters()) and not ema.module.training
    shared = {p.data_ptr() for p in model.parameters()} & {p.data_ptr() for p in ema.module.parameters()}
    assert not shared


@pytest.mark.parametrize("channels_last", [False, True])
def test_normalize(channels_last: bool) -> None:
    images = torch.randint(0, 256, (2, 3, 5, 4), dtype=torch.uint8)
    mean, std = torch.tensor(worker.MEAN).view(3, 1, 1), torch.tensor(worker.STD).view(3, 1, 1)
    x = Normalize(worker.MEAN, worker.STD, CPU, channels_last)(images)
    torch.testing.assert_close(x, (images / 255.0 - mean) / std, rtol=1e-5, atol=1e-5)
    assert x.dtype == torch.float32
    assert x.is_contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


class Lists:
    def __init__(self, *batches: tuple[Tensor, Tensor]) -> None:
        self.given, self.steps_per_epoch = batches, len(batches)

    def batches(self, epoch: int, start_step: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        return iter(self.given)


class Means(nn.Module):
    """Logits ``[b, 9]``: nine fixed linear functions of the channel means."""

    def __init__(self, classes: int = 9) -> None:
        super().__init__()
        self.head = nn.Linear(3, classes)
        self.frozen = nn.BatchNorm1d(3).eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x.mean((2, 3)))


@pytest.mark.parametrize("classes", [9, 3])
def test_evaluate_counts_exactly(classes: int) -> None:
    model = Means(classes)
    images, labels = torch.randint(0, 256, (57, 3, 4, 4), dtype=torch.uint8), torch.randint(0, classes, (57,))
    cuts = list(zip(images.split(20), labels.split(20), strict=True))  # the last batch has 17
    measured = evaluate(model, Lists(*cuts), device=CPU, mean=worker.MEAN, std=worker.STD)
    with torch.no_grad():
        logits = model(Normalize(worker.MEAN, worker.STD, CPU)(images))
    order = logits.argsort(1, descending=True)
    assert measured["val/top1"] == int((order[:, 0] == labels).sum()) / 57
    assert measured["val/top5"] == int((order[:, :5] == labels[:, None]).any(1).sum()) / 57
    assert measured["val/loss"] == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-6)
    assert classes == 9 or measured["val/top5"] == 1.0
    assert model.training and model.head.training and not model.frozen.training  # the mode is as it was


def test_evaluating_folded_and_in_bf16() -> None:
    """Batch norms inside the convolutions give the same counts; bf16 the same to its eight bits."""
    torch.manual_seed(0)
    model = worker.Tiny()
    images, labels = torch.randint(0, 256, (60, 3, 9, 9), dtype=torch.uint8), torch.randint(0, 4, (60,))
    model(Normalize(worker.MEAN, worker.STD, CPU)(images))  # statistics
    few, many = (Lists(*zip(images.split(n), labels.split(n), strict=True)) for n in (20, 10))
    how: dict[str, Any] = {"device": CPU, "mean": worker.MEAN, "std": worker.STD}
    plain, folded = evaluate(model, few, **how), evaluate(model, many, **how)
    half = evaluate(model, many, **how, precision="bf16")
    assert few.steps_per_epoch < FOLDED_FROM <= many.steps_per_epoch and model.training
    assert {key: plain[key] for key in ("val/top1", "val/top5")} == {
        key: folded[key] for key in ("val/top1", "val/top5")
    }
    assert folded["val/loss"] == pytest.approx(plain["val/loss"], rel=1e-6)
    assert 1e-6 < abs(half["val/loss"] / plain["val/loss"] - 1) < 1e-2


def test_evaluating_nothing() -> None:
    with pytest.raises(N2NError, match="no images"):
        evaluate(Means(), Lists(), device=CPU, mean=worker.MEAN, std=worker.STD)


def test_outputs() -> None:
    logits, aux = main_output(worker.Tiny(aux=True)(torch.zeros(2, 3, 9, 9)))
    assert logits.shape == (2, 4) and len(aux) == 1
    with pytest.raises(N2NError, match="the model returns dict"):
        main_output({"out": logits})


def test_precision_names(monkeypatch: pytest.MonkeyPatch) -> None:
    assert autocast_dtype("fp32", CPU, 10) is None and autocast_dtype("bf16", CPU, 10) == torch.bfloat16
    monkeypatch.setattr("n2n_cli.training.precision._cpu_has_bf16", lambda: True)
    assert autocast_dtype("auto", CPU, 10_000) is None and autocast_dtype("auto", CPU, 10**6) == torch.bfloat16
    monkeypatch.setattr("n2n_cli.training.precision._cpu_has_bf16", lambda: False)
    assert autocast_dtype("auto", CPU, 10**6) is None
    with pytest.raises(N2NError, match=r"did you mean 'bf16'"):
        autocast_dtype("bf61", CPU, 10)
    assert use_channels_last("true") and not use_channels_last(False)
    with pytest.raises(N2NError, match="expected auto, true or false"):
        use_channels_last("yes")


def scalars(folder: Path, tag: str) -> list[tuple[int, float]]:
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    return [(e.step, e.value) for e in events.Scalars(tag)]


def log(folder: Path, start: int, steps: range, **changes: object) -> None:
    runlog = RunLog(
        folder, start_step=start, total_steps=10, progress=False, hparams={"lr": 0.1, "model": "tiny"}, **changes
    )  # type: ignore[arg-type]
    for step in steps:
        runlog.row(step, epoch=step / 5, images=8 * step, time_s=0.1 * step, **{"train/loss": 1.0 / (1 + step)})
    runlog.sync()
    runlog.close()
    runlog.close()


def test_log_is_cut_behind_the_checkpoint_in_both_places(tmp_path: Path) -> None:
    log(tmp_path, 0, range(0, 8))
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 8, "train/lo')
    log(tmp_path, 4, range(5, 10))
    rows = read_rows(tmp_path / "metrics.jsonl")
    assert [r["step"] for r in rows] == list(range(10))
    assert rows[3] == {"step": 3, "epoch": 0.6, "images": 24, "time_s": 0.3, "train/loss": 0.25}
    assert [s for s, _ in scalars(tmp_path, "train/loss")] == list(range(10))
    log(tmp_path, 0, range(0, 3))  # from the start checkpoint: everything comes again
    assert [r["step"] for r in read_rows(tmp_path / "metrics.jsonl")] == [0, 1, 2]
    assert [s for s, _ in scalars(tmp_path, "train/loss")] == [0, 1, 2]
    assert not [p for p in tmp_path.iterdir() if p.is_dir()]  # no hparams sub-run
    events = EventAccumulator(str(tmp_path)).Reload()
    assert "_hparams_/session_start_info" in events.SummaryMetadata(
        "_hparams_/session_start_info"
    ).plugin_data.plugin_name or events.PluginTagToContent("hparams")


@pytest.mark.parametrize("back_s", [0, 3600], ids=["within a second", "the clock goes back"])
def test_event_files_are_read_in_the_order_they_were_written(
    back_s: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TensorBoard sorts them by name: the second, the process, the number of the writer in it (.98, .99, .100)."""
    writer = importlib.import_module("tensorboard.summary.writer.event_file_writer")
    monkeypatch.setattr(writer, "_global_uid", writer.AtomicCounter(98))
    now = time.time()
    for number in range(4):
        monkeypatch.setattr(time, "time", lambda number=number: now - number * back_s)
        log(tmp_path, 2 * number, range(2 * number + 1, 2 * number + 4))
    assert [s for s, _ in scalars(tmp_path, "train/loss")] == list(range(1, 10))
    assert len(list(tmp_path.glob("events.*"))) == 4
    log(tmp_path, 0, range(0, 3))
    assert [s for s, _ in scalars(tmp_path, "train/loss")] == [0, 1, 2]


def test_only_the_main_rank_writes(tmp_path: Path) -> None:
    log(tmp_path, 0, range(3), main=False)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from torch.utils.tensorboard import SummaryWriter

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(SummaryWriter, "add_scalar", full)
    log(tmp_path, 0, range(5))
    err = capsys.readouterr().err
    assert err.count("n2n: warning: no more TensorBoard events") == 1 and "No space left" in err
    assert len(read_rows(tmp_path / "metrics.jsonl")) == 5  # and the run goes on
    runlog = RunLog(tmp_path, start_step=0, total_steps=10, progress=False)
    disk = runlog._file

    class Full:
        """Room for three bytes more, and then for none."""

        def write(self, data: memoryview) -> int:
            if len(data) > 3:
                disk.write(data[:3])
            return 3 if disk.tell() % 2 else full()  # type: ignore[func-returns-value]

        def __getattr__(self, name: str) -> object:
            return getattr(disk, name)

    runlog._file = Full()
    for step in (1, 2):
        runlog.row(step, epoch=0.1, images=1, time_s=0.0)
    assert capsys.readouterr().err.count("n2n: warning: cannot write") == 1  # and the run goes on
    with pytest.raises(N2NError, match=r"metrics\.jsonl: No space left on device"):
        runlog.sync()  # but no checkpoint is written that counts on rows that are lost
    assert read_rows(tmp_path / "metrics.jsonl") == []
    runlog._file = disk
    runlog.row(3, epoch=0.1, images=1, time_s=0.0)
    runlog.sync()
    assert [row["step"] for row in read_rows(tmp_path / "metrics.jsonl")] == [1, 2, 3]
    runlog.close()


def test_a_full_disk_in_tensorboards_own_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    from tensorboard.summary.writer.record_writer import RecordWriter

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    seen: list[object] = []
    monkeypatch.setattr(threading, "excepthook", seen.append)
    monkeypatch.setattr(RecordWriter, "write", full)
    log(tmp_path, 0, range(3))
    log(tmp_path, 3, range(4, 2000))
    assert seen == [] and capsys.readouterr().err.count("no more TensorBoard events") >= 1
    assert len(read_rows(tmp_path / "metrics.jsonl")) == 1999
    threading.Thread(target=full).start()  # of any other thread it is told
    while not seen:
        time.sleep(0.01)


def test_tensorboards_clock_leaves_out_pauses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log(tmp_path, 0, range(0, 5))
    later = time.time() + 86_400
    monkeypatch.setattr(time, "time", lambda: later)
    log(tmp_path, 4, range(5, 10))
    events = EventAccumulator(str(tmp_path), size_guidance={"scalars": 0}).Reload().Scalars("train/loss")
    times = [event.wall_time - events[0].wall_time for event in events]
    assert times == pytest.approx([0.1 * step for step in range(10)], abs=1e-3)


def test_plain_lines_off_a_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runlog = RunLog(tmp_path, start_step=0, total_steps=100)
    for step in range(101):
        values = {"train/loss": 2.0, "perf/images_per_s": 123.4} | ({"val/top1": step / 100} if step % 50 == 0 else {})
        runlog.advance(step)
        runlog.row(step, epoch=step / 50, images=step, time_s=0.0, **values)
    runlog.row(100, epoch=2.0, images=100, time_s=0.0, **{"units/copies": 3})  # written, and no line a second time
    runlog.close()
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1].endswith("step 100/100, epoch 2.00, loss 2.000, val top-1 100.00 %, 123 images/s")
    assert len(lines) == 3
    *_, last, more = (json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines())
    assert last["val/top1"] == 1.0 and more["units/copies"] == 3


def test_a_bar_when_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runlog = RunLog(tmp_path, start_step=4, total_steps=10, progress=True)
    runlog.advance(10)
    runlog.row(10, epoch=1.0, images=10, time_s=0.0, **{"val/top1": 0.5})
    runlog.close()
    assert "10/10" in capsys.readouterr().err
