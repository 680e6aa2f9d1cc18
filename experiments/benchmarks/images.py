"""Images a second and core: n2n's image folder against torchvision's classification reference.

    python experiments/benchmarks/images.py FOLDER [--rounds 5] [--batches 8] [--out ROWS.csv] [--workers]

FOLDER holds photographs (in any subfolders). The peer is the pipeline that torchvision's classification reference
describes, with its default backend PIL, made of torchvision's own classes: its loader, RandomResizedCrop, flip, and for
validation Resize and CenterCrop; then to tensor, to float, normalised, collated. Ours ends with uint8 batches, which
are normalised on the device; "normalised" counts that too, on the same core. Every round times both on the same files,
one after the other, in CPU seconds of one thread; a ratio is the peer's time over ours in the same round. ``--out``
writes a row for each of them in each round. Beside that:
whether the decoders give Pillow's pixels on all files, and how long it takes to find 100,000 files.

``--workers`` times instead the loader of training with 1 and 2 processes and with a pool of 1 and 2 threads that make
the same batches: images a second by the clock, all four on the same files in every round, in turn first. Once nobody
else works, and once a small network is trained on what they give, which needs a core (and the interpreter) too.
"""

from __future__ import annotations

import argparse
import csv
import importlib.util
import os
import random
import statistics
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import PIL
import torch
import torchvision
from torch import nn
from torch.utils.data import default_collate
from torchvision import transforms as T
from torchvision.datasets.folder import IMG_EXTENSIONS, pil_loader

from n2n_cli.data import TrainLoader
from n2n_cli.data.counter import uniforms
from n2n_cli.data.datasets import LOOKS
from n2n_cli.data.loaders import AHEAD, Batch
from n2n_cli.data.pack import pack
from n2n_cli.data.packed import PackedSource
from n2n_cli.data.sources import FolderSource, read_image, scan
from n2n_cli.data.transforms import DRAWS, Augment
from n2n_cli.training.evaluate import Normalize

BATCH = 32


def peer(crop: list[object]) -> Callable[[list[str]], object]:
    to_float = [T.PILToTensor(), T.ConvertImageDtype(torch.float), T.Normalize(*LOOKS["imagefolder"])]
    transform = T.Compose([*crop, *to_float])
    return lambda paths: default_collate([transform(pil_loader(path)) for path in paths])


def ours(augment: str, decoder: str, normalised: bool = False) -> Callable[[list[str]], object]:
    normalize = Normalize(*LOOKS["imagefolder"], torch.device("cpu"), channels_last=True)

    def batch(paths: list[str]) -> object:
        source = FolderSource(paths, [0] * len(paths), 224, 256, Augment(augment), decoder)  # type: ignore[arg-type]
        indices = torch.arange(len(paths))
        images = source.batch(indices, uniforms(0, 0, indices, DRAWS) if augment != "none" else None)
        return normalize(images) if normalised else images

    return batch


def packed(folder: Path, files: list[str]) -> dict[tuple[str, str], Callable[[list[str]], object]]:
    """The same images packed at 256 px, in both formats; says how large they are."""
    images, found = folder / "images", {}
    for part, linked in (("train", files), ("val", files[:1])):
        (images / part / "all").mkdir(parents=True)
        for number, file in enumerate(linked):
            (images / part / "all" / f"{number:06d}.jpg").symlink_to(file)
    where = {file: number for number, file in enumerate(files)}
    for kind in ("jpeg", "raw"):
        about = pack(images, folder / kind, kind=kind)
        size = sum(about["shards"]["train"]) / len(files)
        source = PackedSource(folder / kind, "train", about, 224, 256, Augment("imagenet"))

        def training(paths: list[str], source: PackedSource = source) -> object:
            indices = torch.tensor([where[path] for path in paths])
            return source.batch(indices, uniforms(0, 0, indices, DRAWS))

        def validation(paths: list[str], source: PackedSource = source) -> object:
            return source.batch(torch.tensor([where[path] for path in paths]), None)

        name = f"data=packed, {kind} ({size / 1e3:.0f} kB an image)"
        found |= {("training", name): training, ("validation", name): validation}
    return found


