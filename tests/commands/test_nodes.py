"""Two nodes, as two agents on loopback: the ranks of one run, started as README says."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import n2n_cli
from n2n_cli import cli
from n2n_cli.training import checkpoint

FEW = ["data.train_images=128", "data.val_images=40", "training.default_epochs={teacher:1,student:1}", "device=cpu"]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return checkpoint.load(checkpoint.resolve(folder))["model"]


@pytest.mark.slow
def test_two_agents_train_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(Path(n2n_cli.__file__).parents[1]))
    assert cli.main(["train", "teacher", *FEW, "devices=2", "prepare_only=true"]) == 0
    (run,) = tmp_path.glob("runs/*/teacher-seed0")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    agents = [
        subprocess.Popen(
            [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1",
             "--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{port}", "--rdzv-id", "two", "--local-addr",
             "127.0.0.1", "-m", "n2n_cli.commands.worker", str(run)],
            env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for _ in range(2)
    ]  # fmt: skip
    told = [agent.communicate(timeout=300) for agent in agents]
    assert [agent.returncode for agent in agents] == [0, 0], told
    assert (run / "done.json").exists()
    assert cli.main(["train", "teacher", *FEW, "devices=2", "out=one"]) == 0
    (other,) = tmp_path.glob("one/*/teacher-seed0")
    ours, theirs = weights(run), weights(other)
    assert all(torch.equal(value, theirs[key]) for key, value in ours.items())


@pytest.mark.slow
def test_the_sbatch_script(tmp_path: Path) -> None:
    """With SLURM's commands stood in for: its two nodes are one here."""
    root = Path(n2n_cli.__file__).parents[1]
    for name, body in (("srun", 'exec "$@"'), ("scontrol", "echo 127.0.0.1")):
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    path = os.pathsep.join([str(tmp_path), str(Path(sys.executable).parent), os.environ["PATH"]])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    slurm = {"SLURM_NNODES": "1", "SLURM_GPUS_ON_NODE": "2", "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "node[1-2]"}
    line = ["bash", str(root / "experiments" / "slurm" / "train.sbatch"), "train", "teacher", *FEW]
    environment = {**os.environ, **slurm, "PATH": path, "PYTHONPATH": str(root), "PORT": port}
    for expected in ("", "is done"):
        done = subprocess.run(line, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        assert expected in done.stdout
    (run,) = tmp_path.glob("runs/*/teacher-seed0")
    assert (run / "done.json").exists()
