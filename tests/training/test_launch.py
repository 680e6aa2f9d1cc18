"""Ranks are started, told apart, heard when they fail, and leave the parent as it was."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import training_worker as worker

from n2n_cli.errors import N2NError
from n2n_cli.training import checkpoint
from n2n_cli.training.launch import RankFailure, launch, report, run_rank
from n2n_cli.training.ranks import Ranks, pick_device, ranks


def jobs(*todo: dict[str, object]) -> list[str]:
    return [json.dumps(list(todo))]


def test_a_users_mistake_on_one_rank_is_the_same_line_here(capfd: pytest.CaptureFixture[str]) -> None:
    handlers = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)}
    environment = dict(os.environ)
    with pytest.raises(N2NError) as caught:
        launch("training_worker", jobs(dict(action="user_error", rank=1)), 2)
    assert str(caught.value) == "image cat.jpg: unreadable, on one rank only"
    assert {s: signal.getsignal(s) for s in handlers} == handlers
    assert dict(os.environ) == environment
    out, err = capfd.readouterr()
    assert out == err == ""  # the caller prints the one line


def test_a_bug_comes_with_its_traceback() -> None:
    with pytest.raises(RankFailure, match=r"(?s)a rank failed:.*training_worker.py.*ZeroDivisionError: a bug"):
        launch("training_worker", jobs(dict(action="crash", rank=0)), 2)


def test_the_agent_never_reads_half_a_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "error.json"
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(path))
    there = list[bool]()
    dump = json.dump
    monkeypatch.setattr(json, "dump", lambda *args: (dump(*args), there.append(path.exists())))
    assert report(N2NError("the first")) and report(N2NError("the second"))
    assert there == [False] and os.listdir(tmp_path) == ["error.json"]
    assert json.loads(path.read_text())["message"]["extraInfo"]["user_error"] == "the first"


def test_sigterm_on_one_rank_stops_all_at_the_same_saved_step(tmp_path: Path) -> None:
    folder = worker.start(tmp_path / "run")
    todo = [
        dict(
            action="sigterm_during_run",
            rank=1,
            folder=str(folder),
            epochs=100000.0,
            checkpoint_every_epochs=0,
        )
    ]
    with pytest.raises(KeyboardInterrupt):
        launch("training_worker", jobs(*todo), 2)
    saved = sorted(p.name for p in (folder / "checkpoints").glob("step_*"))
    assert len(saved) in (1, 2) and int(saved[-1][5:13]) > 0 and not (folder / "done.json").exists()


def test_ctrl_c_in_the_parent_saves_and_interrupts(tmp_path: Path) -> None:
    folder = worker.start(tmp_path / "run")

    def interrupt() -> None:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            if (folder / "metrics.jsonl").exists() and len((folder / "metrics.jsonl").read_bytes()) > 2000:
                break
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            launch(
                "training_worker",
                jobs(dict(folder=str(folder), epochs=100000.0, checkpoint_every_epochs=0)),
                2,
            )
    finally:
        thread.join()
    saved = [int(p.name[5:13]) for p in (folder / "checkpoints").glob("step_*")]
    assert max(saved) > 0 and not (folder / "done.json").exists()


@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_rank_is_one_line(tmp_path: Path, rank: int) -> None:
    folder = worker.start(tmp_path / "run")
    job = dict(action="killed_during_run", rank=rank, folder=str(folder), epochs=100000.0)
    with pytest.raises(
        N2NError, match=rf"^rank {rank} was killed \(signal 9; out of memory\?\); the same command goes on"
    ):
        launch("training_worker", jobs(job), 2)


def parent_of(process: Path) -> int | None:
    try:
        return int((process / "stat").read_text().rpartition(")")[2].split()[1])
    except (OSError, ValueError):
        return None  # it has ended meanwhile


PARENT = """
import json, sys
from n2n_cli.training.launch import launch
job = dict(folder=sys.argv[1], epochs=100000.0, checkpoint_every_epochs=0)
launch("training_worker", [json.dumps([job])], 2)
"""


def test_ranks_save_and_stop_when_their_parent_is_killed(tmp_path: Path) -> None:
    folder = worker.start(tmp_path / "run")
    parent = subprocess.Popen([sys.executable, "-c", PARENT, str(folder)], stderr=subprocess.DEVNULL)
    metrics, deadline = folder / "metrics.jsonl", time.monotonic() + 90
    while not (metrics.exists() and metrics.stat().st_size > 2000) and time.monotonic() < deadline:
        time.sleep(0.05)
    ranks_of = [int(path.name) for path in Path("/proc").glob("[0-9]*") if parent_of(path) == parent.pid]
    assert len(ranks_of) == 2
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 30
    while any(Path(f"/proc/{pid}").exists() for pid in ranks_of) and time.monotonic() < deadline:
        time.sleep(0.1)
    left = [pid for pid in ranks_of if Path(f"/proc/{pid}").exists()]
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not left
    assert max(int(path.name[5:13]) for path in (folder / "checkpoints").glob("step_*")) > 0


def test_a_rank_says_for_whom_it_waited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("n2n_cli.training.ranks.WAIT_S", 1)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(N2NError, match=r"^WORLD_SIZE=2, but no MASTER_ADDR and MASTER_PORT: start the ranks"), ranks():
        pass
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(port))
    for rank in ("0", "1"):  # who makes the store, and who looks for it
        monkeypatch.setenv("RANK", rank)
        line = rf"^rank {rank} waited 1 s for the other 1 of WORLD_SIZE=2 at 127.0.0.1:{port}$"
        with pytest.raises(N2NError, match=line), ranks():
            pass
    with ranks(alone=True) as mine:
        assert mine == Ranks()


@pytest.mark.parametrize(
    ("name", "value", "line"),
    [
        ("WORLD_SIZE", "two", "WORLD_SIZE='two': expected a whole number, as torchrun sets it"),
        ("LOCAL_RANK", "-1", "LOCAL_RANK='-1': expected a whole number"),
        ("RANK", "", "RANK='': expected a whole number"),
        ("RANK", "2", "RANK=2, but WORLD_SIZE=2: ranks count from 0"),
        ("WORLD_SIZE", "0", "RANK=1, but WORLD_SIZE=0"),
        ("LOCAL_WORLD_SIZE", "0", "LOCAL_WORLD_SIZE=0, but LOCAL_RANK=1 and WORLD_SIZE=2: expected a number above"),
        ("LOCAL_WORLD_SIZE", "3", "LOCAL_WORLD_SIZE=3, but LOCAL_RANK=1 and WORLD_SIZE=2"),
        ("LOCAL_RANK", "2", "LOCAL_WORLD_SIZE=2, but LOCAL_RANK=2"),
    ],
)
def test_an_environment_that_is_not_torchruns(
    name: str, value: str, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    for key, told in {**usual, name: value}.items():
        monkeypatch.setenv(key, told)
    with pytest.raises(N2NError, match=f"^{line}"), ranks("cpu"):
        pass


def test_a_rank_knows_how_many_are_on_its_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("n2n_cli.training.ranks._met", lambda rank, world_size: torch.distributed.HashStore())
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda *args, **kwargs: None)
    monkeypatch.setattr(torch.distributed, "destroy_process_group", lambda: None)
    for name, value in {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    with ranks("cpu") as mine:
        assert (mine.rank, mine.world_size, mine.local_rank, mine.local_size) == (3, 4, 1, 2)
    monkeypatch.delenv("LOCAL_WORLD_SIZE")  # a launcher that does not say: all are here
    with ranks("cpu") as mine:
        assert mine.local_size == 4


def test_a_signal_leaves_the_ranks_time_to_save(monkeypatch: pytest.MonkeyPatch) -> None:
    """Elastic kills 30 s after it passed a signal on, in the middle of a long evaluation."""
    seen: list[Any] = []
    patched = "torch.distributed.launcher.api.elastic_launch"
    monkeypatch.setattr(patched, lambda config, entry: lambda *words: seen.append(config))
    monkeypatch.delenv("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", raising=False)
    launch("training_worker", [], 2)
    monkeypatch.setenv("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "5")
    launch("training_worker", [], 2)
    if hasattr(seen[0], "shutdown_timeout"):  # older versions of PyTorch have 30 s
        assert [config.shutdown_timeout for config in seen] == [600, 5]


def test_run_rank_without_an_agent(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCHELASTIC_ERROR_FILE", raising=False)

    def mistake() -> None:
        raise N2NError("one line")

    def interrupted() -> None:
        raise KeyboardInterrupt

    assert run_rank(mistake) == 2
    assert capsys.readouterr().err == "n2n: error: one line\n"
    assert run_rank(interrupted) == 130
    assert run_rank(lambda: None) == 0
    assert run_rank(lambda: 1 / 0) == 1
    assert "ZeroDivisionError" in capsys.readouterr().err


def test_an_image_that_one_rank_cannot_read(tmp_path: Path) -> None:
    whole, *stopped = (worker.start(tmp_path / name) for name in ("whole", "rank0", "rank1"))
    for rank, folder in enumerate(stopped):
        bad = dict(action="bad_image_during_run", rank=rank, step=7, folder=str(folder))
        with pytest.raises(N2NError, match=r"^unreadable image cat.jpg: truncated; saved after step 7, the same"):
            launch("training_worker", jobs(bad), 2)
        assert checkpoint.load(checkpoint.resolve(folder))["step"] == 7
    launch("training_worker", jobs(*(dict(folder=str(folder)) for folder in (whole, *stopped))), 2)
    a, *others = (checkpoint.load(checkpoint.resolve(f))["model"] for f in (whole, *stopped))
    assert all(torch.equal(a[name], b[name]) for b in others for name in a)


@pytest.mark.parametrize("rank", [0, 1])
def test_what_is_not_finite_on_one_rank_stops_all_before_the_update(tmp_path: Path, rank: int) -> None:
    folder = worker.start(tmp_path / "run")
    with pytest.raises(N2NError, match=r"the (training loss|gradient) of step 7 is nan"):
        launch("training_worker", jobs(dict(action="nan_during_run", rank=rank, step=6, folder=str(folder))), 2)
    state = checkpoint.load(checkpoint.resolve(folder))
    assert state["step"] == 6 and all(t.isfinite().all() for t in state["model"].values() if t.is_floating_point())


def test_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with ranks("cpu") as mine:
        assert mine == Ranks() and mine.main and mine.any(True, False) == [True, False]


def test_devices_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(N2NError, match=r"device='cuba'.*did you mean 'cuda'"):
        pick_device("cuba")
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert pick_device("auto").type == "cpu"
    with pytest.raises(N2NError, match="finds no CUDA device"):
        pick_device("cuda")
