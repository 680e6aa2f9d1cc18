"""Checkpoints survive kills, flipped bits, full disks and renaming; foreign files are refused in one line."""

from __future__ import annotations

import errno
import os
import pickle
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from n2n_cli.training import checkpoint
from n2n_cli.training.checkpoint import CheckpointError


def state(step: int) -> dict[str, Any]:
    return {"format": 1, "model": {"w": torch.full((50,), float(step))}, "step": step}


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def test_a_checkpoint_that_its_run_removes_meanwhile(tmp_path: Path) -> None:
    """As listed and gone: a link to nothing."""
    (tmp_path / f"step_00000020-{16 * '0'}.pt").symlink_to("removed")
    path = checkpoint.save(tmp_path, state(10), step=10)
    assert checkpoint.newest(tmp_path) == (path, [])


def test_roundtrip_and_pruning(tmp_path: Path) -> None:
    for step in (0, 5, 10, 15):
        path = checkpoint.save(tmp_path, state(step), step=step)
        checkpoint.save_best(tmp_path, state(step))
        assert path.name.startswith(f"step_{step:08d}-") and torch.equal(
            checkpoint.load(path)["model"]["w"], state(step)["model"]["w"]
        )
    names = sorted(p.name.split("-")[0] for p in tmp_path.iterdir())
    assert names == ["best", "step_00000010", "step_00000015"]
    assert checkpoint.newest(tmp_path) == (path, [])
    assert torch.load(path, weights_only=True)["step"] == 15  # a plain torch.save file
    (best,) = tmp_path.glob("best-*")
    assert checkpoint.load(best)["step"] == 15


def test_saving_the_same_state_twice_keeps_it(tmp_path: Path) -> None:
    for _ in range(2):
        checkpoint.save(tmp_path, state(3), step=3)
        checkpoint.save_best(tmp_path, state(3))
    assert len(list(tmp_path.iterdir())) == 2


def test_every_flipped_bit_is_noticed_and_the_one_before_taken(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = checkpoint.save(tmp_path, state(1), step=1)
    new = checkpoint.save(tmp_path, state(2), step=2)
    good = new.read_bytes()
    for at in range(0, len(good), 37):
        new.write_bytes(good)
        flip(new, at)
        with pytest.raises(CheckpointError, match="do not match the hash in its name"):
            checkpoint.load(new)
    found, [error] = checkpoint.newest(tmp_path)
    assert found == old and str(error).startswith("damaged checkpoint") and new.name in str(error)
    assert capsys.readouterr().err == ""
    assert checkpoint.resolve(tmp_path) == old
    line = capsys.readouterr().err
    assert line.startswith("n2n: warning: skipped damaged checkpoint") and new.name in line and line.count("\n") == 1
    flip(old, 99)
    found, damaged = checkpoint.newest(tmp_path)
    assert found is None and len(damaged) == 2
    with pytest.raises(CheckpointError, match=f"^no good checkpoint in {tmp_path}: 2 are damaged$"):
        checkpoint.resolve(tmp_path)
    assert capsys.readouterr().err == ""


def test_a_renamed_file_is_checked_by_its_crcs(tmp_path: Path) -> None:
    path = checkpoint.save(tmp_path, state(1), step=1)
    renamed = path.rename(tmp_path / "teacher.pt")
    assert checkpoint.load(renamed)["step"] == 1
    data = renamed.read_bytes()
    flip(renamed, data.index(torch.ones(50).numpy().tobytes()) + 10)
    with pytest.raises(CheckpointError, match="fails its CRC"):
        checkpoint.load(renamed)


def test_a_checkpoint_runs_no_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return os.system, (f"touch {tmp_path}/ran",)

    path = tmp_path / "evil.pt"
    torch.save({"format": 1, "model": Evil()}, path)
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    with pytest.raises(CheckpointError, match="not an n2n checkpoint"):
        checkpoint.load(path)
    assert not (tmp_path / "ran").exists()


def test_foreign_files(tmp_path: Path) -> None:
    text, weights, future, pickled = (tmp_path / n for n in ("a.txt", "resnet.pt", "future.pt", "b.pkl"))
    text.write_text("hello")
    torch.save({"w": torch.ones(2)}, weights)
    torch.save(state(1) | {"format": 2}, future)
    pickled.write_bytes(pickle.dumps({"a": 1}))
    for path, line in [
        (text, "not an n2n checkpoint"),
        (pickled, "not an n2n checkpoint"),
        (weights, "no 'format' and 'model' in it"),
        (future, "format 2; this n2n reads format 1"),
        (tmp_path / "none.pt", "No such file"),
    ]:
        with pytest.raises(CheckpointError, match=line) as caught:
            checkpoint.load(path)
        assert "\n" not in str(caught.value)


def test_resolve(tmp_path: Path) -> None:
    run = tmp_path / "run"
    path = checkpoint.save(run / "checkpoints", state(1), step=1)
    assert checkpoint.resolve(run) == checkpoint.resolve(run / "checkpoints") == checkpoint.resolve(str(path)) == path
    with pytest.raises(CheckpointError, match=r"no such file or folder; .* holds run$"):
        checkpoint.resolve(tmp_path / "rum")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"expected step_\*.pt; .* holds nothing"):
        checkpoint.resolve(tmp_path / "empty")


def test_a_full_disk_is_one_line_and_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = checkpoint.save(tmp_path, state(1), step=1)
    real = os.write

    def full(handle: int, data: bytes) -> int:
        if len(data) < 900:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(handle, data[:500])

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(CheckpointError, match="No space left on device"):
        checkpoint.save(tmp_path, state(2), step=2)
    monkeypatch.undo()
    assert list(tmp_path.iterdir()) == [path] and checkpoint.newest(tmp_path) == (path, [])


def test_one_writer_a_folder(tmp_path: Path) -> None:
    line = rf"being trained by another process \(process {os.getpid()} on .*, since 20\d\d-"
    with (
        checkpoint.exclusive(tmp_path),
        pytest.raises(CheckpointError, match=line),
        checkpoint.exclusive(tmp_path, 0.2),
    ):
        pass
    with checkpoint.exclusive(tmp_path):
        pass


KILL = """
import sys, torch
from pathlib import Path
from n2n_cli.training import checkpoint
for step in range(1, 10**6):
    state = {"format": 1, "model": {"w": torch.full((200_000,), float(step))}, "step": step}
    checkpoint.save(Path(sys.argv[1]), state, step=step)
    print(step, flush=True)
"""


@pytest.mark.slow
def test_killed_while_saving_never_loses_the_last_good_one(tmp_path: Path) -> None:
    for attempt in range(12):
        folder = tmp_path / str(attempt)
        process = subprocess.Popen([sys.executable, "-c", KILL, str(folder)], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(0.003 * attempt)
        process.kill()
        told = [1, *(int(line) for line in process.stdout.read().split())]
        process.wait()
        path, _ = checkpoint.newest(folder)
        assert path is not None
        saved = checkpoint.load(path)
        assert saved["step"] >= max(told) and bool((saved["model"]["w"] == saved["step"]).all())
        checkpoint.clean(folder)
        assert not list(folder.glob(".tmp*"))
