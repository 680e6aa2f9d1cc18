"""Data sets by name: real folders, odd files, and one line for everything that is wrong."""

import itertools
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import CIFAR10, ImageFolder
from torchvision.transforms import v2

from n2n_cli.data import EvalLoader, TrainLoader, load
from n2n_cli.data.pack import pack
from n2n_cli.data.sources import Source, jpeg_decoder, read_image
from n2n_cli.errors import N2NError
from n2n_cli.processes import locked


def test_imagefolder_is_torchvisions(folder: Path) -> None:
    data = load("imagefolder", root=folder, image_size=24, resize_size=32)
    theirs = ImageFolder(
        str(folder / "val"), v2.Compose([v2.PILToTensor(), v2.Resize(32, antialias=True), v2.CenterCrop(24)])
    )
    assert data.class_names == theirs.classes == ["ant", "bee", "cat"] and data.num_classes == 3
    (images, labels), *rest = EvalLoader(data.val, batch_size=100).batches(0)
    assert not rest and labels.tolist() == theirs.targets
    assert all(torch.equal(image, theirs[i][0]) for i, image in enumerate(images))
    assert not data.synthetic and data.image_size == 24 and len(data.train) == 12


def test_resize_size_follows_the_image_size(folder: Path) -> None:
    sizes = [(32, 32, "crop"), (64, 64, "crop"), (224, 256, "imagenet"), (128, 146, "imagenet")]
    for size, resize, augment in sizes:
        source = load("imagefolder", root=str(folder), image_size=size, cache="none").train
        assert (source.size, source.resize, source.augment.geometry) == (size, resize, augment)
        assert source.batch(torch.tensor([0, 5]), None).shape == (2, 3, size, size)
    assert load("imagefolder", root=folder, image_size=32, augment="imagenet").train.augment.geometry == "imagenet"
    assert load("imagefolder", root=folder).image_size == 224


def test_subsets_are_drawn_once_for_a_seed(folder: Path) -> None:
    whole = load("imagefolder", root=folder, image_size=24, cache="none")
    data = load("imagefolder", root=folder, image_size=24, train_images=5, val_images=4, cache="none")
    assert len(data.train) == 5 and len(data.val) == 4
    again = load("imagefolder", root=folder, image_size=24, train_images=5, val_images=4, cache="none")
    assert (data.train.paths == again.train.paths).all()
    assert set(data.train.paths) < set(whole.train.paths)
    for path, label in zip(data.train.paths, data.train.labels.tolist(), strict=True):
        assert Path(path.decode()).parent.name == data.class_names[label]


def test_odd_files_of_imagenet(folder: Path, draw: Callable[..., None]) -> None:
    """A PNG called JPEG, CMYK, grey, palette with transparency, a name that is not ASCII, nested folders."""
    ant = folder / "train" / "ant"
    draw(ant / "png.JPEG", 1, kind="PNG")
    draw(ant / "cmyk.jpeg", 1, mode="CMYK")
    draw(ant / "grey.jpg", 1, mode="L")
    draw(ant / "deep" / "größe.png", 1, kind="PNG")
    Image.new("P", (9, 30)).save(ant / "palette.png", transparency=b"\x00\x10")
    (ant / "notes.txt").write_text("no image")
    (folder / "train" / ".cache").mkdir()
    data = load("imagefolder", root=folder, image_size=24)
    assert len(data.train) == 12 + 5
    batches = list(TrainLoader(data.train, batch_size=17, seed=0).batches(0))
    assert batches[0][0].shape == (17, 3, 24, 24)
    rgb, cmyk = read_image(str(ant / "png.JPEG")), read_image(str(ant / "cmyk.jpeg"))
    assert (rgb.float() - cmyk.float()).abs().mean() < 6


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.write_bytes(b""), "no image format that Pillow knows"),
        (lambda path: path.write_bytes(path.read_bytes()[:-200]), "image file is truncated"),
        (lambda path: path.write_text("<html>404</html>"), "no image format that Pillow knows"),
        (lambda path: path.unlink(), "No such file"),
    ],
)
def test_unreadable_images(folder: Path, damage: Callable[[Path], object], message: str) -> None:
    path = folder / "val" / "cat" / "0.jpg"
    data = load("imagefolder", root=folder, image_size=24)
    damage(path)
    with pytest.raises(N2NError, match=rf"^unreadable image {path}: .*{message}"):
        list(EvalLoader(data.val, batch_size=2).batches(0))


def remove(*parts: str) -> Callable[[Path], None]:
    return lambda folder: shutil.rmtree(folder.joinpath(*parts))


