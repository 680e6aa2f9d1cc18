"""The fault matrix in its short form: every kind of fault a few times. Its long form is ``make faults``."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "experiments" / "faults"))

import bench
import faults

bench.fork = False
FEW = {
    "damage": 6,
    "done_damaged": 6,
    "every_damaged": 2,
    "fuzz_checkpoints": 5,
    "fuzz_lineages": 40,
    "fuzz_records": 5,
    "fuzzed_lines": 20,
    "fuzzed_yaml": 12,
    "images": 20,
    "kill_in_a_write": 1,
}
"""Of those that need no process of their own, or few: a minute together."""
AS_ROOT = ("full_disk", "full_disk_at_logs", "full_disk_at_report", "read_only")
LONG = [name for name in faults.FAULTS if name not in FEW and name not in ("soak", "order_of_writes")]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The run of the teacher that nothing ever stopped."""
    place = tmp_path_factory.mktemp("whole")
    bench.finished(bench.teacher(place))
    yield bench.run_of(place)


@pytest.mark.parametrize("name", FEW)
def test_a_few(name: str, whole: Path) -> None:
    _, why = faults.inject(name, FEW[name], whole)
    assert not why


@pytest.mark.slow
@pytest.mark.parametrize("name", LONG)
def test_once(name: str, whole: Path) -> None:
    if name in AS_ROOT and os.geteuid():
        pytest.skip("mounts a file system")
    _, why = faults.inject(name, 1, whole)
    assert not why


def test_a_fault_that_does_harm_is_told(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The matrix itself can fail: without the hash in a checkpoint's name, a flipped bit goes unseen."""
    from n2n_cli.training import checkpoint

    monkeypatch.setattr(checkpoint, "_verified", lambda path: path.read_bytes())
    _, why = faults.inject("damage", 3, whole)
    assert why
