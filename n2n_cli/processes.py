"""Processes that work for another one, and end with it."""

from __future__ import annotations

import ctypes
import fcntl
import os
import signal
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from n2n_cli.errors import N2NError

Item = TypeVar("Item")
Result = TypeVar("Result")


def stop_with_parent() -> None:
    """If this process's parent is killed, it gets SIGTERM. Linux only."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


@contextmanager
def locked(path: Path, waits: Callable[[], object]) -> Iterator[None]:
    """Holds ``path``, a folder or a file that is made, for this process; ``waits`` is called where another one has it.

    Raises OSError.
    """
    file = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waits()
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError:  # a file system without locks
            pass
        yield
    finally:
        os.close(file)


def each(
    function: Callable[[Item], Result], items: Iterable[Item], workers: int, *, chunk: int = 1, what: str
) -> Iterator[Result]:
    """The results of ``function``, in order, from ``workers`` processes, which get ``chunk`` items at once.

    Ctrl-C and errors end the processes too, once what they have begun is done; ``what`` (a command) begins the error's
    line.

    Raises:
        N2NError: one of them was killed; and what ``function`` raises.
    """
    pool = ProcessPoolExecutor(max(1, workers), initializer=_quiet)
    try:
        yield from pool.map(function, items, chunksize=chunk)
    except BrokenProcessPool as error:
        raise N2NError(f"{what}: one of its processes was killed (out of memory?); try fewer workers=") from error
    finally:
        pool.shutdown(cancel_futures=True)


def _quiet() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole process group; the parent decides
    stop_with_parent()
