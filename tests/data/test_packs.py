"""data.cache=packed: packed once, found again by what the images are, and never in the place of other pixels."""

import fcntl
import os
import re
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

from n2n_cli import cli, records
from n2n_cli.commands import dataset
from n2n_cli.data import load, packs
from n2n_cli.data import pack as packing
from n2n_cli.data.packs import kept
from n2n_cli.errors import N2NError
from n2n_cli.studies import settings
from n2n_cli.training import checkpoint


@pytest.fixture(autouse=True)
def place(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder; shards of four images, packed by this process."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(packing, "IMAGES", {"raw": 4, "jpeg": 4})
    monkeypatch.setattr(packing, "each", lambda function, items, *_, **__: map(function, items))
    dataset._load.cache_clear()
    return tmp_path


@pytest.fixture
def packed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The shards that are packed while a test runs."""
    shards, plain = list[str](), packing._pack
    monkeypatch.setattr(packing, "_pack", lambda shard: shards.append(shard.stem.name) or plain(shard))
    return shards


def words(root: Path, *more: str) -> list[str]:
    return [
        "data=imagefolder", f"data.root={root}", "data.image_size=32", "model=inception_bn_tiny", "optim=sgd",
        "training=default", "training.batch_size=4", "training.default_epochs={teacher:2,student:1}", "device=cpu",
        "workers=0", "progress=false", *more,
    ]  # fmt: skip


def test_the_first_run_packs_and_later_ones_find_it(
    folder: Path, place: Path, packed: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    line = ["train", "teacher", *words(folder, "data.cache=packed")]
    assert cli.main([*line, "progress=true", "max_steps=2"]) == 0
    out, err = capfd.readouterr()
    (to,) = place.glob("cache/n2n/packs/*-32-raw")
    assert f"data.cache=packed: packs {folder} into {to}, once for all later runs" in out
    assert "data.cache=packed: 100%" in err and "images are read from their pack (raw), by no workers" in out
    assert len(packed) == 5
    shutil.move(place / "data", place / "moved")  # as to another disk
    dataset._load.cache_clear()
    assert cli.main(["train", "teacher", *words(place / "moved", "data.cache=packed")]) == 0
    assert len(packed) == 5 and "packs " not in capfd.readouterr().out
    (run,) = (path.parent for path in place.glob("runs/*/teacher-seed0/done.json"))
    shutil.rmtree(place / "moved" / "train")
    assert cli.main(["evaluate", str(run), "device=cpu", "workers=0"]) == 2
    assert "n2n: error: data.cache=packed: packs train/ too, and" in capfd.readouterr().err
    assert cli.main(["evaluate", str(run), "device=cpu", "workers=0", "data.cache=none"]) == 0


def test_packed_is_another_setting_and_the_rest_is_not(folder: Path, place: Path) -> None:
    for cache, steps in (("auto", 1), ("none", 2), ("packed", 3)):
        assert cli.main(["train", "teacher", *words(folder, f"data.cache={cache}"), f"max_steps={steps}"]) == 0
    runs = {path.parent.parent: path.parent for path in place.glob("runs/*/teacher-seed0/config.yaml")}
    caches = {yaml.safe_load((run / "config.yaml").read_text())["data"]["cache"] for run in runs.values()}
    assert len(runs) == 2 and caches == {"none", "packed"}
    # Three steps each: the same images, as a raw pack keeps small ones.
    one, other = (checkpoint.load(checkpoint.resolve(run))["model"] for run in runs.values())
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_all_is_packed_before_there_are_ranks(folder: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def launch(*_: object) -> None:
        seen.extend(place.glob("cache/n2n/packs/*-raw/manifest.json"))

    monkeypatch.setattr("n2n_cli.commands.fitting.launch", launch)
    for number in (1, 2):
        assert cli.main(["train", "teacher", *words(folder, "data.cache=packed"), "devices=2"]) == 0
        assert len(seen) == number
        shutil.rmtree(place / "cache")  # the run is prepared, and its pack is gone


def test_a_report_tells_packed_images_from_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "config", lambda run: {"data.cache": run, "data.decoder": "pil", "optim.lr": 0.1})
    assert settings.differing(["none", "packed"]) == ["data.cache"]  # type: ignore[list-item]
    assert settings.differing(["none", "memory"]) == []  # type: ignore[list-item]
    assert settings.by_arm(["auto", "packed"]) == {"data.cache": ["auto", "packed"]}  # type: ignore[list-item]
    assert settings.by_arm(["auto", "none"]) == {}  # type: ignore[list-item]
    assert settings.shared(["packed", "packed"]) == {"data.cache": "packed", "optim.lr": 0.1}  # type: ignore[list-item]


def test_small_images_are_the_folders_and_large_ones_are_near(folder: Path) -> None:
    for size, kind in ((32, "raw"), (80, "jpeg")):
        sizes = {"image_size": size, "resize_size": size, "augment": "none"}
        to = kept(folder, size=size)
        assert records.manifest(to)["kind"] == kind
        ours, theirs = load("packed", root=to, **sizes), load("imagefolder", root=folder, cache="none", **sizes)
        assert ours.files == theirs.files and ours.class_names == theirs.class_names
        every = torch.arange(6)
        apart = (ours.val.batch(every, None).float() - theirs.val.batch(every, None).float()).abs().mean()
        assert apart == 0 if kind == "raw" else 0 < apart < 6


@pytest.mark.parametrize(
    "change",
    [
        lambda root: shutil.copy(root / "train/ant/0.jpg", root / "train/ant/9.jpg"),
        lambda root: (root / "val/bee/1.jpg").unlink(),
        lambda root: (root / "train/cat/2.jpg").rename(root / "train/cat/8.jpg"),
        lambda root: (root / "train/cat/2.jpg").write_bytes((root / "train/ant/0.jpg").read_bytes()),
        lambda root: os.utime(root / "train/cat/2.jpg", (1, 1)),  # written anew, as many bytes as before
    ],
)
def test_a_changed_folder_gets_another_pack(folder: Path, change: Callable[[Path], object]) -> None:
    first = kept(folder, size=32)
    assert kept(folder, size=32) == first
    change(folder)
    second = kept(folder, size=32)
    assert second not in (None, first) and packs.whole(first)
    assert kept(folder, size=32, interpolation="bicubic") not in (first, second)
    assert load("packed", root=second, image_size=32).files == load("imagefolder", root=folder).files


def test_a_copy_that_keeps_the_times_finds_it(folder: Path, place: Path, packed: list[str]) -> None:
    first = kept(folder, size=32)
    shutil.copytree(folder, place / "copy")
    assert kept(place / "copy", size=32, make=False) == first and len(packed) == 5


def test_of_several_at_once_one_packs(folder: Path, packed: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    found, told = [], []
    slow = packing._pack
    monkeypatch.setattr(packing, "_pack", lambda shard: time.sleep(0.05) or slow(shard))
    work = [threading.Thread(target=lambda: found.append(kept(folder, size=32, tell=told.append))) for _ in range(3)]
    for thread in work:
        thread.start()
    for thread in work:
        thread.join()
    assert len(found) == 3 and len(set(found)) == 1 and len(packed) == 5
    said = sorted(line.split()[0] for line in told)
    assert said == ["packs", "waits", "waits"]


def test_a_file_system_without_locks(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", refuse)
    assert packs.whole(kept(folder, size=32))


def test_what_was_stopped_or_damaged_is_mended(
    folder: Path, place: Path, packed: list[str], capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    line = ["train", "teacher", *words(folder, "data.cache=packed"), "max_steps=1"]
    plain = packing._pack

    def stopped(shard: packing.Shard) -> int:
        if len(packed) == 2:
            raise KeyboardInterrupt
        return plain(shard)

    monkeypatch.setattr(packing, "_pack", stopped)
    assert cli.main(line) == 130
    assert capfd.readouterr().err == "n2n: interrupted: stopped; the same command goes on from there\n"
    assert not list(place.glob("runs/*/*/run.json"))
    monkeypatch.setattr(packing, "_pack", plain)
    assert cli.main(line) == 0 and len(packed) == 5
    (to,) = place.glob("cache/n2n/packs/*-raw")
    good = {path.name: path.read_bytes() for path in to.iterdir()}
    for name, damage in (
        ("train-00001.bin", lambda path: path.unlink()),
        ("train-00002.bin", lambda path: os.truncate(path, 9)),
        ("train-00000.npz", lambda path: path.write_bytes(b"x")),
        ("val.npz", lambda path: path.write_bytes(b"x")),
        ("manifest.json", lambda path: path.write_text("{")),
    ):
        packed.clear()
        damage(to / name)
        if name == "train-00000.npz":  # of no use any more, once all is packed
            (to / "manifest.json").unlink()
        assert kept(folder, size=32) == to
        assert packed == ([name[:-4]] if name.startswith("train-") else [])
        assert good == {path.name: path.read_bytes() for path in to.iterdir()}
    changed = bytearray(good["val-00000.bin"])
    changed[5] ^= 1
    (to / "val-00000.bin").write_bytes(changed)
    data = load("packed", root=kept(folder, size=32), image_size=32)
    with pytest.raises(N2NError, match=r"val-00000.bin is damaged there: remove that file, and pack again"):
        data.val.batch(torch.arange(6), None)


@pytest.mark.parametrize("where", ["full", "file", "nowhere", "unreadable"])
def test_what_cannot_be_packed_is_one_line_before_training(
    folder: Path, place: Path, where: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if where == "full":
        usage = shutil._ntuple_diskusage(10**6, 10**6, 3000)
        monkeypatch.setattr(packing.shutil, "disk_usage", lambda path: usage)
    elif where == "file":
        (place / "cache").write_text("a file")
    elif where == "nowhere":
        monkeypatch.setenv("XDG_CACHE_HOME", "relative")
        monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    else:
        (folder / "train" / "bee" / "1.jpg").write_bytes(b"x")
    assert cli.main(["train", "teacher", *words(folder, "data.cache=packed")]) == 2
    err = capfd.readouterr().err
    said = {
        "full": r".*/packs/\w+-32-raw has room for 0\.0 GB, and the images take 0\.0 GB",
        "file": r".*cache.*: (Not a directory|File exists)",
        "nowhere": "no home folder is known; set XDG_CACHE_HOME",
        "unreadable": f"unreadable image {folder}/train/bee/1.jpg: no image format that Pillow knows; "
        "every image is packed, and none skipped: see n2n data check",
    }[where]
    assert re.fullmatch(f"n2n: error: data.cache=packed: {said}\n", err)
    assert not list(place.glob("runs/*")) and not list(place.glob("cache/n2n/packs/*-raw"))


def test_nothing_is_packed_to_look(
    folder: Path, place: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("n2n_cli.commands.dry_run._costs", lambda *_: [])
    line = ["compare", "baselines", *words(folder, "data.cache=packed"), "--dry-run"]
    assert cli.main(line) == 0
    assert "data.cache=packed: nothing is packed yet: here images are read" in capfd.readouterr().out
    assert not (place / "cache" / "n2n" / "packs").exists()


def test_only_a_folder_of_images_is_packed(folder: Path) -> None:
    assert cli.main(["train", "teacher", "data.cache=packed"]) == 2
    with pytest.raises(N2NError, match=r"data.cache must be one of auto, memory, none, not 'packed'"):
        load("imagefolder", root=folder, cache="packed")
