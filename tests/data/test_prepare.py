"""ImageNet's archives, made small: unpacked as by torchvision, gone on with after any stop, refused in one line."""

import gzip
import hashlib
import io
import os
import shutil
import signal
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.io import savemat
from torchvision.datasets import imagenet as torchvisions

from n2n_cli import cli
from n2n_cli.data import prepare
from n2n_cli.data.sources import scan
from n2n_cli.errors import N2NError

WNIDS = ("n01440764", "n01443537", "n02119789", "n03100240")
TRAIN, VAL, DEVKIT = (name for name, _ in torchvisions.ARCHIVE_META.values())


def content(name: str, size: int = 2000) -> bytes:
    return hashlib.sha256(name.encode()).digest() * (size // 32 + len(name) % 5)


def tar(files: dict[str, bytes], mode: str = "w") -> bytes:
    with tarfile.open(fileobj=(out := io.BytesIO()), mode=mode) as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return out.getvalue()


def classes(wnids: tuple[str, ...] = WNIDS, each: int = 5, size: int = 2000) -> dict[str, bytes]:
    """What the archive of the training images holds."""
    names = {wnid: [f"{wnid}_{7 * number + 1}.JPEG" for number in range(each)] for wnid in wnids}
    return {f"{wnid}.tar": tar({name: content(name, size) for name in names[wnid]}) for wnid in wnids}


def photographs(count: int = 12) -> dict[str, bytes]:
    """What that of the validation images holds, in another order than that of its names."""
    names = [f"ILSVRC2012_val_{number:08d}.JPEG" for number in range(1, count + 1)]
    return {name: content(name) for name in reversed(names)}


def devkit(wnids: tuple[str, ...] = WNIDS, labels: int = 12) -> dict[str, bytes]:
    """Numbers that are in no order of the WordNet IDs; a synset with children."""
    leaves = [(number, wnid, f"word{number}, other", "gloss", 0) for number, wnid in enumerate(reversed(wnids), 1)]
    kinds = [("ILSVRC2012_ID", "f8"), ("WNID", "O"), ("words", "O"), ("gloss", "O"), ("num_children", "f8")]
    synsets = np.array([*leaves, (len(leaves) + 1, "n00001740", "entity", "all", len(leaves))], kinds)
    savemat(meta := io.BytesIO(), {"synsets": synsets.reshape(-1, 1)})
    truth = "".join(f"{number * 7 % len(wnids) + 1}\n" for number in range(labels))
    return {prepare.DEVKIT + "meta.mat": meta.getvalue(), prepare.DEVKIT + prepare.TRUTH: truth.encode()}


def archives(src: Path, train: dict[str, bytes], val: dict[str, bytes], kit: dict[str, bytes]) -> Path:
    src.mkdir()
    for name, data in ((TRAIN, tar(train)), (VAL, tar(val)), (DEVKIT, tar(kit, "w:gz"))):
        (src / name).write_bytes(data)
    return src


@pytest.fixture
def src(tmp_path: Path) -> Path:
    return archives(tmp_path / "src", classes(), photographs(), devkit())


def tree(folder: Path) -> dict[str, bytes]:
    files = (path for part in ("train", "val") for path in (folder / part).rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_the_files_are_torchvisions(src: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dst = tmp_path / "dst"
    assert prepare.imagenet(src, dst, verify=False) == {"train": 20, "val": 12, "classes": 4}
    theirs = shutil.copytree(src, tmp_path / "theirs")
    monkeypatch.setattr(torchvisions, "_verify_archive", lambda *_: None)
    torchvisions.parse_devkit_archive(theirs)
    torchvisions.parse_train_archive(theirs)
    torchvisions.parse_val_archive(theirs)
    assert tree(dst) == tree(theirs) and len(tree(dst)) == 32
    found = torchvisions.ImageNet(theirs, "val")
    files = scan(dst / "val")
    assert files.names == found.wnids and files.labels == found.targets
    assert {path.name for path in dst.iterdir()} == {"train", "val", prepare.STATE}


def test_what_is_whole_stays_and_what_is_torn_is_written_again(src: Path, tmp_path: Path) -> None:
    dst = tmp_path / "dst"
    dst.mkdir()
    (dst / f".tmp-1-{prepare.STATE}").touch()  # as a kill leaves it before anything else is there
    prepare.imagenet(src, dst, verify=False)
    whole = tree(dst)
    times = {name: (dst / name).stat().st_mtime_ns for name in whole}
    torn = ["train/n01440764/n01440764_1.JPEG", "val/n03100240/ILSVRC2012_val_00000001.JPEG"]
    for name in torn:
        (dst / name).write_bytes(whole[name][:100])
    gone = "train/n02119789/n02119789_8.JPEG"
    (dst / gone).unlink()
    (dst / "train/n02119789").rename(dst / "train/.n02119789.partial")
    assert prepare.imagenet(src, dst, verify=False) == {"train": 20, "val": 12, "classes": 4}
    assert tree(dst) == whole
    changed = {name for name in whole if (dst / name).stat().st_mtime_ns != times[name]}
    assert changed == {*torn, gone}


def test_only_the_official_archives_unless_told(src: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dst = tmp_path / "dst"
    line = r"ILSVRC2012_img_train.tar has [0-9,]+ bytes, the official one 147,897,477,120: .* verify=false"
    with pytest.raises(N2NError, match=line):
        prepare.imagenet(src, dst)
    parts = dict(zip(("train", "val", "devkit"), (TRAIN, VAL, DEVKIT), strict=True))
    monkeypatch.setattr(prepare, "SIZES", {part: (src / name).stat().st_size for part, name in parts.items()})
    with pytest.raises(N2NError, match=r"ILSVRC2012_img_train.tar is damaged: its MD5 is not the official one"):
        prepare.imagenet(src, dst)
    assert not dst.exists()
    digests = {part: hashlib.md5((src / name).read_bytes()).hexdigest() for part, name in parts.items()}
    monkeypatch.setattr(prepare, "ARCHIVE_META", {part: (name, digests[part]) for part, name in parts.items()})
    said = []

    def watch(counts, n, unit, what):
        said.append(what)
        done = list(counts)
        assert sum(done) == n
        return done

    prepare.imagenet(src, dst, watch=watch)
    assert said == [f"MD5 of {TRAIN}", f"MD5 of {VAL}", f"MD5 of {DEVKIT}", "unpack"]
    said.clear()
    prepare.imagenet(src, dst, watch=watch)  # known good
    assert said == ["unpack"]
    os.utime(src / VAL)
    said.clear()
    prepare.imagenet(src, dst, verify=False, watch=watch)
    assert said == ["look", "unpack"]
    prepare.imagenet(src, dst, watch=watch)
    assert said[2:] == [f"MD5 of {VAL}", "unpack"]
    data = bytearray((src / VAL).read_bytes())
    data[5000] ^= 1
    (src / VAL).write_bytes(data)
    with pytest.raises(N2NError, match=r"ILSVRC2012_img_val.tar is damaged"):
        prepare.imagenet(src, dst)


def cut(name: str, size: int) -> Callable[[Path], object]:
    return lambda src: os.truncate(src / name, size if size > 0 else (src / name).stat().st_size + size)


def made(name: str, files: dict[str, bytes] | bytes, mode: str = "w") -> Callable[[Path], object]:
    return lambda src: (src / name).write_bytes(files if isinstance(files, bytes) else tar(files, mode))


def linked(src: Path) -> None:
    """A member that is a link out of the folder, with a name that is right."""
    with tarfile.open(src / VAL, "w") as archive:
        member = tarfile.TarInfo("ILSVRC2012_val_00000001.JPEG")
        member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(member)


ONE = dict(list(classes().items())[:1])
INNER = next(iter(classes().values()))
KIT = devkit()


@pytest.mark.parametrize(
    ("damage", "line"),
    [
        (lambda src: (src / TRAIN).unlink(), "no ILSVRC2012_img_train.tar in .*/src"),
        (lambda src: (src / VAL).unlink(), "no ILSVRC2012_img_val.tar in .*/src"),
        (lambda src: (src / DEVKIT).unlink(), "no ILSVRC2012_devkit_t12.tar.gz in .*/src"),
        (cut(TRAIN, 30_000), r"img_train.tar is no whole tar archive \(unexpected end of data\)"),
        (cut(TRAIN, 100), r"img_train.tar is no whole tar archive \(truncated header\)"),
        (cut(VAL, 9_000), r"img_val.tar is no whole tar archive \(unexpected end of data\)"),
        (cut(VAL, len(tar(dict(list(photographs().items())[:3]))) // 10240 * 10240), "img_val.tar (is no whole|has)"),
        (cut(DEVKIT, -30), r"devkit_t12.tar.gz is no devkit of ILSVRC 2012 \("),
        (made(TRAIN, b""), r"img_train.tar is no whole tar archive \(empty file\)"),
        (made(TRAIN, b"<html>Not found</html>" * 99), r"img_train.tar is no whole tar archive \("),
        (made(TRAIN, tar(classes()).replace(b"n02119789.tar", b"n02119789.taz", 1)), "img_train.tar is no whole tar"),
        (made(DEVKIT, b"<html>Not found</html>"), r"devkit_t12.tar.gz is no devkit of ILSVRC 2012 \(not a gzip file\)"),
        (made(DEVKIT, gzip.compress(b"x" * 999)), r"devkit_t12.tar.gz is no devkit of ILSVRC 2012 \("),
        (made(DEVKIT, {"README": b"x"}, "w:gz"), r"no devkit of ILSVRC 2012 \(.*meta.mat.* not found\)"),
        (made(DEVKIT, {**KIT, prepare.DEVKIT + "meta.mat": b"x" * 300}, "w:gz"), r"no devkit of ILSVRC 2012 \("),
        (made(DEVKIT, {**KIT, prepare.DEVKIT + "meta.mat": b""}, "w:gz"), r"no devkit of ILSVRC 2012 \("),
        (made(DEVKIT, {**KIT, prepare.DEVKIT + prepare.TRUTH: b"one"}, "w:gz"), r"no devkit of ILSVRC 2012 \(invalid"),
        (made(DEVKIT, {**KIT, prepare.DEVKIT + prepare.TRUTH: b"5\n" * 12}, "w:gz"), "have other classes, such as 1"),
        (made(DEVKIT, devkit(("../../../evil",)), "w:gz"), "a class is called '../../../evil'"),
        (made(DEVKIT, devkit(labels=11), "w:gz"), "has 12 images, the devkit 11 labels; .*_00000012.JPEG has no label"),
        (made(DEVKIT, devkit(labels=13), "w:gz"), "has 12 images, the devkit 13 labels; .*_00000013.JPEG has no image"),
        (made(DEVKIT, devkit(WNIDS[1:]), "w:gz"), "the archive has a class n01440764, and the devkit has not"),
        (made(TRAIN, ONE), "the devkit has a class n01443537, and the archive has not"),
        (made(TRAIN, photographs()), "img_train.tar is not ImageNet's: it holds 'ILSVRC2012_val_00000012.JPEG'"),
        (made(VAL, classes()), "img_val.tar is not ImageNet's: it holds 'n01440764.tar'"),
        (made(VAL, {**photographs(), "../evil.JPEG": b"x"}), "is not ImageNet's: it holds '../evil.JPEG'"),
        (made(VAL, {**photographs(), "ILSVRC2012_val_00000001.JPEG\n": b"x"}), "it holds 'ILSVRC2012_val_00000001"),
        (linked, "is not ImageNet's: it holds 'ILSVRC2012_val_00000001.JPEG'"),
        (made(TRAIN, {**classes(), "n03100240.tar": tar({"/etc/x": b""})}), "n03100240.tar is not .* holds '/etc/x'"),
        (made(TRAIN, {**classes(), "n03100240.tar": INNER}), "n03100240.tar is not .* holds 'n01440764_1.JPEG'"),
        (made(TRAIN, {**classes(), "n03100240.tar": tar({})}), "n03100240.tar is empty"),
        (made(TRAIN, {**ONE, **classes(), "n03100240.tar": INNER[:5000]}), "n03100240.tar is no whole tar archive"),
        (made(TRAIN, tar(ONE)[:-1024].rstrip(b"\0") + tar(ONE)), "img_train.tar"),
    ],
)
def test_wrong_archives(src: Path, tmp_path: Path, damage: Callable[[Path], object], line: str) -> None:
    damage(src)
    before = sorted(path.name for path in tmp_path.rglob("*"))
    with pytest.raises(N2NError, match=line) as error:
        prepare.imagenet(src, tmp_path / "dst", verify=False)
    assert "\n" not in str(error.value) and len(str(error.value)) < 400
    assert sorted(path.name for path in tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("put", "line"),
    [
        (lambda dst: dst.touch(), r"dst is a file, expected a folder"),
        (lambda dst: (dst / "train" / WNIDS[0]).mkdir(parents=True), "dst holds other files: give an empty folder"),
        (lambda dst: [prepare.imagenet(dst.parent / "src", dst, verify=False), (dst / "x").touch()], "dst/x is not of"),
        (
            lambda dst: [prepare.imagenet(dst.parent / "src", dst, verify=False), (dst / "val/n00000001").mkdir()],
            "dst/val/n00000001 is not of ImageNet",
        ),
        (
            lambda dst: [
                prepare.imagenet(dst.parent / "src", dst, verify=False),
                (dst / f"train/{WNIDS[0]}/notes.txt").touch(),
            ],
            "notes.txt is not of ImageNet",
        ),
        (
            lambda dst: [
                prepare.imagenet(dst.parent / "src", dst, verify=False),
                (dst / f"train/{WNIDS[0]}/{WNIDS[0]}_9999.JPEG").touch(),
            ],
            "n01440764_9999.JPEG is not in .*img_train.tar: remove it",
        ),
        (
            lambda dst: [
                prepare.imagenet(dst.parent / "src", dst, verify=False),
                made(TRAIN, classes(each=40))(dst.parent / "src"),
            ],
            "dst was begun from other archives",
        ),
        (
            lambda dst: [
                prepare.imagenet(dst.parent / "src", dst, verify=False),
                (dst / "val").rename(dst.parent / "val"),
                (dst / "val").symlink_to(dst.parent / "val"),
            ],
            "dst/val is not of ImageNet",
        ),
    ],
)
def test_a_folder_that_holds_other_things(src: Path, put: Callable[[Path], object], line: str) -> None:
    dst = src.parent / "dst"
    put(dst)
    before = tree(dst)
    with pytest.raises(N2NError, match=line):
        prepare.imagenet(src, dst, verify=False)
    assert tree(dst) == before


def test_a_disk_that_is_too_small_is_told_before(src: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = sum((src / name).stat().st_size for name in (TRAIN, VAL))
    usage = shutil._ntuple_diskusage(10**9, 10**9, sizes)
    monkeypatch.setattr(prepare.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(N2NError, match=r"has room for 0\.0 GB, and the images take 0\.0 GB"):
        prepare.imagenet(src, tmp_path / "a" / "dst", verify=False)
    assert not (tmp_path / "a").exists()
    monkeypatch.undo()
    prepare.imagenet(src, tmp_path / "dst", verify=False)
    monkeypatch.setattr(prepare.shutil, "disk_usage", lambda path: usage)
    prepare.imagenet(src, tmp_path / "dst", verify=False)  # nearly all is there


def test_a_full_disk_is_one_line(src: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, written = Path.write_bytes, []

    def full(path: Path, data: bytes) -> int:
        written.append(path)
        if len(written) == 8:
            plain(path, data[:50])
            raise OSError(28, "No space left on device")
        return plain(path, data)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(N2NError, match=r"dst/train/n01443537: No space left on device"):
        prepare.imagenet(src, tmp_path / "dst", verify=False)
    monkeypatch.undo()
    prepare.imagenet(src, tmp_path / "dst", verify=False)
    prepare.imagenet(src, tmp_path / "whole", verify=False)
    assert tree(tmp_path / "dst") == tree(tmp_path / "whole")


def test_the_command(src: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    words = ["data", "prepare", "imagenet", str(src), str(tmp_path / "dst")]
    assert cli.main(words) == 2
    out, err = capfd.readouterr()
    assert out == "" and err.startswith("n2n: error: data prepare: ") and err.count("\n") == 1
    assert cli.main([*words, "verify=false"]) == 0
    out, err = capfd.readouterr()
    assert err == "" and out.splitlines() == [
        f"{tmp_path}/dst: 20 training and 12 validation images of 4 classes",
        f"use it by: data=imagefolder data.root={tmp_path}/dst",
    ]
    assert cli.main([*words, "verify=false", "progress=true"]) == 0
    assert "data prepare: unpack: 100%" in capfd.readouterr().err


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_process_that_is_stopped_is_gone_on_with(
    tmp_path: Path, how: signal.Signals, start: Callable[..., Any], capfd: pytest.CaptureFixture[str]
) -> None:
    wnids = tuple(f"n{number:08d}" for number in range(20))
    src = archives(tmp_path / "src", classes(wnids, 20, 300), photographs(40), devkit(wnids, 40))
    whole, dst = tmp_path / "whole", tmp_path / "dst"
    line = ["data", "prepare", "imagenet", str(src), str(dst), "--verify=false"]

    def slowly() -> None:
        plain = prepare._write
        prepare._write = lambda *arguments: (time.sleep(0.002) or size for size in plain(*arguments))

    code, out, err = start(line, slowly).stop(how, lambda: len(list(dst.glob("train/n*"))) > 4)
    if how == signal.SIGINT:
        said = "n2n: interrupted: stopped; the same command goes on from there\n"
        assert (code, out, err) == (130, "", said)
    else:
        assert code == -signal.SIGKILL
    assert not (dst / "val" / wnids[-1]).exists()
    kept = {path: path.stat().st_mtime_ns for path in dst.glob("train/n*/*")}
    assert cli.main(line) == 0
    done = capfd.readouterr()
    assert done.err == "" and "400 training and 40 validation images" in done.out
    assert len(kept) >= 5 * 20 and all(path.stat().st_mtime_ns == time for path, time in kept.items())
    prepare.imagenet(src, whole, verify=False)
    assert tree(dst) == tree(whole)
    assert not list(dst.glob("*/.*"))
