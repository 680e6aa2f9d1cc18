"""Processes that work for another one, and end with it."""

from __future__ import annotations

import ctypes
import signal
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from typing import TypeVar

from n2n_cli.errors import N2NError

Item = TypeVar("Item")
Result = TypeVar("Result")


def stop_with_parent() -> None:
    """If this process's parent is killed, it gets SIGTERM. Linux only."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


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
