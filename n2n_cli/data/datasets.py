"""Data sets by name: `shapes` (embedded, synthetic), `imagefolder`, `packed`, `cifar10`, `fake` (throughput only)."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from n2n_cli import records
from n2n_cli.data import packed, shapes
from n2n_cli.data.counter import generator
from n2n_cli.data.index import PARTS, digest, layout
from n2n_cli.data.selection import Dataset, Triple, cached, fraction, held_out
from n2n_cli.data.sources import ArraySource, FolderSource, Source, jpeg_decoder, scan
from n2n_cli.data.transforms import Augment, Geometry
from n2n_cli.errors import N2NError, suggest
from n2n_cli.processes import locked

NAMES = ("shapes", "imagefolder", "packed", "cifar10", "fake")
AUGMENTS = ("auto", "none", "crop", "imagenet", "randaugment", "trivial")
INTERPOLATIONS = ("bilinear", "bicubic")
CACHES = ("auto", "memory", "none")
DECODERS = ("auto", "torchvision", "torchcodec", "pil")
CIFAR_LIKE_PX = 64
"""Up to this size in pixels images are treated as CIFAR's: no margin for a centre crop; pad, crop, flip in training."""

LOOKS: Mapping[str, tuple[Triple, Triple]] = {
    "shapes": ((0.5, 0.5, 0.5), (0.2, 0.2, 0.2)),
    "fake": ((0.5, 0.5, 0.5), (0.29, 0.29, 0.29)),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "imagefolder": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "packed": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}
"""Mean and standard deviation of images in [0, 1], by channel."""


def load(
    name: str,
    *,
    root: str | Path | None = None,
    image_size: int | None = None,
    resize_size: int | None = None,
    seed: int = 0,
    train_images: int | None = None,
    train_fraction: float = 1.0,
    val_images: int | None = None,
    num_classes: int | None = None,
    augment: str = "auto",
    ra_magnitude: int = 9,
    random_erase: float = 0.0,
    crop_scale: Sequence[float] = (0.08, 1.0),
    crop_ratio: Sequence[float] = (3 / 4, 4 / 3),
    interpolation: str = "bilinear",
    difficulty: float = 1.0,
    holdout: int = 0,
    cache: str = "auto",
    decoder: str = "auto",
    val_alone: bool = False,
) -> Dataset:
    """The data set ``name``. An argument that is None is the data set's own default.

    Args:
        root: folder of `imagefolder` (train/ and val/ in it), of `packed` (made by `n2n data pack`) or of `cifar10`
            (downloaded into it).
        image_size: side of the square images in pixels.
        resize_size: of `imagefolder`: the short side before the centre crop, ``image_size`` or more. Default:
            ``image_size`` up to 64 px, else 256/224 of it.
        seed: which images `shapes` and `fake` draw; which ``train_images`` and ``val_images`` of the others are kept.
        train_images, val_images: how many images; default: all of a folder or of CIFAR-10.
        train_fraction: keep this fraction of those training images, drawn by ``seed``; a larger fraction holds a
            smaller one, and the validation images stay.
        num_classes: of `fake`; elsewhere only compared with what is there.
        augment: of training images: "crop" (pad 4, crop, flip), "imagenet" (random resized crop, flip), "none", or
            "auto": by image size; "randaugment", "trivial": that, and then torchvision's RandAugment with
            ``ra_magnitude`` of 31, or its TrivialAugmentWide.
        random_erase: the share of training images of which a part is erased to the data set's mean colour.
        crop_scale, crop_ratio: of the random part, its area over the image's and its width over its height.
        interpolation: "bilinear" or "bicubic", of whatever is resized, in evaluation too.
        difficulty: of `shapes`, 0 (clean) to 4.
        holdout: validate on this many training images, drawn by ``seed`` and kept out of training, instead of on the
            validation images: for choices that those must not see.
        cache: of `imagefolder`. "memory": images are decoded once and kept; "none": every time; "auto": kept where
            they are small, `selection.CACHE_SHARE` of the memory at most. (The commands' "packed" is `packs.kept`, and
            then `packed`.)
        decoder: of `imagefolder`, see `read_image`: the images are the same.
        val_alone: of `imagefolder`, without a holdout: train/ is not read, and ``train`` holds the validation images.

    Raises:
        N2NError: a wrong name or value, a wrong folder, or a failed download.
    """
    if name not in NAMES:
        raise N2NError(f"unknown data '{name}'{suggest(name, NAMES)}; expected {', '.join(NAMES)}")
    for field, value, choices in (
        ("augment", augment, AUGMENTS),
        ("interpolation", interpolation, INTERPOLATIONS),
        ("cache", cache, CACHES),
        ("decoder", decoder, DECODERS),
    ):
        if value not in choices:
            raise N2NError(f"data.{field} must be one of {', '.join(choices)}, not '{value}'{suggest(value, choices)}")
    counts = {
        "train_images": train_images,
        "val_images": val_images,
        "num_classes": num_classes,
        "holdout": holdout or None,
    }
    for field, number in {**counts, "image_size": image_size, "resize_size": resize_size}.items():
        least = 8 if field.endswith("size") else 1
        if number is not None and (isinstance(number, bool) or not isinstance(number, int) or number < least):
            raise N2NError(f"data.{field} must be a whole number >= {least}, not {number!r}")
    size = image_size or (32 if name in ("shapes", "cifar10") else 224)
    how = Augment(
        _geometry(name, augment, size),
        augment if augment in ("randaugment", "trivial") else "none",  # type: ignore[arg-type]
        ra_magnitude,
        random_erase,
        tuple(round(255 * value) for value in LOOKS[name][0]),  # type: ignore[arg-type]
        tuple(crop_scale),  # type: ignore[arg-type]
        tuple(crop_ratio),  # type: ignore[arg-type]
        interpolation,  # type: ignore[arg-type]
    )
    if name == "shapes":
        data = _shapes(seed, train_images, val_images, size, how, difficulty)
    elif name == "fake":
        data = _fake(seed, train_images, val_images, size, how, num_classes or 1000)
    elif name == "packed":
        data = _packed(root, size, resize_size, how, (train_images, val_images), seed)
    elif name == "cifar10":
        data = _cifar10(root, size, how, (train_images, val_images), seed)
    else:
        jpeg_decoder(decoder)
        parts = (("train", "train") if holdout else ("val", "val")) if val_alone else ("train", "val")
        kept = (train_images if parts[0] == "train" else None, val_images if parts[1] == "val" else None)
        data = _imagefolder(root, size, resize_size, how, kept, seed, parts, decoder)
    if num_classes is not None and num_classes != data.num_classes:
        raise N2NError(f"data {name} has {data.num_classes} classes, not num_classes={num_classes}")
    return cached(fraction(held_out(data, holdout, seed), train_fraction, seed), cache)