DECODERS = ["torchvision", *(["torchcodec"] if importlib.util.find_spec("torchcodec") else [])]
PEERS = {
    "training": peer([T.RandomResizedCrop(224, antialias=True), T.RandomHorizontalFlip()]),
    "validation": peer([T.Resize(256, antialias=True), T.CenterCrop(224)]),
}
OURS = {
    (what, name): ours(augment, decoder, normalised)
    for what, augment in (("training", "imagenet"), ("validation", "none"))
    for name, decoder, normalised in (
        ("data=imagefolder", "auto", False),
        ("normalised", "auto", True),
        *((f"data.decoder={decoder}", decoder, False) for decoder in (*DECODERS[1:], "pil")),
    )
}


def seconds(make: Callable[[list[str]], object], batches: list[list[str]]) -> float:
    began = time.process_time()
    for paths in batches:
        make(paths)
    return time.process_time() - began


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batches", type=int, default=8, help=f"of {BATCH} images, in each round others")
    parser.add_argument("--out", type=Path, help="a CSV file of every round")
    parser.add_argument("--workers", action="store_true", help="processes against threads")
    given = parser.parse_args()
    torch.set_num_threads(1)
    files = sorted(str(path) for path in given.folder.rglob("*") if path.suffix.lower() in IMG_EXTENSIONS)
    random.Random(0).shuffle(files)
    if given.workers:
        return workers(files, given.rounds, given.batches)
    for decoder in DECODERS:
        same = sum(torch.equal(read_image(file, decoder), read_image(file, "pil")) for file in files)
        print(f"{same} of {len(files)} files: {decoder} gives Pillow's pixels")
    empty()
    with tempfile.TemporaryDirectory() as place:
        rows = compare(files, OURS | packed(Path(place), files), given.rounds, given.batches)
    if given.out:
        with given.out.open("w", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerows([("part", "pipeline", "round", "images_per_s", "over_reference"), *rows])


def empty(classes: int = 100, images: int = 1000) -> None:
    """How long it takes to find the files of a folder."""
    with tempfile.TemporaryDirectory() as place:
        for number in range(classes * images):
            path = Path(place) / f"n{number // images:08d}" / f"{number}.JPEG"
            path.parent.mkdir(exist_ok=True)
            path.touch()
        began = time.perf_counter()
        found = scan(Path(place))
        took = time.perf_counter() - began
        print(f"{len(found.paths):,} (empty) files in {classes} classes are found in {took:.2f} s\n")


def compare(
    files: list[str], all_of_ours: dict[tuple[str, str], Callable[[list[str]], object]], rounds: int, per_round: int
) -> list[tuple[str, str, int, str, str]]:
    """Prints a table of medians. Returns every round: part, pipeline, round, images a second, ratio."""
    need = BATCH * per_round
    ratios: dict[tuple[str, str], list[float]] = {}
    speed: dict[tuple[str, str], list[float]] = {}
    for number in range(rounds + 1):
        chosen = [files[(number * need + i) % len(files)] for i in range(need)]
        batches = [chosen[i : i + BATCH] for i in range(0, need, BATCH)]
        for what, reference in PEERS.items():
            theirs = seconds(reference, batches)
            for key in (key for key in all_of_ours if key[0] == what):
                mine = seconds(all_of_ours[key], batches)
                if number:  # the first warms up
                    ratios.setdefault(key, []).append(theirs / mine)
                    speed.setdefault(key, []).append(need / mine)
            if number:
                speed.setdefault((what, "reference"), []).append(need / theirs)
    versions = f"torch {torch.__version__}, torchvision {torchvision.__version__}, Pillow {PIL.__version__}"
    print(f"{versions}; {len(files)} files, {rounds} rounds of {need} images, one thread\n")
    print("| | images/s a core | over the reference (median, least to most) |\n|---|---|---|")
    for key, values in speed.items():
        told = "1"
        if key in ratios:
            told = f"{statistics.median(ratios[key]):.2f} ({min(ratios[key]):.2f} to {max(ratios[key]):.2f})"
        print(f"| {key[0]}, {key[1]} | {statistics.median(values):.0f} | {told} |")
    return [
        (*key, number + 1, f"{value:.1f}", f"{ratios.get(key, [1.0] * rounds)[number]:.3f}")
        for key, values in speed.items()
        for number, value in enumerate(values)
    ]


def loader(files: list[str], processes: int = 0, threads: int = 0) -> TrainLoader:
    """That of training; with ``threads``, they do what its processes would do."""
    source = FolderSource(files, [number % 10 for number in range(len(files))], 224, 256, Augment("imagenet"))
    made = TrainLoader(source, batch_size=BATCH, seed=0, workers=processes)
    if threads:
        pool = ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))
        made._reader.read = partial(by_threads, made._reader._batches.fetch, pool, AHEAD * threads)  # type: ignore[method-assign]
    return made


