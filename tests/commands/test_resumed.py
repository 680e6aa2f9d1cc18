"""Runs that go on elsewhere: under other versions, on other devices, after a rank was killed."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.plugins.hparams import metadata

from n2n_cli import cli, records
from n2n_cli.commands import fitting, machine
from n2n_cli.commands.folders import PlannedRun

TEACHER = ["train", "teacher", "data.train_images=192", "data.val_images=80", "training.log_every=2", "device=cpu",
           "training.default_epochs={teacher:2,student:1}", "training.checkpoint_every_epochs=0.25"]  # fmt: skip


@pytest.fixture(autouse=True)
def _there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def run_of(name: str = "teacher-seed0") -> Path:
    (run,) = Path().glob(f"runs/*/{name}")
    return run


def weights(run: Path) -> dict[str, torch.Tensor]:
    return torch.load(max(run.glob("checkpoints/step_*.pt")), weights_only=True)["model"]


@pytest.mark.parametrize("key", ["torch", "torchvision", "n2n", "python"])
def test_other_versions_are_refused_by_name_or_noted(key: str, capfd: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cli.main([*TEACHER, "max_steps=3"]) == 0
    described = machine.described
    monkeypatch.setattr(machine, "described", lambda cfg: {**described(cfg), key: "99.0"})
    capfd.readouterr()
    assert cli.main([*TEACHER, "max_steps=1"]) == 2
    (told,) = [line for line in capfd.readouterr().err.splitlines() if "error" in line]
    assert f"the run began with other versions ({key} " in told and told.endswith("accept_versions=true")
    assert cli.main([*TEACHER, "max_steps=1", "accept_versions=true"]) == 0
    assert f"{key} " in capfd.readouterr().out
    info = records.read(run_of() / "run.json", records.RUN)
    assert info["machine"][key] == "99.0" and [was[key] for was in info["machines_before"]] != ["99.0"]
    assert cli.main(TEACHER) == 0  # noted once: the run is one of these versions now


def test_a_run_that_has_not_begun_takes_the_machine_it_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    assert cli.main([*TEACHER, "prepare_only=true"]) == 0
    described = machine.described
    monkeypatch.setattr(machine, "described", lambda cfg: {**described(cfg), "torch": "99.0"})
    assert cli.main([*TEACHER, "max_steps=1"]) == 0
    info = records.read(run_of() / "run.json", records.RUN)
    assert info["machine"]["torch"] == "99.0" and "machines_before" not in info


def test_other_devices_are_noted(capfd: Any) -> None:
    assert cli.main([*TEACHER, "max_steps=3"]) == 0
    assert cli.main([*TEACHER, "devices=2"]) == 0
    assert "goes on with devices 1 -> 2" in capfd.readouterr().out
    info = records.read(run_of() / "run.json", records.RUN)
    assert (info["machine"]["devices"], info["machines_before"][0]["devices"]) == (2, 1)


def kill_one_rank(log: Path, killed: list[int]) -> None:
    """SIGKILL to the first rank there is once the run has begun."""
    while not killed:
        time.sleep(0.02)
        if not list(log.glob("runs/*/*/checkpoints/step_0000000[1-9]-*")):
            continue
        for path in Path("/proc").glob("[0-9]*"):
            try:
                words = (path / "cmdline").read_bytes()
                here = os.readlink(path / "cwd") == str(log)
            except OSError:
                continue
            if here and b"n2n_cli.commands.worker" in words and not killed:
                killed.append(int(path.name))
                os.kill(killed[0], signal.SIGKILL)


def test_ranks_are_started_again(tmp_path: Path, capfd: Any) -> None:
    assert cli.main([*TEACHER, "devices=2", "out=whole"]) == 0
    (whole,) = Path().glob("whole/*/teacher-seed0")
    killed: list[int] = []
    killer = threading.Thread(target=kill_one_rank, args=(tmp_path, killed), daemon=True)
    killer.start()
    assert cli.main([*TEACHER, "devices=2", "launch.max_restarts=1"]) == 0
    assert killed and "was killed" in (said := capfd.readouterr().err) and "restart 1 of 1" in said
    ours, theirs = weights(run_of()), weights(whole)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_mistake_is_no_reason_to_start_again(capfd: Any) -> None:
    assert cli.main([*TEACHER, "launch.max_restarts=3", "optim.lr=1e30"]) == 2
    said = capfd.readouterr().err
    assert "restart" not in said and said.count("n2n: error") == 1


def hparams(run: Path) -> dict[str, Any]:
    for event in EventFileLoader(str(next(run.glob("events.*")))).Load():
        for value in event.summary.value:
            if value.tag == metadata.SESSION_START_INFO_TAG:
                content = value.metadata.plugin_data.content
                found = metadata.parse_session_start_info_plugin_data(content).hparams
                return {key: getattr(v, v.WhichOneof("kind")) for key, v in found.items()}
    raise AssertionError("no hparams")


def test_what_is_swept_is_among_the_hparams() -> None:
    short = [*TEACHER, "max_steps=1"]
    assert cli.main([*short, "-m", "optim.momentum=0.8,0.9"]) == 0
    assert cli.main(TEACHER) == 0
    assert cli.main(["grow", "--op", "wider", *TEACHER[2:], "max_steps=1", "op.split=unequal"]) == 0
    every = [hparams(path) for path in Path().glob("runs/inception*/*")]
    assert len(every) == 3 and all(one.keys() == every[0].keys() for one in every)
    assert sorted({one["optim.momentum"] for one in every}) == ["0.8", "0.9"]
    assert sorted(one["op.split"] for one in every) == ["", "", "unequal"]
    assert all(type(one[key]) is type(every[0][key]) for one in every for key in one)
    assert "out" not in every[0] and "devices" not in every[0]


def test_a_run_json_that_lacks_a_key_is_one_line_or_of_no_matter(capfd: Any) -> None:
    assert cli.main([*TEACHER, "max_steps=1"]) == 0
    path = run_of() / "run.json"
    whole = json.loads(path.read_text())
    codes = {}
    needed = ("arm", "lr", "lineage")
    for key in [*needed, *sorted(whole.keys() - {"seal", *needed})]:
        path.write_text(json.dumps({k: v for k, v in whole.items() if k not in (key, "seal")}))
        capfd.readouterr()
        codes[key] = cli.main([*TEACHER, "max_steps=1"])
        said = capfd.readouterr().err
        assert (codes[key], said.count("n2n: error")) in ((0, 0), (2, 1)) and "Traceback" not in said, (key, said)
    assert [codes[key] for key in needed] == [2, 2, 2]


@pytest.mark.slow
def test_a_run_begun_sharded_goes_on_without(capfd: Any) -> None:
    assert cli.main([*TEACHER, "devices=2", "launch.shard=true", "max_steps=3"]) == 0
    assert cli.main(["evaluate", str(run_of())]) == 0 and "step 3)" in capfd.readouterr().out
    assert cli.main(TEACHER) == 0 and (run_of() / "done.json").exists()


@pytest.mark.parametrize("damage", [b"a: [", b"\xff"])
def test_a_damaged_run_beside_it_does_not_stop_another(tmp_path: Path, damage: bytes) -> None:
    planned = PlannedRun("teacher", tmp_path / "net-shapes-1" / "teacher-seed0", 0, 2.0, {"data": {"root": "images"}})
    other = tmp_path / "net-shapes-2" / "teacher-seed0"
    shorter = planned.folder.with_name("teacher-epochs1-seed0")
    for folder in (other, shorter):
        folder.mkdir(parents=True)
        (folder / "config.yaml").write_bytes(damage)
        for name in ("run.json", "done.json"):
            (folder / name).write_text("{}")
    fitting._tell_of_shorter(planned)
    fitting._tell_of_other_classes(planned)
