"""A small folder of real image files."""

import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from PIL import Image

from n2n_cli import cli


def picture(path: Path, seed: int, size: tuple[int, int] = (40, 48), mode: str = "RGB", kind: str = "JPEG") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = torch.randint(256, (size[1] // 8, size[0] // 8, 3), generator=torch.Generator().manual_seed(seed))
    image = Image.fromarray(pixels.to(torch.uint8).numpy()).resize(size, Image.Resampling.BICUBIC)
    image.convert(mode).save(path, format=kind)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """``data/{train,val}/{ant,bee,cat}/<n>.jpg``: 4 training and 2 validation images a class."""
    for split, count in (("train", 4), ("val", 2)):
        for label, name in enumerate(("ant", "bee", "cat")):
            for n in range(count):
                picture(tmp_path / "data" / split / name / f"{n}.jpg", seed=100 * label + 10 * n + count)
    return tmp_path / "data"


@pytest.fixture
def draw() -> Callable[..., None]:
    return picture


@dataclass
class Command:
    """A command in a process group of its own, with what it has written to stdout and stderr."""

    pid: int
    out: Path
    err: Path

    @classmethod
    def start(cls, words: list[str], place: Path, first: Callable[[], object] = lambda: None) -> "Command":
        """Forked from the tests' process, which has imported all; ``first`` is called in the child before."""
        out, err = place / "out", place / "err"
        pid = os.fork()
        if pid:
            return cls(pid, out, err)
        code = 1
        try:
            os.setsid()
            for stream, path in ((1, out), (2, err)):
                os.dup2(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC), stream)
            sys.stdout, sys.stderr = (os.fdopen(stream, "w", closefd=False) for stream in (1, 2))
            signal.signal(signal.SIGINT, signal.default_int_handler)
            first()
            code = cli.main(words)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def stop(self, how: signal.Signals, when: Callable[[], bool], patience_s: float = 60) -> tuple[int, str, str]:
        """Its exit code (of a signal, minus its number), stdout and stderr, after the whole group got a signal."""
        until = time.monotonic() + patience_s
        while not when():
            assert time.monotonic() < until and os.waitpid(self.pid, os.WNOHANG) == (0, 0), self.err.read_text()
            time.sleep(0.001)
        os.killpg(self.pid, how)
        code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return code, self.out.read_text(), self.err.read_text()


@pytest.fixture
def start(tmp_path: Path) -> Callable[..., Command]:
    """Starts a command: its words, and what its process does first."""
    return lambda words, first=lambda: None: Command.start(words, tmp_path, first)
