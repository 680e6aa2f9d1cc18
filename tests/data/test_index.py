"""The index of a scanned folder: the same files with it and without, and none where it might be old."""

import gzip
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from n2n_cli.data import index, sources
from n2n_cli.data.sources import Files, scan
from n2n_cli.errors import N2NError

TICK_S = 0.02
"""Longer than what a file system calls the same time here."""


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(index, "RACY_NS", int(TICK_S * 1e9))
    return tmp_path / "cache" / "n2n"


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Nested folders, links to files and folders, a circle, hidden and other files, a name that is no UTF-8."""
    root = tmp_path / "images"
    names = ("ant/1.jpg", "ant/2.PNG", "ant/in/deep/3.jpeg", "ant/in.jpg/x.jpg", "ant/.hidden/y.jpg", "ant/.z.jpg")
    for name in (*names, "ant/notes.txt", "ant/plain", "bee/1.jpg", ".git/x.jpg", "cat-2/1.jpg", "cat/1.jpg", "a.jpg"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    Path(os.fsdecode(os.fsencode(root / "bee") + b"/\xff\xe9.jpg")).touch()
    (tmp_path / "elsewhere" / "more").mkdir(parents=True)
    (tmp_path / "elsewhere" / "more" / "9.jpg").touch()
    (root / "bee" / "linked").symlink_to(tmp_path / "elsewhere")
    (root / "bee" / "circle").symlink_to(root / "bee")
    (root / "bee" / "file.jpg").symlink_to(root / "ant" / "1.jpg")
    (root / "dog").symlink_to(root / "cat")
    return root


def scanned(root: Path) -> tuple[Files, bool]:
    """What `scan` finds, and whether it listed the folder for it."""
    time.sleep(2 * TICK_S)
    listed = []
    with pytest.MonkeyPatch.context() as patch:
        plain = sources._list
        patch.setattr(sources, "_list", lambda folder: listed.append(folder) or plain(folder))
        return scan(root), bool(listed)


def test_the_same_files_with_it_and_without(images: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, listed = scanned(images)
    assert listed and len(list(cache.iterdir())) == 1
    assert scanned(images) == (first, False)
    assert first.names == ["ant", "bee", "cat", "cat-2", "dog"] and len(first.paths) == 11
    assert (first.hidden, first.others) == (2, {"": 1, ".txt": 1})
    monkeypatch.chdir(images)  # the same index, other paths
    here, listed = scanned(Path())
    assert not listed and [str(images / path) for path in here.paths] == first.paths


@pytest.mark.parametrize(
    "change",
    [
        lambda root: (root / "ant/in/deep/new.jpg").touch(),
        lambda root: (root / "ant/in/deep/3.jpeg").unlink(),
        lambda root: (root / "ant/in/deep/3.jpeg").rename(root / "ant/in/deep/4.jpeg"),
        lambda root: (root / "ant/in.jpg/x.jpg").rename(root / "ant/in.jpg/x.txt"),
        lambda root: (root / "../elsewhere/more/10.jpg").touch(),
        lambda root: shutil.copytree(root / "cat", root / "eel"),
        lambda root: shutil.rmtree(root / "cat-2"),
        lambda root: (root / "cat-2").rename(root / "cow"),
        lambda root: [(root / "dog").unlink(), (root / "dog").symlink_to(root / "bee")],
    ],
)
def test_a_change_anywhere_is_seen(images: Path, cache: Path, change: Callable[[Path], object]) -> None:
    before, _ = scanned(images)
    change(images)
    after, listed = scanned(images)
    assert listed and after != before
    assert scanned(images) == (after, False)
    shutil.rmtree(cache)
    assert scanned(images) == (after, True)


def test_a_time_that_is_set_back_is_seen(images: Path, cache: Path) -> None:
    """As rsync and tar do after they have added a file."""
    was = os.stat(images / "ant").st_mtime_ns
    scanned(images)
    (images / "ant" / "5.jpg").touch()
    os.utime(images / "ant", ns=(was, was))
    after, listed = scanned(images)
    assert listed and str(images / "ant" / "5.jpg") in after.paths


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[: len(data) // 2],
        lambda data: data[:60] + bytes([data[60] ^ 1]) + data[61:],
        lambda data: b"[]",
        *(lambda data, text=text: gzip.compress(text) for text in (b"{}", b"[[], []]", b"[1, [[1]]]", b"x", b"[[]]")),
        lambda data: gzip.compress(gzip.decompress(data).replace(b"images", b"imagos", 1)),  # another folder's
        lambda data: gzip.compress(gzip.decompress(data).replace(b"n2n index 1", b"n2n index 0")),
    ],
)
def test_a_damaged_or_foreign_index_is_made_anew(images: Path, cache: Path, damage: Callable[[bytes], bytes]) -> None:
    first, _ = scanned(images)
    (file,) = cache.iterdir()
    good = file.read_bytes()
    file.write_bytes(damage(good))
    assert scanned(images) == (first, True)
    assert gzip.decompress(file.read_bytes()) == gzip.decompress(good)
    assert scanned(images) == (first, False)


def test_without_a_cache_folder(images: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache.parent.write_text("a file")
    first, _ = scanned(images)
    assert scanned(images) == (first, True) and cache.parent.read_text() == "a file"
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/n2n")
    assert scanned(images) == (first, True)
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # to be passed over, says the standard
    monkeypatch.setenv("HOME", str(images.parent / "home"))
    assert scanned(images) == (first, True) and scanned(images) == (first, False)
    assert len(list((images.parent / "home" / ".cache" / "n2n").iterdir())) == 1


def test_what_just_changed_or_has_no_times_gets_no_index(images: Path, cache: Path, tmp_path: Path) -> None:
    (images / "ant" / "in" / "new.jpg").touch()
    scan(images)
    assert not cache.exists()
    (images / "ant" / "6.jpg").symlink_to(tmp_path / "later")  # to nothing, for now
    first, _ = scanned(images)
    assert not cache.exists() and str(images / "ant" / "6.jpg") in first.paths
    shutil.copytree(images / "cat", tmp_path / "later")
    assert str(images / "ant" / "6.jpg" / "1.jpg") in scanned(images)[0].paths
    os.utime(images / "bee", ns=(0, 0))  # as of file systems that keep no times
    cache.exists() and shutil.rmtree(cache)
    scanned(images)
    assert not cache.exists()


def test_an_empty_class_is_told_every_time(images: Path, cache: Path) -> None:
    (images / "cat" / "1.jpg").unlink()
    for _ in range(2):
        with pytest.raises(N2NError, match=r"imagefolder: no images in .*/images/cat \(.jpg"):
            scanned(images)


@pytest.mark.slow
def test_as_many_files_as_imagenet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for label in range(1000):
        folder = tmp_path / "train" / f"n{label:08d}"
        folder.mkdir(parents=True)
        for number in range(1280):
            os.close(os.open(f"{folder}/{folder.name}_{number}.JPEG", os.O_CREAT))
    time.sleep(2.1)
    first = scan(tmp_path / "train")
    monkeypatch.setattr(sources, "_list", None)
    start = time.perf_counter()
    second = scan(tmp_path / "train")
    assert time.perf_counter() - start < 10 and len(second.paths) == 1_280_000 and second == first
    shutil.rmtree(tmp_path / "train")  # pytest keeps the folders of three sessions
