"""What every rank and worker sees, epoch by epoch, is a function of (seed, epoch)."""

import contextlib
import ctypes
import multiprocessing
import os
import signal
import threading
import time
from pathlib import Path

import pytest
import torch

from n2n_cli.data import EvalLoader, Source, TrainLoader, load
from n2n_cli.data.counter import generator
from n2n_cli.data.sources import ArraySource
from n2n_cli.data.transforms import Augment
from n2n_cli.errors import N2NError


@pytest.fixture
def source() -> ArraySource:
    """100 images of which each tells its own index by its first pixel."""
    images = torch.randint(256, (100, 3, 16, 16), dtype=torch.uint8)
    images[:, 0, 0, 0] = torch.arange(100, dtype=torch.uint8)
    return ArraySource(images, torch.arange(100), augment=Augment("crop"))


def collect(source: Source, epoch: int = 0, start: int = 0, **kwargs) -> list[tuple[torch.Tensor, torch.Tensor]]:
    loader = TrainLoader(source, **{"batch_size": 12, "seed": 0, **kwargs})
    return list(loader.batches(epoch, start))


def same(a: list[tuple[torch.Tensor, torch.Tensor]], b: list[tuple[torch.Tensor, torch.Tensor]]) -> bool:
    return len(a) == len(b) and all(
        torch.equal(x, u) and torch.equal(y, v) for (x, y), (u, v) in zip(a, b, strict=True)
    )


def test_epoch_is_a_permutation_without_the_rest(source: ArraySource) -> None:
    batches = collect(source)
    assert TrainLoader(source, batch_size=12, seed=0).steps_per_epoch == len(batches) == 8
    seen = torch.cat([labels for _, labels in batches]).tolist()
    assert len(set(seen)) == len(seen) == 96
    assert seen != sorted(seen)
    assert all(x.dtype == torch.uint8 and x.shape == (12, 3, 16, 16) for x, _ in batches)


def test_order_depends_on_seed_and_epoch_only(source: ArraySource) -> None:
    reference = collect(source)
    assert same(reference, collect(source))
    assert not same(reference, collect(source, epoch=1))
    assert not same(reference, collect(source, seed=1))
    loader = TrainLoader(source, batch_size=12, seed=0)
    list(loader.batches(4))
    assert same(reference, list(loader.batches(0)))


def test_resuming_within_an_epoch(source: ArraySource) -> None:
    reference = collect(source, epoch=3)
    for start in (0, 1, 5, 8):
        assert same(reference[start:], collect(source, epoch=3, start=start))


@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_ranks_together_see_what_one_rank_sees(source: ArraySource, world_size: int) -> None:
    parts = [collect(source, rank=rank, world_size=world_size) for rank in range(world_size)]
    joined = [(torch.cat([x for x, _ in step]), torch.cat([y for _, y in step])) for step in zip(*parts, strict=True)]
    assert same(collect(source), joined)


@pytest.mark.parametrize(("images", "world_size", "batch_size"), [(100, 1, 30), (100, 3, 7), (5, 8, 2), (1, 2, 4)])
def test_evaluation_sees_every_image_once(images: int, world_size: int, batch_size: int) -> None:
    source = ArraySource(
        torch.randint(256, (images, 3, 8, 8), dtype=torch.uint8), torch.arange(images), Augment("crop")
    )
    seen = []
    for rank in range(world_size):
        loader = EvalLoader(source, batch_size=batch_size, rank=rank, world_size=world_size)
        batches = list(loader.batches(0))
        assert len(batches) == loader.steps_per_epoch
        for x, y in batches:
            assert len(y) <= batch_size and torch.equal(x, source.images[y])  # no augmentation
            assert (y % world_size == rank).all()
            seen += y.tolist()
    assert sorted(seen) == list(range(images))


def test_augmentation_differs_between_epochs_and_images(source: ArraySource) -> None:
    source = ArraySource(source.images[:1].expand(100, -1, -1, -1), source.labels, Augment("crop"))
    images = [torch.cat([x for x, _ in collect(source, epoch=e)]) for e in (0, 1)]
    assert len(images[0].flatten(1).unique(dim=0)) > 40
    assert not torch.equal(*images)
    plain = ArraySource(source.images, source.labels)
    assert len(torch.cat([x for x, _ in collect(plain)]).flatten(1).unique(dim=0)) == 1