def empty(*parts: str) -> Callable[[Path], None]:
    return lambda folder: [path.unlink() for path in folder.joinpath(*parts).iterdir()] and None


@pytest.mark.parametrize(
    ("damage", "root", "message"),
    [
        (None, None, r"imagefolder needs data.root=FOLDER"),
        (None, "dat", r"data.root=.*/dat does not exist \(did you mean 'data'\?\)"),
        (None, "no/such/place", r"data.root=.*/no/such/place does not exist$"),
        (None, "data/train/ant/0.jpg", r"data.root=.*/0.jpg is not a folder"),
        (None, ".", r"no train/ in data.root=.* \(did you mean data.root=.*/data\?\)"),
        (None, "data/train", r"no train/ in data.root=.*/data/train \(did you mean data.root=.*/data\?\)"),
        (remove("train"), "data", r"no train/ in data.root=.*/data$"),
        (remove("val"), "data", r"no val/ in data.root=.*/data$"),
        (remove("val", "bee"), "data", r"no class 'bee' in .*/data/val$"),
        (remove("train", "bee"), "data", r"no class 'bee' in .*/data/train$"),
        (empty("val", "cat"), "data", r"no images in .*/val/cat \(.jpg, .jpeg, .png"),
        (empty("train", "cat"), "data", r"no images in .*/train/cat"),
        (
            lambda folder: [shutil.rmtree(p) for p in (folder / "val").iterdir()],
            "data",
            r"no class folders in .*/val \(expected .*/val/<class>/<image>\)",
        ),
    ],
)
def test_wrong_folders(folder: Path, damage: Callable[[Path], object] | None, root: str | None, message: str) -> None:
    if damage:
        damage(folder)
    with pytest.raises(N2NError, match=message) as error:
        load("imagefolder", root=root and folder.parent / root)
    assert "\n" not in str(error.value)


def test_many_missing_classes_are_counted(folder: Path, draw: Callable[..., None]) -> None:
    for i in range(9):
        draw(folder / "train" / f"n{i}" / "0.jpg", i)
    with pytest.raises(N2NError, match=r"no class 'n0', 'n1', 'n2' and 6 more in .*/val"):
        load("imagefolder", root=folder)


@pytest.mark.parametrize(
    ("name", "kwargs", "message"),
    [
        ("shape", {}, r"unknown data 'shape' \(did you mean 'shapes'\?\); expected shapes, imagefolder"),
        (
            "shapes",
            {"num_classes": 10, "train_images": 16, "val_images": 16},
            "data shapes has 16 classes, not num_classes=10",
        ),
        ("shapes", {"train_images": 0}, "data.train_images must be a whole number >= 1, not 0"),
        ("shapes", {"val_images": 1.5}, "data.val_images must be a whole number"),
        ("shapes", {"image_size": 4}, "data.image_size must be a whole number >= 8, not 4"),
        ("shapes", {"difficulty": -1}, r"data.difficulty must be a number in \[0, 4\]"),
        ("shapes", {"augment": "imagenets"}, r"not 'imagenets' \(did you mean 'imagenet'\?\)"),
        ("cifar10", {"image_size": 64}, "cifar10 has images of 32 px, not image_size=64"),
    ],
)
def test_wrong_values(name: str, kwargs: dict, message: str) -> None:
    with pytest.raises(N2NError, match=message):
        load(name, **kwargs)


def test_wrong_sizes_of_a_folder(folder: Path) -> None:
    with pytest.raises(N2NError, match=r"data.train_images=13, but there are only 12"):
        load("imagefolder", root=folder, train_images=13)
    with pytest.raises(N2NError, match=r"imagefolder has 3 classes, not num_classes=10"):
        load("imagefolder", root=folder, num_classes=10)


def test_fake_is_for_throughput() -> None:
    data = load("fake", image_size=16, train_images=1000, val_images=10, num_classes=7, seed=3)
    assert data.synthetic and data.num_classes == 7 and len(data.train) == 1000 and len(data.val) == 10
    images, labels = next(TrainLoader(data.train, batch_size=64, seed=0).batches(0))
    assert images.shape == (64, 3, 16, 16) and labels.max() < 7
    assert len(data.train.images) == 256  # the memory of 256 images whatever their number


class FakeCifar(CIFAR10):
    """The class as it is after a download: arrays in memory."""

    def __init__(self, root: str, train: bool, download: bool) -> None:
        import numpy as np

        n = 60 if train else 20
        self.data = np.random.default_rng(train).integers(0, 256, (n, 32, 32, 3), dtype=np.uint8)
        self.targets = [i % 10 for i in range(n)]
        self.classes = [str(i) for i in range(10)]