def by_threads(
    fetch: Callable[[int, torch.Tensor], tuple[torch.Tensor, torch.Tensor, object]],
    pool: ThreadPoolExecutor,
    ahead: int,
    epoch: int,
    steps: Sequence[torch.Tensor],
) -> Iterator[Batch]:
    begun = deque(pool.submit(fetch, epoch, indices) for indices in steps[:ahead])
    rest = iter(steps[ahead:])
    while begun:
        images, labels, _ = begun.popleft().result()
        begun.extend(pool.submit(fetch, epoch, indices) for _, indices in zip(range(1), rest, strict=False))
        yield images, labels


def small_network() -> Callable[[Batch], None]:
    """Trains a small network on a batch: some 30 ms, in many short operations."""
    layers: list[nn.Module] = [nn.Conv2d(3, 16, 3, stride=2)]
    for _ in range(8):
        layers += [nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1)]
    net = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10))
    optimizer = torch.optim.SGD(net.parameters(), 1e-3)

    def step(batch: Batch) -> None:
        images, labels = batch
        nn.functional.cross_entropy(net(images[:, :, ::5, ::5] / 255), labels).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def workers(files: list[str], rounds: int, per_round: int) -> None:
    """Prints a table of processes and threads."""
    chosen = files[: BATCH * per_round]
    kinds = {f"{n} {what}": loader(chosen, **{what: n}) for what in ("processes", "threads") for n in (1, 2)}
    wanted = list(loader(chosen).batches(0))
    for made in kinds.values():  # which starts them
        assert all(
            torch.equal(a, b)
            for ours, theirs in zip(made.batches(0), wanted, strict=True)
            for a, b in zip(ours, theirs, strict=True)
        )
    steps: dict[str, Callable[[Batch], None]] = {"alone": lambda batch: None, "beside training": small_network()}
    speed: dict[tuple[str, str], list[float]] = {(what, kind): [] for what in steps for kind in kinds}
    began = time.perf_counter()
    for batch in wanted:
        steps["beside training"](batch)
    step_ms = 1e3 * (time.perf_counter() - began) / len(wanted)
    for number in range(rounds):
        for what, step in steps.items():
            order = list(kinds)
            for kind in (*order[number % 4 :], *order[: number % 4]):
                began = time.perf_counter()
                for batch in kinds[kind].batches(number + 1):
                    step(batch)
                speed[what, kind].append(len(wanted) * BATCH / (time.perf_counter() - began))
    for made in kinds.values():
        made.close()
    cores, images = len(os.sched_getaffinity(0)), len(wanted) * BATCH
    print(f"torch {torch.__version__}, {cores} cores, {rounds} rounds of {images} images, a step of {step_ms:.0f} ms\n")
    print("| | images/s (median, least to most) | threads over as many processes |\n|---|---|---|")
    for (what, kind), values in speed.items():
        told = ""
        if kind.endswith("threads"):
            ratios = [a / b for a, b in zip(values, speed[what, kind.replace("threads", "processes")], strict=True)]
            told = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        print(f"| {what}, {kind} | {statistics.median(values):.0f} ({min(values):.0f} to {max(values):.0f}) | {told} |")


if __name__ == "__main__":
    main()
