"""Packed folders: the same images, whole or refused, begun once and gone on with."""

import contextlib
import os
import resource
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from n2n_cli import cli, records
from n2n_cli.data import EvalLoader, TrainLoader, load
from n2n_cli.data import pack as packing
from n2n_cli.data.pack import pack
from n2n_cli.errors import N2NError


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """Eleven JPEG files of several sizes in two classes, and a gray PNG."""
    draw = np.random.default_rng(0)
    for part, count in (("train", 11), ("val", 5)):
        for number in range(count):
            height, width = 40 + 7 * number, 90 - 5 * number
            pixels = draw.integers(0, 256, (height, width, 3), dtype=np.uint8)
            pixels.sort(axis=1)
            path = tmp_path / "images" / part / ("ant", "bee")[number % 2] / f"größe{number}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path, quality=95)
    Image.fromarray(pixels[..., 0]).save(tmp_path / "images" / "train" / "bee" / "gray.png")
    return tmp_path / "images"


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "IMAGES", {"raw": 4, "jpeg": 4})


@pytest.mark.parametrize("workers", [1, 2])
def test_validation_images_are_the_folders_to_the_bit(photographs: Path, tmp_path: Path, workers: int) -> None:
    about = pack(photographs, tmp_path / "to", size=36, kind="raw", workers=workers)
    assert about["images"] == {"train": 12, "val": 5} and len(about["shards"]["train"]) == 3
    sizes = {"image_size": 32, "resize_size": 36}
    plain = load("imagefolder", root=photographs, cache="none", **sizes)
    packed = load("packed", root=tmp_path / "to", **sizes)
    assert packed.class_names == plain.class_names == ["ant", "bee"] and packed.files == plain.files
    (ours, labels), (theirs, same) = (next(EvalLoader(d.val, batch_size=9).batches()) for d in (packed, plain))
    assert torch.equal(ours, theirs) and torch.equal(labels, same)
    assert bytes(packed.train.names[0]).decode().startswith("train/ant/größe")


def test_folders_of_the_packed_size_give_the_same_batches(photographs: Path, tmp_path: Path) -> None:
    """Packed or not, with any number of workers: the same augmented images, where packing makes none smaller."""
    pack(photographs, tmp_path / "raw", size=500, kind="raw")
    for augment in ("imagenet", "crop", "none", "trivial"):
        sizes = {"image_size": 32, "resize_size": 40, "augment": augment, "random_erase": 0.5}
        plain = load("imagefolder", root=photographs, cache="none", **sizes)
        packed = load("packed", root=tmp_path / "raw", **sizes)
        wanted = list(TrainLoader(plain.train, batch_size=4, seed=3).batches(1))
        for workers in (0, 1, 2):
            loader = TrainLoader(packed.train, batch_size=4, seed=3, workers=workers)
            for (ours, a), (theirs, b) in zip(loader.batches(1), wanted, strict=True):
                assert torch.equal(ours, theirs) and torch.equal(a, b)
            loader.close()


@contextlib.contextmanager
def few_open_files(number: int = 6) -> Iterator[None]:
    """Inside, so many more files can be open at once."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.open(os.devnull, os.O_RDONLY)
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free + number, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_there_may_be_more_shards_than_files_that_can_be_open(
    photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Raw ImageNet has 1,250 shards, and many systems let a process open 1,024 files."""
    monkeypatch.setattr(packing, "IMAGES", {"raw": 1})
    finish = packing._finish

    def with_few_files(*shards: Any) -> dict[str, Any]:
        with few_open_files():
            return finish(*shards)

    monkeypatch.setattr(packing, "_finish", with_few_files)
    about = pack(photographs, tmp_path / "to", size=36, kind="raw")
    assert len(about["shards"]["train"]) == 12
    train = load("packed", root=tmp_path / "to", image_size=32).train
    with few_open_files():
        assert [train.image(index).dtype for index in range(12)] == [torch.uint8] * 12


def test_jpeg_is_near(photographs: Path, tmp_path: Path) -> None:
    pack(photographs, tmp_path / "to", size=36, quality=95)
    sizes = {"image_size": 32, "resize_size": 36}
    plain, packed = (
        load("imagefolder", root=photographs, cache="none", **sizes),
        load("packed", root=tmp_path / "to", **sizes),
    )
    every = torch.arange(5)
    apart = (packed.val.batch(every, None).float() - plain.val.batch(every, None).float()).abs()
    assert 0 < apart.mean() < 6


def test_every_changed_byte_and_every_cut_is_refused(photographs: Path, tmp_path: Path) -> None:
    to = tmp_path / "to"
    pack(photographs, to, size=36, kind="raw")
    data = load("packed", root=to, image_size=32, resize_size=36)
    good = {path: path.read_bytes() for path in to.iterdir()}
    used = [
        path for path in good if path.name.startswith(("train.npz", "val.npz", "manifest")) or path.suffix == ".bin"
    ]
    draw = np.random.default_rng(0)
    for path in used:
        for number in range(12):
            changed = bytearray(good[path])
            if number % 3 == 2:
                del changed[int(draw.integers(len(changed))) :]
            else:
                changed[int(draw.integers(len(changed)))] ^= 1 << int(draw.integers(8))
            path.write_bytes(changed)
            try:
                data = load("packed", root=to, image_size=32, resize_size=36)
                for source in (data.train, data.val):
                    source.batch(torch.arange(len(source)), None)
            except N2NError as error:
                assert "pack" in str(error) or "cannot read" in str(error)
            else:  # only the name of the manifest's seal, or white space in it
                assert path.name == "manifest.json"
        path.write_bytes(good[path])
    load("packed", root=to, image_size=32, resize_size=36)