@pytest.mark.parametrize("augment", ["crop", "imagenet", "randaugment"])
def test_workers_change_nothing(folder: Path, augment: str) -> None:
    data = load("imagefolder", root=folder, image_size=24, augment=augment, cache="none")
    reference = [collect(data.train, epoch=epoch, batch_size=4) for epoch in range(3)]
    assert not same(reference[0], reference[1])
    for workers in (1, 2):
        loader = TrainLoader(data.train, batch_size=4, seed=0, workers=workers)
        state = torch.get_rng_state()
        assert all(same(reference[epoch], list(loader.batches(epoch))) for epoch in range(3))
        assert same(reference[2][1:], list(loader.batches(2, 1)))
        stopped = loader.batches(0)
        next(stopped)
        stopped.close()
        assert same(reference[1], list(loader.batches(1)))
        assert torch.equal(state, torch.get_rng_state())
    plain = list(EvalLoader(data.val, batch_size=4).batches(0))
    assert same(plain, list(EvalLoader(data.val, batch_size=4, workers=2).batches(0)))


@pytest.mark.parametrize("workers", [0, 2])
def test_unreadable_image_is_named_without_a_traceback(folder: Path, workers: int) -> None:
    bad = folder / "train" / "bee" / "1.jpg"
    bad.write_bytes(bad.read_bytes()[:200])
    data = load("imagefolder", root=folder, image_size=24, cache="none")
    loader = TrainLoader(data.train, batch_size=4, seed=0, workers=workers)
    for _ in range(2):  # the loader lives on
        with pytest.raises(N2NError, match=rf"unreadable image {bad}: ") as error:
            list(loader.batches(0))
        assert not multiprocessing.active_children()
    assert "\n" not in str(error.value) and "Traceback" not in str(error.value)


