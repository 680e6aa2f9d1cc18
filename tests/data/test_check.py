"""A check that is stopped goes on from there, and one that came to its end begins anew."""

import json
import shutil
import signal
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from n2n_cli import cli, processes
from n2n_cli.data import check


@pytest.fixture
def many(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """120 files, looked at four by four; two of them cannot be read."""
    monkeypatch.setattr(check, "CHUNK", 4)
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder.parent / "cache"))
    for number in range(102):
        shutil.copy(folder / "train/ant/0.jpg", folder / f"train/ant/{number + 100}.jpg")
    (folder / "train/ant/100.jpg").write_bytes(b"x")
    (folder / "val/cat/1.jpg").write_bytes(b"")
    return folder


@pytest.fixture
def looked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files that are opened, all by this process."""
    paths = list[str]()

    def here(function: Callable[[str], check.File], items: Iterable[str], *_: object, **__: object) -> Iterable[object]:
        return (paths.append(item) or function(item) for item in items)

    monkeypatch.setattr(check, "each", here)
    return paths


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_a_check_that_is_stopped_is_gone_on_with(
    many: Path,
    how: signal.Signals,
    start: Callable[..., Any],
    looked: list[str],
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    line = ["data", "check", str(many), "workers=2", "--json"]
    assert cli.main(line) == 2 and len(looked) == 120
    whole = json.loads(capfd.readouterr().out)
    notes = many.parent / "cache" / "n2n"
    assert not list(notes.glob("*.check")) and len(whole["unreadable"]) == 2

    def slowly() -> None:
        plain = check.read_image
        check.read_image = lambda path: time.sleep(0.01) or plain(path)
        check.each = processes.each

    code, out, err = start(line, slowly).stop(how, lambda: sum(map(_size, notes.glob("*.check"))) > 8000)
    if how == signal.SIGINT:
        assert (code, out, err) == (130, "", "n2n: interrupted: stopped; the same command goes on from there\n")
    else:
        assert code == -signal.SIGKILL
    changed = many / "train/ant/0.jpg"
    shutil.copy(many / "train/bee/0.jpg", changed)
    shutil.copy(many / "train/ant/101.jpg", changed)  # as it was, but modified
    (notes_file,) = notes.glob("*.check")
    with notes_file.open("ab") as file:
        file.write(b"\n{}\n[1, 2]\n[")
    looked.clear()
    assert cli.main(line) == 2
    assert json.loads(capfd.readouterr().out) == whole
    assert 20 < len(looked) < 100 and str(changed) in looked and not list(notes.glob("*.check"))


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def test_without_a_cache_folder(many: Path, looked: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    (many.parent / "cache").write_text("a file")
    assert cli.main(["data", "check", str(many)]) == 2 and len(looked) == 120
    assert "2 files cannot be read" in capfd.readouterr().err


def test_a_file_that_pillow_does_not_read_is_told_of(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = folder / "train/ant/0.jpg"
    data = path.read_bytes()
    path.write_bytes(data[:2] + b"\0" + data[2:])  # torchvision's decoder finds the next marker
    look = check.look(str(path))
    assert look.error is None and look.odd == ("header that Pillow does not read",)


def test_a_full_disk_costs_only_the_notes() -> None:
    files = [check.File(f"{number}.jpg", None, (), "", (0, 0)) for number in range(3)]
    assert list(check._noted(Path("/dev/full"), files)) == files