def test_what_was_begun_is_gone_on_with(photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, to = tmp_path / "whole", tmp_path / "to"
    pack(photographs, whole, size=36, kind="raw")
    made = []

    def some(shard: packing.Shard) -> int:
        if len(made) == 2:
            raise KeyboardInterrupt
        made.append(shard.stem.name)
        return packing._pack(shard)

    def here(function: object, items: list[packing.Shard], *_: object, **__: object) -> object:
        return map(some, items)

    monkeypatch.setattr(packing, "each", here)
    with pytest.raises(KeyboardInterrupt):
        pack(photographs, to, size=36, kind="raw")
    with pytest.raises(N2NError, match="is not packed to its end: type `n2n data pack` again"):
        load("packed", root=to, image_size=32)
    for left in (2, 0):
        made.clear()
        with pytest.raises(KeyboardInterrupt) if left else contextlib.nullcontext():
            pack(photographs, to, size=36, kind="raw")
        assert len(made) == (2 if left else 1)
    assert records.manifest(to) == records.manifest(whole)
    for path in whole.iterdir():
        if path.suffix == ".bin":
            assert path.read_bytes() == (to / path.name).read_bytes()
    (to / "train-00001.bin").unlink()  # damaged, and removed by hand
    os.truncate(to / "train-00002.bin", 100)
    made.clear()
    with contextlib.suppress(KeyboardInterrupt):
        pack(photographs, to, size=36, kind="raw")
    assert made == ["train-00001", "train-00002"]
    assert (to / "train-00002.bin").read_bytes() == (whole / "train-00002.bin").read_bytes()


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda place: shutil.rmtree(place / "images" / "val"), "no val/ in data.root"),
        (
            lambda place: shutil.copytree(place / "images/val/bee", place / "images/val/cat"),
            "have other classes.*'cat'",
        ),
        (lambda place: (place / "to").mkdir() or (place / "to" / "x").touch(), "holds other files"),
        (lambda place: pack(place / "images", place / "to", size=36), r"was begun otherwise \(size: 36 -> 32\)"),
        (lambda place: (place / "images/train/ant/größe0.jpg").write_bytes(b"x"), "unreadable image .*größe0.jpg"),
    ],
)
def test_wrong_packs(photographs: Path, tmp_path: Path, change: Callable[[Path], object], line: str) -> None:
    change(tmp_path)
    with pytest.raises(N2NError, match=line):
        pack(photographs, tmp_path / "to", size=32)
    assert not (tmp_path / "to" / "train.npz").exists() or "begun otherwise" in line


def test_another_source(photographs: Path, tmp_path: Path) -> None:
    pack(photographs, tmp_path / "to", size=36)
    one = photographs / "train" / "ant" / "größe0.jpg"
    good = one.read_bytes()
    for change, key in ((lambda: one.write_bytes(good + b"x"), "source"), (one.unlink, "files")):
        change()
        with pytest.raises(N2NError, match=rf"its source has changed \({key}: changed\)"):
            pack(photographs, tmp_path / "to", size=36)
    one.write_bytes(good)
    pack(photographs, tmp_path / "to", size=36)


def test_a_disk_that_is_too_small_is_told_before(
    photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packing.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**6, 10**6, 3000))
    with pytest.raises(N2NError, match=r"has room for 0\.0 GB, and the images take"):
        pack(photographs, tmp_path / "to", size=36)
    assert not list((tmp_path / "to").glob("*.bin"))


def test_too_small_for_what_is_asked(photographs: Path, tmp_path: Path) -> None:
    pack(photographs, tmp_path / "to", size=36)
    with pytest.raises(
        N2NError, match=r"is packed at 36 px, too small for data.image_size=224 .* pack with --size 256"
    ):
        load("packed", root=tmp_path / "to")
    with pytest.raises(N2NError, match="holds no packed images"):
        load("packed", root=photographs)


def test_ctrl_c_is_one_line_and_gone_on_with_to_the_same_bytes(
    photographs: Path, tmp_path: Path, start: Callable[..., Any], capfd: pytest.CaptureFixture[str]
) -> None:
    """A process, and those that work for it, as a terminal stops them."""
    for part, count in (("train", 200), ("val", 20)):
        files = sorted((photographs / part).rglob("*.jpg"))
        for number in range(count):
            os.link(file := files[number % len(files)], file.with_name(f"{number:04d}.jpg"))
    to = tmp_path / "to"
    line = ["data", "pack", str(photographs), str(to), "size=30", "workers=2"]

    def slowly() -> None:
        plain = packing._packed
        packing._packed = lambda path, shard: time.sleep(0.01) or plain(path, shard)

    code, out, err = start(line, slowly).stop(signal.SIGINT, lambda: len(list(to.glob("train-*.npz"))) > 2)
    said = "n2n: interrupted: stopped; the same command goes on from there\n"
    assert (code, out, err) == (130, "", said)
    with pytest.raises(N2NError, match="is not packed to its end"):
        records.manifest(to)
    done = {path: path.stat().st_mtime_ns for path in to.glob("*-*.bin")}
    assert cli.main(line) == 0 and capfd.readouterr().err == ""
    assert 3 <= len(done) < 50 and all(path.stat().st_mtime_ns == at for path, at in done.items())
    pack(photographs, tmp_path / "whole", size=30)
    ours, theirs = ({path.name: path.read_bytes() for path in (tmp_path / to).iterdir()} for to in ("to", "whole"))
    assert ours == theirs and len(ours) > 95