def test_cifar10(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("torchvision.datasets.CIFAR10", FakeCifar)
    data = load("cifar10", root=tmp_path, train_images=40)
    assert len(data.train) == 40 and len(data.val) == 20 and data.num_classes == 10 and not data.synthetic
    reference = FakeCifar("", False, False)
    ((images, labels),) = EvalLoader(data.val, batch_size=20).batches(0)
    assert torch.equal(images.permute(0, 2, 3, 1), torch.from_numpy(reference.data))
    assert labels.tolist() == reference.targets and data.train.augment.geometry == "crop"
    with pytest.raises(N2NError, match=r"data.val_images=21, but there are only 20"):
        load("cifar10", root=tmp_path, val_images=21)


def test_cifar10_is_downloaded_by_one_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Alone(FakeCifar):
        def __init__(self, root: str, train: bool, download: bool) -> None:
            super().__init__(root, train, download)
            waited = list[str]()
            with pytest.raises(InterruptedError), locked(Path(root), lambda: stop(waited)):
                pass
            assert waited == ["another holds it"]

    def stop(waited: list[str]) -> None:
        waited.append("another holds it")
        raise InterruptedError

    monkeypatch.setattr("torchvision.datasets.CIFAR10", Alone)
    assert len(load("cifar10", root=tmp_path / "new").train) == 60
    with locked(tmp_path / "new", lambda: pytest.fail("it was left locked")):
        pass


def test_cifar10_without_a_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise OSError("[Errno -3] Temporary failure\nin name resolution")

    monkeypatch.setattr("torchvision.datasets.utils._urlretrieve", refuse)
    with pytest.raises(N2NError, match=rf"cifar10: cannot be downloaded to data.root={tmp_path}") as error:
        load("cifar10", root=tmp_path)
    assert "\n" not in str(error.value) and tmp_path.is_dir()
    with pytest.raises(N2NError, match="cifar10: cannot be downloaded"):
        load("cifar10", root=tmp_path / "new" / "data")
    assert not (tmp_path / "new" / "data").exists()


def epoch(source: Source, epoch: int) -> tuple[torch.Tensor, torch.Tensor]:
    loader = TrainLoader(source, batch_size=4, seed=5)
    images, labels = zip(*loader.batches(epoch), strict=True)
    return torch.cat(images), torch.cat(labels)


@pytest.mark.parametrize("augment", ["crop", "none"])
def test_images_in_memory_are_those_of_the_files(folder: Path, augment: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kept, read = (load("imagefolder", root=folder, image_size=24, augment=augment, cache=c) for c in ("auto", "none"))
    assert not kept.train.decodes and read.train.decodes
    for number in (0, 1):
        for ours, theirs in zip(epoch(kept.train, number), epoch(read.train, number), strict=True):
            assert torch.equal(ours, theirs)
    assert torch.equal(kept.val.batch(torch.arange(3), None), read.val.batch(torch.arange(3), None))
    monkeypatch.setattr("n2n_cli.data.sources.read_image", lambda path: pytest.fail("read again"))
    epoch(kept.train, 2)  # each file was opened once


def test_what_is_kept_in_memory(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load("imagefolder", root=folder, image_size=24, augment="imagenet").train.decodes
    with pytest.raises(N2NError, match=r"data.cache=memory: the random crop of data.augment takes every image anew"):
        load("imagefolder", root=folder, image_size=24, augment="imagenet", cache="memory")
    monkeypatch.setattr("n2n_cli.data.selection.CACHE_SHARE", 1e-12)
    assert load("imagefolder", root=folder, image_size=24).train.decodes
    assert not load("imagefolder", root=folder, image_size=24, cache="memory").train.decodes
    monkeypatch.setattr("os.sysconf", lambda name: 100)
    with pytest.raises(N2NError, match=r"data.cache=memory: the images take 0.0 GB, this machine has 0.0"):
        load("imagefolder", root=folder, image_size=24, cache="memory")


@pytest.mark.parametrize("cache", ["auto", "none"])
def test_a_holdout_is_of_the_training_images_and_not_trained_on(folder: Path, cache: str) -> None:
    whole = load("imagefolder", root=folder, image_size=24, cache=cache)
    data = load("imagefolder", root=folder, image_size=24, holdout=5, cache=cache)
    assert (len(data.train), len(data.val)) == (7, 5) and data.val.augment.geometry == "none"
    parts = [whole.train, data.train, data.val]
    everything, rest, held = ([i.flatten().tolist() for i in s.batch(torch.arange(len(s)), None)] for s in parts)
    assert all(image in everything for image in [*rest, *held])
    assert len({tuple(image) for image in [*rest, *held]}) == len({tuple(image) for image in everything})
    again = load("imagefolder", root=folder, image_size=24, holdout=5, cache=cache)
    assert again.val.labels.tolist() == data.val.labels.tolist()


def test_links_in_a_circle_and_pipes_are_passed_over(folder: Path) -> None:
    before = load("imagefolder", root=folder, image_size=24, cache="none")
    (folder / "train" / "ant" / "up").symlink_to(folder / "train" / "ant")
    os.mkfifo(folder / "train" / "ant" / "pipe.png")
    after = load("imagefolder", root=folder, image_size=24, cache="none")
    assert (after.train.paths == before.train.paths).all()


def test_a_holdout_copies_no_images_that_repeat() -> None:
    data = load("fake", image_size=16, train_images=1000, holdout=10)
    assert len(data.train.images) == len(data.val.images) == 256 and len(data.train) == 990


def test_a_holdout_of_the_embedded_images() -> None:
    data = load("shapes", train_images=100, val_images=50, holdout=20)
    assert (len(data.train), len(data.val)) == (80, 20)
    whole = load("shapes", train_images=100)
    assert sorted([*data.train.labels.tolist(), *data.val.labels.tolist()]) == sorted(whole.train.labels.tolist())
    with pytest.raises(N2NError, match=r"data.holdout=100, but there are only 100 training images"):
        load("shapes", train_images=100, holdout=100)


def _pixels(source: Source) -> list[bytes]:
    return [source.batch(torch.tensor([i]), None).numpy().tobytes() for i in range(len(source))]


@pytest.mark.parametrize("name", ["imagefolder", "packed", "cifar10", "shapes", "fake"])
def test_fractions_of_the_training_images_nest(
    name: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A larger fraction holds a smaller one, image by image; the validation images, held out or not, are the same."""
    options: dict[str, Any] = {"image_size": 32, "augment": "none", "holdout": 2}
    monkeypatch.setattr("torchvision.datasets.CIFAR10", FakeCifar)
    if name == "packed":
        pack(folder, tmp_path / "packed", size=32, kind="raw")
    if name in ("imagefolder", "packed", "cifar10"):
        options["root"] = tmp_path / "packed" if name == "packed" else folder
    else:
        options |= {"train_images": 40, "val_images": 10, **({"num_classes": 4} if name == "fake" else {})}
    whole = load(name, **options)
    parts = [load(name, **options, train_fraction=fraction) for fraction in (0.3, 0.6, 1.0)]
    kept = [_pixels(part.train) for part in parts]
    assert [len(one) for one in kept] == [max(1, round(f * len(whole.train))) for f in (0.3, 0.6, 1.0)]
    assert set(kept[0]) < set(kept[1]) < set(kept[2]) or name == "fake"  # whose images repeat
    assert kept[2] == _pixels(whole.train) and [part.whole for part in parts] == [len(whole.train)] * 2 + [None]
    for part in parts:
        assert _pixels(part.val) == _pixels(whole.val) and torch.equal(part.val.labels, whole.val.labels)
    other = load(name, **options, train_fraction=0.3, seed=1)
    assert name in ("shapes", "fake") or _pixels(other.train) != kept[0]


def test_a_fraction_out_of_range_is_an_error() -> None:
    for fraction in (0.0, 1.5):
        with pytest.raises(N2NError, match=r"data.train_fraction must be a number above 0, at most 1, not"):
            load("shapes", train_images=32, val_images=16, train_fraction=fraction)


def test_sixteen_bits_are_scaled_and_other_numbers_refused(folder: Path) -> None:
    deep = np.linspace(0, 65535, 32 * 32).reshape(32, 32).astype(np.uint16)
    for name in ("deep.png", "deep.tiff"):
        path = folder / "train" / "ant" / name
        Image.fromarray(deep).save(path)
        image = read_image(str(path))
        assert image.shape == (3, 32, 32) and torch.equal(image[0], torch.from_numpy((deep >> 8).astype(np.uint8)))
    for kind, array in (("floating-point", np.ones((8, 8), np.float32)), ("32-bit", np.ones((8, 8), np.int32))):
        path = folder / "train" / "ant" / f"{kind}.tiff"
        Image.fromarray(array).save(path)
        with pytest.raises(
            N2NError, match=rf"unreadable image .*{kind}.tiff: its pixels are {kind} numbers, of no known"
        ):
            read_image(str(path))


def test_hidden_files_and_other_kinds_are_passed_over_and_counted(folder: Path) -> None:
    before = load("imagefolder", root=folder, image_size=24, cache="none")
    ant = folder / "train" / "ant"
    one = next(path for path in sorted(ant.rglob("*")) if path.is_file())
    (ant / ".ipynb_checkpoints").mkdir()
    for name in (".ipynb_checkpoints/x.jpg", "._x.jpg", "x.gif", "y.gif", "z.jfif"):
        shutil.copy(one, ant / name)
    (folder / "val" / "bee" / ".DS_Store").write_bytes(b"")
    after = load("imagefolder", root=folder, image_size=24, cache="none")
    assert (after.train.paths == before.train.paths).all() and after.files == before.files
    assert before.passed_over == ""
    assert after.passed_over == "2 hidden files, 2 .gif, 1 .jfif in train/, 1 hidden file in val/"


@pytest.mark.parametrize("decoder", ["torchvision", "torchcodec"])
def test_a_fast_decoder_gives_pillows_pixels(tmp_path: Path, decoder: str) -> None:
    """JPEGs of every kind, whole and mutated: it never refuses what Pillow reads, and its pixels are Pillow's."""
    if decoder == "torchcodec":
        pytest.importorskip("torchcodec")
    assert jpeg_decoder("auto") is jpeg_decoder("torchvision")
    draw = np.random.default_rng(0)
    path, seen = tmp_path / "image.jpg", {"same": 0, "refused": 0}
    kinds = [("RGB", {}), ("RGB", {"progressive": True}), ("RGB", {"subsampling": 0}), ("L", {}), ("CMYK", {})]
    for number in range(260):
        mode, options = kinds[number % len(kinds)]
        pixels = draw.integers(0, 256, (37, 53, len(Image.new(mode, (1, 1)).getbands())), dtype=np.uint8).squeeze()
        pixels.sort(axis=0)
        Image.fromarray(pixels, mode).save(path, "JPEG", quality=int(draw.integers(20, 100)), **options)
        data = bytearray(path.read_bytes())
        if number >= 50 and number % 3 == 0:
            data = data[: draw.integers(len(data))]
        elif number >= 50:
            for place in draw.integers(len(data), size=3):
                data[place] = draw.integers(256)
        path.write_bytes(data)
        found = []
        for one in (decoder, "pil"):
            try:
                found.append(read_image(str(path), one))
            except N2NError as error:
                found.append(str(error))
        if isinstance(found[0], str) or isinstance(found[1], str):  # of broken headers, it reads some more
            assert found[0] == found[1] or isinstance(found[1], str)
        else:
            assert torch.equal(found[0], found[1])
        seen["refused" if isinstance(found[1], str) else "same"] += 1
    assert min(seen.values()) > 30, seen


@pytest.mark.parametrize("decoder", ["auto", "torchcodec"])
def test_no_decoder_changes_a_pixel_of_any_format(folder: Path, draw: Callable[..., None], decoder: str) -> None:
    if decoder == "torchcodec":
        pytest.importorskip("torchcodec")
    ant = folder / "train" / "ant"
    for number, (kind, mode) in enumerate(itertools.product(("PNG", "TIFF", "JPEG", "BMP", "WEBP"), ("RGB", "L", "P"))):
        if (kind, mode) not in (("JPEG", "P"), ("WEBP", "L"), ("WEBP", "P")):
            draw(ant / f"{number}.JPEG", number, kind=kind, mode=mode)
    for kind, mode in (("PNG", "RGBA"), ("PNG", "1"), ("WEBP", "RGBA"), ("JPEG", "CMYK"), ("TIFF", "CMYK")):
        draw(ant / f"{mode}-{kind}.png", 3, kind=kind, mode=mode)
    with Image.open(ant / "0.jpg") as turned:  # nobody turns it, not even Pillow
        exif = turned.getexif()
        exif[0x0112] = 6
        turned.save(ant / "turned.jpg", exif=exif)
    ours, theirs = (load("imagefolder", root=folder, image_size=24, decoder=name).train for name in (decoder, "pil"))
    assert len(ours) == 12 + 12 + 5 + 1
    every = torch.arange(len(ours))
    assert torch.equal(ours.batch(every, None), theirs.batch(every, None))


def test_without_torchcodec(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", None)
    jpeg_decoder.cache_clear()
    with pytest.raises(N2NError, match=r"decoder=torchcodec: pip install 'n2n-cli\[torchcodec\]', or take .*=auto \("):
        load("imagefolder", root=folder, decoder="torchcodec")
    jpeg_decoder.cache_clear()


def test_a_digest_does_not_depend_on_how_the_root_is_written(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    roots = (folder, ".", f"../{folder.name}")
    assert len({load("imagefolder", root=root, image_size=24).files for root in roots}) == 1