def test_killed_worker_is_one_line(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("n2n_cli.data.loaders.LOOK_S", 1)
    data = load("imagefolder", root=folder, image_size=24, cache="none")
    loader = TrainLoader(data.train, batch_size=2, seed=0, workers=1)
    batches = loader.batches(0)
    next(batches)
    worker = loader._reader._loader._iterator._workers[0]  # type: ignore[attr-defined]
    os.kill(worker.pid, signal.SIGKILL)
    worker.join()
    with pytest.raises(N2NError, match=r"data workers: DataLoader worker .* exited|data workers: .*killed"):
        list(batches)
        list(loader.batches(1))


def test_a_worker_killed_while_it_holds_the_loaders_lock(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("n2n_cli.data.loaders.LOOK_S", 1)
    data = load("imagefolder", root=folder, image_size=24, cache="none")
    loader = TrainLoader(data.train, batch_size=2, seed=0, workers=2)
    batches = loader.batches(0)
    next(batches)
    running = loader._reader._loader._iterator  # type: ignore[attr-defined]
    lock = running._workers_done_event._cond
    assert lock.acquire(timeout=5)
    try:
        for worker in running._workers:
            os.kill(worker.pid, signal.SIGKILL)
        with pytest.raises(N2NError, match="data workers: "):
            list(batches)
            list(loader.batches(1))
        assert not any(worker.is_alive() for worker in running._workers)
    finally:
        lock.release()  # or a failure here would wait for ever where the loader is collected


@pytest.mark.parametrize("error", [ConnectionResetError(104, "reset"), EOFError(), FileNotFoundError(2, "no socket")])
def test_a_connection_that_ends_before_its_worker_counts_as_dead(
    folder: Path, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = load("imagefolder", root=folder, image_size=24, cache="none")
    loader = TrainLoader(data.train, batch_size=2, seed=0, workers=1)
    batches = loader.batches(0)
    next(batches)
    (worker,) = loader._reader._loader._iterator._workers  # type: ignore[attr-defined]

    def lost(_: object) -> None:
        threading.Timer(0.2, worker.kill).start()
        raise error

    monkeypatch.setattr("n2n_cli.data.loaders._patient", lost)
    with pytest.raises(N2NError, match=r"^data workers: .*\(one of them was killed\)$"):
        next(batches)
    assert not worker.is_alive()


def test_a_killed_worker_is_found_by_looking(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's own handler of SIGCHLD would raise in the middle of whatever the program does."""
    before = signal.getsignal(signal.SIGCHLD)
    data = load("imagefolder", root=folder, image_size=24, cache="none")
    batches = TrainLoader(data.train, batch_size=2, seed=0, workers=1).batches(0)
    next(batches)
    assert signal.getsignal(signal.SIGCHLD) == before
    batches.close()


def test_a_silent_worker_is_waited_for_as_long_as_said(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("n2n_cli.data.loaders.LOOK_S", 1)
    monkeypatch.setattr("n2n_cli.data.loaders.TIMEOUT_S", 2)
    monkeypatch.setattr("n2n_cli.data.sources.read_image", lambda path, decoder: time.sleep(60))
    data = load("imagefolder", root=folder, image_size=24, cache="none")
    began = time.monotonic()
    with pytest.raises(N2NError, match="data workers: DataLoader timed out after 2 seconds"):
        list(TrainLoader(data.train, batch_size=2, seed=0, workers=1).batches(0))
    assert 1.9 < time.monotonic() - began < 20
    assert not multiprocessing.active_children()  # though they sleep for a minute


def test_without_shared_memory_the_batches_are_the_same(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = load("imagefolder", root=folder, image_size=24, cache="none")
    plain = list(TrainLoader(data.train, batch_size=4, seed=0, workers=1).batches(0))
    small = os.statvfs_result((4096, 4096, 1, 1, 1, 0, 0, 0, 0, 255))
    monkeypatch.setattr("os.statvfs", lambda path: small)
    loader = TrainLoader(data.train, batch_size=4, seed=0, workers=1)
    piped = list(loader.batches(0))
    assert loader._reader._batches.by_pipe
    for ours, theirs in zip(piped, plain, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("workers", [0, 1])
def test_unreadable_images_are_skipped_if_asked(
    folder: Path, workers: int, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = folder / "train" / "bee" / "1.jpg"
    data = load("imagefolder", root=folder, image_size=24, cache="none", augment="none")
    index = [path.decode() for path in data.train.paths].index(str(bad))
    whole = data.train.batch(torch.arange(len(data.train)), None)
    bad.write_bytes(bad.read_bytes()[:200])
    loader = TrainLoader(data.train, batch_size=4, seed=0, workers=workers, skip=True)
    order = torch.randperm(len(data.train), generator=generator(0, 0))
    order[order == index] = index + 1
    for _ in range(2):
        images, labels = (torch.cat(parts) for parts in zip(*loader.batches(0), strict=True))
        assert torch.equal(images, whole[order[: len(images)]])
        assert torch.equal(labels, data.train.labels[order[: len(labels)]])
    assert capfd.readouterr().err.count(f"n2n: warning: skipped unreadable image {bad}: ") == 1
    monkeypatch.setattr("n2n_cli.data.loaders.MOST_SKIPPED", 0)
    with pytest.raises(N2NError, match=r"cannot be read: more than data.on_error=skip puts up|unreadable image"):
        list(TrainLoader(data.train, batch_size=4, seed=0, workers=workers, skip=True).batches(0))


def test_memory_stays_level_over_ten_epochs(folder: Path) -> None:
    """That of this process and of its two workers. A batch is 400 kB, an epoch 20 of them."""
    with contextlib.suppress(
        AttributeError
    ):  # glibc gives large pieces back at once, instead of keeping some for later
        ctypes.CDLL(None).mallopt(-3, 1 << 16)
    few = load("imagefolder", root=folder, image_size=64, augment="imagenet", cache="none").train
    source = few.subset(torch.arange(len(few)).repeat(54)[:640], few.augment)
    loader = TrainLoader(source, batch_size=32, seed=0, workers=2)
    used = []
    for epoch in range(10):
        assert sum(len(labels) for _, labels in loader.batches(epoch)) == 640
        workers = [child.pid for child in multiprocessing.active_children()]
        assert len(workers) == 2
        status = [Path(f"/proc/{pid}/status").read_text() for pid in (os.getpid(), *workers)]
        used.append([int(text.partition("VmRSS:")[2].split()[0]) / 1024 for text in status])
    loader.close()
    assert all(last - third < 8 for third, last in zip(used[2], used[9], strict=True)), used  # MB


def test_too_few_images(source: ArraySource) -> None:
    with pytest.raises(N2NError, match="100 training images are too few for one batch of batch_size 128"):
        TrainLoader(source, batch_size=128, seed=0)