def _geometry(name: str, augment: str, image_size: int) -> Geometry:
    if augment in ("none", "crop", "imagenet"):
        return augment  # type: ignore[return-value]
    if name == "fake" and augment == "auto":
        return "none"
    return "crop" if name == "shapes" or image_size <= CIFAR_LIKE_PX else "imagenet"


def _shapes(seed: int, train: int | None, val: int | None, size: int, augment: Augment, difficulty: float) -> Dataset:
    if not isinstance(difficulty, int | float) or not 0 <= difficulty <= 4:
        raise N2NError(f"data.difficulty must be a number in [0, 4], not {difficulty!r}")
    return Dataset(
        name="shapes",
        train=ArraySource(*shapes.generate(seed, "train", train or 12_000, size, float(difficulty)), augment),
        val=ArraySource(*shapes.generate(seed, "val", val or 2_000, size, float(difficulty))),
        num_classes=len(shapes.CLASS_NAMES),
        class_names=list(shapes.CLASS_NAMES),
        mean=LOOKS["shapes"][0],
        std=LOOKS["shapes"][1],
        image_size=size,
        synthetic=True,
    )


def _fake(seed: int, train: int | None, val: int | None, size: int, augment: Augment, classes: int) -> Dataset:
    random = generator(seed, size, classes)
    images = torch.randint(256, (256, 3, size, size), dtype=torch.uint8, generator=random)
    labels = [torch.randint(classes, (count,), generator=random) for count in (train or 12_800, val or 1_280)]
    return Dataset(
        name="fake",
        train=ArraySource(images, labels[0], augment),
        val=ArraySource(images, labels[1]),
        num_classes=classes,
        class_names=[str(label) for label in range(classes)],
        mean=LOOKS["fake"][0],
        std=LOOKS["fake"][1],
        image_size=size,
        synthetic=True,
    )


