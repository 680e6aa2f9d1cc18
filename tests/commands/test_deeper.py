"""``n2n grow --op deeper``: to another network's constructor, or at sites of the teacher's own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from n2n_cli import cli, lineage
from n2n_cli.training import checkpoint

FEW = [
    *("data=fake", "data.image_size=32", "data.num_classes=4", "data.train_images=16", "data.val_images=8"),
    *("training.batch_size=8", "training.eval_batch_size=8", "op.calibration_batches=1", "epochs=0", "device=cpu"),
]


@pytest.fixture
def teacher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    steps = lineage.start("resnet18", 4, width=1.0)
    state = {"format": 1, "lineage": steps, "step": 0, "config": "", "model": lineage.build(steps).state_dict()}
    checkpoint.save(tmp_path / "teacher" / "checkpoints", state, step=0)
    return "teacher"


@pytest.mark.slow
def test_to_another_networks_constructor_and_at_the_teachers_own_sites(teacher: str, tmp_path: Path) -> None:
    for network, word in (("resnet34", "to"), ("resnet18", "insert")):
        words = ["grow", "--op", "deeper", f"model={network}", f"teacher={teacher}", *FEW]
        assert cli.main(words) == 0
        (run,) = tmp_path.glob(f"runs/{network}-fake-*/deeper-*/run.json")
        info = json.loads(run.read_text())
        assert max(info["function_gap"]["eval"], info["function_gap"]["train"]) < 1e-10
        last = info["lineage"]["steps"][-1]
        assert last["op"] == "deeper" and word in last
        if word == "to":
            assert (
                last["to"] == {"name": "resnet34", "num_classes": 4, "width": 1.0}
                and "layer1.2.bn2.weight" in last["new"]
            )
        again = lineage.build(info["lineage"])
        again.load_state_dict(checkpoint.load(checkpoint.resolve(run.parent))["model"])


def test_a_network_that_does_not_hold_the_teacher_is_refused(teacher: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["grow", "--op", "deeper", "model=resnet50", f"teacher={teacher}", *FEW]) == 2
    err = capfd.readouterr().err
    assert err.count("\n") == 1 and "'layer1.0.conv1.weight' is [64, 64, 3, 3] in the teacher" in err