def _cifar10(
    root: str | Path | None, size: int, augment: Augment, counts: tuple[int | None, int | None], seed: int
) -> Dataset:
    from torchvision.datasets import CIFAR10

    if size != 32:
        raise N2NError(f"data cifar10 has images of 32 px, not image_size={size}")
    folder = Path(root or "data").expanduser()
    new = not folder.exists()
    sources = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        said = f"cifar10: waits for another process, which downloads to {folder}"
        with locked(folder, lambda: print(said, flush=True)):
            parts = [CIFAR10(str(folder), train=train, download=True) for train in (True, False)]
        for train, part in zip((True, False), parts, strict=True):
            images = torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous()
            labels = torch.tensor(part.targets)
            keep = _subset(len(labels), counts[not train], train, seed)
            kind = augment if train else augment.as_in_evaluation
            source = ArraySource(images, labels, kind)
            sources.append(source if keep is None else source.subset(keep, kind))
    except (OSError, RuntimeError) as error:  # no network, no space, a damaged archive
        if new:  # nothing is left behind
            shutil.rmtree(folder, ignore_errors=True)
        reason = " ".join(str(error).split())
        raise N2NError(f"cifar10: cannot be downloaded to data.root={folder}: {reason}") from error
    return Dataset(
        name="cifar10",
        train=sources[0],
        val=sources[1],
        num_classes=10,
        class_names=list(part.classes),
        mean=LOOKS["cifar10"][0],
        std=LOOKS["cifar10"][1],
        image_size=size,
        synthetic=False,
    )


def _imagefolder(
    root: str | Path | None,
    size: int,
    resize: int | None,
    augment: Augment,
    counts: tuple[int | None, int | None],
    seed: int,
    parts: tuple[str, str],
    decoder: str,
) -> Dataset:
    """``parts``: the folders of the training and of the validation images."""
    resize = resize or margin(size)
    folder = layout(root, parts)
    scanned = {part: scan(folder / part) for part in parts}
    found, validation = (scanned[part] for part in parts)
    names = found.names
    for part, other in (parts[::-1], parts):
        missing = set(scanned[other].names) - set(scanned[part].names)
        if missing:
            first = sorted(missing)
            listed = ", ".join(map(repr, first[:3])) + (f" and {len(first) - 3} more" if len(first) > 3 else "")
            raise N2NError(f"imagefolder: no class {listed} in {folder / part}")
    train = FolderSource(found.paths, found.labels, size, resize, augment, decoder)
    val = FolderSource(validation.paths, validation.labels, size, resize, augment.as_in_evaluation, decoder)
    over = {part: files.passed_over() for part, files in scanned.items()}
    passed_over = ", ".join(f"{said} in {part}/" for part, said in over.items() if said)
    files = digest([*found.paths, *validation.paths], folder)
    return _photographs("imagefolder", train, val, counts, seed, names, size, files, passed_over)


def _packed(
    root: str | Path | None,
    size: int,
    resize: int | None,
    augment: Augment,
    counts: tuple[int | None, int | None],
    seed: int,
) -> Dataset:
    if root is None:
        raise N2NError("packed needs data.root=FOLDER (made by `n2n data pack`)")
    folder, resize = Path(root).expanduser(), resize or margin(size)
    about = records.manifest(folder)
    if resize > about["size"]:
        what = f"the shorter side of validation images is {resize} px" if resize != size else f"images of {size} px"
        smaller = ", or give data.resize_size" if size <= about["size"] else ""
        raise N2NError(
            f"data.root: {folder} is packed at {about['size']} px, too small for data.image_size={size} ({what}): pack "
            f"with --size {resize}{smaller}"
        )
    kinds = (augment, augment.as_in_evaluation)
    train, val = (packed.PackedSource(folder, p, about, size, resize, k) for p, k in zip(PARTS, kinds, strict=True))
    return _photographs("packed", train, val, counts, seed, about["classes"], size, about["files"])


def _photographs(
    name: str,
    train: Source,
    val: Source,
    counts: tuple[int | None, int | None],
    seed: int,
    classes: list[str],
    size: int,
    files: str,
    passed_over: str = "",
) -> Dataset:
    """``counts`` of the images of two sources, with ImageNet's mean and standard deviation."""
    keep = [_subset(len(source), counts[i], i == 0, seed) for i, source in enumerate((train, val))]
    return Dataset(
        name=name,
        train=train if keep[0] is None else train.subset(keep[0], train.augment),
        val=val if keep[1] is None else val.subset(keep[1], val.augment),
        num_classes=len(classes),
        class_names=list(classes),
        mean=LOOKS[name][0],
        std=LOOKS[name][1],
        image_size=size,
        synthetic=False,
        files=files,
        passed_over=passed_over,
    )


def margin(size: int) -> int:
    """The shorter side before the centre crop: 256 for 224, none for small images."""
    return size if size <= CIFAR_LIKE_PX else round(size * 256 / 224)


def _subset(images: int, count: int | None, train: bool, seed: int) -> Tensor | None:
    """``count`` indices drawn without replacement, sorted; None for all."""
    if count is None or count == images:
        return None
    if count > images:
        field = "train_images" if train else "val_images"
        raise N2NError(f"data.{field}={count}, but there are only {images}")
    return torch.randperm(images, generator=generator(seed, int(train)))[:count].sort().values
